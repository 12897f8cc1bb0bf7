"""Softmax, normalization, means: functions of reductions along rows, and of what is computed from their results.

All reductions of a function run over the same kind of *row* (the channels of a pixel, the keys of a query), and every
output is computed from its row and from what the row was reduced to. `read_rows` recognises such functions,
`rows_kernel` writes them as one kernel, in which a row stays in the registers of one thread, of a warp or of a block.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from tvm.ir import TensorLoad
from tvm.tirx import BufferLoad, IntImm, Var

from lwc_compiler.codegen.schedules_expressions import (
    UnknownExpressionError,
    dtype_of,
    index,
    linear,
    rewrite,
    substitute,
    visit,
)
from lwc_compiler.codegen.schedules_groups import Memory
from lwc_compiler.codegen.schedules_stages import Stage, UnknownStructureError, cost, read_stages, shape_of
from lwc_compiler.kernels.gpu.builder import COMBINED

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tvm.ir import Expr
    from tvm.tirx import PrimFunc

    from lwc_compiler.codegen.schedules_expressions import Ranges
    from lwc_compiler.codegen.schedules_stages import Program

_MOST_NODES = 2000  # of an expression with all it depends on put in
_UNROLLED = 8  # elements around a point
_MOST_COST = 48  # of a value that is computed from them, as `cost` counts: what lies between is computed once for each
_SHORT = 31  # elements of a row: as many are added up where the sum is used, unless there are other reductions


@dataclass(frozen=True)
class Phase:
    """One value for every element of every row: of an output, or what is combined to one number a row.

    Attributes:
        target: the output, or the result of a reduction.
        op: `sum`, `max` or `min`; empty for an output.
        offset: of an output's element.
        value: loads of parameters are of flat memory; those of reductions' results have no indices.
        at: number of the element in its row, in `offset` and `value`.
        length: of a row.
    """

    target: Var
    op: str
    offset: Expr
    value: Expr
    at: Var
    length: int


@dataclass(frozen=True)
class Rows:
    """A function as phases that run one after the other.

    Attributes:
        params: of the function, as flat memory.
        phases: reductions and outputs, in order.
        row: number of the row, in all phases.
        count: of rows.
        length: of a row in the reductions.
        across: neighbours in memory are in neighbouring rows, and not in the same one.
        ranges: what is known about the variables.
    """

    params: tuple[Var, ...]
    phases: tuple[Phase, ...]
    row: Var
    count: int
    length: int
    across: bool
    ranges: Ranges


class _NoRowsError(Exception):
    """The function has another form."""


def read_rows(func: PrimFunc) -> Rows | None:
    """A function made by Relax's legalization and fusion as rows; None when it is of another form."""
    try:
        return _Reader(read_stages(func)).rows()
    except (UnknownStructureError, UnknownExpressionError, _NoRowsError):
        return None


def read_points(func: PrimFunc) -> Rows | None:
    """A function of a few elements around each point (a local response normalization) as rows of one element."""
    try:
        return _Reader(read_stages(func), unrolled=True).points()
    except (UnknownStructureError, UnknownExpressionError, _NoRowsError):
        return None


class _Reader:
    """One function: elementwise stages are put into those that read them; reductions and outputs are left.

    Args:
        program: the function.
        unrolled: short reductions become expressions, which are put into those that read them, too.
    """

    def __init__(self, program: Program, *, unrolled: bool = False) -> None:
        self.unrolled = unrolled
        self.program, self.ranges, self.memory = program, program.ranges, Memory()
        self.reductions: set[Var] = set()
        self.stages = list(self._merged())
        computed = [target for stage in self.stages for target in stage.targets]
        if any(dtype_of(target) != "float32" for target in computed):
            raise _NoRowsError

    def _merged(self) -> Iterator[Stage]:
        inlined: dict[Var, Stage] = {}
        outputs = set(self.program.params)

        def put_in(e: Expr) -> Expr:
            if not isinstance(e, TensorLoad) or e.source not in inlined:
                return e
            stage = inlined[e.source]
            at = {axis: i for axis, i in zip(stage.indices, e.indices, strict=True) if not isinstance(axis, IntImm)}
            return substitute(stage.values[0], at)

        for read in self.program.stages:
            stage = read.map(lambda e: self.ranges.fold(rewrite(e, put_in)))
            if any(number == _MOST_NODES for number, _ in enumerate(visit(stage.values[0]))):
                raise _NoRowsError
            (target, *others) = stage.targets
            if not stage.init:
                inlined[target] = stage
            elif others or stage.ops[:1] not in [(op,) for op in COMBINED]:
                raise _NoRowsError
            elif self.unrolled:
                inlined[target] = self._unrolled(stage)
            else:
                self._check_reads(stage)
                self.reductions.add(target)
                yield stage
                stage = Stage(stage.spatial, (), (target,), stage.indices, (BufferLoad(target, list(stage.indices)),))
            if target in outputs:
                yield stage

    def _check_reads(self, stage: Stage) -> None:
        """A reduction that reads an element several times is a product, or has windows."""
        largest = max((math.prod(shape_of(load.source)) for load in stage.loads()), default=0)
        if self.program.volume(stage.axes) > largest:
            raise _NoRowsError

    def _unrolled(self, stage: Stage) -> Stage:
        """A reduction as an expression; its result is no output, or one launch would do without."""
        if self.program.volume(stage.reduce) > _UNROLLED or stage.targets[0] in self.program.params:
            raise _NoRowsError
        _, combine = COMBINED[stage.ops[0]]
        total: Expr | None = None
        for place in itertools.product(*(range(self.ranges.extent[axis]) for axis in stage.reduce)):
            at = dict(zip(stage.reduce, map(index, place), strict=True))
            value = self.ranges.fold(substitute(stage.values[0], at))
            total = value if total is None else combine(total, value)
        return replace(stage, reduce=(), values=(total,), init=(), ops=())

    def points(self) -> Rows:
        if len(self.stages) != 1 or cost(self.stages[0].values[0]) > _MOST_COST:
            raise _NoRowsError
        if not any(stage.init for stage in self.program.stages):
            raise _NoRowsError
        (stage,) = self.stages
        axes = self._axes_of(stage.indices)
        count = self.program.volume(axes)
        row, at = self.ranges.variable("row", count), self.ranges.variable("at1", 1)
        phase = self._flat(stage, self._unravelled(row, axes), at, 1)
        params = tuple(self.memory.of(param) for param in self.program.params)
        return Rows(params, (phase,), row, count, 1, False, self.ranges)

    def rows(self) -> Rows:
        if not self.reductions:
            raise _NoRowsError
        first = self.stages[0]
        strides = self._strides(first)
        order = sorted(range(len(self._row_axes(first))), key=lambda i: -strides[self._row_axes(first)[i]])
        extents = [self.ranges.extent[self._row_axes(first)[i]] for i in order]
        row = self.ranges.variable("row", math.prod(extents))
        elements: dict[int, Var] = {}
        phases = [self._phase(stage, row, order, extents, elements) for stage in self.stages]
        reduced = [phase.length for phase in phases if phase.op]
        if reduced == [min(reduced[0], _SHORT)]:
            raise _NoRowsError
        along = any(strides[axis] == 1 for axis in first.reduce)
        across = not along and any(strides[axis] == 1 for axis in first.spatial)
        count = math.prod(extents)
        params = tuple(self.memory.of(param) for param in self.program.params)
        return Rows(params, tuple(phases), row, count, max(reduced), across, self.ranges)

    def _strides(self, stage: Stage) -> dict[Var, int]:
        """Elements of the largest operand, or of the output, from one point of each axis to the next."""
        read = [load for load in stage.loads() if load.source not in self.reductions]
        source, indices = max(
            ((load.source, load.indices) for load in read),
            key=lambda each: math.prod(shape_of(each[0])),
            default=(stage.targets[0], stage.indices),
        )
        form = linear(self.program.offset(source, indices), set(stage.axes))
        return {axis: form.coefficient(axis) if form is not None else 0 for axis in stage.axes}

    def _row_axes(self, stage: Stage) -> tuple[Var, ...]:
        """Which axes say which row, in the order in which all reductions are indexed by them."""
        found = {self._axes_of(load.indices) for load in stage.loads() if load.source in self.reductions}
        if stage.reduce:
            found.add(self._axes_of(stage.indices))
        if len(found) != 1:
            raise _NoRowsError
        (axes,) = found
        if len(set(axes)) != len(axes) or not set(axes) <= set(stage.spatial):
            raise _NoRowsError
        return axes

    def _axes_of(self, indices: Sequence[Expr]) -> tuple[Var, ...]:
        used = [i for i in indices if not isinstance(i, IntImm)]
        if not all(isinstance(i, Var) for i in used):
            raise _NoRowsError
        return tuple(used)

    def _phase(
        self, stage: Stage, row: Var, order: Sequence[int], extents: Sequence[int], elements: dict[int, Var]
    ) -> Phase:
        axes = self._row_axes(stage)
        mine = [axes[i] for i in order] if len(axes) == len(order) else []
        if [self.ranges.extent[axis] for axis in mine] != list(extents):
            raise _NoRowsError
        strides = self._strides(stage)
        others = sorted((axis for axis in stage.axes if axis not in axes), key=lambda axis: -strides[axis])
        length = self.program.volume(others)
        if length not in elements:
            elements[length] = self.ranges.variable(f"at{length}", length)
        at = elements[length]
        return self._flat(stage, self._unravelled(row, mine) | self._unravelled(at, others), at, length)

    def _flat(self, stage: Stage, places: dict[Var, Expr], at: Var, length: int) -> Phase:
        """A stage over flat memory, its axes replaced."""

        def flat(e: Expr) -> Expr:
            if not isinstance(e, TensorLoad):
                return e
            if e.source in self.reductions:
                return BufferLoad(e.source, [index(0)] * len(e.indices))
            return BufferLoad(self.memory.of(e.source), [self.program.offset(e.source, e.indices)])

        value = self.ranges.fold(substitute(rewrite(stage.values[0], flat), places))
        (target,) = stage.targets
        if stage.ops:
            return Phase(target, stage.ops[0], index(0), value, at, length)
        offset = self.ranges.simplify(substitute(self.program.offset(target, stage.indices), places))
        return Phase(self.memory.of(target), "", offset, value, at, length)

    def _unravelled(self, number: Var, axes: Sequence[Var]) -> dict[Var, Expr]:
        """The axes in terms of the number of a point, the last axis fastest."""
        places, inner = {}, 1
        for axis in reversed(axes):
            extent = self.ranges.extent[axis]
            places[axis] = self.ranges.simplify(number // index(inner) % index(extent))
            inner *= extent
        return places
