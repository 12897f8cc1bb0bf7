"""What a whole run is told: one model, how it is pruned and retrained, its targets, its gates, and what it leaves."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from lwc_compiler.recipe.options import LowerOptions, Options, PackOptions, Positive, Recipe

Count = Annotated[int, Field(ge=0)]
NotNegative = Annotated[float, Field(ge=0.0)]
Share = Annotated[float, Field(ge=0.0, le=1.0)]
FileName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
ReportFormat = Literal["json", "markdown", "junit", "sarif", "html", "badges"]


class TargetGates(Options):
    """Limits on the code for one target. None: no limit.

    Attributes:
        max_bytes: bytes of what ships: the library, with its file of weights where that is apart.
        max_flash_bytes: bytes of code and constants, for a target without an operating system.
        max_ram_bytes: bytes of variables, workspace, inputs and outputs, for a target without an operating system; the
            stack comes on top.
        max_latency_ms: median time of a run, in milliseconds.
        min_speedup: median time of ONNX Runtime on the model before pruning / that of the code, timed in turns.
    """

    max_bytes: Count | None = None
    max_flash_bytes: Count | None = None
    max_ram_bytes: Count | None = None
    max_latency_ms: Positive | None = None
    min_speedup: Positive | None = None


class GateOptions(TargetGates):
    """Limits of a run: of the model, and of the code for each target that sets none of its own. None: no limit.

    Attributes:
        max_accuracy_drop: largest loss of the metric against the original model, see `IterateOptions`.
        min_metric: least value of the metric: of accuracy or agreement, as a fraction.
        max_disagreement: largest share of the predictions (the class with the highest output) that differ from the
            original model's; needs no labels.
        max_packed_bytes: bytes of the packed file; needs `pack`.
        baseline: `report.json` of an earlier run, or its directory, which the three limits below compare with.
        max_accuracy_regression: how much worse the metric may be than the baseline's, in percent of it.
        max_bytes_regression: how many more bytes may ship to each target, in percent of the baseline's.
        max_latency_regression: how much longer a run may take on each target, in percent of the baseline's.
        seconds: time that each engine is timed for.
    """

    max_accuracy_drop: NotNegative | None = None
    min_metric: Share | None = None
    max_disagreement: Share | None = None
    max_packed_bytes: Count | None = None
    baseline: str | None = None
    max_accuracy_regression: NotNegative | None = None
    max_bytes_regression: NotNegative | None = None
    max_latency_regression: NotNegative | None = None
    seconds: Positive = 3.0

    @model_validator(mode="after")
    def _compared(self) -> GateOptions:
        limits = (self.max_accuracy_regression, self.max_bytes_regression, self.max_latency_regression)
        if self.baseline is None and any(limit is not None for limit in limits):
            raise ValueError("a limit on a regression needs 'baseline', the report.json of an earlier run")
        if self.baseline is not None and all(limit is None for limit in limits):
            raise ValueError(
                "'baseline' is compared with nothing: give 'max_accuracy_regression', 'max_bytes_regression' or "
                "'max_latency_regression'"
            )
        return self


class TargetOptions(LowerOptions):
    """One target of a run: what `LowerOptions` says, and its gates.

    Attributes:
        target: empty: the name that the recipe gives to this target.
        via: where its code is timed, when this machine cannot run it: `ssh://[user@]host[:port]` or `adb`.
        gates: they replace those of the recipe for this target.
    """

    target: str = ""
    via: Annotated[str, Field(pattern=r"^(ssh://.+|adb)$")] | None = None
    gates: TargetGates = TargetGates()


class OutputOptions(Options):
    """Where a run leaves what it makes.

    Attributes:
        directory: the directory to write; its parent exists. None: `<model>.build` in the working directory.
        reports: formats of the report; `report.json` is always written.
    """

    directory: str | None = None
    reports: tuple[ReportFormat, ...] = ("json", "markdown")


class BuildRecipe(Recipe):
    """Everything `lwc build` is told: one model, pruned and retrained once, and compiled for each of its targets.

    Attributes:
        model: the ONNX file.
        metric: what the model is judged by. `auto`: accuracy where the labels are classes, agreement with the original
            model where there are classes and no labels, else the loss.
        pack: also write the packed file; None: do not.
        targets: name -> target; empty: the one that `lower` says. What a target leaves out, `lower` says.
        gates: limits; a run in which one fails ends with an error, when everything is written.
        outputs: where results go.
    """

    model: str
    metric: Literal["auto", "accuracy", "agreement", "loss"] = "auto"
    pack: PackOptions | None = None
    targets: dict[FileName, TargetOptions] = Field(default_factory=dict)
    gates: GateOptions = GateOptions()
    outputs: OutputOptions = OutputOptions()

    @model_validator(mode="after")
    def _whole(self) -> BuildRecipe:
        if self.targets and "target" in self.lower.model_fields_set:
            raise ValueError("'lower.target' is for a recipe without 'targets': leave one of them out")
        if self.deterministic and any(target.tune for target in self.targets.values()):
            raise ValueError("'deterministic' takes the kernels that are predicted to be the fastest: leave 'tune' out")
        if self.gates.max_packed_bytes is not None and self.pack is None:
            raise ValueError("gate 'max_packed_bytes' needs 'pack', which says how the file is packed")
        judged = ("max_accuracy_drop", "min_metric", "max_disagreement", "max_accuracy_regression")
        asked = [name for name in judged if getattr(self.gates, name) is not None]
        if asked and not (self.train_data or self.val_data):
            raise ValueError(f"gate '{asked[0]}' needs 'val_data' (or 'train_data') to measure on")
        return self

    def each_target(self) -> dict[str, TargetOptions]:
        """Name -> target, with what `lower` and `gates` say where it says nothing itself."""
        shared = self.lower.model_dump(exclude_unset=True)
        limits = self.gates.model_dump(include=set(TargetGates.model_fields), exclude_unset=True)
        named = self.targets or {self.lower.target: TargetOptions()}
        return {
            name: TargetOptions.model_validate(
                {
                    **shared,
                    **target.model_dump(exclude_unset=True),
                    "target": target.target or name,
                    "gates": {**limits, **target.gates.model_dump(exclude_unset=True)},
                }
            )
            for name, target in named.items()
        }

    def for_target(self, target: TargetOptions) -> Recipe:
        """What `lwc compile` would be told, to compile for this target alone."""
        lower = LowerOptions.model_validate(
            target.model_dump(include=set(LowerOptions.model_fields), exclude_unset=True)
        )
        parts = {name: getattr(self, name) for name in Recipe.model_fields}
        return Recipe(**{**parts, "lower": lower})
