"""How long the sparse kernels of `taps.py` take: a model whose constants are fitted to kernels timed on a GPU.

A multiprocessor's blocks take what their instructions and their accesses to shared memory take, or, where few warps are
there to hide it, what one block waits for: the copies of each chunk, and the loads of each list and each step in turn.
`benchmarks/gpu/fit.py` fits the constants.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lwc_compiler.kernels.gpu.builder import WARP, blocks_at_once, ceil_div
from lwc_compiler.kernels.gpu.taps_layout import TAP_STEP

if TYPE_CHECKING:
    from lwc_compiler.kernels.gpu.taps_layout import TapTile
    from lwc_compiler.targets.target import Gpu

_LIST_WAVEFRONTS = 3  # accesses to shared memory, of a list's ends


@dataclass(frozen=True)
class TapCosts:
    """What is fitted: instructions of a warp, how many are issued in a cycle, and cycles that a block waits.

    Attributes:
        launch: microseconds of every kernel.
        copy_instructions: of a copy of the input to shared memory.
        list_instructions: of a list, beside its steps.
        step_instructions: of a step, beside those of each pixel.
        sum_instructions: of a sum that a lane stores.
        issued: instructions in a cycle.
        chunk_cycles: waited for in a chunk.
        list_cycles: in a list.
        step_cycles: in a step.
        block_cycles: in a block.
        bytes_a_nanosecond: copied to the shared memory of all multiprocessors.
        sharpness: how the parts add up: 1 is their sum, much is the largest.
    """

    launch: float
    copy_instructions: float
    list_instructions: float
    step_instructions: float
    sum_instructions: float
    issued: float
    chunk_cycles: float
    list_cycles: float
    step_cycles: float
    block_cycles: float
    bytes_a_nanosecond: float
    sharpness: float


FITTED = TapCosts(
    launch=1.5,
    copy_instructions=5.9,
    list_instructions=0.5,
    step_instructions=1.7,
    sum_instructions=10,
    issued=1.9,
    chunk_cycles=290,
    list_cycles=220,
    step_cycles=52,
    block_cycles=240,
    bytes_a_nanosecond=15500,
    sharpness=1.0,
)


def steps_of(t: TapTile, taps: int) -> float:
    """Steps of a block's taps in all chunks together, where every list has about as many of them."""
    g = t.geometry
    lists = g.groups * t.chunks * t.row_blocks * t.lists
    each = taps / lists
    return t.chunks * t.lists * (each / TAP_STEP + 0.375 * -math.expm1(-each))


def taps_seconds(t: TapTile, steps: float, gpu: Gpu, costs: TapCosts = FITTED) -> float:
    """The time of a kernel.

    Args:
        t: its tile; `steps` of it count where `fitted` found them.
        steps: of a block's taps in all chunks together.
        gpu: where it runs.
        costs: what its parts cost.
    """
    blocks, lists = math.prod(t.grid), t.chunks * t.outputs
    window = t.geometry.group_inputs * math.prod(t.window)
    own = steps / t.warps  # steps of a warp
    copies = window / t.vector / (t.warps * WARP)
    tap_copies = (1 + t.height) * steps / (t.warps * WARP)
    issued = t.warps * (
        30 * t.chunks
        + copies * costs.copy_instructions
        + tap_copies * 8
        + lists * costs.list_instructions
        + own * (costs.step_instructions + t.height - 1 + (1 + t.height) * TAP_STEP * t.pixels)
        + t.outputs * t.height * t.pixels * costs.sum_instructions
    )
    of_step = 1 + t.height + TAP_STEP * t.pixels  # offsets, values, inputs
    accesses = t.warps * (lists * _LIST_WAVEFRONTS + own * of_step + copies * t.vector)
    waited = costs.block_cycles + t.chunks * costs.chunk_cycles + lists * costs.list_cycles + own * costs.step_cycles
    shared = (
        t.shared_bytes if t.steps else t.shared_bytes + 4 * t.stages * t.step_words * math.ceil(1.1 * steps / t.chunks)
    )
    there = blocks_at_once(gpu, shared, t.warps * WARP)
    each = ceil_div(blocks, gpu.multiprocessors)
    rounds = ceil_div(each, min(there, each))
    moved = blocks * 4 * (window + t.step_words * steps) / costs.bytes_a_nanosecond * gpu.gigahertz
    parts = (each * max(issued / costs.issued, accesses), rounds * waited, moved)
    cycles = math.fsum(part**costs.sharpness for part in parts) ** (1 / costs.sharpness)
    return float(1e-6 * costs.launch + cycles / (gpu.gigahertz * 1e9))
