"""Schedules for every operator that is not a linear layer.

`schedule` turns a function as Relax makes it (buffers and blocks, one naive loop nest each) into a few parallel,
vectorised nests that compute the same. The function is read as a list of stages (`schedules_stages`), those that belong
together become groups (`schedules_groups`), and each group becomes a nest (`schedules_nests`) of vectors
(`schedules_vectors`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tvm.tirx import AllocBuffer, PrimFunc, SeqStmt

from lwc_compiler.codegen.schedules_expressions import UnknownExpressionError
from lwc_compiler.codegen.schedules_groups import group_stages
from lwc_compiler.codegen.schedules_nests import Scheduler, join
from lwc_compiler.codegen.schedules_stages import UnknownStructureError, read_stages, simplify_stages

if TYPE_CHECKING:
    from lwc_compiler.targets.target import Target


def schedule(func: PrimFunc, target: Target) -> PrimFunc:
    """A fast version of a function made by Relax's legalization and fusion.

    Args:
        func: buffers with constant shapes as parameters; a root block of loop nests with one block each.
        target: where it will run.

    Returns:
        The function over the same parameters in the same order, each now one-dimensional: parallel loops at the top,
        buffers between them allocated at the top. A function of any other form comes back as it is.
    """
    try:
        program = read_stages(func)
        simplify_stages(program)
        groups = group_stages(program)
        scheduler = Scheduler(program, target.vector_bits // 32)
        body = join([nest for group in groups for nest in scheduler.nests(group)], scheduler)
    except (UnknownStructureError, UnknownExpressionError):
        return func
    between = [b for b in scheduler.memory.flat.values() if b not in set(scheduler.params)]
    body = SeqStmt([*map(AllocBuffer, between), body]) if between else body
    return PrimFunc(scheduler.params, body, attrs=func.attrs)
