"""The scan of small networks against direct measurements; cache, threads, structures, and pruning by its result."""

import json
import threading
import time

import numpy as np
import pytest
from onnx import numpy_helper

from lwc_compiler.errors import ArtifactError, ModelError, OptionError, TrainingError
from lwc_compiler.passes import sensitivity as module
from lwc_compiler.passes.calibration import input_norms
from lwc_compiler.passes.prune import prune
from lwc_compiler.passes.sensitivity import LOG, sensitivity, suggest
from lwc_compiler.passes.sites import constant_tensors, find_sites
from lwc_compiler.recipe.options import PruneOptions, SensitivityOptions
from lwc_compiler.sparsity.allocation import Budget, quality_factors
from lwc_compiler.training.evaluate import Evaluator
from tests.passes.graphs import model, run

MLP = """net (float[n, 6] x) => (float[n, 3] y) {
    [fc1] h = Gemm(x, w1, b1) r = Relu(h) [fc2] m = MatMul(r, w2) y = Add(m, b2)
}"""
CNN = """net (float[n, 2, 6, 6] x) => (float[n, 3] y) {
    [conv1] c = Conv<pads=[1, 1, 1, 1]>(x, k1) r = Relu(c) [conv2] d = Conv<group=2>(r, k2) s = Relu(d)
    p = GlobalAveragePool(s) f = Flatten(p) [fc] y = MatMul(f, w)
}"""
GRID = (0.6, 0.3, 0.1)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def mlp(rng):
    weights = {"w1": rng.standard_normal((6, 8)), "b1": rng.standard_normal(8), "w2": rng.standard_normal((8, 3))}
    return model(MLP, weights | {"b2": rng.standard_normal(3)})


@pytest.fixture
def cnn(rng):
    shapes = {"k1": (4, 2, 3, 3), "k2": (8, 2, 3, 3), "w": (8, 3)}
    return model(CNN, {name: rng.standard_normal(shape) for name, shape in shapes.items()})


@pytest.fixture
def data(rng, tmp_path):
    """For the MLP: 50 samples; `labels` are what the network says, but for some."""
    x = rng.standard_normal((50, 6)).astype(np.float32)
    np.savez(tmp_path / "classes.npz", x=x, labels=rng.integers(0, 3, 50))
    np.savez(tmp_path / "values.npz", x=x, labels=rng.standard_normal((50, 3)).astype(np.float32))
    np.savez(tmp_path / "unlabelled.npz", x=x)
    np.savez(tmp_path / "images.npz", x=rng.standard_normal((20, 2, 6, 6)).astype(np.float32))
    return tmp_path


@pytest.fixture
def count(monkeypatch):
    """How many measurements are made."""
    made = []
    original = Evaluator.measure

    def measure(self, source):
        made.append(threading.current_thread().name)
        return original(self, source)

    monkeypatch.setattr(Evaluator, "measure", measure)
    return made


def options(**values):
    return SensitivityOptions(**{"densities": GRID, "batch_size": 16, "workers": 1, **values})


def pruned_alone(graph, name, density, **more):
    rule = PruneOptions(
        criterion="per-layer", densities={name: density}, keep_first=False, keep_depthwise=False, **more
    )
    return prune(graph, rule).proto


def cross_entropy(logits, labels):
    logits = logits.astype(np.float64)
    return float((np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(len(labels)), labels]).mean())


def test_every_point_is_what_the_pruned_model_gives(mlp, data):
    found = sensitivity(mlp, str(data / "classes.npz"), options())
    stored = np.load(data / "classes.npz")
    x, labels = stored["x"], stored["labels"]
    assert (found.metric, found.samples, found.structure, found.score) == ("accuracy", 50, "element", "magnitude")
    assert [(site.weight, site.nodes, site.shape, site.size) for site in found.sites] == [
        ("w1", ("fc1",), (6, 8), 48),
        ("w2", ("fc2",), (8, 3), 24),
    ]
    assert [site.flops for site in found.sites] == [96, 48]
    (dense,) = run(mlp.proto, {"x": x})
    assert found.dense.loss == pytest.approx(cross_entropy(dense, labels), rel=1e-5)
    assert found.dense.accuracy == (dense.argmax(axis=1) == labels).mean()
    for site in found.sites:
        assert [point.density for point in site.points] == [1.0, *GRID]
        assert site.points[0] == found.dense
        for point in site.points[1:]:
            (outputs,) = run(pruned_alone(mlp, site.weight, point.density), {"x": x})
            assert point.loss == pytest.approx(cross_entropy(outputs, labels), rel=1e-5)
            assert point.accuracy == (outputs.argmax(axis=1) == labels).mean()
            weight = numpy_helper.to_array(constant_tensors(mlp.proto.graph)[site.weight])
            assert point.quality == quality_factors({"": weight}, {"": point.density})[""]


def test_float_labels_give_a_loss(mlp, data):
    found = sensitivity(mlp, str(data / "values.npz"), options())
    stored = np.load(data / "values.npz")
    assert found.metric == "loss"
    (outputs,) = run(pruned_alone(mlp, "w2", 0.1), {"x": stored["x"]})
    point = found.sites[1].points[-1]
    assert (point.density, point.accuracy) == (0.1, None)
    assert point.loss == pytest.approx(float(np.square(outputs - stored["labels"]).mean()), rel=1e-5)


def test_without_labels_it_is_the_distance_to_the_outputs_of_the_dense_model(mlp, data):
    found = sensitivity(mlp, str(data / "unlabelled.npz"), options())
    x = np.load(data / "unlabelled.npz")["x"]
    assert found.metric == "loss"
    assert found.dense.loss == 0
    (outputs,), (dense,) = run(pruned_alone(mlp, "w1", 0.3), {"x": x}), run(mlp.proto, {"x": x})
    point = next(point for point in found.sites[0].points if point.density == 0.3)
    assert point.loss == pytest.approx(float(np.square(outputs - dense).mean()), rel=1e-5)


def test_without_labels_a_model_of_classes_is_measured_by_agreement(mlp, data):
    classes = model(
        MLP.replace("y = Add", "z = Add").replace("\n}", "\n    y = Softmax(z)\n}"),
        {t.name: numpy_helper.to_array(t) for t in mlp.proto.graph.initializer},
    )
    found = sensitivity(classes, str(data / "unlabelled.npz"), options())
    x = np.load(data / "unlabelled.npz")["x"]
    assert found.metric == "agreement"
    assert (found.dense.loss, found.dense.accuracy) == (pytest.approx(0, abs=1e-6), 1)
    (outputs,), (dense,) = run(pruned_alone(classes, "w1", 0.1), {"x": x}), run(classes.proto, {"x": x})
    point = found.sites[0].points[-1]
    assert point.accuracy == (outputs.argmax(axis=1) == dense.argmax(axis=1)).mean() < 1
    divergence = (dense * np.log(dense / outputs)).sum(axis=1).mean()
    assert point.loss == pytest.approx(float(divergence), rel=1e-4)


@pytest.mark.parametrize(
    ("structure", "expected"),
    [("element", [1.0, *GRID]), ("4x1", [1.0, *GRID]), ("2:4", [1.0, 0.5, 0.3, 0.1]), ("1:4", [1.0, 0.25, 0.1])],
)
def test_masks_have_the_structure(cnn, data, structure, expected):
    found = sensitivity(cnn, str(data / "images.npz"), options(structure=structure))
    assert [point.density for point in found.sites[1].points] == expected
    x = np.load(data / "images.npz")["x"]
    (dense,) = run(cnn.proto, {"x": x})
    for site in found.sites:
        for point in site.points[1:]:
            (outputs,) = run(pruned_alone(cnn, site.weight, point.density, structure=structure), {"x": x})
            assert point.loss == pytest.approx(float(np.square(outputs - dense).mean()), rel=1e-4)


def test_the_score_is_that_of_the_masks(mlp, data):
    path = str(data / "unlabelled.npz")
    found = sensitivity(mlp, path, options(score="activation"))
    rule = PruneOptions(criterion="per-layer", densities={"w2": 0.3}, score="activation")
    x = np.load(path)["x"]
    (outputs,) = run(prune(mlp, rule, norms=input_norms(mlp, path)).proto, {"x": x})
    (dense,) = run(mlp.proto, {"x": x})
    point = next(point for point in found.sites[1].points if point.density == 0.3)
    assert point.loss == pytest.approx(float(np.square(outputs - dense).mean()), rel=1e-5)


def test_a_layer_starts_where_it_is_and_small_layers_have_fewer_points(mlp, data):
    half = prune(mlp, PruneOptions(criterion="per-layer", densities={"w1": 0.25}))
    found = sensitivity(half, str(data / "classes.npz"), options(densities=(0.5, 0.1, 0.05, 0.02, 0.01)))
    assert [point.density for point in found.sites[0].points] == [0.25, 0.1, 0.05, 0.02]
    # 24 weights: 0.05 and less keep one.
    assert [point.density for point in found.sites[1].points] == [1.0, 0.5, 0.1, 0.05]
    assert {site.points[0].loss for site in found.sites} == {found.dense.loss}


def test_masked_weights_that_are_not_zero_do_not_count(mlp, data):
    mask = np.zeros((6, 8), bool)
    mask[:3] = True
    masked = sensitivity(
        module.Model(mlp.proto, "case", {"w1": mask}), str(data / "classes.npz"), options(densities=(0.25,))
    )
    pruned = prune(
        module.Model(mlp.proto, "case", {"w1": mask}), PruneOptions(criterion="per-layer", densities={"w1": 1e-9 + 0.5})
    )
    assert sensitivity(pruned, str(data / "classes.npz"), options(densities=(0.25,))) == masked


def test_the_sample_is_limited(mlp, data):
    found = sensitivity(mlp, str(data / "classes.npz"), options(samples=20))
    assert found.samples == 20
    assert round(found.dense.accuracy * 20) == found.dense.accuracy * 20


def test_the_number_of_threads_changes_nothing(cnn, data, monkeypatch):
    path = str(data / "images.npz")
    alone = sensitivity(cnn, path, options())
    original, together = Evaluator.measure, threading.Barrier(3)

    def measure(self, source):
        if threading.current_thread() is not threading.main_thread():
            together.wait(timeout=60)  # three threads measure at once, or this fails
        return original(self, source)

    monkeypatch.setattr(Evaluator, "measure", measure)
    assert len(alone.sites) * len(GRID) == 9
    assert sensitivity(cnn, path, options(workers=3)) == alone


def test_a_second_call_measures_nothing(mlp, data, count):
    path, seen = str(data / "classes.npz"), []
    first = sensitivity(mlp, path, options(), workdir=data / "work")
    assert len(count) == 7
    again = sensitivity(mlp, path, options(workers=2), workdir=data / "work", progress=seen.append)
    assert again == first
    assert len(count) == 7
    assert [(moment.done, moment.total) for moment in seen] == [(6, 6)]
    more = sensitivity(mlp, path, options(densities=(*GRID, 0.2)), workdir=data / "work")
    assert len(count) == 9
    assert [point for point in more.sites[0].points if point.density != 0.2] == list(first.sites[0].points)


@pytest.mark.parametrize("change", ["samples", "loss", "structure", "data", "weights"])
def test_other_scans_do_not_share_measurements(mlp, data, count, change):
    sensitivity(mlp, str(data / "classes.npz"), options(), workdir=data / "work")
    count.clear()
    other = {"samples": {"samples": 49}, "loss": {"loss": "distillation"}, "structure": {"structure": "2x1"}}
    path = "unlabelled.npz" if change == "data" else "classes.npz"
    graph = prune(mlp, PruneOptions(sparsity=0.1, keep_first=False)) if change == "weights" else mlp
    sensitivity(graph, str(data / path), options(**other.get(change, {})), workdir=data / "work")
    assert len(count) == 7


@pytest.mark.parametrize("torn", [b"", b'{"scan": "ab', b'{"scan": "ab"}'])
def test_an_interrupted_scan_goes_on_where_it_was(mlp, data, count, torn):
    path = str(data / "classes.npz")
    whole = sensitivity(mlp, path, options())
    count.clear()

    def interrupt(moment):
        if moment.done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sensitivity(mlp, path, options(workers=2), workdir=data / "work", progress=interrupt)
    log = data / "work" / LOG
    kept = log.read_bytes()
    assert kept.count(b"\n") == 4
    log.write_bytes(kept + torn)
    count.clear()
    assert sensitivity(mlp, path, options(), workdir=data / "work") == whole
    assert len(count) == 3
    lines = log.read_bytes().splitlines()
    assert log.read_bytes().startswith(kept)
    assert len([json.loads(line) for line in lines]) == 7


def test_nothing_new_is_measured_after_an_interruption(mlp, data, monkeypatch):
    original, interrupted, late = Evaluator.measure, threading.Event(), []

    def measure(self, source):
        if interrupted.is_set():
            late.append(source)
            time.sleep(0.2)  # the interruption gets through
        return original(self, source)

    def interrupt(moment):
        if moment.done:
            interrupted.set()
            raise KeyboardInterrupt

    monkeypatch.setattr(Evaluator, "measure", measure)
    with pytest.raises(KeyboardInterrupt):
        sensitivity(mlp, str(data / "classes.npz"), options(densities=np.linspace(0.05, 0.95, 19)), progress=interrupt)
    assert len(late) <= 2
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("ThreadPoolExecutor")]


def test_progress_counts_every_measurement(mlp, data):
    seen = []
    sensitivity(mlp, str(data / "classes.npz"), options(), progress=seen.append)
    assert [(moment.done, moment.total) for moment in seen] == [(done, 6) for done in range(7)]
    assert seen[0].seconds_left is None
    assert seen[-1].seconds_left == 0


def test_a_damaged_log_is_refused(mlp, data):
    (data / "work").mkdir()
    (data / "work" / LOG).write_text("not JSON\n")
    with pytest.raises(ArtifactError, match=r"sensitivity\.jsonl cannot be used .*: delete it"):
        sensitivity(mlp, str(data / "classes.npz"), options(), workdir=data / "work")


def test_a_model_without_layers_is_refused(data):
    with pytest.raises(ModelError, match="no layer whose sensitivity could be measured"):
        sensitivity(model("net (float[n, 6] x) => (float[n, 6] y) { y = Relu(x) }"), str(data / "unlabelled.npz"))


def test_a_dense_model_without_a_finite_loss_is_refused(mlp, data):
    tensor = next(tensor for tensor in mlp.proto.graph.initializer if tensor.name == "w2")
    tensor.CopyFrom(numpy_helper.from_array(np.full((8, 3), 3e38, np.float32), "w2"))
    with pytest.raises(TrainingError, match="before anything is pruned"):
        sensitivity(mlp, str(data / "values.npz"), options())


def test_pruning_by_sensitivity_meets_the_sparsity(cnn, data):
    found = sensitivity(cnn, str(data / "images.npz"), options())
    rule = PruneOptions(criterion="sensitivity", sparsity=0.6, keep_first=False)
    pruned = prune(cnn, rule, sensitivity=found)
    entry = pruned.provenance[-1]
    total = sum(site.size for site in find_sites(cnn.proto))
    assert entry["density"] == pytest.approx(0.4, abs=2 / total)
    expected = suggest(cnn, found, Budget("density", 0.4))
    for name, site in entry["sites"].items():
        assert site["requested"] == pytest.approx(expected.densities[name])
        assert site["density"] == pytest.approx(site["requested"], abs=0.5 / pruned.masks[name].size + 1e-9)
        weight = numpy_helper.to_array(constant_tensors(cnn.proto.graph)[name])
        threshold = site["quality"] * np.std(weight, dtype=np.float64)
        np.testing.assert_array_equal(np.abs(weight) > threshold, pruned.masks[name])
    assert expected.quality["k2"] == pytest.approx(entry["sites"]["k2"]["quality"], rel=0.05)
    json.dumps(entry)


def test_kept_layers_stay_and_the_sparsity_is_that_of_the_others(cnn, data):
    found = sensitivity(cnn, str(data / "images.npz"), options(structure="2:4"))
    entry = prune(
        cnn, PruneOptions(criterion="sensitivity", sparsity=0.7, structure="2:4"), sensitivity=found
    ).provenance[-1]
    assert entry["sites"]["k1"] == {"density": 1.0, "kept_because": "first layer (keep_first)"}
    assert entry["density"] == pytest.approx(0.3, abs=2 / 168)


def test_a_pruned_model_is_pruned_further_by_the_same_scan(cnn, data):
    found = sensitivity(cnn, str(data / "images.npz"), options())
    first = prune(cnn, PruneOptions(sparsity=0.5, keep_first=False))
    second = prune(first, PruneOptions(criterion="sensitivity", sparsity=0.7, keep_first=False), sensitivity=found)
    assert second.provenance[-1]["density"] == pytest.approx(0.3, abs=2 / 240)
    assert all(not (mask & ~first.masks[name]).any() for name, mask in second.masks.items())


def test_sensitivity_has_to_be_given(mlp):
    with pytest.raises(OptionError, match="needs a sensitivity scan of the model: give data"):
        prune(mlp, PruneOptions(criterion="sensitivity", sparsity=0.5))
