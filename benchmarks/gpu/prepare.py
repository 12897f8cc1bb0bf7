"""Makes the file that `make gpu` runs, on a machine without a GPU: `make gpu-prepare`.

Everything is compiled for one architecture. The networks are those of `benchmarks/models.py`, with weights of 16
levels and output channels that repeat, so that the file is small; what is expected of them comes from ONNX Runtime,
and of kernels alone from float64.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from benchmarks.gpu.bundle import Writer, random_input
from benchmarks.gpu.layers import (
    KERNEL_TOLERANCE,
    LAYERS,
    PRECISIONS,
    ROWS,
    Checked,
    Layer,
    cases_of,
    describe,
    levels,
    weight_of,
)
from benchmarks.models import MODELS
from benchmarks.variants import HAN, make_variant, set_batch
from lwc_compiler.codegen.cuda_compiler import compile_all, find_cuda_compiler
from lwc_compiler.codegen.device_build import compile_device
from lwc_compiler.kernels.kernel import Constant, Input, Kernel, Plan, Scratch
from lwc_compiler.model import Model
from lwc_compiler.passes.lower import lower
from lwc_compiler.recipe.options import LowerOptions
from lwc_compiler.runtime.reference import reference_session
from lwc_compiler.runtime.verify import tolerance_of
from lwc_compiler.targets import find_target
from lwc_compiler.targets.target import Gpu, Precision, Target
from lwc_compiler.version import __version__

_TESTS = Path(__file__).parents[2] / "tests" / "kernels"
_CHECKED = ("test_gpu", "test_gpu_batched", "test_gpu_attention")
_PRECISE = ("test_gpu_precision", "test_gpu_mma_blocks")
_BATCHES = {
    "lenet5": (1,), "alexnet": (1,), "vgg16": (1, 16), "resnet50": (1, 16, 64), "mobilenet_v2": (1, 16, 64),
    "bert12": (1, 16),
}  # fmt: skip
_HOPPER = 90  # the compute capability, times ten, with `wgmma`
_AMPERE = 80  # the first compute capability, times ten, that multiplies tf32 and bfloat16


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--target", default="h100", help="a GPU of `lwc targets`")
    parser.add_argument("--output", type=Path, default=Path("build/lwc-gpu.pyz"))
    parser.add_argument("--models", nargs="*", choices=list(MODELS), default=tuple(_BATCHES))
    parser.add_argument("--variants", nargs="*", help="by default 90, and han of AlexNet and VGG-16 at batch 1")
    parser.add_argument(
        "--precisions", nargs="*", choices=PRECISIONS, help="by default float32, and float16 at batch 1"
    )
    parser.add_argument("--batch", nargs="*", type=int, help="by default those of the goals")
    parser.add_argument("--without-layers", action="store_true", help="only the networks, and the kernels of the tests")
    options = parser.parse_args()
    target = find_target(options.target)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    compiler = find_cuda_compiler(target.gpu.architectures)
    with Writer(options.output) as writer:
        writer.table["made"] = {"lwc": __version__, "target": target.name, "compiler": str(compiler)}
        writer.table["checks"] = pack_cases(writer, test_cases(target), target)
        pack_layers(writer, () if options.without_layers else LAYERS, target)
        writer.table["networks"] = [
            pack_network(writer, *network, target)
            for network in networks_of(options.models, options.variants, options.batch, options.precisions)
        ]
    print(f"{options.output}: {options.output.stat().st_size / 2**20:.1f} MiB")


def networks_of(
    models: Sequence[str],
    variants: Sequence[str] | None,
    batches: Sequence[int] | None,
    precisions: Sequence[Precision] | None,
) -> Iterator[tuple[str, str, int, Precision]]:
    """Model, variant, batch and precision of each network; what is None is as the goals need it."""
    for model in models:
        for variant in variants or (("90", "han") if model in HAN and model != "lenet5" else ("90",)):
            for batch in batches or _BATCHES.get(model, (1,)):
                for precision in precisions or ("float32", "float16"):
                    asked = (variants or variant == "90", batches or batch == 1, precisions or precision == "float32")
                    if sum(map(bool, asked)) >= 2:  # at most one thing is out of the ordinary
                        yield model, variant, batch, precision


def test_cases(target: Target) -> list[Checked]:
    """The cases of `_CHECKED` and `_PRECISE` in `tests/kernels`, but for what the target does not have."""
    sys.path.insert(0, str(_TESTS))
    assert target.gpu is not None
    found = [case for module in _CHECKED for case in importlib.import_module(module).CASES]
    cases = [(case.name, case, case.plan(target)) for case in found]
    cases = [each for each in cases if _fits(each[2], target.gpu)]
    for module in _PRECISE:
        for name, case in importlib.import_module(module).CASES.items():
            if target.gpu.architectures[0] >= _AMPERE or (name.endswith("-float16") and case.plan.format != "2:4"):
                cases.append((name, case, case.plan))
    if target.gpu.architectures == (_HOPPER,):
        found = importlib.import_module("test_gpu_wgmma").CASES
        cases += [(f"wgmma {name}", case, case.plan) for name, case in found.items()]
    return [
        Checked(name, plan, c.inputs, c.expected.shape, c.expected.astype(np.float32), c.scale, KERNEL_TOLERANCE, {})
        for name, c, plan in cases
    ]


def _fits(plan: Plan, gpu: Gpu) -> bool:
    """Whether blocks have as much shared memory as the plan's kernels take."""
    launches = [step.kernel.launch for step in plan.steps]
    return all(launch is not None and launch.shared_bytes <= gpu.block_shared_bytes for launch in launches)


def pack_layers(writer: Writer, layers: Sequence[Layer], target: Target) -> None:
    """Stores the layers that are timed alone, by lwc's candidates and for PyTorch."""
    weights = {layer.name: writer.add_array(weight_of(layer)) for layer in layers}
    writer.table["layers_alone"] = [describe(layer, weights[layer.name]) for layer in layers]
    writer.table["layers"] = pack_cases(writer, [case for each in layers for case in cases_of(each, target)], target)


def pack_cases(writer: Writer, cases: Sequence[Checked], target: Target) -> dict[str, Any]:
    """Compiles the kernels of the cases and stores all that they need."""
    assert target.gpu is not None
    kernels: dict[str, Kernel] = {}
    entries, stored, sources = [], {}, {}

    def once(array: NDArray[Any]) -> str:
        """Candidates of a layer share what they have to compute, and layers alike their constants."""
        if id(array) not in stored:
            stored[id(array)] = writer.add_array(array)
        return stored[id(array)]

    def source(x: NDArray[np.float32]) -> dict[str, Any]:
        if id(x) not in sources:
            drawn = np.array_equal(x, random_input(list(x.shape)))
            sources[id(x)] = {"shape": x.shape} if drawn else {"array": once(x)}
        return sources[id(x)]

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
            sizes = {
                "grid": launch.grid,
                "block": launch.block,
                "shared_bytes": launch.dynamic_bytes,
                "overlaps": launch.overlaps,
            }
            steps.append({"symbol": symbol, "args": args, **sizes})
        entries.append(
            {
                "name": case.name,
                "steps": steps,
                "scratch": case.plan.scratch,
                "inputs": [source(x) for x in case.inputs],
                "shape": case.shape,
                "expected": once(case.expected),
                "images": case.images,
                "scale": float(case.scale),
                "tolerance": case.tolerance,
                "layer": case.layer,
            }
        )
    (code,) = compile_all(compile_device(kernels, "cuda"), target.gpu.architectures[:1], ptx=False)
    return {"code": writer.add(f"{len(writer.table)}.cubin", code.image), "cases": entries}


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
            repeated = np.take(levels(array), np.arange(array.shape[outputs]) % ROWS, outputs)
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
