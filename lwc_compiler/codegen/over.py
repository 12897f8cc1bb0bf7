"""Lets kernels write over what they add, so that the caches need not fetch, and later write back, another buffer.

A kernel that adds a residual reads each element of it just before it writes the same element of its output
(`Kernel.over`). Where nothing reads the residual afterwards, the output takes its buffer.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from lwc_compiler.codegen.program import BufferRef

if TYPE_CHECKING:
    from lwc_compiler.codegen.program import Ref, Stage


def write_over(stage: Stage) -> Stage:
    """The stage with outputs of kernels in buffers that these read for the last time.

    Args:
        stage: every call writes a buffer of its own.
    """
    fixed = {ref for _, ref in (*stage.inputs, *stage.outputs)}
    last = {ref: number for number, call in enumerate(stage.calls) for ref in call.args if isinstance(ref, BufferRef)}
    place: dict[Ref, Ref] = {}  # of an output that lies where a residual lay
    calls = []
    for number, call in enumerate(stage.calls):
        over = stage.kernels[call.symbol].over
        if over is not None:
            source, output = call.args[over], call.args[-1]
            free = isinstance(source, BufferRef) and last[source] == number
            if free and call.args.count(source) == 1 and not {source, output} & fixed:
                place[output] = place.get(source, source)
        calls.append(replace(call, args=tuple(place.get(ref, ref) for ref in call.args)))
    return replace(stage, calls=tuple(calls))
