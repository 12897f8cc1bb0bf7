"""Blocks of output channels on tensor cores: their CUDA text runs on the CPU, with models of the instructions."""

from dataclasses import replace

import numpy as np
import pytest
from test_conv import conv, weight_shape
from test_gpu_precision import GEOMETRIES, GPU, PRECISIONS, PRODUCTS, Case, convolved, precise, rounded

from lwc_compiler.codegen.cuda_compiler import compile_all
from lwc_compiler.codegen.device_build import compile_device
from lwc_compiler.kernels.gpu import candidates, cuts
from lwc_compiler.kernels.gpu.builder import strides_of
from lwc_compiler.kernels.gpu.mma_blocks_layout import COLUMNS, MmaBlocksTile, fitted, pack_mma_blocks
from lwc_compiler.kernels.gpu.mma_blocks_tiles import block_height, mma_blocks_tiles
from lwc_compiler.kernels.gpu.plan import as_planes, plan_conv, plan_matmul
from lwc_compiler.kernels.kernel import Plan
from lwc_compiler.kernels.layer import Activation, ConvGeometry, Epilogue
from tests.cuda_harness import Emulator
from tests.machine_code import check_resources
from tests.ptx_reader import check_waits

HEIGHTS, DENSITIES = (16, 8, 32, 4), (0.2, 0.05, 0.6, 0.0)
BUDGETS = (6 << 10, 20 << 10)  # of shared memory: little, so that small layers take several chunks
CONVOLUTIONS = (
    *GEOMETRIES,
    conv(2, 24, (14, 14), 64, (3, 3), pads=(1, 1, 1, 1)),
    conv(1, 37, (9, 12), 70, (3, 3), (2, 2), (1, 0, 2, 1), groups=1),
    conv(2, 40, (6, 8), 96, (1, 1), groups=2),
    conv(3, 32, (1, 1), 70, (1, 1)),
    conv(1, 20, (1, 1), 16, (3, 3), pads=(1, 1, 1, 1)),
)


def blocks(generator: np.random.Generator, shape: tuple[int, ...], density: float, height: int) -> np.ndarray:
    """Weights of which `height` neighbouring output channels are kept or not."""
    kept = generator.random((-(-shape[0] // height), *shape[1:])) < density
    weight = generator.standard_normal(shape, np.float32)
    return weight * np.repeat(kept, height, axis=0)[: shape[0]]


def grouped(weight: np.ndarray, geometry: ConvGeometry) -> np.ndarray:
    return weight.reshape(geometry.groups, geometry.group_outputs, geometry.group_inputs, -1)


def tiles(weight: np.ndarray, geometry: ConvGeometry, strides, precision: str, budgets=BUDGETS) -> list[MmaBlocksTile]:
    gpu = replace(GPU.gpu, precision=precision)
    return [tile for tile, _ in mma_blocks_tiles(grouped(weight, geometry), geometry, strides, gpu, budgets)]


def planned(weight: np.ndarray, offered: list[MmaBlocksTile], number: int, epilogue: Epilogue) -> Plan:
    """One of the cuts that are offered."""
    tile = np.random.default_rng(number).choice(np.array(offered, object))
    return candidates.mma_blocks_plan(weight, tile, "16x1", epilogue)


def convolution(number: int) -> Case:
    turn, which = divmod(number, len(CONVOLUTIONS))
    g, generator = CONVOLUTIONS[which], np.random.default_rng(number)
    precision = PRECISIONS[number % 3]
    weight = blocks(generator, weight_shape(g), DENSITIES[(number + turn) % 4], HEIGHTS[(number // 2 + turn) % 4])
    x = generator.standard_normal(g.in_shape, np.float32)
    bias = generator.standard_normal(g.out_channels).astype(np.float32)
    residual = generator.standard_normal(g.out_shape, np.float32)
    plain = as_planes(g)
    taps = weight.reshape(*weight.shape[:2], *plain.kernel)
    offered = tiles(taps, plain, (strides_of(plain.in_shape), strides_of(plain.out_shape)), precision)
    plan = planned(taps, offered, number, Epilogue(bias, True, Activation("relu")))
    sums = convolved(rounded(x, precision), rounded(weight, precision), g)
    expected = np.maximum(sums + bias.reshape(-1, *(1,) * len(g.in_size)) + residual, 0)
    return Case(plan, [x, residual], expected, float(np.abs(sums).max()) or 1.0)


def product(number: int) -> Case:
    (rows, k, n), generator, precision = PRODUCTS[number], np.random.default_rng(number), PRECISIONS[number]
    weight = blocks(generator, (n, k, 1, 1), 0.3, 16)
    x = generator.standard_normal((rows, k), np.float32)
    geometry = ConvGeometry(1, k, (1, rows), n, (1, 1), (1, 1), (0,) * 4, (1, 1))
    offered = tiles(weight, geometry, ((rows * k, 1, 0, k), (rows * n, 1, 0, n)), precision)
    expected = rounded(x, precision).astype(np.float64) @ rounded(weight, precision).reshape(n, k).T
    return Case(planned(weight, offered, number, Epilogue()), [x], expected, float(np.abs(expected).max()))


CASES = {f"blocks conv{i}-{PRECISIONS[i % 3]}": convolution(i) for i in range(2 * len(CONVOLUTIONS))}
CASES |= {f"blocks product{i}-{PRECISIONS[i]}": product(i) for i in range(len(PRODUCTS))}


@pytest.mark.parametrize("name", CASES)
def test_same_as_float64_of_rounded_factors(emulator, name: str) -> None:
    """Only sums are rounded otherwise, in float32: 1e-5 of their scale, as for kernels in float32."""
    emulator.check(name, CASES[name])


@pytest.mark.parametrize("name", ["blocks conv5-bfloat16", "blocks conv13-float16"])
def test_every_wait_and_barrier_is_needed(emulator, name: str) -> None:
    """Without any of them a hazard is found."""
    assert not emulator.not_needed(name, CASES[name])


def test_machine_code_waits_for_all_that_changes() -> None:
    check_waits({f"k{i}": case.plan.steps[0].kernel for i, case in enumerate(CASES.values())})


def test_inputs_reach_only_the_outputs_that_read_them(tmp_path) -> None:
    """Filling adds 0 times an input: one that is not finite must not get into a sum by it."""
    generator, geometry = np.random.default_rng(0), conv(1, 30, (4, 8), 48, (1, 1))
    weight, x = blocks(generator, (48, 30, 1, 1), 0.2, 16), generator.standard_normal((1, 30, 4, 8), np.float32)
    x[:, ::7] = np.inf
    read = (weight[:, ::7, 0, 0] != 0).any(axis=1)
    assert 0 < read.sum() < 48
    plan = plan_conv(weight, geometry, Epilogue(), precise("float16"), lambda _, found: found[-1].build())
    assert plan.steps[0].kernel.name == "gpu_mma_blocks"
    result = Emulator({"plan": plan}, tmp_path).run("plan", [x], geometry.out_shape)
    assert np.array_equal(np.isfinite(result[0]).all(axis=(1, 2)), ~read)


@pytest.mark.parametrize("precision", ["float16", "tf32"])
def test_lanes_read_different_banks(precision: str) -> None:
    """Mostly: of four random runs of 8 pixels 2.4 meet in a bank, in lists at most 1.6 on average."""
    geometry = conv(1, 64, (28, 28), 64, (3, 3), pads=(1, 1, 1, 1))
    weight = blocks(np.random.default_rng(0), weight_shape(geometry), 0.1, 16)
    strides = strides_of(geometry.in_shape), strides_of(geometry.out_shape)
    tile = next(t for t in tiles(weight, geometry, strides, precision, (160 << 10,)) if t.columns == 16)
    tile = fitted(weight, tile)
    offsets = pack_mma_blocks(weight, tile)[0][3].array.reshape(-1).view(np.uint16)
    at_once = offsets.reshape(-1, COLUMNS, 2 * tile.in_word).swapaxes(1, 2).reshape(-1, COLUMNS, 1)
    addresses = (at_once + np.arange(8)).reshape(len(at_once), -1)
    assert np.mean([np.bincount(np.unique(lanes) % 32).max() for lanes in addresses]) <= 1.6


def test_blocks_are_found() -> None:
    """Also of numbers of output channels that are no multiple; and not where they begin elsewhere."""
    generator = np.random.default_rng(0)
    for height in (4, 8, 16, 32, 64):
        weight = blocks(generator, (136, 50, 3, 3), 0.2, height)
        assert block_height(weight.reshape(1, 136, 50, 9)) == height
    assert block_height(blocks(generator, (128, 50, 3, 3), 0.2, 2).reshape(1, 128, 50, 9)) == 0
    assert block_height(np.roll(weight, 8, axis=0).reshape(1, 136, 50, 9)) == 8
    assert block_height(np.roll(weight, 2, axis=0).reshape(1, 136, 50, 9)) == 0


def test_work_follows_the_blocks() -> None:
    """Wherever there are some, in less than float32; a tenth of the blocks takes a tenth of the weights."""
    generator, geometry = np.random.default_rng(0), conv(4, 128, (28, 28), 128, (3, 3), pads=(1, 1, 1, 1))
    weight = blocks(generator, weight_shape(geometry), 0.1, 16)
    for precision in PRECISIONS:
        plan = plan_conv(weight, geometry, Epilogue(), precise(precision))
        assert (plan.format, plan.steps[0].kernel.name) == ("16x1", "gpu_mma_blocks")
        assert plan.stored == np.count_nonzero(weight)
        sizes = np.count_nonzero(weight) * (4 if precision == "tf32" else 2)
        assert plan.constant_bytes <= 1.5 * sizes  # lists are filled to steps, and have offsets
    assert plan_conv(weight, geometry, Epilogue(), GPU).steps[0].kernel.name == "gpu_blocks"
    matrix = np.ascontiguousarray(blocks(generator, (512, 256), 0.1, 32).T)
    assert plan_matmul(matrix, 64, Epilogue(), precise("float16")).steps[0].kernel.name == "gpu_mma_blocks"
    assert plan_matmul(matrix, 8, Epilogue(), precise("float16")).format in ("csr", "dense")


@pytest.mark.parametrize(
    ("precision", "architecture"), [("float16", 75), ("tf32", 80), ("bfloat16", 80), ("float16", 120)]
)
def test_registers_do(precision: str, architecture: int) -> None:
    """For cuts of all kinds, of layers of ResNet-50 and of BERT."""
    generator, found = np.random.default_rng(0), {}
    layers = [conv(1, 64, (56, 56), 64, (3, 3), pads=(1, 1, 1, 1)), conv(2, 131, (28, 28), 256, (1, 1))]
    layers.append(conv(1, 128, (28, 28), 128, (3, 3), (2, 2), (1, 1, 1, 1)))
    for geometry in layers:
        plain = as_planes(geometry)
        weight = blocks(generator, weight_shape(geometry), 0.1, 64)
        epilogue = Epilogue(np.zeros(geometry.out_channels, np.float32), True, Activation("relu"))
        strides = strides_of(plain.in_shape), strides_of(plain.out_shape)
        offered = tiles(weight, plain, strides, precision, cuts.shared_budgets(GPU.gpu))
        # Those with the most sums, and others.
        offered.sort(key=lambda tile: tile.outputs * tile.sums * tile.warps)
        for tile in (offered[-1], offered[len(offered) // 2]):
            found[f"k{len(found)}"] = candidates.mma_blocks_plan(weight, tile, "64x1", epilogue).steps[0].kernel
    weight = blocks(generator, (256, 768, 1, 1), 0.1, 16)
    rows = ConvGeometry(1, 768, (1, 128), 256, (1, 1), (1, 1), (0,) * 4, (1, 1))
    offered = tiles(weight, rows, ((128 * 768, 1, 0, 768), (128 * 256, 1, 0, 256)), precision)
    found["rows"] = planned(weight, offered, 0, Epilogue()).steps[0].kernel
    (code,) = compile_all(compile_device(found, "cuda"), [architecture], ptx=False)
    check_resources(code, found)
    for name, kernel in found.items():
        assert kernel.launch.shared_bytes <= GPU.gpu.block_shared_bytes, name
