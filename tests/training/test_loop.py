"""The trainer in this process: masked steps, accumulation, batches, BatchNormalization."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from lwc_compiler.errors import DataError, ModelError, TrainingError, UnsupportedError
from lwc_compiler.recipe.options import PruneOptions, RetrainOptions
from lwc_compiler.training import loop
from lwc_compiler.training.batching import input_specs
from lwc_compiler.training.data import ArraySource
from lwc_compiler.training.evaluate import Score
from lwc_compiler.training.loop import Job, Trainer, train
from lwc_compiler.training.masking import Pruning
from lwc_compiler.training.weights import attach


def trainer_for(proto, samples, masks=None, teacher=None, **options):
    source = ArraySource("samples", samples, input_specs(proto))
    options = RetrainOptions(threads=1, **options)
    trainer = Trainer(
        Job(proto, masks or {}, "samples", None, options, Path("none"), "", teacher=teacher), source, source.labels
    )
    return trainer, source


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_pruned_weights_and_their_state_are_zero_after_every_step(perceptron, samples, optimizer):
    trainer, source = trainer_for(
        perceptron.proto, samples, perceptron.masks, optimizer=optimizer, batch_size=8, weight_decay=0.1, clip_norm=1.0
    )
    before = {name: array.copy() for name, array in trainer.weights.trained.items()}
    for batch in source.batches(8):
        trainer.step([batch], 0.05)
        for name, mask in perceptron.masks.items():
            assert not trainer.weights.trained[name][~mask].any()
            states = [array for key, array in trainer.optimizer.state.items() if key.endswith(f"/{name}")]
            assert states
            assert not any(state[~mask].any() for state in states)
    for name, mask in perceptron.masks.items():
        assert (trainer.weights.trained[name] != before[name])[mask].all()


def test_weights_that_are_pruned_but_not_zero_become_zero(perceptron, samples):
    proto = attach(perceptron.proto, {"w0": np.ones((6, 8), np.float32)})
    trainer, _ = trainer_for(proto, samples, perceptron.masks)
    np.testing.assert_array_equal(trainer.weights.trained["w0"], perceptron.masks["w0"])


def test_accumulated_batches_are_one_large_batch(perceptron, samples):
    large, source = trainer_for(perceptron.proto, samples, perceptron.masks, batch_size=40, optimizer="sgd")
    small, _ = trainer_for(perceptron.proto, samples, perceptron.masks, batch_size=10, optimizer="sgd", accumulate=4)
    assert (small.batch, small.group) == (10, 4)
    loss = large.step(list(source.batches(40)), 0.1)
    assert small.step(list(source.batches(10)), 0.1) == pytest.approx(loss, rel=1e-6)
    for name, array in large.weights.trained.items():
        np.testing.assert_allclose(small.weights.trained[name], array, rtol=1e-5, atol=1e-7)


def test_measuring_does_not_depend_on_the_batch(perceptron, samples):
    scores = []
    for size in (40, 7):
        trainer, source = trainer_for(perceptron.proto, samples, batch_size=size)
        scores.append(trainer.evaluator.measure(source))
    assert scores[0].accuracy == scores[1].accuracy
    assert scores[0].loss == pytest.approx(scores[1].loss, rel=1e-6)


def test_weights_in_constant_nodes_train_and_go_back(perceptron, samples):
    proto = onnx.ModelProto()
    proto.CopyFrom(perceptron.proto)
    tensor = next(tensor for tensor in proto.graph.initializer if tensor.name == "w1")
    proto.graph.node.insert(0, onnx.helper.make_node("Constant", [], ["w1"], value=tensor))
    proto.graph.initializer.remove(tensor)
    trainer, source = trainer_for(proto, samples, perceptron.masks)
    trainer.step([next(source.batches(trainer.batch))], 0.1)
    result = attach(proto, trainer.weights.arrays())
    found = onnx.numpy_helper.to_array(result.graph.node[0].attribute[0].t)
    np.testing.assert_array_equal(found, trainer.weights.trained["w1"])
    assert [node.op_type for node in result.graph.node] == [node.op_type for node in proto.graph.node]


def test_weight_decay_leaves_biases_alone(perceptron, samples):
    trainer, _ = trainer_for(perceptron.proto, samples)
    assert trainer.weights.decayed == {"w0", "w1"}


CONVOLUTIONAL = """(float[{n},2,6,6] x) => (float[{n},3] y) {{
    c = Conv<pads=[1,1,1,1]>(x, k) v = BatchNormalization<momentum=0.8, epsilon=0.001>(c, s, b, mean, variance)
    r = Relu(v) p = GlobalAveragePool(r) f = {flat} y = Gemm(f, w, z)
}}"""


@pytest.fixture
def images(rng):
    return {"x": rng.normal(size=(12, 2, 6, 6)).astype(np.float32), "labels": rng.integers(0, 3, 12)}


@pytest.fixture
def convolutional(build, rng):
    def make(batch="n", flat="Flatten(p)", **more):
        weights = {
            "k": rng.normal(size=(4, 2, 3, 3)) / 3,
            "s": rng.random(4) + 0.5,
            "b": rng.normal(size=4),
            "mean": rng.normal(size=4) / 4,
            "variance": rng.random(4) + 0.5,
            "w": rng.normal(size=(4, 3)),
            "z": np.zeros(3),
        }
        proto = build(CONVOLUTIONAL.format(n=batch, flat=flat), weights)
        for name, array in more.items():
            proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
        return proto

    return make


def test_batch_normalization_trains_with_the_statistics_of_the_batch(convolutional, images):
    """Running statistics as ONNX defines them; loss and gradients against a float64 computation."""
    trainer, source = trainer_for(convolutional(), images, batch_size=12)
    old = {name: array.astype(np.float64) for name, array in trainer.weights.arrays().items()}
    batch = next(source.batches(12))

    def convolve(x, k):
        padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
        windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3))
        return np.einsum("nchwij,ocij->nohw", windows, k)

    def loss(weights):
        c = convolve(images["x"].astype(np.float64), weights["k"])
        mean, variance = c.mean(axis=(0, 2, 3)), c.var(axis=(0, 2, 3))
        column = (slice(None), None, None)
        v = (c - mean[column]) / np.sqrt(variance[column] + 0.001) * weights["s"][column] + weights["b"][column]
        y = np.maximum(v, 0).mean(axis=(2, 3)) @ weights["w"] + weights["z"]
        y -= np.log(np.exp(y).sum(axis=1, keepdims=True))
        return -y[np.arange(12), images["labels"]].mean(), mean, variance

    expected, mean, variance = loss(old)
    assert trainer.step([batch], 0.0) == pytest.approx(expected, rel=1e-5)
    np.testing.assert_allclose(trainer.weights.statistics["mean"], 0.8 * old["mean"] + 0.2 * mean, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(
        trainer.weights.statistics["variance"], 0.8 * old["variance"] + 0.2 * variance, rtol=1e-4
    )
    for name in ("k", "s", "b", "w", "z"):
        for index in list(np.ndindex(old[name].shape))[::5]:
            moved = []
            for step in (1e-5, -1e-5):
                changed = old[name].copy()
                changed[index] += step
                moved.append(loss(old | {name: changed})[0])
            assert trainer._gradients[name][index] == pytest.approx((moved[0] - moved[1]) / 2e-5, rel=1e-3, abs=2e-6)


def test_measuring_uses_the_running_statistics(convolutional, images):
    proto = convolutional()
    trainer, source = trainer_for(proto, images, batch_size=12)
    session = loop.open_session(proto, threads=1)
    logits = session.run(None, {"x": images["x"]})[0].astype(np.float64)
    logits -= np.log(np.exp(logits).sum(axis=1, keepdims=True))
    expected = -logits[np.arange(12), images["labels"]].mean()
    assert trainer.evaluator.measure(source).loss == pytest.approx(expected, rel=1e-5)


def test_frozen_batch_normalization_stays_as_it_is(convolutional, images):
    trainer, source = trainer_for(convolutional(), images, batch_size=12, batch_norm="frozen")
    assert sorted(trainer.weights.arrays()) == ["k", "w", "z"]
    expected = trainer.evaluator.measure(source).loss
    assert trainer.step([next(source.batches(12))], 0.0) == pytest.approx(expected, rel=1e-5)


def test_a_batch_that_was_built_in_is_opened(convolutional, images):
    shape = np.array([1, 4], np.int64)
    trainer, _ = trainer_for(convolutional(1, "Reshape(p, shape)", shape=shape), images, batch_size=6)
    assert (trainer.batch, trainer.group) == (6, 1)


def test_the_teacher_of_a_model_with_a_built_in_batch_is_opened_too(convolutional, images):
    proto = convolutional(1, "Reshape(p, shape)", shape=np.array([1, 4], np.int64))
    del images["labels"]
    trainer, source = trainer_for(proto, images, teacher=proto, batch_size=6)
    assert (trainer.batch, trainer.group) == (6, 1)
    assert trainer.evaluator.measure(source).loss == pytest.approx(0, abs=1e-10)


def test_a_batch_that_cannot_be_opened_is_accumulated(convolutional, images):
    proto = convolutional(2, "Reshape(p, shape)", shape=np.array([2, 4], np.int64))
    proto.graph.node[-1].output[0] = "logits"
    proto.graph.initializer.append(onnx.numpy_helper.from_array(np.ones((2, 3), np.float32), "built_in"))
    proto.graph.node.append(onnx.helper.make_node("Add", ["logits", "built_in"], ["y"]))
    trainer, source = trainer_for(proto, images, batch_size=6)
    assert (trainer.batch, trainer.group) == (2, 3)
    assert trainer.evaluator.measure(source).loss > 0


def test_too_few_samples_for_the_built_in_batch(convolutional, images):
    images = {name: array[:3] for name, array in images.items()}
    with pytest.raises(DataError, match="batches of 4 samples only"):
        trainer_for(convolutional(4, "Reshape(p, shape)", shape=np.array([4, 4], np.int64)), images)


def test_float16_weights_are_refused_in_a_sentence(perceptron, samples):
    proto = onnx.ModelProto()
    proto.CopyFrom(perceptron.proto)
    half = onnx.numpy_helper.to_array(proto.graph.initializer[0]).astype(np.float16)
    proto.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(half, proto.graph.initializer[0].name))
    with pytest.raises(UnsupportedError, match="'w0' is float16"):
        trainer_for(proto, samples)


def test_a_model_without_weights_is_refused(build, samples):
    with pytest.raises(ModelError, match="no weights"):
        trainer_for(build("(float[n,6] x) => (float[n,6] y) { y = Relu(x) }", {}), samples)


def test_weights_that_do_not_matter_are_refused(build, samples, rng):
    text = "(float[n,6] x) => (float[n,6] y, float[n,3] z) { y = Relu(x) z = MatMul(x, w) }"
    with pytest.raises(UnsupportedError, match="no weight has an influence"):
        trainer_for(build(text, {"w": rng.normal(size=(6, 3))}), samples)


def test_a_wrong_gradient_is_caught_and_the_operator_named(build, rng, images, monkeypatch):
    """The gradient of a Conv with auto_pad is wrong as long as the padding is not made explicit."""
    text = """(float[n,2,6,6] x) => (float[n,3] y) {
        c = Conv<auto_pad='SAME_UPPER', strides=[2,2]>(x, k) t = Tanh(c) f = Flatten(t) y = MatMul(f, w) }"""
    proto = build(text, {"k": rng.normal(size=(4, 2, 2, 3)), "w": rng.normal(size=(36, 3)) / 6})
    trainer_for(proto, images)
    monkeypatch.delitem(loop.rewrite_for_gradients.__globals__["RULES"], "Conv")
    with pytest.raises(TrainingError, match=r"a gradient is wrong.*\(Conv\)"):
        trainer_for(proto, images)


def test_an_operator_without_a_gradient_is_named(build, rng, samples):
    text = "(float[n,6] x) => (float[n,3] y) { h = MatMul(x, w) y = Atan(h) }"
    proto = build(text, {"w": rng.normal(size=(6, 3))})
    proto.graph.node[1].name = "curve"
    with pytest.raises(UnsupportedError, match=r"node 'curve' \(Atan\) has no gradient"):
        trainer_for(proto, samples)


def test_labels_of_the_validation_data_are_checked_too(job, samples, tmp_path):
    wrong = {"labels": samples["labels"] + 1}, {"labels": samples["labels"] * 1.0}, {}
    messages = "labels are 0 to 3", "labels of the validation data are float", "validation data has no labels"
    for change, message in zip(wrong, messages, strict=True):
        np.savez(tmp_path / "val.npz", x=samples["x"], **change)
        with pytest.raises(DataError, match=message):
            train(replace(job(), val_data=str(tmp_path / "val.npz")), lambda _: None)


@pytest.fixture
def job(perceptron, samples, tmp_path):
    def make(checkpoint="checkpoint.npz", model=perceptron, data=samples, **options):
        np.savez(tmp_path / "data.npz", **data)
        options = RetrainOptions(threads=1, batch_size=9, **options)
        path = str(tmp_path / "data.npz")
        return Job(model.proto, model.masks, path, None, options, tmp_path / checkpoint, repr(options))

    return make


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize("stop", [1, 3])
def test_an_interrupted_run_ends_like_one_that_was_not(job, tmp_path, optimizer, stop):
    options = {"epochs": 5, "optimizer": optimizer, "learning_rate": 0.02}
    train(job("whole.npz", **options), lambda _: None)

    def interrupt(progress):
        found = loop.load_checkpoint(tmp_path / "parts.npz")
        if found is not None and len(found[0]["history"]) > stop:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(job("parts.npz", **options), interrupt)
    seen = []
    train(job("parts.npz", **options), seen.append)
    assert {p.epoch for p in seen} == set(range(stop + 1, 6))
    whole, parts = (loop.load_checkpoint(tmp_path / name) for name in ("whole.npz", "parts.npz"))
    for group, arrays in whole[1].items():
        for name, array in arrays.items():
            np.testing.assert_array_equal(parts[1][group][name], array, strict=True)
    assert whole[0] == parts[0]


@pytest.fixture
def changing(perceptron):
    """Job fields with which masks change: of 8 epochs of 4 steps, ramps end after the 4th, changes after the 6th."""

    def make(ramp):
        return {"pruning": Pruning(PruneOptions(sparsity=0.7, structure="2x1"), ("w0", "w1"), ramp)}

    return make


# Options, ramp of gradual pruning (None: masks stay), and other fields of the job.
RUNS = {
    "gradual": ({}, 0.5, {}),
    "gradual and shadow": ({"grow": "shadow", "optimizer": "sgd", "momentum": 0.8}, 0.5, {}),
    "gradual and gradient": ({"grow": "gradient", "l1": 1e-3}, 0.5, {}),
    "shadow": ({"grow": "shadow", "weight_decay": 0.01}, 0.0, {}),
    "dropout": ({}, None, {"dropout": {"r": 0.5}}),
    "accumulated dropout": ({"accumulate": 2}, None, {"dropout": {"r": 0.5, "h": 0.2}}),
    "distill": ({"distill": 0.5, "temperature": 2.0}, None, {"teacher": True}),
    "codebook": ({"codebook": {"fc": 3}, "clip_norm": 0.5}, None, {}),
    "frozen": ({}, None, {"frozen": ("w0", "b0")}),
}


@pytest.mark.parametrize("stop", [1, 4, 5, 6, 7])
@pytest.mark.parametrize("run", RUNS)
def test_an_interrupted_run_of_any_kind_ends_like_one_that_was_not(
    job, changing, perceptron, samples, tmp_path, run, stop
):
    options, ramp, fields = RUNS[run]
    fields = fields | ({} if ramp is None else changing(ramp))
    if "teacher" in fields:
        fields = {"teacher": attach(perceptron.proto, {"b1": np.array([1, 0, -1], np.float32)})}
    model = perceptron if ramp is None else replace(perceptron, masks={})

    def start(name):
        made = job(name, model, epochs=8, learning_rate=0.05, mask_interval=3, **options)
        return replace(made, **fields)

    def interrupt(progress):
        found = loop.load_checkpoint(tmp_path / "parts.npz")
        if found is not None and len(found[0]["history"]) > stop:
            raise KeyboardInterrupt

    train(start("whole.npz"), lambda _: None)
    with pytest.raises(KeyboardInterrupt):
        train(start("parts.npz"), interrupt)
    train(start("parts.npz"), lambda _: None)
    (whole, arrays), (parts, others) = (loop.load_checkpoint(tmp_path / name) for name in ("whole.npz", "parts.npz"))
    assert whole == parts
    assert {group: list(named) for group, named in arrays.items()} == {
        group: list(named) for group, named in others.items()
    }
    for group, named in arrays.items():
        for name, array in named.items():
            np.testing.assert_array_equal(others[group][name], array, strict=True)
            assert np.array_equal(np.signbit(others[group][name]), np.signbit(array))
    if ramp is not None:
        assert 0.25 < whole["history"][-1]["density"] < 0.35
    if ramp:
        assert whole["best_epoch"] >= 5  # only there the masks are final


@pytest.mark.parametrize("grow", ["none", "shadow", "gradient"])
def test_the_best_epoch_has_its_own_masks(job, changing, perceptron, tmp_path, grow):
    fields = changing(0.5)
    made = job(model=replace(perceptron, masks={}), epochs=6, learning_rate=0.05, mask_interval=3, grow=grow)
    train(replace(made, **fields), lambda _: None)
    meta, groups = loop.load_checkpoint(tmp_path / "checkpoint.npz")
    for name, mask in groups["best_masks"].items():
        assert not groups["best"][name][~mask].any()
        assert groups["best"][name][mask].any()
    size = sum(mask.size for mask in groups["best_masks"].values())
    kept = sum(int(mask.sum()) for mask in groups["best_masks"].values())
    assert meta["history"][meta["best_epoch"]]["density"] == kept / size


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_frozen_weights_stay_to_the_last_bit(perceptron, samples, optimizer):
    """Weight decay and regularization included; what is pruned there stays pruned."""
    source = ArraySource("samples", samples, input_specs(perceptron.proto))
    options = RetrainOptions(threads=1, batch_size=8, optimizer=optimizer, weight_decay=0.1, l1=0.1)
    job = Job(perceptron.proto, perceptron.masks, "samples", None, options, Path("none"), "", frozen=("w0", "b0"))
    trainer = Trainer(job, source, source.labels)
    before = {name: array.copy() for name, array in trainer.weights.trained.items()}
    for batch in source.batches(8):
        trainer.step([batch], 0.05)
    for name, array in trainer.weights.trained.items():
        assert np.array_equal(array, before[name]) == (name in ("w0", "b0"))
    assert not trainer.weights.trained["w0"][~perceptron.masks["w0"]].any()


def test_data_that_run_short_before_the_masks_are_final(changing, job, perceptron, samples, tmp_path, monkeypatch):
    """Full data are counted, and after that a batch comes an epoch."""
    calls = []

    def batches():
        calls.append(None)
        part = slice(None) if len(calls) < 4 else slice(9)
        yield {name: array[part] for name, array in samples.items()}

    monkeypatch.setattr("lwc_compiler.training.data.load_function", lambda _: batches)
    made = replace(
        job(model=replace(perceptron, masks={}), epochs=2), train_data="any:thing", val_data=str(tmp_path / "data.npz")
    )
    with pytest.raises(TrainingError, match="same number of samples in every epoch"):
        train(replace(made, **changing(0.9)), lambda _: None)


def test_the_best_epoch_is_kept(job, tmp_path):
    train(job(epochs=6, learning_rate=0.3, schedule="constant"), lambda _: None)
    meta, groups = loop.load_checkpoint(tmp_path / "checkpoint.npz")
    scores = [Score(entry["val_loss"], entry["accuracy"]) for entry in meta["history"]]
    assert not any(score.better_than(scores[meta["best_epoch"]]) for score in scores)
    again = job("again.npz", epochs=max(1, meta["best_epoch"]), learning_rate=0.3, schedule="constant")
    train(again, lambda _: None)
    expected = loop.load_checkpoint(again.checkpoint)[1]["best"]
    for name, array in groups["best"].items():
        np.testing.assert_array_equal(array, expected[name])


def test_patience_ends_a_run_that_gets_no_better(job, tmp_path):
    train(job(epochs=50, learning_rate=1e-12, schedule="constant", patience=2), lambda _: None)
    meta, _ = loop.load_checkpoint(tmp_path / "checkpoint.npz")
    assert len(meta["history"]) - 1 <= meta["best_epoch"] + 2


def test_divergence_says_where_and_what_to_do(job):
    with pytest.raises(
        TrainingError, match=r"step \d+ of epoch \d+ is (nan|inf); lower the learning rate .*try 1e\+19"
    ):
        train(job(learning_rate=1e20, optimizer="sgd"), lambda _: None)


def test_a_checkpoint_of_another_run_is_refused(job):
    train(job(epochs=1), lambda _: None)
    with pytest.raises(TrainingError, match="another run"):
        train(job(epochs=2), lambda _: None)


def test_a_checkpoint_that_cannot_be_written(job):
    with pytest.raises(TrainingError, match="cannot be written"):
        train(job("missing/checkpoint.npz"), lambda _: None)


def test_a_damaged_checkpoint_is_refused(job, tmp_path):
    (tmp_path / "checkpoint.npz").write_bytes(b"PK\x03\x04 torn")
    with pytest.raises(TrainingError, match="is damaged"):
        train(job(), lambda _: None)
