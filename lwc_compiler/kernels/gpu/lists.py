"""What sparse convolutions have in common on a GPU, on whatever units: lists of weights, and windows of the input.

A layer is a sparse matrix over shifted views of its input (see `kernels/taps.py`). A block of threads computes some
rows of it on a tile of pixels; a row is some neighbouring output channels that share the places of their weights. The
block copies what the tile reads of some input channels to shared memory, with zeros for the padding, and the lists of
its rows on them: offsets into the window, and values. While it computes these, the next ones are on their way.

Where a layer has too few pixels and rows for all warps of a GPU, several warps share a row, each a part of its list,
and add their sums up through shared memory.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lwc_compiler.kernels.gpu.builder import SHARED_ALIGNMENT_BYTES, WARP, ceil_div
from lwc_compiler.kernels.kernel import STATIC_SHARED_BYTES

if TYPE_CHECKING:
    from lwc_compiler.kernels.layer import ConvGeometry

VECTOR = 4  # words of the largest copy
MOST_FILLED = 1.05  # weights that are stored where rows are blocks, of those that are kept
_PICKS = 8  # units that a thread looks up at a time


@dataclass(frozen=True)
class ListTile(ABC):
    """How a layer's lists are cut into blocks.

    Attributes:
        geometry: of two dimensions or three, not transposed.
        x_strides: elements between neighbours of the input along (batch, channel, *spatial).
        y_strides: the same of the output.
        rows: of the tile of pixels, along the last dimension but one.
        columns: of the tile.
        channels: input channels in shared memory at a time.
        warps: of a block.
        outputs: rows of the layer that a warp computes.
        parts: warps that share a row; divides `warps`.
        height: output channels of a row of the layer, neighbours.
        most_bytes: of shared memory, that a block may take.
        steps: most steps of a block's lists in shared memory at a time; known when the weights are.
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
    @abstractmethod
    def half(self) -> int:
        """Columns of one phase: a row in shared memory is split by the stride, so that lanes read neighbours."""

    @property
    @abstractmethod
    def pitch(self) -> int:
        """Elements of a row in shared memory."""

    @property
    @abstractmethod
    def plane(self) -> int:
        """Elements in shared memory from one channel to the next."""

    @property
    @abstractmethod
    def chunks(self) -> int:
        """How often shared memory is filled."""

    @property
    @abstractmethod
    def lists(self) -> int:
        """Lists that a block has of a chunk."""

    @property
    @abstractmethod
    def sums(self) -> int:
        """Sums of a lane, of one row."""

    @property
    @abstractmethod
    def value_words(self) -> int:
        """Words of a step's values, a multiple of 4."""

    @property
    @abstractmethod
    def offset_words(self) -> int:
        """Words of a step's offsets: 2, or a multiple of 4."""

    @property
    def column_pitch(self) -> int:
        """Elements in shared memory from one column to the next, of a phase."""
        return 1

    @property
    def unit(self) -> int:
        """Neighbouring channels that are copied together, as one vector."""
        return 1

    @property
    def units(self) -> int:
        """Of them in shared memory at a time."""
        return self.channels // self.unit

    @property
    def zeros(self) -> int:
        """Zeros of a stage, `column_pitch` apart, from where its last channel ends."""
        return self.plane

    @property
    def stage_elements(self) -> int:
        """Elements of shared memory that a chunk of the input takes, and a channel of zeros."""
        return (self.channels + 1) * self.plane

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
    def left(self) -> int:
        """Columns of the window before those that a tile reads, so that copies of several are aligned."""
        return 0

    @property
    def copiers(self) -> int:
        """Threads that copy different positions of a channel."""
        if self.by_channel:
            return self.warps
        positions = math.prod(self.window) // self.vector
        return min(self.warps * WARP, 1 << (positions - 1).bit_length())

    @property
    def picks(self) -> int:
        """Units that a thread looks up at a time, before it copies any."""
        return min(_PICKS, ceil_div(self.units * self.copiers, self.warps * WARP))

    @property
    def chunk_picks(self) -> int:
        """Numbers of units of a chunk: as many as are looked up."""
        at_once = self.picks * (self.warps * WARP // self.copiers)
        return ceil_div(self.units, at_once) * at_once

    @property
    def shared_columns(self) -> int:
        """Columns at the end of a row that are the first ones of the next row, too: zeros beside the input in both."""
        return 0

    @property
    def overlap(self) -> int:
        """Columns of a row that have the place of columns of the next one."""
        return max(0, self.window[-1] - self.pitch) if self.shared_columns else 0

    @property
    def row_pitches(self) -> tuple[int, ...]:
        """Elements in shared memory from one position to the next along each dimension but the last."""
        return tuple(math.prod(self.window[i + 1 : -1]) * self.pitch for i in range(len(self.window) - 1))

    @property
    def by_channel(self) -> bool:
        """Whether neighbours in the input's memory are of neighbouring channels."""
        return self.x_strides[1] == 1

    @property
    def vector(self) -> int:
        """Pixels that are copied at once: 4 where they are all in a row, and every row is aligned."""
        g = self.geometry
        strides = (*self.x_strides[:2], g.in_size[-1], self.columns)
        plain = set(g.kernel) == set(g.strides) == {1} and not any(g.pads) and self.x_strides[-1] == 1
        return VECTOR if plain and self.rows == 1 and not any(n % VECTOR for n in strides) else 1

    @property
    def group_rows(self) -> int:
        """Rows of a group."""
        return ceil_div(self.geometry.group_outputs, self.height)

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
        """Tiles of all images, blocks of rows, groups."""
        return (self.geometry.batch * math.prod(self.tiles), self.row_blocks, self.geometry.groups)

    @property
    def stages(self) -> int:
        """Chunks in shared memory at once."""
        return min(2, self.chunks)

    @property
    def window_elements(self) -> int:
        """Of shared memory for all chunks at once; the sums of all parts but one take their place."""
        sums = (self.parts - 1) * self.per_block * self.sums * WARP
        return max(self.stages * self.stage_elements, sums)

    @property
    def step_words(self) -> int:
        """Words of shared memory for a step."""
        return self.value_words + self.offset_words

    @property
    def shared_bytes(self) -> int:
        """Of shared memory that a block uses, with its lists."""
        lists = self.steps * self.step_words + self.lists + 1
        return 4 * (self.window_elements + self.stages * lists) + 4 * SHARED_ALIGNMENT_BYTES
