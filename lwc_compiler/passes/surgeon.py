"""The one door to onnx-graphsurgeon: open a graph for surgery, close it without losing what GraphSurgeon forgets.

GraphSurgeon links nodes and tensors, which rewriting needs, but drops metadata, node documentation and some attribute
types. `closed` puts them back by tensor name: names of node outputs are unique in ONNX, so rewrites that keep the
output's name keep the node's identity. GraphSurgeon objects compare by name and contents: test them with `is`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto
from onnx_graphsurgeon.logger import G_LOGGER
from onnx_graphsurgeon.util.exception import OnnxGraphSurgeonException

from lwc_compiler.errors import UnsupportedError
from lwc_compiler.model import sort_nodes

Graph = gs.Graph
Node = gs.Node
Tensor = gs.Tensor
Constant = gs.Constant

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
    """
    try:
        graph = gs.import_onnx(proto)
        for rewrite in rewrites:
            rewrite(graph)
        graph.cleanup()
        exported = gs.export_onnx(graph, do_type_check=False)
    except OnnxGraphSurgeonException as error:
        raise UnsupportedError(f"the graph holds a tensor type that lwc does not handle: {error}") from error
    result = ModelProto()
    for descriptor, value in proto.ListFields():
        if descriptor.name == "graph":
            continue
        if isinstance(value, (int, str)):
            setattr(result, descriptor.name, value)
        else:
            getattr(result, descriptor.name).MergeFrom(value)
    result.graph.CopyFrom(exported.graph)
    _restore(proto.graph, result.graph)
    sort_nodes(result.graph)
    return result


def _restore(old: GraphProto, new: GraphProto) -> None:
    for name in ("input", "output", "value_info", "metadata_props", "quantization_annotation"):
        new.ClearField(name)  # type: ignore[arg-type]
        getattr(new, name).MergeFrom(getattr(old, name))
    new.name, new.doc_string = old.name, old.doc_string
    produced = {name for node in new.node for name in node.output}
    gone = [info for info in new.value_info if info.name not in produced]
    for info in gone:
        new.value_info.remove(info)
    before = {_key(node): node for node in old.node}
    for node in new.node:
        if _key(node) in before:
            _restore_node(before[_key(node)], node)


def _restore_node(old: NodeProto, new: NodeProto) -> None:
    new.doc_string = old.doc_string
    new.metadata_props.MergeFrom(old.metadata_props)
    if old.op_type != new.op_type:
        return
    after = {attribute.name: attribute for attribute in new.attribute}
    for attribute in old.attribute:
        if attribute.type in _LOST_ATTRIBUTES:
            new.attribute.append(attribute)
        elif attribute.type == AttributeProto.GRAPH and attribute.name in after:
            _restore(attribute.g, after[attribute.name].g)


def _key(node: NodeProto) -> str:
    return next((name for name in node.output if name), "")
