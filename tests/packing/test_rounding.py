import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from lwc_compiler.model import Model
from lwc_compiler.packing.rounding import round_weights
from lwc_compiler.recipe.options import PackOptions


def network(**weights):
    """Conv conv -> Reshape -> Gemm fc -> MatMul tied, whose weight Neg reads too."""
    random = np.random.default_rng(0)
    arrays = {
        "conv": random.standard_normal((16, 3, 5, 5), np.float32),
        "shape": np.array([1, 16]),
        "fc": np.where(random.random((16, 64)) < 0.3, random.standard_normal((16, 64), np.float32), np.float32(0)),
        "bias": random.standard_normal(64, np.float32),
        "tied": random.standard_normal((64, 9), np.float32),
    } | weights
    nodes = [
        helper.make_node("Conv", ["x", "conv"], ["a"]),
        helper.make_node("Reshape", ["a", "shape"], ["c"]),
        helper.make_node("Gemm", ["c", "fc", "bias"], ["d"]),
        helper.make_node("MatMul", ["d", "tied"], ["y"]),
        helper.make_node("Neg", ["tied"], ["z"]),
    ]
    graph = helper.make_graph(
        nodes,
        "network",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 5, 5])],
        [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
            for name, shape in (("y", [1, 9]), ("z", [64, 9]))
        ],
        [numpy_helper.from_array(array, name) for name, array in arrays.items()],
    )
    return Model(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]), "network")


def arrays_of(model):
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.proto.graph.initializer}


def changed(before, after):
    old, new = arrays_of(before), arrays_of(after)
    return {name for name in old if old[name].tobytes() != new[name].tobytes()}


def test_float32_changes_nothing():
    model = network()
    assert round_weights(model, PackOptions()) is model


def test_float16_rounds_weights_to_nearest():
    model = network()
    rounded = round_weights(model, PackOptions(values="float16"))
    assert changed(model, rounded) == {"conv", "fc"}
    for name in ("conv", "fc"):
        assert np.array_equal(arrays_of(rounded)[name], arrays_of(model)[name].astype(np.float16).astype(np.float32))
    assert rounded.provenance[-1]["weights"] == ["conv", "fc"]


@pytest.mark.parametrize("bad", [1e5, np.inf, np.nan])
@pytest.mark.parametrize("values", ["float16", "codebook"])
def test_weights_that_do_not_fit_stay(bad, values):
    conv = np.random.default_rng(0).standard_normal((16, 3, 5, 5), np.float32)
    conv[0, 0, 0, 0] = bad
    model = network(conv=conv)
    expected = {"conv", "fc"} if values == "codebook" and np.isfinite(bad) else {"fc"}
    assert changed(model, round_weights(model, PackOptions(values=values))) == expected


def test_codebooks_have_the_bits_of_their_kind_of_layer():
    model = network()
    rounded = round_weights(model, PackOptions(values="codebook", conv_bits=4, fc_bits=2))
    assert changed(model, rounded) == {"conv", "fc"}
    old, new = arrays_of(model), arrays_of(rounded)
    assert 8 < np.unique(new["conv"]).size <= 16
    assert 2 < np.unique(new["fc"][old["fc"] != 0]).size <= 4
    assert (new["fc"][old["fc"] == 0] == 0).all()


def test_weights_that_are_shared_stay_as_they_are():
    shared = np.random.default_rng(0).choice(np.float32([-0.3, -0.1, 0, 0.2, 0.7]), (16, 64))
    model = network(fc=shared)
    rounded = round_weights(model, PackOptions(values="codebook", fc_bits=2))
    assert changed(model, rounded) == {"conv"}
    assert round_weights(rounded, PackOptions(values="codebook", fc_bits=2)) is rounded
