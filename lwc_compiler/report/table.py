"""The paper's table: for each layer its weights, FLOPs, activation density, and what pruning leaves of them.

Columns as in tables 2 to 5 of Han et al. 2015. FLOPs count a multiply-add as two, without biases. "FLOPs kept" is the
share of the multiply-adds that remain when zero weights and zero input activations are left out: the density of the
weights times the density of the layer's input. The network's own input counts as dense, as in the paper.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from lwc_compiler.model import infer_shapes
from lwc_compiler.passes.recurrent import RECURRENT
from lwc_compiler.passes.sites import Site, constant_tensors, find_sites
from lwc_compiler.report.document import LayerRow, Report, last_entry
from lwc_compiler.sparsity.formats import BlockCsr, Dense, Format, RelativeIndex

if TYPE_CHECKING:
    from lwc_compiler.codegen.result import Lowered
    from lwc_compiler.model import Model
    from lwc_compiler.runtime.manifest import Verification

_STATES_RANK = 4  # (time, directions, batch, hidden)
# What a layer's output goes through before it is "the layer's activations": with these, the column Act% and its total
# come out as in the paper, which counts activations after pooling.
_ACTIVATION_OPERATORS = frozenset(
    {
        *("Celu", "Clip", "Elu", "Gelu", "HardSigmoid", "HardSwish", "LeakyRelu", "Mish", "PRelu", "Relu", "Selu"),
        *("Sigmoid", "Softmax", "Softplus", "Swish", "Tanh", "ThresholdedRelu"),
        *("AveragePool", "GlobalAveragePool", "GlobalMaxPool", "MaxPool"),
        *("Add", "BatchNormalization", "Cast", "Div", "Dropout", "Identity", "LRN", "Mul", "Sub"),
        *("Flatten", "Pad", "Reshape", "Squeeze", "Transpose", "Unsqueeze"),
    }
)


@dataclass(frozen=True)
class Activations:
    """Measured activations.

    Attributes:
        source: what was fed, as a phrase for the reader of the report.
        counts: tensor name -> (entries that are not zero, all entries), over everything that was fed.
    """

    source: str
    counts: Mapping[str, tuple[int, int]]


def layer_report(model: Model, activations: Activations | None = None) -> Report:
    """The table and sizes of `model`, from the zeros that its weights have.

    Args:
        model: FLOPs need static shapes; an open first dimension of a graph input counts as 1.
        activations: from `lwc_compiler.report.activations.measure_activations`; None leaves those columns open.
    """
    sites = find_sites(model.proto)
    constants = constant_tensors(model.proto.graph)
    shapes = static_shapes(model.proto)
    handed_on = handed_on_tensors(model.proto, sites)
    pruned: Mapping[str, Mapping[str, str]] = (last_entry(model.provenance, "prune") or {}).get("sites", {})
    counts = activations.counts if activations else {}
    rows: dict[str, list[LayerRow]] = defaultdict(list)  # by output; a recurrent layer has two weights
    stored = dict.fromkeys(("dense", "csr", "relative index"), 0)
    for site in sites:
        weight = numpy_helper.to_array(constants[site.weight])
        for what, size in _stored_bytes(site, weight).items():
            stored[what] += size
        for node, op, source, output in zip(site.nodes, site.op_types, site.inputs, site.outputs, strict=True):
            read = counts.get(source)
            row = LayerRow(
                node=node,
                op=op,
                site=site.weight,
                shape=site.shape,
                weights=site.size,
                kept=int(np.count_nonzero(weight)),
                flops=_flops(site, op, shapes.get(source), shapes.get(output)),
                inputs=(read[1], read[1]) if read and site.first else read,
                activations=counts.get(handed_on[output]),
                kept_because=pruned.get(site.weight, {}).get("kept_because"),
            )
            rows[output].append(row)
    return Report(
        model=model.name,
        layers=tuple(row for node in model.proto.graph.node for name in node.output for row in rows.get(name, ())),
        sizes={f"weights, {what}": size for what, size in stored.items()},
        activations_measured_with=activations.source if activations else "not measured",
        passes=model.provenance,
    )


def with_lowered(report: Report, lowered: Lowered, verification: Verification) -> Report:
    """The report with the decision that lowering took for each layer, the sizes of what it made, and its check."""
    decisions = {(decision.site, decision.node): decision for decision in lowered.layers}
    narrow = [layer.float32_bytes - layer.bytes for layer in lowered.layers if layer.float32_bytes is not None]
    saved = sum(narrow) if narrow else None
    memory = {}
    if lowered.footprint is not None:
        memory = {
            "flash, code": lowered.footprint.code,
            "flash": lowered.footprint.flash,
            "RAM, static": lowered.footprint.static_ram,
        }
    if lowered.stack is not None:
        memory["stack"] = lowered.stack.bytes
    return replace(
        report,
        target=lowered.target,
        verification=verification,
        layers=tuple(replace(row, decision=decisions.get((row.site, row.node))) for row in report.layers),
        sizes={
            **report.sizes,
            "constants in the library": lowered.weight_bytes,
            **({} if saved is None else {"constants, if all weights were float32": lowered.weight_bytes + saved}),
            "library": len(lowered.library or lowered.archive or lowered.source or b""),
            **memory,
            "workspace": lowered.workspace_bytes,
        },
    )


def handed_on_tensors(proto: onnx.ModelProto, sites: Sequence[Site]) -> dict[str, str]:
    """Output of a site's node -> the tensor that counts as the layer's activations.

    That is where the output arrives through activation functions, pooling, normalization and reshaping, as long as
    nothing else reads it.
    """
    constants = constant_tensors(proto.graph)
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in proto.graph.node:
        if node.op_type not in ("Shape", "Size"):
            for name in dict.fromkeys(node.input):
                readers.setdefault(name, []).append(node)
    ends = {value.name for value in proto.graph.output}
    found = {}
    for site in sites:
        for output in site.outputs:
            tensor = output
            while tensor not in ends and len(readers.get(tensor, ())) == 1:
                node = readers[tensor][0]
                variable = [name for name in node.input if name and name not in constants]
                if node.op_type not in _ACTIVATION_OPERATORS or variable != [tensor]:
                    break
                tensor = node.output[0]
            found[output] = tensor
    return found


def static_shapes(proto: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    """Tensor name -> shape, where it is known; an open first dimension of a graph input counts as 1."""
    fixed = onnx.ModelProto()
    fixed.CopyFrom(proto)
    del fixed.graph.value_info[:]
    for value in fixed.graph.input:
        dims = value.type.tensor_type.shape.dim
        if dims and not dims[0].HasField("dim_value"):
            dims[0].dim_value = 1
    for value in fixed.graph.output:
        value.type.tensor_type.ClearField("shape")
    inferred = infer_shapes(fixed).graph
    shapes = {}
    for value in [*inferred.input, *inferred.value_info, *inferred.output]:
        tensor = value.type.tensor_type
        if tensor.HasField("shape") and all(dim.HasField("dim_value") for dim in tensor.shape.dim):
            shapes[value.name] = tuple(dim.dim_value for dim in tensor.shape.dim)
    return shapes


def _flops(site: Site, op: str, source: tuple[int, ...] | None, output: tuple[int, ...] | None) -> int | None:
    """2 x multiply-adds: each output has one for each column of the weight's matrix.

    A ConvTranspose scatters: each input has one for each weight of its channel, also where the result is cropped. A
    recurrent layer multiplies all its weights by one row for every step of every sequence; with the last states as its
    only output, the steps are not known.
    """
    if source is None or output is None:
        return None
    if op == "ConvTranspose":
        return 2 * math.prod(source) * math.prod(site.shape[1:])
    if op in RECURRENT:
        directions, hidden = site.shape[0], output[-1]
        return 2 * math.prod(output) // (directions * hidden) * site.size if len(output) == _STATES_RANK else None
    return 2 * math.prod(output) * site.matrix_shape[1]


def _stored_bytes(site: Site, weight: NDArray[Any]) -> dict[str, int]:
    """Bytes of the weight: dense, as CSR, and with relative indices as in the paper; dense where that is smaller."""
    relative = RelativeIndex(8 if site.op_types[0].startswith("Conv") else 5)
    formats: dict[str, Format] = {"dense": Dense(), "csr": BlockCsr(), "relative index": relative}
    sizes = dict.fromkeys(formats, weight.nbytes)
    # Packing a layer that is nearly full is work for nothing: the least index costs 5 bits for every 32 of values.
    if weight.dtype == np.float32 and np.count_nonzero(weight) < 0.9 * weight.size:
        matrix = site.to_matrix(weight)
        sizes |= {name: min(weight.nbytes, layout.pack(matrix).nbytes) for name, layout in formats.items()}
    return sizes
