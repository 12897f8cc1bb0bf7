"""Products and pointwise convolutions on Hopper's tensor cores by `wgmma`: with every weight, or half of them (2:4).

A warpgroup, four warps, multiplies 64 output channels x up to 256 pixels in one instruction, which is asynchronous and
reads both factors from shared memory (PTX ISA, *Asynchronous Warpgroup Level Matrix Multiply-Accumulate Instructions*).
So they must lie there as the instruction reads them, and in as few bits as it takes: a first kernel
(`wgmma_inputs.py`) rounds the inputs and puts them into the order of shared memory, slice by slice; the weights are in
it when the network is compiled. Then a slice of either is one copy of neighbouring bytes.

In the order of shared memory a row is 128 bytes of neighbouring products of one output channel or pixel, or 64 of what
is kept of these, and pieces of 16 bytes change places within it so that eight rows are read from all banks at once
(*128-byte* and *64-byte swizzling mode*).

One thread of a block starts copies, as many slices ahead as shared memory has room for; the other warpgroups multiply
slices when they have arrived. Blocks of a cluster compute the same pixels of other output channels: each copies a part
of the slice of the inputs, to all of them. There are no more blocks than multiprocessors; a block computes one tile
after the other, and while it stores the results of one, slices of the next arrive.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from tvm import tirx
from tvm.tirx.stmt import Evaluate

from lwc_compiler.kernels.builder import divide, modulo
from lwc_compiler.kernels.gpu.builder import WARP, DeviceBuilder, ceil_div
from lwc_compiler.kernels.gpu.mma import two_of_four
from lwc_compiler.kernels.gpu.precision import round_to
from lwc_compiler.kernels.gpu.product import ProductTile, store_sums
from lwc_compiler.kernels.kernel import Constant

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from lwc_compiler.kernels.builder import Register
    from lwc_compiler.kernels.gpu.builder import Expr
    from lwc_compiler.kernels.kernel import Kernel
    from lwc_compiler.kernels.layer import ConvGeometry, Epilogue
    from lwc_compiler.targets.target import Gpu

_WARPGROUP = 128  # threads
_DOWN, _ACROSS = 64, 8  # output channels of an instruction; pixels of which a thread has two neighbours
_STEP_BYTES = 32  # of a row of weights, in an instruction
PIECE = 4  # words that stay together in shared memory
ROW = 32  # words of a row of every number
_KEPT_ROW = 16  # of a row of the weights in 2:4
_ALIGNMENT = 256  # words, to multiples of which rows of 128 bytes are aligned, eight at a time
_SWIZZLING = {ROW: 1, _KEPT_ROW: 2}  # how a descriptor says it, by the words of a row
_RESERVED_BYTES = 1024  # of shared memory, for barriers
_NEIGHBOURS = 16  # multiprocessors that clusters can be of: of all, some are two more
_FEWER, _MORE = 24, 240  # registers of a thread that copies, and of one that multiplies, where two warpgroups do
# Output channels and pixels of a block, warpgroups that multiply, blocks of a cluster.
_CUTS = (
    (128, 256, 2, 2), (128, 256, 2, 4), (256, 192, 2, 2), (256, 192, 2, 4), (256, 176, 2, 2), (256, 176, 2, 4),
    (256, 128, 2, 2), (256, 128, 2, 4), (128, 192, 2, 2), (128, 128, 2, 1), (128, 128, 2, 2), (128, 96, 2, 1),
    (128, 96, 2, 2), (64, 256, 1, 2), (64, 128, 1, 1), (64, 64, 1, 1),
)  # fmt: skip
_HOPPER = 90  # the compute capability, times ten


@dataclass(frozen=True)
class WgmmaTile(ProductTile):
    """How a product is cut into blocks.

    Attributes:
        outputs: output channels of a block, a multiple of 64 for each of `groups`.
        pixels: of a block: of those that there are instructions for in `codegen/wgmma.cuh`.
        depth: products of a sum in a slice: as many as 128 bytes have.
        precision: `tf32`, `float16` or `bfloat16`.
        sparse: 2:4, in 16 bits; else every weight.
        groups: warpgroups that multiply, 1 or 2.
        cluster: blocks that share inputs: 1, 2 or 4.
        shared_bytes: that a block can have.
        multiprocessors: that there are.
    """

    precision: str = "float16"
    sparse: bool = False
    groups: int = 1
    cluster: int = 1
    shared_bytes: int = 0
    multiprocessors: int = 1

    @property
    def threads(self) -> int:
        return (1 + self.groups) * _WARPGROUP

    @property
    def in_word(self) -> int:
        """Products of a word."""
        return 1 if self.precision == "tf32" else 2

    @property
    def each(self) -> int:
        """Instructions of a warpgroup side by side: for so many times 64 output channels."""
        return self.outputs // (_DOWN * self.groups)

    @property
    def weight_row(self) -> int:
        """Words of an output channel's weights in a slice."""
        return _KEPT_ROW if self.sparse else ROW

    @property
    def steps(self) -> int:
        """Instructions of a slice for the same sums."""
        return 4 * self.weight_row // _STEP_BYTES

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
    def pixel_blocks(self) -> int:
        """Blocks over the pixels."""
        return ceil_div(self.all_pixels, self.pixels)

    @property
    def output_clusters(self) -> int:
        """Clusters over the output channels."""
        return ceil_div(self.geometry.group_outputs, self.outputs * self.cluster)

    @property
    def output_blocks(self) -> int:
        return self.output_clusters * self.cluster

    @property
    def tiles(self) -> int:
        """What clusters compute, one after the other."""
        return self.output_clusters * self.pixel_blocks

    @property
    def clusters(self) -> int:
        """That there are at the same time."""
        count = self.multiprocessors
        if self.cluster > 2 and count > _NEIGHBOURS:
            count -= count % _NEIGHBOURS
        return min(self.tiles, count // self.cluster)

    @property
    def grid(self) -> tuple[int, int, int]:
        return (self.clusters * self.cluster, 1, 1)

    @property
    def input_words(self) -> int:
        """Of the inputs in the order of shared memory: (pixel blocks, slices, pixels, words of a row)."""
        return self.pixel_blocks * self.slices * self.right


def wgmma_tiles(
    geometry: ConvGeometry, x_strides: tuple[int, ...], y_strides: tuple[int, ...], gpu: Gpu, *, half: bool
) -> Iterator[WgmmaTile]:
    """Cuts of what reads every input once, in less than float32, on Hopper alone.

    Args:
        geometry: of the layer.
        x_strides: of the input.
        y_strides: of the output.
        gpu: which.
        half: `is_sparse` holds for the weights.
    """
    g, in_row = geometry, 4 * ROW // (4 if gpu.precision == "tf32" else 2)
    once = set(g.kernel) == set(g.strides) == {1} and not any(g.pads) and g.groups == 1
    if gpu.architectures != (_HOPPER,) or gpu.precision == "float32" or not once:
        return
    for sparse in (False, True) if half and gpu.precision != "tf32" else (False,):
        for outputs, pixels, groups, cluster in _CUTS:
            cut = WgmmaTile(g, x_strides, y_strides, outputs, pixels, in_row, 1, gpu.precision, sparse, groups, cluster)
            yield replace(cut, shared_bytes=gpu.block_shared_bytes, multiprocessors=gpu.multiprocessors)


def pack_wgmma(weight: NDArray[np.float32], t: WgmmaTile) -> Constant:
    """The weights as they lie in shared memory, filled up with zeros: uint32 (1, output blocks, slices, words).

    Args:
        weight: float32 (O, C, 1, 1); `is_sparse` holds for a sparse tile.
        t: the layout.
    """
    rows = _ordered(t.slices_of_weights(weight), t)
    before = rows.shape[:3]
    if not t.sparse:
        return Constant(_swizzled(round_to(rows, t.precision)).reshape(*before, -1))
    kept, places = two_of_four(rows)
    words = _swizzled(round_to(kept, t.precision)).reshape(*before, -1)
    # A lane reads what it gives to all instructions of a slice at once.
    ordered = np.ascontiguousarray(places.swapaxes(-2, -1)).reshape(*before, -1)
    return Constant(np.concatenate([words, ordered], axis=-1))


def _ordered(rows: NDArray[np.float32], t: WgmmaTile) -> NDArray[np.float32]:
    """(..., output channels, depth) in the order in which instructions have the output channels.

    A thread has two of the 16 sums of a warp and a pixel. They are of neighbouring output channels, and so are those of
    the thread's other instructions, where these are neighbours in the output's memory.
    """
    if not t.to_channels:
        return rows
    split = rows.reshape(*rows.shape[:3], t.groups, _WARPGROUP // WARP, WARP // 4, t.each, 2, rows.shape[-1])
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


def wgmma_kernel(name: str, t: WgmmaTile, epilogue: Epilogue) -> Kernel:
    """The kernel: inputs of `wgmma_inputs`, [residual,] weights, [bias,] y."""
    b = DeviceBuilder(t.grid, t.threads, cluster=t.cluster)
    x = b.pointer("x", "uint32")
    residual = b.pointer("residual") if epilogue.residual else None
    weights = b.constant("weights", "uint32")
    bias = b.constant("bias") if epilogue.bias is not None else None
    y = b.pointer("y")
    ring = _Ring(b, t)
    warpgroup = b.let("warpgroup", divide(b.thread, _WARPGROUP))
    cluster, rank = b.let("cluster", divide(b.block[0], t.cluster)), b.let("rank", modulo(b.block[0], t.cluster))
    turns = b.let("turns", divide(t.tiles - 1 - cluster, t.clusters) + 1)
    ring.begin()
    b.inputs_ready()
    with b.when(warpgroup == 0):
        if t.groups > 1:
            _call(b, f"lwc_registers_{_FEWER}")
        with b.when(b.thread == 0), b.loop("turn", 0, turns, rolled=True) as turn:
            output, pixel = _place(b, t, cluster + turn * t.clusters, rank)
            with b.loop("slice", 0, t.slices, rolled=True) as number:
                ring.copy(
                    turn * t.slices + number, rank, weights, output * t.slices + number, x, pixel * t.slices + number
                )
    with b.otherwise():
        if t.groups > 1:
            _call(b, f"lwc_registers_{_MORE}")
        sums = [b.register(t.pixels // 2) for _ in range(t.each)]
        own = b.let("own", (warpgroup - 1) * t.each)
        with b.loop("turn", 0, turns, rolled=True) as turn:
            for register in sums:
                with b.unrolled("i", t.pixels // 2) as i:
                    register.set_part(i, tirx.const(0.0, "float32"))
            with b.loop("slice", 0, t.slices, rolled=True) as number:
                ring.multiply(turn * t.slices + number, own, sums)
                with b.when(number > 0):
                    _call(b, "lwc_wgmma_wait_1")
                    ring.release(turn * t.slices + number - 1)
            _call(b, "lwc_wgmma_wait_0")
            ring.release((turn + 1) * t.slices - 1)
            for register in sums:
                _call(b, f"lwc_wgmma_done_{t.pixels // 2}", register.pointer)
            output, pixel = _place(b, t, cluster + turn * t.clusters, rank)
            exists = output * t.outputs < t.geometry.group_outputs
            with b.when(exists if t.output_blocks * t.outputs > t.geometry.group_outputs else True):
                _store(b, t, output * t.outputs + own * _DOWN, pixel * t.pixels, sums, (y, residual, bias), epilogue)
    _call(b, "lwc_cluster_sync")  # no block ends while another of its cluster may still copy to it
    return b.finished(name)


def _place(b: DeviceBuilder, t: WgmmaTile, tile: Expr, rank: Expr) -> tuple[Expr, Expr]:
    """Which block of output channels, and which of pixels, a block computes of a cluster's tile."""
    tile = b.let("tile", tile)
    output = modulo(tile, t.output_clusters) * t.cluster + rank
    return b.let("output", output), b.let("pixel", divide(tile, t.output_clusters))


def _store(
    b: DeviceBuilder,
    t: WgmmaTile,
    first_output: Expr,
    first_pixel: Expr,
    sums: list[Register],
    pointers: tuple[Expr, Expr | None, Expr | None],
    epilogue: Epilogue,
) -> None:
    """Stores a warpgroup's sums: a thread has two output channels x two pixels of every eight in four registers."""
    lane, warp = b.let("lane", modulo(b.thread, WARP)), b.let("warp", divide(modulo(b.thread, _WARPGROUP), WARP))
    # Else the compiler computes the places of all pixels before it multiplies, and keeps them in registers.
    first_pixel = b.let("pair", _now(divide(first_pixel, 2) + modulo(lane, 4))) * 2
    own = 2 * t.each if t.to_channels else 1
    first = divide(first_output, own) + warp * (8 if t.to_channels else 16) + divide(lane, 4)
    row = b.let("first", _now(first)) * own
    if t.to_channels:
        for j in range(t.pixels // _ACROSS):
            for odd in range(2):
                neighbours = b.register(2 * t.each)
                for i, register in enumerate(sums):
                    for lower in range(2):
                        neighbours.set_part(2 * i + lower, register.part(j * 4 + lower * 2 + odd, 1))
                pixel = first_pixel + (j * _ACROSS + odd)
                store_sums(b, t, 0, 0, pixel, [(row, neighbours, 0)], pointers, epilogue, 2 * t.each)
        return
    for j in range(t.pixels // _ACROSS):
        results = [
            (row + (i * _DOWN + lower * 8), register, j * 4 + lower * 2)
            for i, register in enumerate(sums)
            for lower in range(2)
        ]
        store_sums(b, t, 0, 0, first_pixel + j * _ACROSS, results, pointers, epilogue, 2)


def _now(number: Expr) -> Expr:
    return tirx.call_extern("int32", "lwc_now", number)


class _Ring:
    """Slices in shared memory, one after the other in the same stages, with barriers that say which are there."""

    def __init__(self, b: DeviceBuilder, t: WgmmaTile) -> None:
        self._b, self._t = b, t
        self._slices = b.shared("slices", t.stages * t.stage_words, "uint32")
        self._barriers = b.shared("barriers", 4 * t.stages, "uint32")

    def begin(self) -> None:
        """Makes the barriers: of each stage, one for a slice that has arrived, and one for all having read it."""
        b, t = self._b, self._t
        with b.when(b.thread == 0), b.unrolled("i", t.stages) as stage:
            _call(b, "lwc_barrier_init", self._arrived(stage), 1)
            _call(b, "lwc_barrier_init", self._read(stage), t.groups * (_WARPGROUP // WARP) * t.cluster)
        _call(b, "lwc_cluster_sync")

    def copy(self, number: Expr, rank: Expr, weights: Expr, left: Expr, x: Expr, right: Expr) -> None:
        """Starts the copies of a slice: of the block's weights, and of its part of the cluster's inputs.

        Args:
            number: of the slice, of all that the block multiplies.
            rank: of the block in its cluster.
            weights: slices.
            left: which of them.
            x: slices.
            right: which of them.
        """
        b, t = self._b, self._t
        stage, turn = b.let("stage", modulo(number, t.stages)), divide(number, t.stages)
        _call(b, "lwc_barrier_wait", self._read(stage), b.let("before", 1 - modulo(turn, 2)))
        arrived, at = self._arrived(stage), b.let("at", stage * t.stage_words)
        _call(b, "lwc_barrier_expect", arrived, 4 * (t.right + t.slice_words))
        from_ = b.address_of(weights, left * t.slice_words)
        _call(b, "lwc_copy_bulk", b.address_of(self._slices, at + t.right), from_, 4 * t.slice_words, arrived)
        part = b.let("part", rank * (t.right // t.cluster))
        to, from_ = b.address_of(self._slices, at + part), b.address_of(x, right * t.right + part)
        if t.cluster == 1:
            _call(b, "lwc_copy_bulk", to, from_, 4 * t.right, arrived)
        else:
            _call(b, "lwc_copy_bulk_to_all", to, from_, 4 * t.right // t.cluster, arrived, (1 << t.cluster) - 1)

    def multiply(self, number: Expr, own: Expr, sums: list[Register]) -> None:
        """Starts the products of a slice, when it is there.

        Args:
            number: of the slice.
            own: the warpgroup's first 64 output channels of the block.
            sums: of each 64 output channels.
        """
        b, t = self._b, self._t
        stage, turn = b.let("stage", modulo(number, t.stages)), divide(number, t.stages)
        _call(b, "lwc_barrier_wait", self._arrived(stage), b.let("now", modulo(turn, 2)))
        right = b.let("right", stage * t.stage_words)
        left = b.let("left", right + t.right + own * (_DOWN * t.weight_row))
        kept = [b.register(t.steps, "uint32") for _ in sums if t.sparse]
        for i, register in enumerate(kept):
            warp, lane = divide(modulo(b.thread, _WARPGROUP), WARP), modulo(b.thread, WARP)
            of_lane = ((own + i) * 4 + warp) * 16 + divide(lane, 4) * 2 + modulo(lane, 2)
            at = right + t.right + t.outputs * t.weight_row + of_lane * t.steps
            register.set(b.load(self._slices, at, t.steps))
        instruction = f"lwc_wgmma_{'sparse_' * t.sparse}{t.precision}_{t.pixels}"
        layouts = [tirx.const(_layout(words), "uint32") for words in (t.weight_row, ROW)]
        _call(b, "lwc_wgmma_begin")
        for step in range(t.steps):
            for i, register in enumerate(sums):
                of_weights = left + (i * _DOWN * t.weight_row + step * _STEP_BYTES // 4)
                of_inputs = right + step * (ROW // t.steps)
                factors = [b.address_of(self._slices, of_weights), layouts[0]]
                factors += [b.address_of(self._slices, of_inputs), layouts[1]]
                places = [kept[i].part(step, 1)] if t.sparse else []
                _call(b, instruction, register.pointer, *factors, *places)
        _call(b, "lwc_wgmma_commit")

    def release(self, number: Expr) -> None:
        """Says to all blocks of the cluster that the warp has read a slice."""
        b, t = self._b, self._t
        lane = modulo(b.thread, WARP)
        with b.when(lane < t.cluster):
            _call(b, "lwc_barrier_arrive", self._read(b.let("stage", modulo(number, t.stages))), lane)

    def _arrived(self, stage: Expr) -> Expr:
        return self._b.address_of(self._barriers, stage * 2)

    def _read(self, stage: Expr) -> Expr:
        return self._b.address_of(self._barriers, (self._t.stages + stage) * 2)


def _layout(row: int) -> int:
    """The high half of a matrix descriptor: from eight rows to the next, in 16 bytes, and how rows are swizzled."""
    return 8 * row // PIECE | _SWIZZLING[row] << 30


def _call(b: DeviceBuilder, name: str, *arguments: Expr) -> None:
    b.emit(Evaluate(tirx.call_extern("void", name, *arguments)))
