from dataclasses import replace

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from lwc_compiler.codegen.result import TensorSpec
from lwc_compiler.errors import NotRunError, TargetError, ToolchainError, UnsupportedError, VerificationError
from lwc_compiler.runtime import verify as module
from lwc_compiler.runtime.reference import random_inputs, reference_session
from lwc_compiler.runtime.verify import relative_error, verify


def test_right_code_is_accepted(twice, twice_model):
    verification = verify(twice_model, twice)
    assert verification.errors == {"doubled": 0.0, "same": 0.0}
    assert verification.worst == 0.0
    assert verification.skipped == ""


def test_wrong_code_is_refused_with_the_output_and_the_figure(make_lowered, twice_model):
    with pytest.raises(VerificationError, match=r"output 'doubled' .* off by 0\.05 of its scale .*at most 0\.0001"):
        verify(twice_model, make_lowered(2.1))


def test_code_for_another_cpu_is_not_run(make_lowered, twice_model, monkeypatch):
    monkeypatch.setattr(module, "missing_features", lambda target: ["avx512f"])
    verification = verify(twice_model, make_lowered(2.1))
    assert verification.errors == {}
    assert verification.skipped == "this CPU cannot run code for x86-64-v3: no avx512f"


class Emulated:
    """What stands in for a session in an emulator."""

    where = "qemu-arm"

    def __init__(self, factor=2.0, error=None):
        self.factor, self.error = factor, error

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass

    def run(self, inputs):
        if self.error:
            raise self.error
        return {"doubled": self.factor * inputs["values"], "same": inputs["ids"]}


def emulate(monkeypatch, session):
    monkeypatch.setattr(module, "open_elsewhere", lambda network, via, threads: session)


def test_code_for_another_machine_is_checked_in_an_emulator(twice, twice_model, monkeypatch):
    foreign = replace(twice, target="cortex-a7")
    emulate(monkeypatch, Emulated())
    verification = verify(twice_model, foreign)
    assert verification.errors == {"doubled": 0.0, "same": 0.0}
    assert (verification.skipped, verification.emulator, verification.rounds) == ("", "qemu-arm", 1)
    emulate(monkeypatch, Emulated(2.1))
    with pytest.raises(VerificationError, match="output 'doubled' of the generated code is off"):
        verify(twice_model, foreign)
    emulate(monkeypatch, Emulated(error=TargetError("it crashed")))
    with pytest.raises(TargetError, match="it crashed"):
        verify(twice_model, foreign)


@pytest.mark.parametrize("error", [NotRunError("still at work after 120 s"), ToolchainError("no qemu-arm")])
def test_an_emulator_that_cannot_say_skips_the_check(twice, twice_model, monkeypatch, error):
    emulate(monkeypatch, Emulated(error=error))
    verification = verify(twice_model, replace(twice, target="cortex-a7"))
    assert (verification.errors, verification.rounds, verification.emulator) == ({}, 0, "")
    assert verification.skipped.startswith("this CPU cannot run code for cortex-a7: no armv7")
    assert verification.skipped.endswith(f"; in an emulator: {error}")


@pytest.mark.parametrize(
    ("actual", "expected", "error"),
    [
        ([1.0, 2.0], [1.0, 2.0], 0.0),
        ([1.0, 2.5], [1.0, 2.0], 0.25),
        ([1e-3, 10.0], [0.0, 10.0], 1e-4),
        ([0.0, 0.5], [0.0, 0.0], 0.5),
        ([np.nan, 1.0], [np.nan, 1.0], 0.0),
        ([np.inf, 1.5], [np.inf, 1.0], 0.5),
        ([np.nan, 1.0], [1.0, 1.0], np.inf),
        ([1.0, 1.0], [np.nan, 1.0], np.inf),
        ([-np.inf, 1.0], [np.inf, 1.0], np.inf),
        ([1.0], [1.0, 1.0], np.inf),
        ([], [], 0.0),
    ],
)
def test_relative_error(actual, expected, error):
    assert relative_error(np.array(actual), np.array(expected)) == pytest.approx(error)


def test_relative_error_of_integers_and_booleans():
    assert relative_error(np.array([2**62, 4]), np.array([2**62, 4])) == 0
    assert relative_error(np.array([True, False]), np.array([True, True])) == 1


def embedding(nodes, tables):
    return helper.make_model(
        helper.make_graph(
            nodes,
            "g",
            [helper.make_tensor_value_info("ids", TensorProto.INT32, [1, 4000])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
            [numpy_helper.from_array(np.zeros(shape, np.float32), name) for name, shape in tables.items()],
        )
    )


@pytest.mark.parametrize(
    ("nodes", "tables", "limit"),
    [
        ([helper.make_node("Gather", ["table", "ids"], ["y"])], {"table": (50, 8)}, 50),
        ([helper.make_node("Gather", ["table", "ids"], ["y"], axis=1)], {"table": (50, 8)}, 8),
        (
            [
                helper.make_node("Cast", ["ids"], ["wide"], to=TensorProto.INT64),
                helper.make_node("Gather", ["a", "wide"], ["x"]),
                helper.make_node("Gather", ["b", "ids"], ["z"]),
                helper.make_node("Add", ["x", "z"], ["y"]),
            ],
            {"a": (30, 8), "b": (20, 8)},
            20,
        ),
        ([helper.make_node("Cast", ["ids"], ["y"], to=TensorProto.FLOAT)], {}, 2),
    ],
)
def test_integers_stay_in_the_table_they_select_from(nodes, tables, limit):
    ids = random_inputs(embedding(nodes, tables), (TensorSpec("ids", "int32", (1, 4000)),), seed=0)["ids"]
    assert ids.dtype == np.int32
    assert ids.min() == 0
    assert ids.max() == limit - 1


def test_random_inputs_have_dtype_and_shape_and_repeat(twice_model):
    specs = tuple(TensorSpec(dtype, dtype, (3, 2)) for dtype in ("float32", "float16", "float64", "uint8", "bool"))
    inputs = random_inputs(twice_model.proto, specs, seed=3)
    assert {name: (str(array.dtype), array.shape) for name, array in inputs.items()} == {
        spec.name: (spec.dtype, spec.shape) for spec in specs
    }
    again = random_inputs(twice_model.proto, specs, seed=3)
    assert all(np.array_equal(inputs[name], again[name]) for name in inputs)


def test_model_that_onnx_runtime_refuses_is_named():
    node = helper.make_node("Mystery", ["x"], ["y"], domain="nobody.knows", name="odd")
    value = (
        helper.make_tensor_value_info("x", TensorProto.FLOAT, [1]),
        helper.make_tensor_value_info("y", TensorProto.FLOAT, [1]),
    )
    proto = helper.make_model(
        helper.make_graph([node], "g", [value[0]], [value[1]]),
        opset_imports=[helper.make_opsetid("", 17), helper.make_opsetid("nobody.knows", 1)],
    )
    with pytest.raises(UnsupportedError, match=r"ONNX Runtime .* cannot run the model: .*Mystery"):
        reference_session(proto, 1)
