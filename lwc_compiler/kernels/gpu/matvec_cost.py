"""How long the kernels of `matvec.py` take: a model whose constants are fitted to kernels timed on a GPU.

A block waits for each list in turn, and for each round of loads of it, copies the inputs, and reads them at random
places; or all blocks together take what reading the weights from memory takes. The longer of the two counts, and a
little of the waiting besides. `benchmarks/gpu/fit.py` fits the
constants.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lwc_compiler.kernels.gpu.builder import WARP, ceil_div
from lwc_compiler.kernels.gpu.matvec import STEP

if TYPE_CHECKING:
    from lwc_compiler.kernels.gpu.matvec import MatvecTile
    from lwc_compiler.targets.target import Gpu

_WARPS = 32  # of a multiprocessor, with the registers for loads of several steps
_INDEX_BYTES = 2
_BANDWIDTH = 0.85  # share of the memory's that is reached
_NOT_HIDDEN = 0.1  # share of what a block waits for that other blocks' reads do not hide


@dataclass(frozen=True)
class MatvecCosts:
    """What is fitted.

    Attributes:
        launch: microseconds of every kernel.
        list_time: microseconds that a block waits for the start of a list.
        load_time: microseconds that it waits for a round of loads.
        input_bandwidth: at which blocks copy the inputs, of the memory's.
        access_cycles: of a warp's access to inputs at 32 places.
    """

    launch: float
    list_time: float
    load_time: float
    input_bandwidth: float
    access_cycles: float


FITTED = MatvecCosts(launch=1.2, list_time=0.45, load_time=0.115, input_bandwidth=2.2, access_cycles=5)


def matvec_seconds(t: MatvecTile, stored: int, gpu: Gpu, costs: MatvecCosts = FITTED) -> float:
    """The time of a kernel.

    Args:
        t: its tile.
        stored: weights that are stored.
        gpu: where it runs.
        costs: what its parts cost.
    """
    blocks, bandwidth = t.grid[0], gpu.gigabytes_a_second * 1e9
    together = max(1, min(_WARPS // t.warps, gpu.block_shared_bytes // t.shared_bytes))
    lists = ceil_div(blocks, gpu.multiprocessors * together) * t.outputs * t.chunks
    loads = lists * t.rounds(ceil_div(stored, t.n * t.chunks * STEP))
    copied = 4 * blocks * t.rows * t.k / (costs.input_bandwidth * bandwidth)
    accesses = stored * t.rows / WARP / gpu.multiprocessors * costs.access_cycles / (gpu.gigahertz * 1e9)
    waited = 1e-6 * (lists * costs.list_time + loads * costs.load_time)
    moved = stored * (4 / t.in_word + _INDEX_BYTES * t.sparse) + 4 * t.rows * (t.k + t.n)
    read = max(waited + copied + accesses, moved / (_BANDWIDTH * bandwidth))
    return 1e-6 * costs.launch + read + _NOT_HIDDEN * waited
