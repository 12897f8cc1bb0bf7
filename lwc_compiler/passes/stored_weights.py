"""The model that a library with narrower weights computes: every weight as it is stored, in float32."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np
from onnx import ModelProto, NodeProto, numpy_helper

from lwc_compiler.kernels.weight_types import WeightType
from lwc_compiler.model import attributes_of
from lwc_compiler.passes.sites import constant_tensors, node_label

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from lwc_compiler.codegen.result import LayerDecision
    from lwc_compiler.model import Model


def with_stored_weights(model: Model, layers: Iterable[LayerDecision]) -> Model:
    """`model` with the weights that the layers' kernels compute with.

    Args:
        model: that was lowered.
        layers: how its layers were; a weight that several nodes use may be stored in several ways.
    """
    narrow = {layer.node: layer for layer in layers if layer.weight_type != "float32"}
    proto = ModelProto()
    proto.CopyFrom(model.proto)
    tensors = constant_tensors(proto.graph)
    for node in proto.graph.node:
        layer = narrow.get(node_label(node))
        if layer is None:
            continue
        rounded = _rounded(numpy_helper.to_array(tensors[layer.site]), node, layer)
        name = f"{node.output[0]}.{layer.weight_type}"
        proto.graph.initializer.append(numpy_helper.from_array(rounded, name))
        node.input[list(node.input).index(layer.site)] = name
    return model.after("lower", proto, weight_types={node: layer.weight_type for node, layer in narrow.items()})


def _rounded(weight: NDArray[np.float32], node: NodeProto, layer: LayerDecision) -> NDArray[np.float32]:
    """The weight after rounding; scales are those of the node's output channels."""
    attributes = attributes_of(node)
    axis, factor = 0, np.float32(1)
    if node.op_type == "Gemm":
        # Kernels multiply by alpha nothing but the weight.
        axis, factor = (0 if attributes.get("transB", 0) else 1), np.float32(attributes.get("alpha", 1.0))
    elif node.op_type == "MatMul":
        axis = -1 if node.input[1] == layer.site else -2
    channels = np.moveaxis(weight * factor, axis, 0)
    return np.ascontiguousarray(np.moveaxis(WeightType(layer.weight_type).rounded(channels), 0, axis) / factor)
