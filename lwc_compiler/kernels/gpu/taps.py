"""Sparse convolutions and products with many rows on a GPU.

A block has windows of the input and lists in shared memory, as `lists.py` says: of *taps*, which are an offset and a
value. Each warp goes through the taps of its output channels, four at a time, which all its lanes share; every lane
has the sums of a few pixels in registers. Shared memory serves 32 neighbouring pixels in a cycle however they are
shifted, so taps of any kernel position cost the same.

Where neighbouring output channels have their weights at the same places (r x 1 blocks), they are a row: they share the
offsets of their taps, and every input that is read from shared memory is multiplied r times.

How layers are cut and taps laid out is in `taps_layout.py`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tvm import tirx

from lwc_compiler.kernels.builder import divide, modulo, splat, unravel
from lwc_compiler.kernels.gpu.builder import WARP, DeviceBuilder, both, half_of
from lwc_compiler.kernels.gpu.lists import Copies, add_parts
from lwc_compiler.kernels.gpu.taps_layout import OFFSET_WORDS, TAP_STEP
from lwc_compiler.kernels.layer import store_result

if TYPE_CHECKING:
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
    copies = Copies(b, t, x, (starts, offsets, values), image, corner)
    across = t.warps // t.parts
    part, place = b.let("part", divide(warp, across)), b.let("place", modulo(warp, across))
    slots = [b.let("slot", b.block[1] * t.per_block + i * across + place) for i in range(t.outputs)]

    copies.begin()
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

    for stage, first_step in copies.each_chunk():
        here = b.let("here", base + stage * t.stage_elements)
        for i, row_sums in enumerate(sums):
            first, last = copies.list_steps(stage, first_step, part * t.per_block + i * across + place)
            with b.loop("step", first, last) as step:
                _multiply(b, t, copies, b.let("at", stage * t.steps + step), here, row_sums)

    if t.parts > 1:
        registers = [register for row_sums in sums for registers in row_sums for register in registers]
        add_parts(b, t, copies.window, registers, 1, (part, place, lane))
    for slot, row_sums in zip(slots, sums, strict=True):
        works = both(slot < t.group_rows, starts_here)
        with b.when(both(works, lane < t.lane_rows * t.lane_columns if t.idle else True)):
            for number, pixel, at, exists in stored(slot):
                with b.when(exists):
                    store_result(b, y, b.let("at", at), row_sums[number][pixel].get(), None, epilogue.activation)
    return b.finished(name)


def _multiply(b: DeviceBuilder, t: TapTile, copies: Copies, step: Expr, here: Expr, sums: list[list[Register]]) -> None:
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
