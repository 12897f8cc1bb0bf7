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
from lwc_compiler.kernels.gpu.builder import WARP, DeviceBuilder, both, ceil_div, half_of
from lwc_compiler.kernels.gpu.list_copies import Copies, add_parts
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
    first_part = part == 0 if t.parts > 1 else True
    stores = _Stores(b, t, channels, image, corner, (row, column))
    for slot, row_sums in zip(slots, sums, strict=True):
        for number, registers in enumerate(row_sums):
            start = splat(0.0, 1)
            if bias is not None:
                start = b.load(bias, b.load(channels, b.block[2] * t.slots + slot) + number)
                start = b.let("start", start if t.parts == 1 else tirx.if_then_else(first_part, start, splat(0.0, 1)))
            for register in registers:
                register.set(start)
        if residual is not None and not t.staged:  # its loads are under way together, while the window is copied
            for register, at, exists in stores.each(slot, row_sums):
                added = tirx.if_then_else(both(exists, first_part), b.load(residual, at), splat(0.0, 1))
                register.set(register.get() + added)

    for stage, first_step in copies.each_chunk():
        here = b.let("here", base + stage * t.stage_elements)
        for i, row_sums in enumerate(sums):
            first, last = copies.list_steps(stage, first_step, part * t.per_block + i * across + place)
            with b.loop("step", first, last) as step:
                _multiply(b, t, copies, b.let("at", stage * t.steps + step), here, row_sums)

    if t.parts > 1:
        registers = [register for row_sums in sums for registers in row_sums for register in registers]
        add_parts(b, t, copies.window, registers, 1, (part, place, lane))
    if t.staged:
        b.barrier()
    for slot, row_sums in zip(slots, sums, strict=True):
        works = both(slot < t.group_rows, first_part)
        with b.when(both(works, lane < t.lane_rows * t.lane_columns if t.idle else True)):
            if t.staged:
                stores.to_shared(copies.window, slot, row_sums)
                continue
            for register, at, exists in stores.each(slot, row_sums):
                with b.when(exists):
                    store_result(b, y, b.let("at", at), register.get(), None, epilogue.activation)
    if t.staged:
        b.barrier()
        stores.from_shared(copies.window, y, residual, epilogue)
    return b.finished(name)


class _Stores:
    """Where results go.

    Args:
        b: the kernel.
        t: its tile.
        channels: first output channels of rows, by slot.
        image: of the tile.
        corner: the tile's first pixel.
        own: row and column in the tile of the lane's first pixel.
    """

    def __init__(
        self, b: DeviceBuilder, t: TapTile, channels: Expr, image: Expr, corner: list[Expr], own: tuple[Expr, Expr]
    ) -> None:
        self._b, self._t, self._channels, self._image, self._corner, self._own = b, t, channels, image, corner, own

    def _first_output(self, slot: Expr) -> Expr:
        return self._b.let("first_output", self._b.load(self._channels, self._b.block[2] * self._t.slots + slot))

    def each(self, slot: Expr, sums: list[list[Register]]) -> Iterator[tuple[Register, Expr, Expr]]:
        """Of a row, each sum, where it goes, and whether that exists."""
        b, t, g = self._b, self._t, self._t.geometry
        first_output = self._first_output(slot)
        for number, registers in enumerate(sums):
            to = self._image * t.y_strides[0] + (first_output + number) * t.y_strides[1]
            for axis, corner in enumerate(self._corner[:-2]):
                to = to + corner * t.y_strides[2 + axis]
            to = b.let("to", to)
            for pixel, register in enumerate(registers):
                rows, columns = t.step(pixel)
                at_row = self._corner[-2] + self._own[0] + rows
                at_column = self._corner[-1] + self._own[1] + columns
                exists = tirx.all(at_row < g.out_size[-2], at_column < g.out_size[-1])
                at = to + at_row * t.y_strides[-2] + at_column * t.y_strides[-1]
                yield register, at, exists

    def to_shared(self, shared: Expr, slot: Expr, sums: list[list[Register]]) -> None:
        """Writes the sums of a row to shared memory: of each pixel, all channels of the block."""
        b, t = self._b, self._t
        channel = self._first_output(slot) - self._first_channel()
        for number, registers in enumerate(sums):
            for pixel, register in enumerate(registers):
                rows, columns = t.step(pixel)
                at = (self._own[0] + rows) * t.columns + self._own[1] + columns
                b.store(shared, at * t.stage_pitch + channel + number, register.get())

    def from_shared(self, shared: Expr, y: Expr, residual: Expr | None, epilogue: Epilogue) -> None:
        """Stores what all warps wrote there."""
        b, t, g = self._b, self._t, self._t.geometry
        threads, results = t.warps * WARP, t.rows * t.columns * t.block_channels
        found = []
        for i in range(ceil_div(results, threads)):
            result = b.let("result", i * threads + b.thread)
            pixel, channel = divide(result, t.block_channels), modulo(result, t.block_channels)
            row, column = unravel(b, pixel, (t.rows, t.columns))
            at_row, at_column = self._corner[-2] + row, self._corner[-1] + column
            exists = tirx.all(at_row < g.out_size[-2], at_column < g.out_size[-1])
            if results % threads:
                exists = tirx.all(exists, result < results)
            if g.group_outputs % t.block_channels:
                exists = tirx.all(exists, b.block[1] * t.block_channels + channel < g.group_outputs)
            exists = b.let("exists", exists)
            to = self._image * t.y_strides[0] + self._first_channel() + channel
            places = (*self._corner[:-2], at_row, at_column)
            for place, stride in zip(places, t.y_strides[2:], strict=True):
                to = to + place * stride
            to = b.let("to", to)
            value = b.register(1)
            value.set(splat(0.0, 1))
            if residual is not None:
                value.set(tirx.if_then_else(exists, b.load(residual, to), splat(0.0, 1)))
            found.append((exists, to, pixel * t.stage_pitch + channel, value))
        for exists, to, at, value in found:
            with b.when(exists):
                store_result(b, y, to, value.get() + b.load(shared, at), None, epilogue.activation)

    def _first_channel(self) -> Expr:
        """The first output channel of the block."""
        b, t = self._b, self._t
        return b.block[2] * t.geometry.group_outputs + b.block[1] * t.block_channels


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
