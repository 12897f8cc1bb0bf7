"""Fits the constants of `kernels/gpu/*_cost.py` to kernels timed on a GPU.

```sh
python -m benchmarks.gpu.fit prepare                            # anywhere: cuts of many layers, in build/lwc-cuts.pyz
python3 lwc-cuts.pyz --only-layers --output results             # on the machine with the GPU
python -m benchmarks.gpu.fit fit results/gpu-nvidia-h200.json   # prints the constants
```

Of each layer some cuts are those that are predicted to be the fastest, and as many are drawn from the others.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares

from benchmarks.gpu.bundle import Writer
from benchmarks.gpu.layers import Checked, Layer, Made, made, square
from benchmarks.gpu.prepare import pack_cases
from lwc_compiler.codegen.cuda_compiler import find_cuda_compiler
from lwc_compiler.kernels.gpu import candidates, cuts, matvec_cost, mma_blocks_cost, product_cost, taps_cost, wgmma_cost
from lwc_compiler.kernels.gpu.builder import strides_of
from lwc_compiler.kernels.gpu.gemm import GemmTile
from lwc_compiler.kernels.gpu.matvec import MatvecTile
from lwc_compiler.kernels.gpu.mma import MmaTile
from lwc_compiler.kernels.gpu.mma_blocks_layout import MmaBlocksTile
from lwc_compiler.kernels.gpu.mma_blocks_layout import fitted as fitted_blocks
from lwc_compiler.kernels.gpu.mma_blocks_tiles import mma_blocks_tiles
from lwc_compiler.kernels.gpu.plan import as_planes, without_gaps
from lwc_compiler.kernels.gpu.taps_layout import TapTile, fitted
from lwc_compiler.kernels.gpu.wgmma_layout import WgmmaTile, wgmma_tiles
from lwc_compiler.kernels.kernel import Plan
from lwc_compiler.kernels.layer import ConvGeometry, Epilogue
from lwc_compiler.runtime.verify import tolerance_of
from lwc_compiler.targets import find_target
from lwc_compiler.targets.target import Gpu
from lwc_compiler.version import __version__

_BEST, _OTHERS = 8, 8  # cuts of a layer
_BLOCK = 16  # output channels that are kept or pruned together, on tensor cores
_BOUND = 20.0  # by which a constant may change
_ROBUST = 0.15  # relative error from which on one counts less
_TILES: dict[str, type] = {
    "taps": TapTile, "matvec": MatvecTile, "gemm": GemmTile, "mma": MmaTile, "blocks": MmaBlocksTile,
    "wgmma": WgmmaTile,
}  # fmt: skip
_MODELS = {
    "taps": "taps", "matvec": "matvec", "gemm": "product", "mma": "product", "blocks": "blocks", "wgmma": "wgmma",
}  # fmt: skip
_COSTS: dict[str, tuple[Any, Callable[..., float]]] = {
    "taps": (taps_cost.FITTED, taps_cost.taps_seconds),
    "matvec": (matvec_cost.FITTED, matvec_cost.matvec_seconds),
    "product": (product_cost.FITTED, product_cost.product_seconds),
    "blocks": (mma_blocks_cost.ESTIMATED, mma_blocks_cost.mma_blocks_seconds),
    "wgmma": (wgmma_cost.REASONED, wgmma_cost.wgmma_seconds),
}

_CONVOLUTIONS = (
    (1, 64, 64, 56, 3), (1, 128, 128, 28, 3), (1, 256, 256, 14, 3), (1, 512, 512, 7, 3), (1, 1024, 256, 14, 1),
    (1, 256, 1024, 14, 1), (1, 2048, 512, 7, 1), (1, 256, 64, 56, 1), (1, 96, 24, 56, 1), (1, 960, 160, 7, 1),
    (1, 512, 512, 28, 3), (1, 64, 64, 224, 3), (16, 256, 256, 14, 3), (16, 64, 64, 56, 3), (16, 1024, 256, 14, 1),
    (16, 64, 256, 56, 1), (16, 512, 2048, 7, 1),
)  # fmt: skip
_PRODUCTS = ((128, 768, 768), (128, 768, 3072), (128, 3072, 768), (16, 2048, 2048), (2048, 768, 768), (2048, 768, 3072))
_LONG = ((4096, 4096, 4096, 0.5), (4096, 4096, 4096, 1.0), (2048, 768, 3072, 1.0), (8192, 1024, 1024, 0.5))
_FEW_ROWS = (
    (1, 9216, 4096, 0.09), (1, 4096, 4096, 0.09), (1, 4096, 1000, 0.25), (1, 25088, 4096, 0.04), (1, 1280, 1000, 0.1),
    (1, 500, 10, 0.19), (8, 4096, 4096, 0.09), (1, 4096, 4096, 1.0),
)  # fmt: skip


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("what", choices=("prepare", "fit"))
    parser.add_argument("results", type=Path, nargs="?", help="what `fit` reads")
    options = parser.parse_args()
    if options.what == "prepare":
        prepare(Path("build/lwc-cuts.pyz"))
    else:
        fit(json.loads(options.results.read_text(encoding="utf-8"))["layers"])


def prepare(output: Path) -> None:
    """Writes the file with all cuts."""
    target = find_target("h100")
    output.parent.mkdir(parents=True, exist_ok=True)
    compiler = find_cuda_compiler(target.gpu.architectures)
    with Writer(output) as writer:
        writer.table["made"] = {"lwc": __version__, "target": target.name, "compiler": str(compiler)}
        assert target.gpu is not None
        writer.table["layers"] = pack_cases(writer, list(_cases(target.gpu)), target)
    print(f"{output}: {output.stat().st_size / 2**20:.1f} MiB")


def _cases(gpu: Gpu) -> Iterator[Checked]:
    generator = random.Random(0)

    def chosen(tiles: list[Any], seconds: Callable[[Any], float]) -> list[Any]:
        ranked = sorted(tiles, key=seconds)
        return ranked[:_BEST] + generator.sample(ranked[_BEST:], min(_OTHERS, max(0, len(ranked) - _BEST)))

    layers = [Layer(geometry=square(*each)) for each in _CONVOLUTIONS] + [Layer("", *each) for each in _PRODUCTS]
    for layer in layers:
        task = made(layer)
        weight, geometry, x_strides, y_strides = _as_convolution(layer, task)
        kept = int(np.count_nonzero(weight))
        tiles = list(cuts.tap_tiles(geometry, x_strides, y_strides, kept / weight.size, gpu))
        for tile in chosen(tiles, lambda t, kept=kept: taps_cost.taps_seconds(t, taps_cost.steps_of(t, kept), gpu)):
            tile = fitted(weight, tile)
            plan = candidates.tap_plan(weight, tile, Epilogue())
            (values,) = [a.array for a in plan.steps[0].args if getattr(a, "array", np.zeros(0)).dtype == np.float32]
            steps = values.size / 4 / tile.row_blocks / tile.geometry.groups
            yield _checked(layer, task, plan, "taps", tile, {"steps": steps})
        for precision in ("float32", "tf32", "float16"):
            precise = dataclasses.replace(gpu, precision=precision)
            sparse = cuts.in_half(weight, precise)
            products = list(cuts.product_tiles(geometry, x_strides, y_strides, precise, half=sparse))
            for product in chosen(products, lambda t: product_cost.product_seconds(t, gpu)):
                if isinstance(product, GemmTile) != (precision == "float32"):
                    continue
                build = candidates.gemm_candidate if isinstance(product, GemmTile) else candidates.mma_candidate
                plan = build(weight, product, Epilogue(), precise).build()
                kind = "gemm" if isinstance(product, GemmTile) else "mma"
                yield _checked(layer, task, plan, kind, product, {}, precision)
    for layer in layers:
        outputs = layer.n if layer.geometry is None else layer.geometry.out_channels
        if outputs % _BLOCK == 0:
            yield from _of_blocks(dataclasses.replace(layer, block=_BLOCK), gpu, chosen)
    half = dataclasses.replace(gpu, precision="float16")
    for rows, k, n, density in _LONG:
        layer = Layer("2:4" if density < 1 else "", rows, k, n, density=density)
        task = made(layer)
        weight, *geometry_and_strides = _as_convolution(layer, task)
        long_cuts = list(wgmma_tiles(*geometry_and_strides, half, half=density < 1))
        for cut in chosen(long_cuts, lambda t: wgmma_cost.wgmma_seconds(t, half)):
            plan = candidates.wgmma_candidate(weight, cut, Epilogue(), half).build()
            yield _checked(layer, task, plan, "wgmma", cut, {}, "float16")
    for rows, k, n, density in _FEW_ROWS:
        layer = Layer("", rows, k, n, density=density)
        task = made(layer)
        transposed = np.ascontiguousarray(task.weight.T)
        stored = int(np.count_nonzero(transposed))
        few = list(cuts.matvec_tiles(transposed, rows, density < 1, gpu))
        for tile in chosen(few, lambda t, stored=stored: matvec_cost.matvec_seconds(t, stored, gpu)):
            plan = candidates.matvec_candidate(transposed, tile, Epilogue(), gpu).build()
            yield _checked(layer, task, plan, "matvec", tile, {"stored": stored})


def _of_blocks(
    layer: Layer, gpu: Gpu, chosen: Callable[[list[Any], Callable[[Any], float]], list[Any]]
) -> Iterator[Checked]:
    """A layer with blocks of output channels, on tensor cores."""
    task, precise = made(layer), dataclasses.replace(gpu, precision="float16")
    weight, geometry, *strides = _as_convolution(layer, task)
    flat = weight.reshape(1, *weight.shape[:2], -1)
    budgets = cuts.shared_budgets(gpu)
    tiles = list(mma_blocks_tiles(flat, geometry, (strides[0], strides[1]), precise, budgets))
    for tile, places in chosen(tiles, lambda t: mma_blocks_cost.mma_blocks_seconds(*t, gpu)):
        plan = candidates.mma_blocks_plan(weight, tile, f"{_BLOCK}x1", Epilogue())
        yield _checked(layer, task, plan, "blocks", fitted_blocks(weight, tile), {"places": places}, "float16")


def _as_convolution(layer: Layer, task: Made) -> tuple[NDArray[np.float32], ConvGeometry, Any, Any]:
    """Weights, geometry and strides of the input and the output, as the planner has them."""
    if layer.geometry is None:
        rows, k, n = layer.rows, layer.k, layer.n
        geometry = ConvGeometry(1, k, (1, rows), n, (1, 1), (1, 1), (0,) * 4, (1, 1))
        return task.weight.reshape(n, k, 1, 1), geometry, (rows * k, 1, 0, k), (rows * n, 1, 0, n)
    geometry, x_strides = without_gaps(as_planes(layer.geometry))
    weight = task.weight.reshape(*task.weight.shape[:2], *geometry.kernel)
    return weight, geometry, x_strides, strides_of(geometry.out_shape)


def _checked(
    layer: Layer, task: Made, plan: Plan, kind: str, tile: Any, further: dict[str, Any], precision: str = "float32"
) -> Checked:
    # So many bytes that one copy of them is timed: in a network, level-2 cache has what the kernel before wrote.
    about = {
        "layer": f"{layer.name} {precision}",
        "kind": kind,
        "tile": dataclasses.asdict(tile),
        "bytes": 1 << 40,
        "purpose": "",
    }
    tolerance = 1e-5 if precision == "float32" else tolerance_of(precision)
    return task.checked(f"{layer.name}: {kind}", plan, tolerance, about | further)


def fit(rows: list[dict[str, Any]]) -> None:
    """Prints the constants of each model, and how much longer than the best cut the one takes that it would choose."""
    for model in _COSTS:
        _fit_model(model, [row for row in rows if _MODELS[row["kind"]] == model])


def _fit_model(model: str, rows: list[dict[str, Any]]) -> None:
    gpu, (costs, seconds) = find_target("h200").gpu, _COSTS[model]
    tiles, measured = [_tile(row) for row in rows], np.array([row["ms"] for row in rows]) / 1e3
    names = [field.name for field in dataclasses.fields(costs)]

    def predicted(logs: NDArray[np.float64]) -> NDArray[np.float64]:
        tried = type(costs)(**dict(zip(names, map(float, np.exp(logs)), strict=True)))
        return np.array([seconds(tile, *_further(row), gpu, tried) for tile, row in zip(tiles, rows, strict=True)])

    def errors(logs: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.log(predicted(logs) / measured)

    start = np.log([getattr(costs, name) for name in names])
    bounds = (start - np.log(_BOUND), start + np.log(_BOUND))
    found = least_squares(errors, start, loss="soft_l1", f_scale=_ROBUST, bounds=bounds).x
    print(f"{model}: {len(rows)} kernels")
    for name, value in zip(names, np.exp(found), strict=True):
        print(f"    {name}={value:.3g},")
    for label, logs in (("before", start), ("after", found)):
        error, slower = np.sqrt((errors(logs) ** 2).mean()), _regret(rows, predicted(logs))
        print(f"    {label}: off by {error:.0%}, what is chosen is {slower:.1%} slower than the best")


def _tile(row: dict[str, Any]) -> Any:
    fields = {name: tuple(value) if isinstance(value, list) else value for name, value in row["tile"].items()}
    if "geometry" in fields:
        geometry = {name: tuple(v) if isinstance(v, list) else v for name, v in fields["geometry"].items()}
        fields["geometry"] = ConvGeometry(**geometry)
    return _TILES[row["kind"]](**fields)


def _further(row: dict[str, Any]) -> tuple[float, ...]:
    return tuple(row[name] for name in ("steps", "stored", "places") if name in row)


def _regret(rows: list[dict[str, Any]], predicted: NDArray[np.float64]) -> float:
    """Mean of the time of what would be chosen over that of the best, less 1."""
    ratios = []
    for layer in {row["layer"] for row in rows}:
        members = [number for number, row in enumerate(rows) if row["layer"] == layer]
        best = min(rows[number]["ms"] for number in members)
        ratios.append(rows[min(members, key=lambda number: predicted[number])]["ms"] / best)
    return float(np.mean(ratios)) - 1


if __name__ == "__main__":
    main()
