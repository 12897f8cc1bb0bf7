"""Products of two computed matrices on a GPU, many at a time: the scores of an attention, and what they weigh.

A block computes a tile of one product, as `factors.py` says. Matrices lie in memory in any order of their axes, so that
an attention needs no transposition of its heads.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from lwc_compiler.kernels.builder import splat, unravel
from lwc_compiler.kernels.gpu.builder import WARP, DeviceBuilder, blocks_at_once, ceil_div
from lwc_compiler.kernels.gpu.factors import VECTOR, CopiedFactors, Cut, Matrix, Product, Side
from lwc_compiler.kernels.gpu.product_cost import FITTED
from lwc_compiler.kernels.kernel import STATIC_SHARED_BYTES, Input, Output, Plan, Step

if TYPE_CHECKING:
    from lwc_compiler.kernels.kernel import Kernel
    from lwc_compiler.targets.target import Gpu

_MOST_STAGES = 3
_CUTS = (
    Cut(128, 128, 8, 8), Cut(64, 128, 8, 8), Cut(128, 64, 8, 8), Cut(64, 64, 8, 4), Cut(64, 64, 8, 4, 2),
    Cut(32, 64, 4, 4), Cut(32, 64, 4, 4, 2), Cut(32, 32, 4, 4), Cut(32, 32, 4, 4, 2), Cut(32, 32, 4, 4, 4),
    Cut(16, 64, 4, 4, 4),
)  # fmt: skip
_DEPTHS = (32, 16)
_WARPS = 8  # of a multiprocessor, which hide what each of them waits for


@dataclass(frozen=True)
class Products:
    """Products y (m, n) = scale * a (m, k) @ b (k, n).

    Attributes:
        batch: how many, along each axis.
        m: rows of a and y.
        k: columns of a, rows of b.
        n: columns of b and y.
        a: left factors.
        b: right factors.
        y: results.
        scale: factor of all.
    """

    batch: tuple[int, ...]
    m: int
    k: int
    n: int
    a: Matrix
    b: Matrix
    y: Matrix
    scale: float = 1.0

    @property
    def by_row(self) -> Products:
        """The same, with neighbours in memory in a row of the result; where they are not, y' = b' @ a'."""
        if self.y.column == 1 or self.y.row != 1:
            return self
        return replace(self, m=self.n, n=self.m, a=self.b.transposed, b=self.a.transposed, y=self.y.transposed)


@dataclass(frozen=True)
class BatchedTile:
    """How products are cut into blocks.

    Attributes:
        products: what is computed.
        cut: of each.
        depth: products of a sum in a slice.
    """

    products: Products
    cut: Cut
    depth: int

    @property
    def sides(self) -> tuple[Side, Side]:
        """The left and the right factors."""
        p = self.products
        left, right = Side.left(p.a, p.m, p.k, self.cut, self.depth), Side.right(p.b, p.n, p.k, self.cut, self.depth)
        return left, right

    @property
    def stage(self) -> int:
        """Elements of a slice of both."""
        return sum(side.elements for side in self.sides)

    @property
    def stages(self) -> int:
        """Slices that shared memory has room for; fewer than 2 are too few."""
        return min(_MOST_STAGES, STATIC_SHARED_BYTES // (4 * self.stage))

    @property
    def grid(self) -> tuple[int, ...]:
        """Blocks along the axes of the batch, the rows and the columns."""
        p = self.products
        return (*p.batch, ceil_div(p.m, self.cut.rows), ceil_div(p.n, self.cut.columns))


def plan_products(products: Products, gpu: Gpu) -> Plan:
    """Plans products; inputs 0 and 1 are a and b, output 0 is y, all float32."""
    p = products.by_row
    kernel = batched_kernel("gpu_batched", batched_tile(p, gpu))
    factors = (Input(0), Input(1)) if p is products else (Input(1), Input(0))
    flops = 2 * math.prod(p.batch) * p.m * p.k * p.n
    return Plan((Step(kernel, (*factors, Output(0))),), flops=flops)


def batched_tile(products: Products, gpu: Gpu) -> BatchedTile:
    """The cut that is predicted to be the fastest."""
    tiles = [BatchedTile(products, cut, depth) for cut, depth in itertools.product(_CUTS, _DEPTHS)]
    return min((tile for tile in tiles if tile.stages > 1), key=lambda tile: _cycles(tile, gpu))


def _cycles(t: BatchedTile, gpu: Gpu) -> float:
    """Predicted as in `product_cost.py`, where there are enough warps."""
    cut, blocks, warps = t.cut, math.prod(t.grid), t.cut.threads / WARP
    there = blocks_at_once(gpu, 4 * t.stages * t.stage, cut.threads)
    at_a_time = min(ceil_div(blocks, gpu.multiprocessors), there)
    turns = ceil_div(blocks, gpu.multiprocessors * at_a_time)
    of_slice = cut.rows * cut.columns * t.depth / gpu.lanes * FITTED.product_cycles
    of_slice += warps * t.depth / cut.parts * (cut.each_rows + cut.each_columns) * FITTED.load_cycles
    of_slice += sum(side.tile * side.depth / side.vector for side in t.sides) / WARP * FITTED.copy_cycles
    of_slice /= min(1.0, at_a_time * warps / _WARPS)
    slices = t.sides[0].slices
    added = 2 * (cut.parts - 1) * cut.rows * cut.columns / WARP * FITTED.load_cycles
    return turns * (slices * FITTED.slice_cycles + at_a_time * (slices * of_slice + added))


def batched_kernel(name: str, t: BatchedTile) -> Kernel:
    """The kernel: a, b, y."""
    p, cut = t.products, t.cut
    b = DeviceBuilder((math.prod(t.grid), 1, 1), cut.threads)
    pointers = b.pointer("a"), b.pointer("b")
    y = b.pointer("y")
    shared = b.shared("shared", max(t.stages * t.stage, cut.rows * cut.columns * (cut.parts > 1)))
    *batch, down, across = unravel(b, b.block[0], t.grid)
    firsts = b.let("first_row", down * cut.rows), b.let("first_column", across * cut.columns)
    product = Product(b, cut, shared, t.stages)
    left, right = (
        CopiedFactors(b, side, shared, own, pointer, batch, first, cut.threads)
        for side, own, pointer, first in zip(
            t.sides, (product.own_row, product.own_column), pointers, firsts, strict=True
        )
    )
    product.start(left, right)
    product.finish(left, right)
    if p.scale != 1:
        product.multiply([splat(p.scale, VECTOR)] * (cut.each_columns // VECTOR))
    product.store(y, p.y, batch, firsts, left, right)
    return b.finished(name)
