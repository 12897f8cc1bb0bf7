"""Products of a block whose factors are both computed: slices of them in shared memory, sums in registers.

Slices come to shared memory while others are multiplied, and every thread has some rows and columns of the tile.
Matrices lie in memory in any order of their axes. One whose neighbours in memory are factors of one sum is copied as it
lies and read four factors at a time.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lwc_compiler.kernels.builder import divide, modulo
from lwc_compiler.kernels.gpu.builder import both, ceil_div

if TYPE_CHECKING:
    from lwc_compiler.kernels.builder import Register
    from lwc_compiler.kernels.gpu.builder import DeviceBuilder, Expr

VECTOR = 4
_STEP = 8  # products of a sum that are written out in the loop: more would not fit the cache for instructions


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

    def offset(self, batch: list[Expr], row: Expr, column: Expr) -> Expr:
        """Where an element lies."""
        total = row * self.row + column * self.column
        for i, stride in zip(batch, self.batch, strict=True):
            total = total + i * stride
        return total


@dataclass(frozen=True)
class Cut:
    """How a product is cut into blocks.

    Attributes:
        rows: of a block; a power of two.
        columns: likewise.
        each_rows: of a thread, a multiple of 4.
        each_columns: likewise.
        parts: groups of threads that share a sum: of a slice, each has a part.
    """

    rows: int
    columns: int
    each_rows: int
    each_columns: int
    parts: int = 1

    @property
    def part_threads(self) -> int:
        """Threads of a part."""
        return self.rows * self.columns // (self.each_rows * self.each_columns)

    @property
    def threads(self) -> int:
        """Threads of a block."""
        return self.part_threads * self.parts


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
        each: lines of a thread.
        depth: factors of a line in a slice.
    """

    batch: tuple[int, ...]
    across: int
    along: int
    lines: int
    length: int
    tile: int
    each: int
    depth: int

    @classmethod
    def left(cls, matrix: Matrix, rows: int, length: int, cut: Cut, depth: int) -> Side:
        """The rows of a matrix."""
        return cls(matrix.batch, matrix.row, matrix.column, rows, length, cut.rows, cut.each_rows, depth)

    @classmethod
    def right(cls, matrix: Matrix, columns: int, length: int, cut: Cut, depth: int) -> Side:
        """The columns of a matrix."""
        return cls(matrix.batch, matrix.column, matrix.row, columns, length, cut.columns, cut.each_columns, depth)

    @property
    def by_line(self) -> bool:
        """Whether neighbours in memory, and in shared memory, are of one line."""
        return self.along == 1 and self.across != 1

    @property
    def pitch(self) -> int:
        """Elements of shared memory from one line, or factor, to the next: lanes read lines from different banks."""
        return self.depth + VECTOR if self.by_line else self.tile

    @property
    def elements(self) -> int:
        """Elements of a slice in shared memory."""
        return self.pitch * (self.tile if self.by_line else self.depth)

    @property
    def slices(self) -> int:
        """Slices of a line."""
        return ceil_div(self.length, self.depth)

    @property
    def vector(self) -> int:
        """Elements in one copy: 4 where all places are multiples of that, else 1."""
        near, far, extent = self.across, self.along, self.lines
        if self.by_line:
            near, far, extent = self.along, self.across, self.length
        return VECTOR if near == 1 and all(each % VECTOR == 0 for each in (far, extent, *self.batch)) else 1


class Factors:
    """The factors of one side in shared memory.

    Args:
        b: the kernel.
        side: the factors.
        shared: where they are.
        own: which of the threads that share the lines.

    Attributes:
        places: the thread's lines, of the block's.
    """

    def __init__(self, b: DeviceBuilder, side: Side, shared: Expr, own: Expr) -> None:
        self._b, self.side, self._shared = b, side, shared
        spread = side.tile // side.each  # threads that share the lines
        if side.by_line:
            self.places = [own + i * spread for i in range(side.each)]
        else:
            fours = [(own + i * spread) * VECTOR for i in range(side.each // VECTOR)]
            self.places = [four + i for four in fours for i in range(VECTOR)]

    def read(self, at: Expr, factor: Expr) -> list[list[Expr]]:
        """Four factors, from `factor` on, of each of the thread's lines, in the slice that begins at `at`."""
        side = self.side
        if side.by_line:
            lines = [self._vector(at + place * side.pitch + factor) for place in self.places]
            return [[line.part(i, 1) for line in lines] for i in range(VECTOR)]
        rows = []
        for i in range(VECTOR):
            vectors = [self._vector(at + (factor + i) * side.pitch + four) for four in self.places[::VECTOR]]
            rows.append([vector.part(lane, 1) for vector in vectors for lane in range(VECTOR)])
        return rows

    def _vector(self, at: Expr) -> Register:
        register = self._b.register(VECTOR)
        register.set(self._b.load(self._shared, at, VECTOR))
        return register


class CopiedFactors(Factors):
    """Factors that come to shared memory in slices.

    Args:
        b: the kernel.
        side: the factors.
        shared: of the slices.
        own: which of the threads that share the lines.
        pointer: where the factors are.
        batch: which product.
        first: the block's first line.
        threads: of the block.
    """

    def __init__(
        self,
        b: DeviceBuilder,
        side: Side,
        shared: Expr,
        own: Expr,
        pointer: Expr,
        batch: list[Expr],
        first: Expr,
        threads: int,
    ) -> None:
        super().__init__(b, side, shared, own)
        self._pointer, self._first = pointer, first
        near = (side.depth if side.by_line else side.tile) // side.vector  # copies of neighbours
        self._step = threads // near
        self._column = b.let("column", modulo(b.thread, near) * side.vector)
        self._row = b.let("row", divide(b.thread, near))
        line, factor = (self._row, self._column) if side.by_line else (self._column, self._row)
        place = Matrix(side.batch, side.across, side.along).offset(batch, first + line, factor)
        self._from = b.let("from", place)

    def copy(self, number: Expr, at: Expr) -> None:
        """Starts to copy a slice to a place in shared memory."""
        b, side = self._b, self.side
        first = b.let("first", number * side.depth)
        from_ = b.let("from", self._from + first * side.along)
        to = b.let("to", at + self._row * side.pitch + self._column)
        rows = side.elements // side.pitch
        for done in range(0, rows, self._step):
            row = self._row + done
            line, factor = (row, self._column) if side.by_line else (self._column, row)
            exists = first + factor < side.length if side.length % side.depth else True
            exists = both(exists, self._first + line < side.lines if side.lines % side.tile else True)
            further = done * (side.across if side.by_line else side.along)
            with b.when(True if done + self._step <= rows else row < rows):
                b.copy(self._shared, to + done * side.pitch, self._pointer, from_ + further, side.vector, exists)


class Product:
    """The product of a block's tile.

    Args:
        b: the kernel.
        cut: of the product.
        shared: of the slices, and then of a part's sums.
        stages: slices that it has room for: 2 or 3.

    Attributes:
        own_part: which of the parts of a sum the thread has.
        own_row: which of the threads that share the rows.
        own_column: which of those that share the columns; neighbouring threads have neighbouring ones.
        sums: of each of the thread's rows, four columns in a register.
    """

    def __init__(self, b: DeviceBuilder, cut: Cut, shared: Expr, stages: int) -> None:
        self._b, self._cut, self._shared, self._stages = b, cut, shared, stages
        self.own_part, self._thread = 0, b.thread
        if cut.parts > 1:
            self.own_part = b.let("own_part", divide(b.thread, cut.part_threads))
            self._thread = b.let("own", modulo(b.thread, cut.part_threads))
        wide = cut.columns // cut.each_columns
        self.own_row = b.let("own_row", divide(self._thread, wide))
        self.own_column = b.let("own_column", modulo(self._thread, wide))
        self.sums = [[b.register(VECTOR) for _ in range(cut.each_columns // VECTOR)] for _ in range(cut.each_rows)]

    def start(self, left: CopiedFactors, right: Factors) -> None:
        """Starts to copy the first slices."""
        for number in range(self._stages - 1):
            if number < left.side.slices:
                self._copy(left, right, number, number)
            self._b.commit()

    def finish(self, left: CopiedFactors, right: Factors) -> None:
        """Copies the other slices, multiplies all, and adds the parts of sums up in the first part."""
        b, cut, ahead, count = self._b, self._cut, self._stages - 1, left.side.slices
        for register in itertools.chain(*self.sums):
            for lane in range(VECTOR):
                register.set_part(lane, 0.0)
        of_part = left.side.depth // cut.parts
        step = min(_STEP, of_part)
        with b.loop("slice", 0, count) as number:
            b.wait(ahead - 1)
            b.barrier()
            with b.when(number + ahead < count):
                self._copy(left, right, number + ahead, modulo(number + ahead, self._stages))
            b.commit()
            at = b.let("left_at", modulo(number, self._stages) * self._stage(left, right))
            right_at = at + left.side.elements if isinstance(right, CopiedFactors) else number * right.side.elements
            right_at = b.let("right_at", right_at)
            with b.loop("k", 0, of_part // step, rolled=True) as k:
                first = b.let("first", self.own_part * of_part + k * step)
                for i in range(0, step, VECTOR):
                    factors = left.read(at, first + i), right.read(right_at, first + i)
                    for of_rows, of_columns in zip(*factors, strict=True):
                        self._add_products(of_rows, of_columns)
        self._add_parts()

    def _stage(self, left: Factors, right: Factors) -> int:
        """Elements of a slice in shared memory."""
        return left.side.elements + (right.side.elements if isinstance(right, CopiedFactors) else 0)

    def _copy(self, left: CopiedFactors, right: Factors, number: Expr, stage: Expr) -> None:
        at = self._b.let("at", stage * self._stage(left, right))
        left.copy(number, at)
        if isinstance(right, CopiedFactors):
            right.copy(number, self._b.let("at", at + left.side.elements))

    def _add_products(self, of_rows: list[Expr], of_columns: list[Expr]) -> None:
        """Adds a product to every sum of a thread."""
        for registers, of_row in zip(self.sums, of_rows, strict=True):
            for number, of_column in enumerate(of_columns):
                register, lane = registers[number // VECTOR], number % VECTOR
                register.set_part(lane, register.part(lane, 1) + of_row * of_column)

    def _add_parts(self) -> None:
        """Adds to the sums of the first part those of the others, one after the other."""
        b, sums = self._b, list(itertools.chain(*self.sums))
        places = [(number * self._cut.part_threads + self._thread) * VECTOR for number in range(len(sums))]
        for part in range(1, self._cut.parts):
            b.barrier()
            with b.when(self.own_part == part):
                for register, place in zip(sums, places, strict=True):
                    b.store(self._shared, place, register.get(), VECTOR)
            b.barrier()
            with b.when(self.own_part == 0):
                for register, place in zip(sums, places, strict=True):
                    register.set(register.get() + b.load(self._shared, place, VECTOR))

    def multiply(self, factors: list[Expr]) -> None:
        """Multiplies every sum by the factor of its column; these are vectors of four."""
        for registers in self.sums:
            for register, factor in zip(registers, factors, strict=True):
                register.set(register.get() * factor)

    def store(
        self, y: Expr, matrix: Matrix, batch: list[Expr], firsts: tuple[Expr, Expr], left: Factors, right: Factors
    ) -> None:
        """Stores the sums that exist, in the first part's threads.

        Args:
            y: where to.
            matrix: how it lies there.
            batch: which product.
            firsts: the block's first row and column.
            left: the rows.
            right: the columns.
        """
        b = self._b
        base = b.let("base", matrix.offset(batch, *firsts))
        rows, columns = left.side, right.side
        down = _together(matrix.row, matrix.column, matrix.batch, rows)
        across = 1 if down > 1 else _together(matrix.column, matrix.row, matrix.batch, columns)
        with b.when(self.own_part == 0 if self._cut.parts > 1 else True):
            for i in range(0, len(self.sums), down):
                row = left.places[i]
                with b.when(firsts[0] + row < rows.lines if rows.lines % rows.tile else True):
                    at = b.let("at", base + row * matrix.row)
                    for j in range(0, len(right.places), across):
                        column = right.places[j]
                        with b.when(firsts[1] + column < columns.lines if columns.lines % columns.tile else True):
                            value = (
                                self._column(i, j) if down > 1 else self.sums[i][j // VECTOR].part(j % VECTOR, across)
                            )
                            b.store(y, at + column * matrix.column, value, max(down, across))

    def _column(self, i: int, j: int) -> Expr:
        """Four rows of a column in a vector."""
        together = self._b.register(VECTOR)
        for lane in range(VECTOR):
            together.set_part(lane, self.sums[i + lane][j // VECTOR].part(j % VECTOR, 1))
        return together.get()


def _together(near: int, far: int, batch: tuple[int, ...], side: Side) -> int:
    """Lines that are neighbours in the output's memory and of one thread, which stores them at once: 4, or 1."""
    whole = all(each % VECTOR == 0 for each in (far, side.lines, *batch))
    return VECTOR if near == 1 and whole and not side.by_line else 1
