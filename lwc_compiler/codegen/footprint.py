"""What a static library takes of memory, from the sections of its object files."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass

_AR_MAGIC, _ELF = b"!<arch>\n", b"\x7fELF"
# System V ABI, chapter 4: section flags.
_WRITE, _ALLOC, _EXECUTE = 1, 2, 4


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
    """What the object files of a static library take; files that are not ELF do not count."""
    from elftools.elf.elffile import ELFFile

    sizes = {"code": 0, "constants": 0, "data": 0, "zeros": 0}
    for contents in members(archive):
        for section in ELFFile(io.BytesIO(contents)).iter_sections():
            flags = section["sh_flags"]
            if flags & _ALLOC:
                if flags & _EXECUTE:
                    what = "code"
                elif not flags & _WRITE:
                    what = "constants"
                else:
                    what = "zeros" if section["sh_type"] == "SHT_NOBITS" else "data"
                sizes[what] += section["sh_size"]
    return Footprint(**sizes)


def members(archive: bytes) -> Iterator[bytes]:
    """The ELF files in an archive: every member has a header of 60 bytes and begins at an even place."""
    assert archive.startswith(_AR_MAGIC)
    at = len(_AR_MAGIC)
    while at < len(archive):
        size = int(archive[at + 48 : at + 58])
        contents = archive[at + 60 : at + 60 + size]
        if contents.startswith(_ELF):
            yield contents
        at += 60 + size + size % 2
