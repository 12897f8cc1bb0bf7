"""Pruned copies of the networks in `models.py`: which of their weights are zero."""

from __future__ import annotations

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

# Kept fractions of Han, Pool, Tran and Dally (2015, arXiv:1506.02626), tables 2 to 5, by the names of `models.py`.
HAN = {
    "lenet300": {"fc1": 0.08, "fc2": 0.09, "fc3": 0.26},
    "lenet5": {"conv1": 0.66, "conv2": 0.12, "fc1": 0.08, "fc2": 0.19},
    "alexnet": {
        "conv1": 0.84, "conv2": 0.38, "conv3": 0.35, "conv4": 0.37, "conv5": 0.37,
        "fc6": 0.09, "fc7": 0.09, "fc8": 0.25,
    },
    "vgg16": {
        "conv1_1": 0.58, "conv1_2": 0.22, "conv2_1": 0.34, "conv2_2": 0.36, "conv3_1": 0.53, "conv3_2": 0.24,
        "conv3_3": 0.42, "conv4_1": 0.32, "conv4_2": 0.27, "conv4_3": 0.34, "conv5_1": 0.35, "conv5_2": 0.29,
        "conv5_3": 0.36, "fc6": 0.04, "fc7": 0.04, "fc8": 0.23,
    },
}  # fmt: skip

DENSE = "dense"
_KEPT = 0.1


def variants_of(name: str) -> tuple[str, ...]:
    """What there is of network `name`.

    `dense`: as it is. `90`: 90 % zeros in every layer but a first convolution and the depthwise ones. `90-4x1`: the
    same in blocks of four output channels. `han`: the fractions of Han et al. 2015.
    """
    return (DENSE, "90", *(["90-4x1"] if name == "resnet50" else []), *(["han"] if name in HAN else []))


def make_variant(model: onnx.ModelProto, name: str, variant: str) -> None:
    """Prunes a network by magnitude, in place; the weights left are scaled so that a layer keeps its variance.

    Without that, values would fade from layer to layer down to denormal numbers, which many processors compute slowly.
    """
    if variant == DENSE:
        return
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    layers = [n for n in model.graph.node if n.op_type in ("Conv", "Gemm", "MatMul") and n.input[1] in weights]
    for index, node in enumerate(layers):
        tensor = weights[node.input[1]]
        weight = numpy_helper.to_array(tensor)
        if variant == "han":
            kept = HAN[name][tensor.name.removesuffix(".weight")]
        else:
            depthwise = node.op_type == "Conv" and weight.shape[1] == 1 and weight.shape[0] > 1 and index > 0
            kept = 1.0 if depthwise or (index == 0 and node.op_type == "Conv") else _KEPT
        # The weight of MatMul is (inputs, outputs), all others begin with the outputs.
        outputs_first = weight.T if node.op_type == "MatMul" else weight
        pruned = prune(outputs_first, kept, block=4 if variant == "90-4x1" else 1)
        tensor.CopyFrom(numpy_helper.from_array(pruned.T.copy() if node.op_type == "MatMul" else pruned, tensor.name))


def prune(weight: NDArray[np.float32], kept: float, block: int = 1) -> NDArray[np.float32]:
    """The `kept` part of a weight with the largest magnitudes, scaled to the variance of the whole.

    Args:
        weight: any shape; the first dimension counts outputs.
        kept: fraction, in (0, 1].
        block: outputs in a row that are kept or pruned together; divides the first dimension.
    """
    if kept == 1:
        return weight
    squares = np.square(weight, dtype=np.float64).reshape(-1, block, weight[0].size).sum(axis=1)
    count = round(squares.size * kept)
    mask = np.zeros(squares.size, np.bool_)
    mask[np.argpartition(squares.ravel(), squares.size - count)[squares.size - count :]] = True
    mask = np.repeat(mask.reshape(squares.shape)[:, None], block, axis=1).reshape(weight.shape)
    pruned = np.where(mask, weight, np.float32(0))
    scale = np.sqrt(squares.sum() / np.square(pruned, dtype=np.float64).sum())
    return pruned * np.float32(scale)


def set_batch(model: onnx.ModelProto, batch: int) -> None:
    """Gives input and output of a network another batch, in place."""
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = batch
