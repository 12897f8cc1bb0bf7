"""Products of a matrix with one row or a few on a GPU: their time is that of reading the weights.

Each output has a list of non-zeros, or all of its weights, which one warp or several go through: a lane takes four
weights at a time, in one load of 16 bytes (8 where weights have 16 bits), and has several such loads in flight, the
first of them before the inputs are there. The inputs lie in shared memory; sparse weights have indices of 16 bits into
it. In a list, inputs follow each other so that the lanes of a warp mostly read different banks of it. The sums of the
lanes go through shared memory once, at the end.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from tvm import tirx

from lwc_compiler.kernels.builder import divide, modulo, splat
from lwc_compiler.kernels.gpu.builder import SHARED_ALIGNMENT_BYTES, WARP, DeviceBuilder, ceil_div, half_of
from lwc_compiler.kernels.gpu.precision import numbers_in_word, round_to
from lwc_compiler.kernels.kernel import Constant
from lwc_compiler.kernels.layer import store_result

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from lwc_compiler.kernels.builder import Register
    from lwc_compiler.kernels.gpu.builder import Expr
    from lwc_compiler.kernels.kernel import Kernel
    from lwc_compiler.kernels.layer import Epilogue

STEP = 4  # weights that a lane reads in one load
_BANKS = 32  # of shared memory
_PARTIAL = WARP + 1  # places for the sums of a warp's lanes; odd, so that threads that read them meet several banks
_REGISTERS = 1 << 16  # of a multiprocessor
_FURTHER_REGISTERS = 26  # of a thread, for addresses and counts; what NVIDIA's compiler takes at most
_ADDERS = 4  # threads that first add the sums of a warp's lanes up


@dataclass(frozen=True)
class MatvecTile:
    """How a product y (rows, n) = x (rows, k) @ W is cut into blocks.

    Attributes:
        rows: of x and y.
        k: inputs.
        n: outputs.
        sparse: single non-zeros with indices, or every weight.
        precision: of the stored weights; `float16` and `bfloat16` take half the bytes.
        warps: of a block.
        parts: warps that share an output; divides `warps`.
        outputs: of a warp, or of those that share them.
        depth: steps of `STEP` weights that a lane reads at a time.
        most_bytes: of shared memory, that a block may take.
    """

    rows: int
    k: int
    n: int
    sparse: bool
    precision: str
    warps: int
    parts: int
    outputs: int
    depth: int
    most_bytes: int

    @property
    def in_word(self) -> int:
        """Weights in 32 bits."""
        return numbers_in_word(self.precision)

    @property
    def threads(self) -> int:
        """Of a block."""
        return self.warps * WARP

    @property
    def width(self) -> int:
        """Threads that share an output."""
        return self.parts * WARP

    @property
    def across(self) -> int:
        """Outputs that a block computes at the same time."""
        return self.warps // self.parts

    @property
    def per_block(self) -> int:
        """Outputs of a block."""
        return self.across * self.outputs

    @property
    def grid(self) -> tuple[int, int, int]:
        """Blocks of outputs."""
        return (ceil_div(self.n, self.per_block), 1, 1)

    @property
    def chunks(self) -> int:
        """How often shared memory is filled."""
        room = (self.most_bytes - SHARED_ALIGNMENT_BYTES) // 4 - self.sums * _ADDERS
        return ceil_div(self.k, (room // self.rows // STEP - 1) * STEP)

    @property
    def chunk(self) -> int:
        """Inputs in shared memory at a time, a multiple of a step."""
        return ceil_div(ceil_div(self.k, self.chunks), STEP) * STEP

    @property
    def pitch(self) -> int:
        """Elements of a row in shared memory; sparse weights that fill a list read the one after the inputs, a zero."""
        return self.chunk + STEP if self.sparse else self.chunk

    @property
    def sums(self) -> int:
        """Sums of a block's warps."""
        return self.warps * self.outputs * self.rows

    @property
    def shared_elements(self) -> int:
        """Of shared memory, first for the inputs, then for the sums of all lanes."""
        return max(self.rows * self.pitch, self.sums * _PARTIAL)

    @property
    def shared_bytes(self) -> int:
        """Of shared memory that a block takes."""
        return 4 * (self.shared_elements + self.sums * _ADDERS) + SHARED_ALIGNMENT_BYTES

    @property
    def fits(self) -> bool:
        """Whether a block may take the shared memory that it needs, and a multiprocessor has registers for two."""
        loaded = self.depth * (STEP + STEP // 2)
        of_row = self.outputs + 2 * STEP  # sums, inputs and where they are
        registers = loaded + self.rows * of_row + _FURTHER_REGISTERS
        return self.shared_bytes <= self.most_bytes and 2 * self.threads * registers <= _REGISTERS

    def rounds(self, steps: int) -> int:
        """Loads of a lane, one after the other, for a list of so many steps."""
        return ceil_div(steps, self.width * self.depth)


def pack_matvec(weight: NDArray[np.float32], t: MatvecTile) -> tuple[list[Constant], int]:
    """Starts (in steps), indices and values of sparse weights, or the values of all; and how many are stored.

    There is a list for each output and chunk of the inputs, filled to whole steps with weights that are 0.

    Args:
        weight: float32 (K, N).
        t: the layout.
    """
    k, n = weight.shape
    padded = np.zeros((n, t.chunks * t.chunk), np.float32)
    padded[:, :k] = weight.T
    if not t.sparse:
        return [_stored(padded, t)], n * k
    output, column = np.nonzero(padded)
    lists, index = output * t.chunks + column // t.chunk, column % t.chunk
    counts = np.bincount(lists, minlength=t.grid[0] * t.per_block * t.chunks)
    steps = -(-counts // STEP)
    starts = np.concatenate([[0], np.cumsum(steps)])
    total = max(1, int(starts[-1]))
    # The first of every bank, then the second of every bank, and so on; a warp's lanes read neighbours in this order.
    rank = _number(lists * _BANKS + index % _BANKS)
    order = np.lexsort((index % _BANKS, rank, lists))
    lists, index, held = lists[order], index[order], padded[output, column][order]
    number = _number(lists)
    round_, in_round = number // (WARP * STEP), number % (WARP * STEP)
    lanes = np.minimum(WARP, steps[lists] - round_ * WARP)
    to = (starts[lists] + round_ * WARP + in_round % lanes) * STEP + in_round // lanes
    indices, values = np.full(total * STEP, t.chunk, np.uint16), np.zeros(total * STEP, np.float32)
    indices[to], values[to] = index, held
    return [Constant(starts.astype(np.int32)), Constant(indices), _stored(values, t)], int(starts[-1]) * STEP


def _number(groups: NDArray[np.int64]) -> NDArray[np.int64]:
    """How many of the same group come before each entry."""
    order = np.argsort(groups, kind="stable")
    ordered = groups[order]
    firsts = np.concatenate([[True], ordered[1:] != ordered[:-1]])[: ordered.size]
    numbers = np.arange(ordered.size)
    result = np.empty_like(numbers)
    result[order] = numbers - np.maximum.accumulate(np.where(firsts, numbers, 0))
    return result


def _stored(values: NDArray[np.float32], t: MatvecTile) -> Constant:
    return Constant(values if t.in_word == 1 else round_to(values, t.precision))


def matvec_kernel(name: str, t: MatvecTile, epilogue: Epilogue) -> Kernel:
    """The kernel: x, [residual,] [starts, indices,] values, [bias,] y."""
    b = DeviceBuilder(t.grid, t.threads)
    x = b.pointer("x")
    residual = b.pointer("residual") if epilogue.residual else None
    starts = b.constant("starts", "int32") if t.sparse else None
    weights = _Weights(b, t)
    bias = b.constant("bias") if epilogue.bias is not None else None
    y = b.pointer("y")
    shared, added = b.shared("shared", t.shared_elements), b.shared("added", t.sums * _ADDERS)
    group, within = b.let("group", divide(b.thread, t.width)), b.let("within", modulo(b.thread, t.width))
    first_output = b.let("first_output", b.block[0] * t.per_block)
    sums = [[b.register(1) for _ in range(t.rows)] for _ in range(t.outputs)]
    for register in (register for registers in sums for register in registers):
        register.set(splat(0.0, 1))
    # What the thread stores in the end.
    result_output = b.let("result_output", first_output + divide(b.thread, t.rows))
    stores = tirx.all(b.thread < t.per_block * t.rows, result_output < t.n)
    total = b.register(1)
    total.set(splat(0.0, 1))
    if bias is not None:
        with b.when(stores):
            total.set(b.load(bias, result_output))

    if t.chunks > 1:
        b.inputs_ready()
    with b.loop("chunk", 0, t.chunks, rolled=True) as chunk:
        lists = []
        for number in range(t.outputs):
            output = b.let("output", first_output + number * t.across + group)
            list_ = output * t.chunks + chunk
            if starts is not None:
                first = b.let("first", b.load(starts, list_))
                count = b.let("count", b.load(starts, list_ + 1) - first)
            else:
                first = b.let("first", list_ * (t.chunk // STEP))
                count = b.let("count", tirx.Select(output < t.n, tirx.const(t.chunk // STEP, "int32"), 0))
            lists.append((first, count))
        weights.load(*lists[0], within)
        if t.chunks > 1:
            b.barrier()
        else:
            b.inputs_ready()  # the first weights are on their way
        _copy_inputs(b, t, x, shared, chunk)
        for number, ((first, count), registers) in enumerate(zip(lists, sums, strict=True)):
            if number > 0:
                weights.load(first, count, within)
            taken = t.width * t.depth
            # Unrolled, loads of dense weights would take more registers than there are.
            with b.loop("round", 0, divide(count + (taken - 1), taken), rolled=True) as round_:
                step = b.let("step", round_ * taken + within)
                weights.multiply(shared, step, count, registers)
                weights.load(first, count, b.let("next", step + taken))

    b.barrier()
    for number, registers in enumerate(sums):
        for row, register in enumerate(registers):
            place = ((number * t.across + group) * t.rows + row) * t.parts + divide(within, WARP)
            b.store(shared, place * _PARTIAL + modulo(within, WARP), register.get())
    b.barrier()
    _add_lanes(b, t, shared, added)
    b.barrier()
    with b.when(stores):
        for i in range(t.parts * _ADDERS):
            total.set(total.get() + b.load(added, b.thread * (t.parts * _ADDERS) + i))
        to = b.let("to", modulo(b.thread, t.rows) * t.n + result_output)
        store_result(b, y, to, total.get(), residual, epilogue.activation)
    return b.finished(name)


class _Weights:
    """The weights that a lane has read, in registers.

    Args:
        b: the kernel, whose next parameters are theirs: [indices,] values.
        t: its tile.
    """

    def __init__(self, b: DeviceBuilder, t: MatvecTile) -> None:
        self._b, self._t = b, t
        self._words = STEP // t.in_word
        self._indices = b.constant("indices", "uint32") if t.sparse else None  # two in a word
        self._values = b.constant("values", "float32" if t.in_word == 1 else "uint32")
        self._held = [b.register(self._words, str(self._values.dtype)) for _ in range(t.depth)]
        self._where = [b.register(STEP // 2, "uint32") for _ in range(t.depth if t.sparse else 0)]

    def load(self, first: Expr, count: Expr, step: Expr) -> None:
        """Reads steps of a list that begins at `first`: `step` and those that are `width` apart from it."""
        b = self._b
        for i, held in enumerate(self._held):
            at = b.let("at", step + i * self._t.width)
            with b.when(at < count):
                b.read(held, self._values, (first + at) * self._words, self._words)
                if self._indices is not None:
                    b.read(self._where[i], self._indices, (first + at) * (STEP // 2), STEP // 2)

    def multiply(self, inputs: Expr, step: Expr, count: Expr, sums: Sequence[Register]) -> None:
        """Adds their products with the inputs of each row."""
        b, t = self._b, self._t
        for i, held in enumerate(self._held):
            at = b.let("at", step + i * t.width)
            with b.when(at < count):
                factors = self._factors(held)
                for row, sum_ in enumerate(sums):
                    for factor, value in zip(factors, self._inputs(inputs, row * t.pitch, at, i), strict=True):
                        sum_.set(sum_.get() + factor * value)

    def _inputs(self, inputs: Expr, row: int, step: Expr, i: int) -> list[Expr]:
        b = self._b
        if self._indices is not None:
            return [b.load(inputs, row + half_of(self._where[i], j)) for j in range(STEP)]
        neighbours = b.register(STEP)
        neighbours.set(b.load(inputs, row + step * STEP, STEP))
        return [neighbours.part(j, 1) for j in range(STEP)]

    def _factors(self, held: Register) -> list[Expr]:
        """The weights of a step, as float32."""
        t = self._t
        if t.in_word == 1:
            return [held.part(i, 1) for i in range(STEP)]
        return [
            self._b.let("weight", tirx.call_extern("float32", f"lwc_{half}_{t.precision}", held.part(i, 1)))
            for i in range(self._words)
            for half in ("low", "high")
        ]


def _copy_inputs(b: DeviceBuilder, t: MatvecTile, x: Expr, inputs: Expr, chunk: Expr) -> None:
    """Fills shared memory with a chunk of the inputs."""
    words = math.gcd(t.k, STEP)
    copies = t.chunk // words  # of a row
    with b.loop("i", 0, ceil_div(t.rows * copies, t.threads)) as i:
        number = b.let("number", i * t.threads + b.thread)
        with b.when(number < t.rows * copies if t.rows * copies % t.threads else True):
            row, at = divide(number, copies) if t.rows > 1 else 0, b.let("at", modulo(number, copies) * words)
            column = b.let("column", chunk * t.chunk + at)
            b.copy(inputs, row * t.pitch + at, x, row * t.k + column, words, column < t.k)
    if t.sparse:
        with b.when(b.thread < t.rows):
            b.store(inputs, b.thread * t.pitch + t.chunk, splat(0.0, 1))
    b.commit()
    b.wait(0)
    b.barrier()


def _add_lanes(b: DeviceBuilder, t: MatvecTile, sums: Expr, added: Expr) -> None:
    """Adds the sums of a warp's lanes up, by several threads for each."""
    lanes = WARP // _ADDERS
    with b.loop("i", 0, ceil_div(t.sums * _ADDERS, t.threads)) as i:
        number = b.let("number", i * t.threads + b.thread)
        with b.when(number < t.sums * _ADDERS if t.sums * _ADDERS % t.threads else True):
            first = b.let("first", divide(number, _ADDERS) * _PARTIAL + modulo(number, _ADDERS) * lanes)
            total = b.register(1)
            total.set(b.load(sums, first))
            for lane in range(1, lanes):
                total.set(total.get() + b.load(sums, first + lane))
            b.store(added, number, total.get())
