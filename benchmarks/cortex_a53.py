"""How many cycles a loop takes on Cortex-A53, by rules that were measured on the core.

Run: python -m benchmarks.cortex_a53 FILE, for the instructions of a loop, one a line, as llvm-objdump prints them.

LLVM's model of it cannot be used for loops of multiply-adds: llvm-mca has instructions write their results in the order
of the program, so that every load after a multiply-add waits six cycles. The core of the saxpy loop in
github.com/daniestevez/qsdr was measured to take 32 cycles; llvm-mca says 69, these rules 32. XNNPACK's product of
matrices written for this core (f32-gemm, 6x8-aarch64-neonfma-cortex-a53) would reach 18 % of the core's multiply-adds
in llvm-mca, and reaches 72 % by these rules.

The rules come from the tests of instructions in that repository (what takes how long, what starts beside what), from
ncnn's guide to dual issue on Cortex-A53 and A55 (no load to a vector register in the fourth cycle after a
multiply-add), and from GCC's description of the core (cortex-a53.md: how long multiply-adds, integer loads and
addresses take). What none of them says is taken to start alone. Loads hit the level-1 cache and branches are guessed
right.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

_NAME = re.compile(r"\b([wxvqds])(\d+)\b|\bsp\b")
_MEMORY = re.compile(r"\[([^\]]*)\](!?)(,\s*(?:#-?\w+|x\d+))?\s*$")
_LANE = re.compile(r"^\{?\s*v\d+\.[ds]\s*\}?\[|^v\d+\.[ds]\[")
_PASSES = 100

# Kinds: arithmetic on vectors of 128 bits, insertions into them, loads of at most 64 bits to one, longer ones, stores,
# integer loads, integer arithmetic, branches. Of two kinds that start in one cycle the first is first in the program.
_BESIDE = {
    "vector": {"integer", "integer load", "branch"},
    "insertion": {"insertion", "load", "integer", "integer load", "branch"},
    "load": {"insertion", "integer", "branch"},
    "integer load": {"integer", "insertion", "branch"},
    "integer": {"integer", "integer load", "load", "insertion", "store", "branch"},
    "store": {"integer", "branch"},
    "long load": set[str](),
    "branch": set[str](),
}
# Cycles after which a result is there for arithmetic, and more for an address.
_LATER = {"vector": 4, "insertion": 2, "load": 3, "long load": 4, "integer load": 2, "integer": 1}
_MULTIPLY_ADD = 8
_TO_ADDRESS = {"integer load": 1, "integer": 2}


@dataclass
class Instruction:
    """What of an instruction matters for when it starts.

    Attributes:
        kind: see `_BESIDE`.
        cycles: in which no other one starts, but one beside it in the first.
        reads: registers that it waits for.
        address: registers of its address.
        writes: registers, and after how many cycles they are there.
        multiply_add: it is one of vectors.
    """

    kind: str
    cycles: int = 1
    reads: list[str] = field(default_factory=list)
    address: list[str] = field(default_factory=list)
    writes: dict[str, int] = field(default_factory=dict)
    multiply_add: bool = False


def _registers(text: str) -> list[str]:
    return ["sp" if m[0] == "sp" else ("x" if m[1] in "wx" else "v") + m[2] for m in _NAME.finditer(text)]


def read(line: str) -> Instruction:
    """An instruction as llvm-objdump prints it."""
    name, _, rest = line.strip().partition(" ")
    memory = _MEMORY.search(rest)
    if memory and not name.startswith(("fm", "mov", "ins", "dup")):
        return _access(name, rest[: memory.start()], memory)
    registers = _registers(rest)
    if name.startswith("b") or name in ("cbz", "cbnz", "tbz", "tbnz"):
        return Instruction("branch", reads=["flags"] if "." in name else registers)
    if name in ("cmp", "tst"):
        return Instruction("integer", reads=registers, writes={"flags": _LATER["integer"]})
    if name == "nop":
        return Instruction("integer")
    target, *others = registers
    if target[0] != "v":
        writes = {target: _LATER["integer"], **({"flags": 1} if name in ("subs", "adds", "ands") else {})}
        return Instruction("integer", reads=others, writes=writes)
    if name in ("ins", "mov", "fmov") and (_LANE.match(rest) or name == "fmov"):
        return Instruction("insertion", reads=others, writes={target: _LATER["insertion"]})
    if name in ("fmla", "fmls", "fmadd"):
        reads = registers if name != "fmadd" else others
        return Instruction("vector", reads=reads, writes={target: _MULTIPLY_ADD}, multiply_add=True)
    return Instruction("vector", reads=others, writes={target: _LATER["vector"]})


def _access(name: str, before: str, memory: re.Match[str]) -> Instruction:
    """A load, store or prefetch."""
    address, data = _registers(memory[1]), _registers(before)
    moved = {address[0]: _LATER["integer"]} if memory[2] or memory[3] else {}
    vectors = [register for register in data if register[0] == "v"]
    if name.startswith("prf"):
        return Instruction("integer load", address=address)
    if name.startswith("st"):
        return Instruction("store", max(1, len(vectors)), data, address, moved)
    if not vectors:
        writes = {register: _LATER["integer load"] + i for i, register in enumerate(data)}
        return Instruction("integer load", len(data), address=address, writes={**writes, **moved})
    whole = before.lstrip("{ ").startswith("q") or (".4s" in before and name == "ld1")
    kind, each = ("long load", 2) if whole else ("load" if len(vectors) == 1 else "long load", 1)
    later = _LATER["long load" if whole else "load"]
    writes = {register: later + each * i for i, register in enumerate(vectors)}
    reads = vectors if _LANE.match(before.strip()) else []
    return Instruction(kind, each * len(vectors), reads, address, {**writes, **moved})


def cycles(loop: Sequence[str], passes: int = _PASSES) -> float:
    """Cycles of a pass through a loop.

    Args:
        loop: its instructions, as llvm-objdump prints them.
        passes: how many are counted.
    """
    body = [read(line) for line in loop]
    there: dict[str, tuple[int, str]] = {}  # when a register's value is, and what kind of instruction makes it
    multiplied: set[int] = set()  # cycles in which multiply-adds start
    free = 0  # when the next instruction may start if it starts alone
    first: Instruction | None = None  # one that may have another beside it
    for instruction in body * passes:
        start = max((there[r][0] for r in instruction.reads if r in there), default=0)
        for register in instruction.address:
            at, kind = there.get(register, (0, ""))
            start = max(start, at + _TO_ADDRESS.get(kind, 0))
        beside = (
            first is not None
            and start < free
            and instruction.cycles == 1
            and instruction.kind in _BESIDE[first.kind]
            and not first.writes.keys() & instruction.writes.keys()
            and not _hindered(instruction, free - 1, multiplied)
        )
        start = free - 1 if beside else max(start, free)
        while _hindered(instruction, start, multiplied):
            start += 1
        first = instruction if not beside and instruction.cycles == 1 else None
        free = start + instruction.cycles
        there.update({r: (start + later, instruction.kind) for r, later in instruction.writes.items()})
        if instruction.multiply_add:
            multiplied.add(start)
    return free / passes


def _hindered(instruction: Instruction, start: int, multiplied: set[int]) -> bool:
    """Whether a load to a vector register meets a multiply-add that goes on to its addition."""
    if instruction.kind not in ("load", "long load"):
        return False
    return any(cycle - 4 in multiplied for cycle in range(start, start + instruction.cycles))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    lines = parser.parse_args().file.read_text(encoding="utf-8").splitlines()
    print(f"{cycles([line for line in lines if line.strip()]):.2f} cycles")


if __name__ == "__main__":
    main()
