"""The model that flows from pass to pass, and the one door to protobuf: read, check, write and convert ONNX files."""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.checker
import onnx.defs
import onnx.external_data_helper
import onnx.inliner
import onnx.shape_inference
import onnx.version_converter
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, NodeProto, SparseTensorProto, TensorProto, numpy_helper

from lwc_compiler.errors import ArtifactError, LwcError, ModelError, UnsupportedError

OLDEST_OPSET = 7
ORT_OPSET = 21  # the newest opset and IR version that ONNX Runtime 1.19.2 reads
ORT_IR_VERSION = 10

# Metadata entries of our own in a saved model.
_PROVENANCE = "lwc.provenance"
_MASKS = "lwc.masks"

# A protobuf message ends at 2 GiB; graph and metadata get 64 MiB of it.
_INLINE_LIMIT = 2**31 - 2**26
# Smaller tensors stay in the model file: axes, shapes and scales that shape inference and the version converter read.
_SMALL_TENSOR = 1024
_PAGE = 4096

# Operators whose constant inputs are trained parameters: an Inf there is a broken training run, elsewhere (attention
# masks, open-ended Clip) it is meant.
_PARAMETRIC = frozenset(
    {
        "Conv",
        "ConvTranspose",
        "Gemm",
        "MatMul",
        "BatchNormalization",
        "InstanceNormalization",
        "LayerNormalization",
        "GroupNormalization",
        "RMSNormalization",
        "PRelu",
        "LSTM",
        "GRU",
        "RNN",
    }
)


@dataclass(frozen=True)
class Model:
    """An ONNX graph with its masks and provenance. Passes return a new `Model`; they never change the one they get.

    What `load_model` promises of `proto`, and every pass keeps: all tensors are in memory and dense, graph inputs are
    what the caller feeds (no initializers), local functions are inlined, nodes are in topological order.

    Attributes:
        proto: the user's graph: their names, metadata and opset.
        name: file-name-safe name of the model, from the file it came from.
        masks: weight initializer name -> kept entries (bool, the weight's shape). Pruned weights are exact zeros in
            `proto` too, so every intermediate is a model any other tool can open.
        provenance: one entry a pass, oldest first: {"pass": name, "options": {...}, ...results}. JSON-able.
    """

    proto: ModelProto
    name: str
    masks: dict[str, NDArray[np.bool_]] = field(default_factory=dict, repr=False)
    provenance: tuple[dict[str, Any], ...] = field(default=(), repr=False)

    def after(self, pass_name: str, proto: ModelProto | None = None, **entry: Any) -> Model:
        """This model as pass `pass_name` leaves it, with `entry` added to the provenance."""
        return replace(
            self,
            proto=self.proto if proto is None else proto,
            provenance=(*self.provenance, {"pass": pass_name, **entry}),
        )


def load_model(path: str | Path) -> Model:
    """Reads and checks an ONNX file, with its external data.

    Models before IR version 4 list their initializers as graph inputs; they become IR version 4. Initializers that a
    caller could override are constants from here on. Sparse initializers become dense. What `save_model` stored beside
    the graph (provenance, masks) is read back: the mask of a pruned weight is where it is not zero.

    Raises:
        ModelError: the file is missing, not an ONNX model, damaged, not valid ONNX, or a weight holds NaN or Inf.
        UnsupportedError: its opset or IR version is outside what lwc reads.
    """
    path = Path(path)
    return _checked(_read(path), path)


def model_of(proto: ModelProto) -> Model:
    """`load_model` for a model in memory, which is left as it is; it is called as its graph.

    Raises:
        ModelError, UnsupportedError: see `load_model`.
    """
    copy = ModelProto()
    copy.CopyFrom(proto)
    return _checked(copy, Path(proto.graph.name or "model"))


def _checked(proto: ModelProto, path: Path) -> Model:
    if not proto.HasField("graph") or not proto.graph.output:
        raise ModelError(f"{path} is not an ONNX model: it holds no graph with outputs")
    try:
        _check_versions(proto, path)
        _load_external_data(proto, path)
        _simplify(proto, path)
        constants = dict(_constants(proto.graph))
        onnx.checker.check_model(_skeleton(proto))
    except LwcError:
        raise
    except Exception as error:  # damaged files fail in many ways, none of them a defect in lwc
        raise ModelError(f"{path} is not a valid ONNX model: {_first_line(error)}") from error
    _check_finite(proto.graph, constants, path)
    try:
        provenance, masked = take_notes(proto)
    except (ValueError, TypeError) as error:
        raise ModelError(f"{path}: what lwc stored in its metadata was changed and cannot be read: {error}") from error
    weights = {tensor.name for tensor in proto.graph.initializer}
    masks = {name: constants[name] != 0 for name in masked if name in weights}
    return Model(proto, name_of(path), masks, provenance)


def name_of(path: Path) -> str:
    """The name of the model in a file: letters, digits, `_`, `.` and `-` of the file's."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "_", path.stem).strip("._-") or "model"


def add_notes(proto: ModelProto, model: Model) -> None:
    """Puts the provenance and the names of the masks of `model` into the metadata of `proto`."""
    for key, value in ((_PROVENANCE, list(model.provenance)), (_MASKS, sorted(model.masks))):
        if value:
            proto.metadata_props.add(key=key, value=json.dumps(value))


def take_notes(proto: ModelProto) -> tuple[tuple[dict[str, Any], ...], list[str]]:
    """Takes what `add_notes` put there out of the metadata: the provenance, and the names of masked weights.

    Raises:
        ValueError, TypeError: it was changed and cannot be read.
    """
    notes = {entry.key: entry.value for entry in proto.metadata_props if entry.key in (_PROVENANCE, _MASKS)}
    kept = [entry for entry in proto.metadata_props if entry.key not in notes]
    del proto.metadata_props[:]
    proto.metadata_props.extend(kept)
    provenance = tuple(dict(entry) for entry in json.loads(notes.get(_PROVENANCE, "[]")))
    return provenance, [str(name) for name in json.loads(notes.get(_MASKS, "[]"))]


def save_model(model: Model, path: str | Path) -> None:
    """Writes the model's graph; masks and provenance go into its metadata, where `load_model` finds them.

    The same model gives the same bytes. The file is written beside `path` and renamed, so `path` is never half-written.
    Above 2 GB the weights go to `<path>.data`.

    Raises:
        ArtifactError: the file cannot be written.
    """
    proto = ModelProto()
    copy_fields(model.proto, proto, without={"graph"})
    proto.graph.CopyFrom(model.proto.graph)
    add_notes(proto, model)
    write_proto(proto, path)


def write_proto(proto: ModelProto, path: str | Path) -> None:
    """Writes an ONNX file through a temporary file and a rename; above 2 GB the weights go to `<path>.data`.

    Raises:
        ArtifactError: the file cannot be written.
    """
    path = Path(path)
    data = path.with_name(path.name + ".data")
    new_path, new_data = (file.with_name(f".{file.name}.{os.getpid()}.tmp") for file in (path, data))
    try:
        if sum(_nbytes(tensor) for tensor in proto.graph.initializer) > _INLINE_LIMIT:
            with new_data.open("wb") as file:
                proto = _with_external_data(proto, data.name, file)
        new_path.write_bytes(proto.SerializeToString(deterministic=True))
        if new_data.exists():
            new_data.replace(data)
        new_path.replace(path)
    except OSError as error:
        raise ArtifactError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        with contextlib.suppress(OSError):
            new_path.unlink(missing_ok=True)
            new_data.unlink(missing_ok=True)


def working_copy(proto: ModelProto, *, opset: int = ORT_OPSET, ir_version: int = ORT_IR_VERSION) -> ModelProto:
    """A copy of the graph that a runtime of limited age reads; by default ONNX Runtime 1.19.2.

    Args:
        proto: left as it is.
        opset: newest version of the ONNX operators the copy may use; an older model keeps its own.
        ir_version: newest IR version of the copy.

    Raises:
        UnsupportedError: an operator of the model does not exist in `opset` or means something else there.
    """
    copy = ModelProto()
    if opset_of(proto) > opset:
        copy = convert_opset(proto, opset)
    else:
        copy.CopyFrom(proto)
    copy.ir_version = min(copy.ir_version, ir_version)
    return copy


def convert_opset(proto: ModelProto, opset: int) -> ModelProto:
    """A copy of the graph in another opset; weights of any size.

    Operators that the other opset lacks become what they are defined as, where ONNX defines them by simpler ones.

    Raises:
        UnsupportedError: no conversion exists; the message names the first operator that differs.
    """
    weights = {tensor.name: tensor for tensor in proto.graph.initializer}
    bare = _skeleton(_without_newer(proto, opset))
    try:
        bare = onnx.version_converter.convert_version(bare, opset)
    except Exception as error:
        changed = _first_changed(bare.graph, opset_of(proto), opset)
        if changed is not None:
            raise UnsupportedError(
                f"node '{changed.name or changed.output[0]}' ({changed.op_type}): this operator of opset "
                f"{opset_of(proto)} has no equivalent in opset {opset}; export the model with opset {opset} or older "
                f"({_first_line(error)})"
            ) from error
        for entry in bare.opset_import:
            if entry.domain == "":
                entry.version = opset
    _restore_weights(bare.graph, weights)
    return bare


def infer_shapes(proto: ModelProto) -> ModelProto:
    """A copy whose `value_info` holds every type and shape that ONNX can infer; weights of any size.

    Shape computations are followed through their values. A node that cannot be inferred is left without shapes.
    """
    inferred = onnx.shape_inference.infer_shapes(_skeleton(proto), data_prop=True)
    weights = {tensor.name for tensor in proto.graph.initializer}
    result = ModelProto()
    result.CopyFrom(proto)
    del result.graph.value_info[:]
    result.graph.value_info.extend(info for info in inferred.graph.value_info if info.name not in weights)
    del result.graph.output[:]
    result.graph.output.extend(inferred.graph.output)
    return result


def opset_of(proto: ModelProto) -> int:
    """Version of the standard ONNX operators the model uses."""
    return int(max(entry.version for entry in proto.opset_import if entry.domain == ""))


def attributes_of(node: NodeProto) -> dict[str, Any]:
    """The node's attributes as Python values, bytes decoded."""
    return {item.name: _text(onnx.helper.get_attribute_value(item)) for item in node.attribute}


def sort_nodes(graph: GraphProto) -> None:
    """Puts the nodes in topological order, in place; nodes that are in order already keep their places."""
    known = {""} | {value.name for value in graph.input} | {tensor.name for tensor in graph.initializer}
    produced = {name for node in graph.node for name in node.output}
    waiting = list(graph.node)
    ordered: list[NodeProto] = []
    while waiting:
        later = []
        for node in waiting:
            if all(name in known or name not in produced for name in _used_names(node)):
                ordered.append(node)
                known.update(node.output)
            else:
                later.append(node)
        if len(later) == len(waiting):  # a cycle: left to the checker, which names it
            ordered += later
            break
        waiting = later
    if any(old is not new for old, new in zip(graph.node, ordered, strict=True)):
        del graph.node[:]
        graph.node.extend(ordered)


def copy_fields(source: Any, target: Any, *, without: set[str]) -> None:
    """Copies a message field by field, so that large ones can be left out."""
    for descriptor, value in source.ListFields():
        if descriptor.name in without:
            continue
        if isinstance(value, (int, float, str, bytes)):
            setattr(target, descriptor.name, value)
        else:
            getattr(target, descriptor.name).MergeFrom(value)


def _read(path: Path) -> ModelProto:
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise ModelError(f"{path} does not exist") from None
    except IsADirectoryError:
        raise ModelError(f"{path} is a directory, not an ONNX file") from None
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror or error}") from error
    if not data:
        raise ModelError(f"{path} is empty")
    try:
        proto: ModelProto = ModelProto.FromString(data)
    except Exception as error:
        raise ModelError(f"{path} is not an ONNX model, or only part of one") from error
    return proto


def _check_versions(proto: ModelProto, path: Path) -> None:
    if proto.ir_version > onnx.IR_VERSION:
        raise UnsupportedError(
            f"{path} has ONNX IR version {proto.ir_version}; the installed onnx {onnx.__version__} reads up to "
            f"{onnx.IR_VERSION}: upgrade onnx or export an older version"
        )
    for entry in proto.opset_import:
        if entry.domain == "ai.onnx":
            entry.domain = ""
    versions = [entry.version for entry in proto.opset_import if entry.domain == ""]
    newest = onnx.defs.onnx_opset_version()
    if not versions and proto.ir_version >= 3:
        raise ModelError(f"{path} does not say which opset it uses")
    opset = max(versions, default=1)  # before IR version 3 there was one opset
    if not OLDEST_OPSET <= opset <= newest:
        raise UnsupportedError(f"{path} uses ONNX opset {opset}; lwc reads {OLDEST_OPSET} to {newest}")


def _load_external_data(proto: ModelProto, path: Path) -> None:
    try:
        onnx.external_data_helper.load_external_data_for_model(proto, str(path.parent))
    except Exception as error:
        raise ModelError(f"{path}: the external data of a weight cannot be read: {_first_line(error)}") from error


def _simplify(proto: ModelProto, path: Path) -> None:
    """Establishes what `Model` promises of its graph, in place."""
    graph = proto.graph
    for tensor in graph.sparse_initializer:
        graph.initializer.append(_densify(tensor))
    del graph.sparse_initializer[:]
    weights = {tensor.name: tensor for tensor in graph.initializer}
    if len(weights) < len(graph.initializer):
        raise ModelError(f"{path} is not a valid ONNX model: two initializers share a name")
    _drop_named(graph.input, weights)
    proto.ir_version = max(proto.ir_version, 4)
    if proto.functions:
        inlined = onnx.inliner.inline_local_functions(_skeleton(proto))
        _restore_weights(inlined.graph, weights)
        proto.CopyFrom(inlined)
    graph.name = graph.name or path.stem
    for node in _all_nodes(graph):
        if node.domain == "ai.onnx":
            node.ClearField("domain")
    sort_nodes(graph)


def _densify(sparse: SparseTensorProto) -> TensorProto:
    """The dense form of a COO tensor: `indices` are linear (nnz,) or per dimension (nnz, rank)."""
    values = numpy_helper.to_array(sparse.values)
    indices = numpy_helper.to_array(sparse.indices)
    dense = np.zeros(tuple(sparse.dims), values.dtype)
    if indices.ndim == 1:
        dense.reshape(-1)[indices] = values
    else:
        dense[tuple(indices.T)] = values
    return numpy_helper.from_array(dense, sparse.values.name)


def _check_finite(graph: GraphProto, constants: dict[str, NDArray[Any]], path: Path) -> None:
    parameters = {name for node in _all_nodes(graph) if node.op_type in _PARAMETRIC for name in node.input}
    for name, array in constants.items():
        if (array.dtype.kind != "f" and array.dtype.name != "bfloat16") or not array.size:
            continue
        low, high = float(array.min()), float(array.max())  # both are NaN when any entry is
        if np.isnan(low) or (name in parameters and not (np.isfinite(low) and np.isfinite(high))):
            what = "NaN" if np.isnan(low) else "Inf"
            raise ModelError(f"{path}: weight '{name}' holds {what}; the model cannot be used as it is")


def _constants(graph: GraphProto) -> Iterator[tuple[str, NDArray[Any]]]:
    """Name and value of every constant tensor: initializers and Constant nodes, in subgraphs too."""
    for tensor in graph.initializer:
        yield tensor.name, numpy_helper.to_array(tensor)
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield node.output[0] if node.op_type == "Constant" else node.name, numpy_helper.to_array(attribute.t)
            if attribute.HasField("g"):
                yield from _constants(attribute.g)


def _all_nodes(graph: GraphProto) -> Iterator[NodeProto]:
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _all_nodes(attribute.g)


def _used_names(node: NodeProto) -> Iterator[str]:
    """Tensors the node reads, those its subgraphs read included."""
    yield from node.input
    for attribute in node.attribute:
        if attribute.HasField("g"):
            for inner in _all_nodes(attribute.g):
                yield from inner.input
            yield from (output.name for output in attribute.g.output)


def _without_newer(proto: ModelProto, opset: int) -> ModelProto:
    """The model with every operator that `opset` lacks replaced by its definition in simpler ones, if it has one."""
    newer = {node.op_type for node in _all_nodes(proto.graph) if not node.domain and not _schema(node.op_type, opset)}
    if not newer:
        return proto
    bare = _skeleton(proto, small=-1)  # definitions depend on types, which the inliner knows of inputs only
    for node in _all_nodes(bare.graph):
        schema = _schema(node.op_type, opset_of(proto)) if node.op_type in newer else None
        given = {attribute.name for attribute in node.attribute}
        node.attribute.extend(  # the inliner leaves out what is not written down
            attribute.default_value
            for name, attribute in (schema.attributes.items() if schema else ())
            if name not in given and attribute.default_value.name
        )
    functions = [("", op_type) for op_type in sorted(newer)]
    inlined = onnx.inliner.inline_selected_functions(bare, functions, inline_schema_functions=True)
    _restore_weights(inlined.graph, {tensor.name: tensor for tensor in proto.graph.initializer})
    return inlined


def _schema(op_type: str, opset: int) -> onnx.defs.OpSchema | None:
    try:
        return onnx.defs.get_schema(op_type, opset, "")
    except onnx.defs.SchemaError:
        return None


def _first_changed(graph: GraphProto, old: int, new: int) -> NodeProto | None:
    """The first node whose operator is another one, or none, in opset `new`."""
    for node in _all_nodes(graph):
        if node.domain == "":
            schemas = [_schema(node.op_type, version) for version in (old, new)]
            if None in schemas or len({schema.since_version for schema in schemas if schema}) > 1:
                return node
    return None


def _skeleton(proto: ModelProto, small: int = _SMALL_TENSOR) -> ModelProto:
    """A copy in which every initializer of more than `small` bytes is a graph input.

    The tools of the onnx package serialize the model, which stops at 2 GB and costs time; they need no weights.
    """
    bare = ModelProto()
    copy_fields(proto, bare, without={"graph"})
    copy_fields(proto.graph, bare.graph, without={"initializer"})
    for tensor in proto.graph.initializer:
        if _nbytes(tensor) <= small:
            bare.graph.initializer.append(tensor)
        else:
            info = onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims))
            bare.graph.input.append(info)
    return bare


def _restore_weights(graph: GraphProto, weights: dict[str, TensorProto]) -> None:
    """Undoes what `_skeleton` did, in place. Small tensors come back too: tools rewrite their encoding."""
    _drop_named(graph.input, weights)
    _drop_named(graph.initializer, weights)
    graph.initializer.extend(weights.values())


def _with_external_data(proto: ModelProto, location: str, file: Any) -> ModelProto:
    """A copy whose larger initializers point into `file`, which is written here, each at a page boundary."""
    bare = ModelProto()
    copy_fields(proto, bare, without={"graph"})
    copy_fields(proto.graph, bare.graph, without={"initializer"})
    for tensor in proto.graph.initializer:
        stub = bare.graph.initializer.add()
        if _nbytes(tensor) <= _SMALL_TENSOR:
            stub.CopyFrom(tensor)
            continue
        file.write(b"\0" * (-file.tell() % _PAGE))
        data = tensor.raw_data if tensor.HasField("raw_data") else numpy_helper.to_array(tensor).tobytes()
        stub.name, stub.data_type, stub.doc_string = tensor.name, tensor.data_type, tensor.doc_string
        stub.dims.extend(tensor.dims)
        stub.data_location = TensorProto.EXTERNAL
        for key, value in (("location", location), ("offset", file.tell()), ("length", len(data))):
            stub.external_data.add(key=key, value=str(value))
        file.write(data)
    return bare


def _nbytes(tensor: TensorProto) -> int:
    if tensor.data_type == TensorProto.STRING:
        return sum(map(len, tensor.string_data))
    return int(np.prod(tensor.dims, dtype=np.int64)) * onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize


def _drop_named(entries: Any, names: dict[str, TensorProto]) -> None:
    kept = [entry for entry in entries if entry.name not in names]
    if len(kept) < len(entries):
        del entries[:]
        entries.extend(kept)


def _text(value: Any) -> Any:
    """An attribute's value with its bytes decoded."""
    if isinstance(value, list):
        return [_text(item) for item in value]
    return value.decode() if isinstance(value, bytes) else value


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0].rstrip(".") if lines else type(error).__name__
