"""PyTorch on the same GPU: cuDNN and cuBLAS on every weight, cuSPARSE and cuSPARSELt on pruned matrices.

Networks are built from the bundle's lists of nodes, with random weights: their times do not depend on the values.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F  # noqa: N812 - PyTorch's own name for it

from benchmarks.gpu.driver import median_seconds

PRECISIONS = ("float32", "tf32", "float16", "bfloat16")
_DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16}
_BUDGET = 0.2  # seconds of one timing
_WARM_UP = 3


class Network(torch.nn.Module):
    """A network from a list of nodes.

    Args:
        table: `nodes`, each with `op`, `inputs`, `output` and `attributes`; `weights`, name -> shape; `constants`,
            name -> values; the graph's `input` and `output`.
    """

    def __init__(self, table: dict[str, Any]) -> None:
        super().__init__()
        self._table = table
        self._places = {name: i for i, name in enumerate(table["weights"])}
        generator = torch.Generator().manual_seed(0)
        self.weights = torch.nn.ParameterList(
            torch.randn(shape, generator=generator) / math.sqrt(max(1, math.prod(shape[1:])))
            for shape in table["weights"].values()
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        values: dict[str, Any] = {self._table["input"]: x, **self._table["constants"], "": None}
        for node in self._table["nodes"]:
            operands = [
                self.weights[self._places[name]] if name in self._places else values[name] for name in node["inputs"]
            ]
            values[node["output"]] = _OPERATORS[node["op"]](node["attributes"], *operands)
        result: torch.Tensor = values[self._table["output"]]
        return result


def _conv(a: dict[str, Any], x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    rows, columns = a["pads"][:2]
    return F.conv2d(x, weight, bias, a["strides"], (rows, columns), 1, a["group"])


def _reshape(a: dict[str, Any], x: torch.Tensor, shape: list[int]) -> torch.Tensor:
    return x.reshape([x.shape[i] if size == 0 else size for i, size in enumerate(shape)])


_OPERATORS: dict[str, Callable[..., torch.Tensor]] = {
    "Add": lambda a, x, y: x + y,
    "Clip": lambda a, x, low, high: torch.clamp(x, low, high),
    "Conv": _conv,
    "Div": lambda a, x, y: x / y,
    "Erf": lambda a, x: torch.erf(x),
    "Flatten": lambda a, x: torch.flatten(x, 1),
    "Gemm": lambda a, x, weight, bias: F.linear(x, weight, bias),
    "GlobalAveragePool": lambda a, x: F.adaptive_avg_pool2d(x, 1),
    "Identity": lambda a, x: x,
    "LRN": lambda a, x: F.local_response_norm(x, a["size"], a["alpha"], a["beta"], a["bias"]),
    "MatMul": lambda a, x, y: x @ y,
    "MaxPool": lambda a, x: F.max_pool2d(x, a["kernel_shape"], a["strides"], a["pads"][:2]),
    "Mul": lambda a, x, y: x * y,
    "Pow": lambda a, x, y: x**y,
    "ReduceMean": lambda a, x: x.mean(a["axes"], keepdim=True),
    "Relu": lambda a, x: torch.relu(x),
    "Reshape": _reshape,
    "Softmax": lambda a, x: torch.softmax(x, a["axis"]),
    "Sqrt": lambda a, x: torch.sqrt(x),
    "Sub": lambda a, x, y: x - y,
    "Transpose": lambda a, x: x.permute(a["perm"]),
}


def describe() -> dict[str, str]:
    """Versions of PyTorch and what it calls."""
    return {
        "torch": torch.__version__,
        "cuda": str(torch.version.cuda),
        "cudnn": str(torch.backends.cudnn.version()),
        "cusparselt": str(torch.backends.cusparselt.version()),
    }


@contextmanager
def precision(name: str) -> Iterator[torch.dtype]:
    """Sets how PyTorch multiplies float32, and gives the type of tensors."""
    tf32 = name == "tf32"
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32
    try:
        yield _DTYPES.get(name, torch.float32)
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def seconds(start: Callable[[], object], budget: float = _BUDGET) -> float:
    """Median time of what `start` starts on the current stream; see `driver.median_seconds`."""
    first, last = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)

    def block(runs: int) -> float:
        first.record()
        for _ in range(runs):
            start()
        last.record()
        last.synchronize()
        return 1e-3 * float(first.elapsed_time(last)) / runs

    return median_seconds(block, budget)


def graph_of(start: Callable[[], object]) -> Callable[[], object]:
    """The same work as a CUDA graph."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(_WARM_UP):
            start()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        start()
    return graph.replay


def network_times(table: dict[str, Any], shape: list[int], name: str, *, compiled: bool) -> dict[str, Any]:
    """Milliseconds of a network in one precision.

    Args:
        table: see `Network`.
        shape: of the input.
        name: of PRECISIONS.
        compiled: by torch.compile with CUDA graphs; else as it is (`eager_ms`) and as one CUDA graph (`graph_ms`).
    """
    with precision(name) as dtype, torch.inference_mode():
        images = len(shape) == 4 and dtype != torch.float32
        layout = torch.channels_last if images else torch.contiguous_format
        network = Network(table).cuda().to(dtype)
        if images:
            network = network.to(memory_format=layout)
        x = torch.randn(shape, device="cuda").to(dtype).to(memory_format=layout)
        if compiled:
            # fullgraph: what cannot be compiled as a whole is an error, and not a slow mixture.
            fast = torch.compile(network, mode="reduce-overhead", fullgraph=True)
            for _ in range(_WARM_UP):
                fast(x)
            return {"compile_ms": 1e3 * seconds(lambda: fast(x))}
        for _ in range(_WARM_UP):
            network(x)
        times = {"eager_ms": 1e3 * seconds(lambda: network(x))}
        return times | {"graph_ms": 1e3 * seconds(graph_of(lambda: network(x)))}


def layer_times(layer: dict[str, Any], sets: int) -> dict[str, Any]:
    """Milliseconds of a layer: in each precision on all weights, by cuSPARSE, and by PyTorch's 2:4.

    Args:
        layer: a layer of the bundle's table.
        sets: copies of weights and inputs that take turns.

    Returns:
        Way -> milliseconds, or the reason why there are none.
    """
    found: dict[str, Any] = {}
    for name, make in _ways(layer).items():
        try:
            with precision(name.split(" ")[-1]), torch.inference_mode():
                works = [make() for _ in range(sets)]
                rounds = math.ceil(8 / sets)

                def start(works: list[Callable[[], object]] = works, rounds: int = rounds) -> None:
                    for _ in range(rounds):
                        for work in works:
                            work()

                found[name] = 1e3 * seconds(graph_of(start)) / (rounds * sets)
        except (RuntimeError, NotImplementedError, ValueError) as error:
            found[name] = str(error).strip().split("\n")[0][:200]
        torch.cuda.empty_cache()
    return found


def _ways(layer: dict[str, Any]) -> dict[str, Callable[[], Callable[[], object]]]:
    """Name -> what puts a layer's tensors on the GPU, and gives what computes it."""
    if layer["kind"] == "conv":
        return {f"dense {name}": lambda name=name: _dense_conv(layer, name) for name in PRECISIONS}
    return {
        **{f"dense {name}": lambda name=name: _dense(layer, name) for name in PRECISIONS},
        "csr float32": lambda: _csr(layer),
        **{f"2:4 {name}": lambda name=name: _two_of_four(layer, name) for name in _DTYPES},
    }


def _dense(layer: dict[str, Any], name: str) -> Callable[[], object]:
    dtype = _DTYPES.get(name, torch.float32)
    x = torch.randn(layer["rows"], layer["k"], device="cuda").to(dtype)
    weight = torch.randn(layer["n"], layer["k"], device="cuda").to(dtype)
    return lambda: F.linear(x, weight)


def _dense_conv(layer: dict[str, Any], name: str) -> Callable[[], object]:
    dtype = _DTYPES.get(name, torch.float32)
    layout = torch.channels_last if name in _DTYPES else torch.contiguous_format
    size = layer["size"]
    x = torch.randn(layer["batch"], layer["inputs"], size, size, device="cuda").to(dtype).to(memory_format=layout)
    weight = torch.randn(layer["outputs"], layer["inputs"], layer["kernel"], layer["kernel"], device="cuda")
    weight = weight.to(dtype).to(memory_format=layout)
    return lambda: F.conv2d(x, weight, None, layer["stride"], layer["kernel"] // 2)


def _csr(layer: dict[str, Any]) -> Callable[[], object]:
    mask = np.random.default_rng(0).random((layer["n"], layer["k"])) < layer["density"]
    weight = torch.from_numpy(mask.astype(np.float32)).cuda().to_sparse_csr()
    if layer["rows"] == 1:
        vector = torch.randn(layer["k"], device="cuda")
        return lambda: weight @ vector
    x = torch.randn(layer["k"], layer["rows"], device="cuda")
    return lambda: weight @ x


def _two_of_four(layer: dict[str, Any], name: str) -> Callable[[], object]:
    weight = torch.randn(layer["n"], layer["k"], device="cuda").to(_DTYPES[name])
    weight *= torch.tensor([1, 0, 1, 0], device="cuda", dtype=weight.dtype).repeat(layer["k"] // 4)
    sparse = torch.sparse.to_sparse_semi_structured(weight)
    x = torch.randn(layer["rows"], layer["k"], device="cuda").to(weight.dtype)
    return lambda: F.linear(x, sparse)
