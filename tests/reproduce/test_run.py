"""The whole reproduction, on images small enough for a test."""

import json

import numpy as np
import pytest

import lwc_compiler as lwc
from lwc_compiler.errors import ArtifactError, OptionError
from lwc_compiler.reproduce.measure import error_of
from lwc_compiler.reproduce.networks import he_normal, lenet_300_100
from lwc_compiler.reproduce.run import run
from tests.reproduce.conftest import TRAINING, tiny_schedule

# One worker of pytest-xdist gets all of them: the reproduction runs once.
pytestmark = pytest.mark.xdist_group("reproduce")


@pytest.fixture(scope="module")
def done(tiny, tmp_path_factory):
    """The results, and their folder."""
    folder = tmp_path_factory.mktemp("reproduce")
    return run(tiny(), folder, seeds=(0,), figure_5=True), folder


def test_prunes_to_a_twelfth_and_holds_the_accuracy(done):
    (dense, small), *others = done[0].seeds.values()
    assert not others
    assert dense.kept == dense.weights == 64 * 300 + 300 * 100 + 100 * 10
    assert small.rate >= 12
    assert dense.validation_error < 0.05
    assert small.validation_error < 0.05
    assert small.test_error < 0.05
    assert small.rounds[-1].density == pytest.approx(small.kept / small.weights)
    assert small.rounds[-1].error_before_retraining > small.rounds[-1].error


def test_errors_are_those_of_the_files(done, digits):
    results, folder = done
    for network in results.seeds[0]:
        file = folder / "seed-0" / network.name / "model.onnx"
        assert error_of(file, digits.test) == network.test_error
        # The trainer, which measured in its own way, agrees.
        assert network.validation_error == pytest.approx(error_of(file, digits.validation))
    assert results.seeds[0][1].rounds[-1].error == pytest.approx(results.seeds[0][1].validation_error)


def test_layers_are_counted_and_measured(done):
    _, small = done[0].seeds[0]
    *layers, total = small.layers
    assert [layer.name for layer in layers] == ["fc1", "fc2", "fc3"]
    assert sum(round(layer.kept * layer.weights) for layer in layers) == small.kept
    assert total.kept == small.kept / small.weights
    assert layers[1].flops_kept == pytest.approx(layers[1].kept * layers[0].activations)
    assert 0 < layers[0].activations < 1
    assert layers[2].activations == 1
    assert small.kept < small.parameters <= small.kept + 410


def test_curves_start_at_the_dense_networks(done):
    plain, retrained = done[0].figure_5
    assert plain.densities[0] == retrained.densities[0] == 1
    assert plain.errors[0] == done[0].seeds[0][0].validation_error
    assert plain.densities[1] == pytest.approx(0.25, abs=0.01)
    assert retrained.densities[1] == pytest.approx(0.25, abs=0.01)


def test_results_are_written(done):
    results, folder = done
    content = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    assert content["seeds"]["0"][1]["kept"] == results.seeds[0][1].kept
    assert content["lwc"] == lwc.__version__
    text = (folder / "report.md").read_text(encoding="utf-8")
    assert "| lwc, 12x |" in text
    assert "seed 0" in text
    plots = {path.name for path in (folder / "plots").iterdir()}
    assert plots >= {"trade-off.svg", "sensitivity.svg", "12x-histogram.svg", "12x-density.svg", "12x-mask-1.svg"}
    assert "![sensitivity](plots/sensitivity.svg)" in text
    scan = json.loads((folder / "sensitivity.json").read_text(encoding="utf-8"))
    assert [site["nodes"] for site in scan["sites"]] == [["fc1"], ["fc2"], ["fc3"]]


def test_again_is_quick_and_the_same(done, tiny, monkeypatch):
    results, folder = done
    monkeypatch.setattr(lwc, "retrain", lambda *_, **__: pytest.fail("trained again"))
    monkeypatch.setattr(lwc, "iterate", lambda *_, **__: pytest.fail("pruned again"))
    assert run(tiny(), folder, seeds=(0,), figure_5=True) == results


def test_other_settings_are_refused(done, tiny):
    other = tiny(tiny_schedule(TRAINING.model_copy(update={"epochs": 3})))
    with pytest.raises(ArtifactError, match=r"seed-0/dense holds a step with other settings"):
        run(other, done[1], seeds=(0,))


def test_no_seeds_are_refused(tiny, tmp_path):
    with pytest.raises(OptionError, match="at least one seed"):
        run(tiny(), tmp_path, seeds=())


def test_error_counts_wrong_answers(tmp_path):
    model = lenet_300_100(he_normal(0), pixels=4)
    lwc.save(model, tmp_path / "model.onnx")
    pixels = np.random.default_rng(0).random((1_500, 4), np.float32)
    np.savez(tmp_path / "data.npz", pixels=pixels, labels=np.zeros(1_500, np.int64))
    weights = {tensor.name: np.frombuffer(tensor.raw_data, "<f4").reshape(tensor.dims) for tensor in
               model.proto.graph.initializer}  # fmt: skip
    hidden = np.maximum(pixels @ weights["fc1.weight"].T, 0)
    hidden = np.maximum(hidden @ weights["fc2.weight"].T, 0)
    answers = (hidden @ weights["fc3.weight"].T).argmax(axis=1)
    assert error_of(tmp_path / "model.onnx", tmp_path / "data.npz") == np.mean(answers != 0)
