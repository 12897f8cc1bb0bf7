"""Weights% and FLOP% of the paper come out when its densities and activations go in."""

import json
from dataclasses import replace

import numpy as np
import pytest

import lwc_compiler as lwc
from lwc_compiler.report.table import layer_report
from lwc_compiler.reproduce.imagenet import at_paper_densities, paper_activations, reproduce_untrained, summary
from lwc_compiler.reproduce.networks import BUILDERS, he_normal
from lwc_compiler.reproduce.paper import NETWORKS
from lwc_compiler.reproduce.tables import layers_of
from tests.reproduce.test_networks import allocated


def assert_as_printed(network, layers):
    """Every figure is the paper's, or one off in its last digit."""
    printed = NETWORKS[network]
    for ours, row in zip(layers, (*printed.layers, printed.total), strict=True):
        for value, figure in (
            (ours.weights, row.weights),
            (ours.flops, row.flops),
            (100 * ours.activations, row.activations),
            (100 * ours.kept, row.kept),
            (100 * ours.flops_kept, row.flops_kept),
        ):
            assert abs(figure.printed(value) - figure.value) <= 1.001 * figure.step, (ours, figure)


@pytest.mark.parametrize("network", ["lenet-300-100", "lenet-5"])
def test_random_weights_at_the_papers_densities_give_its_table(network):
    model = at_paper_densities(network, BUILDERS[network](he_normal(0)))
    layers = layers_of(layer_report(model, paper_activations(network, model)))
    assert_as_printed(network, layers)
    for layer, row in zip(layers[:-1], NETWORKS[network].layers, strict=True):
        assert round(layer.kept * layer.weights) == round(row.kept.value / 100 * layer.weights)


def test_alexnet_at_the_papers_densities_gives_its_table():
    # Weights that are only allocated, and counts in place of masks: 61 million random numbers take seconds.
    model = BUILDERS["alexnet"](allocated)
    report = layer_report(model, paper_activations("alexnet", model))
    densities = NETWORKS["alexnet"].densities
    rows = tuple(replace(row, kept=round(densities[row.node] * row.weights)) for row in report.layers)
    assert_as_printed("alexnet", layers_of(replace(report, layers=rows)))


def test_the_whole_path_on_a_network_that_is_small(tmp_path):
    shape = reproduce_untrained("lenet-300-100", tmp_path)
    assert_as_printed("lenet-300-100", shape.layers)
    assert shape.dense_bytes == 4 * 266_200
    assert shape.packed_bytes == (tmp_path / "lenet-300-100.lwcp").stat().st_size < shape.dense_bytes / 8
    # A tenth of the weights: gaps of about 12, which take about 5 bits each.
    assert 0.10 < shape.index_overhead < 0.20
    assert shape.library_bytes < shape.dense_bytes
    assert shape.deviation < 1e-5
    with lwc.load(tmp_path / "lenet-300-100.lwc") as session:
        assert session.run({"pixels": np.ones((1, 784), np.float32)})["scores"].shape == (1, 10)
    table_1, layers, sizes = summary(shape).tables
    assert table_1.rows[-1] == ("lwc, pruned", "not measured", "22K", "12.2x")
    assert layers.rows[0][:5] == ("fc1", "235K", "235K", "470K", "470K")
    assert "Accuracy was not measured" in layers.note
    assert sizes.rows[0] == ("dense weights", "1,064,800", "1.0x")
    assert json.loads((tmp_path / "results.json").read_text())["packed_bytes"] == shape.packed_bytes
    assert "ImageNet is not at hand" in (tmp_path / "report.md").read_text()
