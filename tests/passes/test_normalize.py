"""One plain form for every exporter's graph, with the same outputs."""

import functools
from pathlib import Path

import numpy as np
import onnx
import pytest
from graphs import assert_same_outputs, initializers, model, operators, random_inputs, run, shapes
from onnx import TensorProto, helper, numpy_helper

from lwc_compiler.errors import OptionError, UnsupportedError
from lwc_compiler.model import Model, load_model
from lwc_compiler.passes import normalize as normalize_module
from lwc_compiler.passes.normalize import normalize

LIGHT = sorted((Path(onnx.__file__).parent / "backend/test/data/light").glob("*.onnx"))


@pytest.fixture
def rng():
    return np.random.default_rng(11)


normalized = functools.partial(normalize, fold_batch_norm=False)


def with_random_weights(model, rng):
    """Makes the constant-filled weights of onnx's light models real ones (He); batch norm statistics stay valid."""
    graph = model.proto.graph
    sizes = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    statistics = {name for node in graph.node if node.op_type == "BatchNormalization" for name in node.input[1:]}
    kept = []
    for node in graph.node:
        if node.op_type != "ConstantOfShape" or sizes[node.input[0]].prod() > 2**20:
            kept.append(node)
            continue
        shape = sizes[node.input[0]]
        if node.output[0] in statistics:
            value = rng.uniform(0.5, 1.5, shape)
        else:
            value = rng.standard_normal(shape) * np.sqrt(2 / max(1, np.prod(shape[1:])))
        graph.initializer.append(numpy_helper.from_array(value.astype(np.float32), node.output[0]))
    del graph.node[:]
    graph.node.extend(kept)


@pytest.mark.parametrize("path", LIGHT, ids=lambda path: path.stem)
@pytest.mark.parametrize("fold", [False, True], ids=["keep", "fold"])
def test_light_models(path, fold, rng):
    source = load_model(path)
    with_random_weights(source, rng)
    result = normalize(source, batch=1, fold_batch_norm=fold)
    assert {"Dropout", "Identity", "Unsqueeze", "Constant"}.isdisjoint(operators(result.proto))
    known = shapes(result.proto)
    outputs = [name for node in result.proto.graph.node for name in node.output]
    assert all(all(isinstance(size, int) for size in known[name]) for name in outputs)
    if fold and "densenet" not in path.stem:  # its normalizations come before the convolutions
        assert "BatchNormalization" not in operators(result.proto)
    if path.stat().st_size > 10_000:  # the others have hundreds of MB of weights
        assert_same_outputs(source.proto, result.proto, rng, tolerance=1e-4 if fold else 1e-6)


def test_what_the_user_named_survives(rng):
    source = model(
        """
        net (float[N,3] x) => (float[N,2] y) {
          i = Identity(x)
          h = MatMul(i, w)
          r = Relu(h)
          y = Identity(r)
        }""",
        {"w": rng.standard_normal((3, 2))},
    )
    proto = source.proto
    proto.producer_name, proto.producer_version, proto.domain, proto.model_version = "me", "1.2", "org.example", 7
    proto.doc_string, proto.graph.doc_string = "a model", "a graph"
    proto.metadata_props.add(key="author", value="me")
    proto.graph.metadata_props.add(key="graph", value="too")
    relu = proto.graph.node[2]
    relu.name, relu.doc_string = "activation", "rectifies"
    relu.metadata_props.add(key="node", value="too")
    proto.graph.input[0].doc_string = "pixels"
    before = proto.SerializeToString(deterministic=True)

    result = normalized(source).proto

    assert proto.SerializeToString(deterministic=True) == before
    assert operators(result) == ["MatMul", "Relu"]
    assert list(result.graph.node[1].output) == ["y"]
    (activation,) = [node for node in result.graph.node if node.op_type == "Relu"]
    assert (activation.name, activation.doc_string) == ("activation", "rectifies")
    assert {entry.key: entry.value for entry in activation.metadata_props} == {"node": "too"}
    assert {entry.key: entry.value for entry in result.metadata_props} == {"author": "me"}
    assert {entry.key: entry.value for entry in result.graph.metadata_props} == {"graph": "too"}
    assert (result.doc_string, result.graph.doc_string) == ("a model", "a graph")
    assert (result.producer_name, result.producer_version) == ("me", "1.2")
    assert (result.domain, result.model_version, result.ir_version) == ("org.example", 7, 8)
    assert result.opset_import == proto.opset_import
    assert result.graph.input == proto.graph.input
    assert result.graph.output == proto.graph.output
    assert "w" in initializers(result)
    assert all(node.name for node in result.graph.node)


def test_constant_nodes_become_initializers_with_their_names(rng):
    source = model(
        """
        net (float[N,3] x) => (float[N,3] y) {
          w = Constant<value = float[3,3] {1,2,3,4,5,6,7,8,9}>()
          b = Constant<value_floats = [1.0, 2.0, 3.0]>()
          wt = Transpose(w)
          c = MatMul(x, wt)
          y = Add(c, b)
        }"""
    )
    result = normalized(source).proto
    assert operators(result) == ["MatMul", "Add"]
    np.testing.assert_array_equal(initializers(result)["wt"], np.arange(1, 10, dtype=np.float32).reshape(3, 3).T)
    np.testing.assert_array_equal(initializers(result)["b"], np.array([1, 2, 3], np.float32))
    assert_same_outputs(source.proto, result, rng)


def test_shared_weights_stay_shared(rng):
    source = model(
        "net (float[N,3] x) => (float[N,3] y) { i = Identity(w)  a = MatMul(x, i)  y = MatMul(a, w) }",
        {"w": rng.standard_normal((3, 3))},
    )
    result = normalized(source).proto
    assert [node.input[1] for node in result.graph.node] == ["w", "w"]


@pytest.mark.parametrize(
    ("body", "left"),
    [
        ("y = Identity(x)", ["Identity"]),  # an output cannot be an input
        ("a = Identity(x)  b = Identity(a)  y = Relu(b)", ["Relu"]),
        ("a = Relu(x)  z = Neg(a)  b = Identity(a)  y = Add(b, z)", ["Relu", "Neg", "Add"]),
        ("a = Relu(x)  y = Identity(a)  z = Neg(a)", ["Relu"]),
        ("a = Dropout(x)  y = Relu(a)", ["Relu"]),
        ("a, m = Dropout(x, ratio, training)  y = Relu(a)", ["Relu"]),
        ("a, m = Dropout(x, ratio, training)  n = Cast<to=1>(m)  y = Mul(a, n)", ["Dropout", "Cast", "Mul"]),
        ("a = Cast<to=1>(x)  y = Relu(a)", ["Relu"]),
        ("a = Cast<to=7>(x)  y = Cast<to=1>(a)", ["Cast", "Cast"]),
    ],
)
def test_noops_go(body, left, rng):
    weights = {"ratio": np.array(0.5, np.float32), "training": np.array(False)}
    weights = {name: value for name, value in weights.items() if name in body}
    source = model(f"net (float[N,3] x) => (float[N,3] y) {{ {body} }}", weights)
    result = normalized(source).proto
    assert operators(result) == left
    assert_same_outputs(source.proto, result, rng)


def test_two_outputs_of_one_value_both_stay(rng):
    source = model("net (float[3] x) => (float[3] y, float[3] z) { a = Relu(x)  y = Identity(a)  z = Identity(a) }")
    assert_same_outputs(source.proto, normalized(source).proto, rng)


def test_constant_outputs_stay_nodes(rng):
    source = model(
        "net (float[3] x) => (float[3] y, float[3] z) { y = Relu(x)  z = Add(w, w) }", {"w": [1.0, 2.0, 3.0]}
    )
    result = normalized(source).proto
    assert operators(result) == ["Relu", "Add"]
    assert_same_outputs(source.proto, result, rng)


SHAPE_CHAIN = """
net (float[N,3,H,W] x) => (float[N,R] y) {
  s = Shape(x)
  n = Gather(s, zero)
  n1 = Unsqueeze(n, axes)
  t = Concat<axis=0>(n1, minus)
  y = Reshape(x, t)
}"""
CHAIN_CONSTANTS = {"zero": np.array(0), "axes": np.array([0]), "minus": np.array([-1])}


def test_shape_chains_fold_once_shapes_are_fixed(rng):
    source = model(SHAPE_CHAIN, CHAIN_CONSTANTS)
    assert "Shape" in operators(normalized(source).proto)
    result = normalized(source, shapes={"x": (2, 3, 4, 5)}).proto
    assert operators(result) == ["Reshape"]
    assert shapes(result)["x"] == [2, 3, 4, 5]
    assert shapes(result)["y"] == [2, 60]
    assert_same_outputs(source.proto, result, rng)


def test_known_dimensions_fold_out_of_an_open_shape(rng):
    constants = {"one": np.array(1), "axes": np.array([0]), "minus": np.array([-1])}
    source = model(SHAPE_CHAIN.replace("zero", "one"), constants)
    result = normalized(source).proto
    assert operators(result) == ["Reshape"]
    assert initializers(result)["t"].tolist() == [3, -1]
    assert shapes(result)["x"] == ["N", 3, "H", "W"]
    assert_same_outputs(source.proto, result, rng)


def test_declared_shapes_that_are_out_of_date_are_dropped(rng):
    source = model("net (float[N,3] x) => (float[N,3] y) <float[7,3] a> { a = Relu(x)  y = Neg(a) }")
    assert shapes(normalized(source).proto)["a"] == ["N", 3]
    assert shapes(normalized(source, batch=2).proto)["a"] == [2, 3]


def test_a_declared_shape_counts_where_inference_has_none():
    source = model("net (float[N,3] x) => (float[2,3] y) <float[2,3] a> { a = com.example.Own(x)  y = Relu(a) }")
    result = normalized(source).proto
    assert shapes(result)["a"] == [2, 3]
    assert shapes(normalized(source, batch=2).proto)["y"] == [2, 3]


@pytest.mark.parametrize(("value", "left"), [(True, "Relu"), (False, "Neg")])
def test_if_with_constant_condition_becomes_its_branch(value, left, rng):
    text = """
    net (float[3] x) => (float[3] y) {
      o = Add(x, x)
      z = If (condition) <
        then_branch = yes () => (float[3] t) { a = Relu(o)  t = Identity(a) },
        else_branch = no () => (float[3] e) { a = Neg(o)  e = Identity(a) }
      >
      z2 = If (condition) <
        then_branch = yes () => (float[3] t) { a = Relu(z)  t = Identity(a) },
        else_branch = no () => (float[3] e) { a = Neg(z)  e = Identity(a) }
      >
      y = Add(z, z2)
    }"""
    source = model(text, {"condition": np.array(value)})
    result = normalized(source).proto
    assert operators(result) == ["Add", left, left, "Add"]
    assert_same_outputs(source.proto, result, rng)


def test_an_if_that_stays_sees_rewritten_tensors(rng):
    text = """
    net (float[3] x, bool c) => (float[3] y) {
      i = Identity(x)
      w2 = Add(w, w)
      y = If (c) <
        then_branch = yes () => (float[3] t) { t = Add(i, w2) },
        else_branch = no () => (float[3] e) { e = Neg(i) }
      >
    }"""
    source = model(text, {"w": [1.0, 2.0, 3.0]})
    result = normalized(source).proto
    assert operators(result) == ["If"]
    for value in (True, False):
        feeds = {"x": rng.standard_normal(3).astype(np.float32), "c": np.array(value)}
        assert_same_outputs(source.proto, result, rng, feeds=feeds)


def test_an_if_that_stays_reads_constants_that_nothing_rewrites(rng):
    text = """
    net (float[3] x, bool c) => (float[3] y, float[3] z) {
      k = Constant <value = float[3] {1.0, 2.0, 3.0}> ()
      z = Add(x, k)
      y = If (c) <
        then_branch = yes () => (float[3] t) { i = Identity(k) t = Add(x, i) },
        else_branch = no () => (float[3] e) { two = Constant <value = float[3] {4.0, 5.0, 6.0}> () e = Mul(x, two) }
      >
    }"""
    source = model(text, {})
    result = normalized(source).proto
    assert "If" in operators(result)
    for value in (True, False):
        feeds = {"x": rng.standard_normal(3).astype(np.float32), "c": np.array(value)}
        assert_same_outputs(source.proto, result, rng, feeds=feeds)


def test_folding_does_not_store_large_constants(rng):
    source = model(
        """
        net (float[1,4096] x) => (float[1,4096] y) {
          big = ConstantOfShape<value = float[1] {0.5}>(large)
          little = ConstantOfShape<value = float[1] {0.5}>(small)
          a = MatMul(x, big)
          y = Add(a, little)
        }""",
        {"large": np.array([4096, 4096]), "small": np.array([1, 4096])},
    )
    result = normalized(source).proto
    assert operators(result) == ["ConstantOfShape", "MatMul", "Add"]
    assert initializers(result)["little"].shape == (1, 4096)


def test_a_weight_still_in_use_is_not_copied(rng, monkeypatch):
    monkeypatch.setattr(normalize_module, "_FOLD_GROWTH", 100)
    weight = {"w": rng.standard_normal((8, 8))}
    tied = model(
        "net (float[N,8] x) => (float[N,8] y) { a = MatMul(x, w)  t = Transpose(w)  y = MatMul(a, t) }", weight
    )
    assert "Transpose" in operators(normalized(tied).proto)
    own = model("net (float[N,8] x) => (float[N,8] y) { t = Transpose(w)  y = MatMul(x, t) }", weight)
    assert operators(normalized(own).proto) == ["MatMul"]


def test_random_and_foreign_nodes_stay():
    source = model(
        """
        net (float[3] x) => (float[3] y) {
          r = RandomNormal<shape=[3]>()
          u = com.example.Own(w)
          a = Add(x, r)
          y = Add(a, u)
        }""",
        {"w": [1.0, 2.0, 3.0]},
    )
    assert sorted(operators(normalized(source).proto)) == ["Add", "Add", "Own", "RandomNormal"]


BATCH_NORM = {"scale": (4,), "shift": (4,), "mean": (4,)}
LINEAR = {
    "conv": ("Conv<pads=[1,1,1,1]>(x, w)", (4, 3, 3, 3)),
    "conv-bias": ("Conv(x, w, b)", (4, 3, 1, 1)),
    "conv-transpose": ("ConvTranspose<strides=[2,2]>(x, w, b)", (3, 4, 2, 2)),
}


def batch_norm_weights(rng, **more):
    weights = {name: rng.standard_normal(shape) for name, shape in (BATCH_NORM | more).items()}
    return weights | {"variance": rng.uniform(0.5, 2, 4)}


@pytest.mark.parametrize("case", LINEAR)
def test_batch_norm_folds_into_convolutions(case, rng):
    linear, shape = LINEAR[case]
    weights = batch_norm_weights(rng, w=shape, b=(4,))
    text = f"""
    net (float[N,3,6,6] x) => (float[N,4,H,W] y) {{
      c = {linear}
      n = BatchNormalization<epsilon=0.01>(c, scale, shift, mean, variance)
      y = Relu(n)
    }}"""
    source = model(text, weights)
    kept = normalize(source, fold_batch_norm=False).proto
    assert "BatchNormalization" in operators(kept)
    folded = normalize(source, fold_batch_norm=True).proto
    assert operators(folded) == [linear.split("<")[0].split("(")[0], "Relu"]
    assert set(initializers(folded)) == {"w", "b" if "b)" in linear else "w_bias"}
    assert_same_outputs(source.proto, folded, rng)


def test_batch_norm_folds_into_grouped_transposed_convolution(rng):
    text = """
    net (float[N,4,5,5] x) => (float[N,4,H,W] y) {
      c = ConvTranspose<group=2>(x, w)
      y = BatchNormalization(c, scale, shift, mean, variance)
    }"""
    source = model(text, batch_norm_weights(rng, w=(4, 2, 3, 3)))
    folded = normalize(source, fold_batch_norm=True).proto
    assert operators(folded) == ["ConvTranspose"]
    assert_same_outputs(source.proto, folded, rng)


@pytest.mark.parametrize("bias", [(4,), (1, 4), (1,), ()])
@pytest.mark.parametrize("transposed", [0, 1])
def test_batch_norm_folds_into_gemm(transposed, bias, rng):
    text = f"""
    net (float[N,3] x) => (float[N,4] y) {{
      c = Gemm<transB={transposed}, alpha=0.5, beta=2.0>(x, w, b)
      y = BatchNormalization(c, scale, shift, mean, variance)
    }}"""
    source = model(text, batch_norm_weights(rng, w=(4, 3) if transposed else (3, 4), b=bias))
    folded = normalize(source, fold_batch_norm=True).proto
    assert operators(folded) == ["Gemm"]
    assert_same_outputs(source.proto, folded, rng)


def test_channel_factors_and_offsets_fold_too(rng):
    weights = batch_norm_weights(rng, w=(4, 3, 1, 1), m=(4, 1, 1), a=(1, 4, 1, 1), s=())
    text = """
    net (float[N,3,5,5] x) => (float[N,4,5,5] y) {
      c = Conv(x, w)
      n = BatchNormalization(c, scale, shift, mean, variance)
      p = Mul(m, n)
      q = Add(p, a)
      r = Sub(s, q)
      t = Div(r, m)
      y = Relu(t)
    }"""
    source = model(text, weights)
    folded = normalize(source, fold_batch_norm=True).proto
    assert operators(folded) == ["Conv", "Relu"]
    assert_same_outputs(source.proto, folded, rng)


@pytest.mark.parametrize(
    "body",
    [
        "c = Conv(x, w)  n = BatchNormalization(c, scale, shift, mean, variance)  d = Conv(x, w)  y = Add(n, d)",
        "c = Conv(x, w)  n = BatchNormalization(c, scale, shift, mean, variance)  y = Add(n, c)",
        "c = Conv(x, w)  n = Mul(c, plane)  y = Relu(n)",
        "c = Conv(x, w)  n = Div(m, c)  y = Relu(n)",
        "c = Conv(x, w)  n, rm, rv = BatchNormalization<training_mode=1>(c, scale, shift, mean, variance)  y = Relu(n)",
    ],
    ids=["shared-weight", "other-reader", "spatial-factor", "reciprocal", "training"],
)
def test_what_cannot_fold_stays(body, rng):
    weights = batch_norm_weights(rng, w=(4, 3, 1, 1), m=(4, 1, 1), plane=(5, 5))
    source = model(f"net (float[N,3,5,5] x) => (float[N,4,5,5] y) {{ {body} }}", weights)
    folded = normalize(source, fold_batch_norm=True).proto
    assert sorted(operators(folded)) == sorted(operators(source.proto))
    assert_same_outputs(source.proto, folded, rng)


def test_batch_norm_of_a_graph_output_stays(rng):
    text = """
    net (float[N,3,5,5] x) => (float[N,4,5,5] c, float[N,4,5,5] y) {
      c = Conv(x, w)
      y = BatchNormalization(c, scale, shift, mean, variance)
    }"""
    source = model(text, batch_norm_weights(rng, w=(4, 3, 1, 1)))
    folded = normalize(source, fold_batch_norm=True).proto
    assert operators(folded) == ["Conv", "BatchNormalization"]
    assert_same_outputs(source.proto, folded, rng)


def test_a_shared_bias_is_not_changed_for_others(rng):
    text = """
    net (float[N,3,5,5] x) => (float[N,4,5,5] y) {
      c = Conv(x, w, b)
      n = BatchNormalization(c, scale, shift, mean, variance)
      d = Conv(n, v, b)
      y = Relu(d)
    }"""
    source = model(text, batch_norm_weights(rng, w=(4, 3, 1, 1), v=(4, 4, 1, 1), b=(4,)))
    folded = normalize(source, fold_batch_norm=True).proto
    assert operators(folded) == ["Conv", "Conv", "Relu"]
    assert_same_outputs(source.proto, folded, rng)


def test_masks_follow_the_weights_that_stay(rng):
    source = model(
        "net (float[N,3] x) => (float[N,3] y) { t = Transpose(v)  a = MatMul(x, w)  y = MatMul(a, t) }",
        {"w": rng.standard_normal((3, 3)), "v": rng.standard_normal((3, 3))},
    )
    masks = {"w": np.eye(3, dtype=bool), "v": np.eye(3, dtype=bool)}
    result = normalized(Model(source.proto, "m", masks))
    assert set(result.masks) == {"w"}
    assert result.provenance[-1]["pass"] == "normalize"


@pytest.mark.parametrize("half", [TensorProto.FLOAT16, TensorProto.BFLOAT16], ids=["float16", "bfloat16"])
def test_half_precision_becomes_float32(half, rng):
    weight = rng.standard_normal((3, 4)).astype(helper.tensor_dtype_to_np_dtype(half))
    nodes = [
        helper.make_node("Cast", ["x"], ["h"], to=half),
        helper.make_node("MatMul", ["h", "w"], ["m"]),
        helper.make_node("Constant", [], ["one"], value=helper.make_tensor("", half, [], [1.0])),
        helper.make_node("Add", ["m", "one"], ["y"]),
    ]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3])]
    outputs = [helper.make_tensor_value_info("y", half, ["N", 4])]
    graph = helper.make_graph(nodes, "half", inputs, outputs, [numpy_helper.from_array(weight, "w")])
    source = Model(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), "half")
    result = normalized(source).proto
    assert operators(result) == ["MatMul", "Add"]
    feeds = random_inputs(result, rng)
    (actual,) = run(result, feeds)
    np.testing.assert_allclose(actual, feeds["x"] @ weight.astype(np.float32) + 1, rtol=1e-6)


TWO_INPUTS = """
net (float[N,3,H] x, float[N,H] z) => (float[N,3] y) {
  r = Unsqueeze(z, two)  m = MatMul(x, r)  y = Squeeze(m, two)
}"""


def test_named_dimensions_hold_for_all_inputs():
    source = model(TWO_INPUTS, {"two": np.array([2])})
    result = normalized(source, shapes={"x": (5, 3, 7)}).proto
    assert shapes(result)["z"] == [5, 7]
    assert shapes(result)["y"] == [5, 3]


@pytest.mark.parametrize(
    ("shapes", "batch", "error", "message"),
    [
        ({"q": (1,)}, None, OptionError, "'q', given a shape, is no input of the model; its inputs: 'x', 'z'"),
        ({"x": (1, 3)}, None, OptionError, r"input 'x' has 3 dimensions \(N, 3, H\); the shape given has 2"),
        ({"x": (1, 4, 5)}, None, OptionError, "input 'x', dimension 1: the shape given says 4, the model 3"),
        (
            {"x": (1, 3, 5), "z": (1, 6)},
            None,
            OptionError,
            "input 'z', dimension 1: the shape given says 6, the model 5",
        ),
        (
            None,
            4,
            UnsupportedError,
            r"input 'x', dimension 2 \('H'\) is dynamic; give its size with --shape x=4,3,H, in a recipe with `shapes`",
        ),
        ({}, None, UnsupportedError, r"input 'x', dimension 0 \('N'\) is dynamic"),
    ],
)
def test_shapes_that_do_not_fit(shapes, batch, error, message):
    with pytest.raises(error, match=message):
        normalized(model(TWO_INPUTS, {"two": np.array([2])}), shapes=shapes, batch=batch)


def test_unnamed_dimensions_are_independent():
    source = model("net (float[N,3,H,W] x) => (float[N,3,H,W] y) { y = Relu(x) }")
    for dim in source.proto.graph.input[0].type.tensor_type.shape.dim:
        if dim.dim_param:
            dim.dim_param = "?"
    assert shapes(normalized(source, shapes={"x": (1, 3, 48, 192)}).proto)["y"] == [1, 3, 48, 192]


def test_an_input_without_shape_needs_one():
    source = model("net (float[N] x) => (float[N] y) { y = Relu(x) }")
    source.proto.graph.input[0].type.tensor_type.ClearField("shape")
    with pytest.raises(UnsupportedError, match="input 'x' has no shape; give it with --shape x="):
        normalized(source, batch=1)
    assert shapes(normalized(source, shapes={"x": (2, 3)}).proto)["y"] == [2, 3]


def test_an_input_that_is_no_tensor_is_refused():
    source = model("net (seq(float[N]) x) => (float[N] y) { y = ConcatFromSequence<axis=0>(x) }")
    with pytest.raises(UnsupportedError, match="input 'x' is no tensor"):
        normalized(source, batch=1)


def test_nodes_get_unique_names(rng):
    source = model("net (float[3] x) => (float[3] y) { a = Relu(x)  b = Neg(a)  y = Relu(b) }")
    source.proto.graph.node[1].name = source.proto.graph.node[2].name = "mine"
    names = [node.name for node in normalized(source).proto.graph.node]
    assert names == ["Relu:a", "mine", "mine_2"]


def test_normalizing_twice_changes_nothing(rng):
    for path in LIGHT[5:7]:
        once = normalize(load_model(path), batch=1, fold_batch_norm=True)
        assert normalize(once, batch=1, fold_batch_norm=True).proto == once.proto
