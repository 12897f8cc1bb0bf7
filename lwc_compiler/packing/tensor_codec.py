"""One tensor as few bytes, bit for bit: `encode_tensor`, `decode_tensor`. docs/packing.md has the bytes.

A tensor is a row of elements of 1, 2, 4 or 8 bytes, here unsigned integers with its bits. Zero means that no bit is
set: -0.0 is not zero, and a NaN is a number like others. Every way to store the elements that applies is tried, and
the smallest is taken.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lwc_compiler.packing.deflate import deflate_below, inflate
from lwc_compiler.packing.reader import Reader, damaged, varint
from lwc_compiler.packing.symbols import decode_symbols, encode_symbols
from lwc_compiler.sparsity.formats import gaps_between, places_after

Elements = NDArray[Any]

# How the elements are laid out. Numbers are in files: they never change their meaning.
_DEFLATED, _DENSE, _RELATIVE = 0, 1, 2
# How values are stored.
_PLAIN, _FLOAT16, _CODEBOOK = 0, 1, 2
_VALUE_NAMES = ("plain", "float16", "codebook")

_WIDEST_GAP = 8  # bits; the paper's for convolutions
_LARGEST_CODEBOOK = 256
_SPARSE = 4  # when fewer than a quarter are not zero, indices take less than zeros in Huffman codes, a bit or more each
_FIRST_LOOK = 1 << 16


@dataclass(frozen=True)
class Coding:
    """How a tensor is stored.

    Attributes:
        layout: `deflated`, `dense` (all elements) or `relative` (those that are not zero, with relative indices).
        values: `plain`, `float16` or `codebook`; None when deflated.
        gap_bits: bits of a relative index before Huffman coding; None without indices.
        index_bytes: bytes of the indices.
    """

    layout: str
    values: str | None = None
    gap_bits: int | None = None
    index_bytes: int = 0


def encode_tensor(elements: Elements, huffman: bool) -> tuple[bytes, int]:
    """The smallest encoding of `elements`, unsigned integers (n,), n > 0; and what they take deflated at least."""
    smallest = min(_encodings(elements, huffman), key=len)
    deflated, least = deflate_below(elements.tobytes(), len(smallest))
    if deflated is not None:
        smallest = min(smallest, bytes([_DEFLATED]) + varint(len(deflated)) + deflated, key=len)
    return smallest, least


def decode_tensor(reader: Reader, count: int, width: int) -> tuple[Elements, Coding]:
    """The inverse of the encoders for `count` elements of `width` bytes; takes memory in proportion to these only.

    Raises:
        ArtifactError: what is read does not describe such a tensor.
    """
    layout = reader.byte()
    if layout == _DEFLATED:
        data, rest = inflate(reader.take(reader.varint()), count * width)
        if len(data) != count * width or rest:
            raise damaged(f"a tensor unpacks to {len(data)} bytes, not {count * width}")
        return np.frombuffer(data, f"<u{width}"), Coding("deflated")
    if layout == _DENSE:
        values, kind = _decode_values(reader, count, width)
        return values, Coding("dense", kind)
    if layout != _RELATIVE:
        raise damaged(f"there is no tensor layout {layout}")
    start = reader.position
    bits, entries = reader.byte(), reader.varint()
    if not 1 <= bits <= _WIDEST_GAP:
        raise damaged(f"relative indices of {bits} bits; 1 to {_WIDEST_GAP} are possible")
    if entries > count:
        raise damaged(f"{entries} relative indices for {count} elements")
    places = places_after(decode_symbols(reader, entries, bits), bits)
    if places.size and places[-1] >= count:
        raise damaged("relative indices lead beyond the last element")
    index_bytes = reader.position - start
    values, kind = _decode_values(reader, places.size, width)
    elements = np.zeros(count, f"<u{width}")
    elements[places] = values
    return elements, Coding("relative", kind, bits, index_bytes)


def _encodings(elements: Elements, huffman: bool) -> Iterator[bytes]:
    places = np.flatnonzero(elements)
    if places.size < elements.size:
        yield bytes([_RELATIVE]) + _encode_places(places, huffman) + _encode_values(elements[places], huffman)
    if places.size * _SPARSE >= elements.size:
        yield bytes([_DENSE]) + _encode_values(elements, huffman)


def _encode_places(places: NDArray[np.int64], huffman: bool) -> bytes:
    """Relative indices: their bits, how many there are, and these.

    In Huffman codes the widest are best, which need the fewest fillers; otherwise every width is counted.
    """
    zeros = np.diff(places, prepend=-1) - 1
    fixed = {bits: bits * (places.size + int((zeros // ((1 << bits) - 1)).sum())) for bits in range(1, _WIDEST_GAP + 1)}
    widths = {min(fixed, key=lambda bits: fixed[bits]), *([_WIDEST_GAP] if huffman else [])}
    encoded = []
    for bits in sorted(widths):
        gaps = gaps_between(places, bits)
        encoded.append(bytes([bits]) + varint(gaps.size) + encode_symbols(gaps, bits, huffman))
    return min(encoded, key=len)


def _encode_values(values: Elements, huffman: bool) -> bytes:
    return min(_value_encodings(values, huffman), key=len)


def _value_encodings(values: Elements, huffman: bool) -> Iterator[bytes]:
    yield bytes([_PLAIN]) + _encode_planes(values, huffman)
    if values.itemsize == 4 and values.size:
        with np.errstate(over="ignore", under="ignore", invalid="ignore"):
            halves = values.view("<f4").astype("<f2")
        # Processors differ in what becomes of a NaN.
        if np.isfinite(halves).all() and np.array_equal(halves.astype("<f4").view("<u4"), values):
            yield bytes([_FLOAT16]) + _encode_planes(halves.view("<u2"), huffman)
    if values.size and np.unique(values[:_FIRST_LOOK]).size <= _LARGEST_CODEBOOK:
        codebook = np.unique(values)
        if codebook.size <= _LARGEST_CODEBOOK:
            codes = np.searchsorted(codebook, values)
            head = bytes([_CODEBOOK, codebook.size - 1]) + codebook.tobytes()
            yield head + encode_symbols(codes, _code_bits(codebook.size), huffman)


def _decode_values(reader: Reader, count: int, width: int) -> tuple[Elements, str]:
    """`count` values of `width` bytes, and the name of how they are stored."""
    kind = reader.byte()
    if kind == _PLAIN:
        values = _decode_planes(reader, count, width)
    elif kind == _FLOAT16 and width == 4:
        with np.errstate(invalid="ignore"):
            values = _decode_planes(reader, count, 2).view("<f2").astype("<f4").view("<u4")
    elif kind == _CODEBOOK:
        size = reader.byte() + 1
        codebook = np.frombuffer(reader.take(size * width), f"<u{width}")
        codes = decode_symbols(reader, count, _code_bits(size))
        if count and int(codes.max()) >= size:
            raise damaged(f"a code is not below {size}, the size of its codebook")
        values = codebook[codes]
    else:
        raise damaged(f"values of {width} bytes cannot be stored in way {kind}")
    return values, _VALUE_NAMES[kind]


def _encode_planes(values: Elements, huffman: bool) -> bytes:
    """The first bytes of all values, then the second ones, and so on: those with the exponents compress well."""
    planes = values.view(np.uint8).reshape(-1, values.itemsize)
    return b"".join(encode_symbols(planes[:, index], 8, huffman) for index in range(values.itemsize))


def _decode_planes(reader: Reader, count: int, width: int) -> Elements:
    planes = [decode_symbols(reader, count, 8) for _ in range(width)]
    return np.stack(planes, axis=1).view(f"<u{width}").reshape(count)


def _code_bits(size: int) -> int:
    """Bits of a code into a codebook of `size` values."""
    return (size - 1).bit_length()
