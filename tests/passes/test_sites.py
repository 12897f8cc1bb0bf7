import math

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper, parser

from lwc_compiler.passes.sites import constant_tensors, find_sites, node_label


def random(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def model_of(text, **weights):
    """An ONNX text model whose initializers are `weights`."""
    proto = parser.parse_model('<ir_version: 10, opset_import: ["" : 17]>' + text)
    proto.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in weights.items())
    return proto


def only_site(proto):
    (site,) = find_sites(proto)
    return site


def run(proto, **inputs):
    return onnxruntime.InferenceSession(proto.SerializeToString()).run(None, inputs)[0]


def test_first_layer_and_shared_weight_and_labels():
    proto = model_of(
        """agraph (float[N, 4] x, float[N, 4] y) => (float[N, 4] out) {
            [hidden] a = MatMul (x, w)
            b = MatMul (y, w)
            s = Add (a, b)
            [last] out = Gemm (s, v)
        }""",
        w=random(4, 4),
        v=random(4, 4),
    )
    shared, last = find_sites(proto)
    assert shared.nodes == ("hidden", "MatMul:b")
    assert shared.inputs == ("x", "y")
    assert shared.outputs == ("a", "b")
    assert shared.op_types == ("MatMul", "MatMul")
    assert shared.first
    assert not last.first
    assert last.nodes == ("last",)
    assert last.weight == "v"
    assert last.other_uses == ()


def test_a_site_behind_another_site_on_one_of_two_paths_is_not_first():
    proto = model_of(
        """agraph (float[N, 4] x) => (float[N, 4] out) {
            a = MatMul (x, w)
            s = Add (a, x)
            out = MatMul (s, v)
        }""",
        w=random(4, 4),
        v=random(4, 4),
    )
    assert [site.first for site in find_sites(proto)] == [True, False]


def test_a_layer_behind_an_embedding_is_not_first():
    proto = model_of(
        """agraph (int64[N] ids) => (float[N, 4] out) {
            e = Gather (table, ids)
            out = MatMul (e, w)
        }""",
        table=random(10, 4),
        w=random(4, 4),
    )
    assert not only_site(proto).first


@pytest.mark.parametrize(
    ("shape", "groups", "depthwise"), [((6, 1, 3, 3), 6, True), ((12, 1, 3, 3), 6, True), ((6, 2, 3, 3), 3, False)]
)
def test_depthwise_convolution(shape, groups, depthwise):
    text = "agraph (float[1, C, 8, 8] x) => (float[1, M, H, W] out) { out = Conv <group=GROUPS> (x, w) }"
    proto = model_of(text.replace("GROUPS", str(groups)), w=random(*shape))
    site = only_site(proto)
    assert site.groups == groups
    assert site.depthwise is depthwise
    assert site.matrix_shape == (shape[0], math.prod(shape[1:]))


def test_depthwise_transposed_convolution():
    proto = model_of(
        "agraph (float[1, 4, 8, 8] x) => (float[1, M, H, W] out) { out = ConvTranspose <group=4> (x, w) }",
        w=random(4, 2, 3, 3),
    )
    site = only_site(proto)
    assert site.depthwise
    assert site.matrix_shape == (8, 9)


def test_convolution_with_one_group_and_one_input_channel_is_not_depthwise():
    proto = model_of("agraph (float[1, C, 8, 8] x) => (float[1, 4, H, W] o) { o = Conv (x, w) }", w=random(4, 1, 3, 3))
    assert not only_site(proto).depthwise


# Each body computes `out` with 3 output channels from 5 inputs; the matrix view must give matrix @ inputs.
LINEAR = {
    "gemm": ("out = Gemm (x, w)", (5, 3)),
    "gemm-transB": ("out = Gemm <transB=1> (x, w)", (3, 5)),
    "matmul": ("out = MatMul (x, w)", (5, 3)),
    "identity": ("v = Identity (w) out = MatMul (x, v)", (5, 3)),
    "transpose": ("v = Transpose <perm=[1, 0]> (w) out = MatMul (x, v)", (3, 5)),
    "transpose-twice": ("u = Transpose (w) v = Transpose (u) out = MatMul (x, v)", (5, 3)),
    "transpose-transB": ("v = Transpose (w) out = Gemm <transB=1> (x, v)", (5, 3)),
}


@pytest.mark.parametrize("case", LINEAR)
def test_matrix_view_of_a_right_operand(case):
    body, shape = LINEAR[case]
    weight, x = random(*shape), random(4, 5, seed=1)
    proto = model_of(f"agraph (float[4, 5] x) => (float[4, 3] out) {{ {body} }}", w=weight)
    site = only_site(proto)
    assert site.weight == "w"
    np.testing.assert_allclose(run(proto, x=x), x @ site.to_matrix(weight).T, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("body", "shape"),
    [
        ("out = MatMul (w, x)", (3, 5)),
        ("out = Gemm (w, x)", (3, 5)),
        ("out = Gemm <transA=1> (w, x)", (5, 3)),
        ("v = Transpose (w) out = MatMul (v, x)", (5, 3)),
    ],
)
def test_matrix_view_of_a_left_operand(body, shape):
    weight, x = random(*shape), random(5, 4, seed=1)
    proto = model_of(f"agraph (float[5, 4] x) => (float[3, 4] out) {{ {body} }}", w=weight)
    site = only_site(proto)
    np.testing.assert_allclose(run(proto, x=x), site.to_matrix(weight) @ x, rtol=1e-5, atol=1e-6)


def test_matrix_view_of_a_batched_operand():
    weight, x = random(2, 5, 3), random(2, 4, 5, seed=1)
    proto = model_of("agraph (float[2, 4, 5] x) => (float[2, 4, 3] out) { out = MatMul (x, w) }", w=weight)
    site = only_site(proto)
    matrix = site.to_matrix(weight)
    assert matrix.shape == site.matrix_shape == (6, 5)
    expected = np.stack([x[batch] @ matrix[3 * batch : 3 * batch + 3].T for batch in range(2)])
    np.testing.assert_allclose(run(proto, x=x), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("operator", ["Conv", "ConvTranspose"])
def test_rows_of_a_convolution_are_its_output_channels(operator, groups):
    inputs, outputs = 4, 8
    shape = (outputs, inputs // groups, 3, 2) if operator == "Conv" else (inputs, outputs // groups, 3, 2)
    weight = random(*shape)
    text = (
        f"agraph (float[1, {inputs}, 6, 6] x) => (float[1, M, H, W] out) {{ out = {operator} <group={groups}> (x, w) }}"
    )
    x = random(1, inputs, 6, 6, seed=1)
    site = only_site(model_of(text, w=weight))
    rows, columns = site.matrix_shape
    assert (rows, columns) == (outputs, inputs // groups * 6)
    matrix = site.to_matrix(weight).copy()
    matrix[3] = 0  # clears output channel 3 and no other
    matrix[:, : columns // (inputs // groups)] = 0  # clears the first input channel of every group
    cleared = run(model_of(text, w=site.from_matrix(matrix)), x=x)
    assert not cleared[:, 3].any()
    x[:, :: inputs // groups] = 0
    expected = run(model_of(text, w=weight), x=x)
    expected[:, 3] = 0
    np.testing.assert_allclose(cleared, expected, rtol=1e-5, atol=1e-6)


@settings(deadline=None, max_examples=60)
@given(st.sampled_from([1, 2, 3]), st.integers(1, 4), st.integers(1, 4), st.integers(1, 3), st.booleans())
def test_from_matrix_inverts_to_matrix(groups, inputs, outputs, kernel, transposed):
    operator = "ConvTranspose" if transposed else "Conv"
    shape = (groups * inputs, outputs, kernel, 2) if transposed else (groups * outputs, inputs, kernel, 2)
    weight = random(*shape)
    proto = model_of(
        f"agraph (float[1, C, 9, 9] x) => (float[1, M, H, W] o) {{ o = {operator} <group={groups}> (x, w) }}",
        w=weight,
    )
    site = only_site(proto)
    assert site.matrix_shape == (groups * outputs, inputs * kernel * 2)
    np.testing.assert_array_equal(site.from_matrix(site.to_matrix(weight)), weight)


def test_constant_node_is_a_weight():
    weight = random(4, 3)
    constant = helper.make_node("Constant", [], ["w"], value=numpy_helper.from_array(weight))
    proto = model_of("agraph (float[N, 4] x) => (float[N, 3] out) { out = MatMul (x, w) }")
    proto.graph.node.insert(0, constant)
    assert only_site(proto).weight == "w"
    np.testing.assert_array_equal(numpy_helper.to_array(constant_tensors(proto.graph)["w"]), weight)


def test_other_uses_are_listed():
    proto = model_of(
        """agraph (int64[N] ids, bool c) => (float[N, 6] out, float[6, 4] w, float[4] z) {
            [embed] e = Gather (w, ids)
            t = Transpose (w)
            [head] out = MatMul (e, t)
            [branch] z = If (c) <
                then_branch = yes () => (float[4] p) { r = ReduceSum <keepdims=0> (w, axes)  p = Identity (r) },
                else_branch = no () => (float[4] q) { q = Identity (zeros) }
            >
        }""",
        w=random(6, 4),
        axes=np.array([0]),
        zeros=np.zeros(4, np.float32),
    )
    assert only_site(proto).other_uses == ("Gather 'embed'", "If 'branch'", "graph output")


def test_weight_used_as_a_bias_too_is_listed():
    proto = model_of("agraph (float[4, 4] x) => (float[4, 4] out) { [g] out = Gemm (x, w, w) }", w=random(4, 4))
    assert only_site(proto).other_uses == ("Gemm 'g'",)


@pytest.mark.parametrize(
    ("body", "weight"),
    [
        ("out = MatMul (x, x)", random(4, 4)),
        ("out = MatMul (w, w)", random(4, 4)),
        ("out = Add (x, w)", random(4, 4)),
        ("out = MatMul (x, w)", np.ones((4, 4), np.int32)),
        ("out = MatMul (x, w)", random(4)),
        ("out = MatMul (x, w)", random(4, 0)),
        ('out = "my.domain".MatMul (x, w)', random(4, 4)),
        ("v = DequantizeLinear (w, s)  out = MatMul (x, v)", np.ones((4, 4), np.int8)),
    ],
    ids=["no-constant", "all-constant", "not-linear", "integer", "vector", "empty", "other-domain", "quantized"],
)
def test_not_a_site(body, weight):
    body = body.replace('"my.domain".', "my.domain.")
    proto = model_of(f"agraph (float[4, 4] x) => (float[4, 4] out) {{ {body} }}", w=weight, s=np.array(0.5, np.float32))
    assert find_sites(proto) == []


def test_constant_data_of_a_convolution_is_not_a_weight():
    proto = model_of(
        "agraph (float[2, 3, 3, 3] x) => (float[1, 2, 2, 2] out) { out = Conv (data, x) }", data=random(1, 3, 4, 4)
    )
    assert find_sites(proto) == []


def test_float16_weight_is_a_site_of_its_type():
    proto = model_of("agraph (float16[N, 4] x) => (float16[N, 4] o) { o = MatMul (x, w) }", w=random(4, 4).astype("f2"))
    assert only_site(proto).dtype == "float16"


def test_weights_that_old_models_list_as_inputs_are_constants():
    proto = model_of("agraph (float[N, 4] x, float[4, 4] w) => (float[N, 4] o) { o = MatMul (x, w) }", w=random(4, 4))
    proto.ir_version = 3
    assert only_site(proto).first


def test_label_of_an_unnamed_node_skips_omitted_outputs():
    assert node_label(helper.make_node("Dropout", ["x"], ["", "mask"])) == "Dropout:mask"
    assert node_label(helper.make_node("Relu", ["x"], ["y"], name="act")) == "act"


def test_finding_sites_leaves_the_model_alone():
    proto = model_of("agraph (float[N, 4] x) => (float[N, 4] out) { out = MatMul (x, w) }", w=random(4, 4))
    before = proto.SerializeToString()
    find_sites(proto)
    assert proto.SerializeToString() == before
    onnx.checker.check_model(proto)
    assert proto.graph.initializer[0].data_type == TensorProto.FLOAT
