"""What a user may ask for: the same options as a TOML file, on the command line and in Python.

Each pass has one frozen options class here; `Recipe` holds one of each. Unknown keys are refused. Values are checked
where they enter, so a pass can trust them.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from lwc_compiler.errors import OptionError

if sys.version_info >= (3, 11):
    import tomllib
else:  # pragma: no cover
    import tomli as tomllib  # type: ignore[import-not-found,unused-ignore]

Fraction = Annotated[float, Field(ge=0.0, lt=1.0)]
Positive = Annotated[float, Field(gt=0.0)]
Criterion = Literal["uniform", "global", "std", "erdos-renyi-kernel", "per-layer"]
Structure = Literal["element", "2x1", "4x1", "8x1", "1:2", "1:4", "2:4", "2:8", "4:8"]


class Options(BaseModel):
    """Base of all options: frozen, and unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class PruneOptions(Options):
    """Which connections go (Han et al. 2015, section 3).

    Attributes:
        criterion: `uniform`: every site gets `sparsity`; `global`: one magnitude threshold over all sites; `std`: a
            site's threshold is `quality` x the standard deviation of its weights (section 3, the paper's rule);
            `erdos-renyi-kernel`: densities proportional to (in + out + kh + kw) / (in * out * kh * kw);
            `per-layer`: densities from `densities`.
        sparsity: pruned / all over the prunable sites, in [0, 1). None with `std` and `per-layer`.
        quality: quality factor of `std`, > 0.
        densities: site name (weight initializer or node name) -> kept / all, in (0, 1].
        structure: `element`; `Rx1`: blocks of R consecutive output channels; `N:M`: at most N kept of M consecutive
            inputs.
        keep: sites never pruned (weight or node names, shell-style wildcards).
        keep_first: keep the first layer (the sites that read a graph input through no other site).
        keep_depthwise: keep depthwise convolutions.
    """

    criterion: Criterion = "uniform"
    sparsity: Fraction | None = None
    quality: Positive | None = None
    densities: dict[str, Annotated[float, Field(gt=0.0, le=1.0)]] = {}
    structure: Structure = "element"
    keep: tuple[str, ...] = ()
    keep_first: bool = True
    keep_depthwise: bool = True

    @model_validator(mode="after")
    def _complete(self) -> PruneOptions:
        needs = {"std": "quality", "per-layer": "densities"}.get(self.criterion, "sparsity")
        if getattr(self, needs) in (None, {}):
            raise ValueError(f"criterion '{self.criterion}' needs '{needs}'")
        for other in {"sparsity", "quality", "densities"} - {needs}:
            if getattr(self, other) not in (None, {}):
                raise ValueError(f"criterion '{self.criterion}' takes '{needs}', not '{other}'")
        return self


class RetrainOptions(Options):
    """How the surviving weights are retrained (Han et al. 2015, section 3.3 and 4).

    Attributes:
        loss: `auto` takes `distillation` when the data has no labels, else `cross-entropy` for integer labels and
            `mse` for float labels.
        optimizer: `adamw` or `sgd` (with momentum).
        learning_rate: peak learning rate.
        schedule: `constant`, `cosine` (to 0 over the run) or `step` (x `step_factor` every `step_epochs`).
        clip_norm: gradients are scaled down to this global L2 norm; None: never.
        accumulate: batches whose mean gradient makes one step.
        batch_norm: `train`: statistics and scale are trained; `frozen`: both stay as they are.
        temperature: softmax temperature of `distillation`.
        patience: stop after this many epochs without a better validation metric; None: never.
    """

    epochs: Annotated[int, Field(ge=1)] = 10
    batch_size: Annotated[int, Field(ge=1)] = 128
    loss: Literal["auto", "cross-entropy", "mse", "bce", "distillation"] = "auto"
    optimizer: Literal["adamw", "sgd"] = "adamw"
    learning_rate: Positive = 1e-3
    momentum: Fraction = 0.9
    weight_decay: Annotated[float, Field(ge=0.0)] = 0.0
    schedule: Literal["constant", "cosine", "step"] = "cosine"
    step_epochs: Annotated[int, Field(ge=1)] = 10
    step_factor: Positive = 0.1
    clip_norm: Positive | None = None
    accumulate: Annotated[int, Field(ge=1)] = 1
    batch_norm: Literal["train", "frozen"] = "train"
    temperature: Positive = 1.0
    patience: Annotated[int, Field(ge=1)] | None = None
    seed: Annotated[int, Field(ge=0)] = 0
    threads: Annotated[int, Field(ge=0)] = 0


class LowerOptions(Options):
    """What the machine code is made for.

    Attributes:
        target: a name `lwc targets` lists; `host` is this machine.
        batch: the batch dimension (dimension 0 of every input that leaves it open).
        threads: threads the artifact uses when the caller does not say; at least 1.
        shapes: input name -> every dimension, for inputs with other open dimensions.
    """

    target: str = "host"
    batch: Annotated[int, Field(ge=1)] = 1
    threads: Annotated[int, Field(ge=1)] = 1
    shapes: dict[str, tuple[Annotated[int, Field(ge=1)], ...]] = {}


class Recipe(Options):
    """Everything `lwc compile` can be told. A missing part means: leave that pass out (`lower` has defaults).

    Attributes:
        prune: None keeps the zeros that are in the model (`--sparsity keep`).
        retrain: needs training data.
        train_data: see `lwc_compiler.training.data`; None: no retraining.
        val_data: data the best epoch is chosen on; None: the last tenth of `train_data`.
    """

    prune: PruneOptions | None = None
    retrain: RetrainOptions | None = None
    lower: LowerOptions = LowerOptions()
    train_data: str | None = None
    val_data: str | None = None


def explain(error: ValidationError, where: str) -> OptionError:
    """The first complaint of pydantic as one sentence that names the entry, what was found and what is accepted."""
    first = error.errors()[0]
    entry = ".".join(str(part) for part in first["loc"]) or where
    found = "" if first["type"] in ("missing", "value_error") else f", found {first['input']!r}"
    return OptionError(f"{where}: {entry}: {first['msg'].removeprefix('Value error, ')}{found}")


def build(kind: type[Any], values: dict[str, Any], where: str = "options") -> Any:
    """`kind(**values)`, with a bad value reported as an `OptionError`."""
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise explain(error, where) from None


def load_recipe(path: str | Path) -> Recipe:
    """Reads a TOML recipe.

    Raises:
        OptionError: the file is missing, is not TOML, or holds an unknown key or a bad value.
    """
    path = Path(path)
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise OptionError(f"recipe {path}: {error}") from None
    recipe: Recipe = build(Recipe, values, f"recipe {path}")
    return recipe
