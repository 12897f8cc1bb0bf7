"""Copies slices of the weights and of the inputs of a dense layer to shared memory, while others are multiplied."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tvm import tirx

from lwc_compiler.kernels.builder import divide, modulo, smaller, unravel
from lwc_compiler.kernels.gpu.builder import both, ceil_div

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from lwc_compiler.kernels.gpu.builder import DeviceBuilder, Expr
    from lwc_compiler.kernels.gpu.product import ProductTile

    # From how many rows after the thread's first one to where its copy comes from, and whether that exists.
    _OfRow = Callable[[int], tuple[Expr, Expr]]

_VECTOR = 4


class Slices:
    """A block's slices: as many as shared memory has room for are there or on their way.

    A thread has the same pixel, or the same channel, in all its copies: what depends on it is computed once, and what
    depends on a slice once for each slice.

    Args:
        b: the kernel.
        t: its tile.
        x: the input.
        weights: slices of `t.slice_words` words.
        group: of the output channels.
        part: of the sums.
        left: buffer in shared memory, and where the weights begin in it: `t.stages` slices.
        right: the same for the inputs.
    """

    def __init__(
        self,
        b: DeviceBuilder,
        t: ProductTile,
        x: Expr,
        weights: Expr,
        group: Expr,
        part: Expr,
        left: tuple[Expr, int],
        right: tuple[Expr, int],
    ) -> None:
        self._b, self._t, self._x, self._weights = b, t, x, weights
        self._left, self._right = left, right
        g = t.geometry
        self._first = b.let("first", part * t.slices_of_block)
        self._count = t.slices if t.splits == 1 else b.let("count", smaller(t.slices_of_block, t.slices - self._first))
        self._tile = b.let("tile", (group * t.output_blocks + b.block[1]) * (t.slices * t.slice_words))
        across = (t.depth if t.by_channel else t.pixels) // t.vector
        self._column = b.let("column", modulo(b.thread, across) * t.vector)
        self._row = b.let("row", divide(b.thread, across))
        self._rows, self._down = (t.pixels if t.by_channel else t.depth), t.threads // across
        base = group * g.group_inputs * t.x_strides[1]
        self._first_pixel = b.block[0] * t.pixels
        if t.by_channel:
            self._base = b.let("base", base + (self._first_pixel + self._row) * t.x_strides[-1])
            return
        pixel = b.let("pixel", self._first_pixel + self._column)
        image, *at = unravel(b, pixel, (g.batch, *g.out_size))
        self._exists = pixel < t.all_pixels if t.all_pixels % t.pixels else True
        starts = zip(at, g.strides, g.pads, strict=False)
        self._corner = [b.let("corner", place * stride - pad) for place, stride, pad in starts]
        for corner, stride in zip(self._corner, t.x_strides[2:], strict=True):
            base = base + corner * stride
        self._base = b.let("base", base + image * t.x_strides[0])

    def each(self) -> Iterator[tuple[Expr, Expr]]:
        """Emits the loop: yields, once, where the weights and the inputs of the slice to multiply are."""
        b, t = self._b, self._t
        ahead = t.stages - 1
        for number in range(ahead):
            with b.when(number < self._count):
                self._copy_weights(self._first + number, number)
        b.inputs_ready()
        for number in range(ahead):
            with b.when(number < self._count):
                self._copy_inputs(self._first + number, number)
            b.commit()
        with b.loop("slice", 0, self._count) as number:
            b.wait(ahead - 1)
            b.barrier()
            with b.when(number + ahead < self._count):
                later, stage = b.let("later", self._first + (number + ahead)), modulo(number + ahead, t.stages)
                self._copy_weights(later, stage)
                self._copy_inputs(later, stage)
            b.commit()
            stage = b.let("stage", modulo(number, t.stages))
            left, right = self._left[1] + stage * t.slice_words, self._right[1] + stage * t.right
            yield b.let("left_at", left), b.let("right_at", right)

    def _copy_weights(self, number: Expr, stage: Expr) -> None:
        """Starts to copy a slice of the weights."""
        b, t = self._b, self._t
        from_ = b.let("from", self._tile + number * t.slice_words + b.thread * _VECTOR)
        to = b.let("to", self._left[1] + stage * t.slice_words + b.thread * _VECTOR)
        for i in range(ceil_div(t.slice_words, _VECTOR * t.threads)):
            done = i * _VECTOR * t.threads
            whole = done + _VECTOR * t.threads <= t.slice_words
            with b.when(True if whole else b.thread * _VECTOR + done < t.slice_words):
                b.copy(self._left[0], to + done, self._weights, from_ + done, _VECTOR)

    def _copy_inputs(self, number: Expr, stage: Expr) -> None:
        """Starts to copy a slice of the inputs."""
        b, t = self._b, self._t
        to = b.let("to", self._right[1] + stage * t.right + self._row * t.pitch + self._column)
        from_of_row = self._by_channel(number) if t.by_channel else self._by_pixel(number)
        for i in range(ceil_div(self._rows, self._down)):
            done = i * self._down
            with b.when(True if done + self._down <= self._rows else self._row + done < self._rows):
                from_, exists = from_of_row(done)
                b.copy(self._right[0], to + done * t.pitch, self._x, from_, t.vector, exists)

    def _by_channel(self, number: Expr) -> _OfRow:
        """Copies of some channels of a pixel, and others of further pixels."""
        b, t = self._b, self._t
        channel = b.let("channel", number * t.depth + self._column)
        base = b.let("from", self._base + channel)

        def of_row(done: int) -> tuple[Expr, Expr]:
            exists = channel < t.geometry.group_inputs if t.geometry.group_inputs % t.depth else True
            if t.all_pixels % t.pixels:
                exists = both(exists, self._first_pixel + self._row + done < t.all_pixels)
            return base + done * t.x_strides[-1], exists

        return of_row

    def _by_pixel(self, number: Expr) -> _OfRow:
        """Copies of some pixels of a channel, and others of further channels."""
        b, t, g = self._b, self._t, self._t.geometry
        if t.block == t.depth:
            channels, *position = unravel(b, number, (t.blocks, *g.kernel))
            channel = b.let("channel", channels * t.depth + self._row)
            from_, inside = self._at(channel, position)
            from_ = b.let("from", from_)
            inside = b.let("inside", inside) if inside is not True else True

            def of_row(done: int) -> tuple[Expr, Expr]:
                exists = channel + done < g.group_inputs if g.group_inputs % t.depth else True
                return from_ + done * t.x_strides[1], both(inside, exists)

            return of_row

        def of_any_row(done: int) -> tuple[Expr, Expr]:
            product = b.let("product", number * t.depth + self._row + done)
            channels, *position, within = unravel(b, product, (t.blocks, *g.kernel, t.block))
            channel = b.let("channel", channels * t.block + within)
            from_, inside = self._at(channel, position)
            exists = product < t.products if t.products % t.depth else True
            if g.group_inputs % t.block:
                exists = both(exists, channel < g.group_inputs)
            return b.let("from", from_), both(inside, exists)

        return of_any_row

    def _at(self, channel: Expr, position: list[Expr]) -> tuple[Expr, Expr]:
        """Where the thread's pixel reads a channel at a position of the kernel, and whether it is inside the input."""
        b, t, g = self._b, self._t, self._t.geometry
        from_, inside = self._base + channel * t.x_strides[1], self._exists
        for axis, (tap, corner) in enumerate(zip(position, self._corner, strict=True)):
            moved = tap * g.dilations[axis]
            from_ = from_ + moved * t.x_strides[2 + axis]
            if g.kernel[axis] > 1 or g.pads[axis] or g.pads[axis + len(g.in_size)]:
                place = b.let("place", corner + moved)
                inside = both(inside, tirx.all(place >= 0, place < g.in_size[axis]))
        return from_, inside
