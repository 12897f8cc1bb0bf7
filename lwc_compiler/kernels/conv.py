"""Plans for convolutions and transposed convolutions."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from lwc_compiler.kernels.channel_plan import channel_candidates
from lwc_compiler.kernels.choice import Candidate, Pick, conv_task, predicted
from lwc_compiler.kernels.depthwise_plan import depthwise_candidates
from lwc_compiler.kernels.gpu import plan as gpu
from lwc_compiler.kernels.interleave import interleave_kernel
from lwc_compiler.kernels.kernel import Input, Output, Scratch, Step
from lwc_compiler.kernels.layer import ConvGeometry, Epilogue
from lwc_compiler.kernels.matmul import plan_matmul
from lwc_compiler.kernels.pair_plan import pair_candidates
from lwc_compiler.kernels.subsample import subsample_kernel
from lwc_compiler.kernels.tap_plan import tap_candidates
from lwc_compiler.kernels.winograd_plan import phased_candidates, winograd_candidates

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from lwc_compiler.kernels.kernel import Operand, Plan
    from lwc_compiler.targets.target import Target


_SUBSAMPLE = 0.7  # cycles of a value that is picked


def plan_conv(
    weight: NDArray[np.float32],
    geometry: ConvGeometry,
    epilogue: Epilogue,
    target: Target,
    pick: Pick = predicted,
) -> Plan:
    """Plans a convolution (ONNX `Conv`).

    Input 0 is x (N, C, *spatial), input 1 the residual if there is one, output 0 is (N, O, *out); all float32, dense,
    row-major.

    Args:
        weight: float32 (O, C / groups, *kernel); its zeros are what sparse formats leave out.
        geometry: not transposed.
        epilogue: bias (O,), residual, activation.
        target: what the code is for.
        pick: chooses among the ways to compute it.
    """
    residual = Input(1) if epilogue.residual else None
    pixels = {*geometry.in_size, *geometry.out_size}
    if geometry.groups == geometry.images == 1 and pixels == {1}:
        # One pixel, one kernel position that is not over the padding: a matrix product.
        position = [pad // d for pad, d in zip(geometry.pads, geometry.dilations, strict=False)]
        tap = np.ravel_multi_index(position, geometry.kernel)
        taps = weight.reshape(geometry.out_channels, geometry.in_channels, -1)
        if taps.shape[2] > 1:  # scales are those of all its weights
            target = replace(target, weight_type="float32")
        return plan_matmul(taps[:, :, tap].T, geometry.batch, epilogue, target, pick)
    if target.gpu is not None:
        return gpu.plan_conv(weight, geometry, epilogue, target, pick)
    task = conv_task(weight, geometry, epilogue, lambda drawn, pick: plan_conv(drawn, geometry, epilogue, target, pick))
    candidates = tap_candidates(weight, geometry, epilogue, target, Input(0), residual, Output(0))
    if geometry.images == 1:
        candidates += depthwise_candidates(weight, geometry, epilogue, target)
    if target.vector_bits == 32:  # the others are ways to fill vectors, and take memory
        return pick(task, candidates)
    candidates += pair_candidates(weight, geometry, epilogue, target, Input(0), residual, Output(0))
    candidates += _subsampled(weight, geometry, epilogue, target, residual)
    if geometry.images == 1:
        candidates += channel_candidates(weight, geometry, epilogue, target)
        candidates += winograd_candidates(weight, geometry, epilogue, target)
        if target.core is not None:
            candidates += phased_candidates(weight, geometry, epilogue, target)
    return pick(task, candidates)


def _subsampled(
    weight: NDArray[np.float32], geometry: ConvGeometry, epilogue: Epilogue, target: Target, residual: Operand | None
) -> list[Candidate]:
    """A pointwise convolution with a stride as one without, of the pixels that it reads; nothing for any other."""
    g = geometry
    if set(g.kernel) != {1} or len(g.kernel) != 2 or max(g.strides) == 1 or any(g.pads) or g.images > 1:
        return []
    plain = replace(g, in_size=g.out_size, strides=(1, 1))
    (height, width), (rows, columns) = g.in_size, g.out_size
    kernel = subsample_kernel(g.batch * g.in_channels, (height, width), (g.strides[0], g.strides[1]), (rows, columns))
    step = Step(kernel, (Input(0), Scratch(0)))

    def change(plan: Plan) -> Plan:
        return replace(plan, steps=(step, *plan.steps), scratch=(4 * math.prod(plain.in_shape),))

    found = tap_candidates(weight, plain, epilogue, target, Scratch(0), residual, Output(0))
    found += pair_candidates(weight, plain, epilogue, target, Scratch(0), residual, Output(0))
    cycles = _SUBSAMPLE * math.prod(plain.in_shape)
    return [replace(c.then(change, cycles), name=f"{c.name} subsampled") for c in found]


def plan_conv_transpose(
    weight: NDArray[np.float32],
    geometry: ConvGeometry,
    epilogue: Epilogue,
    target: Target,
    pick: Pick = predicted,
) -> Plan:
    """Plans a transposed convolution (ONNX `ConvTranspose`).

    Outputs whose positions differ by a multiple of the stride see the same kernel positions: every such phase of the
    output is a convolution with stride 1. The phases are computed as channels of one convolution and then interleaved.

    Args:
        weight: float32 (C, O / groups, *kernel).
        geometry: `transposed`, with `output_padding`.
        epilogue: bias (O,), residual, activation.
        target: what the code is for.
        pick: chooses among the ways to compute it.
    """
    target = replace(target, weight_type="float32")  # a channel's phases would have scales of their own
    n, groups = len(geometry.in_size), geometry.groups
    strides, out_size = geometry.strides, geometry.out_size
    # out + pad = stride * q + phase, q = in + j, kernel position k * dilation = phase + stride * j
    reach = [(k - 1) * d // s for k, d, s in zip(geometry.kernel, geometry.dilations, strides, strict=True)]
    begin = [geometry.pads[i] // strides[i] for i in range(n)]
    count = [(out_size[i] - 1 + geometry.pads[i]) // strides[i] + 1 - begin[i] for i in range(n)]
    kernel = tuple(r + 1 for r in reach)
    channels, per_group = geometry.in_channels // groups, geometry.out_channels // groups
    phases = np.zeros((groups, per_group, *strides, channels, *kernel), np.float32)
    grouped = weight.reshape(groups, channels, per_group, *geometry.kernel).swapaxes(1, 2)
    for position in itertools.product(*(range(k) for k in geometry.kernel)):
        moved = [k * d for k, d in zip(position, geometry.dilations, strict=True)]
        phase = tuple(m % s for m, s in zip(moved, strides, strict=True))
        tap = tuple(r - m // s for r, m, s in zip(reach, moved, strides, strict=True))
        to: tuple[slice | int, ...] = (slice(None), slice(None), *phase, slice(None), *tap)
        where: tuple[slice | int, ...] = (slice(None), slice(None), slice(None), *position)
        phases[to] = grouped[where]

    def again(drawn: NDArray[np.float32], pick: Pick) -> Plan:
        channels_first = drawn.reshape(grouped.shape).swapaxes(1, 2).reshape(weight.shape)
        return plan_conv_transpose(channels_first, geometry, epilogue, target, pick)

    task = conv_task(grouped.reshape(geometry.out_channels, -1), geometry, epilogue, again)
    split = int(np.prod(strides))
    inner = ConvGeometry(
        geometry.batch,
        geometry.in_channels,
        geometry.in_size,
        geometry.out_channels * split,
        kernel,
        (1,) * n,
        (
            *(r - b for r, b in zip(reach, begin, strict=True)),
            *(c + b - size for c, b, size in zip(count, begin, geometry.in_size, strict=True)),
        ),
        (1,) * n,
        groups,
    )
    whole = split == 1
    bias = None if epilogue.bias is None else np.repeat(epilogue.bias, split)
    first = replace(epilogue, bias=bias) if whole else Epilogue(bias)
    taps = phases.reshape(inner.out_channels, channels, *kernel)
    residual = Input(1) if first.residual else None
    candidates = tap_candidates(taps, inner, first, target, Input(0), residual, Output(0) if whole else Scratch(0))
    if whole:
        return pick(task, candidates)
    crop = tuple(geometry.pads[i] % strides[i] for i in range(n))
    step = interleave_kernel(geometry.batch * geometry.out_channels, tuple(count), strides, crop, out_size, epilogue)
    args = (Scratch(0), *((Input(1),) if epilogue.residual else ()), Output(0))

    def interleaved(plan: Plan) -> Plan:
        return replace(plan, steps=(*plan.steps, Step(step, args)), scratch=(4 * int(np.prod(inner.out_shape)),))

    return pick(task, [candidate.then(interleaved) for candidate in candidates])
