"""Kernels for GPUs compute what numpy does in float64, on the CPU as OpenCL; as CUDA they compile without spills."""

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
from harness import check_same_kernels, sparse, variant
from test_conv import CONVOLUTIONS, conv, make_case, random_layout, random_layouts, weight_shape
from test_matmul import PRODUCTS
from test_matmul import make_case as make_product

from lwc_compiler.codegen.cuda_compiler import compile_all
from lwc_compiler.codegen.device_build import compile_device
from lwc_compiler.kernels.gpu import candidates, cuts
from lwc_compiler.kernels.gpu.builder import WARP, strides_of
from lwc_compiler.kernels.gpu.gemm import GemmTile
from lwc_compiler.kernels.gpu.matvec import STEP, pack_matvec
from lwc_compiler.kernels.gpu.plan import FEW_ROWS, as_planes, plan_conv, plan_matmul, without_gaps
from lwc_compiler.kernels.kernel import Step
from lwc_compiler.kernels.layer import Activation, ConvGeometry, Epilogue
from lwc_compiler.targets import find_target
from tests.cuda_harness import Emulator
from tests.machine_code import check_resources
from tests.opencl_harness import run_plan

GPU = find_target("a100")
ARCHITECTURES = (find_target("cuda").gpu.architectures[0], find_target("cuda").gpu.architectures[-1])
# Of each kernel a case.
WITH_ALL = ("15-conv-3x9x3x3", "7-conv-3x9x3x3", "3-conv-1x8x50-to-12-kernel-3-", "1csr-1x13000x5", "1all-2x7000x17")
GOLDEN = Path(__file__).parent / "golden"


def planes(geometry: ConvGeometry) -> tuple[ConvGeometry, tuple[int, ...], tuple[int, ...]]:
    plain, x_strides = without_gaps(as_planes(geometry))
    return plain, x_strides, strides_of(plain.out_shape)


def tap_tiles(geometry: ConvGeometry, _target):
    return cuts.tap_tiles(*planes(geometry), 0.3, GPU.gpu)


def block_tiles(geometry: ConvGeometry, _target):
    return cuts.tap_tiles(*planes(geometry), 0.3, GPU.gpu, 4)


def planned_taps(weight, geometry: ConvGeometry, epilogue: Epilogue, tile):
    return candidates.tap_plan(weight.reshape(*weight.shape[:2], *tile.geometry.kernel), tile, epilogue)


def gemm_tiles(geometry: ConvGeometry, _target):
    found = itertools.product(cuts.GEMM_TILES, cuts.DEPTHS, (1, 3))
    tiles = [GemmTile(*planes(geometry), m, p, depth, n, *each) for (m, p, *each), depth, n in found]
    return [tile for tile in tiles if cuts.fits(tile)]


def planned_gemm(weight, geometry: ConvGeometry, epilogue: Epilogue, tile):
    return candidates.gemm_candidate(weight, tile, epilogue, GPU.gpu).build()


def depthwise(rows: int):
    def plan(weight, geometry: ConvGeometry, epilogue: Epilogue, _target):
        return candidates.depthwise_candidate(weight, geometry, rows, epilogue, GPU.gpu).build()

    return plan


def matvec(*, is_sparse: bool, cut: int = 0):
    def plan(weight, rows: int, epilogue: Epilogue, _target):
        tiles = list(cuts.matvec_tiles(weight, rows, is_sparse, GPU.gpu))
        tile = tiles[cut % len(tiles)]
        return candidates.matvec_candidate(weight, tile, epilogue, GPU.gpu).build()

    return plan


def make_cases():
    full = [g for g in CONVOLUTIONS if g.groups < g.in_channels and any(tap_tiles(g, GPU))]
    cases = [make_case(i, g, *variant(i, 0), plan_conv) for i, g in enumerate(CONVOLUTIONS) if i % 3 == 0]
    cases += [make_product(i, *s, *variant(i, 1), plan_matmul) for i, s in enumerate(PRODUCTS)]
    cases += random_layouts(full[::2], 1, tap_tiles, planned_taps)
    cases += random_layouts(full[1::3], 3, gemm_tiles, planned_gemm)
    fours = [g for g in full if g.group_outputs % 4 == 0 and any(block_tiles(g, GPU))]
    for i, g in enumerate(fours[::2]):
        layout = random_layout(i, block_tiles, planned_taps)
        cases.append(make_case(i, g, "blocks", variant(i, 3)[1], layout))
    of_one = [g for g in CONVOLUTIONS if g.groups == g.in_channels]
    cases += [make_case(i, g, *variant(i, 2), plan_conv) for i, g in enumerate(of_one)]
    for i, g in enumerate(g for g in of_one if len(g.out_size) > 1):
        cases.append(make_case(100 + i, g, *variant(i, 1), depthwise(2 << i % 3)))
    few = [(1, 1, 1), (1, 13000, 5), (2, 7000, 17), (3, 65, 63), (5, 64, 100), (8, 1031, 33), (1, 700, 150)]
    for is_sparse, shapes in ((True, few), (False, few[::2])):
        name = "csr" if is_sparse else "all"
        for i, s in enumerate(shapes):
            plan = matvec(is_sparse=is_sparse, cut=2 + 5 * i)
            cases.append(make_product(i, *s, *variant(i, 2 if is_sparse else 4), plan, name))
    return cases


CASES = make_cases()


class TestKernels:
    cases = CASES

    def test_same_as_float64(self, device, case) -> None:
        """The result is the float64 reference, to 1e-5 of its scale; nothing outside of a buffer is written."""
        result = run_plan(device, case.plan(GPU), case.inputs, case.expected.shape)
        error = np.abs(result - case.expected)
        assert np.isfinite(error).all(), f"{np.isnan(error).sum()} of {error.size} results are not finite"
        assert error.max() <= 1e-5 * case.scale, f"error {error.max() / (case.scale or 1):.2g} of the scale"


def test_no_hazards(tmp_path) -> None:
    """As CUDA's text, where copies are made as late as they may be, of which several are under way at once."""
    by_kernel: dict[str, list] = {}
    for case in TestKernels.cases:
        kernel = case.plan(GPU).steps[0].kernel
        if kernel.launch.shared_bytes:
            by_kernel.setdefault(kernel.name, []).append(case)
    chosen = [case for cases in by_kernel.values() for case in cases[::6]]
    emulator = Emulator({case.name: case.plan(GPU) for case in chosen}, tmp_path)
    for case in chosen:
        emulator.check(case.name, case)


def test_every_wait_and_barrier_is_needed(tmp_path) -> None:
    """Where a layer takes several chunks or slices, and warps share sums."""
    chosen = [case for case in TestKernels.cases if case.name.startswith(WITH_ALL)]
    assert len(chosen) == len(WITH_ALL)
    emulator = Emulator({case.name: case.plan(GPU) for case in chosen}, tmp_path)
    for case in chosen:
        assert not emulator.not_needed(case.name, case)


def test_inputs_reach_only_the_outputs_that_read_them(device) -> None:
    """Filling adds 0 times an input: one that is not finite must not get into a sum by it."""
    weight = sparse(np.random.default_rng(0), (300, 90), 0.1, 1)
    weight[:, 4] = 0
    x = np.random.default_rng(1).standard_normal((4, 300)).astype(np.float32)
    x[:, ::37] = np.inf
    read = (weight[~np.isfinite(x[0])] != 0).any(axis=0)
    for plan in (matvec(is_sparse=True)(weight, 4, Epilogue(), GPU), planned_taps_of_rows(weight, 4)):
        result = run_plan(device, plan, [x], (4, 90))
        assert np.array_equal(np.isfinite(result), np.tile(~read, (4, 1)))


def test_lanes_read_different_banks() -> None:
    """Mostly: of 32 random addresses 3.5 meet in a bank, in lists at most 2 on average."""
    weight = sparse(np.random.default_rng(0), (2000, 20), 0.1, 1)
    tile = next(cuts.matvec_tiles(weight, 1, True, GPU.gpu))
    (starts, indices, _), _ = pack_matvec(weight, tile)
    most = []
    for first, last in itertools.pairwise(starts.array[:21]):
        for step in range(first, last, WARP):
            at_once = indices.array.reshape(-1, STEP)[step : min(step + WARP, last)]
            most += [np.bincount(lanes % 32).max() for lanes in at_once.T]
    assert np.mean(most) <= 2


def planned_taps_of_rows(weight, rows: int):
    """The kernel for many rows, whatever is predicted."""
    offered = []
    plan_matmul(weight, 2 * rows * FEW_ROWS, Epilogue(), GPU, lambda _, found: offered.extend(found))
    geometry = ConvGeometry(1, 300, (1, rows), 90, (1, 1), (1, 1), (0,) * 4, (1, 1))
    tile = next(cuts.tap_tiles(geometry, (rows * 300, 1, 0, 300), (rows * 90, 1, 0, 90), 0.3, GPU.gpu))
    assert any(candidate.format == "csr" for candidate in offered)
    return candidates.tap_plan(np.ascontiguousarray(weight.T).reshape(90, 300, 1, 1), tile, Epilogue())


@pytest.mark.parametrize(
    "geometry", [conv(1, 16, (14, 14), 16, (3, 3), pads=(1, 1, 1, 1)), conv(2, 13, (14, 9), 9, (1, 1))]
)
@pytest.mark.parametrize("density", [0.1, 1.0])
def test_layers_alike_share_their_kernels(geometry: ConvGeometry, density: float) -> None:
    weight = sparse(np.random.default_rng(0), weight_shape(geometry), density, 0)
    other = 2 * np.flip(weight, range(1, weight.ndim))
    check_same_kernels(*(plan_conv(np.ascontiguousarray(w), geometry, Epilogue(), GPU) for w in (weight, other)))


def test_plans_depend_on_the_gpu() -> None:
    """The more multiprocessors, the more blocks share the sums of a layer with few pixels."""
    geometry = conv(1, 512, (7, 7), 512, (3, 3), pads=(1, 1, 1, 1))
    weight = np.ones(weight_shape(geometry), np.float32)
    many, few = (plan_conv(weight, geometry, Epilogue(), find_target(n)) for n in ("h100", "jetson-orin-nano"))
    assert [step.kernel.name for step in many.steps] == ["gpu_gemm", "gpu_gemm_sum"]
    assert math.prod(many.steps[0].kernel.launch.grid) > math.prod(few.steps[0].kernel.launch.grid)


@pytest.mark.parametrize(("density", "format_"), [(0.05, "csr"), (0.9, "dense")])
@pytest.mark.parametrize("rows", [1, 64])
def test_the_density_decides(density: float, format_: str, rows: int) -> None:
    weight = sparse(np.random.default_rng(0), (4096, 4096), density, 1)
    plan = plan_matmul(weight, rows, Epilogue(), GPU)
    assert plan.format == format_
    assert {trial.name.split()[0] for trial in plan.trials} == {"csr", "dense"}


def test_blocks_of_output_channels_are_rows() -> None:
    geometry = conv(4, 128, (28, 28), 128, (3, 3), pads=(1, 1, 1, 1))
    generator = np.random.default_rng(0)
    mask = np.repeat(generator.random((32, *weight_shape(geometry)[1:])) < 0.1, 4, axis=0)
    weight = (generator.standard_normal(mask.shape) * mask).astype(np.float32)
    assert plan_conv(weight, geometry, Epilogue(), GPU).format == "4x1"
    moved = np.roll(weight, 1, axis=0)  # other places in every four
    assert plan_conv(np.ascontiguousarray(moved), geometry, Epilogue(), GPU).format == "csr"


def epilogue(channels: int) -> Epilogue:
    return Epilogue(np.zeros(channels, np.float32), True, Activation("relu"))


def kernels_of_many_cuts() -> dict[str, Step]:
    """Each kernel in cuts of all kinds, for layers of ResNet-50, and matrices."""
    generator, steps = np.random.default_rng(0), {}
    layers = {
        "full": conv(1, 64, (56, 56), 64, (3, 3), pads=(1, 1, 1, 1)),
        "strided": conv(1, 128, (56, 56), 128, (3, 3), (2, 2), (1, 1, 1, 1)),
        "pointwise": conv(1, 256, (56, 56), 64, (1, 1)),
    }
    for number, (name, geometry) in enumerate(layers.items()):
        weight = sparse(generator, weight_shape(geometry), 0.1, 0)
        for i, tile in enumerate(list(tap_tiles(geometry, GPU))[::50]):
            steps[f"taps_{name}_{i}"] = planned_taps(weight, geometry, epilogue(geometry.out_channels), tile).steps[0]
        for i, tile in enumerate(gemm_tiles(geometry, GPU)[number::5]):
            steps[f"gemm_{name}_{i}"] = planned_gemm(weight, geometry, epilogue(geometry.out_channels), tile).steps[0]
    weight = sparse(generator, (1024, 512), 0.1, 1)
    for rows in (1, 3, 8):
        for is_sparse in (False, True):
            for i, tile in enumerate(cuts.matvec_tiles(weight, rows, is_sparse, GPU.gpu)):
                plan = candidates.matvec_candidate(weight, tile, epilogue(512), GPU.gpu).build()
                steps[f"matvec_{rows}_{int(is_sparse)}_{i}"] = plan.steps[0]
    tall = sparse(generator, (13000, 64), 0.1, 1)  # fills shared memory
    for rows in (1, 3, 8):
        for i, tile in enumerate(list(cuts.matvec_tiles(tall, rows, True, GPU.gpu))[::4]):
            steps[f"tall_{rows}_{i}"] = candidates.matvec_candidate(tall, tile, epilogue(64), GPU.gpu).build().steps[0]
    plan = plan_matmul(weight, 64, epilogue(512), GPU)
    geometry = conv(1, 32, (112, 112), 32, (3, 3), pads=(1, 1, 1, 1), groups=32)
    plans = {"rows": plan}
    for rows in (1, 8):
        each = np.ones((32, 1, 3, 3), np.float32)
        plans[f"depthwise_{rows}"] = candidates.depthwise_candidate(each, geometry, rows, epilogue(32), GPU.gpu).build()
    return steps | {name: plan.steps[0] for name, plan in plans.items()}


@pytest.fixture(scope="module")
def many_cuts():
    kernels = {name: step.kernel for name, step in kernels_of_many_cuts().items()}
    return kernels, compile_device(kernels, "cuda")


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_registers_do_for_many_cuts(many_cuts, architecture: int) -> None:
    kernels, source = many_cuts
    (code,) = compile_all(source, [architecture], ptx=False)
    check_resources(code, kernels)


def test_many_cuts_fits_a_block(many_cuts) -> None:
    kernels, _ = many_cuts
    for name, kernel in kernels.items():
        assert kernel.launch.shared_bytes <= GPU.gpu.block_shared_bytes, name
        assert math.prod(kernel.launch.block) <= 1024, name


def golden_kernels() -> dict[str, str]:
    geometry = conv(1, 8, (6, 6), 8, (3, 3), pads=(1, 1, 1, 1))
    weight = sparse(np.random.default_rng(0), weight_shape(geometry), 0.1, 0)
    steps = {
        "taps": planned_taps(weight, geometry, epilogue(8), next(iter(tap_tiles(geometry, GPU)))).steps[0],
        "matvec_csr": matvec(is_sparse=True)(weight.reshape(24, 24), 1, epilogue(24), GPU).steps[0],
        "depthwise": plan_conv(weight[:, :1], conv(1, 8, (6, 6), 8, (3, 3), groups=8), epilogue(8), GPU).steps[0],
    }
    return {name: compile_device({name: step.kernel}, "cuda") for name, step in steps.items()}


@pytest.mark.parametrize("name", ["taps", "matvec_csr", "depthwise"])
def test_text_is_as_it_was(name: str) -> None:
    """What changes a kernel's text shows in a diff; `write_golden.py` writes the files anew."""
    assert golden_kernels()[name] == (GOLDEN / f"{name}.cu").read_text(encoding="utf-8")
