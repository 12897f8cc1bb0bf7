"""Products and convolutions on Hopper's tensor cores by `wgmma`: with every weight, or half of them (2:4).

A warpgroup, four warps, multiplies 64 output channels x up to 256 pixels in one instruction, which is asynchronous and
reads both factors from shared memory (PTX ISA, *Asynchronous Warpgroup Level Matrix Multiply-Accumulate Instructions*).
So they must lie there as the instruction reads them, and in as few bits as it takes: a first kernel
(`wgmma_inputs.py`) rounds the inputs and puts them into the order of shared memory, slice by slice; the weights are in
it when the network is compiled. Then a slice of either is one copy of neighbouring bytes.

One thread of a block starts copies, as many slices ahead as shared memory has room for; the other warpgroups multiply
slices when they have arrived. A cluster computes a larger tile: of a slice that several of its blocks need, each copies
a part, to all of them. There are no more blocks than multiprocessors; a block computes one tile after the other, and
while it stores the results of one, slices of the next arrive.

Products with every weight are waited for when those of the next slice have begun. Of 2:4 the places of what is kept are
in registers, which an instruction may read until it is waited for: the next ones are loaded after that, and meanwhile
the tensor cores have the other warpgroup's products.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tvm import tirx

from lwc_compiler.kernels.builder import divide, modulo, unravel
from lwc_compiler.kernels.gpu.builder import WARP, DeviceBuilder
from lwc_compiler.kernels.gpu.product import store_sums
from lwc_compiler.kernels.gpu.wgmma_layout import DOWN, KEPT_ROW, PIECE, ROW, STEP, WARPGROUP

if TYPE_CHECKING:
    from lwc_compiler.kernels.builder import Register
    from lwc_compiler.kernels.gpu.builder import Expr
    from lwc_compiler.kernels.gpu.wgmma_layout import WgmmaTile
    from lwc_compiler.kernels.kernel import Kernel
    from lwc_compiler.kernels.layer import Epilogue

_ACROSS = 8  # pixels of which a thread has two neighbours
# The high half of a matrix descriptor, by the words of a row: from eight rows to the next, in 16 bytes, and a swizzle.
_LAYOUTS = {ROW: 8 * ROW // PIECE | 1 << 30, KEPT_ROW: 8 * KEPT_ROW // PIECE | 2 << 30}
_FEWER, _MORE = 24, 240  # registers of a thread that copies, and of one that multiplies, where two warpgroups do


def wgmma_kernel(name: str, t: WgmmaTile, epilogue: Epilogue) -> Kernel:
    """The kernel: inputs of `wgmma_inputs`, [residual,] weights, [bias,] y."""
    b = DeviceBuilder(t.grid, t.threads, cluster=t.cluster)
    x = b.pointer("x", "uint32")
    residual = b.pointer("residual") if epilogue.residual else None
    weights = b.constant("weights", "uint32")
    bias = b.constant("bias") if epilogue.bias is not None else None
    y = b.pointer("y")
    ring = _Ring(b, t)
    warpgroup = b.let("warpgroup", divide(b.thread, WARPGROUP))
    cluster, rank = b.let("cluster", divide(b.block[0], t.cluster)), b.let("rank", modulo(b.block[0], t.cluster))
    turns = b.let("turns", divide(t.tiles - 1 - cluster, t.clusters) + 1)
    ring.begin()
    b.inputs_ready()
    with b.when(warpgroup == 0):
        if t.groups > 1:
            b.device_call(f"lwc_registers_{_FEWER}")
        with b.when(b.thread == 0), b.loop("turn", 0, turns, rolled=True) as turn:
            output, pixel, part = _place(b, t, cluster + turn * t.clusters, rank)
            first = part * t.slices_of_block
            with b.loop("slice", 0, t.slices_of_block, rolled=True) as number:
                slice_ = b.let("slice", first + number)
                left = b.let("left", (output * t.slices + slice_) * t.slice_words)
                right = b.let("right", (_row(b, t, slice_) + pixel * t.pixels) * ROW)
                ring.copy(turn * t.slices_of_block + number, rank, weights, left, x, right)
    with b.otherwise():
        if t.groups > 1:
            b.device_call(f"lwc_registers_{_MORE}")
        sums = [b.register(t.pixels // 2) for _ in range(t.each)]
        kept = [b.register(t.steps, "uint32") for _ in sums if t.sparse]
        own = b.let("own", (warpgroup - 1) * t.each)
        with b.loop("turn", 0, turns, rolled=True) as turn:
            for register in sums:
                with b.unrolled("i", t.pixels // 2) as i:
                    register.set_part(i, tirx.const(0.0, "float32"))
            with b.loop("slice", 0, t.slices_of_block, rolled=True) as number:
                ring.multiply(turn * t.slices_of_block + number, own, sums, kept)
                if t.sparse:
                    b.device_call("lwc_wgmma_wait_0")
                    b.device_call("__syncwarp")  # some lanes say that all have read the places
                    ring.release(turn * t.slices_of_block + number)
                else:
                    with b.when(number > 0):
                        b.device_call("lwc_wgmma_wait_1")
                        ring.release(turn * t.slices_of_block + number - 1)
            if not t.sparse:
                b.device_call("lwc_wgmma_wait_0")
                ring.release((turn + 1) * t.slices_of_block - 1)
            for register in sums:
                b.device_call(f"lwc_wgmma_done_{t.pixels // 2}", register.pointer)
            output, pixel, part = _place(b, t, cluster + turn * t.clusters, rank)
            exists = tirx.all(output * t.outputs < t.geometry.group_outputs, pixel * t.pixels < t.places)
            with b.when(exists if t.cluster > 1 else True):
                first_sum = output * t.outputs + own * DOWN
                _store(b, t, part, first_sum, pixel * t.pixels, sums, (y, residual, bias), epilogue)
    if t.cluster > 1:
        b.device_call("lwc_cluster_sync")  # no block ends while another of its cluster may still copy to it
    return b.finished(name)


def _place(b: DeviceBuilder, t: WgmmaTile, tile: Expr, rank: Expr) -> tuple[Expr, Expr, Expr]:
    """Which block of output channels, which of pixels, and which part of sums, a block computes of a cluster's tile."""
    part, pixel, output = unravel(b, tile, (t.splits, t.pixel_clusters, t.output_clusters))
    output = output * t.along_outputs + modulo(rank, t.along_outputs)
    pixel = pixel * t.along_pixels + divide(rank, t.along_outputs)
    return b.let("output", output), b.let("pixel", pixel), part


def _row(b: DeviceBuilder, t: WgmmaTile, slice_: Expr) -> Expr:
    """The row of the ordered inputs that the first place of all reads in a slice."""
    if not t.shifts:
        return slice_ * t.rows
    channels, *position = unravel(b, slice_, (t.blocks, *t.geometry.kernel))
    further = sum(at * rows for at, rows in zip(position, t.further, strict=True))
    return (channels * t.copied[-1] + position[-1]) * t.rows + further


def _store(
    b: DeviceBuilder,
    t: WgmmaTile,
    part: Expr,
    first_output: Expr,
    first_pixel: Expr,
    sums: list[Register],
    pointers: tuple[Expr, Expr | None, Expr | None],
    epilogue: Epilogue,
) -> None:
    """Stores a warpgroup's sums: a thread has two output channels x two pixels of every eight in four registers."""
    lane, warp = b.let("lane", modulo(b.thread, WARP)), b.let("warp", divide(modulo(b.thread, WARPGROUP), WARP))
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
                store_sums(b, t, 0, part, pixel, [(row, neighbours, 0)], pointers, epilogue, 2 * t.each)
        return
    for j in range(t.pixels // _ACROSS):
        results = [
            (row + (i * DOWN + lower * 8), register, j * 4 + lower * 2)
            for i, register in enumerate(sums)
            for lower in range(2)
        ]
        store_sums(b, t, 0, part, first_pixel + j * _ACROSS, results, pointers, epilogue, 2)


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
            b.device_call("lwc_barrier_init", self._arrived(stage), 1)
            b.device_call("lwc_barrier_init", self._read(stage), t.groups * (WARPGROUP // WARP) * t.cluster)
        b.device_call("lwc_cluster_sync")

    def copy(self, number: Expr, rank: Expr, weights: Expr, left: Expr, x: Expr, right: Expr) -> None:
        """Starts the block's copies of a slice: of weights and inputs, each a part of what some of the cluster need.

        Args:
            number: of the slice, of all that the block multiplies.
            rank: of the block in its cluster.
            weights: in slices.
            left: where the slice begins in them.
            x: the inputs.
            right: where the slice begins in them.
        """
        b, t = self._b, self._t
        stage, turn = b.let("stage", modulo(number, t.stages)), divide(number, t.stages)
        b.device_call("lwc_barrier_wait", self._read(stage), b.let("before", 1 - modulo(turn, 2)))
        at = b.let("at", stage * t.stage_words)
        b.device_call("lwc_barrier_expect", self._arrived(stage), 4 * (t.right + t.slice_words))
        down, across = modulo(rank, t.along_outputs), divide(rank, t.along_outputs)
        same_outputs = sum(1 << (i * t.along_outputs) for i in range(t.along_pixels))
        self._copy_part(
            stage, at + t.right, weights, left, t.slice_words, (across, t.along_pixels), (same_outputs, down)
        )
        same_pixels = (1 << t.along_outputs) - 1
        first = across * t.along_outputs
        self._copy_part(stage, at, x, right, t.right, (down, t.along_outputs), (same_pixels, first))

    def _copy_part(
        self, stage: Expr, at: Expr, from_: Expr, start: Expr, words: int, part: tuple[Expr, int], to: tuple[int, Expr]
    ) -> None:
        """Starts to copy a part, one of some, of a slice to the blocks of a mask that is shifted by some bits."""
        b, (number, parts), (mask, shift) = self._b, part, to
        first = b.let("first", number * (words // parts))
        addresses = b.address_of(self._slices, at + first), b.address_of(from_, start + first)
        if parts == 1:
            b.device_call("lwc_copy_bulk", *addresses, 4 * words, self._arrived(stage))
        else:
            blocks = b.let("blocks", tirx.const(mask, "int32") << shift)
            b.device_call("lwc_copy_bulk_to_all", *addresses, 4 * words // parts, self._arrived(stage), blocks)

    def multiply(self, number: Expr, own: Expr, sums: list[Register], kept: list[Register]) -> None:
        """Starts the products of a slice, when it is there.

        Args:
            number: of the slice.
            own: the warpgroup's first 64 output channels of the block.
            sums: of each 64 output channels.
            kept: gets the places of what is kept of each, a word for an instruction, where the weights are sparse.
        """
        b, t = self._b, self._t
        stage, turn = b.let("stage", modulo(number, t.stages)), divide(number, t.stages)
        b.device_call("lwc_barrier_wait", self._arrived(stage), b.let("now", modulo(turn, 2)))
        right = b.let("right", stage * t.stage_words)
        left = b.let("left", right + t.right + own * (DOWN * t.weight_row))
        warp, lane = divide(modulo(b.thread, WARPGROUP), WARP), modulo(b.thread, WARP)
        for i, register in enumerate(kept):
            of_lane = ((own + i) * 4 + warp) * 16 + divide(lane, 4) * 2 + modulo(lane, 2)
            at = right + t.right + t.outputs * t.weight_row + of_lane * t.steps
            register.set(b.load(self._slices, at, t.steps))
        instruction = f"lwc_wgmma_{'sparse_' * t.sparse}{t.precision}_{t.pixels}"
        layouts = [tirx.const(_LAYOUTS[words], "uint32") for words in dict.fromkeys((t.weight_row, ROW))]
        b.device_call("lwc_wgmma_begin")
        for step in range(t.steps):
            for i, register in enumerate(sums):
                matrices = (left + (i * DOWN * t.weight_row + step * STEP), right + step * (ROW // t.steps))
                factors = (b.address_of(self._slices, first) for first in matrices)
                places = (each.address(step) for each in kept[i : i + 1])
                b.device_call(instruction, register.pointer, *factors, *layouts, *places)
        b.device_call("lwc_wgmma_commit")

    def release(self, number: Expr) -> None:
        """Says to all blocks of the cluster that the warp has read a slice."""
        b, t = self._b, self._t
        lane = modulo(b.thread, WARP)
        with b.when(lane < t.cluster):
            b.device_call("lwc_barrier_arrive", self._read(b.let("stage", modulo(number, t.stages))), lane)

    def _arrived(self, stage: Expr) -> Expr:
        return self._b.address_of(self._barriers, stage * 2)

    def _read(self, stage: Expr) -> Expr:
        return self._b.address_of(self._barriers, (self._t.stages + stage) * 2)
