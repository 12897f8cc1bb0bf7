"""Arrays of a run as `.npy` files."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lwc_compiler.errors import ArtifactError, DataError

if TYPE_CHECKING:
    from numpy.typing import NDArray


def read_arrays(files: Iterable[tuple[str, Path]]) -> dict[str, NDArray[np.generic]]:
    """Name -> array of each `.npy` file.

    Raises:
        DataError: a file cannot be read or is not an array of numbers; a name is given twice.
    """
    arrays: dict[str, NDArray[np.generic]] = {}
    for name, path in files:
        if name in arrays:
            raise DataError(f"input '{name}' is given twice")
        try:
            with path.open("rb") as file:
                arrays[name] = np.lib.format.read_array(file, allow_pickle=False)
        except OSError as error:
            raise DataError(f"input '{name}': cannot read {path}: {error.strerror or error}") from error
        except ValueError as error:
            raise DataError(f"input '{name}': {path} is not a .npy file of numbers: {error}") from error
    return arrays


def write_arrays(directory: Path, arrays: Mapping[str, NDArray[np.generic]], *, force: bool) -> dict[str, Path]:
    """Writes each array as `<name>.npy`, every file whole or not at all; the directory is made when it is not there.

    Args:
        directory: where.
        arrays: characters of a name that do not suit a file name become `_`.
        force: replace files that are there.

    Returns:
        Name -> file.

    Raises:
        ArtifactError: a file exists and `force` is not given, or cannot be written.
    """
    paths = {name: directory / (re.sub(r"[^A-Za-z0-9_.-]+", "_", name) + ".npy") for name in arrays}
    if len(set(paths.values())) < len(paths):
        paths = {name: directory / f"output{index}.npy" for index, name in enumerate(arrays)}
    for path in paths.values():
        if path.exists() and not force:
            raise ArtifactError(f"{path} exists: give another directory, or --force to replace it")
    try:
        directory.mkdir(exist_ok=True)
        for name, path in paths.items():
            new = path.with_name(f".{path.name}.{os.getpid()}.tmp")
            try:
                with new.open("wb") as file:
                    np.save(file, arrays[name])
                new.replace(path)
            finally:
                new.unlink(missing_ok=True)
    except OSError as error:
        raise ArtifactError(f"cannot write {directory}: {error.strerror or error}") from error
    return paths
