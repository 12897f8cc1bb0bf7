"""Shared weights: few values a layer, all weights of a value equal to the last bit, and the gradient of their sum."""

from pathlib import Path

import numpy as np
import pytest

from lwc_compiler.errors import OptionError
from lwc_compiler.recipe.options import RetrainOptions
from lwc_compiler.training.batching import input_specs
from lwc_compiler.training.data import ArraySource
from lwc_compiler.training.loop import Job, Trainer
from lwc_compiler.training.sharing import SharedWeights


@pytest.fixture
def layer(build):
    return build("(float[n,2] x) => (float[n,4] y) { y = MatMul(x, w) }", {"w": np.zeros((2, 4))})


def shared(proto, weight, bits=1):
    """The weights after rounding, and what shares them."""
    weights = {"w": np.array(weight, np.float32)}
    options = RetrainOptions(codebook={"fc": bits})
    return weights["w"], SharedWeights(proto, weights, options)


def test_values_are_the_means_of_two_clusters(layer):
    weight, _ = shared(layer, [[1, 2, 3, 10], [11, -1, 12, 0.5]])
    low, high = np.float32(5.5 / 5), np.float32(11)
    np.testing.assert_array_equal(weight, np.array([[low, low, low, high], [high, low, high, low]], np.float32))


def test_the_gradient_of_a_value_is_the_sum_over_its_weights(layer):
    _, sharing = shared(layer, [[1, 2, 3, 10], [11, -1, 12, 0.5]])
    gradients = {"w": np.array([[1, 2, 4, 8], [16, 32, 64, 128]], np.float32), "other": np.ones(3, np.float32)}
    sharing.combine(gradients)
    low, high = 1 + 2 + 4 + 32 + 128, 8 + 16 + 64
    np.testing.assert_array_equal(gradients["w"], [[low, low, low, high], [high, low, high, low]])
    np.testing.assert_array_equal(gradients["other"], 1)


def test_zeros_share_nothing_and_stay_zero(layer):
    weight, sharing = shared(layer, [[1, 2, 0, 10], [11, 0, 12, 0]])
    low = np.float32(1.5)
    np.testing.assert_array_equal(weight, [[low, low, 0, 11], [11, 0, 11, 0]])
    gradients = {"w": np.array([[1, 2, 4, 8], [16, 32, 64, 128]], np.float32)}
    sharing.combine(gradients)
    np.testing.assert_array_equal(gradients["w"], [[3, 3, 0, 88], [88, 0, 88, 0]])


def test_a_layer_of_zeros(layer):
    weight, sharing = shared(layer, np.zeros((2, 4)))
    gradients = {"w": np.ones((2, 4), np.float32)}
    sharing.combine(gradients)
    assert not weight.any()
    assert not gradients["w"].any()


def test_layers_of_the_other_kind_keep_their_weights(layer):
    weights = {"w": np.arange(8, dtype=np.float32).reshape(2, 4)}
    sharing = SharedWeights(layer, weights, RetrainOptions(codebook={"conv": 1}))
    gradients = {"w": np.arange(8, dtype=np.float32).reshape(2, 4)}
    sharing.combine(gradients)
    for array in (weights["w"], gradients["w"]):
        np.testing.assert_array_equal(array, np.arange(8).reshape(2, 4))


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_weights_of_one_value_stay_equal_to_the_last_bit(perceptron, samples, optimizer):
    source = ArraySource("samples", samples, input_specs(perceptron.proto))
    options = RetrainOptions(
        threads=1, batch_size=8, optimizer=optimizer, codebook={"fc": 3}, weight_decay=0.01, clip_norm=1.0
    )
    job = Job(perceptron.proto, perceptron.masks, "samples", None, options, Path("none"), "")
    trainer = Trainer(job, source, source.labels)
    before = {name: trainer.weights.trained[name].copy() for name in perceptron.masks}
    for batch in source.batches(8):
        trainer.step([batch], 0.05)
        for name, mask in perceptron.masks.items():
            weight = trainer.weights.trained[name]
            assert not weight[~mask].any()
            for value in np.unique(before[name][mask]):
                assert len(set(weight[mask & (before[name] == value)].tolist())) == 1
    for name, mask in perceptron.masks.items():
        assert 4 < len(np.unique(before[name][mask])) <= 8
        assert (trainer.weights.trained[name] != before[name])[mask].all()


@pytest.mark.parametrize("grow", ["shadow", "gradient"])
def test_masks_that_change_are_refused(grow):
    with pytest.raises(OptionError, match="leave out 'codebook' or 'grow'"):
        RetrainOptions(grow=grow, codebook={"fc": 3})
