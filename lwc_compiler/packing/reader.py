"""Reading bytes that cannot be trusted, front to back; the numbers in them are varints."""

from __future__ import annotations

from lwc_compiler.errors import ArtifactError

_LONGEST = 9  # bytes of a number: 63 bits


def damaged(what: str) -> ArtifactError:
    """The error for a packed file that is not as `pack` writes it."""
    return ArtifactError(f"the packed model is damaged: {what}; pack the model again, or copy the file again")


def varint(number: int) -> bytes:
    """A number from 0 to 2^63 - 1 in 7 bits a byte, least significant first; all bytes but the last have bit 7 set."""
    parts = bytearray()
    while number > 0x7F:
        parts.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*parts, number])


class Reader:
    """A place in bytes. Everything that would lead past the end raises `ArtifactError`."""

    def __init__(self, data: bytes | memoryview) -> None:
        self._data = memoryview(data)
        self.position = 0

    @property
    def left(self) -> int:
        """Bytes that are not read yet."""
        return len(self._data) - self.position

    def take(self, count: int) -> memoryview:
        """The next `count` bytes."""
        if count > self.left:
            raise damaged(f"{count} bytes are announced where {self.left} are left")
        self.position += count
        return self._data[self.position - count : self.position]

    def byte(self) -> int:
        """The next byte."""
        return self.take(1)[0]

    def varint(self) -> int:
        """The next number; see `varint`."""
        number = 0
        for index in range(_LONGEST):
            byte = self.byte()
            number |= (byte & 0x7F) << 7 * index
            if byte < 0x80:
                return number
        raise damaged("a number has more than 63 bits")
