"""Dense convolutions with output channels in the vectors: for planes too narrow to fill vectors with pixels.

A tile's input is copied into the thread's scratch memory, with zeros for the padding. Panels of output channels run
over its pixels, some pixels of a row together: for every weight position (a *tap*: channel, row and column of the
kernel) the kernel loads vectors of weights, broadcasts one input for each pixel, and does pixels x vectors fused
multiply-adds. The sums are transposed to rows of pixels when they are stored.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from tvm import tirx

from lwc_compiler.kernels.builder import KernelBuilder, smaller, splat, unravel
from lwc_compiler.kernels.kernel import Constant
from lwc_compiler.kernels.rows import copy_row, fill_row, store_turned

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from lwc_compiler.kernels.builder import Register
    from lwc_compiler.kernels.kernel import Kernel
    from lwc_compiler.kernels.layer import Epilogue
    from lwc_compiler.kernels.tap_layout import Problem

_AHEAD = 48  # taps by which weights are asked for before they are used


@dataclass(frozen=True)
class ChannelLayout:
    """How a convolution is cut.

    Attributes:
        problem: the convolution, over two dimensions; only one without padding is cut between columns.
        lanes: float32 in a vector, at most the output channels of a group.
        vectors: vectors of output channels of a panel.
        pixels: pixels of a row computed together.
        rows: output rows of a tile.
        columns: output columns of a tile, at most all.
        chunk: panels of a tile.
    """

    problem: Problem
    lanes: int
    vectors: int
    pixels: int
    rows: int
    columns: int
    chunk: int

    @property
    def panel(self) -> int:
        """Output channels of a panel."""
        return self.vectors * self.lanes

    @property
    def panels(self) -> int:
        """Panels of a group; the last overlaps the one before it."""
        return -(-self.problem.out_channels // self.panel)

    @property
    def shape(self) -> tuple[int, ...]:
        """Tiles: images, groups, rows, columns, chunks of panels."""
        p = self.problem
        return (
            p.batch,
            p.groups,
            -(-p.height.out // self.rows),
            -(-p.width.out // self.columns),
            -(-self.panels // self.chunk),
        )

    @property
    def tiles(self) -> int:
        """Units of work."""
        return math.prod(self.shape)

    @property
    def lines(self) -> int:
        """Input rows of a tile."""
        axis = self.problem.height
        return (self.rows - 1) * axis.stride + (axis.kernel - 1) * axis.dilation + 1

    @property
    def pitch(self) -> int:
        """Input columns of a tile."""
        axis = self.problem.width
        return (self.columns - 1) * axis.stride + (axis.kernel - 1) * axis.dilation + 1

    @property
    def copied(self) -> int:
        """float32 of a tile's input (channels, lines, pitch)."""
        return self.problem.in_channels * self.lines * self.pitch

    @property
    def taps(self) -> int:
        """Weights of one output channel."""
        p = self.problem
        return p.in_channels * p.height.kernel * p.width.kernel


def pack_channels(weight: NDArray[np.float32], layout: ChannelLayout) -> list[Constant]:
    """The kernel's constants: `offsets` of the taps in a tile's input, and the weights, (groups, panels, taps, panel).

    Args:
        weight: (groups, out_channels, taps).
        layout: of the kernel.
    """
    p = layout.problem
    first = np.minimum(np.arange(layout.panels) * layout.panel, p.out_channels - layout.panel)
    panels = weight[:, first[:, None] + np.arange(layout.panel)].swapaxes(2, 3)
    channels = np.arange(p.in_channels)[:, None, None] * (layout.lines * layout.pitch)
    rows = np.arange(p.height.kernel)[:, None] * (p.height.dilation * layout.pitch)
    columns = np.arange(p.width.kernel) * p.width.dilation
    offsets = (channels + rows + columns).astype(np.int32)
    return [Constant(offsets.ravel()), Constant(np.ascontiguousarray(panels).ravel())]


def channel_kernel(layout: ChannelLayout, epilogue: Epilogue) -> Kernel:
    """Builds the kernel; parameters: x, offsets, weights, [residual], [bias], y."""
    b, lay, p = KernelBuilder(), layout, layout.problem
    x, offsets, weights = b.pointer("x"), b.pointer("offsets", "int32"), b.pointer("weights")
    residual = b.pointer("residual") if epilogue.residual else None
    bias = b.pointer("bias") if epilogue.bias is not None else None
    y, scratch = b.pointer("y"), b.pointer("scratch")
    plane = p.height.out * p.width.out
    sums_at = -(-lay.copied // lay.lanes) * lay.lanes
    with b.loop("tile", b.first, b.last) as tile:
        image, group, row, column, chunk = unravel(b, tile, lay.shape)
        row = b.let("row", smaller(row * lay.rows, p.height.out - lay.rows))
        column = b.let("column", smaller(column * lay.columns, p.width.out - lay.columns))
        batch = b.let("batch", image * p.groups + group)
        copy_input(b, lay, x, scratch, batch, row, column)
        last = b.let("last", smaller(chunk * lay.chunk + lay.chunk, lay.panels))
        with (
            b.loop("panel", chunk * lay.chunk, last) as panel,
            b.loop("r", 0, lay.rows) as r,
            b.loop("g", 0, -(-lay.columns // lay.pixels)) as g,
        ):
            start = b.let("start", smaller(g * lay.pixels, lay.columns - lay.pixels))
            channel = b.let("channel", smaller(panel * lay.panel, p.out_channels - lay.panel))
            source = b.address(r * (p.height.stride * lay.pitch) + start * p.width.stride)
            packed = b.address((group * lay.panels + panel) * (lay.taps * lay.panel))
            for k, sums in enumerate(
                sum_pixels(b, lay, scratch, source, offsets, weights, packed, bias, group * p.out_channels + channel)
            ):
                for v, register in enumerate(sums):
                    b.store(scratch, sums_at + (k * lay.panel + v * lay.lanes), register.get(), lay.lanes)
            with b.loop("v", 0, lay.vectors) as v:
                out = b.let("out", batch * p.out_channels + channel + v * lay.lanes)
                to = b.address(out * plane + (row + r) * p.width.out + column + start)
                for k in range(0, lay.pixels, lay.lanes):
                    store_turned(
                        b, scratch, v * lay.lanes + (sums_at + k * lay.panel), lay.panel, y, to + k, plane=plane,
                        pixels=min(lay.lanes, lay.pixels - k), lanes=lay.lanes, residual=residual,
                        activation=epilogue.activation,
                    )  # fmt: skip
    held = -(-lay.pixels // lay.lanes) * lay.lanes * lay.panel
    return b.build("conv_channels", lay.tiles, 4 * (sums_at + held))


def copy_input(b: KernelBuilder, lay: ChannelLayout, x: Any, scratch: Any, batch: Any, row: Any, column: Any) -> None:
    """Copies a tile's input into the scratch memory, with zeros for what lies beyond the edges.

    Args:
        b: builder of the kernel.
        lay: of the convolution.
        x: the input.
        scratch: where it goes, from index 0 on.
        batch: number of the image's group, over all groups.
        row: first output row of the tile.
        column: first output column.
    """
    p = lay.problem
    whole = lay.columns == p.width.out
    with b.loop("c", 0, p.in_channels) as c, b.loop("i", 0, lay.lines) as i:
        line = b.let("line", row * p.height.stride - p.height.pad + i)
        source = b.let("source", ((batch * p.in_channels + c) * p.height.size + line) * p.width.size)
        to = b.address((c * lay.lines + i) * lay.pitch)
        if not whole:
            source = source + column * p.width.stride
        width, left = (p.width.size, p.width.pad) if whole else (lay.pitch, 0)
        with b.when(tirx.all(line >= 0, line < p.height.size)):
            copy_row(b, x, source, scratch, to, width=width, left=left, pitch=lay.pitch, most=lay.lanes)
        with b.otherwise():
            fill_row(b, scratch, to, lay.pitch, lay.lanes)


def sum_pixels(
    b: KernelBuilder,
    lay: ChannelLayout,
    scratch: Any,
    source: Any,
    offsets: Any,
    weights: Any,
    packed: Any,
    bias: Any | None,
    channel: Any,
) -> list[list[Register]]:
    """The sums of `pixels` pixels of a panel, registers [pixel][vector].

    Args:
        b: builder of the kernel.
        lay: of the convolution.
        scratch: holds the tile's input.
        source: index in it of the first pixel's first input.
        offsets: of the taps.
        weights: as `pack_channels` packs them.
        packed: index of the panel's.
        bias: of all output channels, if there is one.
        channel: first output channel.
    """
    sums = [[b.register(lay.lanes) for _ in range(lay.vectors)] for _ in range(lay.pixels)]
    for row in sums:
        for v, register in enumerate(row):
            value = splat(0.0, lay.lanes) if bias is None else b.load(bias, channel + v * lay.lanes, lay.lanes)
            register.set(value)
    with b.loop("tap", 0, lay.taps) as tap:
        at = packed + tap * lay.panel
        for v in range(lay.vectors):
            b.prefetch(weights, at + (_AHEAD * lay.panel + v * lay.lanes))
        values = [b.let("w", b.load(weights, at + v * lay.lanes, lay.lanes)) for v in range(lay.vectors)]
        start = b.let("offset", source + b.load(offsets, tap))
        for k, row in enumerate(sums):
            factor = b.let("d", b.load(scratch, start + k * lay.problem.width.stride))
            for register, value in zip(row, values, strict=True):
                register.set(register.get() + splat(factor, lay.lanes) * value)
    return sums
