"""The paper's tables with our figures beside them."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lwc_compiler.errors import ArtifactError
from lwc_compiler.report.markdown import plot_parts
from lwc_compiler.reproduce.paper import Figure, Network, Row
from lwc_compiler.reproduce.steps import write_text

if TYPE_CHECKING:
    from rich.table import Table

    from lwc_compiler.report.document import Report

_OPEN = "-"


@dataclass(frozen=True)
class Layer:
    """What tables 2 to 5 say of a layer, or of all in the row `total`; shares are fractions, None when not measured."""

    name: str
    weights: int
    flops: int | None
    activations: float | None
    kept: float
    flops_kept: float | None


@dataclass(frozen=True)
class TextTable:
    """A table as text: a title, columns (all but the first are numbers), rows and a note below."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str


@dataclass(frozen=True)
class Summary:
    """All that a reproduction found: a title, its figures fit for JSON, and its tables."""

    title: str
    figures: dict[str, Any]
    tables: tuple[TextTable, ...]


def layers_of(report: Report) -> tuple[Layer, ...]:
    """The rows of a report, the total last."""
    total = report.total
    rows = [
        Layer(row.node, row.weights, row.flops, row.activation_density, row.density, row.flops_kept)
        for row in report.layers
    ]
    last = Layer("total", total.weights, total.flops, total.activation_density, total.density, total.flops_kept)
    return (*rows, last)


def layer_table(paper: Network, which: str, tables: Sequence[Sequence[Layer]], note: str) -> TextTable:
    """Table 2, 3, 4 or 5 beside the mean of ours.

    Args:
        paper: the network.
        which: what our network is called.
        tables: `layers_of` our network, for each seed.
        note: how our activations were measured, and what else there is to say.
    """
    columns = ("layer", *(f"{name}{whose}" for name in _COLUMNS for whose in (", paper", ", lwc")))
    rows = []
    for printed, *ours in zip((*paper.layers, paper.total), *tables, strict=True):
        assert all(layer.name == printed.layer for layer in ours), (printed.layer, ours)
        cells = [printed.layer]
        for figure, values in zip(_figures(printed), zip(*map(_values, ours), strict=True), strict=True):
            cells += [figure.text, mean_like(figure, values)]
        rows.append(tuple(cells))
    return TextTable(f"Table {paper.table}: {paper.title}, {which}", columns, tuple(rows), note)


def mean_like(figure: Figure, values: Iterable[float | None]) -> str:
    """The mean of `values` as `figure` is printed, and their standard deviation where it shows at that precision."""
    measured = [value for value in values if value is not None]
    if not measured:
        return _OPEN
    mean = figure.like(statistics.fmean(measured))
    spread = figure.like(statistics.stdev(measured)) if len(measured) > 1 else figure.like(0)
    return mean if spread == figure.like(0) else f"{mean} ± {spread}"


def write_summary(summary: Summary, folder: Path, plots: Sequence[str] | None = ()) -> None:
    """Writes `results.json` and `report.md` into `folder`, which exists.

    Args:
        summary: the content.
        folder: where.
        plots: their files, relative to `folder`; None: say that they could not be drawn.

    Raises:
        ArtifactError: they cannot be written.
    """
    try:
        write_text(folder / "results.json", json.dumps(summary.figures, indent=2) + "\n")
        write_text(folder / "report.md", to_markdown(summary, plots))
    except OSError as error:
        raise ArtifactError(f"cannot write results to {folder}: {error.strerror or error}") from error


def to_markdown(summary: Summary, plots: Sequence[str] | None = ()) -> str:
    """The content of `report.md`; `plots` as in `write_summary`."""
    shown = (f"{part}\n" for part in plot_parts(plots))
    return "\n".join([f"# {summary.title}\n", *map(_markdown_table, summary.tables), *shown])


def _markdown_table(table: TextTable) -> str:
    lines = [f"## {table.title}", "", _markdown_row(table.columns)]
    lines.append(_markdown_row(("---", *("---:" for _ in table.columns[1:]))))
    lines += [_markdown_row(row) for row in table.rows]
    return "\n".join([*lines, "", table.note, ""])


def to_rich(table: TextTable) -> Table:
    """The table for the terminal."""
    from rich.table import Table

    shown = Table(title=table.title, caption=table.note)
    for number, column in enumerate(table.columns):
        shown.add_column(column, justify="right" if number else "left")
    for row in table.rows:
        shown.add_row(*row)
    return shown


_COLUMNS = ("weights", "FLOP", "Act%", "Weights%", "FLOP%")


def _figures(row: Row) -> tuple[Figure, ...]:
    return row.weights, row.flops, row.activations, row.kept, row.flops_kept


def _values(layer: Layer) -> tuple[float | None, ...]:
    shares = (None if share is None else 100 * share for share in (layer.activations, layer.kept, layer.flops_kept))
    return layer.weights, layer.flops, *shares


def _markdown_row(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"
