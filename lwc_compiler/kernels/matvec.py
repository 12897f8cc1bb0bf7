"""Sparse matrix times one vector, or times a few at once.

The inputs are cut into blocks that stay in the level-1 cache; within a block an index takes 16 bits, or 8 as a
distance. A single vector is
bound by the loads of single inputs, one for every non-zero. Several vectors lie side by side, so that a non-zero loads
and multiplies the inputs of all of them. The non-zeros of a row are summed in several independent chains, so that
additions do not wait for each other. In blocks of several outputs a weight is a vector, and one input serves it whole.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from tvm import tirx

from lwc_compiler.kernels.builder import KernelBuilder, pieces, smaller, splat, unravel
from lwc_compiler.kernels.kernel import Constant
from lwc_compiler.kernels.layer import store_result
from lwc_compiler.kernels.weight_types import FLOAT32, WeightType

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from lwc_compiler.kernels.builder import Register
    from lwc_compiler.kernels.kernel import Kernel
    from lwc_compiler.kernels.layer import Epilogue


_FARTHEST = 255  # distance that takes 8 bits


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
        chunk: outputs of a tile, a multiple of `height`.
        chains: independent sums of a row; the non-zeros of a row in a block are filled to a multiple.
        distances: in each row and block the non-zeros come in steps of one for each chain, and an index is stored as
            the distance from the last of the step before, in 8 bits; what lies further away is reached by way of
            zeros. For single vectors.
        height: outputs of a block of weights, of which all outputs are a multiple; with more than one there is one
            vector, and `lanes` divides them.
        gathered: four chains are one register: the inputs of four non-zeros are put together, their indices are read
            as one word; for single vectors and weights.
    """

    vectors: int
    together: int
    inputs: int
    outputs: int
    lanes: int
    block: int
    chunk: int
    chains: int
    distances: bool = False
    height: int = 1
    gathered: bool = False

    @property
    def index_type(self) -> str:
        """NumPy's name of the type that indices are read as."""
        return "uint64" if self.gathered else "uint8" if self.distances else "uint16"

    @property
    def blocks(self) -> int:
        """Blocks of inputs."""
        return -(-self.inputs // self.block)

    @property
    def chunks(self) -> int:
        """Tiles of each vector."""
        return -(-self.outputs // self.chunk)

    @property
    def groups(self) -> int:
        """Blocks that the outputs are cut into."""
        return self.outputs // self.height

    @property
    def starts(self) -> list[int]:
        """First vector, or output, of each register of those side by side; the last may have more lanes than these."""
        return list(range(0, self.together * self.height, self.lanes))


def pack_matvec(weight: NDArray[Any], layout: MatvecLayout) -> tuple[list[Constant], int]:
    """Non-zeros, or blocks, of weight (outputs, inputs) by block of inputs, then row; runs are filled up to the chains.

    The weight may be codes of any type. Filling repeats the run's last index, with value 0. Returns the constants
    `ends`, `indices`, `values` and how many weights are stored.
    """
    counts: list[NDArray[np.int64]] = []
    indices: list[NDArray[np.unsignedinteger[Any]]] = []
    values: list[NDArray[Any]] = []
    grouped = weight.reshape(layout.groups, layout.height, layout.inputs)
    for block in range(layout.blocks):
        part = grouped[:, :, block * layout.block : (block + 1) * layout.block]
        row, column = np.nonzero(part.any(axis=1))
        count = np.bincount(row, minlength=layout.groups)
        if layout.distances:
            starts = np.cumsum(count)[:-1]
            runs = zip(np.split(column, starts), np.split(part[row, 0, column], starts), strict=True)
            steps = [_steps(*run, layout.chains) for run in runs]
            counts.append(np.array([len(distances) for distances, _ in steps]))
            indices += [distances for distances, _ in steps]
            values += [value[:, None] for _, value in steps]
            continue
        filled = -(-count // layout.chains) * layout.chains
        ends = np.cumsum(filled)
        position = np.arange(row.size) + np.repeat(ends - filled - (np.cumsum(count) - count), count)
        index = np.zeros(int(ends[-1]), np.uint16)
        value = np.zeros((int(ends[-1]), layout.height), weight.dtype)
        last = np.cumsum(count)[count > 0] - 1
        index[:] = np.repeat(column[last], filled[count > 0])
        index[position] = column
        value[position] = part[row, :, column]
        counts.append(filled)
        indices.append(index)
        values.append(value)
    ends = np.concatenate([[0], np.cumsum(np.concatenate(counts))]).astype(np.int32)
    filling = np.zeros(0 if ends[-1] else layout.chains, np.uint8 if layout.distances else np.uint16)
    flat = np.concatenate([*indices, filling])
    return [
        Constant(ends),
        Constant(flat.view(np.uint64) if layout.gathered else flat),
        Constant(np.concatenate([*values, np.zeros((filling.size, layout.height), weight.dtype)]).ravel()),
    ], int(ends[-1]) * layout.height


def _steps(columns: NDArray[np.int64], values: NDArray[Any], chains: int) -> tuple[NDArray[np.uint8], NDArray[Any]]:
    """Distances and values of a run's non-zeros, in steps of `chains`."""
    distances: list[int] = []
    stored: list[float] = []
    base = first = 0
    while first < len(columns):
        ahead = columns[first : first + chains] - base
        near = ahead[ahead <= _FARTHEST]
        step = [*near, *[_FARTHEST if len(near) < len(ahead) else near[-1]] * (chains - len(near))]
        distances += step
        stored += [*values[first : first + len(near)], *[0.0] * (chains - len(near))]
        first += len(near)
        base += step[-1]
    return np.array(distances, np.uint8), np.array(stored, values.dtype)


def matvec_kernel(name: str, layout: MatvecLayout, epilogue: Epilogue, kind: WeightType = FLOAT32) -> Kernel:
    """Builds the kernel; parameters: x, [residual], ends, indices, values, [scales], [bias], y."""
    b, lay = KernelBuilder(), layout
    x = b.pointer("x")
    residual = b.pointer("residual") if epilogue.residual else None
    ends, indices = b.pointer("ends", "int32"), b.pointer("indices", lay.index_type)
    values = b.pointer("values", kind.dtype)
    scales = b.pointer("scales") if kind.scaled else None
    bias = b.pointer("bias") if epilogue.bias is not None else None
    y = b.pointer("y")
    read = (x, ends, indices, values)
    first_bias = None if kind.scaled else bias  # what sums begin with

    def finish(row: Any, vector: Any, lane: int, value: Any, lanes: int) -> None:
        at = b.let("at", (vector * lay.outputs + row * lay.height) * lay.together + lane)
        if scales is not None:
            value = b.let("scaled", value * b.load(scales, row * lay.height + lane, lanes))
            if bias is not None:
                value = b.let("value", value + b.load(bias, row * lay.height + lane, lanes))
        store_result(b, y, at, value, residual, epilogue.activation, lanes)

    if lay.blocks == lay.together == lay.height == 1:
        with b.loop("tile", b.first, b.last) as tile:
            first, last, vector = _tile(b, lay, tile)
            with b.loop("row", first, last) as row:
                (total,) = _sums(b, lay, *read, vector * lay.inputs, row, kind)
                value = total if first_bias is None else total + b.load(first_bias, row)
                finish(row, vector, 0, b.let("value", value), 1)
        return b.build(name, lay.vectors * lay.chunks)
    sums = b.pointer("scratch")
    width = len(lay.starts) * lay.lanes
    with b.loop("tile", b.first, b.last) as tile:
        first, last, vector = _tile(b, lay, tile)
        with b.loop("row", first, last) as row:
            if lay.height == 1:
                value = b.let("value", b.load(first_bias, row)) if first_bias is not None else 0.0
            for lane in lay.starts:
                if lay.height == 1:
                    start = splat(value, lay.lanes)
                elif first_bias is None:
                    start = splat(0.0, lay.lanes)
                else:
                    start = b.load(first_bias, row * lay.height + lane, lay.lanes)
                b.store(sums, (row - first) * width + lane, start, lay.lanes)
        with b.loop("block", 0, lay.blocks) as block:
            start = b.let("start", (vector * lay.inputs + block * lay.block) * lay.together)
            with b.loop("row", first, last) as row:
                totals = _sums(b, lay, *read, start, block * lay.groups + row, kind)
                for lane, total in zip(lay.starts, totals, strict=True):
                    at = b.let("at", (row - first) * width + lane)
                    b.store(sums, at, b.load(sums, at, lay.lanes) + total, lay.lanes)
        with b.loop("row", first, last) as row:
            for lane, lanes in pieces(lay.together * lay.height, lay.lanes):
                finish(row, vector, lane, b.load(sums, (row - first) * width + lane, lanes), lanes)
    return b.build(name, lay.vectors * lay.chunks, 4 * lay.chunk // lay.height * width)


def _gathered_sum(b: KernelBuilder, x: Any, start: Any, ends: Any, indices: Any, values: Any, run: Any) -> Any:
    """The sum of a run of non-zeros whose number is a multiple of four."""
    lanes = 4
    total = b.register(lanes)
    total.set(splat(0.0, lanes))
    begin = b.let("begin", b.load(ends, run) // lanes)
    with b.loop("step", begin, b.load(ends, run + 1) // lanes) as step:
        word = b.let("word", b.load(indices, step))
        index = [(word >> tirx.const(16 * i, "uint64")) & tirx.const(0xFFFF, "uint64") for i in range(lanes)]
        inputs = [b.load(x, start + each.astype("int32")) for each in index]
        gathered = tirx.Shuffle(inputs, [tirx.const(i, "int32") for i in range(lanes)])
        total.set(total.get() + b.load(values, step * lanes, lanes) * gathered)
    return (total.part(0, 1) + total.part(1, 1)) + (total.part(2, 1) + total.part(3, 1))


def _tile(b: KernelBuilder, lay: MatvecLayout, tile: Any) -> tuple[Any, Any, Any]:
    """First and last row, or group of rows, of a tile, and its vector."""
    chunk, vector = unravel(b, tile, (lay.chunks, lay.vectors))
    first = b.let("first", chunk * (lay.chunk // lay.height))
    return first, b.let("last", smaller(first + lay.chunk // lay.height, lay.groups)), vector


def _sums(
    b: KernelBuilder,
    lay: MatvecLayout,
    x: Any,
    ends: Any,
    indices: Any,
    values: Any,
    start: Any,
    run: Any,
    kind: WeightType,
) -> list[Any]:
    """The sums of a run of non-zeros, or of blocks of them, a register each."""
    if lay.gathered:
        return [_gathered_sum(b, x, start, ends, indices, values, run)]
    chains = [[b.register(lay.lanes) for _ in lay.starts] for _ in range(lay.chains)]
    for register in (r for chain in chains for r in chain):
        register.set(splat(0.0, lay.lanes))
    begin = b.let("begin", b.load(ends, run))
    count = b.let("count", (b.load(ends, run + 1) - begin) // lay.chains)
    if lay.distances:
        _distant_steps(b, lay, (x, indices, values), start, begin, count, [register for (register,) in chains], kind)
    else:
        with b.loop("step", 0, count) as step:
            for i, chain in enumerate(chains):
                at = begin + step * lay.chains + i
                source = b.let("source", start + b.load(indices, at).astype("int32") * lay.together)
                if lay.height > 1:
                    factor = splat(b.let("factor", b.load(x, source)), lay.lanes)
                else:
                    value = splat(b.let("value", b.weights(b.load(values, at), kind)), lay.lanes)
                for lane, register in zip(lay.starts, chain, strict=True):
                    if lay.height > 1:
                        product = factor * b.weights(b.load(values, at * lay.height + lane, lay.lanes), kind, lay.lanes)
                    else:
                        product = value * b.load(x, source + lane, lay.lanes)
                    register.set(register.get() + product)
    totals = [[register.get() for register in chain] for chain in chains]
    while len(totals) > 1:
        totals = [
            [p + q for p, q in zip(one, two, strict=True)] for one, two in zip(totals[::2], totals[1::2], strict=True)
        ]
    return totals[0]


def _distant_steps(
    b: KernelBuilder,
    lay: MatvecLayout,
    buffers: tuple[Any, Any, Any],
    start: Any,
    begin: Any,
    count: Any,
    chains: list[Register],
    kind: WeightType,
) -> None:
    """Adds a run's non-zeros, whose indices are distances, to its chains."""
    x, indices, values = buffers
    position = b.register(1, "int32")
    position.set(start + tirx.const(0, "int32"))
    with b.loop("step", 0, count) as step:
        at = b.let("at", begin + step * lay.chains)
        near = b.from_element(x, position.get())
        # One vector, which keeps LLVM from unrolling the loop: larger code that is no faster.
        weights = b.let("weights", b.load(values, at, lay.chains))
        for i, chain in enumerate(chains):
            distance = b.let("distance", b.load(indices, at + i).astype("int32"))
            value = b.weights(tirx.Shuffle([weights], [tirx.const(i, "int32")]), kind)
            chain.set(chain.get() + value * b.load(near, distance))
        position.set(position.get() + distance)
