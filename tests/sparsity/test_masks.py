import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from lwc_compiler.errors import OptionError
from lwc_compiler.recipe.options import PruneOptions
from lwc_compiler.sparsity.allocation import Curve
from lwc_compiler.sparsity.masks import Layer, Structure, choose_masks, erdos_renyi_kernel, parse_structure

STRUCTURES = ["element", "2x1", "4x1", "8x1", "16x1", "32x1", "1:2", "1:4", "2:4", "2:8", "4:8"]


def layer(matrix, shape=None, row_groups=1, norms=None, curve=None):
    matrix = np.asarray(matrix, np.float32)
    norms = None if norms is None else np.asarray(norms, np.float32)
    return Layer(matrix, np.ones(matrix.shape, bool), shape or matrix.shape, row_groups, norms, curve)


def random_layer(rows, columns, seed=0, **more):
    return layer(np.random.default_rng(seed).standard_normal((rows, columns)), **more)


def choose(*layers, **options):
    names = [f"w{index}" for index in range(len(layers))]
    chosen = choose_masks(dict(zip(names, layers, strict=True)), PruneOptions(**options))
    return [chosen[name].mask for name in names]


# Few distinct values make ties; 0 makes weights that are pruned already.
matrices = hnp.arrays(
    np.float32,
    hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=20),
    elements=st.one_of(st.sampled_from([0.0, 0.5, -0.5, 1.0]), st.floats(-4, 4, width=32)),
)
dense_matrices = matrices.map(lambda matrix: np.where(matrix == 0, np.float32(0.25), matrix))


@settings(deadline=None)
@given(st.lists(dense_matrices, min_size=1, max_size=3), st.floats(0, 0.99), st.sampled_from(["element", "2x1", "8x1"]))
def test_every_layer_meets_a_uniform_density_to_within_one_unit(weights, sparsity, structure):
    rows = parse_structure(structure).block_rows
    masks = choose(*map(layer, weights), criterion="uniform", sparsity=sparsity, structure=structure)
    for mask in masks:
        target = (1 - sparsity) * mask.size
        assert mask.any()
        # One unit is always kept, however low the request.
        assert abs(mask.sum() - target) <= max(rows / 2, rows - target) + 1e-6


@settings(deadline=None)
@given(st.lists(dense_matrices, min_size=1, max_size=3), st.floats(0, 0.99), st.sampled_from(["element", "4x1"]))
def test_the_whole_meets_a_global_density_and_no_layer_is_emptied(weights, sparsity, structure):
    rows = parse_structure(structure).block_rows
    masks = choose(*map(layer, weights), criterion="global", sparsity=sparsity, structure=structure)
    target = (1 - sparsity) * sum(mask.size for mask in masks)
    kept = sum(mask.sum() for mask in masks)
    assert abs(kept - target) <= rows / 2 + 1e-6 or all(mask.sum() <= rows for mask in masks)
    assert all(mask.any() for mask in masks)


@settings(deadline=None)
@given(dense_matrices, st.floats(0, 0.99), st.sampled_from(["1:2", "1:4", "2:4", "2:8", "4:8"]), st.booleans())
def test_groups_keep_at_most_n_of_m(matrix, sparsity, structure, everywhere):
    kept, size = map(int, structure.split(":"))
    sparsity = max(sparsity, 1 - kept / size)
    (mask,) = choose(
        layer(matrix), criterion="global" if everywhere else "uniform", sparsity=sparsity, structure=structure
    )
    for start in range(0, matrix.shape[1], size):
        assert mask[:, start : start + size].sum(axis=1).max() <= kept
    assert abs(mask.sum() - (1 - sparsity) * mask.size) <= max(0.5, 1 - (1 - sparsity) * mask.size) + 1e-6


@settings(deadline=None)
@given(matrices, st.floats(0, 0.99), st.sampled_from(STRUCTURES), st.sampled_from([1, 2, 4]))
def test_blocks_are_kept_whole_and_zeros_stay_pruned(matrix, sparsity, structure, row_groups):
    parsed = parse_structure(structure)
    if len(matrix) % row_groups:
        row_groups = 1
    sparsity = max(sparsity, 1 - parsed.highest_density)
    options = {"criterion": "uniform", "sparsity": sparsity, "structure": structure}
    (mask,) = choose(layer(matrix, row_groups=row_groups), **options)
    assert not mask[matrix == 0].any()
    for group, present in zip(np.split(mask, row_groups), np.split(matrix != 0, row_groups), strict=True):
        for start in range(0, len(group), parsed.block_rows):
            block, has = group[start : start + parsed.block_rows], present[start : start + parsed.block_rows]
            if parsed.block_rows > 1:
                assert np.array_equal(block, has & block.any(axis=0))
    again = Layer(np.where(mask, matrix, 0), mask, matrix.shape, row_groups)
    (second,) = choose(again, **options)
    assert np.array_equal(second, mask)
    (more,) = choose(again, criterion="uniform", sparsity=(1 + sparsity) / 2, structure=structure)
    assert not (more & ~mask).any()


@pytest.mark.parametrize("sparsity", [0.0, 0.25, 0.5, 0.9])
def test_uniform_keeps_the_largest_magnitudes(sparsity):
    given_layer = random_layer(30, 40)
    (mask,) = choose(given_layer, criterion="uniform", sparsity=sparsity)
    magnitudes = np.abs(given_layer.matrix)
    threshold = np.sort(magnitudes.ravel())[round(sparsity * mask.size)]
    assert np.array_equal(mask, magnitudes >= threshold)


def test_global_puts_one_threshold_over_all_layers():
    layers = [layer(random_layer(20, 30, seed).matrix * scale) for seed, scale in ((0, 1.0), (1, 0.1), (2, 3.0))]
    masks = choose(*layers, criterion="global", sparsity=0.7)
    pooled = np.concatenate([np.abs(each.matrix).ravel() for each in layers])
    threshold = np.sort(pooled)[round(0.7 * pooled.size)]
    for each, mask in zip(layers, masks, strict=True):
        expected = np.abs(each.matrix) >= threshold
        expected.flat[np.argmax(np.abs(each.matrix))] = True
        assert abs(int(mask.sum()) - int(expected.sum())) <= 1
        assert (mask != expected).sum() <= 1


@pytest.mark.parametrize("quality", [0.25, 1.0, 2.0])
def test_std_prunes_below_quality_times_the_standard_deviation(quality):
    given_layer = random_layer(30, 40)
    (mask,) = choose(given_layer, criterion="std", quality=quality)
    expected = np.abs(given_layer.matrix) >= quality * np.std(given_layer.matrix.astype(np.float64))
    assert np.array_equal(mask, expected)


def test_std_is_that_of_the_weights_left():
    matrix = np.array([[3.0, -3.0, 0.0, 0.0, 0.0, 0.0, 1.0, -1.0]], np.float32)
    # The standard deviation is sqrt(5) over the four weights left and sqrt(2.5) over all eight.
    (mask,) = choose(layer(matrix), criterion="std", quality=0.5)
    assert mask.tolist() == [[True, True, False, False, False, False, False, False]]


def test_std_never_empties_a_layer():
    (mask,) = choose(layer([[1.0, -2.0], [1.5, 0.5]]), criterion="std", quality=100.0)
    assert mask.tolist() == [[False, True], [False, False]]


def test_blocks_are_ranked_by_the_root_mean_square_of_their_weights():
    given_layer = random_layer(10, 16)
    (mask,) = choose(given_layer, criterion="uniform", sparsity=0.5, structure="4x1")
    blocks = [given_layer.matrix[0:4], given_layer.matrix[4:8], given_layer.matrix[8:10]]
    scores = np.stack([np.sqrt(np.mean(np.square(block.astype(np.float64)), axis=0)) for block in blocks])
    kept = np.stack([mask[0], mask[4], mask[8]])
    assert scores[kept].min() >= scores[~kept].max()


def test_blocks_do_not_cross_groups_of_rows():
    matrix = np.array([[1, 9], [1, 9], [9, 1], [9, 1], [9, 1], [1, 9]], np.float32)
    (mask,) = choose(layer(matrix, row_groups=2), criterion="uniform", sparsity=0.5, structure="2x1")
    # Blocks: rows 0-1, row 2 | rows 3-4, row 5.
    assert mask.tolist() == [[False, True], [False, True], [True, False], [True, False], [True, False], [False, True]]


@pytest.mark.parametrize("structure", ["element", "2x1"])
def test_ties_go_to_the_earlier_weights(structure):
    (mask,) = choose(layer(np.full((4, 6), -0.5)), criterion="uniform", sparsity=0.5, structure=structure)
    assert mask.ravel().tolist() == [True] * 12 + [False] * 12


def test_groups_are_channels_at_one_position_of_a_kernel():
    """Each position of a kernel of six has two of four channels, and of the two that are left over."""
    weight = np.random.default_rng(0).standard_normal((8, 6, 2, 3)).astype(np.float32)
    one = Layer(weight.reshape(8, -1), np.ones((8, 36), bool), weight.shape, positions=6)
    (mask,) = choose(one, criterion="uniform", sparsity=1 / 3 + 1 / 6, structure="2:4")
    channels = mask.reshape(8, 6, 6)
    assert channels[:, :4].sum(axis=1).max() == 2
    assert channels[:, 4:].sum(axis=1).max() == 2
    largest = np.sort(np.abs(weight[:, :4]), axis=1)[:, 2:]
    kept = np.abs(weight).reshape(8, 6, 6)[:, :4][channels[:, :4]]
    assert np.isin(kept, largest).all()


def test_ties_in_a_group_go_to_the_earlier_weights():
    (mask,) = choose(layer(np.ones((1, 6))), criterion="uniform", sparsity=0.5, structure="2:4")
    # Two of four and both of the short last group may stay; three of six are asked for.
    assert mask.tolist() == [[True, True, False, False, True, False]]


def test_per_layer_densities():
    masks = choose(
        random_layer(10, 10),
        random_layer(20, 10, 1),
        criterion="per-layer",
        densities={"w0": 0.33, "w1": 0.051},
    )
    assert [int(mask.sum()) for mask in masks] == [33, 10]


def test_erdos_renyi_kernel_follows_its_formula_when_no_layer_is_full():
    shapes = {"a": (64, 32, 3, 3), "b": (128, 64, 3, 3), "c": (100, 512)}
    densities = erdos_renyi_kernel(shapes, 0.05, dict.fromkeys(shapes, 1.0))
    raw = {name: sum(shape) / math.prod(shape) for name, shape in shapes.items()}
    assert densities["a"] / densities["b"] == pytest.approx(raw["a"] / raw["b"])
    assert densities["c"] / densities["b"] == pytest.approx(raw["c"] / raw["b"])
    total = sum(map(math.prod, shapes.values()))
    assert sum(densities[name] * math.prod(shapes[name]) for name in shapes) == pytest.approx(0.05 * total)


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 64), st.integers(1, 64), st.integers(1, 5)), min_size=1, max_size=6),
    st.floats(0.01, 1.0),
)
def test_erdos_renyi_kernel_redistributes_what_full_layers_cannot_take(shapes, density):
    named = {str(index): shape for index, shape in enumerate(shapes)}
    densities = erdos_renyi_kernel(named, density, dict.fromkeys(named, 1.0))
    assert all(0 < value <= 1 for value in densities.values())
    total = sum(map(math.prod, shapes))
    assert sum(densities[name] * math.prod(shape) for name, shape in named.items()) == pytest.approx(density * total)


def test_erdos_renyi_kernel_masks_meet_the_total_within_one_weight_a_layer():
    layers = [
        random_layer(16, 27, shape=(16, 3, 3, 3)),
        random_layer(64, 576, shape=(64, 64, 3, 3)),
        random_layer(10, 64),
    ]
    masks = choose(*layers, criterion="erdos-renyi-kernel", sparsity=0.8)
    assert masks[0].all()  # 25 / 432 is by far the largest of the ratios: the small layer stays full
    total = sum(mask.size for mask in masks)
    assert abs(sum(mask.sum() for mask in masks) - 0.2 * total) <= len(masks)


def test_erdos_renyi_kernel_respects_what_groups_can_keep():
    layers = [random_layer(16, 28, shape=(16, 28)), random_layer(64, 576, shape=(64, 64, 3, 3))]
    small, large = choose(*layers, criterion="erdos-renyi-kernel", sparsity=0.6, structure="2:4")
    assert small.mean() == 0.5
    assert abs(small.sum() + large.sum() - 0.4 * (small.size + large.size)) <= 2


def test_a_layer_with_nothing_left_stays_empty():
    for options in ({"criterion": "global"}, {"criterion": "erdos-renyi-kernel"}, {"criterion": "uniform"}):
        for structure in ("element", "4x1"):
            empty, other = choose(
                layer(np.zeros((4, 4))), random_layer(4, 4), sparsity=0.5, structure=structure, **options
            )
            assert not empty.any()
            assert other.any()


@pytest.mark.parametrize("criterion", ["uniform", "global", "erdos-renyi-kernel"])
def test_sparsity_below_what_the_structure_prunes_is_refused(criterion):
    with pytest.raises(
        OptionError, match=r"'2:4' keeps at most 0\.5 of the weights; ask for a sparsity of at least 0\.5"
    ):
        choose(random_layer(4, 8), criterion=criterion, sparsity=0.4, structure="2:4")


def test_density_of_a_layer_above_what_the_structure_keeps_is_refused():
    with pytest.raises(OptionError, match=r"density of 0\.3 .* for 'w0'"):
        choose(random_layer(4, 8), criterion="per-layer", densities={"w0": 0.3}, structure="1:4")


def test_decimal_sparsity_at_the_structures_own_is_accepted():
    (mask,) = choose(random_layer(4, 8), criterion="uniform", sparsity=0.75, structure="1:4")
    assert mask.sum() == 8


def test_structures_are_parsed():
    assert parse_structure("element") == Structure()
    assert parse_structure("8x1") == Structure(block_rows=8)
    assert parse_structure("32x1") == Structure(block_rows=32)
    assert parse_structure("2:4") == Structure(group_kept=2, group_size=4)


def test_norms_of_the_inputs_multiply_the_magnitudes():
    matrix = [[1, 1, 1, 1], [2, 2, 2, 2], [3, 3, 3, 3], [4, 4, 4, 4]]
    norms = [[9, 0, 1, 1], [1, 1, 5, 1]]
    # Scores, by rows: 9 0 1 1, 18 0 2 2 | 3 3 15 3, 4 4 20 4.
    (mask,) = choose(layer(matrix, row_groups=2, norms=norms), criterion="uniform", sparsity=0.75)
    assert np.argwhere(mask).tolist() == [[0, 0], [1, 0], [2, 2], [3, 2]]
    (mask,) = choose(layer(matrix, row_groups=2, norms=norms), criterion="uniform", sparsity=0.5, structure="2x1")
    assert mask.astype(int).tolist() == [[1, 0, 0, 0], [1, 0, 0, 0], [1, 0, 1, 1]][:2] + [[1, 1, 1, 0]] * 2
    (mask,) = choose(layer(matrix, row_groups=2, norms=norms), criterion="uniform", sparsity=0.75, structure="1:4")
    assert np.argwhere(mask).tolist() == [[0, 0], [1, 0], [2, 2], [3, 2]]


def test_one_threshold_over_all_layers_knows_norms():
    weak, strong = layer(np.full((2, 2), 5), norms=[[1, 1]]), layer([[1, 1], [1, 2]], norms=[[10, 1]])
    assert [mask.astype(int).tolist() for mask in choose(weak, strong, criterion="global", sparsity=0.5)] == [
        [[1, 1], [0, 0]],
        [[1, 0], [1, 0]],
    ]


def test_weights_behind_inputs_that_are_never_active_go_first_but_can_stay():
    given_layer = layer([[9, 1, 1, 1]], norms=[[0, 1, 1, 1]])
    assert choose(given_layer, criterion="uniform", sparsity=0.25)[0].tolist() == [[False, True, True, True]]
    assert choose(given_layer, criterion="uniform", sparsity=0.0)[0].all()


CURVES = (Curve({1.0: 0.0, 0.5: 1.0, 0.1: 3.0}, 800, None), Curve({1.0: 0.0, 0.5: 0.01, 0.1: 0.1}, 800, None))


@pytest.mark.parametrize(
    ("structure", "sparsity"), [("element", 0.3), ("element", 0.6), ("4x1", 0.6), ("2:4", 0.6), ("1:4", 0.8)]
)
def test_sensitivity_meets_the_density_and_spares_the_sensitive_layer(structure, sparsity):
    layers = [random_layer(20, 40, seed, curve=curve) for seed, curve in enumerate(CURVES)]
    masks = choose(*layers, criterion="sensitivity", sparsity=sparsity, structure=structure)
    kept = sum(int(mask.sum()) for mask in masks)
    assert kept == pytest.approx((1 - sparsity) * 1600, abs=2 * parse_structure(structure).block_rows)
    assert masks[0].mean() > 1.5 * masks[1].mean()


def test_sensitivity_gives_what_a_layer_cannot_keep_to_the_others():
    sensitive, robust = (random_layer(20, 40, seed, curve=curve) for seed, curve in enumerate(CURVES))
    sensitive.kept[:, 12:] = False
    masks = choose(sensitive, robust, criterion="sensitivity", sparsity=0.5)
    assert [int(mask.sum()) for mask in masks] == [240, 560]


def test_sensitivity_below_what_was_measured_is_refused():
    with pytest.raises(OptionError, match=r"a budget of 0\.05 \(density\) is out of reach"):
        choose(random_layer(20, 40, curve=CURVES[0]), criterion="sensitivity", sparsity=0.95)
