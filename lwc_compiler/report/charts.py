"""Where the lines and labels of a chart for the HTML page are, in pixels; `templates/chart.svg` draws it.

The plots for documents (`report/plots`) need matplotlib and have colours of their own. These follow the page's, by day
and by night. The axes are the same: more pruning is to the right, on a logarithmic scale.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from lwc_compiler.report.document import FRACTIONS
from lwc_compiler.report.plots.curves import Curve
from lwc_compiler.report.plots.style import density_ticks
from lwc_compiler.report.render import metric_text, percent

_LEFT, _RIGHT, _TOP, _BOTTOM = 44, 10, 10, 38  # room for labels
_TICKS = 5


@dataclass(frozen=True)
class Tick:
    """A place on an axis, and what stands there."""

    at: float
    text: str


@dataclass(frozen=True)
class Mark:
    """A measurement. `missed`: its metric is too bad to count."""

    x: float
    y: float
    text: str
    missed: bool


@dataclass(frozen=True)
class Chart:
    """A chart.

    Attributes:
        width, height: of the picture.
        left, right, top, bottom: edges of the part where lines are.
        lines: name -> the marks on it.
        x_ticks, y_ticks: with their labels.
        dense: height of the dense model's line; None: there is none.
        metric: label of the y axis.
        summary: the chart in a sentence, for those who do not see it.
    """

    width: int
    height: int
    left: int
    right: int
    top: int
    bottom: int
    lines: dict[str, list[Mark]]
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    dense: float | None
    metric: str
    summary: str


def density_chart(
    curves: Sequence[Curve],
    metric: str,
    dense: float,
    *,
    depth: float,
    size: tuple[int, int],
    beside: Sequence[Curve] = (),
) -> Chart:
    """A metric over density.

    Args:
        curves: with at least one point each.
        metric: its name; fractions are shown in percent, from the best value to `depth` below.
        dense: metric of the dense model.
        depth: how much of a fraction is in view.
        size: width and height.
        beside: the curves of charts that share the axes.
    """
    width, height = size
    right, bottom = width - _RIGHT, height - _BOTTOM
    shared = [*curves, *beside]
    low, high = _view([dense, *(value for curve in shared for value in curve.metric)], metric, depth)
    densities = [density for curve in shared for density in curve.density if density > 0]
    most = max(densities, default=1.0)
    least = min(min(densities, default=1.0), most / 2)

    def x(density: float) -> float:
        share = math.log(most / max(density, least)) / math.log(most / least)
        return round(_LEFT + share * (right - _LEFT), 1)

    def y(value: float) -> float:
        return round(_TOP + (high - value) / (high - low) * (bottom - _TOP), 1)

    lines = {}
    for curve in curves:
        points = zip(curve.density, curve.metric, curve.missed or [False] * len(curve.density), strict=True)
        lines[curve.name] = [
            Mark(x(density), y(value), f"{percent(density)} % kept: {metric_text(metric, value)}", missed)
            for density, value, missed in points
            if math.isfinite(value)
        ]
    scale, unit = (100, " (%)") if metric in FRACTIONS else (1, "")
    kept = density_ticks(least, most)
    return Chart(
        width,
        height,
        _LEFT,
        right,
        _TOP,
        bottom,
        lines,
        [Tick(x(tick), f"{100 * tick:.4g}") for tick in kept[:: math.ceil(len(kept) / _TICKS)]],
        [Tick(y(tick), f"{scale * tick:.4g}") for tick in _round_numbers(low, high)],
        y(dense),
        f"{metric}{unit}",
        f"{metric} over the share of weights kept. Dense model: {metric_text(metric, dense)}. "
        + ". ".join(f"{name}: {', '.join(mark.text for mark in marks)}" for name, marks in lines.items()),
    )


def _view(values: Sequence[float], metric: str, depth: float) -> tuple[float, float]:
    """Lowest and highest value in view; those of a fraction that are worse lie outside, as does the loss of a ruin."""
    finite = [value for value in values if math.isfinite(value)]
    low, high = min(finite, default=0.0), max(finite, default=0.0)
    if metric in FRACTIONS:
        low, high = (max(low, high - depth), high) if FRACTIONS[metric] else (low, min(high, low + depth))
    margin = 0.05 * (high - low) or 0.01 * abs(high) or 1.0
    return low - margin, high + margin


def _round_numbers(low: float, high: float) -> list[float]:
    """About five round numbers from `low` to `high`."""
    rough = (high - low) / _TICKS
    scale = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * scale for factor in (1, 2, 5, 10) if factor * scale >= rough)
    return [number * step for number in range(math.ceil(low / step), math.floor(high / step) + 1)]
