"""Dense matrix product with the output columns in the vectors.

A tile is a panel of columns of the right-hand matrix, laid out (inner, columns of the panel). Groups of rows of the
left-hand matrix run over it: load the panel's vectors, broadcast one left-hand value for each row, and do rows x
vectors fused multiply-adds. The inner dimension is cut into blocks so that a block of the panel stays in the cache.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from lwc_compiler.kernels.builder import KernelBuilder, pieces, smaller, splat, unravel
from lwc_compiler.kernels.kernel import Constant
from lwc_compiler.kernels.layer import store_result
from lwc_compiler.kernels.weight_types import FLOAT32, WeightType

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from lwc_compiler.kernels.kernel import Kernel
    from lwc_compiler.kernels.layer import Epilogue


@dataclass(frozen=True)
class GemmLayout:
    """Shape of y (batch, m, n) = a (batch, m, k) @ b (batch, k, n), and how it is cut.

    Attributes:
        batch: products.
        m: rows of a.
        k: inner dimension.
        n: columns of b.
        lanes: float32 in a vector, at most n.
        rows: rows of a computed together, at most m.
        vectors: vectors of a panel.
        block: inner positions of a block.
        chunk: rows of a tile, a multiple of `rows`.
        a_transposed: a is stored (batch, k, m).
        b_transposed: b is stored (batch, n, k); without meaning when b is constant.
    """

    batch: int
    m: int
    k: int
    n: int
    lanes: int
    rows: int
    vectors: int
    block: int
    chunk: int
    a_transposed: bool = False
    b_transposed: bool = False

    @property
    def width(self) -> int:
        """Columns of a panel."""
        return min(self.vectors * self.lanes, self.n)

    @property
    def panels(self) -> int:
        """Panels; the last overlaps the one before it."""
        return -(-self.n // self.width)

    @property
    def starts(self) -> list[int]:
        """Column of each vector in the panel."""
        return [min(i * self.lanes, self.width - self.lanes) for i in range(self.vectors)]

    @property
    def blocks(self) -> int:
        """Blocks of the inner dimension."""
        return -(-self.k // self.block)

    @property
    def chunks(self) -> int:
        """Tiles of each panel."""
        return -(-self.m // self.chunk)


def pack_panels(weight: NDArray[Any], layout: GemmLayout) -> Constant:
    """Weight (k, n), or codes of any type, as (panels, k, width)."""
    first = np.minimum(np.arange(layout.panels) * layout.width, layout.n - layout.width)
    columns = first[:, None] + np.arange(layout.width)
    return Constant(np.ascontiguousarray(weight[:, columns].swapaxes(0, 1)).ravel())


def gemm_kernel(
    name: str, layout: GemmLayout, epilogue: Epilogue, *, constant: bool, scale: float = 1.0, kind: WeightType = FLOAT32
) -> Kernel:
    """Builds the kernel; parameters: a, b (packed if constant), [scales], [residual], [bias], y.

    Args:
        name: of the kernel.
        layout: shape and cut.
        epilogue: bias (n,), residual, activation.
        constant: b is packed by `pack_panels`; otherwise each tile copies its panel into the thread's scratch memory.
        scale: factor of the product.
        kind: how a constant b is stored.
    """
    lay, b = layout, KernelBuilder()
    left, right = b.pointer("a"), b.pointer("b", kind.dtype)
    scales = b.pointer("scales") if kind.scaled else None
    residual = b.pointer("residual") if epilogue.residual else None
    bias = b.pointer("bias") if epilogue.bias is not None else None
    y = b.pointer("y")
    panel_size = 0 if constant else lay.block * lay.width
    held_size = lay.chunk * lay.vectors * lay.lanes if lay.blocks > 1 else 0
    scratch = b.pointer("scratch") if panel_size + held_size else None
    panels = right if constant else scratch
    a_row, a_inner = (1, lay.m) if lay.a_transposed else (lay.k, 1)
    with b.loop("tile", b.first, b.last) as tile:
        batch, panel, chunk = unravel(b, tile, (lay.batch, lay.panels, lay.chunks))
        column = b.let("column", smaller(panel * lay.width, lay.n - lay.width))
        top = b.let("top", chunk * lay.chunk)
        bottom = b.let("bottom", smaller(top + lay.chunk, lay.m))
        with b.loop("block", 0, lay.blocks) as block:
            inner = b.let("inner", block * lay.block)
            count = b.let("count", smaller(lay.block, lay.k - inner))
            if constant:
                base = b.let("base", (panel * lay.k + inner) * lay.width)
            else:
                base = 0
                _copy_panel(b, lay, scratch, right, batch, inner, count, column)
            with b.loop("group", 0, (bottom - top + (lay.rows - 1)) // lay.rows) as group:
                row = b.let("row", smaller(top + group * lay.rows, lay.m - lay.rows))
                a_start = b.let("a_start", batch * (lay.m * lay.k) + row * a_row + inner * a_inner)
                sums = [[b.register(lay.lanes) for _ in range(lay.vectors)] for _ in range(lay.rows)]
                each = [(r, v, sums[r][v]) for r in range(lay.rows) for v in range(lay.vectors)]
                held = b.address(panel_size + group * (lay.rows * lay.vectors * lay.lanes))

                def clear(each: Any = each) -> None:
                    for _, _, register in each:
                        register.set(splat(0.0, lay.lanes))

                if lay.blocks == 1:
                    clear()
                else:
                    with b.when(block == 0):
                        clear()
                    with b.otherwise():
                        for r, v, register in each:
                            register.set(b.load(scratch, held + (r * lay.vectors + v) * lay.lanes, lay.lanes))
                with b.loop("i", 0, count) as i:
                    at = b.let("at", base + i * lay.width)
                    loaded = [b.load(panels, at + start, lay.lanes) for start in lay.starts]
                    values = [b.let("b", b.weights(each, kind, lay.lanes)) for each in loaded]
                    for r in range(lay.rows):
                        factor = b.let("a", b.load(left, a_start + r * a_row + i * a_inner))
                        for v, value in enumerate(values):
                            sums[r][v].set(sums[r][v].get() + splat(factor, lay.lanes) * value)
                if lay.blocks > 1:
                    with b.when(block < lay.blocks - 1):
                        for r, v, register in each:
                            b.store(scratch, held + (r * lay.vectors + v) * lay.lanes, register.get(), lay.lanes)
                with b.when(block == lay.blocks - 1):
                    for r, v, register in each:
                        start = lay.starts[v]
                        value = register.get()
                        if scale != 1.0:
                            value = value * splat(scale, lay.lanes)
                        if scales is not None:
                            value = value * b.load(scales, column + start, lay.lanes)
                        if bias is not None:
                            value = value + b.load(bias, column + start, lay.lanes)
                        at = b.let("at", batch * (lay.m * lay.n) + (row + r) * lay.n + column + start)
                        store_result(b, y, at, value, residual, epilogue.activation, lay.lanes)
    return b.build(name, lay.batch * lay.panels * lay.chunks, 4 * (panel_size + held_size))


def _copy_panel(
    b: KernelBuilder, lay: GemmLayout, scratch: Any, right: Any, batch: Any, inner: Any, count: Any, column: Any
) -> None:
    """Copies one block of a panel of a stored matrix to (inner, width)."""
    source = b.let("source", batch * (lay.k * lay.n))
    with b.loop("i", 0, count) as i:
        if lay.b_transposed:
            with b.loop("j", 0, lay.width) as j:
                value = b.load(right, source + (column + j) * lay.k + inner + i)
                b.store(scratch, i * lay.width + j, value)
            return
        at = b.let("at", source + (inner + i) * lay.n + column)
        for start, lanes in pieces(lay.width, lay.lanes):
            b.store(scratch, i * lay.width + start, b.load(right, at + start, lanes), lanes)
