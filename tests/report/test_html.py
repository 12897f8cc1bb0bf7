import base64
import hashlib
import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from py_mini_racer import MiniRacer

from lwc_compiler.report.document import Report
from lwc_compiler.report.html import to_html
from lwc_compiler.report.table import layer_report
from tests.report.conftest import NASTY, decision, gate

VOID = {"meta", "br", "link", "img", "input", "hr"}


class Page(HTMLParser):
    """The elements of a page, each checked to be closed in its place, and its text."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.text, self._open = [], [], []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag, attrs):
        assert len({name for name, _ in attrs}) == len(attrs), attrs
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        self.text.append((self._open[-1] if self._open else "", data))

    def of(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture
def page(whole):
    return Page(to_html(whole))


def test_names_stay_text(whole, refused):
    for report in (whole, refused):
        page = Page(to_html(report))
        assert len(page.of("script")) == 1
        assert any(NASTY in text for tag, text in page.text if tag in ("h1", "th", "td"))
        for _, attributes in page.elements:
            assert not [name for name in attributes if name.startswith("on")], attributes
        plain = Page(to_html(replace(report, model="net"))).elements
        assert [tag for tag, _ in plain] == [tag for tag, _ in page.elements]


def test_nothing_is_loaded_and_only_the_page_s_own_script_and_style_run(whole):
    text = to_html(whole)
    page = Page(text)
    for tag, attributes in page.elements:
        assert tag not in ("link", "img", "iframe", "object", "embed", "base"), tag
        assert not {"src", "href", "xlink:href", "style", "action"} & set(attributes), attributes
    assert not re.search(r"@import|https?:", text)
    (policy,) = [meta["content"] for meta in page.of("meta") if meta.get("http-equiv") == "Content-Security-Policy"]
    parts = dict(part.strip().split(" ", 1) for part in policy.split(";"))
    assert parts.pop("default-src") == "'none'"
    for tag in ("script", "style"):
        (content,) = [data for where, data in page.text if where == tag]
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert parts.pop(f"{tag}-src") == f"'sha256-{digest}'"
    assert parts == {}
    assert 'url("' not in text


def test_the_page_has_what_the_report_has(page):
    headings = [text for tag, text in page.text if tag == "h2"]
    assert headings == [
        "Gates",
        "Targets",
        "Layers",
        "Rounds: what pruning costs",
        "Sensitivity: each layer pruned alone, without retraining",
        "Bytes",
        "Bytes of the layers",
        "Time of the layers",
        "Decisions",
    ]
    cells = [text for tag, text in page.text if tag in ("td", "th")]
    for cell in ("max_bytes", "✗ failed", "5x ± 1.5x", "1 (best)", "csr 2x3", "8x4x3x3"):
        assert cell in cells
    assert ("strong", "98.12 %") in page.text
    assert any("5.00x as fast as ONNX Runtime" in text for _, text in page.text)


def test_an_empty_report_is_a_page_too(pruned):
    assert [text for tag, text in Page(to_html(Report("net"))).text if tag == "h2"] == []
    assert [text for tag, text in Page(to_html(layer_report(pruned))).text if tag == "h2"] == ["Layers", "Bytes"]


def test_a_refused_model_s_page_says_why(refused):
    page = Page(to_html(refused))
    assert ("p", "lwc cannot compile this model.") in page.text
    assert ("td", "the operator is not handled") in page.text


def test_pictures_are_described_and_tables_named(page):
    pictures = [svg for svg in page.of("svg") if svg.get("aria-hidden") != "true"]
    assert len(pictures) == 3
    for svg in pictures:
        assert svg["role"] == "img"
        assert "Dense model: 98." in svg["aria-label"]
    assert "40 % kept: 98.12 %, 8 % kept: 90.00 %" in pictures[0]["aria-label"]
    regions = [attributes for attributes in page.of("div") if attributes.get("class") == "scroll"]
    assert len(regions) == len(page.of("table"))
    assert all(region["aria-label"] and region["tabindex"] == "0" for region in regions)
    assert all("scope" in head for head in page.of("th"))
    identifiers = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(set(identifiers)) == len(identifiers)
    labels = [section["aria-labelledby"] for section in page.of("section")]
    assert set(labels) <= set(identifiers)


def test_charts_lie_in_their_frames(whole):
    page = Page(to_html(whole))
    shown = [attributes for attributes in page.of("circle") if "cx" in attributes]
    assert len(shown) > 6
    assert all(44 <= float(circle["cx"]) <= 390 for circle in shown if circle["cx"] != "16")
    # The round that does not hold is hollow; 98.12 % lies above 90 %.
    first, second = shown[:2]
    assert (first["class"], second["class"]) == ("mark-1", "mark-1 missed")
    assert float(first["cy"]) < float(second["cy"])
    assert float(first["cx"]) < float(second["cx"])


def test_bars_are_shares_of_the_longest(whole):
    sizes = {"large": 400, "half": 200, "none": 0}
    layers = (replace(whole.layers[1], decision=decision("w2", "fc", "why")),)
    page = Page(to_html(replace(whole, sizes=sizes, layers=layers, times=None, sensitivity=None, passes=())))
    bars = [(rect["class"], float(rect["width"])) for rect in page.of("rect") if rect.get("height") in ("8", "4")]
    assert bars == [("bar", 100), ("bar", 50), ("bar", 0), ("before", 100), ("bar", pytest.approx(21.73))]


@pytest.mark.parametrize("verdict", ["failed", "warned", "skipped", "passed"])
def test_the_worst_verdict_is_the_page_s(whole, verdict):
    order = ["passed", "skipped", "warned", "failed"]
    gates = tuple(gate(one, one) for one in order[: order.index(verdict) + 1])
    page = Page(to_html(replace(whole, gates=gates)))
    assert [p["class"] for p in page.of("p") if "banner" in p.get("class", "")] == [f"banner {verdict}"]


def contrast(first, second):
    """The contrast ratio of two colours like `#abcdef` (WCAG 2.2, relative luminance)."""

    def luminance(colour):
        parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    dark, light = sorted((luminance(first), luminance(second)))
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_colours_stand_out_from_the_paper(whole, scheme):
    style = "".join(text for tag, text in Page(to_html(whole)).text if tag == "style")
    light, dark = re.findall(r":root \{(.*?)\}", style, re.DOTALL)
    found = re.findall(r"--([a-z]+): (#[0-9a-f]+);", {"light": light, "dark": dark}[scheme])
    colours = {
        name: value if len(value) == 7 else "#" + "".join(2 * digit for digit in value[1:]) for name, value in found
    }
    for ground in ("paper", "band"):
        for text in ("ink", "faint", "good", "bad", "warn", "accent"):
            assert contrast(colours[text], colours[ground]) >= 4.5, (text, ground)
    for line in ("one", "two"):
        assert contrast(colours[line], colours["paper"]) >= 3, line


@pytest.mark.parametrize(
    ("cells", "ascending"),
    [
        (["2.36M", "0.5K", "36", "1.2B", "-", "9.41K"], ["36", "0.5K", "9.41K", "2.36M", "1.2B", "-"]),
        (["1,434,016", "93,088", "740"], ["740", "93,088", "1,434,016"]),
        (["conv_10", "conv_2", "fc"], ["conv_2", "conv_10", "fc"]),
        (["7.40x ± 0.2x", "10x", "5.9x"], ["5.9x", "7.40x ± 0.2x", "10x"]),
        (["512x256x3x3", "64x64x3x3", "64x3x7x7"], ["64x3x7x7", "64x64x3x3", "512x256x3x3"]),
        (["50 (best)", "6"], ["6", "50 (best)"]),
    ],
)
def test_columns_sort_by_what_they_mean(whole, cells, ascending):
    (script,) = [text for tag, text in Page(to_html(whole)).text if tag == "script"]
    engine = MiniRacer()
    engine.eval("const document = { querySelectorAll: () => [] };")
    engine.eval(script)
    order = f"{json.dumps(cells)}.sort((a, b) => compare(key({{ textContent: a }}), key({{ textContent: b }})))"
    assert json.loads(engine.eval(f"JSON.stringify({order})")) == ascending
