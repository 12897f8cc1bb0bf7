"""lwc as a backend of `onnx.backend.base`; the ONNX project's own tests run on it in tests/onnx_backend."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from onnx.backend.base import Backend

from lwc_compiler import LowerOptions, backend
from lwc_compiler.errors import DataError, ModelError, OptionError, UnsupportedError


def model(kind=TensorProto.FLOAT, rows=2, nodes=None):
    """The outputs are a - b and a * b."""
    nodes = nodes or [helper.make_node("Sub", ["a", "b"], ["difference"]), helper.make_node("Mul", ["a", "b"], ["a*b"])]
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info(name, kind, [rows, 3]) for name in ("a", "b")],
        [helper.make_tensor_value_info(name, kind, [rows, 3]) for name in ("difference", "a*b")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


A = np.arange(6, dtype=np.float32).reshape(2, 3)
B = A[::-1] + 1


@pytest.fixture(scope="module")
def prepared():
    return backend.prepare(model())


def test_it_is_a_backend():
    assert issubclass(backend.LwcBackend, Backend)
    assert all(getattr(backend, name) for name in backend.__all__)


@pytest.mark.parametrize("inputs", [[A, B], (A, B), {"b": B, "a": A}])
def test_inputs_in_order_or_by_name(prepared, inputs):
    outputs = prepared.run(inputs)
    assert isinstance(outputs, tuple)
    assert len(outputs) == 2
    np.testing.assert_array_equal(outputs[0], A - B)
    np.testing.assert_array_equal(outputs["a*b"], A * B)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ([A], r"there are 1 inputs; the model takes 2: \['a', 'b'\]"),
        (A, "there are 1 inputs"),
        ({"a": A}, "input 'b' is missing"),
        ([A, B.astype(np.float64)], "input 'b' is float64; the model takes float32"),
        ([A, B[:1]], r"input 'b' has shape \[1, 3\]"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(prepared, inputs, message):
    with pytest.raises(DataError, match=message):
        prepared.run(inputs)


def test_open_dimensions_are_those_of_the_inputs(monkeypatch):
    """One compilation for each shape, also when threads ask for it at the same time."""
    lowered = []
    monkeypatch.setattr(backend, "lower", lambda m, o, lower=backend.lower: lowered.append(o.shapes) or lower(m, o))
    prepared = backend.prepare(model(rows="n"))
    assert lowered == []
    long = [np.tile(A, (2, 1)), np.tile(B, (2, 1))]
    with ThreadPoolExecutor(4) as executor:
        for outputs in executor.map(prepared.run, [[A, B], long] * 4):
            np.testing.assert_array_equal(outputs["difference"], np.tile(A - B, (len(outputs[0]) // 2, 1)))
    assert sorted(shapes["a"] for shapes in lowered) == [(2, 3), (4, 3)]
    with pytest.raises(DataError, match="input 'b' is missing"):
        prepared.run({"a": A})


def test_half_precision_goes_in_and_comes_out():
    outputs = backend.run_model(model(TensorProto.FLOAT16), [A.astype(np.float16), B.astype(np.float16)])
    assert [output.dtype for output in outputs] == [np.float16, np.float16]
    np.testing.assert_array_equal(outputs["a*b"], A * B)
    with pytest.raises(DataError, match="input 'b' is float32; the model takes float16"):
        backend.run_model(model(TensorProto.FLOAT16), [A.astype(np.float16), B])


def test_a_file_and_options(mlp):
    prepared = backend.prepare(str(mlp), "CPU:0", options=LowerOptions(threads=2))
    (y,) = prepared.run(np.ones((3, 16), np.float32))
    assert y.shape == (3, 4)
    assert [session.threads for session in prepared._sessions.values()] == [2]


def test_a_node():
    (y,) = backend.run_node(helper.make_node("Gemm", ["a", "b", ""], ["y"], transB=1), [A, B])
    np.testing.assert_array_equal(y, A @ B.T)
    with pytest.raises(DataError, match="there are 1 inputs; the node takes 2"):
        backend.run_node(helper.make_node("Add", ["a", "b"], ["y"]), [A])
    with pytest.raises(ModelError, match="the node MatMul is not valid"):
        backend.run_node(helper.make_node("MatMul", ["a", "b"], ["y"]), [A, B])
    with pytest.raises(ModelError, match="the node HardSwish is not valid"):
        backend.run_node(helper.make_node("HardSwish", ["a"], ["y"]), [A], opset_version=13)


def test_devices():
    assert [backend.supports_device(device) for device in ("CPU", "CPU:1", "CUDA", "CUDA:0", "TPU")] == [
        *(True, True),
        *(False, False, False),
    ]
    with pytest.raises(OptionError, match="the device is 'CUDA': this backend runs on 'CPU'"):
        backend.prepare(model(), "CUDA")
    with pytest.raises(OptionError, match="the target is rpi4: this backend compiles for 'host'"):
        backend.prepare(model(), options=LowerOptions(target="rpi4"))


def test_models_that_cannot_be_lowered():
    nodes = [helper.make_node("Sub", ["a", "b"], ["difference"]), helper.make_node("RandomNormalLike", ["a"], ["a*b"])]
    alien = model(nodes=nodes)
    assert backend.is_compatible(model(rows="n"))
    assert not backend.is_compatible(model(), "CUDA")
    assert not backend.is_compatible(alien)
    assert not backend.is_compatible(onnx.ModelProto())
    with pytest.raises(UnsupportedError, match="RandomNormalLike"):
        backend.prepare(alien)
    with pytest.raises(ModelError, match="model is not an ONNX model: it holds no graph with outputs"):
        backend.prepare(onnx.ModelProto())
