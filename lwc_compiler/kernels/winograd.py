"""Dense 3x3 and 4x4 convolutions with stride 1 by Winograd's minimal filtering.

It is F(m x m, r x r) of Lavin & Gray 2015 (arXiv:1509.09308). The output is cut into squares of m x m pixels. Each
needs n x n inputs d, n = m + r - 1; with weights g it is

    y = A^T [(G g G^T) * (B^T d B)] A

where * is elementwise: summed over input channels, that is one matrix product for each of the n^2 positions, with
(n / (r m))^2 of the multiplications. G g G^T is computed in float64 when the plan is made. The matrices are those of
Cook and Toom for the points 0, +-3/4, +-3/2 and infinity (n = 6): all are exact in float32, and the error is a quarter
of that of the usual 0, +-1, +-2.

Channels are in the vectors, so that any number of squares is computed without filling: rows of pixels are transposed
when they are read and when they are written. A unit of work is some images x rows of squares x all columns; its
products for a chunk of output channels stay in the thread's scratch memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from tvm import tirx

from lwc_compiler.kernels.builder import KernelBuilder, smaller, splat, unravel
from lwc_compiler.kernels.kernel import Constant
from lwc_compiler.kernels.rows import copy_row, fill_row, store_turned
from lwc_compiler.kernels.transpose import transpose_square

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from lwc_compiler.kernels.kernel import Kernel
    from lwc_compiler.kernels.layer import Epilogue

_AHEAD = 48  # channels by which weights are asked for before they are used
# The points beside infinity, by the inputs along one side of a square.
POINTS = {4: (0.0, 1.0, -1.0), 6: (0.0, 0.75, -0.75, 1.5, -1.5)}


@dataclass(frozen=True)
class WinogradLayout:
    """Shape of a convolution (N, C, H, W) -> (N, O, H', W'), and how it is cut.

    Attributes:
        batch: images.
        in_channels: C, at least `lanes`.
        out_channels: O, at least `lanes`.
        in_size: (H, W).
        out_size: (H', W').
        pads: rows above and columns left of the input; negative ones crop.
        lanes: float32 in a vector.
        kernel: r, weights along one side of the kernel.
        square: m, pixels along one side of a square.
        images: images of a unit.
        rows: rows of squares of a unit.
        group: squares computed together.
        vectors: vectors of output channels computed together.
        separate: the transformed input is written by a step of its own, for all units.
    """

    batch: int
    in_channels: int
    out_channels: int
    in_size: tuple[int, int]
    out_size: tuple[int, int]
    pads: tuple[int, int]
    lanes: int
    kernel: int
    square: int
    images: int
    rows: int
    group: int
    vectors: int
    separate: bool

    @property
    def size(self) -> int:
        """Inputs along one side of a square."""
        return self.square + self.kernel - 1

    @property
    def positions(self) -> int:
        """Products of each square, channel and channel."""
        return self.size**2

    @property
    def columns(self) -> int:
        """Squares in a row."""
        return -(-self.out_size[1] // self.square)

    @property
    def squares(self) -> int:
        """Squares of a unit."""
        return self.images * self.rows * self.columns

    @property
    def blocks(self) -> tuple[int, int]:
        """Units along images and rows; the last ones overlap those before them."""
        return -(-self.batch // self.images), -(-self.height // self.rows)

    @property
    def height(self) -> int:
        """Rows of squares of an image."""
        return -(-self.out_size[0] // self.square)

    @property
    def chunk(self) -> int:
        """Output channels whose products are held at a time."""
        return self.vectors * self.lanes

    @property
    def chunks(self) -> int:
        """Chunks of output channels; the last overlaps the one before it."""
        return -(-self.out_channels // self.chunk)

    @property
    def tiles(self) -> int:
        """Units of work of the convolution."""
        return self.blocks[0] * self.blocks[1] * (self.chunks if self.separate else 1)

    @property
    def pitch(self) -> int:
        """Columns of a transformed row of pixels."""
        return -(-(self.columns * self.square + self.kernel - 1) // self.lanes) * self.lanes

    @property
    def stride(self) -> int:
        """Distance of two squares in the transformed input; filled so that they do not compete for cache lines."""
        return (-(-self.in_channels // 16) + 1) * 16

    @property
    def transformed(self) -> int:
        """float32 of a unit's transformed input (positions, squares, stride)."""
        return self.positions * self.squares * self.stride

    def first_channel(self, chunk: Any) -> Any:
        """First output channel of a chunk."""
        return smaller(chunk * self.chunk, max(0, self.out_channels - self.chunk))


def matrices(square: int, kernel: int) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """A^T (m, n), G (n, r) and B^T (n, n) of F(m, r), by Cook and Toom (Lavin & Gray 2015, section 5).

    Column j of A^T and row j of G evaluate polynomials at point j, row j of B^T has the coefficients of the product of
    the other points' linear factors; the last ones belong to the point at infinity.
    """
    size = square + kernel - 1
    points = np.array(POINTS[size])
    backward, forward, weights = np.zeros((square, size)), np.zeros((size, size)), np.zeros((size, kernel))
    for j, point in enumerate(points):
        others = np.delete(points, j)
        backward[:, j] = point ** np.arange(square)
        weights[j] = point ** np.arange(kernel) / np.prod(point - others)
        forward[j, :-1] = np.poly(others)[::-1]
    backward[-1, -1] = weights[-1, -1] = 1
    forward[-1] = np.poly(points)[::-1]
    return backward, weights, forward


def pack_winograd(weight: NDArray[np.float32], layout: WinogradLayout) -> Constant:
    """Weight (O, C, r, r) as G g G^T, float32 (chunks, positions, C, chunk); zeros for missing channels."""
    _, g, _ = matrices(layout.square, layout.kernel)
    packed = np.zeros((layout.chunks, layout.positions, layout.in_channels, layout.chunk), np.float32)
    for i, part in enumerate(packed):
        first = layout.first_channel(i)
        channels = weight[first : first + layout.chunk]
        columns = channels.reshape(len(channels), -1, layout.kernel**2).transpose(2, 1, 0)
        products = np.kron(g, g) @ columns.reshape(layout.kernel**2, -1).astype(np.float64)
        part[:, :, : len(channels)] = products.reshape(layout.positions, layout.in_channels, -1)
    return Constant(packed.ravel())


def input_kernel(layout: WinogradLayout) -> Kernel:
    """B^T d B of all units, channels block by channels block; parameters: x, v."""
    writer = _Writer(layout)
    b, lay = writer.b, layout
    x, v = b.pointer("x"), b.pointer("v")
    scratch = b.pointer("scratch")
    blocks = -(-lay.in_channels // lay.lanes)
    with b.loop("tile", b.first, b.last) as tile:
        image, row, block = unravel(b, tile, (*lay.blocks, blocks))
        base = b.let("base", (image * lay.blocks[1] + row) * lay.transformed)
        writer.transform_input(x, v, base, scratch, 0, *writer.place(image, row), block)
    return b.build("winograd_input", lay.blocks[0] * lay.blocks[1] * blocks, 4 * writer.input_scratch)


def winograd_kernel(layout: WinogradLayout, epilogue: Epilogue) -> Kernel:
    """The convolution; parameters: x (`input_kernel`'s v if that is separate), weights, [residual], [bias], y."""
    writer = _Writer(layout)
    b, lay = writer.b, layout
    x, weights = b.pointer("x"), b.pointer("weights")
    residual = b.pointer("residual") if epilogue.residual else None
    bias = b.pointer("bias") if epilogue.bias is not None else None
    y, scratch = b.pointer("y"), b.pointer("scratch")
    held = 0 if lay.separate else lay.transformed
    products = held + lay.positions * lay.squares * lay.chunk
    chunks = lay.chunks if lay.separate else 1
    with b.loop("tile", b.first, b.last) as tile:
        image, row, part = unravel(b, tile, (*lay.blocks, chunks))
        first_image, first_row = writer.place(image, row)
        if lay.separate:
            v, base = x, b.let("base", (image * lay.blocks[1] + row) * lay.transformed)
            chosen = (part, part + 1)
        else:
            v, base, chosen = scratch, 0, (0, lay.chunks)
            with b.loop("channels", 0, -(-lay.in_channels // lay.lanes)) as block:
                writer.transform_input(x, v, base, scratch, products, first_image, first_row, block)
        with b.loop("chunk", *chosen) as chunk:
            writer.multiply(v, base, weights, chunk, scratch, held)
            first = b.let("first", lay.first_channel(chunk))
            writer.transform_output(scratch, held, products, first, first_image, first_row, residual, bias, y, epilogue)
    extra = writer.output_scratch if lay.separate else max(writer.input_scratch, writer.output_scratch)
    return b.build("winograd", lay.tiles, 4 * (products + extra))


class _Writer:
    def __init__(self, layout: WinogradLayout) -> None:
        self.lay, self.b = layout, KernelBuilder()
        lay = layout
        self.out_pitch = max(lay.columns * lay.square, lay.lanes)
        self.input_scratch = lay.size * lay.pitch * (1 + lay.lanes) + lay.pitch * lay.lanes
        self.output_scratch = lay.square * lay.lanes * (lay.size + self.out_pitch)

    def place(self, image: Any, row: Any) -> tuple[Any, Any]:
        """First image and first row of output pixels of a unit."""
        lay = self.lay
        return (
            self.b.let("first_image", smaller(image * lay.images, lay.batch - lay.images)),
            self.b.let("first_row", smaller(row * lay.rows, lay.height - lay.rows) * lay.square),
        )

    def transform_input(
        self, x: Any, v: Any, base: Any, scratch: Any, free: int, image: Any, row: Any, block: Any
    ) -> None:
        """B^T d B of one block of channels of a unit: rows in pixel vectors, then, transposed, columns.

        Args:
            x: the input.
            v: where the result goes, (positions, squares, stride) from `base` on.
            base: see v.
            scratch: of the thread, `input_scratch` float32 from `free` on are used.
            free: see scratch.
            image: the unit's first image.
            row: its first row of output pixels.
            block: the block of channels.
        """
        b, lay, lanes = self.b, self.lay, self.lay.lanes
        (height, width), (top, left) = lay.in_size, lay.pads
        _, _, forward = matrices(lay.square, lay.kernel)
        mixed = free + lay.size * lay.pitch
        turned = mixed + lay.size * lanes * lay.pitch
        channel = b.let("channel", smaller(block * lanes, lay.in_channels - lanes))
        with b.loop("image", 0, lay.images) as n, b.loop("r", 0, lay.rows) as r:
            line = b.let("line", row + r * lay.square - top)
            square = b.let("square", base + (n * lay.rows + r) * (lay.columns * lay.stride) + channel)
            with b.loop("c", 0, lanes) as c:
                plane = b.let("plane", ((image + n) * lay.in_channels + channel + c) * (height * width))
                with b.loop("i", 0, lay.size) as i:
                    inside = tirx.all(line + i >= 0, line + i < height)
                    to = b.address(i * lay.pitch + free)
                    with b.when(inside):
                        source = plane + (line + i) * width
                        copy_row(b, x, source, scratch, to, width=width, left=left, pitch=lay.pitch, most=lanes)
                    with b.otherwise():
                        fill_row(b, scratch, to, lay.pitch, lanes)
                with b.loop("vector", 0, lay.pitch // lanes) as vector:
                    at = b.address(vector * lanes + free)
                    rows = [b.let("d", b.load(scratch, at + i * lay.pitch, lanes)) for i in range(lay.size)]
                    to = b.address(mixed + c * lay.pitch + vector * lanes)
                    for q, value in enumerate(_forward(forward, rows, lanes)):
                        b.store(scratch, to + q * (lanes * lay.pitch), value, lanes)
            with b.loop("q", 0, lay.size) as q:
                with b.loop("vector", 0, lay.pitch // lanes) as vector:
                    at = b.address(mixed + q * (lanes * lay.pitch) + vector * lanes)
                    pixels = [b.register(lanes) for _ in range(lanes)]
                    for c, pixel in enumerate(pixels):
                        pixel.set(b.load(scratch, at + c * lay.pitch, lanes))
                    transpose_square(b, pixels)
                    to = b.address(turned + vector * (lanes * lanes))
                    for c, pixel in enumerate(pixels):
                        b.store(scratch, to + c * lanes, pixel.get(), lanes)
                with b.loop("column", 0, lay.columns) as column:
                    at = b.address(turned + column * (lay.square * lanes))
                    parts = [b.let("d", b.load(scratch, at + j * lanes, lanes)) for j in range(lay.size)]
                    to = b.address(square + q * (lay.size * lay.squares * lay.stride) + column * lay.stride)
                    for j, value in enumerate(_forward(forward, parts, lanes)):
                        b.store(v, to + j * (lay.squares * lay.stride), value, lanes)

    def multiply(self, v: Any, base: Any, weights: Any, chunk: Any, scratch: Any, held: int) -> None:
        """The products of all positions for a chunk of output channels, (positions, squares, chunk) from `held` on."""
        b, lay = self.b, self.lay
        with (
            b.loop("position", 0, lay.positions) as position,
            b.loop("group", 0, -(-lay.squares // lay.group)) as group,
        ):
            square = b.let("square", smaller(group * lay.group, lay.squares - lay.group))
            start = b.address((chunk * lay.positions + position) * (lay.in_channels * lay.chunk))
            source = b.address(base + (position * lay.squares + square) * lay.stride)
            sums = [[b.register(lay.lanes) for _ in range(lay.vectors)] for _ in range(lay.group)]
            for row in sums:
                for register in row:
                    register.set(splat(0.0, lay.lanes))
            with b.loop("c", 0, lay.in_channels) as c:
                at = start + c * lay.chunk
                for i in range(lay.vectors):
                    b.prefetch(weights, at + (_AHEAD * lay.chunk + i * lay.lanes))
                values = [b.let("w", b.load(weights, at + i * lay.lanes, lay.lanes)) for i in range(lay.vectors)]
                for r, row in enumerate(sums):
                    factor = b.let("d", b.load(v, source + r * lay.stride + c))
                    for register, value in zip(row, values, strict=True):
                        register.set(register.get() + splat(factor, lay.lanes) * value)
            to = b.address(held + (position * lay.squares + square) * lay.chunk)
            for r, row in enumerate(sums):
                for i, register in enumerate(row):
                    b.store(scratch, to + r * lay.chunk + i * lay.lanes, register.get(), lay.lanes)

    def transform_output(
        self,
        scratch: Any,
        held: int,
        free: int,
        first: Any,
        image: Any,
        row: Any,
        residual: Any | None,
        bias: Any | None,
        y: Any,
        epilogue: Epilogue,
    ) -> None:
        """A^T m A of a chunk's products, transposed to rows of pixels; bias, residual, activation, store."""
        b, lay, lanes, m = self.b, self.lay, self.lay.lanes, self.lay.square
        backward, _, _ = matrices(m, lay.kernel)
        height, width = lay.out_size
        pixels = free + lay.size * m * lanes
        count = -(-min(lay.chunk, lay.out_channels) // lanes)
        with (
            b.loop("image", 0, lay.images) as n,
            b.loop("r", 0, lay.rows) as r,
            b.loop("g", 0, count) as g,
        ):
            local = b.let("local", smaller(g * lanes, min(lay.chunk, lay.out_channels) - lanes))
            channel = b.let("channel", first + local)
            with b.loop("column", 0, lay.columns) as column:
                at = b.address(held + ((n * lay.rows + r) * lay.columns + column) * lay.chunk + local)
                for q in range(lay.size):
                    start = q * lay.size * lay.squares * lay.chunk
                    parts = [
                        b.let("p", b.load(scratch, at + (start + j * lay.squares * lay.chunk), lanes))
                        for j in range(lay.size)
                    ]
                    for k, value in enumerate(_backward(backward, parts, lanes)):
                        b.store(scratch, free + (k * lay.size + q) * lanes, value, lanes)
                to = b.address(pixels + column * (m * lanes))
                for k in range(m):
                    parts = [
                        b.let("p", b.load(scratch, free + (k * lay.size + q) * lanes, lanes)) for q in range(lay.size)
                    ]
                    for i, value in enumerate(_backward(backward, parts, lanes)):
                        total = value if bias is None else value + b.load(bias, channel, lanes)
                        b.store(scratch, to + (i * self.out_pitch + k) * lanes, total, lanes)
            with b.loop("i", 0, m) as i:
                line = b.let("line", row + r * m + i)
                with b.when(line < height), b.loop("vector", 0, -(-width // lanes)) as vector:
                    x = b.let("x", smaller(vector * lanes, max(0, width - lanes)))
                    at = b.address(pixels + (i * self.out_pitch + x) * lanes)
                    plane = ((image + n) * lay.out_channels + channel) * (height * width)
                    to = b.address(plane + line * width + x)
                    store_turned(
                        b, scratch, at, lanes, y, to, plane=height * width, pixels=min(lanes, width), lanes=lanes,
                        residual=residual, activation=epilogue.activation,
                    )  # fmt: skip


def _forward(matrix: NDArray[np.float64], values: list[Any], lanes: int) -> list[Any]:
    """B^T @ values: the rows of opposite points differ by the sign of every other column, and share their halves."""
    size = len(values)
    results = [_weighted(matrix[0], values, lanes)]
    for row in matrix[1:-1:2]:
        even = _weighted(np.where(np.arange(size) % 2 == 0, row, 0), values, lanes)
        odd = _weighted(np.where(np.arange(size) % 2 == 1, row, 0), values, lanes)
        results += [even + odd, even - odd]
    return [*results, _weighted(matrix[-1], values, lanes)]


def _backward(matrix: NDArray[np.float64], values: list[Any], lanes: int) -> list[Any]:
    """A^T @ values: the columns of two opposite points are the same in even rows, and negative in odd ones."""
    pairs = list(zip(values[1:-1:2], values[2:-1:2], strict=True))
    sums = [values[0], *(a + b for a, b in pairs), values[-1]]
    differences = [values[0], *(a - b for a, b in pairs), values[-1]]
    chosen = [0, *range(1, len(values) - 1, 2), len(values) - 1]
    return [_weighted(row[chosen], differences if i % 2 else sums, lanes) for i, row in enumerate(matrix)]


def _weighted(weights: NDArray[np.float64], values: list[Any], lanes: int) -> Any:
    """The weighted sum of vectors."""
    terms = [
        value if weight == 1 else value * splat(weight, lanes)
        for weight, value in zip(weights, values, strict=True)
        if weight
    ]
    return sum(terms[1:], terms[0])
