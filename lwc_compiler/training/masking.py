"""Masks that change while a network trains: gradual pruning, and connections that grow back.

What changes them is one rule: every `mask_interval` steps, masks are chosen anew by the criterion and structure of the
goal, at the density that the schedule has reached.

- Without growth the weights compete as they are: what is pruned is 0 and stays so.
- `shadow` (Guo et al. 2016): pruned weights go on learning, unseen by the network, and compete with the others.
- `gradient` (Evci et al. 2020, section 3): the smallest of the kept weights make room for the pruned ones with the
  highest gradients, which start at 0.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lwc_compiler.errors import OptionError
from lwc_compiler.passes.sites import Site
from lwc_compiler.recipe.options import PruneOptions, RetrainOptions
from lwc_compiler.sparsity.masks import Layer, choose_masks
from lwc_compiler.sparsity.schedule import Densities, cubic, partial

Arrays = Mapping[str, NDArray[np.float32]]
Masks = dict[str, NDArray[np.bool_]]
LAST_CHANGE = 0.75  # of the run: what grew back late could not learn any more (Evci et al. 2020, section 3)


@dataclass(frozen=True)
class Pruning:
    """What masks have to satisfy while they change.

    Attributes:
        goal: criterion, structure and how much is pruned in the end.
        sites: names of the weights that are pruned.
        ramp: share of the run in which the density falls to the goal's; 0: it is there from the start.
    """

    goal: PruneOptions
    sites: tuple[str, ...]
    ramp: float = 0.0


class MaskChanges:
    """When masks change, and to what.

    Attributes:
        sites: the weights whose masks change.
        last: the optimizer step after which they do not change any more; 0: they never do.
    """

    def __init__(
        self, sites: Mapping[str, Site], pruning: Pruning, options: RetrainOptions, steps: int, masks: Masks
    ) -> None:
        """Plans a run of `steps` optimizer steps that starts with `masks`.

        Raises:
            OptionError: growth by gradients with the criterion `std`, which sets no density; a score other than
                magnitude; no site, or a run too short to prune in.
        """
        if not sites:
            raise OptionError("no layer whose connections are to come and go is trained: freeze less, or prune others")
        if pruning.goal.score != "magnitude":
            raise OptionError(
                f"while a network trains, masks go by the score 'magnitude', not '{pruning.goal.score}': choose it, or "
                "neither gradual pruning nor growth"
            )
        if pruning.ramp and steps < 2:
            raise OptionError("gradual pruning needs two steps at least: train more epochs, or in smaller batches")
        self.sites, self._start = sites, Densities.of({name: masks[name] for name in sites})
        self._goal, self._grow, self._fraction = pruning.goal, options.grow, options.grow_fraction
        self._interval = options.mask_interval
        self._ramp = max(1, min(round(pruning.ramp * steps), steps - 1)) if pruning.ramp else 0
        grows = options.grow != "none"
        self.last = max(self._ramp, round(LAST_CHANGE * steps) if grows else 0)
        if options.grow == "gradient" and self._goal.quality is not None:
            raise OptionError("growing back by gradients needs a density: take another criterion than 'std'")

    @property
    def shadows(self) -> bool:
        """Whether pruned weights go on learning."""
        return self._grow == "shadow" and self.last > 0

    def due(self, step: int) -> bool:
        """Whether masks change before optimizer step `step` (from 0)."""
        return 0 < step <= self.last and (step in (self._ramp, self.last) or step % self._interval == 0)

    def reached(self, step: int) -> bool:
        """Whether the masks have the goal's density after `step` steps."""
        return step > self._ramp or self._ramp == 0

    def choose(self, step: int, weights: Arrays, masks: Masks, gradients: Arrays) -> Masks:
        """The masks from step `step` on.

        Args:
            step: from 0.
            weights: what competes: the weights, or their shadows.
            masks: those so far.
            gradients: of the loss, for pruned weights too.
        """
        stage = partial(self._goal, cubic(step / self._ramp), self._start) if step < self._ramp else self._goal
        if self._grow == "none":
            return self._chosen(weights, masks, stage)
        everywhere = {name: np.ones_like(masks[name]) for name in self.sites}
        if self._grow == "shadow":
            return self._chosen(weights, everywhere, stage)
        share = self._fraction / 2 * (1 + math.cos(math.pi * step / self.last))
        stays = self._chosen(weights, masks, _fewer(stage, 1 - share))
        steepness = {name: np.abs(gradients[name]) for name in self.sites}
        # Above all others, in every layer, also as the one weight of a block of eight.
        top = 4 * max(array.max() for array in steepness.values()) + np.float32(1)
        scores = {name: np.where(stays[name], top, array) for name, array in steepness.items()}
        return self._chosen(scores, everywhere, stage)

    def _chosen(self, weights: Arrays, kept: Masks, stage: PruneOptions) -> Masks:
        # What is exactly 0, as idle neurons have it, would count as pruned for good and leave gaps in blocks.
        least = np.finfo(np.float32).tiny
        layers = {
            name: Layer(
                matrix=site.to_matrix(np.where(weights[name] == 0, least, weights[name])),
                kept=site.to_matrix(kept[name]),
                shape=site.shape,
                row_groups=site.row_groups,
                positions=site.positions,
            )
            for name, site in self.sites.items()
        }
        if stage.densities:
            stage = stage.model_copy(update={"densities": {name: stage.densities[name] for name in layers}})
        return {name: self.sites[name].from_matrix(choice.mask) for name, choice in choose_masks(layers, stage).items()}


def _fewer(stage: PruneOptions, share: float) -> PruneOptions:
    """The stage that keeps `share` of what `stage` keeps."""
    if stage.densities:
        return stage.model_copy(update={"densities": {name: d * share for name, d in stage.densities.items()}})
    return stage.model_copy(update={"sparsity": 1 - (1 - (stage.sparsity or 0.0)) * share})
