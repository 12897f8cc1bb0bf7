"""Plans of linear layers on a GPU: of all kernels in all their cuts, the one that is picked."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from lwc_compiler.kernels.choice import Candidate, Pick, conv_task, matmul_task, predicted
from lwc_compiler.kernels.gpu.builder import strides_of
from lwc_compiler.kernels.gpu.candidates import (
    depthwise_candidate,
    gemm_candidate,
    matvec_candidate,
    mma_blocks_candidate,
    mma_candidate,
    tap_candidate,
    wgmma_candidate,
)
from lwc_compiler.kernels.gpu.cuts import in_half, matvec_tiles, product_tiles, shared_budgets, tap_tiles
from lwc_compiler.kernels.gpu.depthwise import rows_of_thread
from lwc_compiler.kernels.gpu.gemm import GemmTile
from lwc_compiler.kernels.gpu.lists import MOST_FILLED
from lwc_compiler.kernels.gpu.mma_blocks_tiles import block_height, mma_blocks_tiles
from lwc_compiler.kernels.gpu.wgmma_layout import wgmma_tiles
from lwc_compiler.kernels.kernel import Plan
from lwc_compiler.kernels.layer import ConvGeometry, Epilogue

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from lwc_compiler.targets.target import Gpu, Target

FEW_ROWS = 8  # of a product that reads its weights once for all of them
_HEIGHTS = (1, 4)  # output channels that share their taps' places


def plan_conv(
    weight: NDArray[np.float32], geometry: ConvGeometry, epilogue: Epilogue, target: Target, pick: Pick = predicted
) -> Plan:
    """`kernels.conv.plan_conv` for a target with a GPU."""
    g = geometry
    task = conv_task(weight, g, epilogue, lambda drawn, pick: plan_conv(drawn, g, epilogue, target, pick))
    if g.in_channels == g.groups:
        return pick(task, [depthwise_candidate(weight, g, rows_of_thread(g, _gpu(target)), epilogue, _gpu(target))])
    plain, x_strides = without_gaps(as_planes(g))
    taps = weight.reshape(*weight.shape[:2], *plain.kernel)
    return pick(task, _candidates(taps, plain, x_strides, strides_of(plain.out_shape), epilogue, _gpu(target)))


def plan_matmul(
    weight: NDArray[np.float32], rows: int, epilogue: Epilogue, target: Target, pick: Pick = predicted
) -> Plan:
    """`kernels.matmul.plan_matmul` for a target with a GPU."""
    k, n = weight.shape
    gpu = _gpu(target)
    task = matmul_task(weight, rows, epilogue, lambda w, e, pick: plan_matmul(w, rows, e, target, pick))
    candidates = []
    if rows <= FEW_ROWS:
        candidates = [
            matvec_candidate(weight, tile, epilogue, gpu)
            for sparse in ((True, False) if task.density < 1 else (False,))  # the one with fewer bytes where both wait
            for tile in matvec_tiles(weight, rows, sparse, gpu)
        ]
    else:
        # Rows are pixels whose channels lie side by side.
        geometry = ConvGeometry(1, k, (1, rows), n, (1, 1), (1, 1), (0,) * 4, (1, 1))
        taps = np.ascontiguousarray(weight.T).reshape(n, k, 1, 1)
        candidates = _candidates(taps, geometry, (rows * k, 1, 0, k), (rows * n, 1, 0, n), epilogue, gpu)
    return pick(task, candidates)


def _gpu(target: Target) -> Gpu:
    assert target.gpu is not None
    return target.gpu


def as_planes(g: ConvGeometry) -> ConvGeometry:
    """The same convolution with at least two spatial dimensions; a pointwise one with all its pixels in a row."""
    n = len(g.in_size)
    if set(g.kernel) == set(g.strides) == {1} and not any(g.pads):
        flat = (1, math.prod(g.in_size))
        return replace(g, in_size=flat, kernel=(1, 1), strides=(1, 1), pads=(0,) * 4, dilations=(1, 1))
    if n > 1:
        return g
    return replace(
        g, in_size=(1, *g.in_size), kernel=(1, *g.kernel), strides=(1, *g.strides), dilations=(1, *g.dilations),
        pads=(0, g.pads[0], 0, g.pads[1]),
    )  # fmt: skip


def without_gaps(g: ConvGeometry) -> tuple[ConvGeometry, tuple[int, ...]]:
    """The same convolution, and the strides of its input: those of what it reads, if it is pointwise."""
    strides = strides_of(g.in_shape)
    if set(g.kernel) != {1} or any(g.pads):
        return g, strides
    read = tuple(stride * step for stride, step in zip(strides[2:], g.strides, strict=True))
    return replace(g, in_size=g.out_size, strides=(1,) * len(g.strides)), (*strides[:2], *read)


def _candidates(
    weight: NDArray[np.float32],
    geometry: ConvGeometry,
    x_strides: tuple[int, ...],
    y_strides: tuple[int, ...],
    epilogue: Epilogue,
    gpu: Gpu,
) -> list[Candidate]:
    """The ways to compute a convolution of two dimensions or more that is not depthwise."""
    candidates, half = [], in_half(weight, gpu)
    for tile in product_tiles(geometry, x_strides, y_strides, gpu, half=half):
        if isinstance(tile, GemmTile):
            candidates.append(gemm_candidate(weight, tile, epilogue, gpu))
        else:
            candidates.append(mma_candidate(weight, tile, epilogue, gpu))
    on_hopper = wgmma_tiles(geometry, x_strides, y_strides, gpu, half=half)
    candidates += [wgmma_candidate(weight, tile, epilogue, gpu) for tile in on_hopper]
    if np.all(weight):
        return candidates
    kept = int(np.count_nonzero(weight))
    for height in _HEIGHTS:
        if geometry.group_outputs % height:
            continue
        taps = int(np.count_nonzero((weight.reshape(-1, height, *weight.shape[1:]) != 0).any(axis=1)))
        if taps * height <= MOST_FILLED * kept:
            tiles = tap_tiles(geometry, x_strides, y_strides, taps * height / weight.size, gpu, height)
            candidates += [tap_candidate(weight, taps, tile, epilogue, gpu) for tile in tiles]
    flat = weight.reshape(geometry.groups, geometry.group_outputs, geometry.group_inputs, -1)
    blocks = block_height(flat) if gpu.precision != "float32" else 0
    if blocks:
        candidates += [
            mma_blocks_candidate(weight, places, tile, blocks, epilogue, gpu)
            for tile, places in mma_blocks_tiles(flat, geometry, (x_strides, y_strides), gpu, shared_budgets(gpu))
        ]
    return candidates
