"""The inner loops of an artifact for Cortex-M: instructions, multiply-adds, predicted cycles and uses of the stack.

    python -m benchmarks.inner_loops model.lwc --cpu cortex-m7

Needs arm-none-eabi-objdump and llvm-mca, which predicts cycles from LLVM's description of the processor.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess

from lwc_compiler.runtime.artifact import read_artifact

_ITERATIONS = 100
_SUMS = ("vfma", "vmla", "vadd.f32")
_LINE = re.compile(r"^\s+([0-9a-f]+):\s+(.*)$", re.MULTILINE)
_BRANCH = re.compile(r"b\w*(?:\.[nw])?\s+([0-9a-f]+) <")


def inner_loops(code: list[tuple[int, str]]) -> list[list[str]]:
    """The instructions of the loops that hold no other, each with its branch last."""
    index = {address: i for i, (address, _) in enumerate(code)}
    loops = []
    for i, (address, text) in enumerate(code):
        branch = _BRANCH.match(text)
        if branch and int(branch[1], 16) <= address and int(branch[1], 16) in index:
            loops.append((index[int(branch[1], 16)], i))
    inner = [a for a in loops if not any(b != a and a[0] <= b[0] and b[1] <= a[1] for b in loops)]
    return [[text for _, text in code[first : last + 1]] for first, last in inner]


def cycles(mca: str, cpu: str, body: list[str]) -> float:
    """Predicted cycles of one pass of a loop."""
    plain = [re.sub(r"\s*[@;].*", "", text) for text in body[:-1]]
    lines = [re.sub(r"^(\S+)\.[nw]\b", r"\1", text) for text in plain if not text.startswith("b")]
    command = [mca, "-mtriple=thumbv7em-none-eabihf", f"-mcpu={cpu}", f"-iterations={_ITERATIONS}"]
    source = "\n".join([".syntax unified", ".thumb", *lines])
    done = subprocess.run(command, input=source, capture_output=True, text=True, check=True)
    found = re.search(r"Total Cycles:\s+(\d+)", done.stdout)
    assert found
    return int(found[1]) / _ITERATIONS


def main() -> None:
    """Prints a line for each inner loop with multiply-adds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifact")
    parser.add_argument("--cpu", default="cortex-m7")
    arguments = parser.parse_args()
    mca = shutil.which("llvm-mca") or shutil.which("llvm-mca-14")
    if mca is None:
        raise SystemExit("llvm-mca is not installed")
    archive = str(read_artifact(arguments.artifact).archive)
    command = ["arm-none-eabi-objdump", "-d", "--no-show-raw-insn", archive]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    print("| kernel | instructions | multiply-adds | cycles | cycles each | uses of the stack |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    for function in re.split(r"\n(?=[0-9a-f]{8} <)", text):
        name = re.match(r"[0-9a-f]{8} <(\S*_kernel_\S+)>", function)
        if not name:
            continue
        code = [(int(address, 16), line) for address, line in _LINE.findall(function)]
        for body in inner_loops(code):
            sums = sum(line.startswith(_SUMS) for line in body)
            if sums:
                taken, stack = cycles(mca, arguments.cpu, body), sum("[sp" in line for line in body)
                print(f"| {name[1]} | {len(body)} | {sums} | {taken:.0f} | {taken / sums:.1f} | {stack} |")


if __name__ == "__main__":
    main()
