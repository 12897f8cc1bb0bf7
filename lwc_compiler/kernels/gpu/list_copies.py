"""Copies windows of the input and lists to shared memory, chunk by chunk, while others are computed: see `lists.py`."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from tvm import tirx

from lwc_compiler.kernels.builder import divide, modulo, smaller, splat, unravel
from lwc_compiler.kernels.gpu.builder import WARP, ceil_div
from lwc_compiler.kernels.gpu.lists import VECTOR

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lwc_compiler.kernels.builder import Register
    from lwc_compiler.kernels.gpu.builder import DeviceBuilder, Expr
    from lwc_compiler.kernels.gpu.lists import ListTile


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
        self._picked = None if picked is None else b.shared("channels", t.chunks * t.chunk_picks, "int32")
        # The first step of the chunk that is copied next, and the one after its last: loaded a chunk before.
        self._first, self._last = b.register(1, "int32"), b.register(1, "int32")
        self._find(0)
        if picked is not None:
            first = (b.block[2] * t.row_blocks + b.block[1]) * (t.chunks * t.chunk_picks)
            for number in self._each(t.chunks * t.chunk_picks):
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
            if t.chunks > t.stages:
                with b.when(chunk + t.stages < t.chunks):  # another chunk takes the stage
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
        b, t, g = self._b, self._t, self._t.geometry
        positions, across = math.prod(t.window) // t.vector, t.copiers
        if t.by_channel:
            thread, thread_unit = divide(b.thread, WARP), modulo(b.thread, WARP)
        else:
            thread, thread_unit = modulo(b.thread, across), divide(b.thread, across)
        with b.loop("i", 0, ceil_div(positions, across)) as i:
            element = b.let("element", i * across + thread)
            *before, column = unravel(b, element * t.vector, t.window)
            copied = element < positions
            if t.overlap:  # the thread that has the end of the row before copies them
                copied = tirx.all(copied, tirx.any(element < t.window[-1], column >= t.overlap))
            with b.when(copied if t.overlap or positions % across else True):
                first = b.block[2] * g.group_inputs
                if self._picked is None:
                    first = chunk * t.channels + first
                from_ = self._image * t.x_strides[0] + first * t.x_strides[1]
                inside = None
                for axis, (corner, at) in enumerate(zip(self._corner, (*before, column), strict=True)):
                    before_first = g.pads[axis] + (t.left if axis == len(g.in_size) - 1 else 0)
                    position = b.let("position", corner * g.strides[axis] + at - before_first)
                    within = tirx.all(position >= 0, position < g.in_size[axis])
                    inside = within if inside is None else tirx.all(inside, within)
                    from_ = from_ + position * t.x_strides[2 + axis]
                phase = modulo(column, g.strides[-1]) * t.half + divide(column, g.strides[-1])
                to = stage * t.stage_elements + phase * t.column_pitch
                for at, pitch in zip(before, t.row_pitches, strict=True):
                    to = to + at * pitch
                from_, to = b.let("from", from_), b.let("to", to)
                if self._picked is None:
                    self._copy_chunk(chunk, thread_unit, from_, to, inside)
                else:
                    self._copy_picked(chunk, thread_unit, from_, to, inside)

    def _copy_chunk(self, chunk: Expr, thread_unit: Expr, from_: Expr, to: Expr, inside: Expr) -> None:
        """Starts to copy a position of the chunk's channels."""
        b, t, g = self._b, self._t, self._t.geometry
        down = t.warps * WARP // t.copiers
        with b.loop("j", 0, ceil_div(t.units, down)) as j:
            unit = b.let("unit", j * down + thread_unit)
            exists = inside
            if g.group_inputs % t.channels:
                exists = tirx.all(exists, chunk * t.channels + unit * t.unit < g.group_inputs)
            with b.when(unit < t.units if t.units % down else True):
                self._copy_unit(unit, from_ + unit * (t.unit * t.x_strides[1]), to, exists)

    def _copy_picked(self, chunk: Expr, thread_unit: Expr, from_: Expr, to: Expr, inside: Expr) -> None:
        """Starts to copy a position of channels that are looked up, several before any is copied: looking up waits."""
        b, t = self._b, self._t
        down = t.warps * WARP // t.copiers
        with b.loop("j", 0, t.chunk_picks // (t.picks * down)) as j:
            units = [b.let("unit", (j * t.picks + n) * down + thread_unit) for n in range(t.picks)]
            channels = [b.let("channel", b.load(self._picked, chunk * t.chunk_picks + unit)) for unit in units]
            for unit, channel in zip(units, channels, strict=True):
                with b.when(channel >= 0):
                    self._copy_unit(unit, from_ + channel * t.x_strides[1], to, inside)

    def _copy_unit(self, unit: Expr, from_: Expr, to: Expr, exists: Expr) -> None:
        t = self._t
        at, size = to + unit * (t.unit * t.plane), max(t.vector, t.unit)
        self._b.copy(self.window, at, self._x, from_, size, exists)


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
