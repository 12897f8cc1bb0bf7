"""Plans a dense convolution with output channels in the vectors, where that is predicted to be faster than taps."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from lwc_compiler.kernels.channels import ChannelLayout, channel_kernel, pack_channels
from lwc_compiler.kernels.choice import Candidate, uneven
from lwc_compiler.kernels.cost import issued, pace
from lwc_compiler.kernels.kernel import Constant, Input, Output, Plan, Step
from lwc_compiler.kernels.tap_plan import canonical

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from lwc_compiler.kernels.kernel import Operand
    from lwc_compiler.kernels.layer import ConvGeometry, Epilogue
    from lwc_compiler.kernels.tap_layout import Problem
    from lwc_compiler.targets.target import Target

_THREADS = 4  # that a layer's tiles should suffice for at least
_RANKED = 4  # layouts that are worth a measurement
_LIST = 4  # instructions of a tap for its offset, and for the loop
_CYCLES = 0.5  # of a vector multiply-add
# In vector multiply-adds, as in `winograd_plan`: a multiply-add with its loads, a byte of weights from beyond the
# level-2 cache, a vector of pixels copied, a vector of sums started, transposed and stored.
_MULTIPLY, _WEIGHT_BYTE, _COPY, _STORE = 1.15, 0.08, 8.0, 16.0


def channel_candidates(
    weight: NDArray[np.float32], geometry: ConvGeometry, epilogue: Epilogue, target: Target
) -> list[Candidate]:
    """The best ways to compute a convolution with channels in the vectors; none where the kernel cannot.

    Args:
        weight: float32 (O, C / groups, *kernel).
        geometry: not transposed.
        epilogue: bias (O,), residual, activation.
        target: what the code is for.
    """
    problem = canonical(geometry)
    taps = np.ascontiguousarray(weight, np.float32).reshape(problem.groups, problem.out_channels, -1)

    def candidate(cycles: float, layout: ChannelLayout) -> Candidate:
        cut = (layout.vectors, layout.pixels, layout.rows, layout.columns, layout.chunk)
        name = f"channels {'x'.join(map(str, cut))}"
        slower = uneven(layout.tiles, target.threads)
        return Candidate("channels", name, cycles, lambda: plan_channels(taps, epilogue, layout), slower)

    every = [candidate(cycles(layout, target), layout) for layout in layouts(problem, target)]
    return sorted(every, key=lambda c: c.shared)[:_RANKED]


def plan_channels(weight: NDArray[np.float32], epilogue: Epilogue, layout: ChannelLayout) -> Plan:
    """A plan of one step. Input 0 is x, input 1 the residual if there is one, output 0 the result.

    Args:
        weight: (groups, O / groups, taps).
        epilogue: bias (O,), residual, activation.
        layout: of the kernel.
    """
    operands: list[Operand] = [Input(0), *pack_channels(weight, layout)]
    if epilogue.residual:
        operands.append(Input(1))
    if epilogue.bias is not None:
        operands.append(Constant(epilogue.bias))
    step = Step(channel_kernel(layout, epilogue), (*operands, Output(0)))
    p = layout.problem
    return Plan((step,), (), "dense", "", weight.size, 2 * weight.size * p.batch * p.height.out * p.width.out)


def layouts(problem: Problem, target: Target) -> Iterator[ChannelLayout]:
    """Every sensible layout; none where the kernel cannot compute the convolution."""
    p, lanes = problem, target.vector_bits // 32
    flat = p.depth.size == p.depth.out == p.depth.kernel == 1 and not p.depth.pad
    if not flat or p.out_channels < lanes or p.height.size * p.height.kernel == 1:
        return  # a plane that is one row fills vectors with its pixels
    vectors = 2 if p.out_channels >= 2 * lanes else 1
    most = (target.vector_registers - vectors - 2) // vectors
    pad = p.width.pad or (p.width.out - 1) * p.width.stride + (p.width.kernel - 1) * p.width.dilation >= p.width.size
    groups = sorted({-(-p.width.out // count) for count in range(1, p.width.out + 1)})
    for pixels in [count for count in groups if count <= most][-3:]:
        parts = -(-p.width.out // pixels)
        for columns in {p.width.out} if pad else {min(p.width.out, pixels * -(-parts // n)) for n in (1, 2, 4, 8)}:
            for rows in sorted({-(-p.height.out // n) for n in range(1, p.height.out + 1)}):
                layout = ChannelLayout(p, lanes, vectors, pixels, rows, columns, 1)
                if rows > 1 and 8 * layout.copied > target.l2_bytes:
                    continue
                tiles = int(np.prod(layout.shape[:4]))
                chunks = min(layout.panels, -(-max(_THREADS, target.threads) // tiles))
                yield ChannelLayout(p, lanes, vectors, pixels, rows, columns, -(-layout.panels // chunks))


def cycles(layout: ChannelLayout, target: Target) -> float:
    """Predicted cycles of the whole layer on one core."""
    lay, p = layout, layout.problem
    at = pace(target)
    tiles = int(np.prod(lay.shape[:4]))
    groups = tiles * lay.panels * lay.rows * -(-lay.columns // lay.pixels)
    spent = groups * lay.pixels * lay.vectors * (_MULTIPLY * at.multiply * lay.taps + _STORE * at.memory)
    spent += tiles * lay.shape[4] * p.in_channels * lay.lines * _COPY * at.memory * -(-lay.pitch // lay.lanes)
    weight_bytes = 4 * lay.taps * lay.panels * lay.panel
    if weight_bytes > target.l2_bytes // 2:
        spent += _WEIGHT_BYTE * at.far * weight_bytes * tiles
    missed = min(1.0, max(0.0, 8 * lay.copied / target.l2_bytes - 1))
    spent += _WEIGHT_BYTE * at.far * missed * 4 * lay.copied * tiles * lay.panels
    tap = lay.pixels * (lay.vectors + 1) + 2 * lay.vectors + _LIST
    return _CYCLES * spent + issued(target, groups * lay.taps * tap)
