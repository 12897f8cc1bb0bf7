"""Plans a convolution with the tap kernel."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from lwc_compiler.kernels.choice import Candidate, uneven
from lwc_compiler.kernels.cost import formats, ranked
from lwc_compiler.kernels.kernel import Constant, Plan, Step
from lwc_compiler.kernels.tap_layout import LINE, Axis, Problem, TapLayout, Tiling, pack_taps
from lwc_compiler.kernels.taps import tap_kernel, tap_operands
from lwc_compiler.kernels.weight_types import FLOAT32, WeightType, weight_type_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from lwc_compiler.kernels.kernel import Operand
    from lwc_compiler.kernels.layer import ConvGeometry, Epilogue
    from lwc_compiler.targets.target import Target

# Cycles of a cache line of output beyond the level-2 cache that cannot be written over the residual.
_APART = 5.0


def tap_candidates(
    weight: NDArray[np.float32],
    geometry: ConvGeometry,
    epilogue: Epilogue,
    target: Target,
    x: Operand,
    residual: Operand | None,
    y: Operand,
) -> list[Candidate]:
    """Plans of one step: the formats that suit the weight's zeros, in their best tilings.

    Args:
        weight: float32 (O, C / groups, *kernel).
        geometry: not transposed.
        epilogue: bias (O,), residual, activation.
        target: what the code is for.
        x: the input (N, C, *spatial).
        residual: (N, O, *out), if the epilogue adds one.
        y: the output (N, O, *out).
    """
    problem = canonical(geometry)
    stored = geometry.batch * geometry.images * geometry.out_channels * int(np.prod(geometry.out_size))
    apart = _APART * stored / LINE if epilogue.residual and 4 * stored > 0.75 * target.l2_bytes else 0.0
    weight = np.ascontiguousarray(weight, np.float32).reshape(problem.groups, problem.out_channels, -1)

    kinds = dict.fromkeys((FLOAT32, weight_type_of(target)))

    def candidate(format_name: str, density: float, tiling: Tiling, cycles: float, kind: WeightType) -> Candidate:
        def build() -> Plan:
            return plan_tiling(weight, geometry, epilogue, format_name, tiling, x, residual, y, kind)

        layout = TapLayout(problem, tiling)
        cycles += 0.0 if layout.exact else apart
        # Every tile loads its weights anew.
        loads = density * weight.shape[2] * layout.row_groups * tiling.rows * layout.tiles / layout.chunks
        cycles += kind.instructions * loads
        shared = uneven(layout.tiles, target.threads)
        return Candidate(format_name, f"{format_name} {tiling}{kind}", cycles, build, shared, kind.name)

    return [
        candidate(format_name, density, tiling, cycles, kind)
        for format_name, density in formats(problem, weight != 0).items()
        for cycles, tiling in ranked(problem, target, format_name, density)
        for kind in kinds
    ]


def plan_tiling(
    weight: NDArray[np.float32],
    geometry: ConvGeometry,
    epilogue: Epilogue,
    format_name: str,
    tiling: Tiling,
    x: Operand,
    residual: Operand | None,
    y: Operand,
    kind: WeightType = FLOAT32,
) -> Plan:
    """One of `tap_candidates`; its weight is (groups, O / groups, taps)."""
    shared = format_name == "dense"
    layout = TapLayout(canonical(geometry), tiling)
    codes, scales = kind.encode(weight.reshape(-1, weight.shape[2]))
    (ends, offsets, values), stored = pack_taps(codes.reshape(weight.shape), layout, shared=shared)
    constants = [ends, offsets, Constant(kind.stored(values.array)), *(Constant(s) for s in (scales,) if s is not None)]
    kernel = tap_kernel(
        f"conv_{format_name}",
        layout,
        shared=shared,
        bias=epilogue.bias is not None,
        residual=epilogue.residual,
        activation=epilogue.activation,
        kind=kind,
    )
    args = tap_operands(constants, epilogue.bias, x, residual, y)
    pixels = geometry.batch * geometry.images * int(np.prod(geometry.out_size))
    return Plan((Step(kernel, args),), (), format_name, "", stored, 2 * stored * pixels)


def canonical(geometry: ConvGeometry) -> Problem:
    """The same convolution over three dimensions, with as much as possible in the last one."""
    sizes = zip(geometry.in_size, geometry.out_size, strict=True)
    n = len(geometry.in_size)
    axes = [
        Axis(size, out, geometry.kernel[i], geometry.strides[i], geometry.pads[i], geometry.dilations[i])
        for i, (size, out) in enumerate(sizes)
    ]
    pointwise = all(geometry.kernel[i] == 1 and geometry.strides[i] == 1 for i in range(n))
    batch, images = geometry.batch, geometry.images
    if pointwise and not any(geometry.pads) and images > 1:
        # Every row of pixels is an image of its own.
        pixels = geometry.in_size[1] * images
        axes, batch, images = [Axis(pixels, pixels, 1, 1, 0, 1)], batch * geometry.in_size[0], 1
    elif pointwise and not any(geometry.pads):
        pixels = int(np.prod(geometry.in_size))
        axes = [Axis(pixels, pixels, 1, 1, 0, 1)]
    one = Axis(1, 1, 1, 1, 0, 1)
    while images == 1 and len(axes) > 1 and axes[-1].size == axes[-1].out == axes[-1].kernel == 1 and not axes[-1].pad:
        axes.pop()
    depth, height, width = [one] * (3 - len(axes)) + axes
    return Problem(
        batch,
        geometry.groups,
        geometry.in_channels // geometry.groups,
        geometry.out_channels // geometry.groups,
        depth,
        height,
        width,
        images,
        geometry.grid,
    )
