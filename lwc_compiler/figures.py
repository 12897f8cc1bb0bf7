"""The figures of a run that gates compare with their limits, and with those of an earlier run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from lwc_compiler.errors import ArtifactError


@dataclass(frozen=True)
class Quality:
    """How good the model is.

    Attributes:
        metric: `accuracy`, `agreement` (with the original model's predictions) or `loss`.
        value: of the model.
        dense: of the original model.
        disagreement: share of the predictions (the class with the highest output) that differ from the original
            model's; None where it was not asked for.
        samples: samples of the data.
        data: where they are from.
    """

    metric: str
    value: float
    dense: float
    disagreement: float | None
    samples: int
    data: str

    @property
    def drop(self) -> float:
        """How much worse the model is than the original: accuracy lost, or loss added."""
        return self.value - self.dense if self.metric == "loss" else self.dense - self.value


@dataclass(frozen=True)
class Speed:
    """How fast the code for a target is.

    Attributes:
        median_ms: of a run, in milliseconds.
        spread_ms: half the interquartile range of the medians of blocks of runs.
        speedup: median of `against` / that of the code.
        speedup_spread: half the interquartile range of the speed-ups of the blocks.
        against: what ran in turns with it.
        where: the processor, or the place, that ran both.
        threads: of both.
    """

    median_ms: float
    spread_ms: float
    speedup: float
    speedup_spread: float
    against: str
    where: str
    threads: int


@dataclass(frozen=True)
class TargetFigures:
    """What was measured of the code for one target.

    Attributes:
        target: name of the target, as `lwc targets` lists it.
        artifact: its directory, relative to the report.
        bytes: of what ships: the library, with its file of weights where that is apart.
        flash_bytes: code and constants; None for a target with an operating system.
        ram_bytes: variables, workspace, inputs and outputs, without the stack; None for a target with an operating
            system.
        speed: None where it was not timed.
        not_timed: why it was not.
        via: where the recipe wants it timed; empty for this machine.
    """

    target: str
    artifact: str
    bytes: int
    flash_bytes: int | None
    ram_bytes: int | None
    speed: Speed | None
    not_timed: str
    via: str


@dataclass(frozen=True)
class Figures:
    """What was measured in a run.

    Attributes:
        quality: of the pruned and retrained model; None without data.
        packed_bytes: of the packed file; None where none was made.
        targets: name in the recipe -> the code for it.
    """

    quality: Quality | None
    packed_bytes: int | None
    targets: Mapping[str, TargetFigures]


def read_figures(report: Path) -> Figures | None:
    """The figures in the `report.json` of an earlier run; None where there is no such file.

    Args:
        report: the file, or the directory of the run.

    Raises:
        ArtifactError: it cannot be read, or is not of a run.
    """
    report = report / "report.json" if report.is_dir() else report
    try:
        values = json.loads(report.read_text(encoding="utf-8"))
        return TypeAdapter(Figures).validate_python(values["figures"])
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ArtifactError(f"cannot read {report}: {error.strerror or error}") from error
    except (ValueError, KeyError, TypeError, ValidationError):
        raise ArtifactError(
            f"{report} is not the report.json of a run of `lwc build`: give that of another run"
        ) from None
