"""Predicts the speed of our inner loops on Arm cores with models of their pipelines; no board is needed.

Run: python -m benchmarks.arm_inner_loops [--cores cortex-a72 ...] [--xnnpack DIR] [--output DIR]

Every kernel is the one that lwc picks for the layer and the core. Its hot loop, the one with the most sums in
registers, is cut out of the machine code and given to llvm-mca, which assumes that every load hits the level-1 cache
and every branch is guessed right. For Cortex-A53, of which llvm-mca has a wrong picture, `cortex_a53.py` counts.
Figures are cycles for each useful multiply-add, beside the limit of the core's multiply-add units in the same model (a
loop of independent vector multiply-adds) and the fastest of XNNPACK's sparse kernels for such weights: single ones, or
blocks of 4 output channels. `--xnnpack` names a checkout of XNNPACK's source; its kernels are compiled by zig for the
same core. Results go to results/arm-inner-loops.json and .md. It needs llvm-mca and llvm-objdump, of version 19 if
possible.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import cortex_a53
from benchmarks.kernels import LAYERS, plan, pruned
from benchmarks.outcome import RESULTS, write_outcome
from lwc_compiler.codegen.kernel_build import compile_kernels
from lwc_compiler.kernels.choice import Candidate, Task, predicted
from lwc_compiler.kernels.kernel import Plan
from lwc_compiler.targets import find_target

CORES = ("cortex-a53", "cortex-a72", "cortex-a76", "neoverse-n1")
# LLVM has no model of Cortex-A76 and takes Cortex-A57's, which multiplies half as much in a cycle; Neoverse N1 is built
# like Cortex-A76.
_MODELS = {"cortex-a76": "neoverse-n1"}
_REPEATS = 200
_INSTRUCTION = re.compile(r"\s*([0-9a-f]+):\s+(.*)")
_BRANCH = re.compile(r"(?:b\.\w+|cbn?z|tbn?z|b)\s[^<]*?0x([0-9a-f]+) <")
_MULTIPLY_ADD = re.compile(r"(?:fmla\s+(v\d+)\.([24])s|(?:fmla|fmadd)\s+(s\d+))")
_STUB = "typedef struct pthreadpool* pthreadpool_t;\n"  # what XNNPACK's headers want of pthreadpool's


@dataclass(frozen=True)
class Case:
    """A loop that is measured.

    Attributes:
        name: what it computes.
        layer: part of the name of one of `benchmarks.kernels`'s layers.
        density: share of weights kept.
        block: output channels that zeros come in blocks of.
        format: how the weights are stored, or what computes them.
        peers: how the names of XNNPACK's kernels for such weights end, before what they need; none: it has no such.
        goal: the most that the loop may take, as a multiple of the limit; 0: only XNNPACK's is to be reached.
    """

    name: str
    layer: str
    density: float
    block: int
    format: str
    peers: str = ""
    goal: float | None = None


CASES = (
    Case("4x1 blocks, 1x1", "512-128 1x1/1 28", 0.1, 4, "block4", "x4", 1.15),
    Case("4x1 blocks, 3x3", "128-128 3x3/1 28", 0.1, 4, "block4", "", 1.15),
    Case("4x1 blocks, 3x3, small plane", "512-512 3x3/1 7", 0.1, 4, "block4", "", 1.15),
    Case("single weights, 1x1", "512-128 1x1/1 28", 0.1, 1, "csr", "x1", 0),
    Case("single weights, 1x1, small plane", "2048-512 1x1/1 7", 0.1, 1, "csr", "x1", 0),
    Case("single weights, 3x3", "128-128 3x3/1 28", 0.1, 1, "csr"),
    Case("dense, 1x1", "512-128 1x1/1 28", 1.0, 1, "dense"),
    Case("depthwise, 3x3", "256-256 3x3/1 28 groups", 1.0, 1, "depthwise"),
    Case("4x1 blocks, fully connected", "1x4096x4096", 0.1, 4, "block4"),
    Case("single weights, fully connected", "1x4096x4096", 0.1, 1, "csr"),
    Case("dense, fully connected", "1x4096x4096", 1.0, 1, "dense"),
)


def tool(name: str) -> str:
    """The newest version of one of LLVM's tools; ends the program where there is none."""
    found = [path for path in (shutil.which(f"{name}-19"), shutil.which(name)) if path]
    if not found:
        sys.exit(f"skipped: there is no {name} on the PATH (Debian: llvm-19)")
    return found[0]


def loops(code: bytes) -> list[list[str]]:
    """The innermost loops of an object file's functions, as lists of instructions."""
    with tempfile.NamedTemporaryFile(suffix=".o") as file:
        file.write(code)
        file.flush()
        command = [tool("llvm-objdump"), "-d", "--no-show-raw-insn", file.name]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = []
    for section in text.split("Disassembly of section")[1:]:
        lines = [match for match in map(_INSTRUCTION.match, section.splitlines()) if match]
        at = {int(match[1], 16): i for i, match in enumerate(lines)}
        spans = []
        for i, match in enumerate(lines):
            branch = _BRANCH.match(match[2])
            if branch and at.get(int(branch[1], 16), i + 1) <= i:
                spans.append((at[int(branch[1], 16)], i))
        for first, last in spans:
            if not any(first <= a and b <= last and (a, b) != (first, last) for a, b in spans):
                found.append([match[2].split("//")[0].replace("\t", " ") for match in lines[first : last + 1]])
    return found


def multiply_adds(loop: Sequence[str]) -> tuple[int, int]:
    """Registers that a loop sums in, and multiply-adds of numbers."""
    found = [match for match in map(_MULTIPLY_ADD.match, loop) if match]
    return len({match[1] or match[3] for match in found}), sum(int(match[2] or 1) for match in found)


def cycles(loop: Sequence[str], core: str) -> float:
    """Cycles of a pass through a loop, as the core's model predicts them."""
    if core == "cortex-a53":
        return cortex_a53.cycles(loop)
    body = [re.sub(r"0x[0-9a-f]+ <.*", ".L", line) if _BRANCH.match(line) else line for line in loop]
    command = [tool("llvm-mca"), "-mtriple=aarch64", f"-mcpu={_MODELS.get(core, core)}", f"-iterations={_REPEATS}"]
    text = "\n".join([".L:", *body, ""])
    said = subprocess.run(command, input=text, capture_output=True, text=True, check=True).stdout
    total = re.search(r"Total Cycles:\s+(\d+)", said)
    assert total is not None
    return int(total[1]) / _REPEATS


def hot(code: bytes) -> list[str]:
    """The loop with the most sums in registers."""
    return max(loops(code), key=multiply_adds)


def per_multiply_add(loop: Sequence[str], core: str) -> float:
    return cycles(loop, core) / multiply_adds(loop)[1]


def limit(core: str) -> float:
    """Cycles for a multiply-add when there is nothing else to do."""
    loop = [f"fmla v{i}.4s, v30.4s, v31.s[0]" for i in range(24)]
    return per_multiply_add(loop, core)


def ours(case: Case, core: str) -> tuple[Plan, list[str], float]:
    """The plan for the core, its hot loop, and predicted cycles of the layer for each multiply-add of a kept weight."""
    layer = next(layer for layer in LAYERS if case.layer in layer.name)
    target = find_target(core)
    weight = pruned(layer, case.density, case.block)

    def pick(task: Task, candidates: Sequence[Candidate]) -> Plan:
        return predicted(task, [candidate for candidate in candidates if candidate.format == case.format])

    made = plan(layer, weight, target, pick)
    kernels = {f"kernel{i}": step.kernel for i, step in enumerate(made.steps)}
    pixels = int(np.prod(layer.geometry.out_size)) if layer.geometry else layer.rows
    needed = int(np.count_nonzero(weight)) * pixels
    return made, hot(compile_kernels(kernels, target.llvm())), made.trials[0].cycles / needed


def peer(source: Path, ending: str, core: str) -> tuple[float, str]:
    """The fastest of XNNPACK's sparse kernels for the core, and its name."""
    results = []
    with tempfile.TemporaryDirectory(prefix="lwc-") as folder:
        (Path(folder) / "pthreadpool.h").write_text(_STUB, encoding="utf-8")
        flags = ["-target", "aarch64-linux-gnu", f"-mcpu={find_target(core).zig_cpu}", "-O2", "-DNDEBUG"]
        include = [f"-I{folder}", f"-I{source / 'include'}", f"-I{source}"]
        for path in sorted((source / "src" / "f32-spmm" / "gen").glob(f"*{ending}-minmax*neonfma*.c")):
            out = str(Path(folder) / "kernel.o")
            command = [sys.executable, "-m", "ziglang", "cc", *flags, *include, "-c", str(path), "-o", out]
            subprocess.run(command, check=True, capture_output=True)
            name = path.stem.removeprefix("f32-spmm-").replace("-minmax", "").replace("-aarch64", "")
            results.append((per_multiply_add(hot(Path(out).read_bytes()), core), name))
    return min(results)


def measure(core: str, source: Path | None) -> list[dict[str, Any]]:
    """A row for every case."""
    best, rows = limit(core), []
    for case in CASES:
        made, loop, whole = ours(case, core)
        row: dict[str, Any] = {
            "core": core,
            "loop": case.name,
            "kernel": made.trials[0].name,
            "cycles": per_multiply_add(loop, core),
            "limit": best,
            "instructions": len(loop) / multiply_adds(loop)[1],
            "spills": sum("[sp" in line for line in loop),
            "layer_predicted": whole,
        }
        if case.peers and source:
            row["xnnpack"], row["xnnpack_kernel"] = peer(source, case.peers, core)
        if case.goal:
            row["goal"] = case.goal * best
        elif case.goal == 0 and "xnnpack" in row:
            row["goal"] = row["xnnpack"]
        rows.append(row)
        print(f"{core:12} {case.name:34} {row['cycles']:.3f}", flush=True)
    return rows


def table(results: dict[str, Any]) -> str:
    """The results as Markdown."""
    lines = [
        f"# Inner loops on Arm, {results['date']}",
        "",
        f"`python -m benchmarks.arm_inner_loops`; {results['mca']}; XNNPACK: {results['xnnpack']}.",
        "Cycles for each useful multiply-add of float32, as llvm-mca predicts them, for Cortex-A53 by the rules of",
        "benchmarks/cortex_a53.py, with every load in the level-1 cache. The limit is that of a loop of independent",
        "vector multiply-adds; the last column is what lwc's own model predicts for the whole layer, with copies,",
        "caches and the starts of loops.",
        "",
        "| core | loop | kernel | cycles | limit | over it | XNNPACK | its kernel | goal | layer, predicted |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in results["rows"]:
        theirs = f"{row['xnnpack']:.3f} | {row['xnnpack_kernel']}" if "xnnpack" in row else " | "
        goal = "" if "goal" not in row else "reached" if row["cycles"] <= row["goal"] else f"{row['goal']:.3f} missed"
        lines.append(
            f"| {row['core']} | {row['loop']} | {row['kernel']} | {row['cycles']:.3f} | {row['limit']:.3f} | "
            f"{row['cycles'] / row['limit'] - 1:.0%} | {theirs} | {goal} | {row['layer_predicted']:.3f} |"
        )
    return "\n".join([*lines, ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cores", nargs="+", choices=CORES, default=list(CORES), metavar="NAME", help=", ".join(CORES))
    parser.add_argument("--xnnpack", type=Path, help="a checkout of XNNPACK's source; none: its columns stay empty")
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    about = "not compared, --xnnpack names no checkout of its source"
    if options.xnnpack:
        if not (options.xnnpack / "src" / "f32-spmm" / "gen").is_dir():
            sys.exit(f"--xnnpack {options.xnnpack}: there is no src/f32-spmm/gen in it; name a checkout of XNNPACK")
        about = "compiled by zig for the same core"
    said = subprocess.run([tool("llvm-mca"), "--version"], capture_output=True, text=True, check=True).stdout
    version = next(line.strip() for line in said.splitlines() if "version" in line)
    rows = [row for core in options.cores for row in measure(core, options.xnnpack)]
    results = {"mca": f"llvm-mca, {version}", "xnnpack": about, "date": time.strftime("%Y-%m-%d"), "rows": rows}
    write_outcome(options.output, "arm-inner-loops", results, table(results))


if __name__ == "__main__":
    main()
