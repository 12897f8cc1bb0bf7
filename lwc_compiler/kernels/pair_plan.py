"""Plans a sparse pointwise convolution with two output channels at a time, and predicts what it takes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from lwc_compiler.kernels.choice import Candidate, uneven
from lwc_compiler.kernels.cost import pace, tap_cycles
from lwc_compiler.kernels.kernel import Constant, Plan, Step
from lwc_compiler.kernels.pairs import PairLayout, pack_pairs, pair_kernel
from lwc_compiler.kernels.tap_plan import canonical

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from lwc_compiler.kernels.kernel import Operand
    from lwc_compiler.kernels.layer import ConvGeometry, Epilogue
    from lwc_compiler.targets.target import Target

_THREADS = 4  # that a layer's tiles should suffice for at least
_RANKED = 6  # layouts that are worth a measurement
_SPARSE = 0.7  # density up to which leaving weights out can gain
# Cycles, in the measure of `cost.py`; fitted to 18 pointwise layers of BERT and ResNet-50 on Sapphire Rapids: of a
# non-zero, of each of its vectors, of a vector of sums that waits, of one that is stored, of one that is copied, and of
# a pair.
_TAP, _VECTOR, _WAIT, _STORE, _COPY, _PAIR = 1.35, 0.75, 3.0, 4.8, 5.4, 5.4
# More, where the weights, the output or the input do not fit the level-2 cache: of a non-zero, of a vector that is
# stored, and of one that is copied.
_FAR_TAP, _FAR_STORE, _FAR_COPY = 0.4, 6.0, 1.8


def pair_candidates(
    weight: NDArray[np.float32],
    geometry: ConvGeometry,
    epilogue: Epilogue,
    target: Target,
    x: Operand,
    residual: Operand | None,
    y: Operand,
) -> list[Candidate]:
    """The best ways to compute a convolution by pairs of outputs; none where the kernel cannot, or nothing is gained.

    Args:
        weight: float32 (O, C / groups, *kernel).
        geometry: not transposed.
        epilogue: bias (O,), residual, activation.
        target: what the code is for.
        x: the input (N, C, *spatial).
        residual: (N, O, *out), if the epilogue adds one.
        y: the output (N, O, *out).
    """
    density = float((weight != 0).mean())
    matrix = weight.reshape(geometry.out_channels, -1)

    def candidate(cycles: float, layout: PairLayout) -> Candidate:
        return Candidate(
            "pairs",
            f"pairs {layout}",
            cycles,
            lambda: plan_pairs(matrix, epilogue, layout, x, residual, y),
            uneven(layout.tiles, target.threads),
        )

    if density > _SPARSE:
        return []
    every = [candidate(_cycles(layout, density, target), layout) for layout in layouts(geometry, target)]
    return sorted(every, key=lambda c: c.shared)[:_RANKED]


def plan_pairs(
    weight: NDArray[np.float32],
    epilogue: Epilogue,
    layout: PairLayout,
    x: Operand,
    residual: Operand | None,
    y: Operand,
) -> Plan:
    """One of `pair_candidates`; its weight is (outputs, channels)."""
    constants, stored = pack_pairs(weight, layout)
    args = [x, *([residual] if residual else []), *constants]
    if epilogue.bias is not None:
        args.append(Constant(epilogue.bias))
    step = Step(pair_kernel("conv_pairs", layout, epilogue), (*args, y))
    kept = int(np.count_nonzero(weight))
    return Plan((step,), (), "csr", "", stored, 2 * kept * layout.batch * layout.positions)


def layouts(geometry: ConvGeometry, target: Target) -> Iterator[PairLayout]:
    """Every sensible layout; none where the kernel cannot compute the convolution."""
    p, lanes = canonical(geometry), target.vector_bits // 32
    pointwise = all(axis.kernel == axis.out == axis.size == 1 for axis in (p.depth, p.height)) and p.width.kernel == 1
    if (
        not pointwise
        or p.width.size != p.width.out
        or p.width.stride > 1
        or p.width.pad
        or p.groups > 1
        or p.images > 1
        or p.width.out < lanes
    ):
        return
    needed = -(-p.width.out // lanes)
    for vectors in sorted({-(-needed // count) for count in range(1, needed + 1)}):
        if 2 * vectors > target.vector_registers - 4:
            continue
        tiles = p.batch * -(-needed // vectors)
        parts = {1, 2, 4, 8} if tiles < 2 * max(_THREADS, target.threads) else {1}
        for share in (0.4, 0.55, 0.7, 0.85):
            fitting = min(1 << 16, int(target.l1_bytes * share) // 4) // (vectors * lanes)
            blocks = -(-p.in_channels // max(1, fitting))
            block = -(-p.in_channels // blocks)
            for part in sorted(parts):
                chunk = min(-(-p.out_channels // part), 1 << 16)
                if blocks > 1:  # the sums wait in the level-2 cache
                    chunk = min(chunk, max(1, target.l2_bytes // 4 // (4 * vectors * lanes)))
                yield PairLayout(p.batch, p.in_channels, p.out_channels, p.width.out, lanes, vectors, block, chunk)


def _cycles(layout: PairLayout, density: float, target: Target) -> float:
    """Predicted cycles of the whole layer on one core."""
    lay, room = layout, target.l2_bytes
    kept = density * lay.channels * lay.outputs
    at = pace(target)
    plane = 4 * lay.batch * lay.positions
    tap = tap_cycles(target.core, lay.vectors) if target.core else _TAP + _VECTOR * lay.vectors
    tap += _FAR_TAP * at.far if 6 * kept > 0.5 * room else 0
    store = _STORE * at.memory + (_FAR_STORE * at.far if plane * lay.outputs > 0.75 * room else 0)
    copy = _COPY * at.memory + (_FAR_COPY * at.far if plane * lay.channels > 0.75 * room else 0)
    pairs = (
        lay.chunks
        * lay.groups
        * (_PAIR * lay.blocks + 2 * lay.vectors * (store + _WAIT * at.memory * (lay.blocks - 1)))
    )
    return lay.batch * lay.columns * (kept * tap + pairs + lay.chunks * lay.channels * lay.vectors * copy)
