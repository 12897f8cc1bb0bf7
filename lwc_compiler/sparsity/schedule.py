"""How the share of zeros grows: from round to round, and from step to step.

A stage on the way to a goal is a `PruneOptions` like the goal, with less pruned. What "less" means depends on what the
criterion takes: a sparsity, densities, or a quality factor.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from lwc_compiler.errors import OptionError
from lwc_compiler.recipe import IterateOptions, PruneOptions
from lwc_compiler.sparsity.masks import parse_structure


def cubic(progress: float) -> float:
    """Share of the goal's zeros after `progress` (0 to 1) of a schedule: 1 - (1 - t)^3 (Zhu and Gupta 2017, eq. 1)."""
    return 1 - (1 - min(max(progress, 0.0), 1.0)) ** 3


def partial(goal: PruneOptions, share: float) -> PruneOptions:
    """The stage at which `share` (0 to 1) of the goal's zeros are there; a quality factor is multiplied by it."""
    if goal.quality is not None:
        return goal.model_copy(update={"quality": goal.quality * max(share, 1e-6)})
    return _with_densities(goal, lambda density: 1 - (1 - density) * share)


def rounds(goal: PruneOptions, options: IterateOptions, density: float = 1.0) -> list[PruneOptions]:
    """What every round prunes to; the last one is the goal. The geometric schedule starts at `density` (kept / all).

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
        return [partial(goal, cubic(step)) for step in steps[:-1]] + [goal]
    if goal.quality is not None:
        return [goal] * options.rounds
    return [_with_densities(goal, _geometric(density, step)) for step in steps[:-1]] + [goal]


def between(before: PruneOptions | None, after: PruneOptions, density: float = 1.0) -> PruneOptions | None:
    """The stage half-way from `before` (None: the start, at `density`) to `after`: the geometric mean of densities.

    None where there is none: two rounds of one quality factor, or an `N:M` structure that keeps no more than `after`.
    """
    if after.quality is not None:
        quality = 0.0 if before is None or before.quality is None else before.quality
        return None if quality == after.quality else after.model_copy(update={"quality": (quality + after.quality) / 2})
    if after.densities:
        low = {} if before is None else before.densities
        means = {name: math.sqrt(low.get(name, density) * last) for name, last in after.densities.items()}
        middle = _with_densities(after.model_copy(update={"densities": means}), lambda mean: mean)
    else:
        first = density if before is None else 1 - (before.sparsity or 0.0)
        middle = _with_densities(after, lambda last: math.sqrt(first * last))
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


def _geometric(first: float, progress: float) -> Callable[[float], float]:
    """The densities on the way from `first`, or from the goal where that is higher, after `progress` (0 to 1)."""
    return lambda last: max(first, last) ** (1 - progress) * last**progress


def _with_densities(goal: PruneOptions, density_of: Callable[[float], float]) -> PruneOptions:
    """The goal with every density d replaced by `density_of(d)`, as far as an `N:M` structure admits it."""
    highest = parse_structure(goal.structure).highest_density
    if goal.densities:
        densities = {name: min(density_of(density), highest) for name, density in goal.densities.items()}
        return goal.model_copy(update={"densities": densities})
    return goal.model_copy(update={"sparsity": 1 - min(density_of(1 - (goal.sparsity or 0.0)), highest)})
