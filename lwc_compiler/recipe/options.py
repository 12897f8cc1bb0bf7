"""What a user may ask for: the same options as a TOML file, on the command line and in Python.

Each pass has one frozen options class here; `Recipe` holds one of each. Unknown keys are refused. Values are checked
where they enter, so a pass can trust them. `recipe/build.py` has what a whole run is told, `recipe/file.py` reads it.
"""

from __future__ import annotations

import difflib
import types
import typing
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from lwc_compiler.errors import OptionError

if TYPE_CHECKING:
    from pydantic._internal._model_construction import ModelMetaclass as _Checked  # knows the arguments of each class
    from typing_extensions import Self
else:

    class _Checked(type(BaseModel)):
        """Of classes of options, whose bad values are errors of lwc's in Python, too."""

        def __call__(cls, **values):
            try:
                return super().__call__(**values)
            except ValidationError as error:
                raise explain(error, cls.__name__, cls) from None


Fraction = Annotated[float, Field(ge=0.0, lt=1.0)]
Positive = Annotated[float, Field(gt=0.0)]
CodebookBits = Annotated[int, Field(ge=1, le=8)]
Criterion = Literal["uniform", "global", "std", "erdos-renyi-kernel", "per-layer", "sensitivity"]
Structure = Literal["element", "2x1", "4x1", "8x1", "16x1", "32x1", "1:2", "1:4", "2:4", "2:8", "4:8"]


# Curves bend where few weights are left, so most densities are there.
_SCANNED = (0.8, 0.6, 0.5, 0.4, 0.3, 0.2, 0.15, 0.1, 0.07, 0.05, 0.03, 0.02, 0.01, 0.005)


class Options(BaseModel, metaclass=_Checked):
    """Base of all options: frozen, and unknown keys are refused.

    Raises:
        OptionError: a value is not accepted, or a key is unknown.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class PruneOptions(Options):
    """Which connections go (Han et al. 2015, section 3).

    Attributes:
        criterion: `uniform`: every site gets `sparsity`; `global`: one magnitude threshold over all sites; `std`: a
            site's threshold is `quality` x the standard deviation of its weights (section 3, the paper's rule);
            `erdos-renyi-kernel`: densities proportional to (in + out + kh + kw) / (in * out * kh * kw);
            `per-layer`: densities from `densities`; `sensitivity`: the densities that lose least on data, found by a
            scan of every site (section 3.4 and figure 6).
        sparsity: pruned / all over the prunable sites, in [0, 1). None with `std` and `per-layer`.
        quality: quality factor of `std`, > 0.
        densities: site name (weight initializer or node name) -> kept / all, in (0, 1].
        structure: `element`; `Rx1`: blocks of R consecutive output channels; `N:M`: at most N kept of M consecutive
            input channels, at each position of a kernel.
        score: what a weight is measured by. `magnitude`: |w|; `activation`: |w| x the L2 norm of the input it is
            multiplied with, over calibration data (Sun et al. 2024, "Wanda"), for pruning without retraining.
        keep: sites never pruned (weight or node names, shell-style wildcards).
        keep_first: keep the first layer (the sites that read a graph input through no other site).
        keep_depthwise: keep depthwise convolutions.
    """

    criterion: Criterion = "uniform"
    sparsity: Fraction | None = None
    quality: Positive | None = None
    densities: dict[str, Annotated[float, Field(gt=0.0, le=1.0)]] = {}
    structure: Structure = "element"
    score: Literal["magnitude", "activation"] = "magnitude"
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
        if self.score == "activation" and self.criterion == "std":
            raise ValueError("criterion 'std' goes by the weights alone: it takes score 'magnitude'")
        return self


class RetrainOptions(Options):
    """How the surviving weights are retrained (Han et al. 2015, section 3.3 and 4).

    Attributes:
        epochs: passes over the training data.
        batch_size: samples of a batch.
        loss: `auto` takes `distillation` when the data has no labels, else `cross-entropy` for integer labels and
            `mse` for float labels.
        distill: weight a of the teacher in (1 - a) x loss + a x distillation, for data with labels (Hinton et al.
            2015, section 2); 0: no teacher.
        optimizer: `adamw` or `sgd` (with momentum).
        learning_rate: peak learning rate.
        momentum: of `sgd`.
        schedule: `constant`, `cosine` (to 0 over the run) or `step` (x `step_factor` every `step_epochs`).
        step_epochs: with the schedule `step`, epochs between two steps.
        step_factor: with the schedule `step`, the factor of a step.
        clip_norm: gradients are scaled down to this global L2 norm; None: never.
        accumulate: batches whose mean gradient makes one step.
        batch_norm: `train`: statistics and scale are trained; `frozen`: both stay as they are.
        weight_decay: L2 regularization: the gradient of weight_decay / 2 x |w|^2 (SGD), or its decoupled form (AdamW).
        l1: L1 regularization: the gradient of l1 x |w|.
        dropout: node or tensor name -> ratio, in (0, 1), of the Dropout after it; graphs exported for inference have
            none of their own. A name with ratio 0 takes a Dropout of the graph away.
        freeze: weights that stay as they are: `conv`, `fc` (all sites of the kind) or weight and node names with
            shell-style wildcards.
        grow: whether pruned weights may come back. `shadow`: pruned weights go on learning unseen, and the highest
            count (Guo et al. 2016, "Dynamic network surgery"); `gradient`: the share `grow_fraction` of the weights,
            the smallest, makes room for those with the highest gradients (Evci et al. 2020, section 3).
        grow_fraction: of `gradient`, at the start; it falls to 0 with the cosine of the run.
        mask_interval: optimizer steps between two changes of the masks, with `grow` and with gradual pruning.
        codebook: `conv` or `fc` -> bits: the kept weights of these layers share 2^bits values, which are trained
            (Han et al. 2016, "Deep Compression", section 3).
        temperature: softmax temperature of `distillation`.
        adjust_dropout: dropout ratios follow D_r = D_o sqrt(C_ir / C_io) (section 3.2).
        augment: `module:function` that changes training data: it gets the inputs of a batch (name -> array, samples
            first) and a `numpy.random.Generator`, and returns them changed, with the same shapes and types. The
            generator depends on seed and epoch only. None: the data is used as it is.
        patience: stop after this many epochs without a better validation metric; None: never.
        seed: of the order of the samples.
        threads: of the training; 0: as many as there are cores.
    """

    epochs: Annotated[int, Field(ge=1)] = 10
    batch_size: Annotated[int, Field(ge=1)] = 128
    loss: Literal["auto", "cross-entropy", "mse", "bce", "distillation"] = "auto"
    distill: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0
    optimizer: Literal["adamw", "sgd"] = "adamw"
    learning_rate: Positive = 1e-3
    momentum: Fraction = 0.9
    weight_decay: Annotated[float, Field(ge=0.0)] = 0.0
    l1: Annotated[float, Field(ge=0.0)] = 0.0
    schedule: Literal["constant", "cosine", "step"] = "cosine"
    step_epochs: Annotated[int, Field(ge=1)] = 10
    step_factor: Positive = 0.1
    clip_norm: Positive | None = None
    accumulate: Annotated[int, Field(ge=1)] = 1
    batch_norm: Literal["train", "frozen"] = "train"
    dropout: dict[str, Fraction] = {}
    freeze: tuple[str, ...] = ()
    grow: Literal["none", "shadow", "gradient"] = "none"
    grow_fraction: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.3
    mask_interval: Annotated[int, Field(ge=1)] = 100
    codebook: dict[Literal["conv", "fc"], CodebookBits] = {}
    temperature: Positive = 1.0
    adjust_dropout: bool = True
    augment: str | None = None
    patience: Annotated[int, Field(ge=1)] | None = None
    seed: Annotated[int, Field(ge=0)] = 0
    threads: Annotated[int, Field(ge=0)] = 0

    @model_validator(mode="after")
    def _fit(self) -> RetrainOptions:
        if self.codebook and self.grow != "none":
            raise ValueError("a codebook is made for the weights that are left: leave out 'codebook' or 'grow'")
        return self


class IterateOptions(Options):
    """Pruning in rounds of prune and retrain (Han et al. 2015, section 3.4).

    Attributes:
        schedule: how the density falls from all weights to the goal that `prune` sets. `geometric`: by the same factor
            every round; `cubic`: zeros s(t) = s x (1 - (1 - t)^3), t = round / rounds (Zhu and Gupta 2017); `gradual`:
            one training in which the cubic schedule runs with the steps; `targets`: as given.
        rounds: number of rounds; one round is one-shot pruning.
        targets: with `targets`, the value of a round: zeros / all (in [0, 1)), or quality factors with criterion `std`.
        max_accuracy_drop: largest loss of the validation metric against the dense model: accuracy as a fraction (0.01
            is one point), or the loss itself where there is no accuracy. The rounds end when it is exceeded, densities
            between the last two are tried, and the sparsest model that holds is kept. None: all rounds are done.
        ramp: with `gradual`, the share of the epochs after which the final density is reached.
        learning_rate_factors: the learning rate of a round / that of `retrain`; the last one counts for all later
            rounds. 0.1 and 0.01 are the paper's; 1 is learning-rate rewinding (Renda et al. 2020).
        alternate: each round prunes and retrains fully connected layers with the convolutions fixed, then the
            convolutions with fully connected layers fixed (section 3.3).
        remove_dead: neurons without inputs or without outputs lose their remaining connections after every round
            (section 3.5).
        reinitialize: surviving weights are drawn anew every round, for comparison: the paper keeps them.
    """

    schedule: Literal["geometric", "cubic", "gradual", "targets"] = "geometric"
    rounds: Annotated[int, Field(ge=1)] = 5
    targets: tuple[Annotated[float, Field(ge=0.0)], ...] = ()
    max_accuracy_drop: Annotated[float, Field(ge=0.0)] | None = None
    ramp: Annotated[float, Field(gt=0.0, le=1.0)] = 0.7
    learning_rate_factors: tuple[Positive, ...] = (1.0,)
    alternate: bool = False
    remove_dead: bool = True
    reinitialize: bool = False


class SensitivityOptions(Options):
    """How the layers are measured.

    Attributes:
        structure: of the masks, as in `PruneOptions`.
        score: of the masks, as in `PruneOptions`.
        densities: kept / all weights at which each layer is measured; an `N:M` structure adds N / M and leaves out what
            is above.
        samples: samples of the data that each measurement is the mean over; they are held in memory.
        loss: as in `RetrainOptions`; `auto` takes the distance to the dense model's outputs where there are no labels.
        batch_size: samples that go through the network at once.
        workers: threads that measure; 0: as many as there are cores. The result does not depend on it.
    """

    structure: Structure = "element"
    score: Literal["magnitude", "activation"] = "magnitude"
    densities: tuple[Annotated[float, Field(gt=0.0, le=1.0)], ...] = _SCANNED
    samples: Annotated[int, Field(ge=1)] = 1000
    loss: Literal["auto", "cross-entropy", "mse", "bce", "distillation"] = "auto"
    batch_size: Annotated[int, Field(ge=1)] = 100
    workers: Annotated[int, Field(ge=0)] = 0


class LowerOptions(Options):
    """What the machine code is made for.

    Attributes:
        target: a name `lwc targets` lists; `host` is this machine.
        batch: the batch dimension (dimension 0 of every input that leaves it open).
        threads: threads the artifact uses when the caller does not say; at least 1.
        shapes: input name -> every dimension, for inputs with other open dimensions.
        tune: kernels measured on this machine for each layer, of those predicted to be the fastest; 0: the prediction
            decides. None: 6 for `host`, 0 for a target with a name, whose code may run elsewhere.
        cc: command of a C compiler for the target, with its flags; None: that of the system for this machine, else that
            of the `ziglang` package.
        weights: `embed`: in the library; `file`: beside it, for the caller to map.
        weight_type: how weights are stored where that is smaller: `float32`, or, for targets without an operating
            system, rounded to `float16` or to `int8` with a scale for each output channel (`kernels/weight_types.py`).
            What is computed is float32.
        max_rounding_error: largest change of an output by the rounding of weights that is accepted, as a share of the
            output's scale.
        precision: what the factors of linear layers are rounded to on a GPU; their sums are float32.
    """

    target: str = "host"
    batch: Annotated[int, Field(ge=1)] = 1
    threads: Annotated[int, Field(ge=1)] = 1
    shapes: dict[str, tuple[Annotated[int, Field(ge=1)], ...]] = {}
    tune: Annotated[int, Field(ge=0)] | None = None
    cc: str | None = None
    weights: Literal["embed", "file"] = "embed"
    weight_type: Literal["float32", "float16", "int8"] = "float32"
    max_rounding_error: Annotated[float, Field(gt=0.0)] = 0.05
    precision: Literal["float32", "tf32", "float16", "bfloat16"] = "float32"


class EstimateOptions(Options):
    """What `lwc estimate` looks at.

    Attributes:
        target: as in `LowerOptions`.
        batch: as in `LowerOptions`.
        shapes: as in `LowerOptions`.
        cc: as in `LowerOptions`.
        sparsities: of the pruned layers, pruned / all.
        structures: of the zeros, as in `PruneOptions`; none: those that the target has kernels for.
        criterion: how the density is shared among the layers, as in `PruneOptions`.
        keep: layers that are not pruned, as in `PruneOptions`.
        keep_first: as in `PruneOptions`.
        keep_depthwise: as in `PruneOptions`.
        seconds: after which no kernel is measured any more; the rest is predicted.
    """

    target: str = "host"
    batch: Annotated[int, Field(ge=1)] = 1
    shapes: dict[str, tuple[Annotated[int, Field(ge=1)], ...]] = {}
    cc: str | None = None
    sparsities: tuple[Annotated[float, Field(gt=0.0, lt=1.0)], ...] = (0.5, 0.7, 0.8, 0.9, 0.95)
    structures: tuple[Structure, ...] = ()
    criterion: Literal["uniform", "erdos-renyi-kernel"] = "uniform"
    keep: tuple[str, ...] = ()
    keep_first: bool = True
    keep_depthwise: bool = True
    seconds: Annotated[float, Field(ge=0.0)] = 22.0


class PackOptions(Options):
    """How a packed file holds the weights of linear and recurrent layers; all else is kept bit for bit.

    Attributes:
        values: `float32`: bit for bit; `float16`: rounded to nearest; `codebook`: at most 2^bits values a weight, found
            by k-means (Han et al. 2016, section 3). A weight that has no more is stored as it is.
        conv_bits: bits of a codebook of Conv and ConvTranspose, 1 to 8; 8 in the paper.
        fc_bits: bits of a codebook of Gemm and MatMul, 1 to 8; 5 in the paper.
        huffman: code indices and values with Huffman codes where that is smaller (Han et al. 2016, section 4).
    """

    values: Literal["float32", "float16", "codebook"] = "float32"
    conv_bits: CodebookBits = 8
    fc_bits: CodebookBits = 5
    huffman: bool = True


class Recipe(Options):
    """Everything `lwc compile` can be told. A missing part means: leave that pass out (`lower` has defaults).

    Attributes:
        prune: None keeps the zeros that are in the model (`--sparsity keep`).
        retrain: needs training data.
        iterate: prune in rounds; needs training data and `prune`. None: prune once.
        lower: what the machine code is made for.
        train_data: see `lwc_compiler.training.data`; None: no retraining.
        val_data: data the best epoch is chosen on; None: the last tenth of `train_data`.
        deterministic: the same inputs give the same bytes on the same processor, see `settled`.
    """

    prune: PruneOptions | None = None
    retrain: RetrainOptions | None = None
    iterate: IterateOptions | None = None
    lower: LowerOptions = LowerOptions()
    train_data: str | None = None
    val_data: str | None = None
    deterministic: bool = False

    @model_validator(mode="after")
    def _settles(self) -> Recipe:
        if self.deterministic and self.lower.tune:
            raise ValueError("'deterministic' takes the kernels that are predicted to be the fastest: leave 'tune' out")
        if self.deterministic and self.retrain and self.retrain.threads > 1:
            raise ValueError("'deterministic' trains on one thread: leave 'threads' of 'retrain' out")
        return self

    def settled(self) -> Self:
        """What `deterministic` means: kernels are not measured, and sums of a training have one order.

        Returns:
            The recipe with 0 kernels to measure and 1 thread to train with, where it is deterministic.
        """
        if not self.deterministic:
            return self
        settled: dict[str, Options] = {"lower": self.lower.model_copy(update={"tune": 0})}
        if self.train_data:
            settled["retrain"] = (self.retrain or RetrainOptions()).model_copy(update={"threads": 1})
        return self.model_copy(update=settled)


def explain(error: ValidationError, where: str, kind: type[Any]) -> OptionError:
    """The first complaint of pydantic as one sentence that names the entry, what was found and what is accepted.

    Args:
        error: what `kind` said.
        where: what holds the values.
        kind: the options class.
    """
    # A key that is missing may be there with a typing error.
    first = min(error.errors(), key=lambda each: each["type"] != "extra_forbidden")
    path = [str(part) for part in first["loc"]]
    entry = ": ".join((where, ".".join(path))) if path else where
    if first["type"] == "extra_forbidden":
        return OptionError(f"{entry}: there is no such key; {_closest(path[-1], _keys_at(kind, path[:-1]))}")
    if first["type"] == "missing":
        return OptionError(f"{entry}: it is missing, and needed")
    found = "" if first["type"] == "value_error" else f", found {first['input']!r}"
    return OptionError(f"{entry}: {first['msg'].removeprefix('Value error, ')}{found}")


def _keys_at(kind: Any, path: list[str]) -> list[str]:
    """The keys that a table of the recipe takes."""
    for key in path:
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            kind = kind.model_fields[key].annotation
            if typing.get_origin(kind) in (typing.Union, types.UnionType):
                kind = next(each for each in typing.get_args(kind) if each is not type(None))
        else:  # the key is a name of the user's, in a table of tables
            kind = typing.get_args(kind)[1]
    return list(kind.model_fields)


def _closest(key: str, known: list[str]) -> str:
    close = difflib.get_close_matches(key, known, n=1)
    return f"the closest is '{close[0]}'" if close else f"the keys here are {', '.join(known)}"


def build(kind: type[Any], values: dict[str, Any], where: str = "options") -> Any:
    """`kind(**values)`, with a bad value reported as an `OptionError`."""
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise explain(error, where, kind) from None
