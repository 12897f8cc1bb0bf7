"""Sparse matrix times vector without gathers: sixteen rows in the lanes, their inputs looked up in registers.

In every step each of the 16 rows of a group multiplies one of its non-zeros, all with inputs from one window of the
vector. The window is loaded whole, and `vpermt2ps` picks every lane's input from it by a code of one byte; a code and a
value are all that is stored of a non-zero. The windows of a group follow its row that is furthest behind. A row without
a non-zero left in the window gets filling. Where the weights come from beyond the caches, rows whose non-zeros are at
the same places therefore share a group, and the sums of a tile's groups are put in order at its end. Inputs are cut
into blocks that stay in the level-1 cache.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from tvm import tirx

from lwc_compiler.kernels.builder import KernelBuilder, pieces, smaller, splat, unravel
from lwc_compiler.kernels.kernel import Constant
from lwc_compiler.kernels.layer import store_result

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from lwc_compiler.kernels.kernel import Kernel
    from lwc_compiler.kernels.layer import Epilogue

LANES = 16
FEATURES = frozenset({"avx512f", "avx512bw", "avx512vl"})
STEP_BYTES = 5 * LANES + 2
_CHAINS = 2  # sums of a group, so that additions do not wait for each other; its steps are a multiple
_FILLING = 128  # bit of a code: the lane has nothing to add
_AHEAD = 32  # steps by which values are asked for before they are used
_PLACES, _WAVES = 16, 4  # in which, and by which, the way of a row through the inputs is described


@dataclass(frozen=True)
class LookupLayout:
    """Shape of the problem y (vectors, outputs) = x (vectors, inputs) @ w, and how it is cut.

    Attributes:
        vectors: rows of x.
        inputs: length of a vector.
        outputs: rows of the matrix.
        window: inputs of a window: 64, 96 or 128.
        chunk: groups of a tile.
        block: inputs of a block, a multiple of `LANES` if there are several.
        far: the weights do not stay in the level-2 cache: fewer of them are worth more work for each group, and they
            are asked for in advance.
    """

    vectors: int
    inputs: int
    outputs: int
    window: int
    chunk: int
    block: int
    far: bool

    @property
    def groups(self) -> int:
        """Groups of rows; the last may have rows that do not exist."""
        return -(-self.outputs // LANES)

    @property
    def chunks(self) -> int:
        """Tiles of each vector."""
        return -(-self.groups // self.chunk)

    @property
    def blocks(self) -> int:
        """Blocks of inputs."""
        return -(-self.inputs // self.block)

    @property
    def last_window(self) -> int:
        """Where a window may start at most, so that it ends less than 256 bytes behind the inputs."""
        return max(0, -(-(self.inputs - self.window) // LANES) * LANES)


def pack_lookup(weight: NDArray[np.float32], layout: LookupLayout) -> tuple[list[Constant], int]:
    """Weight (outputs, inputs) as steps, block by block of inputs and group by group.

    Returns the constants `ends`, `rows` (if far), `bases`, `codes`, `values` and how many weights are stored.
    """
    lanes = np.arange(layout.groups * LANES)
    counts, rows, bases, codes, values = [], [], [], [], []
    for first in range(0, layout.inputs, layout.block):
        part = weight[:, first : first + layout.block]
        row, column = np.nonzero(part)
        places = _order(row, column, part.shape[1], layout) if layout.far else lanes
        begin = np.searchsorted(row, np.arange(lanes.size + 1))
        group, base, taken = _schedule(first + column, begin[places], begin[places + 1], layout)
        # The steps of all groups come side by side; those of a group are to follow each other.
        side = np.argsort(group, kind="stable")
        base, taken = base[side], taken[side]
        count = np.bincount(group, minlength=layout.groups)
        filled = -(-count // _CHAINS) * _CHAINS
        place = np.arange(group.size) + np.repeat(np.cumsum(filled - count) - (filled - count), count)
        step, lane = np.nonzero(taken >= 0)
        source = taken[step, lane]
        total = int(filled.sum())
        counts.append(filled)
        rows.append(places - lanes // (layout.chunk * LANES) * (layout.chunk * LANES))
        bases.append(np.zeros(total, np.uint16))
        bases[-1][place] = base // LANES
        codes.append(np.full((total, LANES), _FILLING, np.uint8))
        codes[-1][place[step], lane] = first + column[source] - base[step]
        values.append(np.zeros((total, LANES), np.float32))
        values[-1][place[step], lane] = part[row[source], column[source]]
    ends = np.concatenate([[0], np.cumsum(np.concatenate(counts))]).astype(np.int32)
    if not ends[-1]:  # an empty constant has no address
        bases, codes, values = [np.zeros(1, np.uint16)], [np.zeros((1, 1), np.uint8)], [np.zeros((1, 1), np.float32)]
    order = [np.concatenate(rows).astype(np.uint16)] if layout.far else []
    steps = [np.concatenate(each).ravel() for each in (bases, codes, values)]
    arrays: list[NDArray[Any]] = [ends, *order, *steps]
    return [Constant(array) for array in arrays], int(ends[-1]) * LANES


def _order(row: NDArray[np.int64], column: NDArray[np.int64], width: int, layout: LookupLayout) -> NDArray[np.int64]:
    """The rows of every tile, those of a group one after the other: rows whose non-zeros are at the same places.

    How many non-zeros a row has before each of some places is, but for what all rows share, a random walk. Most of it
    is in the first of the waves that make up such walks best (Karhunen-Loeve, of the Wiener process). Groups are cut
    like a k-d tree, each time along the wave that varies most.
    """
    rows = layout.groups * LANES
    counts = np.bincount(row * _PLACES + column * _PLACES // width, minlength=rows * _PLACES)
    times = np.arange(1, _PLACES + 1) / _PLACES
    waves = np.rint(1000 * np.sin(np.pi * np.outer(times, np.arange(_WAVES) + 0.5))).astype(np.int64)
    walks = counts.reshape(rows, _PLACES).cumsum(axis=1) @ waves

    def alike(these: NDArray[np.int64]) -> list[NDArray[np.int64]]:
        if these.size <= LANES:
            return [these]
        varied = walks[these].var(axis=0).argmax()
        these = these[np.argsort(walks[these, varied], kind="stable")]
        half = -(-these.size // LANES) // 2 * LANES
        return [*alike(these[:half]), *alike(these[half:])]

    size = layout.chunk * LANES
    tiles = [alike(np.arange(start, min(start + size, rows))) for start in range(0, rows, size)]
    return np.concatenate([group for tile in tiles for group in tile])


def _schedule(
    column: NDArray[np.int64], heads: NDArray[np.int64], stops: NDArray[np.int64], layout: LookupLayout
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Shares the non-zeros out to steps, those of all groups side by side.

    Args:
        column: of every non-zero.
        heads: of every row, group by group, its first non-zero.
        stops: the end of its non-zeros.
        layout: of the kernel.

    Returns:
        Of every step: the group, the start of its window, and the non-zero of every lane or -1.
    """
    heads, stops = heads.reshape(-1, LANES), stops.reshape(-1, LANES)
    group = np.arange(layout.groups)
    column = np.append(column, layout.inputs)
    groups, bases, taken = [group[:0]], [group[:0]], [heads[:0]]
    while group.size:
        needed = np.where(heads < stops, column[heads], layout.inputs)
        lowest = needed.min(axis=1)
        active = lowest < layout.inputs
        if not active.all():
            group, heads, stops = group[active], heads[active], stops[active]
            needed, lowest = needed[active], lowest[active]
        base = np.minimum(lowest // LANES * LANES, layout.last_window)
        take = needed < np.minimum(base + layout.window, layout.inputs)[:, None]
        groups.append(group)
        bases.append(base)
        taken.append(np.where(take, heads, -1))
        heads = heads + take
    return np.concatenate(groups), np.concatenate(bases), np.concatenate(taken)


def lookup_kernel(name: str, layout: LookupLayout, epilogue: Epilogue) -> Kernel:
    """Builds the kernel; parameters: x, [residual], ends, [rows], bases, codes, values, [bias], y."""
    b, lay = KernelBuilder(), layout
    x = b.pointer("x")
    residual = b.pointer("residual") if epilogue.residual else None
    ends = b.pointer("ends", "int32")
    rows = b.pointer("rows", "uint16") if lay.far else None
    bases = b.pointer("bases", "uint16")
    codes, values = b.pointer("codes", "uint8"), b.pointer("values")
    bias = b.pointer("bias") if epilogue.bias is not None else None
    y = b.pointer("y")
    scratch = b.pointer("scratch")
    whole, rest = divmod(lay.outputs, LANES)
    with b.loop("tile", b.first, b.last) as tile:
        chunk, vector = unravel(b, tile, (lay.chunks, lay.vectors))
        first = b.let("first", chunk * lay.chunk)
        last = b.let("last", smaller(first + lay.chunk, lay.groups))
        start = b.let("start", vector * lay.inputs)
        with b.loop("block", 0, lay.blocks) as block, b.loop("group", first, last) as group:
            number = b.let("number", block * lay.groups + group)
            sums = [b.register(LANES) for _ in range(_CHAINS)]
            for register in sums:
                register.set(splat(0.0, LANES))
            begin = b.let("begin", b.load(ends, number))
            with b.loop("steps", 0, (b.load(ends, number + 1) - begin) // _CHAINS) as steps:
                for i, register in enumerate(sums):
                    step = b.let("step", begin + steps * _CHAINS + i)
                    if lay.far:
                        b.prefetch(values, (step + _AHEAD) * LANES)
                    base = b.let("base", start + b.load(bases, step).astype("int32") * LANES)
                    code = b.let("code", b.load(codes, step * LANES, LANES))
                    window = [b.load(x, base + at, LANES) for at in range(0, lay.window, LANES)]
                    added = register.get() + _look_up(window, code) * b.load(values, step * LANES, LANES)
                    register.set(tirx.Select(code < _bytes(_FILLING), added, register.get()))
            sums[0].set(sums[0].get() + sums[1].get())
            if rows is not None:
                places = [b.let("row", b.load(rows, number * LANES + i).astype("int32")) for i in range(LANES)]
                added = [(place, sums[0].part(i, 1), 1) for i, place in enumerate(places)]
            else:
                added = [((group - first) * LANES, sums[0].get(), LANES)]
            for place, total, lanes in added:
                with b.when(block == 0):
                    b.store(scratch, place, total, lanes)
                with b.when(block > 0):
                    b.store(scratch, place, b.load(scratch, place, lanes) + total, lanes)
        with b.loop("group", first, last) as group:
            parts = [(LANES, group < whole)] * (whole > 0) + [(rest, group == whole)] * (rest > 0)
            for count, these in parts:
                with b.when(these):
                    for piece, lanes in pieces(count, LANES):
                        channel = b.let("channel", group * LANES + piece)
                        value = b.load(scratch, (group - first) * LANES + piece, lanes)
                        if bias is not None:
                            value = value + b.load(bias, channel, lanes)
                        at = b.let("at", vector * lay.outputs + channel)
                        store_result(b, y, at, b.let("value", value), residual, epilogue.activation, lanes)
    return b.build(name, lay.vectors * lay.chunks, 4 * lay.chunk * LANES)


def _look_up(window: list[Any], code: Any) -> Any:
    """The inputs that the codes name: bits 0 to 4 choose in two vectors of the window, the next ones which two."""
    index = code.astype(f"int32x{LANES}")
    found = [
        tirx.call_llvm_pure_intrin(f"float32x{LANES}", "llvm.x86.avx512.vpermi2var.ps.512", low, index, high)
        for low, high in zip(window[::2], window[1::2], strict=True)
    ]
    bit = 2 * LANES
    while len(found) > 1:
        upper = (code & _bytes(bit)) != _bytes(0)
        single = found[len(found) // 2 * 2 :]
        found = [tirx.Select(upper, high, low) for low, high in zip(found[::2], found[1::2], strict=False)] + single
        bit *= 2
    return found[0]


def _bytes(value: int) -> Any:
    return splat(tirx.const(value, "uint8"), LANES)
