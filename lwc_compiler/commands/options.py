"""The recipe's options on the command line: names, types, choices and defaults come from the recipe's classes."""

from __future__ import annotations

import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import click
from click.shell_completion import CompletionItem

from lwc_compiler.errors import OptionError
from lwc_compiler.recipe.build import GateOptions
from lwc_compiler.recipe.file import load_recipe
from lwc_compiler.recipe.options import (
    EstimateOptions,
    IterateOptions,
    LowerOptions,
    Options,
    PackOptions,
    PruneOptions,
    Recipe,
    RetrainOptions,
    SensitivityOptions,
    build,
)

KEEP = "keep"

_CLASSES: dict[str, type[Options]] = {
    "prune": PruneOptions,
    "retrain": RetrainOptions,
    "iterate": IterateOptions,
    "sensitivity": SensitivityOptions,
    "lower": LowerOptions,
    "pack": PackOptions,
    "estimate": EstimateOptions,
    "gates": GateOptions,
}

# Part of the recipe -> field -> help. Defaults and choices are added from the class.
HELP = {
    "prune": {
        "sparsity": "Pruned weights / all weights of the layers that are pruned, in [0, 1). With `compile`, 'keep' "
        "prunes nothing and lowers the zeros that the model has, as does leaving out all pruning options.",
        "criterion": "What decides which weights go. uniform: the smallest of each layer; global: the smallest of the "
        "whole model; erdos-renyi-kernel: densities that follow the layers' shapes; these three take --sparsity. std: "
        "those below --quality standard deviations of their layer; per-layer: the densities given by --density; "
        "sensitivity: the densities that lose least on the data, for --sparsity over the whole.",
        "quality": "With std: threshold in standard deviations of the layer's weights, above 0.",
        "densities": "With per-layer: weights to keep / all weights of a layer, in (0, 1]; the layer by its weight's "
        "or node's name. Can be given many times.",
        "structure": "What is pruned together. element: single weights; Rx1: blocks of R consecutive output "
        "channels; N:M: at most N of M consecutive input channels are kept.",
        "score": "What a weight is measured by. magnitude: its size; activation: its size times the norm of what it is "
        "multiplied with on the data, for pruning without retraining.",
        "keep": "Layer that is not pruned, by its weight's or node's name; *, ? and [...] match as in a shell. Can be "
        "given many times.",
        "keep_first": "Whether the first layer stays as it is.",
        "keep_depthwise": "Whether depthwise convolutions stay as they are.",
    },
    "retrain": {
        "epochs": "Passes over the training data, at least 1.",
        "batch_size": "Samples in a training batch, at least 1.",
        "loss": "What training minimizes. auto: distillation from the original model when the data has no labels, "
        "cross-entropy for integer labels, mse for others.",
        "distill": "Share of the original model's outputs in the loss, in [0, 1], for data with labels.",
        "optimizer": "adamw, or sgd with momentum.",
        "learning_rate": "Highest learning rate, above 0.",
        "momentum": "Momentum of sgd, in [0, 1).",
        "weight_decay": "L2 regularization: weight decay, at least 0.",
        "l1": "L1 regularization: weights move towards 0 by this times the learning rate, at least 0.",
        "schedule": "How the learning rate falls. cosine: to 0 over the run; step: times --step-factor every "
        "--step-epochs epochs.",
        "step_epochs": "With the step schedule: epochs between two steps, at least 1.",
        "step_factor": "With the step schedule: factor of a step, above 0.",
        "clip_norm": "Largest L2 norm of the whole gradient, above 0; longer ones are scaled down.",
        "accumulate": "Batches whose mean gradient makes one step, at least 1.",
        "batch_norm": "train: batch statistics, and scale and shift are trained; frozen: all stay as they are.",
        "dropout": "Dropout after a node or tensor, with its ratio in [0, 1); 0 takes one of the model's own away. Can "
        "be given many times.",
        "adjust_dropout": "Whether dropout ratios shrink with the square root of the connections that are left.",
        "freeze": "Layers that are not trained: conv, fc, or a layer by its weight's or node's name; *, ? and [...] "
        "match as in a shell. Can be given many times.",
        "grow": "Whether pruned weights may come back. shadow: they go on learning unseen; gradient: those with the "
        "highest gradients replace the smallest.",
        "grow_fraction": "With --grow gradient: weights that are replaced at first, in (0, 1).",
        "mask_interval": "Steps between two changes of the masks, with --grow or the gradual schedule; at least 1.",
        "codebook": "Kept weights of the layers of a kind (conv or fc) share 2^BITS trained values, BITS from 1 to 8. "
        "Can be given for both.",
        "augment": "module:function that changes the inputs of a training batch: it gets them by name and a numpy "
        "random generator, and returns them.",
        "temperature": "Softmax temperature of distillation, above 0.",
        "patience": "Stop after this many epochs without a better validation metric, at least 1.",
        "seed": "Seed of the order of the samples, at least 0.",
        "threads": "Threads of the training, at least 0; 0: as many as there are cores.",
    },
    "iterate": {
        "schedule": "How the density falls. geometric: by the same factor every round; cubic: fast at first; gradual: "
        "step by step in one training; targets: as --round-target says.",
        "rounds": "Rounds of pruning and retraining, at least 1.",
        "targets": "With the targets schedule: sparsity of a round, or quality factor with std; once for each round.",
        "max_accuracy_drop": "Stop when the validation metric has fallen by more than this (0.01 is one point), and "
        "keep the sparsest model that holds; at least 0.",
        "ramp": "With the gradual schedule: share of the epochs after which all is pruned, in (0, 1].",
        "learning_rate_factors": "Learning rate of a round / --learning-rate, above 0; once for each round, the last "
        "one counts on.",
        "alternate": "Whether fully connected layers and convolutions are pruned and retrained in turns, the others "
        "being fixed.",
        "remove_dead": "Whether neurons without inputs or outputs lose their other connections after a round.",
        "reinitialize": "Whether the weights that are left are drawn anew every round, for comparison.",
    },
    "sensitivity": {
        "structure": "What is pruned together, as for `prune`.",
        "score": "What a weight is measured by, as for `prune`.",
        "densities": "Density at which each layer is measured, in (0, 1]. Can be given many times.",
        "samples": "Samples that each measurement is the mean over, at least 1.",
        "loss": "What is measured beside the accuracy. auto: the distance to the model's own outputs when the data has "
        "no labels, cross-entropy for integer labels, mse for others.",
        "batch_size": "Samples that go through the network at once, at least 1.",
        "workers": "Threads that measure, at least 0; 0: as many as there are cores.",
    },
    "lower": {
        "target": "What the machine code is made for: a name that `lwc targets` lists; host: this machine.",
        "batch": "Size of the batch dimension, where the model leaves it open; at least 1.",
        "threads": "Threads the artifact uses when its caller does not say, at least 1.",
        "shapes": "Shape of an input whose dimensions the model leaves open. Can be given many times.",
        "cc": "Command of a C compiler for the target, with its flags.",
        "weights": "Where the weights are. embed: in the library; file: in a file beside it, which the program maps "
        "and hands to every run.",
        "weight_type": "How weights are stored where that is smaller, for targets without an operating system. "
        "float16: rounded; int8: rounded, with a scale for each output channel.",
        "max_rounding_error": "Largest change of an output by the rounding of weights / the output's scale, above 0.",
        "precision": "What the factors of linear layers are rounded to on a GPU, for its tensor cores.",
        "tune": "Kernels measured on this machine for each layer, at least 0; 0: a prediction decides.",
    },
    "pack": {
        "values": "How weights are stored. float32: bit for bit; float16: rounded; codebook: few values a layer, found "
        "by k-means.",
        "conv_bits": "With codebook: bits of a convolution's codes, 1 to 8.",
        "fc_bits": "With codebook: bits of the codes of Gemm and MatMul, 1 to 8.",
        "huffman": "Whether indices and values are Huffman coded where that is smaller.",
    },
    "estimate": {
        "target": "What is looked at: a name that `lwc targets` lists; host: this machine, where kernels are measured.",
        "batch": "Size of the batch dimension, where the model leaves it open; at least 1.",
        "shapes": "Shape of an input whose dimensions the model leaves open. Can be given many times.",
        "cc": "Command of a C compiler for the target, with its flags.",
        "sparsities": "Pruned weights / all weights of the layers that are pruned, in (0, 1). Can be given many times.",
        "structures": "What is pruned together, as for `prune`. Can be given many times.",
        "criterion": "How the density is shared among the layers, as for `prune`.",
        "keep": "Layer that is not pruned, by its weight's or node's name; *, ? and [...] match as in a shell. Can be "
        "given many times.",
        "keep_first": "Whether the first layer stays as it is.",
        "keep_depthwise": "Whether depthwise convolutions stay as they are.",
        "seconds": "Measure no more kernels after this time, at least 0; the rest is predicted.",
    },
    "gates": {
        "max_accuracy_drop": "Accuracy that may be lost against the model before pruning (0.01 is one point), at least "
        "0; where there is none, by how much the loss may rise.",
        "min_metric": "Least accuracy, or agreement with the model before pruning, in [0, 1].",
        "max_disagreement": "Largest share of the predictions that differ from those of the model before pruning, in "
        "[0, 1]; needs no labels.",
        "max_bytes": "Largest library, with its file of weights where that is apart; bytes.",
        "max_flash_bytes": "Most flash for code and constants, without an operating system; bytes.",
        "max_ram_bytes": "Most RAM for variables, workspace, inputs and outputs, without an operating system; bytes.",
        "max_latency_ms": "Longest median time of a run, in milliseconds.",
        "min_speedup": "Least median time of ONNX Runtime on the model before pruning / that of the artifact.",
        "baseline": "report.json of an earlier `lwc build`, or its directory, for example of the main branch, which "
        "the next three compare with; where there is none, they are skipped.",
        "max_accuracy_regression": "How much worse than the baseline's the metric may be, in percent of it.",
        "max_bytes_regression": "How many more bytes than in the baseline may ship, in percent.",
        "max_latency_regression": "How much longer than in the baseline a run may take, in percent.",
        "seconds": "Time to measure each engine for, above 0.",
    },
}

_FLAGS = {
    ("prune", "densities"): "--density",
    ("prune", "keep_first"): "--keep-first/--prune-first",
    ("prune", "keep_depthwise"): "--keep-depthwise/--prune-depthwise",
    ("retrain", "threads"): "--train-threads",
    ("retrain", "adjust_dropout"): "--adjust-dropout/--fixed-dropout",
    ("iterate", "schedule"): "--round-schedule",
    ("iterate", "targets"): "--round-target",
    ("iterate", "learning_rate_factors"): "--learning-rate-factor",
    ("iterate", "alternate"): "--alternate/--together",
    ("iterate", "remove_dead"): "--remove-dead/--keep-dead",
    ("iterate", "reinitialize"): "--reinitialize/--keep-weights",
    ("sensitivity", "densities"): "--at-density",
    ("lower", "shapes"): "--shape",
    ("pack", "huffman"): "--huffman/--no-huffman",
    ("estimate", "shapes"): "--shape",
    ("estimate", "sparsities"): "--sparsity",
    ("estimate", "structures"): "--structure",
    ("estimate", "keep_first"): "--keep-first/--prune-first",
    ("estimate", "keep_depthwise"): "--keep-depthwise/--prune-depthwise",
}


# What a default of None stands for, where that is not "none".
_DEFAULTS = {
    ("lower", "tune"): "6 for target host, 0 for a target with a name",
    ("lower", "cc"): "the system's for this machine, else that of the package ziglang",
    ("estimate", "cc"): "the system's for this machine, else that of the package ziglang",
    ("estimate", "structures"): "those that the target has kernels for",
}

_METAVARS = {
    ("prune", "densities"): "NAME=DENSITY",
    ("retrain", "dropout"): "NAME=RATIO",
    ("retrain", "codebook"): "KIND=BITS",
    ("lower", "shapes"): "NAME=D,D,...",
    ("estimate", "shapes"): "NAME=D,D,...",
    ("gates", "baseline"): "FILE.json",
}


class _Assignment(click.ParamType[tuple[str, Any]]):
    """`NAME=VALUE`; the last `=` counts, since names may hold one."""

    name = "assignment"

    def __init__(self, convert: type[float | int], many: bool) -> None:
        self._convert = convert
        self._many = many

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, Any]:
        name, equals, text = value.rpartition("=")
        try:
            numbers = [self._convert(part) for part in (text.split(",") if self._many else [text])]
        except ValueError:
            numbers = []
        if not (name and equals and numbers):
            self.fail(f"'{value}' is not of the form {param.metavar if param else 'NAME=VALUE'}", param, ctx)
        return name, tuple(numbers) if self._many else numbers[0]


def recipe_options(parts: Sequence[str]) -> list[click.Parameter]:
    """The options of these parts of the recipe; what they hold reaches the command as `<part>_<field>`."""
    return [_option(part, field, text) for part in parts for field, text in HELP[part].items()]


def recipe_values(options: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Part of the recipe -> field -> value, for the options that were given on the command line."""
    values: dict[str, dict[str, Any]] = {part: {} for part in _CLASSES}
    for name, value in options.items():
        part, _, field = name.partition("_")
        if value is not None and value != ():
            pairs = isinstance(value, tuple) and isinstance(value[0], tuple)
            values[part][field] = dict(value) if pairs else value
    return values


def part_of(options: Mapping[str, Any], part: str) -> Any:
    """The options object of one part of the recipe, from a command's options."""
    return build(_CLASSES[part], recipe_values(options)[part])


def whole_recipe(
    file: Path | None,
    train_data: str | None,
    val_data: str | None,
    options: Mapping[str, Any],
    *,
    allow_code: bool = False,
    deterministic: bool = False,
) -> Recipe:
    """The recipe in `file` with what the command line says in its place; what neither says has its default.

    Code that the file names is refused without `allow_code`; on the command line the user has typed it.
    """
    values = load_recipe(file, allow_code=allow_code).model_dump(exclude_unset=True) if file else {}
    given = recipe_values(options)
    if given["prune"].get("sparsity") == KEEP:
        if len(given["prune"]) > 1:
            raise OptionError(f"--sparsity {KEEP} prunes nothing: leave the other pruning options out")
        given["prune"] = {}
        values.pop("prune", None)
    for part, fields in given.items():
        if fields:
            values[part] = {**(values.get(part) or {}), **fields}
    values.update({name: data for name, data in {"train_data": train_data, "val_data": val_data}.items() if data})
    if deterministic:
        values["deterministic"] = True
    recipe: Recipe = build(Recipe, values)
    return recipe


def _option(part: str, field: str, text: str) -> click.Option:
    kind, multiple = _click_type(_CLASSES[part].model_fields[field].annotation)
    default = _CLASSES[part].model_fields[field].default
    flag = _FLAGS.get((part, field), "--" + field.replace("_", "-"))
    if isinstance(default, bool):
        shown = flag.split("/")[0 if default else 1].removeprefix("--")
    else:
        many = ", ".join(map(str, default)) if isinstance(default, tuple) else str(default)
        shown = _DEFAULTS.get((part, field), "none" if default in (None, (), {}) else many)
    return click.Option(
        [f"{part}_{field}", flag],
        type=str if (part, field) == ("prune", "sparsity") else kind,
        default=None,
        multiple=multiple,
        shell_complete=_targets if (part, field) == ("lower", "target") else None,
        metavar=_METAVARS.get((part, field), "NAME" if kind is str and multiple else None),
        help=f"{text}  [default: {shown}]",
    )


def _click_type(annotation: Any) -> tuple[Any, bool]:
    """Click's type, and whether the option can be given many times."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Annotated:
        return _click_type(arguments[0])
    if origin in (typing.Union, types.UnionType):
        return _click_type(next(argument for argument in arguments if argument is not type(None)))
    if origin is Literal:
        return click.Choice(arguments), False
    if origin is tuple:
        return _click_type(arguments[0])[0], True
    if origin is dict:
        many = typing.get_origin(arguments[1]) is tuple
        return _Assignment(_click_type(arguments[1])[0], many), True
    return annotation, False


def _targets(_ctx: click.Context, _option: click.Parameter, incomplete: str) -> list[CompletionItem[str]]:
    """Targets and boards whose names begin like this."""
    from lwc_compiler.targets import HOST, all_boards, all_targets

    known = {HOST: "this machine"} | {target.name: target.description for target in (*all_targets(), *all_boards())}
    return [CompletionItem(name, help=text) for name, text in known.items() if name.startswith(incomplete)]
