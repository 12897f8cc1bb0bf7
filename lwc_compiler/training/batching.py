"""How many samples go through the graph at once: shapes are static while a model trains."""

from __future__ import annotations

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


def open_batch(
    proto: onnx.ModelProto, batch: int, data: dict[str, NDArray[Any]], weights: dict[str, NDArray[np.float32]]
) -> onnx.ModelProto | None:
    """A model that was exported for a fixed batch, made to take any.

    The batch is also written into the targets of Reshape; these become "as many as there are". The result is run on
    twice the batch and has to give what the model gives for the halves.

    Args:
        proto: the model; weights may be graph inputs.
        batch: the batch it was exported for.
        data: input name -> at least 2 x `batch` samples.
        weights: values of the weights that are graph inputs.

    Returns:
        The model with an open batch, or None where that does not work.
    """
    result = onnx.ModelProto()
    result.CopyFrom(proto)
    del result.graph.value_info[:]  # shapes with the old batch, which Shape nodes would be folded to
    targets = {tensor.name: numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}
    targets |= {node.output[0]: constant_value(node) for node in proto.graph.node if node.op_type == "Constant"}
    for number, node in enumerate(result.graph.node):
        if node.op_type == "Reshape" and node.input[1] in targets:
            shape = np.array(targets[node.input[1]])
            if shape.size and shape[0] == batch:
                shape[0] = 0 if -1 in shape else -1
                node.input[1] = f"lwc/open_shape_{number}"
                result.graph.initializer.append(numpy_helper.from_array(shape, node.input[1]))
    for value in (*result.graph.input, *result.graph.output):
        if value.name not in weights and value.type.tensor_type.shape.dim:
            value.type.tensor_type.shape.dim[0].ClearField("dim_value")
    names = [value.name for value in proto.graph.output]
    try:
        fixed, opened = open_session(proto, threads=1), open_session(result, threads=1)
        halves = [
            fixed.run(names, {name: array[i * batch : (i + 1) * batch] for name, array in data.items()} | weights)
            for i in range(2)
        ]
        whole = opened.run(names, {name: array[: 2 * batch] for name, array in data.items()} | weights)
    except Exception:  # ONNX Runtime raises classes of its own; whatever it says, this model keeps its batch
        return None
    for first, second, both in zip(*halves, whole, strict=True):
        expected = np.concatenate([first, second])
        if both.shape != expected.shape or np.abs(both - expected).max() > SAME * max(np.abs(expected).max(), 1e-30):
            return None
    return result
