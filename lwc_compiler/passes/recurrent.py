"""What an RNN, GRU or LSTM node says of itself, and which of them are pruned and have kernels of their own."""

from __future__ import annotations

from collections.abc import Sequence

import onnx

from lwc_compiler.model import attributes_of

_DEFAULTS = {"RNN": ("Tanh",), "GRU": ("Sigmoid", "Tanh"), "LSTM": ("Sigmoid", "Tanh", "Tanh")}
RECURRENT = tuple(_DEFAULTS)
DIRECTIONS = {"forward": (False,), "reverse": (True,), "bidirectional": (False, True)}  # which begin with the last step
GATES = {"RNN": 1, "GRU": 3, "LSTM": 4}
ACTIVATIONS = ("Relu", "Sigmoid", "Tanh")
_LENGTHS, _PEEPHOLES = 4, 7  # inputs
_OPTIONS = ("activation_alpha", "activation_beta", "clip", "input_forget", "layout")


def directions(node: onnx.NodeProto) -> tuple[bool, ...]:
    """Of each direction: whether it begins with the last step."""
    direction = attributes_of(node).get("direction", "forward")
    return DIRECTIONS[direction]


def activations(node: onnx.NodeProto) -> tuple[tuple[str, ...], ...]:
    """Of each direction: ONNX's names of the activations of its gates."""
    default, count = _DEFAULTS[node.op_type], len(directions(node))
    names = tuple(attributes_of(node).get("activations", default * count))
    return tuple(names[d * len(default) : (d + 1) * len(default)] for d in range(count))


def misfit(kind: str, shapes: Sequence[tuple[int, ...] | None], batch_first: bool = False) -> str | None:
    """Why a recurrent node cannot be computed: its inputs do not fit each other; None when they do.

    ONNX Runtime finds that when it runs the node. PyTorch exports an LSTM with `proj_size` so: ONNX has no such layer.

    Args:
        kind: RNN, GRU or LSTM.
        shapes: of the inputs up to the initial states; None for one that is left out.
        batch_first: `layout` 1.
    """
    every: list[tuple[int, ...] | None] = [*shapes, *[None] * (7 - len(shapes))]
    x, w, r, b, _, *states = every
    if x is None or w is None or r is None:
        return "an input is missing"
    count, rows, hidden = r
    batch = x[0] if batch_first else x[1]
    state = (batch, count, hidden) if batch_first else (count, batch, hidden)
    fit = [(count, GATES[kind] * hidden, hidden), (count, rows, x[2]), (count, 2 * rows), state, state]
    names = ("R", "W", "B", "initial_h", "initial_c")
    for name, given, fitting in zip(names, (r, w, b, *states), fit, strict=True):
        if given is not None and given != fitting:
            return (
                f"its input {name} has shape {list(given)}, and those before it ask for {list(fitting)}; ONNX has no "
                "projection of the state (`proj_size` in PyTorch): leave it out, or write it as a MatMul"
            )
    return None


def is_plain(node: onnx.NodeProto) -> bool:
    """Whether the node is a recurrent layer as PyTorch exports them.

    That is: steps first, sequences of equal length, no peepholes and no other option, and a GRU multiplies by its reset
    gate after the product (`linear_before_reset`).
    """
    if node.op_type not in RECURRENT or node.domain not in ("", "ai.onnx"):
        return False
    attributes = attributes_of(node)
    given = any(len(node.input) > index and node.input[index] for index in (_LENGTHS, _PEEPHOLES))
    options = any(attributes.get(name) for name in _OPTIONS)
    known = all(name in ACTIVATIONS for names in activations(node) for name in names)
    return known and not given and not options and (node.op_type != "GRU" or attributes.get("linear_before_reset") == 1)
