"""Opens an artifact, or a library in memory, for running from Python."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from lwc_compiler.errors import TargetError
from lwc_compiler.runtime.artifact import Artifact, read_artifact
from lwc_compiler.runtime.device_session import DeviceSession
from lwc_compiler.runtime.session import Session
from lwc_compiler.targets import find_target, missing_platform

if TYPE_CHECKING:
    from lwc_compiler.codegen.result import Lowered
    from lwc_compiler.runtime.manifest import Manifest


def load(directory: str | Path, threads: int | None = None) -> Session:
    """Opens an artifact for running.

    Args:
        directory: what compile wrote.
        threads: threads of the session, at least 1; None: what the artifact was compiled for.

    Raises:
        ArtifactError: the artifact is missing, damaged, or newer than this lwc.
        OptionError: `threads` is below 1.
        TargetError: this machine cannot run the artifact's code.
    """
    return open_session(read_artifact(directory), threads)


def open_session(artifact: Artifact, threads: int | None = None) -> Session:
    """What `load` does, for an artifact that is read and checked already."""
    manifest = artifact.manifest
    target = find_target(manifest.target)
    if target.source:
        raise TargetError(f"{artifact.directory} is C source: compile it into a program, as its README.md says")
    other = missing_platform(target)
    if other:
        ways = {
            "linux": "run it there, or by --via qemu or --via ssh://USER@HOST",
            "none": "--via qemu runs it on an emulated board where there is one, and README.md says how to link it",
            "macos": "run it there",
        }
        raise TargetError(
            f"{artifact.directory} is for {manifest.target} ({other}), which this machine is not: {ways[target.os]}"
        )
    threads = manifest.threads if threads is None else threads
    return _session(artifact.library, manifest, threads, artifact.weights)


def open_lowered(lowered: Lowered, threads: int) -> Session:
    """A session of a library in memory, for this machine, on `threads` threads."""
    assert lowered.library is not None
    with tempfile.TemporaryDirectory(prefix="lwc-") as folder:
        library = Path(folder) / find_target(lowered.target).library_file(lowered.name)
        library.write_bytes(lowered.library)
        weights = None
        if lowered.weights is not None:
            weights = Path(folder) / f"{lowered.name}.weights"
            weights.write_bytes(lowered.weights)
        return _session(library, lowered, threads, weights)


def _session(library: Path, network: Manifest | Lowered, threads: int, weights: Path | None) -> Session:
    """A session of a library, which `network` describes, for processors or a GPU."""
    if find_target(network.target).gpu is not None:
        return DeviceSession(library, network.symbol, network.inputs, network.outputs, threads)
    return Session(library, network.symbol, network.inputs, network.outputs, threads, network.target, weights)
