"""What a static library takes of a microcontroller's memory, from the sections of its object files."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

_AR_MAGIC, _ELF_32_LITTLE = b"!<arch>\n", b"\x7fELF\x01\x01"
# System V ABI, chapter 4: section types and flags.
_NOBITS, _WRITE, _ALLOC, _EXECUTE = 8, 1, 2, 4


@dataclass(frozen=True)
class Footprint:
    """Bytes of a library, as a linker takes it whole.

    Attributes:
        code: machine code.
        constants: weights, indices and tables.
        data: variables with a value, in RAM and in flash.
        zeros: variables without one, in RAM.
    """

    code: int
    constants: int
    data: int
    zeros: int

    @property
    def flash(self) -> int:
        """Bytes of flash."""
        return self.code + self.constants + self.data

    @property
    def static_ram(self) -> int:
        """Bytes of RAM that the library takes whether it runs or not."""
        return self.data + self.zeros


def footprint(archive: bytes) -> Footprint:
    """What the object files of a static library take; 32-bit little-endian ELF."""
    sizes = {"code": 0, "constants": 0, "data": 0, "zeros": 0}
    for contents in _members(archive):
        for kind, flags, size in _sections(contents):
            if flags & _ALLOC:
                if flags & _EXECUTE:
                    what = "code"
                elif not flags & _WRITE:
                    what = "constants"
                else:
                    what = "zeros" if kind == _NOBITS else "data"
                sizes[what] += size
    return Footprint(**sizes)


def _members(archive: bytes) -> Iterator[bytes]:
    """The ELF files in an archive: every member has a header of 60 bytes and begins at an even place."""
    assert archive.startswith(_AR_MAGIC)
    at = len(_AR_MAGIC)
    while at < len(archive):
        size = int(archive[at + 48 : at + 58])
        contents = archive[at + 60 : at + 60 + size]
        if contents.startswith(_ELF_32_LITTLE):
            yield contents
        at += 60 + size + size % 2


def _sections(elf: bytes) -> Iterator[tuple[int, int, int]]:
    """Type, flags and size of each section."""
    (table,) = struct.unpack_from("<I", elf, 32)
    entry, count = struct.unpack_from("<HH", elf, 46)
    for number in range(count):
        _, kind, flags, _, _, size = struct.unpack_from("<6I", elf, table + number * entry)
        yield kind, flags, size
