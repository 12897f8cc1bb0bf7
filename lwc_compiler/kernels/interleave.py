"""Puts the phases of a transposed convolution together."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lwc_compiler.kernels.builder import KernelBuilder, divide, modulo, unravel
from lwc_compiler.kernels.layer import store_result

if TYPE_CHECKING:
    from lwc_compiler.kernels.kernel import Kernel
    from lwc_compiler.kernels.layer import Epilogue


def interleave_kernel(
    planes: int,
    size: tuple[int, ...],
    strides: tuple[int, ...],
    crop: tuple[int, ...],
    out_size: tuple[int, ...],
    epilogue: Epilogue,
) -> Kernel:
    """y[plane, i] = activation(x[plane, phase of i + crop, quotient of i + crop] + residual[plane, i]).

    Args:
        planes: batch x channels; one tile each.
        size: of one phase; x is (planes, *strides, *size).
        strides: phases in each dimension; `phase` and `quotient` are by these.
        crop: outputs to leave out at the beginning.
        out_size: y and the residual are (planes, *out_size).
        epilogue: its residual and activation are applied.
    """
    lead = (1,) * (3 - len(size))
    size, strides, out_size = lead + size, lead + strides, lead + out_size
    crop = (0,) * len(lead) + crop
    b = KernelBuilder()
    x = b.pointer("x")
    residual = b.pointer("residual") if epilogue.residual else None
    y = b.pointer("y")
    phases, phase_size = strides[0] * strides[1] * strides[2], size[0] * size[1] * size[2]
    with b.loop("plane", b.first, b.last) as plane, b.loop("line", 0, out_size[0] * out_size[1]) as line:
        depth, row = unravel(b, line, out_size[:2])
        depth, row = b.let("depth", depth + crop[0]), b.let("row", row + crop[1])
        phase = modulo(depth, strides[0]) * strides[1] + modulo(row, strides[1])
        start = b.let("start", divide(depth, strides[0]) * size[1] + divide(row, strides[1]))
        source = b.let("source", (plane * phases + phase * strides[2]) * phase_size + start * size[2])
        target = b.let("target", (plane * (out_size[0] * out_size[1]) + line) * out_size[2])
        for p in range(strides[2]):
            # output columns whose position + crop is p modulo the stride
            first = (p - crop[2]) % strides[2]
            if first >= out_size[2]:
                continue
            count = (out_size[2] - first - 1) // strides[2] + 1
            skip = (first + crop[2]) // strides[2]
            with b.loop("i", 0, count) as i:
                value = b.load(x, source + p * phase_size + skip + i)
                at = target + first + i * strides[2]
                store_result(b, y, at, value, residual, epilogue.activation)
    return b.build("interleave", planes)
