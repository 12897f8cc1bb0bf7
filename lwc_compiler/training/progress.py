"""What a running training says about itself."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Progress:
    """A moment of a training.

    Attributes:
        epoch: the epoch that runs, from 1; 0 while the untrained model is measured.
        epochs: how many there will be.
        step: optimizer steps done in this epoch; all of them only once it is measured.
        steps: optimizer steps an epoch has.
        loss: mean training loss of this epoch so far; None before its first step.
        metric: validation metric of the last finished epoch (accuracy, or the validation loss where there is none).
        seconds_left: estimate for the training that runs; None until a step was timed.
        density: kept / all weights of the layers that have masks; None without masks.
        best: metric of the best epoch so far.
        round: the round of pruning that runs, from 1; 0 outside of rounds.
        rounds: how many there will be.
    """

    epoch: int
    epochs: int
    step: int
    steps: int
    loss: float | None
    metric: float | None
    seconds_left: float | None
    density: float | None = None
    best: float | None = None
    round: int = 0
    rounds: int = 0
