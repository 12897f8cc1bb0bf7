"""Plans a dense convolution together with the max pooling after it."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from lwc_compiler.kernels import channel_plan
from lwc_compiler.kernels.channels import pack_channels
from lwc_compiler.kernels.choice import Candidate, Pick, Task, predicted, uneven
from lwc_compiler.kernels.kernel import Constant, Input, Output, Plan, Step
from lwc_compiler.kernels.pooled import PooledLayout, pooled_kernel
from lwc_compiler.kernels.tap_plan import canonical

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from lwc_compiler.kernels.kernel import Operand
    from lwc_compiler.kernels.layer import ConvGeometry, Epilogue
    from lwc_compiler.kernels.pooled import Pool
    from lwc_compiler.targets.target import Target

_RANKED = 6  # layouts that are worth a measurement
_LARGEST = 1.0  # cycles of an output that a window covers


def plan_pooled(
    weight: NDArray[np.float32],
    geometry: ConvGeometry,
    epilogue: Epilogue,
    pool: Pool,
    target: Target,
    pick: Pick = predicted,
) -> Plan | None:
    """Plans a convolution and the pooling of its result; None where the kernel cannot compute them.

    Input 0 is x (N, C, H, W), output 0 the pooling's (N, O, *out); all float32, dense, row-major.

    Args:
        weight: float32 (O, C / groups, *kernel).
        geometry: not transposed.
        epilogue: bias (O,), activation.
        pool: the pooling.
        target: what the code is for.
        pick: chooses among the ways to compute them.
    """
    problem = canonical(geometry)
    taps = np.ascontiguousarray(weight, np.float32).reshape(problem.groups, problem.out_channels, -1)

    def candidate(layout: PooledLayout) -> Candidate:
        conv = layout.conv
        name = f"pooled {conv.vectors}x{conv.pixels}x{layout.rows}x{conv.chunk}"
        slower = uneven(layout.tiles, target.threads)
        return Candidate("dense", name, _cycles(layout, target), lambda: plan_layout(taps, epilogue, layout), slower)

    every = sorted((candidate(layout) for layout in layouts(geometry, pool, target)), key=lambda c: c.shared)
    if not every or epilogue.residual:
        return None
    output = 4 * geometry.batch * geometry.out_channels * math.prod(pool.out_size)
    layer = f"pooled {geometry} {epilogue} {pool}"
    return pick(Task(layer, float((weight != 0).mean()), (4 * math.prod(geometry.in_shape),), output), every[:_RANKED])


def plan_layout(weight: NDArray[np.float32], epilogue: Epilogue, layout: PooledLayout) -> Plan:
    """A plan of one step.

    Args:
        weight: (groups, O / groups, taps).
        epilogue: bias (O,), activation.
        layout: of the kernel.
    """
    operands: list[Operand] = [Input(0), *pack_channels(weight, layout.conv)]
    if epilogue.bias is not None:
        operands.append(Constant(epilogue.bias))
    step = Step(pooled_kernel(layout, epilogue), (*operands, Output(0)))
    p = layout.conv.problem
    return Plan((step,), (), "dense", "", weight.size, 2 * weight.size * p.batch * p.height.out * p.width.out)


def layouts(geometry: ConvGeometry, pool: Pool, target: Target) -> Iterator[PooledLayout]:
    """Every sensible layout; none where the kernel cannot compute the convolution and its pooling."""
    height, problem = pool.out_size[0], canonical(geometry)
    if (problem.height.out, problem.width.out) != geometry.out_size or pool.kernel[0] < pool.strides[0]:
        return
    cuts = [cut for cut in channel_plan.layouts(problem, target) if cut.columns == problem.width.out]
    for conv in dict.fromkeys(replace(cut, rows=1, chunk=1) for cut in cuts):
        for rows in sorted({-(-height // count) for count in range(1, height + 1)}):
            for chunk in sorted({1, conv.panels}):
                layout = PooledLayout(replace(conv, rows=pool.span(rows), chunk=chunk), pool, rows)
                if 4 * layout.conv.copied <= target.l2_bytes // 2:
                    yield layout


def _cycles(layout: PooledLayout, target: Target) -> float:
    """Predicted cycles of the convolution and its pooling on one core."""
    conv = channel_plan.cycles(layout.conv, target)
    # The same for the rows that are computed: those of the tiles' bands, of which neighbours share some.
    bands = layout.shape[2]
    computed = bands * layout.pool.span(layout.rows)
    largest = math.prod(layout.pool.kernel) * math.prod(layout.pool.out_size) * layout.conv.problem.out_channels
    return conv * computed / (layout.conv.shape[2] * layout.conv.rows) + _LARGEST * largest / layout.conv.lanes
