"""Rounds the inputs of a layer and puts them into the order in which `wgmma.py` has them in shared memory.

A thread writes pieces of 16 bytes: neighbouring input channels that a pixel reads at one position of the kernel. Where
these are neighbours in the input's memory, threads have neighbouring pieces of a row; else neighbouring pixels, two
threads each, which write 32 bytes: the level-2 cache takes no longer for these than for fewer. A slice is at one
position of the kernel: the matrix of a convolution's shifted inputs (im2col) has every input as often as it is read.

With strides of 1 that may be had for less (`WgmmaTile.shifts`): what positions that are rows of the image apart read is
the same, some rows of the matrix further on, if it has the rows of padding above and below the image, too. So there
is a copy for each position along the last axis alone. Whatever rows it is shifted by must be a multiple of 8, since
pieces are at places that depend on it: a line of the image is filled up.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from tvm import tirx

from lwc_compiler.kernels.builder import splat, unravel
from lwc_compiler.kernels.gpu.builder import DeviceBuilder, ceil_div
from lwc_compiler.kernels.gpu.wgmma_layout import PIECE, ROW, swizzled_piece

if TYPE_CHECKING:
    from lwc_compiler.kernels.gpu.builder import Expr
    from lwc_compiler.kernels.gpu.wgmma_layout import WgmmaTile
    from lwc_compiler.kernels.kernel import Kernel

_THREADS = 256
_PIECES = ROW // PIECE  # of a row
_TOGETHER = 2  # of a pixel, by neighbouring threads


def inputs_kernel(name: str, t: WgmmaTile) -> Kernel:
    """The kernel: x, y: uint32 (copies, rows, words of a row)."""
    pieces = t.copies * t.rows * _PIECES
    b = DeviceBuilder((ceil_div(pieces, _THREADS), 1, 1), _THREADS)
    x, y = b.pointer("x"), b.pointer("y", "uint32")
    number = b.let("number", b.block[0] * _THREADS + b.thread)
    with b.when(number < pieces if pieces % _THREADS else True):
        if t.by_channel:  # the slices of a row follow each other in the input
            row, copy, piece = unravel(b, number, (t.rows, t.copies, _PIECES))
        else:
            copy, pieces_, row, one = unravel(b, number, (t.copies, _PIECES // _TOGETHER, t.rows, _TOGETHER))
            piece = pieces_ * _TOGETHER + one
        values = _values(b, t, x, row, copy, piece)
        words = b.register(PIECE, "uint32")
        for word in range(PIECE):
            of_word = values[word * t.in_word : (word + 1) * t.in_word]
            words.set_part(word, tirx.call_extern("uint32", f"lwc_round_{t.precision}", *of_word))
        to = (copy * t.rows + row) * ROW + _swizzled(b, row, piece) * PIECE
        b.store(y, to, words.get(), PIECE)
    return b.finished(name)


def _values(b: DeviceBuilder, t: WgmmaTile, x: Expr, place: Expr, copy: Expr, piece: Expr) -> list[Expr]:
    """Neighbouring channels that a place reads at a position of the kernel; zeros where there are none."""
    g, count = t.geometry, PIECE * t.in_word
    channels, *position = unravel(b, copy, (t.blocks, *t.copied))
    channel = b.let("channel", channels * t.depth + piece * count)
    image, *at = _places(b, t, place)
    base, inside = image * t.x_strides[0], place < t.geometry.batch * math.prod(t.sizes)
    for axis, (place, tap) in enumerate(zip(at, position, strict=True)):
        place = b.let("place", place * g.strides[axis] - g.pads[axis] + tap * g.dilations[axis])
        base = base + place * t.x_strides[2 + axis]
        if g.kernel[axis] > 1 or g.pads[axis] or g.pads[axis + len(g.in_size)] or t.shifts:
            inside = tirx.all(inside, place >= 0, place < g.in_size[axis])
    base = b.let("base", base + channel * t.x_strides[1])
    lanes = 4 if t.by_channel and g.group_inputs % 4 == 0 else 1
    registers = [b.register(lanes) for _ in range(0, count, lanes)]
    for register in registers:
        register.set(splat(0.0, lanes))
    with b.when(inside):
        for first, register in zip(range(0, count, lanes), registers, strict=True):
            with b.when(channel + first < g.group_inputs if g.group_inputs % t.depth else True):
                register.set(b.load(x, base + first * t.x_strides[1], lanes))
    return [register.part(lane, 1) for register in registers for lane in range(lanes)]


def _places(b: DeviceBuilder, t: WgmmaTile, place: Expr) -> list[Expr]:
    """The image of a place and where it is along each axis; it need not exist."""
    sizes = (t.geometry.batch, *t.sizes)
    long = [axis for axis, size in enumerate(sizes) if size > 1] or [0]
    found = unravel(b, place, (1 << 30, *(sizes[axis] for axis in long[1:])))
    places: list[Expr] = [0] * len(sizes)
    for axis, number in zip(long, found, strict=True):
        places[axis] = number
    return places


def _swizzled(b: DeviceBuilder, row: Expr, piece: Expr) -> Expr:
    return b.let("place", swizzled_piece(row, piece, ROW))
