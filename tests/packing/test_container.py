import gzip
import struct
import tracemalloc
import zlib

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from onnx import TensorProto, helper, numpy_helper

from lwc_compiler.errors import ArtifactError
from lwc_compiler.model import Model, load_model, save_model
from lwc_compiler.packing import PackOptions, pack, save_packed, sizes_of, unpack
from lwc_compiler.packing.reader import varint
from tests import zoo


def saved(model, folder):
    """The bytes of the ONNX file of `model`."""
    save_model(model, folder / "saved.onnx")
    return (folder / "saved.onnx").read_bytes()


def sparse(shape, density, seed=0):
    random = np.random.default_rng(seed)
    return np.where(random.random(shape) < density, random.standard_normal(shape, np.float32), np.float32(0))


def gemm_model(weight, **changes):
    """A Gemm with `weight`, with a bias, a Constant node in a branch, metadata, masks and provenance."""
    rows, columns = weight.shape
    branch = helper.make_graph(
        [helper.make_node("Constant", [], ["inner"], value=numpy_helper.from_array(sparse((8, 9), 0.5), "c"))],
        "branch",
        [],
        [helper.make_tensor_value_info("inner", TensorProto.FLOAT, [8, 9])],
    )
    graph = helper.make_graph(
        [
            helper.make_node("Gemm", ["x", "w", "b"], ["y"], name="fc"),
            helper.make_node("If", ["flag"], ["z"], then_branch=branch, else_branch=branch),
        ],
        "gemm",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", rows]),
            helper.make_tensor_value_info("flag", TensorProto.BOOL, []),
        ],
        [
            helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", columns]),
            helper.make_tensor_value_info("z", TensorProto.FLOAT, [8, 9]),
        ],
        [
            numpy_helper.from_array(weight, "w"),
            # Elements in float_data and in int64_data, and strings.
            helper.make_tensor("b", TensorProto.FLOAT, [columns], np.linspace(-1, 1, columns, dtype=np.float32)),
            helper.make_tensor("ids", TensorProto.INT64, [3], [1, -2, 3]),
            helper.make_tensor("words", TensorProto.STRING, [1], [b"word"]),
            numpy_helper.from_array(np.arange(100), "steps"),
        ],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8, producer_name="test")
    helper.set_model_props(proto, {"author": "someone"})
    values = {"masks": {"w": weight != 0}, "provenance": ({"pass": "prune", "options": {"sparsity": 0.9}},)} | changes
    return Model(proto, "model", **values)


MODEL = gemm_model(sparse((20, 16), 0.1))


def test_everything_comes_back(tmp_path):
    packed = pack(MODEL)
    model = unpack(packed)
    assert saved(model, tmp_path) == saved(MODEL, tmp_path)
    assert model.proto.SerializeToString(deterministic=True) == MODEL.proto.SerializeToString(deterministic=True)
    assert model.provenance == MODEL.provenance
    assert model.masks.keys() == {"w"} and np.array_equal(model.masks["w"], MODEL.masks["w"])


def test_packing_changes_nothing_in_the_model():
    before = MODEL.proto.SerializeToString(deterministic=True)
    pack(MODEL, PackOptions(values="codebook"))
    assert MODEL.proto.SerializeToString(deterministic=True) == before


@pytest.mark.parametrize("values", ["float32", "float16", "codebook"])
@pytest.mark.parametrize("huffman", [True, False])
def test_packing_again_gives_the_same_file(values, huffman):
    model = gemm_model(sparse((200, 100), 0.2))
    options = PackOptions(values=values, huffman=huffman, fc_bits=3)
    packed = pack(model, options)
    assert pack(model, options) == packed
    assert pack(unpack(packed), options) == packed


def test_a_file_gives_the_model_its_name(tmp_path):
    path = tmp_path / "my model.lwcp"
    save_packed(pack(MODEL), path)
    assert unpack(path).name == "my_model"
    assert unpack(str(path)).masks.keys() == {"w"}
    assert [file.name for file in tmp_path.iterdir()] == ["my model.lwcp"]


def test_a_file_that_cannot_be_written_leaves_nothing(tmp_path):
    with pytest.raises(ArtifactError, match="cannot write"):
        save_packed(b"", tmp_path)
    with pytest.raises(ArtifactError, match="cannot write"):
        save_packed(b"", tmp_path / "missing" / "file")
    assert list(tmp_path.iterdir()) == []


def test_external_data_is_packed_too(tmp_path):
    onnx.save(MODEL.proto, tmp_path / "model.onnx", save_as_external_data=True, location="weights", size_threshold=0)
    model = load_model(tmp_path / "model.onnx")
    (tmp_path / "weights").unlink()
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in unpack(pack(model)).proto.graph.initializer}
    assert np.array_equal(weights["w"], sparse((20, 16), 0.1))


@settings(deadline=None, max_examples=60)
@given(
    hnp.arrays(
        "<u4",
        hnp.array_shapes(min_dims=2, max_dims=2, max_side=20),
        elements=st.one_of(st.just(0), st.integers(0, 2**32 - 1)),
        fill=st.sampled_from([0, 0x80000000, 0x7F800001, 0xFFFFFFFF, 1]),
    ),
    st.booleans(),
)
def test_all_float_values_come_back_bit_for_bit(bits, huffman):
    model = gemm_model(bits.view("<f4"), masks={})
    model = unpack(pack(model, PackOptions(huffman=huffman)))
    assert model.proto.graph.initializer[0].raw_data == bits.tobytes()


def test_nan_in_float_data_comes_back_bit_for_bit():
    tensor = TensorProto(name="nan", data_type=TensorProto.FLOAT, dims=[32])
    data = struct.pack("<32I", *[0x7F800001] * 32)  # signalling
    tensor.MergeFromString(b"\x22" + varint(len(data)) + data)
    model = gemm_model(np.ones((1, 1), np.float32))
    model.proto.graph.initializer.append(tensor)
    assert unpack(pack(model)).proto.graph.initializer[-1].SerializeToString() == tensor.SerializeToString()


@pytest.mark.parametrize(
    "array",
    [
        sparse(300, 0.2).astype(np.float16),
        sparse(300, 0.2).astype(np.float64),
        np.arange(300, dtype=np.int64),
        np.arange(300).astype(np.int8),
        np.arange(300) % 3 == 0,
        np.zeros((0, 7), np.float32),
        np.array(["a" * 100], object),
    ],
    ids=lambda array: f"{array.dtype}-{array.size}",
)
def test_tensors_of_other_types_come_back(array):
    model = gemm_model(np.ones((1, 1), np.float32))
    model.proto.graph.initializer.append(numpy_helper.from_array(array, "other"))
    assert unpack(pack(model)).proto.graph.initializer[-1].SerializeToString() == (
        model.proto.graph.initializer[-1].SerializeToString()
    )


def pruned(proto, densities):
    """The model with the largest weights only; `densities`: name -> share that is kept, or one for all."""
    for tensor in proto.graph.initializer:
        density = densities.get(tensor.name) if isinstance(densities, dict) else densities
        if density and tensor.data_type == TensorProto.FLOAT and len(tensor.dims) > 1:
            weight = numpy_helper.to_array(tensor)
            kept = np.abs(weight) >= np.quantile(np.abs(weight), 1 - density)
            tensor.raw_data = np.where(kept, weight, 0).astype(np.float32).tobytes()
    return proto


@pytest.mark.parametrize("name", ["lenet300", "lenet5", "ppocr_v2_cls"])
@pytest.mark.parametrize("density", [1, 0.1])
def test_real_models_are_smaller_than_gzip(name, density, tmp_path):
    model = Model(pruned(zoo.load(name), density), name)
    packed = pack(model)
    onnx_file = saved(model, tmp_path)
    assert saved(unpack(packed), tmp_path) == onnx_file
    assert len(packed) < 0.92 * len(gzip.compress(onnx_file, 9))


@settings(deadline=None, max_examples=40)
@given(
    st.tuples(st.integers(1, 40), st.integers(1, 60)),
    st.sampled_from([0.0, 0.01, 0.3, 1.0]),
    st.sampled_from([1, 2, 100, None]),
    st.booleans(),
)
def test_no_model_is_larger_than_gzip(shape, density, repeats, huffman):
    weight = sparse(shape, density)
    if repeats:
        weight = np.resize(weight.ravel()[:repeats], shape)
    model = gemm_model(weight)
    for _ in range(3):  # tensors that are alike
        model.proto.graph.initializer.append(numpy_helper.from_array(weight, f"w{len(model.proto.graph.initializer)}"))
    packed = pack(model, PackOptions(huffman=huffman))
    unpacked = unpack(packed)
    # What `save_model` writes.
    helper.set_model_props(
        unpacked.proto, {"author": "someone", "lwc.provenance": str(model.provenance), "lwc.masks": '["w"]'}
    )
    assert len(packed) <= len(gzip.compress(unpacked.proto.SerializeToString(deterministic=True), 9))


def test_sizes():
    model = gemm_model(sparse((400, 100), 0.1))
    packed = pack(model)
    sizes = sizes_of(packed)
    (weight,) = (size for size in sizes.tensors if size.name == "w")
    assert (weight.shape, weight.elements, weight.dense_bytes) == ((400, 100), 40_000, 160_000)
    assert weight.nonzero == np.count_nonzero(numpy_helper.to_array(model.proto.graph.initializer[0]))
    assert weight.density == weight.nonzero / 40_000
    assert weight.coding.layout == "relative"
    assert weight.bits_per_index == pytest.approx(4.7, abs=0.3)
    assert "inner" in {size.name for size in sizes.tensors}  # a Constant in a branch, by its output
    assert sizes.bytes == len(packed) == sizes.graph_bytes + sum(size.bytes for size in sizes.tensors)
    assert sizes.to_json()["tensors"][0]["ratio"] == weight.ratio == 160_000 / weight.bytes


def test_dense_bytes_are_those_of_the_onnx_file(tmp_path):
    model = Model(zoo.load("lenet300"), "lenet300")
    assert sizes_of(pack(model)).dense_bytes == pytest.approx(len(saved(model, tmp_path)), abs=100)


@pytest.mark.parametrize(
    ("name", "densities", "ratio"),
    [
        ("lenet300", {"fc1.weight": 0.08, "fc2.weight": 0.09, "fc3.weight": 0.26}, 40),
        ("lenet5", {"conv1.weight": 0.66, "conv2.weight": 0.12, "fc1.weight": 0.08, "fc2.weight": 0.19}, 38),
    ],
)
def test_compression_of_the_papers_lenets(name, densities, ratio, tmp_path):
    # Densities of tables 2 and 3 of Han et al. 2015. Table 1 of Han et al. 2016 has 40 and 39, with trained weights;
    # these are random.
    proto = zoo.load(name)
    dense = len(saved(Model(proto, name), tmp_path))
    assert dense / len(pack(Model(pruned(proto, densities), name), PackOptions(values="codebook"))) >= ratio


# --- damaged and hostile files ---------------------------------------------------------------------------------------

# Between them every layout, every way to store values, and Huffman codes.
SMALL = {
    "relative": pack(gemm_model(sparse((20, 16), 0.3))),
    "dense": pack(gemm_model(sparse((16, 16), 1)), PackOptions(values="float16")),
    "codebook": pack(gemm_model(sparse((100, 50), 0.03)), PackOptions(values="codebook", fc_bits=1)),
}
small_files = pytest.mark.parametrize("file", SMALL.values(), ids=SMALL)


def sealed(content):
    """`content` with the checksum that makes it a whole file."""
    return content + zlib.crc32(content).to_bytes(4, "little")


def packed_file(graph, records=b"", padding=0):
    encoder = zlib.compressobj(9, zlib.DEFLATED, -15)
    return sealed(b"LWCP\1" + encoder.compress(graph) + encoder.flush() + records + bytes(padding))


def graph_with(dims, data_type=TensorProto.FLOAT, **fields):
    graph = helper.make_graph([], "g", [], [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])])
    graph.initializer.append(TensorProto(name="w", dims=dims, data_type=data_type, **fields))
    return helper.make_model(graph).SerializeToString()


def test_small_files_hold_everything():
    codings = {size.coding for file in SMALL.values() for size in sizes_of(file).tensors}
    assert {coding.layout for coding in codings} == {"relative", "dense", "deflated"}
    assert {coding.values for coding in codings} == {"plain", "float16", "codebook", None}


@small_files
def test_every_truncation_is_refused(file):
    for length in range(len(file)):
        with pytest.raises(ArtifactError):
            unpack(file[:length])


@small_files
def test_every_changed_byte_is_refused(file):
    for place in range(len(file)):
        for change in (1, 0x80, 0xFF):
            damaged = bytearray(file)
            damaged[place] ^= change
            with pytest.raises(ArtifactError):
                unpack(bytes(damaged))


@small_files
def test_changes_with_a_checksum_that_fits_end_in_an_error_or_a_model(file):
    refused = 0
    for place in range(5, len(file) - 4):
        for change in (1, 0x80, 0xFF):
            damaged = bytearray(file[:-4])
            damaged[place] ^= change
            try:
                unpack(sealed(bytes(damaged)))
            except ArtifactError:
                refused += 1
    assert refused > len(file)


@settings(deadline=None, max_examples=300)
@given(st.data())
def test_damage_inside_the_graph_ends_in_an_error_or_a_model(data):
    graph = bytearray(MODEL.proto.SerializeToString())
    for _ in range(data.draw(st.integers(1, 5))):
        graph[data.draw(st.integers(0, len(graph) - 1))] = data.draw(st.integers(0, 255))
    records = data.draw(st.binary(max_size=60))
    try:
        unpack(packed_file(bytes(graph), records))
    except ArtifactError as error:
        assert "damaged" in str(error)


@settings(deadline=None, max_examples=200)
@given(st.binary(max_size=200))
def test_any_bytes_end_in_an_error(data):
    for start in (b"", b"LWCP\1"):
        with pytest.raises(ArtifactError):
            unpack(sealed(start + data))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not a packed model"),
        (b"PK\3\4" + bytes(100), "not a packed model"),
        (b"LWCP\1", "ends in the header"),
        (sealed(b"LWCP\0"), "damaged"),
        (sealed(b"LWCP\2" + bytes(10)), "a newer lwc packed the model, in format 2; .* up to 1: upgrade lwc"),
        (b"LWCP\1" + bytes(10), "checksum"),
        (packed_file(b"no protobuf"), "the graph cannot be read"),
        (packed_file(b""), "no graph with outputs"),
        (packed_file(graph_with([1], data_location=TensorProto.EXTERNAL)), "in another file"),
        (packed_file(graph_with([2]), bytes([2, 9])), "tensor 1 of 1"),
        (packed_file(graph_with([2]), bytes([1, 8])), "field 8 do not fit tensor 'w'"),
        (packed_file(graph_with([2], TensorProto.INT64), bytes([1, 4])), "field 4 do not fit tensor 'w'"),
        (packed_file(graph_with([2], 0), bytes([1, 9])), "do not fit"),
        (packed_file(graph_with([2], 12345), bytes([1, 9])), "do not fit"),
        (packed_file(graph_with([2], TensorProto.STRING), bytes([1, 9])), "do not fit"),
        (packed_file(graph_with([-2, -1]), bytes([1, 9])), "do not fit"),
        (packed_file(graph_with([0]), bytes([1, 9])), "do not fit"),
        (packed_file(graph_with([1], raw_data=bytes(4)), bytes([1, 9])), "do not fit"),
        (packed_file(graph_with([1]), bytes([0, 0, 1])), "something follows the last tensor"),
        (packed_file(graph_with([1]), bytes([1, 9])), "announced"),
    ],
)
def test_messages(data, message):
    with pytest.raises(ArtifactError, match=message):
        unpack(data)


def test_messages_name_the_file(tmp_path):
    path = tmp_path / "model.lwcp"
    with pytest.raises(ArtifactError, match=r"model\.lwcp: the packed model cannot be read: No such file"):
        unpack(path)
    path.write_bytes(b"PK\3\4")
    for reader in (unpack, sizes_of):
        with pytest.raises(ArtifactError, match=r"model\.lwcp: this is not a packed model"):
            reader(path)


def test_bad_notes_are_refused():
    proto = onnx.ModelProto.FromString(graph_with([1], raw_data=bytes(4)))
    for key, value in {"lwc.masks": "[", "lwc.provenance": "[1]"}.items():
        del proto.metadata_props[:]
        helper.set_model_props(proto, {key: value})
        with pytest.raises(ArtifactError, match="what lwc noted about the model cannot be read"):
            unpack(packed_file(proto.SerializeToString()))
    helper.set_model_props(proto, {"lwc.provenance": "[" * 100_000})
    with pytest.raises(ArtifactError, match="damaged"):
        unpack(packed_file(proto.SerializeToString()))


RELATIVE_OF_NOTHING = bytes([1, 9, 2, 8, 0, 0, 0, 0, 0, 0, 0])  # no gaps, four planes of no values


@pytest.mark.parametrize(
    "bomb",
    [
        packed_file(graph_with([1 << 20, 1 << 20]), RELATIVE_OF_NOTHING),
        packed_file(graph_with([1 << 62, 1 << 62]), RELATIVE_OF_NOTHING),
        packed_file(graph_with([1 << 24, 2]), RELATIVE_OF_NOTHING),  # 128 MiB
        packed_file(bytes(1 << 25)),
        packed_file(b"\x3a\x80\x80\x80\x08" + b"\x0a\x00" * (1 << 23)),  # a graph of eight million empty nodes
    ],
    ids=["dims", "product", "limit", "graph", "nodes"],
)
def test_bombs_are_refused_in_little_memory(bomb):
    tracemalloc.start()
    try:
        with pytest.raises(ArtifactError, match=r"larger than a file of this size may hold|more than the \d+ bytes"):
            unpack(bomb)
        assert tracemalloc.get_traced_memory()[1] < 1 << 23
    finally:
        tracemalloc.stop()


def test_a_model_that_unpacks_to_much_is_padded_until_it_may():
    # 2 MiB of equal numbers, in a field that stays in the graph.
    model = gemm_model(np.ones((1, 1), np.float32))
    model.proto.graph.initializer.append(helper.make_tensor("many", TensorProto.INT64, [1 << 21], [0] * (1 << 21)))
    packed = pack(model)
    assert len(packed) >= (1 << 21) / 16 > len(packed[:-4].rstrip(b"\0"))
    assert unpack(packed).proto.SerializeToString() == model.proto.SerializeToString()
