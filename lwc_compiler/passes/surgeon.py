"""The one door to onnx-graphsurgeon: open a graph for surgery, close it without losing what GraphSurgeon forgets.

GraphSurgeon links nodes and tensors, which rewriting needs, but drops metadata, node documentation and some attribute
types. `rewritten` puts them back, by node name or, where that is missing or not unique, by output name. GraphSurgeon
objects compare by name and contents: test them with `is`.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto, helper
from onnx_graphsurgeon import Constant, Graph, Node, Tensor, export_onnx, import_onnx
from onnx_graphsurgeon.exporters.onnx_exporter import OnnxExporter
from onnx_graphsurgeon.ir.tensor import LazyValues
from onnx_graphsurgeon.logger import G_LOGGER
from onnx_graphsurgeon.util.exception import OnnxGraphSurgeonException

from lwc_compiler.errors import ModelError, UnsupportedError
from lwc_compiler.evaluator import evaluator
from lwc_compiler.model import copy_fields, sort_nodes
from lwc_compiler.packing.skeleton import tensors_of

__all__ = ["Constant", "Graph", "Node", "Tensor", "evaluate", "onnx_type", "replace_uses", "rewritten", "unique_name"]

logger = logging.getLogger(__name__)

# Its notes go to stdout, and all of them are about what is handled here.
G_LOGGER.severity = G_LOGGER.CRITICAL

_LOST_ATTRIBUTES = frozenset(
    {
        AttributeProto.TENSORS,
        AttributeProto.GRAPHS,
        AttributeProto.TYPE_PROTO,
        AttributeProto.TYPE_PROTOS,
        AttributeProto.SPARSE_TENSOR,
        AttributeProto.SPARSE_TENSORS,
    }
)


def rewritten(proto: ModelProto, *rewrites: Callable[[Graph], object]) -> ModelProto:
    """A copy of the model after `rewrites` were applied to its graph in turn, dead nodes removed, in topological order.

    Graph inputs and outputs keep their declarations. `value_info` is kept for tensors that still exist.

    Raises:
        UnsupportedError: a tensor has an element type that GraphSurgeon cannot hold.
        ModelError: names, shapes or types of the graph are no such things.
    """
    with _refusing_damage():
        graph = import_onnx(proto)
    for rewrite in rewrites:
        rewrite(graph)
        graph.cleanup()
    unread = _taken_out(graph)
    with _refusing_damage():
        result: ModelProto = export_onnx(graph, do_type_check=False)
    for name, tensor in tensors_of(result.graph):  # subgraphs, too, have the constants that they use
        if tensor.data_type == TensorProto.UNDEFINED and name in unread:
            tensor.CopyFrom(unread[name])
            tensor.name = name
    for descriptor, _ in result.ListFields():
        if descriptor.name != "graph":
            result.ClearField(descriptor.name)
    copy_fields(proto, result, without={"graph"})
    _restore(proto.graph, result.graph)
    sort_nodes(result.graph)
    return result


def _taken_out(graph: Graph) -> dict[str, TensorProto]:
    """Name -> value of the constants that no rewrite has read, which the graph then is without.

    Exporting them copies each several times: seconds, where a network has half a gigabyte.
    """
    values = {}
    for name, tensor in graph.tensors().items():
        if isinstance(tensor, Constant) and type(tensor._values) is LazyValues:
            values[name], tensor._values.tensor = tensor._values.tensor, TensorProto()
    return values


@contextmanager
def _refusing_damage() -> Iterator[None]:
    """What GraphSurgeon stumbles over is in the file: ONNX's checker lets names that are not text and the like pass."""
    try:
        yield
    except OnnxGraphSurgeonException as error:
        raise UnsupportedError(f"the graph holds a tensor type that lwc does not handle: {error}") from error
    except (KeyError, TypeError, ValueError) as error:
        raise ModelError(f"the model is damaged: its graph cannot be read: {error}") from error


def replace_uses(old: Tensor, new: Tensor) -> None:
    """Makes every reader of `old`, in subgraphs too, read `new`."""
    for reader in list(old.outputs):
        for slot, tensor in enumerate(reader.inputs):
            if tensor is old:
                reader.inputs[slot] = new


def evaluate(node: Node, inputs: list[NDArray[Any]], graph: Graph) -> list[Any] | None:
    """Outputs of one node by ONNX's own reference implementation; None where it has none or fails.

    Args:
        node: of the standard domain, without subgraphs.
        inputs: one array for each input that is not omitted.
        graph: tells the opset.
    """
    try:
        with np.errstate(all="ignore"):
            names = [tensor.name for tensor in node.inputs if not tensor.is_empty()]
            feeds = dict(zip(names, inputs, strict=True))
            proto: NodeProto = OnnxExporter.export_node(node)
            untyped = (
                [ValueInfoProto(name=name) for name in feeds],
                [ValueInfoProto(name=name) for name in proto.output],
            )
            single = helper.make_graph([proto], "fold", *untyped)
            opset = helper.make_opsetid("", graph.opset)
            computed: Any = evaluator(helper.make_model(single, opset_imports=[opset])).run(None, feeds)
    except Exception:
        logger.debug("not folded: node '%s' (%s)", node.name, node.op, exc_info=True)
        return None
    values = iter(computed)
    results = [None if tensor.is_empty() else next(values) for tensor in node.outputs]
    for value, tensor in zip(results, node.outputs, strict=True):
        if value is None:
            continue
        if not isinstance(value, np.ndarray) or value.dtype.kind in "OUS":
            return None
        if tensor.dtype is not None and onnx_type(value.dtype) != onnx_type(tensor.dtype):
            return None
    return results


def onnx_type(dtype: Any) -> int:
    """ONNX element type of a GraphSurgeon tensor: it keeps NumPy types, and numbers for what NumPy lacks."""
    return dtype if isinstance(dtype, int) else helper.np_dtype_to_tensor_dtype(np.dtype(dtype))


def unique_name(name: str, taken: set[str]) -> str:
    """`name`, or `name_2`, `name_3`, ... when it is taken; the answer is taken from then on."""
    answer, count = name, 1
    while answer in taken:
        count += 1
        answer = f"{name}_{count}"
    taken.add(answer)
    return answer


def _restore(old: GraphProto, new: GraphProto) -> None:
    for name in ("input", "output", "metadata_props", "quantization_annotation"):
        new.ClearField(name)
        getattr(new, name).MergeFrom(getattr(old, name))
    new.name, new.doc_string = old.name, old.doc_string
    produced = {name for node in new.node for name in node.output}
    del new.value_info[:]
    new.value_info.extend(info for info in old.value_info if info.name in produced)
    names = Counter(node.name for node in (*old.node, *new.node))
    by_name = {node.name: node for node in old.node if node.name and names[node.name] <= 2}
    by_output = {name: node for node in old.node for name in node.output}
    for node in new.node:
        origin = by_name.get(node.name) or by_output.get(next(filter(None, node.output), ""))
        if origin is not None and origin.op_type == node.op_type:
            _restore_node(origin, node)


def _restore_node(old: NodeProto, new: NodeProto) -> None:
    new.doc_string = old.doc_string
    new.metadata_props.MergeFrom(old.metadata_props)
    after = {attribute.name: attribute for attribute in new.attribute}
    for attribute in old.attribute:
        if attribute.type in _LOST_ATTRIBUTES:
            new.attribute.append(attribute)
        elif attribute.type == AttributeProto.GRAPH and attribute.name in after:
            _restore(attribute.g, after[attribute.name].g)
