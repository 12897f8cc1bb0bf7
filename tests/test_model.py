"""Reading, checking, writing and converting ONNX files."""

import json
import os

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from lwc_compiler import model as model_module
from lwc_compiler.errors import ArtifactError, ModelError, UnsupportedError
from lwc_compiler.model import (
    Model,
    convert_opset,
    infer_shapes,
    load_model,
    model_of,
    save_model,
    sort_nodes,
    working_copy,
)
from lwc_compiler.passes.normalize import normalize

NEWEST = onnx.defs.onnx_opset_version()


def network(opset=17, ir_version=8):
    """Conv, Relu, global pool and a Gemm; weights of 1.7 kB and 160 B."""
    rng = np.random.default_rng(5)
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], name="conv", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c"], ["r"], name="relu"),
        helper.make_node("GlobalAveragePool", ["r"], ["g"], name="pool"),
        helper.make_node("Flatten", ["g"], ["f"], name="flatten"),
        helper.make_node("Gemm", ["f", "v", "b"], ["y"], name="fc", transB=1),
    ]
    weights = [("w", (16, 3, 3, 3)), ("v", (4, 16)), ("b", (4,))]
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 4])],
        [numpy_helper.from_array(rng.standard_normal(shape).astype(np.float32), name) for name, shape in weights],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir_version)


def small(nodes, outputs, initializers=(), opset=17, ir_version=8, **options):
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 3])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2, 3]) for name in outputs],
        list(initializers),
    )
    imports = [helper.make_opsetid("", opset)]
    return helper.make_model(graph, opset_imports=imports, ir_version=ir_version, **options)


def saved(proto, path):
    path.write_bytes(proto.SerializeToString())
    return path


def outputs(proto, shape=(2, 3)):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(working_copy(proto).SerializeToString(), options)
    values = np.random.default_rng(1).standard_normal(shape).astype(np.float32)
    return session.run(None, {"x": values})


# Reading.


def test_a_model_keeps_what_the_file_says(tmp_path):
    proto = network()
    proto.metadata_props.add(key="author", value="me")
    model = load_model(saved(proto, tmp_path / "my net (v1).onnx"))
    assert model.proto == proto
    assert (model.name, model.masks, model.provenance) == ("my_net_v1", {}, ())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "does not exist"),
        (b"", "is empty"),
        (b"PK\x03\x04 a zip file, say", "is not an ONNX model"),
        (b"hello", "is not an ONNX model"),
        (b"\x08\x08", "holds no graph"),
        (network().SerializeToString()[:-50], "is not an ONNX model, or only part of one"),
    ],
)
def test_what_is_no_model(tmp_path, content, message):
    path = tmp_path / "m.onnx"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ModelError, match=message):
        load_model(path)


def test_a_directory_is_no_model(tmp_path):
    with pytest.raises(ModelError, match="is a directory"):
        load_model(tmp_path)


@pytest.fixture
def unreadable(tmp_path):
    """A model without read permission; root, who reads every file, becomes nobody for the test."""
    path = saved(network(), tmp_path / "m.onnx")
    path.chmod(0)
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    yield path
    os.seteuid(user)


def test_an_unreadable_file(unreadable):
    with pytest.raises(ModelError, match="cannot be read: Permission denied"):
        load_model(unreadable)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_damaged_files_give_an_error_or_a_model(tmp_path, data):
    """Bytes overwritten, removed or added anywhere in a valid file: never anything but a sentence."""
    content = bytearray(network().SerializeToString())
    for _ in range(data.draw(st.integers(1, 4))):
        # Half of the damage goes where the structure is: the weights fill the middle.
        place = data.draw(st.integers(0, 400) | st.integers(0, len(content)))
        length = data.draw(st.integers(0, 8))
        content[place : place + length] = data.draw(st.binary(max_size=8))
    path = tmp_path / "m.onnx"
    path.write_bytes(bytes(content))
    try:
        model = load_model(path)
    except (ModelError, UnsupportedError) as error:
        assert str(path) in str(error)
        assert "\n" not in str(error)
    else:
        infer_shapes(model.proto)


def test_an_invalid_graph_is_refused_with_the_reason(tmp_path):
    proto = network()
    proto.graph.node[1].input[0] = "nowhere"
    with pytest.raises(ModelError, match=r"is not a valid ONNX model: .*nowhere"):
        load_model(saved(proto, tmp_path / "m.onnx"))


def test_a_weight_with_too_little_data_is_refused(tmp_path):
    proto = network()
    proto.graph.initializer[0].raw_data = b"\0" * 12
    with pytest.raises(ModelError, match="is not a valid ONNX model"):
        load_model(saved(proto, tmp_path / "m.onnx"))


def test_two_weights_of_one_name_are_refused(tmp_path):
    proto = network()
    proto.graph.initializer.append(proto.graph.initializer[0])
    with pytest.raises(ModelError, match="two initializers share a name"):
        load_model(saved(proto, tmp_path / "m.onnx"))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("constant_node", [False, True])
def test_weights_that_are_not_finite_are_refused_by_name(tmp_path, value, constant_node):
    proto = network()
    weight = proto.graph.initializer[0]
    array = numpy_helper.to_array(weight).copy()
    array[1, 2, 0, 1] = value
    weight.CopyFrom(numpy_helper.from_array(array, "w"))
    if constant_node:
        proto.graph.node.insert(0, helper.make_node("Constant", [], ["w"], value=weight))
        del proto.graph.initializer[0]
    with pytest.raises(ModelError, match=f"weight 'w' holds {'NaN' if np.isnan(value) else 'Inf'}"):
        load_model(saved(proto, tmp_path / "m.onnx"))


def test_infinite_bounds_and_masks_are_fine(tmp_path):
    nodes = [helper.make_node("Clip", ["x", "low", "high"], ["c"]), helper.make_node("Add", ["c", "mask"], ["y"])]
    bounds = {"low": np.float32(0), "high": np.float32(np.inf), "mask": np.array([0, -np.inf, 0], np.float32)}
    weights = [numpy_helper.from_array(np.asarray(value), name) for name, value in bounds.items()]
    load_model(saved(small(nodes, ["y"], weights), tmp_path / "m.onnx"))


def test_versions_outside_what_is_read(tmp_path):
    path = tmp_path / "m.onnx"
    for opset in (6, NEWEST + 1):
        proto = network()
        proto.opset_import[0].version = opset
        with pytest.raises(UnsupportedError, match=f"uses ONNX opset {opset}; lwc reads 7 to {NEWEST}"):
            load_model(saved(proto, path))
    proto = network()
    proto.ir_version = onnx.IR_VERSION + 1
    with pytest.raises(UnsupportedError, match=f"IR version {onnx.IR_VERSION + 1}.*upgrade onnx"):
        load_model(saved(proto, path))
    proto = network()
    del proto.opset_import[:]
    with pytest.raises(ModelError, match="does not say which opset"):
        load_model(saved(proto, path))


@pytest.mark.parametrize("opset", range(7, NEWEST + 1))
def test_every_opset_loads_and_runs(tmp_path, opset):
    proto = network(opset, 3 if opset < 9 else onnx.IR_VERSION if opset > 21 else 8)
    if proto.ir_version < 4:
        proto.graph.input.extend(
            helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
            for tensor in proto.graph.initializer
        )
    model = load_model(saved(proto, tmp_path / "m.onnx"))
    assert [value.name for value in model.proto.graph.input] == ["x"]
    assert model.proto.opset_import[0].version == opset
    copy = working_copy(model.proto)
    assert (copy.opset_import[0].version, copy.ir_version) == (min(opset, 21), min(model.proto.ir_version, 10))
    (expected,) = outputs(network(), (2, 3, 8, 8))
    for candidate in (model, normalize(model, batch=2, fold_batch_norm=True)):
        np.testing.assert_allclose(outputs(candidate.proto, (2, 3, 8, 8))[0], expected, rtol=1e-6)


def test_the_standard_domain_may_be_spelled_out(tmp_path):
    proto = network()
    proto.opset_import[0].domain = "ai.onnx"
    proto.graph.node[0].domain = "ai.onnx"
    model = load_model(saved(proto, tmp_path / "m.onnx"))
    assert model.proto == network()


def test_local_functions_are_inlined(tmp_path):
    function = helper.make_function(
        "mine",
        "TwiceRelu",
        ["a"],
        ["b"],
        [helper.make_node("Relu", ["a"], ["r"]), helper.make_node("Add", ["r", "r"], ["b"])],
        [helper.make_opsetid("", 17)],
    )
    nodes = [
        helper.make_node("Add", ["x", "w"], ["s"], name="sum"),
        helper.make_node("TwiceRelu", ["s"], ["y"], domain="mine"),
    ]
    weight = numpy_helper.from_array(np.ones((400, 1, 3), np.float32)[:2, 0], "w")
    proto = small(nodes, ["y"], [weight], functions=[function])
    proto.opset_import.append(helper.make_opsetid("mine", 1))
    expected = outputs(proto)
    model = load_model(saved(proto, tmp_path / "m.onnx"))
    assert [node.op_type for node in model.proto.graph.node] == ["Add", "Relu", "Add"]
    assert not model.proto.functions
    assert [value.name for value in model.proto.graph.input] == ["x"]
    np.testing.assert_array_equal(outputs(model.proto), expected)


@pytest.mark.parametrize("linear", [True, False])
def test_sparse_initializers_become_dense(tmp_path, linear):
    values = numpy_helper.from_array(np.array([5, 7], np.float32), "w")
    indices = np.array([1, 5]) if linear else np.array([[0, 1], [1, 2]])
    proto = small([helper.make_node("Add", ["x", "w"], ["y"])], ["y"])
    proto.graph.sparse_initializer.append(
        helper.make_sparse_tensor(values, numpy_helper.from_array(indices, "i"), [2, 3])
    )
    model = load_model(saved(proto, tmp_path / "m.onnx"))
    assert not model.proto.graph.sparse_initializer
    np.testing.assert_array_equal(numpy_helper.to_array(model.proto.graph.initializer[0]), [[0, 5, 0], [0, 0, 7]])


def test_nodes_out_of_order_are_sorted(tmp_path):
    proto = network()
    order = list(proto.graph.node)
    del proto.graph.node[:]
    proto.graph.node.extend(reversed(order))
    model = load_model(saved(proto, tmp_path / "m.onnx"))
    assert [node.name for node in model.proto.graph.node] == ["conv", "relu", "pool", "flatten", "fc"]


def test_sorting_looks_into_subgraphs():
    text = """<ir_version: 8, opset_import: ["" : 17]>
    net (bool c, float[3] x) => (float[3] y) {
      y = If (c) <
        then_branch = yes () => (float[3] t) { t = Relu(late) },
        else_branch = no () => (float[3] e) { e = Neg(x) }
      >
      late = Abs(x)
    }"""
    graph = onnx.parser.parse_model(text).graph
    sort_nodes(graph)
    assert [node.op_type for node in graph.node] == ["Abs", "If"]


def test_a_cycle_is_refused(tmp_path):
    proto = network()
    proto.graph.node[0].input[0] = "r"
    with pytest.raises(ModelError, match="not a valid ONNX model"):
        load_model(saved(proto, tmp_path / "m.onnx"))


# External data and writing.


def test_external_data_is_loaded(tmp_path):
    path = tmp_path / "m.onnx"
    onnx.save(network(), path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    assert load_model(path).proto.graph.initializer[0].HasField("raw_data")
    np.testing.assert_array_equal(outputs(load_model(path).proto, (2, 3, 8, 8)), outputs(network(), (2, 3, 8, 8)))
    (tmp_path / "weights.bin").write_bytes(b"short")
    with pytest.raises(ModelError, match=r"m\.onnx"):
        load_model(path)
    (tmp_path / "weights.bin").unlink()
    with pytest.raises(ModelError, match="the external data of a weight cannot be read"):
        load_model(path)


def test_external_data_outside_the_folder_is_refused(tmp_path):
    inner = tmp_path / "inner"
    inner.mkdir()
    (tmp_path / "secret").write_bytes(b"\0" * 10_000)
    proto = network()
    tensor = proto.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../secret")
    with pytest.raises(ModelError, match="the external data of a weight cannot be read"):
        load_model(saved(proto, inner / "m.onnx"))


@pytest.mark.parametrize("external", [False, True])
def test_saving_and_loading_gives_the_same_model(tmp_path, monkeypatch, external):
    if external:
        monkeypatch.setattr(model_module, "_INLINE_LIMIT", 1000)
    proto = network()
    proto.metadata_props.add(key="author", value="me")
    weight = numpy_helper.to_array(proto.graph.initializer[0]).copy()
    mask = np.random.default_rng(2).random(weight.shape) < 0.5
    proto.graph.initializer[0].CopyFrom(numpy_helper.from_array(weight * mask, "w"))
    before = proto.SerializeToString()
    model = Model(proto, "m", {"w": mask}).after("prune", options={"sparsity": 0.5})
    save_model(model, tmp_path / "m.onnx")
    assert proto.SerializeToString() == before
    expected = {"m.onnx", "m.onnx.data"} if external else {"m.onnx"}
    assert {path.name for path in tmp_path.iterdir()} == expected
    first = (tmp_path / "m.onnx").read_bytes()

    loaded = load_model(tmp_path / "m.onnx")
    assert loaded.proto.metadata_props == proto.metadata_props
    assert loaded.provenance == ({"pass": "prune", "options": {"sparsity": 0.5}},)
    np.testing.assert_array_equal(loaded.masks["w"], mask)
    np.testing.assert_array_equal(outputs(loaded.proto, (2, 3, 8, 8)), outputs(proto, (2, 3, 8, 8)))
    onnx.checker.check_model(str(tmp_path / "m.onnx"))

    save_model(loaded, tmp_path / "m.onnx")
    assert (tmp_path / "m.onnx").read_bytes() == first


def test_typed_tensor_data_goes_to_external_data_too(tmp_path, monkeypatch):
    monkeypatch.setattr(model_module, "_INLINE_LIMIT", 1000)
    proto = network()
    weight = numpy_helper.to_array(proto.graph.initializer[0])
    proto.graph.initializer[0].CopyFrom(
        helper.make_tensor("w", TensorProto.FLOAT, weight.shape, weight.ravel().tolist())
    )
    save_model(Model(proto, "m"), tmp_path / "m.onnx")
    loaded = {
        tensor.name: numpy_helper.to_array(tensor) for tensor in load_model(tmp_path / "m.onnx").proto.graph.initializer
    }
    np.testing.assert_array_equal(loaded["w"], weight)


@pytest.mark.parametrize(
    ("entry", "value"),
    [
        ("lwc.provenance", "{"),
        ("lwc.provenance", "7"),
        ("lwc.provenance", "[1]"),
        ("lwc.masks", "{"),
        ("lwc.masks", "7"),
    ],
)
def test_changed_metadata_is_refused(tmp_path, entry, value):
    proto = network()
    proto.metadata_props.add(key=entry, value=value)
    with pytest.raises(ModelError, match="what lwc stored in its metadata was changed"):
        load_model(saved(proto, tmp_path / "m.onnx"))


def test_masks_of_weights_that_are_gone_are_dropped(tmp_path):
    proto = network()
    proto.metadata_props.add(key="lwc.masks", value=json.dumps(["w", "gone"]))
    assert set(load_model(saved(proto, tmp_path / "m.onnx")).masks) == {"w"}


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "m.onnx"
    path.write_bytes(b"precious")

    def full(self, data):
        self.touch()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(type(path), "write_bytes", full)
    with pytest.raises(ArtifactError, match=r"cannot write .*m\.onnx: No space left on device"):
        save_model(Model(network(), "m"), path)
    assert path.read_bytes() == b"precious"
    assert list(tmp_path.iterdir()) == [path]


def test_writing_where_nothing_can_be_written(tmp_path):
    with pytest.raises(ArtifactError, match="No such file or directory"):
        save_model(Model(network(), "m"), tmp_path / "missing" / "m.onnx")
    (tmp_path / "folder.onnx").mkdir()
    with pytest.raises(ArtifactError, match="Is a directory"):
        save_model(Model(network(), "m"), tmp_path / "folder.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["folder.onnx"]


# Conversion.


def test_a_working_copy_is_a_copy():
    proto = network(21)
    copy = working_copy(proto)
    copy.graph.node[0].name = "other"
    assert proto == network(21)


def test_conversion_keeps_names_and_weights():
    proto = network(NEWEST, onnx.IR_VERSION)
    copy = working_copy(proto)
    assert [node.name for node in copy.graph.node] == [node.name for node in proto.graph.node]
    assert list(copy.graph.initializer) == list(proto.graph.initializer)
    assert copy.graph.input == proto.graph.input


@pytest.mark.parametrize("node", ["Swish(r)", "Swish<alpha=0.5>(r)", "RMSNormalization(r, s)"])
def test_new_operators_become_older_ones(node):
    text = f"""<ir_version: 11, opset_import: ["" : 24]>
    net (float[2,3] x) => (float[2,3] y) {{ r = Neg(x)  y = {node} }}"""
    proto = onnx.parser.parse_model(text)
    proto.graph.initializer.append(numpy_helper.from_array(np.array([1, 2, 3], np.float32), "s"))
    values = np.random.default_rng(1).standard_normal((2, 3)).astype(np.float32)
    expected = onnx.reference.ReferenceEvaluator(proto).run(None, {"x": values})
    np.testing.assert_allclose(outputs(proto), expected, rtol=1e-5)


def test_an_operator_without_an_older_form_is_named():
    nodes = [helper.make_node("Relu", ["x"], ["a"]), helper.make_node("CumProd", ["a", "axis"], ["y"], name="products")]
    proto = small(nodes, ["y"], [numpy_helper.from_array(np.array(1), "axis")], opset=26, ir_version=13)
    with pytest.raises(UnsupportedError, match=r"node 'products' \(CumProd\): .* no equivalent in opset 21"):
        working_copy(proto)


def test_unchanged_operators_are_relabelled_where_the_converter_fails(monkeypatch):
    def fail(*_):
        raise RuntimeError("no adapter")

    monkeypatch.setattr(onnx.version_converter, "convert_version", fail)
    nodes = [helper.make_node("Relu", ["x"], ["y"])]
    copy = convert_opset(small(nodes, ["y"], opset=20), 18)
    assert copy.opset_import[0].version == 18
    with pytest.raises(UnsupportedError, match=r"node 'y' \(Cast\): .* in opset 18; .*no adapter"):
        convert_opset(small([helper.make_node("Cast", ["x"], ["y"], to=1)], ["y"], opset=20), 18)


def test_upward_conversion():
    copy = convert_opset(network(9), 17)
    assert copy.opset_import[0].version == 17
    np.testing.assert_allclose(outputs(copy, (2, 3, 8, 8)), outputs(network(9), (2, 3, 8, 8)), rtol=1e-6)


def test_shapes_are_inferred_without_touching_weights():
    proto = network()
    inferred = infer_shapes(proto)
    assert list(inferred.graph.initializer) == list(proto.graph.initializer)
    assert [value.name for value in inferred.graph.value_info] == ["c", "r", "g", "f"]
    assert not proto.graph.value_info


def test_a_model_in_memory_is_read_like_a_file(tmp_path, mlp):
    proto = onnx.load(mlp)
    before = proto.SerializeToString(deterministic=True)
    model = model_of(proto)
    assert model.proto.SerializeToString(deterministic=True) == load_model(mlp).proto.SerializeToString(
        deterministic=True
    )
    assert model.name == "mlp"
    assert proto.SerializeToString(deterministic=True) == before
    proto.graph.node[0].op_type = "Gremm"
    with pytest.raises(ModelError, match=r"^mlp is not a valid ONNX model: "):
        model_of(proto)
