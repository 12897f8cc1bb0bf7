"""Stages that are computed together, and their place in flat memory.

Stages that read each other at the same place of some axes become one group: for each point of these *common* axes they
run one after the other, and what they hand on stays in small local buffers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from tvm import tirx
from tvm.ir import TensorLoad
from tvm.tirx import BufferLoad, Var

from lwc_compiler.codegen.schedules_expressions import children, dtype_of, index, linear, rewrite, substitute
from lwc_compiler.codegen.schedules_stages import Program, Stage, is_zero, shape_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tvm.ir import Expr

_LOCAL_BYTES = 256 * 1024
# Rows of a window that are kept together, so that what the first pass stores is in the cache, and no longer in the
# store buffer, when the second pass reads it at other alignments.
_WINDOW_BYTES = 32 * 1024


@dataclass
class Group:
    """Stages of one nest; `common` are the spatial axes that all of them have."""

    stages: list[Stage]
    common: list[Var]


@dataclass(frozen=True, eq=False)
class Flat:
    """A stage over flat memory.

    Attributes:
        own: spatial axes that are not common to the group.
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
        """The stage with `change` applied to its values and offsets."""
        return replace(self, values=tuple(map(change, self.values)), offsets=tuple(map(change, self.offsets)))


@dataclass
class Memory:
    """The one-dimensional buffers of a function.

    Attributes:
        flat: parameters, and buffers between nests, by the buffer of the program they stand for.
        local: elements of each buffer inside a nest, for one point of the common axes.
    """

    flat: dict[Var, Var] = field(default_factory=dict)
    local: dict[Var, int] = field(default_factory=dict)

    def of(self, buffer: Var) -> Var:
        """The flat buffer of a parameter or a buffer between nests."""
        if buffer not in self.flat:
            size = index(math.prod(shape_of(buffer)))
            self.flat[buffer] = tirx.decl_buffer((size,), dtype_of(buffer), buffer.name)
        return self.flat[buffer]


def group_stages(program: Program) -> list[Group]:
    """All stages of a program, in groups."""
    groups: list[Group] = []
    for stage in program.stages:
        merged = _merge(groups[-1], stage, program) if groups else None
        if merged is None:
            groups.append(Group([stage], list(stage.spatial)))
        else:
            groups[-1] = merged
    for group in groups:
        last = [i for i in group.stages[-1].indices if isinstance(i, Var)]
        common = set(group.common)
        group.common = [v for v in last if v in common]
        if any(t in program.windows for s in group.stages for t in s.targets):
            fewer = Group(group.stages, group.common[:-1])
            if _local_bytes(fewer, program) <= _WINDOW_BYTES:
                group.common = fewer.common
    program.stages = [stage for group in groups for stage in group.stages]
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
    spatial = set(stage.spatial)
    back: dict[Var, Var] = {}  # axis of the stage -> common axis
    for axis in group.common:
        partner = _partner(axis, internal, produced)
        if partner is None or partner not in spatial or partner in back:
            continue
        if program.ranges.extent[partner] == program.ranges.extent[axis]:
            back[partner] = axis
    if not back:
        return None
    renamed = stage.map(lambda e: substitute(e, back))
    renamed = replace(renamed, spatial=tuple(back.get(s, s) for s in stage.spatial))
    kept = set(back.values())
    merged = Group([*group.stages, renamed], [a for a in group.common if a in kept])
    return merged if _local_bytes(merged, program) <= _LOCAL_BYTES else None


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
    params, common = set(program.params), set(group.common)
    total = 0
    for stage in group.stages[:-1]:
        for target in stage.targets:
            if program.memory(target) not in params:
                total += 4 * program.volume([i for i in stage.spatial if i not in common])
    return total


def flatten(group: Group, program: Program, memory: Memory) -> list[Flat]:
    """The stages of a group over flat memory; buffers that only the group reads become local."""
    common = set(group.common)
    ranges = program.ranges
    local: dict[Var, tuple[Var, list[int], list[int]]] = {}  # buffer -> flat buffer, dimensions kept, their extents
    for stage in group.stages:
        for target in stage.targets:
            if target in program.params or target in program.views or target in program.views.values():
                continue
            if any(load.source.same_as(target) for s in program.stages if s not in group.stages for load in s.loads()):
                continue
            shape = shape_of(target)
            own = [n for n, i in enumerate(stage.indices) if isinstance(i, Var) and i not in common]
            size = math.prod(shape[n] for n in own)
            buffer = tirx.decl_buffer((index(size),), dtype_of(target), target.name)
            memory.local[buffer] = size
            local[target] = (buffer, own, [shape[n] for n in own])

    def place(buffer: Var, indices: Sequence[Expr]) -> tuple[Var, Expr]:
        if buffer in local:
            flat, dims, shape = local[buffer]
            offset: Expr = index(0)
            for n, extent in zip(dims, shape, strict=True):
                offset = offset * index(extent) + indices[n]
            return flat, ranges.simplify(offset)
        return memory.of(program.memory(buffer)), program.offset(buffer, indices)

    def load(e: Expr) -> Expr:
        if not isinstance(e, TensorLoad):
            return e
        buffer, offset = place(e.source, e.indices)
        return BufferLoad(buffer, [offset])

    result = []
    for stage in group.stages:
        placed = [place(t, stage.indices) for t in stage.targets]
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


def fuse_axes(axes: Sequence[Var], stages: list[Flat], program: Program) -> list[Var]:
    """Fuses neighbouring axes that every access steps through as if they were one; changes the list `stages`."""
    axes = list(axes)
    extent = program.ranges.extent
    n = 0
    while n + 1 < len(axes):
        a, b = axes[n], axes[n + 1]
        if not all(
            all(_steps_as_one(o, a, b, extent[b]) for o in s.offsets)
            and all(_uses_as_one(v, a, b, extent[b]) for v in s.values)
            for s in stages
        ):
            n += 1
            continue
        both = program.ranges.variable(f"{a.name}_{b.name}", extent[a] * extent[b])
        stages[:] = [_with_fused(s, a, b, both) for s in stages]
        axes[n : n + 2] = [both]
        n = max(n - 1, 0)
    return axes


def fuse_own_axes(stage: Flat, program: Program) -> Flat:
    """Fuses the spatial axes of a stage that are its own, and its reduced axes."""
    one = [stage]
    own = fuse_axes(stage.own, one, program)
    reduce = fuse_axes(stage.reduce, one, program)
    return replace(one[0], own=tuple(own), reduce=tuple(reduce))


def _steps_as_one(offset: Expr, a: Var, b: Var, inner: int) -> bool:
    form = linear(offset, {a, b})
    return form is not None and form.coefficient(a) == inner * form.coefficient(b)


def _uses_as_one(value: Expr, a: Var, b: Var, inner: int) -> bool:
    if isinstance(value, TensorLoad):
        return _steps_as_one(value.indices[0], a, b, inner)
    if isinstance(value, Var):
        return not value.same_as(a) and not value.same_as(b)
    return all(_uses_as_one(c, a, b, inner) for c in children(value))


def _with_fused(stage: Flat, a: Var, b: Var, both: Var) -> Flat:
    def offset(e: Expr) -> Expr:
        form = linear(e, {a, b})
        if form is None or not form.coefficients:
            return e
        c = form.coefficient(b)
        step = both if c == 1 else both * index(c)
        return step if is_zero(form.rest) else step + form.rest

    def load(e: Expr) -> Expr:
        return BufferLoad(e.source, [offset(e.indices[0])]) if isinstance(e, TensorLoad) else e

    return replace(
        stage,
        values=tuple(rewrite(v, load) for v in stage.values),
        offsets=tuple(map(offset, stage.offsets)),
    )
