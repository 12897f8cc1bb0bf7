"""The report: what `report.json` holds, and what every other form of a report is made from.

One definition for all: these classes check what is read, are written as JSON, and give the JSON schema. What follows
from other fields (densities, totals) is in the file too, for readers that do not want to compute it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass as plain_dataclass
from dataclasses import field
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import ConfigDict, TypeAdapter, ValidationError, computed_field
from pydantic.dataclasses import dataclass

from lwc_compiler.codegen.result import LayerDecision
from lwc_compiler.errors import ArtifactError, Refusal, UnsupportedError
from lwc_compiler.figures import Figures
from lwc_compiler.gates import GateResult
from lwc_compiler.runtime.manifest import Verification
from lwc_compiler.runtime.timing import Bench
from lwc_compiler.sparsity.curves import Sensitivity
from lwc_compiler.version import __version__

SCHEMA_VERSION: Literal[1] = 1
REPORT = "report.json"

# A reader meets computed fields again, and fields that a later lwc of the same schema version has added.
_LENIENT = ConfigDict(extra="ignore")

# Metrics that are fractions and shown in percent: name -> whether higher is better. All others are better when lower.
FRACTIONS = {"accuracy": True, "agreement": True, "error": False, "disagreement": False}


@dataclass(frozen=True, config=_LENIENT)
class LayerRow:
    """One node that uses a site.

    Attributes:
        node: label of the node.
        op: ONNX operator type.
        site: name of the weight.
        shape: shape of the weight.
        weights: number of weights.
        kept: weights that are not zero.
        flops: FLOPs of the dense layer, one run of the model; None where its shapes are not known.
        inputs: (entries that are not zero, all entries) of the layer's input, which for a first layer are all; None
            when not measured.
        activations: the same of what the layer hands on, after its activation function and pooling.
        kept_because: why pruning left the layer alone; None when it did not, or the model was not pruned.
        decision: how the layer was lowered; None before lowering.
    """

    node: str
    op: str
    site: str
    shape: tuple[int, ...]
    weights: int
    kept: int
    flops: int | None
    inputs: tuple[int, int] | None = None
    activations: tuple[int, int] | None = None
    kept_because: str | None = None
    decision: LayerDecision | None = None

    @computed_field
    @property
    def density(self) -> float:
        """Kept / all weights."""
        return self.kept / self.weights

    @computed_field
    @property
    def activation_density(self) -> float | None:
        """Share of the layer's activations that are not zero."""
        return _ratio(self.activations)

    @computed_field
    @property
    def flops_kept(self) -> float | None:
        """Density of the weights times density of the layer's input."""
        density = _ratio(self.inputs)
        return None if density is None else self.density * density


@dataclass(frozen=True, config=_LENIENT)
class Total:
    """The last row of the table. A weight that several nodes share counts once, FLOPs count for every node.

    Attributes:
        weights: number of weights.
        kept: weights that are not zero.
        flops: FLOPs of all dense layers; None where one is not known.
        activation_density: over all activations of all layers; None when not measured.
        flops_kept: over all FLOPs; None when not measured.
    """

    weights: int
    kept: int
    flops: int | None
    activation_density: float | None
    flops_kept: float | None

    @computed_field
    @property
    def density(self) -> float:
        """Kept / all weights; 1 for a model without weights."""
        return self.kept / self.weights if self.weights else 1.0


@plain_dataclass(frozen=True)
class Quality:
    """How good the model is, as far as the run that made it measured it.

    Attributes:
        metric: `accuracy`, `agreement` and the like, which are fractions, or `loss`.
        value: on the validation data, of the model as it is.
        dense: of the model before pruning; None where only the pruned one was measured.
    """

    metric: str
    value: float
    dense: float | None


@plain_dataclass(frozen=True)
class _Epoch:
    metric: float


@plain_dataclass(frozen=True)
class _Round:
    round: int
    stage: str
    density: float
    metric: float
    metric_pruned: float | None
    held: bool | None
    best_epoch: int
    learning_rate: float
    dead: int


@plain_dataclass(frozen=True)
class _Iterated:
    metric: str
    dense_metric: float
    rounds: list[_Round]
    best_round: int


@plain_dataclass(frozen=True)
class _Retrained:
    metric: str
    history: list[_Epoch]
    best_epoch: int


# What a report reads of the provenance; the passes write more into it.
_READ_OF_PASSES: dict[str, type] = {"iterate": _Iterated, "retrain": _Retrained}


@dataclass(frozen=True, config=_LENIENT)
class Report:
    """Everything that a report says.

    Attributes:
        model: name of the model.
        layers: one a node that uses a site, in graph order.
        sizes: what -> bytes.
        activations_measured_with: what the activation densities were measured with.
        passes: provenance of the model.
        source: file of the model, relative to where lwc ran; empty where none is known.
        target: what the code is for; None before lowering.
        verification: how far the code is from ONNX Runtime; None before lowering.
        times: of the code and what it was compared with; None when not measured.
        sensitivity: what each layer alone bears; None when not measured.
        figures: what a whole run measured, of the model and of the code for each of its targets; None outside of one.
        gates: what became of the limits that the run had to keep.
        refused: why the model cannot be compiled; empty when it can.
        schema_version: version of this layout; a later one has other fields, or the same with another meaning.
        lwc_version: version of lwc that made it.
    """

    model: str
    layers: tuple[LayerRow, ...] = ()
    sizes: Mapping[str, int] = field(default_factory=dict)
    activations_measured_with: str = "not measured"
    passes: tuple[Mapping[str, Any], ...] = ()
    source: str = ""
    target: str | None = None
    verification: Verification | None = None
    times: Bench | None = None
    sensitivity: Sensitivity | None = None
    figures: Figures | None = None
    gates: tuple[GateResult, ...] = ()
    refused: tuple[Refusal, ...] = ()
    schema_version: Literal[1] = SCHEMA_VERSION
    lwc_version: str = __version__

    @computed_field
    @property
    def total(self) -> Total:
        """The last row of the table."""
        sites = {row.site: row for row in self.layers}.values()
        flops = [row.flops for row in self.layers if row.flops is not None]
        complete = len(flops) == len(self.layers)
        shares = [row.flops_kept for row in self.layers if row.flops_kept is not None]
        activations = [row.activations for row in self.layers if row.activations is not None]
        measured = complete and len(shares) == len(self.layers) and sum(flops) > 0
        return Total(
            weights=sum(row.weights for row in sites),
            kept=sum(row.kept for row in sites),
            flops=sum(flops) if complete else None,
            activation_density=_ratio((sum(part[0] for part in activations), sum(part[1] for part in activations))),
            flops_kept=float(np.dot(flops, shares)) / sum(flops) if measured else None,
        )

    @computed_field
    @property
    def quality(self) -> Quality | None:
        """What a whole run measured, or else the metric of the last training on its validation data.

        None when nothing was trained since pruning.
        """
        if self.figures is not None and (found := self.figures.quality) is not None:
            return Quality(found.metric, found.value, found.dense)
        for entry in reversed(self.passes):
            if entry.get("pass") == "iterate":
                best = [one for one in entry["rounds"] if one["round"] == entry["best_round"]]
                value = best[-1]["metric"] if best else entry["dense_metric"]
                return None if value is None else Quality(entry["metric"], value, entry["dense_metric"])
            if entry.get("pass") == "retrain":
                return Quality(entry["metric"], entry["history"][entry["best_epoch"]]["metric"], None)
            if entry.get("pass") == "prune":  # what was measured before is not this model's
                return None
        return None


def refused_report(model: Path, error: UnsupportedError) -> Report:
    """The report of a model that cannot be compiled.

    Args:
        model: its file; the report has its path relative to the working directory, or its name where it is elsewhere.
        error: why.
    """
    return Report(model.stem, source=source_of(model), refused=error.refusals)


def source_of(model: Path) -> str:
    """What `Report.source` is for a file."""
    path, here = model.absolute(), Path.cwd()
    return path.relative_to(here).as_posix() if path.is_relative_to(here) else model.name


def to_json(report: Report) -> dict[str, Any]:
    """The content of `report.json`. Densities are fractions; what was not measured is null."""
    values: dict[str, Any] = _adapter().dump_python(report, mode="json")
    return values


def json_text(report: Report) -> str:
    """`report.json` as text."""
    return json.dumps(to_json(report), indent=2, ensure_ascii=False) + "\n"


def json_schema() -> dict[str, Any]:
    """JSON Schema (draft 2020-12) of `report.json`."""
    schema = _adapter().json_schema(mode="serialization")
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def from_json(values: Any, where: str = "report") -> Report:
    """The report that `to_json` gave.

    Args:
        values: what was read.
        where: it was read from, for the error.

    Raises:
        ArtifactError: it is no report, or one of another schema version.
    """
    version = values.get("schema_version") if isinstance(values, dict) else None
    if version != SCHEMA_VERSION:
        found = "no schema_version" if version is None else f"schema_version {version}"
        raise ArtifactError(
            f"{where} has {found}; this lwc {__version__} reads reports of schema_version {SCHEMA_VERSION}: make the "
            "report again with it"
        )
    try:
        report = _adapter().validate_python(values)
        for entry in report.passes:
            if (kind := _READ_OF_PASSES.get(str(entry.get("pass")))) is not None:
                TypeAdapter(kind).validate_python(entry)
        _ = report.quality
    except ValidationError as error:
        raise ArtifactError(f"{where} is damaged: {_first(error)}") from None
    except IndexError:
        raise ArtifactError(f"{where} is damaged: passes: the best epoch is not in the history") from None
    return report


def read_report(path: Path) -> Report:
    """The report in an artifact, in a report directory, or in a `report.json`.

    Raises:
        ArtifactError: there is none, or it cannot be read.
    """
    file = path / REPORT if path.is_dir() else path
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ArtifactError(f"there is no report {file}: give an artifact, a report directory or a {REPORT}") from None
    except OSError as error:
        raise ArtifactError(f"cannot read {file}: {error.strerror}") from error
    except ValueError as error:
        raise ArtifactError(f"{file} is no JSON: {error}") from None
    return from_json(values, str(file))


def read_times(path: Path) -> Bench:
    """The times that `lwc bench --json` printed into a file.

    Raises:
        ArtifactError: the file is missing, or is something else.
    """
    try:
        return TypeAdapter(Bench).validate_json(path.read_bytes())
    except OSError as error:
        raise ArtifactError(f"cannot read {path}: {error.strerror}") from error
    except ValidationError as error:
        raise ArtifactError(f"{path} is not what `lwc bench --json` prints: {_first(error)}") from None


def last_entry(passes: Iterable[Mapping[str, Any]], name: str) -> Mapping[str, Any] | None:
    """What the provenance says of the last run of pass `name`; None when it did not run."""
    return next((entry for entry in reversed(tuple(passes)) if entry.get("pass") == name), None)


def _first(error: ValidationError) -> str:
    """What is wrong first, and where."""
    first = error.errors()[0]
    return f"{'.'.join(str(part) for part in first['loc']) or 'content'}: {first['msg']}"


@cache
def _adapter() -> TypeAdapter[Report]:
    return TypeAdapter(Report)


def _ratio(part: tuple[int, int] | None) -> float | None:
    return part[0] / part[1] if part and part[1] else None
