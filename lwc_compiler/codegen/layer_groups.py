"""What of an ONNX graph a linear layer computes: its node, and what follows where its kernel stores the result.

A bias, one residual Add, an activation and a factor join the node as long as nothing else reads what is in between.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from lwc_compiler.kernels.layer import Activation, Epilogue
from lwc_compiler.model import attributes_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

_erf = np.vectorize(math.erf)
_GELU_NODES = 5
_GELU_PARTS: dict[str, Callable[..., NDArray[np.float64]]] = {
    "Add": np.add,
    "Div": np.divide,
    "Erf": _erf,
    "Mul": np.multiply,
}


@dataclass
class Group:
    """A linear node and the nodes its kernel's store computes too.

    Attributes:
        nodes: the linear node first, each reading what the one before it gives.
        bias: float32, one value a channel; None: there is none.
        residual: the tensor that is added; None: none is.
        activation: what comes last.
    """

    nodes: list[onnx.NodeProto]
    bias: NDArray[np.float32] | None
    residual: str | None
    activation: Activation | None

    @property
    def output(self) -> str:
        name: str = self.nodes[-1].output[0]
        return name

    @property
    def epilogue(self) -> Epilogue:
        return Epilogue(self.bias, self.residual is not None, self.activation)


class Graph:
    """A graph, and which of its nodes layers have taken.

    A node is known by its first output (`known_by`): no two nodes write the same value.

    Attributes:
        proto: the model that it is of.
        constants: the initializers, by name.
        arrays: of those that were asked for, which ONNX copies.
        values: type and shape of each tensor; 0 for a dimension that is not known.
        uses: how many inputs of nodes, and outputs of the graph, each tensor is.
        readers: the nodes that read a tensor.
        producers: the node that writes a tensor.
        replaced: last node of a group -> the layer's node.
        dropped: the other nodes of the groups.

    Args:
        proto: normalized, static shapes, with value_info for every intermediate.
    """

    def __init__(self, proto: onnx.ModelProto) -> None:
        self.proto = proto
        graph = proto.graph
        self.constants = {t.name: t for t in graph.initializer}
        self.arrays: dict[str, NDArray[np.float32]] = {}
        self.values: dict[str, tuple[int, tuple[int, ...]]] = {
            v.name: (v.type.tensor_type.elem_type, tuple(d.dim_value for d in v.type.tensor_type.shape.dim))
            for v in [*graph.value_info, *graph.input, *graph.output]
        }
        self.values.update((t.name, (t.data_type, tuple(t.dims))) for t in graph.initializer)
        self.uses = Counter(name for node in graph.node for name in node.input)
        self.uses.update(v.name for v in graph.output)
        self.readers: dict[str, list[onnx.NodeProto]] = defaultdict(list)
        for node in graph.node:
            for name in node.input:
                self.readers[name].append(node)
        self.producers = {name: node for node in graph.node for name in node.output}
        self.replaced: dict[str, onnx.NodeProto] = {}
        self.dropped: set[str] = set()

    def array(self, name: str) -> NDArray[np.float32] | None:
        """The float32 constant `name`, None when it is not one."""
        tensor = self.constants.get(name)
        if tensor is None or tensor.data_type != TensorProto.FLOAT:
            return None
        if name not in self.arrays:
            self.arrays[name] = numpy_helper.to_array(tensor)
        return self.arrays[name]

    def shape(self, name: str) -> tuple[int, ...] | None:
        """The static shape of the float32 tensor `name`, None when it has none or another type."""
        dtype, shape = self.values.get(name, (0, ()))
        return shape if dtype == TensorProto.FLOAT and all(d > 0 for d in shape) else None

    def reader(self, name: str) -> onnx.NodeProto | None:
        """The only node that reads `name`; None when there are more, it is a graph output, or a layer has the node."""
        if self.uses[name] != 1 or not self.readers[name]:
            return None
        node = self.readers[name][0]
        return None if self.taken(node) else node

    def taken(self, node: onnx.NodeProto) -> bool:
        """Whether a layer has the node."""
        return known_by(node) in self.dropped or known_by(node) in self.replaced

    def group(self, node: onnx.NodeProto, bias: NDArray[np.float32] | None, channels: int, axis: int) -> Group:
        """`node` and the nodes after it that its kernel's store can do.

        Args:
            node: the linear node.
            bias: its own bias, one value a channel.
            channels: output channels.
            axis: the channels' axis of the output, counted from the end (-1 is the last).
        """
        group = Group([node], bias, None, None)
        shape = self.shape(node.output[0])
        while True:
            if group.activation is None and (parts := self._gelu(group.output)):
                group.activation = Activation("gelu")
                group.nodes += parts
            following = self.reader(group.output)
            if following is None or following.domain not in ("", "ai.onnx"):
                break
            if following.op_type == "Add" and group.activation is None:
                other = following.input[1] if following.input[0] == group.output else following.input[0]
                constant = self.array(other)
                per_channel = None if constant is None else channel_constant(constant, channels, axis, len(shape or ()))
                if per_channel is not None and group.residual is None:
                    group.bias = per_channel if group.bias is None else group.bias + per_channel
                elif group.residual is None and constant is None and self.shape(other) == shape:
                    group.residual = other
                else:
                    break
            elif group.activation is None and (activation := self._activation(following)) is not None:
                group.activation = activation
            else:
                break
            group.nodes.append(following)
        return group

    def _gelu(self, x: str) -> list[onnx.NodeProto]:
        """The nodes that compute x / 2 (1 + erf(x / sqrt(2))) as exporters write it; none where these do not follow."""
        samples: dict[str, NDArray[np.float64]] = {x: np.linspace(-4, 4, 9)}
        nodes: list[onnx.NodeProto] = []

        def operand(name: str) -> NDArray[np.float64] | None:
            constant = self.array(name)
            return constant.astype(np.float64) if constant is not None and constant.size == 1 else samples.get(name)

        while len(nodes) < _GELU_NODES:
            readers = [node for name in samples for node in self.readers[name] if node.output[0] not in samples]
            for node in readers:
                operands = [operand(name) for name in node.input]
                if node.op_type in _GELU_PARTS and all(value is not None for value in operands):
                    break
            else:
                return []
            samples[node.output[0]] = _GELU_PARTS[node.op_type](*operands).reshape(-1)
            nodes.append(node)
        reads = Counter(name for node in nodes for name in node.input)
        inner = [name for name in samples if name != nodes[-1].output[0]]
        expected = samples[x] / 2 * (1 + _erf(samples[x] / math.sqrt(2)))
        same = np.allclose(samples[nodes[-1].output[0]], expected, rtol=1e-6)
        return nodes if same and all(self.uses[name] == reads[name] for name in inner) else []

    def _activation(self, node: onnx.NodeProto) -> Activation | None:
        """The activation `node` is, when a kernel's store can compute it."""
        attributes = attributes_of(node)
        if node.op_type == "Relu":
            return Activation("relu")
        if node.op_type == "LeakyRelu":
            return Activation("leaky_relu", attributes.get("alpha", 0.01))
        if node.op_type == "HardSwish":
            return Activation("hard_swish")
        if node.op_type == "Gelu" and attributes.get("approximate", "none") == "none":
            return Activation("gelu")
        if node.op_type == "HardSigmoid":
            return Activation("hard_sigmoid", attributes.get("alpha", 0.2), attributes.get("beta", 0.5))
        if node.op_type != "Clip":
            return None
        bounds = [attributes.get("min", -math.inf), attributes.get("max", math.inf)]
        for i, name in enumerate(node.input[1:3]):
            if name:
                constant = self.array(name)
                if constant is None:
                    return None
                bounds[i] = float(constant.reshape(()))
        return Activation("clip", *bounds)

    def factor(self, group: Group) -> float:
        """The factor that a product of activations is multiplied by; its node joins the group."""
        product = group.output
        following, rank = self.reader(product), len(self.shape(product) or ())
        if following is None or following.op_type not in ("Div", "Mul") or following.domain not in ("", "ai.onnx"):
            return 1.0
        index = 1 if following.op_type == "Div" or following.input[0] == product else 0
        factor = self.array(following.input[index])
        if factor is None or factor.size != 1 or factor.ndim > rank or not factor.all():
            return 1.0
        group.nodes.append(following)
        value = float(factor.reshape(()))
        return 1 / value if following.op_type == "Div" else value


def known_by(node: onnx.NodeProto) -> str:
    """The first output that a node has: a recurrent layer may leave out its first ones."""
    name: str = next(name for name in node.output if name)
    return name


def channel_constant(constant: NDArray[np.float32], channels: int, axis: int, rank: int) -> NDArray[np.float32] | None:
    """`constant` as one value a channel, None when it varies along another axis or would widen the output."""
    if constant.ndim > rank:
        return None
    shape = (1,) * (rank - constant.ndim) + constant.shape
    if any(d != 1 for i, d in enumerate(shape) if i != rank + axis) or shape[axis] not in (1, channels):
        return None
    return np.ascontiguousarray(np.broadcast_to(constant.reshape(-1), (channels,)))
