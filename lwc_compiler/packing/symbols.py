"""Rows of small numbers, in as many bits as the largest needs or in Huffman codes, whichever is smaller."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from lwc_compiler.packing.deflate import huffman_coded, inflate
from lwc_compiler.packing.reader import Reader, damaged, varint
from lwc_compiler.sparsity.formats import pack_bits, unpack_bits

Symbols = NDArray[np.uint8]

_FIXED_WIDTH = 0  # stands where the length of Huffman codes would


def encode_symbols(symbols: NDArray[Any], bits: int, huffman: bool) -> bytes:
    """Numbers below 2^`bits`, `bits` 0 to 8: the length of their Huffman codes and these, or 0 and `bits` bits each."""
    plain = symbols.astype(np.uint8).tobytes()
    fixed = varint(_FIXED_WIDTH) + (plain if bits == 8 else pack_bits(symbols, bits).tobytes())
    if not huffman or not plain:
        return fixed
    codes = huffman_coded(plain)
    return min(fixed, varint(len(codes)) + codes, key=len)


def decode_symbols(reader: Reader, count: int, bits: int) -> Symbols:
    """The inverse of `encode_symbols` for `count` numbers; takes memory for these only.

    Raises:
        ArtifactError: there are not so many, or one is too large.
    """
    length = reader.varint()
    if length != _FIXED_WIDTH:
        symbols, rest = inflate(reader.take(length), count)
        if len(symbols) != count or rest:
            raise damaged(f"Huffman codes stand for {len(symbols)} numbers, not {count}")
        numbers = np.frombuffer(symbols, np.uint8)
        if count and int(numbers.max()) >> bits:
            raise damaged(f"a number has more than {bits} bits")
        return numbers
    packed = np.frombuffer(reader.take(-(-count * bits // 8)), np.uint8)
    return packed if bits == 8 else unpack_bits(packed, bits, count).astype(np.uint8)
