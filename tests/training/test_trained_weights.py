"""What of a graph is trained: the parameters of layers, and those of layers that exporters write out."""

import numpy as np
import pytest
from onnx import TensorProto, numpy_helper

from lwc_compiler.errors import ModelError, UnsupportedError
from lwc_compiler.training.weights import attach, detach

W = np.full((4, 4), 2)
V = np.full(4, 3)

# name -> (how y, float[2,4], is computed from x, float[2,4]; trained weights -> whether they decay)
GRAPHS = {
    "MatMul and bias": ("h = MatMul(x, w) y = Add(h, v)", {"w": True, "v": False}),
    "bias before": ("h = MatMul(x, w) y = Add(v, h)", {"w": True, "v": False}),
    "Gemm": ("y = Gemm(x, w, v)", {"w": True, "v": False}),
    "weight behind Transpose": ("t = Transpose(w) h = MatMul(x, t) y = Relu(h)", {"w": True}),
    "bias behind Reshape": ("h = MatMul(x, w) r = Reshape(h, shape) s = Add(r, v) y = Reshape(s, flat)", ["w", "v"]),
    "bias behind Unsqueeze": ("h = MatMul(x, w) r = Unsqueeze(h, axis) s = Add(r, v) y = Squeeze(s, axis)", ["w", "v"]),
    "bias behind Squeeze": ("r = Unsqueeze(x, axis) m = MatMul(r, w) h = Squeeze(m, axis) y = Add(h, v)", ["w", "v"]),
    "scale of a layer": ("h = MatMul(x, w) y = Mul(h, v)", ["w"]),
    "constant before a layer": ("h = Add(x, v) y = MatMul(h, w)", ["w"]),
    "LayerNormalization": ("h = MatMul(x, w) y = LayerNormalization(h, v, u)", ["w", "v", "u"]),
    "normalization written out": (
        """h = MatMul(x, w) m = ReduceMean<axes=[1]>(h) c = Sub(h, m) q = Mul(c, c) a = ReduceMean<axes=[1]>(q)
        d = Sqrt(a) n = Div(c, d) s = Mul(n, v) y = Add(s, u)""",
        {"w": True, "v": False, "u": False},
    ),
    "normalization written out, deviation scaled first": (
        """h = MatMul(x, w) m = ReduceMean<axes=[1]>(h) c = Sub(h, m) q = Mul(c, c) a = ReduceMean<axes=[1]>(q)
        d = Sqrt(a) r = Reciprocal(d) t = Mul(r, v) s = Mul(c, t) y = Add(s, u)""",
        {"w": True, "v": False, "u": False},
    ),
}


def network(build, text):
    constants = {"w": W, "v": V, "u": V}
    proto = build(f"(float[2,4] x) => (float[2,4] y) {{ {text} }}", {n: a for n, a in constants.items() if n in text})
    for name, value in {"shape": [2, 2, 2], "flat": [2, 4], "axis": [0]}.items():
        if name in text:
            proto.graph.initializer.append(numpy_helper.from_array(np.array(value, np.int64), name))
    return proto


@pytest.mark.parametrize("name", GRAPHS)
def test_what_is_trained(build, name):
    text, expected = GRAPHS[name]
    expected = expected if isinstance(expected, dict) else {weight: weight == "w" for weight in expected}
    proto = network(build, text)
    bare, weights = detach(proto, set(), train_batch_norm=True)
    assert weights.trained.keys() == expected.keys()
    assert weights.decayed == {weight for weight, decays in expected.items() if decays}
    assert set(weights.trained) <= {value.name for value in bare.graph.input}
    assert attach(proto, weights.trained).SerializeToString() == proto.SerializeToString()


def test_a_masked_weight_is_trained_wherever_it_is(build):
    _, weights = detach(network(build, "h = MatMul(x, w) y = Mul(h, v)"), {"v"}, train_batch_norm=True)
    assert weights.trained.keys() == {"w", "v"}


def test_a_model_without_weights_is_refused(build):
    with pytest.raises(ModelError, match="no weights that could be trained"):
        detach(network(build, "y = Relu(x)"), set(), train_batch_norm=True)


def test_a_weight_of_another_type_is_refused(build):
    proto = network(build, "y = MatMul(x, w)")
    proto.graph.initializer[0].data_type = TensorProto.DOUBLE
    with pytest.raises(UnsupportedError, match="weight 'w' is double; retraining works on float32 weights"):
        detach(proto, set(), train_batch_norm=True)
