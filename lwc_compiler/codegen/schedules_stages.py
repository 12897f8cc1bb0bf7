"""What a function made by Relax computes: a list of stages, each one value an element of its domain.

A stage is elementwise (every axis spatial) or a reduction. `read_stages` takes a function of blocks apart,
`simplify_stages` inlines what costs nothing to compute twice, makes reshapes free, and splits windows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import tvm_ffi
from tvm import tirx
from tvm.ir import TensorLoad
from tvm.s_tir.stmt import SBlockRealize
from tvm.tirx import BufferLoad, BufferStore, FloatImm, For, IntImm, SeqStmt, Var

from lwc_compiler.codegen.schedules_expressions import (
    INDEX,
    Linear,
    Ranges,
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
    with_children,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tvm.ir import Expr
    from tvm.tirx import PrimFunc, Stmt

_HEAVY = ("exp", "exp2", "log", "log2", "log10", "log1p", "tanh", "erf", "sigmoid", "pow", "power", "sin", "cos", "tan",
          "asin", "acos", "atan", "sinh", "cosh", "asinh", "acosh", "atanh")  # fmt: skip
_MEDIUM = ("sqrt", "rsqrt", "round", "nearbyint")


class UnknownStructureError(Exception):
    """The function is not made of plain loop nests around one block each; it keeps its default schedule."""


@dataclass(frozen=True, eq=False)
class Stage:
    """One value for every point of `spatial`, reduced over `reduce`.

    Attributes:
        targets: the buffers written; more than one for a reduction of several values at once (arg max).
        indices: where in each target, one expression a dimension: an axis of `spatial`, or 0.
        values: elementwise: the values. Reduction with `ops`: what is added up. Other reductions: the new values in
            terms of `accumulators`.
        init: start of a reduction; empty for an elementwise stage.
        ops: for each target `sum`, `product`, `max` or `min`; empty when the reduction is of another kind.
    """

    spatial: tuple[Var, ...]
    reduce: tuple[Var, ...]
    targets: tuple[Var, ...]
    indices: tuple[Expr, ...]
    values: tuple[Expr, ...]
    init: tuple[Expr, ...] = ()
    ops: tuple[str, ...] = ()
    accumulators: tuple[Var, ...] = ()

    @property
    def axes(self) -> tuple[Var, ...]:
        return self.spatial + self.reduce

    def loads(self) -> list[TensorLoad]:
        return [load for value in self.values for load in loads(value)]

    def map(self, change: Callable[[Expr], Expr]) -> Stage:
        """The stage with `change` applied to its values and indices."""
        return replace(self, values=tuple(map(change, self.values)), indices=tuple(map(change, self.indices)))


@dataclass
class Program:
    """Stages in order, and what their buffers are.

    Attributes:
        views: buffer -> the buffer whose memory it is, with another shape.
        windows: buffers between the two passes of a reduction over a window.
    """

    params: tuple[Var, ...]
    stages: list[Stage]
    ranges: Ranges
    views: dict[Var, Var] = field(default_factory=dict)
    windows: set[Var] = field(default_factory=set)

    def volume(self, axes: Sequence[Var]) -> int:
        return math.prod(self.ranges.extent[a] for a in axes)

    def memory(self, buffer: Var) -> Var:
        """The buffer that owns the memory of `buffer`."""
        while buffer in self.views:
            buffer = self.views[buffer]
        return buffer

    def offset(self, buffer: Var, indices: Sequence[Expr]) -> Expr:
        """Position of an element in the memory of `buffer`."""
        return self.ranges.simplify(flat_offset(shape_of(buffer), indices))


def shape_of(buffer: Var) -> list[int]:
    """Constant shape of a buffer."""
    shape = list(buffer.shape)
    if not all(isinstance(s, IntImm) for s in shape):
        raise UnknownStructureError("a dynamic shape")
    return [int(s) for s in shape]


def is_zero(expr: Expr) -> bool:
    """Whether an expression is the constant 0."""
    return isinstance(expr, IntImm) and int(expr) == 0


def flat_offset(shape: Sequence[int], indices: Sequence[Expr]) -> Expr:
    """Row-major offset of an element."""
    total: Expr = index(0)
    for extent, i in zip(shape, indices, strict=True):
        total = total * index(extent) + i.astype(INDEX)
    return total


def cost(expr: Expr) -> int:
    """Rough price of an expression in vector instructions; loads and index arithmetic are free."""
    total = 0
    for e in visit(expr):
        if is_call(e, *_HEAVY):
            total += 16
        elif is_call(e, *_MEDIUM) or isinstance(e, tirx.Div):
            total += 4
        elif "float" in dtype_of(e) and children(e) and not isinstance(e, TensorLoad):
            total += 1
    return total


def read_stages(func: PrimFunc) -> Program:
    """Takes a function of blocks apart.

    Raises:
        UnknownStructureError: the function is not a row of perfect loop nests with one block each.
    """
    root = func.body
    if not isinstance(root, SBlockRealize) or root.iter_values:
        raise UnknownStructureError("no root block")
    if root.block.match_buffers or root.block.init is not None:
        raise UnknownStructureError("root block")
    body = root.block.body
    ranges = Ranges()
    stages = [_read_nest(nest, ranges) for nest in (body.seq if isinstance(body, SeqStmt) else [body])]
    written: set[Var] = set()
    for stage in stages:
        if written & set(stage.targets):
            raise UnknownStructureError("a buffer written twice")
        written |= set(stage.targets)
    return Program(tuple(func.params), stages, ranges)


def _read_nest(nest: Stmt, ranges: Ranges) -> Stage:
    loop_vars: list[Var] = []
    while isinstance(nest, For):
        loop_vars.append(nest.loop_var)
        nest = nest.body
    if not isinstance(nest, SBlockRealize) or not isinstance(nest.predicate, IntImm) or not int(nest.predicate):
        raise UnknownStructureError("not a perfect nest")
    block = nest.block
    if len(nest.iter_values) != len(loop_vars) or not all(
        v.same_as(lv) for v, lv in zip(nest.iter_values, loop_vars, strict=True)
    ):
        raise UnknownStructureError("block axes are not loop variables")
    if block.alloc_buffers or block.match_buffers:
        raise UnknownStructureError("a block with buffers of its own")
    rename: dict[Var, Expr] = {}
    spatial: list[Var] = []
    reduce: list[Var] = []
    for iter_var in block.iter_vars:
        if not isinstance(iter_var.dom.extent, IntImm) or int(iter_var.dom.min) != 0:
            raise UnknownStructureError("a dynamic loop")
        extent = int(iter_var.dom.extent)
        if extent == 0:
            raise UnknownStructureError("an empty tensor")
        if extent == 1:
            rename[iter_var.var] = index(0)
            continue
        var = ranges.variable(iter_var.var.name, extent)
        rename[iter_var.var] = var.astype(dtype_of(iter_var.var))
        if iter_var.iter_type not in (0, 2):
            raise UnknownStructureError("a block axis that is neither spatial nor reduced")
        (reduce if iter_var.iter_type == 2 else spatial).append(var)
    stores = _stores(block.body, rename)
    targets = tuple(s[0] for s in stores)
    if block.init is None:
        if reduce or len(stores) != 1:
            raise UnknownStructureError("several stores in a block")
        stage = Stage(tuple(spatial), (), targets, stores[0][1], (stores[0][2],))
    else:
        init = {s[0]: s[2] for s in _stores(block.init, rename)}
        stage = _reduction(tuple(spatial), tuple(reduce), stores, tuple(init[t] for t in targets))
    stage = stage.map(ranges.fold)
    _check_indices(stage)
    return stage


def _stores(body: Stmt, rename: dict[Var, Expr]) -> list[tuple[Var, tuple[Expr, ...], Expr]]:
    """The stores of a block, with its `let` bindings put in."""
    rename = dict(rename)
    result: list[tuple[Var, tuple[Expr, ...], Expr]] = []
    for s in body.seq if isinstance(body, SeqStmt) else [body]:
        if isinstance(s, tirx.Bind):
            if result:
                raise UnknownStructureError("a binding after a store")
            rename[s.var] = substitute(s.value, rename)
        elif isinstance(s, BufferStore):
            result.append((s.buffer, tuple(substitute(i, rename) for i in s.indices), substitute(s.value, rename)))
        else:
            raise UnknownStructureError(type(s).__name__)
    return result


def _reduction(
    spatial: tuple[Var, ...],
    reduce: tuple[Var, ...],
    stores: list[tuple[Var, tuple[Expr, ...], Expr]],
    init: tuple[Expr, ...],
) -> Stage:
    accumulators = {t: Var(f"{t.name}_acc", dtype_of(t)) for t, _, _ in stores}
    targets = tuple(accumulators)

    def own_load(e: Expr) -> Expr:
        return accumulators.get(e.source, e) if isinstance(e, TensorLoad) else e

    updates = tuple(rewrite(value, own_load) for _, _, value in stores)
    accumulated = set(accumulators.values())
    ops, values = [], []
    for acc, update in zip(accumulators.values(), updates, strict=True):
        for op, node in (("sum", tirx.Add), ("product", tirx.Mul), ("max", tirx.Max), ("min", tirx.Min)):
            if isinstance(update, node):
                a, b = (update.a, update.b) if update.a.same_as(acc) else (update.b, update.a)
                if a.same_as(acc) and not variables(b) & accumulated:
                    ops.append(op)
                    values.append(b)
    indices = stores[0][1]
    if any(not a.same_as(b) for _, i, _ in stores for a, b in zip(i, indices, strict=True) if not is_zero(a)):
        raise UnknownStructureError("targets of one reduction that are indexed differently")
    start = tuple(_neutral(op, value) for op, value in zip(ops, init, strict=True)) if len(ops) == len(init) else init
    if len(ops) == len(stores) and all(s is not None for s in start):
        return Stage(spatial, reduce, targets, indices, tuple(values), start, tuple(ops))
    return Stage(spatial, reduce, targets, indices, updates, init, (), tuple(accumulators.values()))


def _neutral(op: str, init: Expr) -> Expr | None:
    """The neutral element of `op` if `init` stands for it: TVM writes the lowest finite float where -inf is meant."""
    dtype = dtype_of(init)
    if not isinstance(init, (IntImm, FloatImm)):
        return None
    if op == "sum":
        return init if float(init.value) == 0 else None
    if op == "product":
        return init if float(init.value) == 1 else None
    bound = tirx.min_value(dtype) if op == "max" else tirx.max_value(dtype)
    infinity = -math.inf if op == "max" else math.inf
    if init.value not in (bound.value, infinity):
        return None
    return tirx.const(infinity, dtype) if "float" in dtype else init


def _check_indices(stage: Stage) -> None:
    """Every spatial axis indexes one dimension of the targets, and nothing else does."""
    used = [i for i in stage.indices if not isinstance(i, IntImm)]
    if len(used) != len(stage.spatial) or {*used} != set(stage.spatial):
        raise UnknownStructureError("a store that is not one element a point")
    for target in stage.targets:
        for extent, i in zip(shape_of(target), stage.indices, strict=True):
            if isinstance(i, IntImm) and (int(i) != 0 or extent != 1):
                raise UnknownStructureError("a store to part of a buffer")


def simplify_stages(program: Program) -> None:
    """Fewer, independent stages: reshapes become views, cheap stages go into those that read them."""
    _views(program)
    _inline(program)
    program.stages = [new for stage in program.stages for new in _split_position(stage, program)]
    program.stages = [new for stage in program.stages for new in _split_window(stage, program)]


def _readers(program: Program, buffer: Var) -> list[Stage]:
    return [s for s in program.stages if any(load.source.same_as(buffer) for load in s.loads())]


def _views(program: Program) -> None:
    """A stage that copies a buffer to an output in the order of memory goes: the buffer is a view of the output."""
    params = set(program.params)
    for stage in list(program.stages):
        value = stage.values[0]
        if stage.init or not isinstance(value, TensorLoad):
            continue
        source, target = value.source, stage.targets[0]
        if dtype_of(source) != dtype_of(target) or math.prod(shape_of(source)) != math.prod(shape_of(target)):
            continue
        here, there = program.offset(target, stage.indices), program.offset(source, value.indices)
        if not is_zero(program.ranges.simplify(here - there)):
            continue
        if target in params and source not in params and source not in program.views:
            program.views[source] = target
            program.stages.remove(stage)


def _inline(program: Program) -> None:
    """Puts elementwise stages into their readers where that does not cost much."""
    kept = set(program.params) | set(program.views)
    position = 0
    while position < len(program.stages):
        stage = program.stages[position]
        target = stage.targets[0]
        readers = _readers(program, target)
        if stage.init or target in kept or not readers or not _worth_inlining(stage, readers, program):
            position += 1
            continue
        program.stages.remove(stage)
        for reader in readers:
            program.stages[program.stages.index(reader)] = _inlined(stage, reader, program)


def _worth_inlining(stage: Stage, readers: list[Stage], program: Program) -> bool:
    price = cost(stage.values[0])
    points = program.volume(stage.spatial)
    times = 0.0
    for reader in readers:
        places = {str(load) for load in reader.loads() if load.source.same_as(stage.targets[0])}
        times += len(places) * program.volume(reader.axes) / points
    if times <= 1 or price == 0:
        return True
    return price <= 6 and times <= 4


def _inlined(stage: Stage, reader: Stage, program: Program) -> Stage:
    def change(e: Expr) -> Expr:
        if not isinstance(e, TensorLoad) or not e.source.same_as(stage.targets[0]):
            return e
        at = {axis: i for axis, i in zip(stage.indices, e.indices, strict=True) if not isinstance(axis, IntImm)}
        return substitute(stage.values[0], at)

    return replace(reader, values=tuple(program.ranges.fold(rewrite(v, change)) for v in reader.values))


def _split_position(stage: Stage, program: Program) -> list[Stage]:
    """Splits arg max and arg min: first the extreme value, then the first or last position that holds it.

    Where nothing is equal to the extreme value, which is NaN then, the position is still one inside.
    """
    if len(stage.accumulators) != 2 or len(stage.reduce) != 1:
        return [stage]
    (place, best), (step,) = stage.accumulators, stage.reduce
    value = stage.values[1]
    if not isinstance(value, tirx.Select) or cost(value.false_value) > 1:
        return [stage]
    x = value.false_value
    k = step.astype(dtype_of(place))

    def same(found: Expr, wanted: Expr) -> bool:
        return bool(tvm_ffi.structural_equal(found, program.ranges.fold(wanted)))

    for better, op, infinity in ((tirx.GT, "max", -math.inf), (tirx.LT, "min", math.inf)):
        if not same(value, tirx.Select(better(best, x), best, x)):
            continue
        for earlier, pick in ((tirx.LT, "min"), (tirx.GT, "max")):
            keeps = tirx.Or(better(best, x), tirx.And(tirx.EQ(best, x), earlier(place, k)))
            if not same(stage.values[0], tirx.Select(keeps, place, k)):
                continue
            dtype = dtype_of(best)
            start = tirx.const(infinity, dtype) if "float" in dtype else stage.init[1]
            extreme = replace(stage, targets=stage.targets[1:], values=(x,), init=(start,), ops=(op,), accumulators=())
            last = program.ranges.extent[step] - 1 if pick == "min" else 0
            otherwise = tirx.const(last, dtype_of(place))
            held = tirx.EQ(x, BufferLoad(stage.targets[1], list(stage.indices)))
            position = replace(
                stage,
                targets=stage.targets[:1],
                values=(tirx.Select(held, k, otherwise),),
                init=(otherwise,),
                ops=(pick,),
                accumulators=(),
            )
            return [extreme, position]
    return [stage]


def _split_window(stage: Stage, program: Program) -> list[Stage]:
    """Splits a reduction over a window of several axes: first over all but the last axis, then along the last.

    The first stage reads each row of the window once for all the places it is used at, padding included, and both
    vectorise along the rows.
    """
    window = _window(stage, program)
    if window is None:
        return [stage]
    place, step, a, b = window
    extent = program.ranges.extent
    length = (extent[place] - 1) * a + (extent[step] - 1) * b + 1
    along = program.ranges.variable(f"{place.name}_in", length)
    over = {place, step}

    def change(e: Expr) -> Expr:
        """Index expressions in terms of `along` in place of a * place + b * step."""
        if dtype_of(e) not in ("int32", "int64") or isinstance(e, (TensorLoad, IntImm)):
            return e
        form = linear(e, over)
        if form is None or not form.coefficients:
            return e
        scale = form.coefficient(place) // a
        return form.rest + along * index(scale)

    def replace_in(e: Expr) -> Expr:
        if dtype_of(e) in ("int32", "int64") and not isinstance(e, TensorLoad):
            return change(e)
        parts = children(e)
        return with_children(e, [replace_in(p) for p in parts]) if parts else e

    rows = []
    for target in stage.targets:
        shape = [
            length if i.same_as(place) else extent for i, extent in zip(stage.indices, shape_of(target), strict=True)
        ]
        rows.append(tirx.decl_buffer(tuple(map(index, shape)), dtype_of(target), f"{target.name}_rows"))
    program.windows.update(rows)
    spatial = tuple(along if s.same_as(place) else s for s in stage.spatial)
    at = tuple(along if i.same_as(place) else i for i in stage.indices)
    first = replace(
        stage,
        spatial=spatial,
        reduce=tuple(r for r in stage.reduce if not r.same_as(step)),
        targets=tuple(rows),
        indices=at,
        values=tuple(program.ranges.fold(replace_in(v)) for v in stage.values),
    )
    if not first.reduce:
        first = replace(first, init=(), ops=())
    read = [place * index(a) + step * index(b) if i.same_as(place) else i for i in stage.indices]
    second = replace(stage, reduce=(step,), values=tuple(BufferLoad(row, read) for row in rows))
    return [first, second]


def _window(stage: Stage, program: Program) -> tuple[Var, Var, int, int] | None:
    """(spatial axis, reduced axis, stride, dilation) when a reduction slides a window along the last axis."""
    last = stage.indices[-1] if stage.indices else None
    if not stage.ops or len(stage.ops) != 1 or not isinstance(last, Var):
        return None
    found: tuple[Var, Var, int, int] | None = None
    for step in stage.reduce:
        over = {last, step}
        forms = []
        for value in stage.values:
            for form in _index_forms(value, over):
                if form is None:
                    return None
                forms.append((form.coefficient(last), form.coefficient(step)))
        pairs = [p for p in forms if p != (0, 0)]
        if not pairs or any(p[0] <= 0 or p[1] <= 0 for p in pairs):
            continue
        a, b = min(pairs)
        if all(p[0] % a == 0 and p[1] * a == p[0] * b for p in pairs):
            found = (last, step, a, b)
    if found is None or program.ranges.extent[found[1]] > 64:
        return None
    # Without padding, stride or other axes in the window, shifted loads do as well.
    plain = (
        found[2] == 1
        and stage.reduce == (found[1],)
        and not any(is_call(e, "if_then_else") for v in stage.values for e in visit(v))
    )
    return None if plain else found


def _index_forms(expr: Expr, over: set[Var]) -> list[Linear | None]:
    """The linear forms of the largest integer expressions in `expr`."""
    if dtype_of(expr) in ("int32", "int64") and not isinstance(expr, TensorLoad):
        return [linear(expr, over)] if variables(expr) & over else []
    return [form for part in children(expr) for form in _index_forms(part, over)]
