"""The C side of an artifact: the public header, and the source of the entry points and the table of steps."""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib import resources
from typing import TYPE_CHECKING

import numpy as np

from lwc_compiler.codegen.memory import aligned, plan_workspace
from lwc_compiler.codegen.program import BufferRef
from lwc_compiler.kernels.kernel import ALIGNMENT_BYTES, SLACK_BYTES
from lwc_compiler.version import __version__

if TYPE_CHECKING:
    from collections.abc import Iterable

    from lwc_compiler.codegen.program import Program, Ref
    from lwc_compiler.codegen.result import TensorSpec


@dataclass(frozen=True)
class Emitted:
    """C text and data of a program.

    Attributes:
        header: public header.
        source: C source; includes the header as `<symbol>.h` and the weights as `weights.bin`.
        weights: the constants, each at a 64-byte boundary.
        workspace_bytes: bytes of the workspace for `threads` threads.
    """

    header: str
    source: str
    weights: bytes
    workspace_bytes: int


_HEADER = """\
/* {name}: a neural network as a library. Made by lwc {version}.
 *
 * Inputs:
{inputs}
 * Outputs:
{outputs}
 *
 * {symbol}_run computes the outputs from the inputs. It allocates nothing and keeps no state between calls: calls with
 * different workspaces and pools may run at the same time.
 */
#ifndef {guard}
#define {guard}

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {{
#endif

#define {guard_base}_VERSION "{version}"
#define {guard_base}_WORKSPACE_ALIGNMENT {alignment}

typedef struct {{
    const char *name;
    const char *dtype; /* NumPy's name of the element type */
    int rank;
    const int64_t *dims; /* row-major */
}} {symbol}_tensor;

/* Threads that share the work of a run. Creating one is the only allocation in this library. */
typedef struct {symbol}_pool {symbol}_pool;
{symbol}_pool *{symbol}_pool_create(int threads); /* NULL when there is no memory, or threads is not 1 to 256 */
void {symbol}_pool_destroy({symbol}_pool *pool);

/* Bytes of the workspace a run on so many threads needs. */
size_t {symbol}_workspace_bytes(int threads);

/* Runs the network: one pointer for each input and output, in the order above, tensors dense and row-major. The
 * workspace is the caller's, aligned to 64 bytes; its contents need not survive between calls. A NULL pool means one
 * thread. Returns 0, or a code for {symbol}_error_string. */
int {symbol}_run(const void *const *inputs, void *const *outputs, void *workspace, {symbol}_pool *pool);

const char *{symbol}_error_string(int code);
const char *{symbol}_version(void);
int {symbol}_cpu_supported(void); /* 1 when this processor has the instructions the library uses */

int {symbol}_input_count(void);
int {symbol}_output_count(void);
const {symbol}_tensor *{symbol}_inputs(void);
const {symbol}_tensor *{symbol}_outputs(void);

#ifdef __cplusplus
}}
#endif

#endif
"""

_PROLOGUE = """\
#include "{symbol}.h"

#define LWC(name) {symbol}_##name
#define LWC_API __attribute__((visibility("default")))

enum {{ LWC_ERROR_NULL = 1, LWC_ERROR_ALIGNMENT = 2 }};

__asm__(
    ".section .rodata\\n"
    ".balign {alignment}\\n"
    ".hidden {symbol}_weights\\n"
    ".globl {symbol}_weights\\n"
    "{symbol}_weights:\\n"
    ".incbin \\"weights.bin\\"\\n"
    ".zero {slack}\\n"
    ".previous\\n");
extern const unsigned char LWC(weights)[];
"""

_EPILOGUE = """\
LWC_API size_t LWC(workspace_bytes)(int threads) {{
    return (size_t){arena} + (size_t)(threads < 1 ? 1 : threads) * {thread_bytes};
}}

LWC_API int LWC(run)(const void *const *inputs, void *const *outputs, void *workspace, LWC(pool) *pool) {{
    if (inputs == NULL || outputs == NULL || workspace == NULL) return LWC_ERROR_NULL;
    if ((uintptr_t)workspace % {alignment} != 0) return LWC_ERROR_ALIGNMENT;
    for (int i = 0; i < {input_count}; i++) if (inputs[i] == NULL) return LWC_ERROR_NULL;
    for (int i = 0; i < {output_count}; i++) if (outputs[i] == NULL) return LWC_ERROR_NULL;
    const lwc_frame frame = {{workspace}};
{copy_in}
    for (size_t i = 0; i < {step_count}; i++) lwc_run_step(pool, &frame, &lwc_steps[i]);
{copy_out}
    return 0;
}}

LWC_API const char *LWC(version)(void) {{ return "{version}"; }}

LWC_API int LWC(cpu_supported)(void) {{ return {cpu_supported}; }}

{tensors}
LWC_API int LWC(input_count)(void) {{ return {input_count}; }}
LWC_API int LWC(output_count)(void) {{ return {output_count}; }}
LWC_API const LWC(tensor) *LWC(inputs)(void) {{ return lwc_inputs; }}
LWC_API const LWC(tensor) *LWC(outputs)(void) {{ return lwc_outputs; }}
"""


def c_identifier(name: str) -> str:
    """`name` as a C identifier: other characters become `_`, a leading digit gets one before it."""
    text = re.sub(r"\W", "_", name, flags=re.ASCII)
    return text if re.match(r"[A-Za-z_]", text) else f"_{text}"


def _c_string(text: str) -> str:
    """`text` as a C string literal, in UTF-8, everything but plain characters as octal escapes."""
    plain = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789 ._-/:"
    return '"' + "".join(chr(b) if chr(b) in plain else f"\\{b:03o}" for b in text.encode()) + '"'


def _bytes(spec: TensorSpec) -> int:
    return int(np.prod(spec.shape, dtype=np.int64)) * np.dtype(spec.dtype).itemsize


def _tensor_table(direction: str, specs: Iterable[TensorSpec]) -> str:
    lines, rows = [], []
    for i, spec in enumerate(specs):
        dims = ", ".join(map(str, spec.shape)) or "0"
        lines.append(f"static const int64_t lwc_{direction}_dims_{i}[] = {{{dims}}};")
        rows.append(f'    {{{_c_string(spec.name)}, "{spec.dtype}", {len(spec.shape)}, lwc_{direction}_dims_{i}}},')
    return "\n".join([*lines, f"static const LWC(tensor) lwc_{direction}s[] = {{", *rows, "};"])


def _describe(specs: Iterable[TensorSpec]) -> str:
    def clean(name: str) -> str:
        return name.replace("*/", "* /").replace("\\", "/")

    return "\n".join(f" *   {clean(s.name)}: {s.dtype}[{', '.join(map(str, s.shape))}]" for s in specs)


def emit(program: Program, name: str, symbol: str, threads: int, features: Iterable[str]) -> Emitted:
    """The C text of a program.

    Args:
        program: what to run.
        name: model name, for the header's first line.
        symbol: prefix of all symbols.
        threads: threads `workspace_bytes` of the result is counted for.
        features: instruction sets the processor must have; `runtime.c` has a test for each.
    """
    offsets, arena = plan_workspace(program)
    weights, places = bytearray(), []
    for constant in program.constants:
        places.append(len(weights))
        weights += constant.tobytes()
        weights += bytes(aligned(len(weights)) - len(weights))
    thread_bytes = max(
        (aligned(k.thread_bytes + SLACK_BYTES) for k in program.kernels.values() if k.thread_bytes), default=0
    )

    def place(ref: Ref) -> str:
        if isinstance(ref, BufferRef):
            return f"f->workspace + {offsets[ref.index]}"
        return f"LWC(weights) + {places[ref.index]}"

    prototypes, functions, rows = [], [], []
    for symbol_, kernel in program.kernels.items():
        pointers = len(kernel.func.params) - 2
        prototypes.append(f"void {symbol_}({', '.join(['const void *'] * pointers)}, int32_t, int32_t);")
    for i, call in enumerate(program.calls):
        kernel = program.kernels[call.symbol]
        args = [place(ref) for ref in call.args]
        if kernel.thread_bytes:
            args.append(f"f->workspace + {arena} + (size_t)thread * {thread_bytes}")
        functions.append(
            f"static void lwc_step_{i}(const lwc_frame *f, int32_t t0, int32_t t1, int32_t thread) {{\n"
            f"    (void)f, (void)thread;\n    {call.symbol}({', '.join([*args, 't0', 't1'])});\n}}"
        )
        rows.append(f"    {{lwc_step_{i}, {kernel.tiles}}},")
    runtime = resources.files("lwc_compiler.runtime").joinpath("c/runtime.c").read_text(encoding="utf-8")
    inputs, outputs = [s for s, _ in program.inputs], [s for s, _ in program.outputs]
    copy_in = [
        f"    memcpy({place(ref).replace('f->', 'frame.')}, inputs[{i}], {_bytes(spec)});"
        for i, (spec, ref) in enumerate(program.inputs)
        if _bytes(spec)
    ]
    copy_out = [
        f"    memcpy(outputs[{i}], {place(ref).replace('f->', 'frame.')}, {_bytes(spec)});"
        for i, (spec, ref) in enumerate(program.outputs)
        if _bytes(spec)
    ]
    supported = " && ".join(f"LWC_HAS_{f}" for f in sorted(features)) or "1"
    guard = f"{symbol.upper()}_H"
    header = _HEADER.format(
        name=name.replace("*/", "* /"), symbol=symbol, guard=guard, guard_base=symbol.upper(), version=__version__,
        alignment=ALIGNMENT_BYTES, inputs=_describe(inputs), outputs=_describe(outputs),
    )  # fmt: skip
    source = "\n".join(
        [
            _PROLOGUE.format(symbol=symbol, alignment=ALIGNMENT_BYTES, slack=SLACK_BYTES),
            runtime,
            *prototypes,
            *functions,
            "static const lwc_step lwc_steps[] = {",
            *(rows or ["    {NULL, 0},"]),
            "};",
            "",
            _EPILOGUE.format(
                arena=arena, thread_bytes=thread_bytes, alignment=ALIGNMENT_BYTES, input_count=len(inputs),
                output_count=len(outputs), step_count=len(rows),
                copy_in="\n".join(copy_in), copy_out="\n".join(copy_out), version=__version__, cpu_supported=supported,
                tensors=_tensor_table("input", inputs) + "\n" + _tensor_table("output", outputs),
            ),
        ]
    )  # fmt: skip
    return Emitted(header, source, bytes(weights), arena + threads * thread_bytes)
