"""The loop over a list of taps as assembly for Cortex-A53, which starts instructions in the order of the program.

LLVM decides where loads stand between multiply-adds, and it has a wrong picture of this core. Published measurements
(ncnn's guide to dual issue on Cortex-A53, the tests of instructions in github.com/daniestevez/qsdr; XNNPACK's and
others' kernels for this core are built on the same) say:

- A multiply-add of a vector starts in every cycle. What may start beside it, after it, is an instruction on integer
  registers, a load to one of them included, but no load to a vector register, and no insertion into one.
- A load of a whole vector takes two cycles in which nothing else starts. One of its low half takes one, and an
  insertion of 64 bits from an integer register into another vector starts beside it.
- Two insertions into different vectors start in one cycle, those into the halves of one vector in two.
- No load to a vector register starts in the fourth cycle after a multiply-add.

So a vector costs at least one cycle without a multiply-add, in which two halves are written. Taps of several rows have
their halves loaded to integer registers beside multiply-adds, and each such cycle inserts the high half of a vector and
the low one of the next. Single weights have no room for so many loads: each cycle with a multiply-add, and the load of
a high half beside it, is followed by one that loads the low half and inserts the high one of the vector before. No
load is then four cycles behind a multiply-add.

A tap's inputs are loaded while the one before is multiplied, each to the register that has just been read for the last
time. A pass of the loop computes two taps. The last tap of a list comes behind the loop, and loads nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

from lwc_compiler.kernels.assembly import tap_function

BEHIND = 2  # taps behind the last one of a list whose offsets may be loaded

_REGISTERS = 32
_FEWEST, _FEWEST_SINGLE = 10, 4  # sums; with fewer, multiply-adds wait for loads
_LANES = 4
_HALVES = [f"h{i}" for i in range(4)]  # integer registers for halves of vectors
_SINGLE_SCALARS = 2.5  # cycles of a tap for addresses and the loop's end, which single weights have no room for
_START = 10.0  # cycles of the first tap's loads, beside two for each vector, of which the last tap saves one


def suits(rows: int, reads: list[int]) -> bool:
    """Whether the loop can compute a tile of so many rows and inputs, and is good at it.

    Args:
        rows: output channels that share a tap: 1, or a multiple of 4.
        reads: where the inputs of a tap lie, in float32.
    """
    sums, held = rows * len(reads), len(reads) + _weights(rows)
    # Loads of a vector reach multiples of one, loads of 64 bits 4095 of them.
    near = all(read % 4 == 0 and 0 <= read // 2 < 4095 for read in reads)
    enough = sums >= (_FEWEST_SINGLE if rows == 1 else _FEWEST)
    return (rows == 1 or rows % 4 == 0) and enough and sums + held <= _REGISTERS and near


def most_vectors(rows: int) -> int:
    """The most inputs of a tap that registers suffice for."""
    return (_REGISTERS - _weights(rows)) // (rows + 1)


def tap_cycles(rows: int, vectors: int) -> float:
    """Cycles of a tap, by the rules above."""
    if rows == 1:
        return 2 * vectors + _SINGLE_SCALARS
    return rows * vectors + vectors + rows // _LANES


def start_cycles(rows: int, vectors: int) -> float:
    """Cycles of a list before its first multiply-add."""
    return _START + vectors + -(-rows // _LANES)


def tap_lines(rows: int, reads: list[int], offset_bytes: int, ahead: int = 0) -> list[str]:
    """The loop's instructions, as `tap_function` takes them.

    Args:
        rows: see `suits`.
        reads: see `suits`.
        offset_bytes: of an offset, 2 or 4.
        ahead: bytes by which weights are asked for before they are used; 0: they are not.
    """
    order = (_Singles if rows == 1 else _Blocks)(rows, [4 * read for read in reads], offset_bytes, ahead)
    return order.lines()


def tap_loop(rows: int, reads: list[int], offset_bytes: int, ahead: int = 0) -> tuple[str, str]:
    """A function in LLVM's language that adds a list of taps to the sums of a tile, and its name.

    Its parameters: offsets, values, the input, the number of taps (int32), and the sums, row by row.

    Args:
        rows: see `suits`.
        reads: see `suits`.
        offset_bytes: see `tap_lines`.
        ahead: see `tap_lines`.
    """
    lines = tap_lines(rows, reads, offset_bytes, ahead)
    sums = [f"s{i}" for i in range(rows * len(reads))]
    vectors = [*(f"in{v}" for v in range(len(reads))), *(f"w{i}" for i in range(_weights(rows)))]
    return tap_function(lines, sums, vectors, ["a0", "a1", "o", *_HALVES])


def _weights(rows: int) -> int:
    """Registers for weights: those of two single ones, or of two taps."""
    return 1 if rows == 1 else 2 * rows // _LANES


@dataclass
class _Loop:
    """What both orders have in common. A tap's number is that from the beginning of a pass on.

    Attributes:
        rows: see `suits`.
        reads: see `suits`, in bytes.
        offset_bytes: see `tap_lines`.
        ahead: see `tap_lines`.
    """

    rows: int
    reads: list[int]
    offset_bytes: int
    ahead: int

    def first(self) -> list[str]:
        """Addresses of the first two taps, and the inputs of the first."""
        addresses = [self.offset(0), self.address(0), self.offset(1), self.address(1)]
        inputs = [f"ldr {{q:in{v}}}, [{{a0}}, #{read}]" for v, read in enumerate(self.reads)]
        return ["cbz {count}, 4f", "subs {count}, {count}, #2", *addresses, *inputs]

    def around(self, body: list[str], last: list[list[str]]) -> list[str]:
        """The loop, and behind it the last tap of a list, the first or the second of a pass."""
        return ["b.lt 2f", "1:", *body, "2:", *last[0], "b 4f", "3:", *last[1], "4:"]

    def offset(self, tap: int) -> str:
        """Loads the offset of a tap."""
        load = "ldrh" if self.offset_bytes == 2 else "ldr"
        return f"{load} {{w:o}}, [{{offsets}}, #{tap * self.offset_bytes}]"

    def address(self, tap: int) -> str:
        """Makes an address of it; that of the tap two before is needed no more."""
        return f"add {{a{tap % 2}}}, {{x}}, {{o}}, lsl #2"

    def multiply_add(self, v: int, row: int, weights: str, lane: int) -> str:
        """Adds the products of an input to a sum."""
        return f"fmla {{s{row * len(self.reads) + v}}}.4s, {{in{v}}}.4s, {{{weights}}}.s[{lane}]"

    def ask(self) -> list[str]:
        """Asks for weights, if that is wanted."""
        return [f"prfm pldl1keep, [{{values}}, #{self.ahead}]"] if self.ahead else []


class _Singles(_Loop):
    """The order for single weights.

    Between two passes are five cycles without multiply-adds, for addresses and the loop's end; the next multiply-adds
    may be in odd cycles where those before were in even ones. In the middle a branch stands where a high half would be
    inserted, so that from there on insertions are two vectors behind.
    """

    def lines(self) -> list[str]:
        """The whole text."""
        vectors, size = len(self.reads), self.offset_bytes
        body, behind = list[str](), [self._insert(-1)]
        last = [behind + self._multiply(0)]
        for unit in range(2 * vectors):
            tap, v = divmod(unit, vectors)
            body += [self._multiply(tap)[v], self._read(unit)]
            body.append(f"ldr {{d:in{v}}}, [{{a{1 - tap}}}, #{self.reads[v]}]")
            body.append("b.eq 3f" if unit == vectors - 1 else behind.pop(0))
            behind.append(self._insert(unit))
            if unit == vectors - 1:
                last.append(behind + self._multiply(1))
        body += [behind[0], self.offset(3)]
        body += ["ldr {d:w0}, [{values}, #8]", "subs {count}, {count}, #2"]
        body += [self.address(3), *self.ask(), self.offset(4)]
        body += ["add {values}, {values}, #8", f"add {{offsets}}, {{offsets}}, #{2 * size}"]
        body += [self.address(4), "b.ge 1b"]
        before = [f"ldr {{{self._half(-1)}}}, [{{a0}}, #{self.reads[-1] + 8}]", "ldr {d:w0}, [{values}, #0]"]
        return [*self.first(), *before, self.offset(2), self.address(2), *self.around(body, last)]

    def _multiply(self, tap: int) -> list[str]:
        """A tap's multiply-adds."""
        return [self.multiply_add(v, 0, "w0", tap) for v in range(len(self.reads))]

    def _half(self, unit: int) -> str:
        return _HALVES[unit % (2 * len(self.reads)) % len(_HALVES)]

    def _read(self, unit: int) -> str:
        """Loads the high half of a tap's input, the tap before being multiplied."""
        tap, v = divmod(unit, len(self.reads))
        return f"ldr {{{self._half(unit)}}}, [{{a{1 - tap}}}, #{self.reads[v] + 8}]"

    def _insert(self, unit: int) -> str:
        return f"ins {{in{unit % len(self.reads)}}}.d[1], {{{self._half(unit)}}}"


@dataclass
class _Pair:
    """The high half of a vector and the low one of the next, which are inserted in one cycle.

    Attributes:
        halves: vector register, operand with an address and bytes from there on, of each.
        after: multiply-adds of a tap that come before.
        registers: integer registers that hold the halves.
    """

    halves: tuple[tuple[str, str, int], tuple[str, str, int]]
    after: int
    registers: list[str]

    @property
    def loads(self) -> list[str]:
        """Instructions that load both."""
        each = zip(self.registers, self.halves, strict=True)
        return [f"ldr {{{register}}}, [{{{base}}}, #{at}]" for register, (_, base, at) in each]

    @property
    def inserts(self) -> list[str]:
        """Instructions that insert both."""
        each = enumerate(zip(self.registers, self.halves, strict=True))
        return [f"ins {{{vector}}}.d[{1 - i}], {{{register}}}" for i, (register, (vector, _, _)) in each]


class _Blocks(_Loop):
    """The order for weights of several rows.

    Vectors are written in the order in which they become free: the next tap's weights, then its inputs. Pairs that must
    wait for a tap's last multiply-add are inserted before the first one of the next, behind the branch.
    """

    def lines(self) -> list[str]:
        """The whole text."""
        before = self._pairs(-1)
        weights = [f"ldr {{q:w{i}}}, [{{values}}, #{16 * i}]" for i in range(self.rows // _LANES)]
        begun = [load for pair in self._last(before) for load in pair.loads]
        last = [self._multiply(tap, [], {}) for tap in range(2)]
        return [*self.first(), *weights, *begun, *self.around([*self._tap(0), *self._tap(1)], last)]

    def _pairs(self, tap: int) -> list[_Pair]:
        """What is inserted while a tap is multiplied."""
        packed, vectors, end = self.rows // _LANES, len(self.reads), self.rows * len(self.reads)
        weights = [
            (f"w{(t % 2) * packed + i}", "values", 4 * self.rows * t + 16 * i)
            for t in (tap + 1, tap + 2)
            for i in range(packed)
        ]
        inputs = [(f"in{v}", f"a{(tap + 1) % 2}", read) for v, read in enumerate(self.reads)]
        stream = [*weights[:packed], *inputs, weights[packed]]
        free = [_LANES * i for i in range(packed)] + [self.rows * (v + 1) for v in range(vectors)] + [end]
        return [
            _Pair(
                ((high[0], high[1], high[2] + 8), low),
                after,
                [_HALVES[(2 * i + half) % len(_HALVES)] for half in (0, 1)],
            )
            for i, (high, low, after) in enumerate(zip(stream, stream[1:], free[1:], strict=False))
        ]

    def _last(self, pairs: list[_Pair]) -> list[_Pair]:
        """Pairs that are inserted behind the branch."""
        return [pair for pair in pairs if pair.after == self.rows * len(self.reads)]

    def _tap(self, tap: int) -> list[str]:
        """A tap's multiply-adds, and what starts beside them and between them."""
        count, size = self.rows * len(self.reads), self.offset_bytes
        pairs = self._pairs(tap)
        if tap == 0:
            early = [self.offset(2), *self.ask(), f"add {{offsets}}, {{offsets}}, #{2 * size}", self.address(2)]
            late = ["b.eq 3f"]
        else:
            early = ["subs {count}, {count}, #2", self.offset(1), self.address(3)]
            late = [f"add {{values}}, {{values}}, #{8 * self.rows}", "b.ge 1b"]
        beside = dict(enumerate(late, count - len(late)))
        for pair in reversed(pairs):
            for load in reversed(pair.loads):
                beside[max(i for i in range(pair.after - 1) if i not in beside)] = load
        free = [i for i in range(count) if i not in beside]
        crowded = max(0, len(early) - len(free))
        beside.update(zip(free, early[crowded:], strict=False))
        return [*early[:crowded], *self._multiply(tap, pairs, beside)]

    def _multiply(self, tap: int, pairs: list[_Pair], beside: dict[int, str]) -> list[str]:
        """What the tap before has left to be inserted, and a tap's multiply-adds with insertions between them."""
        lines = [line for pair in self._last(self._pairs(tap - 1)) for line in pair.inserts]
        for done in range(self.rows * len(self.reads)):
            v, row = divmod(done, self.rows)
            weights = f"w{(tap * self.rows + row) // _LANES}"
            lines += [line for pair in pairs if pair.after == done for line in pair.inserts]
            lines.append(self.multiply_add(v, row, weights, row % _LANES))
            lines += [beside[done]] if done in beside else []
        return lines
