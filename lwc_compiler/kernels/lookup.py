"""Sparse matrix times vector without gathers: sixteen rows in the lanes, their inputs looked up in registers.

In every step each of the 16 rows of a group multiplies one of its non-zeros, all with inputs from one window of the
vector. The window is loaded whole, and `vpermt2ps` picks every lane's input from it by a code of one byte; a code and a
value are all that is stored of a non-zero. The windows of a group follow its row that is furthest behind. A row without
a non-zero left in the window gets filling.
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


@dataclass(frozen=True)
class LookupLayout:
    """Shape of the problem y (vectors, outputs) = x (vectors, inputs) @ w, and how it is cut."""

    vectors: int
    inputs: int
    outputs: int
    window: int  # inputs of a window: 32, 64 or 128
    chunk: int  # groups of a tile

    @property
    def groups(self) -> int:
        """Groups of rows; the last may have rows that do not exist."""
        return -(-self.outputs // LANES)

    @property
    def chunks(self) -> int:
        """Tiles of each vector."""
        return -(-self.groups // self.chunk)

    @property
    def last_window(self) -> int:
        """Where a window may start at most, so that it ends less than 256 bytes behind the inputs."""
        return max(0, -(-(self.inputs - self.window) // LANES) * LANES)


def pack_lookup(weight: NDArray[np.float32], layout: LookupLayout) -> tuple[list[Constant], int]:
    """Weight (outputs, inputs) as steps, group by group.

    Returns the constants `ends`, `bases`, `codes`, `values` and how many weights are stored.
    """
    row, column = np.nonzero(weight)
    kept = weight[row, column]
    stops = np.full(layout.groups * LANES, row.size)
    stops[: layout.outputs] = np.cumsum(np.bincount(row, minlength=layout.outputs))
    group, base, taken = _schedule(column, stops.reshape(-1, LANES), layout)
    counts = np.bincount(group, minlength=layout.groups)
    ends = np.concatenate([[0], np.cumsum(-(-counts // _CHAINS) * _CHAINS)])
    order = np.argsort(group, kind="stable")
    group, base, taken = group[order], base[order], taken[order]
    place = ends[group] + np.arange(group.size) - (np.cumsum(counts) - counts)[group]
    steps = max(1, int(ends[-1]))  # an empty constant has no address
    bases = np.zeros(steps, np.uint16)
    codes = np.full((steps, LANES), _FILLING, np.uint8)
    values = np.zeros((steps, LANES), np.float32)
    bases[place] = base // LANES
    adds = taken >= 0
    codes[place] = np.where(adds, column[taken] - base[:, None], _FILLING)
    values[place] = np.where(adds, kept[taken], 0)
    constants = [Constant(ends.astype(np.int32)), Constant(bases), Constant(codes.ravel()), Constant(values.ravel())]
    return constants, int(ends[-1]) * LANES


def _schedule(
    column: NDArray[np.int64], stops: NDArray[np.int64], layout: LookupLayout
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Shares the non-zeros out to steps, those of all groups side by side.

    Args:
        column: of every non-zero, row by row.
        stops: (groups, lanes), end of every row in it.
        layout: of the kernel.

    Returns:
        Of every step: the group, the start of its window, and the non-zero of every lane or -1.
    """
    heads = np.concatenate([[0], stops.ravel()[:-1]]).reshape(-1, LANES)
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
    """Builds the kernel; parameters: x, [residual], ends, bases, codes, values, [bias], y."""
    b = KernelBuilder()
    x = b.pointer("x")
    residual = b.pointer("residual") if epilogue.residual else None
    ends, bases = b.pointer("ends", "int32"), b.pointer("bases", "uint16")
    codes, values = b.pointer("codes", "uint8"), b.pointer("values")
    bias = b.pointer("bias") if epilogue.bias is not None else None
    y = b.pointer("y")
    whole, rest = divmod(layout.outputs, LANES)
    with b.loop("tile", b.first, b.last) as tile:
        chunk, vector = unravel(b, tile, (layout.chunks, layout.vectors))
        first = b.let("first", chunk * layout.chunk)
        start = b.let("start", vector * layout.inputs)
        with b.loop("group", first, b.let("last", smaller(first + layout.chunk, layout.groups))) as group:
            sums = [b.register(LANES) for _ in range(_CHAINS)]
            sums[0].set(b.load(bias, group * LANES, LANES) if bias is not None else splat(0.0, LANES))
            for register in sums[1:]:
                register.set(splat(0.0, LANES))
            begin = b.let("begin", b.load(ends, group))
            with b.loop("steps", 0, (b.load(ends, group + 1) - begin) // _CHAINS) as steps:
                for i, register in enumerate(sums):
                    step = b.let("step", begin + steps * _CHAINS + i)
                    base = b.let("base", start + b.load(bases, step).astype("int32") * LANES)
                    code = b.let("code", b.load(codes, step * LANES, LANES))
                    window = [b.load(x, base + at, LANES) for at in range(0, layout.window, LANES)]
                    added = register.get() + _look_up(window, code) * b.load(values, step * LANES, LANES)
                    register.set(tirx.Select(code < _bytes(_FILLING), added, register.get()))
            sums[0].set(sums[0].get() + sums[1].get())
            parts = [(LANES, group < whole)] * (whole > 0) + [(rest, group == whole)] * (rest > 0)
            for count, these in parts:
                with b.when(these):
                    for piece, lanes in pieces(count, LANES):
                        at = b.let("at", vector * layout.outputs + group * LANES + piece)
                        store_result(b, y, at, sums[0].part(piece, lanes), residual, epilogue.activation, lanes)
    return b.build(name, layout.vectors * layout.chunks)


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
        found = [tirx.Select(upper, high, low) for low, high in zip(found[::2], found[1::2], strict=True)]
        bit *= 2
    return found[0]


def _bytes(value: int) -> Any:
    return splat(tirx.const(value, "uint8"), LANES)
