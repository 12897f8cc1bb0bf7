"""How the taps of a layer are cut into blocks, and laid out in memory: for the kernel of `taps.py`.

Rows, of one output channel or of several that share their taps' places, are sorted by their number of taps: those of a
block have about as many, so that none waits long at a barrier, and the longest begin first. Where results of
neighbouring output channels are neighbours in memory, a block has neighbouring rows, and only these are sorted.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from lwc_compiler.kernels.builder import divide, modulo, smaller
from lwc_compiler.kernels.gpu.builder import WARP, ceil_div
from lwc_compiler.kernels.gpu.lists import ListTile
from lwc_compiler.kernels.kernel import Constant

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from lwc_compiler.kernels.gpu.builder import Expr

TAP_STEP = 4  # taps that are read at a time
OFFSET_WORDS = TAP_STEP // 2  # of a step's offsets, of 16 bits each
ALIKE = 16  # steps, to a multiple of which those of a kernel are rounded up


@dataclass(frozen=True)
class TapTile(ListTile):
    """How the taps of a layer are cut into blocks.

    `rows` is a multiple of `lane_rows`, `columns` are at most a warp, or several, and `height` divides the output
    channels of a group. A part of a row's taps is those on some of the input channels.
    """

    @property
    def lane_columns(self) -> int:
        """Columns of the pixels that a warp computes at a time."""
        return min(self.columns, WARP)

    @property
    def lane_rows(self) -> int:
        """Rows of the pixels that a warp computes at a time."""
        return WARP // self.lane_columns

    @property
    def pixels(self) -> int:
        """Pixels of a lane."""
        return self.rows // self.lane_rows * (self.columns // self.lane_columns)

    @property
    def half(self) -> int:
        return ceil_div(self.window[-1], self.geometry.strides[-1])

    @property
    def shared_columns(self) -> int:
        g = self.geometry
        if g.strides[-1] > 1 or self.tiles[-1] > 1:
            return 0
        before = g.pads[len(g.in_size) - 1]
        return max(0, min(before, self.window[-1] - before - g.in_size[-1]))

    @property
    def pitch(self) -> int:
        """Elements of a row in shared memory: the fewest with which the lanes of a warp read different banks."""
        least = self.half * self.geometry.strides[-1] - self.shared_columns
        return _pitch(least, self.lane_rows, self.lane_columns, self.geometry.strides[-2])

    @property
    def plane(self) -> int:
        """Elements of a channel in shared memory; odd where neighbouring threads write neighbouring channels."""
        size = math.prod(self.window[:-1]) * self.pitch + self.shared_columns
        return size | 1 if self.by_channel else size

    @property
    def staged(self) -> bool:
        """Whether results are stored by way of shared memory: neighbours in memory are of neighbouring channels."""
        return self.y_strides[1] == 1

    @property
    def block_channels(self) -> int:
        """Output channels of a block."""
        return self.per_block * self.height

    @property
    def stage_pitch(self) -> int:
        """Elements in shared memory from one pixel's results to the next one's; odd, for lanes have other pixels."""
        return self.block_channels | 1

    @property
    def window_elements(self) -> int:
        results = self.rows * self.columns * self.stage_pitch if self.staged else 0
        return max(super().window_elements, results)

    @property
    def chunks(self) -> int:
        return ceil_div(self.geometry.group_inputs, self.channels)

    @property
    def lists(self) -> int:
        return self.warps * self.outputs

    @property
    def sums(self) -> int:
        return self.height * self.pixels

    @property
    def value_words(self) -> int:
        return TAP_STEP * self.height

    @property
    def offset_words(self) -> int:
        return OFFSET_WORDS

    def base(self, lane: Expr) -> tuple[Expr, Expr]:
        """Row and column of a lane's first pixel in the tile."""
        row, column = divide(lane, self.lane_columns), modulo(lane, self.lane_columns)
        return (smaller(row, self.lane_rows - 1) if self.idle else row), column

    @property
    def idle(self) -> bool:
        """Whether some lanes compute what others do, and do not store it."""
        return self.lane_rows * self.lane_columns < WARP

    def step(self, pixel: int) -> tuple[int, int]:
        """Rows and columns from a lane's first pixel to another of it."""
        across = self.columns // self.lane_columns
        return pixel // across * self.lane_rows, pixel % across * self.lane_columns


@lru_cache
def _pitch(least: int, lane_rows: int, lane_columns: int, stride: int) -> int:
    """The first pitch from `least` on with which lanes in rows, `stride` apart, read the most different banks."""
    rows, columns = np.divmod(np.arange(lane_rows * lane_columns), lane_columns)
    distinct = [np.unique((rows * stride * p + columns) % WARP).size for p in range(least, least + WARP)]
    return least + distinct.index(max(distinct))


def fitted(weight: NDArray[np.float32], t: TapTile) -> TapTile:
    """The tile with the steps that its blocks need, and so many input channels that those fit shared memory, too.

    Args:
        weight: float32 (O, C / groups, *kernel).
        t: the tile with as many input channels as are wanted.
    """
    # With one input channel every tile that is planned fits.
    while True:
        steps = _list_steps(_places(weight, t), t).reshape(-1, t.lists).sum(axis=1)
        # Rounded up, so that layers alike share a kernel.
        t = replace(t, steps=ceil_div(max(1, int(steps.max())), ALIKE) * ALIKE)
        if t.shared_bytes <= t.most_bytes or t.channels == 1:
            return t
        t = replace(t, channels=max(1, t.channels * 7 // 8))


@dataclass(frozen=True)
class _Places:
    """The taps of a weight: which list each is in, its channel, its position, its values; and the slots of the rows."""

    lists: NDArray[np.int64]
    channel: NDArray[np.int64]
    position: list[NDArray[np.int64]]
    values: NDArray[np.float32]  # (taps, height)
    slots: NDArray[np.int64]  # (groups, rows)


def _places(weight: NDArray[np.float32], t: TapTile) -> _Places:
    g = t.geometry
    rows = np.moveaxis(weight.reshape(g.groups, t.group_rows, t.height, *weight.shape[1:]), 2, -1)
    taken = (rows != 0).any(axis=-1)
    counts = np.count_nonzero(taken.reshape(g.groups, t.group_rows, -1), axis=2)
    slots = _slots(counts, t)
    group, row, channel, *position = np.nonzero(taken)
    block, slot = np.divmod(slots[group, row], t.per_block)
    blocks = (group * t.chunks + channel // t.channels) * t.row_blocks + block
    lists = (blocks * t.parts + channel % t.channels % t.parts) * t.per_block + slot
    return _Places(lists, channel, position, rows[taken], slots)


def _slots(counts: NDArray[np.int64], t: TapTile) -> NDArray[np.int64]:
    """Slots of a group's rows: the longest first, and dealt to a block's warps to and fro: (groups, rows)."""
    blocks = np.arange(t.group_rows) // t.per_block if t.staged else np.zeros(t.group_rows, np.int64)
    order = np.lexsort((-counts, np.broadcast_to(blocks, counts.shape)), axis=1)
    slots = np.argsort(order, axis=1)
    across = t.warps // t.parts
    turn, place = np.divmod(slots, across)
    turned = (turn % t.outputs % 2 == 1) & ((turn + 1) * across <= t.group_rows)
    return np.where(turned, turn * across + across - 1 - place, slots)


def _list_steps(places: _Places, t: TapTile) -> NDArray[np.int64]:
    """Steps of each list."""
    lists = t.geometry.groups * t.chunks * t.row_blocks * t.lists
    return -(-np.bincount(places.lists, minlength=lists) // TAP_STEP)


def pack_taps(weight: NDArray[np.float32], t: TapTile) -> tuple[list[Constant], int]:
    """Starts (in steps), first output channels of rows, offsets and values, as the kernel reads them; and the weights.

    Lists are filled to whole steps with taps of the channel of zeros. They are in the order (group, chunk, block of
    rows, part, row). What comes last is how many weights are stored.

    Args:
        weight: float32 (O, C / groups, *kernel).
        t: the layout, as `fitted` gives it.
    """
    g, places = t.geometry, _places(weight, t)
    channels = np.zeros((g.groups, t.slots), np.int32)
    first = np.arange(g.groups * t.group_rows, dtype=np.int32).reshape(g.groups, -1) * t.height
    np.put_along_axis(channels, places.slots, first, axis=1)
    starts = np.concatenate([[0], np.cumsum(_list_steps(places, t))])
    column = places.position[-1] * g.dilations[-1]
    at = places.channel % t.channels * t.plane + column % g.strides[-1] * t.half + column // g.strides[-1]
    for axis, place in enumerate(places.position[:-1]):
        at += place * g.dilations[axis] * t.row_pitches[axis]
    sorted_ = np.argsort(places.lists, kind="stable")
    lists = places.lists[sorted_]
    number = np.arange(lists.size) - np.searchsorted(lists, lists)
    to = starts[lists] * TAP_STEP + number
    taken = max(1, int(starts[-1])) * TAP_STEP  # an array of nothing has no address
    offsets, values = np.full(taken, t.channels * t.plane, np.uint16), np.zeros((taken, t.height), np.float32)
    offsets[to], values[to] = at[sorted_], places.values[sorted_]
    arrays = (starts.astype(np.int32), channels.reshape(-1), offsets.view(np.uint32), values)
    return [Constant(array) for array in arrays], lists.size * t.height
