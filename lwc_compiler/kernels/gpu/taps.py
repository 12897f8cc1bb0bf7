"""Sparse convolutions and products with many rows on a GPU.

A layer is a sparse matrix over shifted views of its input (see `kernels/taps.py`): each non-zero is a *tap*, an offset
and a value. A block of threads computes some output channels on a tile of pixels. It copies what the tile reads of some
input channels to shared memory, with zeros for the padding, and the taps of its output channels on them; while it
computes these, the next input channels are on their way. Each warp goes through the taps of its output channels, four
at a time, which all its lanes share; every lane has the sums of a few pixels in registers. Shared memory serves 32
neighbouring pixels in a cycle however they are shifted, so taps of any kernel position cost the same.

Where neighbouring output channels have their weights at the same places (r x 1 blocks), they are a row: they share the
offsets of their taps, and every input that is read from shared memory is multiplied r times.

Where a layer has too few pixels and output channels for all warps of a GPU, several warps share the taps of an output
channel, each those of some input channels, and add their sums up through shared memory.

How layers are cut and taps laid out is in `taps_layout.py`.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from tvm import tirx

from lwc_compiler.kernels.builder import divide, modulo, smaller, splat, unravel
from lwc_compiler.kernels.gpu.builder import WARP, DeviceBuilder, both, ceil_div, half_of
from lwc_compiler.kernels.gpu.taps_layout import OFFSET_WORDS, TAP_STEP
from lwc_compiler.kernels.layer import store_result

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lwc_compiler.kernels.builder import Register
    from lwc_compiler.kernels.gpu.builder import Expr
    from lwc_compiler.kernels.gpu.taps_layout import TapTile
    from lwc_compiler.kernels.kernel import Kernel
    from lwc_compiler.kernels.layer import Epilogue


def taps_kernel(name: str, t: TapTile, epilogue: Epilogue) -> Kernel:
    """The kernel: x, [residual,] starts, channels, offsets, values, [bias,] y."""
    g = t.geometry
    n = len(g.in_size)
    b = DeviceBuilder(t.grid, t.warps * WARP)
    x = b.pointer("x")
    residual = b.pointer("residual") if epilogue.residual else None
    starts, channels = b.constant("starts", "int32"), b.constant("channels", "int32")
    offsets, values = b.constant("offsets", "uint32"), b.constant("values")
    bias = b.constant("bias") if epilogue.bias is not None else None
    y = b.pointer("y")

    lane, warp = b.let("lane", modulo(b.thread, WARP)), b.let("warp", divide(b.thread, WARP))
    image, *tile = unravel(b, b.block[0], (g.batch, *t.tiles))
    corner = [b.let("corner", at * size) for at, size in zip(tile, t.tile, strict=True)]
    row, column = t.base(lane)
    base = b.let("base", row * (g.strides[-2] * t.pitch) + column)
    copies = _Copies(b, t, (x, starts, offsets, values), image, corner)
    across = t.warps // t.parts
    part, place = b.let("part", divide(warp, across)), b.let("place", modulo(warp, across))
    slots = [b.let("slot", b.block[1] * t.per_block + i * across + place) for i in range(t.outputs)]

    copies.start_taps(0, 0)
    copies.clear()
    b.inputs_ready()
    copies.start_window(0, 0)
    b.commit()
    # Of each row the sums of its output channels, one after the other, for each pixel.
    sums = [[[b.register(1) for _ in range(t.pixels)] for _ in range(t.height)] for _ in slots]
    starts_here = part == 0 if t.parts > 1 else True

    def stored(slot: Expr) -> Iterator[tuple[int, int, Expr, Expr]]:
        """Of each sum of a row: which of its output channels and pixels, where it goes, and whether that exists."""
        first_output = b.let("first_output", b.load(channels, b.block[2] * t.slots + slot))
        for number in range(t.height):
            to = image * t.y_strides[0] + (first_output + number) * t.y_strides[1]
            for axis in range(n - 2):
                to = to + corner[axis] * t.y_strides[2 + axis]
            to = b.let("to", to)
            for pixel in range(t.pixels):
                rows, columns = t.step(pixel)
                at_row, at_column = corner[-2] + row + rows, corner[-1] + column + columns
                exists = tirx.all(at_row < g.out_size[-2], at_column < g.out_size[-1])
                yield number, pixel, to + at_row * t.y_strides[-2] + at_column * t.y_strides[-1], exists

    for slot, row_sums in zip(slots, sums, strict=True):
        for number, registers in enumerate(row_sums):
            start = splat(0.0, 1)
            if bias is not None:
                start = b.load(bias, b.load(channels, b.block[2] * t.slots + slot) + number)
                start = b.let("start", start if t.parts == 1 else tirx.if_then_else(starts_here, start, splat(0.0, 1)))
            for register in registers:
                register.set(start)
        if residual is not None:  # its loads are under way together, while the window is copied
            for number, pixel, at, exists in stored(slot):
                added = tirx.if_then_else(both(exists, starts_here), b.load(residual, at), splat(0.0, 1))
                row_sums[number][pixel].set(row_sums[number][pixel].get() + added)

    with b.loop("chunk", 0, t.chunks) as chunk:
        stage = 0
        if t.chunks > 1:
            stage = b.let("stage", modulo(chunk, t.stages))
            with b.when(chunk + 1 < t.chunks):
                copies.start_taps(chunk + 1, 1 - stage)
                copies.start_window(chunk + 1, 1 - stage)
            b.commit()
        b.wait(t.stages - 1)
        b.barrier()
        here = b.let("here", base + stage * t.stage_elements)
        first_step = b.let("first_step", b.load(copies.starts, stage * (t.lists + 1)))
        for i, row_sums in enumerate(sums):
            at = b.let("list", stage * (t.lists + 1) + part * t.per_block + i * across + place)
            first = b.let("first", b.load(copies.starts, at) - first_step)
            last = b.let("last", b.load(copies.starts, at + 1) - first_step)
            with b.loop("step", first, last) as step:
                _multiply(b, t, copies, b.let("at", stage * t.steps + step), here, row_sums)
        if t.chunks > 1:
            b.barrier()

    if t.parts > 1:
        registers = [register for row_sums in sums for registers in row_sums for register in registers]
        _add_parts(b, t, copies.window, registers, part, place, lane)
    for slot, row_sums in zip(slots, sums, strict=True):
        works = both(slot < t.group_rows, starts_here)
        with b.when(both(works, lane < t.lane_rows * t.lane_columns if t.idle else True)):
            for number, pixel, at, exists in stored(slot):
                with b.when(exists):
                    store_result(b, y, b.let("at", at), row_sums[number][pixel].get(), None, epilogue.activation)
    return b.finished(name)


def _multiply(
    b: DeviceBuilder, t: TapTile, copies: _Copies, step: Expr, here: Expr, sums: list[list[Register]]
) -> None:
    """Adds the products of a step's taps to a row's sums."""
    where, held = b.register(OFFSET_WORDS, "uint32"), [b.register(TAP_STEP) for _ in range(t.height)]
    where.set(b.load(copies.offsets, step * OFFSET_WORDS, OFFSET_WORDS))
    for number, register in enumerate(held):
        register.set(b.load(copies.values, (step * t.height + number) * TAP_STEP, TAP_STEP))
    for tap in range(TAP_STEP):
        at = b.let("at", half_of(where, tap) + here)
        for pixel in range(t.pixels):
            rows, columns = t.step(pixel)
            value = b.load(copies.window, at + rows * t.geometry.strides[-2] * t.pitch + columns)
            if t.height > 1:
                value = b.let("value", value)
            for number, registers in enumerate(sums):
                vector, part = divmod(tap * t.height + number, TAP_STEP)
                register = registers[pixel]
                register.set(register.get() + held[vector].part(part, 1) * value)


def _add_parts(
    b: DeviceBuilder, t: TapTile, shared: Expr, registers: list[Register], part: Expr, row: Expr, lane: Expr
) -> None:
    """Adds to the sums of a block's first warps those of the others, in their order."""
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


class _Copies:
    """What a block has in shared memory: a stage for each of the chunks that are there at once.

    Attributes:
        window: of each stage the input channels, and one of zeros.
        starts: of each stage those of the block's lists, and their end.
        offsets: of each stage its steps.
        values: likewise.
    """

    def __init__(
        self, b: DeviceBuilder, t: TapTile, pointers: tuple[Expr, ...], image: Expr, corner: list[Expr]
    ) -> None:
        self._b, self._t, self._pointers, self._image, self._corner = b, t, pointers, image, corner
        self.window = b.shared("window", t.window_elements)
        self.values = b.shared("held", t.stages * t.steps * TAP_STEP * t.height)
        self.offsets = b.shared("where", t.stages * t.steps * OFFSET_WORDS, "uint32")
        self.starts = b.shared("lists", t.stages * (t.lists + 1), "int32")
        # The first step of the chunk that is copied next, and the one after its last: loaded a chunk before.
        self._first, self._last = b.register(1, "int32"), b.register(1, "int32")
        self._find(0)

    def clear(self) -> None:
        """Makes the channel of zeros of each stage."""
        b, t = self._b, self._t
        for stage in range(t.stages):
            for element in self._each(t.plane):
                b.store(self.window, stage * t.stage_elements + t.channels * t.plane + element, splat(0.0, 1))

    def _each(self, count: Expr, most: int | None = None) -> Iterator[Expr]:
        """Runs what follows for each number below `count`, at most `most`, in one of the threads."""
        b, threads = self._b, self._t.warps * WARP
        with b.loop("i", 0, ceil_div(count if most is None else most, threads)) as i:
            element = b.let("element", i * threads + b.thread)
            with b.when(element < count if most is not None or count % threads else True):
                yield element

    def _lists(self, chunk: Expr) -> Expr:
        """The first list of a chunk."""
        b, t = self._b, self._t
        return ((b.block[2] * t.chunks + chunk) * t.row_blocks + b.block[1]) * t.lists

    def _find(self, chunk: Expr) -> None:
        starts = self._pointers[1]
        lists = self._b.let("lists", self._lists(chunk))
        self._first.set(self._b.load(starts, lists))
        self._last.set(self._b.load(starts, lists + self._t.lists))

    def start_taps(self, chunk: Expr, stage: Expr) -> None:
        """Starts to copy the taps of a chunk."""
        b, t = self._b, self._t
        _, starts, offsets, values = self._pointers
        lists = b.let("lists", self._lists(chunk))
        for number in self._each(t.lists + 1):
            b.copy(self.starts, stage * (t.lists + 1) + number, starts, lists + number, 1)
        first = b.let("first", self._first.get())
        for step in self._each(b.let("count", self._last.get() - first), t.steps):
            for number in range(t.height):
                to = ((stage * t.steps + step) * t.height + number) * TAP_STEP
                b.copy(self.values, to, values, ((first + step) * t.height + number) * TAP_STEP, TAP_STEP)
            to = (stage * t.steps + step) * OFFSET_WORDS
            b.copy(self.offsets, to, offsets, (first + step) * OFFSET_WORDS, OFFSET_WORDS)
        if t.chunks > 1:
            self._find(smaller(chunk + 1, t.chunks - 1))

    def start_window(self, chunk: Expr, stage: Expr) -> None:
        """Starts to copy the input channels of a chunk.

        A thread copies the same positions of several channels, so that it works out their places once.
        """
        b, t, x = self._b, self._t, self._pointers[0]
        g, threads = t.geometry, t.warps * WARP
        positions = math.prod(t.window) // t.vector
        if t.by_channel:
            across, thread, thread_channel = t.warps, divide(b.thread, WARP), modulo(b.thread, WARP)
        else:
            across = min(threads, 1 << (positions - 1).bit_length())
            thread, thread_channel = modulo(b.thread, across), divide(b.thread, across)
        down = threads // across
        with b.loop("i", 0, ceil_div(positions, across)) as i:
            element = b.let("element", i * across + thread)
            *before, column = unravel(b, element * t.vector, t.window)
            copied = element < positions
            if t.overlap:  # the thread that has the end of the row before copies them
                copied = tirx.all(copied, tirx.any(element < t.window[-1], column >= t.overlap))
            with b.when(copied if t.overlap or positions % across else True):
                first = chunk * t.channels + b.block[2] * g.group_inputs
                from_ = self._image * t.x_strides[0] + first * t.x_strides[1]
                inside = None
                for axis, (corner, at) in enumerate(zip(self._corner, (*before, column), strict=True)):
                    position = b.let("position", corner * g.strides[axis] + at - g.pads[axis])
                    within = tirx.all(position >= 0, position < g.in_size[axis])
                    inside = within if inside is None else tirx.all(inside, within)
                    from_ = from_ + position * t.x_strides[2 + axis]
                to = stage * t.stage_elements + modulo(column, g.strides[-1]) * t.half + divide(column, g.strides[-1])
                for at, pitch in zip(before, t.row_pitches, strict=True):
                    to = to + at * pitch
                from_, to = b.let("from", from_), b.let("to", to)
                with b.loop("j", 0, ceil_div(t.channels, down)) as j:
                    channel = b.let("channel", j * down + thread_channel)
                    exists = inside
                    if g.group_inputs % t.channels:
                        exists = tirx.all(exists, chunk * t.channels + channel < g.group_inputs)
                    with b.when(channel < t.channels if t.channels % down else True):
                        at = to + channel * t.plane
                        b.copy(self.window, at, x, from_ + channel * t.x_strides[1], t.vector, exists)
