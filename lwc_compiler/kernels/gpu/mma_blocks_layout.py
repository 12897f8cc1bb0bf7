"""How blocks of output channels are cut for tensor cores and laid out in memory: for the kernel of `mma_blocks.py`.

A row of the layer is 16 neighbouring output channels or a multiple; its list has the places (input channel, position of
the kernel) where any of them has a weight, and there the weights of all. Rows are sorted by the lengths of their lists,
and a block of threads has of the input channels only those that its lists read.

A list is in steps, of as many places as one instruction multiplies, in the order (half of the fragment's words, number
in a word, lane's column). Four neighbours in a list are read at the same time, for 8 pixels each: they are picked from
different banks of shared memory.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from lwc_compiler.kernels.gpu.builder import ceil_div
from lwc_compiler.kernels.gpu.lists import VECTOR, ListTile
from lwc_compiler.kernels.gpu.precision import numbers_in_word, round_to
from lwc_compiler.kernels.kernel import Constant

if TYPE_CHECKING:
    from numpy.typing import NDArray

DOWN, ACROSS = 16, 8  # output channels and pixels of one instruction
COLUMNS = 4  # of the lanes of a warp: those that read different places of a list
FRAGMENT_WORDS = 128  # of a warp's fragment of the weights
_BANKS = 32
_ALIKE = 4  # steps, to a multiple of which those of a kernel are rounded up


@dataclass(frozen=True)
class MmaBlocksTile(ListTile):
    """How the lists of a layer are cut into blocks.

    `height` is a multiple of 16, `columns` and the pixels of the tile are multiples of 8, and `channels` of `unit`. A
    part of a row's list is some of its steps.

    Attributes:
        precision: `tf32`, `float16` or `bfloat16`.
        picked: the most input channels that the lists of a block read; known when the weights are.
    """

    precision: str = "float16"
    picked: int = 0

    @property
    def in_word(self) -> int:
        """Places of a word of a fragment."""
        return numbers_in_word(self.precision)

    @property
    def step(self) -> int:
        """Places of a step."""
        return 2 * COLUMNS * self.in_word

    @property
    def downs(self) -> int:
        """Instructions over the output channels of a row."""
        return self.height // DOWN

    @property
    def acrosses(self) -> int:
        """Instructions over the pixels of a tile."""
        return self.rows * self.columns // ACROSS

    @property
    def by_channel(self) -> bool:
        # A product; an image of one pixel is none, whose window has others.
        g = self.geometry
        one = g.batch == math.prod(g.kernel) == 1 and not any(g.pads)
        return one and self.x_strides[1] == 1 and self.x_strides[-1] == g.in_channels

    @property
    def half(self) -> int:
        # A multiple of the pixels that are read at the same time: they are from as many banks, wherever a row begins.
        return ceil_div(ceil_div(self.window[-1], self.geometry.strides[-1]), ACROSS) * ACROSS

    @property
    def pitch(self) -> int:
        return self.half * self.geometry.strides[-1]

    @property
    def plane(self) -> int:
        if self.by_channel:
            return 1
        least = math.prod(self.window[:-1]) * self.pitch
        return least + (ACROSS - least) % _BANKS  # neighbouring channels are in different quarters of the banks

    @property
    def column_pitch(self) -> int:
        # Four channels of 8 pixels are in different banks.
        least = self.channels + 1
        return least + (COLUMNS - least) % _BANKS if self.by_channel else 1

    @property
    def vector(self) -> int:
        g = self.geometry
        if self.x_strides[-1] > 1 or g.strides[-1] > 1:
            return 1
        return next(n for n in (VECTOR, 2, 1) if not any(size % n for size in (*self.x_strides[:-1], g.in_size[-1])))

    @property
    def left(self) -> int:
        return -self.geometry.pads[len(self.geometry.in_size) - 1] % self.vector

    @property
    def window(self) -> tuple[int, ...]:
        *before, columns = super().window
        return (*before, ceil_div(self.left + columns, self.vector) * self.vector)

    @property
    def unit(self) -> int:
        return VECTOR if self.by_channel and self.geometry.group_inputs % VECTOR == 0 else 1

    @property
    def zeros(self) -> int:
        return self.columns if self.by_channel else self.plane

    @property
    def stage_elements(self) -> int:
        return self.columns * self.column_pitch if self.by_channel else (self.channels + 1) * self.plane

    @property
    def chunks(self) -> int:
        return max(1, ceil_div(self.picked, self.channels))

    @property
    def lists(self) -> int:
        return self.per_block

    @property
    def sums(self) -> int:
        return self.downs * self.acrosses * 4

    @property
    def value_words(self) -> int:
        return self.downs * FRAGMENT_WORDS

    @property
    def offset_words(self) -> int:
        return COLUMNS * self.in_word

    @property
    def shared_bytes(self) -> int:
        return super().shared_bytes + 4 * self.chunks * self.chunk_picks


def kept_places(weight: NDArray[np.float32], height: int) -> NDArray[np.bool_]:
    """Where any of `height` neighbouring output channels has a weight.

    Args:
        weight: float32 (groups, O / groups, C / groups, positions of the kernel).
        height: of a row; the last one of a group may have fewer output channels.

    Returns:
        (groups, rows, C / groups, positions).
    """
    groups, outputs, *inputs = weight.shape
    padded = np.pad(weight != 0, ((0, 0), (0, -outputs % height), (0, 0), (0, 0)))
    kept: NDArray[np.bool_] = np.any(padded.reshape(groups, -1, height, *inputs), axis=2)
    return kept


@dataclass(frozen=True)
class _Places:
    """The places of all lists, one after the other, and what they were made of.

    Attributes:
        group: of each place, likewise: its row, block in the group, list of the block, number of its channel among
            those that the block reads, channel and position of the kernel.
        order: rows of each group, (groups, rows), as blocks have them.
        picked: first channels of the units that each block reads, (groups * blocks, units), -1 where it has fewer.
    """

    group: NDArray[np.int64]
    row: NDArray[np.int64]
    block: NDArray[np.int64]
    slot: NDArray[np.int64]
    local: NDArray[np.int64]
    channel: NDArray[np.int64]
    position: NDArray[np.int64]
    order: NDArray[np.int64]
    picked: NDArray[np.int32]


def _places(weight: NDArray[np.float32], t: MmaBlocksTile) -> _Places:
    g = t.geometry
    kept = kept_places(weight.reshape(g.groups, g.group_outputs, g.group_inputs, -1), t.height)
    order = np.argsort(-np.count_nonzero(kept, axis=(2, 3)), axis=1, kind="stable")
    group, row, channel, position = np.nonzero(kept)
    block, slot = np.divmod(np.argsort(order, axis=1)[group, row], t.per_block)
    all_blocks, unit = group * t.row_blocks + block, channel // t.unit
    read = np.zeros((g.groups * t.row_blocks, ceil_div(g.group_inputs, t.unit)), np.bool_)
    read[all_blocks, unit] = True
    number = np.cumsum(read, axis=1) - 1
    picked = np.full((len(read), max(1, int(read.sum(axis=1).max()))), -1, np.int32)
    of_block, unit_read = np.nonzero(read)
    picked[of_block, number[of_block, unit_read]] = unit_read * t.unit
    local = number[all_blocks, unit] * t.unit + channel % t.unit
    return _Places(group, row, block, slot, local, channel, position, order, picked)


def _lists_of(places: _Places, t: MmaBlocksTile) -> NDArray[np.int64]:
    """The list of each place, in the order (group, chunk, block, list of the block)."""
    chunk = (places.group * t.chunks + places.local // t.channels) * t.row_blocks + places.block
    return chunk * t.lists + places.slot


def _list_steps(lists: NDArray[np.int64], t: MmaBlocksTile) -> NDArray[np.int64]:
    """Steps of each list."""
    return -(-np.bincount(lists, minlength=t.geometry.groups * t.chunks * t.row_blocks * t.lists) // t.step)


def fitted(weight: NDArray[np.float32], t: MmaBlocksTile) -> MmaBlocksTile:
    """The tile with the steps and the channels that its blocks need, and so many of these that they fit shared memory.

    Args:
        weight: float32 (O, C / groups, *kernel).
        t: the tile with as many input channels as are wanted.
    """
    places = _places(weight, t)
    t = replace(t, picked=places.picked.shape[1] * t.unit)
    # With one unit of input channels every tile that is planned fits.
    while True:
        t = replace(t, channels=min(t.channels, t.picked))
        steps = _list_steps(_lists_of(places, t), t).reshape(-1, t.lists).sum(axis=1)
        t = replace(t, steps=ceil_div(max(1, int(steps.max())), _ALIKE) * _ALIKE)
        if t.shared_bytes <= t.most_bytes or t.channels == t.unit:
            return t
        t = replace(t, channels=max(1, t.units * 7 // 8) * t.unit)


def pack_mma_blocks(weight: NDArray[np.float32], t: MmaBlocksTile) -> tuple[list[Constant], int]:
    """Starts (in steps), rows' first output channels, channels that are read, offsets and weights; and how many.

    Lists are filled to whole steps with places of the channel of zeros. What comes last is how many weights are stored.

    Args:
        weight: float32 (O, C / groups, *kernel).
        t: the layout, as `fitted` gives it.
    """
    g, places = t.geometry, _places(weight, t)
    firsts = np.zeros((g.groups, t.slots), np.int32)
    firsts[:, : t.group_rows] = places.order * t.height + np.arange(g.groups)[:, None] * g.group_outputs
    picked = np.full((len(places.picked), t.chunks, t.chunk_picks), -1, np.int32)
    more = t.chunks * t.units - places.picked.shape[1]
    of_chunks = np.pad(places.picked, ((0, 0), (0, more)), constant_values=-1)
    picked[:, :, : t.units] = of_chunks.reshape(-1, t.chunks, t.units)
    lists, offset = _lists_of(places, t), _offsets(places, t)
    sorted_, lists = _sorted(lists, offset, t)
    starts = np.concatenate([[0], np.cumsum(_list_steps(lists, t))])
    to = starts[lists] * t.step + np.arange(lists.size) - np.searchsorted(lists, lists)
    many = max(1, int(starts[-1])) * t.step  # an array of nothing has no address
    offsets = np.full(many, t.channels * t.plane, np.uint16)
    offsets[to] = offset[sorted_]
    values = np.zeros((many, t.height), np.float32)
    filled = ((0, 0), (0, t.group_rows * t.height - g.group_outputs), (0, 0), (0, 0))
    rows = np.pad(weight.reshape(g.groups, g.group_outputs, g.group_inputs, -1), filled)
    rows = rows.reshape(g.groups, t.group_rows, t.height, g.group_inputs, -1)
    at = [each[sorted_] for each in (places.group, places.row, places.channel, places.position)]
    values[to] = rows[at[0], at[1], :, at[2], at[3]]
    # A lane has the places of its column.
    of_lanes = np.ascontiguousarray(offsets.reshape(-1, 2 * t.in_word, COLUMNS).swapaxes(1, 2))
    arrays = (starts.astype(np.int32), firsts.reshape(-1), picked, of_lanes.view(np.uint32), _fragments(values, t))
    return [Constant(array) for array in arrays], lists.size * t.height


def _offsets(places: _Places, t: MmaBlocksTile) -> NDArray[np.int64]:
    """Where each place's first pixel is in a stage."""
    g = t.geometry
    *before, column = np.unravel_index(places.position, g.kernel)
    column = column * g.dilations[-1] + t.left
    phase = column % g.strides[-1] * t.half + column // g.strides[-1]
    at = places.local % t.channels * t.plane + phase * t.column_pitch
    for axis, place in enumerate(before):
        at = at + place * g.dilations[axis] * t.row_pitches[axis]
    return np.asarray(at, np.int64)


def _sorted(
    lists: NDArray[np.int64], offset: NDArray[np.int64], t: MmaBlocksTile
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The order of all places, and their lists in it: four neighbours are of different quarters of the banks.

    Those come first that also begin at the same bank of their quarters.
    """
    quarter, start = offset % _BANKS // ACROSS, offset % ACROSS
    if t.by_channel:
        quarter, start = offset % COLUMNS, np.zeros_like(offset)
    alike, of_quarter = lists * ACROSS + start, lists * COLUMNS + quarter
    number = _numbered(alike * COLUMNS + quarter, start)
    fours = np.bincount(alike * COLUMNS + quarter, minlength=(int(alike.max(initial=0)) + 1) * COLUMNS)
    left = number >= fours.reshape(-1, COLUMNS).min(axis=1)[alike]
    number = np.where(left, _numbered(of_quarter * 2 + left, start), number)
    order = np.lexsort((quarter, number, np.where(left, 0, start), left, lists))
    return order, lists[order]


def _numbered(keys: NDArray[np.int64], by: NDArray[np.int64]) -> NDArray[np.int64]:
    """The number of each among those of the same key, in the order of `by`."""
    order = np.lexsort((by, keys))
    number = np.empty(keys.size, np.int64)
    number[order] = np.arange(keys.size) - np.searchsorted(keys[order], keys[order])
    return number


def _fragments(values: NDArray[np.float32], t: MmaBlocksTile) -> NDArray[np.uint32]:
    """(places, output channels) as words in the order (step, instruction, lane, half of the places, half of the rows).

    Lane 4 r + c has of a step the words c and c + 4 of the output channels r and r + 8 (PTX ISA, *Matrix Fragments for
    mma.m16n8k16* and *mma.m16n8k8*).
    """
    split = values.reshape(
        -1, 2, t.in_word, COLUMNS, t.downs, 2, 8
    )  # step, half, number, column, instruction, half, row
    return round_to(split.transpose(0, 4, 6, 3, 1, 5, 2), t.precision)
