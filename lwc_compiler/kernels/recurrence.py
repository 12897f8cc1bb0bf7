"""What a recurrent layer computes, whatever computes it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy as np
    from numpy.typing import NDArray

STATES = {"RNN": 1, "GRU": 1, "LSTM": 2}


@dataclass(frozen=True, eq=False)
class Recurrence:
    """A recurrent layer, in the terms of ONNX: `layout` 0, no peepholes, a GRU with `linear_before_reset` 1.

    Attributes:
        kind: RNN, GRU or LSTM.
        time: steps.
        batch: sequences.
        backward: of each direction: it begins with the last step.
        functions: of each direction, the activations of its gates, in lower case.
        from_input: float32 (directions, gates x hidden, input).
        from_state: float32 (directions, gates x hidden, hidden).
        bias: float32 (directions, 2 x gates x hidden): added to what the input gives, then to what the state gives.
        given: of each state: it is an input of the layer; it begins with zeros elsewhere.
        wanted: of the sequence of states, the last state and an LSTM's last cell state: it is an output of the layer.
    """

    kind: str
    time: int
    batch: int
    backward: tuple[bool, ...]
    functions: tuple[tuple[str, ...], ...]
    from_input: NDArray[np.float32]
    from_state: NDArray[np.float32]
    bias: NDArray[np.float32]
    given: tuple[bool, ...]
    wanted: tuple[bool, ...]

    @property
    def hidden(self) -> int:
        """Units of a state."""
        return int(self.from_state.shape[-1])

    @property
    def gates(self) -> int:
        """Gates of a unit."""
        return int(self.from_state.shape[1]) // self.hidden


def next_states(
    layer: Recurrence,
    functions: tuple[str, ...],
    given: Sequence[Any],
    own: Sequence[Any],
    states: Sequence[Any],
    apply: Callable[[str, Any], Any],
    once: Callable[[Any], Any],
    one: Any,
) -> list[Any]:
    """The states of a unit after a step (ONNX operators RNN, GRU and LSTM).

    Args:
        layer: of the unit.
        functions: activations of its gates.
        given: what each gate gets from the input, in the order of ONNX.
        own: what it gets from the state.
        states: before the step: h, and an LSTM's c.
        apply: an activation, by its name, of a value.
        once: makes a value that is used more than once.
        one: 1, in as many lanes as values have.
    """
    if layer.kind == "RNN":
        return [apply(functions[0], given[0] + own[0])]
    if layer.kind == "GRU":
        update, reset = (apply(functions[0], given[i] + own[i]) for i in (0, 1))
        candidate = apply(functions[1], given[2] + reset * own[2])
        return [once((one - update) * candidate + update * states[0])]
    opened, shown, kept = (apply(functions[0], given[i] + own[i]) for i in (0, 1, 2))
    cell = once(kept * states[1] + opened * apply(functions[1], given[3] + own[3]))
    return [once(shown * apply(functions[2], cell)), cell]
