"""Convolutions and products on tensor cores, as one matrix product (implicit GEMM): with every weight, or half of them.

As in `gemm.py`, a block of threads computes a tile of output channels x pixels, from slices of the weights and of the
shifted inputs in shared memory. Here a warp multiplies fragments of both with `mma.sync` (PTX ISA, *Matrix Fragments
for mma.m16n8k8* and *mma.m16n8k16*): 16 output channels x 8 pixels, sums in float32.

Shared memory holds words of 32 bits: two neighbouring input channels in float16 or bfloat16, or one in tf32. A fragment
has 8 words of a sum's products in either case, in the same places, so that one kernel is all of them. Inputs stay
float32 in the GPU's memory and are rounded when they are copied; weights are rounded when the network is compiled.
While a slice is multiplied, the next one is on its way to registers, and then to the other half of shared memory.

Where at most two of four neighbouring input channels have a weight (2:4), in 16 bits, `mma.sp` (*Matrix Fragments for
sparse mma.m16n8k32*) multiplies only those: a word of the weights is what is kept of four, and the places of the kept
ones, 4 bits for each four, come with them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from tvm import tirx
from tvm.tirx.stmt import Evaluate

from lwc_compiler.kernels.builder import divide, modulo, smaller, splat, unravel
from lwc_compiler.kernels.gpu.builder import WARP, DeviceBuilder, ceil_div
from lwc_compiler.kernels.gpu.gemm import ProductTile, store_sum
from lwc_compiler.kernels.gpu.precision import round_to
from lwc_compiler.kernels.kernel import Constant

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from lwc_compiler.kernels.builder import Register
    from lwc_compiler.kernels.gpu.builder import Expr
    from lwc_compiler.kernels.kernel import Kernel
    from lwc_compiler.kernels.layer import Epilogue

_WORDS = 16  # of a sum's products, between two barriers
_FRAGMENT = 8  # words of a sum's products in one instruction
_DOWN, _ACROSS = 16, 8  # output channels and pixels of one instruction
# Words between output channels, or pixels, in shared memory, so that the lanes that read a fragment, 8 of these x 4
# words, meet 32 banks; rows of pixels are apart by 8 more than a multiple of 32 for the same reason.
_GAP = 4
_PITCH = _WORDS + _GAP
_VECTOR = 4
_FOUR, _KEPT = 4, 2  # of so many neighbouring input channels so many are kept
_FIRST_TWO = 0b0100  # the places of the first two of four


@dataclass(frozen=True)
class MmaTile(ProductTile):
    """How a layer is cut into blocks.

    Attributes:
        precision: `tf32`, `float16` or `bfloat16`.
        sparse: 2:4, in 16 bits; else every weight.
        warp_outputs: output channels of a warp, a multiple of 16.
        warp_pixels: of a warp, a multiple of 8.
    """

    precision: str = "tf32"
    sparse: bool = False
    warp_outputs: int = _DOWN
    warp_pixels: int = _ACROSS

    @property
    def threads(self) -> int:
        """Threads of a block."""
        return self.outputs // self.warp_outputs * (self.pixels // self.warp_pixels) * WARP

    @property
    def in_word(self) -> int:
        """Input channels of a word."""
        return 1 if self.precision == "tf32" else 2

    @property
    def channel_words(self) -> int:
        """Words of all input channels of a group at one position of the kernel."""
        channels = self.geometry.group_inputs
        return ceil_div(channels, _FOUR) * _FOUR // self.in_word if self.sparse else ceil_div(channels, self.in_word)

    @property
    def depth(self) -> int:
        """Words of a sum's inputs."""
        return math.prod(self.geometry.kernel) * self.channel_words

    @property
    def slices(self) -> int:
        return ceil_div(self.depth, _WORDS)

    @property
    def left_words(self) -> int:
        """Words of an output channel's weights in a slice."""
        return _WORDS * _KEPT // _FOUR if self.sparse else _WORDS

    @property
    def slice_words(self) -> int:
        """Words of a slice of the weights: values, and places where they are sparse."""
        return self.outputs * (self.left_words + self.sparse)

    @property
    def left(self) -> int:
        """Words of a slice of the weights in shared memory, without places."""
        return self.outputs * (self.left_words + _GAP)

    @property
    def right(self) -> int:
        """Words of a slice of the inputs in shared memory."""
        return self.pixels * _PITCH if self.by_channel else _WORDS * (self.pixels + 8)

    def input_at(self, word: Expr, pixel: Expr) -> Expr:
        """Where a word of a slice of the inputs is: neighbouring threads write neighbours."""
        return pixel * _PITCH + word if self.by_channel else word * (self.pixels + 8) + pixel


def pack_mma(weight: NDArray[np.float32], t: MmaTile) -> Constant:
    """The weights as the kernel reads them, filled up with zeros: uint32 (groups, blocks, slices, words of a slice).

    Args:
        weight: float32 (O, C / groups, *kernel); `is_sparse` holds for a sparse tile.
        t: the layout.
    """
    g = t.geometry
    rows = np.moveaxis(weight.reshape(g.groups, g.group_outputs, g.group_inputs, -1), 2, 3)
    rows = np.pad(rows, ((0, 0),) * 3 + ((0, t.channel_words * t.in_word - g.group_inputs),))
    if not t.sparse:
        return Constant(_tiles(round_to(rows, t.precision), t, 0))
    fours = rows.reshape(*rows.shape[:3], -1, _FOUR)
    places = np.sort(np.argsort(fours == 0, axis=-1, kind="stable")[..., :_KEPT], axis=-1)
    kept = np.take_along_axis(fours, places, axis=-1)
    values = _tiles(round_to(kept, t.precision), t, 0)
    bits = _tiles((places[..., 0] | places[..., 1] << 2).astype(np.uint32), t, _FIRST_TWO)
    return Constant(np.concatenate([values, _metadata(bits, t)], axis=-1))


def is_sparse(weight: NDArray[np.float32]) -> bool:
    """Whether at most two of every four neighbouring input channels have a weight, at each position of the kernel."""
    channels = weight.shape[1]
    padded = np.pad(weight != 0, ((0, 0), (0, -channels % _FOUR), *((0, 0),) * (weight.ndim - 2)))
    fours = padded.reshape(weight.shape[0], -1, _FOUR, *weight.shape[2:])
    return bool(np.count_nonzero(fours, axis=2).max(initial=0) <= _KEPT)


def _tiles(words: NDArray[np.uint32], t: MmaTile, filling: int) -> NDArray[np.uint32]:
    """(groups, outputs of a group, ...) as (groups, blocks, slices, outputs x words), filled up."""
    g = t.geometry
    flat = words.reshape(g.groups, g.group_outputs, -1)
    padded = np.full((g.groups, t.output_blocks * t.outputs, t.slices * t.left_words), filling, np.uint32)
    padded[:, : g.group_outputs, : flat.shape[2]] = flat
    tiles = padded.reshape(g.groups, t.output_blocks, t.outputs, t.slices, t.left_words).swapaxes(2, 3)
    return np.ascontiguousarray(tiles).reshape(g.groups, t.output_blocks, t.slices, -1)


def _metadata(bits: NDArray[np.uint32], t: MmaTile) -> NDArray[np.uint32]:
    """The words that lanes give to the instruction: (groups, blocks, slices, outputs).

    Lanes 4 r and 4 r + 1 have the first and the last four words of the output channels r, in the low half, and r + 8.
    """
    before = bits.shape[:3]
    fours = bits.reshape(*before, t.outputs // _DOWN, 2, 8, 2, 4)  # ..., half of the channels, r, lane, word
    halves = (fours << (4 * np.arange(4, dtype=np.uint32))).sum(axis=-1, dtype=np.uint32)
    words: NDArray[np.uint32] = halves[..., 0, :, :] | halves[..., 1, :, :] << np.uint32(16)
    return words.reshape(*before, t.outputs)


def mma_kernel(name: str, t: MmaTile, epilogue: Epilogue) -> Kernel:
    """The kernel: x, [residual,] weights, [bias,] y; with splits, y has one part of all sums after the other."""
    b = DeviceBuilder(t.grid, t.threads)
    group, part = b.let("group", divide(b.block[2], t.splits)), modulo(b.block[2], t.splits)
    x = b.pointer("x")
    residual = b.pointer("residual") if epilogue.residual else None
    weights = b.constant("weights", "uint32")
    bias = b.constant("bias") if epilogue.bias is not None else None
    y = b.pointer("y")
    left, right = b.shared("left", 2 * t.left, "uint32"), b.shared("right", 2 * t.right, "uint32")
    places = b.shared("places", 2 * t.outputs, "uint32") if t.sparse else None
    lane, warp = b.let("lane", modulo(b.thread, WARP)), b.let("warp", divide(b.thread, WARP))
    row, column = b.let("row", divide(lane, 4)), b.let("column", modulo(lane, 4))
    across = t.pixels // t.warp_pixels
    m = b.let("m", divide(warp, across) * t.warp_outputs)
    p = b.let("p", modulo(warp, across) * t.warp_pixels)
    downs, acrosses = range(t.warp_outputs // _DOWN), range(t.warp_pixels // _ACROSS)
    sums = [[b.register(4) for _ in acrosses] for _ in downs]
    for register in (register for registers in sums for register in registers):
        register.set(splat(0.0, 4))

    first = b.let("first", part * t.slices_of_block)
    count = t.slices if t.splits == 1 else b.let("count", smaller(t.slices_of_block, t.slices - first))
    copies = _Copies(b, t, x, weights, group, (left, right, places))
    copies.fetch(first if t.splits == 1 else smaller(first, t.slices - 1))
    copies.put(0)
    b.barrier()
    with b.loop("slice", 0, count) as number:
        half = b.let("half", modulo(number, 2))
        with b.when(number + 1 < count):
            copies.fetch(first + number + 1)
        for k in range(0, t.left_words, _FRAGMENT):
            a = [b.register(4, "uint32") for _ in downs]
            inputs = _FRAGMENT // 4 * (_FOUR // _KEPT if t.sparse else 1)
            c = [b.register(inputs, "uint32") for _ in acrosses]
            for i, register in enumerate(a):
                for place in range(4):
                    at = (m + i * _DOWN + row + place % 2 * 8) * (t.left_words + _GAP) + k + column + place // 2 * 4
                    register.set_part(place, b.load(left, half * t.left + at))
            for j, register in enumerate(c):
                for place in range(inputs):
                    at = t.input_at(k + column + place * 4, p + j * _ACROSS + row)
                    register.set_part(place, b.load(right, half * t.right + at))
            for i in downs:
                instruction, further = f"lwc_mma_{t.precision}", []
                if places is not None:
                    at = half * t.outputs + m + i * _DOWN + row * 2 + modulo(column, 2)
                    instruction, further = f"lwc_mma_sparse_{t.precision}", [b.let("kept", b.load(places, at))]
                for j in acrosses:
                    pointers = (sums[i][j].pointer, a[i].pointer, c[j].pointer)
                    b.emit(Evaluate(tirx.call_extern("void", instruction, *pointers, *further)))
        with b.when(number + 1 < count):
            copies.put(modulo(number + 1, 2))
        b.barrier()

    for j in acrosses:
        for odd in range(2):
            pixel = b.let("pixel", b.block[0] * t.pixels + p + j * _ACROSS + column * 2 + odd)
            results = [
                (b.block[1] * t.outputs + m + i * _DOWN + row + lower * 8, sums[i][j].part(lower * 2 + odd, 1))
                for i in downs
                for lower in range(2)
            ]
            store_sum(b, t, group, part, pixel, results, (y, residual, bias), epilogue)
    return b.finished(name)


class _Copies:
    """What a thread copies of a slice of the weights and of the inputs, through registers to shared memory.

    A thread has the same pixel, or the same word, in all its copies: what depends on it is computed once.
    """

    def __init__(
        self,
        b: DeviceBuilder,
        t: MmaTile,
        x: Expr,
        weights: Expr,
        group: Expr,
        shared: tuple[Expr, Expr, Expr | None],
    ) -> None:
        self._b, self._t, self._x, self._weights = b, t, x, weights
        self._shared = shared
        g = t.geometry
        self._tile = b.let("tile", (group * t.output_blocks + b.block[1]) * (t.slices * t.slice_words))
        self._left = [b.register(_VECTOR, "uint32") for _ in range(t.outputs * t.left_words // _VECTOR // t.threads)]
        self._places_of_kept = b.register(1, "uint32") if t.sparse else None
        self._right: list[Register] = []
        self._places: list[tuple[Expr, Expr]] = []  # word and pixel of each copy
        self._pixels: dict[int, tuple[Expr, list[Expr], Expr]] = {}
        many, fixed = (_WORDS, b.thread) if t.by_channel else (t.pixels, b.thread)
        same, other = b.let("same", modulo(fixed, many)), b.let("other", divide(fixed, many))
        for i in range(_WORDS * t.pixels // t.threads):
            moved = other + i * (t.threads // many)
            word, pixel = (same, moved) if t.by_channel else (moved, same)
            self._places.append((word, pixel))
            self._right.append(b.register(1, "uint32"))
            if t.by_channel or not i:
                place = b.let("place", b.block[0] * t.pixels + pixel)
                image, *at = unravel(b, place, (g.batch, *g.out_size))
                corner = [b.let("corner", p * s - pad) for p, s, pad in zip(at, g.strides, g.pads, strict=False)]
                base = image * t.x_strides[0] + group * g.group_inputs * t.x_strides[1]
                self._pixels[i] = b.let("base", base), corner, place < t.all_pixels

    def fetch(self, number: Expr) -> None:
        """Loads a slice to registers."""
        b, t, g = self._b, self._t, self._t.geometry
        for i, register in enumerate(self._left):
            vector = i * t.threads + b.thread
            register.set(b.load(self._weights, self._tile + number * t.slice_words + vector * _VECTOR, _VECTOR))
        if self._places_of_kept is not None:
            with b.when(b.thread < t.outputs):
                at = self._tile + number * t.slice_words + t.outputs * t.left_words + b.thread
                self._places_of_kept.set(b.load(self._weights, at))
        for i, (place, register) in enumerate(zip(self._places, self._right, strict=True)):
            base, corner, exists = self._pixels[i if t.by_channel else 0]
            word = b.let("word", number * _WORDS + place[0])
            *taps, channel_word = unravel(b, word, (*g.kernel, t.channel_words))
            inside, from_ = tirx.all(exists, word < t.depth), base
            for axis, (tap, start) in enumerate(zip(taps, corner, strict=True)):
                position = b.let("position", start + tap * g.dilations[axis])
                inside = tirx.all(inside, position >= 0, position < g.in_size[axis])
                from_ = from_ + position * t.x_strides[2 + axis]
            channel = channel_word * t.in_word
            from_ = b.let("from", from_ + channel * t.x_strides[1])
            values = []
            for odd in range(t.in_word):
                within = inside
                if (t.channel_words - 1) * t.in_word + odd >= g.group_inputs:
                    within = tirx.all(inside, channel + odd < g.group_inputs)
                value = b.load(self._x, from_ + odd * t.x_strides[1])
                values.append(tirx.if_then_else(within, value, tirx.const(0.0, "float32")))
            register.set(tirx.call_extern("uint32", f"lwc_round_{t.precision}", *values))

    def put(self, half: Expr) -> None:
        """Stores the registers to one half of shared memory."""
        b, t = self._b, self._t
        left, right, places = self._shared
        for i, register in enumerate(self._left):
            vector = b.let("vector", i * t.threads + b.thread)
            many = t.left_words // _VECTOR
            to = divide(vector, many) * (t.left_words + _GAP) + modulo(vector, many) * _VECTOR
            b.store(left, half * t.left + to, register.get(), _VECTOR)
        if self._places_of_kept is not None:
            with b.when(b.thread < t.outputs):
                b.store(places, half * t.outputs + b.thread, self._places_of_kept.get())
        for (word, pixel), register in zip(self._places, self._right, strict=True):
            b.store(right, half * t.right + t.input_at(word, pixel), register.get())
