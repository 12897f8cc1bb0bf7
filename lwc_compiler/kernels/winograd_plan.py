"""Plans dense convolutions with the Winograd kernel, where that is predicted to be faster than anything else."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from lwc_compiler.kernels.choice import Candidate, uneven
from lwc_compiler.kernels.cost import pace
from lwc_compiler.kernels.kernel import Constant, Input, Output, Plan, Scratch, Step
from lwc_compiler.kernels.phases import phase_kernel, phased
from lwc_compiler.kernels.winograd import POINTS, WinogradLayout, input_kernel, pack_winograd, winograd_kernel

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from lwc_compiler.kernels.kernel import Operand
    from lwc_compiler.kernels.layer import ConvGeometry, Epilogue
    from lwc_compiler.targets.target import Target

_KERNELS = ((3, 3), (4, 4))
_THREADS = 4  # that a layer's units should suffice for at least
_RANKED = 4  # layouts that are worth a measurement
_CYCLES = 0.5  # of a vector multiply-add
_PHASE = 0.4  # cycles of an input that is sorted into its phase
# In vector multiply-adds, fitted to layers of VGG-16 and ResNet-50 on one core with AVX-512: a multiply-add with its
# loads, a byte of weights from beyond the level-2 cache, the first time and each further time, a byte of transformed
# input from there, a vector of a square transformed.
_MULTIPLY, _COLD_BYTE, _WEIGHT_BYTE, _INPUT_BYTE, _TRANSFORM = 1.15, 0.2, 0.08, 0.2, 700.0


def winograd_candidates(
    weight: NDArray[np.float32], geometry: ConvGeometry, epilogue: Epilogue, target: Target
) -> list[Candidate]:
    """The best ways to compute a convolution by minimal filtering; none where the kernel cannot.

    Args:
        weight: float32 (O, C, kernel height, kernel width).
        geometry: not transposed.
        epilogue: bias (O,), residual, activation.
        target: what the code is for.
    """

    def candidate(cycles: float, layout: WinogradLayout) -> Candidate:
        cut = (layout.square, layout.images, layout.rows, layout.group, layout.vectors, int(layout.separate))
        name = f"winograd {'x'.join(map(str, cut))}"
        slower = uneven(layout.tiles, target.threads)
        return Candidate("winograd", name, cycles, lambda: plan_winograd(weight, epilogue, layout), slower)

    every = [candidate(_cycles(layout, target), layout) for layout in layouts(geometry, target)]
    return sorted(every, key=lambda c: c.shared)[:_RANKED]


def phased_candidates(
    weight: NDArray[np.float32], geometry: ConvGeometry, epilogue: Epilogue, target: Target
) -> list[Candidate]:
    """The same for a convolution with a stride, over the phases of its input, which a step of its own writes.

    The arguments are those of `winograd_candidates`; the target has a `Core`.
    """
    g = geometry
    if len(g.kernel) != 2 or max(g.strides) == 1 or g.groups > 1 or set(g.dilations) != {1}:
        return []
    inner, plain = phased(weight, g)
    (height, width), (down, across) = g.in_size, g.strides
    kernel = phase_kernel(g.batch * g.in_channels, (height, width), (down, across), target.vector_bits // 32)

    def change(plan: Plan) -> Plan:
        parts = Scratch(len(plan.scratch))
        steps = [replace(s, args=tuple(parts if a == Input(0) else a for a in s.args)) for s in plan.steps]
        scratch = (*plan.scratch, 4 * math.prod(plain.in_shape))
        flops = 2 * weight.size * g.batch * math.prod(g.out_size)
        step = Step(kernel, (Input(0), parts))
        return replace(plan, steps=(step, *steps), scratch=scratch, stored=weight.size, flops=flops)

    cycles = _PHASE * pace(target).memory * math.prod(plain.in_shape)
    found = winograd_candidates(inner, plain, epilogue, target)
    return [replace(c.then(change, cycles), name=f"{c.name} of phases") for c in found]


def plan_winograd(weight: NDArray[np.float32], epilogue: Epilogue, layout: WinogradLayout) -> Plan:
    """A plan of one step, or of two where there are too few units for several threads.

    Input 0 is x (N, C, H, W), input 1 the residual if there is one, output 0 is (N, O, H', W').

    Args:
        weight: float32 (O, C, kernel, kernel).
        epilogue: bias (O,), residual, activation.
        layout: of the kernel.
    """
    operands: list[Operand] = [Scratch(0) if layout.separate else Input(0), pack_winograd(weight, layout)]
    if epilogue.residual:
        operands.append(Input(1))
    if epilogue.bias is not None:
        operands.append(Constant(epilogue.bias))
    steps = [Step(winograd_kernel(layout, epilogue), (*operands, Output(0)))]
    scratch: tuple[int, ...] = ()
    if layout.separate:
        steps.insert(0, Step(input_kernel(layout), (Input(0), Scratch(0))))
        scratch = (4 * layout.transformed * int(np.prod(layout.blocks)),)
    pixels = layout.batch * int(np.prod(layout.out_size))
    return Plan(tuple(steps), scratch, "dense", "", weight.size, 2 * weight.size * pixels)


def layouts(geometry: ConvGeometry, target: Target) -> Iterator[WinogradLayout]:
    """Every sensible layout; none where the kernel cannot compute the convolution."""
    g, lanes = geometry, target.vector_bits // 32
    plain = g.kernel in _KERNELS and g.strides == g.dilations == (1, 1) and g.groups == 1 and not g.transposed
    if not plain or min(g.in_channels, g.out_channels) < lanes:
        return
    vectors = 2 if g.out_channels > lanes else 1
    most = (target.vector_registers - vectors - 2) // vectors
    kernel = g.kernel[0]
    for square in (size + 1 - kernel for size in POINTS if size > kernel):
        height, columns = (-(-size // square) for size in g.out_size)
        for images in dict.fromkeys(min(g.batch, count) for count in (1, 2, 4, 8, 16)):
            for rows in range(1, height + 1) if images == 1 else (height,):
                if rows < height and -(-height // -(-height // rows)) != rows:
                    continue  # as many units as with fewer rows
                squares = images * rows * columns
                group = -(-squares // -(-squares // most))
                units = -(-g.batch // images) * -(-height // rows)
                layout = WinogradLayout(
                    g.batch, g.in_channels, g.out_channels, (g.in_size[0], g.in_size[1]),
                    (g.out_size[0], g.out_size[1]), (g.pads[0], g.pads[1]), lanes, kernel, square, images, rows, group,
                    vectors, units < max(_THREADS, target.threads),
                )  # fmt: skip
                if images * rows == 1 or 4 * layout.transformed <= 4 * target.l2_bytes:
                    yield layout


def _cycles(layout: WinogradLayout, target: Target) -> float:
    """Predicted cycles of the whole layer on one core."""
    lay = layout
    at = pace(target)
    units = lay.blocks[0] * lay.blocks[1]
    groups = -(-lay.squares // lay.group)
    multiplies = lay.positions * groups * lay.group * lay.in_channels * lay.chunks * lay.vectors
    weight_bytes = 4 * lay.positions * lay.in_channels * lay.chunks * lay.chunk
    input_bytes = 4 * lay.transformed
    vectors = lay.squares * (lay.in_channels + lay.out_channels) / lay.lanes * lay.positions / 36
    spent = _MULTIPLY * at.multiply * multiplies + _TRANSFORM * at.memory * vectors
    if weight_bytes > target.l2_bytes // 2:
        spent += _WEIGHT_BYTE * at.far * weight_bytes
    missed = min(1.0, max(0.0, 2 * input_bytes / target.l2_bytes - 1))
    spent += _INPUT_BYTE * at.far * input_bytes * (missed * (lay.chunks + 2) + 2 * lay.separate)
    more = 1 - lay.kernel**2 / lay.positions  # other kernels read their weights for a first time too, but fewer bytes
    return _CYCLES * (units * spent + _COLD_BYTE * at.far * more * weight_bytes)
