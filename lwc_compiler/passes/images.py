"""A network on a batch as the same network on one image at a time, where no image has to do with another.

Activations of one image stay in the caches from layer to layer, and threads that take whole images never wait for each
other. What it costs is that the weights are read again for every image.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import onnx
from onnx import numpy_helper

from lwc_compiler.errors import LwcError
from lwc_compiler.model import Model, attributes_of
from lwc_compiler.passes.normalize import normalize

if TYPE_CHECKING:
    from collections.abc import Callable

_BYTES_A_NONZERO = 6  # a float32 and a 16-bit index

Shapes = dict[str, tuple[int, ...]]


def one_image(model: Model) -> tuple[Model, int] | None:
    """The network on one image, and the images of the batch; None where the batch is better computed as a whole.

    That is where images may depend on each other, and where there is one only.

    Args:
        model: normalized, with static shapes.
    """
    graph = model.proto.graph
    shapes = static_shapes(graph)
    dims = {next(iter(shapes.get(value.name, ())), 0) for value in (*graph.input, *graph.output)}
    count = dims.pop()
    constants = {tensor.name: tensor for tensor in graph.initializer}
    if dims or count < 2 or not all(_keeps_images_apart(node, shapes, constants, count) for node in graph.node):
        return None
    try:
        single = normalize(Model(_with_one(model.proto, constants, count), model.name), fold_batch_norm=False)
    except LwcError:
        return None
    expected = {name: (1, *shape[1:]) for name, shape in shapes.items()}
    found = static_shapes(single.proto.graph)
    if any(found.get(name) != expected[name] for node in graph.node for name in node.output if name):
        return None
    return single, count


def weights_outweigh(single: Model) -> bool:
    """Whether a pass over the weights costs more than the activations of an image are worth: the weights are larger.

    Args:
        single: the network on one image, normalized.
    """
    graph = single.proto.graph
    shapes = static_shapes(graph)
    activations = sum(4 * math.prod(shapes.get(name, ())) for node in graph.node for name in node.output if name)
    weights = sum(
        _BYTES_A_NONZERO * int(np.count_nonzero(numpy_helper.to_array(tensor)))
        for tensor in graph.initializer
        if tensor.data_type == onnx.TensorProto.FLOAT
    )
    return weights > activations


def static_shapes(graph: onnx.GraphProto) -> Shapes:
    """Value -> static shape; constants, and values without one, are left out."""
    return {
        value.name: tuple(d.dim_value for d in value.type.tensor_type.shape.dim)
        for value in (*graph.input, *graph.value_info, *graph.output)
        if all(d.HasField("dim_value") for d in value.type.tensor_type.shape.dim)
    }


def _with_one(proto: onnx.ModelProto, constants: dict[str, onnx.TensorProto], count: int) -> onnx.ModelProto:
    """The model with a batch of one, shapes of intermediate values left to be inferred."""
    result = onnx.ModelProto()
    result.CopyFrom(proto)
    del result.graph.value_info[:]
    for value in (*result.graph.input, *result.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 1
    for node in result.graph.node:
        if node.op_type == "Reshape":
            shape = numpy_helper.to_array(constants[node.input[1]]).copy()
            shape[0] = 1 if shape[0] == count else shape[0]
            name = f"{node.output[0]} of one image"
            result.graph.initializer.append(numpy_helper.from_array(shape, name))
            node.input[1] = name
    return result


def _keeps_images_apart(
    node: onnx.NodeProto, shapes: Shapes, constants: dict[str, onnx.TensorProto], count: int
) -> bool:
    """Whether image i of every output depends on image i of the inputs only; images are dimension 0."""
    rule = _RULES.get(node.op_type) if node.domain in ("", "ai.onnx") else None
    computed = [name for name in node.input if name and name not in constants]
    if rule is None or not computed:
        return False
    ranks = set()
    for name in (*computed, *(name for name in node.output if name)):
        shape = shapes.get(name, ())
        if not shape or shape[0] != count:
            return False
        ranks.add(len(shape))
    # A constant that is broadcast against the batch must not tell images apart.
    for name in node.input:
        dims = list(constants[name].dims) if name in constants else []
        if rule is _elementwise and len(dims) == max(ranks) and dims[0] != 1:
            return False
    return rule(_Context(node, shapes, constants, ranks))


class _Context:
    """A node and what its rule asks for."""

    def __init__(
        self, node: onnx.NodeProto, shapes: Shapes, constants: dict[str, onnx.TensorProto], ranks: set[int]
    ) -> None:
        self.node, self.shapes, self.ranks, self._constants = node, shapes, ranks, constants
        self.attributes = attributes_of(node)
        self.rank = len(shapes[node.input[0]]) if node.input[0] in shapes else 0

    def numbers(self, name: str, index: int) -> list[int] | None:
        """An attribute, or the constant input that later opsets have instead; None when it is not given."""
        if name in self.attributes:
            value = self.attributes[name]
            return [int(v) for v in (value if isinstance(value, (list, tuple)) else [value])]
        given = self.node.input[index] if index < len(self.node.input) else ""
        if given not in self._constants:
            return None
        return [int(v) for v in np.atleast_1d(numpy_helper.to_array(self._constants[given]))]

    def constant(self, index: int) -> bool:
        return self.node.input[index] in self._constants


def _spatial(context: _Context) -> bool:
    """Weights and statistics are constant: computed ones have a dimension 0 of their own."""
    return all(context.constant(i) for i in range(1, len(context.node.input)) if context.node.input[i])


def _elementwise(context: _Context) -> bool:
    return len(context.ranks) == 1


def _not_axis_0(name: str, index: int, default: int | None = None) -> Callable[[_Context], bool]:
    def rule(context: _Context) -> bool:
        """The axes are known, and the batch is none of them."""
        axes = context.numbers(name, index)
        if axes is None:
            axes = None if default is None else [default]
        return axes is not None and all(axis % context.rank for axis in axes)

    return rule


def _matmul(context: _Context) -> bool:
    return not context.constant(0) and (context.constant(1) or min(context.ranks) > 2)


def _gemm(context: _Context) -> bool:
    return not context.constant(0) and context.constant(1) and not context.attributes.get("transA", 0)


def _transpose(context: _Context) -> bool:
    perm = context.numbers("perm", 9)
    return perm is not None and perm[0] == 0


def _reshape(context: _Context) -> bool:
    shape = context.numbers("shape", 1)
    return shape is not None and len(shape) > 0 and shape[0] != -1


def _flatten(context: _Context) -> bool:
    return bool(context.attributes.get("axis", 1) == 1)


_ELEMENTWISE = [
    "Abs",
    "Add",
    "Ceil",
    "Clip",
    "Cos",
    "Div",
    "Elu",
    "Erf",
    "Exp",
    "Floor",
    "Gelu",
    "HardSigmoid",
    "HardSwish",
    "LeakyRelu",
    "Log",
    "Max",
    "Mean",
    "Min",
    "Mish",
    "Mul",
    "Neg",
    "PRelu",
    "Pow",
    "Reciprocal",
    "Relu",
    "Selu",
    "Sigmoid",
    "Sign",
    "Sin",
    "Softplus",
    "Softsign",
    "Sqrt",
    "Sub",
    "Sum",
    "Tanh",
]
_SPATIAL = [
    "AveragePool",
    "BatchNormalization",
    "Conv",
    "ConvTranspose",
    "GlobalAveragePool",
    "GlobalMaxPool",
    "InstanceNormalization",
    "LRN",
    "MaxPool",
]
_REDUCTIONS = ["ReduceL1", "ReduceL2", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceSum", "ReduceSumSquare"]
_RULES: dict[str, Callable[[_Context], bool]] = {
    **dict.fromkeys(_ELEMENTWISE, _elementwise),
    **dict.fromkeys(_SPATIAL, _spatial),
    **dict.fromkeys(_REDUCTIONS, _not_axis_0("axes", 1)),
    **dict.fromkeys(("Softmax", "LogSoftmax"), _not_axis_0("axis", 9, -1)),
    "Concat": _not_axis_0("axis", 99),
    "Split": _not_axis_0("axis", 99, 0),
    "Squeeze": _not_axis_0("axes", 1),
    "Unsqueeze": _not_axis_0("axes", 1),
    "Slice": _not_axis_0("axes", 3),
    "Gemm": _gemm,
    "MatMul": _matmul,
    "Transpose": _transpose,
    "Reshape": _reshape,
    "Flatten": _flatten,
}
