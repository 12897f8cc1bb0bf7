"""Plots of a metric: against density, and over the epochs of a training."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from lwc_compiler.report.plots.style import (
    BAND,
    COLOURS,
    DASHES,
    GREY,
    INK,
    MARKERS,
    density_axis,
    density_ticks,
    follow,
    metric_axis,
    new_figure,
    short,
    styled,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

_SENSITIVITY = "Sensitivity: each layer pruned alone, without retraining"


@dataclass(frozen=True)
class Curve:
    """A line over density.

    Attributes:
        name: for the legend.
        density: kept / all weights, in (0, 1].
        metric: as many values; accuracy and error are fractions.
        spread: half lengths of the error bars, such as the standard deviation over seeds; () draws none.
        missed: whether a point's metric is too bad to count; those are hollow. () for none.
    """

    name: str
    density: Sequence[float]
    metric: Sequence[float]
    spread: Sequence[float] = ()
    missed: Sequence[bool] = ()


@dataclass(frozen=True)
class TrainedRound:
    """One round of a training.

    Attributes:
        name: short, such as its number.
        density: kept / all weights in this round; None where unknown.
        epochs: epochs that were measured, rising; 0 is the state before training.
        metric: validation metric after each of them.
        best_epoch: the epoch that was kept.
        chosen: whether the model of this round is the one that was kept.
    """

    name: str
    density: float | None
    epochs: Sequence[int]
    metric: Sequence[float]
    best_epoch: int
    chosen: bool = False


@styled
def trade_off(
    curves: Sequence[Curve],
    *,
    dense: float | None = None,
    metric: str = "accuracy",
    chosen: tuple[float, float] | None = None,
    title: str = "What pruning costs",
) -> Figure:
    """The metric against the share of weights pruned (Han et al. 2015, figure 5).

    Args:
        curves: one for each way of pruning.
        dense: metric of the dense model, drawn as a line across.
        metric: its name: `accuracy`, `agreement`, `error` or `disagreement` (fractions, shown from the best to 5
            points worse), or any other.
        chosen: (density, metric) of the model that was kept.
        title: above the plot.
    """
    figure = new_figure(6.4, 4.2)
    axes = figure.add_subplot()
    _draw_dense(axes, dense)
    lines = []
    for index, curve in enumerate(curves):
        again, which = divmod(index, len(COLOURS))
        lines.append(_draw_curve(axes, curve, COLOURS[which], MARKERS[which], "--" if again else "-"))
    if any(any(curve.missed) for curve in curves):
        axes.plot([], [], "o", color=GREY, markerfacecolor="white", label=f"{metric} not held")
    if chosen is not None:
        axes.plot([chosen[0]], [chosen[1]], "o", markersize=12, markerfacecolor="none", color=INK, label="model kept")
    density_axis(axes, "Weights pruned", pruned=True, factor=True)
    metric_axis(axes, metric)
    follow(axes, metric, [(curve.metric, curve.spread) for curve in curves], dense)
    low, high = axes.get_ylim()
    for curve, line in zip(curves, lines, strict=True):
        if not any(low <= value <= high for value in curve.metric):
            line.set_label(f"{line.get_label()} (out of view)")
    axes.set_title(title)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="best")
    return figure


@styled
def sensitivity(
    curves: Sequence[Curve],
    *,
    suggested: Mapping[str, float] | None = None,
    dense: float | None = None,
    metric: str = "accuracy",
) -> Figure:
    """How much each layer alone bears: the metric against its density (Han et al. 2015, figure 6).

    Up to six layers share one plot. More get a panel each, on the same axes.

    Args:
        curves: one for each layer, by its name.
        suggested: name of a layer -> density that was chosen for it; an upright line.
        dense: metric of the dense model, drawn as a line across.
        metric: its name, as for `trade_off`; fractions are shown down to 20 points below the best, as in the paper.
    """
    suggested = suggested or {}
    figure, panels = _one_panel() if len(curves) <= len(COLOURS) else _panel_for_each(curves)
    for index, (curve, panel) in enumerate(zip(curves, panels * len(curves), strict=False)):
        colour, marker, other = COLOURS[0], "", COLOURS[1]
        if len(panels) == 1:
            colour, marker, other = COLOURS[index], MARKERS[index], COLOURS[index]
        _draw_curve(panel, curve, colour, marker)
        if curve.name in suggested:
            panel.axvline(suggested[curve.name], color=other, linestyle=":", linewidth=1.4, zorder=1.5)
    for panel in panels:
        _draw_dense(panel, dense)
    axes = panels[0]
    metric_axis(axes, metric)
    density_axis(axes, "Weights kept in the layer")
    follow(axes, metric, [(curve.metric, curve.spread) for curve in curves], dense, depth=0.2)
    if len(panels) > 1:
        # The axes are shared, so their labels belong to the figure.
        figure.supxlabel(axes.get_xlabel() + (", dotted: suggested" if suggested else ""), fontsize=9)
        figure.supylabel(axes.get_ylabel(), fontsize=9)
        axes.set(xlabel="", ylabel="")
    elif curves:
        if suggested:
            axes.plot([], [], ":", linewidth=1.4, color=GREY, label="suggested")
        axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1), borderaxespad=0)
    return figure


@styled
def training_curve(
    rounds: Sequence[TrainedRound],
    *,
    dense: float | None = None,
    metric: str = "accuracy",
) -> Figure:
    """The metric over all epochs of all rounds, each a band, and below it the density.

    Pruning makes the metric drop at the edge of a band; retraining brings it back.

    Args:
        rounds: in the order they were trained.
        dense: metric of the dense model, drawn as a line across.
        metric: its name, as for `trade_off`.
    """
    edges = [0, *np.cumsum([max(1, *entry.epochs) for entry in rounds]).tolist()]
    densities = [entry.density for entry in rounds if entry.density is not None]
    panels = 2 if len(densities) == len(rounds) else 1
    figure = new_figure(7.2, 1.8 + 1.5 * panels)
    axes, *below = figure.subplots(panels, sharex=True, squeeze=False, height_ratios=[5, 2][:panels])[:, 0]
    for index, (start, end) in enumerate(pairwise(edges)):
        for panel in (axes, *below):
            panel.axvspan(start, end, color=BAND if index % 2 else "white", linewidth=0, zorder=0)
    if len(rounds) > 1:
        _name_bands(axes, edges, rounds)
    places = [start + epoch for start, entry in zip(edges, rounds, strict=False) for epoch in entry.epochs]
    values = [value for entry in rounds for value in entry.metric]
    axes.plot(places, values, color=COLOURS[0], linewidth=1.3, label="validation")
    best = [dict(zip(entry.epochs, entry.metric, strict=True))[entry.best_epoch] for entry in rounds]
    best_places = [start + entry.best_epoch for start, entry in zip(edges, rounds, strict=False)]
    axes.plot(best_places, best, "o", color=COLOURS[1], label="epoch kept", clip_on=False, zorder=3)
    _draw_dense(axes, dense)
    metric_axis(axes, metric)
    shown = best if dense is None else [*best, dense]
    follow(axes, metric, [(values, ())], dense, depth=max(0.05, max(shown) - min(shown)))
    axes.set_title("Training", pad=18)
    axes.legend(loc="lower right", bbox_to_anchor=(1, 1.06), borderaxespad=0, borderpad=0, ncols=3)
    if below:
        below[0].stairs(densities, edges, baseline=None, color=COLOURS[2], linewidth=1.8)
        _density_upwards(below[0])
    for panel in (axes, *below):
        panel.grid(visible=False, axis="x")
        panel.set_xlim(0, edges[-1])
    (axes, *below)[-1].set_xlabel("Epoch")
    return figure


def _draw_dense(axes: Axes, dense: float | None) -> None:
    if dense is not None:
        axes.axhline(dense, color=GREY, linestyle=DASHES, linewidth=1.2, label="dense", zorder=1.5)


def _draw_curve(axes: Axes, curve: Curve, colour: str, marker: str, style: str = "-") -> Line2D:
    label = short(curve.name, 40)
    (line,) = axes.plot(curve.density, curve.metric, color=colour, marker=marker, linestyle=style, label=label)
    if len(curve.spread):
        axes.errorbar(curve.density, curve.metric, curve.spread, fmt="none", ecolor=colour, elinewidth=1.2, capsize=3)
    missed = [index for index, value in enumerate(curve.missed) if value]
    if missed:
        x, y = np.take(curve.density, missed), np.take(curve.metric, missed)
        axes.plot(x, y, marker, color=colour, markerfacecolor="white")
    return line


def _one_panel() -> tuple[Figure, list[Axes]]:
    figure = new_figure(7.2, 4.0)
    axes = figure.add_subplot()
    axes.set_title(_SENSITIVITY)
    return figure, [axes]


def _panel_for_each(curves: Sequence[Curve]) -> tuple[Figure, list[Axes]]:
    """A grid of small panels on the same axes, named after the curves."""
    columns = min(6, math.ceil(math.sqrt(len(curves))))
    rows = math.ceil(len(curves) / columns)
    width, height = 0.8 + 1.45 * columns, 1.0 + 1.2 * rows
    figure = new_figure(width, height)
    # Constrained layout takes seconds for so many panels; here all sizes are known, in inches.
    figure.set_layout_engine("none")
    edges = {"left": 0.65 / width, "right": 1 - 0.15 / width, "bottom": 0.55 / height, "top": 1 - 0.6 / height}
    space = {"wspace": 0.12, "hspace": 0.5}
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False, gridspec_kw=edges | space)
    panels: list[Axes] = list(grid.ravel())
    for panel in panels[len(curves) :]:
        panel.remove()
    for index, (curve, panel) in enumerate(zip(curves, panels, strict=False)):
        panel.set_title(short(curve.name, 20), fontsize=7, weight="normal", pad=3)
        panel.tick_params(labelsize=7, labelbottom=index + columns >= len(curves))
    figure.suptitle(_SENSITIVITY, x=0.1 / width, y=1 - 0.1 / height, ha="left", va="top", fontsize=10, weight="bold")
    return figure, panels[: len(curves)]


def _name_bands(axes: Axes, edges: Sequence[int], rounds: Sequence[TrainedRound]) -> None:
    """Names of the rounds above their bands, as many as there is room for; the chosen one stands out."""
    every = math.ceil(len(rounds) / 25)
    for index, (entry, (start, end)) in enumerate(zip(rounds, pairwise(edges), strict=True)):
        if entry.chosen or index % every == 0:
            axes.annotate(
                entry.name,
                ((start + end) / 2, 1),
                xycoords=("data", "axes fraction"),
                xytext=(0, 3),
                textcoords="offset points",
                ha="center",
                color=COLOURS[1] if entry.chosen else GREY,
                weight="bold" if entry.chosen else "normal",
                fontsize=8,
            )


def _density_upwards(axes: Axes) -> None:
    """Makes y a logarithmic axis of densities."""
    from matplotlib.ticker import NullLocator

    axes.set_yscale("log")
    low, high = axes.get_ylim()
    axes.set_ylim(low / 1.15, high * 1.15)
    ticks = density_ticks(low / 1.15, high * 1.15)
    axes.set_yticks(ticks, [f"{100 * tick:.6g}" for tick in ticks])
    axes.yaxis.set_minor_locator(NullLocator())
    axes.set_ylabel("Weights kept (%)")
