"""Sparse pointwise convolutions and products with many rows: two output channels of nearly as many non-zeros at a time.

y (outputs, positions) = weight (outputs, channels) x (channels, positions). A tile of positions is copied into scratch
memory, `block` channels at a time, so that it stays in the level-1 cache; the sums of all outputs wait in the scratch
memory between blocks. What a block adds to an output is a short loop, as long as the output has non-zeros there, and a
processor guesses the end of a short loop of random length wrong nearly every time. So each block has its outputs in
the order of their numbers of non-zeros: loops that follow each other are equally long. Two outputs share a loop, which
hides the latency of the multiply-adds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from lwc_compiler.kernels.builder import KernelBuilder, smaller, splat, unravel
from lwc_compiler.kernels.kernel import Constant
from lwc_compiler.kernels.layer import store_result

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from lwc_compiler.kernels.kernel import Kernel
    from lwc_compiler.kernels.layer import Epilogue

_ROWS = 2  # outputs computed together


@dataclass(frozen=True)
class PairLayout:
    """Shape of y (batch, outputs, positions) = weight @ x (batch, channels, positions), and how it is cut.

    Attributes:
        batch: images.
        channels: of the input.
        outputs: channels of the output.
        positions: of a plane, at least `lanes`.
        lanes: float32 in a vector.
        vectors: vectors of a tile.
        block: channels copied at a time; a block of a tile has at most 65536 elements.
        chunk: outputs of a unit of work, at most 65536.
    """

    batch: int
    channels: int
    outputs: int
    positions: int
    lanes: int
    vectors: int
    block: int
    chunk: int

    @property
    def pitch(self) -> int:
        """Elements of a channel of a tile."""
        return self.vectors * self.lanes

    @property
    def tile_positions(self) -> int:
        """Positions of a tile; vectors, and tiles, overlap at the end of a plane."""
        return min(self.pitch, self.positions)

    @property
    def starts(self) -> list[int]:
        """Position of each vector in the tile."""
        return [min(i * self.lanes, self.tile_positions - self.lanes) for i in range(self.vectors)]

    @property
    def columns(self) -> int:
        """Tiles of a plane."""
        return -(-self.positions // self.tile_positions)

    @property
    def blocks(self) -> int:
        """Blocks of channels."""
        return -(-self.channels // self.block)

    @property
    def chunks(self) -> int:
        """Parts of the outputs."""
        return -(-self.outputs // self.chunk)

    @property
    def groups(self) -> int:
        """Pairs of outputs of each chunk and block; some outputs are in two."""
        return self.chunk // _ROWS + 1

    @property
    def tiles(self) -> int:
        """Units of work."""
        return self.batch * self.chunks * self.columns

    def __str__(self) -> str:
        return f"{self.vectors}x{self.lanes}/{self.block}/{self.chunk}"


def pack_pairs(weight: NDArray[np.float32], layout: PairLayout) -> tuple[list[Constant], int]:
    """Weight (outputs, channels) in the order the kernel reads it.

    Every block of every chunk has `groups` pairs of outputs. An output without non-zeros is paired with others of its
    kind only, so that no filling lets an input into a sum it does not belong to. Outputs that are in two pairs come
    first (there they have nothing to add) or are in both halves of the last.

    Returns:
        The constants `ends`, `rows`, `offsets`, `values` of the kernel, and how many weights are stored.
    """
    lengths, rows, offsets, values = [], [], [], []
    for first in range(0, layout.outputs, layout.chunk):
        for start in range(0, layout.channels, layout.block):
            part = weight[first : first + layout.chunk, start : start + layout.block]
            order, length = _paired(np.count_nonzero(part, axis=1), layout.groups)
            row, column = np.nonzero(part)
            begin = np.searchsorted(row, np.arange(len(part) + 1))
            # Entry i of the pair's lists is non-zero i of the output, or its last one with the value 0.
            pair = np.repeat(np.arange(layout.groups), length)
            step = np.arange(pair.size) - np.repeat(np.cumsum(length) - length, length)
            entry = begin[order][pair] + step[:, None]
            end = begin[order + 1][pair]
            source = np.minimum(entry, end - 1)
            lengths.append(length)
            rows.append(order)
            offsets.append(column[source] * layout.pitch)
            values.append(np.where(entry < end, part[row[source], column[source]], np.float32(0)))
    ends = np.concatenate([[0], np.cumsum(np.concatenate(lengths))]).astype(np.int32)
    filling = np.zeros((0 if ends[-1] else 1, _ROWS))
    flat = [np.concatenate([*parts, filling]).ravel() for parts in (offsets, values)]
    return [
        Constant(ends),
        Constant(np.concatenate(rows).ravel().astype(np.uint16)),
        Constant(flat[0].astype(np.uint16)),
        Constant(flat[1].astype(np.float32)),
    ], _ROWS * int(ends[-1])


def _paired(count: NDArray[np.int64], groups: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The outputs (groups, 2) in the order of their `count` of non-zeros, and how long each pair's lists are."""
    order = np.argsort(count, kind="stable")
    length = count[order]
    empty = int((count == 0).sum()) % _ROWS
    # A pair of an output and itself, with nothing to add: before any other, since what it stores is not final.
    order = np.concatenate([order[:1]] * empty + [order] + [order[-1:]] * ((order.size + empty) % _ROWS))
    length = np.concatenate([length[:1]] * empty + [length] + [length[-1:]] * (order.size - empty - length.size))
    more = groups - order.size // _ROWS
    order = np.concatenate([np.repeat(order[:1], _ROWS * more), order])
    length = np.concatenate([np.zeros(_ROWS * more, length.dtype), length])
    return order.reshape(groups, _ROWS), length.reshape(groups, _ROWS).max(axis=1)


def pair_kernel(name: str, layout: PairLayout, epilogue: Epilogue) -> Kernel:
    """Builds the kernel; parameters: x, [residual], ends, rows, offsets, values, [bias], y."""
    b, lay = KernelBuilder(), layout
    x = b.pointer("x")
    residual = b.pointer("residual") if epilogue.residual else None
    ends, rows = b.pointer("ends", "int32"), b.pointer("rows", "uint16")
    offsets, values = b.pointer("offsets", "uint16"), b.pointer("values")
    bias = b.pointer("bias") if epilogue.bias is not None else None
    y = b.pointer("y")
    scratch = b.pointer("scratch")
    packed = lay.block * lay.pitch
    with b.loop("tile", b.first, b.last) as tile:
        batch, chunk, column = unravel(b, tile, (lay.batch, lay.chunks, lay.columns))
        column = b.let("column", smaller(column * lay.tile_positions, lay.positions - lay.tile_positions))
        with b.loop("block", 0, lay.blocks) as block:
            start = b.let("start", block * lay.block)
            with b.loop("c", 0, smaller(lay.block, lay.channels - start)) as c:
                source = b.address((batch * lay.channels + start + c) * lay.positions + column)
                target = b.address(c * lay.pitch)
                for v, position in enumerate(lay.starts):
                    b.store(scratch, target + v * lay.lanes, b.load(x, source + position, lay.lanes), lay.lanes)
            with b.loop("group", 0, lay.groups) as group:
                number = b.let("number", (chunk * lay.blocks + block) * lay.groups + group)
                row = [b.let("row", b.load(rows, number * _ROWS + r).astype("int32")) for r in range(_ROWS)]
                channel = [b.let("channel", chunk * lay.chunk + row[r]) for r in range(_ROWS)]
                held = [b.address(row[r] * lay.pitch + packed) for r in range(_ROWS)]
                sums = [[b.register(lay.lanes) for _ in lay.starts] for _ in range(_ROWS)]
                each = [(r, v, sums[r][v]) for r in range(_ROWS) for v in range(lay.vectors)]
                with b.when(block == 0):
                    first = [b.let("b", b.load(bias, channel[r])) if bias is not None else 0.0 for r in range(_ROWS)]
                    for r, _, register in each:
                        register.set(splat(first[r], lay.lanes))
                with b.when(block > 0):
                    for r, v, register in each:
                        register.set(b.load(scratch, held[r] + v * lay.lanes, lay.lanes))
                with b.loop("tap", b.load(ends, number), b.load(ends, number + 1)) as tap:
                    for r in range(_ROWS):
                        offset = b.let("offset", b.load(offsets, tap * _ROWS + r).astype("int32"))
                        value = b.let("value", b.load(values, tap * _ROWS + r))
                        for v in range(lay.vectors):
                            inputs = b.load(scratch, offset + v * lay.lanes, lay.lanes)
                            sums[r][v].set(sums[r][v].get() + splat(value, lay.lanes) * inputs)
                with b.when(block < lay.blocks - 1):
                    for r, v, register in each:
                        b.store(scratch, held[r] + v * lay.lanes, register.get(), lay.lanes)
                with b.when(block == lay.blocks - 1):
                    for r in range(_ROWS):
                        out = b.address((batch * lay.outputs + channel[r]) * lay.positions + column)
                        for v, position in enumerate(lay.starts):
                            at = out + position
                            store_result(b, y, at, sums[r][v].get(), residual, epilogue.activation, lay.lanes)
    held_size = lay.chunk * lay.pitch if lay.blocks > 1 else 0
    return b.build(name, lay.tiles, 4 * (packed + held_size), lay.batch)
