"""Badges of a report: small SVG images for a README."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape

from lwc_compiler.gates import Verdict
from lwc_compiler.report.document import Report
from lwc_compiler.report.headline import gates_text, shipped_size, worst_verdict
from lwc_compiler.report.render import memory, metric_text

_GREEN, _YELLOW, _RED, _BLUE, _GREY = "#2b7a3d", "#8a6100", "#b3261e", "#1f5f99", "#5f6368"
_VERDICTS: dict[Verdict | None, str] = {
    "failed": _RED,
    "warned": _YELLOW,
    "skipped": _YELLOW,
    "passed": _GREEN,
    None: _GREY,
}
_CHARACTER, _MARGIN = 6.5, 6  # pixels

_SVG = """<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="20" role="img" aria-label="{name}: {value}">
<title>{name}: {value}</title>
<g><rect width="{width}" height="20" rx="3" fill="{colour}"/><rect width="{left}" height="20" rx="3" fill="#444"/>\
<rect x="{corner}" width="3" height="20" fill="#444"/></g>
<g fill="#fff" font-family="Verdana,DejaVu Sans,sans-serif" font-size="11">
<text x="{margin}" y="14" textLength="{left_text}" lengthAdjust="spacingAndGlyphs">{name}</text>
<text x="{start}" y="14" textLength="{right_text}" lengthAdjust="spacingAndGlyphs">{value}</text>
</g>
</svg>
"""


def to_badges(report: Report) -> dict[str, str]:
    """File name -> SVG; the same files whatever was measured, so that a README can link them."""
    return {f"{name}.svg": _badge(label, value, colour) for name, label, value, colour in _badges(report)}


def _badges(report: Report) -> Iterator[tuple[str, str, str, str]]:
    unknown = ("not measured", _GREY)
    quality, size = report.quality, shipped_size(report)
    name = quality.metric if quality else "accuracy"
    yield "accuracy", name, *((metric_text(name, quality.value), _BLUE) if quality else unknown)
    yield "size", size[0] if size else "size", *((memory(size[1]), _BLUE) if size else unknown)
    speedup = report.times.speedup if report.times else None
    colour = _GREEN if speedup is not None and speedup >= 1 else _YELLOW
    yield "speedup", "speed-up", *(unknown if speedup is None else (f"{speedup:.2f}x", colour))
    if report.refused:
        yield "gates", "gates", "refused", _RED
        return
    yield "gates", "gates", gates_text(report.gates), _VERDICTS[worst_verdict(report.gates)]


def _badge(name: str, value: str, colour: str) -> str:
    # No font can be measured here: `textLength` makes whatever font there is keep to these widths.
    left_text, right_text = _CHARACTER * len(name), _CHARACTER * len(value)
    left, right = left_text + 2 * _MARGIN, right_text + 2 * _MARGIN
    return _SVG.format(
        name=escape(name),
        value=escape(value),
        colour=colour,
        width=left + right,
        left=left,
        corner=left - 3,
        margin=_MARGIN,
        start=left + _MARGIN,
        left_text=left_text,
        right_text=right_text,
    )
