"""The kernel behind most linear layers: lists of taps over a tile of the input that stays in the level-1 cache.

A tap is one weight position of a row: an offset into the tile, and a value for each of the `rows` output channels that
are computed together. For every tap the kernel reads the offset, broadcasts the values, and does rows x vectors fused
multiply-adds into registers. Single non-zeros (`csr`) are lists of one row; r x 1 blocks lists of r rows; a dense layer
is the list of all taps, shared by all rows.

The tile's input is copied into the thread's scratch memory first, `channels` input channels at a time: with zeros for
the padding, split by stride, each row of pixels at a 64-byte boundary, or, where lanes of narrow rows would be empty,
one row behind the other (`Tiling.flat`). So every offset is a constant of the layer, whatever the padding, stride and
dilation are, and every load hits the level-1 cache. Between blocks of channels the sums wait in the scratch memory too.

Where memory is short, a layer without padding is computed `in_place`: offsets are then those in the whole input, and
nothing is copied.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from tvm import tirx

from lwc_compiler.kernels import in_order, short_loop
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
from lwc_compiler.kernels.tap_layout import Axis, TapLayout
from lwc_compiler.kernels.weight_types import FLOAT32, WeightType

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from lwc_compiler.kernels.kernel import Kernel, Operand
    from lwc_compiler.kernels.layer import Activation

_SCALAR_LOADS_AHEAD = 3  # of the multiply-add that needs one: processors without vectors work in order
_EDGES = 3  # ways in which a tile's rows meet the edges of the input that have code of their own
_FEW_VECTORS = 4  # of a row, for which an address of their own does not pay
_AHEAD = 512  # float32 by which dense weights are asked for before they are used


def tap_kernel(
    name: str,
    layout: TapLayout,
    *,
    shared: bool,
    bias: bool,
    residual: bool,
    activation: Activation | None,
    kind: WeightType = FLOAT32,
) -> Kernel:
    """Builds the kernel; parameters: x, [residual], ends, offsets, values, [scales], [bias], y."""
    return _Writer(layout, shared, activation).write(name, bias, residual, kind)


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
    """Writes what a layer's lists of taps add up to; declares `ends`, `offsets`, `values` and so on of the kernel."""

    def __init__(
        self, b: KernelBuilder, layout: TapLayout, *, shared: bool, bias: bool, kind: WeightType = FLOAT32
    ) -> None:
        self.b, self.layout, self.shared, self.kind = b, layout, shared, kind
        self._ends = b.pointer("ends", "int32")
        self._offsets = b.pointer("offsets", "uint16" if layout.packed <= 1 << 16 else "int32")
        self._values = b.pointer("values", kind.dtype)
        self._scales = b.pointer("scales") if kind.scaled else None
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

        first_bias = None if self.kind.scaled else self._bias

        def start() -> None:
            for r in range(t.rows):
                value = b.let("b", b.load(first_bias, channel + r)) if first_bias is not None else 0.0
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
        if t.short or (t.in_order and in_order.suits(t.rows, lay.reads[part])):
            at_first = begin * lay.step if t.short else begin
            where = (
                b.address_of(self._offsets, at_first),
                b.address_of(values, first + at_first * t.rows),
                b.address_of(scratch, base),
            )
            self._add_by_assembly(where, end - begin, lay.reads[part], sums)
            self._keep(scratch, block, held, each)
            return sums
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
        self._keep(scratch, block, held, each)
        if self.kind.scaled:
            self._scale(block, channel, sums)
        return sums

    def _add_by_assembly(
        self, where: tuple[Any, Any, Any], count: Any, at: list[int], sums: list[list[Register]]
    ) -> None:
        """Adds a list of taps, `count` or so many pairs of them, by a loop in assembly; `where` its data lie."""
        rows, size = self.layout.tiling.rows, 2 if self.layout.packed <= 1 << 16 else 4
        if self.layout.tiling.short:
            code, name = short_loop.tap_loop(rows, at)
        else:
            code, name = in_order.tap_loop(rows, at, size, 4 * _AHEAD if self.shared else 0)
        self.b.call(code, name, *where, count, *(register.address() for row in sums for register in row))

    def _keep(self, scratch: Any, block: Any, held: Any, each: list[tuple[int, int, Register]]) -> None:
        """Lets sums wait for the next block of channels."""
        b, t, lay = self.b, self.layout.tiling, self.layout
        if lay.blocks > 1:
            with b.when(block < lay.blocks - 1):
                for i, (_, _, register) in enumerate(each):
                    b.store(scratch, held + i * t.lanes, register.get(), t.lanes)

    def _scale(self, block: Any, channel: Any, sums: list[list[Register]]) -> None:
        """Multiplies finished sums by the scales of their channels, and adds the biases."""
        b, t = self.b, self.layout.tiling
        with b.when(block == self.layout.blocks - 1):
            for r, row in enumerate(sums):
                scale = splat(b.let("scale", b.load(self._scales, channel + r)), t.lanes)
                bias = 0.0 if self._bias is None else b.let("b", b.load(self._bias, channel + r))
                for register in row:
                    register.set(register.get() * scale + splat(bias, t.lanes))

    def _weights(self, values: Any, at: Any) -> list[Any]:
        """A tap's weights, one of each row, in `values` from `at` on; as vectors where the kernel has vectors."""
        b, t = self.b, self.layout.tiling
        if t.by_lane:
            loaded = [b.load(values, at + start, t.lanes) for start in range(0, t.rows, t.lanes)]
            packed = [b.let("w", b.weights(each, self.kind, t.lanes)) for each in loaded]
            return [lane(packed[r // t.lanes], r % t.lanes, t.lanes) for r in range(t.rows)]
        if t.lanes == 1 and t.rows > 1:
            # One vector, which keeps LLVM from unrolling the loop: it would run out of registers.
            vector = b.let("w", b.load(values, at, t.rows))
            codes = [tirx.Shuffle([vector], [tirx.const(r, "int32")]) for r in range(t.rows)]
            return [b.let("w", b.weights(code, self.kind)) for code in codes]
        return [splat(b.let("w", b.weights(b.load(values, at + r), self.kind)), t.lanes) for r in range(t.rows)]

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
            for runs, register in zip(lay.runs[part], sums[r], strict=True):
                for first, count, line, start in runs:
                    at = out + (r * channel + line * row + start)
                    for piece, lanes in pieces(count, t.lanes):
                        value = register.get() if lanes == t.lanes else register.part(first + piece, lanes)
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

    def write(self, name: str, bias: bool, residual: bool, kind: WeightType) -> Kernel:
        b, p, t, lay = self.b, self.p, self.t, self.layout
        self.x = b.pointer("x")
        extra = b.pointer("residual") if residual else None
        sums = TapSums(b, lay, shared=self.shared, bias=bias, kind=kind)
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
        source, at = source + begin * stride, at + begin
        if (self.t.adjoining or self.t.short) and end - begin > _FEW_VECTORS * self.t.lanes:
            # One instruction loads or stores two vectors where they lie whole vectors behind its address.
            source, at = self.b.opaque_address(source), self.b.opaque_address(at)
        for start, lanes in pieces(end - begin, self.t.lanes):
            self.b.store(self.scratch, at + start, self._pixels(source + start * stride, lanes, stride), lanes)

    def _pixels(self, at: Any, lanes: int, stride: int) -> Any:
        """A vector of input: of one pixel, or of pixels `stride` apart."""
        return self.b.load(self.x, at, lanes, stride if self.p.images == 1 else 1)


def _inside(axis: Axis, column: Any, shift: int, length: int) -> tuple[Any, Any]:
    """Which of `length` pixels of a phase, whose first one is that of output `column`, lie in the input: from, to."""
    low, high = shift + axis.stride - 1, axis.size + shift + axis.stride - 1
    begin = clamp(_floor_divide(low - column * axis.stride, axis.stride), 0, length)
    return begin, clamp(_floor_divide(high - column * axis.stride, axis.stride), 0, length)


def _floor_divide(value: Any, by: int) -> Any:
    return value if by == 1 else value // by


def _limits(index: Any, axis: Axis) -> list[Any]:
    """What must hold for an input index to lie in the input: nothing where no tile reaches outside."""
    return [*([index >= 0] if axis.before else []), *([index < axis.size] if axis.behind else [])]
