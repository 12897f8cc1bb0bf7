"""Keeps the values around sparse layers on tokens in the order of axes that their kernels want.

A sparse layer wants the tokens in its vectors: (..., features, tokens) in memory, where the graph has (..., tokens,
features). Transposing before and after each layer would cost a tenth of a transformer's time. So here a value may be
stored in another order of its axes than the graph gives it: a sparse layer stores its result the way it computes it,
Transpose is only a change of names, and elementwise operators, reductions, softmax, reshapes and products of two
activations take the order that their inputs have. A value is transposed where a node cannot do so.
"""

from __future__ import annotations

import math
from collections import defaultdict
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from lwc_compiler.model import attributes_of, infer_shapes
from lwc_compiler.passes.sites import node_label

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

Order = tuple[int, ...]  # axis i in memory is axis order[i] of the graph's value

_FEWEST_TOKENS = 33  # with fewer, kernels for a few rows are as fast
_SPARSE = 0.4  # density from which on a dense product of tokens may be as fast


def reorder_axes(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The same model with sparse layers as products from the left; itself where there is no sparse layer on tokens.

    Names of inputs, outputs, linear nodes and weights stay; weights of rewritten layers are (outputs, inputs).

    Args:
        proto: normalized, static shapes, with value_info for every intermediate.
    """
    rewriter = _Rewriter(proto)
    return infer_shapes(rewriter.result()) if rewriter.layers else proto


class _Rewriter:
    """One pass over a graph's nodes, in their (topological) order."""

    def __init__(self, proto: onnx.ModelProto) -> None:
        self.proto, graph = proto, proto.graph
        self.opset = next(i.version for i in proto.opset_import if i.domain in ("", "ai.onnx"))
        self.constants = {tensor.name: tensor for tensor in graph.initializer}
        self.shapes = {
            value.name: tuple(d.dim_value for d in value.type.tensor_type.shape.dim)
            for value in (*graph.input, *graph.value_info, *graph.output)
            if value.type.tensor_type.elem_type == TensorProto.FLOAT
            and value.type.tensor_type.HasField("shape")
            and all(d.dim_value > 0 for d in value.type.tensor_type.shape.dim)
        }
        self.layers = self.sparse_layers()
        self.nodes: list[onnx.NodeProto] = []
        self.added: dict[str, NDArray[Any]] = {}  # new constants
        # Values in the order they were computed in, where it is not the graph's, or under another name.
        self.stored: dict[str, tuple[str, Order]] = {}
        self.copies: dict[tuple[str, Order], str] = {}

    def sparse_layers(self) -> set[str]:
        """Outputs of the nodes that multiply many rows by a sparse weight, which nothing else reads another way."""
        readers: dict[str, list[onnx.NodeProto]] = defaultdict(list)
        for node in self.proto.graph.node:
            if any(attribute.HasField("g") for attribute in node.attribute):
                return set()  # a branch may read any value
            for name in node.input:
                readers[name].append(node)
        layers: set[str] = set()
        for name, nodes in readers.items():
            ways = {self.sparse_layer(node) for node in nodes}
            if ways in ({(name, False)}, {(name, True)}):
                layers.update(node.output[0] for node in nodes)
        return layers

    def sparse_layer(self, node: onnx.NodeProto) -> tuple[str, bool] | None:
        """Weight of a sparse layer on tokens, and whether it is stored (outputs, inputs); None for any other node."""
        if node.domain not in ("", "ai.onnx") or node.op_type not in ("MatMul", "Gemm"):
            return None
        weight, x, attributes = self.constants.get(node.input[1]), self.shapes.get(node.input[0]), attributes_of(node)
        if weight is None or x is None or len(weight.dims) != 2 or weight.data_type != TensorProto.FLOAT or len(x) < 2:
            return None
        if attributes.get("transA", 0) or attributes.get("alpha", 1.0) != 1.0 or attributes.get("beta", 1.0) != 1.0:
            return None
        if len(node.input) > 2 and node.input[2] not in self.constants:
            return None
        if math.prod(x[:-1]) < _FEWEST_TOKENS:
            return None
        if np.count_nonzero(self.array(node.input[1])) > _SPARSE * math.prod(weight.dims):
            return None
        return node.input[1], bool(attributes.get("transB", 0))

    def result(self) -> onnx.ModelProto:
        for node in self.proto.graph.node:
            if not self.reordered(node):
                self.emit(node, [self.plain(name) for name in node.input], node.output)
        for value in self.proto.graph.output:
            if (name := self.plain(value.name)) != value.name:
                self.nodes.append(helper.make_node("Identity", [name], [value.name], name=f"{value.name} output"))
        used = {name for node in self.nodes for name in node.input} | {v.name for v in self.proto.graph.output}
        constants = [tensor for tensor in self.proto.graph.initializer if tensor.name not in self.added]
        constants += [numpy_helper.from_array(np.ascontiguousarray(a), name) for name, a in self.added.items()]
        graph = helper.make_graph(
            self.nodes,
            self.proto.graph.name,
            self.proto.graph.input,
            self.proto.graph.output,
            [tensor for tensor in constants if tensor.name in used],
            value_info=[v for v in self.proto.graph.value_info if v.name not in self.stored],
        )
        model = onnx.ModelProto()
        model.CopyFrom(self.proto)
        model.graph.CopyFrom(graph)
        return model

    # Values

    def array(self, name: str) -> NDArray[Any]:
        """A constant of the graph. It is copied, so it is asked for only where it is needed."""
        array: NDArray[Any] = numpy_helper.to_array(self.constants[name])
        return array

    def memory(self, name: str) -> tuple[str, Order]:
        """Under which name a value is stored, and in which order."""
        return self.stored.get(name) or (name, tuple(range(len(self.shapes.get(name, ())))))

    def emit(self, node: onnx.NodeProto, inputs: Sequence[str], outputs: Sequence[str], **attributes: Any) -> None:
        """Appends `node` with other inputs and outputs, and attributes in place of its own."""
        new = onnx.NodeProto()
        new.CopyFrom(node)
        new.input[:], new.output[:] = inputs, outputs
        kept = [a for a in new.attribute if a.name not in attributes]
        del new.attribute[:]
        new.attribute.extend([*kept, *(helper.make_attribute(name, value) for name, value in attributes.items())])
        self.nodes.append(new)

    def order(self, name: str) -> Order:
        """The order a value is stored in."""
        return self.memory(name)[1]

    def plain(self, name: str) -> str:
        """The value in the graph's own order."""
        return self.ordered(name, tuple(sorted(self.order(name)))) if name in self.stored else name

    def ordered(self, name: str, order: Order) -> str:
        """The value in another order: transposed, where it is stored in neither."""
        source, stored = self.memory(name)
        if stored == order:
            return source
        if (name, order) not in self.copies:
            identity = order == tuple(range(len(order)))
            copy = name if identity and source != name else _name(name, order)
            perm = [stored.index(axis) for axis in order]
            self.nodes.append(helper.make_node("Transpose", [source], [copy], name=f"{copy} transposed", perm=perm))
            self.copies[name, order] = copy
        return self.copies[name, order]

    def store(self, name: str, order: Order) -> str:
        """What to call the value a node computes in this order."""
        if order == tuple(range(len(order))):
            return name
        self.stored[name] = (_name(name, order), order)
        return self.stored[name][0]

    def constant(self, name: str, value: NDArray[Any]) -> str:
        self.added[name] = value
        return name

    def broadcast(self, name: str, order: Order) -> str:
        """A constant that is combined with values of this order."""
        value = self.array(name)
        if value.size == 1:
            return name
        return self.constant(
            _name(name, order), value.reshape((1,) * (len(order) - value.ndim) + value.shape).transpose(order)
        )

    # Nodes

    def reordered(self, node: onnx.NodeProto) -> bool:
        """Handles a node that can take or give values in another order; False for all others."""
        if node.domain not in ("", "ai.onnx") or not all(name in self.shapes for name in node.output if name):
            return False
        if node.output[0] in self.layers:
            return self.layer(node)
        if node.op_type == "Transpose":
            return self.transpose(node)
        rule = _RULES.get(node.op_type)
        return rule is not None and any(name in self.stored for name in node.input) and rule(self, node)

    def layer(self, node: onnx.NodeProto) -> bool:
        """A sparse layer: weight (N, K) @ x (..., K, tokens)."""
        x, y = node.input[0], node.output[0]
        shape, order = self.shapes[x], self.order(x)
        feature = len(shape) - 1
        rest = [axis for axis in order if axis != feature]
        if order[-1] == feature or rest != sorted(rest):
            # One image in a plane, or all of them where they are small.
            images = 1 if feature > 1 and math.prod(shape[1:-1]) >= _FEWEST_TOKENS else 0
            order = (*range(images), feature, *range(images, feature))
        place = order.index(feature)
        source = self.ordered(x, order)
        weight = self.array(node.input[1])
        weight = weight if attributes_of(node).get("transB", 0) else weight.T
        name = self.constant(node.input[1], weight)
        memory = [shape[axis] for axis in order]
        planes = [math.prod(memory[:place])] if place else []
        planes += [memory[place], math.prod(memory[place + 1 :])]
        if planes != memory:
            source = self.reshape(source, planes, f"{source} in planes")
        bias = node.input[2] if len(node.input) > 2 and node.input[2] else ""
        result = self.store(y, order)
        flat = result if planes == memory else f"{result} in planes"
        product = f"{flat} without bias" if bias else flat
        self.nodes.append(helper.make_node("MatMul", [name, source], [product], name=node_label(node)))
        if bias:
            column = self.constant(_name(bias, (1, 0)), self.array(bias).reshape(-1, 1))
            self.nodes.append(helper.make_node("Add", [product, column], [flat], name=f"{node.name} bias"))
        if planes != memory:
            self.reshape(flat, [self.shapes[y][axis] for axis in order], result)
        return True

    def reshape(self, source: str, shape: Sequence[int], result: str) -> str:
        """Gives a tensor another shape."""
        size = self.constant(f"{result} shape", np.array(shape, np.int64))
        self.nodes.append(helper.make_node("Reshape", [source, size], [result], name=f"{result} reshaped"))
        return result

    def transpose(self, node: onnx.NodeProto) -> bool:
        """The same memory in the order of other axes."""
        x, rank = node.input[0], len(self.shapes[node.output[0]])
        perm = attributes_of(node).get("perm", list(reversed(range(rank))))
        source, order = self.memory(x)
        self.stored[node.output[0]] = (source, tuple(perm.index(axis) for axis in order))
        return True

    def elementwise(self, node: onnx.NodeProto) -> bool:
        rank = len(self.shapes[node.output[0]])
        computed = [name for name in node.input if name and name not in self.constants]
        orders = [self.stored[name][1] for name in computed if name in self.stored]
        if any(len(self.order(name)) != rank or not rank for name in computed):
            return False
        order = next((order for order in orders if order != tuple(range(rank))), None)
        if order is None:
            return False
        inputs = [
            self.broadcast(name, order) if name in self.constants else self.ordered(name, order) if name else ""
            for name in node.input
        ]
        self.emit(node, inputs, [self.store(node.output[0], order)])
        return True

    def reduction(self, node: onnx.NodeProto) -> bool:
        (source, order), attributes = self.memory(node.input[0]), attributes_of(node)
        axes = attributes.get("axes")
        if len(node.input) > 1 and node.input[1]:
            if node.input[1] not in self.constants:
                return False
            axes = self.array(node.input[1]).tolist()
        if not axes:
            return False
        places = [order.index(axis % len(order)) for axis in axes]
        left = order
        if not attributes.get("keepdims", 1):
            kept = [axis for i, axis in enumerate(order) if i not in places]
            left = tuple(sorted(kept).index(axis) for axis in kept)
        result = self.store(node.output[0], left)
        if len(node.input) > 1:
            self.emit(node, [source, self.constant(f"{result} axes", np.array(places, np.int64))], [result])
        else:
            self.emit(node, [source], [result], axes=places)
        return True

    def along_axis(self, node: onnx.NodeProto) -> bool:
        """Softmax, and others with one axis; before opset 13 softmax had another meaning."""
        source, order = self.memory(node.input[0])
        if self.opset < 13:
            return False
        axis = attributes_of(node).get("axis", -1) % len(order)
        self.emit(node, [source], [self.store(node.output[0], order)], axis=order.index(axis))
        return True

    def concatenation(self, node: onnx.NodeProto) -> bool:
        order = next(self.order(name) for name in node.input if name in self.stored)
        if any(name in self.constants for name in node.input):
            return False
        axis = attributes_of(node)["axis"] % len(order)
        inputs = [self.ordered(name, order) for name in node.input]
        self.emit(node, inputs, [self.store(node.output[0], order)], axis=order.index(axis))
        return True

    def split(self, node: onnx.NodeProto) -> bool:
        source, order = self.memory(node.input[0])
        axis = attributes_of(node).get("axis", 0) % len(order)
        outputs = [self.store(name, order) for name in node.output]
        self.emit(node, [source, *node.input[1:]], outputs, axis=order.index(axis))
        return True

    def layer_normalization(self, node: onnx.NodeProto) -> bool:
        """Written out: the operator itself wants the features last in memory."""
        source, order = self.memory(node.input[0])
        attributes, last = attributes_of(node), len(order) - 1
        if order[-1] == last or attributes.get("axis", -1) % len(order) != last or len(node.output) > 1:
            return False
        if any(name and name not in self.constants for name in node.input[1:]):
            return False
        result, axes = self.store(node.output[0], order), [order.index(last)]

        def step(operator: str, *inputs: str, to: str = "") -> str:
            output = to or f"{result} {len(self.nodes)}"
            self.nodes.append(helper.make_node(operator, inputs, [output], name=f"{node.name} {len(self.nodes)}"))
            return output

        def mean(value: str) -> str:
            output = step("ReduceMean", value)
            if self.opset < 18:
                self.nodes[-1].attribute.append(helper.make_attribute("axes", axes))
            else:
                self.nodes[-1].input.append(self.constant(f"{result} axes", np.array(axes, np.int64)))
            return output

        epsilon = self.constant(f"{result} epsilon", np.array(attributes.get("epsilon", 1e-5), np.float32))
        centred = step("Sub", source, mean(source))
        deviation = step("Sqrt", step("Add", mean(step("Mul", centred, centred)), epsilon))
        weights = [self.broadcast(name, order) for name in node.input[1:] if name]
        scaled = step("Mul", step("Div", centred, deviation), weights[0], to="" if len(weights) > 1 else result)
        if len(weights) > 1:
            step("Add", scaled, weights[1], to=result)
        return True

    def reshaped(self, node: onnx.NodeProto) -> bool:
        """A reshape that splits and joins axes which lie side by side in memory, too."""
        source, order = self.memory(node.input[0])
        old, new = self.shapes[node.input[0]], self.shapes[node.output[0]]
        parts = _parts(old, new)
        order_of_parts, place = [], 0
        while place < len(order):
            part = next(p for p, (axes, _) in enumerate(parts) if order[place] in axes)
            axes = parts[part][0]
            if order[place : place + len(axes)] != tuple(axes):
                return False
            order_of_parts.append(part)
            place += len(axes)
        result_order = tuple(axis for part in order_of_parts for axis in parts[part][1])
        self.reshape(source, [new[axis] for axis in result_order], self.store(node.output[0], result_order))
        return True

    def product(self, node: onnx.NodeProto) -> bool:
        """A product of two activations: (A B)^T = B^T A^T, where A or B is there transposed."""
        a, b, rank = node.input[0], node.input[1], len(self.shapes[node.output[0]])
        plain = tuple(range(rank))
        swapped = (*plain[:-2], *plain[-2:][::-1])
        if rank < 2 or any(name in self.constants or len(self.shapes.get(name, ())) != rank for name in (a, b)):
            return False
        if swapped not in (self.order(a), self.order(b)):
            return False
        inputs = [self.ordered(b, swapped), self.ordered(a, swapped)]
        self.emit(node, inputs, [self.store(node.output[0], swapped)])
        return True


def _name(name: str, order: Order) -> str:
    return f"{name} as {','.join(map(str, order))}"


def _parts(old: Sequence[int], new: Sequence[int]) -> list[tuple[range, range]]:
    """The smallest groups of axes of two shapes of the same size that hold the same number of elements each."""
    parts: list[tuple[range, range]] = []
    i = j = 0
    while i < len(old) and j < len(new):
        first, a, second, b = i, old[i], j, new[j]
        i, j = i + 1, j + 1
        while a != b:
            if a < b:
                a, i = a * old[i], i + 1
            else:
                b, j = b * new[j], j + 1
        parts.append((range(first, i), range(second, j)))
    if parts:  # what is left are axes of one element
        parts[-1] = (range(parts[-1][0].start, len(old)), range(parts[-1][1].start, len(new)))
    return parts


_ELEMENTWISE = (
    "Abs", "Add", "Ceil", "Clip", "Div", "Elu", "Erf", "Exp", "Floor", "Gelu", "HardSigmoid", "HardSwish", "LeakyRelu",
    "Log", "Max", "Min", "Mish", "Mul", "Neg", "Pow", "PRelu", "Reciprocal", "Relu", "Selu", "Sigmoid", "Sign",
    "Softplus", "Softsign", "Sqrt", "Sub", "Sum", "Tanh",
)  # fmt: skip
_REDUCTIONS = ("ReduceL1", "ReduceL2", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceSum", "ReduceSumSquare")
_RULES: dict[str, Callable[[_Rewriter, onnx.NodeProto], bool]] = {
    **dict.fromkeys(_ELEMENTWISE, _Rewriter.elementwise),
    **dict.fromkeys(_REDUCTIONS, _Rewriter.reduction),
    **dict.fromkeys(("Softmax", "LogSoftmax"), _Rewriter.along_axis),
    "Concat": _Rewriter.concatenation,
    "LayerNormalization": _Rewriter.layer_normalization,
    "MatMul": _Rewriter.product,
    "Reshape": _Rewriter.reshaped,
    "Split": _Rewriter.split,
}
