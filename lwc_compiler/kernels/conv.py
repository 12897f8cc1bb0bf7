"""Plans for convolutions and transposed convolutions."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from lwc_compiler.kernels.channel_plan import best_channels, plan_channels
from lwc_compiler.kernels.cost import choose
from lwc_compiler.kernels.interleave import interleave_kernel
from lwc_compiler.kernels.kernel import Input, Output, Scratch, Step
from lwc_compiler.kernels.layer import ConvGeometry, Epilogue
from lwc_compiler.kernels.matmul import plan_matmul
from lwc_compiler.kernels.tap_plan import canonical, plan_choice, plan_taps
from lwc_compiler.kernels.winograd_plan import best_winograd, plan_winograd

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from lwc_compiler.kernels.kernel import Plan
    from lwc_compiler.targets.target import Target


def plan_conv(weight: NDArray[np.float32], geometry: ConvGeometry, epilogue: Epilogue, target: Target) -> Plan:
    """Plans a convolution (ONNX `Conv`).

    Input 0 is x (N, C, *spatial), input 1 the residual if there is one, output 0 is (N, O, *out); all float32, dense,
    row-major.

    Args:
        weight: float32 (O, C / groups, *kernel); its zeros are what sparse formats leave out.
        geometry: not transposed.
        epilogue: bias (O,), residual, activation.
        target: what the code is for.
    """
    residual = Input(1) if epilogue.residual else None
    if geometry.groups == 1 and all(size == 1 for size in (*geometry.in_size, *geometry.out_size)):
        # One pixel, one kernel position that is not over the padding: a matrix product.
        position = [pad // d for pad, d in zip(geometry.pads, geometry.dilations, strict=False)]
        tap = np.ravel_multi_index(position, geometry.kernel)
        matrix = weight.reshape(geometry.out_channels, geometry.in_channels, -1)[:, :, tap]
        return plan_matmul(matrix.T, geometry.batch, epilogue, target)
    problem = canonical(geometry)
    taps = np.ascontiguousarray(weight, np.float32).reshape(problem.groups, problem.out_channels, -1)
    choice = choose(problem, taps, target)
    winograd, channels = best_winograd(geometry, target), best_channels(problem, target)
    if winograd and winograd.cycles < min(choice.cycles, channels.cycles if channels else np.inf):
        why = f"{choice.why}; Winograd {choice.cycles / winograd.cycles:.1f}x faster still"
        return plan_winograd(weight, epilogue, winograd.layout, why)
    if channels and channels.cycles < choice.cycles:
        why = f"{choice.why}; dense with channels in vectors {choice.cycles / channels.cycles:.1f}x faster still"
        return plan_channels(taps, epilogue, channels.layout, why)
    return plan_choice(taps, geometry, epilogue, choice, Input(0), residual, Output(0))


def plan_conv_transpose(
    weight: NDArray[np.float32], geometry: ConvGeometry, epilogue: Epilogue, target: Target
) -> Plan:
    """Plans a transposed convolution (ONNX `ConvTranspose`).

    Outputs whose positions differ by a multiple of the stride see the same kernel positions: every such phase of the
    output is a convolution with stride 1. The phases are computed as channels of one convolution and then interleaved.

    Args:
        weight: float32 (C, O / groups, *kernel).
        geometry: `transposed`, with `output_padding`.
        epilogue: bias (O,), residual, activation.
        target: what the code is for.
    """
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
    plan = plan_taps(taps, inner, first, target, Input(0), residual, Output(0) if whole else Scratch(0))
    if whole:
        return plan
    crop = tuple(geometry.pads[i] % strides[i] for i in range(n))
    step = interleave_kernel(geometry.batch * geometry.out_channels, tuple(count), strides, crop, out_size, epilogue)
    args = (Scratch(0), *((Input(1),) if epilogue.residual else ()), Output(0))
    return replace(plan, steps=(*plan.steps, Step(step, args)), scratch=(4 * int(np.prod(inner.out_shape)),))
