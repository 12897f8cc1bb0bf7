"""A report as Markdown: for a pull request, the summary of a CI step, or a file to read.

What decides comes first: gates, refused nodes, headlines. Long tables are folded up.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import PurePosixPath

from lwc_compiler.report.document import Report, last_entry
from lwc_compiler.report.headline import gates_text, headlines
from lwc_compiler.report.render import (
    NO_PLOTS,
    Cells,
    gate_cells,
    layer_cells,
    layer_legend,
    refusal_cells,
    round_cells,
    round_legend,
    size_cells,
    target_cells,
    time_cells,
    trial_cells,
)

_MARKS = {"passed": "✅", "failed": "❌", "warned": "⚠️", "skipped": "⏭️"}
# What Markdown and HTML could take for markup. A dot, a dash or an underscore in a word is none.
_MARKUP = re.compile(r"[\\`*\[\]<>|~&#]|(?<!\w)_|_(?!\w)|@(?=\w)")


def to_markdown(report: Report) -> str:
    """The content of `report.md`, but for plots."""
    title = report.model + (f" for {report.target}" if report.target else "")
    lines = [f"# {escaped(title)}"]
    if report.refused:
        lines += ["", "❌ lwc cannot compile this model.", "", *table(refusal_cells(report))]
    if report.gates:
        lines += ["", f"Gates: {gates_text(report.gates)}", "", *_gates(report)]
    if figures := headlines(report):
        rows = tuple((each.name, each.value, each.note) for each in figures)
        lines += ["", *table(Cells(("figure", "value", ""), rows, frozenset(("value",))))]
    if report.figures:
        lines += ["", *table(target_cells(report.figures))]
    if report.layers:
        layers = [*table(layer_cells(report)), "", escaped(layer_legend(report))]
        lines += ["", *folded(f"Layers ({len(report.layers)})", layers)]
    if report.sizes:
        lines += ["", *folded("Sizes", table(size_cells(report)))]
    if report.times and report.times.layers:
        lines += ["", *folded("Times of the layers", table(time_cells(report)))]
    if compared := [(each.node, each.decision) for each in report.layers if each.decision and each.decision.trials]:
        lines += ["", "## Kernels compared"]
        for node, decision in compared:
            lines += ["", *folded(f"{node}: {decision.why}", table(trial_cells(decision)))]
    if iterated := last_entry(report.passes, "iterate"):
        lines += ["", "## Rounds", "", *table(round_cells(iterated)), "", escaped(round_legend(iterated))]
    return "\n".join(lines) + "\n"


def plot_parts(plots: Sequence[str] | None) -> list[str]:
    """The paragraphs of a report that show `plots`, files relative to it; None: say that they could not be drawn."""
    if plots is None:
        return [NO_PLOTS]
    return ["## Plots", *(f"![{PurePosixPath(plot).stem}]({plot})" for plot in plots)] if plots else []


def table(cells: Cells) -> list[str]:
    """The lines of a table; its cells are text, not Markdown."""
    rules = ("---:" if column in cells.numbers else "---" for column in cells.columns)
    rows = (*cells.rows, cells.last) if cells.last else cells.rows
    return [_row(map(escaped, cells.columns)), _row(rules), *(_row(map(escaped, row)) for row in rows)]


def escaped(text: str) -> str:
    """`text`, for example the name of a layer, so that Markdown shows it as it is, on one line."""
    return _MARKUP.sub(lambda found: f"&#{ord(found[0])};", " ".join(text.split()))


def folded(summary: str, lines: Iterable[str]) -> list[str]:
    """Markdown behind a summary, which is text."""
    return [f"<details><summary>{escaped(summary)}</summary>", "", *lines, "", "</details>"]


def _gates(report: Report) -> list[str]:
    cells = gate_cells(report.gates)
    rows = tuple((f"{_MARKS[row[0]]} {row[0]}", *row[1:]) for row in cells.rows)
    return table(replace(cells, rows=rows))


def _row(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"
