"""Sparse matrix times one vector, or times a few at once.

The inputs are cut into blocks that stay in the level-1 cache; within a block an index takes 16 bits. A single vector is
bound by the loads of single inputs, one for every non-zero. Several vectors lie side by side, so that a non-zero loads
and multiplies the inputs of all of them. The non-zeros of a row are summed in several independent chains, so that
additions do not wait for each other.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from lwc_compiler.kernels.builder import KernelBuilder, pieces, smaller, splat, unravel
from lwc_compiler.kernels.kernel import Constant
from lwc_compiler.kernels.layer import store_result

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from lwc_compiler.kernels.kernel import Kernel
    from lwc_compiler.kernels.layer import Epilogue


@dataclass(frozen=True)
class MatvecLayout:
    """Shape of the problem y (vectors, outputs) = x (vectors, inputs) @ w, and how it is cut.

    Attributes:
        vectors: vectors one after the other, each dense: x is (vectors, inputs, together).
        together: vectors side by side: x is (inputs, together), y (outputs, together).
        inputs: length of a vector.
        outputs: rows of the matrix.
        lanes: float32 in a machine register.
        block: inputs of a block, at most 2^16.
        chunk: outputs of a tile.
        chains: independent sums of a row; the non-zeros of a row in a block are filled to a multiple.
    """

    vectors: int
    together: int
    inputs: int
    outputs: int
    lanes: int
    block: int
    chunk: int
    chains: int

    @property
    def blocks(self) -> int:
        """Blocks of inputs."""
        return -(-self.inputs // self.block)

    @property
    def chunks(self) -> int:
        """Tiles of each vector."""
        return -(-self.outputs // self.chunk)

    @property
    def starts(self) -> list[int]:
        """First vector of each register of vectors side by side; the lanes of the last may be more than there are."""
        return list(range(0, self.together, self.lanes))


def pack_matvec(weight: NDArray[np.float32], layout: MatvecLayout) -> tuple[list[Constant], int]:
    """Non-zeros of weight (outputs, inputs) by block, then row; each run filled to a multiple of the chains.

    Filling repeats the run's last index, with value 0. Returns the constants `ends`, `indices`, `values` and how many
    weights are stored.
    """
    counts, indices, values = [], [], []
    for block in range(layout.blocks):
        part = weight[:, block * layout.block : (block + 1) * layout.block]
        row, column = np.nonzero(part)
        count = np.bincount(row, minlength=layout.outputs)
        filled = -(-count // layout.chains) * layout.chains
        ends = np.cumsum(filled)
        position = np.arange(row.size) + np.repeat(ends - filled - (np.cumsum(count) - count), count)
        index = np.zeros(int(ends[-1]), np.uint16)
        value = np.zeros(int(ends[-1]), np.float32)
        last = np.cumsum(count)[count > 0] - 1
        index[:] = np.repeat(column[last], filled[count > 0])
        index[position] = column
        value[position] = part[row, column]
        counts.append(filled)
        indices.append(index)
        values.append(value)
    ends = np.concatenate([[0], np.cumsum(np.concatenate(counts))]).astype(np.int32)
    stored = int(ends[-1])
    filling = np.zeros(0 if stored else layout.chains, np.uint16)
    return [
        Constant(ends),
        Constant(np.concatenate([*indices, filling])),
        Constant(np.concatenate([*values, filling.astype(np.float32)])),
    ], stored


def matvec_kernel(name: str, layout: MatvecLayout, epilogue: Epilogue) -> Kernel:
    """Builds the kernel; parameters: x, [residual], ends, indices, values, [bias], y."""
    b, lay = KernelBuilder(), layout
    x = b.pointer("x")
    residual = b.pointer("residual") if epilogue.residual else None
    ends, indices, values = b.pointer("ends", "int32"), b.pointer("indices", "uint16"), b.pointer("values")
    bias = b.pointer("bias") if epilogue.bias is not None else None
    y = b.pointer("y")
    sums = b.pointer("scratch")
    width = len(lay.starts) * lay.lanes
    with b.loop("tile", b.first, b.last) as tile:
        chunk, vector = unravel(b, tile, (lay.chunks, lay.vectors))
        first = b.let("first", chunk * lay.chunk)
        last = b.let("last", smaller(first + lay.chunk, lay.outputs))
        with b.loop("row", first, last) as row:
            value = b.let("value", b.load(bias, row)) if bias is not None else 0.0
            for lane in lay.starts:
                b.store(sums, (row - first) * width + lane, splat(value, lay.lanes), lay.lanes)
        with b.loop("block", 0, lay.blocks) as block:
            start = b.let("start", (vector * lay.inputs + block * lay.block) * lay.together)
            with b.loop("row", first, last) as row:
                totals = _row_sums(b, lay, x, start, ends, indices, values, block * lay.outputs + row)
                for lane, total in zip(lay.starts, totals, strict=True):
                    at = b.let("at", (row - first) * width + lane)
                    b.store(sums, at, b.load(sums, at, lay.lanes) + total, lay.lanes)
        with b.loop("row", first, last) as row:
            for lane, lanes in pieces(lay.together, lay.lanes):
                at = b.let("at", (vector * lay.outputs + row) * lay.together + lane)
                value = b.load(sums, (row - first) * width + lane, lanes)
                store_result(b, y, at, value, residual, epilogue.activation, lanes)
    return b.build(name, lay.vectors * lay.chunks, 4 * lay.chunk * width)


def _row_sums(
    b: KernelBuilder, lay: MatvecLayout, x: Any, start: Any, ends: Any, indices: Any, values: Any, run: Any
) -> list[Any]:
    chains = [[b.register(lay.lanes) for _ in lay.starts] for _ in range(lay.chains)]
    for register in (r for chain in chains for r in chain):
        register.set(splat(0.0, lay.lanes))
    begin = b.let("begin", b.load(ends, run))
    count = b.let("count", (b.load(ends, run + 1) - begin) // lay.chains)
    with b.loop("step", 0, count) as step:
        for i, chain in enumerate(chains):
            at = begin + step * lay.chains + i
            source = b.let("source", start + b.load(indices, at).astype("int32") * lay.together)
            value = b.let("value", b.load(values, at))
            for lane, register in zip(lay.starts, chain, strict=True):
                register.set(register.get() + splat(value, lay.lanes) * b.load(x, source + lane, lay.lanes))
    totals = [[register.get() for register in chain] for chain in chains]
    while len(totals) > 1:
        totals = [
            [p + q for p, q in zip(one, two, strict=True)] for one, two in zip(totals[::2], totals[1::2], strict=True)
        ]
    return totals[0]
