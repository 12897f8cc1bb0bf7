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
from lwc_compiler.kernels.gpu.product import ProductTile, store_sum
from lwc_compiler.kernels.gpu.slices import Slices
from lwc_compiler.kernels.kernel import Constant

if TYPE_CHECKING:
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
    if t.y_strides[1] == 1:
        m, p = b.let("m", modulo(thread, down)), b.let("p", divide(thread, down))
    else:
        m, p = b.let("m", divide(thread, across)), b.let("p", modulo(thread, across))
    # A thread's channels and pixels are in fours, and fours of neighbouring threads are neighbours, so that these read
    # a row of shared memory from all banks. Pixels whose channels are neighbours are read one by one.
    outputs = [(m + i // _VECTOR * down) * _VECTOR + i % _VECTOR for i in range(t.each_outputs)]
    if t.by_channel:
        pixels = [p + j * across for j in range(t.each_pixels)]
    else:
        pixels = [(p + j // _VECTOR * across) * _VECTOR + j % _VECTOR for j in range(t.each_pixels)]
    sums = [[b.register(1) for _ in pixels] for _ in outputs]
    for register in (register for registers in sums for register in registers):
        register.set(splat(0.0, 1))

    slices = Slices(b, t, x, weights, group, part, (shared, 0), (shared, t.stages * t.slice_words))
    of_part = t.depth // t.parts
    for left, right in slices.each():
        with b.unrolled("k", of_part // _VECTOR) as k:
            first = b.let("first", own_part * of_part + k * _VECTOR)
            if t.by_channel:
                rows = [_vector(b, shared, right + pixel * t.pitch + first) for pixel in pixels]
            for number in range(_VECTOR):
                at = left + (first + number) * t.outputs
                a = [v for i in outputs[::_VECTOR] for v in _vector(b, shared, at + i)]
                if t.by_channel:
                    c = [row[number] for row in rows]
                else:
                    at = right + (first + number) * t.pitch
                    c = [v for j in pixels[::_VECTOR] for v in _vector(b, shared, at + j)]
                for i, registers in enumerate(sums):
                    for j, register in enumerate(registers):
                        register.set(register.get() + a[i] * c[j])

    if t.parts > 1:
        _add_parts(b, t, shared, [register for registers in sums for register in registers], own_part, thread)
    with b.when(own_part == 0 if t.parts > 1 else True):
        for j, place in enumerate(pixels):
            pixel = b.let("pixel", b.block[0] * t.pixels + place)
            results = [(b.block[1] * t.outputs + i, row[j].get()) for i, row in zip(outputs, sums, strict=True)]
            store_sum(b, t, group, part, pixel, results, (y, residual, bias), epilogue)
    return b.finished(name)


def _vector(b: DeviceBuilder, shared: Expr, at: Expr) -> list[Expr]:
    """Four consecutive elements of shared memory."""
    register = b.register(_VECTOR)
    register.set(b.load(shared, at, _VECTOR))
    return [register.part(i, 1) for i in range(_VECTOR)]


def _add_parts(b: DeviceBuilder, t: GemmTile, shared: Expr, sums: list[Register], own: Expr, thread: Expr) -> None:
    """Adds to the sums of the first part those of the others, one after the other."""
    for part in range(1, t.parts):
        b.barrier()
        with b.when(own == part):
            for number, register in enumerate(sums):
                b.store(shared, number * t.part_threads + thread, register.get())
        b.barrier()
        with b.when(own == 0):
            for number, register in enumerate(sums):
                register.set(register.get() + b.load(shared, number * t.part_threads + thread))
