"""One stage at one place: the statements that compute a vector of neighbouring points.

The lanes of a vector are a loop of kind `vectorized` over one variable, as wide as several registers where that gives
independent work; accumulators and temporaries are buffers of constant size, which LLVM keeps in registers.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from tvm import tirx
from tvm.ir import TensorLoad
from tvm.tirx import AllocBuffer, BufferLoad, BufferStore, For, ForKind, IfThenElse, IntImm, Ramp, SeqStmt, Shuffle, Var

from lwc_compiler.codegen.intrinsics import expand
from lwc_compiler.codegen.schedules_expressions import (
    children,
    dtype_of,
    index,
    is_call,
    linear,
    loads,
    rewrite,
    substitute,
    variables,
    visit,
)
from lwc_compiler.codegen.schedules_groups import Flat, Memory
from lwc_compiler.codegen.schedules_stages import Program, cost, is_zero, shape_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tvm.ir import Expr
    from tvm.tirx import Stmt

_SHORT_WINDOW = 16
_CHEAP = 6
_EXPENSIVE = 12


@dataclass(frozen=True)
class Place:
    """Where a stage is computed.

    Attributes:
        at: the value of each axis that is fixed here.
        local: the local buffers of the nest, by what the stages call them.
        pitch: lanes that a local buffer holds for each of its elements.
        grouped: whether several stages are computed together.
        shift: which of the lanes of a local buffer's element is the first one here.
    """

    at: dict[Var, Expr]
    local: dict[Var, Var]
    pitch: int
    grouped: bool
    shift: int = 0

    def inside(self, at: dict[Var, Expr]) -> Place:
        return replace(self, at=at)


def sequence(statements: Sequence[Stmt]) -> Stmt:
    """One statement out of several."""
    return SeqStmt(list(statements)) if len(statements) > 1 else statements[0]


class Vectors:
    """Emits the stages of one function, `lanes` float32 to a register."""

    def __init__(self, program: Program, memory: Memory, lanes: int) -> None:
        self.program, self.memory, self.lanes = program, memory, lanes
        self.ranges = program.ranges

    # Axes

    def loops(self, axes: Sequence[Var], at: dict[Var, Expr], body: Callable[[dict[Var, Expr]], Stmt],
              kind: ForKind = ForKind.SERIAL) -> Stmt:  # fmt: skip
        """Loops over `axes` with new loop variables."""
        if not axes:
            return body(at)
        extent = self.ranges.extent[axes[0]]
        var = self.ranges.variable(axes[0].name, extent)
        inner = self.loops(axes[1:], {**at, axes[0]: var}, body, kind)
        return For(var, index(0), index(extent), kind, inner)

    def segments(self, values: Sequence[Expr], axis: Var, reduce: Sequence[Var] = ()) -> list[tuple[int, int]]:
        """The ranges of `axis` within which no condition on it changes, whatever the axes in `reduce` are."""
        extent = self.ranges.extent[axis]
        cuts = {0, extent}
        for value in values:
            for e in visit(value):
                if is_call(e, "if_then_else") or isinstance(e, tirx.Select):
                    for test in visit(children(e)[0]):
                        cuts |= {c for c in self._cuts(test, axis, set(reduce)) if 0 < c < extent}
        ordered = sorted(cuts)
        return list(itertools.pairwise(ordered))

    def _cuts(self, test: Expr, axis: Var, reduce: set[Var]) -> set[int]:
        """Where along `axis` a comparison may change its outcome."""
        if not isinstance(test, (tirx.LT, tirx.LE, tirx.GT, tirx.GE, tirx.EQ, tirx.NE)):
            return set()
        if dtype_of(test.a) not in ("int32", "int64") or variables(test) - reduce - {axis} or loads(test):
            return set()
        a, b = linear(test.a, {axis}), linear(test.b, {axis})
        if a is None or b is None:
            return set()
        form = a.plus(b.scaled(-1))
        c = form.coefficient(axis)
        if not c:
            return set()
        cuts = set()
        for r in self.ranges.bounds(form.rest):
            # c * axis + r compared with 0; > and >= as < and <= of the negative
            down = isinstance(test, (tirx.GT, tirx.GE))
            k, s = (-c, -r) if down else (c, r)
            floor, ceil = (-s) // k, -(s // k)
            if isinstance(test, (tirx.EQ, tirx.NE)):
                cuts |= {floor, floor + 1}
            elif isinstance(test, (tirx.LT, tirx.GT)) == (k > 0):
                cuts.add(ceil)
            else:
                cuts.add(floor + 1)
        return cuts

    def lane(self, stages: Sequence[Flat], axes: Sequence[Var]) -> Var | None:
        """The axis to vectorise: the one along which most of the memory accesses are contiguous."""
        weights: dict[Var, float] = {}
        for stage in stages:
            every = [*axes, *stage.own, *stage.reduce]
            accesses = [(o, 1.5) for o in stage.offsets]
            accesses += [(load.indices[0], 1.0) for v in stage.values for load in loads(v)]
            for offset, factor in accesses:
                used = variables(offset)
                volume = self.program.volume([a for a in every if a in used])
                for axis in every:
                    form = linear(offset, {axis}) if axis in used else None
                    if form is not None and abs(form.coefficient(axis)) == 1:
                        full = min(1.0, self.ranges.extent[axis] / self.lanes)
                        weights[axis] = weights.get(axis, 0.0) + factor * volume * full
        if not weights:
            return max(axes, key=lambda a: self.ranges.extent[a]) if axes else None
        return max(weights, key=lambda a: weights[a])

    def width(self, stages: Sequence[Flat]) -> int:
        """Lanes of the widest vector: several registers, to have independent work, if the computation is not long."""
        return self.lanes * (1 if _is_long(stages) else 4 if any(s.init for s in stages) else 2)

    def column_width(self, stages: Sequence[Flat]) -> int:
        """`width` of stages that are computed one after the other for the same lanes (see `column`)."""
        return self.width([s for s in stages if s.init] or stages)

    def strips(self, low: int, high: int, width: int, overlap: bool, emit: Callable[[Expr, int], Stmt]) -> list[Stmt]:
        """Statements that cover [low, high) with vectors; `emit(base, lanes)` is the body of one.

        The rest that is too short for a whole vector is covered by shorter ones or, with `overlap`, by a last vector
        that computes some points a second time.
        """
        statements: list[Stmt] = []
        position = low
        while width >= 1:
            count = (high - position) // width
            if count == 1:
                statements.append(emit(index(position), width))
            elif count:
                i = self.ranges.variable("i", count)
                base = i * index(width) + index(position) if position else i * index(width)
                statements.append(For(i, index(0), index(count), ForKind.SERIAL, emit(base, width)))
            position += count * width
            if overlap and position < high and 1 < width <= min(self.lanes, high - low):
                statements.append(emit(index(high - width), width))
                break
            width //= 2
        return statements

    def pieces(self, extent: int, width: int, piece: Expr, size: int, emit: Callable[[Expr, int], Stmt]) -> Stmt:
        """Piece number `piece` of [0, extent), which is cut into pieces of `size`, a multiple of `width`."""
        whole = extent // size
        i = self.ranges.variable("i", size // width)
        base = piece * index(size) + i * index(width)
        main = For(i, index(0), index(size // width), ForKind.SERIAL, emit(base, width))
        rest = self.strips(whole * size, extent, width, False, emit)
        return IfThenElse(piece < index(whole), main, sequence(rest)) if rest else main

    # Stages

    def row_stage(self, stage: Flat, place: Place, producer: Flat | None = None) -> Stmt:
        """A stage of a nest without a vectorised axis in common, vectorised along an axis of its own.

        With `producer` (see `feeds`), computes that stage too, in the same pass.
        """
        candidates = [*stage.own, *stage.reduce] if stage.ops or not stage.init else list(stage.own)
        lane = self.lane([stage], [])
        if lane is None or lane not in candidates:
            return self.loops(stage.own, place.at, lambda at: self.vector(stage, None, index(0), 1, place.inside(at)))
        others = [a for a in stage.own if not a.same_as(lane)]
        if lane in stage.reduce:
            return self.loops(
                others, place.at, lambda at: self._horizontal(stage, lane, place.inside(at), producer)
            )  # fmt: skip
        return self._outer_segments(stage, others, lane, place)

    def _outer_segments(self, stage: Flat, others: Sequence[Var], lane: Var, place: Place) -> Stmt:
        """Loops over the axes `others`, cut where conditions change, around the vectors of `lane`."""
        if others:
            axis = others[0]
            parts = []
            for low, high in self.segments(stage.values, axis, stage.reduce):
                var = self.ranges.variable(axis.name, high - low)
                at = {**place.at, axis: var + index(low) if low else var}
                inner = self._outer_segments(stage, others[1:], lane, place.inside(at))
                parts.append(For(var, index(0), index(high - low), ForKind.SERIAL, inner))
            return sequence(parts)
        width = self.width([stage])
        return sequence(
            [
                s
                for low, high in self.segments(stage.values, lane, stage.reduce)
                for s in self.strips(low, high, width, True, lambda base, n: self.vector(stage, lane, base, n, place))
            ]
        )

    def column(self, stage: Flat, lane: Var, base: Expr, lanes: int, place: Place) -> Stmt:
        """A stage for `lanes` neighbouring points of `lane` from `base`, a register at a time if it is long."""
        width = min(lanes, self.width([stage])) if _is_long([stage]) else lanes
        return sequence(
            [
                self.vector(stage, lane, base + index(shift) if shift else base, width, replace(place, shift=shift))
                for shift in range(0, lanes, width)
            ]
        )

    def vector(self, stage: Flat, lane: Var | None, base: Expr, lanes: int, place: Place) -> Stmt:
        """A stage for `lanes` neighbouring points of `lane` from `base`."""
        if not stage.init:
            v, here = self._lane_point(lane, base, lanes, place)
            moving = {v} if lane in stage.own else set().union(*(variables(place.at[axis]) for axis in stage.own))
            before, value = self._value(stage.values[0], v, lanes, here, moving)
            target, offset = self._target(stage.targets[0], stage.offsets[0], v, here)
            return sequence([*before, _vectorized(v, lanes, BufferStore(target, value, [offset]))])
        accumulators, statements = self._start(stage, lanes)
        count = self.program.volume(stage.reduce)
        kind = ForKind.UNROLLED if count <= _SHORT_WINDOW else ForKind.SERIAL
        statements.append(
            self.loops(
                stage.reduce,
                place.at,
                lambda at: self._update(stage, accumulators, lane, base, lanes, place.inside(at)),
                kind,
            )
        )
        for acc, target, offset in zip(accumulators, stage.targets, stage.offsets, strict=True):
            v, here = self._lane_point(lane, base, lanes, place)
            buffer, position = self._target(target, offset, v, here)
            statements.append(_vectorized(v, lanes, BufferStore(buffer, BufferLoad(acc, [v]), [position])))
        return sequence(statements)

    def _horizontal(self, stage: Flat, lane: Var, place: Place, producer: Flat | None) -> Stmt:
        """A reduction along its contiguous axis: partial results in vectors, then a tree over the lanes."""
        extent = self.ranges.extent[lane]
        width = self.width([stage, producer] if producer else [stage])
        while width > extent:
            width //= 2
        accumulators, statements = self._start(stage, width)

        def along(at: dict[Var, Expr]) -> Stmt:
            def emit(base: Expr, lanes: int) -> Stmt:
                update = self._update(stage, accumulators, lane, base, lanes, place.inside(at))
                if producer is None:
                    return update
                return SeqStmt([self.vector(producer, producer.own[0], base, lanes, place.inside(at)), update])

            return sequence(
                [
                    s
                    for low, high in self.segments(stage.values, lane)
                    for s in self.strips(low, high, width, False, emit)
                ]
            )

        statements.append(self.loops([r for r in stage.reduce if not r.same_as(lane)], place.at, along))
        while width > 1:
            width //= 2
            for acc, op in zip(accumulators, stage.ops, strict=True):
                v = self._lane_variable(width)
                halves = _combine(op, BufferLoad(acc, [v]), BufferLoad(acc, [v + index(width)]))
                statements.append(_vectorized(v, width, BufferStore(acc, halves, [v])))
        for acc, target, offset in zip(accumulators, stage.targets, stage.offsets, strict=True):
            buffer, position = self._target(target, offset, index(0), place)
            statements.append(BufferStore(buffer, BufferLoad(acc, [index(0)]), [position]))
        return sequence(statements)

    def feeds(self, producer: Flat, stage: Flat) -> bool:
        """Whether `stage` reduces, element by element, just what `producer` computes: one pass does both."""
        if producer.init or len(producer.own) != 1 or not stage.ops or stage.own or len(stage.reduce) != 1:
            return False
        (own,), (reduced,), target = producer.own, stage.reduce, producer.targets[0]
        if target not in self.memory.local or self.ranges.extent[own] != self.ranges.extent[reduced]:
            return False
        wanted = linear(substitute(producer.offsets[0], {own: reduced}), {reduced})
        read = [x for v in stage.values for x in loads(v) if x.source.same_as(target)]
        forms = [linear(x.indices[0], {reduced}) for x in read]
        alike = all(
            f is not None
            and wanted is not None
            and f.coefficient(reduced) == wanted.coefficient(reduced) == 1
            and is_zero(f.rest)
            and is_zero(wanted.rest)
            for f in forms
        )
        lane = self.lane([stage], [])
        conditions = any(is_call(e, "if_then_else") for s in (producer, stage) for v in s.values for e in visit(v))
        return bool(read) and alike and lane is not None and lane.same_as(reduced) and not conditions

    def _start(self, stage: Flat, lanes: int) -> tuple[list[Var], list[Stmt]]:
        """Accumulators of a reduction, and the statements that allocate and initialise them."""
        accumulators = [tirx.decl_buffer((index(lanes),), dtype_of(t), f"{t.name}_acc") for t in stage.targets]
        statements: list[Stmt] = [AllocBuffer(a) for a in accumulators]
        for acc, init in zip(accumulators, stage.init, strict=True):
            v = self._lane_variable(lanes)
            statements.append(_vectorized(v, lanes, BufferStore(acc, init, [v])))
        return accumulators, statements

    def _update(self, stage: Flat, accumulators: list[Var], lane: Var | None, base: Expr, lanes: int,
                place: Place) -> Stmt:  # fmt: skip
        """One step of a reduction in `lanes` accumulators."""
        statements: list[Stmt] = []
        if stage.ops:
            for acc, op, value in zip(accumulators, stage.ops, stage.values, strict=True):
                v, here = self._lane_point(lane, base, lanes, place)
                before, new = self._value(value, v, lanes, here)
                total = _combine(op, BufferLoad(acc, [v]), new)
                statements += [*before, _vectorized(v, lanes, BufferStore(acc, total, [v]))]
            return sequence(statements)
        # The new values depend on all the old ones: none is overwritten before all are known.
        new_values = [tirx.decl_buffer((index(lanes),), dtype_of(a), f"{a.name}_new") for a in accumulators]
        statements += [AllocBuffer(b) for b in new_values]
        for new_value, value in zip(new_values, stage.values, strict=True):
            v, here = self._lane_point(lane, base, lanes, place)
            old = {var: BufferLoad(acc, [v]) for var, acc in zip(stage.accumulators, accumulators, strict=True)}
            before, new = self._value(value, v, lanes, here.inside({**here.at, **old}))
            statements += [*before, _vectorized(v, lanes, BufferStore(new_value, new, [v]))]
        for acc, new_value in zip(accumulators, new_values, strict=True):
            v = self._lane_variable(lanes)
            statements.append(_vectorized(v, lanes, BufferStore(acc, BufferLoad(new_value, [v]), [v])))
        return sequence(statements)

    # Transposed blocks

    def transposed(self, stage: Flat, axes: Sequence[Var]) -> tuple[Var, Var] | None:
        """(a, w) when a cheap elementwise stage stores along w what it reads along a."""
        if self.lanes == 1 or stage.init or cost(stage.values[0]) > _CHEAP:
            return None
        if dtype_of(stage.targets[0]) not in ("float32", "int32"):
            return None
        # A condition on either axis would change inside a block. A block of a short axis a is read past its end.
        extent = self.ranges.extent
        free = [x for x in axes if 2 * extent[x] >= self.lanes and len(self.segments(stage.values, x)) == 1]
        for w in free:
            store = linear(stage.offsets[0], {w})
            if extent[w] < self.lanes or store is None or store.coefficient(w) != 1:
                continue
            for load in loads(stage.values[0]):
                for a in free:
                    if not a.same_as(w) and self._is_transposed(load, a, w):
                        return a, w
        return None

    @staticmethod
    def _is_transposed(load: TensorLoad, a: Var, w: Var) -> bool:
        form = linear(load.indices[0], {a, w})
        return form is not None and form.coefficient(a) == 1 and form.coefficient(w) > 4 and not loads(form.rest)

    def read_order(self, stage: Flat, a: Var, w: Var, axes: Sequence[Var]) -> list[Var]:
        """Axes in the order in which a stage's transposed load finds them in memory, the nearest last."""
        form = next(
            linear(load.indices[0], set(axes)) for load in loads(stage.values[0]) if self._is_transposed(load, a, w)
        )
        return list(axes) if form is None else sorted(axes, key=form.coefficient, reverse=True)

    def block(self, stage: Flat, a: Var, w: Var, place: Place) -> Stmt:
        """The stage for the square block of points whose first is given for a and w in `place`."""
        n = self.lanes
        a0, w0 = place.at[a], place.at[w]
        statements: list[Stmt] = []
        rows: dict[str, list[Var]] = {}
        for load in loads(stage.values[0]):
            if not self._is_transposed(load, a, w) or str(load) in rows:
                continue
            block = []
            for k in range(n):
                start = self.ranges.simplify(substitute(load.indices[0], {**place.at, w: w0 + index(k)}))
                row = tirx.decl_buffer((index(n),), dtype_of(load), "row")
                vector = BufferLoad(load.source, [Ramp(start, index(1), n)])
                statements += [AllocBuffer(row), BufferStore(row, vector, [Ramp(index(0), index(1), n)])]
                block.append(row)
            rows[str(load)] = self._transpose(block, statements)
        for k in range(min(n, self.ranges.extent[a])):
            v = self._lane_variable(n)

            def read(e: Expr, k: int = k, v: Expr = v) -> Expr:
                if isinstance(e, TensorLoad) and str(e) in rows:
                    return BufferLoad(rows[str(e)][k], [v])
                return e

            value = rewrite(stage.values[0], read)
            here = place.inside({**place.at, a: a0 + index(k), w: w0 + v})
            before, value = self._value(value, v, n, here)
            target, offset = self._target(stage.targets[0], stage.offsets[0], v, here)
            statements += [*before, _vectorized(v, n, BufferStore(target, value, [offset]))]
        return sequence(statements)

    def _transpose(self, rows: list[Var], statements: list[Stmt]) -> list[Var]:
        """Exchanges the off-diagonal quarters of ever smaller blocks by shuffles of two rows (J. O. Eklundh, 1972)."""
        n = len(rows)
        whole = [Ramp(index(0), index(1), n)]
        half = n // 2
        while half:
            new: list[Var] = list(rows)
            for k in range(n):
                upper = rows[k & ~half], rows[k | half]
                order = [
                    (c | half if k & half else c) if not c & half else n + (c if k & half else c & ~half)
                    for c in range(n)
                ]
                new[k] = tirx.decl_buffer((index(n),), dtype_of(rows[k]), "row")
                vectors = [BufferLoad(r, whole) for r in upper]
                mixed = Shuffle(vectors, [tirx.const(o, "int32") for o in order])
                statements += [AllocBuffer(new[k]), BufferStore(new[k], mixed, whole)]
            rows = new
            half //= 2
        return rows

    # Values

    def _lane_variable(self, lanes: int) -> Expr:
        return self.ranges.variable("v", lanes) if lanes > 1 else index(0)

    def _lane_point(self, lane: Var | None, base: Expr, lanes: int, place: Place) -> tuple[Expr, Place]:
        v = self._lane_variable(lanes)
        return v, place if lane is None else place.inside({**place.at, lane: base + v})

    def _target(self, target: Var, offset: Expr, v: Expr, place: Place) -> tuple[Var, Expr]:
        position = substitute(offset, place.at)
        if target in place.local:
            if place.pitch > 1:
                position = position * index(place.pitch) + (v + index(place.shift))
            target = place.local[target]
        return target, self.ranges.simplify(position)

    def _value(
        self, value: Expr, v: Expr, lanes: int, place: Place, moving: set[Var] | None = None
    ) -> tuple[list[Stmt], Expr]:
        """`value` at a place, ready to be vectorised over `v`, and what has to run before.

        In a group, it may be computed for all values of the variables `moving` in a row.
        """

        def placed(e: Expr) -> Expr:
            if not isinstance(e, TensorLoad):
                return e
            buffer, offset = e.source, e.indices[0]
            if buffer in place.local:
                if place.pitch > 1:
                    offset = offset * index(place.pitch) + (v + index(place.shift))
                buffer = place.local[buffer]
            return BufferLoad(buffer, [offset])

        value = self.ranges.fold(rewrite(substitute(value, place.at), placed))
        if lanes > 1:
            value = rewrite(value, lambda e: self._without_branch(e, v))
        if any(is_call(e, "if_then_else") for e in visit(value)):
            # What runs before would run whether or not the branch it belongs to is taken.
            return [], value
        before: list[Stmt] = []
        if lanes > 1:
            value = rewrite(value, lambda e: self._picked(e, v, lanes, before))
            if place.grouped and moving:
                value = rewrite(value, lambda e: _reciprocal(e, moving))

        def store(e: Expr) -> Expr:
            temporary = tirx.decl_buffer((index(lanes),), dtype_of(e), "value")
            w = self._lane_variable(lanes)
            stored = BufferStore(temporary, substitute(e, {v: w}) if lanes > 1 else e, [w])
            before.extend([AllocBuffer(temporary), _vectorized(w, lanes, stored)])
            return BufferLoad(temporary, [v])

        return before, expand(value, store)

    def _without_branch(self, e: Expr, v: Expr) -> Expr:
        """A conditional value becomes a select where both sides can be computed: a branch cannot be vectorised."""
        if not is_call(e, "if_then_else"):
            return e
        condition, yes, no = children(e)
        if v not in variables(condition):
            return e
        for load in [*loads(yes), *loads(no)]:
            low, high = self.ranges.bounds(load.indices[0])
            if low < 0 or high >= shape_of(load.source)[0]:
                return e
        return tirx.Select(condition, yes, no)

    def _picked(self, e: Expr, v: Expr, lanes: int, before: list[Stmt]) -> Expr:
        """Turns a load in a fixed pattern (strided, reversed, repeated) into whole vector loads and a shuffle.

        The result is kept in a temporary, which the statements added to `before` fill.
        """
        split = self._pattern(e.indices[0], v, lanes) if isinstance(e, TensorLoad) and lanes >= 4 else None
        if split is None:
            return e
        start, pattern = split
        vectors = [
            BufferLoad(e.source, [Ramp(self.ranges.simplify(start + index(k)), index(1), lanes)])
            for k in range(0, max(pattern) + 1, lanes)
        ]
        picked = Shuffle(vectors, [tirx.const(p, "int32") for p in pattern])
        temporary = tirx.decl_buffer((index(lanes),), dtype_of(e), "picked")
        before += [AllocBuffer(temporary), BufferStore(temporary, picked, [Ramp(index(0), index(1), lanes)])]
        return BufferLoad(temporary, [v])

    def _pattern(self, offset: Expr, v: Expr, lanes: int) -> tuple[Expr, list[int]] | None:
        """(start, pattern) with offset == start + pattern[v], when the pattern is short and not just contiguous."""
        if v not in variables(offset):
            return None
        fixed: Expr = index(0)
        moving: Expr = index(0)
        for term, sign in _terms(offset):
            inside = variables(term)
            signed = term if sign > 0 else term * index(-1)
            if v not in inside:
                fixed = fixed + signed
            elif len(inside) > 1 or loads(term):
                return None
            else:
                moving = moving + signed
        places = [self.ranges.simplify(substitute(moving, {v: index(k)})) for k in range(lanes)]
        if not all(isinstance(p, IntImm) for p in places):
            return None
        steps = [int(p) for p in places]
        pattern = [step - min(steps) for step in steps]
        if max(pattern) >= 4 * lanes or pattern == list(range(lanes)):
            return None
        return fixed + index(min(steps)), pattern


def _is_long(stages: Sequence[Flat]) -> bool:
    """Whether a value takes so many instructions that one register at a time has work enough."""
    return any(cost(value) > _EXPENSIVE for stage in stages for value in stage.values)


def _combine(op: str, a: Expr, b: Expr) -> Expr:
    return {"sum": tirx.Add, "product": tirx.Mul, "max": tirx.Max, "min": tirx.Min}[op](a, b)


def _reciprocal(e: Expr, moving: set[Var]) -> Expr:
    """Divides once for a whole row (softmax, norms), where each element would have divided by the same sum."""
    if isinstance(e, tirx.Div) and dtype_of(e) == "float32" and loads(e.b) and not moving & variables(e.b):
        return e.a * (tirx.const(1.0, "float32") / e.b)
    return e


def _vectorized(v: Expr, lanes: int, store: Stmt) -> Stmt:
    return For(v, index(0), index(lanes), ForKind.VECTORIZED, store) if lanes > 1 else store


def _terms(e: Expr, sign: int = 1) -> list[tuple[Expr, int]]:
    """The terms of a sum."""
    if isinstance(e, tirx.Add):
        return _terms(e.a, sign) + _terms(e.b, sign)
    if isinstance(e, tirx.Sub):
        return _terms(e.a, sign) + _terms(e.b, -sign)
    return [(e, sign)]
