"""Prunes magika, a network trained by others, with nothing but files that are on this machine: no labels.

Run: python -m benchmarks.distill_magika [--work DIR]
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

# What magika's config.min.json says about its input.
BLOCK, HALF, PADDING, LEAST = 4096, 1024, 256, 8

ROOTS = (Path("/usr"), Path("/var/lib/dpkg"), Path(sys.prefix))
PER_FOLDER = 6  # files of the same suffix in a folder
PER_SUFFIX = 400
FILES = 12000  # files the dense network looks at
PER_TYPE = 200  # files that it gives the same type
CUTS = 1  # parts of each training file
PARTS = {"train": 0.6, "validation": 0.75, "test": 1.0}  # where their share of the folders ends


def tokens(beginning: bytes, end: bytes) -> NDArray[np.int32] | None:
    """What magika reads of a file, shape (2 x HALF,): its first and its last bytes, without white space around them.

    Args:
        beginning: the first bytes of the file, at most BLOCK.
        end: the last ones.

    Returns:
        Bytes as numbers, PADDING after the first and before the last ones of a short file; None for one that magika
        does not give to its network, as fewer than LEAST bytes are left.
    """
    first, last = beginning.lstrip()[:HALF], end.rstrip()[-HALF:]
    if len(first) < LEAST:
        return None
    row = np.full(2 * HALF, PADDING, np.int32)
    row[: len(first)] = np.frombuffer(first, np.uint8)
    row[2 * HALF - len(last) :] = np.frombuffer(last, np.uint8)
    return row


def chance(*key: object) -> float:
    """A number in [0, 1) that depends on `key` alone."""
    digest = hashlib.sha256(repr(key).encode("utf-8", "surrogateescape")).digest()
    return int.from_bytes(digest[:6], "big") / 2**48


@dataclass(frozen=True)
class File:
    """A file, and its size in bytes."""

    path: Path
    size: int

    def tokens(self, start: int, stop: int) -> NDArray[np.int32] | None:
        """The tokens of the part from byte `start` to `stop`, as if it were a file of its own."""
        length = min(BLOCK, stop - start)
        with self.path.open("rb") as file:
            file.seek(start)
            beginning = file.read(length)
            file.seek(stop - length)
            return tokens(beginning, file.read(length))

    @property
    def part(self) -> str:
        """Which samples it belongs to; the files of a folder stay together, as they are often alike."""
        place = chance("part", str(self.path.parent))
        return next(part for part, end in PARTS.items() if place < end)


def find_files() -> list[File]:
    """Regular files below ROOTS, a few of a kind in a folder, in an order that has nothing to do with their place."""
    seen: Counter[tuple[str, str]] = Counter()
    found: list[tuple[str, File]] = []
    for root in ROOTS:
        for folder, _, names in os.walk(root):
            for name in sorted(names, key=lambda name: chance("name", folder, name)):
                path = Path(folder, name)
                kind = path.suffix.lower() or path.name[:3]
                if seen[folder, kind] < PER_FOLDER and path.is_file() and not path.is_symlink():
                    seen[folder, kind] += 1
                    found.append((kind, File(path, path.stat().st_size)))
    found.sort(key=lambda entry: chance("file", str(entry[1].path)))
    kinds: Counter[str] = Counter()
    few = []
    for kind, file in found:
        kinds[kind] += 1
        if kinds[kind] <= PER_SUFFIX:
            few.append(file)
    return few


def cuts(file: File) -> Iterator[NDArray[np.int32]]:
    """Parts of a file, each starting or ending at a random place."""
    for number in range(CUTS):
        ends = sorted(int(file.size * chance("cut", number, side, str(file.path))) for side in "ab")
        start, stop = [(0, ends[1]), (ends[0], file.size), tuple(ends)][number % 3]
        row = file.tokens(start, stop)
        if row is not None:
            yield row
