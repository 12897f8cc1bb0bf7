"""Rewrites of layers with parameters: padding made explicit, normalizations, recurrent layers (see `rewrites`)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from lwc_compiler.errors import UnsupportedError
from lwc_compiler.padding import window_pads
from lwc_compiler.passes.recurrent import DIRECTIONS
from lwc_compiler.training.graph import Node, TrainingGraph


def explicit_pads(g: TrainingGraph, node: Node) -> bool:
    """The gradients of convolution and pooling ignore `auto_pad` and `output_shape`."""
    if node.attributes.get("auto_pad", "NOTSET") == "NOTSET" and not node.attributes.get("output_shape"):
        return False
    space = g.shape(node.inputs[0])[2:]
    kernel = node.attributes.get("kernel_shape") or g.shape(node.inputs[1])[2:]
    before, after = window_pads(node.attributes, space, kernel, transposed=node.op == "ConvTranspose")
    kept = {k: v for k, v in node.attributes.items() if k not in ("auto_pad", "pads", "output_shape")}
    g.add_many(node.op, node.inputs, node.outputs, pads=before + after, **kept)
    return True


def batch_normalization(g: TrainingGraph, node: Node) -> bool:
    """With fixed statistics: (x - mean) (scale / sqrt(var + epsilon)) + bias, a channel each."""
    if node.attributes.get("training_mode", 0):
        return False
    x, scale, bias, mean, variance = node.inputs
    column = g.indices(-1, *([1] * (g.rank(x) - 2)))
    deviation = g.add("Sqrt", g.add("Add", variance, g.constant(node.attributes.get("epsilon", 1e-5))))
    factor = g.add("Reshape", g.add("Div", scale, deviation), column)
    centred = g.add("Sub", x, g.add("Reshape", mean, column))
    g.add("Add", g.add("Mul", centred, factor), g.add("Reshape", bias, column), output=node.outputs[0])
    return True


def instance_normalization(g: TrainingGraph, node: Node) -> bool:
    x, scale, bias = node.inputs
    rank = g.rank(x)
    space = g.indices(*range(2, rank))
    centred = g.add("Sub", x, g.add("ReduceMean", x, space, keepdims=1))
    variance = g.add("ReduceMean", g.add("Mul", centred, centred), space, keepdims=1)
    deviation = g.add("Sqrt", g.add("Add", variance, g.constant(node.attributes.get("epsilon", 1e-5))))
    column = g.indices(-1, *([1] * (rank - 2)))
    scaled = g.add("Mul", g.add("Div", centred, deviation), g.add("Reshape", scale, column))
    g.add("Add", scaled, g.add("Reshape", bias, column), output=node.outputs[0])
    return True


def layer_normalization(g: TrainingGraph, node: Node) -> bool:
    """The gradient reads the bias and the outputs Mean and InvStdDev, which a model may leave out."""
    x, scale = node.inputs[:2]
    bias = node.input(2) or g.constant(np.zeros(g.shape(scale)))
    outputs = [*node.outputs, *[""] * (3 - len(node.outputs))]
    g.add_many("LayerNormalization", [x, scale, bias], [name or None for name in outputs], **node.attributes)
    return True


def local_response_normalization(g: TrainingGraph, node: Node) -> bool:
    """X / (bias + alpha / size sum x^2)^beta; the sum over channels is a 1x1 convolution with a band of ones."""
    x, size = node.inputs[0], node.attributes["size"]
    channels, rank = g.shape(x)[1], g.rank(x)
    offset = np.arange(channels)[None] - np.arange(channels)[:, None]  # (output, input)
    band = (offset >= -((size - 1) // 2)) & (offset <= size // 2)
    kernel = g.constant(band.reshape(channels, channels, *[1] * (rank - 2)))
    total = g.add("Conv", g.add("Mul", x, x), kernel)
    scaled = g.add("Mul", total, g.constant(node.attributes.get("alpha", 1e-4) / size))
    base = g.add("Add", scaled, g.constant(node.attributes.get("bias", 1.0)))
    power = g.add("Pow", base, g.constant(-node.attributes.get("beta", 0.75)))
    g.add("Mul", x, power, output=node.outputs[0])
    return True


def recurrent(g: TrainingGraph, node: Node) -> bool:
    """LSTM and GRU as forward layers with initial states and all outputs: the only form that has a gradient.

    A backward direction is a forward one over the reversed sequence. W, R, B and the states are sliced by direction.
    """
    _check_recurrent(g, node)
    x, lstm = node.inputs[0], node.op == "LSTM"
    length, batch, _ = g.shape(x)
    hidden, direction = node.attributes["hidden_size"], node.attributes.get("direction", "forward")
    states = (5, 6) if lstm else (5,)
    directions = DIRECTIONS[direction]
    kept = {k: v for k, v in node.attributes.items() if k not in ("direction", "activations")}
    results = []
    for index, backward in enumerate(directions):

        def part(name: str, index: int = index) -> str:
            if len(directions) == 1 or not name:
                return name
            return g.add("Slice", name, g.indices(index), g.indices(index + 1), g.indices(0))

        sequence = _reverse(g, x, length) if backward else x
        initial = [part(node.input(i)) or g.constant(np.zeros((1, batch, hidden))) for i in states]
        inputs = [sequence, part(node.input(1)), part(node.input(2)), part(node.input(3)), "", *initial]
        outputs = list(g.add_many(node.op, inputs, [None] * (3 if lstm else 2), **kept))
        if backward:
            outputs[0] = _reverse(g, outputs[0], length)
        results.append(outputs)
    for index, name in enumerate(node.outputs):
        if name:
            parts = [outputs[index] for outputs in results]
            axis = 1 if index == 0 else 0  # Y is (length, directions, batch, hidden), Y_h and Y_c start with directions
            if len(parts) == 1:
                g.add("Identity", parts[0], output=name)
            else:
                g.add("Concat", *parts, output=name, axis=axis)
    return True


def plain_recurrent(g: TrainingGraph, node: Node) -> bool:
    """RNN, which has no gradient, as one product for the inputs of all steps and one for the state in every step."""
    names = _activations(node, ["Tanh"])
    if not {name.lower() for name in names} <= {"relu", "tanh"}:
        raise UnsupportedError(f"{node}: activations {names} have no gradient; retraining takes Relu and Tanh")
    _check_options(g, node)
    x, hidden = node.inputs[0], g.shape(node.inputs[2])[-1]
    length, batch, inputs = g.shape(x)
    direction = node.attributes.get("direction", "forward")
    directions = DIRECTIONS[direction]
    sequences, last = [], []

    def part(name: str, index: int, *shape: int) -> str:
        sliced = g.add("Slice", name, g.indices(index), g.indices(index + 1), g.indices(0))
        return g.add("Reshape", sliced, g.indices(*shape))

    for d, backward in enumerate(directions):
        from_input = g.add("Transpose", part(node.inputs[1], d, hidden, inputs), perm=[1, 0])
        from_state = g.add("Transpose", part(node.inputs[2], d, hidden, hidden), perm=[1, 0])
        given = g.add("MatMul", x, from_input)
        if node.input(3):
            biases = part(node.input(3), d, 2, hidden)
            given = g.add("Add", given, g.add("Add", part(biases, 0, hidden), part(biases, 1, hidden)))
        if node.input(5):
            state = part(node.input(5), d, batch, hidden)
        else:
            state = g.constant(np.zeros((batch, hidden)))
        steps = list(g.add_many("Split", [given, g.indices(*[1] * length)], [None] * length, axis=0))
        for step in range(length)[:: -1 if backward else 1]:
            own = g.add("Reshape", steps[step], g.indices(batch, hidden))
            sums = g.add("Add", own, g.add("MatMul", state, from_state))
            state = g.add(names[d].capitalize(), sums)
            steps[step] = g.add("Reshape", state, g.indices(1, 1, batch, hidden))
        sequences.append(g.add("Concat", *steps, axis=0))
        last.append(g.add("Reshape", state, g.indices(1, batch, hidden)))
    for name, parts, axis in zip(node.outputs, (sequences, last), (1, 0), strict=False):
        if name:
            g.add("Concat", *parts, output=name, axis=axis)
    return True


def _activations(node: Node, default: list[str]) -> list[str]:
    names = node.attributes.get("activations", 2 * default)
    return [name.decode() if isinstance(name, bytes) else name for name in names]


def _check_recurrent(g: TrainingGraph, node: Node) -> None:
    default = ["Sigmoid", "Tanh", "Tanh"] if node.op == "LSTM" else ["Sigmoid", "Tanh"]
    names = _activations(node, default)
    if [name.lower() for name in names] != [name.lower() for name in default * (len(names) // len(default))]:
        raise UnsupportedError(f"{node}: activations {names} have no gradient; retraining takes {default}")
    _check_options(g, node)


def _check_options(g: TrainingGraph, node: Node) -> None:
    if node.input(7) or any(node.attributes.get(name) for name in ("layout", "clip", "input_forget")):
        raise UnsupportedError(f"{node}: layout 1, peepholes, clip and input_forget have no gradient")
    lengths = node.input(4)
    if lengths and not (lengths in g.constants and (g.constants[lengths] == g.shape(node.inputs[0])[0]).all()):
        raise UnsupportedError(f"{node}: sequences of different lengths have no gradient; leave sequence_lens out")


def _reverse(g: TrainingGraph, name: str, length: int) -> str:
    """Along axis 0."""
    return g.add("Gather", name, g.indices(*range(length - 1, -1, -1)), axis=0)


RULES: dict[str, Callable[[TrainingGraph, Node], bool]] = {
    "AveragePool": explicit_pads,
    "BatchNormalization": batch_normalization,
    "Conv": explicit_pads,
    "ConvTranspose": explicit_pads,
    "GRU": recurrent,
    "InstanceNormalization": instance_normalization,
    "LRN": local_response_normalization,
    "LSTM": recurrent,
    "LayerNormalization": layer_normalization,
    "MaxPool": explicit_pads,
    "RNN": plain_recurrent,
}
