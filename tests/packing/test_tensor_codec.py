import math
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from lwc_compiler.errors import ArtifactError
from lwc_compiler.packing.reader import Reader, varint
from lwc_compiler.packing.tensor_codec import decode_tensor, encode_tensor

# AlexNet: kept weights of table 4 of Han et al. 2015.
ALEXNET = {
    "conv1": ((96, 3 * 11 * 11), 0.84),
    "conv2": ((256, 48 * 5 * 5), 0.38),
    "conv3": ((384, 256 * 3 * 3), 0.35),
    "conv4": ((384, 192 * 3 * 3), 0.37),
    "conv5": ((256, 192 * 3 * 3), 0.37),
    "fc1": ((4096, 9216), 0.09),
    "fc2": ((4096, 4096), 0.09),
    "fc3": ((1000, 4096), 0.25),
}

# -0.0, NaNs with payloads (quiet, signalling, negative), Inf, denormals.
SPECIAL = (0x80000000, 0x7FC00001, 0x7F800001, 0xFFFFFFFF, 0x7F800000, 0xFF800000, 0x00000001, 0x807FFFFF)


def bits_of(values):
    return np.asarray(values, np.float32).view("<u4")


def sparse(count, density, seed=0):
    random = np.random.default_rng(seed)
    return np.where(random.random(count) < density, random.standard_normal(count, np.float32), np.float32(0))


def round_trip(elements, huffman=True):
    encoded, _ = encode_tensor(elements, huffman)
    reader = Reader(encoded)
    decoded, coding = decode_tensor(reader, elements.size, elements.itemsize)
    assert reader.left == 0
    assert decoded.dtype == elements.dtype
    np.testing.assert_array_equal(decoded, elements)
    return len(encoded), coding


@settings(deadline=None, max_examples=150)
@given(
    hnp.arrays(
        "<u4",
        st.integers(1, 300),
        elements=st.one_of(st.just(0), st.sampled_from(SPECIAL), st.integers(0, 2**32 - 1)),
        fill=st.sampled_from((0, *SPECIAL)),
    ),
    st.booleans(),
)
def test_every_float_comes_back_bit_for_bit(elements, huffman):
    round_trip(elements, huffman)


@settings(deadline=None, max_examples=100)
@given(st.sampled_from(["<u1", "<u2", "<u8"]), st.booleans(), st.data())
def test_elements_of_other_widths_come_back(dtype, huffman, data):
    elements = st.one_of(st.just(0), st.integers(0, 2 ** (8 * np.dtype(dtype).itemsize) - 1))
    array = data.draw(hnp.arrays(dtype, st.integers(1, 200), elements=elements, fill=st.just(0)))
    round_trip(array, huffman)


@pytest.mark.parametrize("density", [0.0, 0.003, 0.1, 0.4, 0.9, 1.0])
def test_never_larger_than_dense(density):
    for count in (1, 2, 17, 3000):
        size, _ = round_trip(bits_of(sparse(count, density)))
        assert size <= 4 * count + 6  # layout, way, and one byte for each of the four planes


def test_few_weights_are_stored_with_relative_indices():
    size, coding = round_trip(bits_of(sparse(20_000, 0.1)))
    assert (coding.layout, coding.values) == ("relative", "plain")
    assert size < 20_000 * 0.1 * (4 + 5 / 8)


def test_all_weights_are_stored_dense():
    _, coding = round_trip(bits_of(sparse(5000, 1)))
    assert (coding.layout, coding.values, coding.gap_bits) == ("dense", "plain", None)


def test_repeated_weights_are_deflated():
    size, coding = round_trip(bits_of(np.tile(sparse(1000, 1), 20)))
    assert coding.layout == "deflated"
    assert size < 5000


def test_values_that_fit_into_float16_take_two_bytes():
    values = sparse(20_000, 0.1).astype(np.float16).astype(np.float32)
    size, coding = round_trip(bits_of(values), huffman=False)
    assert (coding.layout, coding.values) == ("relative", "float16")
    assert size < np.count_nonzero(values) * 2 + coding.index_bytes + 20


@pytest.mark.parametrize(("count", "bits"), [(2, 1), (32, 5), (256, 8)])
def test_shared_values_take_the_bits_of_a_code(count, bits):
    random = np.random.default_rng(0)
    codebook = random.standard_normal(count, np.float32)
    values = np.where(random.random(20_000) < 0.1, codebook[random.integers(0, count, 20_000)], np.float32(0))
    size, coding = round_trip(bits_of(values), huffman=False)
    assert (coding.layout, coding.values) == ("relative", "codebook")
    exact = 4 * count + np.count_nonzero(values) * bits / 8 + coding.index_bytes
    assert exact < size < exact + 8


def test_a_value_more_than_codes_can_count_makes_no_codebook():
    _, coding = round_trip(bits_of(np.repeat(sparse(257, 1), 4)), huffman=False)
    assert coding.values != "codebook"


def test_bytes_of_a_small_tensor():
    elements = bits_of([0, 0, 1.1, 0, 1.1, 0, 0, 0, 0, 0, 0, 0])
    encoded, _ = encode_tensor(elements, huffman=False)
    # Relative; 2 bits a gap, two gaps, in fixed width: 2 and 1; a codebook of one value, codes of no bits.
    assert encoded == bytes([2, 2, 2, 0, 0b01_10, 2, 0]) + np.float32(1.1).tobytes() + bytes([0])


@pytest.mark.parametrize("huffman", [True, False])
def test_index_overhead_of_alexnet(huffman):
    # The paper: "5 bits for FC and 8 bits for CONV", and an overhead of 15.6 % (section 4). Here with all fillers, over
    # the real shapes; of large layers a part, since their rows are alike.
    indices = values = 0.0
    for (rows, columns), density in ALEXNET.values():
        part = min(rows, 300_000 // columns)
        _, coding = round_trip(bits_of(sparse(part * columns, density)), huffman)
        indices += coding.index_bytes * rows / part
        values += 4 * rows * columns * density
    assert indices / values <= (0.138 if huffman else 0.147) < 0.156


def test_gaps_take_about_their_entropy():
    density = 0.09
    entropy = -(density * math.log2(density) + (1 - density) * math.log2(1 - density)) / density
    elements = bits_of(sparse(300_000, density))
    _, coding = round_trip(elements)
    assert entropy < 8 * coding.index_bytes / np.count_nonzero(elements) < 1.03 * entropy


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "1 bytes are announced where 0 are left"),
        (bytes([9]), "no tensor layout 9"),
        (bytes([0, 200, 1]), "200 bytes are announced"),
        (bytes([1, 7]), "cannot be stored in way 7"),
        (bytes([1, 0, 0, 1]), "2 bytes are announced where 1 are left"),
        (bytes([2, 0, 1]), "relative indices of 0 bits"),
        (bytes([2, 9, 1]), "relative indices of 9 bits"),
        (bytes([2, 8, 3]), "3 relative indices for 2 elements"),
        (bytes([2, 8, 1, 0, 2]), "beyond the last element"),
        (bytes([1, 2, 2, *range(12), 0, 0b1100]), "not below 3"),
    ],
)
def test_damaged_tensors_are_refused(data, message):
    with pytest.raises(ArtifactError, match=message):
        decode_tensor(Reader(data), 2, 4)


def test_float16_values_of_another_width_are_refused():
    with pytest.raises(ArtifactError, match="values of 8 bytes cannot be stored in way 1"):
        decode_tensor(Reader(bytes([1, 1, 0, 0])), 1, 8)


@pytest.mark.parametrize("layout", [bytes([0]), bytes([1, 0]), bytes([1, 1]), bytes([1, 2, 3]), bytes([2, 8])])
def test_announced_sizes_take_no_memory(layout):
    many = 1 << 40
    data = layout + varint(many) + bytes(100)
    tracemalloc.start()
    try:
        with pytest.raises(ArtifactError):
            decode_tensor(Reader(data), many, 4)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()
