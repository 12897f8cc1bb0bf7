"""Every n-th pixel of every n-th row: what a pointwise convolution with a stride reads, side by side."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lwc_compiler.kernels.builder import KernelBuilder, pieces

if TYPE_CHECKING:
    from lwc_compiler.kernels.kernel import Kernel

_MOST_LANES = 16


def subsample_kernel(planes: int, size: tuple[int, int], strides: tuple[int, int], out: tuple[int, int]) -> Kernel:
    """Builds the kernel; parameters: x (planes, *size), y (planes, *out), float32. A tile is a plane.

    Args:
        planes: images x channels.
        size: height and width of the input.
        strides: of rows and of columns.
        out: height and width of the output; row r, column c is row r * strides[0], column c * strides[1] of the input.
    """
    b = KernelBuilder()
    x, y = b.pointer("x"), b.pointer("y")
    with b.loop("plane", b.first, b.last) as plane, b.loop("row", 0, out[0]) as row:
        source = b.address(plane * (size[0] * size[1]) + row * (strides[0] * size[1]))
        target = b.address(plane * (out[0] * out[1]) + row * out[1])
        for start, lanes in pieces(out[1], _MOST_LANES):
            b.store(y, target + start, b.load(x, source + start * strides[1], lanes, strides[1]), lanes)
    return b.build("subsample", planes)
