"""The compact pass: neurons and channels that pruning left without inputs or without outputs leave the graph.

A channel is dead when nothing reads it, and also when all of its own inputs are pruned: it is then a constant, which
the bias of its readers takes over (Han et al. 2015, section 3.5). The pass follows channels through the graph: layers
make and read them, everything between hands them on. Channels that meet, in a residual Add for example, stand or fall
together. Whatever the pass does not know keeps its channels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, numpy_helper

from lwc_compiler.model import Model, infer_shapes
from lwc_compiler.passes.normalize import channel_affine
from lwc_compiler.passes.sites import find_sites
from lwc_compiler.passes.surgeon import Constant, Graph, Node, Tensor, evaluate, rewritten, unique_name

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]

# Computed entry by entry; a second operand may be a constant or another tensor.
_ELEMENTWISE = frozenset(
    {"Abs", "Add", "Celu", "Clip", "Div", "Elu", "Erf", "Exp", "Gelu", "HardSigmoid", "HardSwish", "Identity"}
    | {"LeakyRelu", "Log", "Max", "Mean", "Min", "Mish", "Mul", "Neg", "PRelu", "Pow", "Relu", "Selu"}
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


def prune_dead(model: Model) -> Model:
    """Masks the remaining connections of neurons that `compact` would remove (Han et al. 2015, section 3.5).

    The model keeps its shape, and its outputs up to rounding: what a constant neuron adds goes into the biases of its
    readers. Weights without a mask get one when they lose connections. A model in which that takes more than new values
    (a reader that has no bias, or scales it) is left as it is.
    """
    tensors = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.proto.graph.initializer}
    # Masks follow the cuts: with the place of every entry in place of a mask, they say what is left.
    places: dict[str, Any] = {name: np.arange(array.size).reshape(array.shape) for name, array in tensors.items()}
    small = compact(replace(model, masks=places))
    left = {tensor.name: numpy_helper.to_array(tensor) for tensor in small.proto.graph.initializer}
    gemms = [node for node in model.proto.graph.node if node.op_type == "Gemm"]
    scaled = any(item.name == "beta" and item.f != 1 for node in gemms for item in node.attribute)
    fits = all(name in tensors and array.size == small.masks[name].size for name, array in left.items())
    if scaled or not fits:
        return model
    masks, proto = dict(model.masks), ModelProto()
    proto.CopyFrom(model.proto)
    sites = {site.weight for site in find_sites(model.proto)}
    for tensor in proto.graph.initializer:
        before, after = tensors[tensor.name], left.get(tensor.name)
        if after is None or after.dtype != np.float32:
            continue
        # Of what is cut, only weights become 0: a divisor or a variance of a dead channel must not.
        full = np.zeros(before.size, np.float32) if tensor.name in sites else before.flatten()
        full[small.masks[tensor.name].ravel()] = after.ravel()
        if after.shape == before.shape and np.array_equal(full.reshape(before.shape), before):
            continue
        tensor.CopyFrom(numpy_helper.from_array(full.reshape(before.shape), tensor.name))
        if tensor.name in sites:
            alive = np.zeros(before.size, np.bool_)
            alive[small.masks[tensor.name].ravel()] = True
            masks[tensor.name] = masks.get(tensor.name, np.True_) & alive.reshape(before.shape)
    return replace(model, proto=proto, masks=masks)


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

    @staticmethod
    def of(axis: int, rank: int, slots: Ints, value: Floats) -> _Channels:
        return _Channels(axis, rank, slots, value, np.zeros(len(slots), np.bool_))


@dataclass(frozen=True)
class _Layer:
    """A node that reads one set of channels and makes another: y = W x + b over channels.

    Attributes:
        source: channels of its input; None when they are not followed.
        result: channels of its output.
        rows: axis of the weight that counts output channels.
        columns: axis of the weight that counts input channels.
        uniform: a constant input channel adds the same everywhere: there is no padding.
    """

    node: Node
    source: _Channels | None
    result: _Channels
    rows: int
    columns: int
    uniform: bool

    def matrix(self) -> NDArray[Any]:
        """The weight as (output channels, input channels, rest)."""
        weight: NDArray[Any] = np.moveaxis(self.node.inputs[1].values, (self.rows, self.columns), (0, 1))
        return weight.reshape(*weight.shape[:2], -1)

    def used(self) -> Bools:
        """(output channels, input channels): which input makes a difference to which output."""
        used: Bools = (self.matrix() != 0).any(axis=2)
        return used

    def contribution(self, value: Floats, among: Bools) -> Floats:
        """(output channels,) what the constant input channels `among` add, bias apart."""
        among = among & (value != 0)
        sums = self.matrix()[:, among].sum(axis=2, dtype=np.float64)
        added: Floats = self.node.attrs.get("alpha", 1.0) * (sums @ value[among])
        return added


@dataclass(frozen=True)
class _Passage:
    """A node that hands channels on.

    Attributes:
        sources: channels of its inputs, and where each one's channels start in the result.
        result: channels of its output.
        times: entries of the result that one input channel becomes, in a row.
        operands: input slot and axis of the constants that hold one entry a channel.
    """

    node: Node
    sources: tuple[tuple[_Channels, int], ...]
    result: _Channels
    times: int = 1
    operands: tuple[tuple[int, int], ...] = ()


class _Slots:
    """Sets of channels that can only go together, as a union-find forest."""

    def __init__(self) -> None:
        self._parent: list[int] = []
        self._kept: set[int] = set()

    def new(self, count: int) -> Ints:
        first = len(self._parent)
        self._parent.extend(range(first, first + count))
        return np.arange(first, first + count)

    def root(self, slot: int) -> int:
        while self._parent[slot] != slot:
            self._parent[slot] = slot = self._parent[self._parent[slot]]
        return slot

    def tie(self, first: Ints, second: Ints) -> None:
        for a, b in zip(first.tolist(), second.tolist(), strict=True):
            self._parent[self.root(b)] = self.root(a)

    def keep(self, slots: Ints) -> None:
        self._kept.update(np.unique(slots).tolist())

    def kept(self) -> Bools:
        """(slots,) whether the slot, or one tied to it, has to stay."""
        roots = {self.root(slot) for slot in self._kept}
        return np.array([self.root(slot) in roots for slot in range(len(self._parent))], np.bool_)


class _Surgery:
    """One round of the pass on one graph.

    Attributes:
        cuts: initializer name, axis, entries kept: what was cut, in order.
        reshaped: names of the tensors whose shape changed.
    """

    def __init__(self) -> None:
        self.cuts: list[tuple[str, int, Bools]] = []
        self.reshaped: set[str] = set()

    def __call__(self, graph: Graph) -> None:
        self.graph = graph
        self.slots = _Slots()
        self.channels: dict[str, _Channels] = {}
        self.steps: list[_Layer | _Passage] = []
        self.fixed = {tensor.name for tensor in graph.outputs}
        for subgraph in graph.subgraphs(recursive=True):
            self.fixed |= set(subgraph.tensors())
        for node in graph.nodes:
            self._follow(node)
        for step in reversed(self.steps):
            self._need(step)
        self._cut()

    # Forwards: which channels go where, and which are constant.

    def _follow(self, node: Node) -> None:
        step: _Layer | _Passage | None = None
        if not node.domain and sum(not tensor.is_empty() for tensor in node.outputs) == 1:
            if node.op in ("Conv", "ConvTranspose", "Gemm", "MatMul"):
                step = self._depthwise(node) or self._layer(node)
            elif node.op in _ELEMENTWISE:
                step = self._elementwise(node)
            elif node.op == "BatchNormalization":
                step = self._batch_norm(node)
            elif node.op in _POOLS:
                step = self._pool(node)
            elif node.op == "ReduceMean":
                step = self._spatial_mean(node)
            elif node.op in _RESHAPES:
                step = self._reshape(node)
            elif node.op == "Concat":
                step = self._concat(node)
        if step is None:
            for tensor in node.inputs:
                self._fix(self.channels.get(tensor.name))
            return
        self.steps.append(step)
        name = node.outputs[0].name
        self.channels[name] = step.result
        if name in self.fixed:
            self._fix(step.result)

    def _fix(self, channels: _Channels | None) -> None:
        if channels is not None:
            channels.needed[:] = True
            self.slots.keep(channels.slots)

    def _source(self, node: Node, axis: int = 1) -> _Channels | None:
        channels = self.channels.get(node.inputs[0].name)
        return channels if channels is not None and channels.axis == axis else None

    def _layer(self, node: Node) -> _Layer | None:
        weight, bias = node.inputs[1], _bias(node)
        if (
            not _is_own(weight)
            or weight.name in self.fixed
            or node.attrs.get("group", 1) != 1
            or node.attrs.get("transA", 0)
        ):
            return None
        if bias is not None and not (isinstance(bias, Constant) and bias.values.size in (1, *bias.shape[-1:])):
            return None
        axis, rank, rows, columns, uniform = 1, len(weight.shape), 0, 1, True
        if node.op == "Conv":
            uniform = not _is_padded(node)
        elif node.op == "ConvTranspose":
            rows, columns, uniform = 1, 0, False
        elif node.op == "Gemm":
            rows, columns = (0, 1) if node.attrs.get("transB", 0) else (1, 0)
        else:
            if rank != 2 or node.inputs[0].shape is None or len(node.inputs[0].shape) < 2:
                return None
            rank, rows, columns = len(node.inputs[0].shape), 1, 0
            axis = rank - 1
        source = self._source(node, axis)
        if source is None:
            self._fix(self.channels.get(node.inputs[0].name))
        count = weight.shape[rows]
        result = _Channels.of(axis, rank, self.slots.new(count), np.full(count, np.nan))
        layer = _Layer(node, source, result, rows, columns, uniform)
        known = np.zeros(weight.shape[columns], np.bool_) if source is None else _constant_to(source.value, uniform)
        is_constant = ~layer.used()[:, ~known].any(axis=1)
        if is_constant.any():
            value = _bias_values(node, count)
            if source is not None:
                value = value + layer.contribution(source.value, known)
            result.value[is_constant] = value[is_constant]
        return layer

    def _depthwise(self, node: Node) -> _Passage | None:
        weight, bias, source = node.inputs[1], _bias(node), self._source(node)
        group = node.attrs.get("group", 1)
        if (
            node.op != "Conv"
            or group == 1
            or source is None
            or not _is_own(weight)
            or tuple(weight.shape[:2]) != (group, 1)
        ):
            return None
        if len(source.slots) != group or (bias is not None and not isinstance(bias, Constant)):
            return None
        filters = weight.values.reshape(group, -1)
        inputs = np.where(filters.any(axis=1), source.value, 0)
        value = inputs * filters.sum(axis=1, dtype=np.float64) + _bias_values(node, group)
        value[~_constant_to(inputs, not _is_padded(node))] = np.nan
        operands = ((1, 0),) if bias is None else ((1, 0), (2, 0))
        return self._passage(node, source, value, operands=operands)

    def _elementwise(self, node: Node) -> _Passage | None:
        followed = [channels for tensor in node.inputs if (channels := self.channels.get(tensor.name)) is not None]
        if not followed:
            return None
        first = followed[0]
        count, axis, rank = len(first.slots), first.axis, first.rank
        if any((len(other.slots), other.axis, other.rank) != (count, axis, rank) for other in followed):
            return None
        operands, columns = [], []
        for slot, tensor in enumerate(node.inputs):
            if tensor.is_empty():
                continue
            if (channels := self.channels.get(tensor.name)) is not None:
                columns.append(channels.value)
                continue
            if not isinstance(tensor, Constant) or len(tensor.shape) > rank:
                return None
            own_axis = axis - rank + len(tensor.shape)
            size = tensor.shape[own_axis] if own_axis >= 0 else 1
            if size not in (1, count):
                return None
            if size == count > 1:
                operands.append((slot, own_axis))
            by_channel = tensor.values.size == size
            columns.append(tensor.values.reshape(-1 if size > 1 else ()) if by_channel else np.full(count, np.nan))
        for other in followed[1:]:
            self.slots.tie(first.slots, other.slots)
        value = self._computed(node, columns, count)
        sources = tuple((channels, 0) for channels in followed)
        return _Passage(node, sources, _Channels.of(axis, rank, first.slots, value), operands=tuple(operands))

    def _computed(self, node: Node, columns: Sequence[NDArray[Any]], count: int) -> Floats:
        """(channels,) the node's value where all of its inputs are constant, NaN elsewhere."""
        value = np.full(count, np.nan)
        known = ~np.any([np.broadcast_to(np.isnan(column), count) for column in columns], axis=0)
        if known.any():
            dtype = node.outputs[0].dtype or np.float32
            inputs = [column.astype(dtype) if column.ndim == 0 else column[known].astype(dtype) for column in columns]
            results = evaluate(node, inputs, self.graph)
            if results is not None and results[0].shape == (known.sum(),):
                value[known] = results[0]
        if node.op == "Mul":
            value[np.any([np.broadcast_to(column == 0, count) for column in columns], axis=0)] = 0
        return value

    def _batch_norm(self, node: Node) -> _Passage | None:
        source = self._source(node)
        affine = None if source is None else channel_affine(node, node.inputs[0], source.rank)
        if source is None or affine is None:
            return None
        scale, shift = affine
        value = np.where(scale == 0, shift, source.value * scale + shift)
        return self._passage(node, source, value, operands=tuple((slot, 0) for slot in range(1, 5)))

    def _pool(self, node: Node) -> _Passage | None:
        source = self._source(node)
        if source is None:
            return None
        exact = node.op != "AveragePool" or not (
            node.attrs.get("ceil_mode", 0) or (node.attrs.get("count_include_pad", 0) and _is_padded(node))
        )
        return self._passage(node, source, np.where(_constant_to(source.value, exact), source.value, np.nan))

    def _spatial_mean(self, node: Node) -> _Passage | None:
        source = self._source(node)
        axes: Any = node.attrs.get("axes")
        if len(node.inputs) > 1 and isinstance(node.inputs[1], Constant):
            axes = node.inputs[1].values.tolist()
        if source is None or not axes or any(axis % source.rank < 2 for axis in axes):
            return None
        rank = source.rank if node.attrs.get("keepdims", 1) else source.rank - len(axes)
        result = _Channels.of(1, rank, source.slots, source.value)
        return _Passage(node, ((source, 0),), result)

    def _reshape(self, node: Node) -> _Passage | None:
        """(N, C, ...) to (N, C, ...) or to (N, C * ...)."""
        source, before, after = self._source(node), node.inputs[0].shape, node.outputs[0].shape
        if source is None or before is None or after is None or len(after) < 2:
            return None
        if not all(isinstance(size, int) for size in (*before[1:], *after[1:])):
            return None
        if node.op == "Reshape" and not isinstance(node.inputs[1], Constant):
            return None
        inner, inner_after = math.prod(before[2:]), math.prod(after[2:])
        if after[1] == before[1] and inner == inner_after:
            times = 1
        elif inner_after == 1 and after[1] == before[1] * inner:
            times = inner
        else:
            return None
        value = source.value.repeat(times)
        result = _Channels.of(1, len(after), source.slots.repeat(times), value)
        return _Passage(node, ((source, 0),), result, times)

    def _concat(self, node: Node) -> _Passage | None:
        rank = next((len(tensor.shape) for tensor in node.inputs if tensor.shape is not None), 0)
        axis = node.attrs["axis"] % rank if rank else 0
        if not any(tensor.name in self.channels for tensor in node.inputs):
            return None
        parts, start = [], 0
        for tensor in node.inputs:
            channels = self.channels.get(tensor.name)
            if channels is None:
                if tensor.shape is None or not isinstance(tensor.shape[axis], int):
                    return None
                count = tensor.shape[axis]
                channels = _Channels.of(axis, rank, self.slots.new(count), np.full(count, np.nan))
                self._fix(channels)
            if channels.axis != axis:
                return None
            parts.append((channels, start))
            start += len(channels.slots)
        slots = np.concatenate([channels.slots for channels, _ in parts])
        value = np.concatenate([channels.value for channels, _ in parts])
        return _Passage(node, tuple(parts), _Channels.of(axis, rank, slots, value))

    def _passage(
        self, node: Node, source: _Channels, value: Floats, operands: tuple[tuple[int, int], ...] = ()
    ) -> _Passage:
        result = _Channels.of(source.axis, source.rank, source.slots, value)
        return _Passage(node, ((source, 0),), result, operands=operands)

    # Backwards: which channels an output depends on.

    def _need(self, step: _Layer | _Passage) -> None:
        if isinstance(step, _Passage):
            needed = step.result.needed & np.isnan(step.result.value)
            for source, start in step.sources:
                part = needed[start : start + len(source.slots) * step.times]
                source.needed[:] |= part.reshape(-1, step.times).any(axis=1)
        elif step.source is not None:
            read = step.used()[step.result.needed].any(axis=0)
            step.source.needed[:] |= read
            # A constant whose contribution is not the same everywhere cannot move into the bias.
            self.slots.keep(step.source.slots[read & ~_constant_to(step.source.value, step.uniform)])

    # The cut.

    def _cut(self) -> None:
        for channels in self.channels.values():
            self.slots.keep(channels.slots[channels.needed & np.isnan(channels.value)])
        kept = self.slots.kept()
        for channels in self.channels.values():  # an empty tensor is no tensor: one channel stays
            if not kept[channels.slots].any():
                self.slots.keep(channels.slots[:1])
                kept = self.slots.kept()
        if kept.all():
            return
        self.reshaped = {name for name, channels in self.channels.items() if not kept[channels.slots].all()}
        self.taken = set(self.graph.tensors())
        offsets = [offset for step in self.steps if (offset := self._cut_step(step, kept)) is not None]
        for node, bias in offsets:
            self._add_bias(node, bias)

    def _cut_step(self, step: _Layer | _Passage, kept: Bools) -> tuple[Node, Floats] | None:
        """Cuts the constants of one node; a MatMul, which has no bias, returns the one it needs."""
        node, keep = step.node, kept[step.result.slots]
        if isinstance(step, _Passage):
            if keep.all():
                return None
            for slot, axis in step.operands:
                self._compress(node, slot, axis, keep)
            if node.op == "Conv":
                node.attrs["group"] = int(keep.sum())
            if node.op == "Reshape" and node.inputs[1].values[1] > 0:
                shape = node.inputs[1].values.copy()
                shape[1] = keep.sum()
                self._replace(node, 1, shape)
            return None
        bias = _bias_values(node, len(keep))
        moved = np.zeros(len(keep))
        if step.source is not None:
            keep_columns = kept[step.source.slots]
            constant = ~keep_columns & _constant_to(step.source.value, step.uniform)
            moved = step.contribution(step.source.value, constant)
            self._compress(node, 1, step.columns, keep_columns)
        self._compress(node, 1, step.rows, keep)
        if keep.all() and not moved.any():
            return None
        if node.op == "MatMul":
            return (node, moved[keep]) if moved[keep].any() else None
        if _bias(node) is not None or moved.any():
            node.attrs.pop("beta", None)
            values = (bias + moved)[keep].astype(node.inputs[1].values.dtype)
            if _bias(node) is None:
                node.inputs = [
                    *node.inputs[:2],
                    Constant(unique_name(f"{node.inputs[1].name}_bias", self.taken), values),
                ]
            else:
                name = self._replace(node, 2, values)
                if not keep.all():
                    self.cuts.append((name, -1, keep))
        return None

    def _compress(self, node: Node, slot: int, axis: int, keep: Bools) -> None:
        if not keep.all():
            name = self._replace(node, slot, node.inputs[slot].values.compress(keep, axis))
            self.cuts.append((name, axis, keep))

    def _replace(self, node: Node, slot: int, values: NDArray[Any]) -> str:
        """Gives the node another constant; other nodes that read the old one keep it."""
        if len(node.inputs[slot].outputs) == 1:
            node.inputs[slot].values = values
        else:
            node.inputs[slot] = Constant(unique_name(node.inputs[slot].name, self.taken), values)
        return str(node.inputs[slot].name)

    def _add_bias(self, node: Node, offset: Floats) -> None:
        """Adds `offset` (features,) behind a MatMul: in the Add that follows, or in one of its own."""
        result = node.outputs[0]
        offset = offset.astype(node.inputs[1].values.dtype)
        reader = result.outputs[0] if len(result.outputs) == 1 and result.name not in self.fixed else None
        if reader is not None and reader.op == "Add" and not reader.domain:
            slot = 1 if reader.inputs[0] is result else 0
            if isinstance(reader.inputs[slot], Constant):
                self._replace(reader, slot, reader.inputs[slot].values + offset)
                return
        product = type(result)(unique_name(f"{result.name}_product", self.taken), dtype=result.dtype)
        node.outputs[0] = product
        bias = Constant(unique_name(f"{node.inputs[1].name}_bias", self.taken), offset)
        self.graph.layer(op="Add", inputs=[product, bias], outputs=[result])


def _constant_to(value: Floats, uniform: bool) -> Bools:
    """(channels,) which are constant to a reader, also at the borders: zeros, and all others when it pads nothing."""
    constant: Bools = ~np.isnan(value) if uniform else value == 0
    return constant


def _is_own(tensor: Tensor) -> bool:
    return isinstance(tensor, Constant) and len(tensor.outputs) == 1


def _bias(node: Node) -> Tensor | None:
    return node.inputs[2] if len(node.inputs) > 2 and not node.inputs[2].is_empty() else None


def _bias_values(node: Node, count: int) -> Floats:
    bias = _bias(node)
    values = np.zeros(1) if bias is None else bias.values.reshape(-1) * np.float64(node.attrs.get("beta", 1.0))
    return np.broadcast_to(values, count)


def _is_padded(node: Node) -> bool:
    return any(node.attrs.get("pads", ())) or node.attrs.get("auto_pad", "NOTSET") not in ("NOTSET", "VALID")
