"""Separable convolutions in one kernel: [1 x 1 ->] depthwise -> 1 x 1, a band of output rows at a time.

What lies between the layers never leaves the thread's scratch memory: for every block of channels the kernel computes
the depthwise layer's band into the tile of the last layer, whose taps then add it to sums that wait in the scratch
memory between blocks (as in `taps.py`). With a 1 x 1 layer before it, the depthwise layer's input is computed too, a
few channels at a time; rows that two bands need are computed for each.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from lwc_compiler.kernels.builder import KernelBuilder, clamp, divide, smaller, unravel
from lwc_compiler.kernels.depthwise import Band, DepthwiseWriter, Rows
from lwc_compiler.kernels.tap_layout import LINE, Problem, TapLayout, Tiling
from lwc_compiler.kernels.taps import TapSums

if TYPE_CHECKING:
    from lwc_compiler.kernels.kernel import Kernel
    from lwc_compiler.kernels.layer import Epilogue

_GROUP = 4096  # float32 of planes that are computed before the depthwise layer reads the first of them


@dataclass(frozen=True)
class Cut:
    """How the work is cut.

    Attributes:
        lanes: float32 in a vector.
        rows: output rows of a tile.
        channels: of the depthwise layer, computed before the last layer reads them.
        sums: vectors of sums that registers hold.
        in_order: see `Tiling.in_order`.
    """

    lanes: int
    rows: int
    channels: int
    sums: int
    in_order: bool = False

    def __str__(self) -> str:
        return f"{self.rows}x{self.lanes}/{self.channels}"


@dataclass(frozen=True)
class SeparableLayout:
    """Where everything of a tile lies.

    Attributes:
        expand: the 1 x 1 layer before the depthwise one, if there is one.
        depthwise: one output channel for each input channel.
        project: the 1 x 1 layer after it.
        cut: how they are cut.
    """

    expand: Problem | None
    depthwise: Problem
    project: Problem
    cut: Cut

    @property
    def band(self) -> Band:
        """The depthwise layer's part of a tile."""
        lanes = self.cut.lanes
        while lanes > 8 and lanes // 2 >= self.depthwise.width.out:
            lanes //= 2
        return Band(self.depthwise.height, self.depthwise.width, lanes, self.cut.rows)

    @property
    def in_rows(self) -> int:
        """Rows of the depthwise layer's input that a tile needs."""
        return min(self.band.in_rows, self.depthwise.height.size)

    def _taps(self, problem: Problem, pixels: int, channels: int) -> TapLayout:
        vectors = -(-pixels // self.cut.lanes)
        ordered = self.cut.in_order
        tiling = Tiling(
            self.cut.lanes, 1, 1, vectors, channels, problem.out_channels, adjoining=ordered, in_order=ordered
        )
        return TapLayout(problem, tiling, pixels)

    @cached_property
    def sums(self) -> TapLayout:
        """Of the last layer."""
        return self._taps(self.project, self.cut.rows * self.depthwise.width.out, self.cut.channels)

    @cached_property
    def planes(self) -> TapLayout | None:
        """Of the first layer."""
        if self.expand is None:
            return None
        return self._taps(self.expand, self.in_rows * self.depthwise.width.size, self.expand.in_channels)

    @property
    def input_at(self) -> int:
        """Where in the scratch memory the first layer's input lies."""
        return -(-self.sums.scratch_bytes // (4 * LINE)) * LINE

    @property
    def planes_at(self) -> int:
        """Where its output lies, `group` planes."""
        return self.input_at + (self.planes.packed if self.planes else 0)

    @property
    def group(self) -> int:
        """Channels of the first layer that are computed one after the other."""
        return max(1, min(self.cut.channels, _GROUP // self.planes.plane)) if self.planes else self.cut.channels

    @property
    def scratch_bytes(self) -> int:
        """Of a thread."""
        return 4 * (self.planes_at + (self.group * self.planes.plane if self.planes else 0))

    @property
    def tiles(self) -> int:
        """Units of work."""
        return self.depthwise.batch * self.band.tiles


def separable_kernel(
    layout: SeparableLayout, expand: Epilogue | None, depthwise: Epilogue, project: Epilogue
) -> Kernel:
    """Builds the kernel.

    Parameters: x, [residual], the taps of the first layer (ends, offsets, values, [bias]) if there is one, the
    depthwise layer's weights (C, kernel height, kernel width) and [bias], the taps of the last layer, y.

    Args:
        layout: of a tile.
        expand: of the first layer: bias, activation.
        depthwise: of the depthwise layer: bias, activation.
        project: of the last layer: bias, residual, activation.
    """
    return _Writer(layout, expand, depthwise, project).write()


class _Writer:
    def __init__(
        self, layout: SeparableLayout, expand: Epilogue | None, depthwise: Epilogue, project: Epilogue
    ) -> None:
        self.layout, self.depthwise, self.project = layout, layout.depthwise, project
        self.activation = expand.activation if expand else None
        self.b = b = KernelBuilder()
        self.x = b.pointer("x")
        self.residual = b.pointer("residual") if project.residual else None
        self.planes = None
        if expand is not None and layout.planes is not None:
            self.planes = TapSums(b, layout.planes, shared=False, bias=expand.bias is not None)
        self.weights = b.pointer("weights")
        self.bias = b.pointer("bias") if depthwise.bias is not None else None
        self.sums = TapSums(b, layout.sums, shared=False, bias=project.bias is not None)
        self.y = b.pointer("y")
        self.scratch = b.pointer("scratch")
        self.rows = DepthwiseWriter(b, layout.band, depthwise.activation, None)

    def write(self) -> Kernel:
        b, lay, p = self.b, self.layout, self.depthwise
        with b.loop("tile", b.first, b.last) as tile:
            batch, band = unravel(b, tile, (p.batch, lay.band.tiles))
            row = b.let("row", smaller(band * lay.cut.rows, p.height.out - lay.cut.rows))
            above = b.let("above", row * p.height.stride - p.height.pad)
            begin = b.let("begin", clamp(above, 0, p.height.size - lay.in_rows))
            if self.planes is not None:
                self._copy_input(self.planes.layout, batch, begin)
            with b.loop("block", 0, lay.sums.blocks) as block:
                first = b.let("first", block * lay.cut.channels)
                count = b.let("count", smaller(lay.cut.channels, p.groups - first))
                groups = divide(count + (lay.group - 1), lay.group)
                with b.loop("group", 0, b.let("groups", groups)) as group:
                    low = b.let("low", group * lay.group)
                    high = b.let("high", smaller(low + lay.group, count))
                    if self.planes is not None:
                        with b.loop("c", low, high) as c:
                            self._expand(self.planes, first + c, c - low)
                    with b.loop("c", low, high) as c:
                        self._convolve(batch, first + c, c, c - low, row, above, begin)
                channels = lay.project.out_channels
                with b.loop("channel", 0, channels) as channel:
                    out = b.address(((batch * channels + channel) * p.height.out + row) * p.width.out)
                    vectors = self.sums.write(self.scratch, block, channel, channel, channel)
                    with b.when(block == lay.sums.blocks - 1):
                        self.sums.store(vectors, self.y, out, (0, 0), self.residual, self.project.activation)
        return b.build("separable", lay.tiles, lay.scratch_bytes)

    def _copy_input(self, planes: TapLayout, batch: Any, begin: Any) -> None:
        """Copies the tile's part of the first layer's input."""
        b, p, lanes = self.b, self.depthwise, self.layout.cut.lanes
        channels = planes.problem.in_channels
        with b.loop("c", 0, channels) as c:
            source = b.address(((batch * channels + c) * p.height.size + begin) * p.width.size)
            target = b.address(self.layout.input_at + c * planes.plane)
            for start in planes.starts:
                b.store(self.scratch, target + start, b.load(self.x, source + start, lanes), lanes)

    def _expand(self, planes: TapSums, channel: Any, slot: Any) -> None:
        """Computes the tile's part of one plane of the depthwise layer's input."""
        b, lay = self.b, self.layout
        to = b.address(lay.planes_at + slot * planes.layout.plane)
        vectors = planes.layout.vectors
        size = -(-vectors // -(-vectors // lay.cut.sums))
        for start in range(0, vectors, size):
            part = slice(start, start + size)
            sums = planes.write(self.scratch, 0, channel, channel, 0, lay.input_at, part)
            planes.store(sums, self.scratch, to, (0, 0), None, self.activation, part)

    def _convolve(self, batch: Any, channel: Any, at: Any, slot: Any, row: Any, above: Any, begin: Any) -> None:
        """Computes the depthwise layer's band of one channel."""
        b, p, lay = self.b, self.depthwise, self.layout
        if self.planes is None:
            plane = b.address(((batch * p.groups + channel) * p.height.size + above) * p.width.size)
            source = Rows(self.x, plane, p.width.size)
        else:
            plane = lay.planes_at + slot * self.planes.layout.plane
            source = Rows(self.scratch, b.address(plane + (above - begin) * p.width.size), p.width.size)
        bias = b.let("b", b.load(self.bias, channel)) if self.bias is not None else None
        target = Rows(self.scratch, b.address(at * lay.sums.plane), p.width.out)
        self.rows.write(row, source, self.weights, channel * (p.height.kernel * p.width.kernel), bias, target)
