import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lwc_compiler.errors import OptionError
from lwc_compiler.recipe.options import PruneOptions
from lwc_compiler.sparsity import allocation
from lwc_compiler.sparsity.allocation import Budget, Curve, allocate, quality_factors
from lwc_compiler.sparsity.formats import RelativeIndex
from lwc_compiler.sparsity.masks import Layer, choose_masks

GRID = (1.0, 0.5, 0.2, 0.1, 0.05)


def curve(*losses, size=1000, flops=2000):
    return Curve(dict(zip(GRID, losses, strict=False)), size, flops)


def total_cost(curves, kind, densities):
    return sum(float(curves[name].cost(kind, np.array([d]))[0]) for name, d in densities.items())


def total_loss(curves, densities):
    return sum(float(curves[name].loss(np.array([d]))[0]) for name, d in densities.items())


# A robust layer, a steep one, and one that is ruined early and then stays level: no hull describes the last.
CURVES = {
    "robust": curve(0.0, 0.01, 0.05, 0.2, 0.9, size=5000, flops=10000),
    "steep": curve(0.0, 0.4, 1.5, 2.2, 2.3, size=800, flops=90000),
    "ruined": curve(0.0, 0.9, 1.0, 1.0, 1.1, size=3000, flops=6000),
}


def test_loss_is_straight_over_the_logarithm_of_the_density_and_never_falls():
    measured = Curve({1.0: 0.0, 0.01: 2.0, 0.1: 1.0, 0.001: 1.5}, 10, None)
    np.testing.assert_allclose(
        measured.loss(np.array([1.0, 10**-0.5, 0.1, 10**-1.25, 0.01, 0.001, 1e-9])), [0, 0.5, 1, 1.25, 2, 2, 2]
    )


@pytest.mark.parametrize("density", [0.9, 0.3, 0.08, 0.01, 0.003])
def test_bytes_are_those_of_the_packed_format(density):
    size = 1_000_000
    matrix = np.zeros((1000, 1000), np.float32)
    matrix.flat[np.random.default_rng(0).choice(size, round(density * size), replace=False)] = 1
    estimate = Curve({}, size, None).cost("bytes", np.array([density]))[0]
    # The number of fillers is random: three standard deviations of a Poisson number of entries.
    packed = min(4 * size, *(RelativeIndex(bits).pack(matrix).nbytes for bits in range(1, 17)))
    assert estimate == pytest.approx(packed, rel=3 / np.sqrt(density * size))


def test_a_layer_that_is_not_pruned_is_stored_densely():
    assert Curve({}, 1000, None).cost("bytes", np.array([1.0, 0.0])).tolist() == [4000, 0]


def test_the_budget_goes_where_it_saves_most():
    curves = {"sensitive": curve(0.0, 1.0, 3.0, 5.0), "robust": curve(0.0, 0.001, 0.002, 0.003)}
    # 0.55 of 2000 weights: all 1000 of one, and a tenth, the least measured, of the other.
    assert allocate(curves, Budget("density", 0.55)) == pytest.approx({"sensitive": 1.0, "robust": 0.1}, rel=1e-3)


def test_flops_count_more_than_weights_where_they_are_many():
    curves = {"few": curve(0.0, 0.1, 0.2, 0.3, flops=100), "many": curve(0.0, 0.1, 0.2, 0.3, flops=9900)}
    found = allocate(curves, Budget("flops", 0.3))
    assert found["few"] == 1.0
    assert found["many"] == pytest.approx((0.3 * 10000 - 100) / 9900, rel=1e-3)


@pytest.mark.parametrize(
    "budget",
    [
        *(Budget("density", limit) for limit in (0.9, 0.5, 0.3, 0.12, 0.06)),
        *(Budget("flops", limit) for limit in (0.8, 0.4, 0.1)),
        *(Budget("bytes", limit) for limit in (9000, 3000)),
    ],
)
def test_no_combination_of_the_densities_considered_is_better(budget):
    found = allocate(CURVES, budget)
    choices = [allocation._choices(each, 1.0) for each in CURVES.values()]
    costs = np.array([*itertools.product(*(c.cost(budget.kind, d) for c, d in zip(CURVES.values(), choices)))])  # noqa: B905
    losses = np.array([*itertools.product(*(c.loss(d) for c, d in zip(CURVES.values(), choices)))])  # noqa: B905
    whole = sum(c.cost(budget.kind, np.ones(1))[0] for c in CURVES.values())
    allowed = budget.limit if budget.kind == "bytes" else budget.limit * whole
    best = losses.sum(axis=1)[costs.sum(axis=1) <= allowed].min()
    # Rounding costs up to a bucket can pass over the very best; what is left over is then spent again.
    assert total_loss(CURVES, found) <= best * 1.002
    assert allowed * 0.995 <= total_cost(CURVES, budget.kind, found) <= allowed * (1 + 1e-9)


losses = st.lists(st.floats(0, 5), min_size=5, max_size=5)
layers = st.tuples(losses, st.integers(10, 100_000), st.integers(1, 10**9))


@settings(deadline=None, max_examples=50)
@given(st.lists(layers, min_size=1, max_size=6), st.floats(0.051, 1.0), st.sampled_from(["density", "flops"]))
def test_a_budget_is_met_between_the_measured_densities(given_layers, limit, kind):
    curves = {str(i): curve(*values, size=size, flops=flops) for i, (values, size, flops) in enumerate(given_layers)}
    found = allocate(curves, Budget(kind, limit))
    assert all(0.05 <= density <= 1 for density in found.values())
    whole = sum(c.cost(kind, np.ones(1))[0] for c in curves.values())
    assert total_cost(curves, kind, found) == pytest.approx(limit * whole, rel=0.005)
    assert total_cost(curves, kind, found) <= limit * whole * (1 + 1e-9)


def test_no_density_is_above_its_limit():
    found = allocate(CURVES, Budget("density", 0.5), {"robust": 0.45, "steep": 0.3, "ruined": 0.7})
    assert found["robust"] <= 0.45
    assert found["steep"] <= 0.3
    assert total_cost(CURVES, "density", found) == pytest.approx(0.5 * 8800, rel=1e-6)
    assert allocate(CURVES, Budget("density", 0.9), dict.fromkeys(CURVES, 0.4)) == dict.fromkeys(CURVES, 0.4)


def test_a_layer_without_weights_stays_as_it_is():
    found = allocate(CURVES, Budget("density", 0.2), {"steep": 0.0})
    assert found["steep"] == 0
    assert total_cost(CURVES, "density", found) == pytest.approx(0.2 * 8800, rel=1e-6)


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        (Budget("density", 0.04), r"a budget of 0\.04 \(density\) is out of reach: .* 0\.05 is left"),
        (Budget("bytes", 100), r"a budget of 100 \(bytes\) is out of reach: .* bytes is left"),
    ],
)
def test_a_budget_below_the_lowest_densities_is_refused(budget, message):
    with pytest.raises(OptionError, match=message):
        allocate(CURVES, budget)


def test_flops_that_are_not_known_are_refused():
    with pytest.raises(OptionError, match="the FLOPs of 'a' are not known"):
        allocate({"a": curve(0.0, 1.0, flops=None)}, Budget("flops", 0.8))


def test_quality_factor_by_hand():
    weights = np.array([[-1.0, 2.0, 0.0], [-3.0, 4.0, 0.0]], np.float32)
    # Standard deviation of -1, 2, -3, 4: sqrt(7.5 - 0.25).
    deviation = np.sqrt(7.25)
    assert quality_factors({"w": weights}, {"w": 2 / 6})["w"] == pytest.approx(2.5 / deviation)
    assert quality_factors({"w": weights}, {"w": 4 / 6}) == {"w": 0.0}


@pytest.mark.parametrize("density", [0.9, 0.31, 0.05])
def test_a_quality_factor_gives_its_density(density):
    matrix = np.random.default_rng(0).standard_normal((40, 50)).astype(np.float32)
    quality = quality_factors({"w": matrix}, {"w": density})["w"]
    layer = Layer(matrix, np.ones(matrix.shape, bool), matrix.shape)
    assert choose_masks({"w": layer}, PruneOptions(criterion="std", quality=quality))["w"].mask.mean() == density


@pytest.mark.parametrize(
    ("text", "kind", "limit"), [("density=0.1", "density", 0.1), ("flops=1", "flops", 1.0), ("bytes=2e5", "bytes", 2e5)]
)
def test_budgets_are_read(text, kind, limit):
    assert Budget.parse(text) == Budget(kind, limit)


@pytest.mark.parametrize("text", ["0.1", "density=", "density=0", "density=1.5", "bytes=-1", "bytes=inf", "weights=3"])
def test_what_is_no_budget_is_refused(text):
    with pytest.raises(OptionError, match="is no budget: give density=D"):
        Budget.parse(text)
