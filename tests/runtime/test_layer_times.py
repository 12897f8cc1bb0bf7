import numpy as np
import pytest

from lwc_compiler.codegen.result import LayerDecision, ProgramInfo, StepInfo
from lwc_compiler.runtime.layer_times import COPIES, layer_times, milliseconds

PROGRAM = ProgramInfo(
    "x86-64-v3",
    (
        StepInfo("fc", "transpose", ""),
        StepInfo("fc", "conv_csr", "csr"),
        StepInfo("", "softmax", ""),
        StepInfo("scores", "gemm_batched", ""),
        StepInfo("", "softmax", ""),
    ),
)
# Seconds of the five steps and of the copies.
PROFILES = [np.array([1.0, 3, 2, 4, 1, 1]), np.array([1.0, 3, 2, 4, 1, 1]), np.array([9.0, 9, 9, 9, 9, 9])]
LAYER = LayerDecision("w", "fc", "Gemm", (4, 5), 0.25, "csr", "conv_csr", 1, 80, 2e9, 8e9, "")


def test_steps_are_summed_up_by_layer_and_others_by_kernel():
    expected = {("fc", ""): 4e3, ("", "softmax"): 3e3, ("scores", ""): 4e3, ("", COPIES): 1e3}
    assert milliseconds(PROGRAM, PROFILES) == expected


def test_entries_have_what_is_known_of_the_layer_and_shares_add_up():
    dense = {("fc", ""): 5e3, ("", "softmax"): 3.5e3, ("other", ""): 1.0}
    fc, softmax, scores, copies = layer_times(PROGRAM, [LAYER], PROFILES, dense)
    assert (fc.layer, fc.kernel, fc.format, fc.density) == ("fc", "transpose + conv_csr", "csr", 0.25)
    assert (fc.ms, fc.dense_ms) == (4e3, 5e3)
    assert fc.gflops == pytest.approx(8 * 0.25 / 4)
    assert (softmax.layer, softmax.kernel, softmax.density, softmax.gflops, softmax.dense_ms) == (
        "", "softmax", None, None, 3.5e3,
    )  # fmt: skip
    assert (scores.layer, scores.kernel, scores.format, scores.dense_ms) == ("scores", "gemm_batched", "", None)
    assert (copies.layer, copies.kernel) == ("", COPIES)
    assert sum(entry.share for entry in (fc, softmax, scores, copies)) == pytest.approx(1)


def test_layers_that_one_kernel_computes_are_one_entry():
    program = ProgramInfo("x86-64-v3", (StepInfo("a", "separable", "csr + dense", ("b",)), StepInfo("", "add", "")))
    layers = [
        LayerDecision("v", "a", "Conv", (10, 10), 0.1, "csr", "separable", 1, 400, 2e8, 2e9, ""),
        LayerDecision("w", "b", "Conv", (5, 20), 1.0, "dense", "separable", 1, 400, 1e9, 1e9, ""),
    ]
    profiles = [np.array([1.0, 0.5, 0.5])]
    assert list(milliseconds(program, profiles)) == [("a + b", ""), ("", "add"), ("", COPIES)]
    both, add, copies = layer_times(program, layers, profiles, {("a", ""): 2e3, ("b", ""): 3e3})
    assert (both.layer, both.kernel, both.format) == ("a + b", "separable", "csr + dense")
    assert both.density == pytest.approx(0.55)
    assert both.gflops == pytest.approx(0.2 + 1.0)
    assert both.dense_ms == 5e3
    assert both.share + add.share + copies.share == pytest.approx(1)
    assert layer_times(program, layers, profiles, {("a", ""): 2e3})[0].dense_ms is None
