"""How the taps of a layer are cut into blocks, and laid out in memory: for the kernel of `taps.py`.

Rows, of one output channel or of several that share their taps' places, are sorted by their number of taps: those of a
block have about as many, so that none waits long at a barrier, and the longest begin first.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from lwc_compiler.kernels.builder import divide, modulo, smaller
from lwc_compiler.kernels.gpu.builder import SHARED_ALIGNMENT_BYTES, WARP, ceil_div
from lwc_compiler.kernels.kernel import STATIC_SHARED_BYTES, Constant

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from lwc_compiler.kernels.gpu.builder import Expr
    from lwc_compiler.kernels.layer import ConvGeometry

TAP_STEP = 4  # taps that are read at a time
OFFSET_WORDS = TAP_STEP // 2  # of a step's offsets, of 16 bits each
_VECTOR = 4
ALIKE = 16  # steps, to a multiple of which those of a kernel are rounded up


@dataclass(frozen=True)
class TapTile:
    """How the taps of a layer are cut into blocks.

    Attributes:
        geometry: of two dimensions or three, not transposed.
        x_strides: elements between neighbours of the input along (batch, channel, *spatial).
        y_strides: the same of the output.
        rows: of the tile, along the last dimension but one; a multiple of `lane_rows`.
        columns: of the tile; at most a warp, or several.
        channels: input channels in shared memory at a time.
        warps: of a block.
        outputs: rows of a warp: of so many output channels as share their taps' places.
        parts: warps that share a row; divides `warps`.
        height: output channels of a row, neighbours; divides those of a group.
        most_bytes: of shared memory, that a block may take.
        steps: most steps of a block's taps in shared memory at a time; `fitted` knows them.
    """

    geometry: ConvGeometry
    x_strides: tuple[int, ...]
    y_strides: tuple[int, ...]
    rows: int
    columns: int
    channels: int
    warps: int
    outputs: int
    parts: int = 1
    height: int = 1
    most_bytes: int = STATIC_SHARED_BYTES
    steps: int = 0

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
    def tile(self) -> tuple[int, ...]:
        """Pixels of a block along each dimension."""
        return (*(1,) * (len(self.geometry.in_size) - 2), self.rows, self.columns)

    @property
    def tiles(self) -> tuple[int, ...]:
        """Tiles of an image along each dimension."""
        return tuple(ceil_div(size, t) for size, t in zip(self.geometry.out_size, self.tile, strict=True))

    @property
    def window(self) -> tuple[int, ...]:
        """Positions of the input that a tile reads, along each dimension."""
        g = self.geometry
        parts = zip(self.tile, g.strides, g.kernel, g.dilations, strict=True)
        return tuple((t - 1) * s + (k - 1) * d + 1 for t, s, k, d in parts)

    @property
    def half(self) -> int:
        """Columns of one phase: a row in shared memory is split by the stride, so that lanes read neighbours."""
        return ceil_div(self.window[-1], self.geometry.strides[-1])

    @property
    def shared_columns(self) -> int:
        """Columns at the end of a row that are the first ones of the next row, too: zeros beside the input in both."""
        g = self.geometry
        if g.strides[-1] > 1 or self.tiles[-1] > 1:
            return 0
        before = g.pads[len(g.in_size) - 1]
        return max(0, min(before, self.window[-1] - before - g.in_size[-1]))

    @property
    def overlap(self) -> int:
        """Columns of a row that have the place of columns of the next one."""
        return max(0, self.window[-1] - self.pitch) if self.shared_columns else 0

    @property
    def pitch(self) -> int:
        """Elements of a row in shared memory: the fewest with which the lanes of a warp read different banks."""
        least = self.half * self.geometry.strides[-1] - self.shared_columns
        return _pitch(least, self.lane_rows, self.lane_columns, self.geometry.strides[-2])

    @property
    def row_pitches(self) -> tuple[int, ...]:
        """Elements in shared memory from one position to the next along each dimension but the last."""
        return tuple(math.prod(self.window[i + 1 : -1]) * self.pitch for i in range(len(self.window) - 1))

    @property
    def plane(self) -> int:
        """Elements of a channel in shared memory; odd where neighbouring threads write neighbouring channels."""
        size = math.prod(self.window[:-1]) * self.pitch + self.shared_columns
        return size | 1 if self.by_channel else size

    @property
    def by_channel(self) -> bool:
        """Whether neighbours in the input's memory are of neighbouring channels."""
        return self.x_strides[1] == 1

    @property
    def chunks(self) -> int:
        """How often shared memory is filled."""
        return ceil_div(self.geometry.group_inputs, self.channels)

    @property
    def group_rows(self) -> int:
        """Rows of a group."""
        return self.geometry.group_outputs // self.height

    @property
    def per_block(self) -> int:
        """Rows of a block."""
        return self.warps // self.parts * self.outputs

    @property
    def row_blocks(self) -> int:
        """Blocks over the rows of a group."""
        return ceil_div(self.group_rows, self.per_block)

    @property
    def slots(self) -> int:
        """Places for rows of a group."""
        return self.row_blocks * self.per_block

    @property
    def grid(self) -> tuple[int, int, int]:
        """Tiles of all images, blocks of output channels, groups."""
        return (self.geometry.batch * math.prod(self.tiles), self.row_blocks, self.geometry.groups)

    @property
    def lists(self) -> int:
        """Lists of taps that a block goes through of a chunk."""
        return self.warps * self.outputs

    @property
    def stages(self) -> int:
        """Chunks in shared memory at once."""
        return min(2, self.chunks)

    @property
    def stage_elements(self) -> int:
        """Elements of shared memory that a chunk of the input takes, and a channel of zeros."""
        return (self.channels + 1) * self.plane

    @property
    def window_elements(self) -> int:
        """Of shared memory for all chunks at once; the sums of all parts but one take their place."""
        sums = (self.parts - 1) * self.per_block * self.height * self.pixels * WARP
        return max(self.stages * self.stage_elements, sums)

    @property
    def shared_bytes(self) -> int:
        """Of shared memory that a block uses, with its taps."""
        taps = self.steps * self.step_words + self.lists + 1
        return 4 * (self.window_elements + self.stages * taps) + 4 * SHARED_ALIGNMENT_BYTES

    @property
    def step_words(self) -> int:
        """Words of shared memory for a step's taps."""
        return TAP_STEP * self.height + OFFSET_WORDS

    @property
    def vector(self) -> int:
        """Elements of the input that are copied at once: 4 where pixels are all in a row, and every row is aligned."""
        g = self.geometry
        strides = (*self.x_strides[:2], g.in_size[-1], self.columns)
        plain = set(g.kernel) == set(g.strides) == {1} and not any(g.pads) and self.x_strides[-1] == 1
        return _VECTOR if plain and self.rows == 1 and not any(n % _VECTOR for n in strides) else 1

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
    """The taps of a weight: which list each is in, its channel, its position, its values; and the order of the rows."""

    lists: NDArray[np.int64]
    channel: NDArray[np.int64]
    position: list[NDArray[np.int64]]
    values: NDArray[np.float32]  # (taps, height)
    order: NDArray[np.int64]


def _places(weight: NDArray[np.float32], t: TapTile) -> _Places:
    g = t.geometry
    rows = np.moveaxis(weight.reshape(g.groups, t.group_rows, t.height, *weight.shape[1:]), 2, -1)
    taken = (rows != 0).any(axis=-1)
    counts = np.count_nonzero(taken.reshape(g.groups, t.group_rows, -1), axis=2)
    order = np.argsort(-counts, axis=1, kind="stable")
    group, row, channel, *position = np.nonzero(taken)
    block, slot = np.divmod(np.argsort(order, axis=1)[group, row], t.per_block)
    blocks = (group * t.chunks + channel // t.channels) * t.row_blocks + block
    lists = (blocks * t.parts + channel % t.channels % t.parts) * t.per_block + slot
    return _Places(lists, channel, position, rows[taken], order)


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
    channels[:, : t.group_rows] = places.order * t.height + np.arange(g.groups)[:, None] * g.group_outputs
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
