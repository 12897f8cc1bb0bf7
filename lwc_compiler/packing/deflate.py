"""DEFLATE (RFC 1951) without headers, and its Huffman half alone.

Huffman codes come from zlib too: with the strategy "Huffman only" it writes nothing but literals, in canonical codes
of at most 15 bits that it makes anew for every 32768 symbols or fewer (RFC 1951, section 3.2). Decoding is C, well
tried on hostile input, and never writes more than it is told.
"""

from __future__ import annotations

import zlib

from lwc_compiler.packing.reader import damaged

_NO_HEADER = -zlib.MAX_WBITS
_USUAL, _BEST = 6, 9  # levels
_LONG_BLOCKS = 9  # zlib's memory level: symbols are counted over 32768 at a time
_GZIP_BLOCKS = 8  # over 16384, as many programs named gzip do
# Level 9 makes pruned and shared weights up to 11 % smaller than level 6, and takes ten times as long.
_LEVEL_GAIN = 1.15
_BLOCK_GAIN = 1.02
_LONG = 1 << 16


def huffman_coded(symbols: bytes) -> bytes:
    """Huffman codes of `symbols`, one a byte."""
    return _compressed(symbols, strategy=zlib.Z_HUFFMAN_ONLY)


def deflate(data: bytes) -> bytes:
    """`data` deflated, no larger than `gzip -9` does."""
    return min((_compressed(data, blocks=blocks) for blocks in (_LONG_BLOCKS, _GZIP_BLOCKS)), key=len)


def deflate_below(data: bytes, limit: int) -> tuple[bytes | None, int]:
    """`data` deflated when that takes fewer than `limit` bytes, otherwise None; and the bytes it takes at least.

    More than 64 KiB is first tried at the usual level; when that misses the limit by 15 %, the best is not tried.
    """
    if len(data) > _LONG:
        least = int(len(_compressed(data, level=_USUAL)) / _LEVEL_GAIN)
        if least > limit:
            return None, least
        least = len(_compressed(data))
        if least > _BLOCK_GAIN * limit:
            return None, least
    deflated = deflate(data)
    return deflated if len(deflated) < limit else None, len(deflated)


def inflate(data: bytes | memoryview, most: int) -> tuple[bytes, bytes]:
    """What DEFLATE or Huffman codes at the beginning of `data` stand for, and what follows them in `data`.

    Raises:
        ArtifactError: they are damaged, or stand for more than `most` bytes; no more than that is ever in memory.
    """
    decoder = zlib.decompressobj(_NO_HEADER)
    try:
        inflated = decoder.decompress(data, most + 1)
    except zlib.error as error:
        raise damaged(f"a compressed part cannot be read ({error})") from None
    if len(inflated) > most:
        raise damaged(f"a compressed part holds more than the {most} bytes it may")
    if not decoder.eof:
        raise damaged("a compressed part has no end")
    return inflated, decoder.unused_data


def _compressed(
    data: bytes, *, level: int = _BEST, blocks: int = _LONG_BLOCKS, strategy: int = zlib.Z_DEFAULT_STRATEGY
) -> bytes:
    encoder = zlib.compressobj(level, zlib.DEFLATED, _NO_HEADER, blocks, strategy)
    return encoder.compress(data) + encoder.flush()
