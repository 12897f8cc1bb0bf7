"""The kernel behind most linear layers: lists of taps over a tile of the input that stays in the level-1 cache.

A tap is one weight position of a row: an offset into the tile, and a value for each of the `rows` output channels that
are computed together. For every tap the kernel reads the offset, broadcasts the values, and does rows x vectors fused
multiply-adds into registers. Single non-zeros (`csr`) are lists of one row; r x 1 blocks lists of r rows; a dense layer
is the list of all taps, shared by all rows.

The tile's input is copied into the thread's scratch memory first, `channels` input channels at a time: with zeros for
the padding, split by stride, each row of pixels at a 64-byte boundary. So every offset is a constant of the layer,
whatever the padding, stride and dilation are, and every load hits the level-1 cache. Between blocks of channels the
sums wait in the scratch memory too.

Where memory is short, a layer without padding is computed `in_place`: offsets are then those in the whole input, and
nothing is copied.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from tvm import tirx

from lwc_compiler.kernels.builder import (
    KernelBuilder,
    Register,
    clamp,
    divide,
    lane,
    modulo,
    pieces,
    smaller,
    splat,
    unravel,
)
from lwc_compiler.kernels.kernel import Constant
from lwc_compiler.kernels.layer import store_result

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from lwc_compiler.kernels.kernel import Kernel, Operand
    from lwc_compiler.kernels.layer import Activation

LINE = 16  # float32 in a cache line
_FEW_SUMS = 4  # so many multiply-adds are done before the first of them is
_SCALAR_LOADS_AHEAD = 3  # of the multiply-add that needs one: processors without vectors work in order
_EDGES = 3  # ways in which a tile's rows meet the edges of the input that have code of their own
_AHEAD = 512  # float32 by which dense weights are asked for before they are used


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

    def __str__(self) -> str:
        cut = f"{self.rows}x{self.tile_rows}x{self.tile_vectors}x{self.lanes}/{self.channels}/{self.chunk}"
        return f"{cut} in place" if self.in_place else cut


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
        self.starts = [i * t.lanes if t.adjoining else min(i * t.lanes, last) for i in range(t.tile_vectors)]
        span = last + t.lanes
        self.row_base: dict[int, int] = {}
        rows = 0
        for phase, reach in sorted(p.height.reach.items()):
            self.row_base[phase] = rows
            rows += t.tile_rows + reach
        self.column_base: dict[int, int] = {}
        columns = 0
        for phase, reach in sorted(p.width.reach.items()):
            self.column_base[phase] = columns
            columns += -(-(span + reach * p.images) // LINE) * LINE
        self.span = span
        self.pitch = columns
        self.plane = rows * columns  # float32 of one channel of the tile
        beyond = LINE if self.starts[-1] > last else 0  # that the last vector of the last row reads
        self.packed = t.channels * self.plane + beyond  # float32 of the input that offsets lead to
        if t.in_place:
            self.pitch, self.plane = p.width.size, p.height.size * p.width.size
            self.packed = p.in_channels * p.depth.size * self.plane
        self.blocks = -(-p.planes // t.channels)
        self.row_groups = -(-p.out_channels // t.rows)
        self.chunks = -(-self.row_groups // t.chunk)
        sums = t.chunk * t.rows * t.tile_rows * t.tile_vectors * t.lanes if self.blocks > 1 else 0
        self.scratch_bytes = 0 if t.in_place else 4 * (self.packed + sums)
        self.tiles = p.batch * p.groups * p.depth.out * self.row_tiles * self.column_tiles * self.chunks

    @property
    def vectors(self) -> int:
        """Vectors of a tile, for each output channel."""
        return self.tiling.tile_rows * self.tiling.tile_vectors

    @property
    def reads(self) -> list[int]:
        """Where each vector of a tile is read, from the first one on."""
        t, down, across = self.tiling, self.pitch, 1
        if t.in_place:
            down, across = self.problem.height.stride * self.pitch, self.problem.width.stride
        return [v // t.tile_vectors * down + self.starts[v % t.tile_vectors] * across for v in range(self.vectors)]

    @property
    def exact(self) -> bool:
        """Whether no output is computed twice: tiles, rows and vectors do not overlap."""
        p, t = self.problem, self.tiling
        whole = self.width % self.tile_width == 0 and self.tile_width == t.tile_vectors * t.lanes
        return whole and p.height.out % t.tile_rows == 0 and p.out_channels % t.rows == 0

    @property
    def chains(self) -> int:
        """Sums that the taps of a row take turns in, so that one multiply-add need not wait for the last."""
        return 2 if self.tiling.rows * self.vectors <= _FEW_SUMS else 1

    def first_row(self, group: int) -> int:
        """First output channel of a group of rows; the last group overlaps the one before it."""
        return min(group * self.tiling.rows, self.problem.out_channels - self.tiling.rows)

    @cached_property
    def offsets(self) -> NDArray[np.int64]:
        """Offset of every tap (planes x kernel height x kernel width), within its block of channels."""
        p = self.problem
        if self.tiling.in_place:
            channel, depth = np.divmod(np.arange(p.planes), p.depth.kernel)
            planes = (channel * p.depth.size + depth * p.depth.dilation) * self.plane
            down, across = (np.arange(axis.kernel) * axis.dilation for axis in (p.height, p.width))
            taps: NDArray[np.int64] = planes[:, None, None] + down[:, None] * self.pitch + across
            return taps.ravel()
        rows = [self.row_base[p.height.phase(i)] + p.height.shift(i) for i in range(p.height.kernel)]
        columns = [self.column_base[p.width.phase(i)] + p.width.shift(i) * p.images for i in range(p.width.kernel)]
        planes = np.arange(p.planes) % self.tiling.channels * self.plane
        offsets: NDArray[np.int64] = planes[:, None, None] + np.array(rows)[:, None] * self.pitch + np.array(columns)
        return offsets.ravel()


def pack_taps(weight: NDArray[np.float32], layout: TapLayout, *, shared: bool) -> tuple[list[Constant], int]:
    """Weights in the order the kernel reads them.

    Args:
        weight: (groups, out_channels, planes x kernel height x kernel width).
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
            Constant(layout.offsets.astype(offset_type)),
            Constant(np.concatenate(values)),
        ], p.groups * p.out_channels * grouped.shape[2]
    counts, offsets, values = [], [], []
    for block in blocks:
        part = grouped[:, :, block]
        kept = (part != 0).any(axis=1)
        group, tap = np.nonzero(kept)
        value, count = part[group, :, tap], kept.sum(axis=1)
        if layout.chains > 1:
            # The last tap of an odd row becomes two of half the weight.
            again = np.ones(len(tap), np.int64)
            again[np.cumsum(count)[count % 2 == 1] - 1] = 2
            value, tap = np.repeat(value / again[:, None], again, axis=0), np.repeat(tap, again)
            count = (count + 1) // 2
        counts.append(count)
        offsets.append(layout.offsets[block][tap].astype(offset_type))
        values.append(value.ravel())
    ends = np.concatenate([[0], np.cumsum(np.concatenate(counts))]).astype(np.int32)
    flat = np.concatenate(values)
    return [
        Constant(ends),
        Constant(_not_empty(np.concatenate(offsets))),
        Constant(_not_empty(flat.astype(np.float32))),
    ], flat.size


def _not_empty(array: NDArray[Any]) -> NDArray[Any]:
    return array if array.size else np.zeros(1, array.dtype)


def tap_kernel(
    name: str,
    layout: TapLayout,
    *,
    shared: bool,
    bias: bool,
    residual: bool,
    activation: Activation | None,
) -> Kernel:
    """Builds the kernel; parameters: x, [residual], ends, offsets, values, [bias], y."""
    return _Writer(layout, shared, activation).write(name, bias, residual)


def tap_operands(
    constants: list[Constant], bias: NDArray[np.float32] | None, x: Operand, residual: Operand | None, y: Operand
) -> tuple[Operand, ...]:
    """Operands in the order of `tap_kernel`'s parameters."""
    return (
        x,
        *([residual] if residual else []),
        *constants,
        *([Constant(bias)] if bias is not None else []),
        y,
    )


class TapSums:
    """Writes what a layer's lists of taps add up to; declares `ends`, `offsets`, `values` and `bias` of the kernel."""

    def __init__(self, b: KernelBuilder, layout: TapLayout, *, shared: bool, bias: bool) -> None:
        self.b, self.layout, self.shared = b, layout, shared
        self._ends = b.pointer("ends", "int32")
        self._offsets = b.pointer("offsets", "uint16" if layout.packed <= 1 << 16 else "int32")
        self._values = b.pointer("values")
        self._bias = b.pointer("bias") if bias else None

    def write(
        self, scratch: Any, block: Any, number: Any, channel: Any, slot: Any, base: Any = 0, part: slice = slice(None)
    ) -> list[list[Register]]:
        """The sums of one group of rows over one block of channels; registers [row][vector of the tile].

        Args:
            scratch: buffer that holds the tile's input, and behind it the sums that wait for the next block; in place,
                the layer's input.
            block: of input channels.
            number: of the group of rows, over all groups of the convolution.
            channel: its first output channel.
            slot: where its sums wait.
            base: where in it the tile's input begins.
            part: of the tile's vectors.
        """
        b, t, lay = self.b, self.layout.tiling, self.layout
        fixed = base if isinstance(base, int) else 0
        at = [fixed + read for read in lay.reads[part]]
        vectors = len(at)
        chains = 1 if self.shared else lay.chains
        sums = [[b.register(t.lanes) for _ in at] for _ in range(t.rows)]
        others = [[[b.register(t.lanes) for _ in row] for row in sums] for _ in range(chains - 1)]
        for register in (register for other in others for row in other for register in row):
            register.set(splat(0.0, t.lanes))
        held = b.address(lay.packed + slot * (t.rows * vectors * t.lanes)) if lay.blocks > 1 else 0
        each = [(r, v, sums[r][v]) for r in range(t.rows) for v in range(vectors)]

        def start() -> None:
            for r in range(t.rows):
                value = b.let("b", b.load(self._bias, channel + r)) if self._bias is not None else 0.0
                for v in range(vectors):
                    sums[r][v].set(splat(value, t.lanes))

        if lay.blocks == 1:
            start()
        else:
            with b.when(block == 0):
                start()
            with b.otherwise():
                for r, v, register in each:
                    register.set(b.load(scratch, held + (r * vectors + v) * t.lanes, t.lanes))
        every, values = lay.problem.groups * lay.row_groups, self._values
        number = b.let("number", number)
        if self.shared:
            begin = b.let("begin", b.load(self._ends, block))
            end = b.let("end", b.load(self._ends, block + 1))
            first = b.let("first", (begin * every + number * (end - begin) - begin) * t.rows)
            if t.by_lane:
                values, first = b.from_element(values, first), 0
        else:
            begin = b.let("begin", b.load(self._ends, block * every + number))
            end = b.let("end", b.load(self._ends, block * every + number + 1))
            first = 0
        with b.loop("taps", begin, end) as taps:
            if self.shared:
                b.prefetch(values, first + (taps * t.rows + _AHEAD))
            for chain, into in enumerate([sums, *others]):
                tap = b.let("tap", taps * chains + chain)
                offset = b.let("offset", b.load(self._offsets, tap).astype("int32") + (0 if base is fixed else base))
                weights = self._weights(values, first + tap * t.rows)
                inputs = _Inputs(b, scratch, offset, at, t.lanes)
                for v in range(vectors):
                    value = inputs[v]
                    for r in range(t.rows):
                        into[r][v].set(into[r][v].get() + weights[r] * value)
        for other in others:
            for r, v, register in each:
                register.set(register.get() + other[r][v].get())
        if lay.blocks > 1:
            with b.when(block < lay.blocks - 1):
                for r, v, register in each:
                    b.store(scratch, held + (r * vectors + v) * t.lanes, register.get(), t.lanes)
        return sums

    def _weights(self, values: Any, at: Any) -> list[Any]:
        """A tap's weights, one of each row, in `values` from `at` on; as vectors where the kernel has vectors."""
        b, t = self.b, self.layout.tiling
        if t.by_lane:
            packed = [b.let("w", b.load(values, at + start, t.lanes)) for start in range(0, t.rows, t.lanes)]
            return [lane(packed[r // t.lanes], r % t.lanes, t.lanes) for r in range(t.rows)]
        if t.lanes == 1 and t.rows > 1:
            # One vector, which keeps LLVM from unrolling the loop: it would run out of registers.
            vector = b.let("w", b.load(values, at, t.rows))
            return [b.let("w", tirx.Shuffle([vector], [tirx.const(r, "int32")])) for r in range(t.rows)]
        return [splat(b.let("w", b.load(values, at + r)), t.lanes) for r in range(t.rows)]

    def store(
        self,
        sums: list[list[Register]],
        y: Any,
        out: Any,
        distances: tuple[int, int],
        residual: Any | None,
        activation: Activation | None,
        part: slice = slice(None),
    ) -> None:
        """Adds the residual, applies the activation, stores the valid pixels.

        Args:
            sums: as `write` gives them.
            y: buffer.
            out: where in it the tile's first pixel of the first row lies.
            distances: from channel to channel, and from row to row of pixels.
            residual: buffer that is laid out like `y`.
            activation: of the layer.
            part: as `write` took it.
        """
        t, lay = self.layout.tiling, self.layout
        channel, row = distances
        for r in range(t.rows):
            for v, register in zip(range(lay.vectors)[part], sums[r], strict=True):
                start = lay.starts[v % t.tile_vectors]
                at = out + (r * channel + v // t.tile_vectors * row + start)
                for piece, lanes in pieces(min(t.lanes, lay.tile_width - start), t.lanes):
                    value = register.get() if lanes == t.lanes else register.part(piece, lanes)
                    store_result(self.b, y, at + piece, value, residual, activation, lanes)


class _Inputs:
    """The inputs of a tap. Without vectors they are loaded some ahead of their use, and in pairs where they adjoin."""

    def __init__(self, b: KernelBuilder, buffer: Any, offset: Any, reads: list[int], lanes: int) -> None:
        self._b, self._buffer, self._offset, self._reads, self._lanes = b, buffer, offset, reads, lanes
        self._loaded: list[Any] = []

    def __getitem__(self, number: int) -> Any:
        b, reads, loaded = self._b, self._reads, self._loaded
        last = number if self._lanes > 1 else min(number + _SCALAR_LOADS_AHEAD, len(reads) - 1)
        while len(loaded) <= last:
            at, after = reads[len(loaded)], reads[len(loaded) + 1 : len(loaded) + 2]
            if self._lanes == 1 and after == [at + 1]:
                # A vector of two, which keeps LLVM from unrolling the loop: it would run out of registers.
                pair = b.let("pair", b.load(self._buffer, self._offset + at, 2))
                loaded += [b.let("value", tirx.Shuffle([pair], [tirx.const(i, "int32")])) for i in range(2)]
            else:
                loaded.append(b.let("value", b.load(self._buffer, self._offset + at, self._lanes)))
        return loaded[number]


class _Writer:
    def __init__(self, layout: TapLayout, shared: bool, activation: Activation | None) -> None:
        self.layout, self.shared, self.activation = layout, shared, activation
        self.p, self.t = layout.problem, layout.tiling
        # Distances in the output: of the rows of a plane, and of the planes of a channel.
        self.row, self.plane = layout.width, self.p.height.out * layout.width
        if self.p.images > 1:
            self.row, self.plane = self.p.groups * self.p.out_channels * layout.width, layout.width
        self.b = KernelBuilder()

    def write(self, name: str, bias: bool, residual: bool) -> Kernel:
        b, p, t, lay = self.b, self.p, self.t, self.layout
        self.x = b.pointer("x")
        extra = b.pointer("residual") if residual else None
        sums = TapSums(b, lay, shared=self.shared, bias=bias)
        y = b.pointer("y")
        self.scratch = None if t.in_place else b.pointer("scratch")
        with b.loop("tile", b.first, b.last) as tile:
            batch, group, chunk, depth, row, column = self._place(tile)
            row = b.let("row", smaller(row * t.tile_rows, p.height.out - t.tile_rows))
            column = b.let("column", smaller(column * lay.tile_width, lay.width - lay.tile_width))
            first = b.let("first", chunk * t.chunk)
            last = b.let("last", smaller(first + t.chunk, lay.row_groups))
            base = self._origin(batch, group, depth, row, column) if t.in_place else 0
            with b.loop("block", 0, lay.blocks) as block:
                if not t.in_place:
                    self._copy_input(batch, group, depth, row, column, block)
                with b.loop("rows", first, last) as rows:
                    at = b.let(
                        "at",
                        rows * t.rows
                        if p.out_channels % t.rows == 0
                        else smaller(rows * t.rows, p.out_channels - t.rows),
                    )
                    channel = b.let("channel", group * p.out_channels + at)
                    to = (batch * (p.groups * p.out_channels) + channel) * (p.depth.out * self.plane)
                    to = to + depth * self.plane + row * self.row + column
                    if p.images > 1:
                        to = (batch * p.height.out + row) * self.row + channel * self.plane + column
                    out = b.address(to)
                    source = self.x if t.in_place else self.scratch
                    vectors = sums.write(source, block, group * lay.row_groups + rows, channel, rows - first, base)
                    with b.when(block == lay.blocks - 1):
                        distances = (p.depth.out * self.plane, self.row)
                        sums.store(vectors, y, out, distances, extra, self.activation)
        over = 1 if residual and lay.exact else None
        return b.build(name, lay.tiles, lay.scratch_bytes, p.batch if p.images == 1 else 1, over)

    def _place(self, tile: Any) -> list[Any]:
        """Batch, group, chunk, depth, row and column of a tile: tiles follow each other in the order of the output."""
        p, lay = self.p, self.layout
        if p.images == 1:
            shape = (p.batch, p.groups, lay.chunks, p.depth.out, lay.row_tiles, lay.column_tiles)
            return unravel(self.b, tile, shape)
        batch, chunk, row, group, column = unravel(
            self.b, tile, (p.batch, lay.chunks, lay.row_tiles, p.groups, lay.column_tiles)
        )
        return [batch, group, chunk, 0, row, column]

    def _origin(self, batch: Any, group: Any, depth: Any, row: Any, column: Any) -> Any:
        """Where in the input a tile's first output begins to read."""
        p, lay = self.p, self.layout
        plane = (batch * p.groups + group) * (p.in_channels * p.depth.size) + depth * p.depth.stride - p.depth.pad
        line = plane * p.height.size + row * p.height.stride - p.height.pad
        return self.b.let("origin", line * lay.pitch + column * p.width.stride - p.width.pad)

    def _copy_input(self, batch: Any, group: Any, depth: Any, row: Any, column: Any, block: Any) -> None:
        """Copies the block's planes of the tile into the scratch memory."""
        b, p, t, lay = self.b, self.p, self.t, self.layout
        start = b.let("start", block * t.channels)
        count = b.let("count", smaller(t.channels, p.planes - start))
        with b.loop("c", 0, count) as c:
            plane = b.let("plane", start + c)
            channel = group * p.in_channels + divide(plane, p.depth.kernel)
            d = b.let("d", depth * p.depth.stride + modulo(plane, p.depth.kernel) * p.depth.dilation - p.depth.pad)
            channels, width = p.groups * p.in_channels, p.width.size * p.images
            if p.images == 1:
                pitch = width
                source = b.let("source", ((batch * channels + channel) * p.depth.size + d) * (p.height.size * pitch))
            else:
                pitch = channels * width
                source = b.let("source", batch * (p.height.size * pitch) + channel * width)
            for phase, reach in p.height.reach.items():
                with b.loop("q", 0, t.tile_rows + reach) as q:
                    line = b.let("line", (row + q) * p.height.stride + (phase - p.height.pad))
                    target = b.address(c * lay.plane + (lay.row_base[phase] + q) * lay.pitch)
                    limits = [*_limits(line, p.height), *_limits(d, p.depth)]
                    if limits and p.grid != (1, 1):
                        for down, inside in ((-1, line < 0), (0, tirx.all(*limits)), (1, line >= p.height.size)):
                            with b.when(inside):
                                at = source + (line - down * p.height.size) * pitch
                                self._copy_row(at, target, column, zero=False, down=down)
                        continue
                    if not limits:
                        self._copy_row(source + line * pitch, target, column, zero=False)
                        continue
                    with b.when(tirx.all(*limits)):
                        self._copy_row(source + line * pitch, target, column, zero=False)
                    with b.otherwise():
                        self._copy_row(0, target, column, zero=True)

    def _copy_row(self, source: Any, target: Any, column: Any, *, zero: bool, down: int = 0) -> None:
        """Copies the part of one input row that the tile reads, or zeros, or what blocks further `down` have there."""
        p, lay, images = self.p.width, self.layout, self.p.images
        column = divide(column, images)
        for phase, reach in p.reach.items():
            length = lay.span // images + reach  # pixels
            at = target + lay.column_base[phase]
            if zero:
                self._fill(at, 0, length * images)
                continue
            shift = p.pad - phase  # the phase's pixel i is input column (column + i) * stride - shift
            begin, end = _inside(p, column, shift, length)
            if shift <= 0 and (p.out - lay.tile_width // images + length - 1) * p.stride - shift < p.size:
                begin, end = 0, length
            start = self.b.address(source + (column * p.stride - shift) * images)
            edge = not (isinstance(begin, int) and isinstance(end, int) and begin == 0 and end == length)
            if self.p.grid != (1, 1) and (edge or down):
                self._copy_blocks(start, at, begin, end, length, down)
                continue
            begin, end, length = begin * images, end * images, length * images
            if isinstance(begin, int) and isinstance(end, int):
                self._copy_padded(start, p.stride, at, begin, end, length)
                continue
            begin, end = self.b.let("begin", begin), self.b.let("end", end)
            columns = [min(i * lay.tile_width, lay.width - lay.tile_width) for i in range(lay.column_tiles)]
            edges = {_inside(p, first, shift, length) for first in columns}
            if self.t.adjoining and len(edges) <= _EDGES:
                for low, high in sorted(edges):
                    with self.b.when(tirx.all(begin == low, end == high)):
                        self._copy_padded(start, p.stride, at, low, high, length)
                continue
            with self.b.when(end - begin == length):
                self._copy(start, p.stride, at, 0, length)
            with self.b.otherwise():
                self._copy_edge(start, p.stride, at, begin, end, length)

    def _copy_padded(self, source: Any, stride: int, at: Any, begin: int, end: int, length: int) -> None:
        """Copies the positions from `begin` to `end`, which are known; zeros before and after them."""
        self._fill(at, 0, begin)
        self._copy(source, stride, at, begin, end)
        self._fill(at, end, length)

    def _copy_edge(self, source: Any, stride: int, at: Any, begin: Any, end: Any, length: int) -> None:
        """Copies the positions from `begin` to `end`; zeros before and after them."""
        b, lanes = self.b, self.t.lanes
        with b.loop("i", 0, begin) as i:
            b.store(self.scratch, at + i, 0.0)
        whole = b.let("whole", tirx.truncdiv(end - begin, lanes))
        with b.loop("v", 0, whole) as v:
            i = b.let("i", begin + v * lanes)
            b.store(self.scratch, at + i, self._pixels(source + i * stride, lanes, stride), lanes)
        with b.loop("i", begin + whole * lanes, end) as i:
            b.store(self.scratch, at + i, b.load(self.x, source + i * stride))
        with b.loop("i", end, length) as i:
            b.store(self.scratch, at + i, 0.0)

    def _copy_blocks(self, source: Any, at: Any, begin: Any, end: Any, length: int, down: int) -> None:
        """Copies `length` pixels of blocks `down` below: those before `begin` and from `end` on are neighbours'."""
        b, p, lanes = self.b, self.p, self.t.lanes
        nothing = b.register(lanes)
        nothing.set(splat(0.0, lanes))
        begin, end = b.let("begin", begin), b.let("end", end)
        for across, first, last in ((-1, 0, begin), (0, begin, end), (1, end, length)):
            with b.loop("i", first, last) as i:
                value = b.register(lanes)
                value.set(b.load(self.x, source + (i * p.width.stride - across * p.width.size) * lanes, lanes))
                if down or across:
                    value = b.shuffle(value, nothing, p.neighbours(down, across))
                b.store(self.scratch, at + i * lanes, value.get(), lanes)

    def _fill(self, at: Any, begin: int, end: int) -> None:
        for start, lanes in pieces(end - begin, self.t.lanes):
            self.b.store(self.scratch, at + (begin + start), splat(0.0, lanes), lanes)

    def _copy(self, source: Any, stride: int, at: Any, begin: int, end: int) -> None:
        for start, lanes in pieces(end - begin, self.t.lanes):
            value = self._pixels(source + (begin + start) * stride, lanes, stride)
            self.b.store(self.scratch, at + (begin + start), value, lanes)

    def _pixels(self, at: Any, lanes: int, stride: int) -> Any:
        """A vector of input: of one pixel, or of pixels `stride` apart."""
        return self.b.load(self.x, at, lanes, stride if self.p.images == 1 else 1)


def readable_in_place(problem: Problem, lanes: int) -> bool:
    """Whether every output reads nothing but the input, and vectors of `lanes` outputs find theirs side by side."""
    p = problem
    inside = not any(_limits(tirx.const(0, "int32"), axis) for axis in (p.depth, p.height, p.width))
    return inside and p.images == 1 and (lanes == 1 or p.width.stride == 1)


def _inside(axis: Axis, column: Any, shift: int, length: int) -> tuple[Any, Any]:
    """Which of `length` pixels of a phase, whose first one is that of output `column`, lie in the input: from, to."""
    low, high = shift + axis.stride - 1, axis.size + shift + axis.stride - 1
    begin = clamp(_floor_divide(low - column * axis.stride, axis.stride), 0, length)
    return begin, clamp(_floor_divide(high - column * axis.stride, axis.stride), 0, length)


def _floor_divide(value: Any, by: int) -> Any:
    return value if by == 1 else value // by


def _limits(index: Any, axis: Axis) -> list[Any]:
    """What must hold for an input index to lie in the input: nothing where no tile reaches outside."""
    limits = []
    if axis.pad > 0:
        limits.append(index >= 0)
    if max((axis.out - 1 + reach) * axis.stride + phase for phase, reach in axis.reach.items()) - axis.pad >= axis.size:
        limits.append(index < axis.size)
    return limits
