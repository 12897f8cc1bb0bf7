"""The cuts of a layer that kernels are offered in: those that fit shared memory and registers, and waste little."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from lwc_compiler.kernels.gpu.builder import WARP, ceil_div
from lwc_compiler.kernels.gpu.gemm import GemmTile
from lwc_compiler.kernels.gpu.matvec import MatvecTile
from lwc_compiler.kernels.gpu.mma import MmaTile, is_sparse
from lwc_compiler.kernels.gpu.precision import numbers_in_word
from lwc_compiler.kernels.gpu.product import ProductTile
from lwc_compiler.kernels.gpu.taps_layout import ALIKE, TAP_STEP, TapTile
from lwc_compiler.kernels.kernel import STATIC_SHARED_BYTES
from lwc_compiler.kernels.layer import ConvGeometry

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from lwc_compiler.targets.target import Gpu

_TAP_SHARE = 0.93  # of shared memory that is planned with; what is left is for rows with more taps than most
_TAP_BYTES = 1.1  # of shared memory for a tap, of a word of a step; lists are filled to steps
# Warps of a block, rows of a warp, and warps that share a row.
_TAP_CUTS = (
    (4, 1, 1), (8, 1, 1), (8, 2, 1), (8, 4, 1), (8, 8, 1), (16, 1, 1), (16, 2, 1), (16, 4, 1), (8, 1, 2), (8, 2, 2),
    (8, 2, 4), (16, 8, 1), (16, 1, 2), (16, 2, 2), (16, 4, 2), (16, 1, 4), (16, 2, 4), (16, 4, 4), (16, 2, 8),
)  # fmt: skip
# Warps of a block, warps that share an output, outputs of these, steps that a lane reads at a time.
_MATVEC_CUTS = (
    (16, 1, 1, 2), (16, 1, 1, 4), (16, 1, 2, 4), (16, 1, 4, 4), (16, 2, 1, 2), (16, 2, 1, 4), (16, 4, 1, 4),
    (16, 8, 1, 4), (16, 16, 1, 4), (8, 1, 1, 2), (8, 1, 1, 4), (8, 1, 2, 2), (8, 2, 1, 2), (8, 4, 1, 4), (8, 8, 1, 4),
)  # fmt: skip
_SPLITS = (1, 2, 4, 8, 16)
# Output channels and pixels of a block, and of a warp.
MMA_TILES = (
    (128, 128, 64, 64), (128, 128, 64, 32), (128, 64, 64, 32), (64, 64, 32, 32), (64, 32, 32, 16), (32, 32, 16, 16),
    (64, 16, 16, 16), (32, 16, 16, 8),
)  # fmt: skip
_AMPERE = 80  # the first compute capability, times ten, with sparse tensor cores
# Output channels and pixels of a block, and of a thread; groups of threads that share a sum.
GEMM_TILES = (
    (128, 128, 8, 8, 1), (128, 64, 8, 8, 1), (64, 64, 8, 8, 2), (64, 64, 8, 8, 4), (64, 32, 8, 4, 2), (32, 64, 8, 4, 2),
    (32, 32, 8, 4, 4), (32, 32, 4, 4, 2), (64, 16, 8, 4, 4),
)  # fmt: skip
DEPTHS = (16, 32)  # products of a sum between two barriers


def in_half(weight: NDArray[np.float32], gpu: Gpu) -> bool:
    """Whether sparse tensor cores can multiply the weights, of which they skip half."""
    has_them = gpu.precision != "float32" and gpu.architectures[0] >= _AMPERE
    return has_them and is_sparse(weight, numbers_in_word(gpu.precision))


def product_tiles(
    geometry: ConvGeometry, x_strides: tuple[int, ...], y_strides: tuple[int, ...], gpu: Gpu, *, half: bool
) -> Iterator[GemmTile | MmaTile]:
    """Cuts that fit shared memory: for single numbers, and in less than float32 for tensor cores.

    Args:
        geometry: of the layer.
        x_strides: of the input.
        y_strides: of the output.
        gpu: which.
        half: `in_half` holds for the weights.
    """
    for (outputs, pixels, *each), depth, splits in itertools.product(GEMM_TILES, DEPTHS, _SPLITS):
        gemm = GemmTile(geometry, x_strides, y_strides, outputs, pixels, depth, splits, *each)
        if fits(gemm):
            yield gemm
    if gpu.precision == "float32":
        return
    cuts = itertools.product(MMA_TILES, DEPTHS, _SPLITS, (False, True) if half else (False,))
    for (outputs, pixels, *warp), depth, splits, sparse in cuts:
        mma = MmaTile(geometry, x_strides, y_strides, outputs, pixels, depth, splits, gpu.precision, sparse, *warp)
        if fits(mma) and depth % mma.step == 0:
            yield mma


def fits(t: ProductTile) -> bool:
    """Whether shared memory has room for slices, and every part of a sum has some."""
    return t.stages > 1 and (t.splits == 1 or t.splits * 2 <= t.slices)


def tap_tiles(
    geometry: ConvGeometry,
    x_strides: tuple[int, ...],
    y_strides: tuple[int, ...],
    density: float,
    gpu: Gpu,
    height: int = 1,
) -> Iterator[TapTile]:
    """Cuts that waste few lanes; a block declares its shared memory, or has half of a multiprocessor's, or all."""
    budgets = shared_budgets(gpu)
    flat = geometry.out_size[-2] == 1
    inputs, outputs = geometry.group_inputs, geometry.group_outputs // height
    width = geometry.out_size[-1]
    across = (8, 16, 32, 64, 128) if flat else sorted({4, 8, 16, 32, ceil_div(width, ceil_div(width, WARP))})
    for columns in across:
        for pixels in (ceil_div(columns, WARP),) if flat else (1, 2, 4, 8):
            for warps, many, parts in _TAP_CUTS:
                if pixels * many * height * warps > 512 or warps * many >= parts * (2 * outputs + 8) or parts > inputs:
                    continue
                rows = WARP // min(columns, WARP) * (1 if flat else pixels)
                one = TapTile(geometry, x_strides, y_strides, rows, columns, 1, warps, many, parts, height)
                full = replace(one, steps=one.lists * ceil_div(math.prod(geometry.kernel), TAP_STEP) + ALIKE)
                for budget in budgets:
                    if full.shared_bytes > budget:
                        continue
                    channels = _tap_channels(one, density, budget)
                    yield replace(one, channels=channels, most_bytes=budget)
                    if channels == inputs:
                        break


def _tap_channels(t: TapTile, density: float, budget: int) -> int:
    """Input channels of which a block has the window and the taps: all in one stage, or as many as two stages hold."""
    inputs = t.geometry.group_inputs
    channel = 4 * t.plane + t.per_block * math.prod(t.geometry.kernel) * density * t.step_words * _TAP_BYTES
    fixed = 4 * t.plane + 12 * t.lists
    if inputs * channel + fixed <= _TAP_SHARE * budget:
        return inputs
    return max(1, min(inputs, int((_TAP_SHARE * budget / 2 - fixed) / channel)))


def shared_budgets(gpu: Gpu) -> list[int]:
    """Bytes that a block may take: what it can declare, half of a multiprocessor's, or all."""
    most = gpu.block_shared_bytes
    return sorted({STATIC_SHARED_BYTES, max(STATIC_SHARED_BYTES, most // 2 - 1024), most})


def matvec_tiles(weight: NDArray[np.float32], rows: int, sparse: bool, gpu: Gpu) -> Iterator[MatvecTile]:
    """Cuts for which a block has enough registers and shared memory; more of it, where that is filled less often."""
    k, n = weight.shape
    for cut in _MATVEC_CUTS:
        tiles = [MatvecTile(rows, k, n, sparse, gpu.precision, *cut, budget) for budget in shared_budgets(gpu)]
        fitting = [tile for tile in tiles if tile.fits]
        yield from {tile.chunks: tile for tile in reversed(fitting)}.values()
