"""A report as one HTML page: nothing outside of it is loaded, and what it shows is only ever text.

Names come from models, so from anywhere. The template escapes every one, and the page forbids its reader's browser all
scripts and styles but its own two, by their hashes.
"""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING, Any

from lwc_compiler.report.charts import Chart, density_chart
from lwc_compiler.report.document import Report, last_entry
from lwc_compiler.report.headline import gates_text, headlines, worst_verdict
from lwc_compiler.report.plots.of_model import curves_of_rounds, curves_of_scan
from lwc_compiler.report.render import (
    gate_cells,
    layer_cells,
    layer_legend,
    refusal_cells,
    round_cells,
    round_legend,
    target_cells,
    trial_cells,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jinja2 import Environment

    from lwc_compiler.codegen.result import LayerDecision

_MARKS = {"passed": "✓", "failed": "✗", "warned": "!", "skipped": "-"}  # every font has them
_LARGE, _SMALL = (400, 260), (300, 190)  # charts, in pixels


@dataclass(frozen=True)
class Bar:
    """A horizontal bar.

    Attributes:
        name: what it is of.
        text: its length as text.
        share: its length in percent of the longest.
        before: the same of the dense layer, drawn beside it; None: without one.
    """

    name: str
    text: str
    share: float
    before: float | None


def to_html(report: Report) -> str:
    """The content of `report.html`."""
    from markupsafe import Markup

    folder = resources.files("lwc_compiler.report").joinpath("templates")
    style, script = (folder.joinpath(name).read_text(encoding="utf-8") for name in ("style.css", "sort.js"))
    page = (
        _environment()
        .get_template("report.html")
        .render(
            report=report,
            style=Markup(style),
            script=Markup(script),
            style_hash=_hash(style),
            script_hash=_hash(script),
            refusals=refusal_cells(report),
            gates=gate_cells(report.gates),
            gates_text=gates_text(report.gates),
            worst=worst_verdict(report.gates),
            marks=_MARKS,
            headlines=headlines(report),
            targets=target_cells(report.figures) if report.figures else None,
            layers=layer_cells(report),
            legend=layer_legend(report),
            sensitivities=_sensitivities(report),
            sizes=_bars([(what, f"{size:,}", size, None) for what, size in report.sizes.items()]),
            layer_sizes=_layer_sizes(report),
            times=_times(report),
            decisions=_decisions(report),
            **_rounds(report),
        )
    )
    return page + "\n"


def _rounds(report: Report) -> dict[str, Any]:
    iterated = last_entry(report.passes, "iterate")
    if iterated is None:
        return {"trade_off": None}
    metric, dense = iterated["metric"], iterated["dense_metric"]
    chart = density_chart(curves_of_rounds(iterated), metric, dense, depth=0.05, size=_LARGE)
    return {"trade_off": chart, "rounds": round_cells(iterated), "round_legend": round_legend(iterated)}


def _sensitivities(report: Report) -> list[Chart]:
    found = report.sensitivity
    if found is None:
        return []
    curves = list(curves_of_scan(found).values())
    dense = found.value(found.dense)
    return [density_chart([curve], found.metric, dense, depth=0.2, size=_SMALL, beside=curves) for curve in curves]


def _layer_sizes(report: Report) -> list[Bar]:
    return _bars(
        [(node, f"{one.bytes:,} of {one.dense_bytes:,}", one.bytes, one.dense_bytes) for node, one in _decided(report)]
    )


def _times(report: Report) -> list[Bar]:
    layers = report.times.layers if report.times else ()
    compared = any(each.dense_ms is not None for each in layers)
    return _bars(
        [
            (
                each.layer or each.kernel,
                f"{each.ms:.4g} ms ({100 * each.share:.1f} %)",
                each.ms,
                (each.dense_ms or 0.0) if compared else None,
            )
            for each in layers
        ]
    )


def _bars(entries: Sequence[tuple[str, str, float, float | None]]) -> list[Bar]:
    """From (name, text, length, length of the dense layer)."""
    longest = max((max(length, before or 0) for _, _, length, before in entries), default=0) or 1
    return [
        Bar(name, text, round(100 * length / longest, 2), None if before is None else round(100 * before / longest, 2))
        for name, text, length, before in entries
    ]


def _decisions(report: Report) -> list[dict[str, Any]]:
    return [
        {"node": node, "format": one.format, "why": one.why, "trials": trial_cells(one)}
        for node, one in _decided(report)
    ]


def _decided(report: Report) -> list[tuple[str, LayerDecision]]:
    return [(row.node, row.decision) for row in report.layers if row.decision]


def _hash(text: str) -> str:
    """The source expression of an inline style or script in a Content Security Policy."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


@cache
def _environment() -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    loader = PackageLoader("lwc_compiler.report")
    return Environment(loader=loader, autoescape=True, undefined=StrictUndefined, keep_trailing_newline=True)
