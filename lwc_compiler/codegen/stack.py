"""The stack that a function of a static library needs, read from its object code.

A frame is the sum of all by which a function's instructions lower the stack pointer, a bound whichever of them run. The
frames of the deepest chain of calls add up; a call through a pointer may be one of every function whose address is
taken. For Thumb-2 and 32-bit RISC-V; encodings are those of the Arm Architecture Reference Manuals for ARMv7-M and
ARMv8-M, and of the RISC-V specification, volume I.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from lwc_compiler.codegen.footprint import members

_ALLOC, _EXECUTE = 2, 4  # System V ABI, chapter 4: section flags
_UNWINDING = "SHT_ARM_EXIDX"
_THM_CALL, _THM_JUMP24 = 10, 30  # ELF for the Arm Architecture, relocations
_RISCV_CALLS = (17, 18, 19)  # RISC-V ELF psABI: JAL, CALL, CALL_PLT


@dataclass(frozen=True)
class StackUse:
    """Bytes of stack.

    Attributes:
        bytes: of the function and all that it calls within the library.
        beside: functions from elsewhere that are called, sorted; their own stack comes on top.
    """

    bytes: int
    beside: tuple[str, ...]


@dataclass
class _Function:
    """What a function's code says; `frame` is None where the stack pointer moves in a way that is not understood."""

    frame: int | None = 0
    calls: set[str] = field(default_factory=set)
    through_pointers: bool = False


def stack_use(archive: bytes, name: str) -> StackUse | None:
    """The stack of function `name` of a static library for Thumb-2 or RV32.

    None where there is no bound: recursion, or a frame whose size is not in the code; and where the library holds no
    machine code, but WebAssembly.
    """
    from elftools.elf.elffile import ELFFile

    functions: dict[str, _Function] = {}
    taken: set[str] = set()
    for number, contents in enumerate(members(archive)):
        _read_object(ELFFile(io.BytesIO(contents)), number, functions, taken)
    if name not in functions:
        return None
    depths: dict[str, int | None] = {}

    def depth(function: str) -> int | None:
        if function in depths:
            return depths[function]
        depths[function] = None  # until it is known: who comes here meanwhile is recursive
        known = functions[function]
        below = [depth(callee) for callee in sorted(_callees(known, taken) & functions.keys())]
        if known.frame is not None and None not in below:
            depths[function] = known.frame + max((d for d in below if d is not None), default=0)
        return depths[function]

    deepest = depth(name)
    if deepest is None:
        return None
    outside = {callee for f in depths for callee in _callees(functions[f], taken)} - functions.keys()
    return StackUse(deepest, tuple(sorted(outside)))


def _callees(function: _Function, taken: set[str]) -> set[str]:
    return function.calls | taken if function.through_pointers else function.calls


def _read_object(elf: Any, number: int, functions: dict[str, _Function], taken: set[str]) -> None:
    """Adds the functions of an object file, and those whose address it takes."""
    symbols = list(elf.get_section_by_name(".symtab").iter_symbols())
    by_place: dict[tuple[int, int], str] = {}
    ranges: dict[int, list[tuple[int, int, str]]] = {}
    marks: dict[int, list[tuple[int, str]]] = {}

    def key(symbol: Any) -> str:
        return f"{number}:{symbol.name}" if symbol["st_info"]["bind"] == "STB_LOCAL" else str(symbol.name)

    for symbol in symbols:
        section, value = symbol["st_shndx"], symbol["st_value"]
        if not isinstance(section, int):
            continue
        if symbol["st_info"]["type"] == "STT_FUNC":
            start = value & ~1
            by_place[section, start] = key(symbol)
            ranges.setdefault(section, []).append((start, start + symbol["st_size"], key(symbol)))
        elif symbol.name.startswith("$"):
            marks.setdefault(section, []).append((value, symbol.name[1]))

    def named(relocation: Any) -> str | None:
        symbol = symbols[relocation["r_info_sym"]]
        kind = symbol["st_info"]["type"]
        if kind == "STT_SECTION":  # of one function, as functions have sections of their own
            return by_place.get((symbol["st_shndx"], 0))
        return key(symbol) if kind == "STT_FUNC" or symbol["st_shndx"] == "SHN_UNDEF" else None

    arm = elf["e_machine"] == "EM_ARM"
    code_calls: dict[int, dict[int, str]] = {}
    for table in elf.iter_sections():
        if table["sh_type"] not in ("SHT_REL", "SHT_RELA"):
            continue
        index = table["sh_info"]
        section = elf.get_section(index)
        if not section["sh_flags"] & _ALLOC or section["sh_type"] == _UNWINDING:
            continue
        for relocation in table.iter_relocations():
            function = named(relocation)
            calls = (_THM_CALL, _THM_JUMP24) if arm else _RISCV_CALLS
            if function is not None and relocation["r_info_type"] in calls:
                code_calls.setdefault(index, {})[relocation["r_offset"]] = function
            elif function is not None:
                taken.add(function)
    for index, found in ranges.items():
        section = elf.get_section(index)
        if not section["sh_flags"] & _EXECUTE:
            continue
        code, calls_here = section.data(), code_calls.get(index, {})
        starts = {start: name for start, _, name in found}
        for start, end, name in found:
            walk = _instructions(code, start, end, sorted(marks.get(index, [])))
            if arm:
                functions[name] = _read_thumb(walk, range(start, end), calls_here, starts)
            else:
                functions[name] = _read_riscv(walk, calls_here, starts)


def _instructions(code: bytes, start: int, end: int, marks: list[tuple[int, str]]) -> Iterator[tuple[int, int, int]]:
    """Place, first and second halfword (0 where it has one) of each instruction; data between them are left out."""
    at = start
    while at < end:
        mark = next((kind for place, kind in reversed(marks) if place <= at), "t")
        if mark == "d":
            at = min((place for place, kind in marks if place > at and kind != "d"), default=end)
            continue
        (first,) = struct.unpack_from("<H", code, at)
        long = first >> 11 in (0b11101, 0b11110, 0b11111) if mark == "t" else first & 3 == 3
        second = struct.unpack_from("<H", code, at + 2)[0] if long else 0
        yield at, first, second
        at += 4 if long else 2


def _read_thumb(
    walk: Iterator[tuple[int, int, int]], places: range, calls: Mapping[int, str], starts: Mapping[int, str]
) -> _Function:
    function, frame, aligned, known = _Function(), 0, 0, True
    for at, first, second in walk:
        if at in calls:
            function.calls.add(calls[at])
        elif first & 0xF800 == 0xF000 and second & 0xD000 in (0xD000, 0x9000):  # BL, B.W
            target = at + 4 + _branch(first, second)
            if second & 0xD000 == 0xD000 or target not in places:
                function.calls.add(starts[target])
        elif first & 0xFF87 == 0x4780 or (first & 0xFF87 == 0x4700 and first != 0x4770):  # BLX, BX but for BX LR
            function.through_pointers = True
        elif first & 0xFE00 == 0xB400:  # PUSH
            frame += 4 * (first & 0x1FF).bit_count()
        elif first & 0xFF80 == 0xB080:  # SUB SP, #
            frame += 4 * (first & 0x7F)
        elif first == 0xE92D:  # PUSH.W
            frame += 4 * second.bit_count()
        elif first & 0xFFBF == 0xED2D and second & 0x0E00 == 0x0A00:  # VPUSH
            frame += 4 * (second & 0xFF)
        elif first == 0xF84D and second & 0x0F00 == 0x0D00:  # STR [SP, #-]!
            frame += second & 0xFF
        elif first == 0xE96D:  # STRD [SP, #-]!
            frame += 4 * (second & 0xFF)
        elif first & 0xFBEF == 0xF1AD:  # SUB.W from SP, also into the register that it is aligned in
            frame += _thumb_constant((first >> 10 & 1) << 11 | (second >> 12 & 7) << 8 | second & 0xFF)
        elif first & 0xFBFF == 0xF2AD:  # SUBW from SP
            frame += (first >> 10 & 1) << 11 | (second >> 12 & 7) << 8 | second & 0xFF
        elif first == 0xF36F and second & 0x70C0 == 0:  # BFC of the lowest bits, before it becomes SP
            aligned = max(aligned, (1 << (second & 0x1F) + 1) - 4)  # it is a multiple of 4 before
        elif (first & 0xFFEF == 0xEBAD and second >> 8 & 0xF == 13) or first & 0xFF87 == 0x4485:  # SP -/+ a register
            known = False
    function.frame = frame + aligned if known else None
    return function


def _branch(first: int, second: int) -> int:
    """Distance of BL and B.W, from the place 4 bytes behind."""
    sign = first >> 10 & 1
    i1, i2 = 1 - (second >> 13 & 1 ^ sign), 1 - (second >> 11 & 1 ^ sign)
    distance = sign << 24 | i1 << 23 | i2 << 22 | (first & 0x3FF) << 12 | (second & 0x7FF) << 1
    return distance - (sign << 25)


def _thumb_constant(coded: int) -> int:
    """ThumbExpandImm of 12 bits."""
    byte = coded & 0xFF
    if coded >> 10 == 0:
        return (byte, byte * 0x00010001, byte * 0x01000100, byte * 0x01010101)[coded >> 8]
    rotation = coded >> 7
    value = 0x80 | coded & 0x7F
    return (value >> rotation | value << 32 - rotation) & 0xFFFFFFFF


def _read_riscv(walk: Iterator[tuple[int, int, int]], calls: Mapping[int, str], starts: Mapping[int, str]) -> _Function:
    function, frame, known, called = _Function(), 0, True, -1
    for at, first, second in walk:
        word = second << 16 | first
        opcode, target = word & 0x7F, word >> 7 & 0x1F
        if at in calls:
            function.calls.add(calls[at])
            called = at + 4  # the jump of the pair
        elif first & 3 == 3 and opcode == 0x67 and at != called:  # JALR, but for RET
            function.through_pointers |= word != 0x8067
        elif first & 0xE07F == 0x8002 and first & 0xF80:  # C.JR, C.JALR, but for RET
            function.through_pointers |= first != 0x8082
        elif first & 3 == 3 and opcode == 0x6F and target:  # JAL
            function.calls.add(starts[at + _jump(word)])
        elif first & 0xEF83 == 0x6101:  # C.ADDI16SP
            frame += max(0, -_signed(_bits(first, (12, 9), (6, 4), (5, 6), (4, 8), (3, 7), (2, 5)), 10))
        elif first & 0xEF83 == 0x0101:  # C.ADDI SP
            frame += max(0, -_signed(first >> 7 & 0x20 | first >> 2 & 0x1F, 6))
        elif first & 3 == 3 and target == 2 and opcode == 0x13 and word >> 12 & 7 in (0, 7):  # ADDI, ANDI into SP
            from_sp, constant = word >> 15 & 0x1F == 2, _signed(word >> 20, 12)
            frame += max(0, -constant) if from_sp else 0
        elif (first & 3 == 3 and target == 2 and opcode == 0x33) or first & 0xFF83 == 0x9102:  # ADD, SUB, C.ADD into SP
            known = False
    function.frame = frame if known else None
    return function


def _bits(value: int, *moves: tuple[int, int]) -> int:
    """The bits of `value` that are moved from a place to another."""
    return sum((value >> source & 1) << to for source, to in moves)


def _jump(word: int) -> int:
    """Distance of JAL."""
    return _signed(
        word >> 31 << 20 | (word >> 12 & 0xFF) << 12 | (word >> 20 & 1) << 11 | (word >> 21 & 0x3FF) << 1, 21
    )


def _signed(value: int, bits: int) -> int:
    return value - (1 << bits) if value >> bits - 1 else value
