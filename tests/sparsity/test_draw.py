"""Random weights have the density and the structure that were asked for."""

import numpy as np
import pytest

from lwc_compiler.sparsity.draw import random_weights


@pytest.mark.parametrize("density", [0.05, 0.1, 0.25])
@pytest.mark.parametrize("structure", ["element", "2x1", "4x1", "8x1", "16x1", "32x1", "1:2", "2:4", "2:8"])
def test_density(structure: str, density: float) -> None:
    weights = random_weights((256, 400), density, structure)
    assert weights.shape == (256, 400)
    assert weights.dtype == np.float32
    # Six standard deviations of as many independent draws as there are blocks.
    height = int(structure.removesuffix("x1")) if "x" in structure else 1
    deviation = np.sqrt(density * (1 - density) / (weights.size / height))
    assert np.mean(weights != 0) == pytest.approx(density, abs=6 * deviation)


def test_blocks_are_kept_whole_and_the_last_may_be_lower() -> None:
    kept = random_weights((10, 300), 0.3, "4x1") != 0
    for rows in (kept[:4], kept[4:8], kept[8:]):
        assert (rows == rows[0]).all()
    assert not (kept[3] == kept[4]).all()


def test_groups_keep_no_more_than_they_may() -> None:
    kept = random_weights((50, 42), 0.5, "2:4") != 0
    assert kept[:, :40].reshape(50, 10, 4).sum(axis=2).max() == 2
    assert kept[:, 40:].sum(axis=1).max() <= 2


def test_groups_are_channels_at_one_position_of_a_kernel() -> None:
    kept = random_weights((50, 6 * 9), 0.5, "2:4", positions=9).reshape(50, 6, 9) != 0
    assert kept[:, :4].sum(axis=1).max() == 2
    assert kept[:, 4:].sum(axis=1).max() == 2


def test_the_seed_decides() -> None:
    first, same, other = (random_weights((8, 8), 0.5, "element", seed) for seed in (1, 1, 2))
    assert (first == same).all()
    assert not (first == other).all()
