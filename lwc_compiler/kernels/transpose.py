"""Transposes matrices, in the registers, and finishes a layer on the way."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lwc_compiler.kernels.builder import KernelBuilder, smaller, unravel
from lwc_compiler.kernels.layer import store_result

if TYPE_CHECKING:
    from lwc_compiler.kernels.builder import Register
    from lwc_compiler.kernels.kernel import Kernel
    from lwc_compiler.kernels.layer import Epilogue

_LANES = 8  # squares of 8 x 8 fit the registers of every target with 256-bit vectors
_STRIP = 16  # columns of a tile: a cache line


def transpose_kernel(name: str, batch: int, rows: int, columns: int, epilogue: Epilogue) -> Kernel:
    """The kernel of y (batch, columns, rows) = activation(x (batch, rows, columns) transposed + residual).

    Its parameters are x, [residual], y.

    Args:
        name: of the kernel.
        batch: matrices.
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
    strips = -(-columns // strip)
    with b.loop("tile", b.first, b.last) as tile:
        matrix, column = unravel(b, tile, (batch, strips))
        column = b.let("column", smaller(column * strip, columns - strip))
        origin = b.let("origin", matrix * (rows * columns))
        with b.loop("block", 0, -(-rows // lanes)) as block:
            row = b.let("row", smaller(block * lanes, rows - lanes))
            for start in range(0, strip, lanes):
                source = b.address(origin + row * columns + column + start)
                target = b.address(origin + (column + start) * rows + row)
                square = [b.register(lanes) for _ in range(lanes)]
                for i, register in enumerate(square):
                    register.set(b.load(x, source + i * columns, lanes))
                transpose_square(b, square)
                for i, register in enumerate(square):
                    store_result(b, y, target + i * rows, register.get(), residual, epilogue.activation, lanes)
    return b.build(name, batch * strips)


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
