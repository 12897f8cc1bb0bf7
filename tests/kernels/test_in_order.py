"""The loop for cores that work in order: what its instructions compute, one after the other."""

import re

import numpy as np
import pytest
from instructions import Interpreter

from lwc_compiler.kernels.in_order import BEHIND, most_vectors, suits, tap_lines
from lwc_compiler.kernels.kernel import SLACK_BYTES

SHAPES = [
    (rows, vectors)
    for rows in (1, 4, 8)
    for vectors in range(1, most_vectors(rows) + 1)
    if suits(rows, [4 * v for v in range(vectors)])
]
_ACCESS = re.compile(r"(\w+) \{(?:(\w):)?(\w+)\}, \[\{(\w+)\}, #(\d+)\]")
_FMLA = re.compile(r"fmla \{(\w+)\}\.4s, \{(\w+)\}\.4s, \{(\w+)\}\.s\[(\d)\]")
_FLOATS = {"s": 1, "d": 2, "q": 4}


class InOrder(Interpreter):
    """Knows the instructions of these loops."""

    def step(self, line: str) -> str | None:
        name, _, rest = line.partition(" ")
        operands = re.findall(r"\{(?:\w:)?(\w+)\}", rest)
        if access := _ACCESS.fullmatch(line):
            self.load(*access.groups())
        elif fmla := _FMLA.fullmatch(line):
            total, inputs, weights, lane = fmla.groups()
            self.vectors[total] += self.vectors[inputs] * self.vectors[weights][int(lane)]
        elif name == "ins":
            first = 2 * int(rest[rest.index("[") + 1])
            vector = self.vectors.setdefault(operands[0], np.full(4, np.nan, np.float32))
            vector[first : first + 2] = np.frombuffer(self.whole[operands[1]], np.float32)
        elif name == "subs":
            self.whole["count"] -= int(rest.rsplit("#", 1)[1])
        elif name == "add" and len(operands) == 3:
            self.whole[operands[0]] = ("x", 4 * self.whole[operands[2]])
        elif name == "add":
            array, byte = self.whole[operands[0]]
            self.whole[operands[0]] = (array, byte + int(rest.rsplit("#", 1)[1]))
        elif name in ("b", "cbz", "b.eq", "b.lt", "b.ge"):
            count = self.whole["count"]
            jumps = {"b": True, "b.lt": count < 0, "b.ge": count >= 0}.get(name, count == 0)
            return f"{rest[-2]}:" if jumps else None
        else:
            assert name in ("1:", "2:", "3:", "4:", "prfm")
        return None

    def load(self, name: str, part: str | None, to: str, base: str, offset: str) -> None:
        array, byte = self.whole[base]
        size = 2 if name == "ldrh" else 4 * _FLOATS[part] if part in _FLOATS else 4 if part else 8
        data = self.bytes[array][byte + int(offset) : byte + int(offset) + size]
        assert len(data) == size, f"{to} is read behind {array}"
        if part in _FLOATS:
            self.vectors[to] = np.zeros(4, np.float32)
            self.vectors[to][: size // 4] = np.frombuffer(data, np.float32)
        else:
            self.whole[to] = data if to.startswith("h") else int.from_bytes(data, "little")


@pytest.mark.parametrize("taps", [0, 1, 2, 3, 6, 7])
@pytest.mark.parametrize(("rows", "vectors"), SHAPES)
def test_adds_every_tap_and_follows_no_offset_behind_those_it_may(rows: int, vectors: int, taps: int) -> None:
    generator = np.random.default_rng(taps)
    reads = [4 * v if v < 3 else 64 + 4 * v for v in range(vectors)]
    x = generator.integers(-8, 8, 256).astype(np.float32)
    weights = generator.integers(-8, 8, (taps, rows)).astype(np.float32)
    offsets = generator.integers(0, 256 - reads[-1] - 4, taps)
    start = generator.integers(-8, 8, (rows * vectors, 4)).astype(np.float32)
    interpreter = InOrder(
        taps,
        start,
        x=x,
        values=np.append(weights.ravel(), np.full(SLACK_BYTES // 4, np.nan)).astype(np.float32),
        offsets=np.append(offsets, np.zeros(BEHIND)).astype(np.uint16),
    )
    interpreter.run(tap_lines(rows, reads, 2, 256 if taps % 2 else 0))
    inputs = np.array([[x[offset + read : offset + read + 4] for read in reads] for offset in offsets])
    expected = start + np.einsum("tr,tvl->rvl", weights, inputs.reshape(taps, vectors, 4)).reshape(-1, 4)
    assert np.array_equal([interpreter.vectors[f"s{i}"] for i in range(rows * vectors)], expected)


@pytest.mark.parametrize(
    ("rows", "reads"),
    [
        (4, [0, 4]),  # few sums
        (4, [4 * v for v in range(7)]),  # more registers than there are
        (2, [4 * v for v in range(6)]),  # weights that fill no vector
        (4, [0, 4, 8, 14]),  # not at a multiple of a vector
        (4, [0, 4, 8, 8192]),  # too far away
    ],
)
def test_other_tiles_are_left_to_llvm(rows: int, reads: list[int]) -> None:
    assert not suits(rows, reads)
