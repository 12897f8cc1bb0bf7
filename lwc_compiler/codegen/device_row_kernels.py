"""Kernels for GPUs of functions along rows (`device_rows`): each row stays in registers from its loads to its stores.

A short row has a thread, a longer one a warp, and the longest a block. Lanes go along the row, and what threads combine
goes from lane to lane, and between warps through shared memory. Where neighbours in memory are in neighbouring rows,
lanes go across rows instead, and what the threads of a row combine goes through shared memory. A thread has vectors of
up to four elements: of its row, or of four rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import tvm_ffi
from tvm import tirx
from tvm.ir import TensorLoad
from tvm.tirx import IntImm, Select, Var

from lwc_compiler.codegen.schedules_expressions import (
    children,
    dtype_of,
    index,
    is_call,
    loads,
    substitute,
    with_children,
)
from lwc_compiler.codegen.schedules_expressions import variables as variables_of
from lwc_compiler.codegen.schedules_stages import is_zero
from lwc_compiler.kernels.builder import divide, modulo
from lwc_compiler.kernels.gpu.builder import COMBINED, WARP, DeviceBuilder, both, ceil_div

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from lwc_compiler.codegen.device_rows import Phase, Rows
    from lwc_compiler.kernels.gpu.builder import Expr
    from lwc_compiler.kernels.kernel import Kernel

_ALONE = 64  # elements that one thread takes, of neighbouring rows; in a row of its own a quarter
_ALONE_ROWS = 4096  # as many rows are worth it
_KEPT = 24  # elements of an operand that a thread keeps in registers
_LOADED = 96  # elements of all operands that it loads before it computes
_WARPS = 8  # of a row, at most
_THREADS = 128  # of a block whose rows have a thread each
_MANY_ROWS = 1024  # with a warp each: four share a block
# Where neighbours in memory are in neighbouring rows:
_WIDTHS = (32, 16, 8)  # rows of a block: no fewer than memory gives at a time
_MANY_BLOCKS = 128  # enough for most multiprocessors
_MOST_THREADS = 256  # of a block
_KEPT_ACROSS = 48  # elements of an operand that a thread keeps in registers
_OF_THREAD = 8  # elements of a row that a thread has at least, in vectors of several rows


@dataclass(frozen=True)
class RowTile:
    """How rows are shared among threads.

    Attributes:
        lanes: threads of a row along x: a warp, or 1, and then lanes are of different rows.
        warps: of a row, or threads of a row along y.
        rows: of a block, in vectors.
        vector: elements of a thread's vector, along the row or across rows.
        unrolled: loops along the row are, and what a thread has loaded stays in registers.
    """

    lanes: int
    warps: int
    rows: int
    vector: int
    unrolled: bool


def row_tile(rows: Rows) -> RowTile:
    """The cut of a function."""
    extent = rows.count if rows.across else rows.length
    vector = next(v for v in (4, 2, 1) if extent % v == 0)
    if rows.length == 1:
        return RowTile(1, 1, _THREADS, 1, unrolled=True)
    if rows.count >= _ALONE_ROWS and rows.length <= (_ALONE if rows.across else _ALONE // 4):
        while rows.across and rows.length * vector > _ALONE:
            vector //= 2
        return RowTile(1, 1, _THREADS, vector, unrolled=True)
    if rows.across:
        return _across_tile(rows, vector)
    warps = 1
    while warps < _WARPS and ceil_div(rows.length, vector * WARP * warps) * vector > _KEPT:
        warps *= 2
    kept = ceil_div(rows.length, vector * WARP * warps) * vector
    in_block = 4 if warps == 1 and rows.count >= _MANY_ROWS else 1
    return RowTile(WARP, warps, in_block, vector, unrolled=kept <= _KEPT)


def _across_tile(rows: Rows, vector: int) -> RowTile:
    """The widest cut that has enough blocks, and whose threads keep their elements in registers."""
    tiles = []
    for width in _WIDTHS:
        across = width // vector
        threads = WARP // across
        while across * threads < _MOST_THREADS and rows.length >= 2 * threads * _OF_THREAD:
            threads *= 2
        kept = ceil_div(rows.length, threads) * vector
        tiles.append(RowTile(1, threads, across, vector, unrolled=kept <= _KEPT_ACROSS))
    wide = [t for t in tiles if t.unrolled and rows.count >= _MANY_BLOCKS * t.rows * vector]
    return (wide or tiles[-1:])[0]


def rows_kernel(name: str, rows: Rows) -> Kernel:
    """The kernel; its pointers are the function's parameters, in order."""
    return _Writer(rows, row_tile(rows)).kernel(name)


class _Writer:
    """Writes one kernel."""

    def __init__(self, rows: Rows, t: RowTile) -> None:
        self.rows, self.t = rows, t
        self.across = t.vector if rows.across else 1
        self.groups = rows.count // self.across
        blocks = ceil_div(self.groups, t.rows)
        threads, along_y = (t.rows, t.warps) if t.lanes == 1 else (WARP, t.warps * t.rows)
        self.b = b = DeviceBuilder((blocks, 1, 1), threads, along_y)
        self.pointers = {param: b.pointer(f"p{i}", dtype_of(param)) for i, param in enumerate(rows.params)}
        if t.lanes == 1:
            group, self.part = b.block[0] * t.rows + b.thread, b.thread_y
        else:
            group = b.block[0] * t.rows + divide(b.thread_y, t.warps)
            self.warp = modulo(b.thread_y, t.warps)
            self.part = b.let("part", self.warp * WARP + b.thread)
        # The last block's threads without a row compute another one and do not store it.
        whole = self.groups % t.rows == 0
        self.row_exists = True if whole else b.let("group", group) < self.groups
        group = b.let("group", group if whole else tirx.min(group, self.groups - 1))
        self.row = b.let("row", group * self.across)
        self.results: dict[Var, list[Expr]] = {}
        self.common: dict[tuple[int, int], list[tuple[Expr, Expr]]] = {}
        self.loaded: dict[tuple[Var, str, str, int], list[Expr]] = {}

    def kernel(self, name: str) -> Kernel:
        if self.t.unrolled:
            self.load_all()
        for phase in self.rows.phases:
            if phase.op:
                self.reduce(phase)
            else:
                self.output(phase)
        return self.b.finished(name)

    def load_all(self) -> None:
        """Starts the loads of all phases, so that none is waited for behind a reduction."""
        for phase in self.rows.phases:
            for step in range(self.steps(phase)):
                at, _ = self.vector(phase, step)
                for load in _unconditional_loads(phase.value):
                    if sum(map(len, self.loaded.values())) >= _LOADED:
                        return
                    if load.source in self.pointers and dtype_of(load.source) == "float32":
                        self.load(phase, load.source, load.indices[0], at, str(step))

    def along(self, phase: Phase) -> int:
        """Elements of the row in a vector."""
        return 1 if self.rows.across or phase.length % self.t.vector else self.t.vector

    def reduce(self, phase: Phase) -> None:
        start, combine = COMBINED[phase.op]
        b = self.b
        totals = [b.register(1) for _ in range(self.lanes(phase))]
        for total in totals:
            total.set(tirx.const(start, "float32"))

        def add(_at: Expr, exists: Expr, values: list[Expr]) -> None:
            for total, value in zip(totals, values, strict=True):
                value = value if exists is True else Select(exists, value, tirx.const(start, "float32"))
                total.set(combine(total.get(), value))

        self.each_vector(phase, add)
        combined = [total.get() for total in totals]
        if not self.rows.across:
            combined = [_in_pairs(combine, combined)]
        self.results[phase.target] = self.combined(phase.op, combined)

    def combined(self, op: str, values: list[Expr]) -> list[Expr]:
        """What the threads of a row have, combined, in all of them."""
        b, t = self.b, self.t
        _, combine = COMBINED[op]
        if t.lanes == 1 and t.warps == 1:
            return [b.let("result", value) for value in values]
        if t.lanes == 1:
            return self.combined_across(op, values)
        values = b.combine_lanes(op, values)
        if t.warps == 1:
            return values
        parts = b.shared("parts", t.warps * len(values))
        with b.when(b.thread == 0):
            for i, value in enumerate(values):
                b.store(parts, i * t.warps + self.warp, value)
        b.barrier()
        results = []
        for i in range(len(values)):
            result = b.load(parts, i * t.warps)
            for warp in range(1, t.warps):
                result = combine(result, b.load(parts, i * t.warps + warp))
            results.append(b.let("result", result))
        return results

    def combined_across(self, op: str, values: list[Expr]) -> list[Expr]:
        """The same where lanes are of different rows: one thread combines what those of a row have."""
        b, t, lanes = self.b, self.t, len(values)
        width = t.rows * lanes
        parts = b.shared("parts", t.warps * width)
        mine = b.thread * lanes
        together = b.register(lanes)
        for lane, value in enumerate(values):
            together.set_part(lane, value)
        b.store(parts, b.thread_y * width + mine, together.get(), lanes)
        b.barrier()
        number = b.let("number", b.thread_y * t.rows + b.thread)
        with b.when(number < width):
            found = [b.load(parts, part * width + number) for part in range(t.warps)]
            b.store(parts, number, _in_pairs(COMBINED[op][1], found))
        b.barrier()
        results = b.register(lanes)
        results.set(b.load(parts, mine, lanes))
        return [results.part(lane, 1) for lane in range(lanes)]

    def output(self, phase: Phase) -> None:
        b = self.b

        def store(at: Expr, exists: Expr, values: list[Expr]) -> None:
            with b.when(both(exists, self.row_exists)):
                pointer, offset = self.pointers[phase.target], self.placed(phase, phase.offset, at)
                if len(values) > 1 and self.apart(phase, phase.offset) == 1:
                    together = b.register(len(values))
                    for lane, value in enumerate(values):
                        together.set_part(lane, value)
                    b.store(pointer, offset[0], together.get(), len(values))
                else:
                    for place, value in zip(offset, values, strict=True):
                        b.store(pointer, place, value)

        self.each_vector(phase, store)

    def each_vector(self, phase: Phase, use: Callable[[Expr, Expr, list[Expr]], None]) -> None:
        """Computes the thread's vectors; `use` takes the first element, whether it exists, and the values."""
        if self.t.unrolled:
            for step in range(self.steps(phase)):
                at, exists = self.vector(phase, step)
                use(at, exists, self.values(phase, at, str(step)))
            return
        loaded, common = dict(self.loaded), {key: list(known) for key, known in self.common.items()}
        with self.b.loop("step", 0, self.steps(phase)) as step:
            at, exists = self.vector(phase, step)
            use(at, exists, self.values(phase, at, "step"))
        self.loaded, self.common = loaded, common

    def steps(self, phase: Phase) -> int:
        """Vectors of a thread."""
        return ceil_div(phase.length // self.along(phase), self.t.lanes * self.t.warps)

    def vector(self, phase: Phase, step: Expr) -> tuple[Expr, Expr]:
        """The first element of a thread's vector, and whether it exists; it is an element of the row all the same."""
        b, along = self.b, self.along(phase)
        vectors, threads = phase.length // along, self.t.lanes * self.t.warps
        number = step * threads + self.part
        if vectors % threads == 0 or (isinstance(step, int) and (step + 1) * threads <= vectors):
            return b.let("at", number * along), True
        exists = b.let("exists", number < vectors)
        return b.let("at", tirx.min(number, vectors - 1) * along), exists

    def lanes(self, phase: Phase) -> int:
        """Elements of a vector."""
        return max(self.across, self.along(phase))

    def values(self, phase: Phase, at: Expr, step: str) -> list[Expr]:
        """What a phase computes for the elements of the vector that begins at `at`."""
        return [self.b.let("value", self.lane(phase, phase.value, at, i, step)) for i in range(self.lanes(phase))]

    def lane(self, phase: Phase, e: Expr, at: Expr, lane: int, step: str) -> Expr:
        """`e` for one lane; loads that are not made on a condition are made for all lanes at once."""
        if isinstance(e, TensorLoad):
            if e.source in self.results:
                results = self.results[e.source]
                return results[lane if self.rows.across else 0]
            (offset,) = e.indices
            if not step or dtype_of(e.source) != "float32":
                return self.b.load(self.pointers[e.source], self.placed(phase, offset, at)[lane])
            return self.load(phase, e.source, offset, at, step)[lane]
        if isinstance(e, Var):
            return self.points(phase, at)[lane][e].astype(dtype_of(e))
        if step and self.is_of_row(phase, e):
            return self.of_row(phase, e, at, lane, step)
        if step and isinstance(e, tirx.Div) and self.is_of_row(phase, e.b):
            e = tirx.Mul(e.a, tirx.const(1.0, "float32") / e.b)
        parts = children(e)
        inner = "" if _is_conditional(e) else step
        return with_children(e, [self.lane(phase, part, at, lane, inner) for part in parts]) if parts else e

    def is_of_row(self, phase: Phase, e: Expr) -> bool:
        """Whether an expression is computed from results of reductions and the same for all elements of a row."""
        return phase.at not in variables_of(e) and any(load.source in self.results for load in loads(e))

    def of_row(self, phase: Phase, e: Expr, at: Expr, lane: int, step: str) -> Expr:
        """Such an expression for one lane, computed once."""
        row = lane if self.rows.across else 0
        key = tvm_ffi.structural_hash(e), row
        for known, value in self.common.get(key, ()):
            if tvm_ffi.structural_equal(known, e):
                return value
        value = self.b.let("common", with_children(e, [self.lane(phase, part, at, lane, step) for part in children(e)]))
        self.common.setdefault(key, []).append((e, value))
        return value

    def load(self, phase: Phase, source: Var, offset: Expr, at: Expr, step: str) -> list[Expr]:
        """The elements of a vector, loaded once."""
        b, lanes = self.b, self.lanes(phase)
        key = source, str(offset), step if phase.at in variables_of(offset) else "", lanes
        if key not in self.loaded:
            places, apart = self.placed(phase, offset, at), self.apart(phase, offset)
            if apart == 0:
                held = b.register(1)
                held.set(b.load(self.pointers[source], places[0]))
                self.loaded[key] = [held.get()] * lanes
            elif apart == 1:
                held = b.register(lanes)
                held.set(b.load(self.pointers[source], places[0], lanes))
                self.loaded[key] = [held.part(i, 1) for i in range(lanes)]
            else:
                registers = [b.register(1) for _ in places]
                for register, place in zip(registers, places, strict=True):
                    register.set(b.load(self.pointers[source], place))
                self.loaded[key] = [register.get() for register in registers]
        return self.loaded[key]

    def apart(self, phase: Phase, offset: Expr) -> int | None:
        """How far apart in memory the elements of a vector are: 0, 1 where it is aligned, None otherwise."""
        lanes, ranges = self.lanes(phase), self.rows.ranges
        along, length = (self.rows.row, self.rows.count) if self.rows.across else (phase.at, phase.length)
        first = ranges.variable("vector", length // lanes) * index(lanes)
        lane = ranges.variable("lane", lanes)
        start = substitute(offset, {along: first})
        steps = ranges.simplify(substitute(offset, {along: first + lane}) - start)
        if is_zero(steps):
            return 0
        aligned = is_zero(ranges.simplify(steps - lane)) and is_zero(ranges.simplify(start % index(lanes)))
        return 1 if aligned else None

    def points(self, phase: Phase, at: Expr) -> list[dict[Var, Expr]]:
        """The row and the element of each lane."""
        lanes = range(self.lanes(phase))
        if self.rows.across:
            return [{self.rows.row: self.row + lane, phase.at: at} for lane in lanes]
        return [{self.rows.row: self.row, phase.at: at + lane} for lane in lanes]

    def placed(self, phase: Phase, offset: Expr, at: Expr) -> list[Expr]:
        """An offset for each lane, in 32 bits."""
        return [_narrow(offset, places) for places in self.points(phase, at)]


def _in_pairs(combine: Callable[[Expr, Expr], Expr], values: list[Expr]) -> Expr:
    """As many values as a power of two, combined."""
    while len(values) > 1:
        values = [combine(one, other) for one, other in zip(values[::2], values[1::2], strict=True)]
    return values[0]


def _unconditional_loads(e: Expr) -> Iterator[TensorLoad]:
    """The loads in an expression that are made in any case."""
    if isinstance(e, TensorLoad):
        yield e
    elif not _is_conditional(e):
        for part in children(e):
            yield from _unconditional_loads(part)


def _is_conditional(e: Expr) -> bool:
    return isinstance(e, Select) or is_call(e, "if_then_else")


def _narrow(e: Expr, places: dict[Var, Expr]) -> Expr:
    """An index expression in 32 bits, with its variables replaced."""
    if isinstance(e, Var):
        value = places[e]
        return tirx.const(value, "int32") if isinstance(value, int) else value
    if isinstance(e, IntImm):
        return tirx.const(int(e), "int32")
    if isinstance(e, tirx.Cast):
        return _narrow(e.value, places)
    return with_children(e, [_narrow(part, places) for part in children(e)])
