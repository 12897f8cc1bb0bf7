"""Where each buffer of a stage lies in the workspace: buffers that do not live at the same time share memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lwc_compiler.codegen.program import BufferRef
from lwc_compiler.kernels.kernel import ALIGNMENT_BYTES, SLACK_BYTES

if TYPE_CHECKING:
    from collections.abc import Collection

    from lwc_compiler.codegen.program import Stage
    from lwc_compiler.targets.target import Target


def aligned(size: int) -> int:
    """`size` rounded up to whole cache lines."""
    return -(-size // ALIGNMENT_BYTES) * ALIGNMENT_BYTES


def slack_bytes(target: Target) -> int:
    """Bytes past the end of a buffer that a target's kernels may read: scalar ones read none."""
    return SLACK_BYTES if target.vector_bits > 32 else 0


def lifetimes(stage: Stage) -> list[tuple[int, int]]:
    """First and last time each buffer is in use: time 0 is the copy of the inputs, step i runs at i + 1."""
    steps = stage.steps
    end = len(steps) + 1
    loops = [(begin + 1, stop + 1) for begin, stop in stage.loops]
    first, last = [end] * len(stage.buffers), [0] * len(stage.buffers)

    def use(ref: object, time: int) -> None:
        if isinstance(ref, BufferRef):
            # What a pass of a loop has left there, the next one may read.
            around = next(((begin, stop) for begin, stop in loops if begin <= time <= stop), (time, time))
            first[ref.index] = min(first[ref.index], around[0])
            last[ref.index] = max(last[ref.index], around[1])

    for _, buffer in stage.inputs:
        use(buffer, 0)
    for time, step in enumerate(steps, 1):
        for ref in (ref for call in step for ref in call.args):
            use(ref, time)
    for _, ref in stage.outputs:
        use(ref, end)
    return list(zip(first, last, strict=True))


def plan_workspace(
    stage: Stage, elsewhere: Collection[BufferRef] = (), slack: int = SLACK_BYTES
) -> tuple[list[int], int]:
    """Byte offset of every buffer, and the bytes of the whole.

    Buffers that lie `elsewhere` take no room; their offsets mean nothing. Past the end of every other there are `slack`
    bytes that may be read.

    Greedy by size (Pisarchyk and Lee, *Efficient Memory Management for Deep Neural Net Inference*, 2020, section 5.2):
    the largest buffer first, each at the lowest place that is free over its whole life.
    """
    lives = lifetimes(stage)
    away = {ref.index for ref in elsewhere}
    sizes = [0 if i in away else aligned(size + slack) for i, size in enumerate(stage.buffers)]
    offsets = [0] * len(sizes)
    placed: list[int] = []
    for index in sorted(range(len(sizes)), key=lambda i: (-sizes[i], i)):
        offset = 0
        first, last = lives[index]
        for other in sorted(
            (i for i in placed if lives[i][0] <= last and first <= lives[i][1]), key=offsets.__getitem__
        ):
            if offset + sizes[index] <= offsets[other]:
                break
            offset = max(offset, offsets[other] + sizes[other])
        offsets[index] = offset
        placed.append(index)
    return offsets, max((o + s for o, s in zip(offsets, sizes, strict=True)), default=0)
