import gzip
import tracemalloc
import zlib

import numpy as np
import pytest

from lwc_compiler.errors import ArtifactError
from lwc_compiler.packing.deflate import deflate, deflate_below, huffman_coded, inflate

SPARSE = np.where(np.random.default_rng(0).random(50_000) < 0.1, np.random.default_rng(1).random(50_000), 0)
SPARSE = SPARSE.astype(np.float32).tobytes()


@pytest.mark.parametrize("data", [b"", b"a", bytes(1000), SPARSE[:5000], SPARSE])
def test_deflated_data_comes_back_and_is_no_larger_than_gzip(data):
    deflated = deflate(data)
    assert inflate(deflated, len(data)) == (data, b"")
    assert len(deflated) + 18 <= len(gzip.compress(data, 9))


def test_limit():
    size = len(deflate(SPARSE))
    deflated, least = deflate_below(SPARSE, size + 1)
    assert deflated is not None and len(deflated) == least == size
    for limit in (size, size // 2):
        deflated, least = deflate_below(SPARSE, limit)
        assert deflated is None
        assert limit <= least <= size * 1.02


def test_huffman_codes_of_a_known_alphabet():
    # Shares of 1/2, 1/4, 1/8 and 1/8 get codes of 1, 2, 3 and 4 bits (one more ends a block): 1.875 on average.
    symbols = bytes([0] * 4 + [1] * 2 + [2, 3]) * 1000
    coded = huffman_coded(symbols)
    assert inflate(coded, 8000) == (symbols, b"")
    assert 8000 * 1.875 / 8 < len(coded) < 8000 * 1.875 / 8 + 30


def test_huffman_codes_are_near_the_entropy():
    symbols = np.random.default_rng(0).geometric(0.09, 60_000).clip(max=255).astype(np.uint8)
    share = np.bincount(symbols) / symbols.size
    entropy = -(share[share > 0] * np.log2(share[share > 0])).sum()
    assert entropy < 8 * len(huffman_coded(symbols.tobytes())) / symbols.size < 1.02 * entropy


def test_what_follows_is_handed_back():
    assert inflate(deflate(b"abc") + b"rest", 3) == (b"abc", b"rest")


@pytest.mark.parametrize("data", [b"", b"\xff\xff", deflate(SPARSE)[:-1], deflate(SPARSE)[:100]])
def test_damaged_data_is_refused(data):
    with pytest.raises(ArtifactError, match="damaged"):
        inflate(data, len(SPARSE))


def test_a_bomb_is_refused_in_little_memory():
    encoder = zlib.compressobj(9, zlib.DEFLATED, -15)
    bomb = b"".join(encoder.compress(bytes(1 << 20)) for _ in range(64)) + encoder.flush()
    tracemalloc.start()
    try:
        with pytest.raises(ArtifactError, match="more than the 100000 bytes"):
            inflate(bomb, 100_000)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()
