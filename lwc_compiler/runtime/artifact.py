"""The artifact directory: what compile writes, and what can be loaded, shipped and checked.

`manifest.json` names every other file with its size and hash. It holds no time, host name or path of this machine, so
the same input gives the same bytes. A directory appears whole or not at all: it is written beside its place and
renamed.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from lwc_compiler.errors import ArtifactError
from lwc_compiler.files import check_place, sha256_of, written_whole
from lwc_compiler.runtime.manifest import SCHEMA_VERSION, FileEntry, Manifest
from lwc_compiler.targets import find_target
from lwc_compiler.version import __version__

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from lwc_compiler.codegen.result import Lowered
    from lwc_compiler.model import Model
    from lwc_compiler.recipe.options import Recipe
    from lwc_compiler.report.document import Report
    from lwc_compiler.runtime.manifest import Rounding, Verification

MANIFEST = "manifest.json"
_TOOLS = (
    "numpy",
    "onnx",
    "onnx-graphsurgeon",
    "onnxruntime-training-cpu",
    "onnxruntime-training",
    "onnxruntime",
    "apache-tvm",
)


@dataclass(frozen=True)
class Artifact:
    """An artifact directory whose files are what its manifest says."""

    directory: Path
    manifest: Manifest

    @property
    def library(self) -> Path:
        """The shared library, where the target has an operating system."""
        return self.directory / find_target(self.manifest.target).library_file(self.manifest.name)

    @property
    def archive(self) -> Path:
        """The static library, which there is for all targets but `c`."""
        return self.directory / f"lib{self.manifest.name}.a"

    @property
    def source(self) -> Path:
        """The C source that the target `c` has in place of libraries."""
        return self.directory / f"{self.manifest.name}.c"

    @property
    def header(self) -> Path:
        """The C header of the library."""
        return self.directory / f"{self.manifest.name}.h"

    @property
    def weights(self) -> Path | None:
        """The file of weights; None where the library holds them."""
        name = f"{self.manifest.name}.weights"
        return self.directory / name if name in self.manifest.files else None

    @property
    def model(self) -> Path:
        """The pruned and retrained ONNX model."""
        return self.directory / f"{self.manifest.name}.onnx"

    @property
    def report(self) -> dict[str, Any]:
        """What `report.json` holds: the table of the layers, their total, sizes, and what each pass did."""
        values: dict[str, Any] = json.loads((self.directory / "report.json").read_text(encoding="utf-8"))
        return values


def tool_versions() -> dict[str, str]:
    """Version of Python and of each installed package that lwc builds on, without importing any."""
    versions = {"python": platform.python_version()}
    for tool in _TOOLS:
        with suppress(metadata.PackageNotFoundError):
            versions[tool] = metadata.version(tool)
    return versions


def check_destination(directory: Path, *, force: bool) -> None:
    """Refuses, before any work, a place that `write_artifact` could not write to.

    Raises:
        ArtifactError: the parent directory is missing or read-only; something is there and `force` is not given; what
            is there is not an artifact, which `force` never replaces.
    """
    check_place(directory, force=force)
    if not os.path.lexists(directory):
        return
    if (
        directory.is_symlink()
        or not directory.is_dir()
        or not (_is_empty(directory) or (directory / MANIFEST).is_file())
    ):
        raise ArtifactError(f"{directory} is not an lwc artifact: --force replaces only those; give another directory")


def write_artifact(
    directory: Path,
    lowered: Lowered,
    model: Model,
    *,
    recipe: Recipe,
    source_sha256: str,
    report: Report,
    verification: Verification,
    rounding: Rounding | None = None,
    figures: Mapping[str, Figure] | None,
    bundle: Mapping[str, bytes],
    force: bool = False,
) -> Artifact:
    """Writes the artifact of a lowered model.

    Args:
        directory: where; its parent exists.
        lowered: library, header and decisions.
        model: the pruned and retrained model, as the user may go on with it.
        recipe: what was asked for.
        source_sha256: hash of the model file that was compiled; empty when there was none.
        report: what becomes `report.json` and `report.md`.
        figures: file name -> plot, for the folder `plots`; None: they could not be drawn.
        bundle: file name -> contents of what is there for those who link the library.
        verification: outcome of the check against ONNX Runtime.
        rounding: what narrower weights change.
        force: replace the artifact that is there; it stays as it is when anything fails.

    Raises:
        ArtifactError: the directory cannot be written; nothing is left behind.
    """
    from lwc_compiler.model import save_model
    from lwc_compiler.report.write import write_report_files

    check_destination(directory, force=force)
    with written_whole(directory) as new:
        check_destination(directory, force=force)  # what another process has written there in the meantime
        if lowered.library is not None:
            (new / find_target(lowered.target).library_file(lowered.name)).write_bytes(lowered.library)
        if lowered.archive is not None:
            (new / f"lib{lowered.name}.a").write_bytes(lowered.archive)
        if lowered.source is not None:
            (new / f"{lowered.name}.c").write_text(lowered.source, encoding="utf-8")
        (new / f"{lowered.name}.h").write_text(lowered.header, encoding="utf-8")
        if lowered.weights is not None:
            (new / f"{lowered.name}.weights").write_bytes(lowered.weights)
        for name, contents in bundle.items():
            (new / name).write_bytes(contents)
        save_model(model, new / f"{lowered.name}.onnx")
        write_report_files(new, report, figures)
        manifest = Manifest(
            schema_version=SCHEMA_VERSION,
            lwc_version=__version__,
            name=lowered.name,
            symbol=lowered.symbol,
            target=lowered.target,
            threads=lowered.threads,
            workspace_bytes=lowered.workspace_bytes,
            weight_bytes=lowered.weight_bytes,
            inputs=lowered.inputs,
            outputs=lowered.outputs,
            source_sha256=source_sha256,
            options=recipe,
            tools={**tool_versions(), "compiler": lowered.compiler},
            verification=verification,
            rounding=rounding,
            stack=lowered.stack,
            layers=lowered.layers,
            programs=lowered.programs,
            files={
                path.relative_to(new).as_posix(): FileEntry(path.stat().st_size, sha256_of(path))
                for path in sorted(new.rglob("*"))
                if path.is_file()
            },
        )
        values = manifest.model_dump(mode="json")
        (new / MANIFEST).write_text(_json(values), encoding="utf-8")
    return Artifact(directory, Manifest.model_validate(values))


def copy_artifact(source: Path, directory: Path, *, force: bool = False) -> Artifact:
    """Writes a copy of the artifact in `source` to `directory`, as `write_artifact` writes one.

    Raises:
        ArtifactError: the directory cannot be written, or `source` is damaged; nothing is left behind.
    """
    read_artifact(source)
    check_destination(directory, force=force)
    with written_whole(directory) as new:
        check_destination(directory, force=force)  # what another process has written there in the meantime
        shutil.copytree(source, new, dirs_exist_ok=True)
    return read_artifact(directory)


def read_artifact(directory: str | Path) -> Artifact:
    """Reads the manifest of an artifact and checks every file against it.

    Raises:
        ArtifactError: there is no artifact, it is damaged, or a lwc with another layout made it.
    """
    directory = Path(directory)
    if directory.is_file():
        raise ArtifactError(f"{directory} is a file; an artifact is the directory that lwc compile writes")
    if not directory.is_dir():
        raise ArtifactError(f"there is no artifact directory {directory}")
    try:
        values = json.loads((directory / MANIFEST).read_text(encoding="utf-8"))
    except FileNotFoundError:
        inside = sorted(path.parent.name for path in directory.glob(f"*/{MANIFEST}"))
        hint = f"; give one of those in it: {', '.join(inside)}" if inside else ""
        raise ArtifactError(f"{directory} is not an lwc artifact: it has no {MANIFEST}{hint}") from None
    except OSError as error:
        raise ArtifactError(f"cannot read {directory / MANIFEST}: {error.strerror}") from error
    except ValueError as error:
        raise ArtifactError(f"{directory / MANIFEST} is damaged: {error}") from None
    _check_layout(directory, values)
    try:
        manifest = Manifest.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        entry = ".".join(str(part) for part in first["loc"])
        raise ArtifactError(f"{directory / MANIFEST} is damaged: {entry or 'content'}: {first['msg']}") from None
    artifact = Artifact(directory, manifest)
    code = artifact.source if find_target(manifest.target).source else artifact.archive
    for name in (code.name, artifact.header.name, artifact.model.name, "report.json", "report.md"):
        if name not in manifest.files:
            raise ArtifactError(f"{directory / MANIFEST} is damaged: files does not list {name}")
    for name, expected in manifest.files.items():
        _check_file(directory, name, expected)
    return artifact


def _check_layout(directory: Path, values: Any) -> None:
    version = values.get("schema_version") if isinstance(values, dict) else None
    if not isinstance(version, int):
        raise ArtifactError(f"{directory / MANIFEST} is damaged: it has no schema_version")
    if version > SCHEMA_VERSION:
        raise ArtifactError(
            f"{directory} was made by lwc {values.get('lwc_version', 'of unknown version')} in layout {version}; this "
            f"lwc {__version__} reads layout {SCHEMA_VERSION}: upgrade lwc, or compile the model again"
        )
    if version < SCHEMA_VERSION:
        raise ArtifactError(
            f"{directory} was made by lwc {values.get('lwc_version', 'of unknown version')} in layout {version}, whose "
            f"library is called in another way; this lwc {__version__} reads layout {SCHEMA_VERSION}: compile the "
            "model again"
        )


def _check_file(directory: Path, name: str, entry: FileEntry) -> None:
    path = directory / name
    if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
        raise ArtifactError(f"{directory / MANIFEST} is damaged: '{name}' is not a file of the directory")
    try:
        actual = FileEntry(path.stat().st_size, sha256_of(path))
    except FileNotFoundError:
        raise ArtifactError(f"{directory} is incomplete: {name} is missing; compile the model again") from None
    except OSError as error:
        raise ArtifactError(f"cannot read {path}: {error.strerror}") from error
    if actual != entry:
        raise ArtifactError(
            f"{path} was changed after it was written ({actual.bytes} bytes, sha256 {actual.sha256[:12]}...; the "
            f"manifest says {entry.bytes}, {entry.sha256[:12]}...): compile the model again"
        )


def _is_empty(directory: Path) -> bool:
    return next(directory.iterdir(), None) is None


def _json(values: Any) -> str:
    return json.dumps(values, indent=2, ensure_ascii=False) + "\n"
