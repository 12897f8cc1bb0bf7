"""The model whose weights are those of a library with narrower ones."""

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

import lwc_compiler as lwc
from lwc_compiler.codegen.result import LayerDecision
from lwc_compiler.errors import OptionError, RoundingError
from lwc_compiler.kernels.weight_types import WeightType
from lwc_compiler.model import Model
from lwc_compiler.passes.lower import check_weight_type
from lwc_compiler.passes.stored_weights import with_stored_weights
from lwc_compiler.recipe.options import LowerOptions, Recipe
from lwc_compiler.targets import all_targets

GENERATOR = np.random.default_rng(0)
WEIGHT = GENERATOR.standard_normal((6, 6)).astype(np.float32)


def model(*nodes):
    """Nodes that read x (6, 6) and the constant w (6, 6)."""
    outputs = [helper.make_tensor_value_info(node.output[0], TensorProto.FLOAT, (6, 6)) for node in nodes]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, (6, 6))
    graph = helper.make_graph(nodes, "shared", [x], outputs, [numpy_helper.from_array(WEIGHT, "w")])
    return Model(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), "shared"
    )  # fmt: skip


def decision(node, op, weight_type):
    return LayerDecision("w", node, op, (6, 6), 1.0, "csr", "k", 1, 1, 1, 1, "", weight_type=weight_type)


def rounded_along(axis, kind="int8", factor=1.0):
    weight = np.moveaxis(WEIGHT * np.float32(factor), axis, 0)
    return np.moveaxis(WeightType(kind).rounded(weight), 0, axis) / np.float32(factor)


def test_scales_are_those_of_the_output_channels_of_each_node():
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["right"], name="right"),
        helper.make_node("MatMul", ["w", "x"], ["left"], name="left"),
        helper.make_node("Gemm", ["x", "w"], ["plain"], name="plain", alpha=0.3),
        helper.make_node("Gemm", ["x", "w"], ["turned"], name="turned", transB=1),
        helper.make_node("MatMul", ["x", "w"], ["kept"], name="kept"),
    ]
    kinds = {"right": "int8", "left": "int8", "plain": "float16", "turned": "int8", "kept": "float32"}
    layers = [decision(node.name, node.op_type, kinds[node.name]) for node in nodes]
    stored = with_stored_weights(model(*nodes), layers)
    tensors = {t.name: numpy_helper.to_array(t) for t in stored.proto.graph.initializer}
    used = {n.name: tensors[next(i for i in n.input if i != "x")] for n in stored.proto.graph.node}
    np.testing.assert_array_equal(used["right"], rounded_along(1))
    np.testing.assert_array_equal(used["left"], rounded_along(0))
    np.testing.assert_array_equal(used["plain"], rounded_along(1, "float16", 0.3))
    np.testing.assert_array_equal(used["turned"], rounded_along(0))
    np.testing.assert_array_equal(used["kept"], WEIGHT)
    assert stored.provenance[-1]["weight_types"] == {name: kind for name, kind in kinds.items() if kind != "float32"}


def test_a_change_above_the_limit_is_refused(mlp, tmp_path):
    options = LowerOptions(target="c", weight_type="int8", max_rounding_error=1e-5)
    with pytest.raises(RoundingError, match=r"int8, output 'y' moves by 0\.0\d+ .*8 random inputs.*at most 1e-05"):
        lwc.compile(mlp, tmp_path / "mlp.lwc", Recipe(lower=options))
    assert not (tmp_path / "mlp.lwc").exists()


def test_the_change_is_measured_on_data_where_there_is_some(lwc, mlp, mlp_data, tmp_path):
    out = tmp_path / "mlp.lwc"
    done = lwc(
        "compile", mlp, "-o", out, "--target", "c", "--weight-type", "int8", "--train-data", mlp_data, "--epochs", 1,
        "--sparsity", 0.5, "--prune-first",
    )  # fmt: skip
    assert done.code == 0, done.err
    assert "rounding  outputs move by at most 0.0" in done.out
    assert f"samples of {mlp_data}" in done.out
    assert "these have them in fewer bytes: 2 as int8" in (out / "README.md").read_text()
    report = (out / "report.md").read_text()
    assert "constants, if all weights were float32" in report
    assert " int8 |" in report


@pytest.mark.parametrize("target", [t.name for t in all_targets() if t.os != "none"])
def test_targets_without_narrower_weights_refuse_them(target):
    with pytest.raises(OptionError, match=rf"code for {target} has its weights in float32; int8 is there for cortex-m"):
        check_weight_type(LowerOptions(target=target, weight_type="int8"))
