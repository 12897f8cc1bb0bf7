"""How plots look: one style, a palette that colour-blind readers can tell apart, and the axes that plots share.

More pruning is to the right in every plot. matplotlib is imported where it is used, so this imports without it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import wraps
from itertools import zip_longest
from typing import TYPE_CHECKING, ParamSpec, TypeVar

from lwc_compiler.report.document import FRACTIONS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_P = ParamSpec("_P")
_R = TypeVar("_R")

# Okabe and Ito 2008, "Color Universal Design", without yellow, which is too light for lines.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = ("o", "s", "^", "D", "v", "P")
INK, GREY, FAINT, BAND = "#222222", "#7F7F7F", "#C8C8C8", "#F0F2F5"
DASHES = (0, (4, 3))
TIMES = "\N{MULTIPLICATION SIGN}"

STYLE = {
    "figure.dpi": 100,
    "figure.facecolor": "white",
    "figure.constrained_layout.use": True,
    "savefig.dpi": 200,
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "text.color": INK,
    # Names of layers are shown as they are.
    "text.parse_math": False,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 8,
    "axes.labelcolor": INK,
    "axes.edgecolor": GREY,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.grid.which": "major",
    "grid.color": "#E8E8E8",
    "grid.linewidth": 0.8,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "lines.linewidth": 1.8,
    "lines.markersize": 5,
    "lines.markeredgewidth": 1.2,
    "legend.edgecolor": "none",
    "legend.fontsize": 9,
    # What makes the same plot the same bytes.
    "svg.hashsalt": "lwc",
}

_COARSE = (1.0, 0.5, 0.2)
_FINE = (1.0, 0.8, 0.6, 0.5, 0.4, 0.3, 0.2, 0.15)


def styled(draw: Callable[_P, _R]) -> Callable[_P, _R]:
    """Makes `draw` run in lwc's style, whatever the user's own is; afterwards matplotlib's settings are as before."""

    @wraps(draw)
    def in_style(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        from matplotlib import style

        with style.context(STYLE, after_reset=True):
            return draw(*args, **kwargs)

    return in_style


def new_figure(width: float, height: float) -> Figure:
    """An empty figure, in inches, outside of pyplot."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height))


def density_axis(axes: Axes, label: str, *, pruned: bool = False, factor: bool = False) -> None:
    """Makes x a logarithmic axis of densities (kept / all) that falls to the right; its data must be there already.

    Args:
        axes: changed.
        label: of the axis, without unit.
        pruned: count what is gone (100 % - density) in place of what is left.
        factor: show 1 / density above.
    """
    from matplotlib.ticker import NullLocator

    axes.set_xscale("log")
    low, high = sorted(axes.get_xlim())
    axes.set_xlim(min(high, 1.06), max(low, 1e-6))
    ticks = density_ticks(low, high)
    axes.set_xticks(ticks, [f"{100 * (1 - tick if pruned else tick):.6g}" for tick in ticks])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel(f"{label} (%)")
    if factor:
        above = axes.secondary_xaxis("top")
        above.spines["top"].set_visible(False)
        above.set_xticks(ticks, [f"{1 / tick:.3g}{TIMES}" for tick in ticks])
        above.xaxis.set_minor_locator(NullLocator())
        above.tick_params(length=0, labelcolor=GREY)
        above.set_xlabel("times fewer weights", color=GREY)


def metric_axis(axes: Axes, metric: str) -> None:
    """Labels y with the metric; fractions are shown in percent."""
    from matplotlib.ticker import PercentFormatter

    unit = ""
    if metric in FRACTIONS:
        unit = " (%)"
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, symbol=""))
    axes.set_ylabel(metric[:1].upper() + metric[1:] + unit)


def follow(
    axes: Axes,
    metric: str,
    lines: Iterable[tuple[Sequence[float], Sequence[float]]],
    dense: float | None,
    depth: float = 0.05,
) -> None:
    """Limits y to where the lines are of interest: from the best value to `depth` worse.

    The best point of the best line stays in sight, however bad. Metrics that are no fractions are shown whole.

    Args:
        axes: changed.
        metric: its name.
        lines: (values, half lengths of their error bars or none) of each line.
        dense: the baseline, if there is one.
        depth: as a fraction; 5 points are what the paper's figure 5 shows.
    """
    if metric not in FRACTIONS:
        return
    sign = 1 if FRACTIONS[metric] else -1
    points = [
        (sign * value - half, sign * value + half)
        for values, spread in lines
        for value, half in zip_longest(values, spread, fillvalue=0.0)
    ]
    ends = [*points, *([] if dense is None else [(sign * dense, sign * dense)])]
    if not ends:
        return
    best = max(high for _, high in ends)
    worst = max(min(low for low, _ in ends), min([best - depth, *([max(low for low, _ in points)] if points else [])]))
    margin = 0.06 * (best - worst) or 0.005
    low, high = sorted((sign * (worst - margin), sign * (best + margin)))
    axes.set_ylim(low, high)


def short(name: str, length: int) -> str:
    """The end of a name, which tells layers apart, with nothing that cannot be printed."""
    name = "".join(char if char.isprintable() else "?" for char in name)
    return name if len(name) <= length else "…" + name[1 - length :]


def density_ticks(low: float, high: float) -> list[float]:
    """Round densities between two others, for a logarithmic axis."""
    steps = _FINE if high < 8 * low else _COARSE
    ticks = (round(step * 10.0**-decade, 9) for decade in range(7) for step in steps)
    return [tick for tick in ticks if low <= tick <= high]
