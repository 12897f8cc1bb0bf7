"""From TIR functions to the text of device functions: CUDA C++, and OpenCL C, in which the same kernels can be tested.

`compile_device` gives the text; every function takes its pointers in the order of the kernel's parameters.
`split_device` schedules a function as Relax makes it for a GPU and takes it apart into kernels.
"""

from __future__ import annotations

import re
from importlib import resources
from typing import TYPE_CHECKING, Any, Literal

import tvm
import tvm_ffi
from tvm import s_tir, tirx
from tvm.tirx.stmt import AllocBuffer, AttrStmt, BufferStore, DeclBuffer, Evaluate, SeqStmt

from lwc_compiler.codegen.device_row_kernels import rows_kernel
from lwc_compiler.codegen.device_rows import read_points, read_rows
from lwc_compiler.codegen.device_schedules import schedule_device
from lwc_compiler.codegen.device_transposes import read_transposition, transpose_kernel
from lwc_compiler.codegen.kernel_build import buffer_bytes, pointers_to, rewrite_statements, split_function
from lwc_compiler.errors import UnsupportedError
from lwc_compiler.kernels.gpu.builder import CONSTANTS, SHARED_ALIGNMENT_BYTES, WAITS, ceil_div
from lwc_compiler.kernels.kernel import Input, Kernel, Launch, Output, Plan, Step
from lwc_compiler.targets.target import BLOCK_KILOBYTES

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tvm.tirx import PrimFunc, Var
    from tvm.tirx.stmt import Stmt


_MOST_BLOCKS = (2**31 - 1, 65535, 65535)
_LAUNCHED = 2  # TVM's CallingConv::kDeviceKernelLaunch

# What TVM's text takes from headers of the CUDA toolkit, which are not needed so.
_CUDA_PROLOGUE = """\
typedef unsigned char uchar;
typedef unsigned short ushort;
typedef unsigned int uint;
#ifdef __CUDACC_RTC__ /* nvcc has these */
typedef signed char int8_t;
typedef short int16_t;
typedef int int32_t;
typedef long long int64_t;
typedef unsigned char uint8_t;
typedef unsigned short uint16_t;
typedef unsigned int uint32_t;
typedef unsigned long long uint64_t;
#endif
#define CUDART_INF_F __int_as_float(0x7f800000)
#define CUDART_NAN_F __int_as_float(0x7fffffff)
#define CUDART_INF __longlong_as_double(0x7ff0000000000000LL)
#define CUDART_NAN __longlong_as_double(0x7fffffffffffffffLL)

"""

_TEXTS = resources.files("lwc_compiler.codegen")
# What kernels call by name.
_CALLED = {"cuda": ("precision.cuh", "copies.cuh", "launches.cuh", "wgmma.cuh"), "opencl": ("copies.cl", "launches.cl")}
_SHARED = re.compile(r"__shared__ alignas\(\d+\) (\w+) (\w+)\[(\d+)\];")
# Two blocks of so much shared memory, or one, fit a multiprocessor: that has a kilobyte more than a block can have.
_BLOCKS = "".join(
    f"#if __CUDA_ARCH__ == {10 * architecture}\n#define LWC_BLOCK_KILOBYTES {kilobytes}\n#endif\n"
    for architecture, kilobytes in BLOCK_KILOBYTES.items()
)
_BLOCKS += "#define LWC_BLOCKS(bytes) (2 * ((bytes) + 1024) <= 1024 * (LWC_BLOCK_KILOBYTES + 1) ? 2 : 1)\n"
_DYNAMIC = "extern __shared__ __align__(1024) uchar lwc_shared[];"  # what matrices with the longest rows are aligned to
_NAME = re.compile(r"\blwc_\w+")
_ENTRY = 'extern "C" __global__'
_BOUNDS = re.compile(r"__launch_bounds__\((\d+)\) (\w+)\(")
_SIGNATURE = re.compile(rf"({_ENTRY} .*\b)(\w+)\(([^()]*)\) {{")


def _with_barriers(func: PrimFunc, _module: tvm.IRModule, _context: tvm.ir.transform.PassContext) -> PrimFunc:
    """TVM's schedules have no barriers yet; kernels by `DeviceBuilder` have all, and would get some without a need."""
    if WAITS in func.attrs:
        return func
    return s_tir.transform.ThreadSync("shared")(tvm.IRModule({"kernel": func}))["kernel"]


_PASSES = tvm.ir.transform.Sequential(
    [
        tirx.transform.StmtSimplify(),
        tirx.transform.FlattenBuffer(),
        tirx.transform.NarrowDataType(32),
        s_tir.transform.LoopPartition(),
        tirx.transform.VectorizeLoop(True),
        tirx.transform.UnrollLoop(),
        tirx.transform.StmtSimplify(),
        tirx.transform.RemoveNoOp(),
        s_tir.transform.RewriteUnsafeSelect(),
        tirx.transform.CommonSubexprElim(),
        tirx.transform.VerifyMemory(),
        tirx.transform.prim_func_pass(_with_barriers, opt_level=0),
        s_tir.transform.LowerThreadAllreduce(),
        tirx.transform.LowerWarpMemory(),
        tirx.transform.StmtSimplify(),
        tirx.transform.LowerIntrin(),
    ]
)


def compile_device(kernels: Mapping[str, Kernel], language: Literal["cuda", "opencl"]) -> str:
    """The text of the kernels, one device function each.

    Args:
        kernels: symbol -> kernel, each with a `launch`.
        language: what to write.
    """
    description: dict[str, Any] = {"kind": language}
    if language == "cuda":
        description["arch"] = "sm_75"  # the text is the same for all
    target = tvm.target.Target(description, host="llvm")
    functions = {}
    for symbol, kernel in kernels.items():
        attributes = {"target": target, "calling_conv": _LAUNCHED, "tirx.is_global_func": True}
        functions[symbol] = kernel.func.with_attr({"global_symbol": symbol, **attributes})
    module = _PASSES(tvm.IRModule(functions))
    text = str(tvm.get_global_func(f"target.build.{language}")(module, target).inspect_source())
    if language == "cuda":
        text = _BOUNDS.sub(lambda found: _bounded(found, kernels), text)
        text = _overlapping(text[text.find(_ENTRY) :], kernels)
    used = set(_NAME.findall(text))
    parts = [_TEXTS.joinpath(name).read_text(encoding="utf-8") for name in _CALLED[language]]
    called = "".join(part for part in parts if used & set(_NAME.findall(part)))
    return (_CUDA_PROLOGUE + _BLOCKS if language == "cuda" else "") + called + text


def _bounded(found: re.Match[str], kernels: Mapping[str, Kernel]) -> str:
    """A kernel's registers are for two blocks on a multiprocessor, or for one where its shared memory has no room.

    With no number, NVIDIA's compiler spills registers to have four.
    """
    threads, symbol = found.groups()
    launch = kernels[symbol].launch
    assert launch is not None
    clustered = f"__cluster_dims__({launch.cluster}, 1, 1) " if launch.cluster > 1 else ""
    return f"{clustered}__launch_bounds__({threads}, LWC_BLOCKS({launch.shared_bytes})) {symbol}("


def _overlapping(text: str, kernels: Mapping[str, Kernel]) -> str:
    """CUDA C++ whose kernels may be launched before the one before them has ended (see launches.cuh).

    What another kernel may still write while this one begins is no `__restrict__` pointer that is only read: the
    compiler would be free to read it before it is there, and in instructions that do not see it change. Constants are
    none in a kernel that says where it waits: NVIDIA's compiler moves loads of what never changes behind the wait.

    Functions are not declared first, as no other calls them: CUDA 12's compiler refuses `__cluster_dims__` there.
    """
    functions = []
    for function in re.split(rf"^(?={_ENTRY})", text, flags=re.MULTILINE)[1:]:
        found = _SIGNATURE.match(function)
        if found is None:  # a declaration
            continue
        start, symbol, operands = found.groups()
        body = function[found.end() :]
        func = kernels[symbol].func
        waits = bool(func.attrs.get(WAITS, False))
        restricted = written_parameters(func) | set(() if waits else func.attrs.get(CONSTANTS, ()))
        pointers = [
            operand if number in restricted else operand.replace("__restrict__ ", "")
            for number, operand in enumerate(operands.split(", "))
        ]
        body = _with_dynamic_memory(body) if _launch(kernels[symbol]).dynamic_bytes else body
        body = "\n  lwc_launch_next();" + ("" if waits else "\n  lwc_inputs_ready();") + body
        functions.append(f"{start}{symbol}({', '.join(pointers)}) {{{body}")
    return "".join(functions)


def _with_dynamic_memory(body: str) -> str:
    """A function whose shared memory is more than a kernel may declare, as parts of what its launch asks for."""
    offset = 0

    def part(found: re.Match[str]) -> str:
        nonlocal offset
        dtype, name, elements = found.groups()
        start, offset = offset, offset + 4 * int(elements)
        offset = ceil_div(offset, SHARED_ALIGNMENT_BYTES) * SHARED_ALIGNMENT_BYTES
        return f"{dtype}* {name} = ({dtype}*)(lwc_shared + {start});"

    return f"\n  {_DYNAMIC}{_SHARED.sub(part, body)}"


def _launch(kernel: Kernel) -> Launch:
    assert kernel.launch is not None
    return kernel.launch


def written_parameters(func: PrimFunc) -> set[int]:
    """Numbers of the parameters that a kernel for GPUs writes."""
    declared: list[Any] = []
    stores: list[Any] = []
    tvm_ffi.structural_walk(func.body, [(DeclBuffer, declared.append), (BufferStore, stores.append)], order="post")
    written = [d.data for d in declared if any(store.buffer.same_as(d.buffer) for store in stores)]
    return {number for number, pointer in enumerate(func.params) if any(pointer.same_as(data) for data in written)}


def check_launches(kernels: Mapping[str, Kernel]) -> None:
    """Refuses kernels that no GPU can launch.

    Raises:
        UnsupportedError: a tensor is so large that a kernel has too many blocks.
    """
    for kernel in kernels.values():
        launched = _launch(kernel).grid
        if any(blocks > most for blocks, most in zip(launched, _MOST_BLOCKS, strict=True)):
            grid, most = (" x ".join(map(str, sizes)) for sizes in (launched, _MOST_BLOCKS))
            raise UnsupportedError(
                f"{kernel.name} would be launched with {grid} blocks, and a GPU takes at most {most}: compile the "
                "model for a smaller batch"
            )


def split_device(name: str, func: PrimFunc, inputs: int) -> Plan:
    """Schedules a function and takes it apart into kernels, as `split_function` does on a processor."""
    rows = read_rows(func) or read_points(func)
    if rows is not None:
        operands = [Input(i) for i in range(inputs)] + [Output(i) for i in range(len(func.params) - inputs)]
        return Plan((Step(rows_kernel(name, rows), tuple(operands)),))
    turned = read_transposition(func)
    if turned is not None:
        return Plan((Step(transpose_kernel(name, turned), (Input(0), Output(0))),))
    return split_function(name, schedule_device(func), inputs, _make_device_kernel)


def _make_device_kernel(name: str, nest: Stmt, buffers: list[Var]) -> Kernel:
    """A loop nest that is bound to blocks and threads as a kernel."""
    extents: dict[str, int] = {}
    shared: list[Stmt] = []

    def change(node: Stmt) -> Stmt:
        if isinstance(node, AttrStmt) and node.attr_key == "thread_extent":
            extents[str(node.node.thread_tag)] = int(node.value)
        if isinstance(node, AllocBuffer) and node.buffer.scope() == "shared":
            shared.append(node)  # OpenCL has it at the top of a function only
            return Evaluate(tirx.const(0, "int32"))
        return node

    body = rewrite_statements(nest, change)
    shared_bytes = sum(buffer_bytes(allocation.buffer) for allocation in shared)

    def along(kind: str) -> tuple[int, int, int]:
        x, y, z = (extents.get(f"{kind}Idx.{axis}", 1) for axis in "xyz")
        return x, y, z

    pointers, declared = pointers_to(buffers)
    func = tirx.PrimFunc(pointers, SeqStmt([*declared, *shared, body])).with_attr("tirx.noalias", True)
    return Kernel(name, func, 1, launch=Launch(along("block"), along("thread"), shared_bytes))
