import numpy as np
import onnx
import pytest

from lwc_compiler.model import Model


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def build():
    """Builds a model from ONNX text and the arrays of its weights."""

    def make(text, weights, opset=17, ir_version=8):
        header = f'<ir_version: {ir_version}, opset_import: ["" : {opset}]>'
        proto = onnx.parser.parse_model(f"{header} net {text}".replace("'", '"'))
        for name, array in weights.items():
            proto.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(array, np.float32), name))
        return proto

    return make


@pytest.fixture
def perceptron(build, rng):
    """6 -> 8 -> 3, with a mask that keeps about half of both matrices."""
    weights = {
        "w0": rng.normal(size=(6, 8)) / 2,
        "b0": np.zeros(8),
        "w1": rng.normal(size=(8, 3)) / 2,
        "b1": np.zeros(3),
    }
    masks = {name: rng.random(weights[name].shape) < 0.5 for name in ("w0", "w1")}
    for name, mask in masks.items():
        weights[name] = weights[name] * mask
    text = """(float[n, 6] x) => (float[n, 3] y) {
        h = Gemm(x, w0, b0) r = Relu(h) m = MatMul(r, w1) y = Add(m, b1)
    }"""
    return Model(build(text, weights), "perceptron", masks)


@pytest.fixture
def samples(rng):
    """40 points of three classes that a small network can tell apart."""
    labels = rng.integers(0, 3, 40)
    x = rng.normal(size=(40, 6)) * 0.3 + np.eye(6)[labels * 2] * 2
    return {"x": x.astype(np.float32), "labels": labels}
