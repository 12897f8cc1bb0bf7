"""The graph that training works on: static shapes, constants as arrays, nodes that can be replaced one by one."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from lwc_compiler.errors import UnsupportedError
from lwc_compiler.model import attributes_of

OPSET = 21  # the newest that ONNX Runtime 1.19.2 reads, so that every operator has one form only
IR_VERSION = 10
RANDOM = {"RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike", "Bernoulli", "Multinomial"}


@dataclass(frozen=True)
class Node:
    """A node read once: attributes decoded, missing optional inputs and outputs as ''."""

    proto: onnx.NodeProto
    op: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: dict[str, Any]

    def input(self, index: int) -> str:
        """Name of the input, '' where it is left out."""
        return self.inputs[index] if index < len(self.inputs) else ""

    def __str__(self) -> str:
        return f"node '{self.name}' ({self.op})"


def read_node(proto: onnx.NodeProto) -> Node:
    """`proto` as a `Node`."""
    return Node(proto, proto.op_type, proto.name, tuple(proto.input), tuple(proto.output), attributes_of(proto))


class TrainingGraph:
    """A graph with static shapes.

    Attributes:
        nodes: in topological order; every name is unique and not empty.
        constants: name -> value: initializers and what was folded.
        inputs: data, weights and statistics, in order: name -> (element type, shape).
        outputs: names.
        shapes: value name -> shape, as far as inference got.
        types: value name -> ONNX element type.
        uses: while rules run, how often every value was read before; a graph output counts as one more.
    """

    def __init__(self, proto: onnx.ModelProto, shapes: dict[str, tuple[int, ...]]) -> None:
        """Takes over `proto` (opset `OPSET`), with the inputs' shapes fixed to `shapes`."""
        graph = proto.graph
        self.constants: dict[str, NDArray[Any]] = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
        self.inputs: dict[str, tuple[int, tuple[int, ...]]] = {
            value.name: (
                value.type.tensor_type.elem_type,
                shapes.get(value.name) or tuple(d.dim_value for d in value.type.tensor_type.shape.dim),
            )
            for value in graph.input
            if value.name not in self.constants
        }
        self.outputs = [value.name for value in graph.output]
        self.nodes: list[onnx.NodeProto] = list(graph.node)
        self.domains = {entry.domain: entry.version for entry in proto.opset_import}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.types: dict[str, int] = {}
        self.uses: Counter[str] = Counter()
        self._names = {name for node in graph.node for name in node.output} | set(self.constants) | set(self.inputs)
        self._prefix = "lwc"
        self._name_nodes()
        self._expand_group_normalizations()
        self._simplify()

    def copy(self) -> TrainingGraph:
        """An independent copy (constants are shared, and never changed in place)."""
        other = copy.copy(self)
        other.constants, other.inputs, other.outputs = dict(self.constants), dict(self.inputs), list(self.outputs)
        other.nodes = [copy.deepcopy(node) for node in self.nodes]
        other.shapes, other.types, other._names = dict(self.shapes), dict(self.types), set(self._names)
        return other

    # -- writing ------------------------------------------------------------------------------------------------------

    def name(self, base: str) -> str:
        """A value name that is not taken."""
        number = 0
        while (name := f"{self._prefix}/{base}_{number}") in self._names:
            number += 1
        self._names.add(name)
        return name

    def constant(self, value: Any, dtype: Any = np.float32) -> str:
        """Adds a constant; scalars have shape []."""
        name = self.name("constant")
        self.constants[name] = np.asarray(value, dtype)
        return name

    def indices(self, *values: int) -> str:
        """Adds a 1-D int64 constant (axes, shapes, starts)."""
        return self.constant(values, np.int64)

    def add(self, op: str, *inputs: str, output: str | None = None, **attributes: Any) -> str:
        """Appends a node with one output (`output`, or a new name) and returns that name."""
        return self.add_many(op, inputs, [output], **attributes)[0]

    def add_many(
        self, op: str, inputs: Iterable[str], outputs: Iterable[str | None], **attributes: Any
    ) -> tuple[str, ...]:
        """Appends a node. None stands for a new output name, '' for an output left out."""
        names = tuple(self.name(op) if name is None else name for name in outputs)
        label = names[0] or next(name for name in names if name)
        self.nodes.append(helper.make_node(op, list(inputs), list(names), name=label, **attributes))
        return names

    def rewrite(self, rules: dict[str, Any]) -> None:
        """Replaces every node that `rules[op]` replaces: a rule appends the new nodes and returns True."""
        self.uses = self._count_uses()
        old, self.nodes = self.nodes, []
        for proto in old:
            node = read_node(proto)
            rule = None if proto.domain not in ("", "ai.onnx") else rules.get(node.op)
            self._prefix = node.name
            if rule is None or not rule(self, node):
                self.nodes.append(proto)
        self._prefix = "lwc"
        self._simplify()

    def to_proto(self, outputs: Iterable[str]) -> onnx.ModelProto:
        """A valid model that computes `outputs`; inputs, constants and nodes they do not need are left out."""
        wanted = list(outputs)
        nodes = needed(self.nodes, wanted)
        used = set(wanted) | {name for node in nodes for name in reads(node)}

        def declared(name: str) -> onnx.ValueInfoProto:
            if name not in self.types:
                return helper.make_empty_tensor_value_info(name)
            return helper.make_tensor_value_info(name, self.types[name], self.shapes.get(name))

        graph = helper.make_graph(
            nodes,
            "training",
            [helper.make_tensor_value_info(name, *kind) for name, kind in self.inputs.items() if name in used],
            [declared(name) for name in wanted],
            [numpy_helper.from_array(value, name) for name, value in self.constants.items() if name in used],
        )
        opsets = [helper.make_opsetid(domain, version) for domain, version in self.domains.items()]
        return helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION)

    # -- reading ------------------------------------------------------------------------------------------------------

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a value.

        Raises:
            UnsupportedError: inference could not find it, so nothing that depends on it can be rewritten.
        """
        if name not in self.shapes:
            raise UnsupportedError(
                f"the shape of '{name}' is not known before the model runs; retraining needs static shapes "
                "apart from those the data gives"
            )
        return self.shapes[name]

    def rank(self, name: str) -> int:
        """Number of dimensions of a value."""
        return len(self.shape(name))

    def _count_uses(self) -> Counter[str]:
        counts = Counter(name for node in self.nodes for name in reads(node))
        counts.update(self.outputs)
        return counts

    def producer(self, name: str) -> Node | None:
        """The node that computes `name`; None for inputs and constants."""
        return next((read_node(node) for node in self.nodes if name in node.output), None)

    def keep(self, outputs: Iterable[str]) -> None:
        """Makes `outputs` the graph's outputs and drops what they do not need (inputs stay)."""
        self.outputs = list(outputs)
        self.nodes = needed(self.nodes, self.outputs)

    # -- simplifying --------------------------------------------------------------------------------------------------

    def _name_nodes(self) -> None:
        """Unique names: ONNX Runtime's gradient builder derives names from them."""
        seen: set[str] = set()
        for index, node in enumerate(self.nodes):
            if not node.name or node.name in seen:
                node.name = f"{node.op_type}_{index}"
                while node.name in seen:
                    node.name += "_"
            seen.add(node.name)

    def _simplify(self) -> None:
        """Constant nodes, identities and dropout go, constants are folded, shapes inferred; until nothing changes."""
        self._lift_constants()
        self._drop_identities()
        self._infer()
        while self._fold() or self._inline_ifs():
            self._lift_constants()
            self._drop_identities()
            self._infer()
        self.keep(self.outputs)

    def _expand_group_normalizations(self) -> None:
        """ONNX infers no shape for GroupNormalization, so it becomes InstanceNormalization before that."""
        old, self.nodes = self.nodes, []
        for proto in old:
            if proto.op_type != "GroupNormalization":
                self.nodes.append(proto)
                continue
            node = read_node(proto)
            self._prefix = node.name
            x, scale, bias = node.inputs
            groups = node.attributes["num_groups"]
            channels = self.inputs[scale][1][0] if scale in self.inputs else self.constants[scale].size
            unit, zero = self.constant(np.ones(groups)), self.constant(np.zeros(groups))
            rows = self.add("Reshape", x, self.indices(0, groups, -1))
            epsilon = node.attributes.get("epsilon", 1e-5)
            normal = self.add("InstanceNormalization", rows, unit, zero, epsilon=epsilon)
            planes = self.add("Reshape", normal, self.indices(0, channels, -1))
            last = self.indices(1)
            scaled = self.add("Mul", planes, self.add("Unsqueeze", scale, last))
            shifted = self.add("Add", scaled, self.add("Unsqueeze", bias, last))
            self.add("Reshape", shifted, self.add("Shape", x), output=node.outputs[0])
        self._prefix = "lwc"

    def _lift_constants(self) -> None:
        for node in self.nodes:
            if node.op_type == "Constant":
                self.constants[node.output[0]] = constant_value(node)
        self.nodes = [node for node in self.nodes if node.op_type != "Constant"]

    def _drop_identities(self) -> None:
        """Dropout goes too: the fewer connections, the less of it is wanted (Han et al. 2015, section 3.2)."""
        new_name: dict[str, str] = {}
        kept = []
        for node in self.nodes:
            for index, name in enumerate(node.input):
                node.input[index] = new_name.get(name, name)
            if node.op_type in ("Identity", "Dropout"):
                if node.output[0] not in self.outputs:
                    new_name[node.output[0]] = node.input[0]
                    continue
                node = helper.make_node("Identity", [node.input[0]], [node.output[0]], name=node.name)
            kept.append(node)
        self.nodes = kept
        for node in kept:
            for body in bodies(node):
                rename(body, new_name)

    def _infer(self) -> None:
        inferred = onnx.shape_inference.infer_shapes(self.to_proto(self.outputs), data_prop=True).graph
        for value in (*inferred.input, *inferred.value_info, *inferred.output):
            kind = value.type.tensor_type
            if kind.elem_type:
                self.types[value.name] = kind.elem_type
            if kind.HasField("shape") and all(dim.HasField("dim_value") for dim in kind.shape.dim):
                self.shapes[value.name] = tuple(dim.dim_value for dim in kind.shape.dim)
        for name, array in self.constants.items():
            self.shapes[name] = array.shape
            self.types[name] = helper.np_dtype_to_tensor_dtype(array.dtype)

    def _fold(self) -> bool:
        """Evaluates what depends on constants and static shapes only, in one run of ONNX Runtime."""
        known = set(self.constants)
        foldable, rest = [], []
        for node in self.nodes:
            shape = self.shapes.get(node.input[0]) if node.op_type in ("Shape", "Size") else None
            if shape is not None:
                part = read_node(node).attributes
                value = shape[part.get("start", 0) : part.get("end")] if node.op_type == "Shape" else np.prod(shape)
                self.constants[node.output[0]] = np.asarray(value, np.int64)
                known.add(node.output[0])
            elif node.op_type not in RANDOM and not any(bodies(node)) and all(not i or i in known for i in node.input):
                foldable.append(node)
                known |= set(node.output)
            else:
                rest.append(node)
        changed = len(rest) < len(self.nodes)
        self.nodes = rest
        if foldable:
            self._evaluate(foldable)
        return changed

    def _evaluate(self, nodes: list[onnx.NodeProto]) -> None:
        from lwc_compiler.training.session import open_session

        used = {name for node in self.nodes for name in reads(node)} | set(self.outputs)
        wanted = [name for node in nodes for name in node.output if name in used]
        part = copy.copy(self)
        part.nodes, part.inputs = nodes, {}
        values = open_session(part.to_proto(wanted), threads=1).run(wanted, {}) if wanted else []
        self.constants.update(zip(wanted, values, strict=True))

    def _inline_ifs(self) -> bool:
        """Replaces an If whose condition is constant by the branch it takes."""
        changed, kept = False, []
        for node in self.nodes:
            if node.op_type != "If" or node.input[0] not in self.constants:
                kept.append(node)
                continue
            changed = True
            taken = "then_branch" if self.constants[node.input[0]].item() else "else_branch"
            body = copy.deepcopy(read_node(node).attributes[taken])
            local = {o for inner in body.node for o in inner.output} | {t.name for t in body.initializer}
            new_name = {name: f"{node.name}/{name}" for name in local if name}
            new_name.update({v.name: out for v, out in zip(body.output, node.output, strict=True) if v.name in local})
            passed = [(v.name, out) for v, out in zip(body.output, node.output, strict=True) if v.name not in local]
            rename(body, new_name)
            for tensor in body.initializer:
                self.constants[new_name[tensor.name]] = numpy_helper.to_array(tensor)
            for inner in body.node:
                inner.name = f"{node.name}/{inner.name or inner.op_type}"
                inner.output[:] = [new_name.get(name, name) for name in inner.output]
                kept.append(inner)
            kept += [helper.make_node("Identity", [name], [out], name=f"{node.name}/{out}") for name, out in passed]
        self.nodes = kept
        if changed:
            self._name_nodes()
        return changed


def bodies(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    """The subgraphs of a node."""
    for attribute in node.attribute:
        if attribute.type == onnx.AttributeProto.GRAPH:
            yield attribute.g
        yield from attribute.graphs


def needed(nodes: list[onnx.NodeProto], outputs: Iterable[str]) -> list[onnx.NodeProto]:
    """The nodes that `outputs` depend on."""
    wanted, kept = set(outputs), []
    for node in reversed(nodes):
        if not wanted.isdisjoint(node.output):
            kept.append(node)
            wanted.update(reads(node))
    return kept[::-1]


def reads(node: onnx.NodeProto) -> Iterator[str]:
    """Every value a node reads, its subgraphs included."""
    yield from node.input
    for body in bodies(node):
        for inner in body.node:
            yield from reads(inner)
        yield from (value.name for value in body.output)


def rename(body: onnx.GraphProto, new_name: dict[str, str]) -> None:
    """Renames what the nodes of a subgraph read, nested subgraphs included."""
    if not new_name:
        return
    for node in body.node:
        node.input[:] = [new_name.get(name, name) for name in node.input]
        for inner in bodies(node):
            rename(inner, new_name)
    local = {name for node in body.node for name in node.output}
    for value in body.output:
        if value.name not in local:
            value.name = new_name.get(value.name, value.name)


def constant_value(node: onnx.NodeProto) -> NDArray[Any]:
    """The value of a Constant node."""
    attribute = node.attribute[0]
    value = helper.get_attribute_value(attribute)
    if attribute.type == onnx.AttributeProto.TENSOR:
        array: NDArray[Any] = numpy_helper.to_array(value)
        return array
    if attribute.type in (onnx.AttributeProto.FLOAT, onnx.AttributeProto.FLOATS):
        return np.asarray(value, np.float32)
    if attribute.type in (onnx.AttributeProto.INT, onnx.AttributeProto.INTS):
        return np.asarray(value, np.int64)
    raise UnsupportedError(f"node '{node.name}' (Constant): a value of type {attribute.name} cannot be trained with")
