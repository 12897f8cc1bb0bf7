"""The few figures of a report that are read first: what is kept, how good, how large, how fast, and the gates."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from lwc_compiler.gates import GateResult, Verdict
from lwc_compiler.report.document import Report
from lwc_compiler.report.render import memory, metric_text, percent, quantity

_VERDICTS: tuple[Verdict, ...] = ("failed", "warned", "skipped", "passed")


@dataclass(frozen=True)
class Headline:
    """One figure.

    Attributes:
        name: what it is.
        value: short.
        note: what to compare it with; may be empty.
    """

    name: str
    value: str
    note: str


def headlines(report: Report) -> list[Headline]:
    """The figures that the report has."""
    total = report.total
    found = []
    if report.layers:
        counts = f"{quantity(total.kept)} of {quantity(total.weights)}"
        found.append(Headline("weights kept", f"{percent(total.density)} %", counts))
    if quality := report.quality:
        note = "after retraining, on validation data"
        if quality.dense is not None:
            note = f"before pruning {metric_text(quality.metric, quality.dense)}"
        found.append(Headline(quality.metric, metric_text(quality.metric, quality.value), note))
    if report.figures and (found_quality := report.figures.quality) and found_quality.disagreement is not None:
        note = f"of {found_quality.samples:,} predictions, from the original model's"
        found.append(Headline("different", f"{100 * found_quality.disagreement:.2f} %", note))
    if size := shipped_size(report):
        what, count = size
        dense = report.sizes.get("weights, dense", 0)
        found.append(Headline(what, memory(count), f"dense weights {memory(dense)}" if dense else ""))
    if report.times:
        own, *others = report.times.timings
        note = report.times.where and f"by {report.times.where}"
        if others and report.times.speedup is not None:
            note = f"{report.times.speedup:.2f}x as fast as {others[0].engine} ({others[0].median_ms:.4g} ms)"
        found.append(Headline("time of a run", f"{own.median_ms:.4g} ms", note))
    if report.figures and report.figures.packed_bytes is not None:
        found.append(Headline("packed file", memory(report.figures.packed_bytes), ""))
    if check := report.verification:
        text = "skipped" if check.skipped else f"{check.worst:.1e}"
        found.append(
            Headline(
                "off from ONNX Runtime", text, check.skipped or f"of the output's scale; {check.tolerance:g} allowed"
            )
        )
    return found


def shipped_size(report: Report) -> tuple[str, int] | None:
    """What is shipped, and its bytes: flash on a board, else the library, else the weights in their smallest form."""
    sizes = {what: count for what, count in report.sizes.items() if count}
    for what in ("flash", "library"):
        if what in sizes:
            return what, sizes[what]
    return min(sizes.items(), key=lambda entry: entry[1], default=None)


def worst_verdict(gates: tuple[GateResult, ...]) -> Verdict | None:
    """The verdict of the worst gate; None without gates."""
    return min((gate.verdict for gate in gates), key=_VERDICTS.index, default=None)


def gates_text(gates: tuple[GateResult, ...]) -> str:
    """How many gates there are of each verdict, the worst first."""
    counts = Counter(gate.verdict for gate in gates)
    return ", ".join(f"{counts[verdict]} {verdict}" for verdict in _VERDICTS if counts[verdict]) or "none"
