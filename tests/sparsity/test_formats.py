from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from lwc_compiler.errors import ArtifactError
from lwc_compiler.recipe.options import PruneOptions
from lwc_compiler.sparsity.formats import BlockCsr, Dense, NofM, Packed, RelativeIndex, gaps_between, places_after
from lwc_compiler.sparsity.masks import Layer, choose_masks

GENERAL = [
    Dense(),
    BlockCsr(),
    BlockCsr(2),
    BlockCsr(4),
    BlockCsr(8),
    RelativeIndex(1),
    RelativeIndex(5),
    RelativeIndex(8),
]
GROUPED = [NofM(1, 2), NofM(1, 4), NofM(2, 4), NofM(2, 8), NofM(4, 8), NofM(2, 5)]


def names(formats):
    return [each.name for each in formats]


matrices = hnp.arrays(
    np.float32,
    hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=40),
    elements=st.one_of(st.just(0.0), st.floats(width=32, allow_nan=False)),
    fill=st.just(0.0),
)


def random_matrix(rows, columns, density, seed=0):
    rng = np.random.default_rng(seed)
    kept = rng.random((rows, columns)) < density
    return np.where(kept, rng.standard_normal((rows, columns)), 0).astype(np.float32)


def group_matrix(rows, columns, kept, size, seed=0):
    """A random matrix with at most `kept` of `size` values."""
    matrix = random_matrix(rows, columns, 1.0, seed)
    for start in range(0, columns, size):
        part = matrix[:, start : start + size]
        part[np.argsort(np.abs(part), axis=1).argsort(axis=1) < part.shape[1] - kept] = 0
    return matrix


@pytest.mark.parametrize("layout", GENERAL, ids=names(GENERAL))
@settings(deadline=None, max_examples=60)
@given(matrix=matrices)
def test_round_trip(layout, matrix):
    packed = layout.pack(matrix)
    packed.validate()
    unpacked = packed.unpack()
    assert unpacked.dtype == np.float32
    np.testing.assert_array_equal(unpacked, matrix)


@pytest.mark.parametrize("layout", GROUPED, ids=names(GROUPED))
@settings(deadline=None, max_examples=40)
@given(rows=st.integers(1, 12), columns=st.integers(1, 40), extra=st.floats(0, 1), seed=st.integers(0, 99))
def test_round_trip_of_groups(layout, rows, columns, extra, seed):
    matrix = group_matrix(rows, columns, layout.kept, layout.size, seed)
    matrix *= random_matrix(rows, columns, extra, seed + 1) != 0
    np.testing.assert_array_equal(layout.pack(matrix).unpack(), matrix)


@pytest.mark.parametrize("layout", GENERAL, ids=names(GENERAL))
@pytest.mark.parametrize("density", [0.0, 0.02, 1.0])
@pytest.mark.parametrize("shape", [(1, 1), (1, 300), (300, 1), (7, 33), (8, 32)])
def test_round_trip_at_the_edges(layout, density, shape):
    matrix = random_matrix(*shape, density)
    np.testing.assert_array_equal(layout.pack(matrix).unpack(), matrix)


@pytest.mark.parametrize("structure", ["2x1", "4x1", "8x1"])
def test_blocks_of_a_pruned_matrix_hold_its_kept_weights_only(structure):
    matrix = random_matrix(16, 50, 1.0)
    options = PruneOptions(sparsity=0.75, structure=structure)
    mask = choose_masks({"w": Layer(matrix, np.ones(matrix.shape, bool), matrix.shape)}, options)["w"].mask
    packed = BlockCsr(int(structure[0])).pack(np.where(mask, matrix, 0))
    assert packed.arrays["values"].size == mask.sum() == 200


def test_csr_layout():
    packed = BlockCsr().pack(np.array([[0, 1, 0, 2], [0, 0, 0, 0], [3, 0, 0, 0]], np.float32))
    assert packed.arrays["values"].tolist() == [[1], [2], [3]]
    assert packed.arrays["columns"].tolist() == [1, 3, 0]
    assert packed.arrays["starts"].tolist() == [0, 2, 2, 3]
    assert packed.nbytes == 3 * 4 + 3 * 2 + 4 * 4


def test_block_layout_fills_up_the_last_block():
    packed = BlockCsr(2).pack(np.array([[0, 1, 0], [0, 2, 3], [4, 0, 0]], np.float32))
    assert packed.arrays["values"].tolist() == [[1, 2], [0, 3], [4, 0]]
    assert packed.arrays["columns"].tolist() == [1, 2, 0]
    assert packed.arrays["starts"].tolist() == [0, 2, 3]


def test_n_of_m_layout():
    packed = NofM(2, 4).pack(np.array([[0, 5, 0, 6, 0, 0, 7, 0]], np.float32))
    assert packed.arrays["values"].tolist() == [[[5, 6], [0, 7]]]
    # Positions 1, 3 | 0, 2, two bits each from the least significant bit up: 1 + 3*4 + 0*16 + 2*64.
    assert packed.arrays["positions"].tolist() == [141]
    assert packed.nbytes == 4 * 4 + 1


def test_relative_index_layout_with_fillers():
    matrix = np.zeros((2, 20), np.float32)
    matrix[0, 1], matrix[0, 10], matrix[1, 9] = 1, 2, 3
    packed = RelativeIndex(3).pack(matrix)
    # Gaps: 1, then 8 zeros = filler (7) + 1, then 18 zeros = two fillers + 4.
    assert packed.arrays["values"].tolist() == [1, 2, 3]
    gaps = np.unpackbits(packed.arrays["gaps"], count=18, bitorder="little").reshape(6, 3) @ [1, 2, 4]
    assert gaps.tolist() == [1, 7, 1, 7, 7, 4]
    assert packed.nbytes == 3 * 4 + 3


def test_a_gap_as_long_as_a_filler_is_a_filler_and_nothing():
    assert gaps_between(np.array([0, 4, 8]), 2).tolist() == [0, 3, 0, 3, 0]
    assert places_after(np.array([0, 3, 0, 3, 0]), 2).tolist() == [0, 4, 8]


def test_gaps_of_one_bit_are_a_bitmap():
    assert gaps_between(np.array([1, 2, 5]), 1).tolist() == [1, 0, 0, 1, 1, 0]


@pytest.mark.parametrize(("columns", "dtype"), [(65536, "uint16"), (65537, "uint32")])
def test_columns_take_the_narrowest_type_that_holds_them(columns, dtype):
    matrix = np.zeros((1, columns), np.float32)
    matrix[0, -1] = 1
    packed = BlockCsr().pack(matrix)
    assert packed.arrays["columns"].dtype == dtype
    assert np.array_equal(packed.unpack(), matrix)


def test_bit_streams_longer_than_one_part():
    matrix = random_matrix(700, 1000, 0.9)
    for bits in (3, 5, 8):
        np.testing.assert_array_equal(RelativeIndex(bits).pack(matrix).unpack(), matrix)


def test_size_against_the_papers_overhead():
    # Five-bit gaps cost 5 / 32 of the values they index, the 15.6 % that the paper states, and so does each filler: a
    # gap is 31 or more with probability 0.91^31, again and again.
    packed = RelativeIndex(5).pack(random_matrix(300, 784, 0.09))
    fillers = 0.91**31 / (1 - 0.91**31)
    assert packed.arrays["gaps"].nbytes / packed.arrays["values"].nbytes == pytest.approx(
        0.15625 * (1 + fillers), rel=0.01
    )
    matrix = packed.unpack()
    assert packed.nbytes < BlockCsr().pack(matrix).nbytes < Dense().pack(matrix).nbytes


def test_matrix_without_the_structure_is_refused():
    with pytest.raises(ValueError, match="more than 2 values in a group of 4 columns"):
        NofM(2, 4).pack(np.ones((1, 4), np.float32))


def test_packing_does_not_alias_its_input():
    for layout in [*GENERAL, NofM(4, 8)]:
        matrix = group_matrix(8, 8, 4, 8)
        packed = layout.pack(matrix)
        before = matrix.copy()
        matrix[:] = 9
        assert np.array_equal(packed.unpack(), before), layout.name
        packed.unpack()[:] = 7
        assert np.array_equal(packed.unpack(), before), layout.name


def damaged(packed, name, change):
    array = packed.arrays[name].copy()
    changed = change(array)
    return replace(packed, arrays={**packed.arrays, name: array if changed is None else changed})


def put(index, value):
    def change(array):
        array[index] = value

    return change


@pytest.mark.parametrize(
    ("layout", "name", "change", "message"),
    [
        (Dense(), "values", lambda array: array[:2], r"'values' has shape \(2, 8\), not \(5, 8\)"),
        (Dense(), "values", lambda array: array.astype(np.float64), "arrays are .*float64"),
        (BlockCsr(), "columns", put(0, 8), "a column number is not below 8"),
        (BlockCsr(), "columns", lambda array: array[::-1].copy(), "columns of a row do not ascend"),
        (BlockCsr(), "columns", lambda array: array.astype(np.uint32), "arrays are .*uint32"),
        (BlockCsr(), "starts", put(0, 1), "starts do not rise"),
        (BlockCsr(), "starts", put(-1, 9999), "starts do not rise"),
        (BlockCsr(), "starts", put(2, 0), "starts do not rise"),
        (BlockCsr(), "starts", lambda array: array[1:], "'starts' has shape"),
        (BlockCsr(), "values", lambda array: array[1:], "'values' has shape"),
        (BlockCsr(2), "values", put((-1, 1), 3), "values beyond the last row"),
        (NofM(2, 4), "values", lambda array: array[:, :1], "'values' has shape"),
        (NofM(2, 4), "positions", lambda array: array[1:], "'positions' has shape"),
        (NofM(2, 4), "positions", put(0, 0), "positions in a group do not ascend"),
        (RelativeIndex(5), "gaps", put(slice(None), 0b11011110), "beyond the last weight"),
        (RelativeIndex(5), "gaps", put(slice(None), 255), "gaps for 0 of the 20 values"),
        (RelativeIndex(5), "gaps", lambda array: array[1:], "gaps for 19 of the 20 values"),
    ],
)
def test_damaged_arrays_are_refused(layout, name, change, message):
    packed = damaged(layout.pack(group_matrix(5, 8, 2, 4)), name, change)
    with pytest.raises(ArtifactError, match=f"packed weights are damaged: .*{message}"):
        packed.unpack()


def test_missing_array_is_refused():
    with pytest.raises(ArtifactError, match="arrays are"):
        Packed(BlockCsr(), (1, 1), {}).validate()


def test_positions_past_a_group_and_values_past_the_last_column_are_refused():
    packed = NofM(2, 5).pack(group_matrix(1, 4, 2, 5))
    with pytest.raises(ArtifactError, match="a position is not below 5"):
        damaged(packed, "positions", put(0, 0b111_000)).unpack()
    beyond = damaged(packed, "positions", put(0, 0b100_000))  # positions 0 and 4; the columns are 0 to 3
    with pytest.raises(ArtifactError, match="values beyond the last column"):
        beyond.unpack()
