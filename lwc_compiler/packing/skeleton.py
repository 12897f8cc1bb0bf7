"""A model as a graph without large tensors, and these: taken apart for a packed file, and put together again."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, TensorProto, helper, numpy_helper

from lwc_compiler.model import Model, add_notes, copy_fields, take_notes
from lwc_compiler.packing.reader import damaged, varint
from lwc_compiler.packing.tensor_codec import Elements

# The fields of a TensorProto that elements are taken from, by their numbers in onnx.proto.
_RAW, _FLOATS = TensorProto.RAW_DATA_FIELD_NUMBER, TensorProto.FLOAT_DATA_FIELD_NUMBER
_FIELDS = {_RAW: "raw_data", _FLOATS: "float_data"}
_WIDTHS = (1, 2, 4, 8)
_SMALLEST = 64  # bytes of a tensor that leaves the graph


def take_apart(model: Model) -> tuple[ModelProto, dict[int, tuple[int, Elements]]]:
    """What `save_model` writes, without large tensors, and these: place in `tensors_of` -> (field, elements)."""
    graph = model.proto.graph
    payloads = {
        place: payload
        for place, (_, tensor) in enumerate(tensors_of(graph))
        if (payload := _payload(tensor)) is not None
    }
    skeleton = ModelProto()
    copy_fields(model.proto, skeleton, without={"graph"})
    add_notes(skeleton, model)
    copy_fields(graph, skeleton.graph, without={"initializer"})
    for place, tensor in enumerate(graph.initializer):
        taken = {_FIELDS[payloads[place][0]]} if place in payloads else set()
        copy_fields(tensor, skeleton.graph.initializer.add(), without=taken)
    for place, (_, tensor) in enumerate(tensors_of(skeleton.graph)):
        if place in payloads:
            tensor.ClearField(_FIELDS[payloads[place][0]])
    return skeleton, payloads


def put_back(skeleton: ModelProto, payloads: Mapping[int, tuple[int, Elements]]) -> None:
    """Undoes `take_apart`, in place."""
    for place, (_, tensor) in enumerate(tensors_of(skeleton.graph)):
        if place in payloads:
            fill(tensor, *payloads[place])


def tensors_of(graph: GraphProto) -> Iterator[tuple[str, TensorProto]]:
    """Name and message of every tensor: initializers, then those of nodes in order, subgraphs where they are.

    What a node holds, a Constant above all, goes by the name of its first output.
    """
    for tensor in graph.initializer:
        yield tensor.name, tensor
    for node in graph.node:
        for attribute in node.attribute:
            for tensor in [*([attribute.t] if attribute.HasField("t") else []), *attribute.tensors]:
                yield next(iter(node.output), tensor.name), tensor
            for body in [*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs]:
                yield from tensors_of(body)


def _payload(tensor: TensorProto) -> tuple[int, Elements] | None:
    """The field and the elements that leave the graph; None when the tensor stays in it."""
    field = _FLOATS if tensor.float_data else _RAW
    layout = _layout(tensor, field)
    if layout is None:
        return None
    count, width = layout
    if field == _RAW:
        data = tensor.raw_data
    else:
        floats = np.array(tensor.float_data, "<f4")
        # Python's floats are doubles, and a NaN may become another one on the way.
        data = b"" if np.isnan(floats).any() else floats.tobytes()
    if len(data) != count * width or len(data) < _SMALLEST:
        return None
    return field, np.frombuffer(data, f"<u{width}")


def _layout(tensor: TensorProto, field: int) -> tuple[int, int] | None:
    """Number and bytes of the elements by type and shape; None for types that such a field does not hold whole."""
    if field == _FLOATS:
        known = tensor.data_type == TensorProto.FLOAT
    else:
        known = tensor.data_type not in (TensorProto.UNDEFINED, TensorProto.STRING)
    known = known and tensor.data_type in TensorProto.DataType.values() and all(size >= 0 for size in tensor.dims)
    width = helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize if known else 0
    return (math.prod(tensor.dims), width) if width in _WIDTHS else None


def fill(tensor: TensorProto, field: int, elements: Elements) -> None:
    """Puts elements into a tensor that has none."""
    data = elements.tobytes()
    if field == _RAW:
        tensor.raw_data = data
    else:  # as on the wire, where no double comes between
        tensor.MergeFromString(varint(_FLOATS << 3 | 2) + varint(len(data)) + data)


def announced(tensor: TensorProto, name: str, field: int) -> tuple[int, int]:
    """Number and bytes of the elements that a record holds for a tensor of the skeleton.

    Raises:
        ArtifactError: the tensor has elements, or is of a type or shape that has none in this field.
    """
    layout = _layout(tensor, field) if field in _FIELDS else None
    if layout is None or not layout[0] or tensor.raw_data or tensor.float_data:
        raise damaged(f"elements in field {field} do not fit tensor '{name}'")
    return layout


def with_notes(proto: ModelProto, name: str) -> Model:
    """The model of a whole graph, with the provenance and the masks that are in its metadata; see `load_model`.

    Raises:
        ArtifactError: these cannot be read.
    """
    try:
        provenance, masked = take_notes(proto)
        weights: dict[str, NDArray[Any]] = {
            tensor.name: numpy_helper.to_array(tensor) for tensor in proto.graph.initializer if tensor.name in masked
        }
    except Exception as error:
        raise damaged(f"what lwc noted about the model cannot be read ({type(error).__name__})") from None
    return Model(proto, name, {weight: array != 0 for weight, array in weights.items()}, provenance)
