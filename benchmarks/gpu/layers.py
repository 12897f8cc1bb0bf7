"""The layers that are timed alone, and the candidates of each: for `prepare.py`, on a machine without a GPU."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.gpu.bundle import random_input
from benchmarks.variants import prune
from lwc_compiler.kernels.choice import Candidate, proven
from lwc_compiler.kernels.gpu.plan import plan_conv, plan_matmul
from lwc_compiler.kernels.kernel import Plan
from lwc_compiler.kernels.layer import ConvGeometry, Epilogue
from lwc_compiler.runtime.verify import tolerance_of
from lwc_compiler.targets.target import Precision, Target

KERNEL_TOLERANCE = 1e-5  # of float32, relative to the result's scale
PRECISIONS: tuple[Precision, ...] = ("float32", "tf32", "float16", "bfloat16")
ROWS = 64  # output channels of a weight that differ
_BLOCKS = 16  # of output channels, that do where they are pruned in such
_AMPERE = 80  # the first compute capability, times ten, that multiplies tf32 and bfloat16
_CANDIDATES = 4  # of a layer in one precision, that are timed
_BLOCK_CANDIDATES = 3  # of which so many with blocks on tensor cores, where there are such
_CUTS = 6  # of a product for tensor cores, that are timed
# The formats of such layers, by their purpose.
_OF_TENSOR_CORES = {"2:4": ("2:4",), "1:2": ("1:2", "dense"), "every weight": ("dense",)}
_LEVELS = 16
_ALL_ROWS = 128  # of a product, that are compared if it has no more
_ROW_STEP = 7  # between those that are compared if it has; odd, so that every row of a tile is met


@dataclass(frozen=True)
class Layer:
    """A layer that is timed alone.

    Attributes:
        purpose: which of `goals.py` it is for; "" for none; "1:2": beside every weight; "every weight": what 2:4 is
            compared with.
        rows: of the input; 0 for a convolution.
        geometry: of the convolution; None for a product.
        density: kept / all weights; 0.5 for 2:4 and 1:2.
        precisions: of the candidates.
        block: neighbouring output channels that are kept or pruned together.
    """

    purpose: str = ""
    rows: int = 0
    k: int = 0
    n: int = 0
    geometry: ConvGeometry | None = None
    density: float = 0.1
    precisions: tuple[Precision, ...] = ("float32",)
    block: int = 1

    @property
    def name(self) -> str:
        """Unlike that of any other layer."""
        g, kept = self.geometry, self.purpose if ":" in self.purpose else f"{self.density:.0%}"
        kept += f" in {self.block}x1" if self.block > 1 else ""
        if g is None:
            return f"{self.rows} x {self.k} x {self.n}, {kept}"
        return f"{g.batch} x {g.in_channels} x {g.in_size[0]}^2, {g.kernel[0]}^2, {g.out_channels}, {kept}"


def square(batch: int, inputs: int, outputs: int, size: int, kernel: int) -> ConvGeometry:
    """A convolution of square images with a square kernel, padded so that the output is as large."""
    pads = (kernel // 2,) * 4
    return ConvGeometry(batch, inputs, (size, size), outputs, (kernel, kernel), (1, 1), pads, (1, 1))


# Inputs, outputs and size of ResNet-50's 1x1 convolutions of stride 1.
_POINTWISE = (
    (64, 64, 56), (64, 256, 56), (256, 64, 56), (256, 128, 56), (128, 512, 28), (512, 128, 28), (512, 256, 28),
    (256, 1024, 14), (1024, 256, 14), (1024, 512, 14), (512, 2048, 7), (2048, 512, 7),
)  # fmt: skip

_LONG = ((4096, 4096, 4096), (2048, 768, 3072))  # rows, inputs and outputs of products: the second, BERT's

LAYERS = (
    # AlexNet's fc6 to fc8 and VGG-16's fc6 and fc7.
    *(Layer("fully connected", 1, k, n, density=0.09) for k, n in ((9216, 4096), (4096, 4096), (4096, 1000))),
    *(Layer("fully connected", 1, k, 4096, density=0.04) for k in (25088, 4096)),
    *(Layer("single weights", geometry=square(batch, *each, 1)) for batch in (1, 16) for each in _POINTWISE),
    *(Layer("2:4", *each, density=0.5, precisions=("float16",)) for each in _LONG),
    Layer("1:2", *_LONG[1], density=0.5, precisions=("tf32",)),
    *(Layer("every weight", *each, density=1.0, precisions=("float16",)) for each in _LONG),
    Layer("", 16, 2048, 2048, precisions=PRECISIONS),
    Layer("", 128, 768, 3072, precisions=PRECISIONS),
    *(Layer("", geometry=square(batch, 256, 256, 14, 3), precisions=PRECISIONS) for batch in (1, 8)),
    Layer("", geometry=square(16, 256, 256, 14, 3)),
    *(Layer("", geometry=square(batch, 256, 256, 14, 3), precisions=("float16",), block=16) for batch in (1, 16)),
    Layer("", 128, 768, 3072, precisions=("float16",), block=16),
)


@dataclass(frozen=True)
class Checked:
    """A plan with what it has to compute.

    Attributes:
        inputs: arrays.
        shape: of the output.
        expected: the whole output; or, if `images` are given, these of it, and of its second dimension as many as
            there are before they repeat.
        scale: what the error is relative to.
        tolerance: the largest error that is right.
        layer: what the results say of it.
        images: indices along the output's first dimension.
    """

    name: str
    plan: Plan
    inputs: Sequence[NDArray[np.float32]]
    shape: Sequence[int]
    expected: NDArray[np.float32]
    scale: float
    tolerance: float
    layer: dict[str, Any]
    images: list[int] | None = None


def levels(weight: NDArray[np.float32]) -> NDArray[np.float32]:
    """The weights in 16 levels, of which none is 0; zeros stay."""
    step = np.float32(6 * weight.std() / _LEVELS)
    level = np.clip(np.floor(weight / step), -_LEVELS // 2, _LEVELS // 2 - 1) + np.float32(0.5)
    return np.where(weight == 0, np.float32(0), (level * step).astype(np.float32))


def weight_of(layer: Layer) -> NDArray[np.float32]:
    """Its output channels that differ, at most `ROWS` or `_BLOCKS` blocks: (outputs, inputs, ...)."""
    g = layer.geometry
    outputs, *rest = (layer.n, layer.k) if g is None else (g.out_channels, g.in_channels, *g.kernel)
    generator = np.random.default_rng(1)
    most = _BLOCKS * layer.block if layer.block > 1 else ROWS
    weight = generator.standard_normal((min(outputs, most), *rest), np.float32)
    if ":" in layer.purpose:
        kept, among = map(int, layer.purpose.split(":"))
        order = generator.random((len(weight), layer.k // among, among)).argsort(axis=2)
        return levels(np.where((order < kept).reshape(weight.shape), weight, np.float32(0)))
    return levels(prune(weight, layer.density, layer.block))


def describe(layer: Layer, weight: str) -> dict[str, Any]:
    """A layer as `torch_side` takes it.

    Args:
        layer: which.
        weight: the member of the bundle that has what `weight_of` gives.
    """
    g = layer.geometry
    about = {"name": layer.name, "purpose": layer.purpose, "weight": weight}
    if g is None:
        return about | {"kind": "matmul", "rows": layer.rows, "k": layer.k, "n": layer.n}
    return about | {
        "kind": "conv", "batch": g.batch, "inputs": g.in_channels, "outputs": g.out_channels, "size": g.in_size[0],
        "kernel": g.kernel[0],
    }  # fmt: skip


@dataclass(frozen=True)
class Made:
    """A layer with what it has to compute.

    Attributes:
        weight: float32 (outputs, inputs, ...); output channels repeat.
        x: the input.
        shape: of the output.
        images: see `Checked`.
        expected: see `Checked`.
    """

    weight: NDArray[np.float32]
    x: NDArray[np.float32]
    shape: Sequence[int]
    images: list[int]
    expected: NDArray[np.float32]

    def checked(self, name: str, plan: Plan, tolerance: float, about: dict[str, Any]) -> Checked:
        """A plan of the layer."""
        scale = float(np.abs(self.expected).max())
        return Checked(name, plan, [self.x], self.shape, self.expected, scale, tolerance, about, self.images)


def made(layer: Layer) -> Made:
    """Draws a layer's weights and input, and computes what it gives."""
    distinct, g = weight_of(layer), layer.geometry
    outputs = layer.n if g is None else g.out_channels
    x = random_input([layer.rows, layer.k] if g is None else list(g.in_shape))
    shape = (layer.rows, layer.n) if g is None else g.out_shape
    return Made(distinct[np.arange(outputs) % len(distinct)], x, shape, *_expected(x, distinct, g))


def cases_of(layer: Layer, target: Target) -> list[Checked]:
    """A layer by the candidates that are predicted to be the fastest.

    Of layers that a goal asks for, those that store every weight are left out; of others, there is one of each format.
    Of products for tensor cores, there are several cuts of the formats that they are for, by `wgmma`, and one by `mma`.
    """
    assert target.gpu is not None
    task = made(layer)
    cases = []
    for precision in layer.precisions:
        if precision in ("tf32", "bfloat16") and target.gpu.architectures[0] < _AMPERE:
            continue
        precise = replace(target, gpu=replace(target.gpu, precision=precision))
        offered = _offered(layer, task.weight, precise)
        for candidate in _timed(layer, offered, precision):
            plan = candidate.build()
            about = {
                "layer": layer.name,
                "purpose": layer.purpose,
                "precision": precision,
                "candidate": candidate.name,
                "format": candidate.format,
                "chosen": candidate is proven(offered)[0],
                "predicted_ms": candidate.cycles / target.gpu.gigahertz / 1e6,
                "flops": plan.flops,
                "bytes": sum(step.constant_bytes for step in plan.steps) + task.x.nbytes + 4 * int(np.prod(task.shape)),
            }
            tolerance = KERNEL_TOLERANCE if precision == "float32" else tolerance_of(precision)
            cases.append(task.checked(f"{layer.name}: {candidate.name}", plan, tolerance, about))
    return cases


def _offered(layer: Layer, weight: NDArray[np.float32], target: Target) -> list[Candidate]:
    """All candidates, what is predicted to be the fastest first."""
    offered: list[Candidate] = []

    def collect(_: object, candidates: Sequence[Candidate]) -> Plan:
        offered[:] = sorted(candidates, key=lambda candidate: candidate.cycles)
        return offered[0].build()

    if layer.geometry is None:
        plan_matmul(np.ascontiguousarray(weight.T), layer.rows, Epilogue(), target, collect)
    else:
        plan_conv(weight, layer.geometry, Epilogue(), target, collect)
    return offered


def _timed(layer: Layer, offered: list[Candidate], precision: Precision) -> list[Candidate]:
    """Those of a precision that are timed."""
    if precision != "float32":
        offered = [candidate for candidate in offered if precision in re.findall(r"\w+", candidate.name)]
    if layer.purpose in _OF_TENSOR_CORES:
        offered = [candidate for candidate in offered if candidate.format in _OF_TENSOR_CORES[layer.purpose]]
        older = [candidate for candidate in offered if "wgmma" not in candidate.name]
        return [*(candidate for candidate in offered if "wgmma" in candidate.name)][:_CUTS] + older[:1]
    if layer.purpose:
        return [candidate for candidate in offered if candidate.format != "dense"][:_CANDIDATES]
    if layer.block > 1:
        # Of different tiles of pixels.
        blocks = {c.name.split(",")[0]: c for c in reversed(offered) if c.format != "dense"}
        best = sorted(blocks.values(), key=lambda candidate: candidate.cycles)[:_BLOCK_CANDIDATES]
        return [*best, *(c for c in offered if c.format == "dense")][:_CANDIDATES]
    if precision != "float32":
        return offered[:1]
    formats = {candidate.format: candidate for candidate in reversed(offered)}
    return [*formats.values(), *(c for c in offered if c not in formats.values())][:_CANDIDATES]


def _expected(
    x: NDArray[np.float32], weight: NDArray[np.float32], g: ConvGeometry | None
) -> tuple[list[int], NDArray[np.float32]]:
    """What is compared: rows or the last image, and of each the outputs of the channels that differ; by float64."""
    import torch

    last = len(x) - 1
    if g is None:
        images = list(range(len(x))) if len(x) <= _ALL_ROWS else [*range(0, last, _ROW_STEP), last]
        expected = x[images].astype(np.float64) @ weight.astype(np.float64).T
    else:
        images = [last]
        doubles = (torch.from_numpy(array.astype(np.float64)) for array in (x[images], weight))
        expected = torch.nn.functional.conv2d(*doubles, padding=g.kernel[0] // 2).numpy()
    return images, expected.astype(np.float32)
