"""Convolutions and products with every weight on a GPU, as one matrix product, on units that multiply single numbers.

A block computes a tile as `product.py` says: slices of the weights and of the inputs come to shared memory while others
are multiplied, and every thread adds the products of some output channels and some pixels to sums in registers. Where
a tile is small, several groups of threads compute it, each from a part of every slice, and add their sums at the end.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from lwc_compiler.kernels.builder import divide, modulo, splat
from lwc_compiler.kernels.gpu.builder import DeviceBuilder
from lwc_compiler.kernels.gpu.product import ProductTile, store_sums
from lwc_compiler.kernels.gpu.slices import Slices
from lwc_compiler.kernels.kernel import Constant

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from lwc_compiler.kernels.builder import Register
    from lwc_compiler.kernels.gpu.builder import Expr
    from lwc_compiler.kernels.kernel import Kernel
    from lwc_compiler.kernels.layer import Epilogue

_VECTOR = 4


@dataclass(frozen=True)
class GemmTile(ProductTile):
    """A tile for the units that multiply single numbers.

    Attributes:
        each_outputs: output channels of a thread, a multiple of 4.
        each_pixels: of a thread, a multiple of 4.
        parts: groups of threads that share a sum: of a slice, each has a part.
    """

    each_outputs: int = _VECTOR
    each_pixels: int = _VECTOR
    parts: int = 1

    @property
    def part_threads(self) -> int:
        """Threads of a part."""
        return self.outputs * self.pixels // (self.each_outputs * self.each_pixels)

    @property
    def threads(self) -> int:
        return self.part_threads * self.parts

    @property
    def slice_words(self) -> int:
        return self.depth * self.outputs

    @property
    def pitch(self) -> int:
        return self.depth + _VECTOR if self.by_channel else self.pixels

    @property
    def shared(self) -> int:
        """Elements of shared memory: of the slices, and then of a part's sums."""
        return max(self.stages * (self.slice_words + self.right), self.outputs * self.pixels * (self.parts > 1))


def pack_gemm(weight: NDArray[np.float32], t: GemmTile) -> Constant:
    """The weights as the kernel reads them: (groups, output blocks, slices, depth, outputs), filled up with zeros.

    Args:
        weight: float32 (O, C / groups, *kernel).
        t: the layout.
    """
    return Constant(np.ascontiguousarray(t.slices_of_weights(weight).swapaxes(3, 4)))


def gemm_kernel(name: str, t: GemmTile, epilogue: Epilogue) -> Kernel:
    """The kernel: x, [residual,] weights, [bias,] y; with splits, y has one part of all sums after the other."""
    b = DeviceBuilder(t.grid, t.threads)
    group, part = b.let("group", divide(b.block[2], t.splits)), modulo(b.block[2], t.splits)
    x = b.pointer("x")
    residual = b.pointer("residual") if epilogue.residual else None
    weights = b.constant("weights")
    bias = b.constant("bias") if epilogue.bias is not None else None
    y = b.pointer("y")
    shared = b.shared("shared", t.shared)

    own_part, thread = b.let("own_part", divide(b.thread, t.part_threads)), modulo(b.thread, t.part_threads)
    thread = b.let("own", thread)
    across, down = t.pixels // t.each_pixels, t.outputs // t.each_outputs
    # Neighbouring threads store to neighbouring places.
    if t.to_channels:
        m, p = b.let("m", modulo(thread, down)), b.let("p", divide(thread, down))
    else:
        m, p = b.let("m", divide(thread, across)), b.let("p", modulo(thread, across))
    # A thread's channels and pixels are in fours, and fours of neighbouring threads are neighbours, so that these read
    # a row of shared memory from all banks. Pixels whose channels are neighbours are read one by one.
    fours = [(m + i * down) * _VECTOR for i in range(t.each_outputs // _VECTOR)]
    if t.by_channel:
        pixels = [p + j * across for j in range(t.each_pixels)]
    else:
        pixels = [(p + j * across) * _VECTOR for j in range(t.each_pixels // _VECTOR)]
    # Four sums in a register are neighbours in the output's memory.
    rows, columns = t.each_outputs, t.each_pixels
    sums = [
        [b.register(_VECTOR) for _ in range(columns if t.to_channels else columns // _VECTOR)]
        for _ in range(rows // _VECTOR if t.to_channels else rows)
    ]
    for register in (register for registers in sums for register in registers):
        register.set(splat(0.0, _VECTOR))

    slices = Slices(b, t, x, weights, group, part, (shared, 0), (shared, t.stages * t.slice_words))
    of_part = t.depth // t.parts
    for left, right in slices.each():
        with b.unrolled("k", of_part // _VECTOR) as k:
            first = b.let("first", own_part * of_part + k * _VECTOR)
            if t.by_channel:
                at = right + first
                of_pixels = [_vector(b, shared, at + pixel * t.pitch) for pixel in pixels]
            for number in range(_VECTOR):
                at = left + (first + number) * t.outputs
                a = [_vector(b, shared, at + four) for four in fours]
                if t.by_channel:
                    c = [pixel.part(number, 1) for pixel in of_pixels]
                else:
                    at = right + (first + number) * t.pitch
                    vectors = [_vector(b, shared, at + pixel) for pixel in pixels]
                    c = _parts(vectors) if t.to_channels else [vector.get() for vector in vectors]
                for i, left_factor in enumerate([v.get() for v in a] if t.to_channels else _parts(a)):
                    for j, right_factor in enumerate(c):
                        one, other = (left_factor, right_factor) if t.to_channels else (right_factor, left_factor)
                        sums[i][j].set(sums[i][j].get() + one * splat(other, _VECTOR))

    if t.parts > 1:
        _add_parts(b, t, shared, [register for registers in sums for register in registers], own_part, thread)
    first_output, first_pixel, pointers = b.block[1] * t.outputs, b.block[0] * t.pixels, (y, residual, bias)
    with b.when(own_part == 0 if t.parts > 1 else True):
        for j in range(len(sums[0])):
            if t.to_channels:
                pixel = pixels[j] if t.by_channel else pixels[j // _VECTOR] + j % _VECTOR
                results = [(first_output + four, row[j], 0) for four, row in zip(fours, sums, strict=True)]
            else:
                pixel = pixels[j]
                results = [(first_output + fours[i // _VECTOR] + i % _VECTOR, row[j], 0) for i, row in enumerate(sums)]
            store_sums(b, t, group, part, first_pixel + pixel, results, pointers, epilogue, _VECTOR)
    return b.finished(name)


def _vector(b: DeviceBuilder, shared: Expr, at: Expr) -> Register:
    """Four consecutive elements of shared memory."""
    register = b.register(_VECTOR)
    register.set(b.load(shared, at, _VECTOR))
    return register


def _parts(vectors: Sequence[Register]) -> list[Expr]:
    """The elements of vectors, one by one."""
    return [vector.part(i, 1) for vector in vectors for i in range(_VECTOR)]


def _add_parts(b: DeviceBuilder, t: GemmTile, shared: Expr, sums: list[Register], own: Expr, thread: Expr) -> None:
    """Adds to the sums of the first part those of the others, one after the other."""
    for part in range(1, t.parts):
        b.barrier()
        with b.when(own == part):
            for number, register in enumerate(sums):
                b.store(shared, (number * t.part_threads + thread) * _VECTOR, register.get(), _VECTOR)
        b.barrier()
        with b.when(own == 0):
            for number, register in enumerate(sums):
                at = (number * t.part_threads + thread) * _VECTOR
                register.set(register.get() + b.load(shared, at, _VECTOR))
