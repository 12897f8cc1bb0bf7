"""The lowered program: a straight list of kernel calls over planned buffers, the form between Relax and C."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeAlias

from lwc_compiler.codegen.result import StepInfo

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

    from lwc_compiler.codegen.result import TensorSpec
    from lwc_compiler.kernels.kernel import Kernel


@dataclass(frozen=True)
class BufferRef:
    """Buffer number `index` of the workspace, from `first` bytes on, and `stride` more in every pass of a loop."""

    index: int
    first: int = 0
    stride: int = 0

    @property
    def whole(self) -> BufferRef:
        """The buffer from its beginning."""
        return BufferRef(self.index)


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
        joined: it runs with the call before it, band by band.
        passes: with more than one, a loop of so many passes ends with this call.
        back: calls of that loop before this one; none of a loop is joined.
    """

    symbol: str
    args: tuple[Ref, ...]
    info: StepInfo
    nanoseconds: float
    joined: bool = False
    passes: int = 1
    back: int = 0


@dataclass(frozen=True)
class Stage:
    """Calls that run on a part of a batch: on one image, on some, or on all.

    Attributes:
        kernels: C symbol -> kernel, in order of first use.
        calls: run one after the other.
        buffers: bytes of each workspace buffer, without slack.
        constants: each once; C order.
        inputs: what it reads, in order, and where: graph inputs, which are copied into the buffers, or the output of
            the stage before, which is there already.
        outputs: what it computes, in order, and where: graph outputs, which are copied from the buffers or constants,
            or the input of the next stage.
        runs: how often it runs for a batch, each time on the next part of it.
    """

    kernels: dict[str, Kernel]
    calls: tuple[Call, ...]
    buffers: tuple[int, ...]
    constants: tuple[NDArray[np.generic], ...]
    inputs: tuple[tuple[TensorSpec, BufferRef], ...]
    outputs: tuple[tuple[TensorSpec, Ref], ...]
    runs: int = 1

    @property
    def steps(self) -> tuple[tuple[Call, ...], ...]:
        """The calls in the steps they run in: alone, or joined."""
        steps: list[tuple[Call, ...]] = []
        for call in self.calls:
            if call.joined:
                steps[-1] = (*steps[-1], call)
            else:
                steps.append((call,))
        return tuple(steps)

    @property
    def passes(self) -> tuple[int, ...]:
        """How often each call is made in a run."""
        return passes_of([(call.passes, call.back) for call in self.calls])

    @property
    def loops(self) -> tuple[tuple[int, int], ...]:
        """First and last step of every loop."""
        return tuple((i - step[-1].back, i) for i, step in enumerate(self.steps) if step[-1].passes > 1)

    def unrolled(self) -> Stage:
        """The same without loops: every pass has calls of its own. No calls are joined."""
        calls: list[Call] = []
        for call in self.calls:
            if call.passes == 1:
                calls.append(replace(call, args=_in_pass(call.args, 0)))
                continue
            start = len(calls) - call.back
            loop = [*calls[start:], replace(call, passes=1, back=0)]
            calls[start:] = [replace(each, args=_in_pass(each.args, n)) for n in range(call.passes) for each in loop]
        return replace(self, calls=tuple(calls))


def passes_of(loops: Sequence[tuple[int, int]]) -> tuple[int, ...]:
    """How often each of some steps is done, by the passes of the loop that ends with it and the steps of it before."""
    passes = [1] * len(loops)
    for i, (count, back) in enumerate(loops):
        passes[i - back : i + 1] = [count] * (back + 1)
    return tuple(passes)


def _in_pass(args: tuple[Ref, ...], number: int) -> tuple[Ref, ...]:
    """What a call reads and writes in a pass of its loop."""
    return tuple(
        replace(ref, first=ref.first + number * ref.stride, stride=0) if isinstance(ref, BufferRef) else ref
        for ref in args
    )


@dataclass(frozen=True)
class Program:
    """What the artifact runs.

    Attributes:
        stages: each computes its part of the network for the whole batch before the next begins. One tensor leads from
            a stage to the next.
    """

    stages: tuple[Stage, ...]

    @property
    def steps(self) -> tuple[StepInfo, ...]:
        """What the steps of all stages are, in the order they run."""
        return tuple(_joined([call.info for call in step]) for stage in self.stages for step in stage.steps)


def _joined(infos: Sequence[StepInfo]) -> StepInfo:
    """Steps that run as one."""
    first, *others = infos
    if not others:
        return first
    return StepInfo(
        first.node,
        " + ".join(dict.fromkeys(info.kernel for info in infos)),
        " + ".join(dict.fromkeys(info.format for info in infos)),
        (*first.further, *(node for info in others for node in (info.node, *info.further))),
    )
