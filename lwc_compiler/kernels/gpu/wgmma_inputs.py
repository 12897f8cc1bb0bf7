"""Rounds the inputs of a product and puts them into the order in which `wgmma.py` has them in shared memory.

A thread writes pieces of 16 bytes: neighbouring input channels of one pixel. Where these are neighbours in the input's
memory, threads have neighbouring pieces of a row; else neighbouring pixels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tvm import tirx

from lwc_compiler.kernels.builder import unravel
from lwc_compiler.kernels.gpu.builder import DeviceBuilder, ceil_div
from lwc_compiler.kernels.gpu.wgmma_layout import PIECE, ROW, swizzled_piece

if TYPE_CHECKING:
    from lwc_compiler.kernels.gpu.builder import Expr
    from lwc_compiler.kernels.gpu.wgmma_layout import WgmmaTile
    from lwc_compiler.kernels.kernel import Kernel

_THREADS = 256
_PIECES = ROW // PIECE  # of a row


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
            block, slice_, piece, row = unravel(b, number, (t.pixel_blocks, t.slices, _PIECES, t.pixels))
        pixel = b.let("pixel", block * t.pixels + row)
        channel = b.let("channel", (slice_ * _PIECES + piece) * (PIECE * t.in_word))
        values = _values(b, t, x, pixel, channel)
        words = b.register(PIECE, "uint32")
        for word in range(PIECE):
            of_word = values[word * t.in_word : (word + 1) * t.in_word]
            words.set_part(word, tirx.call_extern("uint32", f"lwc_round_{t.precision}", *of_word))
        to = (block * t.slices + slice_) * t.right + row * ROW + _swizzled(b, row, piece) * PIECE
        b.store(y, to, words.get(), PIECE)
    return b.finished(name)


def _values(b: DeviceBuilder, t: WgmmaTile, x: Expr, pixel: Expr, channel: Expr) -> list[Expr]:
    """Neighbouring channels of a pixel from one on; zeros where there are none."""
    g, count = t.geometry, PIECE * t.in_word
    along = zip((g.batch, *g.out_size), (t.x_strides[0], *t.x_strides[2:]), strict=True)
    sizes, strides = zip(*[(size, stride) for size, stride in along if size > 1] or [(1, 0)], strict=True)
    places = unravel(b, pixel, sizes)
    base = b.let("base", sum(place * stride for place, stride in zip(places, strides, strict=True)))
    lanes = 4 if t.by_channel and g.group_inputs % 4 == 0 else 1
    values = []
    for first in range(0, count, lanes):
        register = b.register(lanes)
        exists = tirx.all(pixel < t.all_pixels, channel + first < g.group_inputs)
        with b.when(exists):
            register.set(b.load(x, base + (channel + first) * t.x_strides[1], lanes))
        with b.otherwise():
            for lane in range(lanes):
                register.set_part(lane, tirx.const(0.0, "float32"))
        values += [register.part(lane, 1) for lane in range(lanes)]
    return values


def _swizzled(b: DeviceBuilder, row: Expr, piece: Expr) -> Expr:
    return b.let("place", swizzled_piece(row, piece, ROW))
