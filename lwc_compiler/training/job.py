"""The files that parent and child exchange in a run's directory."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from lwc_compiler.errors import TrainingError
from lwc_compiler.model import Model, load_model, write_proto
from lwc_compiler.recipe.options import PruneOptions, RetrainOptions
from lwc_compiler.training.checkpoint import load_checkpoint
from lwc_compiler.training.loop import Job
from lwc_compiler.training.masking import Pruning

JOB, MODEL, TEACHER, MASKS, CHECKPOINT, LOG = (
    "job.json",
    "model.onnx",
    "teacher.onnx",
    "masks.npz",
    "checkpoint.npz",
    "worker.log",
)


def write_job(
    directory: Path,
    model: Model,
    train_data: str,
    val_data: str | None,
    options: RetrainOptions,
    *,
    frozen: tuple[str, ...] = (),
    dropout: dict[str, float] | None = None,
    pruning: Pruning | None = None,
    teacher: Model | None = None,
) -> None:
    """Writes everything the child needs, see `Job`; the fingerprint says which checkpoints belong to it.

    Raises:
        TrainingError: the directory cannot be written.
    """
    settings: dict[str, Any] = {
        "train_data": train_data,
        "val_data": val_data,
        "options": options.model_dump(mode="json"),
        "masks": sorted(model.masks),
        "frozen": frozen,
        "dropout": dropout or {},
        "pruning": None if pruning is None else asdict(pruning) | {"goal": pruning.goal.model_dump(mode="json")},
    }
    try:
        directory.mkdir(parents=True, exist_ok=True)
        write_proto(model.proto, directory / MODEL)
        if teacher is not None:
            write_proto(teacher.proto, directory / TEACHER)
        with (directory / MASKS).open("wb") as file:
            np.savez(file, *(model.masks[name] for name in settings["masks"]))
        parts = [MODEL, f"{MODEL}.data", MASKS, *([] if teacher is None else [TEACHER, f"{TEACHER}.data"])]
        settings["fingerprint"] = fingerprint(settings, [directory / part for part in parts])
        settings["teacher"] = teacher is not None
        (directory / JOB).write_text(json.dumps(settings), encoding="utf-8")
    except OSError as error:
        raise TrainingError(f"cannot prepare the training in {directory}: {error.strerror or error}") from None


def read_job(directory: Path) -> Job:
    """What `write_job` wrote."""
    settings = json.loads((directory / JOB).read_text(encoding="utf-8"))
    with np.load(directory / MASKS, allow_pickle=False) as file:
        masks = {name: file[f"arr_{index}"] for index, name in enumerate(settings["masks"])}
    return Job(
        proto=load_model(directory / MODEL).proto,
        masks=masks,
        train_data=settings["train_data"],
        val_data=settings["val_data"],
        options=RetrainOptions.model_validate_json(json.dumps(settings["options"])),
        frozen=tuple(settings["frozen"]),
        dropout=settings["dropout"],
        pruning=_read_pruning(settings["pruning"]),
        teacher=load_model(directory / TEACHER).proto if settings["teacher"] else None,
        checkpoint=directory / CHECKPOINT,
        fingerprint=settings["fingerprint"],
    )


def is_finished(directory: Path) -> bool:
    """Whether the job in `directory` was trained to the end before."""
    found = load_checkpoint(directory / CHECKPOINT)
    if found is None:
        return False
    settings = json.loads((directory / JOB).read_text(encoding="utf-8"))
    return bool(found[0]["finished"] and found[0]["fingerprint"] == settings["fingerprint"])


def _read_pruning(settings: dict[str, Any] | None) -> Pruning | None:
    if settings is None:
        return None
    goal = PruneOptions.model_validate_json(json.dumps(settings["goal"]))
    return Pruning(goal, tuple(settings["sites"]), settings["ramp"])


def fingerprint(settings: dict[str, Any], files: list[Path]) -> str:
    """SHA-256 of the settings, the files, and the sizes of the data files."""
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for data in (settings["train_data"], settings["val_data"]):
        if data is not None and Path(data).is_file():
            digest.update(str(Path(data).stat().st_size).encode())
    for file in files:
        if file.exists():
            with file.open("rb") as stream:
                while chunk := stream.read(1 << 20):
                    digest.update(chunk)
    return digest.hexdigest()
