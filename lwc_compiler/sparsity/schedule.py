"""How the share of zeros grows: from round to round, and from step to step.

A stage on the way to a goal is a `PruneOptions` like the goal, with less pruned. What "less" means depends on what the
criterion takes: a sparsity, densities, or a quality factor.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from lwc_compiler.errors import OptionError
from lwc_compiler.recipe.options import IterateOptions, PruneOptions
from lwc_compiler.sparsity.masks import parse_structure


@dataclass(frozen=True)
class Densities:
    """How much of a model is left: kept / all weights, of all layers that are pruned and of each, by its weight."""

    total: float = 1.0
    layers: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def of(cls, masks: Mapping[str, NDArray[np.bool_]]) -> Densities:
        """Those of masks; nothing is pruned where there are none."""
        if not masks:
            return cls()
        total = sum(int(mask.sum()) for mask in masks.values()) / sum(mask.size for mask in masks.values())
        return cls(total, {name: float(mask.mean()) for name, mask in masks.items()})


DENSE = Densities()


def cubic(progress: float) -> float:
    """Share of the goal's zeros after `progress` (0 to 1) of a schedule: 1 - (1 - t)^3 (Zhu and Gupta 2017, eq. 1)."""
    return 1 - (1 - min(max(progress, 0.0), 1.0)) ** 3


def partial(goal: PruneOptions, share: float, start: Densities = DENSE) -> PruneOptions:
    """The stage `share` (0 to 1) of the way from `start` to the goal's density.

    A quality factor is multiplied by it; a goal above what is there is no way up.
    """
    if goal.quality is not None:
        return goal.model_copy(update={"quality": goal.quality * max(share, 1e-6)})
    return _with_densities(goal, start, lambda first, last: first + (last - first) * share)


def rounds(goal: PruneOptions, options: IterateOptions, start: Densities = DENSE) -> list[PruneOptions]:
    """What every round prunes to, from `start` on; the last one is the goal.

    With `std` and the geometric schedule every round takes the whole quality factor: the standard deviation of what is
    left grows from round to round, and with it the threshold (Han et al. 2015, section 3).

    Raises:
        OptionError: `targets` do not fit the schedule or the criterion, or do not rise.
    """
    if options.targets and options.schedule != "targets":
        raise OptionError(f"targets are given, but the schedule is '{options.schedule}': take the schedule 'targets'")
    if options.schedule == "targets":
        return _given(goal, options.targets)
    if options.schedule == "gradual":
        return [goal]
    steps = [(number + 1) / options.rounds for number in range(options.rounds)]
    if options.schedule == "cubic":
        return [partial(goal, cubic(step), start) for step in steps[:-1]] + [goal]
    if goal.quality is not None:
        return [goal] * options.rounds
    return [_with_densities(goal, start, _geometric(step)) for step in steps[:-1]] + [goal]


def between(before: PruneOptions | None, after: PruneOptions, start: Densities = DENSE) -> PruneOptions | None:
    """The stage half-way from `before` (None: `start`) to `after`: the geometric mean of densities.

    None where there is none: two rounds of one quality factor, or an `N:M` structure that keeps no more than `after`.
    """
    if after.quality is not None:
        quality = 0.0 if before is None or before.quality is None else before.quality
        return None if quality == after.quality else after.model_copy(update={"quality": (quality + after.quality) / 2})
    low = start if before is None else Densities(1 - (before.sparsity or 0.0), before.densities)
    middle = _with_densities(after, low, _geometric(0.5))
    return None if middle == after else middle


def target_of(options: PruneOptions) -> float | None:
    """The sparsity or quality factor of a stage, for reports; None for densities a layer."""
    return options.quality if options.sparsity is None else options.sparsity


def _given(goal: PruneOptions, targets: tuple[float, ...]) -> list[PruneOptions]:
    if not targets:
        raise OptionError("the schedule 'targets' needs targets: one sparsity or quality factor a round")
    if goal.densities:
        raise OptionError("targets are sparsities or quality factors; criterion 'per-layer' takes another schedule")
    name = "sparsity" if goal.quality is None else "quality"
    if name == "sparsity" and (max(targets) >= 1 or list(targets) != sorted(targets)):
        raise OptionError(f"targets {targets}: sparsities are below 1 and rise from round to round")
    return [goal.model_copy(update={name: target}) for target in targets]


def _geometric(progress: float) -> Callable[[float, float], float]:
    """The density on the way from a first to a last one, after `progress` (0 to 1)."""
    return lambda first, last: float(first ** (1 - progress) * last**progress)


def _with_densities(goal: PruneOptions, start: Densities, way: Callable[[float, float], float]) -> PruneOptions:
    """The goal with every density d replaced by `way(first, d)`, as far as an `N:M` structure admits it.

    `first` is the density that `start` has there, or d where that is higher.
    """
    highest = parse_structure(goal.structure).highest_density

    def on_the_way(first: float, last: float) -> float:
        return min(way(max(first, last), last), highest)

    if goal.densities:
        layers = start.layers
        densities = {name: on_the_way(layers.get(name, start.total), last) for name, last in goal.densities.items()}
        return goal.model_copy(update={"densities": densities})
    return goal.model_copy(update={"sparsity": 1 - on_the_way(start.total, 1 - (goal.sparsity or 0.0))})
