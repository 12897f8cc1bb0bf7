"""How much memory the objects of a static library take: the sizes of their sections.

Formats: `ar` as in System V and GNU, ELF as in the System V gABI, chapter 4.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

_ELF = b"\x7fELF"
_NOBITS, _WRITE, _ALLOC, _EXECUTE = 8, 1, 2, 4


@dataclass(frozen=True)
class SectionSizes:
    """Bytes of all objects, as far as a program loads them.

    Attributes:
        code: machine code.
        constants: read-only data.
        data: data that is written or relocated, with first contents.
        zeros: data that begins as zeros.
    """

    code: int
    constants: int
    data: int
    zeros: int


def section_sizes(archive: bytes) -> SectionSizes | None:
    """The sizes of a static library; None where its objects are not ELF."""
    code = constants = data = zeros = 0
    for member in _members(archive):
        if not member.startswith(_ELF):
            return None
        for kind, flags, size in _sections(member):
            if not flags & _ALLOC:
                continue
            if flags & _EXECUTE:
                code += size
            elif not flags & _WRITE:
                constants += size
            elif kind == _NOBITS:
                zeros += size
            else:
                data += size
    return SectionSizes(code, constants, data, zeros)


def _members(archive: bytes) -> Iterator[bytes]:
    """The files of an archive, but for its tables of symbols and of long names."""
    place = len(b"!<arch>\n")
    while place < len(archive):
        name, size = archive[place : place + 16], int(archive[place + 48 : place + 58])
        if not name.startswith((b"/ ", b"// ", b"/SYM64/", b"__.SYMDEF", b"#1/")):
            yield archive[place + 60 : place + 60 + size]
        place += 60 + size + size % 2


def _sections(elf: bytes) -> Iterator[tuple[int, int, int]]:
    """Type, flags and size of every section."""
    order = "<" if elf[5] == 1 else ">"
    if elf[4] == 2:
        (table,) = struct.unpack_from(f"{order}Q", elf, 40)
        entry, count = struct.unpack_from(f"{order}HH", elf, 58)
        layout = f"{order}II3QQ"
    else:
        (table,) = struct.unpack_from(f"{order}I", elf, 32)
        entry, count = struct.unpack_from(f"{order}HH", elf, 46)
        layout = f"{order}II3II"
    for i in range(count):
        _name, kind, flags, _address, _offset, size = struct.unpack_from(layout, elf, table + i * entry)
        yield kind, flags, size
