"""Models that do not fit a board are refused, with the figures, before lowering where that can be known."""

from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import lwc_compiler as lwc
from lwc_compiler.codegen.footprint import Footprint
from lwc_compiler.codegen.result import TensorSpec
from lwc_compiler.errors import TargetError
from lwc_compiler.passes import lower as lowering
from lwc_compiler.passes.fit import check_estimate, check_lowered
from lwc_compiler.passes.lower import lower
from lwc_compiler.passes.normalize import normalize
from lwc_compiler.targets import find_target

BOARD = find_target("stm32f4")  # 128 KB of RAM, 1 MB of flash


def conv_model(size=8, channels=4, kept=1.0, batch=1):
    """A network x (batch, 3, size, size) -> 3 x 3 convolution -> Relu -> y."""
    weight = np.ones((channels, 3, 3, 3), np.float32)
    weight[: round((1 - kept) * channels)] = 0
    shape = (batch, channels, size - 2, size - 2)
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "w"], ["c"], name="conv"), helper.make_node("Relu", ["c"], ["y"])],
        "conv",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, (batch, 3, size, size))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(weight, "w")],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return normalize(lwc.Model(proto, "conv"), fold_batch_norm=True)


def test_weights_that_do_not_fit_the_flash_are_refused():
    model = conv_model(channels=12000)  # 324,000 weights
    with pytest.raises(
        TargetError, match=r"does not fit stm32f4: its 324,000 kept weights take at least 1,296,000 .*1,048,576"
    ):
        check_estimate(model, BOARD)
    with pytest.raises(TargetError, match=r"sparsity above 0\.191"):
        check_estimate(model, BOARD)
    check_estimate(conv_model(channels=12000, kept=0.8), replace(BOARD, ram_bytes=0))
    check_estimate(model, replace(BOARD, ram_bytes=0), "float16")
    with pytest.raises(TargetError, match=r"take at least 324,000 bytes of flash"):
        check_estimate(model, replace(BOARD, flash_bytes=300_000), "int8")
    check_estimate(model, replace(BOARD, flash_bytes=0, ram_bytes=0))


def test_activations_that_do_not_fit_the_ram_are_refused():
    # 3 x 90 x 90 + 4 x 88 x 88 float32
    with pytest.raises(TargetError, match=r"computes 'c' take 221,104 bytes of RAM, and stm32f4 has 131,072"):
        check_estimate(conv_model(size=90), BOARD)
    check_estimate(conv_model(size=60), BOARD)


def test_images_of_a_batch_may_be_computed_one_by_one():
    check_estimate(conv_model(size=30, batch=4), BOARD)
    with pytest.raises(TargetError, match="inputs and outputs take 186,752 bytes"):
        check_estimate(conv_model(size=30, batch=8), BOARD)


def test_the_lowered_model_is_measured_too():
    tensors = (TensorSpec("x", "float32", (10, 10)), TensorSpec("y", "int64", ()))
    fits = Footprint(code=4000, constants=1_000_000, data=8, zeros=0)
    check_lowered(BOARD, fits, 0, 100_000, tensors)
    with pytest.raises(TargetError, match=r"takes 1,054,008 bytes of flash \(4,000 of code, 1,050,000 of weights"):
        check_lowered(BOARD, replace(fits, constants=1_050_000), 0, 100_000, tensors)
    with pytest.raises(TargetError, match=r"130,816 of workspace, 408 of inputs and outputs, 8 of variables"):
        check_lowered(BOARD, fits, 0, 130_816, tensors)
    with pytest.raises(TargetError, match=r"takes 536,872,408 bytes of RAM .* 536,000,000 of library"):
        check_lowered(find_target("beaglebone"), None, 536_000_000, 872_000, tensors)


def test_nothing_is_lowered_or_written_for_a_board_that_is_too_small(tmp_path, mlp, monkeypatch):
    small = replace(BOARD, flash_bytes=2000)
    monkeypatch.setattr(lowering, "find_target", lambda name: small)
    model = lwc.Model(onnx.load(mlp), "mlp")  # 240 weights, 960 bytes
    options = lwc.LowerOptions(target="stm32f4", batch=1)
    with pytest.raises(TargetError, match=r"the library takes .* Nothing was written"):
        lwc.compile(model, tmp_path / "mlp.lwc", lwc.Recipe(lower=options))
    assert not (tmp_path / "mlp.lwc").exists()
    monkeypatch.setattr(lowering, "find_target", lambda name: replace(small, flash_bytes=900))
    with pytest.raises(TargetError, match="its 240 kept weights take at least 960 bytes"):
        lower(model, options)


def test_what_fits_says_what_it_takes(tmp_path, mlp):
    options = lwc.LowerOptions(target="stm32f4", batch=1)
    artifact = lwc.compile(lwc.Model(onnx.load(mlp), "mlp"), tmp_path / "mlp.lwc", lwc.Recipe(lower=options))
    sizes = artifact.report["sizes"]
    assert 0 < sizes["flash, code"] < sizes["flash"] < artifact.archive.stat().st_size
    assert sizes["flash"] >= sizes["flash, code"] + artifact.manifest.weight_bytes
    assert sizes["RAM, static"] == 0
