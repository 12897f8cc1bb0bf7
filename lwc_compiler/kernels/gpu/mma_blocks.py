"""Sparse convolutions and products with many rows on tensor cores: of neighbouring output channels all have a weight.

A block has windows of the input and lists in shared memory, as `lists.py` says. A warp multiplies a row's list, step by
step, with the pixels of the tile by `mma.sync` (PTX ISA, *Matrix Fragments for mma.m16n8k8* and *mma.m16n8k16*): 16
output channels x 8 pixels of an instruction, sums in float32. A lane picks its numbers of the fragment of the inputs
from the window, at the offsets of its places and of its pixel: the gathered matrix is never made. Inputs are rounded
then; weights are when the network is compiled, and lie in the order in which lanes read their fragments.

How layers are cut and lists laid out is in `mma_blocks_layout.py`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tvm import tirx
from tvm.tirx.stmt import Evaluate

from lwc_compiler.kernels.builder import divide, modulo, smaller, splat, unravel
from lwc_compiler.kernels.gpu.builder import WARP, DeviceBuilder, both, half_of
from lwc_compiler.kernels.gpu.lists import Copies, add_parts
from lwc_compiler.kernels.gpu.mma_blocks_layout import ACROSS, COLUMNS, DOWN, FRAGMENT_WORDS
from lwc_compiler.kernels.layer import store_result

if TYPE_CHECKING:
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
    for output, row_sums in zip(outputs, sums, strict=True):
        for down, registers in enumerate(row_sums):
            start = _first_sums(b, t, bias, output + down * DOWN, part)
            for register in registers:
                register.set(start.get())

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
    for slot, output, row_sums in zip(slots, outputs, sums, strict=True):
        works = part == 0 if t.parts > 1 else True
        with b.when(both(works, slot < t.group_rows if t.slots > t.group_rows else True)):
            for down, registers in enumerate(row_sums):
                for lower in range(2):
                    channel = b.let("channel", output + (down * DOWN + lower * 8))
                    exists = channel < (b.block[2] + 1) * g.group_outputs if g.group_outputs % t.height else True
                    with b.when(exists):
                        to = image * t.y_strides[0] + channel * t.y_strides[1]
                        _store(b, t, (y, residual), to, (corner, column), (registers, lower * 2), epilogue)
    return b.finished(name)


def _first_sums(b: DeviceBuilder, t: MmaBlocksTile, bias: Expr | None, output: Expr, part: Expr) -> Register:
    """The sums of an instruction before anything is added."""
    start = b.register(_SUMS)
    start.set(splat(0.0, _SUMS))
    if bias is not None:
        with b.when(part == 0 if t.parts > 1 else True):
            for lower in range(2):
                channel = output + lower * 8
                if t.geometry.group_outputs % t.height:
                    channel = smaller(channel, t.geometry.out_channels - 1)
                value = b.let("value", b.load(bias, channel))
                for odd in range(2):
                    start.set_part(lower * 2 + odd, value)
    return start


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
            b.emit(Evaluate(tirx.call_extern("void", f"lwc_mma_{t.precision}", *pointers)))


def _store(
    b: DeviceBuilder,
    t: MmaBlocksTile,
    pointers: tuple[Expr, Expr | None],
    to: Expr,
    place: tuple[list[Expr], Expr],
    sums: tuple[list[Register], int],
    epilogue: Epilogue,
) -> None:
    """Stores a lane's sums of one output channel, of the pixels that exist.

    Args:
        b: the kernel.
        t: its tile.
        pointers: y and the residual.
        to: where the output channel begins.
        place: the tile's first pixel, and the lane's column.
        sums: of each instruction over the pixels, and which of a register's lanes are of the channel, from there on.
        epilogue: what is done to the sums.
    """
    (y, residual), (corner, column), (registers, start), g = pointers, place, sums, t.geometry
    pair = 2 if t.y_strides[-1] == 1 and not any(n % 2 for n in (g.out_size[-1], *t.y_strides[:-1])) else 1
    for at, stride in zip(corner, t.y_strides[2:], strict=True):
        to = to + at * stride
    to = b.let("to", to + column * (2 * t.y_strides[-1]))
    for across, register in enumerate(registers):
        rows, columns = divmod(across * ACROSS, t.columns)
        for odd in range(0, 2, pair):
            inside: Expr = True
            if g.out_size[-2] % t.rows:
                inside = corner[-2] + rows < g.out_size[-2]
            if g.out_size[-1] % t.columns:
                inside = both(inside, corner[-1] + columns + column * 2 + odd < g.out_size[-1])
            with b.when(inside):
                result = b.let("result", to + (rows * t.y_strides[-2] + (columns + odd) * t.y_strides[-1]))
                store_result(b, y, result, register.part(start + odd, pair), residual, epilogue.activation, pair)
