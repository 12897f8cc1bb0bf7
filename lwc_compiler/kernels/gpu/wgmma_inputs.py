"""Rounds the inputs of a layer and puts them into the order in which `wgmma.py` has them in shared memory.

A thread writes pieces of 16 bytes: neighbouring input channels that a pixel reads at one position of the kernel. Where
these are neighbours in the input's memory, threads have neighbouring pieces of a row; else neighbouring pixels, two
threads each, which write 32 bytes: the level-2 cache takes no longer for these than for fewer. A slice is at one
position: the matrix of a convolution's shifted inputs (im2col) has every input as often as it is read.
"""

from __future__ import annotations

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
    """The kernel: x, y: uint32 (pixel blocks, slices, pixels, words of a row)."""
    pieces = t.pixel_blocks * t.slices * t.pixels * _PIECES
    b = DeviceBuilder((ceil_div(pieces, _THREADS), 1, 1), _THREADS)
    x, y = b.pointer("x"), b.pointer("y", "uint32")
    number = b.let("number", b.block[0] * _THREADS + b.thread)
    with b.when(number < pieces if pieces % _THREADS else True):
        if t.by_channel:  # the slices of a row follow each other in the input
            block, row, slice_, piece = unravel(b, number, (t.pixel_blocks, t.pixels, t.slices, _PIECES))
        else:
            shape = (t.pixel_blocks, t.slices, _PIECES // _TOGETHER, t.pixels, _TOGETHER)
            block, slice_, pieces_, row, one = unravel(b, number, shape)
            piece = pieces_ * _TOGETHER + one
        values = _values(b, t, x, b.let("pixel", block * t.pixels + row), slice_, piece)
        words = b.register(PIECE, "uint32")
        for word in range(PIECE):
            of_word = values[word * t.in_word : (word + 1) * t.in_word]
            words.set_part(word, tirx.call_extern("uint32", f"lwc_round_{t.precision}", *of_word))
        to = (block * t.slices + slice_) * t.right + row * ROW + _swizzled(b, row, piece) * PIECE
        b.store(y, to, words.get(), PIECE)
    return b.finished(name)


def _values(b: DeviceBuilder, t: WgmmaTile, x: Expr, pixel: Expr, slice_: Expr, piece: Expr) -> list[Expr]:
    """Neighbouring channels that a pixel reads at a position of the kernel; zeros where there are none."""
    g, count = t.geometry, PIECE * t.in_word
    channels, *position = unravel(b, slice_, (t.blocks, *g.kernel))
    channel = b.let("channel", channels * t.depth + piece * count)
    image, *at = _places(b, t, pixel)
    base, inside = image * t.x_strides[0], pixel < t.all_pixels
    for axis, (place, tap) in enumerate(zip(at, position, strict=True)):
        place = b.let("place", place * g.strides[axis] - g.pads[axis] + tap * g.dilations[axis])
        base = base + place * t.x_strides[2 + axis]
        if g.kernel[axis] > 1 or g.pads[axis] or g.pads[axis + len(g.in_size)]:
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


def _places(b: DeviceBuilder, t: WgmmaTile, pixel: Expr) -> list[Expr]:
    """The image and the place in it of a pixel, which need not exist."""
    sizes = (t.geometry.batch, *t.geometry.out_size)
    long = [axis for axis, size in enumerate(sizes) if size > 1] or [0]
    found = unravel(b, pixel, (1 << 30, *(sizes[axis] for axis in long[1:])))
    places: list[Expr] = [0] * len(sizes)
    for axis, place in zip(long, found, strict=True):
        places[axis] = place
    return places


def _swizzled(b: DeviceBuilder, row: Expr, piece: Expr) -> Expr:
    return b.let("place", swizzled_piece(row, piece, ROW))
