"""What a C developer finds beside a library: an example that checks itself, CMake files and a README."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from importlib import resources
from typing import TYPE_CHECKING

import numpy as np

from lwc_compiler.codegen.c_text import c_rows, c_type, with_math
from lwc_compiler.codegen.footprint import footprint
from lwc_compiler.targets import find_target
from lwc_compiler.version import __version__

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from lwc_compiler.codegen.result import Lowered, TensorSpec
    from lwc_compiler.runtime.manifest import Rounding

# A test vector of so many bytes is C text; a larger one is a file, where there are files.
_TEXT_BYTES = 64 << 10


@dataclass(frozen=True)
class TestVector:
    """Inputs, and what they have to give.

    Attributes:
        inputs: in the order of the library's.
        expected: outputs in the order of the library's.
        tolerances: for each output, how far a number may be from the expected one.
    """

    __test__ = False  # not a test, whatever its name says

    inputs: tuple[NDArray[np.generic], ...]
    expected: tuple[NDArray[np.generic], ...]
    tolerances: tuple[float, ...]


def bundle_files(lowered: Lowered, vector: TestVector, rounding: Rounding | None = None) -> dict[str, bytes]:
    """File name -> contents: `example.c` with its test vector, the files of CMake, and `README.md`.

    Args:
        lowered: the library.
        vector: of the library.
        rounding: what narrower weights change; None where all are float32.
    """
    target = find_target(lowered.target)
    with_os = target.os != "none"
    arrays = [*vector.inputs, *vector.expected]
    as_file = with_os and sum(array.nbytes for array in arrays) > _TEXT_BYTES
    weights = lowered.weights is not None
    kept = {
        "printing": with_os,
        "source": lowered.source is not None,
        "shared": lowered.library is not None,
        "vector_file": as_file,
        "weights": weights,
        "rounding": rounding is not None,
        "stack": lowered.stack is not None,
        "mapped_file": weights and with_os,
        "weights_address": weights and not with_os,
        "arguments": as_file or (weights and with_os),
    }
    texts = {
        "name": lowered.name,
        "symbol": lowered.symbol,
        "upper": lowered.symbol.upper(),
        "version": __version__,
        "target": target.name,
        "library": target.library_file(lowered.name),
        "description": target.description,
        "weights_argument": "weights, " if weights else "",
        "weights_argument_number": "2" if as_file else "1",
        **_example_texts(lowered),
        **_readme_texts(lowered),
        **_rounding_texts(lowered, rounding),
    }
    files = {
        "example.c": "example.c",
        "CMakeLists.txt": "CMakeLists.txt",
        "Config.cmake": f"{lowered.symbol}Config.cmake",
        "README.md": "README.md",
    }
    folder = resources.files("lwc_compiler.codegen").joinpath("templates")
    made = {
        name: fill(folder.joinpath(template).read_text(encoding="utf-8"), texts, kept).encode()
        for template, name in files.items()
    }
    made["test_vector.h"] = _vector_text(vector, as_file=as_file).encode()
    if as_file:
        made["test_vector.bin"] = b"".join(array.tobytes() for array in arrays)
    return made


def fill(template: str, texts: Mapping[str, str], kept: Mapping[str, bool]) -> str:
    """A template with `@name@` replaced by texts; of `@if name`, `@else` and `@end` lines one side is kept."""
    lines, keeping = [], [True]
    for line in template.splitlines():
        if line.startswith("@if "):
            keeping.append(kept[line.removeprefix("@if ")])
        elif line == "@else":
            keeping[-1] = not keeping[-1]
        elif line == "@end":
            keeping.pop()
        elif all(keeping):
            lines.append(line)
    text = "\n".join(lines) + "\n"
    for name, value in texts.items():
        text = text.replace(f"@{name}@", value)
    return text


def _example_texts(lowered: Lowered) -> dict[str, str]:
    inputs, outputs = range(len(lowered.inputs)), range(len(lowered.outputs))
    loaded = [f"test_input_{i}" for i in inputs] + [f"test_expected_{i}" for i in outputs]
    types = sorted({c_type(spec.dtype) for spec in lowered.outputs})
    return {
        "outputs": "\n".join(
            f"static {c_type(s.dtype)} output_{i}[{_length(s)}];" for i, s in enumerate(lowered.outputs)
        ),
        "comparisons": "\n".join(_COMPARISON.format(type=name) for name in types),
        "input_names": ", ".join(f"test_input_{i}" for i in inputs) or "NULL",
        "output_names": ", ".join(f"output_{i}" for i in outputs),
        "loads": "".join(f" || !load(file, {name}, sizeof {name})" for name in loaded),
        "checks": "\n".join(
            f"    wrong += wrong_{c_type(spec.dtype)}(output_{i}, test_expected_{i}, {math.prod(spec.shape)}, "
            f"TEST_TOLERANCE_{i});"
            for i, spec in enumerate(lowered.outputs)
        ),
        "elements": str(sum(math.prod(spec.shape) for spec in lowered.outputs)),
    }


_COMPARISON = """\
/* How many numbers are further from the expected ones than the tolerance. */
static size_t wrong_{type}(const {type} *actual, const {type} *expected, size_t count, double tolerance) {{
    size_t wrong = 0;
    for (size_t i = 0; i < count; i++) {{
        const double a = (double)actual[i], e = (double)expected[i];
        const int same = a == e || (a != a && e != e);
        if (!same && !(a - e <= tolerance && e - a <= tolerance)) wrong++;
    }}
    return wrong;
}}"""


def _readme_texts(lowered: Lowered) -> dict[str, str]:
    upper, target = lowered.symbol.upper(), find_target(lowered.target)
    rows = []
    if lowered.archive is not None and target.os != "macos":  # whose objects are not ELF
        sizes = footprint(lowered.archive)
        constants = "constants" if lowered.weights is not None else "weights and other constants"
        rows += [
            f"| flash: code | {sizes.code:,} |",
            f"| flash: {constants} | {sizes.constants:,} |",
            f"| RAM, and flash for its first contents: tables of pointers | {sizes.data:,} |",
            f"| RAM: static | {sizes.zeros:,} |",
        ]
    elif lowered.weights is None:
        rows.append(f"| flash: weights | {lowered.weight_bytes:,} |")
    if lowered.weights is not None:
        rows.append(f"| flash or a file: weights | {len(lowered.weights):,} |")
    rows.append(f"| RAM: workspace, one thread | {lowered.least_workspace_bytes:,} |")
    if lowered.threads > 1:
        rows.append(f"| RAM: workspace, {lowered.threads} threads | {lowered.workspace_bytes:,} |")
    if lowered.stack is not None:
        beside = ", ".join(f"`{name}`" for name in lowered.stack.beside)
        rows.append(
            f"| RAM: stack of a run{f', without that of {beside}' if beside else ''} | {lowered.stack.bytes:,} |"
        )
    if lowered.source is not None:
        build = f"cc -std=c99 -O2 example.c {lowered.name}.c -lm -o example && ./example && echo right"
    elif target.os == "none":
        build = (
            f"$CC $CFLAGS -std=c99 -O2 example.c lib{lowered.name}.a -lm -o example.elf"
            "   # with the startup code and the linker script of the board"
        )
    else:
        build = f"cc -std=c99 -O2 example.c lib{lowered.name}.a -lm -pthread -o example && ./example"
    groups = (("INPUT", lowered.inputs), ("OUTPUT", lowered.outputs))
    names = [(c_type(s.dtype), direction, i) for direction, specs in groups for i, s in enumerate(specs)]
    return {
        "sizes": "\n".join(rows),
        "macs": f"{sum(layer.flops for layer in lowered.layers) // 2:,}",
        "dense_macs": f"{sum(layer.dense_flops for layer in lowered.layers) // 2:,}",
        "build": build,
        "declarations": "\n".join(
            f"static {kind} {direction.lower()}_{i}[{upper}_{direction}_{i}_ELEMENTS];" for kind, direction, i in names
        ),
        "call_inputs": ", ".join(f"input_{i}" for i in range(len(lowered.inputs))) or "NULL",
        "call_outputs": ", ".join(f"output_{i}" for i in range(len(lowered.outputs))),
    }


def _rounding_texts(lowered: Lowered, rounding: Rounding | None) -> dict[str, str]:
    """What the README says of narrower weights."""
    if rounding is None:
        return {}
    narrow = [layer for layer in lowered.layers if layer.float32_bytes is not None]
    counts = Counter(layer.weight_type for layer in narrow)
    return {
        "rounded": ", ".join(f"{count} as {kind}" for kind, count in sorted(counts.items())) or "none narrower",
        "layers": str(len(lowered.layers)),
        "rounded_bytes": f"{sum(layer.bytes for layer in narrow):,}",
        "float32_bytes": f"{sum(layer.float32_bytes or 0 for layer in narrow):,}",
        "rounding_error": f"{rounding.worst:.2g}",
        "rounding_source": rounding.measured_with,
    }


def _length(spec: TensorSpec) -> int:
    return max(1, math.prod(spec.shape))


def _vector_text(vector: TestVector, *, as_file: bool) -> str:
    """`test_vector.h`: the numbers, or, where they are read from a file, room for them."""
    lines = ["/* The test vector of example.c. */", "#include <stdbool.h>", "#include <stdint.h>", ""]
    groups = (("input", vector.inputs), ("expected", vector.expected))
    for name, array in ((f"test_{kind}_{i}", a) for kind, arrays in groups for i, a in enumerate(arrays)):
        kind = c_type(array.dtype.name)
        if as_file:
            lines.append(f"static {kind} {name}[{max(1, array.size)}];")
        else:
            lines += [f"static const {kind} {name}[] = {{", *c_rows(array), "};"]
    lines += [f"#define TEST_TOLERANCE_{i} {tolerance:.9g}" for i, tolerance in enumerate(vector.tolerances)]
    return with_math("\n".join(lines)) + "\n"
