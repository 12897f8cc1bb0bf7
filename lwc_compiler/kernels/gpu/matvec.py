"""Products of a matrix with one row or a few on a GPU: their time is that of reading the weights.

A warp computes one output after the other. Its lanes read four weights at a time, in one load of 16 bytes (8 where
weights have 16 bits), and multiply them with inputs in shared memory; sparse weights have indices of 16 bits into it.
The sums of the lanes go through shared memory once, at the end.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from tvm import tirx

from lwc_compiler.kernels.builder import divide, modulo, splat
from lwc_compiler.kernels.gpu.builder import SHARED_ALIGNMENT_BYTES, WARP, DeviceBuilder, ceil_div
from lwc_compiler.kernels.gpu.precision import round_to
from lwc_compiler.kernels.kernel import Constant
from lwc_compiler.kernels.layer import store_result

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from lwc_compiler.kernels.gpu.builder import Expr
    from lwc_compiler.kernels.kernel import Kernel
    from lwc_compiler.kernels.layer import Epilogue

STEP = 4  # weights that a lane reads at a time
_PARTIAL = WARP + 1  # places for the sums of a warp's lanes; odd, so that reading them has no bank conflicts


@dataclass(frozen=True)
class MatvecTile:
    """How a product y (rows, n) = x (rows, k) @ W is cut into blocks.

    Attributes:
        rows: of x and y.
        k: inputs.
        n: outputs.
        sparse: single non-zeros with indices, or every weight.
        precision: of the stored weights; `float16` and `bfloat16` take half the bytes.
        chunk: inputs in shared memory at a time, a multiple of 4.
        warps: of a block.
        outputs: of a warp.
    """

    rows: int
    k: int
    n: int
    sparse: bool
    precision: str
    chunk: int
    warps: int
    outputs: int

    @property
    def in_word(self) -> int:
        """Weights in 32 bits."""
        return 2 if self.precision in ("float16", "bfloat16") else 1

    @property
    def chunks(self) -> int:
        """How often shared memory is filled."""
        return ceil_div(self.k, self.chunk)

    @property
    def per_block(self) -> int:
        """Outputs of a block."""
        return self.warps * self.outputs

    @property
    def pitch(self) -> int:
        """Elements of a row in shared memory; sparse weights that fill a list read the one after the inputs, a zero."""
        return self.chunk + STEP if self.sparse else self.chunk

    @property
    def partials(self) -> int:
        """Elements of shared memory for the sums of all lanes."""
        return self.per_block * self.rows * _PARTIAL

    @property
    def grid(self) -> tuple[int, int, int]:
        """Blocks of outputs."""
        return (ceil_div(self.n, self.per_block), 1, 1)


def pack_matvec(weight: NDArray[np.float32], t: MatvecTile) -> tuple[list[Constant], int]:
    """Starts (in steps), indices and values of sparse weights, or the values of all; and how many are stored.

    Lists are filled to whole steps with weights that are 0.

    Args:
        weight: float32 (K, N).
        t: the layout.
    """
    k, n = weight.shape
    padded = np.zeros((n, t.chunks * t.chunk), np.float32)
    padded[:, :k] = weight.T
    if not t.sparse:
        return [_stored(padded, t)], n * k
    parts = padded.reshape(n, t.chunks, t.chunk).swapaxes(0, 1)  # (chunks, n, chunk)
    kept = parts != 0
    counts = np.count_nonzero(kept, axis=2)
    steps = -(-counts // STEP)
    starts = np.concatenate([[0], np.cumsum(steps.reshape(-1))])
    total = max(1, int(starts[-1]))
    indices, values = np.full(total * STEP, t.chunk, np.uint16), np.zeros(total * STEP, np.float32)
    chunk, output, index = np.nonzero(kept)
    first = np.cumsum(counts.reshape(-1)) - counts.reshape(-1)
    number = np.arange(index.size) - first[chunk * n + output]
    to = starts[chunk * n + output] * STEP + number
    indices[to], values[to] = index, parts[chunk, output, index]
    return [Constant(starts.astype(np.int32)), Constant(indices), _stored(values, t)], int(starts[-1]) * STEP


def _stored(values: NDArray[np.float32], t: MatvecTile) -> Constant:
    return Constant(values if t.in_word == 1 else round_to(values, t.precision))


def matvec_kernel(name: str, t: MatvecTile, epilogue: Epilogue) -> Kernel:
    """The kernel: x, [residual,] [starts, indices,] values, [bias,] y."""
    b = DeviceBuilder(t.grid, t.warps * WARP)
    threads = t.warps * WARP
    x = b.pointer("x")
    residual = b.pointer("residual") if epilogue.residual else None
    starts = b.constant("starts", "int32") if t.sparse else None
    indices = b.constant("indices", "uint16") if t.sparse else None
    values = b.constant("values", "float32" if t.in_word == 1 else "uint32")
    bias = b.constant("bias") if epilogue.bias is not None else None
    y = b.pointer("y")
    lane, warp = b.let("lane", modulo(b.thread, WARP)), b.let("warp", divide(b.thread, WARP))
    inputs, partials = b.shared("inputs", t.rows * t.pitch), b.shared("partials", t.partials)
    first_output = b.let("first_output", b.block[0] * t.per_block)
    sums = [[b.register(1) for _ in range(t.rows)] for _ in range(t.outputs)]
    for register in (register for registers in sums for register in registers):
        register.set(splat(0.0, 1))

    with b.loop("chunk", 0, t.chunks) as chunk:
        if t.chunks > 1:
            b.barrier()
        elements = t.rows * t.pitch
        with b.loop("i", 0, ceil_div(elements, threads)) as i:
            element = b.let("element", i * threads + b.thread)
            with b.when(element < elements if elements % threads else True):
                row, at = divide(element, t.pitch), b.let("at", modulo(element, t.pitch))
                column = b.let("column", chunk * t.chunk + at)
                inside = tirx.all(at < t.chunk, column < t.k)
                value = tirx.if_then_else(inside, b.load(x, row * t.k + column), tirx.const(0.0, "float32"))
                b.store(inputs, element, value)
        b.barrier()
        for number, registers in enumerate(sums):
            output = b.let("output", first_output + number * t.warps + warp)
            with b.when(output < t.n if t.n % t.per_block else True):
                if starts is not None:
                    first = b.let("first", b.load(starts, chunk * t.n + output))
                    count = b.let("count", b.load(starts, chunk * t.n + output + 1) - first)
                else:
                    first, count = b.let("first", (output * t.chunks + chunk) * (t.chunk // STEP)), t.chunk // STEP
                rounds = divide(count + (WARP - 1), WARP)
                with b.loop("round", 0, rounds) as round_:
                    step = b.let("step", round_ * WARP + lane)
                    with b.when(step < count):
                        held = _weights(b, t, values, first + step)
                        where = b.register(STEP, "uint16")
                        if indices is not None:
                            where.set(b.load(indices, (first + step) * STEP, STEP))
                        for i in range(STEP):
                            at = step * STEP + i
                            if indices is not None:
                                at = b.let("at", where.part(i, 1).astype("int32"))
                            for row, register in enumerate(registers):
                                register.set(register.get() + held[i] * b.load(inputs, row * t.pitch + at))

    for number, registers in enumerate(sums):
        for row, register in enumerate(registers):
            place = (number * t.warps + warp) * t.rows + row
            b.store(partials, place * _PARTIAL + lane, register.get())
    b.barrier()
    results = t.per_block * t.rows
    with b.loop("i", 0, ceil_div(results, threads)) as i:
        result = b.let("result", i * threads + b.thread)
        output = b.let("output", first_output + divide(result, t.rows))
        with b.when(tirx.all(result < results, output < t.n)):
            total = b.register(1)
            total.set(splat(0.0, 1) if bias is None else b.load(bias, output))
            for part in range(WARP):
                total.set(total.get() + b.load(partials, result * _PARTIAL + part))
            to = b.let("to", modulo(result, t.rows) * t.n + output)
            store_result(b, y, to, total.get(), residual, epilogue.activation)
    return b.finished(name)


def _weights(b: DeviceBuilder, t: MatvecTile, values: Expr, step: Expr) -> list[Expr]:
    """The weights of a step, as float32."""
    words = STEP // t.in_word
    held = b.register(words, str(values.dtype))
    held.set(b.load(values, step * words, words))
    if t.in_word == 1:
        return [held.part(i, 1) for i in range(STEP)]
    return [
        b.let("weight", tirx.call_extern("float32", f"lwc_{half}_{t.precision}", held.part(i, 1)))
        for i in range(words)
        for half in ("low", "high")
    ]


def most_chunk(rows: int, k: int, per_block: int, shared_bytes: int) -> int:
    """The most inputs, a multiple of a step, that shared memory holds of each row beside the sums of all lanes."""
    room = (shared_bytes - SHARED_ALIGNMENT_BYTES) // 4 - per_block * rows * _PARTIAL
    return min(ceil_div(k, STEP) * STEP, (room // rows // STEP - 1) * STEP)
