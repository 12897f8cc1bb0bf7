"""Finds the sites of a model: the linear layers whose weights are constants, each weight once.

A site is a weight, not a node: pruning, retraining and packing happen to weights, and a weight that several nodes share
must be treated once. What a site's nodes compute is always "rows of weights times shifted or gathered inputs", so every
weight is also seen as one matrix of (output channels, inputs of one output channel).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from lwc_compiler.model import attributes_of
from lwc_compiler.passes.recurrent import RECURRENT, is_plain

SITE_OPERATORS = ("Conv", "ConvTranspose", "Gemm", "MatMul", *RECURRENT)

_STATE_WEIGHT = 2  # input of a recurrent layer
_FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.BFLOAT16)


@dataclass(frozen=True)
class Site:
    """A constant weight and the linear nodes that use it.

    The matrix view has one row for each output channel and one column for each input that channel is computed from:

    | operator (constant operand) | weight                 | rows        | columns     |
    |-----------------------------|------------------------|-------------|-------------|
    | Conv                        | (out, in/g, kh, kw)    | out         | in/g·kh·kw  |
    | ConvTranspose               | (in, out/g, kh, kw)    | out         | in/g·kh·kw  |
    | Gemm, B, transB=0 / 1       | (K, N) / (N, K)        | N           | K           |
    | Gemm, A, transA=0 / 1       | (M, K) / (K, M)        | M           | K           |
    | MatMul, right               | (..., K, N)            | ...·N       | K           |
    | MatMul, left                | (..., M, K)            | ...·M       | K           |
    | RNN, GRU, LSTM, W           | (D, gates·H, in)       | D·gates·H   | in          |
    | RNN, GRU, LSTM, R           | (D, gates·H, H)        | D·gates·H   | H           |

    Rows keep the order of the output channels (group by group, batch by batch); columns run over the kernel's positions
    in row-major order, input channel after input channel.

    Attributes:
        weight: name of the initializer, or of the output of the Constant node.
        nodes: labels (see `node_label`) of the nodes that use the weight, in graph order.
        op_types: ONNX operator type of each node.
        inputs: activation each node reads; of a recurrent layer's R its states, which are its output.
        outputs: tensor each node writes, the first that it has.
        shape: shape of the stored weight.
        dtype: NumPy name of the stored type (`float32`, `float16`, `float64` or `bfloat16`).
        groups: convolution groups; 1 for Gemm and MatMul.
        depthwise: a grouped convolution in which every group has one input channel.
        first: a node reads a graph input through no other site and no embedding (Gather from a constant).
        other_uses: what else reads the weight: "<operator> '<label>'" or "graph output"; () for most weights.
        split: shape the weight is taken apart into for the matrix view.
        order: order of the axes of `split` in the matrix view; the first `row_axes` of them make the rows.
        row_axes: number of axes that make the rows.
    """

    weight: str
    nodes: tuple[str, ...]
    op_types: tuple[str, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: str
    groups: int
    depthwise: bool
    first: bool
    other_uses: tuple[str, ...]
    split: tuple[int, ...]
    order: tuple[int, ...]
    row_axes: int

    @property
    def size(self) -> int:
        """Number of weights."""
        return math.prod(self.shape)

    @property
    def kind(self) -> Literal["conv", "fc"]:
        """What the paper sets apart: convolutions, and fully connected layers (Gemm, MatMul, and recurrent ones)."""
        return "conv" if self.op_types[0].startswith("Conv") else "fc"

    @property
    def matrix_shape(self) -> tuple[int, int]:
        """(rows, columns) of the matrix view."""
        rows = math.prod(self.split[axis] for axis in self.order[: self.row_axes])
        return rows, self.size // rows

    @property
    def row_groups(self) -> int:
        """Ranges of equally many rows that read different inputs.

        These are convolution groups, a MatMul weight's batch, or the directions of a recurrent layer's R.
        """
        return math.prod(self.split[axis] for axis in self.order[: self.row_axes - 1])

    @property
    def positions(self) -> int:
        """Positions of a convolution's kernel: columns of the matrix view that are of one input channel."""
        return math.prod(self.shape[2:]) if self.kind == "conv" else 1

    def to_matrix(self, array: NDArray[Any]) -> NDArray[Any]:
        """The matrix view of `array` (the weight, its mask: of the weight's shape); shares memory where it can."""
        matrix: NDArray[Any] = array.reshape(self.split).transpose(self.order).reshape(self.matrix_shape)
        return matrix

    def from_matrix(self, matrix: NDArray[Any]) -> NDArray[Any]:
        """The inverse of `to_matrix`: an array of the weight's shape."""
        parts = matrix.reshape([self.split[axis] for axis in self.order])
        return np.ascontiguousarray(parts.transpose(np.argsort(self.order)).reshape(self.shape))


def node_label(node: onnx.NodeProto) -> str:
    """The node's name, or `<operator>:<first output>` when it has none (outputs are unique in a graph)."""
    return node.name or f"{node.op_type}:{next((name for name in node.output if name), '')}"


def constant_tensors(graph: onnx.GraphProto) -> dict[str, TensorProto]:
    """The constants of `graph` by name: its initializers and its Constant nodes' tensors (the protos, not copies)."""
    constants = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant" and _is_standard(node):
            constants.update((node.output[0], item.t) for item in node.attribute if item.name == "value")
    return constants


def find_sites(proto: onnx.ModelProto) -> list[Site]:
    """The floating-point constants that are weights of `SITE_OPERATORS`, in the order of first use.

    Recurrent layers have two, of those that are plain (`passes.recurrent`). A constant is an initializer or a Constant
    node, also when it is reached through Identity and (Gemm and MatMul) Transpose nodes. Only the main graph is
    searched; a use in the body of an If, Loop or Scan is listed in `Site.other_uses`. When nodes see a shared weight
    differently (W and its transpose), the matrix view is the first node's. Quantized weights (behind DequantizeLinear)
    are not sites.
    """
    graph = proto.graph
    constants = constant_tensors(graph)
    aliases = _aliases(graph, constants)
    found: dict[str, list[_Use]] = {}
    others: dict[str, list[str]] = {}
    variable = {value.name for value in graph.input} - constants.keys()
    behind_site: set[str] = set()
    for node in graph.node:
        reads = list(_reads(node))
        if node.output and node.output[0] in aliases:
            continue
        first = not behind_site.intersection(reads)
        if node.op_type in RECURRENT:
            uses = _recurrent_uses(node, constants, aliases, first=first)
        else:
            use = _use(node, constants, aliases, first=first)
            uses = [] if use is None else [use]
        for position, name in enumerate(reads):
            if name in aliases and position not in [use.position for use in uses]:
                others.setdefault(aliases[name][0], []).append(f"{node.op_type} '{node_label(node)}'")
        for use in uses:
            found.setdefault(use.weight, []).append(use)
        lookup = node.op_type == "Gather" and node.input[0] in aliases
        if uses or lookup or not first:
            behind_site.update(node.output)
        if variable.intersection(reads):
            variable.update(node.output)
    for value in graph.output:
        if value.name in aliases:
            others.setdefault(aliases[value.name][0], []).append("graph output")
    return [_site(constants[name], uses, tuple(others.get(name, ())), variable) for name, uses in found.items()]


@dataclass(frozen=True)
class _Use:
    """One linear node and how it sees its weight (see the attributes of `Site`)."""

    node: onnx.NodeProto
    weight: str
    position: int
    first: bool
    groups: int
    depthwise: bool
    split: tuple[int, ...]
    order: tuple[int, ...]
    row_axes: int

    @property
    def activation(self) -> str:
        """What the node multiplies the weight with."""
        if self.position == _STATE_WEIGHT:
            return self.output
        return str(self.node.input[1 - self.position])

    @property
    def output(self) -> str:
        """What the node writes."""
        name: str = next(name for name in self.node.output if name)
        return name


def _is_standard(node: onnx.NodeProto) -> bool:
    return node.domain in ("", "ai.onnx")


def _reads(node: onnx.NodeProto) -> Iterator[str]:
    """The tensors `node` reads, those its subgraphs take from outside included."""
    yield from node.input
    for item in node.attribute:
        for body in [*([item.g] if item.type == onnx.AttributeProto.GRAPH else []), *item.graphs]:
            made = {value.name for value in body.input} | {tensor.name for tensor in body.initializer}
            for inner in body.node:
                yield from (name for name in _reads(inner) if name not in made)
                made.update(inner.output)
            yield from (value.name for value in body.output if value.name not in made)


def _aliases(graph: onnx.GraphProto, constants: dict[str, TensorProto]) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Tensor name -> (constant, axes it is transposed by), for constants and their Identity and Transpose nodes."""
    aliases = {name: (name, tuple(range(len(tensor.dims)))) for name, tensor in constants.items()}
    for node in graph.node:
        if node.op_type in ("Identity", "Transpose") and _is_standard(node) and node.input[0] in aliases:
            constant, axes = aliases[node.input[0]]
            if node.op_type == "Transpose":
                axes = tuple(axes[axis] for axis in attributes_of(node).get("perm", range(len(axes))[::-1]))
            aliases[node.output[0]] = (constant, axes)
    return aliases


def _recurrent_uses(
    node: onnx.NodeProto,
    constants: dict[str, TensorProto],
    aliases: dict[str, tuple[str, tuple[int, ...]]],
    *,
    first: bool,
) -> list[_Use]:
    """How a recurrent layer uses its constant weights W and R; R comes behind W."""
    uses = []
    for position in (1, _STATE_WEIGHT) if is_plain(node) else ():
        weight, axes = aliases.get(node.input[position], ("", ()))
        if not weight or axes != (0, 1, 2) or constants[weight].data_type not in _FLOATS:
            continue
        directions, rows, columns = constants[weight].dims
        state = position == _STATE_WEIGHT
        split = (directions, rows, columns) if state else (directions * rows, columns)
        order = tuple(range(len(split)))
        uses.append(_Use(node, weight, position, first and not state, 1, False, split, order, len(split) - 1))
    return uses


def _use(
    node: onnx.NodeProto,
    constants: dict[str, TensorProto],
    aliases: dict[str, tuple[str, tuple[int, ...]]],
    *,
    first: bool,
) -> _Use | None:
    """How `node` uses a constant weight; None when it is no linear node or has no such operand."""
    if node.op_type not in SITE_OPERATORS or not _is_standard(node):
        return None
    constant = [position for position in (0, 1) if node.input[position] in aliases]
    if len(constant) != 1 or (constant == [0] and node.op_type.startswith("Conv")):
        return None
    position = constant[0]
    weight, axes = aliases[node.input[position]]
    tensor = constants[weight]
    shape = tuple(tensor.dims[axis] for axis in axes)
    if tensor.data_type not in _FLOATS or math.prod(shape) == 0 or len(shape) < 2:
        return None
    groups, depthwise, split, row_axes = 1, False, shape, len(shape) - 1
    attributes = attributes_of(node)
    order = tuple(range(len(shape)))
    if node.op_type.startswith("Conv"):
        if axes != order:
            return None
        groups, row_axes = attributes.get("group", 1), 2
        split = (groups, shape[0] // groups, *shape[1:])
        order = (0, 1, *range(2, len(split))) if node.op_type == "Conv" else (0, 2, 1, *range(3, len(split)))
        depthwise = groups > 1 and split[order[2]] == 1
    else:
        rows_last = attributes.get("transA", 0) if position == 0 else not attributes.get("transB", 0)
        if node.op_type == "MatMul":
            rows_last = position == 1
        if rows_last:
            order = (*order[:-2], order[-1], order[-2])
        # The order so far is that of the transposed constant's axes; the split is that of the stored one's.
        order, split = tuple(axes[axis] for axis in order), tuple(tensor.dims)
    return _Use(node, weight, position, first, groups, depthwise, split, order, row_axes)


def _site(tensor: TensorProto, uses: list[_Use], other_uses: tuple[str, ...], variable: set[str]) -> Site:
    view = uses[0]
    return Site(
        weight=view.weight,
        nodes=tuple(node_label(use.node) for use in uses),
        op_types=tuple(use.node.op_type for use in uses),
        inputs=tuple(use.activation for use in uses),
        outputs=tuple(use.output for use in uses),
        shape=tuple(tensor.dims),
        dtype=helper.tensor_dtype_to_np_dtype(tensor.data_type).name,
        groups=view.groups,
        depthwise=all(use.depthwise for use in uses),
        first=any(use.first and use.activation in variable for use in uses),
        other_uses=other_uses,
        split=view.split,
        order=view.order,
        row_axes=view.row_axes,
    )
