"""How long the kernels of `mma_blocks.py` take: a model like that of `taps_cost.py`, with products on tensor cores.

What is the same work as in the kernels of `taps.py` and `mma.py` has the constants that were fitted there; the others
follow from the instructions and were not compared with a GPU.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lwc_compiler.kernels.gpu import product_cost, taps_cost
from lwc_compiler.kernels.gpu.builder import WARP, blocks_at_once, ceil_div
from lwc_compiler.kernels.gpu.lists import VECTOR

if TYPE_CHECKING:
    from lwc_compiler.kernels.gpu.mma_blocks_layout import MmaBlocksTile
    from lwc_compiler.targets.target import Gpu

_REGISTERS = 65536  # of a multiprocessor
_OTHER_REGISTERS = 56  # of a thread, beside its sums
_BANDWIDTH = 0.85  # share of the memory's that is reached


@dataclass(frozen=True)
class MmaBlocksCosts:
    """What is not taken from other models.

    Attributes:
        step_instructions: of a step of a warp, beside those for its fragments.
        step_cycles: waited for in a step: its offsets, its inputs and its products, one after the other.
        list_cycles: waited for in a list.
        conflicts: accesses to shared memory for one of the inputs that a lane picks.
        warp_issued: instructions of one warp in a cycle.
    """

    step_instructions: float
    step_cycles: float
    list_cycles: float
    conflicts: float
    warp_issued: float


ESTIMATED = MmaBlocksCosts(step_instructions=16, step_cycles=110, list_cycles=100, conflicts=1.2, warp_issued=0.25)


def list_steps(t: MmaBlocksTile, places: int) -> float:
    """Steps of a list in one chunk, where every list has about as many places.

    Args:
        t: the layout; `picked` is how many channels a block probably reads.
        places: of all lists.
    """
    each = places / (t.geometry.groups * t.chunks * t.group_rows)
    return each / t.step + 0.5 * -math.expm1(-each)


def mma_blocks_seconds(t: MmaBlocksTile, places: int, gpu: Gpu, costs: MmaBlocksCosts = ESTIMATED) -> float:
    """The time of a kernel.

    Args:
        t: its tile; `picked` is how many channels a block probably reads.
        places: of all lists.
        gpu: where it runs.
        costs: what its parts cost.
    """
    taps, products = taps_cost.FITTED, product_cost.FITTED
    blocks, steps = math.prod(t.grid), list_steps(t, places)
    rows = min(t.per_block, t.group_rows)
    all_steps = t.chunks * rows * steps  # of a block
    own = t.outputs * t.chunks * (steps / t.parts + (1 - 1 / t.parts) / 2)  # of a warp; parts are whole steps
    copied = t.picked * math.prod(t.window)  # words
    positions = math.prod(t.window) // t.vector
    idle = t.copiers * ceil_div(positions, t.copiers) / positions
    input_copies = copied / (t.vector * t.unit) / WARP * idle
    list_copies = all_steps * t.step_words / VECTOR / WARP
    loads = t.acrosses * 2 * t.in_word
    stored = rows * t.sums * (1 + (t.parts - 1) / 2)
    issued = (
        t.warps * 30 * t.chunks
        + input_copies * taps.copy_instructions
        + list_copies * 8
        + all_steps * (costs.step_instructions + t.downs + loads + t.acrosses * (2 + t.downs))
        + stored * taps.sum_instructions
    )
    accesses = copied / WARP + list_copies * VECTOR + all_steps * (4 * t.downs + 1 + loads * costs.conflicts)
    lanes = gpu.tensor_lanes * t.in_word / 2
    multiplied = all_steps * t.height * t.rows * t.columns * t.step / lanes * products.tensor_product_cycles
    waited = (
        taps.block_cycles + t.chunks * (taps.chunk_cycles + t.outputs * costs.list_cycles) + own * costs.step_cycles
    )
    shared = t.shared_bytes if t.steps else t.shared_bytes + math.ceil(4 * t.stages * t.step_words * rows * steps)
    registers = _OTHER_REGISTERS + t.outputs * t.sums
    there = blocks_at_once(gpu, shared, t.warps * WARP, _REGISTERS // registers)
    each = ceil_div(blocks, gpu.multiprocessors)
    at_once = min(there, each)
    rounds = ceil_div(each, at_once)
    rate = min(taps.issued, at_once * t.warps * costs.warp_issued)
    moved = blocks * 4 * (copied + t.step_words * all_steps) / taps.bytes_a_nanosecond * gpu.gigahertz
    cycles = each * max(issued / rate, accesses, multiplied) + rounds * waited + moved
    weights = 4 * t.step_words * all_steps * t.row_blocks * t.geometry.groups
    read = weights + 4 * (math.prod(t.geometry.in_shape) + math.prod(t.geometry.out_shape))
    reading = read / (_BANDWIDTH * gpu.gigabytes_a_second * 1e9)
    # Mostly at the same time.
    return 1e-6 * taps.launch + math.hypot(cycles / (gpu.gigahertz * 1e9), reading)
