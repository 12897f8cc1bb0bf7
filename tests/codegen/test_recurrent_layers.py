"""LSTM, GRU and RNN as PyTorch exports them: pruned, lowered for processors, and the same as in ONNX Runtime."""

import math

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import helper

import lwc_compiler as lwc
from lwc_compiler.errors import UnsupportedError
from lwc_compiler.model import load_model
from lwc_compiler.passes.sites import constant_tensors, find_sites
from lwc_compiler.targets import find_target, missing_features


class Layer(torch.nn.Module):
    """A recurrent layer; its results are all that PyTorch gives."""

    def __init__(self, kind, inputs, hidden, **options):
        super().__init__()
        torch.manual_seed(0)
        self.layer = getattr(torch.nn, kind)(inputs, hidden, **options)

    def forward(self, x, *states):
        y, last = self.layer(x, *([states if len(states) == 2 else states[0]] if states else []))
        return (y, *last) if isinstance(last, tuple) else (y, last)


def exported(path, kind, shape, *, states=False, **options):
    """Writes the layer (time, batch, input, hidden) as ONNX; inputs, and the results of the layer in float64."""
    time, batch, inputs, hidden = shape
    layer = Layer(kind, inputs, hidden, **options).eval()
    generator = np.random.default_rng(0)
    count = (1 + options.get("bidirectional", False)) * options.get("num_layers", 1)
    x = (batch, time, inputs) if options.get("batch_first") else (time, batch, inputs)
    shapes = [x, *[(count, batch, hidden)] * (states * (2 if kind == "LSTM" else 1))]
    feed = {n: generator.standard_normal(s).astype(np.float32) for n, s in zip(("x", "h", "c"), shapes, strict=False)}
    torch.onnx.export(
        layer, tuple(map(torch.tensor, feed.values())), path, input_names=list(feed), dynamo=False, opset_version=17
    )
    with torch.no_grad():
        results = layer.double()(*(torch.tensor(array).double() for array in feed.values()))
    return feed, [result.numpy() for result in results]


FORMS = {
    "plain": ((7, 1, 12, 20), {}),
    "odd": ((5, 3, 10, 33), {"bidirectional": True}),
    "deep": ((6, 2, 8, 16), {"num_layers": 2, "bidirectional": True, "batch_first": True, "states": True}),
    "one step": ((1, 1, 9, 24), {"states": True}),
    "no bias": ((4, 2, 8, 8), {"bias": False}),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_exports_of_pytorch(tmp_path, kind, form):
    shape, options = FORMS[form]
    path = tmp_path / "layer.onnx"
    feed, expected = exported(path, kind, shape, **options)
    theirs = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, feed)
    artifact = lwc.compile(path, tmp_path / "layer.lwc", lwc.Recipe(lower=lwc.LowerOptions(tune=0, threads=2)))
    assert {layer.op for layer in artifact.manifest.layers} == {kind}
    with lwc.load(tmp_path / "layer.lwc") as session:
        ours = list(session.run(feed).values())
    with lwc.load(tmp_path / "layer.lwc", threads=1) as session:
        alone = list(session.run(feed).values())
    for result, one, other, exact in zip(ours, alone, theirs, expected, strict=True):
        assert np.array_equal(result, one)
        assert np.abs(result - other).max() < 2e-6
        assert np.abs(result - exact).max() < 2e-6


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("target", ["c", "x86-64-v4"])
def test_pruned_is_smaller_and_right(tmp_path, target):
    if target != "c" and missing_features(find_target(target)):
        pytest.skip(f"this machine cannot run {target}")
    path = tmp_path / "layer.onnx"
    exported(path, "LSTM", (4, 1, 64, 64), bidirectional=True)
    sizes = {}
    for sparsity in (0.0, 0.9):
        prune = lwc.PruneOptions(sparsity=sparsity, keep_first=False) if sparsity else None
        recipe = lwc.Recipe(prune=prune, lower=lwc.LowerOptions(target=target))
        artifact = lwc.compile(path, tmp_path / f"{sparsity}.lwc", recipe)  # checks it against ONNX Runtime
        layers = artifact.manifest.layers
        assert [layer.shape for layer in layers] == [(2, 256, 64), (2, 256, 64)]
        assert [layer.density for layer in layers] == pytest.approx([1 - sparsity] * 2, abs=1e-3)
        assert all(layer.dense_flops == 2 * 4 * math.prod(layer.shape) for layer in layers)
        sizes[sparsity] = sum(layer.bytes for layer in layers)
    assert {layer.format for layer in layers} == {"csr"}
    assert sizes[0.9] < sizes[0.0] / 4


@pytest.mark.filterwarnings("ignore")
def test_sites(tmp_path):
    path = tmp_path / "layer.onnx"
    exported(path, "GRU", (4, 1, 12, 20), num_layers=2, bidirectional=True)
    sites = find_sites(load_model(path).proto)
    assert [site.shape for site in sites] == [(2, 60, 12), (2, 60, 20), (2, 60, 40), (2, 60, 20)]
    assert [site.matrix_shape for site in sites] == [(120, 12), (120, 20), (120, 40), (120, 20)]
    assert [site.row_groups for site in sites] == [1, 2, 1, 2]  # both directions read x, each has its own states
    assert [site.first for site in sites] == [True, False, False, False]


def test_what_is_not_plain_is_no_site():
    weights = {"w": (1, 12, 5), "r": (1, 12, 4), "p": (1, 12)}
    for kind, attributes, inputs in (
        ("GRU", {}, ["x", "w", "r"]),  # multiplies by the reset gate before the product
        ("LSTM", {"clip": 1.0}, ["x", "w", "r"]),
        ("RNN", {"layout": 1}, ["x", "w", "r"]),
        ("LSTM", {}, ["x", "w", "r", "", "", "", "", "p"]),
    ):
        node = helper.make_node(kind, inputs, ["y"], hidden_size=4, **attributes)
        x = helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, (3, 1, 5))
        y = helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)
        constants = [onnx.numpy_helper.from_array(np.ones(shape, np.float32), name) for name, shape in weights.items()]
        assert find_sites(helper.make_model(helper.make_graph([node], "g", [x], [y], constants))) == []


def test_projection_of_the_state_is_refused(tmp_path):
    """Exporters write an LSTM with `proj_size` as if ONNX had one."""
    shapes = {"w": (1, 32, 12), "r": (1, 32, 8), "h": (1, 2, 8), "c": (1, 2, 16)}
    node = helper.make_node("LSTM", ["x", "w", "r", "", "", "h", "c"], ["y"], name="here", hidden_size=8)
    x = helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, (6, 2, 12))
    y = helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, (6, 1, 2, 8))
    constants = [onnx.numpy_helper.from_array(np.ones(shape, np.float32), name) for name, shape in shapes.items()]
    proto = helper.make_model(helper.make_graph([node], "g", [x], [y], constants), ir_version=8)
    with pytest.raises(UnsupportedError, match=r"'here' \(LSTM\).*initial_c has shape \[1, 2, 16\].*proj_size"):
        lwc.compile(proto, tmp_path / "layer.lwc")


class Classifier(torch.nn.Module):
    """Two recurrent layers, and a class for the last state."""

    def __init__(self, kind):
        super().__init__()
        torch.manual_seed(0)
        self.layers = getattr(torch.nn, kind)(4, 8, num_layers=2, bidirectional=True, batch_first=True)
        self.scores = torch.nn.Linear(16, 2)

    def forward(self, x):
        return self.scores(self.layers(x)[0][:, -1])


def pruned_classifier(folder, kind):
    """A pruned classifier, and a file of data for it."""
    path, data = folder / "classifier.onnx", folder / "data.npz"
    example = (torch.zeros(1, 6, 4),)
    torch.onnx.export(Classifier(kind).eval(), example, path, input_names=["x"], dynamo=False,
                      dynamic_axes={"x": {0: "n"}})  # fmt: skip
    x = np.random.default_rng(0).standard_normal((64, 6, 4)).astype(np.float32)
    np.savez(data, x=x, labels=(x[:, -1, 0] > 0).astype(np.int64))
    return lwc.prune(path, lwc.PruneOptions(sparsity=0.8, keep_first=False)), data


def weights_of(model):
    constants = constant_tensors(model.proto.graph)
    return {site.weight: onnx.numpy_helper.to_array(constants[site.weight]) for site in find_sites(model.proto)}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_retraining_keeps_zeros(tmp_path, kind):
    model, data = pruned_classifier(tmp_path, kind)
    before = weights_of(model)
    assert len(before) == 5
    after = weights_of(lwc.retrain(model, str(data), options=lwc.RetrainOptions(epochs=3)))
    for name, weight in before.items():
        assert not after[name][weight == 0].any()
        assert (after[name] != weight).any()


@pytest.mark.filterwarnings("ignore")
def test_first_outputs_may_be_left_out(tmp_path):
    """Networks that classify a sequence read the last state alone."""
    nodes = [
        helper.make_node("LSTM", ["x", "w", "r"], ["", "h"], hidden_size=16),
        helper.make_node("LSTM", ["x", "w", "r"], ["", "", "c"], hidden_size=16, direction="reverse"),
        helper.make_node("Add", ["h", "c"], ["y"]),
    ]
    generator = np.random.default_rng(0)
    constants = [
        onnx.numpy_helper.from_array(generator.standard_normal(shape).astype(np.float32), name)
        for name, shape in {"w": (1, 64, 12), "r": (1, 64, 16)}.items()
    ]
    x = helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, (6, 2, 12))
    y = helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, (1, 2, 16))
    graph = helper.make_graph(nodes, "g", [x], [y], constants)
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    artifact = lwc.compile(proto, tmp_path / "layer.lwc")
    assert len(artifact.manifest.layers) == 4
