"""Takes the linear layers out of an ONNX graph: each becomes one `LwcLayer` node with a plan of our own kernels.

A layer is a Conv, ConvTranspose, Gemm or MatMul with what follows it as long as nothing else reads what is in between:
a bias, one residual Add and an activation are computed where the kernel stores its result. Chains of a depthwise
convolution and pointwise ones become one layer where one kernel for all is faster. MatMuls of two activations
(attention) become layers too. Everything works on float32 with static shapes; what does not fit is left to Relax, and
for a GPU so are these chains, ConvTranspose, and transpositions of activations that no product takes in.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import helper
from tvm import relax

from lwc_compiler.codegen.converters import input_name
from lwc_compiler.codegen.device_products import DeviceProducts
from lwc_compiler.codegen.layer_groups import Graph, Group, channel_constant, known_by
from lwc_compiler.codegen.result import LayerDecision
from lwc_compiler.kernels.choice import Pick, predicted
from lwc_compiler.kernels.conv import plan_conv, plan_conv_transpose
from lwc_compiler.kernels.kernel import Plan, Share
from lwc_compiler.kernels.layer import ConvGeometry
from lwc_compiler.kernels.matmul import plan_batched_matmul, plan_matmul, plan_transpose
from lwc_compiler.kernels.pooled import Pool
from lwc_compiler.kernels.pooled_plan import plan_pooled
from lwc_compiler.kernels.recurrence import STATES, Recurrence
from lwc_compiler.kernels.recurrent import plan_recurrent
from lwc_compiler.kernels.separable_plan import Part, fits, plan_separable
from lwc_compiler.model import attributes_of
from lwc_compiler.padding import window_pads
from lwc_compiler.passes.beside import CONV, DOMAIN
from lwc_compiler.passes.recurrent import RECURRENT, activations, directions, is_plain, misfit
from lwc_compiler.passes.sites import node_label

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from lwc_compiler.codegen.converters import Node
    from lwc_compiler.targets.target import Target

_SMALL_MATRIX = 16  # rows or columns below which a kernel for transposing gains nothing
_OPERATOR = "LwcLayer"
_EXTERN = "lwc.layer."


@dataclass(frozen=True)
class Layer:
    """One linear layer, or several that one plan computes.

    Attributes:
        nodes: the ONNX nodes.
        plan: how they are computed; its inputs are the inputs of the `LwcLayer` node.
        decisions: what the report says about each; none for a product of two activations, which has no weights.
    """

    nodes: tuple[str, ...]
    plan: Plan
    decisions: tuple[LayerDecision, ...]


def extract_layers(
    proto: onnx.ModelProto, target: Target, pick: Pick = predicted
) -> tuple[onnx.ModelProto, list[Layer]]:
    """A copy of `proto` in which layer i is the node `lwc.LwcLayer(index=i)`, and the layers.

    Args:
        proto: normalized, static shapes, with value_info for every intermediate.
        target: what the plans are made for.
        pick: chooses among the ways to compute a layer.
    """
    return _Extraction(proto, target, pick).result()


def layer_call(node: Node) -> list[relax.Expr] | None:
    """The outputs of the Relax call that stands for an `LwcLayer` node, None for any other node.

    `layer_index` reads the call back.
    """
    if (node.proto.domain, node.proto.op_type) != (DOMAIN, _OPERATOR):
        return None
    name = f"{_EXTERN}{node.attribute('index')}"
    results = [relax.TensorType(node.attribute(f"shape_{i}"), "float32") for i in range(len(node.proto.output))]
    made = node.emit(relax.op.call_dps_packed(name, relax.Tuple(node.exprs()), results))
    return [made] if len(results) == 1 else [node.emit(relax.TupleGetItem(made, i)) for i in range(len(results))]


def layer_of(node: onnx.NodeProto) -> int | None:
    """The layer an `LwcLayer` node stands for, None for any other node."""
    if (node.domain, node.op_type) != (DOMAIN, _OPERATOR):
        return None
    return int(attributes_of(node)["index"])


def layer_index(function: str) -> int | None:
    """The layer an external function of a Relax module stands for, None for any other function."""
    return int(function.removeprefix(_EXTERN)) if function.startswith(_EXTERN) else None


class _Extraction:
    """One pass over a graph's nodes, in their (topological) order."""

    def __init__(self, proto: onnx.ModelProto, target: Target, pick: Pick) -> None:
        self.proto, self.target, self.pick = proto, target, pick
        self.graph = Graph(proto)
        self.layers: list[Layer] = []

    def result(self) -> tuple[onnx.ModelProto, list[Layer]]:
        for node in self.proto.graph.node:
            start = _STARTS.get((node.domain if node.domain != "ai.onnx" else "", node.op_type))
            if start is not None and not self.graph.taken(node):
                start(self, node)
        kept = [node for node in self.proto.graph.node if known_by(node) not in self.graph.dropped]
        nodes = [self.graph.replaced.get(known_by(node), node) for node in kept]
        used = {name for node in nodes for name in node.input} | {v.name for v in self.proto.graph.output}
        graph = helper.make_graph(
            nodes,
            self.proto.graph.name,
            self.proto.graph.input,
            self.proto.graph.output,
            [t for t in self.proto.graph.initializer if t.name in used],
            value_info=self.proto.graph.value_info,
        )
        rest = helper.make_model(graph, opset_imports=self.proto.opset_import, ir_version=self.proto.ir_version)
        rest.opset_import.append(helper.make_opsetid(DOMAIN, 1))
        return rest, self.layers

    def finish(
        self, group: Group, inputs: list[str], plan: Plan, weight: str | None = None, dense_flops: int = 0
    ) -> None:
        """Replaces a group by a layer."""
        share = Share(plan.format, plan.constant_bytes, plan.flops)
        decisions = [] if weight is None else [self.decide(group, plan, share, weight, dense_flops)]
        self.replace([group], inputs, plan, decisions)

    def replace(self, groups: list[Group], inputs: list[str], plan: Plan, decisions: list[LayerDecision]) -> None:
        """Replaces groups, each of which reads what the one before it gives, by a layer."""
        last = groups[-1]
        if last.residual is not None:
            inputs = [*inputs, last.residual]
        self.put(last.nodes[-1], inputs, [last.output], plan, decisions, [group.nodes[0] for group in groups])
        self.graph.dropped.update(known_by(node) for group in groups for node in group.nodes)
        self.graph.dropped.remove(last.output)

    def put(
        self,
        last: onnx.NodeProto,
        inputs: list[str],
        outputs: list[str],
        plan: Plan,
        decisions: list[LayerDecision],
        firsts: list[onnx.NodeProto],
    ) -> None:
        """Puts a layer in the place of the node `last`; `firsts` are the nodes it is named after."""
        shapes: dict[str, Any] = {f"shape_{i}": self.graph.values[name][1] for i, name in enumerate(outputs)}
        self.graph.replaced[known_by(last)] = helper.make_node(
            _OPERATOR, inputs, outputs, name=firsts[0].name, domain=DOMAIN, index=len(self.layers), **shapes
        )
        self.layers.append(Layer(tuple(map(node_label, firsts)), plan, tuple(decisions)))

    def decide(self, group: Group, plan: Plan, share: Share, weight: str, dense_flops: int) -> LayerDecision:
        """What the report says of the part of a plan that computes a group."""
        array = self.graph.arrays[weight]
        bias_bytes = 0 if group.bias is None else group.bias.nbytes
        return LayerDecision(
            site=weight,
            node=node_label(group.nodes[0]),
            op=group.nodes[0].op_type,
            shape=array.shape,
            density=int(np.count_nonzero(array)) / array.size,
            format=share.format,
            kernel=" + ".join(dict.fromkeys(step.kernel.name for step in plan.steps)),
            bytes=share.bytes,
            dense_bytes=array.nbytes + bias_bytes,
            flops=share.flops,
            dense_flops=dense_flops,
            why=plan.why,
            trials=plan.trials,
            weight_type=plan.weight_type,
            float32_bytes=plan.float32_bytes,
        )

    # Where a group starts

    def conv(self, node: onnx.NodeProto) -> None:
        first = self.convolution(node)
        if first is None:
            return
        # One kernel for a chain reads weights of float32 alone.
        chain = [first] if self.target.gpu or self.target.weight_type != "float32" else self.chain(first)
        if len(chain) > 1:
            plan = plan_separable([layer.part for layer in chain], self.target, self.pick)
            if plan is not None:
                nodes = ", ".join(node_label(layer.node) for layer in chain)
                plan = replace(plan, why=f"one kernel for {nodes}; {plan.why}")
                decisions = [
                    self.decide(layer.group, plan, share, layer.node.input[1], layer.dense_flops)
                    for layer, share in zip(chain, plan.shares, strict=True)
                ]
                self.replace([layer.group for layer in chain], [node.input[0]], plan, decisions)
                return
        part = first.part
        planner = plan_conv_transpose if part.geometry.transposed else plan_conv
        plan = planner(part.weight, part.geometry, part.epilogue, self.target, self.pick)
        if plan.steps[0].kernel.name == "conv_channels" and (pooling := self.pooling(first.group.output)) is not None:
            pooled = plan_pooled(part.weight, part.geometry, part.epilogue, pooling[1], self.target, self.pick)
            if pooled is not None:
                plan = pooled
                first.group.nodes.append(pooling[0])
        self.finish(first.group, [node.input[0]], plan, node.input[1], first.dense_flops)

    def pooling(self, x: str) -> tuple[onnx.NodeProto, Pool] | None:
        """The max pooling over two dimensions that alone reads `x`; None when another node does."""
        node, size = self.graph.reader(x), self.graph.shape(x)
        if node is None or node.op_type != "MaxPool" or node.domain not in ("", "ai.onnx") or len(node.output) > 1:
            return None
        attributes, out = attributes_of(node), self.graph.shape(node.output[0])
        if size is None or out is None or len(size) != 4 or set(attributes.get("dilations", [1])) != {1}:
            return None
        height, width = attributes["kernel_shape"]
        down, across = attributes.get("strides", (1, 1))
        (top, left), _ = window_pads(attributes, size[2:], (height, width))
        return node, Pool((height, width), (down, across), (top, left), (out[2], out[3]))

    def convolution(self, node: onnx.NodeProto) -> _Convolution | None:
        """The convolution that starts at a Conv or ConvTranspose; None when it is no layer."""
        if self.target.gpu and node.op_type == "ConvTranspose":
            return None
        weight, x, y = (
            self.graph.array(node.input[1]),
            self.graph.shape(node.input[0]),
            self.graph.shape(node.output[0]),
        )
        bias = self.graph.array(input_name(node, 2))
        if weight is None or x is None or y is None or (bias is None and input_name(node, 2)):
            return None
        geometry = _geometry(node, x, y, weight.shape)
        group = self.graph.group(node, bias, y[1], 1 - len(y))
        pixels = math.prod(geometry.in_shape if geometry.transposed else geometry.out_shape) // y[1]
        return _Convolution(group, Part(weight, geometry, group.epilogue), 2 * weight.size * pixels)

    def chain(self, first: _Convolution) -> list[_Convolution]:
        """The convolution and those after it that one kernel could compute; it alone when there are none."""
        chain = [first]
        while len(chain) < 3 and (node := self.graph.reader(chain[-1].group.output)) is not None:
            is_conv = node.op_type == "Conv" and node.domain in ("", "ai.onnx")
            following = self.convolution(node) if is_conv and node.input[0] == chain[-1].group.output else None
            if following is None:
                break
            chain.append(following)
        return next((c for c in (chain, chain[:2]) if fits([layer.part for layer in c])), [first])

    def gemm(self, node: onnx.NodeProto) -> None:
        weight, a = self.graph.array(node.input[1]), self.graph.shape(node.input[0])
        bias, attributes = self.graph.array(input_name(node, 2)), attributes_of(node)
        if weight is None or a is None or attributes.get("transA", 0):
            return
        weight = weight.T if attributes.get("transB", 0) else weight
        if attributes.get("alpha", 1.0) != 1:
            weight = attributes["alpha"] * weight
        if input_name(node, 2):
            per_channel = None if bias is None else channel_constant(bias, weight.shape[1], -1, 2)
            if per_channel is None:
                return
            bias = per_channel * np.float32(attributes.get("beta", 1.0))
        self.product(node, node.input[0], weight.astype(np.float32, copy=False), node.input[1], bias)

    def matmul(self, node: onnx.NodeProto) -> None:
        a, b = self.graph.shape(node.input[0]), self.graph.shape(node.input[1])
        if a is None or b is None or len(a) < 2 or len(b) < 2:
            return
        left, right = self.graph.array(node.input[0]), self.graph.array(node.input[1])
        if right is not None and math.prod(b[:-2]) == 1 and left is None:
            self.product(node, node.input[0], right.reshape(b[-2:]), node.input[1], None)
        elif left is not None and math.prod(a[:-2]) == 1 and right is None:
            # W (M, K) @ x (..., K, N) is a convolution of size 1 over N positions and K channels.
            weight = left.reshape(*a[-2:], 1)
            geometry = ConvGeometry(
                batch=math.prod(b[:-2]), in_channels=a[-1], in_size=(b[-1],), out_channels=a[-2],
                kernel=(1,), strides=(1,), pads=(0, 0), dilations=(1,), groups=1,
            )  # fmt: skip
            group = self.graph.group(node, None, a[-2], -2)
            plan = plan_conv(weight, geometry, group.epilogue, self.target, self.pick)
            self.finish(group, [node.input[1]], plan, node.input[0], 2 * left.size * b[-1] * math.prod(b[:-2]))
        elif left is None and right is None and a[:-2] == b[:-2]:
            self.attention(node, a, b)

    def transpose(self, node: onnx.NodeProto) -> None:
        """A transposition of matrices, unless the only node that reads it can take it in."""
        x, perm = self.graph.shape(node.input[0]), attributes_of(node).get("perm")
        if self.target.gpu or x is None or len(x) < 2 or perm != _swapped(len(x)) or min(x[-2:]) < _SMALL_MATRIX:
            return
        readers = self.graph.readers[node.output[0]]
        if len(readers) == 1 and (("", readers[0].op_type) not in _STARTS or readers[0].input[0] == node.output[0]):
            return
        plan = plan_transpose(math.prod(x[:-2]), *x[-2:])
        self.finish(Group([node], None, None, None), [node.input[0]], plan)

    def attention(self, node: onnx.NodeProto, a: tuple[int, ...], b: tuple[int, ...]) -> None:
        """The product of two activations (..., M, K) and (..., K, N), and a factor after it."""
        group = Group([node], None, None, None)
        scale = self.graph.factor(group)
        if self.target.gpu is not None:
            inputs, plan = DeviceProducts(self.graph, self.target.gpu).take(group, scale)
            self.finish(group, inputs, plan)
            return
        left, rank = node.input[0], len(a)
        before = self.graph.producers.get(left, onnx.NodeProto())
        turned = False
        if before.op_type == "Transpose" and self.graph.uses[left] == 1:
            turned = attributes_of(before).get("perm") == _swapped(rank)
        if turned:
            self.graph.dropped.add(left)
            left = before.input[0]
        plan = plan_batched_matmul(
            math.prod(a[:-2]), a[-2], a[-1], b[-1], self.target, a_transposed=turned, scale=scale
        )
        self.finish(group, [left, node.input[1]], plan)

    def recurrent(self, node: onnx.NodeProto) -> None:
        """An RNN, a GRU or an LSTM; its initial states may be computed."""
        x, kind = self.graph.shape(node.input[0]), node.op_type
        weights = [self.graph.array(node.input[i]) for i in (1, 2)]
        bias = self.graph.array(input_name(node, 3))
        if x is None or any(weight is None for weight in weights) or not is_plain(node):
            return
        if bias is None and input_name(node, 3):
            return
        from_input, from_state = (weight for weight in weights if weight is not None)
        if misfit(kind, [self.graph.shape(name) if name else None for name in node.input[:7]]):
            return
        states = [input_name(node, i) for i in (5, 6)[: STATES[kind]]]
        outputs = [name if self.graph.uses[name] else "" for name in node.output]
        outputs += [""] * (1 + STATES[kind] - len(outputs))
        plan, *products = plan_recurrent(
            Recurrence(
                kind=kind,
                time=x[0],
                batch=x[1],
                backward=directions(node),
                functions=tuple(tuple(name.lower() for name in names) for names in activations(node)),
                from_input=from_input,
                from_state=from_state,
                bias=np.zeros((len(from_state), 2 * from_state.shape[1]), np.float32) if bias is None else bias,
                given=tuple(map(bool, states)),
                wanted=tuple(map(bool, outputs)),
            ),
            self.target,
            self.pick,
        )
        steps = 2 * x[0] * x[1]
        decisions = [
            self.decide(Group([node], bias if i == 1 else None, None, None), part, share, node.input[i], steps * size)
            for i, part, share, size in zip(
                (1, 2), products, plan.shares, (from_input.size, from_state.size), strict=True
            )
        ]
        inputs = [node.input[0], *filter(None, states)]
        self.put(node, inputs, list(filter(None, outputs)), plan, decisions, [node])

    def product(
        self, node: onnx.NodeProto, x: str, weight: NDArray[np.float32], name: str, bias: NDArray[np.float32] | None
    ) -> None:
        """The product of `x` (..., K) and `weight` (K, N), constant `name`."""
        rows = math.prod((self.graph.shape(x) or ())[:-1])
        group = self.graph.group(node, bias, weight.shape[1], -1)
        plan = plan_matmul(weight, rows, group.epilogue, self.target, self.pick)
        self.finish(group, [x], plan, name, 2 * weight.size * rows)


_STARTS: dict[tuple[str, str], Callable[[_Extraction, onnx.NodeProto], None]] = {
    ("", "Conv"): _Extraction.conv,
    ("", "ConvTranspose"): _Extraction.conv,
    ("", "Gemm"): _Extraction.gemm,
    ("", "MatMul"): _Extraction.matmul,
    (DOMAIN, CONV): _Extraction.conv,
    ("", "Transpose"): _Extraction.transpose,
    **dict.fromkeys((("", kind) for kind in RECURRENT), _Extraction.recurrent),
}


def _swapped(rank: int) -> list[int]:
    """The permutation of axes that transposes matrices."""
    return [*range(rank - 2), rank - 1, rank - 2]


@dataclass
class _Convolution:
    """A Conv or ConvTranspose with its group.

    Attributes:
        group: what its kernel computes.
        part: the same for the planner.
        dense_flops: multiply-adds x 2 of all weights.
    """

    group: Group
    part: Part
    dense_flops: int

    @property
    def node(self) -> onnx.NodeProto:
        return self.group.nodes[0]


def _geometry(node: onnx.NodeProto, x: tuple[int, ...], y: tuple[int, ...], weight: tuple[int, ...]) -> ConvGeometry:
    """The geometry of a Conv or ConvTranspose of `x` to `y`."""
    attributes, transposed = attributes_of(node), node.op_type == "ConvTranspose"
    batch, size, images, grid, kernel = x[0], x[2:], 1, (1, 1), weight[2:]
    if node.op_type == CONV:
        batch, size, images, grid = 1, (x[0], x[2]), x[3], tuple(attributes.get("grid", (1, 1)))
    before, after = window_pads(attributes, size, kernel, transposed=transposed)
    return ConvGeometry(
        batch=batch,
        in_channels=x[1],
        in_size=size,
        out_channels=y[1],
        kernel=kernel,
        strides=tuple(attributes.get("strides", [1] * len(size))),
        pads=(*before, *after),
        dilations=tuple(attributes.get("dilations", [1] * len(size))),
        groups=attributes.get("group", 1),
        transposed=transposed,
        output_padding=tuple(attributes.get("output_padding", ())) if transposed else (),
        images=images,
        grid=grid,
    )
