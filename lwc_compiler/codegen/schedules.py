"""Schedules for every operator that is not a linear layer.

`schedule` turns a function as Relax makes it (buffers and blocks, one naive loop nest each) into a few parallel,
vectorised nests that compute the same.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import tvm
from tvm.target import Target
from tvm.tirx import AllocBuffer, PrimFunc, SeqStmt

from lwc_compiler.codegen.schedules_expressions import UnknownExpressionError
from lwc_compiler.codegen.schedules_groups import group_stages
from lwc_compiler.codegen.schedules_nests import Scheduler, join
from lwc_compiler.codegen.schedules_stages import UnknownStructureError, read_stages, simplify_stages

if TYPE_CHECKING:
    from collections.abc import Mapping


def schedule(func: PrimFunc, target: Target | Mapping[str, Any]) -> PrimFunc:
    """A fast version of a function made by Relax's legalization and fusion.

    Args:
        func: buffers with constant shapes as parameters; a root block of loop nests with one block each.
        target: where it will run.

    Returns:
        The function over the same parameters in the same order, each now one-dimensional: parallel loops at the top,
        buffers between them allocated at the top. A function of any other form comes back with its own loops.
    """
    target = target if isinstance(target, Target) else Target(dict(target))
    try:
        program = read_stages(func)
        simplify_stages(program)
        groups = group_stages(program)
        scheduler = Scheduler(program, _vector_bytes(target))
        nests = [nest for group in groups for nest in scheduler.nests(group)]
        body = join(nests, scheduler)
    except (UnknownStructureError, UnknownExpressionError):
        return func
    between = [b for b in scheduler.memory.flat.values() if b not in set(scheduler.params)]
    body = SeqStmt([*map(AllocBuffer, between), body]) if between else body
    return PrimFunc(scheduler.params, body, attrs=func.attrs)


def _vector_bytes(target: Target) -> int:
    with target:
        return int(tvm.get_global_func("target.llvm_get_vector_width")(target)) // 8
