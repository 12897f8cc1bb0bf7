"""Where Dropout was, and D_r = D_o sqrt(C_ir / C_io) by hand."""

from dataclasses import replace

import numpy as np
import pytest
from graphs import model, operators

from lwc_compiler.errors import OptionError
from lwc_compiler.passes.dropout import dropout_ratios, find_dropouts
from lwc_compiler.passes.normalize import normalize

NETWORK = """
net (float[N,2,4,4] x) => (float[N,3] y) {
  c = Conv(x, k)
  t = Relu(c)
  s = Conv(x, u)
  a = Add(t, s)
  f = Flatten(a)
  g = Gemm(f, w, b)
  r = Relu(g)
  y = Gemm(r, v)
}"""


@pytest.fixture
def network():
    """Kept of all: k 9 of 36, u 27 of 36, w 16 of 64, v all of 48."""
    weights = {"k": np.ones((2, 2, 3, 3)), "u": np.ones((2, 2, 3, 3)), "w": np.ones((8, 16)), "b": np.ones(16)}
    weights["v"] = np.ones((16, 3))
    weights["k"].ravel()[9:] = 0
    weights["u"].ravel()[27:] = 0
    weights["w"].ravel()[32:] = 0
    made = normalize(model(NETWORK, weights), fold_batch_norm=False)
    for node in made.proto.graph.node:
        node.name = f"node {node.output[0]}"
    return made


def ratios(network, asked, adjust=True):
    return dropout_ratios(network, asked, adjust=adjust)


@pytest.mark.parametrize(
    ("tensor", "kept", "of"),
    [
        ("c", 9, 36),
        ("t", 9, 36),
        ("s", 27, 36),
        ("a", 9 + 27, 36 + 36),  # the neurons of both convolutions are dropped
        ("f", 9 + 27, 36 + 36),
        ("g", 32, 128),
        ("r", 32, 128),
        ("y", 48, 48),
    ],
)
@pytest.mark.parametrize("named", ["tensor", "node"])
def test_ratios_follow_the_connections_of_the_layers_before(network, tensor, kept, of, named):
    asked = {tensor if named == "tensor" else f"node {tensor}": 0.6}
    assert ratios(network, asked) == {tensor: pytest.approx(0.6 * np.sqrt(kept / of))}
    assert ratios(network, asked, adjust=False) == {tensor: 0.6}


def test_a_tensor_of_no_layer_keeps_its_ratio():
    text = "net (float[N,4] x) => (float[N,3] y) { r = Relu(x) y = MatMul(r, w) }"
    assert ratios(model(text, {"w": np.eye(4, 3)}), {"r": 0.25}) == {"r": 0.25}


DROPOUTS = {
    "attribute": (7, "Dropout<ratio=0.25>(r)", 0.25),
    "attribute of opset 10": (10, "Dropout<ratio=0.25>(r)", 0.25),
    "default of opset 7": (7, "Dropout(r)", 0.5),
    "input": (12, "Dropout(r, quarter)", 0.25),
    "input of opset 13": (13, "Dropout(r, quarter)", 0.25),
    "default of opset 13": (13, "Dropout(r)", 0.5),
    "training mode": (13, "Dropout<seed=3>(r, quarter, training)", 0.25),
    "vector": (13, "Dropout(r, vector)", 0.25),
}


@pytest.mark.parametrize("kind", DROPOUTS)
def test_dropouts_of_every_opset(kind):
    opset, call, ratio = DROPOUTS[kind]
    text = f"net (float[N,4] x) => (float[N,3] y) {{ h = MatMul(x, w) r = Relu(h) d = {call} y = MatMul(d, v) }}"
    weights = {"w": np.eye(4), "v": np.eye(4, 3), "quarter": np.array(0.25), "vector": np.array([0.25])}
    weights["training"] = np.array(False)
    used = {name: value for name, value in weights.items() if name in ("w", "v") or name in call}
    assert find_dropouts(model(text, used, opset=opset).proto.graph) == {"r": pytest.approx(ratio)}


def test_identities_between_are_looked_through():
    text = """net (float[N,4] x) => (float[N,4] y) {
        h = MatMul(x, w) i = Identity(h) j = Identity(i) d = Dropout(j) e = Identity(d) y = Relu(e) }"""
    assert find_dropouts(model(text, {"w": np.eye(4)}).proto.graph) == {"h": 0.5}


def test_the_ratio_of_a_constant_node():
    text = """net (float[N,4] x) => (float[N,4] y) {
        q = Constant<value = float {0.125}>() h = MatMul(x, w) d = Dropout(h, q) y = Relu(d) }"""
    assert find_dropouts(model(text, {"w": np.eye(4)}).proto.graph) == {"h": 0.125}


@pytest.fixture
def dropped():
    """A normalized network that had two Dropouts, with half of w's and all of v's connections."""
    text = """net (float[N,4] x) => (float[N,4] y) {
        h = MatMul(x, w) r = Relu(h) d = Dropout(r, q) i = MatMul(d, v) e = Dropout(i) y = Relu(e) }"""
    half = np.ones((4, 4))
    half[:, :2] = 0
    weights = {"w": half, "v": np.ones((4, 4)), "q": np.array(0.125)}
    return normalize(model(text, weights), fold_batch_norm=False)


def test_normalizing_removes_dropout_and_writes_it_down(dropped):
    assert "Dropout" not in operators(dropped.proto)
    assert dropped.provenance[-1]["dropout"] == {"r": 0.125, "i": 0.5}
    assert ratios(dropped, {}, adjust=False) == {"r": 0.125, "i": 0.5}
    assert ratios(dropped, {}) == {"r": pytest.approx(0.125 * np.sqrt(0.5)), "i": 0.5}
    again = normalize(dropped, fold_batch_norm=False)
    assert ratios(again, {}, adjust=False) == {"r": 0.125, "i": 0.5}


def test_what_is_asked_for_replaces_the_graph_s_own(dropped):
    assert ratios(dropped, {"r": 0.25}, adjust=False) == {"r": 0.25, "i": 0.5}
    assert ratios(dropped, {"r": 0.0, "i": 0.0}) == {}
    assert ratios(dropped, {"h": 0.25, "i": 0}, adjust=False) == {"r": 0.125, "h": 0.25}


def test_dropout_of_an_earlier_training_is_not_asked_for_again(dropped):
    before = replace(dropped, provenance=({"pass": "normalize", "dropout": {}},))
    trained = before.after("retrain", before.proto, dropout={"r": 0.25})
    assert ratios(trained, {}) == {}


@pytest.mark.parametrize("name", ["nothing", "x", "w"])
def test_a_name_that_is_not_computed_is_refused(dropped, name):
    with pytest.raises(OptionError, match=f"dropout: '{name}' is no node and no computed tensor.*such as '"):
        ratios(dropped, {name: 0.5})


@pytest.mark.parametrize("ratio", [1.0, 1.5, -0.5])
def test_a_ratio_that_is_none_is_refused_unless_it_is_replaced(dropped, ratio):
    odd = replace(dropped, provenance=({"pass": "normalize", "dropout": {"r": ratio}},))
    with pytest.raises(OptionError, match=f"the Dropout after 'r' has the ratio {ratio:g}"):
        ratios(odd, {})
    assert ratios(odd, {"r": 0.5}, adjust=False) == {"r": 0.5}
