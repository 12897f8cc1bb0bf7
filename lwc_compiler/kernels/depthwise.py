"""Depthwise convolutions: each output plane from one input plane, read where it lies.

Registers hold a band of rows of one vector of columns. For every input row and kernel column one vector is loaded,
with zeros for what lies over the padding, and multiplied into all output rows that it is part of: a kernel of k x k
takes k loads for each output row instead of k x k, and the input is not copied.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tvm import tirx

from lwc_compiler.kernels.builder import KernelBuilder, pieces, smaller, splat, unravel
from lwc_compiler.kernels.layer import store_result

if TYPE_CHECKING:
    from lwc_compiler.kernels.builder import Register
    from lwc_compiler.kernels.kernel import Kernel
    from lwc_compiler.kernels.layer import Activation
    from lwc_compiler.kernels.tap_layout import Axis, Problem

_UNROLLED = 2  # so many vectors of columns that do not touch the padding are no loop


@dataclass(frozen=True)
class Band:
    """A band of rows of an output plane, and the input rows it is computed from.

    Attributes:
        height: of the planes.
        width: of the planes.
        lanes: float32 in a vector.
        rows: output rows.
    """

    height: Axis
    width: Axis
    lanes: int
    rows: int

    @property
    def tiles(self) -> int:
        """Bands of a plane; the last one overlaps the one before it."""
        return -(-self.height.out // self.rows)

    @property
    def in_rows(self) -> int:
        """Input rows, with those over the padding."""
        return (self.rows - 1) * self.height.stride + (self.height.kernel - 1) * self.height.dilation + 1

    @property
    def starts(self) -> list[int]:
        """First output column of each vector; the last one overlaps the one before it."""
        last = max(0, self.width.out - self.lanes)
        return [min(start, last) for start in range(0, self.width.out, self.lanes)]

    def inside(self, start: int) -> bool:
        """Whether the vector of columns from `start` on sees no padding."""
        first = start * self.width.stride - self.width.pad
        last = first + (self.lanes - 1) * self.width.stride + (self.width.kernel - 1) * self.width.dilation
        return first >= 0 and last < self.width.size


@dataclass(frozen=True)
class Rows:
    """Rows of pixels in a buffer.

    Attributes:
        buffer: float32.
        at: where column 0 of the band's first row lies, or would lie.
        pitch: from row to row.
    """

    buffer: Any
    at: Any
    pitch: int


class DepthwiseWriter:
    """Writes the convolution of one band of one plane."""

    def __init__(self, b: KernelBuilder, band: Band, activation: Activation | None, residual: Any | None) -> None:
        self.b, self.band, self.activation, self.residual = b, band, activation, residual

    def write(self, row: Any, x: Rows, weights: Any, weights_at: Any, bias: Any | None, y: Rows) -> None:
        """Computes a band.

        A vector may run over the end of a row of `y` into later rows of the band, never over the band's end.

        Args:
            row: the band's first output row.
            x: the input; row 0 is the one under the first row of the kernel.
            weights: float32 buffer.
            weights_at: where the plane's kernel begins.
            bias: of the plane.
            y: the output.
        """
        b, band = self.b, self.band
        count = band.height.kernel * band.width.kernel
        kernel = [b.let("w", b.load(weights, weights_at + i)) for i in range(count)]
        start = 0.0 if bias is None else bias
        loop: list[int] = []
        for column in [*band.starts, None]:
            if column is not None and band.inside(column) and (not loop or column == loop[-1] + band.lanes):
                loop.append(column)
                continue
            if len(loop) > _UNROLLED:
                with b.loop("columns", 0, len(loop)) as i:
                    self._columns(row, x, kernel, start, y, b.let("column", loop[0] + i * band.lanes))
            else:
                for each in loop:
                    self._columns(row, x, kernel, start, y, each)
            loop = []
            if column is not None:
                self._columns(row, x, kernel, start, y, column)

    def _columns(self, row: Any, x: Rows, kernel: list[Any], start: Any, y: Rows, column: Any) -> None:
        """One vector of columns, of all rows."""
        b, band, height = self.b, self.band, self.band.height
        sums = [b.register(band.lanes) for _ in range(band.rows)]
        for register in sums:
            register.set(splat(start, band.lanes))
        for q in range(band.in_rows):
            uses = [
                (q - i * height.dilation, i)
                for i in range(height.kernel)
                if (q - i * height.dilation) % height.stride == 0
                and 0 <= q - i * height.dilation <= (band.rows - 1) * height.stride
            ]
            if not uses:
                continue
            lowest, highest = q - height.pad, (height.out - band.rows) * height.stride + q - height.pad
            if band.tiles == 1 and not 0 <= lowest < height.size:
                continue
            line = b.let("line", row * height.stride + (q - height.pad))
            limits = [line >= 0] * (lowest < 0) + [line < height.size] * (highest >= height.size)
            with b.when(band.tiles == 1 or not limits or tirx.all(*limits)):
                for j in range(band.width.kernel):
                    value = self._load(x, q, j, column)
                    if value is None:
                        continue
                    value = b.let("value", value)
                    for at, i in uses:
                        register = sums[at // height.stride]
                        weight = kernel[i * band.width.kernel + j]
                        register.set(register.get() + splat(weight, band.lanes) * value)
        self._store(sums, y, column)

    def _load(self, x: Rows, q: int, j: int, column: Any) -> Any | None:
        """What kernel column j multiplies in input row q; None where all of it is padding."""
        b, lanes, width = self.b, self.band.lanes, self.band.width
        line, first = x.at + q * x.pitch, column * width.stride + (j * width.dilation - width.pad)
        if not isinstance(column, int):
            return b.load(x.buffer, line + first, lanes, width.stride)
        columns = [first + i * width.stride for i in range(min(lanes, width.out))]
        valid = [0 <= c < width.size for c in columns] + [True] * (lanes - len(columns))
        if not any(valid[: len(columns)]):
            return None
        base = max(first, 0)
        value = b.load(x.buffer, line + base, lanes, width.stride)
        if base > first:
            parts = [b.load(x.buffer, line + base + i * lanes, lanes) for i in range(width.stride)]
            picked = [min(max(0, first + i * width.stride), lanes * width.stride - 1) for i in range(lanes)]
            value = tirx.Shuffle(parts, [tirx.const(i, "int32") for i in picked])
        if not all(valid):
            kept = [i if ok else lanes + i for i, ok in enumerate(valid)]
            value = tirx.Shuffle([value, splat(0.0, lanes)], [tirx.const(i, "int32") for i in kept])
        return value

    def _store(self, sums: list[Register], y: Rows, column: Any) -> None:
        b, lanes = self.b, self.band.lanes
        for r, register in enumerate(sums):
            at = y.at + r * y.pitch + column
            over = y.pitch < lanes <= (len(sums) - r) * y.pitch
            length = lanes if over else min(lanes, self.band.width.out)
            for piece, part in pieces(length, lanes):
                value = register.get() if part == lanes else register.part(piece, part)
                store_result(b, y.buffer, at + piece, value, self.residual, self.activation, part)


def depthwise_kernel(
    problem: Problem, band: Band, *, bias: bool, residual: bool, activation: Activation | None
) -> Kernel:
    """Builds the kernel; parameters: x, [residual], weights (O, kernel height, kernel width), [bias], y."""
    b, p = KernelBuilder(), problem
    x = b.pointer("x")
    extra = b.pointer("residual") if residual else None
    weights = b.pointer("weights")
    biases = b.pointer("bias") if bias else None
    y = b.pointer("y")
    writer = DepthwiseWriter(b, band, activation, extra)
    channels = p.groups * p.out_channels
    with b.loop("tile", b.first, b.last) as tile:
        batch, channel, row = unravel(b, tile, (p.batch, channels, band.tiles))
        row = b.let("row", smaller(row * band.rows, p.height.out - band.rows))
        plane = batch * p.groups + tirx.truncdiv(channel, p.out_channels)
        first = row * p.height.stride - p.height.pad
        source = b.address((plane * p.height.size + first) * p.width.size)
        target = b.address(((batch * channels + channel) * p.height.out + row) * p.width.out)
        value = b.let("b", b.load(biases, channel)) if biases is not None else None
        kernel = channel * (p.height.kernel * p.width.kernel)
        writer.write(row, Rows(x, source, p.width.size), weights, kernel, value, Rows(y, target, p.width.out))
    return b.build("conv_depthwise", p.batch * channels * band.tiles)
