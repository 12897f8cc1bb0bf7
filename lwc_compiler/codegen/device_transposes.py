"""Transpositions on a GPU, in tiles that are read along the input's memory and written along the output's."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tvm.ir import TensorLoad
from tvm.tirx import Var

from lwc_compiler.codegen.schedules_expressions import dtype_of, linear
from lwc_compiler.codegen.schedules_stages import UnknownStructureError, is_zero, read_stages
from lwc_compiler.kernels.builder import unravel
from lwc_compiler.kernels.gpu.builder import WARP, DeviceBuilder, both, ceil_div

if TYPE_CHECKING:
    from tvm.tirx import PrimFunc

    from lwc_compiler.kernels.gpu.builder import Expr
    from lwc_compiler.kernels.kernel import Kernel

_FEWEST = 8  # elements along both memories, below which tiles are mostly empty
_ROWS = 8  # of a tile, that a block reads at a time
_WORDS = ("float32", "int32", "uint32")


@dataclass(frozen=True)
class Axis:
    """An axis, or several that follow each other in both memories.

    Attributes:
        extent: elements along it.
        read: elements from one to the next in the input's memory.
        written: the same in the output's.
    """

    extent: int
    read: int
    written: int


@dataclass(frozen=True)
class Transposition:
    """A tensor in another order of its axes.

    Attributes:
        dtype: of its elements, of 32 bits.
        along: the axis of neighbours in the input's memory.
        across: the axis of neighbours in the output's memory.
        batch: the others.
    """

    dtype: str
    along: Axis
    across: Axis
    batch: tuple[Axis, ...]


def read_transposition(func: PrimFunc) -> Transposition | None:
    """A function made by Relax's legalization as a transposition; None when it is none that tiles are for."""
    try:
        program = read_stages(func)
    except UnknownStructureError:
        return None
    stage, value = program.stages[0], program.stages[0].values[0]
    if len(program.stages) > 1 or stage.init or not isinstance(value, TensorLoad):
        return None
    if len(program.params) != 2 or dtype_of(value.source) not in _WORDS:
        return None
    indices = [i for i in value.indices if isinstance(i, Var)]
    if len(set(indices)) != len(stage.spatial):
        return None
    places = (program.offset(value.source, value.indices), program.offset(stage.targets[0], stage.indices))
    read, written = (linear(place, set(stage.spatial)) for place in places)
    if read is None or written is None or not is_zero(read.rest):
        return None
    axes = [Axis(program.ranges.extent[v], read.coefficient(v), written.coefficient(v)) for v in stage.spatial]
    axes = _merged(sorted(axes, key=lambda axis: -axis.written))
    along = next((axis for axis in axes if axis.read == 1), None)
    across = next((axis for axis in axes if axis.written == 1), None)
    if along is None or across is None or along is across or min(along.extent, across.extent) < _FEWEST:
        return None
    return Transposition(dtype_of(value.source), along, across, tuple(a for a in axes if a not in (along, across)))


def _merged(axes: list[Axis]) -> list[Axis]:
    """Fewer axes: those that follow each other in both memories are one."""
    merged: list[Axis] = []
    for axis in axes:
        strides = axis.read * axis.extent, axis.written * axis.extent
        if merged and (merged[-1].read, merged[-1].written) == strides:
            merged[-1] = Axis(merged[-1].extent * axis.extent, axis.read, axis.written)
        else:
            merged.append(axis)
    return merged


def transpose_kernel(name: str, t: Transposition) -> Kernel:
    """The kernel: x, y."""
    tiles = (ceil_div(t.across.extent, WARP), ceil_div(t.along.extent, WARP))
    grid = (*(axis.extent for axis in t.batch), *tiles)
    b = DeviceBuilder((math.prod(grid), 1, 1), WARP, _ROWS)
    x, y = b.pointer("x", t.dtype), b.pointer("y", t.dtype)
    pitch = WARP + 1  # lanes of a column are in different banks
    tile = b.shared("tile", WARP * pitch, t.dtype)
    *batch, across, along = unravel(b, b.block[0], grid)
    first_across, first_along = b.let("across", across * WARP), b.let("along", along * WARP)

    def offset(of_axis: str) -> Expr:
        total: Expr = 0
        for i, axis in zip((*batch, first_across, first_along), (*t.batch, t.across, t.along), strict=True):
            total = total + i * getattr(axis, of_axis)
        return b.let("from", total)

    from_, to = offset("read"), offset("written")
    held = [b.register(1, t.dtype) for _ in range(0, WARP, _ROWS)]
    for i, register in enumerate(held):
        row = b.thread_y + i * _ROWS
        with b.when(both(_exists(t.along, first_along, b.thread), _exists(t.across, first_across, row))):
            register.set(b.load(x, from_ + row * t.across.read + b.thread))
    for i, register in enumerate(held):
        b.store(tile, (b.thread_y + i * _ROWS) * pitch + b.thread, register.get())
    b.barrier()
    for i in range(0, WARP, _ROWS):
        row = b.thread_y + i
        with b.when(both(_exists(t.across, first_across, b.thread), _exists(t.along, first_along, row))):
            b.store(y, to + row * t.along.written + b.thread, b.load(tile, b.thread * pitch + row))
    return b.finished(name)


def _exists(axis: Axis, first: Expr, number: Expr) -> Expr:
    return first + number < axis.extent if axis.extent % WARP else True
