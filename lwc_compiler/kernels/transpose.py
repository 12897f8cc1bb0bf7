"""Transposes a matrix, in the registers, and finishes a layer on the way."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lwc_compiler.kernels.builder import KernelBuilder, smaller
from lwc_compiler.kernels.layer import store_result

if TYPE_CHECKING:
    from lwc_compiler.kernels.builder import Register
    from lwc_compiler.kernels.kernel import Kernel
    from lwc_compiler.kernels.layer import Epilogue

_LANES = 8  # squares of 8 x 8 fit the registers of every target with 256-bit vectors
_STRIP = 16  # columns of a tile: a cache line


def transpose_kernel(name: str, rows: int, columns: int, epilogue: Epilogue) -> Kernel:
    """The kernel of y (columns, rows) = activation(x (rows, columns) transposed + residual).

    Its parameters are x, [residual], y.

    Args:
        name: of the kernel.
        rows: of x.
        columns: of x.
        epilogue: its residual and activation are applied; its bias is not.
    """
    b = KernelBuilder()
    x = b.pointer("x")
    residual = b.pointer("residual") if epilogue.residual else None
    y = b.pointer("y")
    lanes = _LANES if rows >= _LANES and columns >= _STRIP else 1
    strip = min(_STRIP, columns)
    with b.loop("tile", b.first, b.last) as tile:
        column = b.let("column", smaller(tile * strip, columns - strip))
        with b.loop("block", 0, -(-rows // lanes)) as block:
            row = b.let("row", smaller(block * lanes, rows - lanes))
            for start in range(0, strip, lanes):
                source = b.address(row * columns + column + start)
                target = b.address((column + start) * rows + row)
                square = [b.register(lanes) for _ in range(lanes)]
                for i, register in enumerate(square):
                    register.set(b.load(x, source + i * columns, lanes))
                transpose_square(b, square)
                for i, register in enumerate(square):
                    store_result(b, y, target + i * rows, register.get(), residual, epilogue.activation, lanes)
    return b.build(name, -(-columns // strip))


def transpose_square(b: KernelBuilder, square: list[Register]) -> None:
    """Transposes as many registers as they have lanes, in place: exchanges ever smaller off-diagonal quarters."""
    lanes = len(square)
    distance = lanes // 2
    while distance:
        upper = [lane for lane in range(lanes) if not lane & distance]
        for i in upper:
            first, second = square[i], square[i + distance]
            top = b.shuffle(
                first, second, [lane if lane in upper else lane - distance + lanes for lane in range(lanes)]
            )
            bottom = b.shuffle(
                first, second, [lane + distance if lane in upper else lane + lanes for lane in range(lanes)]
            )
            square[i], square[i + distance] = top, bottom
        distance //= 2
