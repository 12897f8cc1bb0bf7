"""The transcription is consistent in itself: totals are sums, and FLOP% follows from Weights% and Act%."""

import pytest

from lwc_compiler.reproduce.paper import NETWORKS, Figure


@pytest.mark.parametrize(
    ("text", "value", "unit", "step"),
    [("25K", 25e3, 1e3, 1e3), ("0.5K", 500, 1e3, 100), ("30.9B", 30.9e9, 1e9, 1e8), ("7.5", 7.5, 1, 0.1)],
)
def test_figures_are_numbers(text, value, unit, step):
    figure = Figure(text)
    assert (figure.value, figure.unit, figure.step) == (pytest.approx(value), unit, pytest.approx(step))


@pytest.mark.parametrize(
    ("like", "value", "text"),
    [
        ("431K", 430_500, "431K"),
        ("0.5K", 500, "0.5K"),
        ("0.5K", 549, "0.5K"),
        ("0.5K", 551, "0.6K"),
        ("1.5B", 1.449e9, "1.4B"),
        ("3200K", 3_200_000, "3200K"),
        ("8", 8.49, "8"),
        ("1.64", 1.6, "1.60"),
    ],
)
def test_other_numbers_are_printed_like_them(like, value, text):
    assert Figure(like).like(value) == text


@pytest.mark.parametrize("network", NETWORKS)
def test_totals_are_sums(network):
    table = NETWORKS[network]
    assert table.total.layer == "total"
    for total, parts in (
        (table.total.weights, [row.weights for row in table.layers]),
        (table.total.flops, [row.flops for row in table.layers]),
    ):
        rounding = sum(part.step for part in parts) / 2 + total.step
        assert sum(part.value for part in parts) == pytest.approx(total.value, abs=rounding)


@pytest.mark.parametrize("network", NETWORKS)
def test_flops_left_are_weights_left_times_activations_before(network):
    before = 100.0
    for row in NETWORKS[network].layers:
        assert row.flops_kept.value == pytest.approx(row.kept.value * before / 100, abs=1.01), row.layer
        before = row.activations.value


@pytest.mark.parametrize("network", NETWORKS)
def test_rates_follow_from_parameters(network):
    table = NETWORKS[network]
    assert table.parameters.value / table.pruned_parameters.value == pytest.approx(table.rate.value, rel=0.05)
    assert table.pruned_error.value < table.error.value
