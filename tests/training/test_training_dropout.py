"""Dropout in the training graph: what is dropped, and what stays as it was."""

from pathlib import Path

import numpy as np
import pytest

from lwc_compiler.errors import UnsupportedError
from lwc_compiler.recipe.options import RetrainOptions
from lwc_compiler.training.batching import input_specs
from lwc_compiler.training.data import ArraySource
from lwc_compiler.training.dropout import Dropout, insert_dropout
from lwc_compiler.training.graph import TrainingGraph
from lwc_compiler.training.loop import Job, Trainer
from lwc_compiler.training.session import open_session


def trainer_for(model, samples, dropout, **options):
    source = ArraySource("samples", samples, input_specs(model.proto))
    options = RetrainOptions(threads=1, batch_size=8, **options)
    job = Job(model.proto, model.masks, "samples", None, options, Path("none"), "", dropout=dropout)
    return Trainer(job, source, source.labels), source


@pytest.mark.parametrize("ratio", [0.1, 0.5, 0.8])
def test_share_and_scale_of_a_mask(ratio):
    """The share of 40,000 draws is within four standard deviations."""
    mask = Dropout("m", (400, 100), ratio).mask(np.random.default_rng(1))
    assert mask.dtype == np.float32
    assert set(np.unique(mask)) == {0, np.float32(1 / (1 - ratio))}
    assert (mask == 0).mean() == pytest.approx(ratio, abs=4 * np.sqrt(ratio * (1 - ratio) / 40000))
    assert mask.mean() == pytest.approx(1, abs=4 * np.sqrt(ratio / (1 - ratio) / 40000))


def test_nothing_is_a_mask_of_ones():
    np.testing.assert_array_equal(Dropout("m", (2, 3), 0.5).nothing(), np.ones((2, 3)))


def test_every_reader_sees_the_dropped_values(build, rng):
    text = "(float[4,6] x) => (float[4,6] y) { h = Relu(x) a = Neg(h) b = Tanh(h) c = Add(a, b) y = Mul(c, h) }"
    graph = TrainingGraph(build(text, {}, opset=21), {})
    (dropout,) = insert_dropout(graph, {"h": 0.25})
    assert (dropout.shape, dropout.ratio) == ((4, 6), 0.25)
    x, mask = rng.normal(size=(4, 6)).astype(np.float32), dropout.mask(rng)
    found = open_session(graph.to_proto(["y"]), threads=1).run(None, {"x": x, dropout.input: mask})[0]
    h = np.maximum(x, 0) * mask
    np.testing.assert_allclose(found, (np.tanh(h) - h) * h, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["x", "w", "away"])
def test_a_tensor_that_the_training_graph_does_not_compute(build, rng, name):
    text = "(float[4,6] x) => (float[4,3] y) { away = Identity(x) y = MatMul(away, w) }"
    graph = TrainingGraph(build(text, {"w": rng.normal(size=(6, 3))}, opset=21), {})
    with pytest.raises(UnsupportedError, match=f"dropout after '{name}' is not possible.*name the node"):
        insert_dropout(graph, {name: 0.5})


def test_a_step_is_that_of_the_network_without_what_is_dropped(perceptron, samples):
    """Loss and gradients against a float64 computation with the same mask."""
    trainer, source = trainer_for(perceptron, samples, {"r": 0.5}, optimizer="sgd")
    weights = {name: array.astype(np.float64) for name, array in trainer.weights.trained.items()}
    rng = np.random.default_rng([0, 0, 1])
    mask = (rng.random((8, 8), np.float32) >= 0.5) * 2.0
    batch = next(source.batches(8))

    def loss(weights):
        hidden = np.maximum(batch.inputs["x"].astype(np.float64) @ weights["w0"] + weights["b0"], 0) * mask
        logits = hidden @ weights["w1"] + weights["b1"]
        logits -= np.log(np.exp(logits).sum(axis=1, keepdims=True))
        return -logits[np.arange(8), batch.labels].mean()

    assert trainer.step([batch], 0.1) == pytest.approx(loss(weights), rel=1e-5)
    for name, kept in perceptron.masks.items():
        for index in map(tuple, np.argwhere(kept)[::7]):
            changed = []
            for step in (1e-6, -1e-6):
                moved = weights[name].copy()
                moved[index] += step
                changed.append(loss(weights | {name: moved}))
            slope = (changed[0] - changed[1]) / 2e-6
            expected = weights[name][index] - 0.1 * slope
            assert trainer.weights.trained[name][index] == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_masks_differ_from_step_to_step_and_with_the_seed(perceptron, samples):
    losses = []
    for seed in (0, 0, 1):
        trainer, source = trainer_for(perceptron, samples, {"r": 0.5}, seed=seed)
        batch = next(source.batches(8))
        losses.append([trainer.step([batch], 0.0) for _ in range(3)])
    assert losses[0] == losses[1]
    assert len(set(losses[0])) == 3
    assert set(losses[0]).isdisjoint(losses[2])


def test_measuring_drops_nothing(perceptron, samples):
    with_dropout, source = trainer_for(perceptron, samples, {"r": 0.5})
    without, _ = trainer_for(perceptron, samples, {})
    assert with_dropout.evaluator.measure(source) == without.evaluator.measure(source)
