"""What changed from one report to another: figures, sizes, times, layers, decisions, gates."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, TypeAlias

from lwc_compiler.figures import Figures
from lwc_compiler.report.document import Report
from lwc_compiler.report.markdown import escaped, table
from lwc_compiler.report.render import OPEN, Cells

Value: TypeAlias = int | float | str | None
_EXPONENT = 1e4  # from which on `.4g` writes one
# Section, what in it, which of its values.
Key: TypeAlias = tuple[str, str, str]


@dataclass(frozen=True)
class Change:
    """One value that differs.

    Attributes:
        section: `model`, `gates`, `targets`, `refused`, `sizes`, `times` or `layers`.
        name: what it is of: a size, a layer, a gate; for `model` the figure itself.
        field: which value of it; empty where it has one.
        before: in the first report; None where it is not there, or was not measured.
        after: in the second.
    """

    section: str
    name: str
    field: str
    before: Value
    after: Value

    @property
    def relative(self) -> float | None:
        """(after - before) / before; None unless both are numbers, and the first is not 0."""
        if isinstance(self.before, str) or isinstance(self.after, str) or not self.before or self.after is None:
            return None
        return (self.after - self.before) / abs(self.before)


@dataclass(frozen=True)
class ReportDiff:
    """What differs between two reports.

    Attributes:
        before: name of the first: its model and target.
        after: name of the second.
        changes: in the order of a report.
    """

    before: str
    after: str
    changes: tuple[Change, ...]


def diff_reports(before: Report, after: Report) -> ReportDiff:
    """What is other in `after` than in `before`; layers are told apart by the names of their nodes."""
    old, new = dict(_values(before)), dict(_values(after))
    keys = {**old, **new}
    sections = list(dict.fromkeys(section for section, _, _ in keys))
    one_sided = {(section, name) for section, name, field in old.keys() ^ new.keys() if not field}
    changes = [
        Change(*key, old.get(key), new.get(key))
        for key in sorted(keys, key=lambda key: sections.index(key[0]))
        # Of a layer that only one report has, it is enough to say so.
        if old.get(key) != new.get(key) and not (key[2] and key[:2] in one_sided)
    ]
    return ReportDiff(_title(before), _title(after), tuple(changes))


def diff_json(diff: ReportDiff) -> dict[str, Any]:
    """As plain dicts and lists; each change has its `relative` size."""
    changes = [{**asdict(change), "relative": change.relative} for change in diff.changes]
    return {"before": diff.before, "after": diff.after, "changes": changes}


def diff_markdown(diff: ReportDiff) -> str:
    """As Markdown, for a pull request."""
    lines = [f"# {escaped(diff.before)} → {escaped(diff.after)}"]
    if not diff.changes:
        lines += ["", "Nothing differs."]
    for section, cells in diff_cells(diff).items():
        lines += ["", f"## {section.capitalize()}", "", *table(cells)]
    return "\n".join(lines) + "\n"


def diff_cells(diff: ReportDiff) -> dict[str, Cells]:
    """Section -> its table."""
    columns = ("what", "before", "after", "change")
    rows: dict[str, list[tuple[str, ...]]] = {}
    for change in diff.changes:
        what = ": ".join(part for part in (change.name, change.field) if part)
        relative = "" if change.relative is None else f"{100 * change.relative:+.1f} %"
        rows.setdefault(change.section, []).append((what, _text(change.before), _text(change.after), relative))
    return {section: Cells(columns, tuple(found), frozenset(columns[1:])) for section, found in rows.items()}


def _title(report: Report) -> str:
    return report.model + (f" for {report.target}" if report.target else "")


def _text(value: Value) -> str:
    if value is None:
        return OPEN
    if isinstance(value, str):
        return value
    return f"{value:,.0f}" if isinstance(value, int) or abs(value) >= _EXPONENT else f"{value:.4g}"


def _figures(figures: Figures) -> Iterator[tuple[Key, Value]]:
    """What a whole run measured beyond a report of one target."""
    yield ("model", "different predictions", ""), figures.quality.disagreement if figures.quality else None
    yield ("model", "packed bytes", ""), figures.packed_bytes
    for name, each in figures.targets.items():
        yield ("targets", name, ""), each.target
        yield ("targets", name, "bytes"), each.bytes
        yield ("targets", name, "flash"), each.flash_bytes
        yield ("targets", name, "RAM"), each.ram_bytes
        yield ("targets", name, "median ms"), each.speed.median_ms if each.speed else None
        yield ("targets", name, "speed-up"), each.speed.speedup if each.speed else None


def _values(report: Report) -> Iterator[tuple[Key, Value]]:
    """Everything that is compared."""
    total, quality, check = report.total, report.quality, report.verification
    figures: dict[str, Value] = {
        "lwc": report.lwc_version,
        "weights": total.weights,
        "weights kept": total.kept,
        "density": total.density,
        "FLOPs kept": total.flops_kept,
        quality.metric if quality else "accuracy": quality.value if quality else None,
        "off from ONNX Runtime": check.worst if check and not check.skipped else None,
        "speed-up": report.times.speedup if report.times else None,
    }
    for name, value in figures.items():
        yield ("model", name, ""), value
    for gate in report.gates:
        name = f"{gate.name} ({gate.target})" if gate.target else gate.name
        yield ("gates", name, "verdict"), gate.verdict
        yield ("gates", name, "limit"), gate.limit
        yield ("gates", name, "value"), gate.value
    if report.figures:
        yield from _figures(report.figures)
    for refusal in report.refused:
        yield ("refused", refusal.node or OPEN, refusal.operator), refusal.reason
    for what, size in report.sizes.items():
        yield ("sizes", what, ""), size
    if report.times:
        for timing in report.times.timings:
            yield ("times", timing.engine, "median ms"), timing.median_ms
        for each in report.times.layers:
            yield ("times", each.layer or each.kernel, "ms"), each.ms
    nodes = Counter(row.node for row in report.layers)
    for row in report.layers:
        name = row.node if nodes[row.node] == 1 else f"{row.node} ({row.site})"
        values: dict[str, Value] = {
            "": f"{row.op} {'x'.join(map(str, row.shape))}",
            "weights kept": row.kept,
            "kept because": row.kept_because,
        }
        if row.decision:
            values |= {field: getattr(row.decision, field) for field in ("format", "kernel", "bytes", "why")}
        for field, value in values.items():
            yield ("layers", name, field), value
