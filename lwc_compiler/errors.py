"""The errors lwc raises on purpose: one tree, one exit code a class.

A message says what was found, where (file, node, operator), what is accepted and what to do next. The command line
prints the message alone and exits with the class's code; anything that is not an `LwcError` is a defect in lwc.
"""

from __future__ import annotations

from typing import ClassVar


class LwcError(Exception):
    """Base of every error lwc raises on purpose."""

    exit_code: ClassVar[int] = 1


class OptionError(LwcError):
    """An option or a recipe entry is outside what it accepts, or two of them contradict each other."""

    exit_code = 2


class ModelError(LwcError):
    """The model file cannot be read, is not valid ONNX, or holds values no pass can work on (NaN, Inf)."""

    exit_code = 3


class UnsupportedError(LwcError):
    """The model is valid, but uses an operator, a type, an opset or a shape that lwc does not handle."""

    exit_code = 4


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
