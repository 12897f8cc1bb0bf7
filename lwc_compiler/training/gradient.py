"""The gradient graph: built by ONNX Runtime Training from the rewritten forward graph, and checked before use."""

from __future__ import annotations

import math
import re
from collections.abc import Callable

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from lwc_compiler.errors import TrainingError, UnsupportedError
from lwc_compiler.training.graph import Node, TrainingGraph, needed, read_node, reads
from lwc_compiler.training.losses import LOSS, PER_SAMPLE
from lwc_compiler.training.rewrites import RULES
from lwc_compiler.training.session import session_options

Arrays = dict[str, NDArray[np.float32]]
CHECK_TOLERANCE = 1e-2  # of the derivative; float32 forward passes give 1e-4 to 4e-3 on real models
# Of the loss: large changes meet kinks and curvature, small ones drown in rounding where a model is sure of everything.
CHECK_CHANGES = (1e-1, 3e-2, 1e-2, 3e-3, 1e-3, 3e-4, 1e-4)
ROUNDINGS = 16  # in a loss, in units of its last place; a derivative that drowns in them cannot be checked
CHECK_LONGEST = 1e-2  # steps relative to the weights


def rewrite_for_gradients(graph: TrainingGraph, statistics: set[str]) -> dict[str, str]:
    """Rewrites a graph with a loss so that its gradients are right.

    BatchNormalization whose statistics are in `statistics` is trained: it normalizes with those of the batch and puts
    out the updated running ones.

    Returns:
        Name of a running statistic -> name of the output that holds its new value.
    """
    updated: dict[str, str] = {}
    for node in graph.nodes:
        if node.op_type == "BatchNormalization" and set(node.input[3:5]) <= statistics:
            kept = [a for a in node.attribute if a.name in ("epsilon", "momentum")]
            del node.attribute[:]
            node.attribute.extend([*kept, helper.make_attribute("training_mode", 1)])
            del node.output[1:]
            for name in node.input[3:5]:
                updated[name] = graph.name("running")
                node.output.append(updated[name])
    graph.keep([LOSS, PER_SAMPLE, *updated.values()])
    graph.rewrite(RULES)
    return updated


def build_gradient(graph: TrainingGraph, weights: list[str]) -> onnx.ModelProto:
    """The graph that computes `graph.outputs` and `gradient_name(w)` of every weight the loss depends on.

    Raises:
        UnsupportedError: an operator between a weight and the loss has no gradient, or no weight matters to the loss.
    """
    from onnxruntime.capi import _pybind_state

    options = session_options(threads=1)
    reached = weights_before(graph, LOSS, weights)
    if not reached:
        raise UnsupportedError("no weight has an influence on the outputs that the loss is computed from")
    forward = graph.to_proto(graph.outputs).SerializeToString()
    try:
        forward = _pybind_state.get_optimized_model(forward, set(reached), options)
        builder = _pybind_state.GradientGraphBuilder(forward, {LOSS}, set(reached), LOSS, options)
        builder.build()
        proto = onnx.load_from_string(builder.get_model())
    except Exception as error:  # ONNX Runtime raises RuntimeError and classes of its own
        raise UnsupportedError(_explain(graph, str(error))) from None
    built = {value.name: value for value in proto.graph.output}
    outputs = [built[name] for name in [*graph.outputs, *map(gradient_name, reached)] if name in built]
    del proto.graph.output[:]
    proto.graph.output.extend(outputs)
    _replace_transposed_convolution_gradients(proto, graph)
    return proto


def gradient_name(weight: str) -> str:
    """The name ONNX Runtime gives to the gradient of a value."""
    return f"{weight}_grad"


def weights_before(graph: TrainingGraph, value: str, weights: list[str]) -> list[str]:
    """Those of `weights` that `value` depends on."""
    read = {name for node in needed(graph.nodes, [value]) for name in reads(node)}
    return [name for name in weights if name in read]


def _explain(graph: TrainingGraph, message: str) -> str:
    """Names the node that the gradient builder stumbled over, as far as its message says."""
    nodes = [read_node(node) for node in graph.nodes]
    named = [node for node in nodes if node.name and node.name in message]
    by_operator = [node for node in nodes if re.search(rf"\b{re.escape(node.op)}\b", message)]
    found = max(named, key=lambda node: len(node.name)) if named else by_operator[0] if by_operator else None
    where = str(found) if found else "the model"
    first = message.strip().splitlines()[0]
    return f"{where} has no gradient, so the model cannot be retrained; it can be pruned and compiled without ({first})"


def _replace_transposed_convolution_gradients(proto: onnx.ModelProto, graph: TrainingGraph) -> None:
    """There is no ConvTransposeGrad for the CPU; what it computes are convolutions.

    With y = convT(x, w): dx = conv(dy, w), dw = the weight gradient of a convolution that maps dy to x, db = sum of dy.
    """
    nodes = []
    for node in proto.graph.node:
        if node.op_type != "ConvTransposeGrad":
            nodes.append(node)
            continue
        upstream, x, w = node.input[:3]
        dx, dw, db = [*node.output, "", ""][:3]
        kept = {
            k: v
            for k, v in read_node(node).attributes.items()
            if k in ("strides", "pads", "dilations", "group", "kernel_shape")
        }
        kept.setdefault("kernel_shape", graph.shape(w)[2:])
        if dx:
            nodes.append(helper.make_node("Conv", [upstream, w], [dx], f"{node.name}_dx", **kept))
        if dw:
            convolution = helper.make_node("ConvGrad", [x, upstream, w], ["", dw], f"{node.name}_dw", **kept)
            convolution.domain = "com.microsoft"
            nodes.append(convolution)
        if db:
            axes = f"{node.name}_axes"
            others = np.array([0, *range(2, len(graph.shape(w)))], np.int64)
            proto.graph.initializer.append(numpy_helper.from_array(others, axes))
            nodes.append(helper.make_node("ReduceSum", [upstream, axes], [db], f"{node.name}_db", keepdims=0))
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)


# -- check ------------------------------------------------------------------------------------------------------------


def nearby(weights: Arrays, seed: int) -> Arrays:
    """A point in general position: every weight is moved by noise of a twentieth of its tensor's root mean square.

    A pruned neuron with a bias of 0 sits exactly on the kink of its Relu, where no difference quotient is the gradient.
    """
    rng = np.random.default_rng(seed)
    moved = {}
    for name, array in weights.items():
        size = float(np.sqrt(np.mean(np.square(array, dtype=np.float64)))) or 1.0
        moved[name] = array + np.float32(0.05 * size) * rng.standard_normal(array.shape, np.float32)
    return moved


def check_gradient(
    graph: TrainingGraph, loss: Callable[[Arrays], float], weights: Arrays, gradients: Arrays, seed: int
) -> None:
    """Compares the gradient with the loss itself along one random direction through all weights.

    The direction d has, for every weight w, about the length of w and half of it along w's gradient, so that every
    weight counts and rounding does not drown the derivative. d . gradient is compared with
    (L(w + h d) - L(w - h d)) / 2 h for several h (losses and products summed in float64); one of them has to agree.

    Args:
        graph: the forward graph, to name the operators at fault.
        loss: weights -> loss (mean over samples, float64).
        weights: the point.
        gradients: of some of the weights.
        seed: of the direction.

    Raises:
        TrainingError: the gradient is wrong.
    """
    rng = np.random.default_rng(seed)
    direction = {name: _direction(weights[name], gradients[name], rng) for name in gradients}
    error = _mismatch(loss, weights, gradients, direction)
    if error <= CHECK_TOLERANCE:
        return
    suspects = _suspects(graph, loss, weights, gradients, direction)
    raise TrainingError(
        f"a gradient is wrong: it differs by {error:.1%} from the change of the loss. Operators that may be at fault: "
        f"{', '.join(suspects)}. The model cannot be retrained as it is; it can be pruned and compiled without"
    )


def _direction(
    weight: NDArray[np.float32], gradient: NDArray[np.float32], rng: np.random.Generator
) -> NDArray[np.float32]:
    direction = rng.standard_normal(weight.shape, np.float32)
    direction /= np.linalg.norm(direction)
    steepness = np.linalg.norm(gradient)
    if steepness:
        direction += gradient / steepness
    direction *= np.float32(0.5) * np.linalg.norm(weight)
    return direction


def _mismatch(loss: Callable[[Arrays], float], weights: Arrays, gradients: Arrays, direction: Arrays) -> float:
    """Smallest relative difference over several h, beyond what rounding of the losses explains."""
    expected = sum(float(np.vdot(gradients[n].astype(np.float64), d.astype(np.float64))) for n, d in direction.items())
    here = abs(loss(weights))
    best = math.inf
    for change in CHECK_CHANGES:
        step = min(change * max(here, 1e-30) / max(abs(expected), 1e-30), CHECK_LONGEST)
        high = loss(weights | {name: weights[name] + np.float32(step) * d for name, d in direction.items()})
        low = loss(weights | {name: weights[name] - np.float32(step) * d for name, d in direction.items()})
        measured = (high - low) / (2 * step)
        rounding = ROUNDINGS * float(np.finfo(np.float32).eps) * max(abs(high), abs(low)) / (2 * step)
        difference = max(abs(measured - expected) - rounding, 0.0)
        best = min(best, difference / max(abs(measured), abs(expected), 1e-30))
        if best <= CHECK_TOLERANCE:
            break
    return best


def _suspects(
    graph: TrainingGraph, loss: Callable[[Arrays], float], weights: Arrays, gradients: Arrays, direction: Arrays
) -> list[str]:
    """Nodes from the last weight whose own gradient is wrong up to the first after it whose gradient is right."""
    nodes = [read_node(node) for node in graph.nodes]
    first_use = {name: next(i for i, node in enumerate(nodes) if name in node.inputs) for name in direction}
    following: list[Node] = nodes
    stop = len(nodes)
    for name in sorted(direction, key=lambda name: first_use[name], reverse=True):
        wrong = _mismatch(loss, weights, gradients, {name: direction[name]}) > CHECK_TOLERANCE
        if wrong:
            following = nodes[first_use[name] : stop + 1]
            break
        stop = first_use[name]
    return [str(node) for node in following if not node.name.startswith("lwc/")][:8]
