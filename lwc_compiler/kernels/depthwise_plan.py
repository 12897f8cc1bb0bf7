"""Plans a depthwise convolution that reads its input where it lies."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from lwc_compiler.kernels.choice import Candidate
from lwc_compiler.kernels.cost import pace
from lwc_compiler.kernels.depthwise import Band, depthwise_kernel
from lwc_compiler.kernels.kernel import Constant, Input, Output, Plan, Step
from lwc_compiler.kernels.tap_plan import canonical

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from lwc_compiler.kernels.layer import ConvGeometry, Epilogue
    from lwc_compiler.kernels.tap_layout import Problem
    from lwc_compiler.targets.target import Target

_MOST_TAPS = 25  # of a kernel: each is an instruction for every vector of the band
_MOST_STRIDE = 2  # a load of pixels further apart would read too far past the end of a plane
# Cycles: of a multiply-add, of a vector of input, of a vector of output, and of that in memory beyond the level-2
# cache; of a band.
_MULTIPLY, _LOAD, _STORE, _FAR, _BAND = 0.6, 1.3, 3.5, 8.0, 20.0
_SPARE_REGISTERS = 8  # of scalar code, beside the kernel's weights and the sums


def depthwise_candidates(
    weight: NDArray[np.float32], geometry: ConvGeometry, epilogue: Epilogue, target: Target
) -> list[Candidate]:
    """The best ways to compute a depthwise convolution row by row; none for other convolutions.

    Args:
        weight: float32 (O, 1, *kernel).
        geometry: not transposed.
        epilogue: bias (O,), residual, activation.
        target: what the code is for.
    """
    problem = canonical(geometry)
    if not computes(problem):
        return []

    at = pace(target)

    def candidate(band: Band) -> Candidate:
        time = problem.batch * problem.groups * problem.out_channels * band.tiles * cycles(band, target)
        plane = problem.height.out * problem.width.out
        stored = problem.batch * problem.groups * problem.out_channels * plane
        time += stored / band.lanes * (_FAR * at.far if 4 * stored > 0.75 * target.l2_bytes else _STORE * at.memory)
        name = f"depthwise {band.rows}x{band.lanes}"
        return Candidate("depthwise", name, time, lambda: plan_band(weight, geometry, epilogue, band))

    return [candidate(band) for band in dict.fromkeys(bands(problem, target))]


def plan_band(weight: NDArray[np.float32], geometry: ConvGeometry, epilogue: Epilogue, band: Band) -> Plan:
    """One of `depthwise_candidates`. Input 0 is x, input 1 the residual if there is one, output 0 the result."""
    kernel = depthwise_kernel(
        canonical(geometry),
        band,
        bias=epilogue.bias is not None,
        residual=epilogue.residual,
        activation=epilogue.activation,
    )
    args = (
        Input(0),
        *((Input(1),) if epilogue.residual else ()),
        Constant(weight.reshape(-1)),
        *((Constant(epilogue.bias),) if epilogue.bias is not None else ()),
        Output(0),
    )
    pixels = geometry.batch * int(np.prod(geometry.out_size))
    return Plan((Step(kernel, args),), (), "dense", "", weight.size, 2 * weight.size * pixels)


def computes(problem: Problem) -> bool:
    """Whether the depthwise kernel can compute a convolution."""
    p, d = problem, problem.depth
    flat = d.size == d.out == d.kernel == 1 and not d.pad and p.images == 1
    taps = p.height.kernel * p.width.kernel
    strides = (p.height.stride, p.width.stride)
    return flat and p.in_channels == 1 and 1 < taps <= _MOST_TAPS and max(strides) <= _MOST_STRIDE


def bands(problem: Problem, target: Target) -> Iterator[Band]:
    """Every sensible band: its sums stay in registers, beside a kernel of 3 x 3."""
    height = problem.height.out
    if target.vector_bits == 32:
        # A kernel whose weights and sums do not stay in registers is slower than a list of its taps.
        most = target.vector_registers - problem.height.kernel * problem.width.kernel - _SPARE_REGISTERS
        if most >= min(height, 4):
            yield Band(problem.height, problem.width, 1, -(-height // -(-height // most)))
        return
    wide = target.vector_bits // 32
    for lanes in dict.fromkeys((wide, min(wide, 8))):
        for most in (target.vector_registers // 2, target.vector_registers // 4):
            parts = -(-height // most)
            yield Band(problem.height, problem.width, lanes, -(-height // parts))


def cycles(band: Band, target: Target) -> float:
    """Predicted cycles of a band of one plane, without what its output costs."""
    at = pace(target)
    taps = band.height.kernel * band.width.kernel
    if band.lanes == 1:
        return _BAND + len(band.starts) * (band.rows * taps + band.in_rows * band.width.kernel)
    loads = band.in_rows * band.width.kernel * band.width.stride
    return _BAND + len(band.starts) * (band.rows * taps * _MULTIPLY * at.multiply + loads * _LOAD * at.memory)
