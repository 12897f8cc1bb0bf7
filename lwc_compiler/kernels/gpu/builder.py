"""Writes a kernel for a GPU: what `KernelBuilder` does, with blocks, threads, shared memory and barriers."""

from __future__ import annotations

import math
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import tvm
import tvm_ffi
from tvm import tirx
from tvm.ir import TensorLoad
from tvm.tirx.stmt import AllocBuffer, AttrStmt, BufferStore, Evaluate, For, ForKind, SeqStmt

from lwc_compiler.kernels.builder import KernelBuilder, Register
from lwc_compiler.kernels.kernel import Kernel, Launch

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lwc_compiler.targets.target import Gpu

Expr = Any

WARP = 32
SHARED_ALIGNMENT_BYTES = 64  # of every array in shared memory
_BLOCK_BYTES = 1024  # of shared memory, that a block takes for itself
# Attributes of a function: numbers of its parameters that no kernel writes; and whether it calls `inputs_ready`.
CONSTANTS, WAITS = "lwc.constants", "lwc.waits"

# Reductions that threads share: neutral element, and the sum, or whatever it is, of two.
COMBINED = {
    "sum": (0.0, lambda a, b: a + b),
    "max": (-math.inf, tirx.max),
    "min": (math.inf, tirx.min),
}


class DeviceBuilder(KernelBuilder):
    """Builds one kernel: declare its pointers, then emit the work of one thread.

    Args:
        grid: blocks along x, y and z.
        threads: of a block along x.
        along_y: threads of a block along y.
        cluster: see `Launch`.

    Attributes:
        thread: number of the thread in its block along x.
        thread_y: along y; 0 where there is one.
        block: number of the block along x, y and z.
    """

    register_scope = "local"
    has_erf = True

    def __init__(self, grid: tuple[int, int, int], threads: int, along_y: int = 1, cluster: int = 1) -> None:
        super().__init__()
        self._grid, self._threads, self._cluster = grid, (threads, along_y), cluster
        self.thread = tirx.Var("thread", "int32")
        self.thread_y = tirx.Var("thread_y", "int32") if along_y > 1 else 0
        self.block = tuple(tirx.Var(f"block_{axis}", "int32") for axis in "xyz")
        self._shared_bytes = 0
        self._constants: list[int] = []
        self._waits = False

    def constant(self, name: str, dtype: str = "float32") -> Expr:
        """The next parameter: weights, a bias or what else no kernel writes; it may be read before `inputs_ready`."""
        self._constants.append(len(self._pointers))
        return self.pointer(name, dtype)

    def inputs_ready(self) -> None:
        """Waits for the kernel before this one, which may still run: only then are other parameters read or written.

        Not in a loop or a branch, and once. A kernel without it waits before everything else; in one with it, loads and
        copies of constants are made where they are written, before the wait or after it.
        """
        assert len(self._blocks) == 1 and not self._waits, "every thread waits, once"
        self._waits = True
        used: list[Any] = []
        accesses: list[Any] = [
            (TensorLoad, lambda load: used.append(load.source)),
            (BufferStore, lambda store: used.append(store.buffer)),
        ]
        for statement in self._blocks[0]:
            tvm_ffi.structural_walk(statement, accesses, order="post")
        constants = [self._pointers[number] for number in self._constants]
        changing = [buffer for buffer, data in self._data.items() if not any(data.same_as(c) for c in constants)]
        early = [buffer.name for buffer in changing if any(other.same_as(buffer) for other in used)]
        assert not early, f"{early} may change before `inputs_ready`"
        self.device_call("lwc_inputs_ready")

    def shared(self, name: str, elements: int, dtype: str = "float32") -> Expr:
        """Memory that the threads of a block share, of numbers of 32 bits; its first contents are undefined."""
        buffer = tirx.decl_buffer((elements,), dtype, name=name, scope="shared")
        self.emit(AllocBuffer(buffer))
        self._shared_bytes = (
            SHARED_ALIGNMENT_BYTES * ceil_div(self._shared_bytes, SHARED_ALIGNMENT_BYTES) + 4 * elements
        )
        return buffer

    def copy(self, to: Expr, at: Expr, from_: Expr, index: Expr, words: int, exists: Expr = True) -> None:
        """Starts to copy 1, 2 or 4 words of 32 bits from memory to shared memory; zeros where not `exists`.

        They are there after `commit`, `wait`, and, for the other threads, a barrier. Both addresses are multiples of
        the size.
        """
        exists = tirx.const(1, "int32") if exists is True else exists.astype("int32")
        addresses = self.address_of(to, at), self.address_of(from_, index)
        self.device_call(f"lwc_copy_{4 * words}", *addresses, exists)

    def read(self, to: Register, from_: Expr, index: Expr, words: int) -> None:
        """Reads 2 or 4 words of 32 bits of a constant to a register, at this place and no later.

        The address is a multiple of the size.
        """
        self.device_call(f"lwc_read_{4 * words}", to.address(), self.address_of(from_, index))

    def commit(self) -> None:
        """Ends a group of copies."""
        self.device_call("lwc_commit")

    def wait(self, pending: int) -> None:
        """Waits for all groups of this thread's copies but the last `pending`: 0 or 1."""
        self.device_call(f"lwc_wait_{pending}")

    def device_call(self, name: str, *arguments: Expr) -> None:
        """Calls a function of the texts in `codegen/*.cuh` and `*.cl`, which gives nothing."""
        self.emit(Evaluate(tirx.call_extern("void", name, *arguments)))

    @contextmanager
    def unrolled(self, name: str, count: int) -> Iterator[Expr]:
        """Runs the block for 0 <= variable < `count`, in a loop that the compiler of the text unrolls."""
        if count == 1:
            yield 0
            return
        variable = tirx.Var(name, "int32")
        with self._block() as block:
            yield variable
        zero = tirx.const(0, "int32")
        body = block[0] if len(block) == 1 else SeqStmt(block)
        loop = For(variable, zero, tirx.const(count, "int32"), ForKind.UNROLLED, body)
        self.emit(AttrStmt(zero, "pragma_unroll_explicit", zero, loop))

    def barrier(self) -> None:
        """Waits for all threads of the block; what they wrote to shared memory can then be read."""
        self.emit(Evaluate(tirx.call_intrin("void", "tirx.tvm_storage_sync", "shared")))

    def combine_lanes(self, op: str, values: list[Expr]) -> list[Expr]:
        """Values of the threads along x combined by `sum`, `max` or `min`, in all of them; the whole block calls it."""
        start, combine = COMBINED[op]
        left, right = ([tirx.Var(f"{side}{i}", "float32") for i in range(len(values))] for side in "ab")
        combined = [combine(a, b) for a, b in zip(left, right, strict=True)]
        reducer = tirx.CommReducer(left, right, combined, [tirx.const(start, "float32")] * len(values))
        results = [self.register(1) for _ in values]
        call = tirx.tvm_thread_allreduce(
            tirx.const(len(values), "uint32"),
            *values,
            tirx.const(True, "bool"),
            *(result.get() for result in results),
            self.thread,
        )
        self.emit(AttrStmt(reducer, "reduce_scope", tirx.const(0, "int32"), Evaluate(call)))
        return [result.get() for result in results]

    def finished(self, name: str) -> Kernel:
        """The finished kernel."""
        body = SeqStmt([*self._declared, *self._blocks[0]])
        threads, along_y = self._threads
        indices = [(self.thread, "threadIdx.x", threads)]
        if along_y > 1:
            indices.append((self.thread_y, "threadIdx.y", along_y))
        indices += [(var, f"blockIdx.{axis}", n) for var, axis, n in zip(self.block, "xyz", self._grid, strict=True)]
        for var, tag, extent in indices:
            index = tirx.IterVar(tvm.ir.Range(0, extent), var, tirx.IterVar.ThreadIndex, tag)
            body = AttrStmt(index, "thread_extent", tirx.const(extent, "int32"), body)
        attributes = {"tirx.noalias": True, CONSTANTS: self._constants, WAITS: self._waits}
        func = tirx.PrimFunc(self._pointers, body).with_attr(attributes)
        launch = Launch(self._grid, (*self._threads, 1), self._shared_bytes, cluster=self._cluster)
        return Kernel(name, func, 1, launch=launch)


def both(one: Expr, other: Expr) -> Expr:
    """Both conditions; True is none."""
    if one is True or other is True:
        return other if one is True else one
    return tirx.all(one, other)


def half_of(words: Register, number: int) -> Expr:
    """One of the numbers of 16 bits that are two in each word of a register, as int32."""
    word = words.part(number // 2, 1)
    half = word >> tirx.const(16, "uint32") if number % 2 else word & tirx.const(0xFFFF, "uint32")
    return half.astype("int32")


def blocks_at_once(gpu: Gpu, shared_bytes: int, threads: int, most_threads: int = 1024) -> int:
    """Blocks that a multiprocessor has at the same time, at least one.

    Args:
        gpu: whose.
        shared_bytes: of a block.
        threads: of a block.
        most_threads: that have the registers they need; by default 64 each.
    """
    shared = (gpu.block_shared_bytes + _BLOCK_BYTES) // (shared_bytes + _BLOCK_BYTES)
    return max(1, min(shared, most_threads // threads))


def ceil_div(a: int, b: int) -> int:
    """A / b, rounded up."""
    return -(-a // b)


def strides_of(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Elements from one index to the next along each axis of a dense row-major array."""
    return tuple(math.prod(shape[i + 1 :]) for i in range(len(shape)))
