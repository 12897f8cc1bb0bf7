"""Products on Hopper's tensor cores: their CUDA text runs on the CPU, with models of the instructions."""

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import product as product_of

import numpy as np
import pytest
from test_conv import conv, weight_shape
from test_gpu_precision import Case, convolved, half_kept, precise, rounded

from lwc_compiler.codegen.cuda_compiler import compile_all
from lwc_compiler.codegen.device_build import compile_device
from lwc_compiler.kernels.choice import Candidate, Task, predicted
from lwc_compiler.kernels.gpu import candidates
from lwc_compiler.kernels.gpu.builder import strides_of
from lwc_compiler.kernels.gpu.plan import as_planes, plan_conv, plan_matmul, without_gaps
from lwc_compiler.kernels.gpu.wgmma import wgmma_kernel
from lwc_compiler.kernels.gpu.wgmma_inputs import inputs_kernel
from lwc_compiler.kernels.gpu.wgmma_layout import WgmmaTile, wgmma_tiles
from lwc_compiler.kernels.kernel import Plan
from lwc_compiler.kernels.layer import Activation, ConvGeometry, Epilogue
from lwc_compiler.targets import find_target
from tests.ptx_reader import check_waits

GPU = find_target("h200")


def tile_of(geometry: ConvGeometry, strides, cut: tuple[int, ...], precision: str, *, blocks: int, sparse: bool, **how):
    depth = 32 if precision == "tf32" else 64
    outputs, pixels, *further = cut
    shared = GPU.gpu.block_shared_bytes
    tile = WgmmaTile(geometry, *strides, outputs, pixels, depth, 1, precision, *further, shared, blocks, sparse)
    tile = replace(tile, **how)
    assert tile.block == depth, "a slice is at one position of the kernel"
    assert tile.slices % tile.splits == 0
    return tile


def product(
    shape: tuple[int, int, int], cut: tuple[int, ...], precision: str, *, blocks: int = 4, sparse: bool = False, **how
) -> Case:
    """Rows, inputs and outputs; with a bias, a residual and an activation."""
    (rows, k, n), generator = shape, np.random.default_rng(sum(shape))
    weight, x = generator.standard_normal((k, n), np.float32), generator.standard_normal((rows, k), np.float32)
    if sparse:
        weight = half_kept(np.ascontiguousarray(weight.T), generator).T
    bias = generator.standard_normal(n).astype(np.float32)
    residual = generator.standard_normal((rows, n), np.float32)
    geometry = ConvGeometry(1, k, (1, rows), n, (1, 1), (1, 1), (0,) * 4, (1, 1))
    strides = (rows * k, 1, 0, k), (rows * n, 1, 0, n)
    tile = tile_of(geometry, strides, cut, precision, blocks=blocks, sparse=sparse, **how)
    taps = np.ascontiguousarray(weight.T).reshape(n, k, 1, 1)
    plan = candidates.wgmma_candidate(taps, tile, Epilogue(bias, True, Activation("relu")), GPU.gpu).build()
    sums = rounded(x, precision).astype(np.float64) @ rounded(weight, precision)
    return Case(plan, [x, residual], np.maximum(sums + bias + residual, 0), float(np.abs(sums).max()))


def convolution(
    g: ConvGeometry, cut: tuple[int, ...], precision: str, *, blocks: int = 4, sparse: bool = False, **how
) -> Case:
    generator = np.random.default_rng(g.in_channels)
    weight = generator.standard_normal(weight_shape(g), np.float32)
    weight = half_kept(weight, generator) if sparse else weight
    x = generator.standard_normal(g.in_shape, np.float32)
    plain, x_strides = without_gaps(as_planes(g))
    strides = x_strides, strides_of(plain.out_shape)
    tile = tile_of(plain, strides, cut, precision, blocks=blocks, sparse=sparse, **how)
    plan = candidates.wgmma_candidate(
        weight.reshape(*weight.shape[:2], *plain.kernel), tile, Epilogue(), GPU.gpu
    ).build()
    expected = convolved(rounded(x, precision), rounded(weight, precision), g)
    return Case(plan, [x], expected, float(np.abs(expected).max()))


SAME = conv(2, 120, (6, 9), 70, (3, 3), pads=(1, 1, 1, 1))
# Fewer and more slices than stages, tiles and blocks that are no multiples of anything, several tiles of a block.
CASES = {
    "dense-float16": product((70, 300, 130), (64, 64, 1, 1, 1), "float16"),
    "dense-bfloat16, two groups": product((130, 131, 300), (128, 128, 2, 2, 1), "bfloat16"),
    "dense-tf32": product((70, 70, 70), (64, 64, 1, 1, 1), "tf32"),
    "dense-float16, clusters of four": product((65, 64, 520), (128, 64, 2, 4, 1), "float16", blocks=8),
    "dense-float16, 192 pixels": product((193, 40, 64), (256, 192, 2, 2, 1), "float16"),
    "dense-float16, 176 pixels": product((177, 40, 260), (256, 176, 2, 1, 2), "float16"),
    "dense-bfloat16, 96 pixels": product((100, 72, 130), (128, 96, 2, 1, 1), "bfloat16"),
    "float16, many slices": product((70, 900, 70), (64, 64, 1, 1, 1), "float16", blocks=1),
    "dense-float16, two groups": product((257, 140, 390), (128, 256, 2, 2, 1), "float16", blocks=2),
    "dense-bfloat16, two of each group": product((129, 500, 257), (256, 128, 2, 2, 2), "bfloat16"),
    "pointwise-float16": convolution(conv(2, 70, (9, 7), 65, (1, 1)), (64, 64, 1, 1, 1), "float16"),
    "3x3-float16": convolution(conv(2, 120, (7, 9), 65, (3, 3), (2, 1), (1, 0, 1, 2)), (64, 64, 1, 1, 1), "float16"),
    "3x3-tf32": convolution(conv(1, 60, (6, 5), 30, (3, 3), (1, 1), (1, 2, 1, 2), (1, 2)), (64, 64, 1, 1, 1), "tf32"),
    "1x5-float16": convolution(conv(3, 124, (1, 40), 129, (1, 5), pads=(0, 2, 0, 2)), (128, 96, 2, 1, 1), "float16"),
    "strided-float16": convolution(conv(3, 70, (9, 8), 65, (1, 1), (2, 2)), (64, 64, 1, 1, 1), "float16"),
    "pointwise-bfloat16": convolution(conv(3, 132, (5, 5), 200, (1, 1)), (128, 64, 2, 2, 2), "bfloat16"),
    "float16, parts of sums": product((70, 512, 130), (64, 64, 1, 1, 1), "float16", blocks=3, splits=4),
    "tf32, parts of sums": product((130, 192, 70), (128, 64, 2, 2, 1), "tf32", splits=3),
    "3x3 shifted": convolution(SAME, (64, 64, 1, 1, 1), "float16", shifts=True),
    "3x3 shifted, even lines": convolution(
        replace(SAME, batch=1, in_size=(5, 20)), (128, 64, 2, 1, 2), "bfloat16", blocks=2, shifts=True
    ),
    "3x3 shifted, a block beyond the image": convolution(
        replace(SAME, batch=1, in_size=(4, 8)), (64, 64, 1, 1, 1), "float16", shifts=True
    ),
    "3x3 shifted, in parts": convolution(SAME, (128, 96, 2, 2, 1), "bfloat16", shifts=True, splits=6),
    "3x2 shifted, with gaps": convolution(
        conv(1, 60, (9, 17), 30, (3, 2), (1, 1), (1, 2, 0, 1), (2, 3)), (64, 64, 1, 1, 1), "tf32", shifts=True
    ),
    "sparse 3x3 shifted": convolution(SAME, (64, 64, 1, 1, 1), "float16", blocks=2, sparse=True, shifts=True),
    "sparse-float16": product((70, 900, 70), (64, 64, 1, 1, 1), "float16", blocks=1, sparse=True),
    "sparse-float16, two groups": product((257, 140, 390), (128, 256, 2, 2, 1), "float16", blocks=2, sparse=True),
    "sparse-bfloat16, two of each group": product((129, 500, 257), (256, 128, 2, 1, 2), "bfloat16", sparse=True),
    "sparse-float16, 192 pixels": product((193, 132, 64), (256, 192, 2, 2, 1), "float16", blocks=2, sparse=True),
    "sparse-float16, 176 pixels": product((177, 40, 260), (256, 176, 2, 1, 2), "float16", sparse=True),
    "sparse-bfloat16, clusters of four": product((129, 500, 257), (256, 128, 2, 2, 2), "bfloat16", sparse=True),
    "sparse 1x5-float16": convolution(
        conv(3, 124, (1, 40), 129, (1, 5), pads=(0, 2, 0, 2)), (128, 96, 2, 1, 1), "float16", sparse=True
    ),
    "sparse 3x3-bfloat16": convolution(
        conv(2, 120, (7, 9), 65, (3, 3), (2, 1), (1, 0, 1, 2)), (64, 64, 1, 1, 1), "bfloat16", sparse=True
    ),
    "sparse pointwise-bfloat16": convolution(
        conv(3, 132, (5, 5), 200, (1, 1)), (128, 64, 2, 2, 2), "bfloat16", sparse=True
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_same_as_float64_of_rounded_factors(emulator, name: str) -> None:
    """Only sums are rounded otherwise, in float32: 1e-5 of their scale."""
    emulator.check(name, CASES[name])


NEEDED = ["float16, many slices", "dense-float16, two groups", "sparse-float16", "sparse-float16, two groups"]


@pytest.mark.parametrize("name", NEEDED)
def test_every_wait_and_barrier_is_needed(emulator, name: str) -> None:
    """Without any of them a hazard is found."""
    assert not emulator.not_needed(name, CASES[name])


def test_machine_code_waits_for_all_that_changes() -> None:
    plans = [CASES[name].plan for name in ("dense-float16", "dense-float16, clusters of four", "sparse-float16")]
    check_waits({f"k{i}_{j}": step.kernel for i, plan in enumerate(plans) for j, step in enumerate(plan.steps)})


def test_registers_do() -> None:
    """Cuts with the most registers for sums, and in every precision; and inputs."""
    geometry = ConvGeometry(1, 512, (1, 1024), 512, (1, 1), (1, 1), (0,) * 4, (1, 1))
    strides = (1 << 19, 1, 0, 512), (1 << 19, 1, 0, 512)
    epilogue = Epilogue(np.zeros(512, np.float32), True, Activation("relu"))
    steps = []
    for precision, first, number in (("float16", 0, 3), ("bfloat16", 1, 5), ("tf32", 2, 5)):
        tiles = list(wgmma_tiles(geometry, *strides, precise(precision, "h200").gpu, half=True))
        assert all(2 <= tile.stages <= 32 for tile in tiles)
        steps += [(wgmma_kernel("gpu_wgmma", tile, epilogue), 65536) for tile in tiles[first::number]]
        steps.append((inputs_kernel("gpu_wgmma_inputs", tiles[0]), 32768))
    images = conv(2, 512, (14, 14), 512, (3, 3), pads=(1, 1, 1, 1))
    strides = strides_of(images.in_shape), strides_of(images.out_shape)
    tiles = list(wgmma_tiles(images, *strides, precise("float16", "h200").gpu, half=True))
    names = [candidates.wgmma_candidate(np.ones(1), tile, epilogue, GPU.gpu).name for tile in tiles]
    assert len(set(names)) == len(names)
    assert {(tile.shifts, tile.splits > 1, tile.sparse) for tile in tiles} == set(product_of((False, True), repeat=3))
    for tile in [tile for tile in tiles if tile.shifts and tile.splits in (1, 6)][::12]:
        steps.append((wgmma_kernel("gpu_wgmma", tile, Epilogue() if tile.splits > 1 else epilogue), 65536))
    steps.append((inputs_kernel("gpu_wgmma_inputs", tiles[-1]), 32768))
    kernels = {f"k{number}": kernel for number, (kernel, _) in enumerate(steps)}
    (code,) = compile_all(compile_device(kernels, "cuda"), [90], ptx=False)
    assert not {name: used for name, used in code.resources.items() if used.spill_bytes or used.stack_bytes}
    for number, (kernel, registers) in enumerate(steps):
        assert code.resources[f"k{number}"].registers * math.prod(kernel.launch.block) <= registers
        assert kernel.launch.shared_bytes <= GPU.gpu.block_shared_bytes
        assert kernel.launch.grid[0] % max(1, kernel.launch.cluster) == 0


@pytest.mark.parametrize("precision", ["tf32", "float16", "bfloat16"])
def test_long_products_on_hopper_go_there(precision: str) -> None:
    """And nowhere else: not where a library is for others, too, and not layers of few channels in a group."""
    weight = np.ones((2048, 2048), np.float32)
    plan = plan_matmul(weight, 2048, Epilogue(), precise(precision, "h200"))
    assert [step.kernel.name for step in plan.steps] == ["gpu_wgmma_inputs", "gpu_wgmma"]
    assert all(step.kernel.launch.overlaps for step in plan.steps[1:])
    for other in ("a100", "cuda", "cuda:sm_100"):
        assert plan_matmul(weight, 2048, Epilogue(), precise(precision, other)).steps[0].kernel.name == "gpu_mma"
    pointwise = conv(16, 1024, (28, 28), 1024, (1, 1))
    weight = np.ones(weight_shape(pointwise), np.float32)
    assert plan_conv(weight, pointwise, Epilogue(), precise(precision, "h200")).steps[-1].kernel.name == "gpu_wgmma"
    full = conv(16, 512, (28, 28), 512, (3, 3), pads=(1, 1, 1, 1))
    weight = np.ones(weight_shape(full), np.float32)
    assert plan_conv(weight, full, Epilogue(), precise(precision, "h200")).steps[-1].kernel.name == "gpu_wgmma"
    for other in (replace(full, in_channels=3), replace(full, groups=8)):
        weight = np.ones(weight_shape(other), np.float32)
        assert plan_conv(weight, other, Epilogue(), precise(precision, "h200")).steps[-1].kernel.name == "gpu_mma"


def test_two_of_four_are_offered_and_not_taken_without_being_measured() -> None:
    """Though they are predicted to be the fastest; they take half the bytes and an eighth."""
    weight = half_kept(np.random.default_rng(0).standard_normal((2048, 2048), np.float32), np.random.default_rng(1)).T
    weight, target = np.ascontiguousarray(weight), precise("float16", "h200")
    offered: list[Candidate] = []

    def note(task: Task, found: Sequence[Candidate]) -> Plan:
        offered[:] = sorted(found, key=lambda candidate: candidate.cycles)
        return predicted(task, found)

    taken = plan_matmul(weight, 4096, Epilogue(), target, note)
    assert taken.steps[-1].kernel.name != "gpu_wgmma_sparse"
    full = plan_matmul(np.ones((2048, 2048), np.float32), 4096, Epilogue(), target)
    plan = offered[0].build()
    assert (plan.format, plan.steps[1].kernel.name) == ("2:4", "gpu_wgmma_sparse")
    assert (full.format, full.steps[1].kernel.name) == ("dense", "gpu_wgmma")
    assert plan.steps[1].constant_bytes == (1 / 2 + 1 / 16) * full.steps[1].constant_bytes
    assert 2 * plan.flops == full.flops
    for candidate in offered:
        assert candidate.unproven == (candidate.format == "2:4" and "wgmma" in candidate.name)
    for other in ("a100", "cuda", "cuda:sm_100"):
        plan_matmul(weight, 4096, Epilogue(), precise("float16", other), note)
        assert not any(candidate.unproven for candidate in offered)
