"""Ways to compute a layer on a GPU: a kernel in a cut, with the time that a model of it predicts, and its plan.

The models are in the `*_cost.py`, with constants that are fitted to kernels timed on a GPU. For another one they are
scaled by the numbers of its data sheet.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from lwc_compiler.kernels.choice import Candidate
from lwc_compiler.kernels.gpu.builder import blocks_at_once
from lwc_compiler.kernels.gpu.depthwise import depthwise_kernel
from lwc_compiler.kernels.gpu.gemm import GemmTile, gemm_kernel, pack_gemm
from lwc_compiler.kernels.gpu.matvec import MatvecTile, matvec_kernel, pack_matvec
from lwc_compiler.kernels.gpu.matvec_cost import matvec_seconds
from lwc_compiler.kernels.gpu.mma import MmaTile, mma_kernel, pack_mma
from lwc_compiler.kernels.gpu.mma_blocks import mma_blocks_kernel
from lwc_compiler.kernels.gpu.mma_blocks_cost import mma_blocks_seconds
from lwc_compiler.kernels.gpu.mma_blocks_layout import MmaBlocksTile, pack_mma_blocks
from lwc_compiler.kernels.gpu.mma_blocks_layout import fitted as fitted_blocks
from lwc_compiler.kernels.gpu.product import ProductTile, sum_kernel
from lwc_compiler.kernels.gpu.product_cost import product_seconds
from lwc_compiler.kernels.gpu.taps import taps_kernel
from lwc_compiler.kernels.gpu.taps_cost import steps_of, taps_seconds
from lwc_compiler.kernels.gpu.taps_layout import TapTile, fitted, pack_taps
from lwc_compiler.kernels.gpu.wgmma import wgmma_kernel
from lwc_compiler.kernels.gpu.wgmma_cost import wgmma_seconds
from lwc_compiler.kernels.gpu.wgmma_inputs import inputs_kernel
from lwc_compiler.kernels.gpu.wgmma_layout import WgmmaTile, pack_wgmma
from lwc_compiler.kernels.kernel import (
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
    from collections.abc import Callable

    from numpy.typing import NDArray

    from lwc_compiler.targets.target import Gpu

_SHORT_SECONDS = 3e-6
_DEPTHWISE_SECONDS = 1.5e-6  # of every kernel; only one is offered, and nothing depends on its time


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


def _candidate(format_: str, name: str, seconds: float, gpu: Gpu, build: Callable[[], Plan]) -> Candidate:
    def placed() -> Plan:
        return overlapping(build(), seconds, gpu)

    return Candidate(format_, name, seconds * gpu.gigahertz * 1e9, placed)


def tap_candidate(weight: NDArray[np.float32], taps: int, t: TapTile, epilogue: Epilogue, gpu: Gpu) -> Candidate:
    seconds = taps_seconds(t, steps_of(t, taps), gpu)
    name = f"{_format_of(t)} {t.rows}x{t.columns} pixels, {t.warps}x{t.outputs} channels of {t.channels}"
    name += f", {t.parts} parts" * (t.parts > 1)
    return _candidate(_format_of(t), name, seconds, gpu, lambda: tap_plan(weight, t, epilogue))


def _format_of(t: TapTile) -> str:
    return f"{t.height}x1" if t.height > 1 else "csr"


def tap_plan(weight: NDArray[np.float32], t: TapTile, epilogue: Epilogue) -> Plan:
    t = fitted(weight, t)
    constants, stored = pack_taps(weight, t)
    pixels = t.geometry.batch * math.prod(t.geometry.out_size)
    kernel = taps_kernel("gpu_blocks" if t.height > 1 else "gpu_taps", t, epilogue)
    return _plan(kernel, constants, epilogue, _format_of(t), stored, 2 * stored * pixels)


def mma_blocks_candidate(
    weight: NDArray[np.float32], places: int, t: MmaBlocksTile, blocks: int, epilogue: Epilogue, gpu: Gpu
) -> Candidate:
    format_ = f"{min(blocks, t.height)}x1"
    name = f"{format_} {t.precision} {t.rows}x{t.columns} pixels, {t.warps}x{t.outputs} rows of {t.height}"
    name += f", {t.channels} channels" + f", {t.parts} parts" * (t.parts > 1)
    seconds = mma_blocks_seconds(t, places, gpu)
    return _candidate(format_, name, seconds, gpu, lambda: mma_blocks_plan(weight, t, format_, epilogue))


def mma_blocks_plan(weight: NDArray[np.float32], t: MmaBlocksTile, format_: str, epilogue: Epilogue) -> Plan:
    t = fitted_blocks(weight, t)
    constants, stored = pack_mma_blocks(weight, t)
    pixels = t.geometry.batch * math.prod(t.geometry.out_size)
    kernel = mma_blocks_kernel("gpu_mma_blocks", t, epilogue)
    return _plan(kernel, constants, epilogue, format_, stored, 2 * stored * pixels)


def gemm_candidate(weight: NDArray[np.float32], t: GemmTile, epilogue: Epilogue, gpu: Gpu) -> Candidate:
    name = f"dense {t.outputs}x{t.pixels}, {t.each_outputs}x{t.each_pixels} of a thread, {t.parts} x {t.depth} deep"

    def plan() -> Plan:
        packed = pack_gemm(weight, t)
        return _product(weight.size, "dense", t, lambda wanted: gemm_kernel("gpu_gemm", t, wanted), packed, epilogue)

    return _candidate("dense", name + _in_parts(t), product_seconds(t, gpu), gpu, plan)


def mma_candidate(weight: NDArray[np.float32], t: MmaTile, epilogue: Epilogue, gpu: Gpu) -> Candidate:
    """1:2 in tf32 has not run on a GPU yet."""
    stored = weight.size // (2 if t.sparse else 1)
    format_, kernel = (f"{t.in_word}:{2 * t.in_word}", "gpu_mma_sparse") if t.sparse else ("dense", "gpu_mma")
    name = f"{format_} {t.precision} {t.outputs}x{t.pixels}, {t.warp_outputs}x{t.warp_pixels} of a warp, {t.depth} deep"

    def plan() -> Plan:
        return _product(stored, format_, t, lambda wanted: mma_kernel(kernel, t, wanted), pack_mma(weight, t), epilogue)

    candidate = _candidate(format_, name + _in_parts(t), product_seconds(t, gpu), gpu, plan)
    return replace(candidate, unproven=t.sparse and t.precision == "tf32")


def wgmma_candidate(weight: NDArray[np.float32], t: WgmmaTile, epilogue: Epilogue, gpu: Gpu) -> Candidate:
    """2:4 has not been right on a GPU yet."""
    stored = weight.size // (2 if t.sparse else 1)
    format_, name = ("2:4", "gpu_wgmma_sparse") if t.sparse else ("dense", "gpu_wgmma")

    def plan() -> Plan:
        packed = pack_wgmma(weight, t)
        whole = _product(stored, format_, t, lambda wanted: wgmma_kernel(name, t, wanted), packed, epilogue)
        ordered = Scratch(len(whole.scratch))
        inputs = Step(inputs_kernel("gpu_wgmma_inputs", t), (Input(0), ordered))
        product = replace(whole.steps[0], args=(ordered, *whole.steps[0].args[1:]))
        return replace(whole, steps=(inputs, product, *whole.steps[1:]), scratch=(*whole.scratch, 4 * t.input_words))

    cut = f"{format_} {t.precision} {t.outputs}x{t.pixels} by wgmma, clusters of {t.along_outputs}x{t.along_pixels}"
    cut += ", lines shifted" * t.shifts
    return replace(_candidate(format_, cut + _in_parts(t), wgmma_seconds(t, gpu), gpu, plan), unproven=t.sparse)


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


def matvec_candidate(weight: NDArray[np.float32], t: MatvecTile, epilogue: Epilogue, gpu: Gpu) -> Candidate:
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


def depthwise_candidate(
    weight: NDArray[np.float32], g: ConvGeometry, rows: int, epilogue: Epilogue, gpu: Gpu
) -> Candidate:
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
