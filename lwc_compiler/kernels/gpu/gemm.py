"""Convolutions and products with every weight on a GPU, as one matrix product.

A block of threads computes a tile of output channels x pixels: it copies a slice of the weights and the inputs that
they multiply to shared memory, and every thread adds the products of some channels and some pixels to sums in
registers. The matrix of shifted inputs is never made: its entries are picked from the input while they are copied
(implicit GEMM; Chetlur et al., *cuDNN: Efficient Primitives for Deep Learning*, 2014, section 3.1).

Where that makes too few blocks, several share a sum: each adds up a part of the products, and a second kernel the
parts.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from tvm import tirx

from lwc_compiler.kernels.builder import divide, modulo, smaller, splat, unravel
from lwc_compiler.kernels.gpu.builder import DeviceBuilder, ceil_div
from lwc_compiler.kernels.kernel import Constant
from lwc_compiler.kernels.layer import store_result

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from lwc_compiler.kernels.gpu.builder import Expr
    from lwc_compiler.kernels.kernel import Kernel
    from lwc_compiler.kernels.layer import ConvGeometry, Epilogue

DEPTH = 16  # products of a sum between two barriers
_VECTOR = 4
_SUM_THREADS = 128


@dataclass(frozen=True)
class ProductTile(ABC):
    """How a dense layer is cut into blocks, on whatever units.

    Attributes:
        geometry: not transposed.
        x_strides: elements between neighbours of the input along (batch, channel, *spatial).
        y_strides: the same of the output.
        outputs: output channels of a block.
        pixels: of a block.
        splits: blocks that share a sum.
    """

    geometry: ConvGeometry
    x_strides: tuple[int, ...]
    y_strides: tuple[int, ...]
    outputs: int
    pixels: int
    splits: int = 1

    @property
    @abstractmethod
    def threads(self) -> int:
        """Threads of a block."""

    @property
    @abstractmethod
    def slices(self) -> int:
        """Slices of the products of a sum."""

    @property
    def by_channel(self) -> bool:
        """Whether neighbours in the input's memory are of neighbouring channels."""
        return self.x_strides[1] == 1

    @property
    def slices_of_block(self) -> int:
        """Slices of a block, but for the last one."""
        return ceil_div(self.slices, self.splits)

    @property
    def results(self) -> int:
        """Elements of the output."""
        return math.prod(self.geometry.out_shape)

    @property
    def image_pixels(self) -> int:
        """Pixels of an output channel of one image."""
        return math.prod(self.geometry.out_size)

    @property
    def all_pixels(self) -> int:
        """Pixels of an output channel of all images."""
        return self.geometry.batch * self.image_pixels

    @property
    def output_blocks(self) -> int:
        """Blocks over the output channels of a group."""
        return ceil_div(self.geometry.group_outputs, self.outputs)

    @property
    def grid(self) -> tuple[int, int, int]:
        """Blocks of pixels, of output channels, groups and parts of a sum."""
        return (ceil_div(self.all_pixels, self.pixels), self.output_blocks, self.geometry.groups * self.splits)


@dataclass(frozen=True)
class GemmTile(ProductTile):
    """A tile for the units that multiply single numbers.

    Attributes:
        per_thread: output channels, and pixels, of a thread; a multiple of 4.
    """

    per_thread: int = _VECTOR

    @property
    def threads(self) -> int:
        return self.outputs * self.pixels // self.per_thread**2

    @property
    def depth(self) -> int:
        """Products of a sum."""
        return self.geometry.group_inputs * math.prod(self.geometry.kernel)

    @property
    def pitch(self) -> int:
        """Elements of a row of inputs in shared memory, so that threads that write a column meet several banks."""
        return self.pixels + _VECTOR if self.by_channel else self.pixels

    @property
    def slices(self) -> int:
        return ceil_div(self.depth, DEPTH)


def pack_gemm(weight: NDArray[np.float32], t: GemmTile) -> Constant:
    """The weights as the kernel reads them: (groups, depth, output channels), filled up with zeros.

    Args:
        weight: float32 (O, C / groups, *kernel).
        t: the layout.
    """
    matrix = weight.reshape(t.geometry.groups, t.geometry.group_outputs, t.depth).swapaxes(1, 2)
    depth, outputs = t.slices * DEPTH, t.output_blocks * t.outputs
    padded = np.zeros((t.geometry.groups, depth, outputs), np.float32)
    padded[:, : t.depth, : t.geometry.group_outputs] = matrix
    return Constant(padded)


def gemm_kernel(name: str, t: GemmTile, epilogue: Epilogue) -> Kernel:
    """The kernel: x, [residual,] weights, [bias,] y; with splits, y has one part of all sums after the other."""
    b = DeviceBuilder(t.grid, t.threads)
    group, part = b.let("group", divide(b.block[2], t.splits)), modulo(b.block[2], t.splits)
    x = b.pointer("x")
    residual = b.pointer("residual") if epilogue.residual else None
    weights = b.constant("weights")
    bias = b.constant("bias") if epilogue.bias is not None else None
    y = b.pointer("y")
    left, right = b.shared("left", DEPTH * t.outputs), b.shared("right", DEPTH * t.pitch)

    # Neighbouring threads store to neighbouring places.
    if t.y_strides[1] == 1:
        m = b.let("m", modulo(b.thread, t.outputs // t.per_thread) * t.per_thread)
        p = b.let("p", divide(b.thread, t.outputs // t.per_thread) * t.per_thread)
    else:
        p = b.let("p", modulo(b.thread, t.pixels // t.per_thread) * t.per_thread)
        m = b.let("m", divide(b.thread, t.pixels // t.per_thread) * t.per_thread)
    first_output, first_pixel = b.block[1] * t.outputs, b.block[0] * t.pixels
    many = range(t.per_thread)
    sums = [[b.register(1) for _ in many] for _ in many]
    for register in (register for registers in sums for register in registers):
        register.set(splat(0.0, 1))

    first_slice = b.let("first_slice", part * t.slices_of_block)
    count = t.slices if t.splits == 1 else b.let("count", smaller(t.slices_of_block, t.slices - first_slice))
    with b.loop("slice", 0, count) as number:
        first = b.let("first", (first_slice + number) * DEPTH)
        b.barrier()
        row_length = t.output_blocks * t.outputs
        with b.loop("i", 0, ceil_div(DEPTH * t.outputs, t.threads)) as i:
            element = b.let("element", i * t.threads + b.thread)
            with b.when(element < DEPTH * t.outputs if DEPTH * t.outputs % t.threads else True):
                k = group * (t.slices * DEPTH) + first + divide(element, t.outputs)
                b.store(left, element, b.load(weights, k * row_length + first_output + modulo(element, t.outputs)))
        _fill(b, t, x, right, group, first, first_pixel)
        b.barrier()
        with b.loop("k", 0, DEPTH) as k:
            a = _row(b, left, k * t.outputs + m, t.per_thread)
            c = _row(b, right, k * t.pitch + p, t.per_thread)
            for i in many:
                for j in many:
                    sums[i][j].set(sums[i][j].get() + a[i] * c[j])

    for j in many:
        pixel = b.let("pixel", first_pixel + p + j)
        results = [(first_output + m + i, sums[i][j].get()) for i in many]
        store_sum(b, t, group, part, pixel, results, (y, residual, bias), epilogue)
    return b.finished(name)


def store_sum(
    b: DeviceBuilder,
    t: ProductTile,
    group: Expr,
    part: Expr,
    pixel: Expr,
    results: Sequence[tuple[Expr, Expr]],
    pointers: tuple[Expr, Expr | None, Expr | None],
    epilogue: Epilogue,
) -> None:
    """Stores a thread's sums of one pixel, where it and the output channels exist.

    Args:
        b: the kernel.
        t: its tile.
        group: of the output channels.
        part: of the sums, with splits.
        pixel: of all images.
        results: output channels of the group, and their sums.
        pointers: y, the residual and the bias.
        epilogue: what is done to the sums.
    """
    y, residual, bias = pointers
    with b.when(pixel < t.all_pixels):
        image, *at = unravel(b, pixel, (t.geometry.batch, *t.geometry.out_size))
        place = part * t.results + image * t.y_strides[0]
        for position, stride in zip(at, t.y_strides[2:], strict=True):
            place = place + position * stride
        place = b.let("place", place)
        for result, sum_ in results:
            output = b.let("output", result)
            with b.when(output < t.geometry.group_outputs):
                channel = b.let("channel", group * t.geometry.group_outputs + output)
                value = sum_ if bias is None else sum_ + b.load(bias, channel)
                to = b.let("to", place + channel * t.y_strides[1])
                store_result(b, y, to, value, residual, epilogue.activation)


def sum_kernel(name: str, t: ProductTile, epilogue: Epilogue) -> Kernel:
    """The kernel that adds the parts up: parts, [residual,] [bias,] y."""
    b = DeviceBuilder((ceil_div(t.results, _SUM_THREADS), 1, 1), _SUM_THREADS)
    parts = b.pointer("parts")
    residual = b.pointer("residual") if epilogue.residual else None
    bias = b.constant("bias") if epilogue.bias is not None else None
    y = b.pointer("y")
    result = b.let("result", b.block[0] * _SUM_THREADS + b.thread)
    with b.when(result < t.results):
        total = b.register(1)
        channel = modulo(divide(result, t.y_strides[1]), t.geometry.out_channels)
        total.set(splat(0.0, 1) if bias is None else b.load(bias, channel))
        for part in range(t.splits):
            total.set(total.get() + b.load(parts, result + part * t.results))
        store_result(b, y, result, total.get(), residual, epilogue.activation)
    return b.finished(name)


def _row(b: DeviceBuilder, shared: Expr, at: Expr, count: int) -> list[Expr]:
    """Consecutive elements of shared memory, loaded four at a time."""
    values = []
    for start in range(0, count, _VECTOR):
        register = b.register(_VECTOR)
        register.set(b.load(shared, at + start, _VECTOR))
        values += [register.part(i, 1) for i in range(_VECTOR)]
    return values


def _fill(b: DeviceBuilder, t: GemmTile, x: Expr, right: Expr, group: Expr, first: Expr, first_pixel: Expr) -> None:
    """Copies a slice of the matrix of shifted inputs to shared memory, with zeros for the padding."""
    g = t.geometry
    with b.loop("i", 0, ceil_div(DEPTH * t.pixels, t.threads)) as i:
        element = b.let("element", i * t.threads + b.thread)
        with b.when(element < DEPTH * t.pixels if DEPTH * t.pixels % t.threads else True):
            if t.by_channel:
                k, pixel = modulo(element, DEPTH), divide(element, DEPTH)
            else:
                k, pixel = divide(element, t.pixels), modulo(element, t.pixels)
            to = b.let("to", k * t.pitch + pixel)
            product, column = b.let("product", first + k), b.let("column", first_pixel + pixel)
            channel, *taps = unravel(b, product, (t.geometry.group_inputs, *g.kernel))
            image, *at = unravel(b, column, (g.batch, *g.out_size))
            inside = tirx.all(product < t.depth, column < t.all_pixels)
            from_ = image * t.x_strides[0] + (group * t.geometry.group_inputs + channel) * t.x_strides[1]
            for axis, (tap, place) in enumerate(zip(taps, at, strict=True)):
                position = b.let("position", place * g.strides[axis] + tap * g.dilations[axis] - g.pads[axis])
                inside = tirx.all(inside, position >= 0, position < g.in_size[axis])
                from_ = from_ + position * t.x_strides[2 + axis]
            b.store(right, to, tirx.if_then_else(inside, b.load(x, from_), tirx.const(0.0, "float32")))
