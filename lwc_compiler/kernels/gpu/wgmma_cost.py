"""How long the kernels of `wgmma.py` and `wgmma_inputs.py` take: a model with constants of data sheets.

A block is always on a multiprocessor of its own. What bounds a slice is its products, the bytes that these and the
copies take of shared memory, or what the copies take of the level-2 cache. The busiest block decides.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lwc_compiler.kernels.gpu.builder import ceil_div
from lwc_compiler.kernels.gpu.product_cost import parts_seconds

if TYPE_CHECKING:
    from lwc_compiler.kernels.gpu.wgmma_layout import WgmmaTile
    from lwc_compiler.targets.target import Gpu

_DOWN = 64  # output channels of an instruction
_BANDWIDTH = 0.85  # share of the memory's that is reached


@dataclass(frozen=True)
class WgmmaCosts:
    """What is reasoned.

    Attributes:
        launch: microseconds of both kernels.
        slice_cycles: of a slice, at least: for its barriers.
        tile_cycles: of a tile, until its first slice is there and its results are stored.
        product_cycles: cycles of products, of those at the peak rate.
        shared_bytes: that shared memory gives or takes in a cycle.
        l2_bytes: that the level-2 cache gives a multiprocessor in a cycle, where all read.
    """

    launch: float
    slice_cycles: float
    tile_cycles: float
    product_cycles: float
    shared_bytes: float
    l2_bytes: float


REASONED = WgmmaCosts(
    launch=5.0, slice_cycles=250, tile_cycles=3000, product_cycles=1.15, shared_bytes=110, l2_bytes=21
)


def wgmma_seconds(t: WgmmaTile, gpu: Gpu, costs: WgmmaCosts = REASONED) -> float:
    """The time of a layer, with that of its inputs."""
    inputs, outputs = (4 * math.prod(shape) for shape in (t.geometry.in_shape, t.geometry.out_shape))
    bandwidth = _BANDWIDTH * gpu.gigabytes_a_second * 1e9
    slice_ = max(
        costs.slice_cycles,
        _products(t) / gpu.tensor_lanes * costs.product_cycles,
        _shared_bytes(t) / costs.shared_bytes,
        4 * (t.slice_words / t.along_pixels + t.right / t.along_outputs) / costs.l2_bytes,
    )
    cycles = ceil_div(t.tiles, t.clusters) * (t.slices_of_block * slice_ + costs.tile_cycles)
    moved = 4 * (t.input_words + t.output_blocks * t.slices * t.slice_words) + outputs
    multiplied = max(cycles / (gpu.gigahertz * 1e9), moved / bandwidth)
    # The first kernel writes each word once, and reads an input as often as it writes it.
    read = 4 * t.in_word * t.input_words / (costs.l2_bytes * gpu.multiprocessors * gpu.gigahertz * 1e9)
    ordered = max((inputs + 4 * t.input_words) / bandwidth, read)
    return 1e-6 * costs.launch + ordered + multiplied + parts_seconds(t, gpu)


def _products(t: WgmmaTile) -> float:
    """Of a block's slice, as many in 16 bits as take the same time."""
    return t.outputs * t.pixels * t.depth * (2 / t.in_word) / (2 if t.sparse else 1)


def _shared_bytes(t: WgmmaTile) -> float:
    """Of a slice: copied to shared memory, and read by instructions, each of which reads both its factors."""
    return 4 * (t.slice_words + t.right) + 4 * (t.outputs / _DOWN * t.right + t.slice_words)
