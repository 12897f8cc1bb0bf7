"""The C source of an artifact: the steps and stages of each program, around the runtime in `runtime/c`."""

from __future__ import annotations

import hashlib
import re
import zlib
from dataclasses import dataclass
from importlib import resources
from typing import TYPE_CHECKING

import numpy as np

from lwc_compiler.codegen.c_text import c_rows, c_string, c_type, with_math
from lwc_compiler.codegen.memory import aligned, plan_workspace, slack_bytes
from lwc_compiler.codegen.program import BufferRef
from lwc_compiler.kernels.kernel import ALIGNMENT_BYTES
from lwc_compiler.version import __version__

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

    from lwc_compiler.codegen.program import Call, Program, Ref, Stage
    from lwc_compiler.codegen.result import TensorSpec
    from lwc_compiler.targets.target import Target

# A thread that joins a step has to save more time than the caller takes to let it in and to wait for it.
_NANOSECONDS_A_THREAD = 2000
_MAX_THREADS = 256  # LWC_MAX_THREADS


@dataclass(frozen=True)
class Emitted:
    """C text and data of a library.

    Attributes:
        source: C source; includes the header as `<name>.h`, and embedded weights of libraries as `weights.bin`.
        weights: the constants, each at a 64-byte boundary; where they are a file, as it is to be mapped.
        identity: of a file of weights, as hexadecimal digits; empty where the library holds them.
        least_workspace_bytes: bytes of the workspace for one thread.
        workspace_bytes: the same for `threads` threads.
    """

    source: str
    weights: bytes
    identity: str
    least_workspace_bytes: int
    workspace_bytes: int


_PROLOGUE = """\
#include "{name}.h"

#define LWC(name) {symbol}_##name
#ifndef LWC_API
#define LWC_API {api}
#endif

#define LWC_PROGRAMS {programs}
#define LWC_OS {os}
#define LWC_WEIGHTS_FILE {weights_file}

enum {{
    LWC_ERROR_NULL = {upper}_ERROR_NULL,
    LWC_ERROR_ALIGNMENT = {upper}_ERROR_ALIGNMENT,
    LWC_ERROR_WORKSPACE = {upper}_ERROR_WORKSPACE,
    LWC_ERROR_WEIGHTS = {upper}_ERROR_WEIGHTS
}};
enum {{ LWC_INPUTS = {inputs}, LWC_OUTPUTS = {outputs}, LWC_ALIGNMENT = {alignment} }};
"""

_EMBEDDED = """
#define LWC_CONSTANTS LWC(weights)
#if defined(__APPLE__)
__asm__(
    ".section __TEXT,__const\\n"
    ".balign {alignment}\\n"
    ".private_extern _{symbol}_weights\\n"
    ".globl _{symbol}_weights\\n"
    "_{symbol}_weights:\\n"
    ".incbin \\"weights.bin\\"\\n"
    ".zero {slack}\\n"
    ".text\\n");
#elif defined(__wasm__)
__asm__(
    ".section .rodata.{symbol}_weights,\\"\\",@\\n"
    ".hidden {symbol}_weights\\n"
    ".globl {symbol}_weights\\n"
    ".type {symbol}_weights,@object\\n"
    ".p2align {alignment_bits}\\n"
    "{symbol}_weights:\\n"
    ".incbin \\"weights.bin\\"\\n"
    ".zero {slack}\\n"
    ".size {symbol}_weights, {bytes}\\n");
#else
__asm__(
    ".section .rodata\\n"
    ".balign {alignment}\\n"
    ".hidden {symbol}_weights\\n"
    ".globl {symbol}_weights\\n"
    "{symbol}_weights:\\n"
    ".incbin \\"weights.bin\\"\\n"
    ".zero {slack}\\n"
    ".previous\\n");
#endif
extern const unsigned char LWC(weights)[];
"""

_MAPPED = """
#define LWC_WEIGHTS_BYTES {bytes}
#define LWC_WEIGHTS_CRC {crc:#x}u
static const unsigned char lwc_weights_identity[] = {{
    {identity}
}};
"""

_STAGE = """\
{functions}
static const lwc_step lwc_steps_{i}[] = {{
{steps}
}};

static void lwc_copy_in_{i}(const lwc_frame *f) {{
    (void)f;
{copy_in}
}}

static void lwc_copy_out_{i}(const lwc_frame *f) {{
    (void)f;
{copy_out}
}}
"""

_PROGRAM = """\
static int lwc_supported_{i}(void) {{ return {supported}; }}

static const lwc_stage lwc_stages_{i}[] = {{
{stages}
}};
"""

_EPILOGUE = """\
static const lwc_program lwc_programs[LWC_PROGRAMS] = {{
{programs}
}};

LWC_API const char *LWC(version)(void) {{ return "{version}"; }}

{tensors}
LWC_API int LWC(input_count)(void) {{ return LWC_INPUTS; }}
LWC_API int LWC(output_count)(void) {{ return LWC_OUTPUTS; }}
LWC_API const LWC(tensor) *LWC(inputs)(void) {{ return lwc_inputs; }}
LWC_API const LWC(tensor) *LWC(outputs)(void) {{ return lwc_outputs; }}
"""


def emit(
    programs: Sequence[tuple[Target, Program]],
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    name: str,
    symbol: str,
    threads: int,
    *,
    weights_file: bool = False,
    kernels: str | None = None,
) -> Emitted:
    """The C text of a library.

    Args:
        programs: for each target what runs there, the least demanding first; all compute the same network.
        inputs: of the library; a stage that runs several times takes an equal part of each every time.
        outputs: of the library, likewise.
        name: of the header, without `.h`.
        symbol: prefix of all symbols.
        threads: threads `workspace_bytes` of the result is counted for.
        weights_file: the weights are a file that the caller maps, and not part of the library.
        kernels: their C text, which becomes part of the source, as do embedded weights; None: they are linked to it.
    """
    with_os = programs[0][0].os != "none"
    asks_cpu = any(target.features for target, _ in programs)
    weights = Weights() if kernels is None or weights_file else _Arrays()
    parts = [
        _ProgramText(i, target, program, weights, whole=kernels is not None)
        for i, (target, program) in enumerate(programs)
    ]
    runtime = [
        resources.files("lwc_compiler.runtime").joinpath(f"c/{name}.c").read_text(encoding="utf-8")
        for name in ("program", "pool" if with_os else "alone", *(["cpu"] if asks_cpu else []), "runtime")
    ]
    contents, identity = bytes(weights.data), ""
    slack = max(slack_bytes(target) for target, _ in programs)
    if weights_file:
        contents, identity, place = _mapped(contents, slack)
    elif isinstance(weights, _Arrays):
        place = weights.text("".join(part.text() for part in parts))
    else:
        place = _EMBEDDED.format(
            symbol=symbol,
            alignment=ALIGNMENT_BYTES,
            alignment_bits=ALIGNMENT_BYTES.bit_length() - 1,
            slack=slack,
            bytes=len(contents) + slack,
        )
    source = "\n".join(
        [
            _PROLOGUE.format(
                name=name,
                symbol=symbol,
                inputs=len(inputs),
                outputs=len(outputs),
                alignment=ALIGNMENT_BYTES,
                programs=len(parts),
                os=int(with_os),
                api="" if kernels is not None else '__attribute__((visibility("default")))',
                upper=symbol.upper(),
                weights_file=int(weights_file),
            ),
            place,
            *runtime[:-1],
            *([kernels] if kernels is not None else []),
            runtime[-1],
            *(part.text() for part in parts),
            _EPILOGUE.format(
                programs="\n".join(part.row() for part in parts),
                version=__version__,
                tensors=tensor_table("input", inputs) + "\n" + tensor_table("output", outputs),
            ),
        ]
    )
    needed = [max(part.workspace_bytes(count) for part in parts) for count in (1, threads)]
    return Emitted(source, contents, identity, *needed)


def _mapped(constants: bytes, slack: int) -> tuple[bytes, str, str]:
    """The constants as a file that says what they are, its identity, and the C text that knows it."""
    body = constants + bytes(slack)
    digest = hashlib.sha256(body)
    contents = digest.digest().ljust(ALIGNMENT_BYTES, b"\0") + body
    identity = ", ".join(map(hex, digest.digest()))
    return contents, digest.hexdigest(), _MAPPED.format(bytes=len(contents), crc=zlib.crc32(body), identity=identity)


class Weights:
    """The constants of all programs; equal ones are stored once.

    Attributes:
        data: all of them, each at a 64-byte boundary.
    """

    def __init__(self) -> None:
        self.data = bytearray()
        self._places: dict[bytes, int] = {}

    def offset(self, constant: NDArray[np.generic]) -> int:
        """Where in `data` a constant begins."""
        contents = constant.tobytes()
        if contents not in self._places:
            self._places[contents] = len(self.data)
            self.data += contents
            self.data += bytes(aligned(len(self.data)) - len(self.data))
        return self._places[contents]

    def place(self, constant: NDArray[np.generic]) -> str:
        """C expression of the address of a constant."""
        return f"f->weights + {self.offset(constant)}"


class _Arrays(Weights):
    """The constants as arrays of the source; equal ones are there once."""

    def __init__(self) -> None:
        super().__init__()
        self._arrays: list[str] = []

    def place(self, constant: NDArray[np.generic]) -> str:
        """Name of a constant."""
        contents = constant.dtype.str.encode() + constant.tobytes()
        if contents not in self._places:
            self._places[contents] = len(self._arrays)
            self.data += constant.tobytes()
            name = f"static const {c_type(constant.dtype.name)} lwc_constant_{len(self._arrays)}[] = {{"
            self._arrays.append("\n".join([name, *c_rows(constant), "};"]))
        return f"lwc_constant_{self._places[contents]}"

    def text(self, calls: str) -> str:
        """The arrays that calls name; a constant may be placed for a call that is left out later."""
        named = set(re.findall(r"\blwc_constant_(\d+)\b", calls))
        arrays = [array for number, array in enumerate(self._arrays) if str(number) in named]
        lines = ["#define LWC_CONSTANTS NULL", "#include <stdbool.h>", *arrays]
        return with_math("\n".join(lines))


def workspace_bytes(target: Target, program: Program, threads: int) -> int:
    """Bytes of the workspace of a program for so many threads, without its C text."""
    return _ProgramText(0, target, program, Weights(), whole=False).workspace_bytes(threads)


class _ProgramText:
    """The C text of one program."""

    def __init__(self, index: int, target: Target, program: Program, weights: Weights, *, whole: bool) -> None:
        self._index, self._target = index, target
        self.between_bytes, before = 0, None
        slack = slack_bytes(target)
        self._stages = []
        for number, stage in enumerate(program.stages):
            after = None
            if number < len(program.stages) - 1:
                ((spec, _),) = stage.outputs
                after = self.between_bytes
                self.between_bytes += aligned(stage.runs * tensor_bytes(spec) + slack)
            self._stages.append(_StageText(f"{index}_{number}", stage, target, weights, before, after, whole=whole))
            before = after
        self._shared_bytes = max(stage.arena for stage in self._stages)
        self._thread_bytes = max(stage.thread_bytes for stage in self._stages)

    def workspace_bytes(self, threads: int) -> int:
        """Bytes of the workspace for so many threads, as `lwc_workspace_bytes` of the runtime counts them."""
        together = self._shared_bytes + threads * self._thread_bytes
        apart = (min(threads, s.runs) * (s.arena + s.thread_bytes) for s in self._stages if s.runs > 1)
        return self.between_bytes + max(together, *apart, 0)

    def row(self) -> str:
        """The program as an entry of the table of programs."""
        i, steps = self._index, sum(stage.steps for stage in self._stages)
        return (
            f"    {{{c_string(self._target.name)}, lwc_supported_{i}, lwc_stages_{i}, {len(self._stages)}, {steps}, "
            f"{self.between_bytes}, {self._shared_bytes}, {self._thread_bytes}}},"
        )

    def text(self) -> str:
        """What the entry refers to."""
        return "".join(stage.text() for stage in self._stages) + _PROGRAM.format(
            i=self._index,
            supported=" && ".join(f"LWC_HAS_{f}" for f in sorted(self._target.features)) or "1",
            stages="\n".join(stage.row() for stage in self._stages),
        )


class _StageText:
    """The C text of one stage.

    Args:
        name: of the stage in C names.
        stage: the stage.
        target: what it runs on.
        weights: where its constants go.
        before: where in the memory between stages its input lies; None: it reads the graph inputs.
        after: the same of its output.
        whole: the kernels are part of the source.

    Attributes:
        arena: bytes of the workspace that all threads share.
        thread_bytes: bytes of the workspace that each thread has for itself.
        runs: of the stage.
        steps: how many there are.
    """

    def __init__(
        self,
        name: str,
        stage: Stage,
        target: Target,
        weights: Weights,
        before: int | None,
        after: int | None,
        *,
        whole: bool,
    ) -> None:
        self._whole = whole
        self._name, self._stage, self.runs, self.steps = name, stage, stage.runs, len(stage.steps)
        self._apart: dict[Ref, str] = {}  # buffers outside of the workspace's own part of the stage
        self._inputs = [] if before is not None else list(enumerate(stage.inputs))
        self._outputs = [] if after is not None else list(enumerate(stage.outputs))
        for offset, ((spec, ref), *_) in ((before, stage.inputs), (after, stage.outputs)):
            if offset is not None:
                self._apart[ref] = f"f->between + {offset} + f->run * {tensor_bytes(spec)}"
        slack = slack_bytes(target)
        if target.os == "none" and not slack:
            self._use_the_callers_memory()
        self._offsets, self.arena = plan_workspace(stage, [r for r in self._apart if isinstance(r, BufferRef)], slack)
        self._constants = [weights.place(constant) for constant in stage.constants]
        self.thread_bytes = max(
            (aligned(k.thread_bytes + slack) for k in stage.kernels.values() if k.thread_bytes), default=0
        )

    def _use_the_callers_memory(self) -> None:
        """Inputs are read, and outputs written, where the caller has them: a copy would take memory."""
        for number, (spec, ref) in self._inputs:
            self._apart[ref] = f"(const unsigned char *)f->inputs[{number}] + f->run * {tensor_bytes(spec)}"
        self._inputs = []
        copied: list[tuple[int, tuple[TensorSpec, Ref]]] = []
        for number, (spec, place) in self._outputs:
            if isinstance(place, BufferRef) and place not in self._apart:
                self._apart[place] = f"(unsigned char *)f->outputs[{number}] + f->run * {tensor_bytes(spec)}"
            else:
                copied.append((number, (spec, place)))
        self._outputs = copied

    def row(self) -> str:
        """The stage as an entry of the table of stages."""
        i = self._name
        return (
            f"    {{lwc_steps_{i}, {self.steps}, {self.runs}, {self.arena + self.thread_bytes}, lwc_copy_in_{i}, "
            f"lwc_copy_out_{i}}},"
        )

    def text(self) -> str:
        """What the entry refers to."""
        stage = self._stage
        functions = []
        for symbol, kernel in () if self._whole else stage.kernels.items():
            pointers = ["const void *"] * (len(kernel.func.params) - 2)
            functions.append(f"void {symbol}({', '.join(pointers)}, int32_t, int32_t);")
        functions += [self._function(number, step) for number, step in enumerate(stage.steps)]
        return _STAGE.format(
            i=self._name,
            functions="\n".join(functions),
            steps="\n".join(self._step(n, step) for n, step in enumerate(stage.steps)) or "    {NULL, 0, 0, 1, 0},",
            copy_in="\n".join(
                f"    memcpy({self._place(ref)}, (const char *)f->inputs[{n}] + f->run * {tensor_bytes(spec)}, "
                f"{tensor_bytes(spec)});"
                for n, (spec, ref) in self._inputs
                if tensor_bytes(spec)
            ),
            copy_out="\n".join(
                f"    memcpy((char *)f->outputs[{n}] + f->run * {tensor_bytes(spec)}, {self._place(ref)}, "
                f"{tensor_bytes(spec)});"
                for n, (spec, ref) in self._outputs
                if tensor_bytes(spec)
            ),
        )

    def _function(self, number: int, step: tuple[Call, ...]) -> str:
        head = f"static void lwc_step_{self._name}_{number}(const lwc_frame *f, int32_t t0, int32_t t1, int32_t thread)"
        if len(step) == 1:
            return f"{head} {{\n    (void)f, (void)thread;\n    {self._call(step[0], 't0', 't1')}\n}}"
        calls = []
        for call in step:
            kernel = self._stage.kernels[call.symbol]
            part = kernel.tiles // kernel.bands
            calls.append(f"        {self._call(call, f'band * {part}', f'(band + 1) * {part}')}")
        return "\n".join(
            [
                f"{head} {{",
                "    (void)f, (void)thread;",
                "    for (int32_t band = t0; band < t1; band++) {",
                *calls,
                "    }",
                "}",
            ]
        )

    def _call(self, call: Call, first: str, last: str) -> str:
        args = [self._place(ref) for ref in call.args]
        kernel = self._stage.kernels[call.symbol]
        if kernel.thread_bytes:
            args.append(f"f->workspace + {self.arena} + (size_t)thread * {self.thread_bytes}")
        if self._whole:  # the kernels' parameters have types, and are not for reading alone
            types = [c_type(str(param.ty.element_type.dtype)) for param in kernel.func.params[:-2]]
            args = [f"({dtype} *)({arg})" for dtype, arg in zip(types, args, strict=False)]
        return f"{call.symbol}({', '.join([*args, first, last])});"

    def _step(self, number: int, step: tuple[Call, ...]) -> str:
        kernel = self._stage.kernels[step[0].symbol]
        tiles = kernel.tiles if len(step) == 1 else kernel.bands
        nanoseconds = sum(call.nanoseconds for call in step)
        threads = max(1, min(tiles, _MAX_THREADS, int(nanoseconds / _NANOSECONDS_A_THREAD)))
        passes, back = step[-1].passes, step[-1].back
        return f"    {{lwc_step_{self._name}_{number}, {tiles}, {threads}, {passes}, {back}}},"

    def _place(self, ref: Ref) -> str:
        if isinstance(ref, BufferRef):
            place = self._apart.get(ref.whole, f"f->workspace + {self._offsets[ref.index]}")
            if ref.first:
                place += f" + {ref.first}"
            return f"{place} + {ref.stride} * (ptrdiff_t)f->pass" if ref.stride else place
        return self._apart.get(ref, self._constants[ref.index])


def tensor_bytes(spec: TensorSpec) -> int:
    """Bytes of a dense tensor."""
    return int(np.prod(spec.shape, dtype=np.int64)) * np.dtype(spec.dtype).itemsize


def tensor_table(direction: str, specs: Iterable[TensorSpec]) -> str:
    """The C table of the inputs or outputs."""
    lines, rows = [], []
    for i, spec in enumerate(specs):
        dims = ", ".join(map(str, spec.shape)) or "0"
        lines.append(f"static const int64_t lwc_{direction}_dims_{i}[] = {{{dims}}};")
        rows.append(f'    {{{c_string(spec.name)}, "{spec.dtype}", {len(spec.shape)}, lwc_{direction}_dims_{i}}},')
    return "\n".join([*lines, f"static const LWC(tensor) lwc_{direction}s[] = {{", *rows, "};"])
