"""The cuts of a layer that the kernel of `mma_blocks.py` is offered in."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from lwc_compiler.kernels.gpu.builder import WARP, ceil_div
from lwc_compiler.kernels.gpu.lists import MOST_FILLED
from lwc_compiler.kernels.gpu.mma_blocks_cost import list_steps
from lwc_compiler.kernels.gpu.mma_blocks_layout import ACROSS, DOWN, MmaBlocksTile, kept_places

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from lwc_compiler.kernels.layer import ConvGeometry
    from lwc_compiler.targets.target import Gpu

_HEIGHTS = (4, 8, 16, 32, 64)  # of the blocks that are looked for
_COLUMNS, _FLAT_COLUMNS, _ROWS = (8, 16, 32, 64), (8, 16, 32, 64, 128), (1, 2, 4, 8, 16)
_MOST_ACROSS = 16  # instructions over the pixels of a tile
_MOST_SUMS, _MOST_PARTS = 64, 256  # sums of a lane, and of the lanes of all parts that are added up
_REGISTERS, _OTHER_REGISTERS = 32768, 12  # of a block; half of a thread's are for its sums, less these
_SHARE = 0.93  # of shared memory that is planned with; what is left is for blocks with more places than most
# Warps of a block, rows of a warp, and warps that share a row.
_CUTS = (
    (1, 1, 1), (2, 1, 1), (4, 1, 1), (8, 1, 1), (16, 1, 1), (4, 2, 1), (8, 2, 1), (4, 1, 2), (4, 1, 4), (8, 1, 2),
    (8, 1, 4), (8, 1, 8), (8, 2, 4), (16, 1, 2), (16, 1, 4), (16, 1, 8), (16, 1, 16),
)  # fmt: skip


def block_height(weight: NDArray[np.float32]) -> int:
    """The most neighbouring output channels that have their weights at the same places; 0 for fewer than 4.

    Args:
        weight: float32 (groups, O / groups, C / groups, positions of the kernel), some of it 0.
    """
    kept, outputs = int(np.count_nonzero(weight)), weight.shape[1]
    for height in reversed(_HEIGHTS):
        places = np.count_nonzero(kept_places(weight, height), axis=(0, 2, 3))
        of_row = np.minimum(height, outputs - height * np.arange(len(places)))
        if height <= outputs and (places * of_row).sum() <= MOST_FILLED * kept:
            return height
    return 0


def mma_blocks_tiles(
    weight: NDArray[np.float32],
    geometry: ConvGeometry,
    strides: tuple[tuple[int, ...], tuple[int, ...]],
    gpu: Gpu,
    budgets: Sequence[int],
) -> Iterator[tuple[MmaBlocksTile, int]]:
    """Cuts, and the places of all their lists.

    Args:
        weight: float32 (groups, O / groups, C / groups, positions of the kernel); `block_height` is not 0.
        geometry: of two dimensions or more.
        strides: see `ListTile`: of the input and of the output.
        gpu: for which; its precision is less than float32.
        budgets: bytes of shared memory that a block may have.
    """
    heights = [height for height in _HEIGHTS if DOWN <= height <= max(DOWN, block_height(weight))]
    for height in heights:
        kept = kept_places(weight, height)
        places = int(np.count_nonzero(kept))
        cuts = itertools.product(_tiles(geometry), _CUTS)
        for (rows, columns), (warps, outputs, parts) in cuts:
            t = MmaBlocksTile(
                geometry, *strides, rows, columns, geometry.group_inputs, warps, outputs, parts, height,
                precision=gpu.precision,
            )  # fmt: skip
            most_sums = min(_MOST_SUMS, _MOST_PARTS // parts, _REGISTERS // (2 * warps * WARP) - _OTHER_REGISTERS)
            if outputs * t.sums > most_sums or t.per_block >= 2 * t.group_rows:
                continue
            t = replace(t, picked=_picked(kept, t))
            full = replace(
                t, channels=t.unit, steps=t.lists * ceil_div(t.unit * math.prod(geometry.kernel), t.step) + 4
            )
            for budget in budgets:
                if full.shared_bytes <= budget:
                    fitting = replace(t, channels=_channels(t, places, budget), most_bytes=budget)
                    if parts == 1 or list_steps(fitting, places) >= parts / 2:
                        yield fitting, places
                    if fitting.chunks == 1:
                        break


def _tiles(geometry: ConvGeometry) -> set[tuple[int, int]]:
    """Rows and columns of pixels, of about the same sizes in every tile."""
    height, width = geometry.out_size[-2:]

    def even(size: int, most: int) -> int:
        return ceil_div(size, ceil_div(size, most))

    tiles = itertools.product(_ROWS, _FLAT_COLUMNS if height == 1 else _COLUMNS)
    sizes = {(even(height, rows), ceil_div(even(width, columns), ACROSS) * ACROSS) for rows, columns in tiles}
    return {(rows, columns) for rows, columns in sizes if rows * columns <= _MOST_ACROSS * ACROSS}


def _picked(kept: NDArray[np.bool_], t: MmaBlocksTile) -> int:
    """Input channels that a block probably reads, if those of its rows are independent."""
    units = ceil_div(kept.shape[2], t.unit)
    read = np.pad(kept.any(axis=3), ((0, 0), (0, 0), (0, units * t.unit - kept.shape[2])))
    of_row = float(read.reshape(*read.shape[:2], units, t.unit).any(axis=3).mean())
    return max(1, min(units, math.ceil(units * (1 - (1 - of_row) ** min(t.per_block, t.group_rows))))) * t.unit


def _channels(t: MmaBlocksTile, places: int, budget: int) -> int:
    """Input channels of which a block has the window and the lists: all in one stage, or as many as two stages hold."""
    of_lists = places / (t.geometry.groups * t.group_rows) * t.per_block / t.picked / t.step * t.step_words
    channel = 4 * ((t.columns if t.by_channel else t.plane) + of_lists)
    # Of each list a step is filled half on average.
    fixed = 4 * (0.5 * t.per_block * t.step_words + (4 * t.columns if t.by_channel else t.plane) + t.picked)
    if t.picked * channel + fixed <= _SHARE * budget:
        return t.picked
    return max(1, min(t.picked // t.unit, int((_SHARE * budget / 2 - fixed) / channel / t.unit))) * t.unit
