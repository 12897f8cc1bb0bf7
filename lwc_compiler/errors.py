"""The errors lwc raises on purpose: one tree, one exit code a class.

A message says what was found, where (file, node, operator), what is accepted and what to do next. The command line
prints the message alone and exits with the class's code; anything that is not an `LwcError` is a defect in lwc.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

_MOST_LINES = 20


class LwcError(Exception):
    """Base of every error lwc raises on purpose."""

    exit_code: ClassVar[int] = 1


class OptionError(LwcError):
    """An option or a recipe entry is outside what it accepts, or two of them contradict each other."""

    exit_code = 2


class ModelError(LwcError):
    """The model file cannot be read, is not valid ONNX, or holds values no pass can work on (NaN, Inf)."""

    exit_code = 3


@dataclass(frozen=True)
class Refusal:
    """Why a model cannot be compiled.

    Attributes:
        node: label of the node; empty where it is no single node.
        operator: its ONNX operator type, with the domain where that is not ONNX's own.
        reason: what stands in the way.
    """

    node: str
    operator: str
    reason: str

    def __str__(self) -> str:
        return f"node '{self.node}' ({self.operator}) cannot be lowered: {self.reason}" if self.node else self.reason


class UnsupportedError(LwcError):
    """The model is valid, but uses an operator, a type, an opset or a shape that lwc does not handle.

    Attributes:
        refusals: everything that was found to stand in the way, at least one.
    """

    exit_code = 4

    def __init__(self, message: str, refusals: Sequence[Refusal] = ()) -> None:
        super().__init__(message)
        self.refusals = tuple(refusals) or (Refusal("", "", message),)

    @classmethod
    def of(cls, refusals: Sequence[Refusal]) -> UnsupportedError:
        """The error that names all of `refusals`, at least one."""
        lines = [str(refusal) for refusal in refusals]
        if len(lines) == 1:
            return cls(lines[0], refusals)
        shown = lines[:_MOST_LINES] + ([f"and {len(lines) - _MOST_LINES} more"] if len(lines) > _MOST_LINES else [])
        return cls("\n  ".join([f"the model cannot be lowered, for {len(lines)} reasons:", *shown]), refusals)


class DataError(LwcError):
    """Training, validation or input data does not exist, does not fit the model, or holds NaN or Inf."""

    exit_code = 5


class TrainingError(LwcError):
    """Training could not go on: the loss diverged, a gradient is wrong, or the training process died."""

    exit_code = 6


class TargetError(LwcError):
    """The target is unknown; this machine, an emulator or a board cannot run its code, or has too little memory."""

    exit_code = 7


class NotRunError(TargetError):
    """A network was not run to its end in an emulator or on a board, for a reason that says nothing of its code."""


class ToolchainError(LwcError):
    """A tool lwc needs is missing or broken: a C compiler, or a clean installation of ONNX Runtime."""

    exit_code = 8


class ArtifactError(LwcError):
    """An artifact directory or an output file cannot be written, read or trusted."""

    exit_code = 9


class VerificationError(LwcError):
    """The generated code does not compute what ONNX Runtime computes on the same model."""

    exit_code = 10


class RoundingError(VerificationError):
    """Weights of a narrower type change the outputs by more than the user accepts."""


class GateError(LwcError):
    """A gate of the recipe failed; what was made is written all the same. Raised as one of its subclasses."""

    exit_code = 20


class AccuracyGateError(GateError):
    """The model is less accurate than the recipe asks for."""

    exit_code = 21


class AgreementGateError(GateError):
    """The model decides differently from the original on more samples than the recipe allows."""

    exit_code = 22


class SizeGateError(GateError):
    """A library, a packed file or the memory it takes is larger than the recipe allows."""

    exit_code = 23


class SpeedGateError(GateError):
    """The code is slower than the recipe allows."""

    exit_code = 24


class RegressionGateError(GateError):
    """Accuracy, size or speed fell behind a baseline further than the recipe allows."""

    exit_code = 25


class TimeLimitError(LwcError):
    """A command was not done within its --timeout."""

    exit_code = 124  # as of coreutils' `timeout`
