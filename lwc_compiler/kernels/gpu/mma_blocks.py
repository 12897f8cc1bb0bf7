"""Sparse convolutions and products with many rows on tensor cores: of neighbouring output channels all have a weight.

A block has windows of the input and lists in shared memory, as `lists.py` says. A warp multiplies a row's list, step by
step, with the pixels of the tile by `mma.sync` (PTX ISA, *Matrix Fragments for mma.m16n8k8* and *mma.m16n8k16*): 16
output channels x 8 pixels of an instruction, sums in float32. A lane picks its numbers of the fragment of the inputs
from the window, at the offsets of its places and of its pixel: the gathered matrix is never made. Inputs are rounded
then; weights are when the network is compiled, and lie in the order in which lanes read their fragments.

How layers are cut and lists laid out is in `mma_blocks_layout.py`.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

from tvm import tirx

from lwc_compiler.kernels.builder import divide, modulo, smaller, splat, unravel
from lwc_compiler.kernels.gpu.builder import WARP, DeviceBuilder, both, half_of
from lwc_compiler.kernels.gpu.list_copies import Copies, add_parts
from lwc_compiler.kernels.gpu.mma_blocks_layout import ACROSS, COLUMNS, DOWN, FRAGMENT_WORDS
from lwc_compiler.kernels.layer import store_result

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lwc_compiler.kernels.builder import Register
    from lwc_compiler.kernels.gpu.builder import Expr
    from lwc_compiler.kernels.gpu.mma_blocks_layout import MmaBlocksTile
    from lwc_compiler.kernels.kernel import Kernel
    from lwc_compiler.kernels.layer import Epilogue

_SUMS = 4  # of a lane, of one instruction: two pixels of two output channels


def mma_blocks_kernel(name: str, t: MmaBlocksTile, epilogue: Epilogue) -> Kernel:
    """The kernel: x, [residual,] starts, firsts, picked, offsets, weights, [bias,] y."""
    g = t.geometry
    b = DeviceBuilder(t.grid, t.warps * WARP)
    x = b.pointer("x")
    residual = b.pointer("residual") if epilogue.residual else None
    starts, firsts, picked = (b.constant(name, "int32") for name in ("starts", "firsts", "picked"))
    offsets, weights = b.constant("offsets", "uint32"), b.constant("weights", "uint32")
    bias = b.constant("bias") if epilogue.bias is not None else None
    y = b.pointer("y")

    lane, warp = b.let("lane", modulo(b.thread, WARP)), b.let("warp", divide(b.thread, WARP))
    row, column = b.let("row", divide(lane, COLUMNS)), b.let("column", modulo(lane, COLUMNS))
    image, *tile = unravel(b, b.block[0], (g.batch, *t.tiles))
    corner = [b.let("corner", at * size) for at, size in zip(tile, t.tile, strict=True)]
    across = t.warps // t.parts
    part, place = b.let("part", divide(warp, across)), b.let("place", modulo(warp, across))
    numbers = [b.let("number", i * across + place) for i in range(t.outputs)]
    slots = [b.let("slot", b.block[1] * t.per_block + number) for number in numbers]
    outputs = [b.let("output", b.load(firsts, b.block[2] * t.slots + slot) + row) for slot in slots]

    copies = Copies(b, t, x, (starts, offsets, weights), image, corner, picked)
    copies.begin()
    sums = [[[b.register(_SUMS) for _ in range(t.acrosses)] for _ in range(t.downs)] for _ in slots]
    starts_here = part == 0 if t.parts > 1 else True
    for output, row_sums in zip(outputs, sums, strict=True):
        for down, registers in enumerate(row_sums):
            start = _first_sums(b, t, bias, output + down * DOWN, starts_here)
            for register in registers:
                register.set(start.get())
        if residual is not None:  # its loads are under way together, while the window is copied
            for down, of_pixels, number, at, exists in _results(b, t, output, image, corner, column, 1):
                value = tirx.if_then_else(both(exists, starts_here), b.load(residual, at), splat(0.0, 1))
                register = row_sums[down][of_pixels]
                register.set_part(number, register.part(number, 1) + value)

    base = b.let("base", row * t.column_pitch)
    for stage, first_step in copies.each_chunk():
        here = b.let("here", base + stage * t.stage_elements)
        for number, row_sums in zip(numbers, sums, strict=True):
            first, last = copies.list_steps(stage, first_step, number)
            if t.parts > 1:
                count = b.let("count", last - first)
                first, last = (b.let("at", first + divide(count * p, t.parts)) for p in (part, part + 1))
            with b.loop("step", first, last) as step:
                _multiply(b, t, copies, b.let("at", stage * t.steps + step), here, (lane, column), row_sums)

    if t.parts > 1:
        every = [register for row_sums in sums for registers in row_sums for register in registers]
        add_parts(b, t, copies.window, every, _SUMS, (part, place, lane))
    pairs = t.y_strides[-1] == 1 and not any(n % 2 for n in (g.out_size[-1], *t.y_strides[:-1]))
    lanes = 2 if pairs else 1
    for slot, output, row_sums in zip(slots, outputs, sums, strict=True):
        with b.when(both(slot < t.group_rows if t.slots > t.group_rows else True, starts_here)):
            for down, of_pixels, number, at, exists in _results(b, t, output, image, corner, column, lanes):
                with b.when(exists):
                    value = row_sums[down][of_pixels].part(number, lanes)
                    store_result(b, y, b.let("at", at), value, None, epilogue.activation, lanes)
    return b.finished(name)


def _first_sums(b: DeviceBuilder, t: MmaBlocksTile, bias: Expr | None, output: Expr, starts_here: Expr) -> Register:
    """The sums of an instruction before anything is added."""
    start = b.register(_SUMS)
    start.set(splat(0.0, _SUMS))
    if bias is not None:
        for lower in range(2):
            channel = output + lower * 8
            if t.geometry.group_outputs % t.height:
                channel = smaller(channel, t.geometry.out_channels - 1)
            value = b.load(bias, channel)
            if t.parts > 1:
                value = tirx.if_then_else(starts_here, value, splat(0.0, 1))
            value = b.let("value", value)
            for odd in range(2):
                start.set_part(lower * 2 + odd, value)
    return start


def _results(
    b: DeviceBuilder, t: MmaBlocksTile, output: Expr, image: Expr, corner: list[Expr], column: Expr, lanes: int
) -> Iterator[tuple[int, int, int, Expr, Expr]]:
    """A lane's results of a row of the layer.

    Args:
        b: the kernel.
        t: its tile.
        output: the row's first output channel of the lane.
        image: of the tile.
        corner: the tile's first pixel.
        column: of the lane.
        lanes: neighbouring pixels that are taken together, 1 or 2.

    Yields:
        Instruction over the output channels and over the pixels, lane of its sums, place in the output, whether it
        exists.
    """
    g = t.geometry
    for down, lower in itertools.product(range(t.downs), range(2)):
        channel = b.let("channel", output + (down * DOWN + lower * 8))
        there = channel < (b.block[2] + 1) * g.group_outputs if g.group_outputs % t.height else True
        to = image * t.y_strides[0] + channel * t.y_strides[1] + column * (2 * t.y_strides[-1])
        for at, stride in zip(corner, t.y_strides[2:], strict=True):
            to = to + at * stride
        to = b.let("to", to)
        for across, odd in itertools.product(range(t.acrosses), range(0, 2, lanes)):
            rows, columns = divmod(across * ACROSS, t.columns)
            exists = there
            if g.out_size[-2] % t.rows:
                exists = both(exists, corner[-2] + rows < g.out_size[-2])
            if g.out_size[-1] % t.columns:
                exists = both(exists, corner[-1] + columns + column * 2 + odd < g.out_size[-1])
            further = rows * t.y_strides[-2] + (columns + odd) * t.y_strides[-1]
            yield down, across, lower * 2 + odd, to + further, exists


def _multiply(
    b: DeviceBuilder,
    t: MmaBlocksTile,
    copies: Copies,
    step: Expr,
    here: Expr,
    own: tuple[Expr, Expr],
    sums: list[list[Register]],
) -> None:
    """Adds the products of a step's places to a row's sums, of the lane and the column `own`."""
    lane, column = own
    where = b.register(t.in_word, "uint32")
    where.set(b.load(copies.offsets, step * t.offset_words + column * t.in_word, t.in_word))
    left = [b.register(_SUMS, "uint32") for _ in sums]
    for down, register in enumerate(left):
        fragment = step * t.value_words + (down * FRAGMENT_WORDS + lane * _SUMS)
        register.set(b.load(copies.values, fragment, _SUMS))
    at = [b.let("at", half_of(where, number) + here) for number in range(2 * t.in_word)]
    for across in range(t.acrosses):
        rows, columns = divmod(across * ACROSS, t.columns)
        further = rows * t.geometry.strides[-2] * t.pitch + columns * t.column_pitch
        right = b.register(2, "uint32")
        for word in range(2):
            numbers = [b.load(copies.window, each + further) for each in at[word * t.in_word :][: t.in_word]]
            right.set_part(word, tirx.call_extern("uint32", f"lwc_round_{t.precision}", *numbers))
        for register, registers in zip(left, sums, strict=True):
            pointers = (registers[across].pointer, register.pointer, right.pointer)
            b.device_call(f"lwc_mma_{t.precision}", *pointers)
