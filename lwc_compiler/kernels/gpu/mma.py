"""Convolutions and products on tensor cores, as one matrix product (implicit GEMM): with every weight, or half of them.

A block computes a tile as `product.py` says. A warp multiplies fragments of the weights and of the inputs with
`mma.sync` (PTX ISA, *Matrix Fragments for mma.m16n8k8* and *mma.m16n8k16*): 16 output channels x 8 pixels, sums in
float32.

Fragments are words of 32 bits: two neighbouring input channels in float16 or bfloat16, or one in tf32. Weights are
rounded when the network is compiled, and lie in the order in which lanes read their fragments. Inputs are float32 in
the GPU's memory and in shared memory, and are rounded when a lane reads them: of every 8 channels of a pixel it has
two neighbours. In tf32 these stand for the channels c and c + 4 of the figures, in both fragments, so that one kernel
is all precisions.

Where at most two of four neighbouring input channels have a weight (2:4), in 16 bits, `mma.sp` (*Matrix Fragments for
sparse mma.m16n8k32*) multiplies only those: a word of the weights is what is kept of four, and the places of the kept
ones, 4 bits for each four, come with them. In tf32 (*sparse mma.m16n8k16*) a word is what is kept of two (1:2), and its
4 bits are the places of its two halves. There two neighbours are rows of the inputs that two lanes have, so that a lane
has the channels c and c + 4 of every 8.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from tvm import tirx

from lwc_compiler.kernels.builder import divide, modulo, splat
from lwc_compiler.kernels.gpu.builder import WARP, DeviceBuilder
from lwc_compiler.kernels.gpu.precision import numbers_in_word, round_to
from lwc_compiler.kernels.gpu.product import ProductTile, store_sums
from lwc_compiler.kernels.gpu.slices import Slices
from lwc_compiler.kernels.kernel import Constant

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from lwc_compiler.kernels.builder import Register
    from lwc_compiler.kernels.gpu.builder import Expr
    from lwc_compiler.kernels.kernel import Kernel
    from lwc_compiler.kernels.layer import Epilogue

_DOWN, _ACROSS = 16, 8  # output channels and pixels of one instruction
_FRAGMENT = 4  # words of a lane's fragment of the weights
_OCTET = 8  # channels of which a lane has two
_FOUR, _KEPT = 4, 2  # of so many neighbouring halves of words so many are kept
# Which two of four are kept, in order, by the bits of those that have a weight, the first one lowest.
_HAS_NONE = np.arange(1 << _FOUR)[:, None] >> np.arange(_FOUR) & 1 == 0
_PLACES = np.sort(np.argsort(_HAS_NONE, axis=1, kind="stable")[:, :_KEPT], axis=1).astype(np.uint8)


@dataclass(frozen=True)
class MmaTile(ProductTile):
    """How a layer is cut into blocks.

    Attributes:
        precision: `tf32`, `float16` or `bfloat16`.
        sparse: 2:4 in 16 bits, 1:2 in tf32; else every weight. Slices are a multiple of `step` deep.
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
        return numbers_in_word(self.precision)

    @property
    def pairs(self) -> bool:
        """Whether the two of eight input channels that a lane has are neighbours."""
        return not (self.sparse and self.precision == "tf32")

    @property
    def least_block(self) -> int:
        return 2 * self.in_word if self.sparse else 1

    @property
    def step(self) -> int:
        """Products of a sum in one instruction."""
        return 2 * _OCTET * self.in_word if self.sparse else _OCTET * self.in_word

    @property
    def fragments(self) -> int:
        """Instructions of a slice for the same sums."""
        return self.depth // self.step

    @property
    def weight_words(self) -> int:
        """Words of the weights in a slice."""
        return self.outputs // _DOWN * self.fragments * WARP * _FRAGMENT

    @property
    def slice_words(self) -> int:
        """Words of a slice: the weights and, where they are sparse, the places of what is kept."""
        return self.weight_words + self.outputs * self.fragments * self.sparse

    @property
    def pitch(self) -> int:
        # Lanes 4 r + c of a warp read the channels 2 c and 2 c + 1 of the pixels r, or c and then c + 4: from 32 banks.
        if self.by_channel:
            return self.depth + (_OCTET if self.pairs else _OCTET // 2)
        return self.pixels + (_OCTET // 2 if self.pairs else _OCTET)


def pack_mma(weight: NDArray[np.float32], t: MmaTile) -> Constant:
    """The weights as the kernel reads them, filled up with zeros: uint32 (groups, output blocks, slices, words).

    Args:
        weight: float32 (O, C / groups, *kernel); `is_sparse` holds for a sparse tile.
        t: the layout.
    """
    rows = t.slices_of_weights(weight)
    if not t.sparse:
        return Constant(_fragments(rows, t))
    kept, places = kept_half(rows, t.in_word)
    ordered = np.ascontiguousarray(places.swapaxes(-3, -2)).reshape(*rows.shape[:3], -1)
    return Constant(np.concatenate([_fragments(kept, t), ordered], axis=-1))


def kept_half(rows: NDArray[np.float32], in_word: int) -> tuple[NDArray[np.float32], NDArray[np.uint32]]:
    """Rows of which half is kept, as sparse tensor cores take them (PTX ISA, *Sparse matrix storage*).

    Args:
        rows: float32 (..., outputs, numbers): multiples of 16 and of 16 words; `is_sparse` holds for neighbours.
        in_word: numbers of a word.

    Returns:
        (..., outputs, numbers / 2), what is kept; and where that was, as lanes give it to instructions that multiply
        16 words of the numbers: (..., outputs / 16, 8, instructions, 2). Lanes 4 r and 4 r + 1 have the first and the
        last four of 8 kept words of the output channels r, in the low half, and r + 8.
    """
    neighbours, halves = rows.reshape(*rows.shape[:-1], -1, 2 * in_word), _KEPT // in_word
    has_weight = np.repeat(neighbours != 0, halves, axis=-1)
    places = _PLACES[np.packbits(has_weight, axis=-1, bitorder="little")[..., 0]]
    kept = np.take_along_axis(neighbours, places[..., ::halves] // halves, axis=-1).reshape(*rows.shape[:-1], -1)
    bits = (places[..., 0] | places[..., 1] << 2).astype(np.uint32)
    # ..., half of the channels, r, instruction, lane, word
    of_words = bits.reshape(*rows.shape[:-2], -1, 2, 8, rows.shape[-1] // (16 * in_word), 2, 4)
    of_rows = (of_words << (4 * np.arange(4, dtype=np.uint32))).sum(axis=-1, dtype=np.uint32)
    words: NDArray[np.uint32] = of_rows[..., 0, :, :, :] | of_rows[..., 1, :, :, :] << np.uint32(16)
    return kept, words


def is_sparse(weight: NDArray[np.float32], in_word: int) -> bool:
    """Whether of every two words of neighbouring input channels half is kept, at each position of the kernel.

    Args:
        weight: float32 (O, C / groups, *kernel).
        in_word: numbers of a word: at most 2 of 4 neighbours may have a weight, or 1 of 2.
    """
    channels, count = weight.shape[1], 2 * in_word
    padded = np.pad(weight != 0, ((0, 0), (0, -channels % count), *((0, 0),) * (weight.ndim - 2)))
    neighbours = padded.reshape(weight.shape[0], -1, count, *weight.shape[2:])
    return bool(np.count_nonzero(neighbours, axis=2).max(initial=0) <= in_word)


def _fragments(rows: NDArray[np.float32], t: MmaTile) -> NDArray[np.uint32]:
    """(..., outputs, numbers) as words in the order of lanes: of rows r and r + 8, and of words c and c + 4.

    In tf32 with every weight these words are the numbers 2 c and 2 c + 1 of an instruction.
    """
    before = rows.shape[:-2]
    neighbours = t.precision == "tf32" and not t.sparse
    # ..., block of rows, half, r, instruction, which word, c, number; or c before the word
    split = rows.reshape(*before, -1, 2, 8, t.depth // t.step, *((4, 2) if neighbours else (2, 4)), t.in_word)
    order = (0, 3, 2, 4, 5, 1, 6) if neighbours else (0, 3, 2, 5, 4, 1, 6)  # ..., instruction, r, c, word, half, number
    n = len(before)
    ordered = np.ascontiguousarray(split.transpose(*range(n), *(n + axis for axis in order)))
    return round_to(ordered, t.precision).reshape(*before, -1)


def mma_kernel(name: str, t: MmaTile, epilogue: Epilogue) -> Kernel:
    """The kernel: x, [residual,] weights, [bias,] y; with splits, y has one part of all sums after the other."""
    b = DeviceBuilder(t.grid, t.threads)
    group, part = b.let("group", divide(b.block[2], t.splits)), modulo(b.block[2], t.splits)
    x = b.pointer("x")
    residual = b.pointer("residual") if epilogue.residual else None
    weights = b.constant("weights", "uint32")
    bias = b.constant("bias") if epilogue.bias is not None else None
    y = b.pointer("y")
    left, right = b.shared("left", t.stages * t.slice_words, "uint32"), b.shared("right", t.stages * t.right)
    lane, warp = b.let("lane", modulo(b.thread, WARP)), b.let("warp", divide(b.thread, WARP))
    row, column = b.let("row", divide(lane, 4)), b.let("column", modulo(lane, 4))
    across = t.pixels // t.warp_pixels
    down = b.let("down", divide(warp, across) * (t.warp_outputs // _DOWN))
    p = b.let("p", modulo(warp, across) * t.warp_pixels)
    downs, acrosses = range(t.warp_outputs // _DOWN), range(t.warp_pixels // _ACROSS)
    sums = [[b.register(4) for _ in acrosses] for _ in downs]
    for register in (register for registers in sums for register in registers):
        register.set(splat(0.0, 4))

    slices = Slices(b, t, x, weights, group, part, (left, 0), (right, 0))
    for left_at, right_at in slices.each():
        for number in range(t.fragments):
            a = [b.register(_FRAGMENT, "uint32") for _ in downs]
            for i, register in enumerate(a):
                fragment = (down + i) * t.fragments + number
                register.set(b.load(left, left_at + (fragment * WARP + lane) * _FRAGMENT, _FRAGMENT))
            pixels = [p + j * _ACROSS + row for j in acrosses]
            c = [_inputs(b, t, right, right_at, pixel, number * t.step, column) for pixel in pixels]
            for i in downs:
                instruction, further = f"lwc_mma_{t.precision}", []
                if t.sparse:
                    at = ((down + i) * t.fragments + number) * _DOWN + row * 2 + modulo(column, 2)
                    instruction = f"lwc_mma_sparse_{t.precision}"
                    further = [b.let("kept", b.load(left, left_at + t.weight_words + at))]
                for j in acrosses:
                    pointers = (sums[i][j].pointer, a[i].pointer, c[j].pointer)
                    b.device_call(instruction, *pointers, *further)

    lanes = 1 if t.to_channels else 2
    for j in acrosses:
        for odd in range(0, 2, lanes):
            pixel = b.block[0] * t.pixels + p + j * _ACROSS + column * 2 + odd
            results = [
                (b.block[1] * t.outputs + (down + i) * _DOWN + row + lower * 8, sums[i][j], lower * 2 + odd)
                for i in downs
                for lower in range(2)
            ]
            store_sums(b, t, group, part, pixel, results, (y, residual, bias), epilogue, lanes)
    return b.finished(name)


def _inputs(b: DeviceBuilder, t: MmaTile, right: Expr, at: Expr, pixel: Expr, first: int, column: Expr) -> Register:
    """A lane's fragment of the inputs: two of every eight channels of its pixel, rounded."""
    words = b.register(t.step // 4 // t.in_word, "uint32")
    for octet in range(t.step // _OCTET):
        channel = first + octet * _OCTET + column * (2 if t.pairs else 1)
        if t.by_channel and t.pairs:
            pair = b.register(2)
            pair.set(b.load(right, at + pixel * t.pitch + channel, 2))
            values = [pair.part(0, 1), pair.part(1, 1)]
        else:
            both = channel, channel + (1 if t.pairs else 4)
            places = [pixel * t.pitch + each if t.by_channel else each * t.pitch + pixel for each in both]
            values = [b.load(right, at + place) for place in places]
        for word in range(0, 2, t.in_word):
            rounded = tirx.call_extern("uint32", f"lwc_round_{t.precision}", *values[word : word + t.in_word])
            words.set_part((2 * octet + word) // t.in_word, rounded)
    return words
