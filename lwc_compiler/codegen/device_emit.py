"""The C source of an artifact for GPUs: tables of launches, and code, around the runtime `runtime/c/cuda.c`."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources
from typing import TYPE_CHECKING

from lwc_compiler.codegen.c_text import c_string
from lwc_compiler.codegen.device_build import written_parameters
from lwc_compiler.codegen.emit import Weights, tensor_bytes, tensor_table
from lwc_compiler.codegen.memory import plan_workspace
from lwc_compiler.codegen.program import BufferRef
from lwc_compiler.kernels.kernel import ALIGNMENT_BYTES, SLACK_BYTES
from lwc_compiler.version import __version__

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lwc_compiler.codegen.cuda_compiler import Code
    from lwc_compiler.codegen.program import Ref, Stage
    from lwc_compiler.codegen.result import TensorSpec
    from lwc_compiler.targets.target import Target

_LOAD_BYTES = 16  # of the longest load or store of a thread


@dataclass(frozen=True)
class DeviceSource:
    """C text and data of a library.

    Attributes:
        files: file name -> contents: the source and what it includes but for the header, `<symbol>.h`.
        weight_bytes: of the constants.
        arena_bytes: of the GPU's memory for what is computed.
    """

    files: dict[str, bytes]
    weight_bytes: int
    arena_bytes: int


_PROLOGUE = """\
#include "{symbol}.h"

#define LWC(name) {symbol}_##name
#define LWC_API __attribute__((visibility("default")))

#define LWC_INPUTS {inputs}
#define LWC_OUTPUTS {outputs}
#define LWC_CODES {codes}
#define LWC_KERNELS {kernels}
#define LWC_LAUNCHES {launches}
#define LWC_PLACES {places}
#define LWC_OPERANDS {operands} /* of a launch, at most */
#define LWC_LOAD_BYTES {load_bytes} /* that a kernel reads or writes at a time, at most */
#define LWC_WEIGHT_BYTES {weight_bytes}ull
#define LWC_ARENA_BYTES {arena_bytes}ull
#define LWC_CUDA {driver}
#define LWC_CUDA_NAME "{driver_name}"

"""

_BLOB = """\
__asm__(
    ".section .rodata\\n"
    ".balign {alignment}\\n"
    ".hidden {symbol}_{name}\\n"
    ".globl {symbol}_{name}\\n"
    "{symbol}_{name}:\\n"
    ".incbin \\"{file}\\"\\n"
    ".zero {alignment}\\n"
    ".previous\\n");
extern const unsigned char LWC({name})[];
"""

_EPILOGUE = """\
static const lwc_code lwc_codes[LWC_CODES] = {{
{codes}
}};

static const char *const lwc_kernels[LWC_KERNELS + 1] = {{
{kernels}
}};

static const lwc_place lwc_places[LWC_PLACES + 1] = {{
{places}
}};

static const lwc_launch lwc_launches[LWC_LAUNCHES + 1] = {{
{launches}
}};

static const lwc_place lwc_tensor_places[LWC_TENSORS + 1] = {{
{tensor_places}
}};

LWC_API const char *LWC(version)(void) {{ return "{version}"; }}
LWC_API const char *LWC(target)(void) {{ return {target}; }}

{tensors}
LWC_API int LWC(input_count)(void) {{ return LWC_INPUTS; }}
LWC_API int LWC(output_count)(void) {{ return LWC_OUTPUTS; }}
LWC_API const LWC(tensor) *LWC(inputs)(void) {{ return lwc_inputs; }}
LWC_API const LWC(tensor) *LWC(outputs)(void) {{ return lwc_outputs; }}
"""


def emit_device(
    stage: Stage,
    codes: Sequence[Code],
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    symbol: str,
    target: Target,
) -> DeviceSource:
    """The C text of a library.

    Args:
        stage: the network on the whole batch; its kernels have launches.
        codes: the same kernels for every architecture, machine code in ascending order and then PTX.
        inputs: of the library.
        outputs: of the library.
        symbol: prefix of all symbols.
        target: what the library is for.
    """
    weights = Weights()
    constants = [weights.offset(constant) for constant in stage.constants]
    offsets, arena = plan_workspace(stage)
    weight_bytes = len(weights.data) + SLACK_BYTES
    driver = max((code.driver for code in codes), default=0)
    tensors = _tensor_numbers(stage)

    def place(ref: Ref, size: int = 0) -> str:
        if not isinstance(ref, BufferRef):
            return f"{{LWC_WEIGHTS, {constants[ref.index]}, {size}}},"
        base = f"LWC_TENSOR + {tensors[ref.whole]}" if ref.whole in tensors else "LWC_ARENA"
        return f"{{{base}, {offsets[ref.index] + ref.first}, {size}}},"

    numbers = {name: number for number, name in enumerate(stage.kernels)}
    places: list[str] = []
    launches = []
    for call in stage.calls:
        launch = stage.kernels[call.symbol].launch
        assert launch is not None
        grid, block = (f"{{{', '.join(map(str, sizes))}}}" for sizes in (launch.grid, launch.block))
        numbers_of = f"{launch.dynamic_bytes}, {int(launch.overlaps)}, {len(places)}, {len(call.args)}"
        launches.append(f"    {{{numbers[call.symbol]}, {grid}, {block}, {numbers_of}}},")
        places += [place(ref) for ref in call.args]
    images = {f"code_{code.architecture}{'_ptx' * code.ptx}": code for code in codes}
    prologue = _PROLOGUE.format(
        symbol=symbol,
        inputs=len(inputs),
        outputs=len(outputs),
        codes=len(codes),
        kernels=len(numbers),
        launches=len(launches),
        places=len(places),
        operands=max((len(call.args) for call in stage.calls), default=1),
        weight_bytes=weight_bytes,
        arena_bytes=max(arena, ALIGNMENT_BYTES),
        driver=driver,
        driver_name=f"{driver // 1000}.{driver % 1000 // 10}",
        load_bytes=_LOAD_BYTES,
    )
    files = {"weights.bin": bytes(weights.data) + bytes(SLACK_BYTES)}
    files |= {f"{name}.bin": code.image for name, code in images.items()}
    blobs = [
        _BLOB.format(symbol=symbol, name=file.removesuffix(".bin"), file=file, alignment=ALIGNMENT_BYTES)
        for file in files
    ]
    epilogue = _EPILOGUE.format(
        codes="\n".join(f"    {{{c.architecture}, {int(c.ptx)}, LWC({name})}}," for name, c in images.items()),
        kernels="\n".join(f"    {c_string(name)}," for name in numbers) or "    NULL",
        places="\n".join(f"    {text}" for text in places) or "    {0, 0, 0}",
        launches="\n".join(launches) or "    {0, {0, 0, 0}, {0, 0, 0}, 0, 0, 0, 0}",
        tensor_places="\n".join(
            f"    {place(ref, tensor_bytes(spec))}" for spec, ref in (*stage.inputs, *stage.outputs)
        ),
        version=__version__,
        target=c_string(target.name),
        tensors=tensor_table("input", inputs) + "\n" + tensor_table("output", outputs),
    )
    texts = resources.files("lwc_compiler.runtime").joinpath("c")
    runtime = [texts.joinpath(name).read_text(encoding="utf-8") for name in ("cuda_driver.c", "cuda.c")]
    files["program.c"] = "\n".join([prologue, *blobs, *runtime, epilogue]).encode()
    return DeviceSource(files, weight_bytes, max(arena, ALIGNMENT_BYTES))


def _tensor_numbers(stage: Stage) -> dict[BufferRef, int]:
    """Buffers that kernels have where the caller has them -> the input, or else the first output, that each is."""
    written = {
        call.args[number] for call in stage.calls for number in written_parameters(stage.kernels[call.symbol].func)
    }
    written = {ref.whole for ref in written if isinstance(ref, BufferRef)}
    assert not any(ref in written for _, ref in stage.inputs), "a kernel writes an input of the network"
    numbers: dict[BufferRef, int] = {}
    for number, (_, ref) in enumerate((*stage.inputs, *stage.outputs)):
        if isinstance(ref, BufferRef):
            numbers.setdefault(ref, number)
    return numbers
