import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lwc_compiler.errors import ArtifactError
from lwc_compiler.packing.deflate import huffman_coded
from lwc_compiler.packing.reader import Reader, varint
from lwc_compiler.packing.symbols import decode_symbols, encode_symbols


@settings(deadline=None, max_examples=100)
@given(st.integers(0, 8), st.booleans(), st.data())
def test_round_trip(bits, huffman, data):
    symbols = np.array(data.draw(st.lists(st.integers(0, (1 << bits) - 1), max_size=300)), np.int64)
    encoded = encode_symbols(symbols, bits, huffman)
    assert len(encoded) <= 1 + -(-symbols.size * bits // 8)
    reader = Reader(encoded)
    decoded = decode_symbols(reader, symbols.size, bits)
    assert decoded.dtype == np.uint8 and decoded.tolist() == symbols.tolist()
    assert reader.left == 0


def test_fixed_width():
    assert encode_symbols(np.array([1, 2, 3, 0, 1]), 2, huffman=True) == bytes([0, 0b00_11_10_01, 0b01])


def test_huffman_codes_are_taken_when_smaller():
    symbols = np.zeros(8000, np.uint8)
    symbols[::100] = 31
    assert len(encode_symbols(symbols, 5, huffman=False)) == 1 + 5000
    assert len(encode_symbols(symbols, 5, huffman=True)) < 1200


@pytest.mark.parametrize("count", [5, 7, 10**15])
def test_another_number_of_huffman_codes_is_refused(count):
    codes = huffman_coded(bytes(6))
    with pytest.raises(ArtifactError, match="damaged"):
        decode_symbols(Reader(varint(len(codes)) + codes), count, 8)


def test_too_large_a_number_is_refused():
    codes = huffman_coded(bytes([1, 8]))
    with pytest.raises(ArtifactError, match="more than 3 bits"):
        decode_symbols(Reader(varint(len(codes)) + codes), 2, 3)


def test_more_numbers_than_bytes_are_refused():
    with pytest.raises(ArtifactError, match="125000000000000 bytes are announced where 2 are left"):
        decode_symbols(Reader(b"\0ab"), 10**15, 1)
