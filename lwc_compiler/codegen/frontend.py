"""ONNX to Relax: the import of a graph with static shapes, and the check that every operator can be lowered.

A node is handled in this order: known when compiling (all inputs constant) - evaluated; a converter - called; a
function (of the model, or of the operator set) - replaced by its body. So shape arithmetic disappears, and an operator
that ONNX defines by simpler ones needs no converter.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper
from tvm import ir, relax

from lwc_compiler.codegen import (  # noqa: F401 (they register their converters)
    converters_nn,
    converters_reduce,
    converters_resize,
    converters_rnn,
    converters_tensor,
)
from lwc_compiler.codegen.converters import (
    CONSTANT_INPUTS,
    CONVERTERS,
    DTYPES,
    Array,
    Node,
    Value,
    dtype_of,
    input_name,
    refusal,
    shape_of,
    tensor,
)
from lwc_compiler.errors import Refusal, UnsupportedError
from lwc_compiler.evaluator import evaluator

# Operators whose result is not a function of their inputs' values: never evaluated when compiling.
_RANDOM = {"Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"}
# Operators that need only the shape or the type of an input, which are known -> the inputs whose values they need.
_VALUE_INPUTS: dict[str, tuple[int, ...]] = {"CastLike": (0,), "EyeLike": (), "Shape": (), "Size": ()}
_CONTROL_FLOW = {"If", "Loop", "Scan"}
_ONNX_DOMAINS = ("", "ai.onnx")

Override = Callable[[Node], list[relax.Expr] | None]


def import_onnx(proto: onnx.ModelProto, override: Override | None = None) -> ir.IRModule:
    """The Relax module of a model with static shapes, before LegalizeOps.

    `main` takes the graph inputs that are not initializers, in order, and returns the output, or the tuple of outputs;
    constants are bound. An output may be a constant or an input.

    Args:
        proto: valid model, all input shapes static.
        override: asked first for each node that is not known when compiling; expressions it returns are the node's
            outputs.

    Raises:
        UnsupportedError: a node cannot be lowered; names node and operator.
    """
    return _Importer(proto, override).module()


def check_supported(proto: onnx.ModelProto) -> None:
    """Refuses, before any long work, a model with a node that cannot be lowered.

    It needs no static shapes. The import has the last word: it also sees shapes and computed constants.

    Raises:
        UnsupportedError: names every such node, and its operator.
    """
    functions = {(f.domain, f.name): f for f in proto.functions}
    refused = [_refused_type(value) for value in (*proto.graph.input, *proto.graph.output)]
    known = {i.name for i in proto.graph.initializer}
    refused += _refused_nodes(proto.graph.node, _versions(proto.opset_import), functions, known)
    if found := list(dict.fromkeys(each for each in refused if each is not None)):
        raise UnsupportedError.of(found)


def _refused_type(value: onnx.ValueInfoProto) -> Refusal | None:
    """Why a graph input or output cannot be lowered; None when it can."""
    kind = value.type.WhichOneof("value")
    element = value.type.tensor_type.elem_type
    if kind != "tensor_type":
        name = (kind or "value without type").removesuffix("_type")
        return Refusal("", "", f"'{value.name}' is a {name}; only tensors can be lowered")
    if element == onnx.TensorProto.STRING or str(onnx.helper.tensor_dtype_to_np_dtype(element)) not in DTYPES:
        name = onnx.TensorProto.DataType.Name(element)
        return Refusal("", "", f"'{value.name}' has element type {name}; lowered are {', '.join(DTYPES)}")
    return None


def _refused_nodes(
    nodes: Iterable[onnx.NodeProto],
    versions: Mapping[str, int],
    functions: Mapping[tuple[str, str], onnx.FunctionProto],
    known: set[str],
) -> Iterator[Refusal]:
    """Unknown operators, and constant inputs that depend on more than `known` values and shapes."""
    for node in nodes:
        operator = node.op_type
        needed = [node.input[i] for i in _VALUE_INPUTS[operator]] if operator in _VALUE_INPUTS else node.input
        if operator not in _RANDOM | _CONTROL_FLOW and all(i in known or not i for i in needed):
            known.update(node.output)
            continue
        if operator == "If" and node.input[0] in known:
            for branch in (a.g for a in node.attribute):
                inner = known | {i.name for i in branch.initializer}
                yield from _refused_nodes(branch.node, versions, functions, inner)
                # Which branch is taken is not known here, so an output counts as known when it may be.
                known.update(n for n, o in zip(node.output, branch.output, strict=True) if o.name in inner)
            continue
        if (function := functions.get((node.domain, operator))) is not None:
            inner = {name for name, given in zip(function.input, node.input, strict=False) if given in known}
            yield from _refused_nodes(function.node, _versions(function.opset_import), functions, inner)
        elif operator in CONVERTERS and node.domain in _ONNX_DOMAINS:
            for index in CONSTANT_INPUTS.get(operator, ()):
                if (name := input_name(node, index)) and name not in known:
                    why = f"its input '{name}' must be constant, but is computed from the model's inputs"
                    yield refusal(node, why)
        elif not _has_body(node, versions):
            yield _unknown(node)


def _has_body(node: onnx.NodeProto, versions: Mapping[str, int]) -> bool:
    schema = _schema(node, versions)
    return schema is not None and (schema.has_function or schema.has_context_dependent_function)


def _unknown(node: onnx.NodeProto) -> Refusal:
    if node.op_type in _CONTROL_FLOW:
        return refusal(node, "control flow that depends on the input is not handled")
    return refusal(node, "the operator is not handled; docs/operators.md lists those that are")


def _schema(node: onnx.NodeProto, versions: Mapping[str, int]) -> Any:
    domain = "" if node.domain == "ai.onnx" else node.domain
    if domain not in versions or not onnx.defs.has(node.op_type, versions[domain], domain):
        return None
    return onnx.defs.get_schema(node.op_type, versions[domain], domain)


def _versions(imports: Iterable[onnx.OperatorSetIdProto]) -> dict[str, int]:
    return {"" if i.domain == "ai.onnx" else i.domain: i.version for i in imports}


class _Importer:
    """One import; values are kept by name, constants as NumPy arrays."""

    def __init__(self, proto: onnx.ModelProto, override: Override | None) -> None:
        self.proto = proto
        self.override = override
        self.functions = {(f.domain, f.name): f for f in proto.functions}
        self.builder = relax.BlockBuilder()

    def module(self) -> ir.IRModule:
        graph = self.proto.graph
        values: dict[str, Value | None] = {i.name: numpy_helper.to_array(i) for i in graph.initializer}
        parameters = []
        for value in graph.input:
            if value.name not in values:
                if (refused_type := _refused_type(value)) is not None:
                    raise UnsupportedError.of([refused_type])
                values[value.name] = parameter = relax.Var(_identifier(value.name), _static_type(value))
                parameters.append(parameter)
        refused: UnsupportedError | None = None
        with self.builder.function("main", parameters):
            with self.builder.dataflow():
                try:
                    outputs = self.outputs(values)
                except (
                    UnsupportedError
                ) as error:  # raised again below: TVM complains about a function that is not ended
                    refused, outputs = error, [relax.const(0)]
                result = self.builder.emit_output(outputs[0] if len(outputs) == 1 else relax.Tuple(outputs))
            self.builder.emit_func_output(result)
        if refused is not None:
            raise refused
        return self.builder.get()

    def outputs(self, values: dict[str, Value | None]) -> list[relax.Expr]:
        """The graph's outputs; `values` holds its inputs and initializers."""
        graph = self.proto.graph
        self.run(graph.node, _versions(self.proto.opset_import), values)
        outputs = [tensor(_given(values[o.name])) for o in graph.output]
        for value, output in zip(graph.output, outputs, strict=True):
            if 0 in shape_of(output):
                raise UnsupportedError(f"output '{value.name}' has no elements: its shape is {shape_of(output)}")
        return outputs

    def run(
        self, nodes: Iterable[onnx.NodeProto], versions: Mapping[str, int], values: dict[str, Value | None]
    ) -> None:
        """Adds the outputs of `nodes` to `values`."""
        for proto in nodes:
            inputs = tuple(values[name] if name else None for name in proto.input)
            if proto.op_type == "If" and isinstance(inputs[0], np.ndarray):
                results = self.branch(proto, versions, values, taken=bool(inputs[0].item()))
            else:
                results = self.convert(proto, versions, inputs)
            values.update((n, r) for n, r in zip(proto.output, results, strict=False) if n)

    def convert(
        self, proto: onnx.NodeProto, versions: Mapping[str, int], inputs: tuple[Value | None, ...]
    ) -> Sequence[Value | None]:
        """The outputs of one node."""
        if (function := self.functions.get((proto.domain, proto.op_type))) is not None:
            return self.call(proto, function, versions, inputs)
        constant = all(i is None or isinstance(i, np.ndarray) for i in inputs)
        if constant and proto.op_type not in _RANDOM | _CONTROL_FLOW:
            return _evaluate(proto, versions, inputs)
        node = Node(proto, versions.get("", 0), inputs, self.builder)
        if self.override is not None and (overridden := self.override(node)) is not None:
            return overridden
        if proto.op_type in CONVERTERS and proto.domain in _ONNX_DOMAINS:
            result = CONVERTERS[proto.op_type](node)
            results = list(result) if isinstance(result, list | tuple) else [result]
            if len(results) < sum(1 for name in proto.output if name):
                raise node.refuse(f"its output '{proto.output[len(results)]}' is not handled")
            return [np.zeros(shape_of(r), dtype_of(r)) if 0 in shape_of(r) else r for r in results]
        body = _body(proto, versions, inputs)
        if body is None:
            raise UnsupportedError.of([_unknown(proto)])
        return self.call(proto, body, versions, inputs)

    def branch(
        self, proto: onnx.NodeProto, versions: Mapping[str, int], values: dict[str, Value | None], taken: bool
    ) -> Sequence[Value | None]:
        """The outputs of an If whose condition is known; its branches see all `values` around it."""
        name = "then_branch" if taken else "else_branch"
        (graph,) = (a.g for a in proto.attribute if a.name == name)
        inner = values | {i.name: numpy_helper.to_array(i) for i in graph.initializer}
        self.run(graph.node, versions, inner)
        return [inner[o.name] for o in graph.output]

    def call(
        self,
        proto: onnx.NodeProto,
        function: onnx.FunctionProto,
        versions: Mapping[str, int],
        inputs: tuple[Value | None, ...],
    ) -> Sequence[Value | None]:
        """The outputs of a call of `function`, by its body."""
        given = {a.name: a for a in function.attribute_proto} | {a.name: a for a in proto.attribute}
        values: dict[str, Value | None] = dict.fromkeys(function.input)
        values.update(zip(function.input, inputs, strict=False))
        nodes = [_bind_attributes(n, given) for n in function.node]
        try:
            self.run(nodes, {**versions, **_versions(function.opset_import)}, values)
        except UnsupportedError as error:
            why = f"it is defined by simpler operators, of which {error}"
            raise UnsupportedError.of([refusal(proto, why)]) from None
        return [values.get(name) for name in function.output]


def _given(value: Value | None) -> Value:
    assert value is not None
    return value


def _identifier(name: str) -> str:
    return re.sub(r"\W", "_", name) or "_"


def _static_type(value: onnx.ValueInfoProto) -> relax.TensorType:
    tensor_type = value.type.tensor_type
    dims = [d.dim_value if d.HasField("dim_value") else None for d in tensor_type.shape.dim]
    if not tensor_type.HasField("shape") or None in dims:
        raise UnsupportedError(f"input '{value.name}' has an open dimension; fix it with --batch or --shape")
    return relax.TensorType(dims, str(onnx.helper.tensor_dtype_to_np_dtype(tensor_type.elem_type)))


def _bind_attributes(node: onnx.NodeProto, given: Mapping[str, onnx.AttributeProto]) -> onnx.NodeProto:
    """`node` of a function body, with references to the function's attributes replaced by what the caller gave."""
    if not any(a.ref_attr_name for a in node.attribute):
        return node
    bound = onnx.NodeProto()
    bound.CopyFrom(node)
    del bound.attribute[:]
    for attribute in node.attribute:
        if not attribute.ref_attr_name:
            bound.attribute.append(attribute)
        elif attribute.ref_attr_name in given:
            copy = bound.attribute.add()
            copy.CopyFrom(given[attribute.ref_attr_name])
            copy.name = attribute.name
    return bound


def _evaluate(proto: onnx.NodeProto, versions: Mapping[str, int], inputs: Sequence[Value | None]) -> list[Array]:
    """The outputs of a node whose inputs are constants."""
    if _schema(proto, versions) is None:
        raise UnsupportedError.of([_unknown(proto)])
    names = [f"i{n}" if i is not None else "" for n, i in enumerate(inputs)]
    outputs = [name or f"unused{n}" for n, name in enumerate(proto.output)]
    node = onnx.NodeProto()
    node.CopyFrom(proto)
    node.input[:], node.output[:] = names, outputs
    graph = onnx.helper.make_graph(
        [node],
        "constant",
        [onnx.ValueInfoProto(name=n) for n in names if n],
        [onnx.ValueInfoProto(name=n) for n in outputs],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid(d, v) for d, v in versions.items()])
    feeds = {n: i for n, i in zip(names, inputs, strict=True) if n}
    with np.errstate(all="ignore"):  # constants may be infinite, on purpose
        return [np.asarray(v) for v in evaluator(model).run(None, feeds)]


def _body(
    proto: onnx.NodeProto, versions: Mapping[str, int], inputs: Sequence[Value | None]
) -> onnx.FunctionProto | None:
    """The function that defines the node's operator by simpler ones."""
    schema = _schema(proto, versions)
    if schema is None:
        return None
    version = versions[""] if proto.domain in _ONNX_DOMAINS else versions[proto.domain]
    if schema.has_context_dependent_function:
        types = [_type_proto(i).SerializeToString() for i in inputs]
        usable = [v for v in schema.context_dependent_function_opset_versions if v <= version]
        text = schema.get_context_dependent_function_with_opset_version(
            max(usable, default=min(schema.context_dependent_function_opset_versions)), proto.SerializeToString(), types
        )
    elif schema.has_function:
        usable = [v for v in schema.function_opset_versions if v <= version]
        text = schema.get_function_with_opset_version(max(usable, default=min(schema.function_opset_versions)))
    else:
        return None
    function = onnx.FunctionProto()
    function.ParseFromString(text)
    for name, attribute in schema.attributes.items():
        if attribute.default_value.name and name not in {a.name for a in function.attribute_proto}:
            function.attribute_proto.append(attribute.default_value)
    return function


def _type_proto(value: Value | None) -> onnx.TypeProto:
    if value is None:
        return onnx.TypeProto()
    element = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype_of(value)))
    return onnx.helper.make_tensor_type_proto(element, shape_of(value))
