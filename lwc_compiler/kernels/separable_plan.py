"""Plans a separable convolution as one kernel, where that is faster than a kernel for each of its layers."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from lwc_compiler.kernels import in_order
from lwc_compiler.kernels.choice import Candidate, Pick, Redraw, Task, predicted, uneven
from lwc_compiler.kernels.conv import plan_conv
from lwc_compiler.kernels.cost import pace
from lwc_compiler.kernels.depthwise_plan import computes
from lwc_compiler.kernels.depthwise_plan import cycles as band_cycles
from lwc_compiler.kernels.kernel import Constant, Input, Output, Plan, Scratch, Share, Step
from lwc_compiler.kernels.separable import Cut, SeparableLayout, separable_kernel
from lwc_compiler.kernels.tap_layout import pack_taps
from lwc_compiler.kernels.tap_plan import canonical

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from lwc_compiler.kernels.kernel import Operand
    from lwc_compiler.kernels.layer import ConvGeometry, Epilogue
    from lwc_compiler.kernels.tap_layout import Problem, TapLayout
    from lwc_compiler.targets.target import Target

_NEARLY_DENSE = 0.9  # from this density on, blocks that share their taps are faster than single weights
_UNEVEN = 1.2  # threads may take longer by this factor than if they shared the tiles evenly
# Cycles: of a multiply-add with its load, and when it comes from the level-2 cache; of a list of taps and of a tap; of
# a vector copied, kept between blocks, stored, and stored beyond the level-2 cache.
_MULTIPLY, _MISSED, _LIST, _TAP, _COPY, _KEEP, _STORE, _FAR = 0.8, 0.5, 10.0, 1.0, 5.0, 1.5, 3.5, 8.0


@dataclass(frozen=True, eq=False)
class Part:
    """One convolution of a chain.

    Attributes:
        weight: float32 (O, C / groups, *kernel).
        geometry: not transposed.
        epilogue: bias (O,), residual, activation.
    """

    weight: NDArray[np.float32]
    geometry: ConvGeometry
    epilogue: Epilogue

    @property
    def density(self) -> float:
        """Kept / all weights."""
        return float((self.weight != 0).mean())

    @property
    def pointwise(self) -> bool:
        """Whether it is a sparse matrix that every pixel is multiplied by."""
        g = self.geometry
        plain = g.in_size == g.out_size and not any(g.pads) and g.groups == g.images == 1 and math.prod(g.in_size) > 1
        return plain and set(g.kernel) == set(g.strides) == {1} and self.density <= _NEARLY_DENSE

    @property
    def depthwise(self) -> bool:
        """Whether it computes one plane from each."""
        problem = canonical(self.geometry)
        return len(self.geometry.in_size) == 2 and computes(problem) and problem.out_channels == 1


def fits(parts: Sequence[Part]) -> bool:
    """Whether the kernel can compute convolutions of which each reads what the one before it gives."""
    if len(parts) not in (2, 3) or any(part.epilogue.residual for part in parts[:-1]):
        return False
    *expand, depthwise, project = parts
    return depthwise.depthwise and all(part.pointwise for part in (*expand, project))


def plan_separable(parts: Sequence[Part], target: Target, pick: Pick = predicted) -> Plan | None:
    """Plans [1x1 ->] depthwise -> 1x1 as one kernel; None where separate kernels are faster.

    Input 0 is x (N, C, H, W), input 1 the residual of the last layer if there is one, output 0 is (N, O, H', W'); all
    float32, dense, row-major.

    Args:
        parts: the convolutions, which `fits`.
        target: what the code is for.
        pick: chooses among the ways to compute them.
    """
    candidates = separable_candidates(parts, target)
    if not candidates:
        return None
    plans = _apart(parts, target, pick)
    name = " | ".join(plan.trials[0].name for plan in plans)
    time = sum(plan.trials[0].cycles for plan in plans)
    separate = Candidate("separate", name, time, lambda: _in_turn(plans, parts))
    plan = pick(_task(parts, target), [separate, *candidates])
    return plan if plan.shares else None


def _task(parts: Sequence[Part], target: Target) -> Task:
    output = 4 * math.prod(parts[-1].geometry.out_shape)
    inputs = (4 * math.prod(parts[0].geometry.in_shape), *((output,) if parts[-1].epilogue.residual else ()))
    layers = [f"{part.geometry} {part.epilogue}" for part in parts]
    sparse = [part for part in parts if not part.depthwise]
    kept = sum(np.count_nonzero(part.weight) for part in sparse) / sum(part.weight.size for part in sparse)

    def again(redraw: Redraw, pick: Pick) -> Plan | None:
        drawn = [redraw(part.weight.reshape(len(part.weight), -1)).reshape(part.weight.shape) for part in parts]
        changed = [replace(part, weight=weight) for part, weight in zip(parts, drawn, strict=True)]
        return plan_separable(changed, target, pick)

    densities = tuple(part.density for part in parts)
    return Task(f"separable {'; '.join(layers)}", kept, inputs, output, again, densities)


def _apart(parts: Sequence[Part], target: Target, pick: Pick) -> list[Plan]:
    """The best plans of several kernels."""
    first, *rest = parts
    plan = plan_conv(first.weight, first.geometry, first.epilogue, target, pick)
    if not rest:
        return [plan]
    together = plan_separable(rest, target, pick) if fits(rest) else None
    return [plan, *([together] if together else _apart(rest, target, pick))]


def _in_turn(plans: Sequence[Plan], parts: Sequence[Part]) -> Plan:
    """Plans that compute `parts` as one plan, with buffers for what lies between them."""
    steps: list[Step] = []
    scratch: list[int] = []
    source: Operand = Input(0)
    done = 0
    for plan in plans:
        done += max(1, len(plan.shares))
        own = len(scratch)
        scratch += plan.scratch
        target: Operand = Output(0)
        if done < len(parts):
            target = Scratch(len(scratch))
            scratch.append(4 * math.prod(parts[done - 1].geometry.out_shape))
        for step in plan.steps:
            places: dict[Operand, Operand] = {Input(0): source, Output(0): target}
            places |= {Scratch(i): Scratch(own + i) for i in range(len(plan.scratch))}
            args: list[Operand] = [places.get(arg, arg) for arg in step.args]
            steps.append(Step(step.kernel, tuple(args)))
        source = target
    return Plan(tuple(steps), tuple(scratch), "separate")


def separable_candidates(parts: Sequence[Part], target: Target) -> list[Candidate]:
    """Plans of one step, the best cuts; none where threads could not share their tiles.

    Args:
        parts: `fits` of them.
        target: what the code is for.
    """
    *expand, depthwise, project = [canonical(part.geometry) for part in parts]
    densities = [part.density for part in parts if part.pointwise]

    def candidate(layout: SeparableLayout) -> Candidate:
        time = cycles(layout, densities, target)
        return Candidate("separable", f"separable {layout.cut}", time, lambda: plan_layout(parts, layout))

    layouts = [
        SeparableLayout(expand[0] if expand else None, depthwise, project, cut) for cut in cuts(depthwise, target)
    ]
    return [candidate(lay) for lay in layouts if uneven(lay.tiles, target.threads) <= _UNEVEN]


def cuts(depthwise: Problem, target: Target) -> list[Cut]:
    """Every sensible cut; none where a row of pixels does not fit the registers."""
    lanes, sums = target.vector_bits // 32, target.vector_registers - 4
    height, width = depthwise.height.out, depthwise.width.out
    ordered = target.core is not None and target.core.in_order and target.core.by_lane
    ordered = ordered and width <= in_order.most_vectors(1) * lanes
    if ordered:
        sums = in_order.most_vectors(1)
    most = min(height, target.vector_registers // 2, sums * lanes // width)
    result: dict[Cut, None] = {}
    for count in (most, most // 2, most // 4):
        if count < 1:
            continue
        rows = -(-height // -(-height // count))
        plane = 4 * -(-rows * width // lanes) * lanes
        for kilobytes in (80, 320):
            blocks = -(-depthwise.groups * plane // (kilobytes << 10))
            result[Cut(lanes, rows, -(-depthwise.groups // blocks), sums, ordered)] = None
    return list(result)


def plan_layout(parts: Sequence[Part], layout: SeparableLayout) -> Plan:
    """One of `separable_candidates`. Input 0 is x, input 1 the residual if there is one, output 0 the result."""
    *expand, depthwise, project = parts
    constants, stored = [], []
    if expand and layout.planes is not None:
        packed, count = _pack(expand[0], layout.planes)
        constants.append(packed)
        stored.append(count)
    constants.append([Constant(depthwise.weight.reshape(-1)), *_bias(depthwise.epilogue)])
    stored.append(depthwise.weight.size)
    packed, count = _pack(project, layout.sums)
    constants.append(packed)
    stored.append(count)
    shares = tuple(
        Share(
            "dense" if part is depthwise else "csr",
            sum(constant.array.nbytes for constant in own),
            2 * count * part.geometry.batch * math.prod(part.geometry.out_size),
        )
        for part, own, count in zip(parts, constants, stored, strict=True)
    )
    epilogues = [part.epilogue for part in parts]
    kernel = separable_kernel(layout, epilogues[0] if expand else None, *epilogues[-2:])
    args: tuple[Operand, ...] = (
        Input(0),
        *([Input(1)] if project.epilogue.residual else []),
        *(constant for own in constants for constant in own),
        Output(0),
    )
    formats = " + ".join(share.format for share in shares)
    flops = sum(share.flops for share in shares)
    return Plan((Step(kernel, args),), (), formats, "", sum(stored), flops, shares=shares)


def _pack(part: Part, layout: TapLayout) -> tuple[list[Constant], int]:
    """The constants of a 1 x 1 layer, and how many weights they store."""
    p = layout.problem
    constants, count = pack_taps(part.weight.reshape(1, p.out_channels, p.in_channels), layout, shared=False)
    return [*constants, *_bias(part.epilogue)], count


def _bias(epilogue: Epilogue) -> list[Constant]:
    return [] if epilogue.bias is None else [Constant(epilogue.bias)]


def cycles(layout: SeparableLayout, densities: Sequence[float], target: Target) -> float:
    """Predicted cycles of the whole convolution on one core.

    Args:
        layout: how it is cut.
        densities: share of kept weights of the 1 x 1 layers.
        target: what the code is for.
    """
    at = pace(target)
    tile = 0.0
    if layout.planes is not None:
        p, vectors = layout.planes.problem, layout.planes.vectors
        missed = _MISSED * at.memory if 4 * layout.planes.packed > target.l1_bytes / 2 else 0.0
        taps = p.in_channels * densities[0]
        tile += p.in_channels * vectors * _COPY * at.memory
        tile += p.out_channels * (
            _LIST + taps * (_tap(layout, vectors, target) + vectors * missed) + vectors * _STORE * at.memory
        )
    tile += layout.depthwise.groups * (band_cycles(layout.band, target) + layout.sums.vectors)
    p, vectors, blocks = layout.project, layout.sums.vectors, layout.sums.blocks
    missed = _MISSED * at.memory if 4 * layout.sums.packed > target.l1_bytes * 0.7 else 0.0
    taps = p.in_channels * densities[-1]
    output = 4 * p.batch * p.out_channels * p.width.out
    store = _FAR * at.far if output > 0.75 * target.l2_bytes else _STORE * at.memory
    kept = vectors * (_KEEP * at.memory * 2 * (blocks - 1) + store) + _LIST * blocks
    tile += p.out_channels * (taps * (_tap(layout, vectors, target) + vectors * missed) + kept)
    return layout.tiles * tile


def _tap(layout: SeparableLayout, vectors: int, target: Target) -> float:
    """Cycles of a weight of a 1 x 1 layer for so many vectors of pixels."""
    parts = -(-vectors // layout.cut.sums)
    each = -(-vectors // parts)
    if layout.cut.in_order and in_order.suits(1, [layout.cut.lanes * v for v in range(each)]):
        return parts * in_order.tap_cycles(1, each)
    at = pace(target)
    return _TAP + vectors * _MULTIPLY * max(at.memory, at.multiply)
