"""lwc: a compiler that makes pruned neural networks smaller and faster.

    import lwc_compiler as lwc

    recipe = lwc.Recipe(prune=lwc.PruneOptions(sparsity=0.9), train_data="train.npz")
    lwc.compile("model.onnx", "model.lwc", recipe)
    with lwc.load("model.lwc") as session:
        outputs = session.run({"input": array})

The passes can be used alone: each takes an ONNX file, an `onnx.ModelProto` or a `Model` and returns a new `Model`,
which `save` writes. Errors that lwc raises on purpose are subclasses of `LwcError`. Nothing heavy is imported before it
is used.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from lwc_compiler.errors import (
    AccuracyGateError,
    AgreementGateError,
    ArtifactError,
    DataError,
    GateError,
    LwcError,
    ModelError,
    OptionError,
    RegressionGateError,
    SizeGateError,
    SpeedGateError,
    TargetError,
    ToolchainError,
    TrainingError,
    UnsupportedError,
    VerificationError,
)
from lwc_compiler.version import __version__

if TYPE_CHECKING:
    from onnx import ModelProto

    from lwc_compiler.gates import GateResult
    from lwc_compiler.model import Model
    from lwc_compiler.passes.sensitivity import ScanProgress
    from lwc_compiler.recipe.build import BuildRecipe, GateOptions, OutputOptions, TargetGates, TargetOptions
    from lwc_compiler.recipe.file import load_build_recipe, load_recipe
    from lwc_compiler.recipe.options import (
        EstimateOptions,
        IterateOptions,
        LowerOptions,
        PackOptions,
        PruneOptions,
        Recipe,
        RetrainOptions,
        SensitivityOptions,
    )
    from lwc_compiler.recipe.run import Build
    from lwc_compiler.report.estimates import Estimate
    from lwc_compiler.runtime.artifact import Artifact
    from lwc_compiler.runtime.network import Network
    from lwc_compiler.runtime.session import Session
    from lwc_compiler.sparsity.curves import Sensitivity
    from lwc_compiler.training.progress import Progress

__all__ = [
    "AccuracyGateError",
    "AgreementGateError",
    "Artifact",
    "ArtifactError",
    "Build",
    "BuildRecipe",
    "DataError",
    "Estimate",
    "EstimateOptions",
    "GateError",
    "GateOptions",
    "GateResult",
    "IterateOptions",
    "LowerOptions",
    "LwcError",
    "Model",
    "ModelError",
    "Network",
    "OptionError",
    "OutputOptions",
    "PackOptions",
    "PruneOptions",
    "Recipe",
    "RegressionGateError",
    "RetrainOptions",
    "Sensitivity",
    "SensitivityOptions",
    "Session",
    "SizeGateError",
    "SpeedGateError",
    "TargetError",
    "TargetGates",
    "TargetOptions",
    "ToolchainError",
    "TrainingError",
    "UnsupportedError",
    "VerificationError",
    "__version__",
    "build",
    "compact",
    "compile",
    "estimate",
    "iterate",
    "load",
    "load_build_recipe",
    "load_recipe",
    "lower",
    "pack",
    "prune",
    "retrain",
    "save",
    "sensitivity",
    "unpack",
]

_LAZY = {
    "Artifact": "runtime.artifact",
    "Estimate": "report.estimates",
    "EstimateOptions": "recipe.options",
    "Build": "recipe.run",
    "BuildRecipe": "recipe.build",
    "GateOptions": "recipe.build",
    "GateResult": "gates",
    "IterateOptions": "recipe.options",
    "LowerOptions": "recipe.options",
    "Model": "model",
    "OutputOptions": "recipe.build",
    "PackOptions": "recipe.options",
    "PruneOptions": "recipe.options",
    "Recipe": "recipe.options",
    "Network": "runtime.network",
    "RetrainOptions": "recipe.options",
    "Sensitivity": "sparsity.curves",
    "SensitivityOptions": "recipe.options",
    "Session": "runtime.session",
    "TargetGates": "recipe.build",
    "TargetOptions": "recipe.build",
    "load_build_recipe": "recipe.file",
    "load_recipe": "recipe.file",
}


def compile(  # noqa: A001 - the verb of the project
    model: str | Path | Model | ModelProto,
    output: str | Path,
    recipe: Recipe | None = None,
    *,
    force: bool = False,
    cache: bool = False,
    workdir: str | Path | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> Artifact:
    """Compiles a model: normalize, prune, retrain, compact, lower, check against ONNX Runtime, write.

    Args:
        model: an ONNX file, or a model in memory; it is left as it is.
        output: the artifact directory to write; its parent exists.
        recipe: what to do; None: lower the zeros that are already in the model for this machine.
        force: replace the artifact at `output`; it stays as it is when anything fails.
        cache: take the result of an earlier call with the same model, data, recipe and version , and keep
            this one for later.
        workdir: where retraining keeps its checkpoints: the same call continues from the last one; None: nowhere.
        progress: called while retraining.

    Returns:
        The artifact, as written.

    Raises:
        LwcError: the model, an option, the data, the target, the toolchain or the output is not what it has to be (see
            the subclasses), or the code does not compute what ONNX Runtime computes. Nothing is written then.
    """
    from lwc_compiler.passes.pipeline import compile_model
    from lwc_compiler.recipe.options import Recipe

    return compile_model(
        *_open(model),
        Path(output),
        Recipe() if recipe is None else recipe,
        force=force,
        cache=cache,
        workdir=None if workdir is None else Path(workdir),
        progress=progress,
    )


def build(
    recipe: str | Path | BuildRecipe,
    output: str | Path | None = None,
    *,
    allow_code: bool = False,
    force: bool = False,
    cache: bool = False,
    workdir: str | Path | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> Build:
    """Does a whole run: prunes and retrains a model once, compiles it for every target, and judges all gates.

    Args:
        recipe: a TOML file, or the recipe itself.
        output: the directory to write; its parent exists. None: what the recipe says.
        allow_code: whether a file may name code that is then run, see `load_build_recipe`.
        force: replace the run at `output`; it stays as it is when anything fails.
        cache: see `compile`; the figures are always measured.
        workdir: see `compile`.
        progress: called while retraining.

    Returns:
        What was made. A gate that failed raises nothing here: `Build.check` does.

    Raises:
        LwcError: see `compile`. Nothing is written then.
    """
    from lwc_compiler.recipe.file import load_build_recipe
    from lwc_compiler.recipe.run import run_recipe

    return run_recipe(
        load_build_recipe(recipe, allow_code=allow_code) if isinstance(recipe, str | Path) else recipe,
        None if output is None else Path(output),
        force=force,
        cache=cache,
        workdir=None if workdir is None else Path(workdir),
        progress=progress,
    )


def estimate(model: str | Path | Model | ModelProto, options: EstimateOptions | None = None) -> Estimate:
    """What to expect of a model at several sparsities: latency, bytes, RAM and FLOPs; see `passes.estimate`.

    Nothing is pruned or trained: weights are drawn at random.

    Args:
        model: an ONNX file, or a model in memory; trained or not.
        options: None: the defaults, for this machine.

    Raises:
        ModelError: the model cannot be read, or has nothing to prune.
        OptionError: the options do not fit the model.
        TargetError: the target is unknown.
        ToolchainError: there is no C compiler for the target.
        UnsupportedError: an operator, a type or a dimension that cannot be lowered.
    """
    from lwc_compiler.passes.estimate import estimate
    from lwc_compiler.recipe.options import EstimateOptions

    return estimate(_open(model)[0], EstimateOptions() if options is None else options)


def prune(model: str | Path | Model | ModelProto, options: PruneOptions, data: str | None = None) -> Model:
    """Removes the connections with the smallest weights; see `passes.prune`.

    Args:
        model: the trained model.
        options: which connections go.
        data: what the criterion `sensitivity` and the score `activation` measure on, in the forms of `retrain`; for
            the former also the file of a scan (`Sensitivity.save`).

    Raises:
        ModelError: the model cannot be read, or has nothing to prune.
        OptionError: the options do not fit the model, or need data.
        DataError: the data cannot be read, or does not fit the model.
    """
    from lwc_compiler.passes.normalize import normalize
    from lwc_compiler.passes.pipeline import pruner_for

    normal = normalize(_open(model)[0], fold_batch_norm=False)
    return pruner_for(normal, options, data)(normal, options)


def sensitivity(
    model: str | Path | Model | ModelProto,
    data: str,
    options: SensitivityOptions | None = None,
    *,
    workdir: str | Path | None = None,
    progress: Callable[[ScanProgress], None] | None = None,
) -> Sensitivity:
    """Measures how good the network is with each layer pruned alone; see `passes.sensitivity`.

    Args:
        model: the trained model.
        data: what to measure on, in the forms of `retrain`; labels are not needed.
        options: None: the defaults.
        workdir: where every measurement is kept: the same call makes only those that are missing; None: nowhere.
        progress: called after every measurement.

    Raises:
        ModelError, DataError, OptionError: the model, the data or the options are not usable, or do not fit each other.
        UnsupportedError: no loss can be computed for the model.
    """
    from lwc_compiler.passes.normalize import normalize
    from lwc_compiler.passes.sensitivity import sensitivity

    return sensitivity(
        normalize(_open(model)[0], fold_batch_norm=False),
        data,
        options,
        workdir=None if workdir is None else Path(workdir),
        progress=progress,
    )


def retrain(
    model: str | Path | Model | ModelProto,
    train_data: str,
    val_data: str | None = None,
    options: RetrainOptions | None = None,
    *,
    teacher: str | Path | Model | ModelProto | None = None,
    workdir: str | Path | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> Model:
    """Trains the weights that are left; pruned ones stay exactly zero; see `passes.retrain`.

    Args:
        model: the pruned model.
        train_data: `.npz`, `.npy`, a folder of images by class, or `module:function`.
        val_data: the same, to choose the best epoch on; None: the last tenth of `train_data`.
        options: None: the defaults.
        teacher: the model to distil from, for data without labels.
        workdir: where checkpoints are kept: the same call continues from the last one; None: nowhere.
        progress: called after every few steps.

    Raises:
        ModelError, DataError, OptionError: the model, the data or the options are not usable, or do not fit each other.
        UnsupportedError: an operator has no gradient.
        TrainingError: the loss diverged, or the training process died.
        ToolchainError: ONNX Runtime Training is not installed, or damaged.
    """
    from lwc_compiler.passes.normalize import normalize
    from lwc_compiler.passes.pipeline import mark_zeros
    from lwc_compiler.passes.retrain import retrain
    from lwc_compiler.recipe.options import RetrainOptions

    return retrain(
        mark_zeros(normalize(_open(model)[0], fold_batch_norm=False)),
        train_data,
        val_data,
        RetrainOptions() if options is None else options,
        teacher=None if teacher is None else normalize(_open(teacher)[0], fold_batch_norm=False),
        workdir=None if workdir is None else Path(workdir),
        progress=progress,
    )


def iterate(
    model: str | Path | Model | ModelProto,
    train_data: str,
    val_data: str | None = None,
    *,
    prune: PruneOptions,
    retrain: RetrainOptions | None = None,
    options: IterateOptions | None = None,
    workdir: str | Path | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> Model:
    """Prunes a trained model in rounds of prune and retrain, as far as its accuracy holds; see `passes.iterate`.

    Args:
        model: the trained model; also the teacher where retraining distils.
        train_data: see `retrain`.
        val_data: the same, to judge epochs and rounds on; None: the last tenth of `train_data`.
        prune: what the last round prunes to.
        retrain: how every round retrains; None: the defaults.
        options: the rounds; None: the defaults.
        workdir: where checkpoints are kept: the same call continues from the last one; None: nowhere.
        progress: called after every few steps.

    Raises:
        LwcError: see `prune` and `retrain`.
    """
    from lwc_compiler.passes.normalize import normalize
    from lwc_compiler.passes.pipeline import prune_in_rounds
    from lwc_compiler.recipe.options import IterateOptions, RetrainOptions

    return prune_in_rounds(
        normalize(_open(model)[0], fold_batch_norm=False),
        train_data,
        val_data,
        prune,
        RetrainOptions() if retrain is None else retrain,
        IterateOptions() if options is None else options,
        workdir=None if workdir is None else Path(workdir),
        progress=progress,
    )


def compact(model: str | Path | Model | ModelProto) -> Model:
    """Removes neurons and channels that pruning has cut off; outputs stay the same; see `passes.compact`.

    Raises:
        ModelError: the model cannot be read.
    """
    from lwc_compiler.passes import compact, normalize

    return compact.compact(normalize.normalize(_open(model)[0], fold_batch_norm=False))


def lower(
    model: str | Path | Model | ModelProto,
    output: str | Path,
    options: LowerOptions | None = None,
    *,
    force: bool = False,
) -> Artifact:
    """Makes an artifact of a model as it is: `compile` without pruning and retraining.

    Raises:
        LwcError: see `compile`.
    """
    from lwc_compiler.recipe.options import LowerOptions, Recipe

    return compile(model, output, Recipe(lower=LowerOptions() if options is None else options), force=force)


@overload
def load(directory: str | Path, threads: int | None = None) -> Session: ...


@overload
def load(directory: str | Path, threads: int | None = None, *, via: str) -> Network: ...


def load(directory: str | Path, threads: int | None = None, *, via: str | None = None) -> Network:
    """Opens an artifact for running: `load(directory).run({input name: array})` gives {output name: array}.

    Args:
        directory: what `compile` wrote.
        threads: threads to use, at least 1; None: what the artifact was compiled for.
        via: what runs it instead of this process: `qemu`, `ssh://[user@]host[:port]` or `adb`.

    Raises:
        ArtifactError: the artifact is missing, damaged, or newer than this lwc.
        OptionError: `threads` is below 1, or `via` is no place to run.
        TargetError: this machine, or what `via` says, cannot run the artifact's code or cannot be reached.
        ToolchainError: `via` needs a program that is missing: QEMU, ssh, adb, a C compiler.
    """
    if via is not None:
        from lwc_compiler.runtime.artifact import read_artifact
        from lwc_compiler.runtime.elsewhere import open_elsewhere
        from lwc_compiler.runtime.linkable import Linkable

        artifact = read_artifact(directory)
        network = Linkable.of_artifact(artifact)
        return open_elsewhere(network, via, artifact.manifest.threads if threads is None else threads)
    from lwc_compiler.runtime.load import load as load_here

    return load_here(directory, threads)


def pack(model: str | Path | Model | ModelProto, path: str | Path, options: PackOptions | None = None) -> None:
    """Writes a model as one small file: weights that are not zero, with relative indices; see docs/packing.md.

    Args:
        model: an ONNX file, or a model in memory.
        path: the file.
        options: None: weights are kept bit for bit.

    Raises:
        ModelError: the model cannot be read.
        ArtifactError: the file cannot be written; what was there stays as it is.
    """
    from lwc_compiler import packing

    packing.save_packed(packing.pack(_open(model)[0], options), path)


def unpack(path: str | Path) -> Model:
    """The model in a file that `pack` wrote.

    Raises:
        ArtifactError: the file is missing, damaged, or not a packed model.
    """
    from lwc_compiler import packing

    return packing.unpack(path)


def save(model: Model, path: str | Path) -> None:
    """Writes a model as an ONNX file; above 2 GB the weights go to `<path>.data`.

    Raises:
        ArtifactError: the file cannot be written; what was there stays as it is.
    """
    from lwc_compiler.model import save_model

    save_model(model, path)


def _open(model: str | Path | Model | ModelProto) -> tuple[Model, str]:
    """The model, and the hash of its file; empty for a model in memory.

    Raises:
        ModelError: it cannot be read, or is none.
    """
    from onnx import ModelProto

    from lwc_compiler.files import sha256_of
    from lwc_compiler.model import Model, load_model, model_of

    if isinstance(model, str | Path):
        return load_model(model), sha256_of(Path(model))
    if isinstance(model, ModelProto):
        return model_of(model), ""
    if not isinstance(model, Model):
        raise ModelError(
            f"the model is of type {type(model).__name__}: give the path of an ONNX file, an onnx.ModelProto "
            "(onnx.load_from_string makes one of bytes), or what a pass returned"
        )
    return model, ""


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(f"{__name__}.{_LAZY[name]}"), name)
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted(__all__)
