"""Schedules on a GPU for what is no linear layer, and not computed along rows (`device_rows`).

A thread computes one element, with what it needs of the functions before it. Long sums of other kinds, which the
threads of a block share, and products of two activations have rules in TVM.
"""

from __future__ import annotations

import math
from typing import Any

import tvm
import tvm_ffi
from tvm import s_tir
from tvm.s_tir import dlight
from tvm.s_tir.dlight.analysis import normalize_prim_func
from tvm.s_tir.dlight.base import try_inline
from tvm.tirx import IterVar, PrimFunc

_THREADS = 128  # of a block
_LONG = 64  # elements of a reduction that a block of threads shares
_PRODUCT_STEP = 64  # elements of a tile of a product that are added up
_MANY_OUTPUTS = 32 * 64 * 256  # of a product: enough for large tiles
_TARGET: Any = tvm.target.Target({"kind": "cuda", "arch": "sm_75", "max_num_threads": 256}, host="llvm")

_LOWER = tvm.ir.transform.Sequential(
    [
        s_tir.transform.CanonicalizeLoop(),
        s_tir.transform.LowerCrossThreadReduction(),
        s_tir.transform.LowerInitBlock(),
        s_tir.transform.PlanAndUpdateBufferAllocationLocation(),
        s_tir.transform.ConvertBlocksToOpaque(),
        s_tir.transform.LiftThreadBinding(),
        s_tir.transform.CompactBufferAllocation(),
        s_tir.transform.UnifyThreadBinding(),
        s_tir.transform.LowerMatchBuffer(),
        s_tir.transform.StmtSimplify(),
        s_tir.transform.LowerOpaqueBlock(),
    ]
)


def schedule_device(func: PrimFunc) -> PrimFunc:
    """The function with every loop nest at its top bound to blocks and threads: one launch each.

    Args:
        func: as Relax's legalization and fusion make it: buffers with constant shapes as parameters.
    """
    rules = []
    if _longest_reduction(func) >= _LONG:
        rules = [_Product(func), dlight.gpu.GeneralReduction()]
    with _TARGET:
        module = dlight.ApplyDefaultSchedule(*rules, _Elementwise())(tvm.IRModule({"main": func}))
        return _LOWER(module)["main"]


class _Product(dlight.gpu.Matmul):  # type: ignore[misc]
    """TVM's rule for products of two activations, with other tiles.

    The products of an attention are small: what takes time is to wait for tiles of the operands, so these have many of
    the elements that are added up.
    """

    def __init__(self, func: PrimFunc) -> None:
        super().__init__()
        self.step = min(_PRODUCT_STEP, -(-_longest_reduction(func) // 16) * 16)
        self.outputs = math.prod(int(extent) for extent in func.params[-1].shape)

    def get_configs(self, target: Any) -> Any:
        rows = 8 if self.outputs < _MANY_OUTPUTS else 16  # of threads
        return self.Config(8, rows, micro_size_k=self.step, vector_size=4, unroll=32, storage_align=True)


class _Elementwise(dlight.base.ScheduleRule):  # type: ignore[misc]
    """A thread for every element of what is left when functions are computed where they are used."""

    def apply(self, func: PrimFunc, target: Any, _: bool) -> Any:
        schedule = s_tir.Schedule(func)
        blocks = normalize_prim_func(schedule)
        if blocks is None:
            return None
        for info in try_inline(schedule, blocks):
            block, kinds = info.block_rv, info.dom_kind()
            loops = schedule.get_loops(block)
            reduced = [loop for loop, kind in zip(loops, kinds, strict=False) if kind == "R"]
            spatial = [loop for loop, kind in zip(loops, kinds, strict=False) if kind == "S"]
            others = [loop for loop, kind in zip(loops, kinds, strict=False) if kind not in "SR"]
            # The sum is kept in a register.
            written = [
                schedule.cache_write(block, i, "local")
                for i in range(len(schedule.get(block).writes) if reduced else 0)
            ]
            spatial = spatial or [schedule.add_unit_loop(block)]
            schedule.reorder(*spatial, *reduced, *others)
            elements = math.prod(int(schedule.get(loop).extent) for loop in spatial)
            # No thread without an element where one block does: TVM lets it store, too, when the result is a scalar.
            threads = min(_THREADS, elements)
            across, thread = schedule.split(schedule.fuse(*spatial), factors=[None, threads])
            schedule.bind(across, "blockIdx.x")
            schedule.bind(thread, "threadIdx.x")
            for result in written:
                schedule.reverse_compute_at(result, thread)
            if reduced:
                schedule.decompose_reduction(block, reduced[0])
        return schedule


def _longest_reduction(func: PrimFunc) -> int:
    """The most elements that are combined to one."""
    longest = 0

    def visit(block: Any) -> None:
        nonlocal longest
        extents = [int(v.dom.extent) for v in block.iter_vars if v.iter_type == IterVar.CommReduce]
        longest = max(longest, math.prod(extents) if extents else 0)

    tvm_ffi.structural_walk(func.body, [(s_tir.SBlock, visit)], order="post")
    return longest
