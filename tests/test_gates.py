import re
from dataclasses import replace

import pytest

from lwc_compiler.errors import AccuracyGateError, GateError, SpeedGateError
from lwc_compiler.figures import Figures, Quality, Speed, TargetFigures
from lwc_compiler.gates import GateResult, judge, raise_failed
from lwc_compiler.recipe.build import GateOptions, TargetGates

QUALITY = Quality("accuracy", value=0.97, dense=0.98, disagreement=0.02, samples=1000, data="val.npz")
SPEED = Speed(2.0, 0.1, 3.0, 0.2, "ONNX Runtime", "a processor", 1)
HOST = TargetFigures("x86-64-v3", "host.lwc", 1000, None, None, SPEED, "", "")
BOARD = TargetFigures("cortex-m7", "board.lwc", 900, 700, 300, None, "it is not here", "")
FIGURES = Figures(QUALITY, 500, {"host": HOST, "board": BOARD})


def verdict(gates, figures=FIGURES, baseline=None, **limits):
    """The verdicts of all gates; `limits` are the gates of a target."""
    results = judge(gates, {name: TargetGates(**own) for name, own in limits.items()}, figures, baseline)
    assert all(result.message for result in results)
    return [(result.name, result.target, result.verdict) for result in results]


@pytest.mark.parametrize(
    ("name", "passes", "fails"),
    [
        ("max_accuracy_drop", 0.01, 0.0099),  # 0.98 - 0.97 is a little more than 0.01 in binary
        ("min_metric", 0.97, 0.9701),
        ("max_disagreement", 0.02, 0.0199),
        ("max_packed_bytes", 500, 499),
    ],
)
def test_gates_on_the_model(name, passes, fails):
    assert verdict(GateOptions(**{name: passes})) == [(name, "", "passed")]
    assert verdict(GateOptions(**{name: fails})) == [(name, "", "failed")]


@pytest.mark.parametrize(
    ("target", "name", "passes", "fails"),
    [
        ("host", "max_bytes", 1000, 999),
        ("board", "max_bytes", 900, 899),
        ("board", "max_flash_bytes", 700, 699),
        ("board", "max_ram_bytes", 300, 299),
        ("host", "max_latency_ms", 2.1, 1.89),
        ("host", "min_speedup", 2.8, 3.21),
    ],
)
def test_gates_on_the_code(target, name, passes, fails):
    assert verdict(GateOptions(), **{target: {name: passes}}) == [(name, target, "passed")]
    assert verdict(GateOptions(), **{target: {name: fails}}) == [(name, target, "failed")]


@pytest.mark.parametrize(("name", "limit"), [("max_latency_ms", 2.09), ("max_latency_ms", 1.91), ("min_speedup", 3.19)])
def test_a_limit_within_the_spread_warns(name, limit):
    (result,) = judge(GateOptions(), {"host": TargetGates(**{name: limit})}, FIGURES, None)
    assert result.verdict == "warned"
    assert "the next run may find otherwise" in result.message
    assert result.spread == (SPEED.spread_ms if name == "max_latency_ms" else SPEED.speedup_spread)


def test_what_cannot_be_measured_is_skipped_and_says_why():
    limits = {"host": TargetGates(max_flash_bytes=1, max_ram_bytes=1), "board": TargetGates(max_latency_ms=1)}
    flash, ram, latency = judge(GateOptions(), limits, FIGURES, None)
    assert {flash.verdict, ram.verdict, latency.verdict} == {"skipped"}
    assert flash.value is ram.value is latency.value is None
    assert [flash.unit, ram.unit, latency.unit] == ["bytes", "bytes", "ms"]
    assert "x86-64-v3 has an operating system" in flash.message
    assert latency.message == "max_latency_ms of board: not measured: it is not here"


def test_a_place_that_was_named_and_did_not_answer_fails():
    board = replace(BOARD, via="ssh://board", not_timed="it cannot be reached")
    figures = replace(FIGURES, targets={"board": board})
    results = judge(GateOptions(), {"board": TargetGates(min_speedup=2, max_bytes=900)}, figures, None)
    assert [(result.name, result.verdict) for result in results] == [("max_bytes", "passed"), ("min_speedup", "failed")]
    assert "it cannot be reached" in results[1].message


def test_a_rise_of_the_loss_is_a_drop():
    figures = replace(FIGURES, quality=replace(QUALITY, metric="loss", value=0.5, dense=0.4))
    assert verdict(GateOptions(max_accuracy_drop=0.1), figures) == [("max_accuracy_drop", "", "passed")]
    assert verdict(GateOptions(max_accuracy_drop=0.09), figures) == [("max_accuracy_drop", "", "failed")]


def test_all_gates_are_judged_although_one_fails():
    gates = GateOptions(max_accuracy_drop=0, min_metric=0.5, max_disagreement=0, max_packed_bytes=1)
    found = verdict(gates, host={"max_bytes": 1, "min_speedup": 9}, board={"max_flash_bytes": 700})
    assert [each[2] for each in found] == ["failed", "passed", "failed", "failed", "failed", "failed", "passed"]


# Baselines

COMPARED = GateOptions(
    baseline="report.json", max_accuracy_regression=1.0, max_bytes_regression=10.0, max_latency_regression=10.0
)


def regressions(baseline, figures=FIGURES, targets=("host",)):
    results = judge(COMPARED, {name: TargetGates() for name in targets}, figures, baseline)
    assert {result.kind for result in results} == {"regression"}
    assert [result.name for result in results] == [
        "max_accuracy_regression",
        *(name for _ in targets for name in ("max_bytes_regression", "max_latency_regression")),
    ]
    return results


def baseline_with(**host):
    return replace(FIGURES, targets={"host": replace(HOST, **host), "board": BOARD})


def test_the_same_figures_are_no_regression():
    results = regressions(FIGURES)
    assert [result.value for result in results] == [0, 0, 0]
    assert {result.verdict for result in results} == {"passed"}


def test_worse_figures_are_one():
    quality = replace(QUALITY, value=0.99)
    baseline = replace(baseline_with(bytes=800, speed=replace(SPEED, median_ms=1.0)), quality=quality)
    accuracy, size, latency = regressions(baseline)
    assert accuracy.value == pytest.approx(100 * 0.02 / 0.99)
    assert size.value == pytest.approx(25)
    assert latency.value == pytest.approx(100)
    assert latency.spread == pytest.approx(100 * (0.1**2 + (2 * 0.1) ** 2) ** 0.5)
    assert {result.unit for result in (accuracy, size, latency)} == {"%"}
    assert [result.verdict for result in (accuracy, size, latency)] == ["failed", "failed", "failed"]


def test_a_little_worse_passes_or_warns():
    baseline = baseline_with(bytes=950, speed=replace(SPEED, median_ms=1.9))
    assert [result.verdict for result in regressions(baseline)] == ["passed", "passed", "warned"]


def test_a_loss_that_rose_is_a_regression():
    now = replace(FIGURES, quality=replace(QUALITY, metric="loss", value=0.22))
    before = replace(FIGURES, quality=replace(QUALITY, metric="loss", value=0.2))
    assert regressions(before, now)[0].value == pytest.approx(10)
    assert regressions(now, before)[0].verdict == "passed"


@pytest.mark.parametrize(
    ("baseline", "verdicts", "reason"),
    [
        (None, ["skipped", "skipped", "skipped"], "there is no baseline"),
        (replace(FIGURES, quality=None), ["skipped", "passed", "passed"], "no accuracy in the baseline"),
        (replace(FIGURES, targets={}), ["passed", "skipped", "skipped"], "the baseline has no such target"),
        (baseline_with(target="c"), ["passed", "skipped", "skipped"], "the baseline has c under this name"),
        (baseline_with(speed=None, not_timed="so"), ["passed", "passed", "skipped"], "in the baseline .*: so"),
        (
            baseline_with(speed=replace(SPEED, where="another")),
            ["passed", "passed", "skipped"],
            "timed on 1 threads of another, and this run on 1 threads of a processor",
        ),
    ],
)
def test_what_cannot_be_compared_is_skipped(baseline, verdicts, reason):
    results = regressions(baseline)
    assert [result.verdict for result in results] == verdicts
    skipped = [result.message for result in results if result.verdict == "skipped"]
    assert any(re.search(reason, message) for message in skipped)


# Errors


def result(name, kind, verdict):
    return GateResult(name, kind, "", 1.0, 2.0, "", None, verdict, f"{name} of it")


def test_the_first_kind_decides_and_all_are_named():
    failed = [result("min_speedup", "speed", "failed"), result("min_metric", "accuracy", "failed")]
    with pytest.raises(AccuracyGateError, match=r"2 gates failed, see\n  min_speedup of it\n  min_metric of it"):
        raise_failed(failed, ", see")
    with pytest.raises(SpeedGateError, match="a gate failed"):
        raise_failed(failed[:1])


def test_nothing_but_a_failure_is_raised():
    raise_failed([result("min_metric", "accuracy", verdict) for verdict in ("passed", "warned", "skipped")])


def test_every_kind_has_an_exit_code_of_its_own():
    codes = [error.exit_code for error in (GateError, *GateError.__subclasses__())]
    assert codes == list(range(20, 26))
