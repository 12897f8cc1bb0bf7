"""Sparse matrix times vector: bound by the loads of single inputs, one for every non-zero.

The inputs are cut into blocks that stay in the level-1 cache; within a block an index takes 16 bits. The non-zeros of a
row are summed in several independent chains, so that additions do not wait for each other.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from lwc_compiler.kernels.builder import KernelBuilder, smaller, unravel
from lwc_compiler.kernels.kernel import Constant
from lwc_compiler.kernels.layer import store_result

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from lwc_compiler.kernels.kernel import Kernel
    from lwc_compiler.kernels.layer import Epilogue

CHAINS = 8


@dataclass(frozen=True)
class MatvecLayout:
    """Shape of the problem y (vectors, outputs) = x (vectors, inputs) @ w, and how it is cut."""

    vectors: int
    inputs: int
    outputs: int
    block: int  # inputs of a block, at most 2^16
    chunk: int  # outputs of a tile

    @property
    def blocks(self) -> int:
        """Blocks of inputs."""
        return -(-self.inputs // self.block)

    @property
    def chunks(self) -> int:
        """Tiles of each vector."""
        return -(-self.outputs // self.chunk)


def pack_matvec(weight: NDArray[np.float32], layout: MatvecLayout) -> tuple[list[Constant], int]:
    """Non-zeros of weight (outputs, inputs) by block, then row; each run filled to a multiple of `CHAINS`.

    Filling repeats the run's last index, with value 0. Returns the constants `ends`, `indices`, `values` and how many
    weights are stored.
    """
    counts, indices, values = [], [], []
    for block in range(layout.blocks):
        part = weight[:, block * layout.block : (block + 1) * layout.block]
        row, column = np.nonzero(part)
        count = np.bincount(row, minlength=layout.outputs)
        filled = -(-count // CHAINS) * CHAINS
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
    filling = np.zeros(0 if stored else CHAINS, np.uint16)
    return [
        Constant(ends),
        Constant(np.concatenate([*indices, filling])),
        Constant(np.concatenate([*values, filling.astype(np.float32)])),
    ], stored


def matvec_kernel(name: str, layout: MatvecLayout, epilogue: Epilogue) -> Kernel:
    """Builds the kernel; parameters: x, [residual], ends, indices, values, [bias], y."""
    b = KernelBuilder()
    x = b.pointer("x")
    residual = b.pointer("residual") if epilogue.residual else None
    ends, indices, values = b.pointer("ends", "int32"), b.pointer("indices", "uint16"), b.pointer("values")
    bias = b.pointer("bias") if epilogue.bias is not None else None
    y = b.pointer("y")
    sums = b.pointer("scratch")
    with b.loop("tile", b.first, b.last) as tile:
        vector, chunk = unravel(b, tile, (layout.vectors, layout.chunks))
        first = b.let("first", chunk * layout.chunk)
        last = b.let("last", smaller(first + layout.chunk, layout.outputs))
        with b.loop("row", first, last) as row:
            b.store(sums, row - first, b.load(bias, row) if bias is not None else 0.0)
        with b.loop("block", 0, layout.blocks) as block:
            start = b.let("start", vector * layout.inputs + block * layout.block)
            with b.loop("row", first, last) as row:
                total = _row_sum(b, x, start, ends, indices, values, block * layout.outputs + row)
                b.store(sums, row - first, b.load(sums, row - first) + total)
        with b.loop("row", first, last) as row:
            at = b.let("at", vector * layout.outputs + row)
            store_result(b, y, at, b.load(sums, row - first), residual, epilogue.activation)
    return b.build(name, layout.vectors * layout.chunks, 4 * layout.chunk)


def _row_sum(b: KernelBuilder, x: Any, start: Any, ends: Any, indices: Any, values: Any, run: Any) -> Any:
    chains = [b.register(1) for _ in range(CHAINS)]
    for chain in chains:
        chain.set(0.0)
    begin = b.let("begin", b.load(ends, run))
    count = b.let("count", (b.load(ends, run + 1) - begin) // CHAINS)
    with b.loop("step", 0, count) as step:
        for i, chain in enumerate(chains):
            at = begin + step * CHAINS + i
            index = b.load(indices, at).astype("int32")
            chain.set(chain.get() + b.load(values, at) * b.load(x, start + index))
    totals = [chain.get() for chain in chains]
    while len(totals) > 1:
        totals = [a + c for a, c in zip(totals[::2], totals[1::2], strict=True)]
    return totals[0]
