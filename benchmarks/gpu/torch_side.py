"""PyTorch on the same GPU: cuDNN and cuBLAS on every weight, cuSPARSE and cuSPARSELt on pruned matrices.

Networks are built from the bundle's lists of nodes, with random weights: their times do not depend on the values.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F  # noqa: N812 - PyTorch's own name for it

from benchmarks.gpu.beside import Job
from benchmarks.gpu.bundle import Bundle
from lwc_compiler.runtime.device_driver import median_seconds
from lwc_compiler.runtime.device_timing import sets_of

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"  # the latter in tests
_DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16}
_BUDGET = 0.2  # seconds of one timing
_LAYER_BUDGET = 0.05
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


def cuda_is_here() -> bool:
    """Whether there is anything to measure."""
    return DEVICE == "cuda"


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
    """Median time of what `start` starts on the current stream; see `device_driver.median_seconds`."""
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


def network_times(
    table: dict[str, Any], shape: list[int], name: str, wait: Callable[[], None], *, compiling: bool, eager: bool
) -> Iterator[dict[str, Any]]:
    """Milliseconds of a network in one precision: by torch.compile with CUDA graphs, as one CUDA graph, and eager.

    Images are (batch, rows, columns, channels) in memory for 16 bits; then `graph_nchw` is the graph without that.

    Args:
        table: see `Network`.
        shape: of the input.
        name: of PRECISIONS.
        wait: called when all is compiled, before anything is computed.
        compiling: whether to time it so.
        eager: likewise.

    Returns:
        `{"compile_ms": ...}` and so on, one after the other, and `{"compile": why there is none}`.
    """
    with precision(name) as dtype, torch.inference_mode():
        images = len(shape) == 4 and dtype != torch.float32
        network = Network(table).to(DEVICE, dtype)
        x = torch.randn(shape, device=DEVICE).to(dtype)
        first = in_layout(network, x, torch.channels_last) if images else (network, x)
        if compiling:
            yield _compiled_time(*first, wait)
        wait()
        yield {"graph_ms": 1e3 * seconds(graph_of(lambda: first[0](first[1])))}
        if eager:
            yield {"eager_ms": 1e3 * seconds(lambda: first[0](first[1]))}
        if images:
            second = in_layout(network, x, torch.contiguous_format)
            yield {"graph_nchw_ms": 1e3 * seconds(graph_of(lambda: second[0](second[1])))}


def _compiled_time(network: Network, x: torch.Tensor, wait: Callable[[], None]) -> dict[str, Any]:
    try:
        fast = compiled(network, wait)
        for _ in range(_WARM_UP):
            fast(x)
        return {"compile_ms": 1e3 * seconds(lambda: fast(x))}
    except Exception as error:  # whatever PyTorch's compilers raise
        return {"compile": f"{type(error).__name__}: {str(error).strip()[:200]}"}


def in_layout(network: Network, x: torch.Tensor, layout: torch.memory_format) -> tuple[Network, torch.Tensor]:
    """A network, changed in place, and its input in a layout of images."""
    return network.to(memory_format=layout), x.contiguous(memory_format=layout)


def compiled(network: Network, wait: Callable[[], None]) -> Callable[[torch.Tensor], torch.Tensor]:
    """What `torch.compile(network, mode="reduce-overhead", fullgraph=True)` gives, but that its first run calls `wait`.

    It does so between compiling and running. What cannot be compiled as a whole is an error, and not a slow mixture.
    """
    from torch._inductor import list_mode_options
    from torch._inductor.compile_fx import compile_fx

    def backend(graph: torch.fx.GraphModule, inputs: Sequence[torch.Tensor]) -> Any:
        result = compile_fx(graph, inputs, config_patches=list_mode_options("reduce-overhead"))
        wait()
        return result

    fast: Callable[[torch.Tensor], torch.Tensor] = torch.compile(network, backend=backend, fullgraph=True)
    return fast


@dataclass(frozen=True)
class Work:
    """What is timed, with the bytes that it reads and writes."""

    start: Callable[[], object]
    size: int


def layer_times(
    layer: dict[str, Any], weight: NDArray[np.float32], precisions: Sequence[str], l2_bytes: int
) -> dict[str, Any]:
    """Milliseconds of a layer: in each precision on all weights, by cuSPARSE, and by cuSPARSELt.

    Args:
        layer: of the bundle's `layers_alone`.
        weight: its output channels that differ.
        precisions: of all weights; half of them also of 2:4.
        l2_bytes: size of the level-2 cache: copies of the tensors take turns in it.

    Returns:
        Way -> milliseconds, or the reason why there are none.
    """
    found: dict[str, Any] = {}
    outputs = layer["outputs" if layer["kind"] == "conv" else "n"]
    whole = torch.from_numpy(weight).to(DEVICE)[torch.arange(outputs, device=DEVICE) % len(weight)]
    for name, make in _ways(layer, whole, precisions).items():
        try:
            with precision(name.split(" ")[1]), torch.inference_mode():
                works = [make()]
                works += [make() for _ in range(sets_of(l2_bytes, works[0].size) - 1)]
                rounds = math.ceil(8 / len(works))

                def start(works: list[Work] = works, rounds: int = rounds) -> None:
                    for _ in range(rounds):
                        for work in works:
                            work.start()

                found[name] = 1e3 * seconds(graph_of(start), _LAYER_BUDGET) / (rounds * len(works))
        except (RuntimeError, NotImplementedError, ValueError) as error:
            found[name] = str(error).strip().split("\n")[0][:200] or type(error).__name__
        torch.cuda.empty_cache()
    return found


def _ways(layer: dict[str, Any], weight: torch.Tensor, precisions: Sequence[str]) -> dict[str, Callable[[], Work]]:
    """Name -> what puts a layer's tensors on the GPU."""
    dense = _dense_conv if layer["kind"] == "conv" else _dense
    ways: dict[str, Callable[[], Work]] = {f"dense {name}": partial(dense, layer, weight, name) for name in precisions}
    if layer["purpose"] == "2:4":
        return ways | {
            f"2:4 {name} {kernel}": partial(_two_of_four, layer, weight, name, kernel)
            for name in precisions
            if name in _DTYPES
            for kernel in ("default", "searched")
        }
    if layer["purpose"] in ("every weight", "1:2") or (layer["kind"] == "conv" and layer["kernel"] > 1):
        return ways
    # cuSPARSE multiplies dense matrices in both orders; which is faster differs.
    orders = ("rows", "columns") if layer["kind"] == "conv" or layer["rows"] > 1 else ("vector",)
    return ways | {f"csr float32 {order}": partial(_csr, layer, weight, order) for order in orders}


def _work(start: Callable[[], torch.Tensor], *operands: torch.Tensor) -> Work:
    return Work(start, sum(tensor.nbytes for tensor in (start(), *operands)))


def _dense(layer: dict[str, Any], weight: torch.Tensor, name: str) -> Work:
    dtype = _DTYPES.get(name, torch.float32)
    x = torch.randn(layer["rows"], layer["k"], device=DEVICE).to(dtype)
    there = weight.to(dtype, copy=True)
    return _work(lambda: F.linear(x, there), x, there)


def _dense_conv(layer: dict[str, Any], weight: torch.Tensor, name: str) -> Work:
    dtype = _DTYPES.get(name, torch.float32)
    layout = torch.channels_last if name in _DTYPES else torch.contiguous_format
    shape = layer["batch"], layer["inputs"], layer["size"], layer["size"]
    x = torch.randn(shape, device=DEVICE).to(dtype).contiguous(memory_format=layout)
    there = weight.to(dtype, copy=True).contiguous(memory_format=layout)
    return _work(lambda: F.conv2d(x, there, None, 1, layer["kernel"] // 2), x, there)


def _csr(layer: dict[str, Any], weight: torch.Tensor, order: str) -> Work:
    """The weight by columns of inputs: for a 1x1 convolution all its pixels, whatever image they are of."""
    flat = weight.flatten(1)
    columns = layer["batch"] * layer["size"] ** 2 if layer["kind"] == "conv" else layer["rows"]
    sparse = flat.to_sparse_csr()
    starts, indices = sparse.crow_indices().to(torch.int32), sparse.col_indices().to(torch.int32)
    parts = starts, indices, sparse.values()
    there = torch.sparse_csr_tensor(*parts, flat.shape)
    x = torch.randn(flat.shape[1], columns, device=DEVICE)
    x = x[:, 0] if order == "vector" else x.t().contiguous().t() if order == "columns" else x
    return _work(lambda: there @ x, x, *parts)


def _two_of_four(layer: dict[str, Any], weight: torch.Tensor, name: str, kernel: str) -> Work:
    """By the kernel that cuSPARSELt takes, or by the one that its search finds to be the fastest."""
    packed = torch._cslt_compress(weight.to(_DTYPES[name]))
    x = torch.randn(layer["rows"], layer["k"], device=DEVICE).to(_DTYPES[name]).t()
    number = torch._cslt_sparse_mm_search(packed, x) if kernel == "searched" else 0
    return _work(lambda: torch._cslt_sparse_mm(packed, x, alg_id=number), x, packed)


def run_job(bundle: Bundle, job: Job, which: str, precisions: Sequence[str]) -> None:
    """What a process of `beside.Process` does.

    Args:
        bundle: has the networks and the layers.
        job: what it says goes there.
        which: "layers"; or the number of a network in the bundle's table and a precision, with a space between, and
            perhaps " uncompiled" behind.
        precisions: of layers.
    """
    if not cuda_is_here():
        job.say({"missing": "PyTorch has no CUDA here"})
        return
    torch.backends.cudnn.benchmark = True  # it tries its kernels, and takes the fastest
    if which.startswith("layers"):
        l2_bytes = torch.cuda.get_device_properties(0).L2_cache_size
        job.wait()
        job.say({"versions": describe()})
        for layer in bundle.table["layers_alone"]:
            weight = bundle.array(layer["weight"])
            job.say({"name": layer["name"], **layer_times(layer, weight, precisions, l2_bytes)})
        return
    number, name, *uncompiled = which.split(" ")
    entry = bundle.table["networks"][int(number)]
    wants = {"compiling": not uncompiled, "eager": entry["batch"] == 1}
    for found in network_times(entry["graph"], entry["input"], name, job.wait, **wants):
        job.say(found)
