"""The lowered program: a straight list of kernel calls over planned buffers, the form between Relax and C."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from lwc_compiler.codegen.result import StepInfo, TensorSpec
    from lwc_compiler.kernels.kernel import Kernel


@dataclass(frozen=True)
class BufferRef:
    """Buffer number `index` of the workspace."""

    index: int


@dataclass(frozen=True)
class ConstantRef:
    """Constant number `index` of the weights."""

    index: int


Ref: TypeAlias = "BufferRef | ConstantRef"


@dataclass(frozen=True)
class Call:
    """One call of a kernel over all its tiles.

    Attributes:
        symbol: of the kernel.
        args: one operand for each of its pointers.
        info: what it belongs to.
        nanoseconds: roughly what it takes on one core.
    """

    symbol: str
    args: tuple[Ref, ...]
    info: StepInfo
    nanoseconds: float


@dataclass(frozen=True)
class Program:
    """What the artifact runs.

    Attributes:
        kernels: C symbol -> kernel, in order of first use.
        calls: run one after the other.
        buffers: bytes of each workspace buffer, without slack.
        constants: each once; C order.
        inputs: graph inputs in order, and the buffer each is copied into.
        outputs: graph outputs in order, and the buffer or constant each is copied from.
        images: how often it runs, each time on the next image of a batch.
    """

    kernels: dict[str, Kernel]
    calls: tuple[Call, ...]
    buffers: tuple[int, ...]
    constants: tuple[NDArray[np.generic], ...]
    inputs: tuple[tuple[TensorSpec, BufferRef], ...]
    outputs: tuple[tuple[TensorSpec, Ref], ...]
    images: int = 1
