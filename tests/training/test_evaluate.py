"""Loss and accuracy of a model on data, against NumPy in float64."""

import numpy as np
import pytest

from lwc_compiler.errors import DataError
from lwc_compiler.recipe.options import RetrainOptions
from lwc_compiler.training.batching import input_specs
from lwc_compiler.training.data import ArraySource
from lwc_compiler.training.evaluate import Evaluator, Score, open_data


def evaluator_for(proto, arrays, teacher=None, masked=(), **options):
    source = ArraySource("samples", arrays, input_specs(proto))
    options = RetrainOptions(threads=1, **options)
    return Evaluator(proto, masked, source, source.labels, options, teacher), source


def logits(weights, x):
    hidden = np.maximum(x.astype(np.float64) @ weights["w0"] + weights["b0"], 0)
    return hidden @ weights["w1"] + weights["b1"]


def log_softmax(z):
    z = z - z.max(axis=1, keepdims=True)
    return z - np.log(np.exp(z).sum(axis=1, keepdims=True))


def test_better_is_more_accurate_then_less_lossy():
    scores = [Score(9, 0.9), Score(1, 0.8), Score(2, 0.8)]
    for i, score in enumerate(scores):
        assert [score.better_than(other) for other in scores] == [i < j for j in range(3)]
    assert Score(1, None).better_than(Score(2, None))
    assert not Score(1, None).better_than(Score(1, None))
    assert (Score(3, 0.5).metric, Score(3, None).metric) == (0.5, 3)


@pytest.mark.parametrize("batch", [40, 16, 7])
def test_cross_entropy_and_accuracy(perceptron, samples, batch):
    """Also where the last batch is not full."""
    evaluator, source = evaluator_for(perceptron.proto, samples, batch_size=batch)
    found = log_softmax(logits(evaluator.weights.trained, samples["x"]))
    score = evaluator.measure(source)
    assert score.loss == pytest.approx(-found[np.arange(40), samples["labels"]].mean(), rel=1e-5)
    assert score.accuracy == (found.argmax(axis=1) == samples["labels"]).mean()
    assert evaluator.objective.metric == "accuracy"


def test_what_the_weights_hold_is_measured(perceptron, samples):
    evaluator, source = evaluator_for(perceptron.proto, samples)
    before = evaluator.measure(source)
    for array in evaluator.weights.trained.values():
        array[:] = 0
    score = evaluator.measure(source)
    assert score.loss == pytest.approx(np.log(3), rel=1e-6)
    assert score.accuracy == (samples["labels"] == 0).mean()
    assert before != score


def test_values_have_a_loss_and_no_accuracy(perceptron, samples, rng):
    samples["labels"] = rng.normal(size=(40, 3)).astype(np.float32)
    evaluator, source = evaluator_for(perceptron.proto, samples, batch_size=16)
    gap = logits(evaluator.weights.trained, samples["x"]) - samples["labels"]
    score = evaluator.measure(source)
    assert score.loss == pytest.approx((gap**2).mean(), rel=1e-5)
    assert score.metric == score.loss
    assert score.accuracy is None
    assert evaluator.objective.metric == "loss"


@pytest.mark.parametrize("batch", [40, 16])
def test_distance_to_a_teacher_of_classes(build, perceptron, samples, batch):
    """The divergence, and the share of predictions that the teacher makes too."""
    del samples["labels"]
    proto = type(perceptron.proto)()
    proto.CopyFrom(perceptron.proto)
    proto.graph.node[-1].output[0] = "logits"
    proto.graph.node.add(op_type="Softmax", input=["logits"], output=["y"])
    evaluator, source = evaluator_for(proto, samples, proto, loss="distillation", batch_size=batch)
    same = evaluator.measure(source)
    assert same.loss == pytest.approx(0, abs=1e-6)
    assert (same.accuracy, evaluator.objective.metric) == (1.0, "agreement")
    dense = {name: array.astype(np.float64) for name, array in evaluator.weights.trained.items()}
    evaluator.weights.trained["w0"] *= 0.5
    evaluator.weights.trained["b1"][:] = 1, 0, -1
    p = log_softmax(logits(dense, samples["x"]))
    q = log_softmax(logits(evaluator.weights.trained, samples["x"]))
    score = evaluator.measure(source)
    assert score.loss == pytest.approx((np.exp(p) * (p - q)).sum(axis=1).mean(), rel=1e-4)
    assert score.accuracy == (p.argmax(axis=1) == q.argmax(axis=1)).mean()
    assert score.accuracy < 1


def test_distance_to_a_teacher_of_values(perceptron, samples):
    del samples["labels"]
    evaluator, source = evaluator_for(perceptron.proto, samples, perceptron.proto, loss="distillation")
    assert evaluator.measure(source) == Score(0.0, None)
    dense = {name: array.astype(np.float64) for name, array in evaluator.weights.trained.items()}
    evaluator.weights.trained["w1"] *= 0.5
    gap = logits(dense, samples["x"]) - logits(evaluator.weights.trained, samples["x"])
    assert evaluator.measure(source).loss == pytest.approx((gap**2).mean(), rel=1e-5)


def test_masked_weights_are_among_the_weights(build, samples, rng):
    """Also where they are no parameter of a layer: here a table that is added."""
    proto = build("(float[n,6] x) => (float[n,6] y) { y = Mul(x, table) }", {"table": rng.normal(size=(1, 6))})
    samples["labels"] = rng.integers(0, 6, 40)
    evaluator, _ = evaluator_for(proto, samples, masked=["table"])
    assert evaluator.weights.trained.keys() == {"table"}


def test_validation_data_is_the_last_tenth_where_none_is_given(perceptron, samples, tmp_path):
    np.savez(tmp_path / "data.npz", **samples)
    data, validation, labels = open_data(perceptron.proto, str(tmp_path / "data.npz"), None)
    assert (data.samples, validation.samples) == (36, 4)
    assert (labels.kind, labels.low, labels.high) == ("int", 0, 2)
    batch = next(validation.batches(4))
    np.testing.assert_array_equal(batch.inputs["x"], samples["x"][36:])


def test_labels_of_both_data_count(perceptron, samples, tmp_path):
    np.savez(tmp_path / "train.npz", **samples)
    np.savez(tmp_path / "val.npz", x=samples["x"][:2], labels=np.array([7, -1]))
    _, _, labels = open_data(perceptron.proto, str(tmp_path / "train.npz"), str(tmp_path / "val.npz"))
    assert (labels.low, labels.high) == (-1, 7)


def test_data_that_do_not_fit_each_other(build, samples, tmp_path):
    proto = build("(float[n,m] x) => (float[n,m] y) { y = Relu(x) }", {})
    np.savez(tmp_path / "train.npz", **samples)
    np.savez(tmp_path / "val.npz", x=samples["x"][:, :3], labels=samples["labels"])
    with pytest.raises(DataError, match="validation data has shapes"):
        open_data(proto, str(tmp_path / "train.npz"), str(tmp_path / "val.npz"))
