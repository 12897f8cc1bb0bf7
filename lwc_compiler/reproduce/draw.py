"""Plots of a reproduction: the trade-off, the sensitivity of the layers, and the networks of the first seed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lwc_compiler.reproduce.results import Results, Trained
from lwc_compiler.reproduce.steps import Step

if TYPE_CHECKING:
    from lwc_compiler.report.plots import Curve
    from lwc_compiler.sparsity.curves import Sensitivity


def draw(results: Results, steps: Mapping[str, Step], scan: Sensitivity, folder: Path) -> list[str] | None:
    """Writes the plots to `folder`; without matplotlib the log says that there are none.

    Args:
        results: everything.
        steps: the first seed's networks by name, the dense one first.
        scan: of the first seed's dense network.
        folder: made if it is not there.

    Returns:
        The names of the SVG files; None without matplotlib.
    """
    from lwc_compiler.report import plots

    if not plots.plots_available():
        return None
    dense = results.networks()[0]
    error = float(np.mean([one.validation_error for one in dense]))
    curves = [plots.Curve(curve.name, curve.densities, curve.errors) for curve in results.figure_5]
    curves += _stages_curves(results)
    figures = {
        "trade-off": plots.trade_off(curves, dense=error, metric="error"),
        "sensitivity": plots.figure_of_scan(scan),
    }
    (_, dense_step), *pruned = steps.items()
    before = dense_step.load()
    for name, step in pruned:
        figures |= {f"{name}-{what}": figure for what, figure in plots.figures_of(before, step.load()).items()}
    plots.save_plots(figures, folder)
    return [f"{name}.svg" for name in figures]


def _stages_curves(results: Results) -> list[Curve]:
    """The networks of the tables as curves: mean validation error over the seeds, and its standard deviation.

    `40x-deformed` and `68x-deformed` are on one curve; networks with shared weights, whose masks are those of others,
    on none.
    """
    from lwc_compiler.report.plots import Curve

    kinds: dict[str, list[tuple[Trained, ...]]] = {}
    for seeds in results.networks():
        kind = seeds[0].name.partition("-")[2]
        if not kind.endswith("shared"):
            kinds.setdefault(kind, []).append(seeds)
    curves = []
    for kind, networks in kinds.items():
        errors = [[one.validation_error for one in seeds] for seeds in networks]
        curves.append(
            Curve(
                "the networks of table 1" + (f", {kind}" if kind else ""),
                [float(np.mean([1 / one.rate for one in seeds])) for seeds in networks],
                [float(np.mean(values)) for values in errors],
                [float(np.std(values, ddof=1)) for values in errors] if len(results.seeds) > 1 else (),
            )
        )
    return curves
