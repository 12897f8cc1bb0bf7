import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from lwc_compiler.packing.codebook import share_weights


def shared(values, bits):
    codes, codebook = share_weights(values, bits)
    return np.where(values == 0, 0, codebook[codes]) if codebook.size else values


def test_two_clusters_by_hand():
    # Centroids start at -1 and 5; the middle, 2, parts {-1, 0.5} from {3, 4, 5}; means -0.25 and 4 move nothing.
    values = np.array([[3, 0, -1], [0.5, 5, 4]], np.float32)
    codes, codebook = share_weights(values, 1)
    assert codes.dtype == np.uint8 and codes.tolist() == [[1, 0, 0], [0, 1, 1]]
    assert codebook.dtype == np.float32 and codebook.tolist() == [-0.25, 4]


def test_lloyd_goes_on_until_nothing_moves():
    # From 0.5 and 10 the middle is 5.25: {0.5, 1, 2, 5 | 6, 10}; means 2.125 and 8 with middle 5.06 leave it so.
    # With one more 6 the same; with 5.2 instead of 6 it moves to the left cluster of the first round.
    codes, codebook = share_weights(np.array([0.5, 1, 2, 5, 5.2, 10], np.float32), 1)
    assert codes.tolist() == [0, 0, 0, 0, 0, 1]
    assert codebook.tolist() == pytest.approx([2.74, 10])


def test_how_often_a_value_occurs_counts():
    _, codebook = share_weights(np.array([1, 1, 1, 2, 8, 9], np.float32), 1)
    assert codebook.tolist() == [1.25, 8.5]


def test_clusters_without_values_are_left_out():
    values = np.array([0.1, 0.2, 0.3, 0.4, 100], np.float32)
    codes, codebook = share_weights(values, 2)  # centroids start at 0.1, 33.4, 66.7 and 100
    assert codes.tolist() == [0, 0, 0, 0, 1]
    assert codebook.tolist() == [0.25, 100]


def test_few_values_are_the_codebook():
    values = np.array([0, -2, 7, 7, -2, 0, 1e-30, 3], np.float32)
    codes, codebook = share_weights(values, 2)
    assert codebook.tolist() == [-2, np.float32(1e-30), 3, 7]
    assert np.array_equal(shared(values, 2), values)
    assert codes[0] == codes[5] == 0


def test_weights_that_are_all_pruned():
    codes, codebook = share_weights(np.zeros((2, 3), np.float32), 5)
    assert codes.shape == (2, 3) and not codes.any() and codebook.size == 0


def test_256_values_fit_into_codes():
    values = np.random.default_rng(0).standard_normal(5000).astype(np.float32)
    codes, codebook = share_weights(values, 8)
    assert codes.max() == codebook.size - 1 <= 255
    assert np.abs(codebook[codes] - values).max() < (values.max() - values.min()) / 255


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_weights_that_are_no_numbers_are_refused(bad):
    with pytest.raises(ValueError, match="NaN or Inf"):
        share_weights(np.array([1, bad], np.float32), 1)


@settings(deadline=None, max_examples=60)
@given(
    hnp.arrays(np.float32, st.integers(1, 200), elements=st.floats(-100, 100, width=32), fill=st.just(0.0)),
    st.integers(1, 8),
)
def test_every_weight_takes_a_near_value_and_sharing_again_changes_nothing(values, bits):
    codes, codebook = share_weights(values, bits)
    assert codebook.size <= 1 << bits
    assert set(codes[values != 0].tolist()) == set(range(codebook.size))
    assert (np.diff(codebook) >= 0).all()
    result = shared(values, bits)
    assert (result[values == 0] == 0).all()
    # At a fixed point of Lloyd's algorithm no value of the codebook is nearer than the one that a weight takes.
    kept = values[values != 0].astype(np.float64)
    if kept.size:
        distance = np.abs(kept[:, None] - codebook).min(axis=1)
        assert np.abs(result[values != 0] - kept) == pytest.approx(distance, rel=1e-4, abs=1e-4)
    assert np.array_equal(shared(result, bits), result)
