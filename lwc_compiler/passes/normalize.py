"""The normalize pass: one plain form for every exporter's graph, with the same outputs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, TensorProto, TensorShapeProto, helper, numpy_helper

from lwc_compiler.errors import OptionError, UnsupportedError
from lwc_compiler.model import Model, infer_shapes
from lwc_compiler.passes.dropout import find_dropouts
from lwc_compiler.passes.surgeon import (
    Constant,
    Graph,
    Node,
    Tensor,
    evaluate,
    onnx_type,
    replace_uses,
    rewritten,
    unique_name,
)

# A folded constant may be this many bytes larger than the constants it is computed from.
_FOLD_GROWTH = 16 * 2**20

# Nodes that are no function of their inputs, or whose inputs alone do not make them constant.
_NEVER_FOLDED = frozenset(
    {
        "RandomNormal",
        "RandomNormalLike",
        "RandomUniform",
        "RandomUniformLike",
        "Multinomial",
        "Bernoulli",
        "Dropout",
        "If",
        "Loop",
        "Scan",
    }
)
# Nodes whose outputs can be far larger than their inputs: computed only when the size is known before.
_EXPANDING = frozenset({"ConstantOfShape", "Expand", "Tile", "Range", "OneHot", "Resize", "Upsample", "Pad", "EyeLike"})
# Nodes that pick dimensions out of a shape.
_SHAPE_LOOKUPS = frozenset({"Gather", "Slice", "Squeeze", "Unsqueeze"})
_OPEN = -(2**62)  # stands for an open dimension in a shape; no size reaches it

_REDUCED_FLOATS = frozenset({TensorProto.FLOAT16, TensorProto.BFLOAT16})
# Attributes that hold a tensor element type.
_TYPE_ATTRIBUTES = frozenset({"to", "dtype", "stash_type", "output_dtype", "softmax_precision"})


def normalize(
    model: Model,
    *,
    shapes: Mapping[str, Sequence[int]] | None = None,
    batch: int | None = None,
    fold_batch_norm: bool,
) -> Model:
    """Brings the graph into the form the other passes expect. Outputs stay the same.

    Constant nodes become initializers, everything that depends on constants alone is computed, Identity and
    inference-mode Dropout go, an If with a constant condition becomes its branch, dead nodes go, nodes without a name
    get one, shapes are inferred. Names of inputs, outputs and weights, metadata and opset stay. float16 and bfloat16
    become float32, inputs and outputs included.

    Args:
        model: left as it is.
        shapes: input name -> every dimension.
        batch: size of dimension 0 of every input that leaves it open and is not in `shapes`.
        fold_batch_norm: fold BatchNormalization into the Conv, ConvTranspose or Gemm before it.

    With `shapes` or `batch` every input dimension has to be known afterwards, and what depends on shapes alone is
    computed too.

    Raises:
        OptionError: `shapes` names no input, or has another number of dimensions or contradicts a fixed one.
        UnsupportedError: a dimension is still open although `shapes` or `batch` is given.
    """
    proto = ModelProto()
    proto.CopyFrom(model.proto)
    _to_float32(proto.graph)
    if shapes is not None or batch is not None:
        _fix_shapes(proto.graph, shapes or {}, batch)
    proto = _infer_afresh(proto)
    # Folding shows shape inference more, and new shapes give folding more to do.
    before: list[tuple[str, ...]] = []
    while before != (now := [(node.op_type, *node.output) for node in proto.graph.node]):
        before = now
        proto = infer_shapes(rewritten(proto, _remove_noops, _fold))
    if fold_batch_norm:
        proto = infer_shapes(rewritten(proto, _fold_affine))
    for inferred, declared in zip(proto.graph.output, model.proto.graph.output, strict=True):
        if declared.type.tensor_type.HasField("shape") and not inferred.type.tensor_type.HasField("shape"):
            # Behind an operator that inference does not know.
            inferred.type.tensor_type.shape.CopyFrom(declared.type.tensor_type.shape)
    _name_nodes(proto.graph)
    weights = {tensor.name: tuple(tensor.dims) for tensor in proto.graph.initializer}
    masks = {name: mask for name, mask in model.masks.items() if weights.get(name) == mask.shape}
    options = {
        "fold_batch_norm": fold_batch_norm,
        "batch": batch,
        "shapes": None if shapes is None else {name: list(shape) for name, shape in shapes.items()},
    }
    # Training wants to know where Dropout was.
    dropout = find_dropouts(model.proto.graph)
    return replace(model, masks=masks).after("normalize", proto, options=options, dropout=dropout)


def _to_float32(graph: GraphProto) -> None:
    for tensor in graph.initializer:
        _tensor_to_float32(tensor)
    for value in (*graph.input, *graph.output, *graph.value_info):
        if value.type.tensor_type.elem_type in _REDUCED_FLOATS:
            value.type.tensor_type.elem_type = TensorProto.FLOAT
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                _tensor_to_float32(attribute.t)
            if attribute.HasField("g"):
                _to_float32(attribute.g)
            if node.domain == "" and attribute.name in _TYPE_ATTRIBUTES and attribute.i in _REDUCED_FLOATS:
                attribute.i = TensorProto.FLOAT


def _tensor_to_float32(tensor: TensorProto) -> None:
    if tensor.data_type in _REDUCED_FLOATS:
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float32), tensor.name))


def _fix_shapes(graph: GraphProto, shapes: Mapping[str, Sequence[int]], batch: int | None) -> None:
    """Gives every input a static shape and forgets every shape that was declared for the rest, in place."""
    inputs = {value.name: value for value in graph.input}
    sizes: dict[str, int] = {}  # dimension name -> size: what one input is given holds for the others
    for name, shape in shapes.items():
        if name not in inputs:
            raise OptionError(f"'{name}', given a shape, is no input of the model; its inputs: {_quoted(inputs)}")
        tensor = inputs[name].type.tensor_type
        if not tensor.HasField("shape"):
            tensor.shape.dim.extend(TensorShapeProto.Dimension() for _ in shape)
        dims = tensor.shape.dim
        if len(dims) != len(shape):
            raise OptionError(
                f"input '{name}' has {len(dims)} dimensions ({_described(dims)}); the shape given has {len(shape)}"
            )
        for axis, (dim, size) in enumerate(zip(dims, shape, strict=True)):
            known = sizes.setdefault(dim.dim_param, size) if _is_named(dim) else size
            if (not _is_open(dim) and dim.dim_value != size) or known != size:
                raise OptionError(
                    f"input '{name}', dimension {axis}: the shape given says {size}, "
                    f"the model {known if _is_open(dim) else dim.dim_value}"
                )
            dim.dim_value = size
    for name, value in inputs.items():
        if not value.type.HasField("tensor_type"):
            raise UnsupportedError(f"input '{name}' is no tensor; lwc lowers models with tensor inputs only")
        if not value.type.tensor_type.HasField("shape"):
            raise UnsupportedError(f"input '{name}' has no shape; give it with --shape {name}=...")
        dims = value.type.tensor_type.shape.dim
        for axis, dim in enumerate(dims):
            if not _is_open(dim):
                continue
            size_or_none = sizes.get(dim.dim_param) if _is_named(dim) else None
            if size_or_none is None and axis == 0:
                size_or_none = batch
            if size_or_none is None:
                hint = ",".join(str(d.dim_value) if not _is_open(d) else d.dim_param or "?" for d in dims)
                label = f" ('{dim.dim_param}')" if dim.dim_param else ""
                raise UnsupportedError(
                    f"input '{name}', dimension {axis}{label} is dynamic; give its size with --shape {name}={hint}, "
                    "in a recipe with `shapes` under [lower]"
                )
            dim.dim_value = size_or_none
    _forget_shapes(graph)


def _forget_shapes(graph: GraphProto) -> None:
    del graph.value_info[:]
    for value in graph.output:
        if value.type.HasField("tensor_type"):
            value.type.tensor_type.ClearField("shape")
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                _forget_shapes(attribute.g)


def _is_open(dim: TensorShapeProto.Dimension) -> bool:
    return not dim.HasField("dim_value") or dim.dim_value < 1


def _is_named(dim: TensorShapeProto.Dimension) -> bool:
    """Whether the dimension has a name that ties it to others: exporters also write '?' for any dimension."""
    return any(letter.isalpha() for letter in dim.dim_param)


def _described(dims: Iterable[TensorShapeProto.Dimension]) -> str:
    return ", ".join(dim.dim_param or "?" if _is_open(dim) else str(dim.dim_value) for dim in dims)


def _quoted(names: Iterable[str]) -> str:
    return ", ".join(f"'{name}'" for name in names)


def _infer_afresh(proto: ModelProto) -> ModelProto:
    """Shapes from inference; a declared shape counts only where inference has none, since it may be out of date."""
    declared = list(proto.graph.value_info)
    del proto.graph.value_info[:]
    inferred = infer_shapes(proto)
    known = {info.name for info in inferred.graph.value_info if info.type.tensor_type.HasField("shape")}
    rest = [info for info in declared if info.name not in known]
    if not rest:
        return inferred
    proto.graph.value_info.extend(rest)
    return infer_shapes(proto)


def _remove_noops(graph: Graph) -> None:
    """Takes out nodes that hand their input on: Identity, inference-mode Dropout, Cast to the type it already has."""
    outputs = {id(tensor) for tensor in graph.outputs}
    fixed = outputs | {id(tensor) for tensor in graph.inputs}
    for node in graph.nodes:
        if node.domain or not _is_noop(node, outputs):
            continue
        source, result = node.inputs[0], node.outputs[0]
        if id(result) not in outputs:
            replace_uses(result, source)
        elif id(source) not in fixed and not isinstance(source, Constant) and source.inputs:
            # The output's name has to stay, so the producer writes it directly.
            producer = source.inputs[0]
            slot = _index(producer.outputs, source)
            node.outputs.clear()
            replace_uses(source, result)
            producer.outputs[slot] = result


def _is_noop(node: Node, outputs: set[int]) -> bool:
    if node.op == "Identity":
        return True
    if node.op == "Cast":
        source = node.inputs[0].dtype
        return source is not None and bool(node.attrs["to"] == onnx_type(source))
    if node.op == "Dropout":
        training = node.inputs[2] if len(node.inputs) > 2 else None
        in_inference = (
            training is None or training.is_empty() or (isinstance(training, Constant) and not training.values)
        )
        return in_inference and not any(mask.outputs or id(mask) in outputs for mask in node.outputs[1:])
    return False


def _fold(graph: Graph) -> None:
    """Computes what is constant; graph outputs stay with their nodes."""
    outputs = {id(tensor) for tensor in graph.outputs}
    for node in list(graph.nodes):
        if node.domain or any(id(tensor) in outputs for tensor in node.outputs):
            continue
        if node.op == "If" and isinstance(node.inputs[0], Constant):
            _inline_branch(graph, node)
        elif (values := _constant_values(node, graph)) is not None:
            for tensor, value in zip(node.outputs, values, strict=True):
                if not tensor.is_empty():
                    tensor.to_constant(value)
            node.inputs.clear()
            node.outputs.clear()


def _constant_values(node: Node, graph: Graph) -> list[Any] | None:
    """Values of the node's outputs, or None when they are not known or too large to store."""
    if node.op == "Constant" and "value" in node.attrs:
        return [node.attrs["value"]._values]  # as it is stored: a weight is not decoded here
    if node.op in ("Shape", "Size") and _is_static(node.inputs[0].shape):
        shape = np.array(node.inputs[0].shape, np.int64)
        if node.op == "Size":
            return [shape.prod(dtype=np.int64)]
        return [shape[node.attrs.get("start", 0) : node.attrs.get("end")]]
    if node.op in _NEVER_FOLDED:
        return None
    inputs = [tensor for tensor in node.inputs if not tensor.is_empty()]
    if node.op in _SHAPE_LOOKUPS and inputs[0].inputs and inputs[0].inputs[0].op == "Shape":
        # Some dimensions may be open: they are looked up as a mark, and only answers without it count.
        shape_node = inputs[0].inputs[0]
        shape = shape_node.inputs[0].shape
        if shape is None or not all(isinstance(tensor, Constant) for tensor in inputs[1:]):
            return None
        dims = [dim if isinstance(dim, int) else _OPEN for dim in shape]
        dims = dims[shape_node.attrs.get("start", 0) : shape_node.attrs.get("end")]
        values = evaluate(node, [np.array(dims, np.int64), *(tensor.values for tensor in inputs[1:])], graph)
        return None if values is None or (values[0] == _OPEN).any() else values
    if not all(isinstance(tensor, Constant) and tensor.dtype != np.object_ for tensor in inputs):
        return None
    if not _is_affordable(node, inputs):
        return None
    return evaluate(node, [tensor.values for tensor in inputs], graph)


def _is_affordable(node: Node, inputs: Sequence[Constant]) -> bool:
    """Whether the outputs are at most `_FOLD_GROWTH` bytes larger than the constants that become unused."""
    size = 0
    for tensor in node.outputs:
        if tensor.dtype is None or not _is_static(tensor.shape):
            if node.op in _EXPANDING:
                return False
        else:
            size += math.prod(tensor.shape) * helper.tensor_dtype_to_np_dtype(onnx_type(tensor.dtype)).itemsize
    freed = sum(tensor.values.nbytes for tensor in inputs if len(tensor.outputs) == 1)
    return bool(size - freed <= _FOLD_GROWTH)


def _inline_branch(graph: Graph, node: Node) -> None:
    """Puts the nodes of the branch an If always takes in its place."""
    branch = node.attrs["then_branch" if node.inputs[0].values.item() else "else_branch"]
    node.attrs.clear()
    outer = graph.tensors()
    taken = set(outer).union(*(subgraph.tensors() for subgraph in graph.subgraphs(recursive=True)))
    results = list(node.outputs)
    for tensor in branch.tensors().values():
        if outer.get(tensor.name) is not tensor:
            tensor.name = unique_name(tensor.name, taken)
    node.inputs.clear()
    node.outputs.clear()
    graph.nodes.extend(branch.nodes)
    for inner_result, result in zip(branch.outputs, results, strict=True):
        graph.layer(op="Identity", inputs=[inner_result], outputs=[result])


def _is_static(shape: Sequence[object] | None) -> bool:
    return shape is not None and all(isinstance(dim, int) and dim >= 0 for dim in shape)


def _index(tensors: Sequence[Tensor], wanted: Tensor) -> int:
    return next(i for i, tensor in enumerate(tensors) if tensor is wanted)


def _name_nodes(graph: GraphProto) -> None:
    """Gives a name to nodes without one and to all but the first of those that share one."""
    taken = {node.name for node in graph.node}
    seen = {""}
    for node in graph.node:
        if node.name in seen:
            node.name = unique_name(node.name or f"{node.op_type}:{node.output[0]}", taken)
        seen.add(node.name)


def _fold_affine(graph: Graph) -> None:
    """Folds per-channel affine nodes into the weights and bias of the linear node before them.

    y = scale * x + shift over channels: BatchNormalization in inference mode, and Mul, Div, Add, Sub with a constant
    that varies over channels only. The linear node's output must have no other reader and its weight no other use.
    """
    outputs = {id(tensor) for tensor in graph.outputs}
    taken = set(graph.tensors())
    for node in graph.nodes:
        source = next((tensor for tensor in node.inputs if tensor.inputs), None)
        if source is None or len(source.outputs) != 1 or id(source) in outputs:
            continue
        linear = source.inputs[0]
        if linear.domain or linear.op not in ("Conv", "ConvTranspose", "Gemm") or node.domain:
            continue
        weight, bias = linear.inputs[1], _optional(linear.inputs, 2)
        if not isinstance(weight, Constant) or len(weight.outputs) != 1 or not isinstance(bias, Constant | None):
            continue
        scale_shift = channel_affine(node, source, rank=len(weight.shape))
        if scale_shift is None:
            continue
        folded = _scaled(linear, weight.values, None if bias is None else bias.values, *scale_shift)
        if folded is None:
            continue
        weight.values, bias_values = folded
        if bias is not None and len(bias.outputs) == 1:
            bias.values = bias_values
        else:
            name = unique_name(f"{weight.name}_bias", taken)
            linear.inputs = [*linear.inputs[:2], Constant(name, bias_values)]
        result = node.outputs[0]
        node.inputs.clear()
        node.outputs.clear()
        linear.outputs[0] = result


def channel_affine(node: Node, source: Tensor, rank: int) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
    """Scale and shift, each (channels,) or (1,), when the node is affine in `source` by channel (axis 1)."""
    others = [tensor for tensor in node.inputs if tensor is not source]
    if not others or not all(isinstance(tensor, Constant) for tensor in others):
        return None
    values = [tensor.values.astype(np.float64) for tensor in others]
    if node.op == "BatchNormalization":
        if node.attrs.get("training_mode", 0) or not node.attrs.get("spatial", 1) or len(values) != 4:
            return None
        gamma, beta, mean, variance = values
        scale = gamma / np.sqrt(variance + node.attrs.get("epsilon", 1e-5))
        return scale, beta - mean * scale
    if node.op not in ("Mul", "Div", "Add", "Sub"):
        return None
    (value,) = values
    if value.ndim > rank or any(size != 1 for axis, size in enumerate(value.shape, rank - value.ndim) if axis != 1):
        return None
    value = value.reshape(-1)
    if node.op == "Mul":
        return value, np.zeros(1)
    if node.op == "Add":
        return np.ones(1), value
    source_first = node.inputs[0] is source
    if node.op == "Sub":
        return (np.ones(1), -value) if source_first else (-np.ones(1), value)
    return (1 / value, np.zeros(1)) if source_first and value.all() else None


def _scaled(
    linear: Node,
    weight: NDArray[Any],
    bias: NDArray[Any] | None,
    scale: NDArray[np.float64],
    shift: NDArray[np.float64],
) -> tuple[NDArray[Any], NDArray[Any]] | None:
    """Weight and bias of `linear` with its output channels scaled and shifted; None where that is not exact."""
    group = linear.attrs.get("group", 1)
    if linear.op == "Conv":  # (channels, in / group, ...)
        channels = weight.shape[0]
        factors = np.broadcast_to(scale, channels).reshape(-1, *[1] * (weight.ndim - 1))
    elif linear.op == "ConvTranspose":  # (in, channels / group, ...)
        channels = weight.shape[1] * group
        by_group = np.broadcast_to(scale, channels).reshape(group, -1)
        by_input = np.repeat(by_group, weight.shape[0] // group, axis=0)
        factors = by_input.reshape(*weight.shape[:2], *[1] * (weight.ndim - 2))
    else:
        channels = weight.shape[0 if linear.attrs.get("transB", 0) else 1]
        factors = np.broadcast_to(scale, channels)
        factors = factors[:, None] if linear.attrs.get("transB", 0) else factors
        if bias is not None:
            if bias.ndim > 2 or (bias.ndim == 2 and bias.shape[0] != 1):
                return None
            bias = bias.reshape(-1) * np.float64(linear.attrs.get("beta", 1.0))
    old_bias = np.zeros(1) if bias is None else bias.astype(np.float64)
    new_weight = (weight * factors).astype(weight.dtype)
    new_bias = np.broadcast_to(old_bias * scale + shift, channels).astype(weight.dtype)
    if not (np.isfinite(new_weight).all() and np.isfinite(new_bias).all()):
        return None
    linear.attrs.pop("beta", None)  # it is in the bias now
    return new_weight, new_bias


def _optional(tensors: Sequence[Tensor], slot: int) -> Tensor | None:
    return tensors[slot] if slot < len(tensors) and not tensors[slot].is_empty() else None
