"""Sparse convolutions and products with many rows on a GPU.

A layer is a sparse matrix over shifted views of its input (see `kernels/taps.py`): each non-zero is a *tap*, an offset
and a value. A block of threads computes some output channels on a tile of pixels. It copies what the tile reads of some
input channels to shared memory, with zeros for the padding, and the taps of its output channels on them; while it
computes these, the next input channels are on their way. Each warp goes through the taps of its output channels, four
at a time, which all its lanes share; every lane has the sums of a few pixels in registers. Shared memory serves 32
neighbouring pixels in a cycle however they are shifted, so taps of any kernel position cost the same.

Where a layer has too few pixels and output channels for all warps of a GPU, several warps share the taps of an output
channel, each those of some input channels, and add their sums up through shared memory.

The output channels are sorted by their number of taps: those of a block have about as many, so that none waits long at
a barrier, and the longest begin first.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from tvm import tirx

from lwc_compiler.kernels.builder import divide, modulo, smaller, splat, unravel
from lwc_compiler.kernels.gpu.builder import SHARED_ALIGNMENT_BYTES, WARP, DeviceBuilder, ceil_div
from lwc_compiler.kernels.kernel import STATIC_SHARED_BYTES, Constant
from lwc_compiler.kernels.layer import store_result

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from lwc_compiler.kernels.builder import Register
    from lwc_compiler.kernels.gpu.builder import Expr
    from lwc_compiler.kernels.kernel import Kernel
    from lwc_compiler.kernels.layer import ConvGeometry, Epilogue


TAP_STEP = 4  # taps that are read at a time
_OFFSET_WORDS = TAP_STEP // 2  # of a step's offsets, of 16 bits each
_STEP_WORDS = TAP_STEP + _OFFSET_WORDS
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
        outputs: output channels of a warp.
        parts: warps that share an output channel; divides `warps`.
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
    def per_block(self) -> int:
        """Output channels of a block."""
        return self.warps // self.parts * self.outputs

    @property
    def row_blocks(self) -> int:
        """Blocks over the output channels of a group."""
        return ceil_div(self.geometry.group_outputs, self.per_block)

    @property
    def slots(self) -> int:
        """Places for output channels of a group."""
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
        sums = (self.parts - 1) * self.per_block * self.pixels * WARP
        return max(self.stages * self.stage_elements, sums)

    @property
    def shared_bytes(self) -> int:
        """Of shared memory that a block uses, with its taps."""
        taps = self.steps * _STEP_WORDS + self.lists + 1
        return 4 * (self.window_elements + self.stages * taps) + 4 * SHARED_ALIGNMENT_BYTES

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
    """The non-zeros of a weight: which list each is in, its channel and its position; and the order of the outputs."""

    lists: NDArray[np.int64]
    channel: NDArray[np.int64]
    position: list[NDArray[np.int64]]
    values: NDArray[np.float32]
    order: NDArray[np.int64]


def _places(weight: NDArray[np.float32], t: TapTile) -> _Places:
    g = t.geometry
    rows = weight.reshape(g.groups, g.group_outputs, *weight.shape[1:])
    counts = np.count_nonzero(rows.reshape(g.groups, g.group_outputs, -1), axis=2)
    order = np.argsort(-counts, axis=1, kind="stable")
    group, output, channel, *position = np.nonzero(rows)
    block, slot = np.divmod(np.argsort(order, axis=1)[group, output], t.per_block)
    blocks = (group * t.chunks + channel // t.channels) * t.row_blocks + block
    lists = (blocks * t.parts + channel % t.channels % t.parts) * t.per_block + slot
    return _Places(lists, channel, position, rows[np.nonzero(rows)], order)


def _list_steps(places: _Places, t: TapTile) -> NDArray[np.int64]:
    """Steps of each list."""
    lists = t.geometry.groups * t.chunks * t.row_blocks * t.lists
    return -(-np.bincount(places.lists, minlength=lists) // TAP_STEP)


def pack_taps(weight: NDArray[np.float32], t: TapTile) -> tuple[list[Constant], int]:
    """Starts (in steps), output channels, offsets and values, as the kernel reads them, and how many taps there are.

    Lists are filled to whole steps with taps of the channel of zeros. They are in the order (group, chunk, block of
    output channels, part, output channel).

    Args:
        weight: float32 (O, C / groups, *kernel).
        t: the layout, as `fitted` gives it.
    """
    g, places = t.geometry, _places(weight, t)
    channels = np.zeros((g.groups, t.slots), np.int32)
    channels[:, : g.group_outputs] = places.order + np.arange(g.groups)[:, None] * g.group_outputs
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
    offsets, values = np.full(taken, t.channels * t.plane, np.uint16), np.zeros(taken, np.float32)
    offsets[to], values[to] = at[sorted_], places.values[sorted_]
    arrays = (starts.astype(np.int32), channels.reshape(-1), offsets.view(np.uint32), values)
    return [Constant(array) for array in arrays], lists.size


def taps_kernel(name: str, t: TapTile, epilogue: Epilogue) -> Kernel:
    """The kernel: x, [residual,] starts, channels, offsets, values, [bias,] y."""
    g = t.geometry
    n = len(g.in_size)
    b = DeviceBuilder(t.grid, t.warps * WARP)
    x = b.pointer("x")
    residual = b.pointer("residual") if epilogue.residual else None
    starts, channels = b.constant("starts", "int32"), b.constant("channels", "int32")
    offsets, values = b.constant("offsets", "uint32"), b.constant("values")
    bias = b.constant("bias") if epilogue.bias is not None else None
    y = b.pointer("y")

    lane, warp = b.let("lane", modulo(b.thread, WARP)), b.let("warp", divide(b.thread, WARP))
    image, *tile = unravel(b, b.block[0], (g.batch, *t.tiles))
    corner = [b.let("corner", at * size) for at, size in zip(tile, t.tile, strict=True)]
    row, column = t.base(lane)
    base = b.let("base", row * (g.strides[-2] * t.pitch) + column)
    copies = _Copies(b, t, (x, starts, offsets, values), image, corner)
    across = t.warps // t.parts
    part, place = b.let("part", divide(warp, across)), b.let("place", modulo(warp, across))
    slots = [b.let("slot", b.block[1] * t.per_block + i * across + place) for i in range(t.outputs)]

    copies.start_taps(0, 0)
    copies.clear()
    b.inputs_ready()
    copies.start_window(0, 0)
    b.commit()
    sums = [[b.register(1) for _ in range(t.pixels)] for _ in slots]
    for slot, registers in zip(slots, sums, strict=True):
        start = splat(0.0, 1)
        if bias is not None:
            start = b.let("start", b.load(bias, b.load(channels, b.block[2] * t.slots + slot)))
            if t.parts > 1:
                start = tirx.if_then_else(part == 0, start, splat(0.0, 1))
        for register in registers:
            register.set(start)

    with b.loop("chunk", 0, t.chunks) as chunk:
        stage = 0
        if t.chunks > 1:
            stage = b.let("stage", modulo(chunk, t.stages))
            with b.when(chunk + 1 < t.chunks):
                copies.start_taps(chunk + 1, 1 - stage)
                copies.start_window(chunk + 1, 1 - stage)
            b.commit()
        b.wait(t.stages - 1)
        b.barrier()
        here = b.let("here", base + stage * t.stage_elements)
        first_step = b.let("first_step", b.load(copies.starts, stage * (t.lists + 1)))
        for i, registers in enumerate(sums):
            at = b.let("list", stage * (t.lists + 1) + part * t.per_block + i * across + place)
            first = b.let("first", b.load(copies.starts, at) - first_step)
            last = b.let("last", b.load(copies.starts, at + 1) - first_step)
            with b.loop("step", first, last) as step:
                _multiply(b, t, copies, b.let("at", stage * t.steps + step), here, registers)
        if t.chunks > 1:
            b.barrier()

    if t.parts > 1:
        _add_parts(b, t, copies.window, sums, part, place, lane)
    for slot, registers in zip(slots, sums, strict=True):
        works = tirx.all(part == 0, slot < g.group_outputs)
        with b.when(tirx.all(works, lane < t.lane_rows * t.lane_columns) if t.idle else works):
            output = b.let("output", b.load(channels, b.block[2] * t.slots + slot))
            to = image * t.y_strides[0] + output * t.y_strides[1]
            for axis in range(n - 2):
                to = to + corner[axis] * t.y_strides[2 + axis]
            to = b.let("to", to)
            for pixel, register in enumerate(registers):
                rows, columns = t.step(pixel)
                at_row, at_column = corner[-2] + row + rows, corner[-1] + column + columns
                with b.when(tirx.all(at_row < g.out_size[-2], at_column < g.out_size[-1])):
                    result = b.let("result", to + at_row * t.y_strides[-2] + at_column * t.y_strides[-1])
                    store_result(b, y, result, register.get(), residual, epilogue.activation)
    return b.finished(name)


def _multiply(b: DeviceBuilder, t: TapTile, copies: _Copies, step: Expr, here: Expr, sums: list[Register]) -> None:
    """Adds the products of a step's taps to the sums of a lane's pixels."""
    where, held = b.register(_OFFSET_WORDS, "uint32"), b.register(TAP_STEP)
    where.set(b.load(copies.offsets, step * _OFFSET_WORDS, _OFFSET_WORDS))
    held.set(b.load(copies.values, step * TAP_STEP, TAP_STEP))
    for tap in range(TAP_STEP):
        word = where.part(tap // 2, 1)
        offset = word >> tirx.const(16, "uint32") if tap % 2 else word & tirx.const(0xFFFF, "uint32")
        at = b.let("at", offset.astype("int32") + here)
        for pixel, register in enumerate(sums):
            rows, columns = t.step(pixel)
            moved = rows * t.geometry.strides[-2] * t.pitch + columns
            register.set(register.get() + held.part(tap, 1) * b.load(copies.window, at + moved))


def _add_parts(
    b: DeviceBuilder, t: TapTile, shared: Expr, sums: list[list[Register]], part: Expr, row: Expr, lane: Expr
) -> None:
    """Adds to the sums of a block's first warps those of the others, in their order."""
    registers = [register for registers in sums for register in registers]
    across = t.warps // t.parts

    def place(of_part: Expr, number: int) -> Expr:
        return (((of_part - 1) * across + row) * len(registers) + number) * WARP + lane

    b.barrier()
    with b.when(part > 0):
        for number, register in enumerate(registers):
            b.store(shared, place(part, number), register.get())
    b.barrier()
    with b.when(part == 0):
        for other in range(1, t.parts):
            for number, register in enumerate(registers):
                register.set(register.get() + b.load(shared, place(other, number)))


class _Copies:
    """What a block has in shared memory: a stage for each of the chunks that are there at once.

    Attributes:
        window: of each stage the input channels, and one of zeros.
        starts: of each stage those of the block's lists, and their end.
        offsets: of each stage its steps.
        values: likewise.
    """

    def __init__(
        self, b: DeviceBuilder, t: TapTile, pointers: tuple[Expr, ...], image: Expr, corner: list[Expr]
    ) -> None:
        self._b, self._t, self._pointers, self._image, self._corner = b, t, pointers, image, corner
        self.window = b.shared("window", t.window_elements)
        self.values = b.shared("held", t.stages * t.steps * TAP_STEP)
        self.offsets = b.shared("where", t.stages * t.steps * _OFFSET_WORDS, "uint32")
        self.starts = b.shared("lists", t.stages * (t.lists + 1), "int32")
        # The first step of the chunk that is copied next, and the one after its last: loaded a chunk before.
        self._first, self._last = b.register(1, "int32"), b.register(1, "int32")
        self._find(0)

    def clear(self) -> None:
        """Makes the channel of zeros of each stage."""
        b, t = self._b, self._t
        for stage in range(t.stages):
            for element in self._each(t.plane):
                b.store(self.window, stage * t.stage_elements + t.channels * t.plane + element, splat(0.0, 1))

    def _each(self, count: Expr, most: int | None = None) -> Iterator[Expr]:
        """Runs what follows for each number below `count`, at most `most`, in one of the threads."""
        b, threads = self._b, self._t.warps * WARP
        with b.loop("i", 0, ceil_div(count if most is None else most, threads)) as i:
            element = b.let("element", i * threads + b.thread)
            with b.when(element < count if most is not None or count % threads else True):
                yield element

    def _lists(self, chunk: Expr) -> Expr:
        """The first list of a chunk."""
        b, t = self._b, self._t
        return ((b.block[2] * t.chunks + chunk) * t.row_blocks + b.block[1]) * t.lists

    def _find(self, chunk: Expr) -> None:
        starts = self._pointers[1]
        lists = self._b.let("lists", self._lists(chunk))
        self._first.set(self._b.load(starts, lists))
        self._last.set(self._b.load(starts, lists + self._t.lists))

    def start_taps(self, chunk: Expr, stage: Expr) -> None:
        """Starts to copy the taps of a chunk."""
        b, t = self._b, self._t
        _, starts, offsets, values = self._pointers
        lists = b.let("lists", self._lists(chunk))
        for number in self._each(t.lists + 1):
            b.copy(self.starts, stage * (t.lists + 1) + number, starts, lists + number, 1)
        first = b.let("first", self._first.get())
        for step in self._each(b.let("count", self._last.get() - first), t.steps):
            b.copy(self.values, (stage * t.steps + step) * TAP_STEP, values, (first + step) * TAP_STEP, TAP_STEP)
            to = (stage * t.steps + step) * _OFFSET_WORDS
            b.copy(self.offsets, to, offsets, (first + step) * _OFFSET_WORDS, _OFFSET_WORDS)
        if t.chunks > 1:
            self._find(smaller(chunk + 1, t.chunks - 1))

    def start_window(self, chunk: Expr, stage: Expr) -> None:
        """Starts to copy the input channels of a chunk.

        A thread copies the same positions of several channels, so that it works out their places once.
        """
        b, t, x = self._b, self._t, self._pointers[0]
        g, threads = t.geometry, t.warps * WARP
        positions = math.prod(t.window) // t.vector
        if t.by_channel:
            across, thread, thread_channel = t.warps, divide(b.thread, WARP), modulo(b.thread, WARP)
        else:
            across = min(threads, 1 << (positions - 1).bit_length())
            thread, thread_channel = modulo(b.thread, across), divide(b.thread, across)
        down = threads // across
        with b.loop("i", 0, ceil_div(positions, across)) as i:
            element = b.let("element", i * across + thread)
            with b.when(element < positions if positions % across else True):
                *before, column = unravel(b, element * t.vector, t.window)
                first = chunk * t.channels + b.block[2] * g.group_inputs
                from_ = self._image * t.x_strides[0] + first * t.x_strides[1]
                inside = None
                for axis, (corner, at) in enumerate(zip(self._corner, (*before, column), strict=True)):
                    position = b.let("position", corner * g.strides[axis] + at - g.pads[axis])
                    within = tirx.all(position >= 0, position < g.in_size[axis])
                    inside = within if inside is None else tirx.all(inside, within)
                    from_ = from_ + position * t.x_strides[2 + axis]
                to = stage * t.stage_elements + modulo(column, g.strides[-1]) * t.half + divide(column, g.strides[-1])
                for at, pitch in zip(before, t.row_pitches, strict=True):
                    to = to + at * pitch
                from_, to = b.let("from", from_), b.let("to", to)
                with b.loop("j", 0, ceil_div(t.channels, down)) as j:
                    channel = b.let("channel", j * down + thread_channel)
                    exists = inside
                    if g.group_inputs % t.channels:
                        exists = tirx.all(exists, chunk * t.channels + channel < g.group_inputs)
                    with b.when(channel < t.channels if t.channels % down else True):
                        at = to + channel * t.plane
                        b.copy(self.window, at, x, from_ + channel * t.x_strides[1], t.vector, exists)
