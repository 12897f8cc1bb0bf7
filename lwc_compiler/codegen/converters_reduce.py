"""Converters of reductions."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from tvm import relax, te, tirx, topi

from lwc_compiler.codegen.converters import (
    Array,
    Node,
    Result,
    cast,
    converter,
    dtype_of,
    highest,
    literal,
    lowest,
    normalized,
    scalar,
    shape_of,
)


def _reduction_axes(node: Node) -> tuple[int, ...]:
    axes, rank = node.integers(1, "axes"), len(node.shape(0))
    if not axes:
        return () if node.attribute("noop_with_empty_axes", 0) else tuple(range(rank))
    return normalized(axes, rank)


@converter(
    "ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceL1", "ReduceL2", "ReduceLogSum",
    "ReduceLogSumExp", "ReduceSumSquare", constant=(1,),
)  # fmt: skip
def _reduce(node: Node) -> Result:
    kind, axes, keep = node.proto.op_type, _reduction_axes(node), bool(node.attribute("keepdims", 1))
    x, dtype = node.expr(0), node.dtype(0)
    if dtype == "bool":  # ReduceMax and ReduceMin take it
        result = reduce(node, kind, cast(node, x, "uint8"), axes, keep)
        return result.astype(bool) if isinstance(result, np.ndarray) else cast(node, result, "bool")
    return reduce(node, kind, x, axes, keep)


def reduce(node: Node, kind: str, x: relax.Expr, axes: tuple[int, ...], keep: bool) -> relax.Expr | Array:
    """ONNX reduction `kind` of `x` over `axes`."""
    dtype, shape = dtype_of(x), shape_of(x)
    count = math.prod(shape[a] for a in axes)
    if count == 0:
        empty = {"ReduceMax": lowest(dtype), "ReduceMin": highest(dtype), "ReduceProd": 1}
        empty |= {"ReduceMean": math.nan, "ReduceLogSum": -math.inf, "ReduceLogSumExp": -math.inf}
        kept = [1 if i in axes else d for i, d in enumerate(shape) if keep or i not in axes]
        return np.full(kept, empty.get(kind, 0), dtype)
    if kind in ("ReduceL1", "ReduceL2", "ReduceSumSquare"):
        x = node.emit(relax.op.abs(x) if kind == "ReduceL1" else relax.op.multiply(x, x))
    if kind == "ReduceLogSumExp":
        highest_value = _extreme(node, "ReduceMax", x, axes, True) if axes else x
        x = node.emit(relax.op.exp(node.emit(relax.op.subtract(x, highest_value))))
    if axes and kind in ("ReduceMax", "ReduceMin"):
        x = _extreme(node, kind, x, axes, keep)
    elif axes:
        x = node.emit((relax.op.prod if kind == "ReduceProd" else relax.op.sum)(x, axes, keep))
    if kind == "ReduceMean" and count > 1:
        divisor = scalar(count, dtype)
        x = node.emit(
            relax.op.multiply(x, scalar(1 / count, dtype)) if dtype.startswith("float") else relax.op.divide(x, divisor)
        )
    if kind == "ReduceL2":
        x = (
            node.emit(relax.op.sqrt(x))
            if dtype.startswith("float")
            else cast(node, node.emit(relax.op.sqrt(cast(node, x, "float64"))), dtype)
        )
    if kind in ("ReduceLogSum", "ReduceLogSumExp"):
        x = node.emit(relax.op.log(x))
    if kind == "ReduceLogSumExp":
        x = node.emit(relax.op.add(x, node.emit(relax.op.reshape(highest_value, shape_of(x)))))
    return x


def maximum_of(x: Any, axis: Any) -> Any:
    """The reduction `max`; over nothing but -Inf it is -Inf, where TVM's own gives the lowest finite number."""
    reducer = te.comm_reducer(
        lambda a, b: tirx.max(a, b), lambda dtype: literal(lowest(str(dtype)), str(dtype)), name="max"
    )
    return reducer(x, axis=axis)


def minimum_of(x: Any, axis: Any) -> Any:
    """The reduction `min`; over nothing but Inf it is Inf."""
    reducer = te.comm_reducer(
        lambda a, b: tirx.min(a, b), lambda dtype: literal(highest(str(dtype)), str(dtype)), name="min"
    )
    return reducer(x, axis=axis)


def _extreme(node: Node, kind: str, x: relax.Expr, axes: tuple[int, ...], keep: bool) -> relax.Expr:
    shape, function = shape_of(x), maximum_of if kind == "ReduceMax" else minimum_of
    kept = [i for i in range(len(shape)) if keep or i not in axes]

    def body(x: Any) -> Any:
        reduced = {a: te.reduce_axis((0, shape[a]), f"r{a}") for a in axes}

        def element(*index: Any) -> Any:
            at = dict(zip(kept, index, strict=True)) | reduced
            return function(x(*(at[i] for i in range(len(shape)))), axis=list(reduced.values()))

        return te.compute([1 if i in axes else shape[i] for i in kept], element, name=kind[6:].lower())

    return node.compute(kind[6:].lower(), body, x)


@converter("ArgMax", "ArgMin")
def _arg_reduce(node: Node) -> Result:
    function = topi.argmax if node.proto.op_type == "ArgMax" else topi.argmin
    axis, keep = node.attribute("axis", 0), bool(node.attribute("keepdims", 1))
    last = bool(node.attribute("select_last_index", 0))
    index = node.compute(node.proto.op_type.lower(), lambda x: function(x, axis, keep, last), node.expr(0))
    return cast(node, index, "int64")
