"""From TIR functions to machine code: an object file of plain C functions, with no TVM symbol in it.

`split_function` takes a scheduled function as Relax makes it (buffers, blocks, several loop nests) apart into kernels;
`compile_kernels` builds kernels for a target.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import tvm
from tvm import s_tir, tirx
from tvm.tirx.analysis import undefined_vars
from tvm.tirx.stmt import AllocBuffer, AttrStmt, DeclBuffer, For, ForKind, IfThenElse, SeqStmt, Stmt, While

from lwc_compiler.kernels.kernel import ALIGNMENT_BYTES, Input, Kernel, Operand, Output, Plan, Scratch, Step

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from tvm.tirx import PrimFunc, Var

# LLVM keeps constant-size allocations up to this many bytes on the stack; larger ones would become runtime calls.
_STACK_BYTES = 1024

_LOWER_BLOCKS = tvm.ir.transform.Sequential(
    [
        s_tir.transform.CanonicalizeLoop(),
        s_tir.transform.LowerInitBlock(),
        s_tir.transform.PlanAndUpdateBufferAllocationLocation(),
        s_tir.transform.ConvertBlocksToOpaque(),
        s_tir.transform.CompactBufferAllocation(),
        s_tir.transform.LowerMatchBuffer(),
        s_tir.transform.StmtSimplify(),
        s_tir.transform.LowerOpaqueBlock(),
    ]
)


@tirx.transform.prim_func_pass(opt_level=0)  # type: ignore[untyped-decorator]
def _on_cpu(func: PrimFunc, _mod: Any, _ctx: Any) -> PrimFunc:
    """Says which device the code runs on, which LLVM code generation asks for."""
    key = tirx.const(0, "int32")
    body = tirx.AttrStmt(key, "device_type", tirx.const(1, "int32"), func.body)
    return func.with_body(tirx.AttrStmt(key, "device_id", tirx.const(0, "int32"), body))


def plain_c(*, vectors: bool = True) -> tuple[Any, Any, Any]:
    """The pipeline without AnnotateEntryFunc and MakePackedAPI: functions stay plain C functions.

    Args:
        vectors: vectorised loops become vectors, and not loops.
    """
    t = tirx.transform
    steps = [
        t.StmtSimplify(),
        t.FlattenBuffer(),
        t.BF16ComputeLegalize(),
        t.NarrowDataType(32),
        s_tir.transform.LoopPartition(),
        t.VectorizeLoop(vectors),
        t.UnrollLoop(),
        t.StmtSimplify(),
        t.RemoveNoOp(),
        s_tir.transform.RewriteUnsafeSelect(),
        t.CommonSubexprElim(),
        t.VerifyMemory(),
        t.SplitHostDevice(),
        _on_cpu,
    ]
    pipeline = tirx.compilation_pipeline
    return tvm.ir.transform.Sequential(steps), pipeline.finalize_host_passes, pipeline.finalize_device_passes


tirx.compilation_pipeline.register_tir_pipeline("lwc_plain_c", plain_c)


def buffer_bytes(buffer: Var) -> int:
    """Bytes of a compact TIR buffer with constant shape."""
    elements = 1
    for extent in buffer.shape:
        elements *= int(extent)
    return elements * np.dtype(str(buffer.dtype).replace("bool", "uint8")).itemsize


def _serial(stmt: Stmt) -> Stmt:
    """`stmt` with parallel loops made serial: only the outermost loop of a kernel is split among threads."""

    def change(node: Stmt) -> Stmt:
        if isinstance(node, For) and node.kind == ForKind.PARALLEL:
            return For(node.loop_var, node.min, node.extent, ForKind.SERIAL, node.body, annotations=node.annotations)
        return node

    return rewrite_statements(stmt, change)


def rewrite_statements(stmt: Stmt, change: Any) -> Stmt:
    """Rebuilds a statement from its innermost parts outwards, each passed through `change`."""
    if isinstance(stmt, SeqStmt):
        stmt = SeqStmt([rewrite_statements(s, change) for s in stmt.seq])
    elif isinstance(stmt, For):
        body = rewrite_statements(stmt.body, change)
        stmt = For(stmt.loop_var, stmt.min, stmt.extent, stmt.kind, body, stmt.thread_binding, stmt.annotations)
    elif isinstance(stmt, IfThenElse):
        other = rewrite_statements(stmt.else_case, change) if stmt.else_case is not None else None
        stmt = IfThenElse(stmt.condition, rewrite_statements(stmt.then_case, change), other)
    elif isinstance(stmt, AttrStmt):
        stmt = AttrStmt(stmt.node, stmt.attr_key, stmt.value, rewrite_statements(stmt.body, change))
    elif isinstance(stmt, While):
        stmt = While(stmt.condition, rewrite_statements(stmt.body, change))
    return change(stmt)


def _round_up(size: int, to: int) -> int:
    return -(-size // to) * to


def pointers_to(buffers: list[Var]) -> tuple[list[Var], list[Stmt]]:
    """Parameters that point to the buffers, and the statements that say so."""
    pointers = [tirx.Var(f"p{i}", tvm.ir.PointerType(tvm.ir.PrimType(str(b.dtype)))) for i, b in enumerate(buffers)]
    return pointers, [DeclBuffer(b, data=p) for b, p in zip(buffers, pointers, strict=True)]


def _make_kernel(name: str, nest: Stmt, buffers: list[Var]) -> Kernel:
    """One loop nest over `buffers` as a kernel whose outermost parallel loop is its tile range."""
    t0, t1 = tirx.Var("t0", "int32"), tirx.Var("t1", "int32")
    tiles = 1
    if isinstance(nest, For) and nest.kind == ForKind.PARALLEL:
        tiles = int(nest.extent)
        dtype = str(nest.loop_var.ty.dtype)
        start, count = t0.astype(dtype) + nest.min, (t1 - t0).astype(dtype)
        nest = For(nest.loop_var, start, count, ForKind.SERIAL, nest.body, annotations=nest.annotations)
    scratch = tirx.Var("thread_scratch", tvm.ir.PointerType(tvm.ir.PrimType("uint8")))
    used = 0

    def place(node: Stmt) -> Stmt:
        nonlocal used
        if isinstance(node, AllocBuffer) and buffer_bytes(node.buffer) >= _STACK_BYTES:
            data = tirx.handle_add_byte_offset(scratch, tirx.const(used, "int32"))
            used += _round_up(buffer_bytes(node.buffer), ALIGNMENT_BYTES)
            return DeclBuffer(node.buffer, data=data)
        return node

    body = rewrite_statements(_serial(nest), place)
    pointers, declared = pointers_to(buffers)
    params = [*pointers, *([scratch] if used else []), t0, t1]
    func = tirx.PrimFunc(params, SeqStmt([*declared, body])).with_attr("tirx.noalias", True)
    return Kernel(name, func, tiles, used)


def split_function(
    name: str,
    func: PrimFunc,
    inputs: int,
    make_kernel: Callable[[str, Stmt, list[Var]], Kernel] = _make_kernel,
) -> Plan:
    """Takes a scheduled function apart into kernels.

    Each top-level loop nest becomes a kernel of its own, its outermost `parallel` loop the kernel's tile range. Buffers
    allocated at the top become scratch buffers of the plan, larger ones inside a nest the thread's private scratch.

    Args:
        name: what the kernels are called.
        func: buffers as parameters (inputs, then outputs), every loop extent and shape constant.
        inputs: how many of the parameters are inputs.
        make_kernel: makes a kernel of its name, a loop nest and the buffers in it.
    """
    if isinstance(func.body, s_tir.stmt.SBlockRealize):
        (lowered,) = _LOWER_BLOCKS(tvm.IRModule({"main": func})).functions_items()
        func = lowered[1]
    statements = list(func.body.seq) if isinstance(func.body, SeqStmt) else [func.body]
    operands: dict[Var, Operand] = {
        b: Input(i) if i < inputs else Output(i - inputs) for i, b in enumerate(func.params)
    }
    shared: list[Stmt] = []  # bindings and views every later nest may use
    scratch: list[int] = []
    steps: list[Step] = []
    for statement in statements:
        if isinstance(statement, AllocBuffer):
            operands[statement.buffer] = Scratch(len(scratch))
            scratch.append(buffer_bytes(statement.buffer))
        elif isinstance(statement, (DeclBuffer, tirx.stmt.Bind)):
            shared.append(statement)
        else:
            nest = SeqStmt([*shared, statement]) if shared else statement
            free = set(undefined_vars(nest, []))
            buffers = [b for b in operands if b in free]
            kernel = make_kernel(name, nest, buffers)
            steps.append(Step(kernel, tuple(operands[b] for b in buffers)))
    return Plan(tuple(steps), tuple(scratch))


def build_kernels(functions: Mapping[str, PrimFunc], target: Mapping[str, Any], pipeline: str) -> Any:
    """TVM's module of functions.

    Args:
        functions: C symbol -> function.
        target: TVM target description.
        pipeline: name of the registered pipeline.
    """
    named = {symbol: function.with_attr("global_symbol", symbol) for symbol, function in functions.items()}
    return tirx.build(tvm.IRModule(named), target=tvm.target.Target(dict(target)), pipeline=pipeline)


def compile_kernels(kernels: Mapping[str, Kernel], target: Mapping[str, Any]) -> bytes:
    """Compiles kernels to one object file.

    Args:
        kernels: C symbol -> kernel.
        target: TVM target description, e.g. `{"kind": "llvm", "mtriple": ..., "mcpu": ...}`.
    """
    library = build_kernels({symbol: kernel.func for symbol, kernel in kernels.items()}, target, "lwc_plain_c")
    # LLVM ends the process when a disk is full: so it writes to memory where the system can.
    if not hasattr(os, "memfd_create"):
        with tempfile.TemporaryDirectory(prefix="lwc-") as folder:
            path = Path(folder) / "kernels.o"
            library.write_to_file(str(path))
            return path.read_bytes()
    with os.fdopen(os.memfd_create("kernels.o"), "rb") as file:
        library.write_to_file(f"/proc/self/fd/{file.fileno()}", "o")
        return file.read()
