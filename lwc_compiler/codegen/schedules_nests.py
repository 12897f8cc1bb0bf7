"""From stages to loop nests: which axes run in parallel, which one is vectorised, and what is kept close by.

Stages that share outer axes become one nest: for each point of these *common* axes they run one after the other, and
what they hand on stays in small local buffers. In a *column* nest a vector of the innermost common axis runs through all
stages; in a *row* nest every stage is vectorised along an axis of its own.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from tvm import tirx
from tvm.ir import TensorLoad
from tvm.tirx import AllocBuffer, BufferLoad, BufferStore, For, ForKind, IfThenElse, IntImm, Ramp, SeqStmt, Shuffle, Var
from tvm.tirx.stmt import Bind

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
from lwc_compiler.codegen.schedules_stages import Program, Stage, cost, shape_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from tvm.ir import Expr
    from tvm.tirx import Stmt

# Work of one tile, in elements weighted by the price of their computation: some microseconds.
_TILE_WORK = 32768
_LOCAL_BYTES = 256 * 1024
# Readable elements past the end of a local buffer, for the vector loads that run over.
_LOCAL_SLACK = 64
_MAX_REGIONS = 64
_SHORT_WINDOW = 16


@dataclass
class Group:
    """Stages of one nest; `common` are the spatial axes that all of them have."""

    stages: list[Stage]
    common: list[Var]


@dataclass(frozen=True, eq=False)
class Flat:
    """A stage over flat memory.

    Attributes:
        own: spatial axes that are not common to the nest.
        offsets: position in each target.
    """

    own: tuple[Var, ...]
    reduce: tuple[Var, ...]
    targets: tuple[Var, ...]
    offsets: tuple[Expr, ...]
    values: tuple[Expr, ...]
    init: tuple[Expr, ...]
    ops: tuple[str, ...]
    accumulators: tuple[Var, ...]

    def map(self, change: Callable[[Expr], Expr]) -> Flat:
        return replace(self, values=tuple(map(change, self.values)), offsets=tuple(map(change, self.offsets)))


@dataclass
class Nest:
    """A parallel loop: `body(t)` is the work of tile t."""

    tiles: int
    body: Callable[[Var], Stmt]
    reads: set[Var]
    writes: set[Var]


def group_stages(program: Program) -> list[Group]:
    """Stages that read each other at the same place of some axes, put together."""
    groups: list[Group] = []
    for stage in program.stages:
        merged = _merge(groups[-1], stage, program) if groups else None
        if merged is None:
            groups.append(Group([stage], list(stage.spatial)))
        else:
            groups[-1] = merged
    for group in groups:
        last = [i for i in group.stages[-1].indices if isinstance(i, Var)]
        group.common = [v for v in last if any(v.same_as(c) for c in group.common)]
    return groups


def _merge(group: Group, stage: Stage, program: Program) -> Group | None:
    produced = {t: s for s in group.stages for t in s.targets}
    memory = {program.memory(t) for t in produced}
    internal = []
    for load in stage.loads():
        if load.source in produced:
            internal.append(load)
        elif program.memory(load.source) in memory:
            return None
    if not internal:
        return None
    names: dict[Var, Var] = {}
    for axis in group.common:
        partner = _partner(axis, internal, produced)
        if (
            partner is not None
            and any(partner.same_as(s) for s in stage.spatial)
            and program.ranges.extent[partner] == program.ranges.extent[axis]
            and partner not in names.values()
        ):
            names[axis] = partner
    if not names:
        return None
    back = {partner: axis for axis, partner in names.items()}
    renamed = stage.map(lambda e: substitute(e, back))
    renamed = replace(renamed, spatial=tuple(back.get(s, s) for s in stage.spatial))
    merged = Group([*group.stages, renamed], [a for a in group.common if a in names])
    if _local_bytes(merged, program) > _LOCAL_BYTES:
        return None
    return merged


def _partner(axis: Var, internal: list[TensorLoad], produced: dict[Var, Stage]) -> Var | None:
    """The one variable all internal loads have where the producers have `axis`."""
    partner: Var | None = None
    for load in internal:
        indices = produced[load.source].indices
        at = next(i for n, i in enumerate(load.indices) if indices[n].same_as(axis))
        if not isinstance(at, Var) or (partner is not None and not partner.same_as(at)):
            return None
        partner = at
    return partner


def _local_bytes(group: Group, program: Program) -> int:
    params = set(program.params)
    total = 0
    for stage in group.stages[:-1]:
        for target in stage.targets:
            if program.memory(target) not in params:
                own = [i for i in stage.indices if isinstance(i, Var) and i not in group.common]
                total += 4 * program.volume(tuple(own))
    return total


class Scheduler:
    """Turns the groups of one function into nests over flat buffers."""

    def __init__(self, program: Program, vector_bytes: int) -> None:
        self.program = program
        self.ranges = program.ranges
        self.lanes = vector_bytes // 4
        self.flat: dict[Var, Var] = {}
        self.local_size: dict[Var, int] = {}
        for buffer in program.params:
            self._flat_buffer(buffer)
        self.param_set = {self.flat[b] for b in program.params}

    def _flat_buffer(self, buffer: Var) -> Var:
        if buffer not in self.flat:
            size = math.prod(shape_of(buffer))
            self.flat[buffer] = tirx.decl_buffer((index(size),), dtype_of(buffer), buffer.name)
        return self.flat[buffer]

    # Groups to nests

    def nests(self, group: Group) -> list[Nest]:
        """The nests of a group: one, or several for an elementwise stage that is pieced together."""
        stages = self._flatten(group)
        common = list(group.common)
        if len(stages) == 1 and not stages[0].init:
            regions = self._regions(stages[0], common)
        else:
            regions = [(stages, common)]
        return [self._nest(stages, self._fuse(common, stages)) for stages, common in regions]

    def _flatten(self, group: Group) -> list[Flat]:
        common = set(group.common)
        inside = set(map(id, group.stages))
        local: dict[Var, tuple[Var, list[int], list[int]]] = {}
        for stage in group.stages:
            for target in stage.targets:
                readers = [s for s in self.program.stages if any(x.source.same_as(target) for x in s.loads())]
                readers_inside = [s for s in group.stages if any(x.source.same_as(target) for x in s.loads())]
                is_local = (
                    target not in self.program.params
                    and target not in self.program.views
                    and not any(t.same_as(target) for t in self.program.views.values())
                    and len(readers) == len(readers_inside)
                )
                if is_local:
                    shape = shape_of(target)
                    own = [n for n, i in enumerate(stage.indices) if isinstance(i, Var) and i not in common]
                    size = math.prod(shape[n] for n in own)
                    buffer = tirx.decl_buffer((index(size),), dtype_of(target), target.name)
                    self.local_size[buffer] = size
                    local[target] = (buffer, own, [shape[n] for n in own])
        assert inside

        def place(buffer: Var, indices: list[Expr]) -> tuple[Var, Expr]:
            if buffer in local:
                flat, dims, shape = local[buffer]
                offset: Expr = index(0)
                for n, extent in zip(dims, shape, strict=True):
                    offset = offset * index(extent) + indices[n]
                return flat, self.ranges.simplify(offset)
            return self._flat_buffer(self.program.memory(buffer)), self.program.offset(buffer, indices)

        def load(e: Expr) -> Expr:
            if not isinstance(e, TensorLoad):
                return e
            buffer, offset = place(e.source, list(e.indices))
            return BufferLoad(buffer, [offset])

        result = []
        for stage in group.stages:
            placed = [place(t, list(stage.indices)) for t in stage.targets]
            result.append(
                Flat(
                    own=tuple(s for s in stage.spatial if s not in common),
                    reduce=stage.reduce,
                    targets=tuple(p[0] for p in placed),
                    offsets=tuple(p[1] for p in placed),
                    values=tuple(rewrite(v, load) for v in stage.values),
                    init=stage.init,
                    ops=stage.ops,
                    accumulators=stage.accumulators,
                )
            )
        return result

    # Regions of an elementwise stage

    def _regions(self, stage: Flat, common: list[Var]) -> list[tuple[list[Flat], list[Var]]]:
        """Splits the domain where a condition on one axis changes, but for the axis that will be vectorised."""
        lane = self._lane([stage], common)
        regions = [(stage, common)]
        for axis in common:
            if axis.same_as(lane):
                continue
            next_regions = []
            for part, axes in regions:
                for low, high in self._segments(part.values, axis):
                    if (low, high) == (0, self.ranges.extent[axis]):
                        next_regions.append((part, axes))
                        continue
                    at: Expr = index(low)
                    new_axes = [a for a in axes if not a.same_as(axis)]
                    if high - low > 1:
                        var = self.ranges.variable(axis.name, high - low)
                        at = var + index(low) if low else var
                        new_axes = [var if a.same_as(axis) else a for a in axes]
                    mapping = {axis: at}
                    next_regions.append((part.map(lambda e, m=mapping: self.ranges.fold(substitute(e, m))), new_axes))  # type: ignore[misc]
            if len(next_regions) > _MAX_REGIONS:
                break
            regions = next_regions
        return [([s.map(self.ranges.fold)], axes) for s, axes in regions]

    def _segments(self, values: tuple[Expr, ...], axis: Var) -> list[tuple[int, int]]:
        """The ranges of `axis` within which no condition on this axis alone changes."""
        extent = self.ranges.extent[axis]
        cuts = {0, extent}
        for value in values:
            for e in visit(value):
                if is_call(e, "if_then_else") or isinstance(e, tirx.Select):
                    for test in visit(children(e)[0]):
                        cuts |= {c for c in _cuts(test, axis) if 0 < c < extent}
        ordered = sorted(cuts)
        return list(zip(ordered, ordered[1:], strict=False))

    # Fusing axes

    def _fuse(self, axes: list[Var], stages: list[Flat]) -> list[Var]:
        """Fuses neighbouring axes that every access steps through as if they were one; changes `stages` in place."""
        axes = list(axes)
        n = 0
        while n + 1 < len(axes):
            a, b = axes[n], axes[n + 1]
            inner = self.ranges.extent[b]
            if all(_fusable(e, a, b, inner) for s in stages for e in _flat_parts(s)):
                both = self.ranges.variable(f"{a.name}_{b.name}", self.ranges.extent[a] * inner)
                for k, stage in enumerate(stages):
                    stages[k] = stage.map(lambda e, a=a, b=b, both=both: _fused(e, a, b, both))  # type: ignore[misc]
                    stages[k] = replace(
                        stages[k], offsets=tuple(_fused_offset(o, a, b, both) for o in stages[k].offsets)
                    )
                axes[n : n + 2] = [both]
                n = max(n - 1, 0)
            else:
                n += 1
        return axes

    def _fuse_own(self, stage: Flat) -> Flat:
        one = [stage]
        own = self._fuse(list(stage.own), one)
        reduce = self._fuse(list(stage.reduce), one)
        return replace(one[0], own=tuple(own), reduce=tuple(reduce))

    # The nest

    def _lane(self, stages: list[Flat], axes: list[Var]) -> Var | None:
        """The axis to vectorise: the one along which most of the memory accesses are contiguous."""
        weights: dict[Var, float] = {}
        for stage in stages:
            every = [*axes, *stage.own, *stage.reduce]
            for e, factor in [(o, 1.5) for o in stage.offsets] + [
                (load.indices[0], 1.0) for v in stage.values for load in loads(v)
            ]:
                used = variables(e)
                volume = self.program.volume(tuple(a for a in every if a in used))
                for axis in every:
                    form = linear(e, {axis})
                    if form is not None and abs(form.coefficient(axis)) == 1:
                        full = min(1.0, self.ranges.extent[axis] / self.lanes)
                        weights[axis] = weights.get(axis, 0.0) + factor * volume * full
        if not weights:
            return max(axes, key=lambda a: self.ranges.extent[a]) if axes else None
        return max(weights, key=lambda a: weights[a])

    def _nest(self, stages: list[Flat], common: list[Var]) -> Nest:
        stages = [self._fuse_own(s) for s in stages]
        lane = self._lane(stages, common)
        strip = lane if lane is not None and any(lane.same_as(c) for c in common) else None
        outer = [c for c in common if strip is None or not c.same_as(strip)]
        if strip is not None:
            assert not any(strip.same_as(a) for a in outer)
        extent = self.ranges.extent
        work = sum(
            math.prod([extent[a] for a in (*common, *s.own, *s.reduce)]) * (1 + sum(cost(v) for v in s.values))
            for s in stages
        )
        # The shortest prefix of the outer axes whose iterations are small enough, G of them to a tile.
        prefix = 0
        per = work
        while prefix < len(outer) and per > _TILE_WORK:
            per //= extent[outer[prefix]]
            prefix += 1
        points = math.prod(extent[a] for a in outer[:prefix])
        group = min(points, max(1, _TILE_WORK // max(per, 1)))
        chunk = None
        chunks = 1
        if strip is not None and prefix == len(outer) and per > 2 * _TILE_WORK:
            width = self._width(stages)
            # Whole multiples of the widest strip, so that only the last chunk has a rest.
            chunk = max(1, extent[strip] * _TILE_WORK // per // width) * width
            chunks = -(-extent[strip] // chunk)
            group = 1
        tiles = -(-points // group) * chunks

        def body(t: Var) -> Stmt:
            at: dict[Var, Expr] = {}
            statements: list[Stmt] = []
            first = t
            piece: tuple[Expr, int] | None = None
            if chunks > 1:
                assert chunk is not None
                q = self.ranges.variable("q", chunks)
                first = self.ranges.variable("p", points)
                statements += [Bind(q, tirx.floormod(t, index(chunks))), Bind(first, tirx.floordiv(t, index(chunks)))]
                piece = (q, chunk)
            p = self.ranges.variable("p", points) if group > 1 else first
            decode: list[Stmt] = []
            rest = points
            for axis in outer[:prefix]:
                rest //= extent[axis]
                var = self.ranges.variable(axis.name, extent[axis])
                decode.append(
                    Bind(var, self.ranges.simplify(tirx.floormod(tirx.floordiv(p, index(rest)), index(extent[axis]))))
                )
                at[axis] = var
            inner = self._loops(outer[prefix:], at, lambda inside: self._point_of_common(stages, strip, inside, piece))
            block = SeqStmt([*decode, inner]) if decode else inner
            if group > 1:
                start = first * index(group)
                count: Expr = index(group)
                if points % group:
                    count = tirx.min(index(group), index(points) - start)
                block = For(p, start, count, ForKind.SERIAL, block)
            return SeqStmt([*statements, block]) if statements else block

        reads = {load.source for s in stages for v in s.values for load in loads(v)} - set(self.local_size)
        writes = {t for s in stages for t in s.targets} - set(self.local_size)
        return Nest(tiles, body, reads, writes)

    def _loops(self, axes: list[Var], at: dict[Var, Expr], body: Callable[[dict[Var, Expr]], Stmt],
               kind: ForKind = ForKind.SERIAL) -> Stmt:  # fmt: skip
        """Serial loops over `axes` with new loop variables."""
        if not axes:
            return body(at)
        var = self.ranges.variable(axes[0].name, self.ranges.extent[axes[0]])
        inner = self._loops(axes[1:], {**at, axes[0]: var}, body, kind)
        return For(var, index(0), index(self.ranges.extent[axes[0]]), kind, inner)

    def _width(self, stages: list[Flat]) -> int:
        """Elements of the widest vector: several registers, to have independent work, unless the computation is long."""
        price = max((cost(v) for s in stages for v in s.values), default=0)
        return self.lanes * (1 if price > 12 else 4 if any(s.init for s in stages) else 2)

    def _chunks(self, low: int, high: int, width: int, overlap: bool) -> list[tuple[Expr | None, int, int, int]]:
        """(loop variable or None, first, lanes, count): how [low, high) is covered by vectors."""
        result: list[tuple[Expr | None, int, int, int]] = []
        position = low
        while width >= 1:
            count = (high - position) // width
            if count:
                result.append((None, position, width, count))
                position += count * width
            if position < high and overlap and high - low >= width and width <= self.lanes and width > 1:
                result.append((None, high - width, width, 1))
                break
            width //= 2
        return result

    def _strips(self, low: int, high: int, width: int, overlap: bool,
                emit: Callable[[Expr, int], Stmt], piece: tuple[Expr, int] | None = None) -> list[Stmt]:  # fmt: skip
        """Statements that cover [low, high) with vectors; `emit(base, lanes)` is the body of one."""
        statements: list[Stmt] = []
        if piece is not None:
            q, size = piece
            whole = (high - low) // size
            i = self.ranges.variable("i", size // width)
            main = For(
                i, index(0), index(size // width), ForKind.SERIAL, emit(q * index(size) + i * index(width), width)
            )
            rest = self._strips(low + whole * size, high, width, False, emit)
            if not rest:
                return [main]
            last = SeqStmt(rest) if len(rest) > 1 else rest[0]
            return [IfThenElse(q < index(whole), main, last)]
        for _, first, lanes, count in self._chunks(low, high, width, overlap):
            if count == 1:
                statements.append(emit(index(first), lanes))
            else:
                i = self.ranges.variable("i", count)
                base = i * index(lanes) + index(first) if first else i * index(lanes)
                statements.append(For(i, index(0), index(count), ForKind.SERIAL, emit(base, lanes)))
        return statements

    def _point_of_common(self, stages: list[Flat], strip: Var | None, at: dict[Var, Expr],
                         piece: tuple[Expr, int] | None) -> Stmt:  # fmt: skip
        """All stages at one point of the common axes (column nests: along the whole strip)."""
        if strip is None:
            local = self._allocate(stages, 1)
            statements = [AllocBuffer(b) for b in local.values()]
            for stage in stages:
                statements += self._row_stage(stage, at, local, len(stages) > 1)
            return _sequence(statements)
        width = self._width(stages)

        def emit(base: Expr, lanes: int) -> Stmt:
            local = self._allocate(stages, lanes)
            statements: list[Stmt] = [AllocBuffer(b) for b in local.values()]
            for stage in stages:
                statements.append(
                    self._loops(
                        list(stage.own),
                        at,
                        lambda inside, stage=stage: self._vector(
                            stage, strip, base, lanes, inside, local, lanes, len(stages) > 1
                        ),  # type: ignore[misc]
                    )
                )
            return _sequence(statements)

        extent = self.ranges.extent[strip]
        if len(stages) == 1 and not stages[0].init and piece is None:
            return _sequence(
                [
                    s
                    for low, high in self._segments(stages[0].values, strip)
                    for s in self._strips(low, high, width, True, emit)
                ]
            )
        return _sequence(self._strips(0, extent, width, piece is None, emit, piece))

    def _allocate(self, stages: list[Flat], lanes: int) -> dict[Var, Var]:
        return {
            t: tirx.decl_buffer(
                (index(self.local_size[t] * lanes + (_LOCAL_SLACK if self.local_size[t] > 1 else 0)),),
                dtype_of(t),
                t.name,
            )
            for s in stages
            for t in s.targets
            if t in self.local_size
        }

    def _row_stage(self, stage: Flat, at: dict[Var, Expr], local: dict[Var, Var], grouped: bool) -> list[Stmt]:
        """One stage of a row nest, vectorised along an axis of its own."""
        candidates = [*stage.own, *stage.reduce] if stage.ops or not stage.init else list(stage.own)
        only = replace(
            stage,
            own=tuple(a for a in candidates if a in stage.own),
            reduce=tuple(a for a in candidates if a in stage.reduce),
        )
        lane = self._lane([only], []) if candidates else None
        if lane is not None and not any(lane.same_as(c) for c in candidates):
            lane = None
        if lane is None:
            return [
                self._loops(
                    list(stage.own),
                    at,
                    lambda inside: self._vector(stage, None, index(0), 1, inside, local, 1, grouped),
                )
            ]
        others = [a for a in stage.own if not a.same_as(lane)]
        if any(lane.same_as(r) for r in stage.reduce):
            return [self._loops(others, at, lambda inside: self._horizontal(stage, lane, inside, local, grouped))]
        width = self._width([stage])

        def strips(inside: dict[Var, Expr]) -> Stmt:
            return _sequence(
                [
                    s
                    for low, high in self._segments(stage.values, lane)
                    for s in self._strips(
                        low, high, width, True,
                        lambda base, lanes: self._vector(stage, lane, base, lanes, inside, local, 1, grouped),
                    )
                ]
            )  # fmt: skip

        return [self._loops(others, at, strips)]

    # Statements of one vector

    def _vector(self, stage: Flat, lane: Var | None, base: Expr, lanes: int, at: dict[Var, Expr], local: dict[Var, Var],
                pitch: int, grouped: bool) -> Stmt:  # fmt: skip
        """A stage for `lanes` neighbouring points of `lane`; local buffers hold `pitch` lanes an element."""
        if not stage.init:
            v = self._lane_variable(lanes)
            point = {**at, lane: base + v} if lane is not None else at
            before, value = self._value(stage.values[0], point, v, lanes, local, pitch, grouped)
            target, offset = self._place(stage.targets[0], stage.offsets[0], point, v, local, pitch)
            return _sequence([*before, _vectorized(v, lanes, BufferStore(target, value, [offset]))])
        accumulators = [tirx.decl_buffer((index(lanes),), dtype_of(t), f"{t.name}_acc") for t in stage.targets]
        statements: list[Stmt] = [AllocBuffer(a) for a in accumulators]
        for acc, init in zip(accumulators, stage.init, strict=True):
            v = self._lane_variable(lanes)
            statements.append(_vectorized(v, lanes, BufferStore(acc, init, [v])))

        def update(inside: dict[Var, Expr]) -> Stmt:
            return self._update(stage, accumulators, lane, base, lanes, inside, local, pitch, grouped)

        count = self.program.volume(stage.reduce)
        kind = ForKind.UNROLLED if count <= _SHORT_WINDOW else ForKind.SERIAL
        statements.append(self._loops(list(stage.reduce), at, update, kind))
        for acc, target, offset in zip(accumulators, stage.targets, stage.offsets, strict=True):
            v = self._lane_variable(lanes)
            point = {**at, lane: base + v} if lane is not None else at
            buffer, position = self._place(target, offset, point, v, local, pitch)
            statements.append(_vectorized(v, lanes, BufferStore(buffer, BufferLoad(acc, [v]), [position])))
        return _sequence(statements)

    def _update(self, stage: Flat, accumulators: list[Var], lane: Var | None, base: Expr, lanes: int,
                at: dict[Var, Expr], local: dict[Var, Var], pitch: int, grouped: bool) -> Stmt:  # fmt: skip
        """One step of a reduction in `lanes` accumulators."""
        statements: list[Stmt] = []

        def next_point() -> tuple[Expr, dict[Var, Expr]]:
            v = self._lane_variable(lanes)
            return v, ({**at, lane: base + v} if lane is not None else at)

        if stage.ops:
            for acc, op, value in zip(accumulators, stage.ops, stage.values, strict=True):
                v, point = next_point()
                before, new = self._value(value, point, v, lanes, local, pitch, grouped)
                total = _combine(op, BufferLoad(acc, [v]), new)
                statements += [*before, _vectorized(v, lanes, BufferStore(acc, total, [v]))]
            return _sequence(statements)
        # The new values depend on all the old ones: none is overwritten before all are known.
        new_values = [tirx.decl_buffer((index(lanes),), dtype_of(a), f"{a.name}_new") for a in accumulators]
        statements += [AllocBuffer(b) for b in new_values]
        for new_value, value in zip(new_values, stage.values, strict=True):
            v, point = next_point()
            old = {var: BufferLoad(acc, [v]) for var, acc in zip(stage.accumulators, accumulators, strict=True)}
            before, new = self._value(value, {**point, **old}, v, lanes, local, pitch, grouped)
            statements += [*before, _vectorized(v, lanes, BufferStore(new_value, new, [v]))]
        for acc, new_value in zip(accumulators, new_values, strict=True):
            w = self._lane_variable(lanes)
            statements.append(_vectorized(w, lanes, BufferStore(acc, BufferLoad(new_value, [w]), [w])))
        return _sequence(statements)

    def _horizontal(self, stage: Flat, lane: Var, at: dict[Var, Expr], local: dict[Var, Var], grouped: bool) -> Stmt:
        """A reduction along its contiguous axis: partial results in vectors, then a tree over the lanes."""
        extent = self.ranges.extent[lane]
        width = self._width([stage])
        while width > extent:
            width //= 2
        accumulators = [tirx.decl_buffer((index(width),), dtype_of(t), f"{t.name}_acc") for t in stage.targets]
        statements: list[Stmt] = [AllocBuffer(a) for a in accumulators]
        for acc, init in zip(accumulators, stage.init, strict=True):
            v = self._lane_variable(width)
            statements.append(_vectorized(v, width, BufferStore(acc, init, [v])))

        def along(inside: dict[Var, Expr]) -> Stmt:
            def emit(base: Expr, lanes: int) -> Stmt:
                return self._update(stage, accumulators, lane, base, lanes, inside, local, 1, grouped)

            segments = self._segments(stage.values, lane)
            return _sequence([s for low, high in segments for s in self._strips(low, high, width, False, emit)])

        statements.append(self._loops([r for r in stage.reduce if not r.same_as(lane)], at, along))
        while width > 1:
            width //= 2
            for acc, op in zip(accumulators, stage.ops, strict=True):
                v = self._lane_variable(width)
                halves = _combine(op, BufferLoad(acc, [v]), BufferLoad(acc, [v + index(width)]))
                statements.append(_vectorized(v, width, BufferStore(acc, halves, [v])))
        for acc, target, offset in zip(accumulators, stage.targets, stage.offsets, strict=True):
            buffer, position = self._place(target, offset, at, index(0), local, 1)
            statements.append(BufferStore(buffer, BufferLoad(acc, [index(0)]), [position]))
        return _sequence(statements)

    def _lane_variable(self, lanes: int) -> Expr:
        return self.ranges.variable("v", lanes) if lanes > 1 else index(0)

    def _place(self, target: Var, offset: Expr, point: dict[Var, Expr], v: Expr, local: dict[Var, Var],
               pitch: int) -> tuple[Var, Expr]:  # fmt: skip
        position = substitute(offset, point)
        if target in local:
            if pitch > 1:
                position = position * index(pitch) + v
            target = local[target]
        return target, self.ranges.simplify(position)

    def _value(self, value: Expr, point: dict[Var, Expr], v: Expr, lanes: int, local: dict[Var, Var], pitch: int,
               grouped: bool) -> tuple[list[Stmt], Expr]:  # fmt: skip
        """`value` at a point, ready to be vectorised over `v`, and what has to run before."""

        def placed(e: Expr) -> Expr:
            if not isinstance(e, TensorLoad):
                return e
            buffer, offset = e.source, e.indices[0]
            if buffer in local:
                if pitch > 1:
                    offset = offset * index(pitch) + v
                buffer = local[buffer]
            return BufferLoad(buffer, [offset])

        value = self.ranges.fold(rewrite(substitute(value, point), placed))
        before: list[Stmt] = []
        if lanes > 1:
            value = rewrite(value, lambda e: self._without_branch(e, v))
            value = self._without_strides(value, v, lanes, before)
            if grouped:
                value = rewrite(value, lambda e: _reciprocal(e, v))
        return before, expand(value)

    def _without_branch(self, e: Expr, v: Var) -> Expr:
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

    def _without_strides(self, value: Expr, v: Var, lanes: int, before: list[Stmt]) -> Expr:
        """Loads that pick from a short run of memory in a fixed pattern (strided, reversed, repeated) become whole
        vector loads and a shuffle, kept in a temporary."""

        def change(e: Expr) -> Expr:
            if not isinstance(e, TensorLoad):
                return e
            split = self._pattern(e.indices[0], v, lanes)
            if split is None:
                return e
            start, pattern = split
            temporary = tirx.decl_buffer((index(lanes),), dtype_of(e), "picked")
            vectors = [
                BufferLoad(e.source, [Ramp(self.ranges.simplify(start + index(k)), index(1), lanes)])
                for k in range(0, max(pattern) + 1, lanes)
            ]
            before.append(AllocBuffer(temporary))
            picked = Shuffle(vectors, [tirx.const(p, "int32") for p in pattern])
            before.append(BufferStore(temporary, picked, [Ramp(index(0), index(1), lanes)]))
            return BufferLoad(temporary, [v])

        if lanes < 4 or any(is_call(e, "if_then_else") for e in visit(value)):
            return value
        return rewrite(value, change)

    def _pattern(self, offset: Expr, v: Var, lanes: int) -> tuple[Expr, list[int]] | None:
        """(start, pattern) with offset == start + pattern[v], for short patterns that are not contiguous or constant."""
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
        form = linear(moving, {v})
        if form is not None:
            steps = [form.coefficient(v) * k for k in range(lanes)]
        else:
            steps = [int(self.ranges.simplify(substitute(moving, {v: index(k)}))) for k in range(lanes)]
        low = min(steps)
        pattern = [step - low for step in steps]
        if max(pattern) >= 4 * lanes or pattern == list(range(lanes)):
            return None
        base = index(low) if form is None else form.rest + index(low)
        return fixed + base, pattern


def _combine(op: str, a: Expr, b: Expr) -> Expr:
    return {"sum": tirx.Add, "product": tirx.Mul, "max": tirx.Max, "min": tirx.Min}[op](a, b)


def _reciprocal(e: Expr, v: Var) -> Expr:
    """Divides once for a whole row (softmax, norms), where each element would have divided by the same sum."""
    if isinstance(e, tirx.Div) and dtype_of(e) == "float32" and loads(e.b) and v not in variables(e.b):
        return e.a * (tirx.const(1.0, "float32") / e.b)
    return e


def _vectorized(v: Expr, lanes: int, store: Stmt) -> Stmt:
    return For(v, index(0), index(lanes), ForKind.VECTORIZED, store) if lanes > 1 else store


def _sequence(statements: list[Stmt]) -> Stmt:
    return SeqStmt(statements) if len(statements) > 1 else statements[0]


def _cuts(test: Expr, axis: Var) -> list[int]:
    """Where along `axis` a comparison changes its outcome; nothing when it depends on other axes too."""
    if not isinstance(test, (tirx.LT, tirx.LE, tirx.GT, tirx.GE, tirx.EQ, tirx.NE)):
        return []
    if dtype_of(test.a) not in ("int32", "int64"):
        return []
    a, b = linear(test.a, {axis}), linear(test.b, {axis})
    if a is None or b is None:
        return []
    form = a.plus(b.scaled(-1))
    c = form.coefficient(axis)
    if not c or not isinstance(form.rest, IntImm):
        return []
    r = int(form.rest)
    if isinstance(test, (tirx.GT, tirx.GE)):
        c, r = -c, -r
    root_floor, root_ceil = (-r) // c, -(r // c)
    if isinstance(test, (tirx.EQ, tirx.NE)):
        return [root_floor, root_floor + 1]
    if isinstance(test, (tirx.LT, tirx.GT)):
        return [root_ceil] if c > 0 else [root_floor + 1]
    return [root_floor + 1] if c > 0 else [root_ceil]


def _terms(e: Expr, sign: int = 1) -> list[tuple[Expr, int]]:
    """The terms of a sum."""
    if isinstance(e, tirx.Add):
        return _terms(e.a, sign) + _terms(e.b, sign)
    if isinstance(e, tirx.Sub):
        return _terms(e.a, sign) + _terms(e.b, -sign)
    return [(e, sign)]


def _flat_parts(stage: Flat) -> list[tuple[str, Expr]]:
    return [("offset", o) for o in stage.offsets] + [("value", v) for v in stage.values]


def _fusable(part: tuple[str, Expr], a: Var, b: Var, inner: int) -> bool:
    """Whether `part` uses axes a and b only as inner * a + b in offsets."""
    kind, e = part
    if kind == "offset":
        form = linear(e, {a, b})
        return form is not None and form.coefficient(a) == inner * form.coefficient(b)
    if isinstance(e, TensorLoad):
        return _fusable(("offset", e.indices[0]), a, b, inner)
    if isinstance(e, Var):
        return not e.same_as(a) and not e.same_as(b)
    return all(_fusable(("value", c), a, b, inner) for c in children(e))


def _fused_offset(e: Expr, a: Var, b: Var, both: Var) -> Expr:
    form = linear(e, {a, b})
    if form is None or not form.coefficients:
        return e
    c = form.coefficient(b)
    step = both if c == 1 else both * index(c)
    return step if isinstance(form.rest, IntImm) and int(form.rest) == 0 else step + form.rest


def _fused(e: Expr, a: Var, b: Var, both: Var) -> Expr:
    return rewrite(
        e, lambda x: BufferLoad(x.source, [_fused_offset(x.indices[0], a, b, both)]) if isinstance(x, TensorLoad) else x
    )


@dataclass
class Emission:
    """Nests put one after the other, independent neighbours in one parallel loop."""

    statements: list[Stmt] = field(default_factory=list)


def join(nests: list[Nest], scheduler: Scheduler) -> Stmt:
    """All nests in order, as parallel loops; neighbours that do not depend on each other share one."""
    batches: list[list[Nest]] = []
    for nest in nests:
        batch = batches[-1] if batches else []
        before_reads = {r for n in batch for r in n.reads}
        before_writes = {w for n in batch for w in n.writes}
        if batch and not (before_writes & nest.reads) and not (before_reads & nest.writes):
            batch.append(nest)
        else:
            batches.append([nest])
    statements = []
    for batch in batches:
        tiles = sum(n.tiles for n in batch)
        t = scheduler.ranges.variable("t", tiles)
        body: Stmt | None = None
        first = tiles
        for nest in reversed(batch):
            first -= nest.tiles
            mine = t
            if len(batch) == 1:
                body = nest.body(t)
                break
            mine = scheduler.ranges.variable("t", nest.tiles)
            own = SeqStmt([Bind(mine, t - index(first)), nest.body(mine)])
            body = own if body is None else IfThenElse(t < index(first + nest.tiles), own, body)
        statements.append(For(t, index(0), index(tiles), ForKind.PARALLEL, body))
    return _sequence(statements)
