"""Finished results that are used again, by the hash of everything they depend on (`cache/keys.py`).

A result is a folder of files in the user's cache directory, with the hash of each beside them. It appears whole or not
at all, one process makes it while others wait, and one whose files have changed is not used.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from lwc_compiler.cache.folder import cache_folder
from lwc_compiler.cache.locks import locked
from lwc_compiler.errors import ArtifactError
from lwc_compiler.files import sha256_of, written_whole

_FILES, _HASHES = "files", "sha256.json"
_LIMIT_BYTES = 5 << 30
_ABANDONED_SECONDS = 24 * 60 * 60

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Entry:
    """The place of one result, which no other process uses meanwhile.

    Attributes:
        folder: of the result, where there is one; None where the cache cannot be used.
    """

    folder: Path | None

    def fetch(self) -> Path | None:
        """The files of the result; None where there is none, or it is damaged: then it is removed, which is logged."""
        if self.folder is None or not self.folder.is_dir():
            return None
        files = self.folder / _FILES
        try:
            expected = json.loads((self.folder / _HASHES).read_text(encoding="utf-8"))
            damaged = "" if expected == _hashes(files) else "files have changed"
            os.utime(self.folder)
        except (OSError, ValueError) as error:
            damaged = str(error)
        if damaged:
            logger.warning("the cached result %s is damaged (%s): it is made again", self.folder, damaged)
            shutil.rmtree(self.folder, ignore_errors=True)
            return None
        return files

    def store(self, fill: Callable[[Path], object]) -> None:
        """Keeps a result: `fill` writes its files into an empty folder. Where that fails it is logged, and no loss."""
        if self.folder is None:
            return
        try:
            with written_whole(self.folder) as new:
                (new / _FILES).mkdir()
                fill(new / _FILES)
                (new / _HASHES).write_text(json.dumps(_hashes(new / _FILES), indent=1), encoding="utf-8")
            _trim(self.folder.parent)
        except (OSError, ArtifactError) as error:
            logger.warning("the result is not kept in the cache: %s", error)


@contextmanager
def entry(key: str) -> Iterator[Entry]:
    """The entry of the result with this key; waits while another process makes it.

    Args:
        key: a hash, as `cache.keys` makes it.
    """
    folder = cache_folder() / "results"
    with ExitStack() as stack:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            stack.enter_context(locked(folder / f"{key}.lock", "makes the same result"))
        except OSError as error:
            logger.warning("the cache %s cannot be used: %s", folder, error.strerror or error)
            yield Entry(None)
        else:
            yield Entry(folder / key)


def _hashes(folder: Path) -> dict[str, str]:
    """File -> SHA-256, of every file in a folder."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {path.relative_to(folder).as_posix(): sha256_of(path) for path in files}


def _trim(folder: Path) -> None:
    """Removes results, those last used longest ago first, down to the limit; and what killed processes left."""
    now, total = time.time(), 0
    used = {path: path.stat().st_mtime for path in folder.iterdir() if path.is_dir()}
    for path in sorted(used, key=lambda path: used[path], reverse=True):
        if path.name.endswith(".partial"):
            unwanted = now - used[path] > _ABANDONED_SECONDS
        else:
            size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
            unwanted = total > 0 and total + size > _LIMIT_BYTES
            total += 0 if unwanted else size
        if unwanted:
            shutil.rmtree(path, ignore_errors=True)
