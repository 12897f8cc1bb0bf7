from dataclasses import replace

import pytest

from lwc_compiler.report.diff import Change, diff_cells, diff_json, diff_markdown, diff_reports
from lwc_compiler.report.document import Report
from tests.report.conftest import decision, gate


def test_a_report_does_not_differ_from_itself(whole):
    found = diff_reports(whole, whole)
    assert found.changes == ()
    assert diff_markdown(found).endswith("\n\nNothing differs.\n")
    assert diff_cells(found) == {}


def test_every_part_that_changed_is_named(whole):
    fc = replace(whole.layers[1], kept=64, decision=replace(decision("w2", "fc", "why"), bytes=617, format="dense"))
    engine, other = whole.times.timings
    times = replace(whole.times, timings=(replace(engine, median_ms=0.01), other), speedup=10.0)
    gates = (gate("max_bytes", "passed", value=1000), *whole.gates[1:])
    later = replace(
        whole, layers=(whole.layers[0], fc), sizes={**whole.sizes, "library": 20000}, times=times, gates=gates
    )
    found = {(change.section, change.name, change.field): change for change in diff_reports(whole, later).changes}
    assert {key: (change.before, change.after) for key, change in found.items()} == {
        ("model", "weights kept", ""): (157, 93),
        ("model", "density", ""): (157 / 1568, 93 / 1568),
        ("model", "FLOPs kept", ""): (pytest.approx(0.044, abs=1e-3), pytest.approx(0.042, abs=1e-3)),
        ("model", "speed-up", ""): (5.0, 10.0),
        ("gates", "max_bytes (host)", "verdict"): ("failed", "passed"),
        ("gates", "max_bytes (host)", "value"): (1234, 1000),
        ("sizes", "library", ""): (23456, 20000),
        ("times", "lwc", "median ms"): (0.02, 0.01),
        ("layers", "fc", "weights kept"): (128, 64),
        ("layers", "fc", "format"): ("csr", "dense"),
        ("layers", "fc", "bytes"): (1234, 617),
        ("layers", "fc", "why"): (whole.layers[1].decision.why, "why"),
    }
    assert list(dict.fromkeys(section for section, _, _ in found)) == ["model", "gates", "sizes", "times", "layers"]
    assert found["times", "lwc", "median ms"].relative == -0.5
    assert found["layers", "fc", "format"].relative is None


def test_large_numbers_have_no_exponent(whole):
    gates = (replace(gate("max_bytes", "passed"), limit=80_000.0), *whole.gates[1:])
    rows = diff_cells(diff_reports(whole, replace(whole, gates=gates)))["gates"].rows
    assert "80,000" in {row[2] for row in rows}


def test_what_only_one_report_has_is_a_change(whole):
    found = diff_reports(Report("net"), whole).changes
    assert Change("sizes", "library", "", None, 23456) in found
    assert Change("layers", "fc", "", None, "Gemm 128x10") in found
    assert [change.field for change in found if change.section == "layers"] == ["", ""]
    assert all(change.relative is None for change in found if change.before is None)
    back = diff_reports(whole, Report("net")).changes
    assert {(c.section, c.name, c.field, c.after, c.before) for c in back} == {
        (c.section, c.name, c.field, c.before, c.after) for c in found
    }


def test_targets_and_predictions_of_a_run_are_compared(whole):
    targets = whole.figures.targets
    slower = replace(targets["host"], bytes=30000, speed=replace(targets["host"].speed, speedup=4.0))
    quality = replace(whole.figures.quality, disagreement=0.025)
    later = replace(whole, figures=replace(whole.figures, quality=quality, targets={"host": slower}))
    assert [
        (change.section, change.name, change.field, change.before, change.after)
        for change in diff_reports(whole, later).changes
    ] == [
        ("model", "different predictions", "", 0.0125, 0.025),
        ("targets", "host", "bytes", 23456, 30000),
        ("targets", "host", "speed-up", 5.0, 4.0),
        ("targets", "board|1", "", "cortex-m4", None),
    ]


def test_nodes_of_one_name_are_told_apart(whole):
    first, second = (replace(row, node="same") for row in whole.layers)
    before = replace(whole, layers=(first, second))
    found = diff_reports(before, replace(before, layers=(first, replace(second, kept=1)))).changes
    assert [(change.name, change.before, change.after) for change in found if change.section == "layers"] == [
        ("same (w2)", 128, 1)
    ]


def test_json_and_markdown_say_the_same(whole, refused):
    found = diff_reports(whole, replace(whole, sizes={**whole.sizes, "library": 11728}))
    (change,) = diff_json(found)["changes"]
    assert change == {
        "section": "sizes",
        "name": "library",
        "field": "",
        "before": 23456,
        "after": 11728,
        "relative": -0.5,
    }
    text = diff_markdown(found)
    assert "<script" not in text
    assert text.splitlines()[-4:] == [
        "",
        "| what | before | after | change |",
        "| --- | ---: | ---: | ---: |",
        "| library | 23,456 | 11,728 | -50.0 % |",
    ]
    assert "the operator is not handled" in diff_markdown(diff_reports(whole, refused))
