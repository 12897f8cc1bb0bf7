"""Gates: limits that a run must keep. A gate that fails ends the run with the exit code of its kind."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, TypeAlias

from lwc_compiler.errors import (
    AccuracyGateError,
    AgreementGateError,
    GateError,
    RegressionGateError,
    SizeGateError,
    SpeedGateError,
)

Kind: TypeAlias = Literal["accuracy", "agreement", "size", "speed", "regression"]
Verdict: TypeAlias = Literal["passed", "failed", "warned", "skipped"]

# The first one that failed decides on the exit code.
_ERRORS: dict[Kind, type[GateError]] = {
    "accuracy": AccuracyGateError,
    "agreement": AgreementGateError,
    "size": SizeGateError,
    "speed": SpeedGateError,
    "regression": RegressionGateError,
}


@dataclass(frozen=True)
class GateResult:
    """What became of one gate.

    Attributes:
        name: the option, for example `max_bytes`.
        kind: what it is about; each kind has its exit code.
        target: name of the target in the recipe; empty for a gate on the model.
        limit: the value of the option.
        value: what was measured; None where nothing could be.
        unit: of limit, value and spread: `bytes`, `ms`, `x`, `%`, or empty for a fraction.
        spread: half the interquartile range of `value`, where it was timed; None where it is exact.
        verdict: `warned`: the limit lies within the spread of the value, so that the next run may find otherwise;
            `skipped`: not measured, `message` says why.
        message: one sentence for the reader.
    """

    name: str
    kind: Kind
    target: str
    limit: float
    value: float | None
    unit: str
    spread: float | None
    verdict: Verdict
    message: str


def raise_failed(results: Iterable[GateResult], written: str) -> None:
    """Raises the error of the first kind that has a failed gate; the message names all that failed.

    Args:
        results: of all gates.
        written: where the artifacts are, which a failed gate does not take away.

    Raises:
        GateError: a gate failed.
    """
    failed = [result for result in results if result.verdict == "failed"]
    for kind, error in _ERRORS.items():
        if any(result.kind == kind for result in failed):
            lines = "".join(f"\n  {result.message}" for result in failed)
            count = "a gate" if len(failed) == 1 else f"{len(failed)} gates"
            raise error(f"{count} failed; what was made is in {written}{lines}")
