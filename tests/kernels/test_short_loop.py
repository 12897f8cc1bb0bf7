"""The loop of few instructions: what it computes, one instruction after the other."""

import re

import numpy as np
import pytest
from instructions import Interpreter

from lwc_compiler.kernels.short_loop import suits, tap_instructions, tap_lines

# Rows, and where the inputs of a tap lie: side by side, in rows of pixels, one below the other.
SHAPES = [
    (1, [4 * v for v in range(26)]),
    (1, [64 * row + 4 * v for row in range(3) for v in range(7)]),
    (1, [32 * row + 4 * v for row in range(4) for v in range(7)]),
    (1, [16 * row + 4 * v for row in range(7) for v in range(2)]),
    (1, [0, 32, 36, 40, 64, 68, 72, 76]),
    (2, [4 * v for v in range(14)]),
    (4, [4 * v for v in range(7)]),
    (4, [32 * row + 4 * v for row in range(2) for v in range(2)]),
    (4, [16 * row for row in range(7)]),
    (8, [0, 4, 8]),
]
_FMLA = re.compile(r"fmla \{(\w+)\}\.4s, v(\d+)\.4s, \{(\w+)\}\.s\[(\d)\]")
_LOAD = re.compile(r"(ldr|ldp|ld1) (.*), \[\{(\w+)\}(?:, #(-?\d+))?\](?:, (.*))?")


class ShortLoop(Interpreter):
    """Knows the instructions of these loops."""

    def step(self, line: str) -> str | None:
        name, _, rest = line.partition(" ")
        operands = re.findall(r"\{(?:\w:)?(\w+)\}", rest)
        count = self.whole["count"]
        if load := _LOAD.fullmatch(line):
            self.load(*load.groups())
        elif fmla := _FMLA.fullmatch(line):
            total, inputs, weights, lane = fmla.groups()
            self.vectors[total] += self.vectors[f"v{inputs}"] * self.vectors[weights][int(lane)]
        elif name == "mov":
            self.whole[operands[0]] = int(rest.rsplit("#", 1)[1])
        elif name == "subs":
            self.whole["count"] -= 2
        elif name == "add" and operands[1] == "x":
            word = self.whole[operands[2]]
            self.whole[operands[0]] = ("x", word >> 16 if rest.endswith("lsr #16") else word & 0xFFFF)
        elif name == "add":
            array, byte = self.whole[operands[0]]
            self.whole[operands[0]] = (array, byte + self.whole[operands[2]])
        elif name in ("b.lt", "b.ge", "tbz"):
            jumps = {"b.lt": count < 0, "b.ge": count >= 0, "tbz": count % 2 == 0}[name]
            return f"{rest[-2]}:" if jumps else None
        else:
            assert name in ("1:", "2:", "3:")
        return None

    def load(self, name: str, to: str, base: str, offset: str | None, on: str | None) -> None:
        if name == "ld1":
            first, last = map(int, re.findall(r"v(\d+)", to))
            kinds = [("q", f"v{i}") for i in range(first, last + 1)]
        else:
            parts = [re.fullmatch(r"(?:q(\d+)|\{(\w):(\w+)\})", part) for part in to.split(", ")]
            kinds = [("q", f"v{part[1]}") if part[1] else (part[2], part[3]) for part in parts]
        array, byte = self.whole[base]
        at = byte + int(offset or 0)
        for kind, register in kinds:
            size = {"w": 4, "d": 8, "q": 16}[kind]
            data = self.bytes[array][at : at + size]
            assert len(data) == size, f"{register} is read behind {array}"
            if kind == "w":
                self.whole[register] = int.from_bytes(data, "little")
            else:
                self.vectors[register] = np.zeros(4, np.float32)
                self.vectors[register][: size // 4] = np.frombuffer(data, np.float32)
            at += size
        if on:
            self.whole[base] = (array, byte + (int(on[1:]) if on[0] == "#" else self.whole[on[1:-1]]))


@pytest.mark.parametrize("pairs", [0, 1, 2, 3, 6])
@pytest.mark.parametrize(("rows", "reads"), SHAPES)
def test_adds_every_tap_and_reads_nothing_else(rows: int, reads: list[int], pairs: int) -> None:
    generator = np.random.default_rng(pairs)
    x = generator.integers(-8, 8, 512).astype(np.float32)
    weights = generator.integers(-8, 8, (2 * pairs, rows)).astype(np.float32)
    offsets = generator.integers(0, 512 - reads[-1] - 4, 2 * pairs)
    start = generator.integers(-8, 8, (rows * len(reads), 4)).astype(np.float32)
    interpreter = ShortLoop(pairs, start, x=x, values=weights, offsets=(4 * offsets).astype(np.uint16))
    assert suits(rows, reads)
    interpreter.run(tap_lines(rows, reads))
    inputs = np.array([[x[o + read : o + read + 4] for read in reads] for o in offsets]).reshape(-1, len(reads), 4)
    expected = start + np.einsum("tr,tvl->rvl", weights, inputs).reshape(start.shape)
    assert np.array_equal(np.array([interpreter.vectors[f"s{i}"] for i in range(len(start))]), expected)


@pytest.mark.parametrize(("rows", "reads"), SHAPES)
def test_registers_suffice(rows: int, reads: list[int]) -> None:
    names = {name for line in tap_lines(rows, reads) for name in re.findall(r"\{(?:\w:)?([sw]\d+)\}|(v\d+)\.", line)}
    ranges = [map(int, re.findall(r"v(\d+)", line.split("[")[0])) for line in tap_lines(rows, reads) if "ld1" in line]
    loaded = {register for first, last in ranges for register in range(first, last + 1)}
    assert len({a for a, _ in names if a} | {int(b[1:]) for _, b in names if b} | loaded) <= 32


@pytest.mark.parametrize(
    ("rows", "reads"),
    [
        (3, [0, 4, 8]),  # weights that are no vectors
        (1, [0, 4, 8, 12]),  # too few sums
        (4, [4 * v for v in range(8)]),  # too many
        (4, [0, 3]),  # inputs that overlap
        (1, [0, 20000, 20008, 20016, 20024]),  # loads that do not reach
    ],
)
def test_other_tiles_are_left_to_llvm(rows: int, reads: list[int]) -> None:
    assert not suits(rows, reads)


def test_instructions_of_a_tap() -> None:
    """Seven multiply-adds of four rows: 28 and four loads, and for two pairs seven more than the four additions."""
    assert tap_instructions(4, [4 * v for v in range(7)]) == 28 + 4 + (4 + 2 + 1 + 2) / 4
