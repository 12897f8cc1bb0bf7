"""The cells of a report's tables, and the table for the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lwc_compiler.report.document import FRACTIONS, LayerRow, Report, Total

if TYPE_CHECKING:
    from rich.table import Table

NO_PLOTS = "reports come without plots: install lwc-compiler[plots]"

NUMBERS = ("weights", "FLOP", "Act%", "Weights%", "FLOP%", "bytes")
OPEN = "-"


def to_rich(report: Report) -> Table:
    """The table for the terminal."""
    from rich.table import Table

    columns, rows = table_cells(report)
    table = Table(title=report.model, caption=f"activations: {report.activations_measured_with}")
    for column in columns:
        table.add_column(column, justify="right" if column in NUMBERS else "left")
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
    rows = [[row.node, "x".join(map(str, row.shape)), *_numbers(row)] for row in report.layers]
    rows.append(["total", "", *_numbers(report.total)])
    if any(row.kept_because for row in report.layers):
        columns.append("kept because")
        for cells, note in zip(rows, [*(row.kept_because or "" for row in report.layers), ""], strict=True):
            cells.append(note)
    if any(row.decision for row in report.layers):
        columns += ["format", "kernel", "bytes", "why"]
        for cells, decision in zip(rows, [row.decision for row in report.layers], strict=False):
            if decision:
                cells += [decision.format, decision.kernel, f"{decision.bytes:,}", decision.why]
            else:
                cells += [OPEN] * 4
        rows[-1] += ["", "", f"{sum(row.decision.bytes for row in report.layers if row.decision):,}", ""]
    return columns, rows


def metric_text(metric: str, value: float | None) -> str:
    """The value of a metric; fractions in percent."""
    if value is None:
        return OPEN
    return f"{100 * value:.2f} %" if metric in FRACTIONS else f"{value:.4g}"


def quantity(number: int | None) -> str:
    """A count with three digits and K, M or B, as the paper prints them: 0.5K, 25K, 3.2M."""
    if number is None:
        return OPEN
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
        return OPEN
    value = 100 * fraction
    return f"{value:.0f}" if value >= 9.95 or value == 0 else f"{float(f'{value:.2g}'):g}"


def _numbers(row: LayerRow | Total) -> list[str]:
    """The paper's columns."""
    counts = [quantity(row.weights), quantity(row.flops)]
    return counts + [percent(share) for share in (row.activation_density, row.density, row.flops_kept)]
