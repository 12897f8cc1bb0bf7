"""The four networks of Han et al. 2015 as ONNX, with random weights.

All take `pixels`, give `scores` (batch, classes) before the softmax, and leave the batch open. A layer's weight and
bias are called `<layer>.weight` and `<layer>.bias`. AlexNet and VGG-16 come without the Dropout they train with.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from lwc_compiler.model import Model

Draw = Callable[[tuple[int, ...]], NDArray[Any]]

_OPSET, _IR_VERSION = 17, 8
# Filters of VGG-16, group by group; a pooling layer ends each group.
_VGG_16 = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))


def he_normal(seed: int) -> Draw:
    """Draws weights from a normal distribution with variance 2 / inputs (He et al. 2015, equation 10).

    The result takes the shape (outputs, inputs...) of a weight and returns float32; every call draws from one stream.
    """
    generator = np.random.default_rng(seed)

    def draw(shape: tuple[int, ...]) -> NDArray[np.float32]:
        drawn: NDArray[np.float64] = generator.standard_normal(shape) * np.sqrt(2 / math.prod(shape[1:]))
        return drawn.astype(np.float32)

    return draw


def lenet_300_100(draw: Draw, pixels: int = 28 * 28) -> Model:
    """LeNet-300-100 (LeCun et al. 1998): two hidden layers of 300 and 100 ReLUs; `pixels` is (batch, `pixels`)."""
    net = _Network("lenet_300_100", (pixels,), draw)
    net.fc("fc1", 300)
    net.relu()
    net.fc("fc2", 100)
    net.relu()
    net.fc("fc3", 10)
    return net.model()


def lenet_5(draw: Draw) -> Model:
    """LeNet-5 as in Caffe's example: `pixels` is (batch, 1, 28, 28); convolutions have no activation function."""
    net = _Network("lenet_5", (1, 28, 28), draw)
    net.conv("conv1", 20, 5)
    net.max_pool(2, 2)
    net.conv("conv2", 50, 5)
    net.max_pool(2, 2)
    net.flatten()
    net.fc("fc1", 500)
    net.relu()
    net.fc("fc2", 10)
    return net.model()


def alexnet(draw: Draw) -> Model:
    """AlexNet as in Caffe's `bvlc_alexnet`: `pixels` is (batch, 3, 227, 227); conv2, conv4, conv5 have two groups."""
    net = _Network("alexnet", (3, 227, 227), draw)
    net.conv("conv1", 96, 11, stride=4)
    net.relu()
    net.lrn()
    net.max_pool(3, 2)
    net.conv("conv2", 256, 5, pad=2, group=2)
    net.relu()
    net.lrn()
    net.max_pool(3, 2)
    net.conv("conv3", 384, 3, pad=1)
    net.relu()
    net.conv("conv4", 384, 3, pad=1, group=2)
    net.relu()
    net.conv("conv5", 256, 3, pad=1, group=2)
    net.relu()
    net.max_pool(3, 2)
    net.flatten()
    net.fc("fc1", 4096)
    net.relu()
    net.fc("fc2", 4096)
    net.relu()
    net.fc("fc3", 1000)
    return net.model()


def vgg_16(draw: Draw) -> Model:
    """VGG-16 (Simonyan and Zisserman 2014, configuration D): `pixels` is (batch, 3, 224, 224)."""
    net = _Network("vgg_16", (3, 224, 224), draw)
    for group, filters in enumerate(_VGG_16, 1):
        for number, channels in enumerate(filters, 1):
            net.conv(f"conv{group}_{number}", channels, 3, pad=1)
            net.relu()
        net.max_pool(2, 2)
    net.flatten()
    net.fc("fc6", 4096)
    net.relu()
    net.fc("fc7", 4096)
    net.relu()
    net.fc("fc8", 1000)
    return net.model()


class _Network:
    """A chain of layers; each method appends one. Tensors are called `<node>.out`, the last one `scores`."""

    def __init__(self, name: str, shape: Sequence[int], draw: Draw) -> None:
        self._name, self._draw, self._input = name, draw, tuple(shape)
        self._shape = self._input
        self._nodes: list[onnx.NodeProto] = []
        self._weights: list[TensorProto] = []

    def fc(self, name: str, outputs: int) -> None:
        self._linear("Gemm", name, (outputs, *self._shape), (outputs,), transB=1)

    def conv(self, name: str, channels: int, kernel: int, stride: int = 1, pad: int = 0, group: int = 1) -> None:
        side = (self._shape[1] + 2 * pad - kernel) // stride + 1
        weight = (channels, self._shape[0] // group, kernel, kernel)
        attributes = {"kernel_shape": [kernel] * 2, "strides": [stride] * 2, "pads": [pad] * 4, "group": group}
        self._linear("Conv", name, weight, (channels, side, side), **attributes)

    def relu(self) -> None:
        self._append("Relu", self._numbered("Relu"), self._shape)

    def lrn(self) -> None:
        """Local response normalization over 5 channels."""
        self._append("LRN", self._numbered("LRN"), self._shape, size=5, alpha=1e-4, beta=0.75)

    def max_pool(self, kernel: int, stride: int) -> None:
        side = (self._shape[1] - kernel) // stride + 1
        attributes = {"kernel_shape": [kernel] * 2, "strides": [stride] * 2}
        self._append("MaxPool", self._numbered("MaxPool"), (self._shape[0], side, side), **attributes)

    def flatten(self) -> None:
        self._append("Flatten", "flatten", (math.prod(self._shape),))

    def model(self) -> Model:
        self._nodes[-1].output[0] = "scores"
        graph = helper.make_graph(
            self._nodes,
            self._name,
            [helper.make_tensor_value_info("pixels", TensorProto.FLOAT, ["batch", *self._input])],
            [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["batch", *self._shape])],
            self._weights,
        )
        opsets = [helper.make_opsetid("", _OPSET)]
        proto = helper.make_model(graph, producer_name="lwc", opset_imports=opsets, ir_version=_IR_VERSION)
        return Model(proto, self._name)

    def _linear(self, op: str, name: str, weight: tuple[int, ...], result: tuple[int, ...], **attributes: Any) -> None:
        """A layer with weights, drawn now, and biases, which start at 0."""
        self._weights.append(numpy_helper.from_array(self._draw(weight), f"{name}.weight"))
        self._weights.append(numpy_helper.from_array(np.zeros(weight[0], np.float32), f"{name}.bias"))
        self._append(op, name, result, f"{name}.weight", f"{name}.bias", **attributes)

    def _append(self, op: str, name: str, result: tuple[int, ...], *constants: str, **attributes: Any) -> None:
        source = self._nodes[-1].output[0] if self._nodes else "pixels"
        self._nodes.append(helper.make_node(op, [source, *constants], [f"{name}.out"], name=name, **attributes))
        self._shape = result

    def _numbered(self, op: str) -> str:
        return f"{op.lower()}{sum(node.op_type == op for node in self._nodes) + 1}"


BUILDERS: dict[str, Callable[[Draw], Model]] = {
    "lenet-300-100": lenet_300_100,
    "lenet-5": lenet_5,
    "alexnet": alexnet,
    "vgg-16": vgg_16,
}
