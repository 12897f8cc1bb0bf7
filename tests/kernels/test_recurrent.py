"""Recurrent layers compute what numpy does in float64, in every form that PyTorch exports."""

import numpy as np
from harness import NARROW, TARGETS, Case, KernelTests, sparse

from lwc_compiler.kernels.kernel import Plan
from lwc_compiler.kernels.recurrence import STATES, Recurrence
from lwc_compiler.kernels.recurrent import plan_recurrent
from lwc_compiler.passes.recurrent import GATES
from lwc_compiler.targets.target import Target

# time, batch, input, hidden
SHAPES = [(1, 1, 3, 5), (4, 1, 16, 16), (3, 2, 10, 33), (5, 3, 7, 40), (2, 9, 20, 64)]
DIRECTIONS = [(False,), (True,), (False, True)]
_FUNCTIONS = {
    "relu": lambda x: np.maximum(x, 0),
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "tanh": np.tanh,
}
_DEFAULTS = {"RNN": ("tanh",), "GRU": ("sigmoid", "tanh"), "LSTM": ("sigmoid", "tanh", "tanh")}


def reference(layer: Recurrence, x: np.ndarray, states: list[np.ndarray]) -> list[np.ndarray]:
    """The outputs in float64: all states, and the last ones."""
    hidden, gates = layer.hidden, GATES[layer.kind]
    y = np.zeros((layer.time, len(layer.backward), layer.batch, hidden))
    last = [np.zeros((len(layer.backward), layer.batch, hidden)) for _ in states]
    for d, backward in enumerate(layer.backward):
        f, *more = (_FUNCTIONS[name] for name in layer.functions[d])
        w, r, (b, s) = layer.from_input[d], layer.from_state[d], layer.bias[d].reshape(2, -1)
        h, *c = (state[d].astype(np.float64) for state in states)
        for t in range(layer.time)[:: -1 if backward else 1]:
            given = np.split(x[t].astype(np.float64) @ w.T + b, gates, axis=1)
            own = np.split(h @ r.T.astype(np.float64) + s, gates, axis=1)
            if layer.kind == "RNN":
                h = f(given[0] + own[0])
            elif layer.kind == "GRU":
                update, reset = f(given[0] + own[0]), f(given[1] + own[1])
                h = (1 - update) * more[0](given[2] + reset * own[2]) + update * h
            else:
                opened, shown, kept = (f(given[i] + own[i]) for i in range(3))
                c = [kept * c[0] + opened * more[0](given[3] + own[3])]
                h = shown * more[1](c[0])
            y[t, d] = h
        for state, value in zip(last, (h, *c), strict=True):
            state[d] = value
    return [y, *last]


def recurrent(index: int, kind: str, shape: tuple[int, ...], backward: tuple[bool, ...]) -> Case:
    """A layer with one of its outputs; whether states are given, density and activations change with the index."""
    generator = np.random.default_rng(index)
    time, batch, inputs, hidden = shape
    rows, states = GATES[kind] * hidden, STATES[kind]
    density = (0.0, 0.1, 0.5, 1.0)[index % 4]
    functions = ("relu",) if kind == "RNN" and index % 2 else _DEFAULTS[kind]
    given = tuple((index + i) % 3 > 0 for i in range(states))
    layer = Recurrence(
        kind,
        time,
        batch,
        backward,
        (functions,) * len(backward),
        sparse(generator, (len(backward), rows, inputs), density, 1) / np.float32(inputs**0.5),
        sparse(generator, (len(backward), rows, hidden), density, 1) / np.float32(hidden**0.5),
        generator.standard_normal((len(backward), 2 * rows)).astype(np.float32),
        given,
        tuple(i == index % (1 + states) for i in range(1 + states)),
    )
    x = generator.standard_normal((time, batch, inputs)).astype(np.float32)
    start = [generator.standard_normal((len(backward), batch, hidden)).astype(np.float32) * use for use in given]
    expected = reference(layer, x, start)[index % (1 + states)]
    taken = [state for state, use in zip(start, given, strict=True) if use]
    name = f"{kind}-{'x'.join(map(str, shape))}-{''.join('fb'[b] for b in backward)}"

    def plan(target: Target) -> Plan:
        return plan_recurrent(layer, target)[0]

    return Case(name, plan, [x, *taken], expected, max(1.0, float(np.abs(expected).max())))


CASES = [
    recurrent(index, kind, shape, backward)
    for index, (kind, shape, backward) in enumerate(
        (kind, shape, backward) for kind in GATES for shape in SHAPES for backward in DIRECTIONS
    )
]


class TestRecurrent(KernelTests):
    cases = CASES
    targets = (*TARGETS, NARROW)
    scalar = True
