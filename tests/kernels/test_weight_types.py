"""Weights in fewer bytes: what is stored is what ONNX's operators and NumPy round to."""

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from lwc_compiler.kernels.choice import Candidate, Task, narrowest
from lwc_compiler.kernels.kernel import Constant, Kernel, Plan, Step
from lwc_compiler.kernels.tap_layout import Axis, Problem, TapLayout, Tiling, pack_taps
from lwc_compiler.kernels.weight_types import WeightType
from lwc_compiler.runtime.reference import reference_session


def onnx_rounding(weight, scales):
    """QuantizeLinear and DequantizeLinear along axis 0: codes, and weights again."""
    graph = helper.make_graph(
        [
            helper.make_node("QuantizeLinear", ["w", "scales", "zero"], ["codes"], axis=0),
            helper.make_node("DequantizeLinear", ["codes", "scales", "zero"], ["again"], axis=0),
        ],
        "rounding",
        [helper.make_tensor_value_info("w", TensorProto.FLOAT, weight.shape)],
        [
            helper.make_tensor_value_info("codes", TensorProto.INT8, weight.shape),
            helper.make_tensor_value_info("again", TensorProto.FLOAT, weight.shape),
        ],
        [
            numpy_helper.from_array(scales, "scales"),
            numpy_helper.from_array(np.zeros(len(weight), np.int8), "zero"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return reference_session(model, 1).run(["codes", "again"], {"w": weight})


def weights(shape=(7, 5, 3)):
    generator = np.random.default_rng(0)
    weight = generator.standard_normal(shape).astype(np.float32) * (generator.random(shape) < 0.7)
    weight[2] = 0  # a channel without weights
    weight[3] *= 1e-30
    return weight.astype(np.float32)


def test_int8_is_quantize_linear_of_onnx():
    weight = weights()
    codes, scales = WeightType("int8").encode(weight)
    expected, again = onnx_rounding(weight, scales)
    np.testing.assert_array_equal(codes, expected)
    np.testing.assert_array_equal(WeightType("int8").rounded(weight), again)
    assert codes.dtype == np.int8
    assert np.abs(codes).reshape(7, -1).max(axis=1).tolist() == [127, 127, 0, 127, 127, 127, 127]
    assert np.abs(again - weight).max() <= 0.5000001 * scales.max()


def test_float16_is_rounded_to_nearest():
    weight = weights()
    codes, scales = WeightType("float16").encode(weight)
    assert scales is None
    np.testing.assert_array_equal(WeightType("float16").rounded(weight), weight.astype(np.float16).astype(np.float32))
    assert WeightType("float16").stored(codes).dtype == np.int16


def test_float32_stays_as_it_is():
    weight = weights()
    np.testing.assert_array_equal(WeightType().rounded(weight), weight)


def test_two_taps_share_a_whole_code():
    """A row of few sums takes its taps in pairs: the last of an odd number is split, also where it is an integer."""
    one = Axis(1, 1, 1, 1, 0, 1)
    problem = Problem(1, 1, 5, 3, one, one, Axis(2, 2, 1, 1, 0, 1))
    layout = TapLayout(problem, Tiling(1, 1, 1, 2, 5, 3))
    assert layout.chains == 2
    codes = np.array([[1, 0, 0, 0, 0], [0, -127, 5, -3, 0], [4, 0, 0, 0, 9]], np.int8)[None]
    (ends, _, values), _ = pack_taps(codes, layout, shared=False)
    assert values.array.dtype == np.int8
    rows = np.split(values.array.astype(int), 2 * ends.array[1:-1])
    assert [row.tolist() for row in rows] == [[1, 0], [-127, 5, -2, -1], [4, 9]]


@pytest.mark.parametrize(
    ("cycles", "stored", "expected"), [(190, 10, "int8"), (210, 10, "float32"), (100, 50, "float32")]
)
def test_narrower_weights_are_taken_where_smaller_and_not_much_slower(cycles, stored, expected):
    def candidate(kind, time, count):
        kernel = Kernel("kernel", None, 1)
        return Candidate(
            "csr", f"csr {kind}", time, lambda: Plan((Step(kernel, (Constant(np.zeros(count, np.uint8)),)),)),
            weight_type=kind,
        )  # fmt: skip

    plan = narrowest(Task("layer", 0.1, (4,), 4), [candidate("float32", 100, 40), candidate("int8", cycles, stored)])
    assert plan.weight_type == expected
    assert f"int8: {stored} bytes, not 40, and {cycles / 100:.2f}x the time" in plan.why
    assert plan.float32_bytes == (40 if expected == "int8" else None)
    assert plan.constant_bytes == (stored if expected == "int8" else 40)


def test_a_kernel_for_float32_alone_says_so():
    plan = Plan((Step(Kernel("kernel", None, 1), ()),))
    chosen = narrowest(Task("layer", 0.1, (4,), 4), [Candidate("csr", "csr", 1.0, lambda: plan)])
    assert chosen.weight_type == "float32"
    assert "reads no other weights" in chosen.why
