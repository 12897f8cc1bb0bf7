"""Replaces elementary functions of float32 in an expression by arithmetic that vectorises."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tvm import tirx

from lwc_compiler.codegen.schedules_expressions import children, dtype_of, is_call, rewrite
from lwc_compiler.kernels.elementary import FUNCTIONS

if TYPE_CHECKING:
    from collections.abc import Callable

    from tvm.ir import Expr

    Store = Callable[[Expr], Expr]


def _constant_power(x: Expr, exponent: float, let: Store) -> Expr | None:
    """x^exponent by multiplications and square roots, for the exponents that networks use."""
    if exponent == 0.5:
        return tirx.sqrt(x)
    if exponent == 0.75:  # local response normalization
        root = let(tirx.sqrt(x))
        return root * tirx.sqrt(root)
    if exponent in (1.0, 2.0, 3.0, 4.0):
        x = let(x)
        square = let(x * x)
        return {1.0: x, 2.0: square, 3.0: square * x, 4.0: square * square}[exponent]
    if exponent in (-1.0, -2.0):
        x = let(x)
        return tirx.const(1.0, "float32") / (x if exponent == -1.0 else x * x)
    return None


def expand(expr: Expr, store: Store) -> Expr:
    """`expr` with the elementary functions of float32 replaced by arithmetic.

    Args:
        expr: a scalar expression.
        store: computes a value before the statement that holds `expr`, and gives the expression that reads it back.
            (Nested `Let`s would do the same, but TVM's code generation takes time exponential in their depth.)
    """

    def change(e: Expr) -> Expr:
        if dtype_of(e) != "float32":
            return e
        if is_call(e, *FUNCTIONS):
            return FUNCTIONS[e.op.name.rpartition(".")[2]](store(children(e)[0]), store)
        if is_call(e, "pow", "power"):
            base, exponent = children(e)
            if isinstance(exponent, tirx.FloatImm):
                power = _constant_power(base, float(exponent.value), store)
                return e if power is None else power
        return e

    return rewrite(expr, change)
