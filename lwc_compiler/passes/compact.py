"""The compact pass: neurons and channels that pruning left without inputs or without outputs leave the graph.

A channel is dead when nothing reads it, and also when all of its own inputs are pruned: it is then a constant, which the
bias of its readers takes over (Han et al. 2015, section 3.5). The pass follows channels through the graph: layers make
and read them, everything between hands them on. Channels that meet, in a residual Add for example, stand or fall
together. Whatever the pass does not know keeps its channels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto

from lwc_compiler.model import Model, infer_shapes
from lwc_compiler.passes.normalize import channel_affine
from lwc_compiler.passes.surgeon import Constant, Graph, Node, Tensor, evaluate, rewritten, unique_name

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]

# Computed entry by entry; a second operand may be a constant or another tensor.
_ELEMENTWISE = frozenset(
    {"Abs", "Add", "Celu", "Clip", "Div", "Dropout", "Elu", "Erf", "Exp", "Gelu", "HardSigmoid", "HardSwish"}
    | {"Identity", "LeakyRelu", "Log", "Max", "Mean", "Min", "Mish", "Mul", "Neg", "PRelu", "Pow", "Relu", "Selu"}
    | {"Sigmoid", "Softplus", "Softsign", "Sqrt", "Sub", "Sum", "Swish", "Tanh", "ThresholdedRelu"}
)
_POOLS = frozenset({"MaxPool", "AveragePool", "GlobalMaxPool", "GlobalAveragePool"})
_RESHAPES = frozenset({"Flatten", "Reshape", "Squeeze", "Unsqueeze"})


def compact(model: Model) -> Model:
    """Removes dead neurons and channels. Outputs stay the same up to float32 rounding; inputs and outputs keep shape.

    Expects a normalized graph. Layers whose weight several nodes share, and grouped convolutions that are not
    depthwise, keep their channels, and so does everything tied to them. Every layer keeps at least one channel. The
    provenance lists each weight that became smaller, with its shape before and after.
    """
    before = _weight_shapes(model.proto)
    proto, masks = model.proto, dict(model.masks)
    while True:
        surgery = _Surgery()
        smaller = rewritten(proto, surgery)
        if not surgery.cuts:
            break
        for name, axis, keep in surgery.cuts:
            if name in masks:
                masks[name] = masks[name].compress(keep, axis)
        kept = [info for info in smaller.graph.value_info if info.name not in surgery.reshaped]
        del smaller.graph.value_info[:]
        smaller.graph.value_info.extend(kept)
        proto = infer_shapes(smaller)
    after = _weight_shapes(proto)
    layers = [
        {"weight": name, "shape_before": list(before[name]), "shape": list(shape)}
        for name, shape in after.items()
        if name in before and before[name] != shape
    ]
    return replace(model, masks=masks).after("compact", proto, options={}, layers=layers)


def _weight_shapes(proto: ModelProto) -> dict[str, tuple[int, ...]]:
    return {tensor.name: tuple(tensor.dims) for tensor in proto.graph.initializer}


@dataclass(frozen=True)
class _Channels:
    """What is known of the channels of one tensor.

    Attributes:
        axis: the dimension that counts channels.
        rank: number of dimensions of the tensor.
        slots: (channels,) channels with the same slot are removed together or not at all.
        value: (channels,) the value a channel has everywhere, NaN when it is not constant.
        needed: (channels,) whether an output of the graph depends on it; filled in backwards.
    """

    axis: int
    rank: int
    slots: Ints
    value: Floats
    needed: Bools

    def passed_on(self, value: Floats, *, axis: int | None = None, rank: int | None = None, times: int = 1) -> _Channels:
        """The channels of a tensor that these become, each one `times` in a row."""
        return _Channels(
            self.axis if axis is None else axis,
            self.rank if rank is None else rank,
            self.slots.repeat(times),
            value.repeat(times),
            np.zeros(len(value) * times, np.bool_),
        )


@dataclass
class _Layer:
    """A node that reads one set of channels and makes another: y = W x + b over channels.

    Attributes:
        source: channels of its input; None when they are not followed.
        result: channels of its output.
        rows: axis of the weight that counts output channels.
        columns: axis of the weight that counts input channels.
        uniform: a constant input channel adds the same everywhere (no padding).
    """

    node: Node
    source: _Channels | None
    result: _Channels
    rows: int
    columns: int
    uniform: bool

    @property
    def matrix(self) -> NDArray[Any]:
        """The weight as (output channels, input channels, rest)."""
        weight = np.moveaxis(self.node.inputs[1].values, (self.rows, self.columns), (0, 1))
        return weight.reshape(*weight.shape[:2], -1)


@dataclass
class _Surgery:
    """One round of the pass on one graph.

    Attributes:
        cuts: initializer name, axis, entries kept: what was cut, in order.
        reshaped: tensors whose shape changed.
    """

    cuts: list[tuple[str, int, Bools]] = field(default_factory=list)
    reshaped: set[str] = field(default_factory=set)

    def __call__(self, graph: Graph) -> None:
        self.graph = graph
        self.channels: dict[int, _Channels] = {}
        self.layers: list[_Layer] = []
        self.passing: list[Node] = []  # nodes that hand channels on
        self.parent = np.zeros(0, np.int64)  # union-find over slots
        self.blocked: set[int] = set()
        for node in graph.nodes:
            self._forward(node)
        self._backward()
        removed = self._removable()
        if removed.any():
            self._cut(removed)

    # Slots.

    def _new_slots(self, count: int) -> Ints:
        slots = np.arange(len(self.parent), len(self.parent) + count)
        self.parent = np.concatenate([self.parent, slots])
        return slots

    def _roots(self, slots: Ints) -> Ints:
        roots = self.parent[slots]
        while (roots != self.parent[roots]).any():
            roots = self.parent[roots]
        return roots

    def _tie(self, first: Ints, second: Ints) -> None:
        for a, b in zip(first.tolist(), second.tolist(), strict=True):
            root_a, root_b = self._roots(np.array([a, b])).tolist()
            self.parent[max(root_a, root_b)] = min(root_a, root_b)

    def _block(self, tensor: Tensor) -> None:
        channels = self.channels.get(id(tensor))
        if channels is not None:
            channels.needed[:] = True
            self.blocked.update(channels.slots.tolist())
