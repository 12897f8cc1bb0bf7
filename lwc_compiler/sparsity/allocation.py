"""How many weights each layer keeps, when all layers together have a budget: the densities that cost the least loss.

A layer's curve says what the loss of the whole network is when this layer alone is pruned (Han et al. 2015, section 3.4
and figure 6). What pruning several layers costs is taken as the sum of what each costs alone. That is exact for small
losses, where the effects of different layers do not meet, and the best that curves of single layers can say.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal, cast

import numpy as np
from numpy.typing import NDArray

from lwc_compiler.errors import OptionError

Densities = NDArray[np.float64]

_VALUE_BITS = 32
_INDEX_BITS = range(1, 17)
_LEAST = 1e-12  # stands for a density of 0 where there is none to compute with
_BETWEEN = 8  # densities that are considered between two measured ones
_BUCKETS = 4096  # parts that the budget is split into


@dataclass(frozen=True)
class Budget:
    """What all layers together may cost.

    Attributes:
        kind: `density`: kept / all weights; `flops`: FLOPs left / FLOPs of the dense layers, zero activations not
            counted; `bytes`: size of the packed weights.
        limit: of the kind; above 0.
    """

    kind: Literal["density", "flops", "bytes"]
    limit: float

    @staticmethod
    def parse(text: str) -> Budget:
        """`density=0.1`, `flops=0.3` or `bytes=200000` as a budget.

        Raises:
            OptionError: it is none of these.
        """
        kind, _, value = text.partition("=")
        try:
            limit = float(value)
        except ValueError:
            limit = 0.0
        highest = {"density": 1.0, "flops": 1.0, "bytes": math.inf}.get(kind, 0.0)
        if not 0 < limit <= highest or math.isinf(limit):
            raise OptionError(f"'{text}' is no budget: give density=D or flops=F, shares in (0, 1], or bytes=N, N > 0")
        return Budget(cast(Literal["density", "flops", "bytes"], kind), limit)


@dataclass(frozen=True)
class Curve:
    """What pruning one layer costs, and what it saves.

    Attributes:
        points: density (kept / all weights, in (0, 1]) -> loss of the network.
        size: number of weights.
        flops: FLOPs of the dense layer; None: not known.
    """

    points: Mapping[float, float]
    size: int
    flops: int | None

    def loss(self, densities: Densities) -> Densities:
        """The loss at `densities`: rising as the density falls, straight over the logarithm between measured points."""
        known = sorted(self.points, reverse=True)
        losses = np.maximum.accumulate([self.points[density] for density in known])
        found: Densities = np.interp(_log(densities), _log(known[::-1]), losses[::-1])
        return found

    def cost(self, kind: str, densities: Densities) -> Densities:
        """What the layer takes of a budget: weights, FLOPs or bytes."""
        if kind == "bytes":
            return self._bytes(densities)
        total = self.size if kind == "density" else self.flops
        return float(total or 0) * densities

    def _bytes(self, densities: Densities) -> Densities:
        """float32 values with relative indices (`formats.RelativeIndex`) of the best width, or dense if that is less.

        Where kept weights lie at random, a gap of zeros is g or longer with the probability (1 - d)^g, and each
        2^k - 1 zeros in a gap take a filler: 1 / (1 - (1 - d)^(2^k - 1)) indices of k bits for each kept weight.
        """
        inside = np.clip(densities, _LEAST, 1 - _LEAST)
        index = np.min([bits / -np.expm1((2**bits - 1) * np.log1p(-inside)) for bits in _INDEX_BITS], axis=0)
        packed: Densities = self.size / 8 * np.minimum(densities * (_VALUE_BITS + index), _VALUE_BITS)
        return packed


def allocate(
    curves: Mapping[str, Curve], budget: Budget, limits: Mapping[str, float] | None = None
) -> dict[str, float]:
    """The densities that meet `budget` with the smallest sum of losses.

    As a layer's density falls, the loss rises steeply and then stays level, once the layer is ruined. Such curves are
    not convex, so neither steps along the best slope nor convex hulls find the best sum. It is minimized exactly
    instead, by dynamic programming over the budget in small parts, among the measured densities and some between them.
    What rounding to these parts leaves over raises all densities by one factor.

    Args:
        curves: layer -> its curve.
        budget: for all these layers together.
        limits: layer -> the highest density it can have; None: its highest measured one.

    Returns:
        Layer -> density, between the lowest measured one and the limit. Together they cost as much as the budget
        allows, or less where no layer can have more.

    Raises:
        OptionError: the lowest measured densities cost more than the budget, or FLOPs are not known.
    """
    unknown = [name for name, curve in curves.items() if curve.flops is None]
    if budget.kind == "flops" and unknown:
        raise OptionError(f"the FLOPs of '{unknown[0]}' are not known, since the model's shapes are open: fix them")
    choices = {name: _choices(curve, (limits or {}).get(name, 1.0)) for name, curve in curves.items()}
    costs = {name: curve.cost(budget.kind, choices[name]) for name, curve in curves.items()}
    whole = sum(float(curve.cost(budget.kind, np.ones(1))[0]) for curve in curves.values())
    allowed = budget.limit if budget.kind == "bytes" else budget.limit * whole
    least = sum(float(cost[-1]) for cost in costs.values())
    if least > allowed * (1 + 1e-9):
        reached = f"{least:,.0f} bytes" if budget.kind == "bytes" else f"{least / whole:.3g}"
        raise OptionError(
            f"a budget of {budget.limit:,g} ({budget.kind}) is out of reach: at the lowest densities that were "
            f"measured, {reached} is left; scan the sensitivity at lower densities, or ask for more"
        )
    if sum(float(cost[0]) for cost in costs.values()) <= allowed:
        return {name: float(densities[0]) for name, densities in choices.items()}
    losses = [curves[name].loss(choices[name]) for name in curves]
    chosen = _cheapest(losses, [cost - cost[-1] for cost in costs.values()], allowed - least)
    found = {name: float(choices[name][index]) for name, index in zip(curves, chosen, strict=True)}
    return _filled(found, curves, budget.kind, allowed, {name: float(choices[name][0]) for name in curves})


def quality_factors(weights: Mapping[str, NDArray[Any]], densities: Mapping[str, float]) -> dict[str, float]:
    """The factors by which a threshold of factor x standard deviation gives each layer its density.

    The rule of Han et al. 2015, section 3. As in the criterion `std`, the deviation is that of the weights that are not
    zero. The threshold is midway between the smallest weight that stays and the largest that goes; 0 where none goes.

    Args:
        weights: layer -> its weights, in any shape.
        densities: layer -> kept / all weights.
    """
    return {name: _quality_factor(weights[name], density) for name, density in densities.items()}


def _quality_factor(weights: NDArray[Any], density: float) -> float:
    left = weights[weights != 0]
    go = left.size - max(round(density * weights.size), 1)
    if go <= 0:
        return 0.0
    ends = np.partition(np.abs(left), (go - 1, go))[go - 1 : go + 1]
    deviation = np.std(left, dtype=np.float64)
    return float(np.mean(ends, dtype=np.float64) / deviation) if deviation else 0.0


def _log(densities: NDArray[Any] | list[float]) -> Densities:
    """The natural logarithm; a layer without weights has a density of 0."""
    return np.log(np.maximum(densities, _LEAST))


def _choices(curve: Curve, limit: float) -> Densities:
    """The densities that are considered, falling: the limit, the measured ones below it, and some between them."""
    highest = min(limit, max(curve.points))
    ends = [highest, *sorted((density for density in curve.points if density < highest), reverse=True)]
    parts = [np.geomspace(high, low, _BETWEEN, endpoint=False) for high, low in pairwise(ends)]
    found: Densities = np.concatenate([*parts, ends[-1:]])
    return found


def _cheapest(losses: list[Densities], spent: list[Densities], slack: float) -> list[int]:
    """One choice a layer, so that what is spent is at most `slack` and the sum of losses is the smallest."""
    best = np.zeros(_BUCKETS + 1)  # the smallest loss so far when at most this many buckets are spent
    picks = []
    for loss, cost in zip(losses, spent, strict=True):
        buckets = np.ceil(cost * (_BUCKETS / max(slack, 1e-9)) - 1e-6)
        total, pick = np.full(_BUCKETS + 1, np.inf), np.zeros(_BUCKETS + 1, np.int64)
        for index in np.flatnonzero(buckets <= _BUCKETS):
            bucket = int(buckets[index])
            through = best[: _BUCKETS + 1 - bucket] + loss[index]
            better = through < total[bucket:]
            total[bucket:][better] = through[better]
            pick[bucket:][better] = index
        picks.append((buckets, pick))
        best = total
    left, chosen = _BUCKETS, []
    for buckets, pick in reversed(picks):
        chosen.append(int(pick[left]))
        left -= int(buckets[chosen[-1]])
    return chosen[::-1]


def _filled(
    densities: dict[str, float], curves: Mapping[str, Curve], kind: str, allowed: float, limits: dict[str, float]
) -> dict[str, float]:
    """`densities` times the largest factor that the budget allows, none above its limit."""

    def raised(factor: float) -> dict[str, float]:
        return {name: min(density * factor, limits[name]) for name, density in densities.items()}

    def cost(factor: float) -> float:
        return sum(float(curves[name].cost(kind, np.array([d]))[0]) for name, d in raised(factor).items())

    low, high = 1.0, max(limits[name] / density for name, density in densities.items() if density > 0)
    for _ in range(60):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if cost(middle) <= allowed else (low, middle)
    return raised(low)
