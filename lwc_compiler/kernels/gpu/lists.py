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

from tvm import tirx

from lwc_compiler.kernels.builder import divide, modulo, smaller, splat, unravel
from lwc_compiler.kernels.gpu.builder import SHARED_ALIGNMENT_BYTES, WARP, ceil_div
from lwc_compiler.kernels.kernel import STATIC_SHARED_BYTES

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lwc_compiler.kernels.builder import Register
    from lwc_compiler.kernels.gpu.builder import DeviceBuilder, Expr
    from lwc_compiler.kernels.layer import ConvGeometry

VECTOR = 4  # words of the largest copy


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
    def adjacent(self) -> int:
        """Neighbouring pixels that a lane reads together: 1, 2 or 4."""
        return 1

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


class Copies:
    """What a block has in shared memory: a stage for each of the chunks that are there at once.

    Args:
        b: the kernel.
        t: its tile.
        x: the input.
        lists: starts, in steps; offsets, two to a word; and values.
        image: of the tile.
        corner: the tile's first pixel.
        picked: for each block, of each unit of every chunk the first input channel, and negative numbers where there
            is none; None where chunks are of the group's channels in order.

    Attributes:
        window: of each stage the input channels, and one of zeros.
        offsets: of each stage its steps.
        values: likewise.
    """

    def __init__(
        self,
        b: DeviceBuilder,
        t: ListTile,
        x: Expr,
        lists: tuple[Expr, Expr, Expr],
        image: Expr,
        corner: list[Expr],
        picked: Expr | None = None,
    ) -> None:
        self._b, self._t, self._x, self._lists, self._image, self._corner = b, t, x, lists, image, corner
        self.window = b.shared("window", t.window_elements)
        self.values = b.shared("held", t.stages * t.steps * t.value_words, str(lists[2].dtype))
        self.offsets = b.shared("where", t.stages * t.steps * t.offset_words, "uint32")
        self._starts = b.shared("lists", t.stages * (t.lists + 1), "int32")
        self._picked = None if picked is None else b.shared("channels", t.chunks * t.units, "int32")
        # The first step of the chunk that is copied next, and the one after its last: loaded a chunk before.
        self._first, self._last = b.register(1, "int32"), b.register(1, "int32")
        self._find(0)
        if picked is not None:
            first = (b.block[2] * t.row_blocks + b.block[1]) * (t.chunks * t.units)
            for number in self._each(t.chunks * t.units):
                b.copy(self._picked, number, picked, first + number, 1)
            b.commit()

    def begin(self) -> None:
        """Starts to copy the first chunk, and makes the channel of zeros of each stage."""
        b, t = self._b, self._t
        self._start_lists(0, 0)
        for stage in range(t.stages):
            for element in self._each(t.zeros):
                at = stage * t.stage_elements + t.channels * t.plane + element * t.column_pitch
                b.store(self.window, at, splat(0.0, 1))
        if self._picked is not None:
            b.commit()
            b.wait(1)
            b.barrier()
        b.inputs_ready()
        self._start_window(0, 0)
        b.commit()

    def each_chunk(self) -> Iterator[tuple[Expr, Expr]]:
        """Emits the loop: yields, once, the stage of the chunk to compute, and the first step of its lists."""
        b, t = self._b, self._t
        with b.loop("chunk", 0, t.chunks) as chunk:
            stage = 0
            if t.chunks > 1:
                stage = b.let("stage", modulo(chunk, t.stages))
                with b.when(chunk + 1 < t.chunks):
                    self._start_lists(chunk + 1, 1 - stage)
                    self._start_window(chunk + 1, 1 - stage)
                b.commit()
            b.wait(t.stages - 1)
            b.barrier()
            yield stage, b.let("first_step", b.load(self._starts, stage * (t.lists + 1)))
            if t.chunks > 1:
                b.barrier()

    def list_steps(self, stage: Expr, first_step: Expr, number: Expr) -> tuple[Expr, Expr]:
        """The first step of one of the stage's lists, and the one after its last."""
        b = self._b
        at = b.let("list", stage * (self._t.lists + 1) + number)
        first = b.let("first", b.load(self._starts, at) - first_step)
        return first, b.let("last", b.load(self._starts, at + 1) - first_step)

    def _each(self, count: Expr, most: int | None = None) -> Iterator[Expr]:
        """Runs what follows for each number below `count`, at most `most`, in one of the threads."""
        b, threads = self._b, self._t.warps * WARP
        with b.loop("i", 0, ceil_div(count if most is None else most, threads)) as i:
            element = b.let("element", i * threads + b.thread)
            with b.when(element < count if most is not None or count % threads else True):
                yield element

    def _first_list(self, chunk: Expr) -> Expr:
        """The first list of a chunk."""
        b, t = self._b, self._t
        return ((b.block[2] * t.chunks + chunk) * t.row_blocks + b.block[1]) * t.lists

    def _find(self, chunk: Expr) -> None:
        starts = self._lists[0]
        lists = self._b.let("lists", self._first_list(chunk))
        self._first.set(self._b.load(starts, lists))
        self._last.set(self._b.load(starts, lists + self._t.lists))

    def _start_lists(self, chunk: Expr, stage: Expr) -> None:
        """Starts to copy the lists of a chunk."""
        b, t = self._b, self._t
        starts, offsets, values = self._lists
        lists = b.let("lists", self._first_list(chunk))
        for number in self._each(t.lists + 1):
            b.copy(self._starts, stage * (t.lists + 1) + number, starts, lists + number, 1)
        first = b.let("first", self._first.get())
        count = b.let("count", self._last.get() - first)
        for to, from_, words in ((self.values, values, t.value_words), (self.offsets, offsets, t.offset_words)):
            size = min(words, VECTOR)
            many = words // size
            for number in self._each(count * many, t.steps * many):
                at = stage * (t.steps * words) + number * size
                b.copy(to, at, from_, first * words + number * size, size)
        if t.chunks > 1:
            self._find(smaller(chunk + 1, t.chunks - 1))

    def _start_window(self, chunk: Expr, stage: Expr) -> None:
        """Starts to copy the input channels of a chunk.

        A thread copies the same positions of several channels, so that it works out their places once.
        """
        b, t, x = self._b, self._t, self._x
        g, threads, units, picked = t.geometry, t.warps * WARP, t.units, self._picked
        positions = math.prod(t.window) // t.vector
        if t.by_channel:
            # A warp writes some channels of as many pixels as are read together, to different banks.
            across, thread_unit = t.warps * t.adjacent, divide(modulo(b.thread, WARP), t.adjacent)
            thread = divide(b.thread, WARP) * t.adjacent + modulo(b.thread, t.adjacent)
        else:
            across = min(threads, 1 << (positions - 1).bit_length())
            thread, thread_unit = modulo(b.thread, across), divide(b.thread, across)
        down = threads // across
        with b.loop("i", 0, ceil_div(positions, across)) as i:
            element = b.let("element", i * across + thread)
            *before, column = unravel(b, element * t.vector, t.window)
            copied = element < positions
            if t.overlap:  # the thread that has the end of the row before copies them
                copied = tirx.all(copied, tirx.any(element < t.window[-1], column >= t.overlap))
            with b.when(copied if t.overlap or positions % across else True):
                first = b.block[2] * g.group_inputs
                if picked is None:
                    first = chunk * t.channels + first
                from_ = self._image * t.x_strides[0] + first * t.x_strides[1]
                inside = None
                for axis, (corner, at) in enumerate(zip(self._corner, (*before, column), strict=True)):
                    position = b.let("position", corner * g.strides[axis] + at - g.pads[axis])
                    within = tirx.all(position >= 0, position < g.in_size[axis])
                    inside = within if inside is None else tirx.all(inside, within)
                    from_ = from_ + position * t.x_strides[2 + axis]
                phase = modulo(column, g.strides[-1]) * t.half + divide(column, g.strides[-1])
                to = stage * t.stage_elements + phase * t.column_pitch
                for at, pitch in zip(before, t.row_pitches, strict=True):
                    to = to + at * pitch
                from_, to = b.let("from", from_), b.let("to", to)
                with b.loop("j", 0, ceil_div(units, down)) as j:
                    unit = b.let("unit", j * down + thread_unit)
                    with b.when(unit < units if units % down else True):
                        channel, exists, there = unit * t.unit, inside, True
                        if picked is not None:
                            channel = b.let("channel", b.load(picked, chunk * units + unit))
                            there = channel >= 0
                        elif g.group_inputs % t.channels:
                            exists = tirx.all(exists, chunk * t.channels + channel < g.group_inputs)
                        with b.when(there):
                            at, size = to + unit * (t.unit * t.plane), max(t.vector, t.unit)
                            b.copy(self.window, at, x, from_ + channel * t.x_strides[1], size, exists)


def add_parts(
    b: DeviceBuilder, t: ListTile, shared: Expr, registers: list[Register], lanes: int, own: tuple[Expr, Expr, Expr]
) -> None:
    """Adds to the sums of a block's first warps those of the others, in their order.

    Args:
        b: the kernel.
        t: its tile.
        shared: memory for the sums.
        registers: a lane's sums.
        lanes: sums of a register.
        own: part, warp of the part, and lane.
    """
    across = t.warps // t.parts
    part, warp, lane = own

    def place(of_part: Expr, number: int) -> Expr:
        return ((((of_part - 1) * across + warp) * len(registers) + number) * WARP + lane) * lanes

    b.barrier()
    with b.when(part > 0):
        for number, register in enumerate(registers):
            b.store(shared, place(part, number), register.get(), lanes)
    b.barrier()
    with b.when(part == 0):
        for other in range(1, t.parts):
            for number, register in enumerate(registers):
                register.set(register.get() + b.load(shared, place(other, number), lanes))
