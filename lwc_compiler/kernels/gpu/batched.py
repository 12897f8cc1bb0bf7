"""Products of two computed matrices on a GPU, many at a time: the scores of an attention, and what they weigh.

A block computes a tile of one product. Slices of both matrices come to shared memory while others are multiplied, and
every thread has some rows and columns of the tile in registers. Matrices lie in memory in any order of their axes, so
that an attention needs no transposition of its heads. A matrix whose neighbours in memory are factors of one sum is
copied as it lies and read four factors at a time.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from lwc_compiler.kernels.builder import divide, modulo, splat, unravel
from lwc_compiler.kernels.gpu.builder import WARP, DeviceBuilder, blocks_at_once, both, ceil_div
from lwc_compiler.kernels.gpu.product_cost import FITTED
from lwc_compiler.kernels.kernel import STATIC_SHARED_BYTES, Input, Output, Plan, Step

if TYPE_CHECKING:
    from lwc_compiler.kernels.builder import Register
    from lwc_compiler.kernels.gpu.builder import Expr
    from lwc_compiler.kernels.kernel import Kernel
    from lwc_compiler.targets.target import Gpu

_VECTOR = 4
_MOST_STAGES = 3
_STEP = 8  # products of a sum that are written out in the loop: more would not fit the cache for instructions
# Rows and columns of a block, and of a thread; groups of threads that share a sum.
_CUTS = (
    (128, 128, 8, 8, 1), (64, 128, 8, 8, 1), (128, 64, 8, 8, 1), (64, 64, 8, 4, 1), (64, 64, 8, 4, 2),
    (32, 64, 4, 4, 1), (32, 64, 4, 4, 2), (32, 32, 4, 4, 1), (32, 32, 4, 4, 2), (32, 32, 4, 4, 4), (16, 64, 4, 4, 4),
)  # fmt: skip
_DEPTHS = (32, 16)


@dataclass(frozen=True)
class Matrix:
    """How matrices lie in memory, in elements.

    Attributes:
        batch: from one matrix to the next along each axis of the batch.
        row: from a row to the next.
        column: from a column to the next.
    """

    batch: tuple[int, ...]
    row: int
    column: int

    @property
    def transposed(self) -> Matrix:
        """The same memory with rows for columns."""
        return Matrix(self.batch, self.column, self.row)


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
        rows: of a block; a power of two.
        columns: likewise.
        each_rows: of a thread, a multiple of 4.
        each_columns: likewise.
        parts: groups of threads that share a sum: of a slice, each has a part.
        depth: products of a sum in a slice.
    """

    products: Products
    rows: int
    columns: int
    each_rows: int
    each_columns: int
    parts: int
    depth: int

    @property
    def part_threads(self) -> int:
        """Threads of a part."""
        return self.rows * self.columns // (self.each_rows * self.each_columns)

    @property
    def threads(self) -> int:
        """Threads of a block."""
        return self.part_threads * self.parts

    @property
    def sides(self) -> tuple[Side, Side]:
        """The left and the right factors."""
        p = self.products
        return (
            Side(p.a.batch, p.a.row, p.a.column, p.m, p.k, self.rows, self.depth, self.each_rows),
            Side(p.b.batch, p.b.column, p.b.row, p.n, p.k, self.columns, self.depth, self.each_columns),
        )

    @property
    def stage(self) -> int:
        """Elements of a slice of both."""
        return sum(side.elements for side in self.sides)

    @property
    def slices(self) -> int:
        """Slices of a sum."""
        return ceil_div(self.products.k, self.depth)

    @property
    def stages(self) -> int:
        """Slices that shared memory has room for; fewer than 2 are too few."""
        return min(_MOST_STAGES, STATIC_SHARED_BYTES // (4 * self.stage))

    @property
    def grid(self) -> tuple[int, ...]:
        """Blocks along the axes of the batch, the rows and the columns."""
        p = self.products
        return (*p.batch, ceil_div(p.m, self.rows), ceil_div(p.n, self.columns))


@dataclass(frozen=True)
class Side:
    """The factors of one side: those of a row of the left matrix, or of a column of the right one, are a line.

    Attributes:
        batch: elements from one matrix to the next along each axis of the batch.
        across: elements from one line to the next.
        along: elements from one factor of a line to the next.
        lines: of a matrix.
        length: of a line.
        tile: lines of a block.
        depth: factors of a line in a slice.
        each: lines of a thread.
    """

    batch: tuple[int, ...]
    across: int
    along: int
    lines: int
    length: int
    tile: int
    depth: int
    each: int

    @property
    def by_line(self) -> bool:
        """Whether neighbours in memory, and in shared memory, are of one line."""
        return self.along == 1 and self.across != 1

    @property
    def pitch(self) -> int:
        """Elements of shared memory from one line, or factor, to the next: lanes read lines from different banks."""
        return self.depth + _VECTOR if self.by_line else self.tile

    @property
    def elements(self) -> int:
        """Elements of a slice in shared memory."""
        return self.pitch * (self.tile if self.by_line else self.depth)

    @property
    def vector(self) -> int:
        """Elements in one copy: 4 where all places are multiples of that, else 1."""
        near, far, extent = (
            (self.along, self.across, self.length) if self.by_line else (self.across, self.along, self.lines)
        )
        whole = all(stride % _VECTOR == 0 for stride in (far, extent, *self.batch))
        return _VECTOR if near == 1 and whole else 1


def plan_products(products: Products, gpu: Gpu) -> Plan:
    """Plans products; inputs 0 and 1 are a and b, output 0 is y, all float32."""
    p = products.by_row
    kernel = batched_kernel("gpu_batched", batched_tile(p, gpu))
    factors = (Input(0), Input(1)) if p is products else (Input(1), Input(0))
    flops = 2 * math.prod(p.batch) * p.m * p.k * p.n
    return Plan((Step(kernel, (*factors, Output(0))),), flops=flops)


def batched_tile(products: Products, gpu: Gpu) -> BatchedTile:
    """The cut that is predicted to be the fastest."""
    tiles = [BatchedTile(products, *cut, depth) for cut, depth in itertools.product(_CUTS, _DEPTHS)]
    return min((tile for tile in tiles if tile.stages > 1), key=lambda tile: _cycles(tile, gpu))


def _cycles(t: BatchedTile, gpu: Gpu) -> float:
    """Predicted as in `product_cost.py`."""
    blocks, warps = math.prod(t.grid), t.threads / WARP
    there = blocks_at_once(gpu, 4 * t.stages * t.stage, t.threads)
    at_a_time = min(ceil_div(blocks, gpu.multiprocessors), there)
    turns = ceil_div(blocks, gpu.multiprocessors * at_a_time)
    slice_cycles = t.rows * t.columns * t.depth / gpu.lanes * FITTED.product_cycles
    slice_cycles += warps * t.depth / t.parts * (t.each_rows + t.each_columns) * FITTED.load_cycles
    slice_cycles += sum(side.tile * side.depth / side.vector for side in t.sides) / WARP * FITTED.copy_cycles
    added = 2 * (t.parts - 1) * t.rows * t.columns / WARP * FITTED.load_cycles
    return turns * (t.slices * FITTED.slice_cycles + at_a_time * (t.slices * slice_cycles + added))


def batched_kernel(name: str, t: BatchedTile) -> Kernel:
    """The kernel: a, b, y."""
    b = DeviceBuilder((math.prod(t.grid), 1, 1), t.threads)
    pointers = b.pointer("a"), b.pointer("b")
    y = b.pointer("y")
    p = t.products
    shared = b.shared("shared", max(t.stages * t.stage, t.rows * t.columns * (t.parts > 1)))
    *batch, down, across = unravel(b, b.block[0], t.grid)
    first_row, first_column = b.let("first_row", down * t.rows), b.let("first_column", across * t.columns)
    own_part = b.let("own_part", divide(b.thread, t.part_threads)) if t.parts > 1 else 0
    thread = b.let("own", modulo(b.thread, t.part_threads)) if t.parts > 1 else b.thread
    # Neighbouring threads store to neighbouring places.
    wide = t.columns // t.each_columns
    owns = b.let("own_row", divide(thread, wide)), b.let("own_column", modulo(thread, wide))
    left, right = (
        _Slices(b, t, side, pointer, shared, batch, first, own)
        for side, pointer, first, own in zip(t.sides, pointers, (first_row, first_column), owns, strict=True)
    )
    sums = [[b.register(_VECTOR) for _ in range(t.each_columns // _VECTOR)] for _ in range(t.each_rows)]
    for register in itertools.chain(*sums):
        for lane in range(_VECTOR):
            register.set_part(lane, 0.0)

    def copy(number: Expr, stage: Expr) -> None:
        at = b.let("at", stage * t.stage)
        left.copy(number, at)
        right.copy(number, b.let("at", at + left.side.elements))

    ahead = t.stages - 1
    for number in range(ahead):
        with b.when(number < t.slices):
            copy(number, number)
        b.commit()
    with b.loop("slice", 0, t.slices) as number:
        b.wait(ahead - 1)
        b.barrier()
        with b.when(number + ahead < t.slices):
            copy(number + ahead, modulo(number + ahead, t.stages))
        b.commit()
        at = b.let("left_at", modulo(number, t.stages) * t.stage)
        ats = at, b.let("right_at", at + left.side.elements)
        of_part = t.depth // t.parts
        step = min(_STEP, of_part)
        with b.loop("k", 0, of_part // step, rolled=True) as k:
            first = b.let("first", own_part * of_part + k * step)
            for i in range(0, step, _VECTOR):
                factors = [side.read(at, first + i) for side, at in zip((left, right), ats, strict=True)]
                for of_rows, of_columns in zip(*factors, strict=True):
                    _add_products(sums, of_rows, of_columns)

    if t.parts > 1:
        _add_parts(b, t, shared, list(itertools.chain(*sums)), own_part, thread)
    with b.when(own_part == 0 if t.parts > 1 else True):
        base = b.let("base", _offset(batch, p.y.batch) + first_row * p.y.row + first_column * p.y.column)
        _store(b, t, y, base, (first_row, first_column), (left.places, right.places), sums)
    return b.finished(name)


def _add_products(sums: list[list[Register]], of_rows: list[Expr], of_columns: list[Expr]) -> None:
    """Adds a product to every sum of a thread."""
    for registers, of_row in zip(sums, of_rows, strict=True):
        for number, of_column in enumerate(of_columns):
            register, lane = registers[number // _VECTOR], number % _VECTOR
            register.set_part(lane, register.part(lane, 1) + of_row * of_column)


def _add_parts(b: DeviceBuilder, t: BatchedTile, shared: Expr, sums: list[Register], own: Expr, thread: Expr) -> None:
    """Adds to the sums of the first part those of the others, one after the other."""
    places = [(number * t.part_threads + thread) * _VECTOR for number in range(len(sums))]
    for part in range(1, t.parts):
        b.barrier()
        with b.when(own == part):
            for register, place in zip(sums, places, strict=True):
                b.store(shared, place, register.get(), _VECTOR)
        b.barrier()
        with b.when(own == 0):
            for register, place in zip(sums, places, strict=True):
                register.set(register.get() + b.load(shared, place, _VECTOR))


def _store(
    b: DeviceBuilder,
    t: BatchedTile,
    y: Expr,
    base: Expr,
    firsts: tuple[Expr, Expr],
    places: tuple[list[Expr], list[Expr]],
    sums: list[list[Register]],
) -> None:
    """Stores a thread's sums that exist; `base` is where the block's first one is."""
    p, lanes = t.products, _stored_together(t)
    (first_row, first_column), (rows, columns) = firsts, places
    for registers, row in zip(sums, rows, strict=True):
        with b.when(first_row + row < p.m if p.m % t.rows else True):
            at = b.let("at", base + row * p.y.row)
            for number in range(0, len(columns), lanes):
                column = columns[number]
                with b.when(first_column + column < p.n if p.n % t.columns else True):
                    value = registers[number // _VECTOR].part(number % _VECTOR, lanes)
                    value = value if p.scale == 1 else value * splat(p.scale, lanes)
                    b.store(y, at + column * p.y.column, value, lanes)


def _stored_together(t: BatchedTile) -> int:
    """Neighbours in memory that a thread has sums of, and stores at once."""
    y = t.products.y
    whole = all(stride % _VECTOR == 0 for stride in (y.row, t.products.n, *y.batch))
    return _VECTOR if y.column == 1 and whole and not t.sides[1].by_line else 1


class _Slices:
    """The slices of one side in shared memory.

    Args:
        b: the kernel.
        t: its tile.
        side: the factors.
        pointer: where they are.
        shared: the slices of both sides.
        batch: which product.
        first: the block's first line.
        own: which of the threads that share the lines.
    """

    def __init__(
        self,
        b: DeviceBuilder,
        t: BatchedTile,
        side: Side,
        pointer: Expr,
        shared: Expr,
        batch: list[Expr],
        first: Expr,
        own: Expr,
    ) -> None:
        self._b, self._t, self.side, self._pointer, self._shared = b, t, side, pointer, shared
        self._first = first
        self._near = (side.depth if side.by_line else side.tile) // side.vector  # copies of neighbours
        self._column = b.let("column", modulo(b.thread, self._near) * side.vector)
        self._row = b.let("row", divide(b.thread, self._near))
        line, factor = (self._row, self._column) if side.by_line else (self._column, self._row)
        from_ = _offset(batch, side.batch) + (first + line) * side.across + factor * side.along
        self._from = b.let("from", from_)
        spread = side.tile // side.each  # threads that share the lines
        if side.by_line:
            self.places = [own + i * spread for i in range(side.each)]
        else:
            fours = [(own + i * spread) * _VECTOR for i in range(side.each // _VECTOR)]
            self.places = [four + i for four in fours for i in range(_VECTOR)]

    def copy(self, number: Expr, at: Expr) -> None:
        """Starts to copy a slice to a place in shared memory."""
        b, side = self._b, self.side
        first = b.let("first", number * side.depth)
        from_ = b.let("from", self._from + first * side.along)
        to = b.let("to", at + self._row * side.pitch + self._column)
        rows, step = side.elements // side.pitch, self._t.threads // self._near
        for done in range(0, rows, step):
            row = self._row + done
            line, factor = (row, self._column) if side.by_line else (self._column, row)
            exists = first + factor < side.length if side.length % side.depth else True
            exists = both(exists, self._first + line < side.lines if side.lines % side.tile else True)
            further = done * (side.across if side.by_line else side.along)
            with b.when(True if done + step <= rows else row < rows):
                b.copy(self._shared, to + done * side.pitch, self._pointer, from_ + further, side.vector, exists)

    def read(self, at: Expr, factor: Expr) -> list[list[Expr]]:
        """Four factors, from `factor` on, of each of the thread's lines, in the slice that begins at `at`."""
        side = self.side
        if side.by_line:
            lines = [self._vector(at + place * side.pitch + factor) for place in self.places]
            return [[line.part(i, 1) for line in lines] for i in range(_VECTOR)]
        rows = []
        for i in range(_VECTOR):
            vectors = [self._vector(at + (factor + i) * side.pitch + four) for four in self.places[::_VECTOR]]
            rows.append([vector.part(lane, 1) for vector in vectors for lane in range(_VECTOR)])
        return rows

    def _vector(self, at: Expr) -> Register:
        register = self._b.register(_VECTOR)
        register.set(self._b.load(self._shared, at, _VECTOR))
        return register


def _offset(batch: list[Expr], strides: tuple[int, ...]) -> Expr:
    """Where the matrix begins."""
    total: Expr = 0
    for i, stride in zip(batch, strides, strict=True):
        total = total + i * stride
    return total
