"""Where Dropout was, and how much of it a pruned network wants (Han et al. 2015, section 3.2)."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import onnx
from onnx import numpy_helper

from lwc_compiler.errors import OptionError
from lwc_compiler.model import Model, attributes_of
from lwc_compiler.passes.sites import constant_tensors, find_sites, node_label

_DEFAULT_RATIO = 0.5  # of the ONNX operator


def find_dropouts(graph: onnx.GraphProto) -> dict[str, float]:
    """Tensor name -> ratio of the Dropout (ONNX operator, every opset) that reads it, also in inference mode."""
    constants = constant_tensors(graph)
    producers = {name: node for node in graph.node for name in node.output}
    found = {}
    for node in graph.node:
        if node.op_type != "Dropout" or node.domain not in ("", "ai.onnx"):
            continue
        ratio = attributes_of(node).get("ratio")
        if ratio is None and len(node.input) > 1 and node.input[1] in constants:
            ratio = float(numpy_helper.to_array(constants[node.input[1]]).item())
        tensor = node.input[0]
        while tensor in producers and producers[tensor].op_type in ("Identity", "Dropout"):
            tensor = producers[tensor].input[0]
        found[tensor] = _DEFAULT_RATIO if ratio is None else ratio
    return found


def dropout_ratios(model: Model, asked: Mapping[str, float], *, adjust: bool) -> dict[str, float]:
    """Tensor name -> ratio in (0, 1) of the Dropout that training puts after it.

    With `adjust`, D_r = D_o sqrt(C_ir / C_io) (section 3.2, equation 1): C_io are all connections of the layers whose
    neurons are dropped, C_ir those that are left. These are the sites from which the tensor is computed through no
    other site.

    Args:
        model: normalized; the normalize pass wrote down which Dropouts the graph had.
        asked: tensor or node name (its first output) -> ratio; these replace the graph's own; 0 takes one away.
        adjust: whether the ratios follow the connections.

    Raises:
        OptionError: `asked` names something that is not computed in the graph, or the graph's own ratio is none.
    """
    graph = model.proto.graph
    producers = {name: node for node in graph.node for name in node.output if name}
    labels = {node_label(node): node.output[0] for node in graph.node}
    normalized = (entry.get("dropout") for entry in model.provenance if entry["pass"] == "normalize")
    known: dict[str, float] = next(filter(None, normalized), {})
    ratios = {name: ratio for name, ratio in known.items() if name in producers}
    for name, ratio in asked.items():
        tensor = name if name in producers else labels.get(name)
        if tensor is None:
            raise OptionError(
                f"dropout: '{name}' is no node and no computed tensor of the model; name the node it goes after, "
                f"such as '{next(iter(labels), '')}'"
            )
        ratios[tensor] = ratio
    for tensor, ratio in ratios.items():
        if not 0 <= ratio < 1:
            raise OptionError(
                f"the Dropout after '{tensor}' has the ratio {ratio:g} in the model; ratios are at least 0 and below "
                f"1: name another one for '{tensor}'"
            )
    wanted = {tensor: ratio for tensor, ratio in ratios.items() if ratio > 0}
    if not adjust or not wanted:
        return wanted
    constants = constant_tensors(graph)
    counts: dict[str, tuple[int, int]] = {}
    for site in find_sites(model.proto):
        kept = int(np.count_nonzero(numpy_helper.to_array(constants[site.weight])))
        for output in set(site.outputs):  # a recurrent layer has two weights
            before = counts.get(output, (0, 0))
            counts[output] = (before[0] + kept, before[1] + site.size)
    return {tensor: ratio * _shrinkage(tensor, producers, counts) for tensor, ratio in wanted.items()}


def _shrinkage(tensor: str, producers: Mapping[str, onnx.NodeProto], counts: Mapping[str, tuple[int, int]]) -> float:
    """sqrt(C_ir / C_io) of the layers that compute `tensor`; 1 where there are none."""
    kept, total = 0, 0
    seen, waiting = {tensor}, [tensor]
    while waiting:
        name = waiting.pop()
        if name in counts:
            kept, total = kept + counts[name][0], total + counts[name][1]
            continue
        new = [source for source in producers[name].input if source in producers and source not in seen]
        seen.update(new)
        waiting += new
    return math.sqrt(kept / total) if total else 1.0
