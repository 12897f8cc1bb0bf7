"""The networks that are timed, with random weights: built the same way every time, no download.

Weights are He-normal (He et al. 2015, arXiv:1502.01852), drawn per tensor from its name; biases have standard deviation
0.05, so activations do not vanish when most weights are pruned. BatchNorm is folded. Opset 13, batch 1.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper


class Network:
    """A graph under construction; methods take and return names of values.

    Attributes:
        x: the graph's input.
    """

    x = "input"

    def __init__(self, name: str, shape: Sequence[int]) -> None:
        self.name, self.shape = name, shape
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: dict[str, onnx.TensorProto] = {}

    def constant(self, name: str, value: NDArray[Any]) -> str:
        if name not in self.initializers:
            self.initializers[name] = numpy_helper.from_array(value, name)
        return name

    def random(self, name: str, shape: Sequence[int], deviation: float) -> str:
        generator = np.random.default_rng(zlib.crc32(f"{self.name}/{name}".encode()))
        return self.constant(name, generator.standard_normal(shape, np.float32) * np.float32(deviation))

    def node(self, operator: str, *inputs: str, **attributes: Any) -> str:
        output = f"{operator.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, inputs, [output], name=output, **attributes))
        return output

    def relu(self, x: str) -> str:
        return self.node("Relu", x)

    def relu6(self, x: str) -> str:
        zero, six = (self.constant(n, np.array(v, np.float32)) for n, v in (("zero", 0), ("six", 6)))
        return self.node("Clip", x, zero, six)

    def conv(
        self, x: str, name: str, channels: tuple[int, int], size: int, stride: int = 1, pad: int = 0, group: int = 1
    ) -> str:
        """Convolution of (inputs, outputs) `channels` with a square kernel."""
        inputs, outputs = channels
        shape = (outputs, inputs // group, size, size)
        weight = self.random(f"{name}.weight", shape, math.sqrt(2 / math.prod(shape[1:])))
        bias = self.random(f"{name}.bias", (outputs,), 0.05)
        return self.node(
            "Conv", x, weight, bias, kernel_shape=[size, size], strides=[stride, stride], pads=[pad] * 4, group=group
        )

    def max_pool(self, x: str, size: int, stride: int, pad: int = 0) -> str:
        return self.node("MaxPool", x, kernel_shape=[size, size], strides=[stride, stride], pads=[pad] * 4)

    def dense(self, x: str, name: str, inputs: int, outputs: int) -> str:
        weight = self.random(f"{name}.weight", (outputs, inputs), math.sqrt(2 / inputs))
        return self.node("Gemm", x, weight, self.random(f"{name}.bias", (outputs,), 0.05), transB=1)

    def classifier(self, x: str, sizes: Sequence[int], names: Sequence[str]) -> str:
        """Fully connected layers on the flattened `x`, ReLU between them."""
        x = self.node("Flatten", x)
        for i, name in enumerate(names):
            x = self.dense(self.relu(x) if i else x, name, sizes[i], sizes[i + 1])
        return x

    def model(self, result: str, shape: Sequence[int]) -> onnx.ModelProto:
        """The model whose output `output` is `result`."""
        self.nodes.append(helper.make_node("Identity", [result], ["output"], name="output"))
        graph = helper.make_graph(
            self.nodes,
            self.name,
            [helper.make_tensor_value_info(self.x, TensorProto.FLOAT, self.shape)],
            [helper.make_tensor_value_info("output", TensorProto.FLOAT, shape)],
            list(self.initializers.values()),
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)


def lenet300() -> onnx.ModelProto:
    """LeNet-300-100 (LeCun et al. 1998)."""
    net = Network("lenet300", (1, 784))
    return net.model(net.classifier(net.x, (784, 300, 100, 10), ("fc1", "fc2", "fc3")), (1, 10))


def lenet5() -> onnx.ModelProto:
    """LeNet-5 as in Caffe: two convolutions of 20 and 50 channels, then 500 and 10 neurons."""
    net = Network("lenet5", (1, 1, 28, 28))
    x = net.max_pool(net.conv(net.x, "conv1", (1, 20), 5), 2, 2)
    x = net.max_pool(net.conv(x, "conv2", (20, 50), 5), 2, 2)
    return net.model(net.classifier(x, (800, 500, 10), ("fc1", "fc2")), (1, 10))


def alexnet() -> onnx.ModelProto:
    """AlexNet as in Caffe, with groups and local response normalization (Krizhevsky et al. 2012)."""
    net = Network("alexnet", (1, 3, 227, 227))

    def normalized(x: str) -> str:
        return net.max_pool(net.node("LRN", net.relu(x), size=5, alpha=1e-4, beta=0.75, bias=1.0), 3, 2)

    x = normalized(net.conv(net.x, "conv1", (3, 96), 11, 4))
    x = normalized(net.conv(x, "conv2", (96, 256), 5, 1, 2, 2))
    x = net.relu(net.conv(x, "conv3", (256, 384), 3, 1, 1))
    x = net.relu(net.conv(x, "conv4", (384, 384), 3, 1, 1, 2))
    x = net.max_pool(net.relu(net.conv(x, "conv5", (384, 256), 3, 1, 1, 2)), 3, 2)
    return net.model(net.classifier(x, (9216, 4096, 4096, 1000), ("fc6", "fc7", "fc8")), (1, 1000))


def vgg16() -> onnx.ModelProto:
    """VGG-16 (Simonyan and Zisserman 2014, arXiv:1409.1556)."""
    net = Network("vgg16", (1, 3, 224, 224))
    x, inputs = net.x, 3
    for block, (count, outputs) in enumerate(((2, 64), (2, 128), (3, 256), (3, 512), (3, 512)), 1):
        for i in range(1, count + 1):
            x = net.relu(net.conv(x, f"conv{block}_{i}", (inputs, outputs), 3, 1, 1))
            inputs = outputs
        x = net.max_pool(x, 2, 2)
    return net.model(net.classifier(x, (25088, 4096, 4096, 1000), ("fc6", "fc7", "fc8")), (1, 1000))


def resnet18(size: int = 224) -> onnx.ModelProto:
    """ResNet-18 on images of so many pixels a side (He et al. 2015, arXiv:1512.03385)."""
    net = Network("resnet18", (1, 3, size, size))
    x, inputs = net.max_pool(net.relu(net.conv(net.x, "stem", (3, 64), 7, 2, 3)), 3, 2, 1), 64
    for layer, width in enumerate((64, 128, 256, 512), 1):
        for block in range(2):
            stride, name = 2 if block == 0 and layer > 1 else 1, f"layer{layer}.{block}"
            y = net.relu(net.conv(x, f"{name}.conv1", (inputs, width), 3, stride, 1))
            y = net.conv(y, f"{name}.conv2", (width, width), 3, 1, 1)
            shortcut = x if inputs == width else net.conv(x, f"{name}.shortcut", (inputs, width), 1, stride)
            x, inputs = net.relu(net.node("Add", y, shortcut)), width
    x = net.node("GlobalAveragePool", x)
    return net.model(net.classifier(x, (512, 1000), ("fc",)), (1, 1000))


def resnet50() -> onnx.ModelProto:
    """ResNet-50 with the stride on the 3x3 convolutions (He et al. 2015, arXiv:1512.03385)."""
    net = Network("resnet50", (1, 3, 224, 224))
    x, inputs = net.max_pool(net.relu(net.conv(net.x, "stem", (3, 64), 7, 2, 3)), 3, 2, 1), 64
    for layer, (count, width) in enumerate(((3, 64), (4, 128), (6, 256), (3, 512)), 1):
        for block in range(count):
            stride, name = 2 if block == 0 and layer > 1 else 1, f"layer{layer}.{block}"
            y = net.relu(net.conv(x, f"{name}.conv1", (inputs, width), 1))
            y = net.relu(net.conv(y, f"{name}.conv2", (width, width), 3, stride, 1))
            y = net.conv(y, f"{name}.conv3", (width, 4 * width), 1)
            shortcut = x if block else net.conv(x, f"{name}.shortcut", (inputs, 4 * width), 1, stride)
            x, inputs = net.relu(net.node("Add", y, shortcut)), 4 * width
    x = net.node("GlobalAveragePool", x)
    return net.model(net.classifier(x, (2048, 1000), ("fc",)), (1, 1000))


def mobilenet_v1() -> onnx.ModelProto:
    """MobileNet (Howard et al. 2017, arXiv:1704.04861)."""
    net = Network("mobilenet_v1", (1, 3, 224, 224))
    x, inputs = net.relu6(net.conv(net.x, "stem", (3, 32), 3, 2, 1)), 32
    sizes = [(64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *[(512, 1)] * 5, (1024, 2), (1024, 1)]
    for i, (outputs, stride) in enumerate(sizes):
        x = net.relu6(net.conv(x, f"depthwise{i}", (inputs, inputs), 3, stride, 1, inputs))
        x, inputs = net.relu6(net.conv(x, f"pointwise{i}", (inputs, outputs), 1)), outputs
    x = net.node("GlobalAveragePool", x)
    return net.model(net.classifier(x, (1024, 1000), ("fc",)), (1, 1000))


def mobilenet_v2(size: int = 224) -> onnx.ModelProto:
    """MobileNetV2 on images of so many pixels a side (Sandler et al. 2018, arXiv:1801.04381, table 2)."""
    net = Network("mobilenet_v2", (1, 3, size, size))
    x, inputs = net.relu6(net.conv(net.x, "stem", (3, 32), 3, 2, 1)), 32
    table = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
    for stage, (factor, outputs, count, first_stride) in enumerate(table):
        for block in range(count):
            stride, hidden, name = first_stride if block == 0 else 1, inputs * factor, f"stage{stage}.{block}"
            y = x if factor == 1 else net.relu6(net.conv(x, f"{name}.expand", (inputs, hidden), 1))
            y = net.relu6(net.conv(y, f"{name}.depthwise", (hidden, hidden), 3, stride, 1, hidden))
            y = net.conv(y, f"{name}.project", (hidden, outputs), 1)
            x = net.node("Add", x, y) if stride == 1 and inputs == outputs else y
            inputs = outputs
    x = net.node("GlobalAveragePool", net.relu6(net.conv(x, "last", (inputs, 1280), 1)))
    return net.model(net.classifier(x, (1280, 1000), ("fc",)), (1, 1000))


def bert(layers: int = 12, width: int = 768, heads: int = 12, length: int = 128) -> onnx.ModelProto:
    """The encoder of BERT base, on embeddings (Devlin et al. 2018, arXiv:1810.04805), as exporters write it."""
    net = Network(f"bert{layers}", (1, length, width))

    def number(value: float) -> str:
        return net.constant(f"c{value:g}", np.array(value, np.float32))

    def shape(*dims: int) -> str:
        return net.constant("shape" + "_".join(map(str, dims)), np.array(dims, np.int64))

    def linear(x: str, name: str, inputs: int, outputs: int) -> str:
        weight = net.random(f"{name}.weight", (inputs, outputs), math.sqrt(1 / inputs))
        return net.node("Add", net.node("MatMul", x, weight), net.random(f"{name}.bias", (outputs,), 0.05))

    def layer_norm(x: str, name: str) -> str:
        scale, bias = (
            net.constant(f"{name}.{n}", np.full(width, v, np.float32)) for n, v in (("scale", 1), ("bias", 0))
        )
        centred = net.node("Sub", x, net.node("ReduceMean", x, axes=[-1]))
        variance = net.node("ReduceMean", net.node("Pow", centred, number(2)), axes=[-1])
        deviation = net.node("Sqrt", net.node("Add", variance, number(1e-12)))
        return net.node("Add", net.node("Mul", net.node("Div", centred, deviation), scale), bias)

    def split_heads(x: str, order: Sequence[int]) -> str:
        return net.node("Transpose", net.node("Reshape", x, shape(0, 0, heads, width // heads)), perm=order)

    x = net.x
    for i in range(layers):
        q, k, v = (linear(x, f"layer{i}.{n}", width, width) for n in ("query", "key", "value"))
        scores = net.node("MatMul", split_heads(q, (0, 2, 1, 3)), split_heads(k, (0, 2, 3, 1)))
        weights = net.node("Softmax", net.node("Div", scores, number(math.sqrt(width // heads))), axis=-1)
        mixed = net.node("Transpose", net.node("MatMul", weights, split_heads(v, (0, 2, 1, 3))), perm=(0, 2, 1, 3))
        attended = linear(net.node("Reshape", mixed, shape(0, 0, width)), f"layer{i}.output", width, width)
        x = layer_norm(net.node("Add", attended, x), f"layer{i}.norm1")
        hidden = linear(x, f"layer{i}.up", width, 4 * width)
        erf = net.node("Add", net.node("Erf", net.node("Div", hidden, number(math.sqrt(2)))), number(1))
        gelu = net.node("Mul", net.node("Mul", hidden, erf), number(0.5))
        x = layer_norm(net.node("Add", linear(gelu, f"layer{i}.down", 4 * width, width), x), f"layer{i}.norm2")
    return net.model(x, (1, length, width))


MODELS: dict[str, Callable[[], onnx.ModelProto]] = {
    "lenet300": lenet300,
    "lenet5": lenet5,
    "alexnet": alexnet,
    "vgg16": vgg16,
    "resnet18": resnet18,
    "resnet50": resnet50,
    "mobilenet_v1": mobilenet_v1,
    "mobilenet_v2": mobilenet_v2,
    "bert1": lambda: bert(1),
    "bert12": lambda: bert(12),
}
