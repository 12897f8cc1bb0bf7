"""A report as JSON, as Markdown and as a table for the terminal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from html import escape
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from lwc_compiler.report.table import LayerRow, Report, Total, last_entry

if TYPE_CHECKING:
    from rich.table import Table

NO_PLOTS = "reports come without plots: install lwc-compiler[plots]"

# Metrics that are fractions and shown in percent: name -> whether higher is better. All others are better when lower.
FRACTIONS = {"accuracy": True, "agreement": True, "error": False, "disagreement": False}

_NUMBERS = ("weights", "FLOP", "Act%", "Weights%", "FLOP%", "bytes")
_OPEN = "-"


def to_json(report: Report) -> dict[str, Any]:
    """The content of `report.json`. Densities are fractions; what was not measured is null."""
    total = report.total
    return {
        "model": report.model,
        "activations_measured_with": report.activation_source,
        "layers": [_layer(row) for row in report.rows],
        "total": {**asdict(total), "density": total.density},
        "sizes": dict(report.sizes),
        "passes": list(report.passes),
    }


def to_markdown(report: Report, plots: Sequence[str] | None = ()) -> str:
    """The content of `report.md`.

    Args:
        report: the rounds come from its provenance.
        plots: their files, relative to the report; None: say that they could not be drawn.
    """
    columns, rows = table_cells(report)
    rules = ("---:" if column in _NUMBERS else "---" for column in columns)
    lines = [f"# {report.model}", ""]
    lines += [_markdown_row(cells) for cells in (columns, rules, *rows)]
    legend = (
        f"Act%: non-zero activations a layer hands on ({report.activation_source}). Weights%: weights kept. "
        "FLOP%: multiply-adds left when zero weights and zero inputs are left out."
    )
    lines += ["", legend, "", "| size | bytes |", "| --- | ---: |"]
    lines += [_markdown_row((what, f"{size:,}")) for what, size in report.sizes.items()]
    if compared := [row for row in report.rows if row.decision and row.decision.trials]:
        lines += ["", "## Kernels compared", *(line for row in compared for line in _trials(row))]
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


def to_rich(report: Report) -> Table:
    """The table for the terminal."""
    from rich.table import Table

    columns, rows = table_cells(report)
    table = Table(title=report.model, caption=f"activations: {report.activation_source}")
    for column in columns:
        table.add_column(column, justify="right" if column in _NUMBERS else "left")
    for row in rows[:-1]:
        table.add_row(*row)
    table.add_section()
    table.add_row(*rows[-1])
    return table


def table_cells(report: Report) -> tuple[list[str], list[list[str]]]:
    """The columns of the table, and its rows with the total last, as text.

    After the paper's columns comes why pruning left layers alone (where it did), then what lowering did (where it has).
    """
    columns = ["layer", "shape", "weights", "FLOP", "Act%", "Weights%", "FLOP%"]
    rows = [[row.node, "x".join(map(str, row.shape)), *_numbers(row)] for row in report.rows]
    rows.append(["total", "", *_numbers(report.total)])
    if any(row.kept_because for row in report.rows):
        columns.append("kept because")
        for cells, note in zip(rows, [*(row.kept_because or "" for row in report.rows), ""], strict=True):
            cells.append(note)
    if any(row.decision for row in report.rows):
        columns += ["format", "kernel", "bytes", "why"]
        for cells, decision in zip(rows, [row.decision for row in report.rows], strict=False):
            if decision:
                cells += [decision.storage, decision.kernel, f"{decision.bytes:,}", decision.why]
            else:
                cells += [_OPEN] * 4
        rows[-1] += ["", "", f"{sum(row.decision.bytes for row in report.rows if row.decision):,}", ""]
    return columns, rows


def quantity(number: int | None) -> str:
    """A count with three digits and K, M or B, as the paper prints them: 0.5K, 25K, 3.2M."""
    if number is None:
        return _OPEN
    for unit, scale, least in (("B", 10**9, 10**9), ("M", 10**6, 10**6), ("K", 10**3, 500)):
        if number >= least:
            return f"{float(f'{number / scale:.3g}'):g}{unit}"
    return str(number)


def memory(size: int) -> str:
    """An amount of memory in powers of 1024: 128 KB, 1 MB, 1.5 GB; empty for none."""
    for unit, shift in (("GB", 30), ("MB", 20), ("KB", 10)):
        if size >= 1 << shift:
            return f"{size / (1 << shift):.3g} {unit}"
    return f"{size} bytes" if size else ""


def percent(fraction: float | None) -> str:
    """A percentage: whole from 10 on, two digits below."""
    if fraction is None:
        return _OPEN
    value = 100 * fraction
    return f"{value:.0f}" if value >= 9.95 or value == 0 else f"{float(f'{value:.2g}'):g}"


def _numbers(row: LayerRow | Total) -> list[str]:
    """The paper's columns."""
    counts = [quantity(row.weights), quantity(row.flops)]
    return counts + [percent(share) for share in (row.activation_density, row.density, row.flops_kept)]


def _trials(row: LayerRow) -> list[str]:
    """The ways to compute a layer that were compared, folded up below why the first of them was taken."""
    assert row.decision is not None
    summary = escape(f"{row.node}: {row.decision.why}", quote=False)
    columns = ("format and cut", "predicted, cycles", "measured, ms")
    lines = ["", f"<details><summary>{summary}</summary>", "", _markdown_row(columns), "| --- | ---: | ---: |"]
    for trial in row.decision.trials:
        measured = _OPEN if trial.seconds is None else f"{1e3 * trial.seconds:.4g}"
        lines.append(_markdown_row((trial.name, f"{trial.cycles:,.0f}", measured)))
    return [*lines, "", "</details>"]


def _rounds(iterated: Mapping[str, Any]) -> list[str]:
    """The table of the rounds of `iterate`, and what it is compared with."""
    metric = iterated["metric"]

    def shown(value: float | None) -> str:
        if value is None:
            return _OPEN
        return f"{100 * value:.2f} %" if metric in FRACTIONS else f"{value:.4g}"

    before, after = f"{metric} before retraining", f"{metric} after"
    columns = ["round", "stage", "Weights%", "times fewer", before, after]
    columns += ["held", "best epoch", "learning rate", "dead connections"]
    lines = [_markdown_row(columns), _markdown_row("---" if name in ("stage", "held") else "---:" for name in columns)]
    for entry in iterated["rounds"]:
        best = entry["round"] == iterated["best_round"]
        cells = (
            f"{entry['round']}{' (best)' if best else ''}",
            entry["stage"],
            percent(entry["density"]),
            f"{1 / entry['density']:.3g}" if entry["density"] else _OPEN,
            shown(entry["metric_pruned"]),
            shown(entry["metric"]),
            {True: "yes", False: "no", None: _OPEN}[entry["held"]],
            str(entry["best_epoch"]),
            f"{entry['learning_rate']:g}",
            f"{entry['dead']:,}",
        )
        lines.append(_markdown_row(f"**{cell}**" if best else cell for cell in cells))
    legend = f"The dense model's {metric} is {shown(iterated['dense_metric'])}."
    if not iterated["best_round"]:
        legend += " No round holds it: the model was left as it was."
    return [*lines, "", legend]


def _markdown_row(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _layer(row: LayerRow) -> dict[str, Any]:
    return {
        **asdict(row),
        "density": row.density,
        "activation_density": row.activation_density,
        "flops_kept": row.flops_kept,
    }
