"""The cells of a report's tables, and the table for the terminal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from lwc_compiler.figures import Figures
from lwc_compiler.gates import GateResult
from lwc_compiler.report.document import FRACTIONS, LayerRow, Report, Total

if TYPE_CHECKING:
    from rich.table import Table

    from lwc_compiler.codegen.result import LayerDecision

NO_PLOTS = "reports come without plots: install lwc-compiler[plots]"
OPEN = "-"


@dataclass(frozen=True)
class Cells:
    """A table as text.

    Attributes:
        columns: their names.
        rows: one cell a column.
        numbers: the columns that hold numbers, which are aligned to the right.
        last: a row below all others, such as a total; () for none.
    """

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    numbers: frozenset[str] = frozenset()
    last: tuple[str, ...] = ()


def to_rich(report: Report) -> Table:
    """The table for the terminal."""
    from rich.table import Table

    cells = layer_cells(report)
    table = Table(title=report.model, caption=f"activations: {report.activations_measured_with}")
    for column in cells.columns:
        table.add_column(column, justify="right" if column in cells.numbers else "left")
    for row in cells.rows:
        table.add_row(*row)
    table.add_section()
    table.add_row(*cells.last)
    return table


def layer_cells(report: Report) -> Cells:
    """The table of layers, the total last.

    After the paper's columns comes why pruning left layers alone (where it did), then what lowering did (where it has).
    """
    columns = ["layer", "shape", "weights", "FLOP", "Act%", "Weights%", "FLOP%"]
    rows = [[row.node, "x".join(map(str, row.shape)), *_numbers(row)] for row in report.layers]
    total = ["total", "", *_numbers(report.total)]
    if any(row.kept_because for row in report.layers):
        columns.append("kept because")
        for cells, row in zip(rows, report.layers, strict=True):
            cells.append(row.kept_because or "")
        total.append("")
    if any(row.decision for row in report.layers):
        columns += ["format", "kernel", "bytes", "why"]
        for cells, row in zip(rows, report.layers, strict=True):
            if row.decision:
                cells += [row.decision.storage, row.decision.kernel, f"{row.decision.bytes:,}", row.decision.why]
            else:
                cells += [OPEN] * 4
        total += ["", "", f"{sum(row.decision.bytes for row in report.layers if row.decision):,}", ""]
    numbers = frozenset(("weights", "FLOP", "Act%", "Weights%", "FLOP%", "bytes"))
    return Cells(tuple(columns), tuple(map(tuple, rows)), numbers, tuple(total))


def layer_legend(report: Report) -> str:
    """What the columns of `layer_cells` are."""
    return (
        f"Act%: non-zero activations a layer hands on ({report.activations_measured_with}). Weights%: weights kept. "
        "FLOP%: multiply-adds left when zero weights and zero inputs are left out."
    )


def gate_cells(gates: Iterable[GateResult]) -> Cells:
    """What became of every gate."""
    rows = []
    for gate in gates:
        value = with_unit(gate.value, gate.unit)
        if gate.spread is not None:
            value += f" ± {_spread(gate.spread)}{gate.unit if gate.unit == 'x' else ''}"
        rows.append((gate.verdict, gate.name, gate.target, with_unit(gate.limit, gate.unit), value, gate.message))
    columns = ("verdict", "gate", "target", "limit", "value", "message")
    return Cells(columns, tuple(rows), frozenset(("limit", "value")))


def refusal_cells(report: Report) -> Cells:
    """Why the model cannot be compiled."""
    rows = tuple((each.node or OPEN, each.operator or OPEN, each.reason) for each in report.refused)
    return Cells(("node", "operator", "reason"), rows)


def target_cells(figures: Figures) -> Cells:
    """What a run measured of the code for each target."""
    rows = []
    for name, each in figures.targets.items():
        sizes = [OPEN if size is None else f"{size:,}" for size in (each.bytes, each.flash_bytes, each.ram_bytes)]
        median = ratio = OPEN
        note = each.not_timed
        if speed := each.speed:
            median = f"{speed.median_ms:.4g} ± {_spread(speed.spread_ms)}"
            ratio = f"{speed.speedup:.2f}x ± {_spread(speed.speedup_spread)}x"
            note = f"than {speed.against}, {speed.threads} thread{'s' if speed.threads > 1 else ''}, {speed.where}"
        rows.append((name, each.target, *sizes, median, ratio, note))
    numbers = ("bytes", "flash", "RAM", "median ms", "faster")
    return Cells(("target", "code for", *numbers, "note"), tuple(rows), frozenset(numbers))


def size_cells(report: Report) -> Cells:
    """What takes how many bytes."""
    rows = tuple((what, f"{size:,}") for what, size in report.sizes.items())
    return Cells(("size", "bytes"), rows, frozenset(("bytes",)))


def time_cells(report: Report) -> Cells:
    """Where the time of a run goes; there are times of layers."""
    assert report.times is not None
    rows = tuple(
        (
            each.layer or OPEN,
            each.kernel,
            f"{each.ms:.4g}",
            f"{100 * each.share:.1f}",
            OPEN if each.dense_ms is None else f"{each.dense_ms:.4g}",
        )
        for each in report.times.layers
    )
    columns = ("layer", "kernel", "ms", "share %", "not pruned, ms")
    return Cells(columns, rows, frozenset(columns[2:]))


def trial_cells(decision: LayerDecision) -> Cells:
    """The ways to compute a layer that were compared, the one that was taken first."""
    rows = tuple(
        (each.name, f"{each.cycles:,.0f}", OPEN if each.seconds is None else f"{1e3 * each.seconds:.4g}")
        for each in decision.trials
    )
    columns = ("format and cut", "predicted, cycles", "measured, ms")
    return Cells(columns, rows, frozenset(columns[1:]))


def round_cells(iterated: Mapping[str, Any]) -> Cells:
    """The rounds of `iterate`, an entry of the provenance."""
    metric = iterated["metric"]
    before, after = f"{metric} before retraining", f"{metric} after"
    columns = ("round", "stage", "Weights%", "times fewer", before, after, "held")
    training = ("best epoch", "learning rate", "dead connections")
    rows = tuple(
        (
            f"{entry['round']}{' (best)' if entry['round'] == iterated['best_round'] else ''}",
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
        for entry in iterated["rounds"]
    )
    return Cells((*columns, *training), rows, frozenset((*columns, *training)) - {"round", "stage", "held"})


def round_legend(iterated: Mapping[str, Any]) -> str:
    """What the rounds are compared with, and whether one of them was taken."""
    metric = iterated["metric"]
    legend = f"The dense model's {metric} is {metric_text(metric, iterated['dense_metric'])}."
    if not iterated["best_round"]:
        legend += " No round holds it: the model was left as it was."
    return legend


def with_unit(value: float | None, unit: str) -> str:
    """A limit or a value of a gate as text; `-` where there is none."""
    if value is None:
        return OPEN
    number = f"{value:,.0f}" if unit == "bytes" else f"{value:.4g}"
    return f"{number}{unit}" if unit == "x" else f"{number} {unit}".rstrip()


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


def _spread(value: float) -> str:
    """How uncertain a value is: two digits, without an exponent."""
    return np.format_float_positional(value, precision=2, unique=False, fractional=False, trim="-")


def _numbers(row: LayerRow | Total) -> list[str]:
    """The paper's columns."""
    counts = [quantity(row.weights), quantity(row.flops)]
    return counts + [percent(share) for share in (row.activation_density, row.density, row.flops_kept)]
