"""How the work of a tap kernel is cut, and how its weights are stored: the data that `taps.py` writes kernels from."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from lwc_compiler.kernels import short_loop
from lwc_compiler.kernels.in_order import BEHIND
from lwc_compiler.kernels.kernel import Constant

if TYPE_CHECKING:
    from numpy.typing import NDArray

LINE = 16  # float32 in a cache line
_FEW_SUMS = 4  # so many multiply-adds are done before the first of them is


@dataclass(frozen=True)
class Axis:
    """One spatial dimension of a convolution."""

    size: int
    out: int
    kernel: int
    stride: int
    pad: int
    dilation: int

    def phase(self, tap: int) -> int:
        """Which of the `stride` interleaved parts of the input a kernel position reads."""
        return tap * self.dilation % self.stride

    def shift(self, tap: int) -> int:
        """Where in that part it starts, for output 0."""
        return tap * self.dilation // self.stride

    @cached_property
    def reach(self) -> dict[int, int]:
        """Largest shift of each phase that is read."""
        reach: dict[int, int] = {}
        for tap in range(self.kernel):
            reach[self.phase(tap)] = max(reach.get(self.phase(tap), 0), self.shift(tap))
        return reach

    @property
    def before(self) -> bool:
        """Whether something before the input is read."""
        return self.pad > 0

    @property
    def behind(self) -> bool:
        """Whether something behind the input is read."""
        last = max((self.out - 1 + reach) * self.stride + phase for phase, reach in self.reach.items())
        return last - self.pad >= self.size

    @cached_property
    def pitch(self) -> int:
        """From row to row, when rows of pixels follow each other and share the zeros between them."""
        pitch = 0
        for phase, reach in self.reach.items():
            inputs = np.arange(self.out + reach) * self.stride + phase - self.pad
            pitch = max(pitch, len(inputs) - min(int((inputs < 0).sum()), int((inputs >= self.size).sum())))
        return pitch


@dataclass(frozen=True)
class Problem:
    """A grouped convolution (N, C, D, H, W) -> (N, O, D', H', W'), everything but the weights.

    With `images` > 1 so many images lie side by side: x is (N, H, C, W, images), y (N, H', O, W', images), there is no
    depth, and vectors have `images` lanes: every load is a pixel, whatever the kernel position, and no lane is empty.
    Blocks of one image serve as well: with a `grid` of (down, across) blocks, block (i, j) of image n is number
    (n * down + i) * across + j, and what lies beyond the edge of a block is its neighbour's. A block is at least as
    large as the padding.
    """

    batch: int
    groups: int
    in_channels: int  # of one group
    out_channels: int  # of one group
    depth: Axis
    height: Axis
    width: Axis
    images: int = 1
    grid: tuple[int, int] = (1, 1)

    def neighbours(self, down: int, across: int) -> list[int]:
        """The blocks that lie so far from each of the `images`; `images` where there is none."""
        rows, columns = self.grid
        found = []
        for block in range(self.images):
            i, j = block // columns % rows + down, block % columns + across
            inside = 0 <= i < rows and 0 <= j < columns
            found.append(block + down * columns + across if inside else self.images)
        return found

    @property
    def planes(self) -> int:
        """Input planes that one output plane of a group sums over; with depth, every (channel, depth position)."""
        return self.in_channels * self.depth.kernel


@dataclass(frozen=True)
class Tiling:
    """How the work is cut.

    Attributes:
        lanes: float32 in a vector.
        rows: output channels computed together.
        tile_rows: output rows (of pixels) of a tile.
        tile_vectors: vectors in each of them.
        channels: input planes copied at a time.
        chunk: groups of `rows` output channels that one unit of work computes.
        in_place: the input is read where it lies; for layers that can be, see `readable_in_place`.
        by_lane: weights are loaded as vectors, one lane of which is a factor of a multiply-add.
        adjoining: vectors of a row of pixels never overlap, so that one instruction loads two; the last one's lanes
            behind the tile are computed but not stored.
        flat: the whole rows of a tile follow each other in `tile_vectors` vectors, with the zeros between them, whose
            lanes are computed but not stored: for rows that fill their last vector badly.
        in_order: the loop over taps is written for a core that works in order, see `in_order.py`.
        short: it is written for few instructions, see `short_loop.py`.
    """

    lanes: int
    rows: int
    tile_rows: int
    tile_vectors: int
    channels: int
    chunk: int
    in_place: bool = False
    by_lane: bool = False
    adjoining: bool = False
    flat: bool = False
    in_order: bool = False
    short: bool = False

    def __str__(self) -> str:
        cut = f"{self.rows}x{self.tile_rows}x{self.tile_vectors}x{self.lanes}/{self.channels}/{self.chunk}"
        return f"{cut} in place" if self.in_place else f"{cut} flat" if self.flat else cut


class TapLayout:
    """Where everything of a tile lies.

    Args:
        problem: the convolution.
        tiling: how it is cut.
        tile_width: float32 of an output row of a tile, when these are not as many as its vectors hold.
    """

    def __init__(self, problem: Problem, tiling: Tiling, tile_width: int | None = None) -> None:
        p, t = problem, tiling
        self.problem, self.tiling = p, t
        self.row_tiles = -(-p.height.out // t.tile_rows)
        self.width = p.width.out * p.images  # float32 of an output row
        # Valid float32 of an output row of a tile.
        self.tile_width = min(tile_width or t.tile_vectors * t.lanes, self.width)
        self.column_tiles = -(-self.width // self.tile_width)
        last = max(0, self.tile_width - t.lanes)
        overlap = not (t.adjoining or t.flat)
        self.starts = [min(i * t.lanes, last) if overlap else i * t.lanes for i in range(t.tile_vectors)]
        span = self.width if t.flat else last + t.lanes
        self.row_base: dict[int, int] = {}
        rows = 0
        for phase, reach in sorted(p.height.reach.items()):
            self.row_base[phase] = rows
            rows += t.tile_rows + reach
        self.column_base: dict[int, int] = {}
        columns = 0
        for phase, reach in sorted(p.width.reach.items()):
            self.column_base[phase] = columns
            if t.flat:  # the zeros behind the last row follow it
                columns += rows * p.width.pitch + max(0, span + reach - p.width.pitch)
            else:
                columns += -(-(span + reach * p.images) // LINE) * LINE
        self.span = span
        self.pitch = p.width.pitch if t.flat else columns
        self.plane = columns if t.flat else rows * columns  # float32 of one channel of the tile
        # That the last vector of the last row reads.
        beyond = t.lanes if t.flat else LINE if self.starts[-1] > last else 0
        self.packed = t.channels * self.plane + beyond  # float32 of the input that offsets lead to
        if t.in_place:
            self.pitch, self.plane = p.width.size, p.height.size * p.width.size
            self.packed = p.in_channels * p.depth.size * self.plane
        self.blocks = -(-p.planes // t.channels)
        self.row_groups = -(-p.out_channels // t.rows)
        self.chunks = -(-self.row_groups // t.chunk)
        sums = t.chunk * t.rows * self.vectors * t.lanes if self.blocks > 1 else 0
        self.scratch_bytes = 0 if t.in_place else 4 * (self.packed + sums)
        self.tiles = p.batch * p.groups * p.depth.out * self.row_tiles * self.column_tiles * self.chunks

    @property
    def vectors(self) -> int:
        """Vectors of a tile, for each output channel."""
        return self.tiling.tile_vectors * (1 if self.tiling.flat else self.tiling.tile_rows)

    @property
    def reads(self) -> list[int]:
        """Where each vector of a tile is read, from the first one on."""
        t, down, across = self.tiling, self.pitch, 1
        if t.in_place:
            down, across = self.problem.height.stride * self.pitch, self.problem.width.stride
        return [v // t.tile_vectors * down + self.starts[v % t.tile_vectors] * across for v in range(self.vectors)]

    @property
    def runs(self) -> list[list[tuple[int, int, int, int]]]:
        """Of each vector of a tile, the outputs it holds: lane, how many, row of pixels, and where in it."""
        t = self.tiling
        if not t.flat:
            rows = [(v // t.tile_vectors, self.starts[v % t.tile_vectors]) for v in range(self.vectors)]
            return [[(0, min(t.lanes, self.tile_width - start), row, start)] for row, start in rows]
        runs: list[list[tuple[int, int, int, int]]] = [[] for _ in range(self.vectors)]
        for row in range(t.tile_rows):
            at, column = row * self.pitch, 0
            while column < self.width:
                vector, lane = divmod(at + column, t.lanes)
                count = min(t.lanes - lane, self.width - column)
                runs[vector].append((lane, count, row, column))
                column += count
        return runs

    @property
    def exact(self) -> bool:
        """Whether no output is computed twice: tiles, rows and vectors do not overlap."""
        p, t = self.problem, self.tiling
        whole = self.width % self.tile_width == 0 and self.tile_width == t.tile_vectors * t.lanes
        return whole and not t.flat and p.height.out % t.tile_rows == 0 and p.out_channels % t.rows == 0

    @property
    def chains(self) -> int:
        """Sums that the taps of a row take turns in, so that one multiply-add need not wait for the last."""
        return 2 if self.tiling.rows * self.vectors <= _FEW_SUMS else 1

    @property
    def step(self) -> int:
        """Taps of a pass through the loop over a list."""
        return short_loop.TAPS if self.tiling.short else self.chains

    def first_row(self, group: int) -> int:
        """First output channel of a group of rows; the last group overlaps the one before it."""
        return min(group * self.tiling.rows, self.problem.out_channels - self.tiling.rows)

    @property
    def plane_offsets(self) -> list[int]:
        """Offset of every tap of a plane (kernel height x kernel width), within the plane."""
        p = self.problem
        if self.tiling.in_place:
            rows, columns = ([i * axis.dilation for i in range(axis.kernel)] for axis in (p.height, p.width))
        else:
            rows = [self.row_base[p.height.phase(i)] + p.height.shift(i) for i in range(p.height.kernel)]
            columns = [self.column_base[p.width.phase(i)] + p.width.shift(i) * p.images for i in range(p.width.kernel)]
        return [row * self.pitch + column for row in rows for column in columns]

    @cached_property
    def offsets(self) -> NDArray[np.int64]:
        """Offset of every tap (planes x kernel height x kernel width), within its block of channels."""
        p = self.problem
        if self.tiling.in_place:
            channel, depth = np.divmod(np.arange(p.planes), p.depth.kernel)
            planes = channel * p.depth.size + depth * p.depth.dilation
        else:
            planes = np.arange(p.planes) % self.tiling.channels
        offsets: NDArray[np.int64] = planes[:, None] * self.plane + np.array(self.plane_offsets)
        return offsets.ravel()


def pack_taps(weight: NDArray[Any], layout: TapLayout, *, shared: bool) -> tuple[list[Constant], int]:
    """Weights in the order the kernel reads them.

    Args:
        weight: (groups, out_channels, planes x kernel height x kernel width); weights or codes of any type.
        layout: of the kernel.
        shared: every row has every tap (dense).

    Returns:
        The constants `ends`, `offsets`, `values` of the kernel, and how many weights are stored.
    """
    p, rows = layout.problem, layout.tiling.rows
    index = np.array([layout.first_row(g) for g in range(layout.row_groups)])[:, None] + np.arange(rows)
    # (groups x row groups, rows, taps)
    grouped = weight[:, index].reshape(p.groups * layout.row_groups, rows, -1)
    step = layout.tiling.channels * p.height.kernel * p.width.kernel
    blocks = [slice(i * step, min((i + 1) * step, grouped.shape[2])) for i in range(layout.blocks)]
    offset_type = np.uint16 if layout.packed <= 1 << 16 else np.int32
    if shared:
        ends = np.array([0] + [b.stop for b in blocks], np.int32)
        values = [np.ascontiguousarray(grouped[:, :, b].transpose(0, 2, 1)).ravel() for b in blocks]
        return [
            Constant(ends),
            Constant(_with_behind(layout.offsets.astype(offset_type), layout)),
            Constant(np.concatenate(values)),
        ], p.groups * p.out_channels * grouped.shape[2]
    counts, offsets, values = [], [], []
    for block in blocks:
        part = grouped[:, :, block]
        kept = (part != 0).any(axis=1)
        group, tap = np.nonzero(kept)
        value, count = part[group, :, tap], kept.sum(axis=1)
        if layout.step > 1:
            # The last tap of an odd row becomes two that share its weight.
            odd = np.cumsum(count)[count % 2 == 1] - 1
            again = np.ones(len(tap), np.int64)
            again[odd] = 2
            value, tap = np.repeat(value, again, axis=0), np.repeat(tap, again)
            second = odd + 1 + np.arange(odd.size)
            value[second] = (value[second] / 2).astype(value.dtype)
            value[second - 1] -= value[second]
            count = (count + 1) // 2
        counts.append(count)
        unit = 4 if layout.tiling.short else 1  # bytes or float32
        offsets.append((unit * layout.offsets[block][tap]).astype(offset_type))
        values.append(value.ravel())
    ends = np.concatenate([[0], np.cumsum(np.concatenate(counts))]).astype(np.int32)
    flat = np.concatenate(values)
    return [
        Constant(ends),
        Constant(_not_empty(_with_behind(np.concatenate(offsets), layout))),
        Constant(_not_empty(flat)),
    ], flat.size


def _with_behind(offsets: NDArray[Any], layout: TapLayout) -> NDArray[Any]:
    """Offsets, and behind them some that the loop for cores that work in order follows."""
    return np.concatenate([offsets, np.zeros(BEHIND, offsets.dtype)]) if layout.tiling.in_order else offsets


def _not_empty(array: NDArray[Any]) -> NDArray[Any]:
    return array if array.size else np.zeros(1, array.dtype)


def readable_in_place(problem: Problem, lanes: int) -> bool:
    """Whether every output reads nothing but the input, and vectors of `lanes` outputs find theirs side by side."""
    p = problem
    inside = not any(axis.before or axis.behind for axis in (p.depth, p.height, p.width))
    return inside and p.images == 1 and (lanes == 1 or p.width.stride == 1)
