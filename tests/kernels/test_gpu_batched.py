"""Products of computed matrices on a GPU, in any order of their axes, compute what numpy does in float64."""

import math
from dataclasses import replace

import numpy as np
import pytest
from harness import Case
from test_matmul import BATCHED, make_batched

from lwc_compiler.codegen.cuda_compiler import compile_all
from lwc_compiler.codegen.device_build import compile_device
from lwc_compiler.kernels.gpu import batched
from lwc_compiler.kernels.gpu.batched import BatchedTile, Products, batched_kernel, batched_tile, plan_products
from lwc_compiler.kernels.gpu.builder import strides_of
from lwc_compiler.kernels.gpu.factors import Matrix
from lwc_compiler.kernels.kernel import Input, Output, Plan, Step
from lwc_compiler.targets import find_target
from tests.cuda_harness import Emulator
from tests.machine_code import check_resources
from tests.opencl_harness import run_plan

GPU = find_target("a100")
ARCHITECTURES = (find_target("cuda").gpu.architectures[0], find_target("cuda").gpu.architectures[-1])
PLAIN, SWAPPED, HEADS, HEADS_SWAPPED = (0, 1, 2, 3), (0, 1, 3, 2), (0, 2, 1, 3), (0, 2, 3, 1)
# Shape (batch, heads, m, k, n), and in which order of its axes each matrix lies in memory.
SHAPES = ((2, 3, 64, 32, 128), (1, 2, 72, 36, 100), (2, 1, 33, 17, 65), (1, 3, 1, 70, 9))
ORDERS = (
    (PLAIN, PLAIN, PLAIN), (SWAPPED, PLAIN, PLAIN), (HEADS, HEADS_SWAPPED, PLAIN), (PLAIN, HEADS, HEADS),
    (HEADS_SWAPPED, SWAPPED, SWAPPED), (PLAIN, SWAPPED, HEADS_SWAPPED), ((3, 0, 1, 2), (2, 1, 0, 3), (1, 3, 0, 2)),
)  # fmt: skip


def lying(shape: tuple[int, ...], order: tuple[int, ...]) -> Matrix:
    """A tensor whose axis order[i] is axis i of its memory."""
    strides = strides_of(tuple(shape[axis] for axis in order))
    placed = tuple(strides[order.index(axis)] for axis in range(len(shape)))
    return Matrix(placed[:-2], *placed[-2:])


def make_products(shape: tuple[int, ...], orders: tuple[tuple[int, ...], ...], scale: float) -> Products:
    *batch, m, k, n = shape
    shapes = [(*batch, *matrix) for matrix in ((m, k), (k, n), (m, n))]
    matrices = [lying(each, order) for each, order in zip(shapes, orders, strict=True)]
    return Products(tuple(batch), m, k, n, *matrices, scale)


def make_case(name: str, shape: tuple[int, ...], orders: tuple[tuple[int, ...], ...], scale: float, plan) -> Case:
    generator = np.random.default_rng(len(name))
    *batch, m, k, n = shape
    a, b = (generator.standard_normal((*batch, *each)).astype(np.float32) for each in ((m, k), (k, n)))
    expected = scale * (a.astype(np.float64) @ b)
    inputs = [np.ascontiguousarray(each.transpose(order)) for each, order in zip((a, b), orders[:2], strict=True)]
    products = make_products(shape, orders, scale)
    bound = float(np.abs(expected).max())
    return Case(name, lambda _: plan(products), inputs, np.ascontiguousarray(expected.transpose(orders[2])), bound)


def of_tile(products: Products, tile: BatchedTile) -> Plan:
    tile = replace(tile, products=products)
    return Plan((Step(batched_kernel("gpu_batched", tile), (Input(0), Input(1), Output(0))),))


def make_cases() -> list[Case]:
    cases = [make_batched(*shape) for shape in BATCHED]
    for number, orders in enumerate(ORDERS):
        shape, scale = SHAPES[number % len(SHAPES)], (1.0, 0.125, -3.0)[number % 3]
        cases.append(make_case(f"{shape} {orders}", shape, orders, scale, lambda p: plan_products(p, GPU.gpu)))
    for number, cut in enumerate(batched._CUTS):
        shape, orders = SHAPES[number % len(SHAPES)], ORDERS[number % 4]
        tiles = [BatchedTile(make_products(shape, orders, 1.0), cut, depth) for depth in batched._DEPTHS]
        tiles = [tile for tile in tiles if tile.stages > 1]
        tile = tiles[number % len(tiles)]
        cases.append(make_case(f"{cut} {tile.depth}", shape, orders, 0.5, lambda p, tile=tile: of_tile(p, tile)))
    return cases


CASES = make_cases()


class TestProducts:
    cases = CASES

    def test_same_as_float64(self, device, case) -> None:
        result = run_plan(device, case.plan(GPU), case.inputs, case.expected.shape)
        assert np.abs(result - case.expected).max() <= 1e-5 * case.scale


def test_no_hazards(tmp_path) -> None:
    """As CUDA's text, where copies are made as late as they may be, in two orders of the threads."""
    chosen = CASES[::5]
    emulator = Emulator({case.name: case.plan(GPU) for case in chosen}, tmp_path)
    for case in chosen:
        emulator.check(case.name, case)
    assert not emulator.not_needed(chosen[0].name, chosen[0]), "every wait and barrier is needed"


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_registers_do(architecture: int) -> None:
    kernels = {f"k{number}": case.plan(GPU).steps[0].kernel for number, case in enumerate(CASES[::4])}
    (code,) = compile_all(compile_device(kernels, "cuda"), [architecture], ptx=False)
    check_resources(code, kernels)


def test_what_is_not_finite_stays_in_its_row(device) -> None:
    """Filling multiplies zeros by zeros alone."""
    products = make_products((1, 1, 40, 17, 30), ORDERS[0], 1.0)
    a, b = np.ones((40, 17), np.float32), np.ones((17, 30), np.float32)
    a[39], b[:, 29] = np.inf, np.nan
    result = run_plan(device, plan_products(products, GPU.gpu), [a, b], (40, 30))
    assert (result[:39, :29] == 17).all()
    assert not np.isfinite(result[39]).any()
    assert not np.isfinite(result[:, 29]).any()


def test_few_products_have_smaller_blocks() -> None:
    """So that every multiprocessor has some."""
    many, few = (batched_tile(make_products((1, n, 128, 64, 128), ORDERS[1], 1.0), GPU.gpu) for n in (192, 12))
    assert many.cut.rows * many.cut.columns > few.cut.rows * few.cut.columns
    assert math.prod(few.grid) >= GPU.gpu.multiprocessors / 2
