"""What `manifest.json` of an artifact holds."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict, field_serializer

from lwc_compiler.codegen.result import LayerDecision, ProgramInfo, TensorSpec
from lwc_compiler.codegen.stack import StackUse
from lwc_compiler.recipe.options import Recipe

SCHEMA_VERSION = 3


@dataclass(frozen=True)
class Verification:
    """How far the library's outputs are from ONNX Runtime's on the pruned model.

    Attributes:
        errors: output name -> max |lwc - ONNX Runtime| / max |ONNX Runtime|; empty when the check could not run.
        tolerance: largest error that is accepted.
        rounds: random inputs that were tried.
        skipped: why the check could not run; empty when it did.
        emulator: what ran the code, where this machine cannot.
    """

    errors: dict[str, float]
    tolerance: float
    rounds: int
    skipped: str = ""
    emulator: str = ""

    @property
    def worst(self) -> float:
        """The largest error over all outputs."""
        return max(self.errors.values(), default=0.0)


@dataclass(frozen=True)
class Rounding:
    """How far the rounding of weights to a narrower type moves the outputs.

    Attributes:
        errors: output name -> largest max |rounded - float32| / max |float32| over the inputs, both by ONNX Runtime.
        tolerance: largest error that is accepted.
        measured_with: what the inputs were, as a phrase for the reader of the report.
    """

    errors: dict[str, float]
    tolerance: float
    measured_with: str

    @property
    def worst(self) -> float:
        """The largest error over all outputs."""
        return max(self.errors.values(), default=0.0)


@dataclass(frozen=True)
class FileEntry:
    """Size and hash of one file of the directory."""

    bytes: int
    sha256: str


class Manifest(BaseModel):
    """What `manifest.json` holds.

    Attributes:
        schema_version: version of this layout; a reader refuses others.
        lwc_version: version of lwc that wrote the directory.
        name: model name; the files are `lib<name>.so` (`.dylib` on macOS), `lib<name>.a`, `<name>.h` and `<name>.onnx`.
        symbol: prefix of the library's C functions.
        target: name of the target.
        threads: threads used when the caller does not say.
        workspace_bytes: bytes of memory one run needs beside inputs and outputs.
        weight_bytes: bytes of the constants, in the library or, with `--weights file`, in `<name>.weights`.
        inputs: graph inputs, in the order of the C function.
        outputs: graph outputs, in the order of the C function.
        source_sha256: hash of the model file that was compiled; empty when the model came from memory.
        options: the whole recipe.
        tools: tool -> version, as installed where the artifact was made.
        verification: see `Verification`.
        rounding: see `Rounding`; None where all weights are float32.
        stack: bytes of a run, and functions of the C library whose own come on top; None for a target with an
            operating system.
        layers: the decision for every layer, for the most capable processor that the library has code for; without
            the trials, which `report.json` has.
        programs: the steps of the library on each processor it has code for.
        files: file name -> size and hash, of every file but the manifest.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: int
    lwc_version: str
    name: str
    symbol: str
    target: str
    threads: int
    workspace_bytes: int
    weight_bytes: int
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    source_sha256: str
    options: Recipe
    tools: dict[str, str]
    verification: Verification
    layers: tuple[LayerDecision, ...]
    programs: tuple[ProgramInfo, ...]
    files: dict[str, FileEntry]
    rounding: Rounding | None = None
    stack: StackUse | None = None

    @field_serializer("layers")
    def _without_trials(self, layers: tuple[LayerDecision, ...]) -> list[dict[str, Any]]:
        return [{name: value for name, value in asdict(layer).items() if name != "trials"} for layer in layers]
