"""Plans of layers that say what they are of, so that the layers can be planned again."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

from lwc_compiler.kernels.choice import Candidate, Task, predicted
from lwc_compiler.kernels.kernel import Plan

if TYPE_CHECKING:
    from collections.abc import Sequence

# Weights of a product that is planned whole; of a larger one some outputs are, and the others are alike.
_MOST_WEIGHTS = 1 << 22
_OUTPUTS = 64  # of such a product, at least
_NOTHING = Task("", 1.0, (), 0)


@dataclass(frozen=True)
class Planned(Plan):
    """A plan that says what it is of.

    Attributes:
        task: what it computes.
        share: of the task's outputs that it computes.
        candidates: all ways to compute the task; none where `share` is less than 1.
    """

    task: Task = _NOTHING
    share: float = 1.0
    candidates: tuple[Candidate, ...] = ()


def record(task: Task, candidates: Sequence[Candidate]) -> Plan:
    """A `Pick` of what is predicted to be the fastest, which notes the task; of very large products it plans a part."""
    plan, share = _part(task, candidates)
    every = {each.name: getattr(plan, each.name) for each in fields(Plan)}
    return Planned(**every, task=task, share=share, candidates=tuple(candidates) if share == 1 else ())


def planned_of(plan: Plan) -> Planned:
    """A plan that `record` made."""
    assert isinstance(plan, Planned)
    return plan


def _part(task: Task, candidates: Sequence[Candidate]) -> tuple[Plan, float]:
    """What is predicted to be the fastest, and the share of the task's outputs that it computes."""
    outputs = planned_outputs(task)
    if task.again is None or outputs is None:
        return predicted(task, candidates), 1.0
    plan = task.again(lambda weights: weights[: outputs[0]], predicted)
    assert plan is not None
    return plan, outputs[0] / outputs[1]


def planned_outputs(task: Task) -> tuple[int, int] | None:
    """Of a very large product: the outputs that are planned, and all; None for any other layer."""
    if task.product is None or task.product[0] * task.product[1] <= _MOST_WEIGHTS:
        return None
    inputs, outputs = task.product
    return min(outputs, max(1, _MOST_WEIGHTS // inputs // _OUTPUTS) * _OUTPUTS), outputs
