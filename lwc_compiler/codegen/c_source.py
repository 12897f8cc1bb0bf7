"""From TIR functions to C99 text, for compilers that lwc knows nothing of.

TVM's printer of C is used for what it does right. It has OpenCL's vectors, so every vector is taken apart before; it
keeps the operands of a minimum or maximum in variables, which may be old by the time of the next one, and prints 7
digits of a number, so these become calls whose names say what is meant, and text replaces them.
"""

from __future__ import annotations

import re
import struct
from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np
import tvm
from tvm import tirx
from tvm.ir import Call, StringImm
from tvm.tirx.stmt import Bind, BufferStore, Evaluate, For, IfThenElse

from lwc_compiler.codegen.c_text import c_number, c_type
from lwc_compiler.codegen.kernel_build import build_kernels, plain_c, rewrite_statements
from lwc_compiler.codegen.schedules_expressions import children, with_children
from lwc_compiler.errors import UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tvm.ir import Expr
    from tvm.tirx import PrimFunc, Var
    from tvm.tirx.stmt import Stmt

    from lwc_compiler.kernels.kernel import Kernel

_NUMBER = re.compile(r"lwc_number_(float32|float64)_([0-9a-f]+)\(\)")
_NAME = re.compile(r"[A-Za-z_]\w*")
_VARIABLE = re.compile(r"\s+\w+\*? (\w+)(?: = .*|\[\d+\]);$")
_STORE = re.compile(r"\s+(\w+)\[[^=]*\] = .*;$")
_CALL = re.compile(r"\b([a-z]\w*)\(")
_KEYWORDS = ("if", "for", "while", "return", "sizeof")
_HELPER = re.compile(r"lwc_(max|min|bits)_(\w+?)(?:_to_(\w+))?\(")


def print_kernels(kernels: Mapping[str, Kernel]) -> str:
    """C99 text of kernels: static functions, and what they call.

    It needs <stdint.h> and a declaration of memcpy.

    Args:
        kernels: C name -> kernel.

    Raises:
        UnsupportedError: one computes with a type that C99 does not have.
    """
    plain = {symbol: kernel.func.with_body(_scalars(kernel.func.body)) for symbol, kernel in kernels.items()}
    text = build_kernels(plain, {"kind": "c"}, "lwc_c_source").inspect_source()
    if re.search(r"\b(half|bfloat16|nv_bfloat16)\b", text):
        raise UnsupportedError(
            "the model computes with 16-bit floats, which C99 does not have; compile for a processor"
        )
    functions = re.split(r'#ifdef __cplusplus\nextern "C"\n#endif\nTVM_DLL ', text)[1:]
    bodies = [f"static {function}" for function in functions if not function.rstrip().endswith(";")]
    text = _NUMBER.sub(_number, "\n".join(_without_unused(body.rstrip()) + "\n" for body in bodies))
    helpers = sorted({match.group(1, 2, 3) for match in _HELPER.finditer(text)}, key=str)
    called = {name for name in _CALL.findall(text) if not name.startswith("lwc_")} - {*kernels, *_KEYWORDS}
    headers = ["#include <math.h>\n"] if called else []
    return "".join([*headers, "#include <stdbool.h>\n\n", *(_helper(*each) for each in helpers), "\n", text])


def _without_unused(function: str) -> str:
    """A function without the variables that nothing reads, whose values are computed without side effects.

    Parameters that nothing reads are named, so that compilers do not warn of them.
    """
    lines = function.splitlines()
    while True:
        uses = Counter(name for line in lines for name in _NAME.findall(line))
        declared = {match.group(1) for line in lines if (match := _VARIABLE.match(line))}
        written = [(_VARIABLE.match(line) or _STORE.match(line), line) for line in lines]
        writes = Counter(match.group(1) for match, _ in written if match)
        unused = {name for name in declared if uses[name] == writes[name]}
        if not unused:
            parameters = re.findall(r"(\w+)[,)]", lines[0])
            return "\n".join([lines[0], *(f"  (void){name};" for name in parameters if uses[name] == 1), *lines[1:]])
        lines = [line for match, line in written if not (match and match.group(1) in unused)]


def _number(match: re.Match[str]) -> str:
    dtype, digits = match.groups()
    (value,) = np.frombuffer(bytes.fromhex(digits), f">{'f4' if dtype == 'float32' else 'f8'}").astype(dtype)
    if not np.isfinite(value):  # <math.h>, which would have a name for it, is not on every target
        bits = int.from_bytes(bytes.fromhex(digits), "big", signed=True)
        integer = f"int{4 * len(digits)}"
        return f"lwc_bits_{integer}_to_{dtype}(({integer}_t){bits})"
    return f"({c_number(value)})"


def _helper(kind: str, first: str, second: str | None) -> str:
    """A function that the text calls."""
    a = c_type(first)
    if second is None:
        sign = ">" if kind == "max" else "<"
        return f"static {a} lwc_{kind}_{first}({a} a, {a} b) {{ return a {sign} b ? a : b; }}\n"
    b = c_type(second)
    return (
        f"static {b} lwc_bits_{first}_to_{second}({a} value) {{\n"
        f"    {b} result;\n    memcpy(&result, &value, sizeof result);\n    return result;\n}}\n"
    )


def _scalars(body: Stmt) -> Stmt:
    """Statements with every vector taken apart; hints to the processor are gone."""
    bound: dict[Var, list[Var]] = {}  # vectors that have a name, by lane

    def change(statement: Stmt) -> Stmt:
        if isinstance(statement, Bind):
            count = _lanes(statement.var)
            values = [_lane(statement.value, i, bound) for i in range(count)]
            if count == 1:
                return Bind(statement.var, values[0])
            bound[statement.var] = [tirx.Var(statement.var.name, str(value.ty.dtype)) for value in values]
            return tirx.SeqStmt([Bind(*pair) for pair in zip(bound[statement.var], values, strict=True)])
        if isinstance(statement, BufferStore):
            count = _lanes(statement.value)
            values = [_lane(statement.value, i, bound) for i in range(count)]
            places = [[_lane(index, i, bound) for index in statement.indices] for i in range(count)]
            if count == 1:
                return BufferStore(statement.buffer, values[0], places[0])
            # A lane may be computed from one that another store has changed.
            names = [tirx.Var("lane", str(value.ty.dtype)) for value in values]
            computed = [Bind(*pair) for pair in zip(names, values, strict=True)]
            return tirx.SeqStmt(
                [*computed, *(BufferStore(statement.buffer, *pair) for pair in zip(names, places, strict=True))]
            )
        if isinstance(statement, Evaluate) and _is_call(statement.value, "tirx.prefetch"):
            return Evaluate(tirx.const(0, "int32"))
        return statement

    return rewrite_statements(body, change)


def _lanes(expr: Expr) -> int:
    return tvm.DataType(str(expr.ty.dtype)).lanes if isinstance(expr.ty, tvm.ir.PrimType) else 1


def _is_call(expr: Expr, name: str) -> bool:
    return isinstance(expr, Call) and getattr(expr.op, "name", "") == name


def _lane(expr: Expr, lane: int, bound: Mapping[Var, list[Var]]) -> Expr:
    """One lane of a vector; a scalar is every lane of itself."""
    count = _lanes(expr)
    if isinstance(expr, tirx.Shuffle):
        number = int(expr.indices[lane if count > 1 else 0])
        for vector in expr.vectors:
            if number < _lanes(vector):
                return _lane(vector, number, bound)
            number -= _lanes(vector)
    if isinstance(expr, tirx.Ramp):
        return _lane(expr.base, 0, bound) + _lane(expr.stride, 0, bound) * lane
    if isinstance(expr, tirx.Broadcast):
        return _lane(expr.value, 0, bound)
    if count > 1 and isinstance(expr, tirx.Var):
        return bound[expr][lane]
    parts = [_lane(part, lane, bound) for part in _operands(expr)]
    if count == 1:
        return with_children(expr, parts) if parts else expr
    scalar = str(tvm.DataType(str(expr.ty.dtype)).with_lanes(1))
    if isinstance(expr, tirx.Cast):
        return tirx.Cast(scalar, parts[0])
    if isinstance(expr, Call):
        return Call(expr.op, parts, expr.attrs, expr.ty_args, expr.span, tvm.ir.PrimType(scalar))
    return with_children(expr, parts)


def _operands(expr: Expr) -> list[Expr]:
    return [] if isinstance(expr, StringImm) else children(expr)


def _said_by_name(expr: Expr) -> Expr:
    """What TVM does not print well, as a call of something that `print_kernels` knows."""
    if isinstance(expr, tirx.FloatImm):
        dtype = str(expr.ty.dtype)
        packed = struct.pack(">f" if dtype == "float32" else ">d", expr.value)
        return tirx.call_pure_extern(dtype, f"lwc_number_{dtype}_{packed.hex()}")
    if isinstance(expr, tirx.Max | tirx.Min):
        kind, dtype = ("max" if isinstance(expr, tirx.Max) else "min"), str(expr.ty.dtype)
        return tirx.call_pure_extern(dtype, f"lwc_{kind}_{dtype}", expr.a, expr.b)
    if _is_call(expr, "tirx.fabs"):
        dtype = str(expr.ty.dtype)
        return tirx.call_pure_extern(dtype, "fabsf" if dtype == "float32" else "fabs", *expr.args)
    if _is_call(expr, "tirx.reinterpret"):
        (value,), dtype = expr.args, str(expr.ty.dtype)
        return tirx.call_pure_extern(dtype, f"lwc_bits_{value.ty.dtype}_to_{dtype}", value)
    return expr


@tirx.transform.prim_func_pass(opt_level=0)  # type: ignore[untyped-decorator]
def _names_for_what_prints_badly(func: PrimFunc, _mod: Any, _ctx: Any) -> PrimFunc:
    def exchanged(expr: Expr) -> Expr:
        parts = [exchanged(part) for part in _operands(expr)]
        return _said_by_name(with_children(expr, parts) if parts else expr)

    def change(statement: Stmt) -> Stmt:
        if isinstance(statement, Bind):
            return Bind(statement.var, exchanged(statement.value))
        if isinstance(statement, BufferStore):
            return BufferStore(statement.buffer, exchanged(statement.value), [exchanged(i) for i in statement.indices])
        if isinstance(statement, Evaluate):
            return Evaluate(exchanged(statement.value))
        if isinstance(statement, IfThenElse):
            return IfThenElse(exchanged(statement.condition), statement.then_case, statement.else_case)
        if isinstance(statement, For):
            least, extent = exchanged(statement.min), exchanged(statement.extent)
            return For(statement.loop_var, least, extent, statement.kind, statement.body)
        return statement

    return func.with_body(rewrite_statements(func.body, change))


def _pipeline() -> tuple[Any, Any, Any]:
    steps, host, device = plain_c(vectors=False)
    return steps, lambda: tvm.ir.transform.Sequential([host(), _names_for_what_prints_badly]), device


tirx.compilation_pipeline.register_tir_pipeline("lwc_c_source", _pipeline)
