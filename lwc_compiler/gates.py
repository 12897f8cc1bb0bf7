"""Gates: limits that a run must keep. A gate that fails ends the run with the exit code of its kind."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

from lwc_compiler.errors import (
    AccuracyGateError,
    AgreementGateError,
    GateError,
    RegressionGateError,
    SizeGateError,
    SpeedGateError,
)

if TYPE_CHECKING:
    from lwc_compiler.figures import Figures, Quality, TargetFigures
    from lwc_compiler.recipe.build import GateOptions, TargetGates

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

_ROUNDING = 1e-9
_KINDS: dict[str, Kind] = {
    "max_accuracy_drop": "accuracy",
    "min_metric": "accuracy",
    "max_disagreement": "agreement",
    "max_packed_bytes": "size",
    "max_bytes": "size",
    "max_flash_bytes": "size",
    "max_ram_bytes": "size",
    "max_latency_ms": "speed",
    "min_speedup": "speed",
    "max_accuracy_regression": "regression",
    "max_bytes_regression": "regression",
    "max_latency_regression": "regression",
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


def raise_failed(results: Iterable[GateResult], note: str = "") -> None:
    """Raises the error of the first kind that has a failed gate; the message names all that failed.

    Args:
        results: of all gates.
        note: what else the reader of the message has to know.

    Raises:
        GateError: a gate failed.
    """
    failed = [result for result in results if result.verdict == "failed"]
    for kind, error in _ERRORS.items():
        if any(result.kind == kind for result in failed):
            lines = "".join(f"\n  {result.message}" for result in failed)
            count = "a gate" if len(failed) == 1 else f"{len(failed)} gates"
            raise error(f"{count} failed{note}{lines}")


def judge(
    gates: GateOptions, limits: Mapping[str, TargetGates], figures: Figures, baseline: Figures | None
) -> list[GateResult]:
    """What becomes of every gate that has a limit.

    Args:
        gates: those of the model.
        limits: name of a target -> the gates of its code.
        figures: of the run; it has every target of `limits`.
        baseline: of an earlier run; None: there was none.
    """
    results = _judged(gates, "", _of_model(figures))
    for name, own in limits.items():
        results += _judged(own, name, _of_target(figures.targets[name]))
    results += _judged(gates, "", {"max_accuracy_regression": _accuracy_regression(figures, baseline)})
    for name in limits:
        results += _judged(gates, name, _regressions(name, figures.targets[name], baseline))
    return results


@dataclass(frozen=True)
class _Measured:
    """What is compared with a limit.

    Attributes:
        value: None: there is none, `note` says why.
        unit: see `GateResult`.
        spread: see `GateResult`.
        note: what the value was measured on.
        required: whether a gate fails that has no value.
    """

    value: float | None
    unit: str = ""
    spread: float | None = None
    note: str = ""
    required: bool = False


def _judged(limits: TargetGates, target: str, measured: Mapping[str, _Measured]) -> list[GateResult]:
    """The results of the gates that have a limit."""
    found = []
    for name, what in measured.items():
        limit = getattr(limits, name)
        if limit is None:
            continue
        where = f"{name} of {target}" if target else name
        if what.value is None:
            verdict: Verdict = "failed" if what.required else "skipped"
            message = f"{where}: not measured: {what.note}"
        else:
            least = name.startswith("min_")
            verdict = _verdict(limit - what.value if least else what.value - limit, what.spread or 0.0)
            asked = f"at {'least' if least else 'most'} {_text(limit, what.unit)}"
            spread = "" if what.spread is None else f" +- {_text(what.spread, what.unit)}"
            message = f"{where}: {_text(what.value, what.unit)}{spread}, asked for is {asked}"
            message += f" ({what.note})" if what.note else ""
            if verdict == "warned":
                message += "; the limit lies within the spread: the next run may find otherwise"
        found.append(
            GateResult(name, _KINDS[name], target, limit, what.value, what.unit, what.spread, verdict, message)
        )
    return found


def _verdict(excess: float, spread: float) -> Verdict:
    """`excess` is how far the value is on the wrong side of the limit; what is no more than rounding does not count."""
    excess -= _ROUNDING
    return "failed" if excess > spread else "passed" if excess <= -spread else "warned"


def _text(value: float, unit: str) -> str:
    number = f"{value:,.0f}" if unit == "bytes" else f"{value:.4g}"
    return f"{number}{unit}" if unit == "x" else f"{number} {unit}".rstrip()


def _of_model(figures: Figures) -> dict[str, _Measured]:
    quality = figures.quality
    if quality is None:
        unknown = _Measured(None, note="there is no data")
        found = dict.fromkeys(("max_accuracy_drop", "min_metric", "max_disagreement"), unknown)
    else:
        on = f"on {quality.samples:,} samples of {quality.data}"
        beside = f"{quality.metric} {quality.value:.4g}, of the original {quality.dense:.4g}, {on}"
        found = {
            "max_accuracy_drop": _Measured(quality.drop, note=beside),
            "min_metric": _Measured(quality.value, note=f"{quality.metric} {on}"),
            "max_disagreement": _Measured(quality.disagreement, note=f"predictions {on}"),
        }
    return {**found, "max_packed_bytes": _Measured(figures.packed_bytes, "bytes")}


def _of_target(figures: TargetFigures) -> dict[str, _Measured]:
    shared = f"{figures.target} has an operating system, which gives its memory to many"
    found = {
        "max_bytes": _Measured(figures.bytes, "bytes"),
        "max_flash_bytes": _Measured(figures.flash_bytes, "bytes", note="" if figures.flash_bytes else shared),
        "max_ram_bytes": _Measured(figures.ram_bytes, "bytes", note="" if figures.ram_bytes else shared),
    }
    speed = figures.speed
    if speed is None:
        units = {"max_latency_ms": "ms", "min_speedup": "x"}
        why, required = figures.not_timed, bool(figures.via)
        return found | {name: _Measured(None, unit, note=why, required=required) for name, unit in units.items()}
    beside = f"{speed.against} in turns with it on {speed.where}"
    return {
        **found,
        "max_latency_ms": _Measured(speed.median_ms, "ms", speed.spread_ms, f"on {speed.where}"),
        "min_speedup": _Measured(speed.speedup, "x", speed.speedup_spread, beside),
    }


def _accuracy_regression(figures: Figures, baseline: Figures | None) -> _Measured:
    if baseline is None:
        return _NO_BASELINE
    now, before = figures.quality, baseline.quality
    if now is None or before is None or now.metric != before.metric or not before.value:
        return _Measured(None, "%", note=f"{_metric_text(before)} in the baseline, {_metric_text(now)} here")
    worse = now.value - before.value if now.metric == "loss" else before.value - now.value
    return _Measured(100 * worse / before.value, "%", note=f"{_metric_text(before)} before, {_metric_text(now)} now")


def _regressions(name: str, now: TargetFigures, baseline: Figures | None) -> dict[str, _Measured]:
    names = ("max_bytes_regression", "max_latency_regression")
    if baseline is None:
        return dict.fromkeys(names, _NO_BASELINE)
    before = baseline.targets.get(name)
    if before is None or before.target != now.target:
        there = "no such target" if before is None else f"{before.target} under this name"
        return dict.fromkeys(names, _Measured(None, "%", note=f"the baseline has {there}"))
    more = 100 * (now.bytes - before.bytes) / before.bytes
    return {
        names[0]: _Measured(more, "%", note=f"{before.bytes:,} bytes before, {now.bytes:,} now"),
        names[1]: _latency_regression(now, before),
    }


def _latency_regression(now: TargetFigures, before: TargetFigures) -> _Measured:
    new, old = now.speed, before.speed
    if new is None:
        return _Measured(None, "%", note=now.not_timed, required=bool(now.via))
    if old is None:
        return _Measured(None, "%", note=f"in the baseline it was not timed: {before.not_timed}")
    if (old.where, old.threads) != (new.where, new.threads):
        here, there = (f"{speed.threads} threads of {speed.where}" for speed in (new, old))
        return _Measured(None, "%", note=f"the baseline was timed on {there}, and this run on {here}")
    ratio = new.median_ms / old.median_ms
    spread = 100 * math.hypot(new.spread_ms, ratio * old.spread_ms) / old.median_ms
    note = f"{old.median_ms:.4g} ms before, {new.median_ms:.4g} now"
    return _Measured(100 * (ratio - 1), "%", spread, note)


def _metric_text(quality: Quality | None) -> str:
    return "no accuracy" if quality is None else f"{quality.metric} {quality.value:.4g}"


_NO_BASELINE = _Measured(None, "%", note="there is no baseline; keep the report.json of a run of `lwc build` as one")
