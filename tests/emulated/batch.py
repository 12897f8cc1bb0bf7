"""Many plans in one program for another machine: linked once, started once, compared here.

A case is an image of its memory: buffers at 64-byte boundaries between guards, inputs and constants filled in, all else
NaNs. The program reads the image, runs the plan on it and writes it back, which shows the result and every access
outside of a buffer.
"""

from contextlib import closing
from dataclasses import dataclass, field

import numpy as np
import pytest
from harness import Case

from lwc_compiler.codegen.kernel_build import compile_kernels
from lwc_compiler.codegen.link import find_compiler, link_program
from lwc_compiler.errors import ToolchainError
from lwc_compiler.kernels.kernel import ALIGNMENT_BYTES, SLACK_BYTES, Constant, Input, Moving, Output, Plan, Scratch
from lwc_compiler.runtime.elsewhere import Qemu
from lwc_compiler.targets import find_target
from lwc_compiler.targets.target import Target

# One target for each class of processors under Linux.
TARGETS = [find_target(name) for name in ("aarch64", "neoverse-v1", "cortex-a7", "cortex-a9", "riscv64", "rv64gcv")]

# Both are NaNs as float32, as in the harness of the kernels.
_READ_ONLY = 0xFFFFFFFF
_WRITABLE = 0xFFA5A5A5
_GUARD_BYTES = 512
_SECONDS = 300

_MAIN = """\
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

/* The second half of the tiles first, when they are split. */
#define CALL(kernel, middle, tiles, ...) \\
    do { \\
        if (split) { kernel(__VA_ARGS__, middle, tiles); kernel(__VA_ARGS__, 0, middle); } \\
        else kernel(__VA_ARGS__, 0, tiles); \\
    } while (0)

DECLARATIONS

CASES

static const struct { void (*run)(unsigned char *, int); size_t bytes; } cases[] = {
ROWS
};

int main(int argc, char **argv) {
    if (argc != 3) return 2;
    FILE *in = fopen(argv[1], "rb"), *out = fopen(argv[2], "wb");
    if (!in || !out) return 3;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        unsigned char *memory = aligned_alloc(64, cases[i].bytes);
        for (int split = 0; split < 2; split++) {
            if (split && fseek(in, -(long)cases[i].bytes, SEEK_CUR) != 0) return 4;
            if (!memory || fread(memory, 1, cases[i].bytes, in) != cases[i].bytes) return 5;
            fprintf(stderr, "case %zu, split %d\\n", i, split);
            cases[i].run(memory, split);
            if (fwrite(memory, 1, cases[i].bytes, out) != cases[i].bytes) return 6;
        }
        free(memory);
    }
    return fclose(out);
}
"""


@dataclass
class Image:
    """The memory of a case."""

    parts: list[np.ndarray] = field(default_factory=list)
    bytes: int = 0
    writable: list[slice] = field(default_factory=list)
    output: slice = field(default_factory=lambda: slice(0))

    def place(self, size: int, poison: int, contents: np.ndarray | None = None) -> int:
        """Offset of a buffer of so many bytes; without contents it may be written."""
        start = self.bytes + _GUARD_BYTES
        whole = -(-(_GUARD_BYTES + size + SLACK_BYTES) // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
        part = np.full(whole // 4, poison, np.uint32).view(np.uint8)
        if contents is None:
            self.writable.append(slice(start, start + size))
        else:
            part[_GUARD_BYTES : _GUARD_BYTES + size] = np.ascontiguousarray(contents).reshape(-1).view(np.uint8)
        self.parts.append(part)
        self.bytes += whole
        return start

    @property
    def memory(self) -> np.ndarray:
        return np.concatenate(self.parts)


@dataclass
class Result:
    """What came back of a case: its memory after the whole plan, and after one whose tiles were split."""

    image: Image
    whole: np.ndarray
    split: np.ndarray

    def check_bounds(self) -> None:
        """Nothing was written but buffers that may be."""
        before = self.image.memory
        for after in (self.whole, self.split):
            changed = before != after
            for part in self.image.writable:
                changed[part] = False
            assert not changed.any(), f"bytes {np.flatnonzero(changed)[:4]} of {changed.size} were overwritten"

    def check(self, case: Case) -> None:
        """The result is float64's to 1e-5 of its scale, however tiles were split, and nothing else was written."""
        whole, split = self.outputs(case.expected.shape)
        error = np.abs(whole - case.expected)
        assert np.isfinite(error).all(), f"{np.isnan(error).sum()} of {error.size} results are not finite"
        assert error.max() <= 1e-5 * case.scale, f"error {error.max() / (case.scale or 1):.2g} of the scale"
        assert np.array_equal(whole.view(np.uint32), split.view(np.uint32))
        self.check_bounds()

    def outputs(self, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
        """The output of both."""
        whole, split = (
            memory[self.image.output].view(np.float32).reshape(shape) for memory in (self.whole, self.split)
        )
        return whole, split


@dataclass
class Batch:
    """All cases of a target, run."""

    plans: dict[str, Plan]
    results: dict[str, Result]


def run_batch(cases: list[Case], target: Target) -> Batch:
    """Plans, compiles and runs the cases; the test is skipped where there is no emulator."""
    try:
        place = Qemu(target)
    except ToolchainError as error:
        pytest.skip(str(error))
    with closing(place):
        plans = {case.name: case.plan(target) for case in cases}
        images, kernels, functions, declarations = {}, {}, [], []
        for number, case in enumerate(cases):
            image = images[case.name] = Image()
            lines = _write(case, plans[case.name], image, kernels, declarations)
            functions.append(f"static void case_{number}(unsigned char *m, int split) {{\n{lines}\n}}")
        rows = [f"    {{case_{i}, {image.bytes}}}," for i, image in enumerate(images.values())]
        source = _MAIN
        for word, texts in (("DECLARATIONS", declarations), ("CASES", functions), ("ROWS", rows)):
            source = source.replace(word, "\n".join(texts), 1)
        files = {"kernels.o": compile_kernels(kernels, target.llvm()), "main.c": source.encode()}
        place.put("program", link_program(find_compiler(target, static=True), files))
        place.put("images", b"".join(image.memory.tobytes() for image in images.values()))
        ended = place.run("program", ["images", "results"], _SECONDS)
        names = dict(enumerate(images))
        assert ended.status == 0, f"ended with {ended.status}: {ended.err[-200:]}, of {names}"
        memory = np.frombuffer(place.get("results"), np.uint8)
    results, start = {}, 0
    for name, image in images.items():
        middle, end = start + image.bytes, start + 2 * image.bytes
        results[name] = Result(image, memory[start:middle], memory[middle:end])
        start = end
    assert start == memory.size
    return Batch(plans, results)


def _write(case: Case, plan: Plan, image: Image, kernels: dict, declarations: list[str]) -> str:
    """Fills the image; gives the calls of the plan."""
    inputs = [image.place(x.nbytes, _READ_ONLY, x) for x in case.inputs]
    scratch = [image.place(size, _WRITABLE) for size in plan.scratch]
    output = image.place(4 * case.expected.size, _WRITABLE)
    image.output = slice(output, output + 4 * case.expected.size)
    lines = []
    for number, step in enumerate(plan.steps):
        symbol = f"k{len(kernels)}"
        kernels[symbol] = step.kernel
        offsets, moved = [], []
        for operand in step.args:
            if isinstance(operand, Moving):
                moved.append(f" + {operand.first} + {operand.stride} * (ptrdiff_t)pass")
                operand = operand.buffer
            else:
                moved.append("")
            if isinstance(operand, Constant):
                offsets.append(image.place(operand.array.nbytes, _READ_ONLY, operand.array))
            elif isinstance(operand, Input):
                offsets.append(inputs[operand.index])
            elif isinstance(operand, Scratch):
                offsets.append(scratch[operand.index])
            else:
                assert operand == Output(0)
                offsets.append(output)
        if step.kernel.thread_bytes:
            offsets.append(image.place(step.kernel.thread_bytes, _WRITABLE))
            moved.append("")
        tiles = step.kernel.tiles
        arguments = ", ".join(f"m + {offset}{further}" for offset, further in zip(offsets, moved, strict=True))
        lines.append(f"    CALL({symbol}, {(tiles + 1) // 3}, {tiles}, {arguments});")
        if step.passes > 1:
            lines[number - step.back] = (
                f"    for (pass = 0; pass < {step.passes}; pass++) {{\n{lines[number - step.back]}"
            )
            lines[-1] += "\n    }\n    pass = 0;"
        declarations.append(f"void {symbol}({'void *, ' * len(offsets)}int32_t, int32_t);")
    return "\n".join(["    int pass = 0; (void)pass;", *lines])
