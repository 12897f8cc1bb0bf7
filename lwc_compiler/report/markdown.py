"""A report as Markdown: for a pull request, the summary of a CI step, or a file to read.

What decides comes first: gates, refused nodes, headlines. Long tables are folded up.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

from lwc_compiler.gates import GateResult
from lwc_compiler.report.document import LayerRow, Report, last_entry
from lwc_compiler.report.headline import gates_text, headlines, quantity_with_unit
from lwc_compiler.report.render import NO_PLOTS, NUMBERS, OPEN, metric_text, percent, table_cells

_MARKS = {"passed": "✅", "failed": "❌", "warned": "⚠️", "skipped": "⏭️"}
# What Markdown and HTML could take for markup. A dot, a dash or an underscore in a word is none.
_MARKUP = re.compile(r"[\\`*\[\]<>|~&#]|(?<!\w)_|_(?!\w)|@(?=\w)")


def to_markdown(report: Report, plots: Sequence[str] | None = ()) -> str:
    """The content of `report.md`.

    Args:
        report: the rounds come from its provenance.
        plots: their files, relative to the report; None: say that they could not be drawn.
    """
    title = report.model + (f" for {report.target}" if report.target else "")
    lines = [f"# {escaped(title)}"]
    if report.refused:
        lines += ["", "❌ lwc cannot compile this model.", "", row("node", "operator", "reason"), "| --- | --- | --- |"]
        lines += [row(each.node or OPEN, each.operator or OPEN, each.reason) for each in report.refused]
    if report.gates:
        lines += ["", f"Gates: {gates_text(report.gates)}", "", *_gates(report.gates)]
    if figures := headlines(report):
        lines += ["", "| | | |", "| --- | ---: | --- |"]
        lines += [row(each.name, each.value, each.note) for each in figures]
    if report.layers:
        lines += ["", *folded(f"Layers ({len(report.layers)})", _layers(report))]
    if report.sizes:
        sizes = ["| size | bytes |", "| --- | ---: |", *(row(what, f"{size:,}") for what, size in report.sizes.items())]
        lines += ["", *folded("Sizes", sizes)]
    if report.times and report.times.layers:
        lines += ["", *folded("Times of the layers", _times(report))]
    if compared := [each for each in report.layers if each.decision and each.decision.trials]:
        lines += ["", "## Kernels compared", *(line for each in compared for line in ("", *_trials(each)))]
    if iterated := last_entry(report.passes, "iterate"):
        lines += ["", "## Rounds", "", *_rounds(iterated)]
    for part in plot_parts(plots):
        lines += ["", part]
    return "\n".join(lines) + "\n"


def plot_parts(plots: Sequence[str] | None) -> list[str]:
    """The paragraphs of a report that show `plots`, files relative to it; None: say that they could not be drawn."""
    if plots is None:
        return [NO_PLOTS]
    return ["## Plots", *(f"![{PurePosixPath(plot).stem}]({plot})" for plot in plots)] if plots else []


def row(*cells: str) -> str:
    """A row of a table; the cells are text, not Markdown."""
    return marked_row(map(escaped, cells))


def marked_row(cells: Iterable[str]) -> str:
    """A row of a table whose cells are Markdown."""
    return "| " + " | ".join(cells) + " |"


def escaped(text: str) -> str:
    """`text`, for example the name of a layer, so that Markdown shows it as it is, on one line."""
    return _MARKUP.sub(lambda found: f"&#{ord(found[0])};", " ".join(text.split()))


def folded(summary: str, lines: Iterable[str]) -> list[str]:
    """Markdown behind a summary, which is text."""
    return [f"<details><summary>{escaped(summary)}</summary>", "", *lines, "", "</details>"]


def _gates(gates: Iterable[GateResult]) -> list[str]:
    lines = [row("", "gate", "target", "limit", "value", "message"), "| --- | --- | --- | ---: | ---: | --- |"]
    for gate in gates:
        value = quantity_with_unit(gate.value, gate.unit)
        if gate.spread is not None:
            value += f" ± {quantity_with_unit(gate.spread, gate.unit)}"
        cells = (gate.name, gate.target, quantity_with_unit(gate.limit, gate.unit), value, gate.message)
        lines.append(row(f"{_MARKS[gate.verdict]} {gate.verdict}", *cells))
    return lines


def _layers(report: Report) -> list[str]:
    columns, rows = table_cells(report)
    legend = (
        f"Act%: non-zero activations a layer hands on ({report.activations_measured_with}). Weights%: weights kept. "
        "FLOP%: multiply-adds left when zero weights and zero inputs are left out."
    )
    rules = marked_row("---:" if column in NUMBERS else "---" for column in columns)
    return [row(*columns), rules, *(row(*cells) for cells in rows), "", escaped(legend)]


def _times(report: Report) -> list[str]:
    assert report.times is not None
    lines = [row("layer", "kernel", "ms", "share %", "not pruned, ms"), "| --- | --- | ---: | ---: | ---: |"]
    for each in report.times.layers:
        dense = OPEN if each.dense_ms is None else f"{each.dense_ms:.4g}"
        lines.append(row(each.layer or OPEN, each.kernel, f"{each.ms:.4g}", f"{100 * each.share:.1f}", dense))
    return lines


def _trials(layer: LayerRow) -> list[str]:
    """The ways to compute a layer that were compared, folded up below why the first of them was taken."""
    assert layer.decision is not None
    lines = [row("format and cut", "predicted, cycles", "measured, ms"), "| --- | ---: | ---: |"]
    for trial in layer.decision.trials:
        measured = OPEN if trial.seconds is None else f"{1e3 * trial.seconds:.4g}"
        lines.append(row(trial.name, f"{trial.cycles:,.0f}", measured))
    return folded(f"{layer.node}: {layer.decision.why}", lines)


def _rounds(iterated: Mapping[str, Any]) -> list[str]:
    """The table of the rounds of `iterate`, and what it is compared with."""
    metric = iterated["metric"]
    before, after = f"{metric} before retraining", f"{metric} after"
    columns = ["round", "stage", "Weights%", "times fewer", before, after]
    columns += ["held", "best epoch", "learning rate", "dead connections"]
    lines = [row(*columns), marked_row("---" if name in ("stage", "held") else "---:" for name in columns)]
    for entry in iterated["rounds"]:
        best = entry["round"] == iterated["best_round"]
        cells = (
            f"{entry['round']}{' (best)' if best else ''}",
            entry["stage"],
            percent(entry["density"]),
            f"{1 / entry['density']:.3g}" if entry["density"] else OPEN,
            metric_text(metric, entry["metric_pruned"]),
            metric_text(metric, entry["metric"]),
            {True: "yes", False: "no", None: OPEN}[entry["held"]],
            str(entry["best_epoch"]),
            f"{entry['learning_rate']:g}",
            f"{entry['dead']:,}",
        )
        lines.append(marked_row(f"**{escaped(cell)}**" if best else escaped(cell) for cell in cells))
    legend = f"The dense model's {metric} is {metric_text(metric, iterated['dense_metric'])}."
    if not iterated["best_round"]:
        legend += " No round holds it: the model was left as it was."
    return [*lines, "", legend]
