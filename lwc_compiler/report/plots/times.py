"""Plots of where the time of a run goes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from lwc_compiler.report.plots.style import COLOURS, FAINT, new_figure, short, styled

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@styled
def layer_time(layers: Mapping[str, tuple[float | None, float]]) -> Figure:
    """Time of each layer, dense and pruned.

    Args:
        layers: name -> (milliseconds of the dense layer, None where it was not timed; of the pruned one), the first on
            top.
    """
    places = list(range(len(layers)))
    compared = any(before is not None for before, _ in layers.values())
    height = 0.36 if compared else 0.68
    figure = new_figure(6.4, 1.2 + 0.3 * max(2, len(layers)))
    axes = figure.add_subplot()
    shift = height / 2 if compared else 0.0
    if compared:
        before = [dense or 0.0 for dense, _ in layers.values()]
        axes.barh([place - shift for place in places], before, height=height, color=FAINT, label="not pruned")
    after = [pruned for _, pruned in layers.values()]
    axes.barh([place + shift for place in places], after, height=height, color=COLOURS[0], label="pruned")
    axes.set_yticks(places, [short(name, 30) for name in layers])
    axes.set_ylim(len(layers) - 0.4, -0.6)
    axes.grid(visible=False, axis="y")
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel("Time (ms)")
    axes.set_title("Time of each layer")
    if compared:
        axes.legend(loc="lower right")
    return figure
