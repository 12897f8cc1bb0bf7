"""Makes the file that `make gpu` runs, on a machine without a GPU: `make gpu-prepare`.

Everything is compiled for one architecture. The networks are those of `benchmarks/models.py`, with weights of 16
levels and output channels that repeat, so that the file is small; what is expected of them comes from ONNX Runtime,
and of kernels alone from float64.
"""

from __future__ import annotations

import argparse
import importlib
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from benchmarks.gpu.bundle import Writer, random_input
from benchmarks.models import MODELS
from benchmarks.variants import make_variant, prune, set_batch
from lwc_compiler.codegen.device_build import compile_device
from lwc_compiler.codegen.nvrtc import compile_all, nvrtc_version
from lwc_compiler.kernels.choice import Candidate
from lwc_compiler.kernels.gpu.plan import plan_conv, plan_matmul
from lwc_compiler.kernels.kernel import Constant, Input, Kernel, Plan, Scratch
from lwc_compiler.kernels.layer import ConvGeometry, Epilogue
from lwc_compiler.model import Model
from lwc_compiler.passes.lower import lower
from lwc_compiler.recipe.options import LowerOptions
from lwc_compiler.runtime.reference import reference_session
from lwc_compiler.runtime.verify import tolerance_of
from lwc_compiler.targets import find_target
from lwc_compiler.targets.target import Precision, Target
from lwc_compiler.version import __version__

_TESTS = Path(__file__).parents[2] / "tests" / "kernels"
_NETWORKS = ("lenet5", "alexnet", "vgg16", "resnet50", "mobilenet_v2", "bert12")
_LEVELS = 16
_ROWS = 64  # output channels of a network's layer that differ
_AMPERE = 80  # the first compute capability, times ten, that multiplies tf32 and bfloat16
_CANDIDATES = 3  # of a layer, that are timed
_KERNEL_TOLERANCE = 1e-5
_PRECISIONS: tuple[Precision, ...] = ("float32", "tf32", "float16", "bfloat16")


@dataclass(frozen=True)
class Layer:
    """A layer that is timed alone, with 1 weight in 10.

    Attributes:
        rows: of the input; 0 for a convolution.
        geometry: of the convolution; None for a product.
    """

    rows: int = 0
    k: int = 0
    n: int = 0
    geometry: ConvGeometry | None = None


def _square(batch: int, inputs: int, outputs: int, size: int, kernel: int) -> Layer:
    pad = kernel // 2
    return Layer(
        geometry=ConvGeometry(
            batch, inputs, (size, size), outputs, (kernel, kernel), (1, 1), (pad,) * 4, (1, 1)
        )
    )  # fmt: skip


_LAYERS = (
    Layer(1, 4096, 4096),
    Layer(16, 2048, 2048),
    Layer(128, 768, 3072),
    *(_square(batch, 256, 256, 14, 3) for batch in (1, 8)),
    *(_square(batch, 1024, 256, 14, 1) for batch in (1, 8)),
)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--target", default="h100", help="a GPU of `lwc targets`")
    parser.add_argument("--output", type=Path, default=Path("build/lwc-gpu.pyz"))
    parser.add_argument("--models", nargs="*", choices=list(MODELS), default=_NETWORKS)
    parser.add_argument("--variants", nargs="*", default=("90",))
    parser.add_argument("--precisions", nargs="*", choices=_PRECISIONS, default=("float32", "float16"))
    parser.add_argument("--batch", nargs="*", type=int, default=(1, 16, 64))
    parser.add_argument("--without-layers", action="store_true", help="only the networks, and the kernels of the tests")
    options = parser.parse_args()
    target = find_target(options.target)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    with Writer(options.output) as writer:
        writer.table["made"] = {"lwc": __version__, "target": target.name, "compiler": nvrtc_version()}
        writer.table["checks"] = pack_cases(writer, test_cases(target), target)
        layers = () if options.without_layers else _LAYERS
        writer.table["layers_alone"] = [describe(layer) for layer in layers]
        writer.table["layers"] = pack_cases(
            writer, [case for each in layers for case in cases_of(each, target)], target
        )
        writer.table["networks"] = [
            pack_network(writer, name, variant, batch, precision, target)
            for name in options.models
            for variant in options.variants
            for batch in options.batch
            for precision in options.precisions
        ]
    print(f"{options.output}: {options.output.stat().st_size / 2**20:.1f} MiB")


@dataclass(frozen=True)
class Checked:
    """A plan with what it has to compute.

    Attributes:
        inputs: arrays.
        scale: what the error is relative to.
        tolerance: the largest error that is right.
        layer: what the results say of it.
    """

    name: str
    plan: Plan
    inputs: Sequence[NDArray[np.float32]]
    expected: NDArray[np.float32]
    scale: float
    tolerance: float
    layer: dict[str, Any]


def test_cases(target: Target) -> list[Checked]:
    """The cases of `tests/kernels/test_gpu.py` and `test_gpu_precision.py`, but for what the target does not have."""
    sys.path.insert(0, str(_TESTS))
    cases = [(c.name, c, c.plan(target)) for c in importlib.import_module("test_gpu").CASES]
    assert target.gpu is not None
    for name, case in importlib.import_module("test_gpu_precision").CASES.items():
        if target.gpu.architectures[0] >= _AMPERE or (name.endswith("-float16") and case.plan.format != "2:4"):
            cases.append((name, case, case.plan))
    return [
        Checked(name, plan, c.inputs, c.expected.astype(np.float32), c.scale, _KERNEL_TOLERANCE, {})
        for name, c, plan in cases
    ]


def describe(layer: Layer) -> dict[str, Any]:
    """A layer as `torch_side` takes it."""
    g = layer.geometry
    if g is None:
        weights, shape = layer.k * layer.n, {"rows": layer.rows, "k": layer.k, "n": layer.n}
        name = f"{layer.rows} x {layer.k} x {layer.n}"
        return {"name": name, "kind": "matmul", "density": 0.1, "dense_bytes": 4 * weights, **shape}
    name = f"{g.batch} x {g.in_channels} x {g.in_size[0]}^2, {g.kernel[0]}^2, {g.out_channels}"
    return {
        "name": name, "kind": "conv", "density": 0.1, "batch": g.batch, "inputs": g.in_channels,
        "outputs": g.out_channels, "size": g.in_size[0], "kernel": g.kernel[0], "stride": g.strides[0],
        "dense_bytes": 4 * g.in_channels * g.out_channels * g.kernel[0] ** 2,
    }  # fmt: skip


def cases_of(layer: Layer, target: Target) -> list[Checked]:
    """A layer by the candidates that are predicted to be the fastest.

    Some in float32, at least one of every format, and one of every other precision.
    """
    import torch

    assert target.gpu is not None
    offered: list[Candidate] = []

    def collect(_: object, candidates: Sequence[Candidate]) -> Plan:
        offered[:] = sorted(candidates, key=lambda candidate: candidate.cycles)
        return offered[0].build()

    g, description = layer.geometry, describe(layer)
    shape = (layer.n, layer.k) if g is None else (g.out_channels, g.in_channels, *g.kernel)
    weight = levels(prune(np.random.default_rng(1).standard_normal(shape, np.float32), 0.1))
    chosen: list[tuple[str, Candidate]] = []
    for precision in _PRECISIONS if target.gpu.architectures[0] >= _AMPERE else ("float32", "float16"):
        precise = replace(target, gpu=replace(target.gpu, precision=precision))
        if g is None:
            plan_matmul(np.ascontiguousarray(weight.T), layer.rows, Epilogue(), precise, collect)
        else:
            plan_conv(weight, g, Epilogue(), precise, collect)
        if precision == "float32":
            formats = {candidate.format: candidate for candidate in reversed(offered)}
            ranked = [*formats.values(), *(c for c in offered if c not in formats.values())][:_CANDIDATES]
        else:
            ranked = [c for c in offered if precision in re.findall(r"\w+", c.name)][:1]
        chosen += [(precision, candidate) for candidate in ranked]
    if g is None:
        x = random_input([layer.rows, layer.k])
        expected = x.astype(np.float64) @ weight.astype(np.float64).T
    else:
        x = random_input(list(g.in_shape))
        doubles = (torch.from_numpy(array.astype(np.float64)) for array in (x, weight))
        expected = torch.nn.functional.conv2d(*doubles, padding=g.kernel[0] // 2).numpy()
    expected = expected.astype(np.float32)
    cases = []
    for precision, candidate in chosen:
        plan = candidate.build()
        constants = sum(step.constant_bytes for step in plan.steps)
        about = {
            "layer": description["name"],
            "candidate": candidate.name,
            "format": candidate.format,
            "predicted_ms": candidate.cycles / target.gpu.gigahertz / 1e6,
            "flops": plan.flops,
            "bytes": constants + x.nbytes + 4 * expected.size,
        }
        name = f"{description['name']}: {candidate.name}"
        tolerance = _KERNEL_TOLERANCE if precision == "float32" else tolerance_of(precision)
        cases.append(Checked(name, plan, [x], expected, float(np.abs(expected).max()), tolerance, about))
    return cases


def pack_cases(writer: Writer, cases: Sequence[Checked], target: Target) -> dict[str, Any]:
    """Compiles the kernels of the cases and stores all that they need."""
    assert target.gpu is not None
    kernels: dict[str, Kernel] = {}
    entries, stored = [], {}

    def once(array: NDArray[Any]) -> str:
        """Candidates of a layer share what they have to compute, and layers alike their constants."""
        if id(array) not in stored:
            stored[id(array)] = writer.add_array(array)
        return stored[id(array)]

    for case in cases:
        steps = []
        for step in case.plan.steps:
            symbol = f"k{len(kernels)}"
            kernels[symbol] = step.kernel
            args: list[list[Any]] = []
            for operand in step.args:
                if isinstance(operand, Constant):
                    args.append(["constant", once(operand.array)])
                else:
                    kind = {Input: "input", Scratch: "scratch"}.get(type(operand), "output")
                    args.append([kind, operand.index])
            launch = step.kernel.launch
            assert launch is not None
            sizes = {"grid": launch.grid, "block": launch.block, "shared_bytes": launch.dynamic_bytes}
            steps.append({"symbol": symbol, "args": args, **sizes})
        inputs = [
            {"shape": x.shape} if np.array_equal(x, random_input(list(x.shape))) else {"array": once(x)}
            for x in case.inputs
        ]
        entries.append(
            {
                "name": case.name,
                "steps": steps,
                "scratch": case.plan.scratch,
                "inputs": inputs,
                "shape": case.expected.shape,
                "expected": once(case.expected),
                "scale": float(case.scale),
                "tolerance": case.tolerance,
                "layer": case.layer,
            }
        )
    (code,) = compile_all(compile_device(kernels, "cuda"), target.gpu.architectures[:1], ptx=False)
    return {"code": writer.add(f"{len(writer.table)}.cubin", code.image), "cases": entries}


def levels(weight: NDArray[np.float32]) -> NDArray[np.float32]:
    """The weights in 16 levels, of which none is 0; zeros stay."""
    step = np.float32(6 * weight.std() / _LEVELS)
    level = np.clip(np.floor(weight / step), -_LEVELS // 2, _LEVELS // 2 - 1) + np.float32(0.5)
    return np.where(weight == 0, np.float32(0), (level * step).astype(np.float32))


def pack_network(
    writer: Writer, name: str, variant: str, batch: int, precision: Precision, target: Target
) -> dict[str, Any]:
    """Compiles a network and stores its library, and what ONNX Runtime gives for a batch's first and last image."""
    proto = MODELS[name]()
    make_variant(proto, name, variant)
    by_column = {node.input[1] for node in proto.graph.node if node.op_type == "MatMul"}
    for tensor in proto.graph.initializer:
        array = numpy_helper.to_array(tensor)
        if array.ndim > 1 and array.dtype == np.float32:
            outputs = 1 if tensor.name in by_column else 0
            repeated = np.take(levels(array), np.arange(array.shape[outputs]) % _ROWS, outputs)
            tensor.CopyFrom(numpy_helper.from_array(repeated, tensor.name))
    set_batch(proto, min(batch, 2))
    shape = [batch, *(d.dim_value for d in proto.graph.input[0].type.tensor_type.shape.dim)][:1]
    shape += [d.dim_value for d in proto.graph.input[0].type.tensor_type.shape.dim][1:]
    x = random_input(shape)
    (expected,) = reference_session(proto, 2).run(None, {proto.graph.input[0].name: x[[0, -1]] if batch > 1 else x})
    set_batch(proto, batch)
    symbol = f"{name}_{variant.replace('-', '_')}_{batch}_{precision}"
    lowered = lower(Model(proto, symbol), LowerOptions(target=target.name, precision=precision))
    assert lowered.library is not None
    print(symbol, flush=True)
    return {
        "model": name,
        "variant": variant,
        "batch": batch,
        "precision": precision,
        "symbol": symbol,
        "library": writer.add(f"{symbol}.so", lowered.library),
        "device_bytes": lowered.weight_bytes + lowered.workspace_bytes,
        "input": shape,
        "output": [batch, *expected.shape[1:]],
        "expected": writer.add_array(expected),
        "tolerance": tolerance_of(precision),
        "steps": [[step.node, step.kernel] for step in lowered.programs[0].steps],
        "decisions": {
            d.node: {"density": d.density, "format": d.format, "flops": d.flops, "bytes": d.bytes}
            for d in lowered.layers
        },
        "graph": graph_of(proto),
    }


def graph_of(proto: onnx.ModelProto) -> dict[str, Any]:
    """The nodes of a network, as `torch_side.Network` takes them; of weights, the shapes alone."""
    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}
    weights = {name: list(a.shape) for name, a in arrays.items() if a.ndim and a.dtype == np.float32}
    return {
        "weights": weights,
        "constants": {name: a.tolist() for name, a in arrays.items() if name not in weights},
        "input": proto.graph.input[0].name,
        "output": proto.graph.output[0].name,
        "nodes": [
            {
                "op": node.op_type,
                "inputs": list(node.input),
                "output": node.output[0],
                "attributes": {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute},
            }
            for node in proto.graph.node
        ],
    }


if __name__ == "__main__":
    main()
