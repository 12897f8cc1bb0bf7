"""Checkpoints: one file with all of a run's state, replaced in one move, so that a kill always leaves a whole one."""

from __future__ import annotations

import json
import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lwc_compiler.errors import TrainingError

Groups = dict[str, dict[str, NDArray[Any]]]


def save_checkpoint(path: Path, meta: dict[str, Any], groups: Groups) -> None:
    """Writes `meta` (JSON) and groups of named arrays to an `.npz`.

    Raises:
        TrainingError: the file cannot be written.
    """
    layout = {group: list(arrays) for group, arrays in groups.items()}
    members: dict[str, Any] = {
        f"{group}_{index}": array for group, arrays in groups.items() for index, array in enumerate(arrays.values())
    }
    text = json.dumps({"meta": meta, "layout": layout})
    temporary = path.with_name(path.name + ".partial")
    try:
        with temporary.open("wb") as file:
            np.savez(file, json=np.frombuffer(text.encode(), np.uint8), **members)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise TrainingError(f"the checkpoint {path} cannot be written: {error.strerror or error}") from None


def load_checkpoint(path: Path) -> tuple[dict[str, Any], Groups] | None:
    """What `save_checkpoint` wrote; None where there is none.

    Raises:
        TrainingError: the file is damaged.
    """
    if not path.exists():
        return None
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            content = json.loads(file["json"].tobytes())
            groups = {
                group: {name: file[f"{group}_{index}"] for index, name in enumerate(names)}
                for group, names in content["layout"].items()
            }
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise TrainingError(f"the checkpoint {path} is damaged ({error}); delete it to start over") from None
    return content["meta"], groups
