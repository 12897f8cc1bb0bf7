"""The networks have the layers, weights and FLOPs of the paper's tables."""

import numpy as np
import pytest
from onnx import numpy_helper

from lwc_compiler.report.table import layer_report
from lwc_compiler.reproduce.networks import BUILDERS, he_normal, lenet_5, lenet_300_100
from lwc_compiler.reproduce.paper import NETWORKS
from lwc_compiler.runtime.reference import reference_session

# By hand: 784*300 + 300*100 + 100*10; 20*25 + 50*20*25 + 800*500 + 500*10; and so on from the architectures.
WEIGHTS = {
    "lenet-300-100": 266_200,
    "lenet-5": 430_500,
    "alexnet": 60_954_656,
    "vgg-16": 138_344_128,
}


def allocated(shape):
    """Zeros that are never touched: weights of any size cost nothing where only their shape matters."""
    return np.zeros(shape, np.float32)


@pytest.mark.parametrize("network", ["lenet-300-100", "lenet-5", "alexnet"])
def test_layers_weights_and_flops_are_the_papers(network):
    printed = NETWORKS[network]
    report = layer_report(BUILDERS[network](allocated))
    assert [row.node for row in report.layers] == [row.layer for row in printed.layers]
    assert report.total.weights == WEIGHTS[network]
    for row, figures in zip(report.layers, printed.layers, strict=True):
        # The paper rounds some figures and truncates others: one in the last digit.
        for ours, figure in ((row.weights, figures.weights), (row.flops, figures.flops)):
            assert abs(figure.printed(ours) - figure.value) <= 1.001 * figure.step, (row.node, figure)


def test_vgg_16_has_the_papers_weights():
    shapes = []

    def record(shape):
        shapes.append(shape)
        return np.zeros((1,) * len(shape), np.float32)

    BUILDERS["vgg-16"](record)
    counts = [int(np.prod(shape)) for shape in shapes]
    assert sum(counts) == WEIGHTS["vgg-16"]
    assert len(counts) == len(NETWORKS["vgg-16"].layers)
    for count, row in zip(counts, NETWORKS["vgg-16"].layers, strict=True):
        assert abs(row.weights.printed(count) - row.weights.value) <= 1.001 * row.weights.step, row


def test_weights_depend_on_the_seed_alone():
    first, again, other = (lenet_5(he_normal(seed)) for seed in (3, 3, 4))
    assert first.proto == again.proto
    assert first.proto != other.proto


def test_weights_have_the_variance_that_keeps_activations_alive():
    weights = {tensor.name: tensor for tensor in lenet_300_100(he_normal(0)).proto.graph.initializer}
    first = numpy_helper.to_array(weights["fc1.weight"])
    assert first.dtype == np.float32
    assert first.var() == pytest.approx(2 / 784, rel=0.02)  # 235,200 draws: a standard deviation of 0.3 %
    assert not numpy_helper.to_array(weights["fc1.bias"]).any()


@pytest.mark.parametrize(("network", "shape"), [("lenet-300-100", (784,)), ("lenet-5", (1, 28, 28))])
def test_networks_run_on_any_batch(network, shape):
    session = reference_session(BUILDERS[network](he_normal(0)).proto, threads=1)
    (scores,) = session.run(["scores"], {"pixels": np.ones((3, *shape), np.float32)})
    assert scores.shape == (3, 10)
    assert np.isfinite(scores).all()
    assert scores[0].std() > 0.1
