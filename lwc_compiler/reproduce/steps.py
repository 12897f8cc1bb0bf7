"""Long work in steps, each with a folder of its own: what is done is not done again, what was interrupted goes on."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lwc_compiler as lwc
from lwc_compiler.errors import ArtifactError
from lwc_compiler.model import Model, load_model

_SETTINGS, _DONE, _MODEL, _WORK = "settings.json", "done.json", "model.onnx", "work"


@dataclass(frozen=True)
class Step:
    """A step that is done.

    Attributes:
        settings: everything it rests on, the settings of the steps before it included.
        file: the network it gave.
        seconds: time it took; where it was interrupted, since it last went on.
        interrupted: whether it was.
    """

    settings: dict[str, Any]
    file: Path
    seconds: float
    interrupted: bool

    def load(self) -> Model:
        """The network."""
        return load_model(self.file)


def take_step(folder: Path, settings: dict[str, Any], work: Callable[[Path], Model]) -> Step:
    """Does a step, or finds it done.

    Args:
        folder: its folder; made if it is not there.
        settings: everything the result depends on, fit for JSON.
        work: makes the network. It gets a folder for what it needs to go on after an interruption.

    Raises:
        ArtifactError: the folder holds a step with other settings, or cannot be written.
    """
    settings = json.loads(json.dumps(settings))
    try:
        interrupted = _claim(folder, settings)
        if not (folder / _DONE).exists():
            start = time.monotonic()
            lwc.save(work(folder / _WORK), folder / _MODEL)
            done = {"seconds": round(time.monotonic() - start, 1), "interrupted": interrupted}
            write_text(folder / _DONE, json.dumps(done))
            shutil.rmtree(folder / _WORK, ignore_errors=True)
        done = json.loads((folder / _DONE).read_text(encoding="utf-8"))
    except OSError as error:
        raise ArtifactError(f"cannot keep results in {folder}: {error.strerror or error}") from error
    return Step(settings, folder / _MODEL, **done)


def _claim(folder: Path, settings: dict[str, Any]) -> bool:
    """Makes the folder of a step, or checks that it is this step's; returns whether it was there."""
    path = folder / _SETTINGS
    if path.exists():
        if json.loads(path.read_text(encoding="utf-8")) != settings:
            raise ArtifactError(
                f"{folder} holds a step with other settings (see {_SETTINGS} in it): delete it, or give another folder"
            )
        return True
    folder.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(settings, indent=2))
    return False


def write_text(path: Path, text: str) -> None:
    """Writes a file whole or not at all."""
    new = path.with_name(f".{path.name}.new")
    new.write_text(text, encoding="utf-8")
    new.replace(path)
