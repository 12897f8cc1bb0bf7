"""What a result depends on, as one hash: the model, the data, the options, the versions and the machine."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import platform
from contextlib import suppress
from dataclasses import asdict
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnx import ModelProto

from lwc_compiler.files import sha256_of
from lwc_compiler.model import Model, add_notes, copy_fields
from lwc_compiler.recipe.options import Recipe
from lwc_compiler.runtime.artifact import tool_versions
from lwc_compiler.training.data import is_function
from lwc_compiler.version import __version__

if TYPE_CHECKING:
    from lwc_compiler.codegen.link import Compiler
    from lwc_compiler.targets.target import Target

logger = logging.getLogger(__name__)


def unknown_input(recipe: Recipe) -> str:
    """What a result of this recipe depends on whose content cannot be told; empty when there is nothing of the kind."""
    code = [recipe.train_data, recipe.val_data, recipe.retrain.augment if recipe.retrain else None]
    return next((text for text in code if text and is_function(text)), "")


def model_key(model: Model, recipe: Recipe) -> str:
    """The key of what pruning and retraining make of a model.

    Args:
        model: as it was opened.
        recipe: data and the options of these passes are read; it has no `unknown_input`.
    """
    options = recipe.model_dump(mode="json", include={"prune", "retrain", "iterate", "train_data", "val_data"})
    return _key(result="model", model=_model(model), data=_data(recipe), options=options)


def artifact_key(
    model_key: str, source_sha256: str, recipe: Recipe, target: Target, compiler: Compiler, cuda: str, cpu: str
) -> str:
    """The key of the artifact that a recipe makes of a model.

    Args:
        model_key: of the model and the recipe.
        source_sha256: what the manifest says of the model's file.
        recipe: the whole of it is in the manifest.
        target: that the code is made for.
        compiler: that links it.
        cuda: NVIDIA's compiler, for a GPU; else empty.
        cpu: the processor that kernels are measured on; empty where none are.
    """
    return _key(
        result="artifact",
        model=model_key,
        source=source_sha256,
        options=recipe.model_dump(mode="json"),
        target=asdict(target),
        compiler=asdict(compiler),
        cuda=cuda,
        cpu=cpu,
    )


def _key(**parts: Any) -> str:
    text = json.dumps(parts | {"made_by": _versions()}, sort_keys=True, default=sorted)  # instruction sets are a set
    key = hashlib.sha256(text.encode()).hexdigest()
    logger.debug("key %s of %s", key, text)
    return key


def _model(model: Model) -> dict[str, str]:
    """Name and hash; the hash is taken tensor by tensor, since protobuf serializes no more than 2 GB."""
    digest = hashlib.sha256()
    bare = ModelProto()
    copy_fields(model.proto, bare, without={"graph"})
    copy_fields(model.proto.graph, bare.graph, without={"initializer"})
    add_notes(bare, model)
    for part in (bare, *model.proto.graph.initializer):
        data = part.SerializeToString(deterministic=True)
        digest.update(f"{len(data)}:".encode() + data)
    return {"name": model.name, "sha256": digest.hexdigest()}


def _data(recipe: Recipe) -> dict[str, Any]:
    """Hash of the content of each of the recipe's data; of a folder, that of every file."""
    content: dict[str, Any] = {}
    for text in (recipe.train_data, recipe.val_data):
        if text is not None:
            path = Path(text)
            # As the data are read, through links.
            inside = (Path(folder, name) for folder, _, names in os.walk(path, followlinks=True) for name in names)
            files = sorted(inside) if path.is_dir() else [path]
            content[text] = {str(file.relative_to(path)): sha256_of(file) for file in files if file.is_file()}
    return content


@lru_cache(maxsize=1)
def _versions() -> dict[str, str]:
    """Of lwc, with its code, and of everything it builds on."""
    versions = {"lwc": __version__, "code": _code(), "machine": platform.machine(), **tool_versions()}
    for package in ("matplotlib", "pillow"):
        with suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    return versions


def _code() -> str:
    """Hash of the package's files: two states of a clone that have one version make results of their own."""
    digest = hashlib.sha256()
    folder = Path(__file__).parent.parent
    for file in sorted(folder.rglob("*")):
        if file.is_file() and file.suffix != ".pyc":
            digest.update(f"{file.relative_to(folder)} {sha256_of(file)}\n".encode())
    return digest.hexdigest()
