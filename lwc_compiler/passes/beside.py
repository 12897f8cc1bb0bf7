"""A part of a network on images, or on blocks of one image, that lie side by side.

A tensor (1, C, H, W) of the network on one image becomes (H, C, W, images), and (1, K) becomes (K, images): a vector
then holds the same position of several images. So no lane is empty, whatever the size of a plane, and every load of a
convolution is aligned, whatever the kernel position. What it costs is that the activations of all the images are
between two layers, so it serves where they are small. Where they are large, a grid of blocks of one image does the same
as so many images: (1, C, H, W) becomes (H / down, C, W / across, down x across).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from lwc_compiler.model import Model, attributes_of
from lwc_compiler.padding import window_pads
from lwc_compiler.passes.images import static_shapes
from lwc_compiler.passes.sites import node_label

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

DOMAIN = "lwc"
CONV = "ConvBeside"  # ONNX `Conv` with the same attributes, but on x (H, C, W, images)

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Stretch:
    """Nodes of a network on one image that follow each other.

    Attributes:
        first: number of the first one.
        stop: number of the first one after them.
        source: the only tensor that they read and none of them computes, (1, C, H, W) or (1, K).
        results: what they compute for others.
    """

    first: int
    stop: int
    source: str
    results: tuple[str, ...]


def images_beside(model: Model, stretch: Stretch, images: int) -> Model | None:
    """A stretch for `images` images side by side; None where an operator has no such form.

    Args:
        model: normalized, static shapes, on one image.
        stretch: of its nodes; the result reads (images, C, H, W) or (images, K), and computes likewise.
        images: how many.
    """
    return _turned(_Writer(model, images, (1, 1)), stretch)


def blocks_beside(model: Model, stretch: Stretch, grid: tuple[int, int]) -> Model | None:
    """A stretch for blocks of an image side by side; None where an operator has no such form, or a size does not fit.

    Args:
        model: normalized, static shapes, on one image.
        stretch: of its nodes; the result reads and computes what they do.
        grid: blocks down and across.
    """
    return _turned(_Writer(model, grid[0] * grid[1], grid), stretch)


def _turned(writer: _Writer, stretch: Stretch) -> Model | None:
    try:
        writer.enter(stretch.source)
        for node in writer.model.proto.graph.node[stretch.first : stretch.stop]:
            rule = _RULES.get(node.op_type) if node.domain in ("", "ai.onnx") else None
            if rule is None:
                return None
            rule(writer, node)
        return writer.finish(stretch.results)
    except _NoFormError:
        return None


class _NoFormError(Exception):
    """A node cannot be computed side by side."""


@dataclass
class _Value:
    """A tensor of the result: its name, and its shape."""

    name: str
    shape: Shape


@dataclass
class _Writer:
    """The result while it grows.

    Attributes:
        model: on one image.
        images: how many images or blocks lie side by side.
        grid: of blocks; (1, 1) for images.
        values: tensor of the model -> where the result has it.
        order: tensor (1, K) of the model -> the order of its elements there, where it is another one.
    """

    model: Model
    images: int
    grid: tuple[int, int]
    values: dict[str, _Value] = field(default_factory=dict)
    order: dict[str, NDArray[np.int64]] = field(default_factory=dict)
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: dict[str, onnx.TensorProto] = field(default_factory=dict)
    infos: list[onnx.ValueInfoProto] = field(default_factory=list)

    def __post_init__(self) -> None:
        graph = self.model.proto.graph
        self.given = {tensor.name: tensor for tensor in graph.initializer}
        self.shapes = static_shapes(graph)

    @property
    def blocks(self) -> bool:
        """Whether they are blocks of one image."""
        return self.grid != (1, 1)

    def outside(self, shape: Shape) -> Shape:
        """The shape of a tensor before it is turned, and after it is turned back."""
        return shape if self.blocks else (self.images, *shape[1:])

    def enter(self, source: str) -> None:
        """Turns the input."""
        shape = self.shapes.get(source, ())
        turned, name = self.turned(shape), f"{source} side by side"
        self.infos.append(_info(source, self.outside(shape)))
        if not self.blocks:
            perm = [2, 1, 3, 0] if len(shape) == 4 else [1, 0]
            self.values[source] = self.add("Transpose", [source], name, turned, perm=perm)
            return
        (down, across), (height, channels, width, _) = self.grid, turned
        value = _reshape(self, _Value(source, shape), (channels, down, height, across, width), f"{name} in blocks")
        order = (height, channels, width, down, across)
        value = self.add("Transpose", [value.name], f"{name} turned", order, perm=[2, 0, 4, 1, 3])
        self.values[source] = _reshape(self, value, turned, name)

    def finish(self, results: tuple[str, ...]) -> Model:
        """Turns the results back."""
        graph = self.model.proto.graph
        outputs = []
        for result in results:
            inner, shape = self.value(result), self.shapes[result]
            if result in self.order:
                raise _NoFormError
            if self.blocks:
                (down, across), (height, channels, width, _) = self.grid, inner.shape
                split = _reshape(self, inner, (height, channels, width, down, across), f"{inner.name} in blocks")
                order = (channels, down, height, across, width)
                split = self.add("Transpose", [split.name], f"{inner.name} turned", order, perm=[1, 3, 0, 4, 2])
                _reshape(self, split, shape, result)
            else:
                perm = [3, 1, 0, 2] if len(shape) == 4 else [1, 0]
                self.add("Transpose", [inner.name], result, self.outside(shape), perm=perm)
            outputs.append(self.infos.pop())
        result_graph = helper.make_graph(
            self.nodes, graph.name, self.infos[:1], outputs, list(self.constants.values()), value_info=self.infos[1:]
        )
        imports = [*self.model.proto.opset_import, helper.make_opsetid(DOMAIN, 1)]
        proto = helper.make_model(result_graph, opset_imports=imports, ir_version=self.model.proto.ir_version)
        return Model(proto, self.model.name)

    def turned(self, shape: Shape) -> Shape:
        """The shape of a tensor side by side."""
        down, across = self.grid
        if len(shape) == 4 and shape[0] == 1 and shape[2] % down == 0 and shape[3] % across == 0:
            return (shape[2] // down, shape[1], shape[3] // across, self.images)
        if len(shape) == 2 and shape[0] == 1 and not self.blocks:
            return (shape[1], self.images)
        raise _NoFormError

    def value(self, name: str) -> _Value:
        """A computed tensor, side by side."""
        if name not in self.values:
            raise _NoFormError
        return self.values[name]

    def constant(self, name: str) -> NDArray[Any]:
        """A constant's value."""
        if name not in self.given:
            raise _NoFormError
        return numpy_helper.to_array(self.given[name])

    def keep(self, name: str) -> str:
        """Takes over a constant as it is."""
        if name:
            self.constants[name] = self.given[name]
        return name

    def put(self, name: str, value: NDArray[Any]) -> str:
        """Adds a constant."""
        self.constants[name] = numpy_helper.from_array(np.ascontiguousarray(value), name)
        return name

    def add(
        self, op: str, inputs: list[str], output: str, shape: Shape, *, name: str = "", domain: str = "", **more: Any
    ) -> _Value:
        """Adds a node with one output."""
        self.nodes.append(helper.make_node(op, inputs, [output], name=name, domain=domain, **more))
        self.infos.append(_info(output, shape))
        return _Value(output, shape)

    def place(self, node: onnx.NodeProto, value: _Value) -> None:
        """Says which tensor of the result is the output of `node`."""
        self.values[node.output[0]] = value

    def inner(self, node: onnx.NodeProto, step: str = "") -> str:
        """The name of a tensor of the result for `node`."""
        return f"{node.output[0]} side by side{step}"


def _info(name: str, shape: Shape) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)


def _conv(w: _Writer, node: onnx.NodeProto) -> None:
    x, shape = w.value(node.input[0]), w.shapes[node.output[0]]
    if len(shape) != 4 or any(name and name not in w.given for name in node.input[1:]):
        raise _NoFormError
    constants = [w.keep(name) for name in node.input[1:]]
    turned = w.turned(shape)
    attributes = attributes_of(node)
    if w.blocks:
        _check_blocks(x.shape, turned, attributes, w.given[node.input[1]].dims[2:])
        attributes["grid"] = list(w.grid)
    label = node_label(node)
    result = w.add(CONV, [x.name, *constants], w.inner(node), turned, name=label, domain=DOMAIN, **attributes)
    w.place(node, result)


def _check_blocks(x: Shape, y: Shape, attributes: dict[str, Any], kernel: Sequence[int]) -> None:
    """Raises unless a block of the output is computed from the same block of the input and its neighbours."""
    strides = attributes.get("strides", [1, 1])
    sizes = (x[0], x[2])
    if (y[0] * strides[0], y[2] * strides[1]) != sizes:
        raise _NoFormError
    before, after = window_pads(attributes, sizes, kernel)
    if any(not 0 <= pad <= size for pad, size in zip((*before, *after), (*sizes, *sizes), strict=True)):
        raise _NoFormError


def _product(w: _Writer, node: onnx.NodeProto) -> None:
    """(1, K) @ (K, O) with its bias as (O, K) @ (K, images)."""
    x, attributes = w.value(node.input[0]), attributes_of(node)
    weight = w.constant(node.input[1])
    if len(x.shape) != 2 or weight.ndim != 2 or attributes.get("transA", 0):
        raise _NoFormError
    if not attributes.get("transB", 0):
        weight = weight.T
    if attributes.get("alpha", 1.0) != 1.0:
        weight = (weight * np.float32(attributes["alpha"])).astype(np.float32)
    if node.input[0] in w.order:
        weight = weight[:, w.order[node.input[0]]]
    shape = (weight.shape[0], w.images)
    name = w.put(f"{node.input[1]} of {node.output[0]}", weight)
    bias = w.constant(node.input[2]) if len(node.input) > 2 and node.input[2] else None
    step = " without bias" if bias is not None else ""
    result = w.add("MatMul", [name, x.name], w.inner(node, step), shape, name=node_label(node))
    if bias is not None:
        column = np.broadcast_to(bias.reshape(-1), (shape[0],)) * np.float32(attributes.get("beta", 1.0))
        name = w.put(f"{node.input[2]} of {node.output[0]}", column.reshape(-1, 1))
        result = w.add("Add", [result.name, name], w.inner(node), shape)
    w.place(node, result)


def _elementwise(w: _Writer, node: onnx.NodeProto) -> None:
    """One computed input, and constants or computed ones that broadcast alike side by side."""
    inputs, orders = [], []
    shape = w.shapes[node.output[0]]
    for name in node.input:
        if name in w.values:
            if len(w.shapes[name]) != len(shape):
                raise _NoFormError
            inputs.append(w.values[name].name)
            orders.append(w.order.get(name))
        elif name:
            inputs.append(_broadcast(w, name, shape, node))
        else:
            inputs.append("")
    given = [order for order in orders if order is not None]
    if given:
        # Elements in another order: every input has to have the same.
        if len(given) != len(orders) or any(not np.array_equal(order, given[0]) for order in given):
            raise _NoFormError
        if any(name in w.given and w.constant(name).size > 1 for name in node.input):
            raise _NoFormError
        w.order[node.output[0]] = given[0]
    attributes = attributes_of(node)
    result = w.add(node.op_type, inputs, w.inner(node), w.turned(shape), name=node.name, **attributes)
    w.place(node, result)


def _broadcast(w: _Writer, name: str, shape: Shape, node: onnx.NodeProto) -> str:
    """A constant as it broadcasts side by side: a number, or one for each channel."""
    value = w.constant(name)
    if value.size == 1:
        return w.keep(name) if value.ndim < len(shape) else w.put(f"{name} of {node.output[0]}", value.reshape(()))
    full = (1,) * (len(shape) - value.ndim) + value.shape
    if len(full) != len(shape) or any(d != 1 for i, d in enumerate(full) if i != 1):
        raise _NoFormError
    return w.put(f"{name} of {node.output[0]}", value.reshape((1, -1, 1, 1) if len(shape) == 4 else (-1, 1)))


def _global_pool(w: _Writer, node: onnx.NodeProto) -> None:
    x, shape = w.value(node.input[0]), w.shapes[node.output[0]]
    if w.blocks:
        raise _NoFormError
    op = "ReduceMean" if node.op_type == "GlobalAveragePool" else "ReduceMax"
    w.place(node, w.add(op, [x.name], w.inner(node), w.turned(shape), axes=[0, 2], keepdims=1))


def _pool(w: _Writer, node: onnx.NodeProto) -> None:
    """A window of pixels is one of columns, then one of rows."""
    x, shape, attributes = w.value(node.input[0]), w.shapes[node.output[0]], attributes_of(node)
    if len(shape) != 4 or len(node.output) > 1 or attributes.get("auto_pad", "NOTSET") not in ("NOTSET", ""):
        raise _NoFormError
    kernel, pads = attributes["kernel_shape"], attributes.get("pads", [0] * 4)
    strides, dilations = attributes.get("strides", [1, 1]), attributes.get("dilations", [1, 1])
    height, channels, _, images = x.shape
    rows, _, width, _ = w.turned(shape)
    if w.blocks and (
        any(pads) or list(kernel) != list(strides) or (rows * kernel[0], width * kernel[1]) != (height, x.shape[2])
    ):
        raise _NoFormError  # windows across the edges of blocks
    shared = {k: v for k, v in attributes.items() if k in ("ceil_mode", "count_include_pad")}

    def window(axis: int) -> dict[str, Any]:
        found = {
            "kernel_shape": [kernel[axis], 1],
            "strides": [strides[axis], 1],
            "pads": [pads[axis], 0, pads[axis + 2], 0],
        }
        return {**found, **shared, **({"dilations": [dilations[axis], 1]} if dilations[axis] != 1 else {})}

    row = channels * width * images
    value = w.add(node.op_type, [x.name], w.inner(node, " columns"), (height, channels, width, images), **window(1))
    value = _reshape(w, value, (1, 1, height, row), w.inner(node, " flat"))
    value = w.add(node.op_type, [value.name], w.inner(node, " rows"), (1, 1, rows, row), **window(0))
    w.place(node, _reshape(w, value, w.turned(shape), w.inner(node)))


def _reshape(w: _Writer, value: _Value, shape: Shape, name: str) -> _Value:
    return w.add("Reshape", [value.name, w.put(f"shape of {name}", np.array(shape, np.int64))], name, shape)


def _flatten(w: _Writer, node: onnx.NodeProto) -> None:
    """(1, C, H, W) to (1, K): side by side the elements come row by row, each with all its channels."""
    x, shape, before = w.value(node.input[0]), w.shapes[node.output[0]], w.shapes[node.input[0]]
    if len(shape) != 2 or shape[0] != 1 or w.blocks:
        raise _NoFormError
    if len(before) == 4:
        order = np.arange(math.prod(before)).reshape(before[1:]).transpose(1, 0, 2).ravel()
        if before[2] > 1:
            w.order[node.output[0]] = order
    elif len(before) != 2:
        raise _NoFormError
    elif node.input[0] in w.order:
        w.order[node.output[0]] = w.order[node.input[0]]
    w.place(node, _reshape(w, x, (shape[1], w.images), w.inner(node)))


def _along_channels(w: _Writer, node: onnx.NodeProto) -> None:
    """Softmax or Concat along dimension 1 of the tensor."""
    shape, attributes = w.shapes[node.output[0]], attributes_of(node)
    rank = len(shape)
    default = -1 if node.op_type != "Concat" else 1
    if attributes.get("axis", default) % rank != 1 or any(name in w.order for name in node.input):
        raise _NoFormError
    inputs = [w.value(name).name for name in node.input]
    attributes["axis"] = 1 if rank == 4 else 0
    w.place(node, w.add(node.op_type, inputs, w.inner(node), w.turned(shape), name=node.name, **attributes))


_UNARY_AND_BINARY = (
    "Abs", "Add", "Clip", "Div", "Elu", "Erf", "Exp", "Gelu", "HardSigmoid", "HardSwish", "LRN", "LeakyRelu", "Max",
    "Min", "Mul", "Neg", "Relu", "Sigmoid", "Softplus", "Sqrt", "Sub", "Tanh",
)  # fmt: skip
_RULES: dict[str, Callable[[_Writer, onnx.NodeProto], None]] = {
    **dict.fromkeys(_UNARY_AND_BINARY, _elementwise),
    **dict.fromkeys(("MaxPool", "AveragePool"), _pool),
    **dict.fromkeys(("GlobalAveragePool", "GlobalMaxPool"), _global_pool),
    **dict.fromkeys(("Softmax", "LogSoftmax", "Concat"), _along_channels),
    **dict.fromkeys(("Flatten", "Reshape"), _flatten),
    "Conv": _conv,
    "Gemm": _product,
    "MatMul": _product,
}
