"""What of a compiled network a program is linked with, to run it where this process cannot."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lwc_compiler.errors import NotRunError
from lwc_compiler.targets import find_target

if TYPE_CHECKING:
    from lwc_compiler.codegen.result import Lowered, TensorSpec
    from lwc_compiler.runtime.artifact import Artifact
    from lwc_compiler.targets.target import Target


@dataclass(frozen=True)
class Linkable:
    """A static library and what its caller has to know.

    Attributes:
        target: what it is for.
        symbol: prefix of its C names.
        archive: the static library.
        header: its C header.
        weights: the file of weights; None where the library holds them.
        inputs: in the order the library takes them.
        outputs: in the order the library takes them.
        cc: command of the compiler that links programs with it, see `find_compiler`.
    """

    target: Target
    symbol: str
    archive: bytes
    header: bytes
    weights: bytes | None
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    cc: str | None = None

    @staticmethod
    def of_artifact(artifact: Artifact) -> Linkable:
        """Of an artifact that is read and checked.

        Raises:
            NotRunError: the artifact is C source.
        """
        manifest = artifact.manifest
        target = find_target(manifest.target)
        if target.source:
            raise NotRunError(f"{artifact.directory} is C source: compile it into a program, as its README.md says")
        return Linkable(
            target,
            manifest.symbol,
            artifact.archive.read_bytes(),
            artifact.header.read_bytes(),
            None if artifact.weights is None else artifact.weights.read_bytes(),
            manifest.inputs,
            manifest.outputs,
            manifest.options.lower.cc,
        )

    @staticmethod
    def of_lowered(lowered: Lowered, cc: str | None = None) -> Linkable:
        """Of a library in memory."""
        assert lowered.archive is not None
        return Linkable(
            find_target(lowered.target),
            lowered.symbol,
            lowered.archive,
            lowered.header.encode(),
            lowered.weights,
            lowered.inputs,
            lowered.outputs,
            cc,
        )
