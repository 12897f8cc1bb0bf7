"""A convolution with a stride as one without, over the parts of the input that the stride takes turns reading.

With stride s, kernel position k reads input s * y + k - pad for output y: of the s interleaved parts (phases) of the
input it is part (k - pad) mod s, at y + floor((k - pad) / s). So every phase is a channel of its own, of a convolution
with stride 1 whose kernel has ceil(kernel / s) positions or one more; those that no kernel position leads to are 0.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from tvm import tirx

from lwc_compiler.kernels.builder import KernelBuilder, pieces, splat, unravel

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from lwc_compiler.kernels.kernel import Kernel
    from lwc_compiler.kernels.layer import ConvGeometry


def phased(weight: NDArray[np.float32], geometry: ConvGeometry) -> tuple[NDArray[np.float32], ConvGeometry]:
    """Weight and geometry of the convolution with stride 1.

    Args:
        weight: float32 (O, C, kernel height, kernel width).
        geometry: over two dimensions, without dilations or groups, not transposed.

    Returns:
        The weight (O, C * strides, kernel height, kernel width) and the geometry; its input is `phase_kernel`'s output.
    """
    g, n = geometry, 2
    moved = [np.arange(g.kernel[i]) - g.pads[i] for i in range(n)]
    phase = [moved[i] % g.strides[i] for i in range(n)]
    shift = [moved[i] // g.strides[i] for i in range(n)]
    pads = [-int(each[0]) for each in shift]
    kernel = tuple(int(shift[i][-1]) + pads[i] + 1 for i in range(n))
    result = np.zeros((g.out_channels, g.in_channels, *g.strides, *kernel), np.float32)
    rows, columns = (np.arange(size) for size in g.kernel)
    i, j = np.ix_(rows, columns)
    result[:, :, phase[0][i], phase[1][j], shift[0][i] + pads[0], shift[1][j] + pads[1]] = weight
    size = tuple(-(-g.in_size[i] // g.strides[i]) for i in range(n))
    ends = [g.out_size[i] - 1 + kernel[i] - pads[i] - size[i] for i in range(n)]
    channels = g.in_channels * g.strides[0] * g.strides[1]
    plain = replace(
        g, in_channels=channels, in_size=size, kernel=kernel, strides=(1, 1), pads=(*pads, *ends), dilations=(1, 1)
    )
    return result.reshape(g.out_channels, channels, *kernel), plain


def phase_kernel(planes: int, size: tuple[int, int], strides: tuple[int, int], most: int) -> Kernel:
    """Builds the kernel; parameters: x (planes, *size), y (planes, *strides, *parts), float32.

    Row r, column c of part (i, j) is row r * strides[0] + i, column c * strides[1] + j of the input, or 0 beyond it.

    Args:
        planes: images x channels.
        size: height and width of the input.
        strides: of rows and of columns.
        most: float32 in a vector.
    """
    b = KernelBuilder()
    x, y = b.pointer("x"), b.pointer("y")
    (height, width), (down, across) = size, strides
    rows, columns = -(-height // down), -(-width // across)

    def store(to: Any, start: int, values: list[Any], lanes: int) -> None:
        for j, value in enumerate(values):
            b.store(y, to + (j * rows * columns + start), value, lanes)

    with b.loop("tile", b.first, b.last) as tile:
        plane, row = unravel(b, tile, (planes, rows))
        with b.loop("i", 0, down) as i:
            line = b.let("line", row * down + i)
            source = b.address((plane * height + line) * width)
            to = b.address((plane * down + i) * (across * rows * columns) + row * columns)
            with b.when(line < height):
                for start, lanes in pieces(width // across, most):
                    parts = [b.let("x", b.load(x, source + (start * across + k * lanes), lanes)) for k in range(across)]
                    store(to, start, _dealt(parts, lanes), lanes)
                if width % across:
                    at = source + width // across * across
                    last = [b.load(x, at + j) if j < width % across else 0.0 for j in range(across)]
                    store(to, columns - 1, last, 1)
            with b.otherwise():
                for start, lanes in pieces(columns, most):
                    store(to, start, [splat(0.0, lanes)] * across, lanes)
    return b.build("phases", planes * rows)


def _dealt(parts: list[Any], lanes: int) -> list[Any]:
    """The lanes of vectors that follow each other, dealt out to as many vectors in turns."""
    if lanes == 1:
        return parts
    return [
        tirx.Shuffle(parts, [tirx.const(i * len(parts) + j, "int32") for i in range(lanes)]) for j in range(len(parts))
    ]
