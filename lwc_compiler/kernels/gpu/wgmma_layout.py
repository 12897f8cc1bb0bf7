"""How `wgmma.py` cuts a product into blocks and clusters, and how its weights are stored.

In the order of shared memory a row is 128 bytes of neighbouring products of one output channel or pixel, or 64 of what
is kept of these, and pieces of 16 bytes change places within it so that eight rows are read from all banks at once
(PTX ISA, *128-byte* and *64-byte swizzling mode*).
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from tvm import tirx

from lwc_compiler.kernels.builder import unravel
from lwc_compiler.kernels.gpu.builder import WARP, ceil_div, strides_of
from lwc_compiler.kernels.gpu.mma import kept_half
from lwc_compiler.kernels.gpu.precision import numbers_in_word, round_to
from lwc_compiler.kernels.gpu.product import ProductTile
from lwc_compiler.kernels.kernel import Constant

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from lwc_compiler.kernels.gpu.builder import DeviceBuilder, Expr
    from lwc_compiler.kernels.layer import ConvGeometry
    from lwc_compiler.targets.target import Gpu

WARPGROUP = 128  # threads
DOWN = 64  # output channels of an instruction
STEP = 8  # words of a row of weights in an instruction
PIECE = 4  # words that stay together in shared memory
ROW = 32  # words of a row of every number
KEPT_ROW = 16  # of a row of the weights in 2:4
_ROWS = 8  # of inputs, whose pieces change places in ways of their own
_ALIGNMENT = 256  # words, to multiples of which rows of 128 bytes are aligned, eight at a time
_MOST_WORDS = 1 << 28  # of shifted inputs: memory that only one layer needs
_RESERVED_BYTES = 1024  # of shared memory, for barriers
# Output channels and pixels of a block, warpgroups that multiply, and blocks of a cluster along both: clusters of four
# took up to twice as long as those of two on an H200.
_CUTS = (
    (128, 256, 2, 2, 1), (256, 192, 2, 2, 1), (256, 176, 2, 2, 1), (256, 176, 2, 1, 2), (256, 128, 2, 1, 2),
    (128, 192, 2, 2, 1), (128, 128, 2, 1, 1), (128, 128, 2, 2, 1), (128, 96, 2, 1, 1), (128, 96, 2, 1, 2),
    (64, 256, 1, 2, 1), (64, 128, 1, 1, 1), (64, 64, 1, 1, 1),
)  # fmt: skip
_SPLITS = (1, 2, 3, 4, 6, 8, 9, 12)
_HOPPER = 90  # the compute capability, times ten


@dataclass(frozen=True)
class WgmmaTile(ProductTile):
    """How a product is cut into blocks.

    Attributes:
        outputs: output channels of a block, a multiple of 64 for each of `groups`.
        pixels: of a block: of those that there are instructions for in `codegen/wgmma.cuh`.
        depth: products of a sum in a slice: as many as 128 bytes have.
        splits: blocks that share a sum: each adds up as many slices as the others.
        shifts: where a kernel has several positions along other axes than the last and strides of 1: the same copy of
            the inputs serves all of these, shifted by whole rows; else there is a copy for each position.
        precision: `tf32`, `float16` or `bfloat16`.
        groups: warpgroups that multiply, 1 or 2.
        along_outputs: blocks of a cluster that compute the same pixels.
        along_pixels: blocks of a cluster that compute the same output channels.
        shared_bytes: that a block can have.
        multiprocessors: that there are.
        sparse: 2:4, in 16 bits; else every weight.
    """

    precision: str = "float16"
    groups: int = 1
    along_outputs: int = 1
    along_pixels: int = 1
    shared_bytes: int = 0
    multiprocessors: int = 1
    sparse: bool = False
    shifts: bool = False

    @property
    def threads(self) -> int:
        return (1 + self.groups) * WARPGROUP

    @property
    def in_word(self) -> int:
        """Products of a word."""
        return numbers_in_word(self.precision)

    @property
    def cluster(self) -> int:
        """Blocks of a cluster."""
        return self.along_outputs * self.along_pixels

    @property
    def each(self) -> int:
        """Instructions of a warpgroup side by side: for so many times 64 output channels."""
        return self.outputs // (DOWN * self.groups)

    @property
    def weight_row(self) -> int:
        """Words of an output channel's weights in a slice."""
        return KEPT_ROW if self.sparse else ROW

    @property
    def steps(self) -> int:
        """Instructions of a slice for the same sums."""
        return self.weight_row // STEP

    @property
    def slice_words(self) -> int:
        """The weights and, where they are sparse, the places of what is kept: a word for 16 x 16 products."""
        return self.outputs * (self.weight_row + self.steps * self.sparse)

    @property
    def pitch(self) -> int:
        return ROW

    @property
    def right(self) -> int:
        return self.pixels * ROW

    @property
    def stage_words(self) -> int:
        """From one slice of inputs and weights in shared memory to the next."""
        return ceil_div(self.right + self.slice_words, _ALIGNMENT) * _ALIGNMENT

    @property
    def stages(self) -> int:
        return (self.shared_bytes - _RESERVED_BYTES) // (4 * self.stage_words)

    @property
    def output_clusters(self) -> int:
        """Clusters over the output channels."""
        return ceil_div(self.geometry.group_outputs, self.outputs * self.along_outputs)

    @property
    def pixel_clusters(self) -> int:
        """Clusters over the places."""
        return ceil_div(self.places, self.pixels * self.along_pixels)

    @property
    def output_blocks(self) -> int:
        return self.output_clusters * self.along_outputs

    @property
    def pixel_blocks(self) -> int:
        """Blocks over the places."""
        return self.pixel_clusters * self.along_pixels

    @property
    def tiles(self) -> int:
        """What clusters compute, one after the other."""
        return self.output_clusters * self.pixel_clusters * self.splits

    @property
    def clusters(self) -> int:
        """That there are at the same time."""
        return min(self.tiles, self.multiprocessors // self.cluster)

    @property
    def grid(self) -> tuple[int, int, int]:
        return (self.clusters * self.cluster, 1, 1)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Places along each axis: of pixels, and with `shifts` of what lies between them; then lines are filled up."""
        g = self.geometry
        if not self.shifts:
            return g.out_size
        axes = zip(g.out_size[:-1], g.kernel[:-1], g.dilations[:-1], strict=True)
        return (*(size + (taps - 1) * gap for size, taps, gap in axes), ceil_div(g.out_size[-1], _ROWS) * _ROWS)

    @property
    def places(self) -> int:
        """Places of all images, up to the last pixel's row."""
        g = self.geometry
        last = (g.batch - 1, *(size - 1 for size in g.out_size[:-1]), self.sizes[-1] - 1)
        return 1 + sum(i * stride for i, stride in zip(last, strides_of((g.batch, *self.sizes)), strict=True))

    @property
    def copied(self) -> tuple[int, ...]:
        """Positions of the kernel along each axis for which there is a copy of the inputs."""
        g = self.geometry
        return (*(1 for _ in g.kernel[:-1]), g.kernel[-1]) if self.shifts else g.kernel

    @property
    def copies(self) -> int:
        """Of the inputs, of `depth` channels each."""
        return self.blocks * math.prod(self.copied)

    @property
    def further(self) -> tuple[int, ...]:
        """Rows from the inputs of a position of the kernel to those of the next along each axis, in the same copy."""
        if not self.shifts:
            return (0,) * len(self.sizes)
        steps = zip(strides_of(self.sizes)[:-1], self.geometry.dilations[:-1], strict=True)
        return (*(stride * gap for stride, gap in steps), 0)

    @property
    def rows(self) -> int:
        """Of a copy of the inputs: one for each place of all blocks, and those that the last position is further on."""
        taps = zip(self.geometry.kernel, self.further, strict=True)
        return self.pixel_blocks * self.pixels + sum((count - 1) * rows for count, rows in taps)

    @property
    def input_words(self) -> int:
        """Of the inputs in the order of shared memory: (copies, rows, words of a row)."""
        return self.copies * self.rows * ROW

    @property
    def in_line(self) -> int:
        return self.geometry.out_size[-1] if self.shifts else super().in_line

    def pixel_of(self, b: DeviceBuilder, place: Expr) -> tuple[Expr, Expr, Expr]:
        if not self.shifts:
            return super().pixel_of(b, place)
        g = self.geometry
        image, *at = unravel(b, place, (g.batch, *self.sizes))
        exists = [number < size for number, size, there in zip(at, g.out_size, self.sizes, strict=True) if size < there]
        pixel = sum(number * stride for number, stride in zip(at, strides_of(g.out_size), strict=True))
        return tirx.all(place < self.places, *exists), image, b.let("at", pixel)


def wgmma_tiles(
    geometry: ConvGeometry, x_strides: tuple[int, ...], y_strides: tuple[int, ...], gpu: Gpu, *, half: bool
) -> Iterator[WgmmaTile]:
    """Cuts of layers of one group with channels for whole slices, in less than float32, on Hopper alone.

    Args:
        geometry: of the layer.
        x_strides: of the input.
        y_strides: of the output.
        gpu: which.
        half: `in_half` holds for the weights.
    """
    g, in_row = geometry, ROW * numbers_in_word(gpu.precision)
    if gpu.architectures != (_HOPPER,) or gpu.precision == "float32" or g.groups > 1:
        return
    sparse = half and gpu.precision != "tf32"  # of which 1:2 has no kernel
    shifted = (False, True) if set(g.strides) == {1} and math.prod(g.kernel[:-1]) > 1 else (False,)
    kinds = itertools.product(_CUTS, (False, True) if sparse else (False,), shifted)
    for (outputs, pixels, groups, *cluster), kept, shifts in kinds:
        cut = WgmmaTile(
            g, x_strides, y_strides, outputs, pixels, in_row, 1, gpu.precision, groups, cluster[0], cluster[1],
            gpu.block_shared_bytes, gpu.multiprocessors, kept, shifts,
        )  # fmt: skip
        if cut.block == cut.depth and cut.input_words <= _MOST_WORDS:
            # Parts of sums are only for multiprocessors that would have nothing to do.
            most = gpu.multiprocessors // (cut.tiles * cut.cluster)
            yield from (replace(cut, splits=n) for n in _SPLITS if n <= max(1, most) and cut.slices % n == 0)


def pack_wgmma(weight: NDArray[np.float32], t: WgmmaTile) -> Constant:
    """The weights as they lie in shared memory, filled up with zeros: uint32 (1, output blocks, slices, words).

    Args:
        weight: float32 (O, C, *kernel); `is_sparse` holds for a sparse tile.
        t: the layout.
    """
    rows = _ordered(t.slices_of_weights(weight), t)
    before = rows.shape[:3]
    if not t.sparse:
        return Constant(_swizzled(round_to(rows, t.precision)).reshape(*before, -1))
    kept, places = kept_half(rows, t.in_word)
    words = _swizzled(round_to(kept, t.precision)).reshape(*before, -1)
    # A lane reads what it gives to all instructions of a slice at once.
    of_lanes = np.ascontiguousarray(places.swapaxes(-2, -1)).reshape(*before, -1)
    return Constant(np.concatenate([words, of_lanes], axis=-1))


def _ordered(rows: NDArray[np.float32], t: WgmmaTile) -> NDArray[np.float32]:
    """(..., output channels, depth) in the order in which instructions have the output channels.

    A thread has two of the 16 sums of a warp and a pixel. They are of neighbouring output channels, and so are those of
    the thread's other instructions, where these are neighbours in the output's memory.
    """
    if not t.to_channels:
        return rows
    split = rows.reshape(*rows.shape[:3], t.groups, WARPGROUP // WARP, WARP // 4, t.each, 2, rows.shape[-1])
    return np.ascontiguousarray(split.transpose(0, 1, 2, 3, 6, 4, 7, 5, 8)).reshape(rows.shape)


def swizzled_piece(row: Expr, piece: Expr, words: int) -> Expr:
    """Where a piece of a row of so many words lies in it; the other way round, too."""
    return piece ^ (row % 8 if words == ROW else row // 2 % 4)


def _swizzled(words: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """(..., rows, words of a row) with the pieces of each row at their places."""
    rows, row_words = words.shape[-2:]
    pieces = words.reshape(*words.shape[:-1], row_words // PIECE, PIECE)
    row, piece = np.ogrid[:rows, : row_words // PIECE]
    moved: NDArray[np.uint32] = pieces[..., row, swizzled_piece(row, piece, row_words), :]
    return moved.reshape(words.shape)
