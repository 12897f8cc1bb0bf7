"""The loop over a list of taps as assembly for Cortex-A53, which starts instructions in the order of the program.

LLVM decides where loads stand between multiply-adds, and it has a wrong picture of this core. Published measurements
(ncnn's guide to dual issue on Cortex-A53, the tests of instructions in github.com/daniestevez/qsdr; XNNPACK's and
others' kernels for this core are built on the same) say:

- A multiply-add of a vector starts in every cycle. What may start beside it, after it, is an instruction on integer
  registers, a load to one of them included, but no load to a vector register.
- A load of a whole vector takes two cycles in which nothing else starts. One of its low half takes one, and an
  insertion of 64 bits from an integer register into another vector starts beside it.
- No load to a vector register starts in the fourth cycle after a multiply-add.

So a vector is loaded in halves, the high one by way of an integer register, and multiply-adds come in groups of three
(or two) with one (or two) of these loads before each: every fourth cycle has a load, and none of the multiply-adds
before is in its way. A tap's inputs are loaded while the one before is multiplied, each to the register that has just
been read for the last time; two taps at a time have weights and addresses, in registers of their own.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from lwc_compiler.kernels.assembly import tap_function

BEHIND = 2  # taps behind the last one of a list whose inputs may be loaded, and are not used

_REGISTERS = 32
_FEWEST = 10  # sums; with fewer, multiply-adds wait for loads
_CYCLE = 4  # a load to a vector register in every so many cycles is in no multiply-add's way
# Cycles for addresses and the loop's end of a tap, which single weights have no room for beside multiply-adds; those
# of the first tap's loads, beside two for each vector.
_SCALARS, _SINGLE_SCALARS, _START = 2.0, 4.0, 10.0


def suits(rows: int, reads: list[int]) -> bool:
    """Whether the loop can compute a tile of so many rows and inputs, and is good at it.

    Args:
        rows: output channels that share a tap: 1, or a multiple of 4.
        reads: where the inputs of a tap lie, in float32.
    """
    sums, held = rows * len(reads), len(reads) + 2 * _packed(rows)
    # Loads of a vector reach multiples of one, loads of 64 bits 4095 of them.
    near = all(read % 4 == 0 and 0 <= read // 2 < 4095 for read in reads)
    return (rows == 1 or rows % 4 == 0) and sums >= _FEWEST and sums + held <= _REGISTERS and near


def most_vectors(rows: int) -> int:
    """The most inputs of a tap that registers suffice for."""
    return (_REGISTERS - 2 * _packed(rows)) // (rows + 1)


def tap_cycles(rows: int, vectors: int) -> float:
    """Cycles of a tap, by the rules above."""
    sums = rows * vectors
    spent = max(sums + vectors + _packed(rows), sums * _CYCLE / (_CYCLE - 1))
    return spent + (_SINGLE_SCALARS if rows == 1 else _SCALARS)


def start_cycles(rows: int, vectors: int) -> float:
    """Cycles of a list before its first multiply-add."""
    return _START + 2 * (vectors + _packed(rows))


def tap_lines(rows: int, reads: list[int], offset_bytes: int, ahead: int = 0) -> list[str]:
    """The loop's instructions, names of operands in braces, where a letter before a colon is the part that is meant.

    Operands: `offsets`, `values`, `count` (of taps), the input `x`, the sums `s0`, ... row by row, and registers.

    Args:
        rows: see `suits`.
        reads: see `suits`.
        offset_bytes: of an offset, 2 or 4.
        ahead: bytes by which weights are asked for before they are used; 0: they are not.
    """
    return _Order(rows, [4 * read for read in reads], offset_bytes, ahead).lines()


def tap_loop(rows: int, reads: list[int], offset_bytes: int, ahead: int = 0) -> tuple[str, str]:
    """A function in LLVM's language that adds a list of taps to the sums of a tile, and its name.

    Its parameters: offsets, values, the input, the number of taps (int32), and the sums, row by row.

    Args:
        rows: see `suits`.
        reads: see `suits`.
        offset_bytes: see `tap_lines`.
        ahead: see `tap_lines`.
    """
    order = _Order(rows, [4 * read for read in reads], offset_bytes, ahead)
    sums = [f"s{i}" for i in range(rows * len(reads))]
    return tap_function(order.lines(), sums, order.vectors, ["a0", "a1", "o", "weight", *order.halves])


def _packed(rows: int) -> int:
    """Vectors of a tap's weights."""
    return -(-rows // 4)


@dataclass
class _Load:
    """A vector that is to be loaded.

    Attributes:
        register: where to.
        base: operand with an address.
        at: bytes from there on.
        tap: that reads it.
        free: the tap, and its number of multiply-adds, after which the register may be written.
        half: the integer register for its high half, once the low one is loaded.
    """

    register: str
    base: str
    at: int
    tap: int
    free: tuple[int, int]
    half: str = ""

    @property
    def low(self) -> str:
        """Loads the low half."""
        return f"ldr {{d:{self.register}}}, [{{{self.base}}}, #{self.at}]"

    @property
    def high(self) -> str:
        """Loads the high half."""
        return f"ldr {{{self.half}}}, [{{{self.base}}}, #{self.at + 8}]"

    @property
    def insert(self) -> str:
        """Puts it into its place."""
        return f"ins {{{self.register}}}.d[1], {{{self.half}}}"


@dataclass
class _Order:
    """Writes the loop, an instruction a line, with names of operands in braces."""

    rows: int
    reads: list[int]  # in bytes
    offset_bytes: int
    ahead: int
    out: list[str] = field(default_factory=list)
    waiting: list[_Load] = field(default_factory=list)  # for the low half's load,
    halved: list[_Load] = field(default_factory=list)  # for the high half's,
    loaded: list[_Load] = field(default_factory=list)  # for the insertion

    @property
    def packed(self) -> int:
        """Vectors of a tap's weights."""
        return _packed(self.rows)

    @property
    def at_once(self) -> int:
        """Loads to vector registers in a group of four cycles."""
        vectors = len(self.reads)
        return 1 if (_CYCLE - 1) * (vectors + self.packed) <= self.rows * vectors else 2

    @property
    def vectors(self) -> list[str]:
        """Vector registers beside the sums."""
        weights = [f"w{turn}{i}" for turn in range(2) for i in range(self.packed)]
        return [*(f"in{v}" for v in range(len(self.reads))), *weights]

    @property
    def halves(self) -> list[str]:
        """Integer registers for high halves."""
        return [f"h{i}" for i in range(4 * self.at_once)]

    def lines(self) -> list[str]:
        """The whole text."""
        tap, body, state = 0, list[str](), None
        while (now := self._state(tap)) != state:
            state, body = now, [*self._tap(tap), "b.lt 2f", *self._tap(tap + 1), "b.gt 1b"]
            tap += 2
        # What the loop inserts first, of the first tap: its weights lie where the second pass finds those of the third.
        begun = [replace(load, at=load.at - 8 * self.rows * (load.base == "values")).high for load in self.loaded]
        first = ["cbz {count}, 2f", self._offset(0), self._address(0), self._offset(1), self._address(1)]
        first += [f"ldr {{q:in{v}}}, [{{a0}}, #{read}]" for v, read in enumerate(self.reads)]
        kind = "s" if self.rows == 1 else "q"
        first += [f"ldr {{{kind}:w0{i}}}, [{{values}}, #{16 * i}]" for i in range(self.packed)]
        return [*first, *begun, "1:", *body, "2:"]

    def _state(self, tap: int) -> object:
        """What the order of the next taps follows from."""
        return [
            [(load.register, load.half, load.tap - tap) for load in loads]
            for loads in (self.waiting, self.halved, self.loaded)
        ]

    def _offset(self, number: int) -> str:
        load = "ldrh" if self.offset_bytes == 2 else "ldr"
        return f"{load} {{w:o}}, [{{offsets}}, #{number * self.offset_bytes}]"

    def _address(self, turn: int) -> str:
        return f"add {{a{turn}}}, {{x}}, {{o}}, lsl #2"

    def _tap(self, tap: int) -> list[str]:
        """A tap's multiply-adds, and between them what the next one needs."""
        self.out = []
        turn, count, group = tap % 2, self.rows * len(self.reads), _CYCLE - self.at_once
        self._want(tap)
        early, late = self._scalars(turn)
        changed = {f"a{turn}", "values"} if turn else {"a0"}  # by `late`
        for done in range(count):
            v, row = divmod(done, self.rows)
            if (done if self.rows == 1 else turn * count + done) % group == 0:
                self._load((tap, done))
                # All that starts beside multiply-adds of single weights are high halves.
                if self.rows == 1 and done == 0:
                    self.out += early
                    early = []
                elif self.rows == 1 and count - done <= group and not self._from(changed):
                    self.out += late
                    late = []
            registers = (f"in{v}", f"w{turn}{row // 4}")
            self._finish(registers, tap)
            total = f"s{row * len(self.reads) + v}"
            self.out.append(f"fmla {{{total}}}.4s, {{{registers[0]}}}.4s, {{{registers[1]}}}.s[{row % 4}]")
            if early and (done == 0 or not self.halved):
                self.out.append(early.pop(0))
            elif self.halved:
                self._read_half()
            elif late and count - done <= len(late) + 1 and not self._from(changed):
                self.out.append(late.pop(0))
        while self._from(changed):
            if any(load.base in changed for load in self.halved):
                self._read_half()
            else:
                self._start(next(load for load in self.waiting if load.base in changed))
        return [*self.out, *early, *late]

    def _want(self, tap: int) -> None:
        """Has the next tap's vectors wait to be loaded."""
        turn = tap % 2
        for i in range(self.packed if self.rows > 1 else 0):
            at = (turn + 1) * 4 * self.rows + 16 * i
            self.waiting.append(_Load(f"w{1 - turn}{i}", "values", at, tap + 1, (tap, 0)))
        for v, read in enumerate(self.reads):
            self.waiting.append(_Load(f"in{v}", f"a{1 - turn}", read, tap + 1, (tap, (v + 1) * self.rows)))

    def _scalars(self, turn: int) -> tuple[list[str], list[str]]:
        """What a tap does with integers, at its beginning and at its end."""
        size = 4 * self.rows
        early, late = [self._offset(turn + 2)], [self._address(turn)]
        if turn == 0:
            early.append("subs {count}, {count}, #2")
        if self.rows == 1:
            early.append(f"ldr {{w:weight}}, [{{values}}, #{(turn + 1) * size}]")
            late.append(f"fmov {{s:w{1 - turn}0}}, {{w:weight}}")
        if turn == 0 and self.ahead:
            early.append(f"prfm pldl1keep, [{{values}}, #{self.ahead}]")
        if turn == 1:
            late.append(f"add {{values}}, {{values}}, #{2 * size}")
            late.append(f"add {{offsets}}, {{offsets}}, #{2 * self.offset_bytes}")
        return early, late

    def _load(self, now: tuple[int, int]) -> None:
        """The loads before a group of multiply-adds, and insertions beside them."""
        for _ in range(self.at_once):
            insert = self.loaded[0] if len(self.loaded) >= self.at_once else None
            ready = next((load for load in self.waiting if load.free <= now), None)
            if ready:
                self._start(ready)
            if insert in self.loaded:
                self._insert()

    def _start(self, load: _Load) -> None:
        """Loads a low half."""
        self.waiting.remove(load)
        load.half = self.halves[self.vectors.index(load.register) % len(self.halves)]
        while load.half in [other.half for other in [*self.halved, *self.loaded]]:
            if not self.loaded:
                self._read_half()
            self._insert()
        self.out.append(load.low)
        self.halved.append(load)

    def _read_half(self) -> None:
        self.loaded.append(self.halved.pop(0))
        self.out.append(self.loaded[-1].high)

    def _insert(self) -> None:
        self.out.append(self.loaded.pop(0).insert)

    def _finish(self, registers: tuple[str, str], tap: int) -> None:
        """Has everything in the registers that a multiply-add of the tap reads."""
        for load in [load for load in self.waiting if load.register in registers and load.tap <= tap]:
            self._start(load)
        while any(load.register in registers for load in self.halved):
            self._read_half()
        while any(load.register in registers for load in self.loaded):
            self._insert()

    def _from(self, addresses: set[str]) -> list[_Load]:
        """What is still to be loaded from some addresses."""
        return [load for load in [*self.waiting, *self.halved] if load.base in addresses]
