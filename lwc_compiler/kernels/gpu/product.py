"""What dense layers have in common on a GPU, on whatever units: how they are cut, and how their sums are stored.

A block of threads computes a tile of output channels x pixels, slice by slice of the products of a sum. The matrix of
shifted inputs is never made: its entries are picked from the input while they are copied to shared memory (implicit
GEMM; Chetlur et al., *cuDNN: Efficient Primitives for Deep Learning*, 2014, section 3.1).

A sum's products are in the order (block of input channels, position of the kernel, channel of the block): a slice is
a block at one position, and the slices after it read the same lines of the input again. Layers of few channels have
blocks of one, so that a slice needs no channels of zeros.

Where all that makes too few thread blocks, several share a sum: each adds up a part of the products, and a second
kernel the parts.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from lwc_compiler.kernels.builder import divide, modulo, splat, unravel
from lwc_compiler.kernels.gpu.builder import DeviceBuilder, ceil_div
from lwc_compiler.kernels.kernel import STATIC_SHARED_BYTES
from lwc_compiler.kernels.layer import store_result

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from lwc_compiler.kernels.builder import Register
    from lwc_compiler.kernels.gpu.builder import Expr
    from lwc_compiler.kernels.kernel import Kernel
    from lwc_compiler.kernels.layer import ConvGeometry, Epilogue

_SUM_THREADS = 128
_MOST_STAGES = 3
_MOST_ZEROS = 0.25  # of the channels that a slice of one position is filled up to


@dataclass(frozen=True)
class ProductTile(ABC):
    """How a dense layer is cut into blocks, on whatever units.

    Attributes:
        geometry: not transposed.
        x_strides: elements between neighbours of the input along (batch, channel, *spatial).
        y_strides: the same of the output.
        outputs: output channels of a block; a multiple of 16.
        pixels: of a block; a multiple of 16.
        depth: products of a sum in a slice; a multiple of 16.
        splits: blocks that share a sum.
    """

    geometry: ConvGeometry
    x_strides: tuple[int, ...]
    y_strides: tuple[int, ...]
    outputs: int
    pixels: int
    depth: int
    splits: int = 1

    @property
    @abstractmethod
    def threads(self) -> int:
        """Threads of a block; a multiple of the copies of a row of inputs."""

    @property
    @abstractmethod
    def slice_words(self) -> int:
        """Words of 32 bits of a slice of the weights, a multiple of 4."""

    @property
    @abstractmethod
    def pitch(self) -> int:
        """Elements from one row of inputs in shared memory to the next: of a pixel, or of a channel."""

    @property
    def least_block(self) -> int:
        """Neighbouring channels that are not taken apart."""
        return 1

    @property
    def by_channel(self) -> bool:
        """Whether it is a product, whose neighbours in the input's memory, and in shared memory, are of one pixel."""
        g = self.geometry
        one = g.batch == self.positions == 1 and not any(g.pads)
        return one and self.x_strides[1] == 1 and self.x_strides[-1] == g.in_channels

    @property
    def to_channels(self) -> bool:
        """Whether neighbours in the output's memory are of neighbouring channels."""
        return self.y_strides[1] == 1

    @property
    def block(self) -> int:
        """Neighbouring products of a sum that are of neighbouring channels at one position of the kernel."""
        filled = ceil_div(self.geometry.group_inputs, self.depth) * self.depth
        zeros = 1 - self.geometry.group_inputs / filled
        return self.depth if self.positions == 1 or zeros <= _MOST_ZEROS else self.least_block

    @property
    def positions(self) -> int:
        """Positions of the kernel."""
        return math.prod(self.geometry.kernel)

    @property
    def blocks(self) -> int:
        """Blocks of input channels of a group."""
        return ceil_div(self.geometry.group_inputs, self.block)

    @property
    def products(self) -> int:
        """Products of a sum."""
        return self.blocks * self.positions * self.block

    @property
    def slices(self) -> int:
        """Slices of the products of a sum."""
        return ceil_div(self.products, self.depth)

    @property
    def slices_of_block(self) -> int:
        """Slices of a thread block, but for the last one."""
        return ceil_div(self.slices, self.splits)

    @property
    def right(self) -> int:
        """Elements of a slice of the inputs in shared memory."""
        return (self.pixels if self.by_channel else self.depth) * self.pitch

    @property
    def stages(self) -> int:
        """Slices that shared memory has room for; fewer than 2 are too few."""
        return min(_MOST_STAGES, STATIC_SHARED_BYTES // (4 * (self.slice_words + self.right)))

    @property
    def vector(self) -> int:
        """Inputs in one copy: 4 where all places are multiples of that, else 1."""
        g = self.geometry
        if self.by_channel:
            return 4 if g.group_inputs % 4 == 0 else 1
        pointwise = self.positions == 1 and set(g.strides) == {1} and not any(g.pads) and set(g.in_size[:-1]) <= {1}
        return 4 if pointwise and self.x_strides[-1] == 1 and g.in_size[-1] % 4 == 0 else 1

    @property
    def results(self) -> int:
        """Elements of the output."""
        return math.prod(self.geometry.out_shape)

    @property
    def image_pixels(self) -> int:
        """Pixels of an output channel of one image."""
        return math.prod(self.geometry.out_size)

    @property
    def in_line(self) -> int:
        """Pixels whose numbers follow each other for certain."""
        return self.image_pixels

    def pixel_of(self, b: DeviceBuilder, place: Expr) -> tuple[Expr, Expr, Expr]:
        """Whether there is a pixel at a place of the tiles, its image, and its number in this."""
        exists = place < self.all_pixels if self.all_pixels % self.pixels else True
        if self.geometry.batch == 1:
            return exists, 0, place
        image, at = unravel(b, place, (self.geometry.batch, self.image_pixels))
        return exists, image, at

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

    def slices_of_weights(self, weight: NDArray[np.float32]) -> NDArray[np.float32]:
        """The weights, filled up with zeros: (groups, output blocks, slices, outputs, depth).

        Args:
            weight: float32 (O, C / groups, *kernel).
        """
        g = self.geometry
        filled = (
            (0, 0), (0, self.output_blocks * self.outputs - g.group_outputs),
            (0, self.blocks * self.block - g.group_inputs), (0, 0),
        )  # fmt: skip
        padded = np.pad(weight.reshape(g.groups, g.group_outputs, g.group_inputs, -1), filled)
        ordered = padded.reshape(*padded.shape[:2], self.blocks, self.block, -1).swapaxes(3, 4)
        flat = ordered.reshape(*padded.shape[:2], self.products)
        flat = np.pad(flat, ((0, 0), (0, 0), (0, self.slices * self.depth - self.products)))
        shape = (g.groups, self.output_blocks, self.outputs, self.slices, self.depth)
        slices: NDArray[np.float32] = flat.reshape(shape).swapaxes(2, 3)
        return slices


def store_sums(
    b: DeviceBuilder,
    t: ProductTile,
    group: Expr,
    part: Expr,
    pixel: Expr,
    results: Sequence[tuple[Expr, Register, int]],
    pointers: tuple[Expr, Expr | None, Expr | None],
    epilogue: Epilogue,
    lanes: int,
) -> None:
    """Stores a thread's sums from a pixel on, where that and the output channels exist.

    Args:
        b: the kernel.
        t: its tile.
        group: of the output channels.
        part: of the sums, with splits.
        pixel: of all images; a multiple of `lanes` when these are pixels.
        results: from an output channel of the group on, a register and in which of its lanes the sums begin.
        pointers: y, the residual and the bias.
        epilogue: what is done to the sums.
        lanes: neighbours in the output's memory, which are output channels (`t.to_channels`) or pixels.
    """
    y, residual, bias = pointers
    g = t.geometry
    if (g.group_outputs if t.to_channels else t.in_line) % lanes:
        for lane in range(lanes):
            output, further = (lane, 0) if t.to_channels else (0, lane)
            alone = [(first + output, register, start + lane) for first, register, start in results]
            store_sums(b, t, group, part, pixel + further, alone, pointers, epilogue, 1)
        return
    exists, image, at = t.pixel_of(b, b.let("pixel", pixel))
    with b.when(exists):
        place = b.let("place", part * t.results + image * t.y_strides[0] + at * t.y_strides[-1])
        for first, register, start in results:
            output = b.let("output", first)
            with b.when(output < g.group_outputs if g.group_outputs % t.outputs else True):
                channel = b.let("channel", group * g.group_outputs + output)
                value = register.part(start, lanes)
                if bias is not None:
                    value = value + (
                        b.load(bias, channel, lanes) if t.to_channels else splat(b.load(bias, channel), lanes)
                    )
                to = b.let("to", place + channel * t.y_strides[1])
                store_result(b, y, to, value, residual, epilogue.activation, lanes)


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
