"""Reading and rewriting TIR expressions: substitution, linear forms, and what can be known about an index."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import tvm
from tvm import tirx
from tvm.ir import Call, TensorLoad
from tvm.tirx import BufferLoad, IntImm, Let, Select, Var

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from tvm.ir import Expr

    Change = Callable[[Expr], Expr]

_BINARY = (
    tirx.Add, tirx.Sub, tirx.Mul, tirx.Div, tirx.Mod, tirx.FloorDiv, tirx.FloorMod, tirx.Min, tirx.Max, tirx.EQ,
    tirx.NE, tirx.LT, tirx.LE, tirx.GT, tirx.GE, tirx.And, tirx.Or, tirx.LShift, tirx.RShift, tirx.BitwiseAnd,
    tirx.BitwiseOr, tirx.BitwiseXor,
)  # fmt: skip
_UNARY = (tirx.Not, tirx.BitwiseNot)
INDEX = "int64"


class UnknownExpressionError(Exception):
    """An expression node these helpers cannot rebuild; the function keeps its default schedule."""


def index(value: int) -> Expr:
    """An index constant."""
    return IntImm(INDEX, value)


def dtype_of(expr: Expr) -> str:
    """Element type of a scalar expression or a buffer."""
    return str(getattr(expr.ty, "dtype", expr.ty))


def children(expr: Expr) -> list[Expr]:
    """The direct operands of an expression."""
    if isinstance(expr, _BINARY):
        return [expr.a, expr.b]
    if isinstance(expr, _UNARY):
        return [expr.a]
    if isinstance(expr, tirx.Cast):
        return [expr.value]
    if isinstance(expr, Select):
        return [expr.condition, expr.true_value, expr.false_value]
    if isinstance(expr, TensorLoad):
        return list(expr.indices)
    if isinstance(expr, Call):
        return list(expr.args)
    if isinstance(expr, Let):
        return [expr.value, expr.body]
    if isinstance(expr, (Var, IntImm, tirx.FloatImm)):
        return []
    raise UnknownExpressionError(type(expr).__name__)


def with_children(expr: Expr, parts: list[Expr]) -> Expr:
    """`expr` with other operands."""
    if isinstance(expr, (*_BINARY, *_UNARY, Select)):
        return type(expr)(*parts)
    if isinstance(expr, tirx.Cast):
        return tirx.Cast(dtype_of(expr), parts[0])
    if isinstance(expr, TensorLoad):
        return BufferLoad(expr.source, parts)
    if isinstance(expr, Call):
        return Call(expr.op, parts, expr.attrs, expr.ty_args, expr.span, expr.ty)
    if isinstance(expr, Let):
        return Let(expr.var, *parts)
    raise UnknownExpressionError(type(expr).__name__)


def rewrite(expr: Expr, change: Change) -> Expr:
    """Rebuilds an expression from its leaves upwards, every node passed through `change`."""
    parts = children(expr)
    if parts:
        new = [rewrite(p, change) for p in parts]
        if any(not a.same_as(b) for a, b in zip(parts, new, strict=True)):
            expr = with_children(expr, new)
    return change(expr)


def substitute(expr: Expr, values: Mapping[Var, Expr]) -> Expr:
    """`expr` with variables replaced."""
    if not values:
        return expr
    return rewrite(expr, lambda e: values.get(e, e) if isinstance(e, Var) else e)


def visit(expr: Expr) -> Iterable[Expr]:
    """Every node of an expression, parents first."""
    yield expr
    for part in children(expr):
        yield from visit(part)


def loads(expr: Expr) -> list[TensorLoad]:
    """Every buffer load in an expression, those in the indices of others too."""
    return [e for e in visit(expr) if isinstance(e, TensorLoad)]


def variables(expr: Expr) -> set[Var]:
    """The variables an expression depends on, buffers aside."""
    return {e for e in visit(expr) if isinstance(e, Var)}


def is_call(expr: Expr, *names: str) -> bool:
    """Whether `expr` calls one of the TIR operators `names`."""
    return isinstance(expr, Call) and getattr(expr.op, "name", "").rpartition(".")[2] in names


@dataclass
class Linear:
    """`sum(coefficient * variable) + rest`; `rest` holds none of the variables asked about."""

    coefficients: dict[Var, int]
    rest: Expr

    def scaled(self, factor: int) -> Linear:
        if factor == 1:
            return self
        return Linear({v: c * factor for v, c in self.coefficients.items()}, self.rest * index(factor))

    def plus(self, other: Linear) -> Linear:
        coefficients = dict(self.coefficients)
        for var, c in other.coefficients.items():
            coefficients[var] = coefficients.get(var, 0) + c
        return Linear({v: c for v, c in coefficients.items() if c}, _add(self.rest, other.rest))

    def coefficient(self, var: Var) -> int:
        return self.coefficients.get(var, 0)

    def expression(self) -> Expr:
        total = self.rest
        for var, c in self.coefficients.items():
            total = _add(var if c == 1 else var * index(c), total)
        return total


def _add(a: Expr, b: Expr) -> Expr:
    if isinstance(a, IntImm) and isinstance(b, IntImm):
        return index(int(a) + int(b))
    if isinstance(a, IntImm) and int(a) == 0:
        return b
    if isinstance(b, IntImm) and int(b) == 0:
        return a
    return a + b


def linear(expr: Expr, over: set[Var]) -> Linear | None:
    """The linear form of an integer expression in the variables `over`, if it has one."""
    if isinstance(expr, Var):
        return Linear({expr: 1}, index(0)) if expr in over else Linear({}, expr.astype(INDEX))
    if isinstance(expr, IntImm):
        return Linear({}, index(int(expr)))
    if isinstance(expr, (tirx.Add, tirx.Sub)):
        a, b = linear(expr.a, over), linear(expr.b, over)
        if a is None or b is None:
            return None
        return a.plus(b.scaled(-1) if isinstance(expr, tirx.Sub) else b)
    if isinstance(expr, tirx.Mul):
        for x, y in ((expr.a, expr.b), (expr.b, expr.a)):
            if isinstance(y, IntImm):
                inner = linear(x, over)
                return None if inner is None else inner.scaled(int(y))
    if (
        isinstance(expr, tirx.Cast)
        and dtype_of(expr) in ("int32", "int64")
        and dtype_of(expr.value) in ("int32", "int64")
    ):
        return linear(expr.value, over)
    return None if variables(expr) & over else Linear({}, expr.astype(INDEX))


class Ranges:
    """What is known about the range of every loop variable of a function."""

    def __init__(self) -> None:
        self._analyzer = tvm.sym.Analyzer()
        self.extent: dict[Var, int] = {}

    def variable(self, name: str, extent: int) -> Var:
        """A new variable in [0, extent)."""
        var = Var(name, INDEX)
        self._analyzer.bind(var, tvm.ir.Range.from_min_extent(index(0), index(extent)))
        self.extent[var] = extent
        return var

    def simplify(self, expr: Expr) -> Expr:
        """An integer or boolean expression, simplified."""
        if isinstance(expr, (Var, IntImm)):
            return expr
        return self._analyzer.simplify(expr)

    def bounds(self, expr: Expr) -> tuple[int, int]:
        """Smallest and largest value an integer expression can take, as far as is known."""
        bound = self._analyzer.const_int_bound(expr)
        return int(bound.min_value), int(bound.max_value)

    def fold(self, expr: Expr) -> Expr:
        """`expr` with indices simplified and decided conditions taken; floating point stays as it is."""

        def change(e: Expr) -> Expr:
            if isinstance(e, TensorLoad):
                return BufferLoad(e.source, [self.simplify(i) for i in e.indices])
            if isinstance(e, Select) or is_call(e, "if_then_else"):
                condition, yes, no = children(e)
                condition = self.simplify(condition)
                if isinstance(condition, IntImm):
                    return yes if int(condition) else no
                return with_children(e, [condition, yes, no])
            return e

        return rewrite(expr, change)
