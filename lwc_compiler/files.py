"""Files and directories that are written whole or not at all, where nothing is replaced unless that is asked for."""

from __future__ import annotations

import hashlib
import os
import shutil
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from lwc_compiler.cache.locks import locked
from lwc_compiler.errors import ArtifactError

if TYPE_CHECKING:
    from collections.abc import Iterator


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, as hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def check_place(path: Path, *, force: bool) -> None:
    """Refuses, before any work, a place that nothing could be written to.

    Raises:
        ArtifactError: the parent directory is missing or read-only, or something is there and `force` is not given.
    """
    parent = path.absolute().parent
    if not parent.is_dir():
        raise ArtifactError(f"cannot write {path}: there is no directory {parent}; create it first")
    if not os.access(parent, os.W_OK):
        raise ArtifactError(f"cannot write {path}: {parent} is read-only")
    if os.path.lexists(path) and not force:
        raise ArtifactError(f"{path} exists: give another place, or --force to replace it")


def check_file(path: Path, *, force: bool) -> None:
    """Refuses, before any work, a place that a file could not be written to.

    Raises:
        ArtifactError: the parent directory is missing or read-only; something is there and `force` is not given; what
            is there is not a file.
    """
    check_place(path, force=force)
    if path.is_dir():
        raise ArtifactError(f"{path} is a directory: give a file name")


@contextmanager
def written_whole(directory: Path) -> Iterator[Path]:
    """An empty directory to fill, which becomes `directory` when the block ends well and vanishes when it does not.

    Processes that write the same directory take turns. What one that was killed has left behind is cleared away, and a
    directory that it was about to replace is put back.

    Raises:
        ArtifactError: `directory` cannot be written.
    """
    parent = directory.absolute().parent
    staging = parent / f".{directory.name}.partial"
    new, old = staging / "new", staging / "old"
    try:
        with locked(parent / f".{directory.name}.lock", f"writes {directory}"):
            _put_back(old, directory)
            _remove(staging)
            try:
                new.mkdir(parents=True)
                yield new
                if directory.exists():
                    directory.rename(old)
                new.rename(directory)
            finally:
                _put_back(old, directory)
                shutil.rmtree(staging, ignore_errors=True)
    except OSError as error:
        raise ArtifactError(f"cannot write {directory}: {error.strerror or error}") from error


def _put_back(old: Path, directory: Path) -> None:
    """Where a process was stopped between two renames, `old` is what was in `directory`."""
    if old.exists() and not directory.exists():
        old.rename(directory)


def _remove(directory: Path) -> None:
    with suppress(FileNotFoundError):
        shutil.rmtree(directory)
