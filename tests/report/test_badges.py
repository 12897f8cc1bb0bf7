from dataclasses import replace
from xml.etree import ElementTree

import pytest

from lwc_compiler.report.badges import to_badges
from lwc_compiler.report.document import Report
from tests.report.conftest import gate

SVG = "{http://www.w3.org/2000/svg}"


def read(report):
    """Badge -> (what it says, its colour)."""
    found = {}
    for name, text in to_badges(report).items():
        root = ElementTree.fromstring(text)
        words = [element.text for element in root.iter(f"{SVG}text")]
        title = root.find(f"{SVG}title").text
        assert title == root.get("aria-label") == ": ".join(words)
        found[name] = (title, root.findall(f"{SVG}g")[0][0].get("fill"))
    return found


def test_badges_say_what_was_measured(whole):
    found = read(whole)
    assert {name: title for name, (title, _) in found.items()} == {
        "accuracy.svg": "accuracy: 98.12 %",
        "size.svg": "library: 22.9 KB",
        "speedup.svg": "speed-up: 5.00x",
        "gates.svg": "gates: 1 failed, 1 warned, 1 skipped, 1 passed",
    }


def test_badges_of_what_was_not_measured_are_there_too():
    grey = read(Report("net"))
    assert [title for title, _ in grey.values()] == [
        "accuracy: not measured",
        "size: not measured",
        "speed-up: not measured",
        "gates: none",
    ]
    assert len({colour for _, colour in grey.values()}) == 1


def test_the_worst_gate_gives_the_colour(whole, refused):
    colours = [
        read(replace(whole, gates=tuple(gate(verdict, verdict) for verdict in verdicts)))["gates.svg"][1]
        for verdicts in (["passed", "failed", "warned"], ["passed", "warned"], ["passed"], [])
    ]
    assert len(set(colours)) == 4
    assert read(refused)["gates.svg"] == ("gates: refused", colours[0])


@pytest.mark.parametrize("name", ["accuracy.svg", "gates.svg"])
def test_text_fits_into_its_half(whole, name):
    root = ElementTree.fromstring(to_badges(whole)[name])
    back, left, _ = root.findall(f"{SVG}g")[0]
    first, second = root.iter(f"{SVG}text")
    assert float(first.get("x")) + float(first.get("textLength")) <= float(left.get("width"))
    assert float(left.get("width")) <= float(second.get("x"))
    assert float(second.get("x")) + float(second.get("textLength")) <= float(root.get("width"))
    assert back.get("width") == root.get("width")
