"""PyTorch's side of `make gpu`, on the processor: it computes the networks, and times what it says."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from onnx import numpy_helper

from benchmarks.gpu import prepare, torch_side
from benchmarks.gpu.layers import LAYERS, PRECISIONS, Layer, describe, weight_of
from benchmarks.gpu.torch_side import Network
from benchmarks.models import Network as Graph
from benchmarks.models import bert, lenet5, mobilenet_v2
from lwc_compiler.kernels.layer import ConvGeometry
from lwc_compiler.runtime.reference import reference_session
from lwc_compiler.runtime.verify import relative_error

# Of PyTorch itself: its compiler, when it is imported, and what it says of sparse matrices.
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning", "ignore:Sparse:UserWarning")

SQUARE = ConvGeometry(2, 32, (5, 5), 80, (1, 1), (1, 1), (0,) * 4, (1, 1))


@pytest.fixture
def timed(monkeypatch):
    """A timing runs once; there are no CUDA graphs. Gives what was run."""
    runs = []

    def seconds(start, *_):
        runs.append(start())
        return 1.0

    monkeypatch.setattr(torch_side, "seconds", seconds)
    monkeypatch.setattr(torch_side, "graph_of", lambda start: start)
    return runs


def normalized():
    net = Graph("normalized", (1, 6, 5, 5))
    return net.model(net.node("LRN", net.x, size=5, alpha=1e-1, beta=0.75, bias=1.0), (1, 6, 5, 5))


@pytest.mark.parametrize(
    "make",
    [lenet5, normalized, lambda: mobilenet_v2(64), lambda: bert(1, 32, 2, 8)],
    ids=["lenet5", "lrn", "v2", "bert"],
)
def test_pytorch_computes_the_same_network(make) -> None:
    proto = make()
    network = Network(prepare.graph_of(proto))
    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}
    for name, place in network._places.items():
        network.weights[place].data = torch.from_numpy(arrays[name].copy())
    x = np.random.default_rng(0).standard_normal(
        [d.dim_value for d in proto.graph.input[0].type.tensor_type.shape.dim], np.float32
    )
    (expected,) = reference_session(proto, 1).run(None, {"input": x})
    with torch.inference_mode():
        assert relative_error(network(torch.from_numpy(x)).numpy(), expected) < 1e-5


def no_compiler(monkeypatch, happened):
    """Inductor that compiles nothing, and tells when the network runs; gives what it was asked for."""
    asked = []

    def compile_fx(graph, _inputs, *, config_patches):
        asked.append(config_patches)
        return lambda *inputs: happened.append("runs") or graph.forward(*inputs)

    monkeypatch.setattr("torch._inductor.compile_fx.compile_fx", compile_fx)
    return asked


@pytest.mark.parametrize("make", [lenet5, lambda: bert(1, 32, 2, 8)], ids=["lenet5", "bert"])
def test_a_compiled_network_waits_before_it_runs(make, monkeypatch) -> None:
    """Each is compiled as a whole, once."""
    proto, happened = make(), []
    network = Network(prepare.graph_of(proto))
    x = torch.randn([d.dim_value for d in proto.graph.input[0].type.tensor_type.shape.dim])
    asked = no_compiler(monkeypatch, happened)
    with torch.inference_mode():
        fast = torch_side.compiled(network, lambda: happened.append("waits"))
        assert torch.equal(fast(x), network(x))
        assert torch.equal(fast(x), network(x))
    assert happened == ["waits", "runs", "runs"]
    assert asked == [{"triton.cudagraphs": True}]


def times_of(name, **wants):
    graph, waits = prepare.graph_of(lenet5()), []
    wants = {"compiling": True, "eager": True} | wants
    said = list(torch_side.network_times(graph, [2, 1, 28, 28], name, lambda: waits.append(1), **wants))
    return said, waits


def test_a_network_is_timed_in_every_way(monkeypatch, timed) -> None:
    no_compiler(monkeypatch, [])
    said, waits = times_of("float32")
    assert said == [{"compile_ms": 1e3}, {"graph_ms": 1e3}, {"eager_ms": 1e3}]
    assert waits
    assert all(y.shape == (2, 10) and y.dtype == torch.float32 for y in timed)
    said, _ = times_of("bfloat16", compiling=False, eager=False)
    assert said == [{"graph_ms": 1e3}, {"graph_nchw_ms": 1e3}]
    assert all(y.dtype == torch.bfloat16 for y in timed[3:])


def test_a_network_that_cannot_be_compiled_is_timed_in_other_ways(monkeypatch, timed) -> None:
    monkeypatch.setattr("torch._inductor.compile_fx.compile_fx", lambda *_, **__: 1 / 0)
    (reason, *others), waits = times_of("float32", eager=False)
    assert "ZeroDivisionError" in reason["compile"]
    assert others == [{"graph_ms": 1e3}]
    assert waits


@pytest.mark.parametrize(
    "layer",
    [Layer("", 3, 70, 90), Layer("fully connected", 1, 70, 90), Layer("single weights", geometry=SQUARE)],
    ids=["product", "vector", "convolution"],
)
def test_layers_are_pruned_matrices(layer, timed, monkeypatch) -> None:
    """Each way by random inputs, and its weights are the ones that lwc's kernels have."""
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(torch, "randn", lambda *shape, **_: torch.ones(*shape))
    weight = weight_of(layer)
    found = torch_side.layer_times(describe(layer, "1.npy"), weight, ("float32", "bfloat16"), 0)
    ways = {"dense float32", "dense bfloat16", *(way for way in found if way.startswith("csr float32"))}
    assert set(found) == ways
    assert len(ways) == (3 if layer.rows == 1 else 4)
    assert set(found.values()) == {1e3 / 8}


def test_products_of_all_ways_are_equal(monkeypatch) -> None:
    layer = Layer("single weights", geometry=SQUARE)
    about, weight = describe(layer, "1.npy"), torch.from_numpy(weight_of(layer))
    monkeypatch.setattr(torch, "randn", lambda *shape, **_: torch.ones(*shape))
    dense = torch_side._dense_conv(about, weight, "float32").start()
    for order in ("rows", "columns"):
        work = torch_side._csr(about, weight, order)
        assert work.size < 4 * (weight.numel() + 50 * (32 + 64))
        assert torch.allclose(work.start().reshape(64, 2, 5, 5).transpose(0, 1), dense, atol=1e-5)


def test_what_is_not_there_has_its_reason(timed, monkeypatch) -> None:
    """cuSPARSELt, on a processor."""
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    layer = Layer("2:4", 4, 64, 64, density=0.5)
    found = torch_side.layer_times(describe(layer, "1.npy"), weight_of(layer), ("float16",), 0)
    assert set(found) == {"dense float16", "2:4 float16 default", "2:4 float16 searched"}
    assert isinstance(found["2:4 float16 default"], str)


def test_jobs(monkeypatch, timed, capsys) -> None:
    """What a process says of its network, and of all layers."""
    layer, waits = Layer("fully connected", 1, 70, 90), []
    bundle = SimpleNamespace(
        table={
            "networks": [{}, {"graph": prepare.graph_of(lenet5()), "input": [1, 1, 28, 28], "batch": 1}],
            "layers_alone": [describe(layer, "1.npy")],
        },
        array={"1.npy": weight_of(layer)}.get,
    )
    job = torch_side.Job()
    monkeypatch.setattr(job, "wait", lambda: waits.append(1))
    torch_side.run_job(bundle, job, "layers", ("float32",))
    assert json.loads(capsys.readouterr().out) == {"missing": "PyTorch has no CUDA here"}
    assert not waits
    monkeypatch.setattr(torch_side, "cuda_is_here", lambda: True)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(L2_cache_size=0))
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    torch_side.run_job(bundle, job, "1 float32 uncompiled", ("float32",))
    torch_side.run_job(bundle, job, "layers", ("float32",))
    said = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert said[:2] == [{"graph_ms": 1e3}, {"eager_ms": 1e3}]
    assert said[2]["versions"]["torch"] == torch.__version__
    assert said[3] == {"name": layer.name, "dense float32": 125.0, "csr float32 vector": 125.0}


def test_weights_are_as_sparse_as_they_say() -> None:
    for layer in LAYERS:
        if layer.k < 9000:
            weight = weight_of(layer)
            assert abs((weight != 0).mean() - layer.density) < 1e-3
            if ":" in layer.purpose:
                kept, among = map(int, layer.purpose.split(":"))
                assert (weight.reshape(-1, among) != 0).sum(axis=1).max() == kept
    assert len({layer.name for layer in LAYERS}) == len(LAYERS)
    assert {precision for layer in LAYERS for precision in layer.precisions} == set(PRECISIONS)
