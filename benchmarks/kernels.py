"""Times our kernels, layer by layer, against ONNX Runtime's dense ones: one thread, batch 1.

Run: python -m benchmarks.kernels [--layers TEXT] [--density 0.1 1] [--block 1] [--target NAME] [--tune 8] [--seconds S]

Both engines take turns in one process; the figure is the fastest run of each, because a neighbour on the machine only
ever makes a run slower. Useful GFLOP/s count the non-zero weights only.
"""

from __future__ import annotations

import argparse
import os
import statistics
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnxruntime
from onnx import helper, numpy_helper

from lwc_compiler.codegen.link import find_compiler
from lwc_compiler.codegen.tune import Library, Tuner, fastest
from lwc_compiler.kernels.choice import Pick, predicted
from lwc_compiler.kernels.conv import plan_conv
from lwc_compiler.kernels.kernel import Plan
from lwc_compiler.kernels.layer import ConvGeometry, Epilogue
from lwc_compiler.kernels.matmul import plan_matmul
from lwc_compiler.kernels.registry import KERNELS
from lwc_compiler.targets import find_target
from lwc_compiler.targets.target import Target


@dataclass(frozen=True)
class Layer:
    """A convolution, or a product of `rows` rows when there is no geometry."""

    name: str
    weight: tuple[int, ...]
    geometry: ConvGeometry | None = None
    rows: int = 1


def conv(network: str, channels: int, out: int, kernel: int, stride: int, size: int, groups: int = 1) -> Layer:
    pads = ((kernel - 1) // 2,) * 4
    geometry = ConvGeometry(1, channels, (size,) * 2, out, (kernel,) * 2, (stride,) * 2, pads, (1, 1), groups)
    name = f"{network} {channels}-{out} {kernel}x{kernel}/{stride} {size}" + (f" groups {groups}" if groups > 1 else "")
    return Layer(name, (out, channels // groups, kernel, kernel), geometry)


def product(network: str, rows: int, inner: int, columns: int) -> Layer:
    return Layer(f"{network} {rows}x{inner}x{columns}", (inner, columns), None, rows)


LAYERS = [
    conv("resnet50", 3, 64, 7, 2, 224),
    *(conv("resnet50", i, o, 1, 1, 56) for i, o in ((64, 64), (64, 256), (256, 64), (256, 128))),
    conv("resnet50", 64, 64, 3, 1, 56),
    conv("resnet50", 128, 128, 3, 2, 56),
    conv("resnet50", 256, 512, 1, 2, 56),
    *(conv("resnet50", i, o, 1, 1, 28) for i, o in ((128, 512), (512, 128))),
    conv("resnet50", 128, 128, 3, 1, 28),
    *(conv("resnet50", i, o, 1, 1, 14) for i, o in ((256, 1024), (1024, 256))),
    conv("resnet50", 256, 256, 3, 1, 14),
    conv("resnet50", 1024, 2048, 1, 2, 14),
    *(conv("resnet50", i, o, 1, 1, 7) for i, o in ((512, 2048), (2048, 512))),
    conv("resnet50", 512, 512, 3, 1, 7),
    product("resnet50", 1, 2048, 1000),
    *(conv("vgg16", i, o, 3, 1, s) for i, o, s in ((3, 64, 224), (64, 64, 224), (64, 128, 112), (128, 128, 112))),
    *(conv("vgg16", i, o, 3, 1, s) for i, o, s in ((256, 256, 56), (512, 512, 28), (512, 512, 14))),
    *(product("vgg16", 1, k, n) for k, n in ((25088, 4096), (4096, 4096))),
    conv("mobilenet", 3, 32, 3, 2, 224),
    *(conv("mobilenet", c, c, 3, s, size, c) for c, s, size in ((32, 1, 112), (64, 2, 112), (128, 1, 56))),
    *(conv("mobilenet", c, c, 3, 1, size, c) for c, size in ((256, 28), (512, 14), (1024, 7))),
    *(conv("mobilenet", i, o, 1, 1, s) for i, o, s in ((32, 64, 112), (128, 128, 56), (512, 512, 14), (1024, 1024, 7))),
    *(product("bert", 128, k, n) for k, n in ((768, 768), (768, 3072), (3072, 768))),
]


def pruned(layer: Layer, density: float, block: int) -> np.ndarray:
    """Random weights; zeros in blocks of `block` output channels."""
    generator = np.random.default_rng(0)
    weight = generator.standard_normal(layer.weight, np.float32)
    outputs = 0 if layer.geometry else 1
    shape = list(layer.weight)
    shape[outputs] = -(-shape[outputs] // block)
    kept = np.repeat(generator.random(shape, np.float32) < density, block, axis=outputs)
    return weight * kept.take(range(layer.weight[outputs]), axis=outputs)


def plan(layer: Layer, weight: np.ndarray, target: Target, pick: Pick) -> Plan:
    if layer.geometry:
        return plan_conv(weight, layer.geometry, Epilogue(), target, pick)
    return plan_matmul(weight, layer.rows, Epilogue(), target, pick)


def reference(layer: Layer) -> tuple[np.ndarray, Callable[[], list[np.ndarray]]]:
    """An input, and ONNX Runtime on the dense layer."""
    weight = pruned(layer, 1.0, 1)
    g = layer.geometry
    if g:
        shape, node = g.in_shape, helper.make_node("Conv", ["x", "w"], ["y"], strides=g.strides, pads=g.pads)
        node.attribute.append(helper.make_attribute("group", g.groups))
    else:
        shape, node = (layer.rows, layer.weight[0]), helper.make_node("MatMul", ["x", "w"], ["y"])
    x, y = helper.make_tensor_value_info("x", 1, shape), helper.make_tensor_value_info("y", 1, None)
    graph = helper.make_graph([node], "layer", [x], [y], [numpy_helper.from_array(weight, "w")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])
    data = np.random.default_rng(1).standard_normal(shape, np.float32)
    return data, lambda: session.run(None, {"x": data})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", default="", help="only layers whose name contains this text, e.g. 'resnet50'")
    parser.add_argument("--density", type=float, nargs="+", default=[0.1, 1.0], help="share of weights kept")
    parser.add_argument("--block", type=int, default=1, help="output channels that zeros come in blocks of")
    parser.add_argument("--target", default="host", help="as `lwc targets` lists them")
    parser.add_argument("--tune", type=int, default=8, help="kernels measured for each layer; 0: predicted")
    parser.add_argument("--seconds", type=float, default=0.2, help="how long each layer is timed")
    options = parser.parse_args()
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    target = find_target(options.target)
    layers = [layer for layer in LAYERS if options.layers in layer.name]
    cases = [(layer, density, pruned(layer, density, options.block)) for layer in layers for density in options.density]
    compiler = find_compiler()
    pick = Tuner(target, options.tune, compiler) if options.tune else predicted
    plans = [plan(layer, weight, target, pick) for layer, _, weight in cases]
    speedups: dict[float, list[float]] = {}
    with Library(plans, target, compiler) as library:
        print(f"{'layer':38} density {'kernel':12} ONNX Runtime ms   lwc ms  speedup  useful GFLOP/s")
        for i, ((layer, density, weight), p) in enumerate(zip(cases, plans, strict=True)):
            x, theirs = reference(layer)
            out = layer.geometry.out_shape if layer.geometry else (layer.rows, layer.weight[1])
            ours, result = library.runner(i, [x.reshape(-1)], 4 * int(np.prod(out)))
            dense, sparse = fastest([theirs, ours], options.seconds)
            if density == 1:
                (expected,) = theirs()
                error = np.abs(result.view(np.float32).reshape(out) - expected).max()
                assert error <= 1e-4 * np.abs(expected).max(), layer.name
            pixels = int(np.prod(layer.geometry.out_size)) if layer.geometry else layer.rows
            useful = 2 * np.count_nonzero(weight) * pixels / sparse * 1e-9
            kernel = next(s.kernel.name for s in p.steps if s.kernel.name in {e.name for e in KERNELS if e.format})
            print(
                f"{layer.name:38} {density:7g} {kernel:12} {dense * 1e3:15.3f} {sparse * 1e3:8.3f}"
                f" {dense / sparse:8.2f} {useful:15.1f}",
                flush=True,
            )
            speedups.setdefault(density, []).append(dense / sparse)
    for density, values in speedups.items():
        print(f"density {density:g}: median speedup {statistics.median(values):.2f}, worst {min(values):.2f}")


if __name__ == "__main__":
    main()
