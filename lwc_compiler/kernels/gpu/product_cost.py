"""How long the kernels of `gemm.py` and `mma.py` take: a model whose constants are fitted to kernels timed on a GPU.

Blocks take turns on the multiprocessors, and those that are on one at a time share its units. What a slice takes adds
up: its products, the loads of their factors from shared memory, and its copies. `benchmarks/gpu/fit.py` fits the
constants.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lwc_compiler.kernels.gpu.builder import WARP, blocks_at_once, ceil_div
from lwc_compiler.kernels.gpu.gemm import GemmTile

if TYPE_CHECKING:
    from lwc_compiler.kernels.gpu.mma import MmaTile
    from lwc_compiler.kernels.gpu.product import ProductTile
    from lwc_compiler.targets.target import Gpu

_GEMM_THREADS, _MMA_THREADS = 819, 1024  # of a multiprocessor, that have the registers they need
_TENSOR_ROWS, _TENSOR_CHANNELS = 16, 8  # output channels, and input channels or pixels, of an instruction
_BANDWIDTH = 0.85  # share of the memory's that is reached


@dataclass(frozen=True)
class ProductCosts:
    """What is fitted.

    Attributes:
        launch: microseconds of every kernel.
        parts_launch: microseconds of the kernel that adds the parts of sums up, beside what its bytes take.
        slice_cycles: waited for in a slice.
        scattered: how much more of these, as a factor, where the channels of a slice are at several positions.
        product_cycles: cycles of products, of those at the peak rate.
        load_cycles: of a warp's access to shared memory.
        tensor_product_cycles: as `product_cycles`, on tensor cores.
        tensor_load_cycles: as `load_cycles`, of a fragment's words.
        copy_cycles: of a warp's copy to shared memory.
        part_bandwidth: at which the parts of sums are written and added up, of the memory's.
    """

    launch: float
    parts_launch: float
    slice_cycles: float
    scattered: float
    product_cycles: float
    load_cycles: float
    tensor_product_cycles: float
    tensor_load_cycles: float
    copy_cycles: float
    part_bandwidth: float


FITTED = ProductCosts(
    launch=2.6,
    parts_launch=1.0,
    slice_cycles=110,
    scattered=2.8,
    product_cycles=0.89,
    load_cycles=0.49,
    tensor_product_cycles=1.2,
    tensor_load_cycles=0.45,
    copy_cycles=6.5,
    part_bandwidth=1.0,
)


def product_seconds(t: GemmTile | MmaTile, gpu: Gpu, costs: ProductCosts = FITTED) -> float:
    """The time of a layer, with that of adding the parts of sums up where there are such."""
    g, blocks = t.geometry, math.prod(t.grid)
    threads = _GEMM_THREADS if isinstance(t, GemmTile) else _MMA_THREADS
    there = blocks_at_once(gpu, 4 * t.stages * (t.slice_words + t.right), t.threads, threads)
    at_a_time = min(ceil_div(blocks, gpu.multiprocessors), there)
    turns = ceil_div(blocks, gpu.multiprocessors * at_a_time)
    copied = (t.slice_words / 4 + t.right / t.vector) / WARP * costs.copy_cycles
    waited = costs.slice_cycles * (1 + costs.scattered * (t.block < t.depth))
    cycles = turns * t.slices_of_block * (waited + at_a_time * (_multiplied(t, gpu, costs) + copied))
    bandwidth = gpu.gigabytes_a_second * 1e9
    launch = 1e-6 * costs.launch + parts_seconds(t, gpu, costs)
    weights = 4 * t.output_blocks * g.groups * t.slices * t.slice_words
    moved = weights + 4 * (math.prod(g.in_shape) + math.prod(g.out_shape))
    return launch + max(cycles / (gpu.gigahertz * 1e9), moved / (_BANDWIDTH * bandwidth))


def parts_seconds(t: ProductTile, gpu: Gpu, costs: ProductCosts = FITTED) -> float:
    """What it takes to store the parts of sums and to add them up, where there are such."""
    if t.splits == 1:
        return 0.0
    moved = 4.0 * (2 * t.splits + 1) * t.results
    return 1e-6 * costs.parts_launch + moved / (costs.part_bandwidth * gpu.gigabytes_a_second * 1e9)


def _multiplied(t: GemmTile | MmaTile, gpu: Gpu, costs: ProductCosts) -> float:
    """Cycles of a block's products of a slice, and of loading their factors."""
    products, warps = t.outputs * t.pixels * t.depth, t.threads / WARP
    if isinstance(t, GemmTile):
        loads = t.depth / t.parts * (t.each_outputs + t.each_pixels)  # a vector takes four accesses
        return products / gpu.lanes * costs.product_cycles + warps * loads * costs.load_cycles
    lanes = gpu.tensor_lanes * t.in_word * (2 if t.sparse else 1) / 2
    # A warp's fragments of the weights, and of the inputs two channels of every eight.
    loads = t.fragments * t.warp_outputs / _TENSOR_ROWS * 4
    loads += t.depth / _TENSOR_CHANNELS * t.warp_pixels / _TENSOR_CHANNELS * 2
    return products / lanes * costs.tensor_product_cycles + warps * loads * costs.tensor_load_cycles
