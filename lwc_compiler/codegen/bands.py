"""Runs steps band by band, so that what one writes is in the level-2 cache when the next reads it.

A kernel with `bands` computes equal parts of its output from the same parts of its inputs: the rows of pixels of a
pointwise convolution on images or blocks that lie side by side, or the images of a batch.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from lwc_compiler.codegen.program import BufferRef

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lwc_compiler.codegen.program import Call, Stage
    from lwc_compiler.targets.target import Target

_CACHED, _LARGE = 0.75, 0.4  # of the level-2 cache: what a band may take, and from when on a tensor does not stay there
_UNEVEN = 4  # bands a thread from which on it does not matter how they divide


def join_in_bands(stage: Stage, target: Target, threads: int) -> Stage:
    """The stage with calls joined that gain from running band by band.

    Args:
        stage: nothing is joined in it.
        target: whose caches count.
        threads: that share the bands.
    """
    calls: list[Call] = []
    group: list[Call] = []
    looped = {i for begin, stop in stage.loops for i in range(begin, stop + 1)}
    for number, call in enumerate(stage.calls):
        if number in looped:
            group = []
            calls.append(call)
        elif group and _gains(stage, [*group, call], target, threads):
            group.append(call)
            calls.append(replace(call, joined=True))
        else:
            group = [call]
            calls.append(call)
    return replace(stage, calls=tuple(calls))


def _gains(stage: Stage, group: Sequence[Call], target: Target, threads: int) -> bool:
    """Whether the last call of a group gains from running band by band with those before it."""
    kernels = [stage.kernels[call.symbol] for call in group]
    bands = kernels[-1].bands
    if bands == 1 or any(kernel.bands != bands for kernel in kernels):
        return False
    if bands % threads and bands < _UNEVEN * threads:
        return False
    *before, last = group
    written = {call.args[-1] for call in before}
    passed = {ref for ref in last.args if isinstance(ref, BufferRef) and ref in written}
    used = {ref for call in group for ref in call.args if isinstance(ref, BufferRef)}
    size = {ref: stage.buffers[ref.index] for ref in used}
    large = any(size[ref] > _LARGE * target.l2_bytes for ref in passed)
    return large and sum(size.values()) <= _CACHED * target.l2_bytes * bands
