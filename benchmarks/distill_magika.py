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
PER_FOLDER = 6  # files with the same suffix in the same folder
PER_SUFFIX = 400
PER_TYPE = 200  # files that the dense network gives the same type
CUTS = 1  # parts of a training file that are samples, too
SHARES = {"train": 0.6, "validation": 0.15, "test": 0.25}


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
    path: Path
    size: int

    def read(self, start: int, stop: int) -> NDArray[np.int32] | None:
        """The tokens of the part of the file from byte `start` to `stop`."""
        with self.path.open("rb") as file:
            file.seek(start)
            beginning = file.read(min(BLOCK, stop - start))
            file.seek(max(start, stop - BLOCK))
            return tokens(beginning, file.read(min(BLOCK, stop - start)))


def find_files() -> Iterator[File]:
    """Regular files below ROOTS, a few of a kind in a folder, in an order that has nothing to do with their place."""
    seen: Counter[tuple[str, str]] = Counter()
    found: list[tuple[str, File]] = []
    for root in dict.fromkeys(ROOTS):
        for folder, _, names in os.walk(root):
            for name in sorted(names, key=lambda name: chance("name", folder, name)):
                path = Path(folder, name)
                kind = path.suffix.lower() or path.name[:3]
                if seen[folder, kind] >= PER_FOLDER or path.is_symlink() or not path.is_file():
                    continue
                size = path.stat().st_size
                if size >= LEAST:
                    seen[folder, kind] += 1
                    found.append((kind, File(path, size)))
    found.sort(key=lambda entry: chance("file", str(entry[1].path)))
    suffixes: Counter[str] = Counter()
    for kind, file in found:
        suffixes[kind] += 1
        if suffixes[kind] <= PER_SUFFIX:
            yield file
