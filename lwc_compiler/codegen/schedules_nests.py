"""From groups of stages to parallel loop nests.

In a *column* nest a vector of one common axis runs through all stages of the group; in a *row* nest every stage is
vectorised along an axis of its own; a *block* nest transposes square blocks in registers.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tvm import tirx
from tvm.tirx import AllocBuffer, For, ForKind, IfThenElse, SeqStmt, Var
from tvm.tirx.stmt import Bind

from lwc_compiler.codegen.schedules_expressions import dtype_of, index, loads, substitute
from lwc_compiler.codegen.schedules_groups import Flat, Group, Memory, flatten, fuse_axes, fuse_own_axes
from lwc_compiler.codegen.schedules_stages import Program, cost
from lwc_compiler.codegen.schedules_vectors import Place, Vectors, sequence

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tvm.ir import Expr
    from tvm.tirx import Stmt

    # What is computed at one point of the outer axes.
    Point = Callable[[dict[Var, Expr]], Stmt]

# Work of one tile, in elements weighted by the price of their computation: some microseconds.
_TILE_WORK = 32768
# Readable elements past the end of a local buffer, for the vector loads that run over.
_LOCAL_SLACK = 64
_MAX_REGIONS = 64


@dataclass(frozen=True)
class Nest:
    """A parallel loop: `body(t)` is the work of tile t."""

    tiles: int
    body: Callable[[Var], Stmt]
    reads: frozenset[Var]
    writes: frozenset[Var]


class Scheduler:
    """Turns the groups of one function into nests over flat buffers."""

    def __init__(self, program: Program, lanes: int) -> None:
        self.program, self.ranges = program, program.ranges
        self.memory = Memory()
        self.params = [self.memory.of(b) for b in program.params]
        self.vectors = Vectors(program, self.memory, lanes)

    def nests(self, group: Group) -> list[Nest]:
        """The nests of a group: one, or several for an elementwise stage that is pieced together."""
        stages = flatten(group, self.program, self.memory)
        if len(stages) > 1 or stages[0].init:
            return [self._nest(stages, group.common)]
        return [self._nest([stage], axes) for stage, axes in self._regions(stages[0], group.common)]

    def _regions(self, stage: Flat, common: list[Var]) -> list[tuple[Flat, list[Var]]]:
        """Splits the domain where a condition on one axis changes, but for the axis that will be vectorised."""
        lane = self.vectors.lane([stage], common)
        regions = [(stage, common)]
        for axis in common:
            if axis.same_as(lane):
                continue
            split = [r for part, axes in regions for r in self._split(part, axes, axis)]
            if len(split) > _MAX_REGIONS:
                break
            regions = split
        return [(s.map(self.ranges.fold), axes) for s, axes in regions]

    def _split(self, stage: Flat, axes: list[Var], axis: Var) -> list[tuple[Flat, list[Var]]]:
        segments = self.vectors.segments(stage.values, axis)
        if len(segments) == 1:
            return [(stage, axes)]
        result = []
        for low, high in segments:
            at: dict[Var, Expr] = {axis: index(low)}
            inside = [a for a in axes if not a.same_as(axis)]
            if high - low > 1:
                var = self.ranges.variable(axis.name, high - low)
                at = {axis: var + index(low) if low else var}
                inside = [var if a.same_as(axis) else a for a in axes]
            part = stage.map(lambda e, at=at: self.ranges.fold(substitute(e, at)))  # type: ignore[misc]
            result.append((part, inside))
        return result

    def _nest(self, stages: list[Flat], common: Sequence[Var]) -> Nest:
        common = fuse_axes(common, stages, self.program)
        stages = [fuse_own_axes(s, self.program) for s in stages]
        lane = self.vectors.lane(stages, common)
        transposed = self.vectors.transposed(stages[0], common) if len(stages) == 1 else None
        if transposed is not None:
            return self._block_nest(stages[0], common, *transposed)
        if lane is None or lane not in common:
            return self._tiled(stages, common, lambda at: self._rows(stages, at))
        outer = [c for c in common if not c.same_as(lane)]
        work = _work(stages, common, self.ranges.extent) // math.prod(self.ranges.extent[a] for a in outer)
        extent, width = self.ranges.extent[lane], self.vectors.column_width(stages)
        # Whole multiples of the widest vector, so that only the last piece has a rest.
        size = max(1, extent * _TILE_WORK // work // width) * width
        if work <= 2 * _TILE_WORK or size >= extent:
            return self._tiled(stages, outer, lambda at: self._columns(stages, lane, at, None), work)
        piece = self.ranges.variable("piece", -(-extent // size))
        return self._tiled(
            stages, [*outer, piece], lambda at: self._columns(stages, lane, at, (at[piece], size)), _TILE_WORK
        )

    def _block_nest(self, stage: Flat, common: list[Var], a: Var, w: Var) -> Nest:
        extent, n = self.ranges.extent, self.vectors.lanes
        blocks = {axis: self.ranges.variable(f"{axis.name}_block", -(-extent[axis] // n)) for axis in (a, w)}
        # The rows of a short axis share cache lines with the next ones, which are read while these are there.
        order = common if extent[a] >= n else self.vectors.read_order(stage, a, w, common)
        outer = [blocks.get(c, c) for c in order]

        def point(at: dict[Var, Expr]) -> Stmt:
            # The last block of an axis ends where the axis ends: it may compute some points a second time.
            firsts, statements = {}, []
            for axis, block in blocks.items():
                most = max(0, extent[axis] - n)
                first = self.ranges.variable(axis.name, most + 1)
                start = at[block] * index(n)
                statements.append(Bind(first, tirx.min(start, index(most)) if extent[axis] % n else start))
                firsts[axis] = first
            here = Place({**at, **firsts}, {}, 1, False)
            return SeqStmt([*statements, self.vectors.block(stage, a, w, here)])

        return self._tiled([stage], outer, point, n * n)

    def _tiled(self, stages: list[Flat], outer: Sequence[Var], point: Point, work: int | None = None) -> Nest:
        """Cuts the outer axes into tiles of about `_TILE_WORK`.

        Args:
            stages: for what they read and write.
            outer: loops around `point`.
            point: the body.
            work: of one point.
        """
        extent = self.ranges.extent
        per = work if work is not None else _work(stages, outer, extent) // math.prod(extent[a] for a in outer)
        per *= math.prod(extent[a] for a in outer)
        # The shortest prefix of the axes whose iterations are small enough, and how many of these make a tile.
        prefix = 0
        while prefix < len(outer) and per > _TILE_WORK:
            per //= extent[outer[prefix]]
            prefix += 1
        points = math.prod(extent[a] for a in outer[:prefix])
        group = min(points, max(1, _TILE_WORK // max(per, 1)))

        def body(t: Var) -> Stmt:
            p = self.ranges.variable("p", points) if group > 1 else t
            at: dict[Var, Expr] = {}
            statements: list[Stmt] = []
            rest = points
            for axis in outer[:prefix]:
                rest //= extent[axis]
                var = self.ranges.variable(axis.name, extent[axis])
                value = tirx.floormod(tirx.floordiv(p, index(rest)), index(extent[axis]))
                statements.append(Bind(var, self.ranges.simplify(value)))
                at[axis] = var
            inner = self.vectors.loops(outer[prefix:], at, point)
            block = sequence([*statements, inner])
            if group == 1:
                return block
            start = t * index(group)
            count = index(group) if points % group == 0 else tirx.min(index(group), index(points) - start)
            return For(p, start, count, ForKind.SERIAL, block)

        reads = {load.source for s in stages for v in s.values for load in loads(v)}
        writes = {t for s in stages for t in s.targets}
        local = set(self.memory.local)
        return Nest(-(-points // group), body, frozenset(reads - local), frozenset(writes - local))

    def _rows(self, stages: list[Flat], at: dict[Var, Expr]) -> Stmt:
        """All stages at one point of the common axes, each with its own vectors."""
        place = Place(at, self._allocate(stages, 1), 1, len(stages) > 1)
        statements: list[Stmt] = [AllocBuffer(b) for b in place.local.values()]
        n = 0
        while n < len(stages):
            paired = n + 1 < len(stages) and self.vectors.feeds(stages[n], stages[n + 1])
            producer = stages[n] if paired else None
            n += paired
            statements.append(self.vectors.row_stage(stages[n], place, producer))
            n += 1
        return sequence(statements)

    def _columns(self, stages: list[Flat], lane: Var, at: dict[Var, Expr], piece: tuple[Expr, int] | None) -> Stmt:
        """All stages along the common axis `lane`, vector by vector; with `piece` (number, size) only along a piece."""
        vectors = self.vectors
        width, extent = vectors.column_width(stages), self.ranges.extent[lane]

        def emit(base: Expr, lanes: int) -> Stmt:
            place = Place(at, self._allocate(stages, lanes), lanes, len(stages) > 1)
            statements: list[Stmt] = [AllocBuffer(b) for b in place.local.values()]
            for stage in stages:

                def inner(inside: dict[Var, Expr], stage: Flat = stage) -> Stmt:
                    return vectors.column(stage, lane, base, lanes, place.inside(inside))

                statements.append(vectors.loops(stage.own, at, inner))
            return sequence(statements)

        if piece is not None:
            return vectors.pieces(extent, width, *piece, emit)
        segments = [(0, extent)]
        if len(stages) == 1 and not stages[0].init:
            segments = vectors.segments(stages[0].values, lane)
        return sequence([s for low, high in segments for s in vectors.strips(low, high, width, True, emit)])

    def _allocate(self, stages: list[Flat], lanes: int) -> dict[Var, Var]:
        """The local buffers of a group, with room for `lanes` values an element."""
        result = {}
        for stage in stages:
            for target in stage.targets:
                if target in self.memory.local:
                    size = self.memory.local[target] * lanes
                    slack = _LOCAL_SLACK if self.memory.local[target] > 1 else 0
                    result[target] = tirx.decl_buffer((index(size + slack),), dtype_of(target), target.name)
        return result


def _work(stages: Sequence[Flat], common: Sequence[Var], extent: dict[Var, int]) -> int:
    return sum(
        math.prod(extent[a] for a in (*common, *s.own, *s.reduce)) * (1 + sum(cost(v) for v in s.values))
        for s in stages
    )


def join(nests: Sequence[Nest], scheduler: Scheduler) -> Stmt:
    """All nests in order, as parallel loops; neighbours that do not depend on each other share one."""
    batches: list[list[Nest]] = []
    for nest in nests:
        batch = batches[-1] if batches else []
        if batch and not any(n.writes & nest.reads or n.reads & nest.writes for n in batch):
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
            if len(batch) == 1:
                body = nest.body(t)
                break
            mine = scheduler.ranges.variable("t", nest.tiles)
            own = SeqStmt([Bind(mine, t - index(first)), nest.body(mine)])
            body = own if body is None else IfThenElse(t < index(first + nest.tiles), own, body)
        statements.append(For(t, index(0), index(tiles), ForKind.PARALLEL, body))
    return sequence(statements)
