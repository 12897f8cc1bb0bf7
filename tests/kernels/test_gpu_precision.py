"""Kernels for less than float32: their CUDA text runs on the CPU, with models of the tensor cores' instructions."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from harness import sparse
from test_conv import conv, weight_shape

from lwc_compiler.codegen.cuda_compiler import compile_all
from lwc_compiler.codegen.device_build import compile_device
from lwc_compiler.kernels.choice import Candidate, Task, predicted
from lwc_compiler.kernels.gpu import candidates, cuts
from lwc_compiler.kernels.gpu.builder import strides_of
from lwc_compiler.kernels.gpu.mma import MmaTile, is_sparse, pack_mma
from lwc_compiler.kernels.gpu.plan import as_planes, plan_conv, plan_matmul
from lwc_compiler.kernels.gpu.precision import round_to
from lwc_compiler.kernels.kernel import Plan, Step
from lwc_compiler.kernels.layer import Activation, ConvGeometry, Epilogue
from lwc_compiler.sparsity.draw import random_weights
from lwc_compiler.targets import find_target
from tests.machine_code import check_resources
from tests.ptx_reader import check_waits

PRECISIONS = ("tf32", "float16", "bfloat16")
GPU = find_target("a100")
# Odd and even numbers of channels, more and fewer than a tile of outputs and pixels, strides, dilations, groups.
GEOMETRIES = (
    conv(2, 21, (9, 7), 40, (3, 3), (2, 1), (1, 1, 1, 1)),
    conv(1, 70, (11, 13), 150, (1, 1)),
    conv(3, 6, (5, 5), 4, (3, 3), pads=(2, 0, 1, 2), dilations=(1, 2), groups=2),
    conv(1, 33, (1, 40), 17, (1, 5), pads=(0, 2, 0, 2)),
    conv(1, 3, (4, 5, 6), 7, (2, 3, 3), pads=(0, 1, 1, 1, 1, 1)),
)
PRODUCTS = ((9, 50, 130), (64, 33, 20), (130, 128, 65))
FEW_ROWS = ((1, 13000, 5), (2, 67, 63), (8, 131, 33))


def rounded(values: np.ndarray, precision: str) -> np.ndarray:
    """Float32 values of the precision; the reference that `round_to` is tested against is PyTorch's and the bits."""
    if precision == "tf32":
        return round_to(values, precision).view(np.float32)
    tensor = torch.from_numpy(np.ascontiguousarray(values))
    return tensor.to(getattr(torch, precision)).float().numpy()


def convolved(x: np.ndarray, weight: np.ndarray, g: ConvGeometry) -> np.ndarray:
    n = len(g.in_size)
    pads = [pad for axis in reversed(range(n)) for pad in (g.pads[axis], g.pads[n + axis])]
    padded = torch.nn.functional.pad(torch.from_numpy(x.astype(np.float64)), pads)
    function = torch.nn.functional.conv3d if n == 3 else torch.nn.functional.conv2d
    w = torch.from_numpy(weight.astype(np.float64))
    return function(padded, w, stride=g.strides, dilation=g.dilations, groups=g.groups).numpy()


@dataclass
class Case:
    """A plan, and what it has to compute."""

    plan: Plan
    inputs: list[np.ndarray]
    expected: np.ndarray
    scale: float  # of the sums


def half_kept(weight: np.ndarray, generator: np.random.Generator, precision: str = "float16") -> np.ndarray:
    """Of four neighbouring input channels, in tf32 of two, half at random, and sometimes fewer, have a weight."""
    among = 2 if precision == "tf32" else 4
    g = np.pad(weight, ((0, 0), (0, -weight.shape[1] % among), *((0, 0),) * (weight.ndim - 2)))
    neighbours = g.reshape(g.shape[0], -1, among, *g.shape[2:])
    order = generator.random(neighbours.shape).argsort(axis=2).argsort(axis=2)
    kept = (order < among // 2) & (generator.random(neighbours.shape) < 0.9)
    return np.ascontiguousarray((neighbours * kept).reshape(g.shape)[:, : weight.shape[1]])


def tiles(geometry: ConvGeometry, strides, precision: str, is_sparse: bool) -> list[MmaTile]:
    """The cuts that are offered."""
    found = [
        MmaTile(geometry, *strides, outputs, pixels, depth, 1, precision, is_sparse, *warp)
        for outputs, pixels, *warp in cuts.MMA_TILES
        for depth in cuts.DEPTHS
    ]
    return [tile for tile in found if cuts.fits(tile) and tile.depth % tile.step == 0]


def mma_tile(number: int, geometry: ConvGeometry, strides, precision: str, *, is_sparse: bool) -> MmaTile:
    """One of the cuts that are offered."""
    offered = tiles(geometry, strides, precision, is_sparse)
    return offered[number % len(offered)]


def convolution(number: int, precision: str, *, is_sparse: bool = False) -> Case:
    """In another cut for each, with every part of the epilogue, some with split sums."""
    g, generator = GEOMETRIES[number], np.random.default_rng(number)
    weight = generator.standard_normal(weight_shape(g), np.float32)
    if is_sparse:
        weight = half_kept(weight, generator, precision)
    x = generator.standard_normal(g.in_shape, np.float32)
    bias = generator.standard_normal(g.out_channels).astype(np.float32)
    residual = generator.standard_normal(g.out_shape, np.float32)
    plain = as_planes(g)
    strides = strides_of(plain.in_shape), strides_of(plain.out_shape)
    tile = mma_tile(3 * number + PRECISIONS.index(precision), plain, strides, precision, is_sparse=is_sparse)
    if number % 2 == 0 and tile.slices >= 4:
        tile = replace(tile, splits=2)
    epilogue = Epilogue(bias, True, Activation("relu"))
    plan = candidates.mma_candidate(weight.reshape(*weight.shape[:2], *plain.kernel), tile, epilogue, GPU.gpu).build()
    sums = convolved(rounded(x, precision), rounded(weight, precision), g)
    expected = np.maximum(sums + bias.reshape(-1, *(1,) * len(g.in_size)) + residual, 0)
    return Case(plan, [x, residual], expected, float(np.abs(sums).max()))


def product(number: int, precision: str, *, is_sparse: bool = False) -> Case:
    (rows, k, n), generator = PRODUCTS[number], np.random.default_rng(number)
    weight, x = generator.standard_normal((k, n), np.float32), generator.standard_normal((rows, k), np.float32)
    if is_sparse:
        weight = half_kept(np.ascontiguousarray(weight.T), generator, precision).T
    geometry = ConvGeometry(1, k, (1, rows), n, (1, 1), (1, 1), (0,) * 4, (1, 1))
    strides = (rows * k, 1, 0, k), (rows * n, 1, 0, n)
    tile = mma_tile(3 * number + PRECISIONS.index(precision), geometry, strides, precision, is_sparse=is_sparse)
    taps = np.ascontiguousarray(weight.T).reshape(n, k, 1, 1)
    expected = rounded(x, precision).astype(np.float64) @ rounded(weight, precision)
    return Case(
        candidates.mma_candidate(taps, tile, Epilogue(), GPU.gpu).build(), [x], expected, float(np.abs(expected).max())
    )


def few_rows(number: int, precision: str, *, is_sparse: bool) -> Case:
    """Weights are rounded, inputs are not."""
    (rows, k, n), generator = FEW_ROWS[number], np.random.default_rng(number)
    weight = sparse(generator, (k, n), 0.1 if is_sparse else 1.0, 1)
    x = generator.standard_normal((rows, k), np.float32)
    tile = list(cuts.matvec_tiles(weight, rows, is_sparse, replace(GPU.gpu, precision=precision)))[2 * number + 1]
    expected = x.astype(np.float64) @ rounded(weight, precision)
    plan = candidates.matvec_candidate(weight, tile, Epilogue(), GPU.gpu).build()
    return Case(plan, [x], expected, float(np.abs(expected).max()))


def make_cases() -> dict[str, Case]:
    cases = {f"conv{i}-{p}": convolution(i, p) for i in range(len(GEOMETRIES)) for p in PRECISIONS}
    cases |= {f"product{i}-{PRECISIONS[i]}": product(i, PRECISIONS[i]) for i in range(len(PRODUCTS))}
    for i in range(len(GEOMETRIES)):
        for p in ("tf32", ("float16", "bfloat16")[i % 2]):
            cases[f"sparse conv{i}-{p}"] = convolution(i, p, is_sparse=True)
    for i in range(len(PRODUCTS)):
        cases |= {f"sparse product{i}-{p}": product(i, p, is_sparse=True) for p in ("tf32", "float16")}
    for i, p in ((0, "float16"), (1, "bfloat16"), (2, "float16")):
        cases |= {f"{name}{i}-{p}": few_rows(i, p, is_sparse=name == "csr") for name in ("csr", "dense")}
    return cases


CASES = make_cases()


@pytest.mark.parametrize("name", CASES)
def test_same_as_float64_of_rounded_factors(emulator, name: str) -> None:
    """Only sums are rounded otherwise, in float32: 1e-5 of their scale, as for kernels in float32."""
    emulator.check(name, CASES[name])


@pytest.mark.parametrize(
    "name", ["conv0-tf32", "sparse conv1-bfloat16", "sparse product0-tf32", "csr0-float16", "dense0-float16"]
)
def test_every_wait_and_barrier_is_needed(emulator, name: str) -> None:
    """Without any of them a hazard is found."""
    assert not emulator.not_needed(name, CASES[name])


def test_machine_code_waits_for_all_that_changes() -> None:
    names = ("conv0-tf32", "sparse conv1-bfloat16", "sparse product0-tf32", "csr0-float16", "dense0-float16")
    plans = [CASES[name].plan for name in names]
    check_waits({f"k{i}_{j}": step.kernel for i, plan in enumerate(plans) for j, step in enumerate(plan.steps)})


def test_rounding() -> None:
    """To nearest: as PyTorch does in 16 bits; in tf32 a significand of 11 bits, ties away from zero."""
    values = np.random.default_rng(0).standard_normal(1000).astype(np.float32)
    for precision in ("float16", "bfloat16"):
        halves = torch.from_numpy(values).to(getattr(torch, precision)).view(torch.int16).numpy()
        assert np.array_equal(round_to(values, precision).view(np.int16), halves)
    tf32 = round_to(values, "tf32").view(np.float32)
    assert np.abs(tf32 / values - 1).max() <= 2**-11
    assert not (tf32.view(np.uint32) & 0x1FFF).any()
    assert round_to(np.array([1 + 2**-11], np.float32), "tf32").view(np.float32) == 1 + 2**-10


def steps(precision: str, architecture: int) -> dict[str, Step]:
    """Each kernel in the precision: many cuts of a layer of ResNet-50, and others in one each."""
    found, generator = {}, np.random.default_rng(0)
    full = conv(1, 64, (56, 56), 64, (3, 3), pads=(1, 1, 1, 1))
    strided = conv(1, 131, (56, 56), 128, (3, 3), (2, 2), (1, 1, 1, 1))
    layers = [(full, i, False) for i in range(0, len(cuts.MMA_TILES) * len(cuts.DEPTHS), 3)]
    if architecture >= 80:
        layers += [(full, i, True) for i in range(2)]
    for geometry, number, half in [(strided, 0, False), *layers]:
        strides = strides_of(geometry.in_shape), strides_of(geometry.out_shape)
        weight = generator.standard_normal(weight_shape(geometry), np.float32)
        weight = half_kept(weight, generator, precision) if half else weight
        epilogue = Epilogue(np.zeros(geometry.out_channels, np.float32), True, Activation("relu"))
        tile = replace(mma_tile(number, geometry, strides, precision, is_sparse=half), splits=1 + number % 2)
        found[f"conv{len(found)}"] = candidates.mma_candidate(weight, tile, epilogue, GPU.gpu).build().steps[0]
    found["rows"] = product(1, precision).plan.steps[0]
    if precision != "tf32":
        found |= {f"csr{i}": few_rows(i, precision, is_sparse=True).plan.steps[0] for i in (0, 2)}
    return found


@pytest.mark.parametrize(
    ("precision", "architecture"),
    [("float16", 75), ("tf32", 80), ("tf32", 90), ("tf32", 120), ("bfloat16", 80), ("float16", 120)],
)
def test_registers_do(precision: str, architecture: int) -> None:
    found = {name: step.kernel for name, step in steps(precision, architecture).items()}
    (code,) = compile_all(compile_device(found, "cuda"), [architecture], ptx=False)
    check_resources(code, found)
    for name, kernel in found.items():
        assert kernel.launch.shared_bytes <= GPU.gpu.block_shared_bytes, name


def precise(precision: str, name: str = "a100"):
    target = find_target(name)
    return replace(target, gpu=replace(target.gpu, precision=precision))


def test_two_of_four_are_stored_and_multiplied() -> None:
    """Wherever the zeros allow it, also as 1:4; the weights and their places take half the bytes and an eighth."""
    generator = np.random.default_rng(0)
    dense = generator.standard_normal((512, 512, 3, 3)).astype(np.float32)
    weight = half_kept(dense, generator)
    geometry = conv(16, 512, (28, 28), 512, (3, 3), pads=(1, 1, 1, 1))
    plan = plan_conv(weight, geometry, Epilogue(), precise("float16"))
    full = plan_conv(dense, geometry, Epilogue(), precise("float16"))
    assert (plan.format, plan.steps[0].kernel.name) == ("2:4", "gpu_mma_sparse")
    assert (full.format, full.steps[0].kernel.name) == ("dense", "gpu_mma")
    assert plan.steps[0].constant_bytes <= (1 / 2 + 1 / 16) * full.steps[0].constant_bytes
    assert 2 * plan.flops == full.flops
    assert is_sparse(random_weights((512, 512 * 9), 0.5, "2:4", positions=9).reshape(dense.shape), 2)
    assert is_sparse(np.where(np.arange(512)[:, None, None] % 4 == 1, dense, 0), 2)
    assert not is_sparse(np.where(np.arange(512)[:, None, None] % 4 < 3, dense, 0), 2)
    old = replace(find_target("t4"), gpu=replace(find_target("t4").gpu, precision="float16"))
    for target in (precise("tf32"), GPU, old):
        assert plan_conv(weight, geometry, Epilogue(), target).format != "2:4"


def test_one_of_two_is_offered_in_tf32_and_not_taken_without_being_measured() -> None:
    """Though it is predicted to be the fastest; in 16 bits it is 2:4."""
    generator = np.random.default_rng(0)
    dense = generator.standard_normal((512, 512, 3, 3)).astype(np.float32)
    weight = half_kept(dense, generator, "tf32")
    geometry = conv(16, 512, (28, 28), 512, (3, 3), pads=(1, 1, 1, 1))
    offered: list[Candidate] = []

    def note(task: Task, found: Sequence[Candidate]) -> Plan:
        offered[:] = sorted(found, key=lambda candidate: candidate.cycles)
        return predicted(task, found)

    for name in ("a100", "h200"):
        plan_conv(weight, geometry, Epilogue(), precise("tf32", name), note)
        for candidate in offered:
            assert candidate.unproven == (candidate.format == "1:2")
            assert candidate.format != "1:2" or "wgmma" not in candidate.name
    full = plan_conv(weight, geometry, Epilogue(), precise("tf32"), note)
    plan = offered[0].build()
    assert (plan.format, plan.steps[0].kernel.name) == ("1:2", "gpu_mma_sparse")
    assert (full.format, full.steps[0].kernel.name) == ("dense", "gpu_mma")
    assert plan.steps[0].constant_bytes <= (1 / 2 + 1 / 16) * full.steps[0].constant_bytes
    assert 2 * plan.flops == full.flops
    assert plan_conv(weight, geometry, Epilogue(), precise("float16")).format == "2:4"
    assert is_sparse(random_weights((512, 512 * 9), 0.5, "1:2", positions=9).reshape(dense.shape), 1)
    two_of_four = half_kept(dense, generator)
    assert not is_sparse(two_of_four, 1)
    plan_conv(two_of_four, geometry, Epilogue(), precise("tf32"), note)
    assert {candidate.format for candidate in offered} == {"dense", "csr"}


def test_one_of_two_lies_as_the_figures_say() -> None:
    """PTX ISA, *Matrix Fragments for sparse mma.m16n8k16 with .tf32*, the columns and the metadata of matrix A."""
    generator = np.random.default_rng(0)
    weight = generator.standard_normal((16, 16)).astype(np.float32)
    second = generator.random((16, 8)) < 0.5
    weight[:, ::2][second] = 0
    weight[:, 1::2][~second] = 0
    rows = conv(1, 16, (1, 16), 16, (1, 1))
    tile = MmaTile(rows, strides_of(rows.in_shape), strides_of(rows.out_shape), 16, 16, 16, 1, "tf32", sparse=True)
    words = pack_mma(weight.reshape(16, 16, 1, 1), tile).array.reshape(-1)
    assert len(words) == 4 * 32 + 16
    fragments, places = words[:128].reshape(32, 4), words[128:].reshape(8, 2)
    for lane in range(32):
        group, thread = lane >> 2, lane % 4
        for i in range(4):
            row = group if i in (0, 2) else group + 8
            first = thread * 2 if i in (0, 1) else thread * 2 + 8
            kept = weight[row, first : first + 2]
            assert fragments[lane, i] == round_to(kept[kept != 0], "tf32")
            index = places[group, i // 2] >> (4 * thread + 16 * (i % 2)) & 15
            assert index == (0b0100 if kept[0] else 0b1110)


def test_lanes_read_all_banks() -> None:
    """Their factors from the inputs in shared memory: 32 lanes one number each, or 16 two neighbours."""
    image, rows = conv(1, 64, (56, 56), 64, (3, 3)), ConvGeometry(1, 64, (1, 64), 64, (1, 1), (1, 1), (0,) * 4, (1, 1))
    of_rows = (64 * 64, 1, 0, 64), (64 * 64, 1, 0, 64)
    of_image = strides_of(image.in_shape), strides_of(image.out_shape)
    for geometry, strides in ((image, of_image), (rows, of_rows)):
        for tile in (t for p in PRECISIONS for half in (False, True) for t in tiles(geometry, strides, p, half)):
            channels = np.arange(4) if not tile.pairs else np.arange(8) if tile.by_channel else np.arange(0, 8, 2)
            lanes = np.arange(4 if tile.by_channel and tile.pairs else 8)[:, None]
            at = lanes * tile.pitch + channels if tile.by_channel else channels * tile.pitch + lanes
            assert set(at.reshape(-1) % 32) == set(range(32)), tile


def test_the_precision_decides_what_is_offered() -> None:
    """Full layers with much to multiply go to tensor cores, and those of few rows read half the bytes."""
    weight = np.ones((512, 512, 3, 3), np.float32)
    geometry = conv(4, 512, (28, 28), 512, (3, 3), pads=(1, 1, 1, 1))
    for precision in ("float32", *PRECISIONS):
        plan = plan_conv(weight, geometry, Epilogue(), precise(precision))
        assert plan.steps[0].kernel.name == ("gpu_gemm" if precision == "float32" else "gpu_mma")
    matrix = np.ones((1024, 512), np.float32)
    sizes = {
        p: plan_matmul(matrix, 1, Epilogue(), precise(p)).steps[0].constant_bytes for p in ("float32", *PRECISIONS)
    }
    assert sizes["float32"] == sizes["tf32"] == 2 * sizes["float16"] == 2 * sizes["bfloat16"]
