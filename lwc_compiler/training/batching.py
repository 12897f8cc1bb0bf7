"""How many samples go through the graph at once: shapes are static while a model trains."""

from __future__ import annotations

from collections.abc import Container
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from lwc_compiler.errors import UnsupportedError
from lwc_compiler.training.data import InputSpec
from lwc_compiler.training.graph import constant_value
from lwc_compiler.training.session import open_session

SAME = 1e-4  # relative to the largest output


def input_specs(proto: onnx.ModelProto) -> list[InputSpec]:
    """What the model wants to be fed.

    Raises:
        UnsupportedError: an input that is not a tensor of numbers with a batch dimension.
    """
    stored = {tensor.name for tensor in proto.graph.initializer}
    specs = []
    for value in proto.graph.input:
        if value.name in stored:
            continue
        kind = value.type.tensor_type
        dtype = helper.tensor_dtype_to_np_dtype(kind.elem_type) if kind.elem_type else np.dtype(object)
        if dtype.kind not in "biuf" or not kind.shape.dim:
            raise UnsupportedError(
                f"input '{value.name}' is not a tensor of numbers whose first dimension counts the samples; "
                "retraining needs one"
            )
        shape = tuple(dim.dim_value if dim.dim_value > 0 else None for dim in kind.shape.dim)
        specs.append(InputSpec(value.name, dtype, shape))
    return specs


def fixed_batch(specs: list[InputSpec]) -> int | None:
    """The batch size that is built into a model; None: it takes any."""
    sizes = [spec.shape[0] for spec in specs if spec.shape[0] is not None]
    return max(sizes) if sizes else None


def with_open_batch(proto: onnx.ModelProto, batch: int | None, weights: Container[str] = ()) -> onnx.ModelProto:
    """A copy of a model exported for `batch` samples that may take any number; None: it does already.

    The batch is also written into the targets of Reshape; these become "as many as there are". `weights` are graph
    inputs that are not data.
    """
    result = onnx.ModelProto()
    result.CopyFrom(proto)
    if batch is None:
        return result
    del result.graph.value_info[:]  # shapes with the old batch, which Shape nodes would be folded to
    targets = {tensor.name: tensor for tensor in proto.graph.initializer}
    constants = {node.output[0]: node for node in proto.graph.node if node.op_type == "Constant"}
    for number, node in enumerate(result.graph.node):
        if node.op_type != "Reshape" or node.input[1] not in targets.keys() | constants.keys():
            continue
        name = node.input[1]
        shape = np.array(numpy_helper.to_array(targets[name]) if name in targets else constant_value(constants[name]))
        if shape.size and shape[0] == batch:
            shape[0] = 0 if -1 in shape else -1
            node.input[1] = f"lwc/open_shape_{number}"
            result.graph.initializer.append(numpy_helper.from_array(shape, node.input[1]))
    for value in (*result.graph.input, *result.graph.output):
        dims = value.type.tensor_type.shape.dim
        if value.name not in weights and dims and dims[0].dim_value == batch:
            dims[0].ClearField("dim_value")
    return result


def computes_the_same(
    proto: onnx.ModelProto,
    opened: onnx.ModelProto,
    batch: int,
    data: dict[str, NDArray[Any]],
    weights: dict[str, NDArray[np.float32]],
) -> bool:
    """Whether `opened` gives for twice the batch what `proto` gives for the halves.

    Args:
        proto: a model for `batch` samples; weights may be graph inputs.
        opened: what `with_open_batch` made of it.
        batch: samples.
        data: input name -> at least 2 x `batch` samples.
        weights: values of the weights that are graph inputs.
    """
    names = [value.name for value in proto.graph.output]
    try:
        one, any_number = open_session(proto, threads=1), open_session(opened, threads=1)
        halves = [
            one.run(names, {name: array[i * batch : (i + 1) * batch] for name, array in data.items()} | weights)
            for i in range(2)
        ]
        whole = any_number.run(names, {name: array[: 2 * batch] for name, array in data.items()} | weights)
    except Exception:  # ONNX Runtime raises classes of its own; whatever it says, this model keeps its batch
        return False
    for first, second, both in zip(*halves, whole, strict=True):
        expected = np.concatenate([first, second])
        if both.shape != expected.shape or np.abs(both - expected).max() > SAME * max(np.abs(expected).max(), 1e-30):
            return False
    return True
