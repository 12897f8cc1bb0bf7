"""The ratios as bars: how many times as long as lwc each peer takes."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import TYPE_CHECKING

from benchmarks.peers.table import PEERS, Row, best_of, ours, ratio
from benchmarks.variants import DENSE
from lwc_compiler.report.plots.style import COLOURS, DASHES, GREY, INK, TIMES, new_figure, styled

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def figures_of(rows: Sequence[Row]) -> dict[str, Figure]:
    """Name of a file -> bars of the pruned networks of one instruction set, number of threads and batch."""
    pruned = [row for row in rows if row["variant"] != DENSE and ours(row) is not None]
    figures = {}
    for (isa, threads, batch), group in groupby(pruned, key=lambda row: (row["isa"], row["threads"], row["batch"])):
        suffix = "" if isa == "native" else f"-{isa}"
        figures[f"peers-{threads}-thread-batch-{batch}{suffix}"] = bars(list(group))
    return figures


@styled
def bars(rows: Sequence[Row]) -> Figure:
    """A bar for each peer at its best on each network, with the quartiles over the rounds."""
    from matplotlib.patches import Patch
    from matplotlib.ticker import FixedLocator, NullLocator

    first = rows[0]
    figure = new_figure(7.2, 0.9 + 0.75 * len(rows))
    axes = figure.add_subplot()
    height = 0.8 / len(PEERS)
    for place, engine in enumerate(PEERS):
        for index, row in enumerate(rows):
            entry = best_of(row, engine)
            if entry is None or not entry["agrees"]:
                continue
            value, low, high = ratio(row, entry)
            y = index + (place - (len(PEERS) - 1) / 2) * height
            axes.barh(y, value, height, color=COLOURS[place])
            axes.plot([low, high], [y, y], color=INK, linewidth=0.8)
            axes.annotate(
                f"{value:.1f}", (max(value, high), y), (3, 0), textcoords="offset points", va="center", size=6
            )
    axes.axvline(1, color=GREY, linestyle=DASHES, linewidth=1.2)
    axes.set_xscale("log")
    low, high = axes.get_xlim()
    axes.set_xlim(min(low, 0.8), 1.15 * high)
    ticks = [tick for tick in (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100) if min(low, 0.8) <= tick <= 1.15 * high]
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.set_xticks(ticks, [f"{tick:g}{TIMES}" for tick in ticks])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_yticks(range(len(rows)), [f"{row['model']}-{row['variant']}" for row in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.grid(visible=False, axis="y")
    axes.set_xlabel("time of the peer at its best / time of lwc on the pruned file")
    threads = f"{first['threads']} thread{'s' * (first['threads'] > 1)}"
    axes.set_title(f"{threads}, batch {first['batch']}{', AVX2' * (first['isa'] == 'avx2')}")
    keys = [Patch(color=colour, label=name) for colour, name in zip(COLOURS, PEERS.values(), strict=False)]
    axes.legend(handles=keys, loc="upper left", bbox_to_anchor=(1.01, 1), borderaxespad=0)
    return figure
