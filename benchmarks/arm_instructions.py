"""Counts the instructions that one inference takes on AArch64, pruned and not, under QEMU's user mode.

Run: python -m benchmarks.arm_instructions [--models resnet18 mobilenet_v2] [--sparsity 0.9]
    [--structure element 4x1] [--target cortex-a72] [--functions 10]

QEMU logs every block of instructions that it enters (`-d exec,nochain`) and what each consists of (`-d in_asm`); the
count is the sum of both. A program that runs the network once is compared with the same program that does not run it,
so what the C library does before and after is left out. One thread; lwc's own code for the network before pruning is
what pruned code is compared with. With `--functions` the kernels that take most of the instructions are printed, too.
Results go to results/arm-instructions.json and .md. It needs qemu-aarch64 and ziglang; for functions llvm-nm.
"""

from __future__ import annotations

import argparse
import math
import re
import shutil
import subprocess
import sys
import tempfile
import time
from bisect import bisect_right
from collections import Counter
from itertools import product
from pathlib import Path
from typing import Any

import lwc_compiler as lwc
from benchmarks.arm_inner_loops import tool
from benchmarks.models import MODELS
from benchmarks.outcome import RESULTS, write_outcome
from lwc_compiler.targets import find_target

GOALS = {"resnet18": 1 / 4, "mobilenet_v2": 1 / 3}  # of the dense network's instructions, at 90 % zeros
_FUNCTION = re.compile(r"[0-9a-f]+ [tTwW] [^$].*")
_BLOCK = re.compile(rb"\[[0-9a-f]+/([0-9a-f]+)/")
_PROGRAM = """
#include <stdlib.h>
#include "{symbol}.h"

static void *zeros(size_t bytes) {{ return calloc(1, bytes); }}

int main(int argc, char **argv) {{
    const void *in[] = {{{inputs}}};
    void *out[] = {{{outputs}}};
    size_t bytes = ({symbol}_workspace_bytes(1) + 63) / 64 * 64;
    void *workspace = aligned_alloc(64, bytes);
    return argc > 1 ? {symbol}_run(in, out, workspace, bytes, NULL) : 0;
}}
"""


def program(name: str, prune: lwc.PruneOptions | None, target: str, folder: Path) -> Path:
    """Compiles the network and a program that runs it once if it has an argument."""
    recipe = lwc.Recipe(prune=prune, lower=lwc.LowerOptions(target=target, threads=1))
    artifact = lwc.compile(lwc.Model(MODELS[name](), name), folder / "model", recipe)
    manifest = artifact.manifest

    def buffers(tensors: Any) -> str:
        return ", ".join(f"zeros({4 * math.prod(tensor.shape)})" for tensor in tensors)

    source = _PROGRAM.format(symbol=manifest.symbol, inputs=buffers(manifest.inputs), outputs=buffers(manifest.outputs))
    (folder / "main.c").write_text(source, encoding="utf-8")
    compiler = [sys.executable, "-m", "ziglang", "cc", "-target", "aarch64-linux-musl"]
    command = [*compiler, f"-mcpu={find_target(target).zig_cpu}", "-O2", "-static", f"-I{folder / 'model'}", "main.c"]
    subprocess.run([*command, str(artifact.archive), "-lm", "-o", "main"], cwd=folder, check=True)
    return folder / "main"


def counted(qemu: str, *command: str) -> dict[int, int]:
    """Instructions that a program runs, by the address of the block that they are in."""
    entered: Counter[bytes] = Counter()
    length: dict[bytes, int] = {}
    block = b""
    log = ["-d", "exec,nochain,in_asm"]
    with subprocess.Popen([qemu, *log, *command], stderr=subprocess.PIPE) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith(b"Trace"):
                entered[line] += 1
            elif line.startswith(b"IN:"):
                block = b""
            elif line.startswith(b"0x"):
                address = line[2 : line.index(b":")].zfill(16)
                block = block or address
                length[block] = 1 if block == address else length[block] + 1
    if process.returncode:
        sys.exit(f"{' '.join(command)} ended with {process.returncode}")
    total: dict[int, int] = {}
    for line, count in entered.items():
        found = _BLOCK.search(line)
        assert found is not None
        address = found[1]
        total[int(address, 16)] = total.get(int(address, 16), 0) + count * length[address]
    return total


def functions(blocks: dict[int, int], path: str) -> Counter[str]:
    """The instructions of the functions of a program."""
    lines = subprocess.run(
        [tool("llvm-nm"), "-n", path], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    symbols = [(int(line.split()[0], 16), line.split()[2]) for line in lines if _FUNCTION.fullmatch(line)]
    starts = [address for address, _ in symbols]
    total: Counter[str] = Counter()
    for address, count in blocks.items():
        total[symbols[bisect_right(starts, address) - 1][1]] += count
    return total


def measure(name: str, prune: lwc.PruneOptions | None, target: str, qemu: str, shown: int) -> int:
    """Instructions of one inference; prints those of so many functions."""
    with tempfile.TemporaryDirectory(prefix="lwc-") as folder:
        path = str(program(name, prune, target, Path(folder)))
        run = counted(qemu, path, "run")
        for function, count in functions(run, path).most_common(shown) if shown else ():
            print(f"{count / 1e6:8.2f} {function}", flush=True)
        return sum(run.values()) - sum(counted(qemu, path).values())


def table(results: dict[str, Any]) -> str:
    """The results as Markdown."""
    lines = [
        f"# Instructions of one inference on {results['target']}, {results['date']}",
        "",
        f"`python -m benchmarks.arm_instructions`; {results['qemu']}.",
        "Millions of instructions; dense is lwc's own code for the network before pruning. The goal is for 90 % zeros.",
        "",
        "| network | zeros | of | dense | sparse | sparse / dense | goal |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in results["rows"]:
        goal = f"{GOALS[row['model']]:.3f}" if row["model"] in GOALS and row["sparsity"] == 0.9 else ""
        dense, sparse = row["dense"], row["sparse"]
        lines.append(
            f"| {row['model']} | {row['sparsity']:g} | {row['structure']} | {dense / 1e6:.1f} | {sparse / 1e6:.1f} | "
            f"{sparse / dense:.3f} | {goal} |"
        )
    return "\n".join([*lines, ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(GOALS), metavar="NAME")
    parser.add_argument("--sparsity", nargs="+", type=float, default=[0.9])
    parser.add_argument("--structure", nargs="+", default=["element", "4x1"], help="of zeros, as `lwc prune` takes it")
    parser.add_argument("--target", default="cortex-a72", help="an AArch64 target of `lwc targets`")
    parser.add_argument("--functions", type=int, default=0, metavar="N", help="print the N with most instructions")
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    qemu = shutil.which("qemu-aarch64") or shutil.which("qemu-aarch64-static")
    if qemu is None:
        sys.exit("skipped: there is no qemu-aarch64 on the PATH (Debian: qemu-user-static)")
    version = subprocess.run([qemu, "--version"], capture_output=True, text=True, check=True).stdout.splitlines()[0]
    rows = []
    for name in options.models:
        dense = measure(name, None, options.target, qemu, options.functions)
        for sparsity, structure in product(options.sparsity, options.structure):
            prune = lwc.PruneOptions(sparsity=sparsity, structure=structure)
            sparse = measure(name, prune, options.target, qemu, options.functions)
            rows.append({"model": name, "sparsity": sparsity, "structure": structure, "dense": dense, "sparse": sparse})
            print(f"{name}, {sparsity:g} of {structure}: {sparse / dense:.3f}", flush=True)
    results = {"target": options.target, "qemu": version, "date": time.strftime("%Y-%m-%d"), "rows": rows}
    write_outcome(options.output, "arm-instructions", results, table(results))


if __name__ == "__main__":
    main()
