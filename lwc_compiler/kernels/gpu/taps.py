"""Sparse convolutions and products with many rows on a GPU.

A layer is a sparse matrix over shifted views of its input (see `kernels/taps.py`): each non-zero is a *tap*, an offset
and a value. A block of threads computes some output channels on a tile of pixels: it copies what the tile reads of some
input channels to shared memory, with zeros for the padding, and each warp goes through the taps of its output
channels, four at a time, which all its lanes share; every lane has the sums of a few pixels in registers. Shared
memory serves 32 neighbouring pixels in a cycle however they are shifted, so taps of any kernel position cost the same.

Where a layer has too few pixels and output channels for all warps of a GPU, several warps share the taps of an output
channel, each those of some input channels, and add their sums up through shared memory.

The output channels are sorted by their number of taps: those of a block have about as many, so that none waits long at
a barrier, and the longest begin first.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from tvm import tirx

from lwc_compiler.kernels.builder import divide, modulo, splat, unravel
from lwc_compiler.kernels.gpu.builder import WARP, DeviceBuilder, ceil_div
from lwc_compiler.kernels.kernel import Constant
from lwc_compiler.kernels.layer import store_result

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from lwc_compiler.kernels.builder import Register
    from lwc_compiler.kernels.gpu.builder import Expr
    from lwc_compiler.kernels.kernel import Kernel
    from lwc_compiler.kernels.layer import ConvGeometry, Epilogue


STEP = 4  # taps that are read at a time


@dataclass(frozen=True)
class TapTile:
    """How the taps of a layer are cut into blocks.

    Attributes:
        geometry: of two dimensions or three, not transposed.
        x_strides: elements between neighbours of the input along (batch, channel, *spatial).
        y_strides: the same of the output.
        rows: of the tile, along the last dimension but one.
        columns: of the tile, a power of two; rows x columns is a multiple of a warp.
        channels: input channels in shared memory at a time.
        warps: of a block.
        outputs: output channels of a warp.
        parts: warps that share an output channel; divides `warps`.
    """

    geometry: ConvGeometry
    x_strides: tuple[int, ...]
    y_strides: tuple[int, ...]
    rows: int
    columns: int
    channels: int
    warps: int
    outputs: int
    parts: int = 1

    @property
    def pixels(self) -> int:
        """Pixels of a lane."""
        return self.rows * self.columns // WARP

    @property
    def tile(self) -> tuple[int, ...]:
        """Pixels of a block along each dimension."""
        return (*(1,) * (len(self.geometry.in_size) - 2), self.rows, self.columns)

    @property
    def tiles(self) -> tuple[int, ...]:
        """Tiles of an image along each dimension."""
        return tuple(ceil_div(size, t) for size, t in zip(self.geometry.out_size, self.tile, strict=True))

    @property
    def window(self) -> tuple[int, ...]:
        """Positions of the input that a tile reads, along each dimension."""
        g = self.geometry
        parts = zip(self.tile, g.strides, g.kernel, g.dilations, strict=True)
        return tuple((t - 1) * s + (k - 1) * d + 1 for t, s, k, d in parts)

    @property
    def half(self) -> int:
        """Columns of one phase: a row in shared memory is split by the stride, so that lanes read neighbours."""
        return ceil_div(self.window[-1], self.geometry.strides[-1])

    @cached_property
    def pitch(self) -> int:
        """Elements of a row in shared memory: the fewest with which the lanes of a warp read different banks."""
        least = self.half * self.geometry.strides[-1]
        lanes = np.arange(WARP)
        rows, columns = lanes // self.columns, lanes % self.columns
        down = rows * self.geometry.strides[-2]
        distinct = [np.unique((down * p + columns) % WARP).size for p in range(least, least + WARP)]
        return least + distinct.index(max(distinct))

    @property
    def row_pitches(self) -> tuple[int, ...]:
        """Elements in shared memory from one position to the next along each dimension but the last."""
        return tuple(math.prod(self.window[i + 1 : -1]) * self.pitch for i in range(len(self.window) - 1))

    @property
    def plane(self) -> int:
        """Elements of a channel in shared memory; odd where neighbouring threads write neighbouring channels."""
        size = math.prod(self.window[:-1]) * self.pitch
        return size | 1 if self.by_channel else size

    @property
    def by_channel(self) -> bool:
        """Whether neighbours in the input's memory are of neighbouring channels."""
        return self.x_strides[1] == 1

    @property
    def chunks(self) -> int:
        """How often shared memory is filled."""
        return ceil_div(self.geometry.group_inputs, self.channels)

    @property
    def per_block(self) -> int:
        """Output channels of a block."""
        return self.warps // self.parts * self.outputs

    @property
    def row_blocks(self) -> int:
        """Blocks over the output channels of a group."""
        return ceil_div(self.geometry.group_outputs, self.per_block)

    @property
    def slots(self) -> int:
        """Places for output channels of a group."""
        return self.row_blocks * self.per_block

    @property
    def grid(self) -> tuple[int, int, int]:
        """Tiles of all images, blocks of output channels, groups."""
        return (self.geometry.batch * math.prod(self.tiles), self.row_blocks, self.geometry.groups)

    @property
    def shared_elements(self) -> int:
        """Of shared memory that a block uses: the input channels and one of zeros, or the sums of all parts but one."""
        sums = (self.parts - 1) * self.per_block * self.pixels * WARP
        return max((self.channels + 1) * self.plane, sums)

    def base(self, lane: Expr) -> tuple[Expr, Expr]:
        """Row and column of a lane's first pixel in the tile."""
        return divide(lane, self.columns), modulo(lane, self.columns)

    def step(self, pixel: int) -> tuple[int, int]:
        """Rows and columns from a lane's first pixel to another of it."""
        if self.columns >= WARP:
            across = self.columns // WARP
            return pixel // across, pixel % across * WARP
        return pixel * (WARP // self.columns), 0


def pack_taps(weight: NDArray[np.float32], t: TapTile) -> tuple[list[Constant], int]:
    """Starts (in steps), output channels, offsets and values, as the kernel reads them, and how many taps there are.

    Lists are filled to whole steps with taps of the channel of zeros.

    Args:
        weight: float32 (O, C / groups, *kernel).
        t: the layout.
    """
    g = t.geometry
    rows = weight.reshape(g.groups, t.geometry.group_outputs, *weight.shape[1:])
    counts = np.count_nonzero(rows.reshape(g.groups, t.geometry.group_outputs, -1), axis=2)
    order = np.argsort(-counts, axis=1, kind="stable")
    channels = np.zeros((g.groups, t.slots), np.int32)
    channels[:, : t.geometry.group_outputs] = order + np.arange(g.groups)[:, None] * t.geometry.group_outputs
    slot_of = np.argsort(order, axis=1)

    group, output, channel, *position = np.nonzero(rows)
    part = channel % t.channels % t.parts
    lists = ((group * t.chunks + channel // t.channels) * t.parts + part) * t.slots + slot_of[group, output]
    counts = np.bincount(lists, minlength=g.groups * t.chunks * t.parts * t.slots)
    starts = np.concatenate([[0], np.cumsum(-(-counts // STEP))])
    column = position[-1] * g.dilations[-1]
    at = channel % t.channels * t.plane + column % g.strides[-1] * t.half + column // g.strides[-1]
    for axis, place in enumerate(position[:-1]):
        at += place * g.dilations[axis] * t.row_pitches[axis]
    sorted_ = np.argsort(lists, kind="stable")
    number = np.arange(lists.size) - (np.cumsum(counts) - counts)[lists[sorted_]]
    to = starts[lists[sorted_]] * STEP + number
    taken = max(1, int(starts[-1])) * STEP  # an array of nothing has no address
    offsets, values = np.full(taken, t.channels * t.plane, np.uint16), np.zeros(taken, np.float32)
    offsets[to], values[to] = at[sorted_], rows[np.nonzero(rows)][sorted_]
    arrays = (starts.astype(np.int32), channels.reshape(-1), offsets, values)
    return [Constant(array) for array in arrays], lists.size


def taps_kernel(name: str, t: TapTile, epilogue: Epilogue) -> Kernel:
    """The kernel: x, [residual,] starts, channels, offsets, values, [bias,] y."""
    g = t.geometry
    n = len(g.in_size)
    b = DeviceBuilder(t.grid, t.warps * WARP)
    x = b.pointer("x")
    residual = b.pointer("residual") if epilogue.residual else None
    starts, channels = b.pointer("starts", "int32"), b.pointer("channels", "int32")
    offsets, values = b.pointer("offsets", "uint16"), b.pointer("values")
    bias = b.pointer("bias") if epilogue.bias is not None else None
    y = b.pointer("y")

    lane, warp = b.let("lane", modulo(b.thread, WARP)), b.let("warp", divide(b.thread, WARP))
    image, *tile = unravel(b, b.block[0], (g.batch, *t.tiles))
    corner = [b.let("corner", at * size) for at, size in zip(tile, t.tile, strict=True)]
    row, column = t.base(lane)
    base = b.let("base", row * (g.strides[-2] * t.pitch) + column)
    shared = b.shared("window", t.shared_elements)
    across = t.warps // t.parts
    part = b.let("part", divide(warp, across))
    first_slot = b.let("first_slot", b.block[1] * t.per_block + modulo(warp, across))
    slots = [b.let("slot", first_slot + i * across) for i in range(t.outputs)]

    sums = [[b.register(1) for _ in range(t.pixels)] for _ in slots]
    for slot, registers in zip(slots, sums, strict=True):
        start = splat(0.0, 1)
        if bias is not None:
            start = b.let("start", b.load(bias, b.load(channels, b.block[2] * t.slots + slot)))
            if t.parts > 1:
                start = tirx.if_then_else(part == 0, start, splat(0.0, 1))
        for register in registers:
            register.set(start)

    with b.loop("i", 0, ceil_div(t.plane, t.warps * WARP)) as i:
        element = b.let("element", i * (t.warps * WARP) + b.thread)
        with b.when(element < t.plane if t.plane % (t.warps * WARP) else True):
            b.store(shared, t.channels * t.plane + element, splat(0.0, 1))
    with b.loop("chunk", 0, t.chunks) as chunk:
        if t.chunks > 1:
            b.barrier()
        _fill(b, t, x, shared, image, corner, chunk)
        b.barrier()
        list_at = b.let("list_at", ((b.block[2] * t.chunks + chunk) * t.parts + part) * t.slots)
        for slot, registers in zip(slots, sums, strict=True):
            first = b.let("first", b.load(starts, list_at + slot))
            last = b.let("last", b.load(starts, list_at + slot + 1))
            with b.loop("step", first, last) as step:
                where, held = b.register(STEP, "uint16"), b.register(STEP)
                where.set(b.load(offsets, step * STEP, STEP))
                held.set(b.load(values, step * STEP, STEP))
                for tap in range(STEP):
                    at = b.let("at", where.part(tap, 1).astype("int32") + base)
                    for pixel, register in enumerate(registers):
                        rows, columns = t.step(pixel)
                        moved = rows * g.strides[-2] * t.pitch + columns
                        register.set(register.get() + held.part(tap, 1) * b.load(shared, at + moved))

    if t.parts > 1:
        _add_parts(b, t, shared, sums, part, modulo(warp, across), lane)
    for slot, registers in zip(slots, sums, strict=True):
        with b.when(tirx.all(part == 0, slot < t.geometry.group_outputs)):
            output = b.let("output", b.load(channels, b.block[2] * t.slots + slot))
            place = image * t.y_strides[0] + output * t.y_strides[1]
            for axis in range(n - 2):
                place = place + corner[axis] * t.y_strides[2 + axis]
            place = b.let("place", place)
            for pixel, register in enumerate(registers):
                rows, columns = t.step(pixel)
                at_row, at_column = corner[-2] + row + rows, corner[-1] + column + columns
                with b.when(tirx.all(at_row < g.out_size[-2], at_column < g.out_size[-1])):
                    to = b.let("to", place + at_row * t.y_strides[-2] + at_column * t.y_strides[-1])
                    store_result(b, y, to, register.get(), residual, epilogue.activation)
    return b.finished(name)


def _add_parts(
    b: DeviceBuilder, t: TapTile, shared: Expr, sums: list[list[Register]], part: Expr, row: Expr, lane: Expr
) -> None:
    """Adds to the sums of a block's first warps those of the others, in their order."""
    registers = [register for registers in sums for register in registers]
    across = t.warps // t.parts

    def place(of_part: Expr, number: int) -> Expr:
        return (((of_part - 1) * across + row) * len(registers) + number) * WARP + lane

    b.barrier()
    with b.when(part > 0):
        for number, register in enumerate(registers):
            b.store(shared, place(part, number), register.get())
    b.barrier()
    with b.when(part == 0):
        for other in range(1, t.parts):
            for number, register in enumerate(registers):
                register.set(register.get() + b.load(shared, place(other, number)))


def _fill(b: DeviceBuilder, t: TapTile, x: Expr, shared: Expr, image: Expr, corner: list[Expr], chunk: Expr) -> None:
    """Copies what a tile reads of a chunk of the input channels to shared memory.

    A thread copies the same positions of several channels, so that it works out their places once.
    """
    g, threads, positions = t.geometry, t.warps * WARP, math.prod(t.window)
    if t.by_channel:
        across, thread, thread_channel = t.warps, divide(b.thread, WARP), modulo(b.thread, WARP)
    else:
        across = min(threads, max(WARP, 1 << (positions - 1).bit_length()))
        thread, thread_channel = modulo(b.thread, across), divide(b.thread, across)
    down = threads // across
    with b.loop("i", 0, ceil_div(positions, across)) as i:
        element = b.let("element", i * across + thread)
        with b.when(element < positions if positions % across else True):
            *before, column = unravel(b, element, t.window)
            first = chunk * t.channels + b.block[2] * t.geometry.group_inputs
            from_ = image * t.x_strides[0] + first * t.x_strides[1]
            inside = None
            for axis, (start, at) in enumerate(zip(corner, (*before, column), strict=True)):
                position = b.let("position", start * g.strides[axis] + at - g.pads[axis])
                within = tirx.all(position >= 0, position < g.in_size[axis])
                inside = within if inside is None else tirx.all(inside, within)
                from_ = from_ + position * t.x_strides[2 + axis]
            to = modulo(column, g.strides[-1]) * t.half + divide(column, g.strides[-1])
            for at, pitch in zip(before, t.row_pitches, strict=True):
                to = to + at * pitch
            from_, to = b.let("from", from_), b.let("to", to)
            with b.loop("j", 0, ceil_div(t.channels, down)) as j:
                channel = b.let("channel", j * down + thread_channel)
                exists = inside
                if t.geometry.group_inputs % t.channels:
                    exists = tirx.all(exists, chunk * t.channels + channel < t.geometry.group_inputs)
                with b.when(channel < t.channels if t.channels % down else True):
                    value = b.load(x, from_ + channel * t.x_strides[1])
                    value = tirx.if_then_else(exists, value, tirx.const(0.0, "float32"))
                    b.store(shared, to + channel * t.plane, value)
