"""The loop over a list of taps as assembly of few instructions, for AArch64 cores that work out of order.

What LLVM makes of a tap spends five instructions beside loads of inputs and multiply-adds: for the offset, the address,
the weights and the loop. Here lists have pairs of taps. The offsets of a pair are the halves of a word, in bytes; the
addition that makes an address picks its half. A pass computes two pairs, with one load for their offsets and as few for
their weights; one that is left at the end comes after the loop. Where registers are left, one instruction (`ld1`) loads
three or four vectors that adjoin, and moves the address on to where the next one reads.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from lwc_compiler.kernels.assembly import tap_function

TAPS = 2  # that share a word of offsets
REACH = 1 << 16  # bytes that an offset leads to

_PAIRS = 2  # of a pass
_REGISTERS = 32
_VECTOR = 16  # bytes
_MOST_LOADED = 4  # vectors, by one instruction
_FEWEST = 5  # sums; with fewer, multiply-adds wait for those of the tap before
_MOST_STEPS = 4  # integer registers with distances of loads
_PAIR_REACH, _REACH = range(-1024, 1009), range(-256, 65521)  # bytes from an address that loads reach


def suits(rows: int, reads: list[int]) -> bool:
    """Whether the loop can compute a tile of so many rows and inputs, and is good at it.

    Args:
        rows: output channels that share a tap: 1, 2, or a multiple of 4.
        reads: where the inputs of a tap lie, in float32.
    """
    sums = rows * len(reads)
    if (rows not in (1, 2) and rows % 4) or any(read % 4 for read in reads):
        return False
    return sums >= _FEWEST and sums + _packed(rows) < _REGISTERS and _Loop(rows, reads).reaches


def tap_instructions(rows: int, reads: list[int]) -> float:
    """Instructions of a tap in the loop."""
    lines = tap_lines(rows, reads)
    return (lines.index("2:") - lines.index("1:") - 1) / (TAPS * _PAIRS)


def tap_lines(rows: int, reads: list[int]) -> list[str]:
    """The loop's instructions, as `tap_function` takes them; see `suits`. Its count is of pairs of taps."""
    return _Loop(rows, reads).lines()


def tap_loop(rows: int, reads: list[int]) -> tuple[str, str]:
    """A function in LLVM's language that adds pairs of taps to the sums of a tile, and its name.

    Its parameters: offsets (uint16, in bytes), values, the input, the number of pairs (int32), the sums, row by row.

    Args:
        rows: see `suits`.
        reads: see `suits`.
    """
    loop = _Loop(rows, reads)
    sums, weights = [f"s{i}" for i in range(rows * len(reads))], [f"w{i}" for i in range(_packed(rows))]
    whole = ["a0", "a1", *(f"o{i}" for i in range(_PAIRS)), *(f"step{i}" for i in range(len(loop.steps)))]
    used = [f"v{_REGISTERS - 1 - i}" for i in range(loop.most)]
    return tap_function(loop.lines(), sums, weights, whole, used)


def _packed(rows: int) -> int:
    """Vectors of the weights that are loaded at a time: of a pair, or of all single ones of a pass."""
    return -(-rows * TAPS // 4)


@dataclass
class _Loop:
    """Writes the loop.

    Attributes:
        rows: see `suits`.
        reads: see `suits`.
        steps: distances that addresses move on by, in bytes, which registers hold.
        reaches: whether every load reaches what it reads.
    """

    rows: int
    reads: list[int]
    steps: list[int] = field(default_factory=list)
    reaches: bool = True

    def __post_init__(self) -> None:
        at = [_VECTOR * read // 4 for read in self.reads]
        self.loads: list[tuple[int, int, int]] = []  # first vector, vectors, bytes from the tap's address on
        while (first := sum(count for _, count, _ in self.loads)) < len(at):
            count = 1
            while count < self.most and at[first + count : first + count + 1] == [at[first] + count * _VECTOR]:
                count += 1
            self.loads.append((first, count, at[first]))
        self.lines()
        self.reaches = self.reaches and len(self.steps) <= _MOST_STEPS

    @property
    def most(self) -> int:
        """Vectors that one instruction loads, as registers allow."""
        left = _REGISTERS - self.rows * len(self.reads) - _packed(self.rows)
        return min(_MOST_LOADED, left)

    def lines(self) -> list[str]:
        """The whole text."""
        offsets = ", ".join(f"{{w:o{i}}}" for i in range(_PAIRS))
        body = [f"ldp {offsets}, [{{offsets}}], #{4 * _PAIRS}"]
        for pair in range(_PAIRS):
            if self.rows > 1:
                body += self._pair(pair)
            else:
                body += [*(["ldr {q:w0}, [{values}], #16"] if pair == 0 else []), *self._taps(pair, TAPS * pair)]
        last = ["ldr {w:o0}, [{offsets}]", *self._pair(0)]
        return [
            *(f"mov {{step{i}}}, #{step}" for i, step in enumerate(self.steps)),
            f"subs {{count}}, {{count}}, #{_PAIRS}",
            "b.lt 2f",
            "1:",
            *body,
            f"subs {{count}}, {{count}}, #{_PAIRS}",
            "b.ge 1b",
            "2:",
            "tbz {count}, #0, 3f",
            *last,
            "3:",
        ]

    def _pair(self, pair: int) -> list[str]:
        """A pair of taps and the loads of its weights."""
        names = [f"{{{'d' if self.rows == 1 else 'q'}:w{i}}}" for i in range(_packed(self.rows))]
        size = 4 * TAPS * self.rows // len(names)
        groups = [names[i : i + 2] for i in range(0, len(names), 2)]
        loads = [
            f"{'ldp' if len(group) == 2 else 'ldr'} {', '.join(group)}, [{{values}}], #{size * len(group)}"
            for group in groups
        ]
        return [*loads, *self._taps(pair, 0)]

    def _taps(self, pair: int, first: int) -> list[str]:
        """A pair of taps; their weights are those of tap `first` and of the next in the registers."""
        addresses = [f"add {{a0}}, {{x}}, {{w:o{pair}}}, uxth", f"add {{a1}}, {{x}}, {{o{pair}}}, lsr #16"]
        return [*addresses, *(line for turn in range(TAPS) for line in self._tap(turn, first + turn))]

    def _tap(self, turn: int, number: int) -> list[str]:
        """A tap's loads and multiply-adds; `number` it is among those whose weights are loaded."""
        lines, moved = list[str](), 0
        several = [at for _, count, at in self.loads if count > 2]
        for first, count, at in self.loads:
            registers = [_REGISTERS - self.most + i for i in range(count)]
            if count > 2:
                if several[0] != moved:
                    lines.append(f"add {{a{turn}}}, {{a{turn}}}, {self._step(several[0] - moved)}")
                moved = several.pop(0)
                on = ""
                if several:
                    step = several[0] - moved
                    on = f", #{step}" if step == count * _VECTOR else f", {self._step(step)}"
                lines.append(f"ld1 {{v{registers[0]}.4s-v{registers[-1]}.4s}}, [{{a{turn}}}]{on}")
                moved = several[0] if several else moved
            else:
                names = ", ".join(f"q{register}" for register in registers)
                lines.append(f"{'ldp' if count == 2 else 'ldr'} {names}, [{{a{turn}}}, #{at - moved}]")
                self.reaches = self.reaches and at - moved in (_PAIR_REACH if count == 2 else _REACH)
            for i, register in enumerate(registers):
                for row in range(self.rows):
                    vector, lane = divmod(number * self.rows + row, 4)
                    total = f"s{row * len(self.reads) + first + i}"
                    lines.append(f"fmla {{{total}}}.4s, v{register}.4s, {{w{vector}}}.s[{lane}]")
        return lines

    def _step(self, distance: int) -> str:
        """The register that holds a distance."""
        if distance not in self.steps:
            self.steps.append(distance)
        return f"{{step{self.steps.index(distance)}}}"
