"""Packed storage of a pruned matrix: CSR, blocks of rows, N:M and relative index, beside dense.

One interface for all: `format.pack(matrix)` gives a `Packed` that holds named arrays, `format.unpack` gives the matrix
back, bit for bit but for the sign of zeros, `format.validate` refuses arrays that do not describe a matrix, and
`Packed.nbytes` is the size of the arrays, in the order and little-endian layout documented with each format. Only
non-zero values count as kept. The shape is not part of the arrays: it belongs to the layer.

The matrix is float32 (rows, columns) and not empty: the view of `lwc_compiler.passes.sites.Site`. A grouped layer is
packed group by group. Column numbers are uint16 where the columns allow it (at most 65536), otherwise uint32.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from lwc_compiler.errors import ArtifactError

Matrix = NDArray[np.float32]

# Numbers whose bits are spread out at a time: a multiple of 8, so that each part ends on a byte.
_CHUNK = 1 << 18


@dataclass(frozen=True)
class Packed:
    """A matrix in a format.

    Attributes:
        format: what the arrays mean.
        shape: (rows, columns) of the matrix.
        arrays: name -> array, in storage order.
    """

    format: Format
    shape: tuple[int, int]
    arrays: Mapping[str, NDArray[Any]]

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        return sum(array.nbytes for array in self.arrays.values())

    def unpack(self) -> Matrix:
        """The matrix, after `validate`."""
        self.validate()
        return self.format.unpack(self)

    def validate(self) -> None:
        """Checks that the arrays describe a matrix of this shape.

        Raises:
            ArtifactError: they do not; the message says which array and how.
        """
        expected = self.format.dtypes(self.shape[1])
        found = {name: array.dtype.name for name, array in self.arrays.items()}
        _require(found == expected, f"{self.format.name}: arrays are {found}, not {expected}")
        self.format.validate(self)


class Format(ABC):
    """A way to store a matrix."""

    @property
    @abstractmethod
    def name(self) -> str:
        """The name that reports and manifests use."""

    @abstractmethod
    def dtypes(self, columns: int) -> dict[str, str]:
        """Array name -> NumPy type name, in storage order."""

    @abstractmethod
    def pack(self, matrix: Matrix) -> Packed:
        """Stores `matrix`."""

    @abstractmethod
    def unpack(self, packed: Packed) -> Matrix:
        """The matrix of valid arrays; see `Packed.unpack`."""

    @abstractmethod
    def validate(self, packed: Packed) -> None:
        """Checks the contents of arrays whose names and types are right; see `Packed.validate`."""


@dataclass(frozen=True)
class Dense(Format):
    """All values: `values` float32 (rows, columns), row-major."""

    name: ClassVar[str] = "dense"

    def dtypes(self, columns: int) -> dict[str, str]:
        return {"values": "float32"}

    def pack(self, matrix: Matrix) -> Packed:
        return Packed(self, _shape(matrix), {"values": np.array(matrix, order="C")})

    def unpack(self, packed: Packed) -> Matrix:
        return np.array(packed.arrays["values"])

    def validate(self, packed: Packed) -> None:
        _require_shape(self, packed, "values", packed.shape)


@dataclass(frozen=True)
class BlockCsr(Format):
    """Compressed rows of R x 1 blocks: R consecutive rows of one column are stored when any of them is not zero.

    With B = ceil(rows / R) block rows and n stored blocks:

    - `values`: float32 (n, R), block rows in order, columns ascending, the R values of a block from the first row down.
      The last block row is filled up with zero rows.
    - `columns`: uint16 or uint32 (n,), the column of each block.
    - `starts`: uint32 (B + 1,), block row b owns blocks `starts[b]` to `starts[b + 1]` - 1.

    With R = 1 this is CSR.

    Attributes:
        block_rows: R, at least 1.
    """

    block_rows: int = 1

    @property
    def name(self) -> str:
        return "csr" if self.block_rows == 1 else f"block{self.block_rows}"

    def dtypes(self, columns: int) -> dict[str, str]:
        return {"values": "float32", "columns": "uint16" if columns <= 1 << 16 else "uint32", "starts": "uint32"}

    def pack(self, matrix: Matrix) -> Packed:
        rows, columns = _shape(matrix)
        padded = np.zeros((-(-rows // self.block_rows) * self.block_rows, columns), np.float32)
        padded[:rows] = matrix
        blocks = padded.reshape(-1, self.block_rows, columns)
        block_row, column = np.nonzero((blocks != 0).any(axis=1))
        counts = np.bincount(block_row, minlength=len(blocks))
        arrays = {
            "values": blocks[block_row, :, column],
            "columns": column.astype(self.dtypes(columns)["columns"]),
            "starts": np.concatenate([[0], np.cumsum(counts)]).astype(np.uint32),
        }
        return Packed(self, (rows, columns), arrays)

    def unpack(self, packed: Packed) -> Matrix:
        counts = _lengths(packed)
        blocks = np.zeros((len(counts), self.block_rows, packed.shape[1]), np.float32)
        blocks[np.repeat(np.arange(len(counts)), counts), :, packed.arrays["columns"]] = packed.arrays["values"]
        return blocks.reshape(-1, packed.shape[1])[: packed.shape[0]]

    def validate(self, packed: Packed) -> None:
        rows, columns = packed.shape
        starts, column = packed.arrays["starts"].astype(np.int64), packed.arrays["columns"].astype(np.int64)
        _require_shape(self, packed, "starts", (-(-rows // self.block_rows) + 1,))
        _require_shape(self, packed, "columns", (column.size,))
        _require_shape(self, packed, "values", (column.size, self.block_rows))
        counts = _lengths(packed)
        _require(
            starts[0] == 0 and starts[-1] == column.size and not (counts < 0).any(),
            f"{self.name}: starts do not rise from 0 to the {column.size} blocks",
        )
        _require(not (column >= columns).any(), f"{self.name}: a column number is not below {columns}")
        key = np.repeat(np.arange(len(counts)), counts) * columns + column
        _require(not (np.diff(key) <= 0).any(), f"{self.name}: columns of a row do not ascend")
        padding = packed.arrays["values"][starts[-2] :, rows - (len(counts) - 1) * self.block_rows :]
        _require(not padding.any(), f"{self.name}: values beyond the last row are not zero")


@dataclass(frozen=True)
class NofM(Format):
    """At most N values in each group of M consecutive columns; N slots are stored for every group.

    With G = ceil(columns / M) groups a row and k = ceil(log2(M)) bits:

    - `values`: float32 (rows, G, N); slots that a group does not need hold zeros.
    - `positions`: uint8 (ceil(rows·G·N·k / 8),): for each slot the column within its group, k bits, strictly ascending
      in a group; slot after slot, least significant bit first, the last byte filled up with zero bits. Unneeded slots
      of a short last group may point past the last column: the kernel's input must be readable up to G·M columns.

    Attributes:
        kept: N, at least 1.
        size: M, more than N.
    """

    kept: int
    size: int

    @property
    def name(self) -> str:
        return f"{self.kept}:{self.size}"

    @property
    def bits(self) -> int:
        """Bits of a position."""
        return (self.size - 1).bit_length()

    def dtypes(self, columns: int) -> dict[str, str]:
        return {"values": "float32", "positions": "uint8"}

    def pack(self, matrix: Matrix) -> Packed:
        rows, columns = _shape(matrix)
        padded = np.zeros((rows, -(-columns // self.size) * self.size), np.float32)
        padded[:, :columns] = matrix
        groups = padded.reshape(rows, -1, self.size)
        if int(np.count_nonzero(groups, axis=2).max()) > self.kept:
            raise ValueError(f"the matrix has more than {self.kept} values in a group of {self.size} columns")
        # The columns with values come first, then the first ones without.
        positions = np.sort(np.argsort(groups == 0, axis=2, kind="stable")[:, :, : self.kept], axis=2)
        values = np.take_along_axis(groups, positions, axis=2)
        return Packed(self, (rows, columns), {"values": values, "positions": pack_bits(positions, self.bits)})

    def unpack(self, packed: Packed) -> Matrix:
        rows, columns = packed.shape
        values = packed.arrays["values"]
        groups = np.zeros((rows, values.shape[1], self.size), np.float32)
        np.put_along_axis(groups, self._positions(packed), values, axis=2)
        return groups.reshape(rows, -1)[:, :columns]

    def validate(self, packed: Packed) -> None:
        rows, columns = packed.shape
        groups = -(-columns // self.size)
        _require_shape(self, packed, "values", (rows, groups, self.kept))
        _require_shape(self, packed, "positions", (-(-rows * groups * self.kept * self.bits // 8),))
        positions = self._positions(packed)
        _require(not (positions >= self.size).any(), f"{self.name}: a position is not below {self.size}")
        _require(not (np.diff(positions, axis=2) <= 0).any(), f"{self.name}: positions in a group do not ascend")
        beyond = positions + np.arange(groups)[:, None] * self.size >= columns
        _require(not packed.arrays["values"][beyond].any(), f"{self.name}: values beyond the last column are not zero")

    def _positions(self, packed: Packed) -> NDArray[np.int64]:
        values = packed.arrays["values"]
        return unpack_bits(packed.arrays["positions"], self.bits, values.size).reshape(values.shape)


@dataclass(frozen=True)
class RelativeIndex(Format):
    """Values with the gaps between them in k bits (Han et al. 2015, section 4: 5 bits for Gemm, 8 for convolutions).

    The matrix is read in row-major order, rows after one another; see `gaps_between` for the numbers, fillers included.
    With n values:

    - `values`: float32 (n,), the values that are not zero.
    - `gaps`: uint8 (ceil(entries·k / 8),): k bits for each gap, least significant bit first, the last byte filled up
      with zero bits. What follows the gap of the last value means nothing.

    Attributes:
        bits: k, 1 to 16.
    """

    bits: int

    @property
    def name(self) -> str:
        return f"relative{self.bits}"

    def dtypes(self, columns: int) -> dict[str, str]:
        return {"values": "float32", "gaps": "uint8"}

    def pack(self, matrix: Matrix) -> Packed:
        flat = np.ascontiguousarray(matrix).ravel()
        places = np.flatnonzero(flat)
        gaps = pack_bits(gaps_between(places, self.bits), self.bits)
        return Packed(self, _shape(matrix), {"values": flat[places], "gaps": gaps})

    def unpack(self, packed: Packed) -> Matrix:
        flat = np.zeros(packed.shape[0] * packed.shape[1], np.float32)
        flat[self._places(packed)] = packed.arrays["values"]
        return flat.reshape(packed.shape)

    def validate(self, packed: Packed) -> None:
        values = packed.arrays["values"].size
        _require_shape(self, packed, "values", (values,))
        places = self._places(packed)
        _require(places.size == values, f"{self.name}: there are gaps for {places.size} of the {values} values")
        inside = values == 0 or places[-1] < packed.shape[0] * packed.shape[1]
        _require(bool(inside), f"{self.name}: the gaps lead beyond the last weight")

    def _places(self, packed: Packed) -> NDArray[np.int64]:
        """Row-major index of each value; strictly ascending, whatever the gaps."""
        gaps = packed.arrays["gaps"]
        entries = unpack_bits(gaps, self.bits, gaps.size * 8 // self.bits)
        return places_after(entries, self.bits)[: packed.arrays["values"].size]


def gaps_between(places: NDArray[np.int64], bits: int) -> NDArray[np.int64]:
    """Relative indices of ascending `places`: the number of places left out before each, in numbers of `bits` bits.

    The largest number, 2^bits - 1, is a filler: so many places are left out and none is taken. Fillers come before a
    gap that does not fit. Those of Han et al. 2016 (figure 2) are entries with value zero; here the number says that
    there is no value, so none is stored.

    Args:
        places: int64 (n,), strictly ascending, from 0.
        bits: 1 or more; with 1 the numbers are a bitmap whose zero bits mark the places.
    """
    filler = (1 << bits) - 1
    fillers, rest = np.divmod(np.diff(places, prepend=-1) - 1, filler)
    last = np.cumsum(fillers + 1) - 1  # where the numbers of each place end
    gaps = np.full(int(last[-1]) + 1 if last.size else 0, filler)
    gaps[last] = rest
    return gaps


def places_after(gaps: NDArray[Any], bits: int) -> NDArray[np.int64]:
    """The inverse of `gaps_between`; strictly ascending, whatever the gaps."""
    taken = gaps != (1 << bits) - 1
    ends = np.cumsum(gaps + taken, dtype=np.int64)
    places: NDArray[np.int64] = ends[taken] - 1
    return places


def _shape(matrix: Matrix) -> tuple[int, int]:
    rows, columns = matrix.shape
    return rows, columns


def _lengths(packed: Packed) -> NDArray[np.int64]:
    """Blocks in each block row."""
    starts: NDArray[np.int64] = packed.arrays["starts"].astype(np.int64)
    return starts[1:] - starts[:-1]


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ArtifactError(f"packed weights are damaged: {message}")


def _require_shape(layout: Format, packed: Packed, name: str, shape: tuple[int, ...]) -> None:
    found = packed.arrays[name].shape
    _require(found == shape, f"{layout.name}: '{name}' has shape {found}, not {shape}")


def pack_bits(numbers: NDArray[Any], bits: int) -> NDArray[np.uint8]:
    """The low `bits` of each number, least significant bit first, one number after the other; uint8."""
    flat = numbers.ravel()
    parts = [
        np.packbits((flat[start : start + _CHUNK, None] >> np.arange(bits)) & 1, bitorder="little")
        for start in range(0, flat.size, _CHUNK)
    ]
    return np.concatenate(parts) if parts else np.zeros(0, np.uint8)


def unpack_bits(packed: NDArray[np.uint8], bits: int, count: int) -> NDArray[np.int64]:
    """The inverse of `pack_bits` for `count` numbers, which `packed` must hold."""
    numbers = np.empty(count, np.int64)
    for start in range(0, count, _CHUNK):
        part = numbers[start : start + _CHUNK]
        digits = np.unpackbits(packed[start * bits // 8 :], count=part.size * bits, bitorder="little")
        part[:] = digits.reshape(part.size, bits) @ (1 << np.arange(bits))
    return numbers
