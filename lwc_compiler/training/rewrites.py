"""Operators without a gradient in ONNX Runtime, or with a wrong one, in terms of operators with the right one.

One small function an operator; `RULES` is the table. A rule appends nodes to the graph that compute the outputs of the
node it gets and returns True, or returns False and leaves the node as it is. Definitions: the ONNX operator reference.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from lwc_compiler.training import rewrites_layers, rewrites_shape
from lwc_compiler.training.graph import Node, TrainingGraph
from lwc_compiler.training.losses import softplus

Rule = Callable[[TrainingGraph, Node], bool]


def hard_sigmoid(g: TrainingGraph, node: Node) -> bool:
    slope, offset = node.attributes.get("alpha", 0.2), node.attributes.get("beta", 0.5)
    _clipped_line(g, node.inputs[0], slope, offset, node.outputs[0])
    return True


def hard_swish(g: TrainingGraph, node: Node) -> bool:
    x = node.inputs[0]
    g.add("Mul", x, _clipped_line(g, x, 1 / 6, 0.5, None), output=node.outputs[0])
    return True


def _clipped_line(g: TrainingGraph, x: str, slope: float, offset: float, output: str | None) -> str:
    line = g.add("Add", g.add("Mul", x, g.constant(slope)), g.constant(offset))
    return g.add("Clip", line, g.constant(0.0), g.constant(1.0), output=output)


def elu(g: TrainingGraph, node: Node) -> bool:
    return _exponential_unit(g, node, node.attributes.get("alpha", 1.0), 1.0, 1.0)


def selu(g: TrainingGraph, node: Node) -> bool:
    alpha = node.attributes.get("alpha", 1.67326319217681884765625)
    return _exponential_unit(g, node, alpha, node.attributes.get("gamma", 1.05070102214813), 1.0)


def celu(g: TrainingGraph, node: Node) -> bool:
    alpha = node.attributes.get("alpha", 1.0)
    return _exponential_unit(g, node, alpha, 1.0, 1 / alpha)


def _exponential_unit(g: TrainingGraph, node: Node, alpha: float, gamma: float, inner: float) -> bool:
    """Gamma x for x > 0, else gamma alpha (exp(inner x) - 1); the exponent is cut at 0, for 0 x Inf is NaN."""
    x = node.inputs[0]
    cut = g.add("Min", x, g.constant(0.0))
    low = g.add("Sub", g.add("Exp", g.add("Mul", cut, g.constant(inner))), g.constant(1.0))
    scaled = g.add("Mul", low, g.constant(alpha))
    joined = g.add("Where", g.add("Greater", x, g.constant(0.0)), x, scaled)
    g.add("Mul", joined, g.constant(gamma), output=node.outputs[0])
    return True


def thresholded_relu(g: TrainingGraph, node: Node) -> bool:
    x, threshold = node.inputs[0], g.constant(node.attributes.get("alpha", 1.0))
    g.add("Where", g.add("Greater", x, threshold), x, g.constant(0.0), output=node.outputs[0])
    return True


def shrink(g: TrainingGraph, node: Node) -> bool:
    x, bias, limit = node.inputs[0], node.attributes.get("bias", 0.0), node.attributes.get("lambd", 0.5)
    above = g.add("Where", g.add("Greater", x, g.constant(limit)), g.add("Sub", x, g.constant(bias)), g.constant(0.0))
    below = g.add("Less", x, g.constant(-limit))
    g.add("Where", below, g.add("Add", x, g.constant(bias)), above, output=node.outputs[0])
    return True


def soft_plus(g: TrainingGraph, node: Node) -> bool:
    g.add("Identity", softplus(g, node.inputs[0]), output=node.outputs[0])
    return True


def softsign(g: TrainingGraph, node: Node) -> bool:
    x = node.inputs[0]
    g.add("Div", x, g.add("Add", g.add("Abs", x), g.constant(1.0)), output=node.outputs[0])
    return True


def mish(g: TrainingGraph, node: Node) -> bool:
    x = node.inputs[0]
    g.add("Mul", x, g.add("Tanh", softplus(g, x)), output=node.outputs[0])
    return True


def prelu(g: TrainingGraph, node: Node) -> bool:
    x, slope = node.inputs
    negative = g.add("Mul", g.add("Relu", g.add("Neg", x)), slope)
    g.add("Sub", g.add("Relu", x), negative, output=node.outputs[0])
    return True


def tan(g: TrainingGraph, node: Node) -> bool:
    x = node.inputs[0]
    g.add("Div", g.add("Sin", x), g.add("Cos", x), output=node.outputs[0])
    return True


def cast_like(g: TrainingGraph, node: Node) -> bool:
    g.add("Cast", node.inputs[0], output=node.outputs[0], to=g.types[node.inputs[1]])
    return True


def sum_all(g: TrainingGraph, node: Node) -> bool:
    g.add("Identity", _added(g, node), output=node.outputs[0])
    return True


def mean_all(g: TrainingGraph, node: Node) -> bool:
    g.add("Mul", _added(g, node), g.constant(1 / len(node.inputs)), output=node.outputs[0])
    return True


def _added(g: TrainingGraph, node: Node) -> str:
    total = node.inputs[0]
    for name in node.inputs[1:]:
        total = g.add("Add", total, name)
    return total


# -- reductions -------------------------------------------------------------------------------------------------------


def reduced_axes(g: TrainingGraph, node: Node) -> list[int]:
    """Non-negative axes of a reduction (opset 18: an input); all of them when none are given."""
    rank = g.rank(node.inputs[0])
    name = node.input(1)
    axes = [] if not name or name not in g.constants else [int(axis) % rank for axis in g.constants[name]]
    return axes or ([] if node.attributes.get("noop_with_empty_axes", 0) else list(range(rank)))


def extremum(g: TrainingGraph, node: Node) -> bool:
    """ReduceMax and ReduceMin as the first of a sort (TopK), over axes moved last and flattened."""
    x, axes = node.inputs[0], reduced_axes(g, node)
    shape = g.shape(x)
    kept = [axis for axis in range(len(shape)) if axis not in axes]
    moved = g.add("Transpose", x, perm=kept + axes)
    flat = g.add("Reshape", moved, g.indices(*(shape[axis] for axis in kept), -1))
    largest = int(node.op == "ReduceMax")
    top, _ = g.add_many("TopK", [flat, g.indices(1)], [None, None], axis=len(kept), largest=largest)
    result = [1 if axis in axes else dim for axis, dim in enumerate(shape)]
    if not node.attributes.get("keepdims", 1):
        result = [shape[axis] for axis in kept]
    g.add("Reshape", top, g.indices(*result), output=node.outputs[0])
    return True


def global_max_pool(g: TrainingGraph, node: Node) -> bool:
    x = node.inputs[0]
    batch, channels, *space = g.shape(x)
    flat = g.add("Reshape", x, g.indices(batch, channels, -1))
    top, _ = g.add_many("TopK", [flat, g.indices(1)], [None, None], axis=2)
    g.add("Reshape", top, g.indices(batch, channels, *(1 for _ in space)), output=node.outputs[0])
    return True


def reduce_of(before: str | None, after: str | None) -> Rule:
    """A reduction that is a sum with something done before or after: `before` is applied to x, `after` to the sum."""

    def rule(g: TrainingGraph, node: Node) -> bool:
        x = node.inputs[0]
        terms = x if before is None else g.add("Mul", x, x) if before == "Square" else g.add(before, x)
        axes, keep = g.indices(*reduced_axes(g, node)), node.attributes.get("keepdims", 1)
        total = g.add("ReduceSum", terms, axes, keepdims=keep)
        g.add(after or "Identity", total, output=node.outputs[0])
        return True

    return rule


def lp_normalization(g: TrainingGraph, node: Node) -> bool:
    x, axis = node.inputs[0], g.indices(node.attributes.get("axis", -1))
    if node.attributes.get("p", 2) == 1:
        norm = g.add("ReduceSum", g.add("Abs", x), axis, keepdims=1)
    else:
        norm = g.add("Sqrt", g.add("ReduceSum", g.add("Mul", x, x), axis, keepdims=1))
    g.add("Div", x, norm, output=node.outputs[0])
    return True


def cum_sum(g: TrainingGraph, node: Node) -> bool:
    """A running sum is a product with a triangle of ones, along the axis moved last."""
    x = node.inputs[0]
    shape, axis = g.shape(x), int(g.constants[node.inputs[1]].item()) % g.rank(x)
    ones = np.triu(np.ones((shape[axis], shape[axis])), k=node.attributes.get("exclusive", 0))
    if node.attributes.get("reverse", 0):
        ones = ones.T
    order = [i for i in range(len(shape)) if i != axis] + [axis]
    product = g.add("MatMul", g.add("Transpose", x, perm=order), g.constant(ones))
    back = [int(i) for i in np.argsort(order)]
    g.add("Transpose", product, output=node.outputs[0], perm=back)
    return True


RULES: dict[str, Rule] = {
    "CastLike": cast_like,
    "Celu": celu,
    "CumSum": cum_sum,
    "Elu": elu,
    "GlobalMaxPool": global_max_pool,
    "HardSigmoid": hard_sigmoid,
    "HardSwish": hard_swish,
    "LpNormalization": lp_normalization,
    "Mean": mean_all,
    "Mish": mish,
    "PRelu": prelu,
    "ReduceL1": reduce_of("Abs", None),
    "ReduceL2": reduce_of("Square", "Sqrt"),
    "ReduceLogSum": reduce_of(None, "Log"),
    "ReduceMax": extremum,
    "ReduceMin": extremum,
    "ReduceSumSquare": reduce_of("Square", None),
    "Selu": selu,
    "Shrink": shrink,
    "Softplus": soft_plus,
    "Softsign": softsign,
    "Sum": sum_all,
    "Tan": tan,
    "ThresholdedRelu": thresholded_relu,
    **rewrites_layers.RULES,
    **rewrites_shape.RULES,
}
