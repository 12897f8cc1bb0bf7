"""Plans of linear layers on a GPU: the cuts of each kernel that may be fastest, by models of their times.

The models are in `taps_cost.py`, `matvec_cost.py` and `product_cost.py`, with constants that are fitted to kernels
timed on a GPU. For another one they are scaled by the numbers of its data sheet.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from lwc_compiler.kernels.choice import Candidate, Pick, conv_task, matmul_task, predicted
from lwc_compiler.kernels.gpu.builder import WARP, blocks_at_once, ceil_div, strides_of
from lwc_compiler.kernels.gpu.depthwise import depthwise_kernel, rows_of_thread
from lwc_compiler.kernels.gpu.gemm import GemmTile, gemm_kernel, pack_gemm
from lwc_compiler.kernels.gpu.lists import MOST_FILLED
from lwc_compiler.kernels.gpu.matvec import MatvecTile, matvec_kernel, pack_matvec
from lwc_compiler.kernels.gpu.matvec_cost import matvec_seconds
from lwc_compiler.kernels.gpu.mma import MmaTile, is_sparse, mma_kernel, pack_mma
from lwc_compiler.kernels.gpu.mma_blocks import mma_blocks_kernel
from lwc_compiler.kernels.gpu.mma_blocks_cost import mma_blocks_seconds
from lwc_compiler.kernels.gpu.mma_blocks_layout import MmaBlocksTile, pack_mma_blocks
from lwc_compiler.kernels.gpu.mma_blocks_layout import fitted as fitted_blocks
from lwc_compiler.kernels.gpu.mma_blocks_tiles import block_height, mma_blocks_tiles
from lwc_compiler.kernels.gpu.product import ProductTile, sum_kernel
from lwc_compiler.kernels.gpu.product_cost import product_seconds
from lwc_compiler.kernels.gpu.taps import taps_kernel
from lwc_compiler.kernels.gpu.taps_cost import steps_of, taps_seconds
from lwc_compiler.kernels.gpu.taps_layout import ALIKE, TAP_STEP, TapTile, fitted, pack_taps
from lwc_compiler.kernels.gpu.wgmma import wgmma_kernel
from lwc_compiler.kernels.gpu.wgmma_cost import wgmma_seconds
from lwc_compiler.kernels.gpu.wgmma_inputs import inputs_kernel
from lwc_compiler.kernels.gpu.wgmma_layout import WgmmaTile, pack_wgmma, wgmma_tiles
from lwc_compiler.kernels.kernel import (
    STATIC_SHARED_BYTES,
    Constant,
    Input,
    Kernel,
    Operand,
    Output,
    Plan,
    Scratch,
    Step,
)
from lwc_compiler.kernels.layer import ConvGeometry, Epilogue

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    from lwc_compiler.targets.target import Gpu, Target

_SHORT_SECONDS = 3e-6
_DEPTHWISE_SECONDS = 1.5e-6  # of every kernel; only one is offered, and nothing depends on its time
_FEW_ROWS = 8  # of a product that reads its weights once for all of them
_TAP_SHARE = 0.93  # of shared memory that is planned with; what is left is for rows with more taps than most
_TAP_BYTES = 1.1  # of shared memory for a tap, of a word of a step; lists are filled to steps
_HEIGHTS = (1, 4)  # output channels that share their taps' places
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
_MMA_TILES = (
    (128, 128, 64, 64), (128, 128, 64, 32), (128, 64, 64, 32), (64, 64, 32, 32), (64, 32, 32, 16), (32, 32, 16, 16),
    (64, 16, 16, 16), (32, 16, 16, 8),
)  # fmt: skip
_IN_HALF = ("float16", "bfloat16")  # the precisions of 2:4
_AMPERE = 80  # the first compute capability, times ten, with sparse tensor cores
# Output channels and pixels of a block, and of a thread; groups of threads that share a sum.
_GEMM_TILES = (
    (128, 128, 8, 8, 1), (128, 64, 8, 8, 1), (64, 64, 8, 8, 2), (64, 64, 8, 8, 4), (64, 32, 8, 4, 2), (32, 64, 8, 4, 2),
    (32, 32, 8, 4, 4), (32, 32, 4, 4, 2), (64, 16, 8, 4, 4),
)  # fmt: skip
_DEPTHS = (16, 32)  # products of a sum between two barriers


def plan_conv(
    weight: NDArray[np.float32], geometry: ConvGeometry, epilogue: Epilogue, target: Target, pick: Pick = predicted
) -> Plan:
    """`kernels.conv.plan_conv` for a target with a GPU."""
    g = geometry
    task = conv_task(weight, g, epilogue, lambda drawn, pick: plan_conv(drawn, g, epilogue, target, pick))
    if g.in_channels == g.groups:
        return pick(task, [_depthwise(weight, g, rows_of_thread(g, _gpu(target)), epilogue, _gpu(target))])
    plain, x_strides = _without_gaps(_as_planes(g))
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
    if rows <= _FEW_ROWS:
        candidates = [
            _matvec(weight, tile, epilogue, gpu)
            for sparse in ((True, False) if task.density < 1 else (False,))  # the one with fewer bytes where both wait
            for tile in _matvec_tiles(weight, rows, sparse, gpu)
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


def _as_planes(g: ConvGeometry) -> ConvGeometry:
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


def _without_gaps(g: ConvGeometry) -> tuple[ConvGeometry, tuple[int, ...]]:
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
    candidates = [
        _dense(weight, tile, epilogue, gpu) if isinstance(tile, GemmTile) else _mma(weight, tile, epilogue, gpu)
        for tile in _product_tiles(weight, geometry, x_strides, y_strides, gpu)
    ]
    on_hopper = wgmma_tiles(geometry, x_strides, y_strides, gpu)
    candidates += [_wgmma(weight, tile, epilogue, gpu) for tile in on_hopper]
    if np.all(weight):
        return candidates
    kept = int(np.count_nonzero(weight))
    for height in _HEIGHTS:
        if geometry.group_outputs % height:
            continue
        taps = int(np.count_nonzero((weight.reshape(-1, height, *weight.shape[1:]) != 0).any(axis=1)))
        if taps * height <= MOST_FILLED * kept:
            tiles = _tap_tiles(geometry, x_strides, y_strides, taps * height / weight.size, gpu, height)
            candidates += [_sparse(weight, taps, tile, epilogue, gpu) for tile in tiles]
    flat = weight.reshape(geometry.groups, geometry.group_outputs, geometry.group_inputs, -1)
    blocks = block_height(flat) if gpu.precision != "float32" else 0
    if blocks:
        candidates += [
            _mma_blocks(weight, places, tile, blocks, epilogue, gpu)
            for tile, places in mma_blocks_tiles(flat, geometry, (x_strides, y_strides), gpu, _shared_budgets(gpu))
        ]
    return candidates


def _product_tiles(
    weight: NDArray[np.float32],
    geometry: ConvGeometry,
    x_strides: tuple[int, ...],
    y_strides: tuple[int, ...],
    gpu: Gpu,
) -> Iterator[GemmTile | MmaTile]:
    """Cuts that fit shared memory: for single numbers, and in less than float32 for tensor cores."""
    for (outputs, pixels, *each), depth, splits in itertools.product(_GEMM_TILES, _DEPTHS, _SPLITS):
        gemm = GemmTile(geometry, x_strides, y_strides, outputs, pixels, depth, splits, *each)
        if _fits(gemm):
            yield gemm
    if gpu.precision == "float32":
        return
    half = gpu.precision in _IN_HALF and gpu.architectures[0] >= _AMPERE and is_sparse(weight)
    cuts = itertools.product(_MMA_TILES, _DEPTHS, _SPLITS, (False, True) if half else (False,))
    for (outputs, pixels, *warp), depth, splits, sparse in cuts:
        mma = MmaTile(geometry, x_strides, y_strides, outputs, pixels, depth, splits, gpu.precision, sparse, *warp)
        if _fits(mma) and depth % mma.step == 0:
            yield mma


def _fits(t: ProductTile) -> bool:
    """Whether shared memory has room for slices, and every part of a sum has some."""
    return t.stages > 1 and (t.splits == 1 or t.splits * 2 <= t.slices)


def _tap_tiles(
    geometry: ConvGeometry,
    x_strides: tuple[int, ...],
    y_strides: tuple[int, ...],
    density: float,
    gpu: Gpu,
    height: int = 1,
) -> Iterator[TapTile]:
    """Cuts that waste few lanes; a block declares its shared memory, or has half of a multiprocessor's, or all."""
    budgets = _shared_budgets(gpu)
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


def _shared_budgets(gpu: Gpu) -> list[int]:
    """Bytes that a block may take: what it can declare, half of a multiprocessor's, or all."""
    most = gpu.block_shared_bytes
    return sorted({STATIC_SHARED_BYTES, max(STATIC_SHARED_BYTES, most // 2 - 1024), most})


def _tap_channels(t: TapTile, density: float, budget: int) -> int:
    """Input channels of which a block has the window and the taps: all in one stage, or as many as two stages hold."""
    inputs = t.geometry.group_inputs
    channel = 4 * t.plane + t.per_block * math.prod(t.geometry.kernel) * density * t.step_words * _TAP_BYTES
    fixed = 4 * t.plane + 12 * t.lists
    if inputs * channel + fixed <= _TAP_SHARE * budget:
        return inputs
    return max(1, min(inputs, int((_TAP_SHARE * budget / 2 - fixed) / channel)))


def _candidate(format_: str, name: str, seconds: float, gpu: Gpu, build: Callable[[], Plan]) -> Candidate:
    def placed() -> Plan:
        return overlapping(build(), seconds, gpu)

    return Candidate(format_, name, seconds * gpu.gigahertz * 1e9, placed)


def overlapping(plan: Plan, seconds: float, gpu: Gpu) -> Plan:
    """The plan, whose kernels begin before the ones before them have ended where that gains something.

    Blocks that are placed while others still run are not spread evenly: a multiprocessor that is free gets as many as
    fit. Unless one alone fits, or more wait than fit, or the kernel is short, that costs more than the gap between two
    launches.

    Args:
        plan: of a layer.
        seconds: that it takes, predicted or measured.
        gpu: what it runs on.
    """

    def placed(step: Step) -> Step:
        launch = step.kernel.launch
        assert launch is not None
        fit = blocks_at_once(gpu, launch.shared_bytes, math.prod(launch.block))
        overlaps = seconds <= _SHORT_SECONDS or fit == 1 or math.prod(launch.grid) > gpu.multiprocessors * fit
        return replace(step, kernel=replace(step.kernel, launch=replace(launch, overlaps=overlaps)))

    return replace(plan, steps=tuple(map(placed, plan.steps)))


def _sparse(weight: NDArray[np.float32], taps: int, t: TapTile, epilogue: Epilogue, gpu: Gpu) -> Candidate:
    seconds = taps_seconds(t, steps_of(t, taps), gpu)
    name = f"{_format_of(t)} {t.rows}x{t.columns} pixels, {t.warps}x{t.outputs} channels of {t.channels}"
    name += f", {t.parts} parts" * (t.parts > 1)
    return _candidate(_format_of(t), name, seconds, gpu, lambda: _tap_plan(weight, t, epilogue))


def _format_of(t: TapTile) -> str:
    return f"{t.height}x1" if t.height > 1 else "csr"


def _tap_plan(weight: NDArray[np.float32], t: TapTile, epilogue: Epilogue) -> Plan:
    t = fitted(weight, t)
    constants, stored = pack_taps(weight, t)
    pixels = t.geometry.batch * math.prod(t.geometry.out_size)
    kernel = taps_kernel("gpu_blocks" if t.height > 1 else "gpu_taps", t, epilogue)
    return _plan(kernel, constants, epilogue, _format_of(t), stored, 2 * stored * pixels)


def _mma_blocks(
    weight: NDArray[np.float32], places: int, t: MmaBlocksTile, blocks: int, epilogue: Epilogue, gpu: Gpu
) -> Candidate:
    format_ = f"{min(blocks, t.height)}x1"
    name = f"{format_} {t.precision} {t.rows}x{t.columns} pixels, {t.warps}x{t.outputs} rows of {t.height}"
    name += f", {t.channels} channels" + f", {t.parts} parts" * (t.parts > 1)
    seconds = mma_blocks_seconds(t, places, gpu)
    return _candidate(format_, name, seconds, gpu, lambda: _mma_blocks_plan(weight, t, format_, epilogue))


def _mma_blocks_plan(weight: NDArray[np.float32], t: MmaBlocksTile, format_: str, epilogue: Epilogue) -> Plan:
    t = fitted_blocks(weight, t)
    constants, stored = pack_mma_blocks(weight, t)
    pixels = t.geometry.batch * math.prod(t.geometry.out_size)
    kernel = mma_blocks_kernel("gpu_mma_blocks", t, epilogue)
    return _plan(kernel, constants, epilogue, format_, stored, 2 * stored * pixels)


def _dense(weight: NDArray[np.float32], t: GemmTile, epilogue: Epilogue, gpu: Gpu) -> Candidate:
    name = f"dense {t.outputs}x{t.pixels}, {t.each_outputs}x{t.each_pixels} of a thread, {t.parts} x {t.depth} deep"

    def plan() -> Plan:
        packed = pack_gemm(weight, t)
        return _product(weight.size, "dense", t, lambda wanted: gemm_kernel("gpu_gemm", t, wanted), packed, epilogue)

    return _candidate("dense", name + _in_parts(t), product_seconds(t, gpu), gpu, plan)


def _mma(weight: NDArray[np.float32], t: MmaTile, epilogue: Epilogue, gpu: Gpu) -> Candidate:
    stored = weight.size // (2 if t.sparse else 1)
    format_, kernel = ("2:4", "gpu_mma_sparse") if t.sparse else ("dense", "gpu_mma")
    name = f"{format_} {t.precision} {t.outputs}x{t.pixels}, {t.warp_outputs}x{t.warp_pixels} of a warp, {t.depth} deep"

    def plan() -> Plan:
        return _product(stored, format_, t, lambda wanted: mma_kernel(kernel, t, wanted), pack_mma(weight, t), epilogue)

    return _candidate(format_, name + _in_parts(t), product_seconds(t, gpu), gpu, plan)


def _wgmma(weight: NDArray[np.float32], t: WgmmaTile, epilogue: Epilogue, gpu: Gpu) -> Candidate:
    def plan() -> Plan:
        inputs = Step(inputs_kernel("gpu_wgmma_inputs", t), (Input(0), Scratch(0)))
        kernel = wgmma_kernel("gpu_wgmma", t, epilogue)
        product = _plan(kernel, [pack_wgmma(weight, t)], epilogue, "dense", weight.size, 0).steps[0]
        product = replace(product, args=(Scratch(0), *product.args[1:]))
        flops = 2 * weight.size * t.all_pixels
        return Plan((inputs, product), (4 * t.input_words,), "dense", "", weight.size, flops)

    cut = f"dense {t.precision} {t.outputs}x{t.pixels} by wgmma, clusters of {t.along_outputs}x{t.along_pixels}"
    return _candidate("dense", cut, wgmma_seconds(t, gpu), gpu, plan)


def _in_parts(t: ProductTile) -> str:
    return f", sums in {t.splits} parts" if t.splits > 1 else ""


def _product(
    stored: int,
    format_: str,
    t: ProductTile,
    make: Callable[[Epilogue], Kernel],
    packed: Constant,
    epilogue: Epilogue,
) -> Plan:
    """The plan of a matrix product, in one step or with one that adds the parts of sums up."""
    flops = 2 * stored * t.all_pixels
    if t.splits == 1:
        return _plan(make(epilogue), [packed], epilogue, format_, stored, flops)
    parts = Step(make(Epilogue()), (Input(0), packed, Scratch(0)))
    sums = Step(sum_kernel("gpu_gemm_sum", t, epilogue), (Scratch(0), *_further(epilogue), Output(0)))
    return Plan((parts, sums), (4 * t.splits * t.results,), format_, "", stored, flops)


def _matvec_tiles(weight: NDArray[np.float32], rows: int, sparse: bool, gpu: Gpu) -> Iterator[MatvecTile]:
    """Cuts for which a block has enough registers and shared memory; more of it, where that is filled less often."""
    k, n = weight.shape
    for cut in _MATVEC_CUTS:
        tiles = [MatvecTile(rows, k, n, sparse, gpu.precision, *cut, budget) for budget in _shared_budgets(gpu)]
        fitting = [tile for tile in tiles if tile.fits]
        yield from {tile.chunks: tile for tile in reversed(fitting)}.values()


def _matvec(weight: NDArray[np.float32], t: MatvecTile, epilogue: Epilogue, gpu: Gpu) -> Candidate:
    stored = int(np.count_nonzero(weight)) if t.sparse else weight.size
    format_ = "csr" if t.sparse else "dense"

    def plan() -> Plan:
        constants, filled = pack_matvec(weight, t)
        kernel = matvec_kernel(f"gpu_matvec_{format_}", t, epilogue)
        return _plan(kernel, constants, epilogue, format_, filled, 2 * filled * t.rows)

    name = f"{format_} matvec{f', {t.precision}' * (t.in_word == 2)}, {t.across}x{t.outputs} outputs of a block"
    name += f", {t.parts} warps each" * (t.parts > 1) + f", {t.depth} loads"
    name += f", inputs in {t.chunks} parts" * (t.chunks > 1)
    return _candidate(format_, name, matvec_seconds(t, stored, gpu), gpu, plan)


def _depthwise(weight: NDArray[np.float32], g: ConvGeometry, rows: int, epilogue: Epilogue, gpu: Gpu) -> Candidate:
    moved = 4 * (math.prod(g.in_shape) + math.prod(g.out_shape))
    seconds = _DEPTHWISE_SECONDS + moved / (gpu.gigabytes_a_second * 1e9)

    def plan() -> Plan:
        kernel = depthwise_kernel("gpu_depthwise", g, rows, epilogue)
        flops = 2 * weight.size * g.batch * math.prod(g.out_size)
        return _plan(kernel, [Constant(weight)], epilogue, "dense", weight.size, flops)

    return _candidate("dense", "dense depthwise", seconds, gpu, plan)


def _plan(kernel: Kernel, constants: list[Constant], epilogue: Epilogue, format_: str, stored: int, flops: int) -> Plan:
    residual, bias = _further(replace(epilogue, bias=None)), _further(replace(epilogue, residual=False))
    step = Step(kernel, (Input(0), *residual, *constants, *bias, Output(0)))
    return Plan((step,), (), format_, "", stored, flops)


def _further(epilogue: Epilogue) -> tuple[Operand, ...]:
    """The residual and the bias, where there are any."""
    residual = (Input(1),) if epilogue.residual else ()
    return (*residual, *((Constant(epilogue.bias),) if epilogue.bias is not None else ()))
