"""Dense convolutions with output channels in the vectors, and the largest of their outputs in each window of a pooling.

The convolution is that of `channels.py`. A tile is a band of rows of the pooling: the rows of the convolution that a
window covers lie in a ring in the thread's scratch memory, channels last, where the largest of a window are found
without moving anything between lanes. Only these are transposed and stored.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tvm import tirx

from lwc_compiler.kernels.builder import KernelBuilder, modulo, smaller, splat, unravel
from lwc_compiler.kernels.channels import copy_input, sum_pixels
from lwc_compiler.kernels.rows import store_turned

if TYPE_CHECKING:
    from lwc_compiler.kernels.channels import ChannelLayout
    from lwc_compiler.kernels.kernel import Kernel
    from lwc_compiler.kernels.layer import Epilogue

_LOWEST = -3.4028234663852886e38  # of float32


@dataclass(frozen=True)
class Pool:
    """A max pooling over two dimensions, without dilation; what its windows cover beyond the input does not count.

    Attributes:
        kernel: rows and columns of a window, no fewer rows than from one to the next.
        strides: distance of two windows.
        pads: rows and columns by which the first window begins before the input.
        out_size: windows down and across.
    """

    kernel: tuple[int, int]
    strides: tuple[int, int]
    pads: tuple[int, int]
    out_size: tuple[int, int]

    def span(self, rows: int) -> int:
        """Input rows that so many rows of windows cover."""
        return (rows - 1) * self.strides[0] + self.kernel[0]


@dataclass(frozen=True)
class PooledLayout:
    """How a convolution and its pooling are cut.

    Attributes:
        conv: of the rows that a tile's windows cover, in all columns.
        pool: the pooling.
        rows: of windows of a tile.
    """

    conv: ChannelLayout
    pool: Pool
    rows: int

    @property
    def shape(self) -> tuple[int, ...]:
        """Tiles: images, groups, bands of rows, chunks of panels."""
        images, groups, *_, chunks = self.conv.shape
        return images, groups, -(-self.pool.out_size[0] // self.rows), chunks

    @property
    def tiles(self) -> int:
        """Units of work."""
        return math.prod(self.shape)

    @property
    def pitch(self) -> int:
        """Pixels of a row in the ring, with those that windows cover beyond the edges."""
        (_, kernel), (_, stride), (_, pad) = self.pool.kernel, self.pool.strides, self.pool.pads
        return max(pad + self.conv.columns, (self.pool.out_size[1] - 1) * stride + kernel)


def pooled_kernel(layout: PooledLayout, epilogue: Epilogue) -> Kernel:
    """Builds the kernel; parameters: x, offsets, weights, [bias], y. The epilogue has no residual."""
    b, lay, conv, pool = KernelBuilder(), layout, layout.conv, layout.pool
    p, lanes = conv.problem, conv.lanes
    x, offsets, weights = b.pointer("x"), b.pointer("offsets", "int32"), b.pointer("weights")
    bias = b.pointer("bias") if epilogue.bias is not None else None
    y, scratch = b.pointer("y"), b.pointer("scratch")
    (height, width), kernel_rows, step = pool.out_size, pool.kernel[0], pool.strides[0]
    row_size = lay.pitch * conv.panel
    ring = -(-conv.copied // lanes) * lanes
    found = ring + kernel_rows * row_size  # the largest of a row of windows
    across = min(width, lanes)

    def fill(begin: Any, rows: int) -> None:
        with b.loop("i", 0, rows * row_size // lanes) as i:
            b.store(scratch, begin + i * lanes, splat(_LOWEST, lanes), lanes)

    with b.loop("tile", b.first, b.last) as tile:
        image, group, band, chunk = unravel(b, tile, lay.shape)
        first = b.let("first", smaller(band * lay.rows, height - lay.rows))
        top = b.let("top", first * step - pool.pads[0])
        batch = b.let("batch", image * p.groups + group)
        copy_input(b, conv, x, scratch, batch, top, 0)
        fill(ring, kernel_rows)
        last = b.let("last", smaller(chunk * conv.chunk + conv.chunk, conv.panels))
        with b.loop("panel", chunk * conv.chunk, last) as panel, b.loop("row", 0, lay.rows) as row:
            channel = b.let("channel", smaller(panel * conv.panel, p.out_channels - conv.panel))
            packed = b.address((group * conv.panels + panel) * (conv.taps * conv.panel))
            done = b.let("done", row * step + smaller(row, 1) * (kernel_rows - step))
            with b.loop("line", done, row * step + kernel_rows) as line:
                to = b.let("to", ring + modulo(line, kernel_rows) * row_size)
                inside = tirx.all(top + line >= 0, top + line < p.height.out)
                with b.when(inside), b.loop("g", 0, -(-conv.columns // conv.pixels)) as g:
                    start = b.let("start", smaller(g * conv.pixels, conv.columns - conv.pixels))
                    source = b.address(line * (p.height.stride * conv.pitch) + start * p.width.stride)
                    at = b.address(to + (start + pool.pads[1]) * conv.panel)
                    first_channel = group * p.out_channels + channel
                    sums = sum_pixels(b, conv, scratch, source, offsets, weights, packed, bias, first_channel)
                    for k, registers in enumerate(sums):
                        for v, register in enumerate(registers):
                            value = register.get()
                            if epilogue.activation is not None:
                                value = epilogue.activation.apply(b, value, lanes)
                            b.store(scratch, at + (k * conv.panel + v * lanes), value, lanes)
                with b.otherwise():
                    fill(to, 1)
            with b.loop("q", 0, width) as q:
                at = b.address(q * (pool.strides[1] * conv.panel) + ring)
                for v in range(conv.vectors):
                    value = splat(_LOWEST, lanes)
                    for i in range(kernel_rows):
                        for j in range(pool.kernel[1]):
                            place = at + (i * row_size + j * conv.panel + v * lanes)
                            value = tirx.max(value, b.load(scratch, place, lanes))
                    b.store(scratch, q * conv.panel + (found + v * lanes), value, lanes)
            with b.loop("v", 0, conv.vectors) as v, b.loop("part", 0, -(-width // across)) as part:
                start = b.let("start", smaller(part * across, width - across))
                out = b.let("out", batch * p.out_channels + channel + v * lanes)
                store_turned(
                    b, scratch, start * conv.panel + v * lanes + found, conv.panel, y,
                    b.address(out * (height * width) + (first + row) * width + start), plane=height * width,
                    pixels=across, lanes=lanes, residual=None, activation=None,
                )  # fmt: skip
    held = -(-width // lanes) * lanes * conv.panel
    return b.build("conv_pooled", lay.tiles, 4 * (found + held))
