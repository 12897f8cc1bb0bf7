"""Whole runs on a trained LeNet-300-100 and bundled images."""

import json
import os

import jsonschema
import numpy as np
import pytest

import lwc_compiler as lwc
from lwc_compiler.demo import lenet_300_100, load_digits
from lwc_compiler.errors import (
    ArtifactError,
    DataError,
    OptionError,
    RegressionGateError,
    SizeGateError,
    TargetError,
    ToolchainError,
)
from lwc_compiler.figures import read_figures
from lwc_compiler.model import load_model
from lwc_compiler.recipe.options import build as options_of
from lwc_compiler.report.document import json_schema
from lwc_compiler.runtime.reference import reference_session

RECIPE = """
model = "dense.onnx"
train_data = "train.npz"
val_data = "validation.npz"

[prune]
criterion = "erdos-renyi-kernel"
sparsity = 0.5
keep_first = false

[retrain]
epochs = 1
batch_size = 32
threads = 1

[pack]

[targets.here]
target = "host"
[targets.here.gates]
min_speedup = 1e-3
max_latency_ms = 1e3

[targets.board]
target = "cortex-m7"
[targets.board.gates]
max_bytes = 10
max_flash_bytes = 1_000_000
max_ram_bytes = 100
min_speedup = 1e9

[gates]
max_accuracy_drop = 0.5
min_metric = 0.5
max_disagreement = 0.0
max_bytes = 1_000_000
max_packed_bytes = 1_000_000
baseline = "none.json"
max_bytes_regression = 1.0
seconds = 0.01
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The trained network and its data, with labels and without."""
    folder, digits = tmp_path_factory.mktemp("run"), load_digits()
    for part in ("train", "validation"):
        np.savez(folder / f"{part}.npz", pixels=digits[f"{part}_pixels"], labels=digits[f"{part}_labels"])
    np.save(folder / "unlabelled.npy", digits["validation_pixels"])
    options = lwc.RetrainOptions(epochs=3, batch_size=32, threads=1)
    train, validation = (str(folder / f"{part}.npz") for part in ("train", "validation"))
    lwc.save(lwc.retrain(lenet_300_100(), train, validation, options), folder / "dense.onnx")
    return folder


@pytest.fixture(scope="module")
def made(folder):
    """A run with two targets, retraining, and gates of which some pass, some fail and some are skipped."""
    (folder / "recipe.toml").write_text(RECIPE, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lwc_compiler.runtime.bench._WARM_UP_SECONDS", 0.001)
        patch.setattr("lwc_compiler.runtime.bench._BLOCK_SECONDS", 0.002)
        return lwc.build(folder / "recipe.toml", folder / "made")


def top_1(model, digits):
    session = reference_session(model.proto, 1)
    return session.run(["scores"], {"pixels": digits["validation_pixels"]})[0].argmax(axis=1)


def test_every_target_has_an_artifact_of_the_same_network(made, folder):
    assert sorted(path.name for path in (folder / "made").iterdir()) == [
        "board.lwc",
        "dense.lwcp",
        "here.lwc",
        "report.json",
        "report.md",
    ]
    here, board = made.artifacts["here"], made.artifacts["board"]
    assert here.model.read_bytes() == board.model.read_bytes() == lwc_bytes(made.packed, folder)
    assert board.manifest.target == "cortex-m7"
    assert here.manifest.options.lower.target == "host"
    assert here.report["total"]["density"] == pytest.approx(0.5, abs=0.01)
    digits = load_digits()
    with lwc.load(here.directory) as session:
        scores = session.run({"pixels": digits["validation_pixels"][:1]})["scores"]
    assert scores.argmax() == top_1(lwc.unpack(made.packed), digits)[0]


def lwc_bytes(packed, folder):
    lwc.save(lwc.unpack(packed), folder / "unpacked.onnx")
    return (folder / "unpacked.onnx").read_bytes()


def test_the_figures_are_those_of_the_files(made, folder):
    digits, figures = load_digits(), made.figures
    before, after = top_1(load_model(folder / "dense.onnx"), digits), top_1(lwc.unpack(made.packed), digits)
    assert figures.quality.metric == "accuracy"
    assert figures.quality.dense == pytest.approx(np.mean(before == digits["validation_labels"]))
    assert figures.quality.value == pytest.approx(np.mean(after == digits["validation_labels"]))
    assert figures.quality.disagreement == pytest.approx(np.mean(before != after))
    assert figures.packed_bytes == made.packed.stat().st_size
    here, board = figures.targets["here"], figures.targets["board"]
    assert here.bytes == made.artifacts["here"].library.stat().st_size
    assert here.speed.speedup > 0
    assert here.flash_bytes is here.ram_bytes is None
    assert board.bytes == made.artifacts["board"].archive.stat().st_size
    sizes, manifest = made.artifacts["board"].report["sizes"], made.artifacts["board"].manifest
    assert board.flash_bytes == sizes["flash"] < board.bytes
    assert board.ram_bytes == sizes["RAM, static"] + manifest.workspace_bytes + 4 * (64 + 10)
    assert board.speed is None
    assert "becomes part of your program" in board.not_timed


def test_all_gates_are_judged(made):
    assert {(gate.name, gate.target): gate.verdict for gate in made.gates} == {
        ("max_accuracy_drop", ""): "passed",
        ("min_metric", ""): "passed",
        ("max_disagreement", ""): "failed",
        ("max_packed_bytes", ""): "passed",
        ("max_bytes", "here"): "passed",
        ("max_latency_ms", "here"): "passed",
        ("min_speedup", "here"): "passed",
        ("max_bytes", "board"): "failed",
        ("max_flash_bytes", "board"): "passed",
        ("max_ram_bytes", "board"): "failed",
        ("min_speedup", "board"): "skipped",
        ("max_bytes_regression", "here"): "skipped",
        ("max_bytes_regression", "board"): "skipped",
    }
    with pytest.raises(lwc.AgreementGateError, match=r"3 gates failed; the results are in .*made all the same"):
        made.check()


def test_the_report_holds_gates_and_figures(made):
    report = made.report
    jsonschema.validate(report, json_schema())
    assert report["quality"] == {
        "metric": "accuracy",
        "value": made.figures.quality.value,
        "dense": made.figures.quality.dense,
    }
    assert report["times"]["speedup"] == made.figures.targets["here"].speed.speedup
    assert [gate["verdict"] for gate in report["gates"]] == [gate.verdict for gate in made.gates]
    assert read_figures(made.directory / "report.json") == made.figures
    assert [layer["site"] for layer in report["layers"]] == ["fc1.weight", "fc2.weight", "fc3.weight"]


def test_reports_come_in_all_formats(folder, tmp_path):
    formats = ("markdown", "junit", "sarif", "html", "badges")
    found = lwc.build(recipe(folder, gates={"max_bytes": 1}, outputs={"reports": formats}), tmp_path / "out")
    names = {path.name for path in found.directory.iterdir()}
    assert names == {"badges", "c.lwc", "junit.xml", "report.html", "report.json", "report.md", "report.sarif"}
    assert "max_bytes" in (found.directory / "junit.xml").read_text(encoding="utf-8")


# What follows prunes without retraining, for C source, which compiles in no time.


def recipe(folder, **changes):
    values = {
        "model": str(folder / "dense.onnx"),
        "val_data": str(folder / "validation.npz"),
        "prune": {"sparsity": 0.3, "keep_first": False},
        "lower": {"target": "c"},
        **changes,
    }
    return options_of(lwc.BuildRecipe, values)


def test_without_labels_predictions_are_compared(folder, tmp_path):
    gates = {"max_disagreement": 1.0, "max_accuracy_drop": 0.0}
    data = str(folder / "unlabelled.npy")
    found = lwc.build(recipe(folder, val_data=data, metric="agreement", gates=gates), tmp_path / "out")
    quality = found.figures.quality
    assert (quality.metric, quality.dense, quality.value) == ("agreement", 1.0, 1 - quality.disagreement)
    assert 0 < quality.disagreement < 0.5
    assert [(gate.name, gate.verdict) for gate in found.gates] == [
        ("max_accuracy_drop", "failed"),
        ("max_disagreement", "passed"),
    ]


def test_a_least_value_of_the_loss_is_refused_before_any_work(folder, tmp_path):
    asked = recipe(folder, metric="loss", gates={"min_metric": 0.5})
    with pytest.raises(OptionError, match="the metric is the loss here"):
        lwc.build(asked, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_an_earlier_run_is_a_baseline(folder, tmp_path):
    gates = {"baseline": str(tmp_path / "first"), "max_bytes_regression": 1.0}
    lwc.build(recipe(folder), tmp_path / "first")
    same = lwc.build(recipe(folder, gates={**gates, "max_accuracy_regression": 0.0}), tmp_path / "same")
    assert [gate.verdict for gate in same.gates] == ["passed", "passed"]
    assert [gate.value for gate in same.gates] == [0, 0]
    larger = lwc.build(recipe(folder, prune=None, gates=gates), tmp_path / "larger")
    with pytest.raises(RegressionGateError, match="max_bytes_regression of c"):
        larger.check()
    assert read_figures(tmp_path / "larger" / "report.json").targets["c"].bytes == larger.figures.targets["c"].bytes


def test_force_replaces_a_run_and_nothing_else(folder, tmp_path):
    lwc.build(recipe(folder), tmp_path / "out")
    with pytest.raises(ArtifactError, match="exists"):
        lwc.build(recipe(folder), tmp_path / "out")
    again = lwc.build(recipe(folder, prune=None), tmp_path / "out", force=True)
    assert again.artifacts["c"].report["total"]["density"] == 1
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "report.json").write_text("{}")
    for place in ("other", "out/c.lwc"):
        with pytest.raises(ArtifactError, match="is not what `lwc build` wrote"):
            lwc.build(recipe(folder), tmp_path / place, force=True)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"targets": {"hots": {}}}, TargetError, "unknown target 'hots'"),
        ({"targets": {"here": {"target": "host", "cc": "no-such-compiler"}}}, ToolchainError, "no-such-compiler"),
        ({"val_data": "none.npz"}, DataError, "data none.npz: there is no such file or folder"),
        ({"targets": {"board": {"target": "cortex-m7", "via": "adb"}}}, OptionError, "targets.board.via"),
        ({"retrain": {"epochs": 1}}, OptionError, "retraining needs training data"),
    ],
)
def test_what_can_be_refused_early_is(folder, tmp_path, changes, error, message, monkeypatch):
    monkeypatch.setattr("lwc_compiler.recipe.run.pruned_and_retrained", lambda *_: pytest.fail("work has begun"))
    with pytest.raises(error, match=message):
        lwc.build(recipe(folder, lower={}, **changes), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_target_that_cannot_be_made_leaves_nothing(folder, tmp_path):
    (tmp_path / "out").mkdir()
    targets = {"first": {"target": "c"}, "board": {"target": "stm32f4", "batch": 600}}
    with pytest.raises(TargetError, match="does not fit stm32f4"):
        lwc.build(recipe(folder, lower={}, targets=targets), tmp_path / "out", force=True)
    assert os.listdir(tmp_path) == ["out"]
    assert os.listdir(tmp_path / "out") == []


def test_a_place_that_cannot_be_reached_fails_the_gate_and_not_the_run(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", os.defpath)
    monkeypatch.setattr("lwc_compiler.runtime.elsewhere.shutil.which", lambda _: None)
    asked = recipe(folder, lower={}, targets={"here": {"target": "host", "via": "adb"}}, gates={"min_speedup": 1.0})
    found = lwc.build(asked, tmp_path / "out")
    assert [(gate.verdict, gate.value) for gate in found.gates] == [("failed", None)]
    assert "adb is not on the PATH" in found.gates[0].message
    with pytest.raises(lwc.SpeedGateError):
        found.check()


def test_a_damaged_baseline_is_an_error(folder, tmp_path):
    (tmp_path / "report.json").write_text(json.dumps({"figures": {"targets": 7}}))
    gates = {"baseline": str(tmp_path / "report.json"), "max_bytes_regression": 1.0}
    with pytest.raises(ArtifactError, match=r"report.json is not the report.json of a run of `lwc build`"):
        lwc.build(recipe(folder, gates=gates), tmp_path / "out")


def test_the_size_decides_on_the_error(folder, tmp_path):
    found = lwc.build(recipe(folder, gates={"max_bytes": 1}), tmp_path / "out")
    with pytest.raises(SizeGateError, match=r"max_bytes of c: [\d,]+ bytes, asked for is at most 1 bytes"):
        found.check()
