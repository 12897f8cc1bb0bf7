"""What a kernel is, and how the steps of one layer hang together.

A kernel becomes a plain C function `void name(pointers..., int32_t t0, int32_t t1)`: it computes the tiles t0 to
t1 - 1 of its work and nothing else, so a thread pool can split the range. It allocates nothing and calls at most the
C library.

Every buffer a kernel gets starts at a 64-byte boundary and has `SLACK_BYTES` readable bytes past its end, with
arbitrary contents: a vector load may run over the end, but what it reads there must not reach a result. Stores never
leave the buffer. No two pointers alias, but for what `Kernel.over` says. Kernels without vectors read nothing past the
end; on microcontrollers the graph's inputs and outputs are the caller's own memory, aligned as their elements are.

On a GPU it is a device function of the pointers alone: its `Launch` says how many threads compute it, and one launch
does all of its work.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from tvm.tirx import PrimFunc

ALIGNMENT_BYTES = 64
SLACK_BYTES = 256
STATIC_SHARED_BYTES = 48 << 10  # that a kernel for GPUs can declare; what takes more is part of its launch
SECONDS_A_CYCLE = 4e-10  # roughly, of the processors that predictions were fitted to


@dataclass(frozen=True)
class Launch:
    """The threads of a kernel on a GPU.

    Attributes:
        grid: blocks along x, y and z.
        block: threads of a block along x, y and z.
        shared_bytes: of shared memory that a block uses.
        overlaps: it begins before the kernel before it has ended, where the GPU can do that.
        cluster: neighbouring blocks along x that reach each other's shared memory.
    """

    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    shared_bytes: int = 0
    overlaps: bool = False
    cluster: int = 1

    @property
    def dynamic_bytes(self) -> int:
        """Of shared memory that the launch asks for; 0 where the kernel declares what it uses."""
        return self.shared_bytes if self.shared_bytes > STATIC_SHARED_BYTES else 0


@dataclass(frozen=True)
class Kernel:
    """A TIR function that will be compiled to a plain C function.

    Attributes:
        name: kernel name in the registry; codegen makes the symbol from it.
        func: `params` are pointers (`T.handle(dtype)`, with `T.decl_buffer` inside), then, when `thread_bytes` > 0, a
            pointer to scratch memory private to the calling thread, then `t0: int32, t1: int32`.
        tiles: independent units of work; the kernel is called with 0 <= t0 <= t1 <= tiles.
        thread_bytes: bytes of private scratch memory each thread needs.
        bands: parts of equally many tiles, in order, each of which computes one of so many equal parts of the output,
            the last pointer, and reads only the same part of every computed input.
        over: number of the pointer whose buffer may also be the output's, as the kernel reads every element of it once,
            before it writes that of the output; None where there is none.
        launch: on a GPU: its threads, and `params` are pointers alone.
    """

    name: str
    func: PrimFunc
    tiles: int
    thread_bytes: int = 0
    bands: int = 1
    over: int | None = None
    launch: Launch | None = None


@dataclass(frozen=True)
class Input:
    """The layer's input number `index`."""

    index: int


@dataclass(frozen=True)
class Output:
    """The layer's output number `index`."""

    index: int


@dataclass(frozen=True)
class Scratch:
    """Intermediate buffer number `index` of the plan: one step writes it, a later one reads it."""

    index: int


@dataclass(frozen=True, eq=False)
class Constant:
    """Weights, indices, biases: read-only data of the library."""

    array: NDArray[np.generic]


@dataclass(frozen=True)
class Moving:
    """What pass after pass of a loop finds further on in a buffer.

    Attributes:
        buffer: where it lies.
        first: bytes before that of the first pass.
        stride: bytes from that of one pass to that of the next; negative where passes go backwards.
    """

    buffer: Input | Output | Scratch
    first: int
    stride: int


Operand: TypeAlias = Input | Output | Scratch | Constant | Moving


@dataclass(frozen=True)
class Step:
    """One kernel call.

    Attributes:
        kernel: that is called.
        args: one operand for each pointer parameter (without the thread's scratch).
        passes: with more than one, a loop of so many passes ends with this step; no loop lies in another.
        back: steps of that loop before this one.
    """

    kernel: Kernel
    args: tuple[Operand, ...]
    passes: int = 1
    back: int = 0

    @property
    def constant_bytes(self) -> int:
        """Bytes of its weights, indices and biases."""
        return sum(operand.array.nbytes for operand in self.args if isinstance(operand, Constant))


@dataclass(frozen=True)
class Trial:
    """One of the ways to compute a layer, and how fast it is.

    Attributes:
        name: format and cut.
        cycles: predicted time on one core, or on the whole of a GPU, in cycles.
        seconds: measured time on one core, or on the whole of a GPU; None when it was not measured.
    """

    name: str
    cycles: float
    seconds: float | None


@dataclass(frozen=True)
class Share:
    """What a plan of several layers has for one of them.

    Attributes:
        format: how its weights are stored.
        bytes: of its constants.
        flops: multiply-adds x 2 over its stored weights.
    """

    format: str
    bytes: int
    flops: int


@dataclass(frozen=True)
class Plan:
    """How one layer is computed, or several by one kernel.

    Attributes:
        steps: run one after the other; each is finished on all threads before the next begins.
        scratch: bytes of each intermediate buffer.
        format: how the weights are stored (`dense`, `csr`, `block4`, ...); empty for a layer without weights.
        why: one phrase: what the choice of format and kernel rests on.
        stored: stored weights (with filling).
        flops: multiply-adds x 2 over the stored weights.
        trials: the ways to compute the layer that were compared, best first.
        shares: of its layers, in the order of the graph; empty for one layer.
        weight_type: how a weight is stored, see `WeightType`.
        float32_bytes: `constant_bytes` with weights in float32; None where they are.
    """

    steps: tuple[Step, ...]
    scratch: tuple[int, ...] = ()
    format: str = ""
    why: str = ""
    stored: int = 0
    flops: int = 0
    trials: tuple[Trial, ...] = ()
    shares: tuple[Share, ...] = ()
    weight_type: str = "float32"
    float32_bytes: int | None = None

    @property
    def constant_bytes(self) -> int:
        """Bytes of its weights, indices and biases."""
        return sum(step.constant_bytes for step in self.steps)

    @property
    def seconds(self) -> float:
        """What it takes on one core or GPU: measured, or else roughly predicted; 0 where nothing was compared."""
        if not self.trials:
            return 0.0
        best = self.trials[0]
        return best.seconds if best.seconds is not None else best.cycles * SECONDS_A_CYCLE
