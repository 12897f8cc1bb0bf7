"""Which tensors of a model are trained, and the way out of the user's graph and back into it.

Weights leave the graph before anything else is done to it: they become graph inputs, so that no conversion, folding or
rewriting can lose, merge or rename one, and graphs stay small however large the model is.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from lwc_compiler.errors import ModelError, UnsupportedError
from lwc_compiler.passes.sites import constant_tensors

# Inputs that hold what a layer learns: operator -> input index -> whether weight decay applies to it.
SLOTS: dict[str, dict[int, bool]] = {
    "Conv": {1: True, 2: False},
    "ConvTranspose": {1: True, 2: False},
    "Gemm": {0: True, 1: True, 2: False},
    "MatMul": {0: True, 1: True},
    "Einsum": {0: True, 1: True},
    "Gather": {0: True},
    "BatchNormalization": {1: False, 2: False},
    "InstanceNormalization": {1: False, 2: False},
    "GroupNormalization": {1: False, 2: False},
    "LayerNormalization": {1: False, 2: False},
    "PRelu": {1: False},
    "LSTM": {1: True, 2: True, 3: False},
    "GRU": {1: True, 2: True, 3: False},
    "RNN": {1: True, 2: True, 3: False},
}
STATISTICS = (3, 4)  # inputs of BatchNormalization: running mean and variance
LINEAR = {"MatMul", "Gemm", "Conv", "ConvTranspose", "Einsum"}
# Div and Reciprocal: of or by a standard deviation, in a normalization that is written out.
NORMALIZING = {
    "BatchNormalization",
    "InstanceNormalization",
    "GroupNormalization",
    "LayerNormalization",
    "Div",
    "Reciprocal",
}
RESHAPING = {"Reshape", "Squeeze", "Unsqueeze"}
PASSES_WEIGHTS_ON = {"Identity", "Transpose", *RESHAPING}


@dataclass
class Weights:
    """What training changes.

    Attributes:
        trained: weight name -> float32 array, changed in place by the optimizer.
        decayed: names weight decay applies to (not biases, not normalization).
        statistics: running means and variances of BatchNormalization, changed in place by training.
    """

    trained: dict[str, NDArray[np.float32]] = field(default_factory=dict)
    decayed: set[str] = field(default_factory=set)
    statistics: dict[str, NDArray[np.float32]] = field(default_factory=dict)

    def arrays(self) -> dict[str, NDArray[np.float32]]:
        """All of them: name -> array."""
        return self.trained | self.statistics


def detach(proto: onnx.ModelProto, masked: set[str], train_batch_norm: bool) -> tuple[onnx.ModelProto, Weights]:
    """Takes the weights out of a graph.

    Trained are the parameters of layers (`SLOTS`), the bias vector that is added right after a linear layer, scale and
    shift right after a normalization, and everything in `masked`. Other constants stay what they are: nothing tells a
    positional embedding from a table of anchors.

    Args:
        proto: the user's model; it is not changed.
        masked: names of weights of the model that have a mask.
        train_batch_norm: False leaves BatchNormalization alone, statistics included.

    Returns:
        A copy of the model whose weights are graph inputs, and their values.

    Raises:
        ModelError: the model has no weights.
        UnsupportedError: a weight is not float32.
    """
    values = constant_tensors(proto.graph)
    weights = Weights()
    names = dict.fromkeys(masked, True) | _find_weights(proto.graph, values, train_batch_norm)
    for name, decays in names.items():
        weights.trained[name] = _float32(name, values[name])
        if decays:
            weights.decayed.add(name)
    if train_batch_norm:
        for node in proto.graph.node:
            if node.op_type == "BatchNormalization":
                for index in STATISTICS:
                    if node.input[index] in values:
                        weights.statistics[node.input[index]] = _float32(node.input[index], values[node.input[index]])
    if not weights.trained:
        raise ModelError("the model has no weights that could be trained")
    return _without(proto, weights.arrays()), weights


def attach(proto: onnx.ModelProto, values: dict[str, NDArray[np.float32]]) -> onnx.ModelProto:
    """A copy of the user's model with `values` in place of the tensors of these names; nothing else changes."""
    result = onnx.ModelProto()
    result.CopyFrom(proto)
    for name, tensor in constant_tensors(result.graph).items():
        if name in values:
            tensor.CopyFrom(numpy_helper.from_array(values[name], tensor.name))
    return result


def _find_weights(graph: onnx.GraphProto, values: dict[str, onnx.TensorProto], batch_norm: bool) -> dict[str, bool]:
    """Names of trained weights, in the order of their first use, and whether they decay."""
    producers = {name: node for node in graph.node for name in node.output}
    computed = {value.name for value in graph.input} - set(values)
    found: dict[str, bool] = {}

    def origin(name: str) -> str:
        while name in producers and producers[name].op_type in PASSES_WEIGHTS_ON and name not in values:
            name = producers[name].input[0]
        return name

    def made_by(name: str) -> str:
        while name in producers and producers[name].op_type in RESHAPING:
            name = producers[name].input[0]
        return producers[name].op_type if name in producers else ""

    scaled: set[str] = set()
    for node in graph.node:
        if not any(name in computed for name in node.input):
            continue
        computed |= set(node.output)
        if node.op_type == "BatchNormalization" and not batch_norm:
            continue
        for index, decays in SLOTS.get(node.op_type, {}).items():
            name = origin(node.input[index]) if index < len(node.input) else ""
            if name in values and _is_learned(node, values[name]):
                found[name] = found.get(name, False) or decays
        if node.op_type in ("Add", "Mul") and len(node.input) == 2:
            if node.op_type == "Mul" and scaled.intersection(node.input):  # the deviation's reciprocal, scaled first
                scaled.add(node.output[0])
            for name, other in (node.input, reversed(node.input)):
                if name not in values or not _is_vector(values[name]):
                    continue
                source = made_by(other)
                scale = node.op_type == "Mul" and source in NORMALIZING
                shift = node.op_type == "Add" and (source in LINEAR or other in scaled)
                if scale or shift:
                    found[name] = False
                if scale:
                    scaled.add(node.output[0])
    return found


def _is_learned(node: onnx.NodeProto, tensor: onnx.TensorProto) -> bool:
    """False for integer tables, tables of another rank than an embedding's, and the ones and zeros of a plain layer."""
    if tensor.data_type not in (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE):
        return False
    if node.op_type == "Gather":
        return len(tensor.dims) == 2
    if node.op_type == "InstanceNormalization":  # exporters write those without parameters, and group norms, so
        array = numpy_helper.to_array(tensor)
        return not ((array == 1).all() or (array == 0).all())
    return True


def _is_vector(tensor: onnx.TensorProto) -> bool:
    return tensor.data_type == TensorProto.FLOAT and sum(dim > 1 for dim in tensor.dims) == 1


def _float32(name: str, tensor: onnx.TensorProto) -> NDArray[np.float32]:
    if tensor.data_type != TensorProto.FLOAT:
        kind = TensorProto.DataType.Name(tensor.data_type).lower()
        raise UnsupportedError(f"weight '{name}' is {kind}; retraining works on float32 weights: convert them first")
    return np.array(numpy_helper.to_array(tensor), np.float32)


def _without(proto: onnx.ModelProto, arrays: dict[str, NDArray[Any]]) -> onnx.ModelProto:
    """A copy of `proto` with `arrays` as graph inputs; their bytes are never copied."""
    result = onnx.ModelProto(ir_version=max(proto.ir_version, 4))  # from IR 4 on, initializers need not be inputs
    result.opset_import.extend(proto.opset_import)
    result.functions.extend(proto.functions)
    graph = result.graph
    graph.name = proto.graph.name
    graph.output.extend(proto.graph.output)
    graph.node.extend(n for n in proto.graph.node if not (n.op_type == "Constant" and n.output[0] in arrays))
    graph.initializer.extend(t for t in proto.graph.initializer if t.name not in arrays)
    stored = {tensor.name for tensor in proto.graph.initializer}
    graph.input.extend(value for value in proto.graph.input if value.name not in stored)
    for name, array in arrays.items():
        graph.input.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, array.shape))
    return result
