"""The whole compilation, as one list of steps."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from onnx import numpy_helper

from lwc_compiler.errors import OptionError
from lwc_compiler.model import Model
from lwc_compiler.passes.compact import compact
from lwc_compiler.passes.normalize import normalize
from lwc_compiler.passes.prune import prune
from lwc_compiler.passes.reuse import Reuse
from lwc_compiler.passes.sites import constant_tensors, find_sites
from lwc_compiler.passes.stored_weights import with_stored_weights
from lwc_compiler.recipe.options import (
    IterateOptions,
    LowerOptions,
    PruneOptions,
    Recipe,
    RetrainOptions,
    SensitivityOptions,
)
from lwc_compiler.report.document import Report
from lwc_compiler.report.table import layer_report, with_lowered
from lwc_compiler.runtime.artifact import Artifact, check_destination, write_artifact
from lwc_compiler.runtime.manifest import Rounding
from lwc_compiler.sparsity.curves import Sensitivity, load_sensitivity
from lwc_compiler.targets import find_target
from lwc_compiler.training.progress import Progress

if TYPE_CHECKING:
    from lwc_compiler.codegen.result import Lowered

Pruner = Callable[[Model, PruneOptions], Model]

logger = logging.getLogger(__name__)


def compile_model(
    source: Model,
    source_sha256: str,
    directory: Path,
    recipe: Recipe,
    *,
    force: bool = False,
    cache: bool = False,
    workdir: Path | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> Artifact:
    """Everything `lwc_compiler.compile` does, whose arguments and errors these are."""
    # What can be refused is refused before any long work.
    check_complete(recipe)
    recipe = recipe.settled()
    check_destination(directory, force=force)
    target = find_target(recipe.lower.target)
    reuse = Reuse.of(source, recipe) if cache else Reuse(None)

    def made() -> Artifact:
        with timed("normalize"):
            original = normalize(source, fold_batch_norm=False)
        with timed("check that it can be lowered"):
            check_lowerable(original, recipe.lower, thorough=recipe.train_data is not None)
        model = reuse.model(recipe, source.name, lambda: pruned_and_retrained(original, recipe, workdir, progress))
        return make_artifact(original, model, source_sha256, directory, recipe, force=force)

    return reuse.artifact(source_sha256, recipe, target, directory, made, force=force)


def check_complete(recipe: Recipe) -> None:
    """Refuses a recipe whose parts need others that are not there.

    Raises:
        OptionError: data or a goal is missing.
    """
    if recipe.retrain and not recipe.train_data:
        raise OptionError("retraining needs training data: give --train-data, or leave the retraining options out")
    if recipe.iterate and not (recipe.prune and recipe.train_data):
        raise OptionError("pruning in rounds needs a goal and training data: give --sparsity and --train-data")


def make_artifact(
    original: Model, model: Model, source_sha256: str, directory: Path, recipe: Recipe, *, force: bool = False
) -> Artifact:
    """Lowers, checks and writes a model.

    Args:
        original: the model before pruning, normalized.
        model: pruned and retrained.
        source_sha256: hash of the file of `original`; empty when it came from memory.
        directory: the artifact to write; its parent exists.
        recipe: what was asked for.
        force: replace the artifact that is there.

    Raises:
        LwcError: see `lwc_compiler.compile`; nothing is written then.
    """
    # TVM and ONNX Runtime take a second to import.
    from lwc_compiler.codegen.bundle import bundle_files
    from lwc_compiler.passes.lower import lower_static
    from lwc_compiler.runtime.verify import make_test_vector, verify

    target = find_target(recipe.lower.target)
    with timed("compact"):
        static = _static(model, recipe.lower)
        compacted = compact(static)
    logger.info("lowering for %s", target.name)
    with timed("lower"):
        lowered = lower_static(compacted, recipe.lower)
    computed, rounding = model, None
    if recipe.lower.weight_type != "float32":
        computed, rounding = _rounded(static, compacted, lowered, recipe)
    logger.info("checking the code against ONNX Runtime")
    with timed("verify"):
        verification = verify(computed, lowered, recipe.lower.cc)
    with timed("write"):
        return write_artifact(
            directory,
            lowered,
            model,
            recipe=recipe,
            source_sha256=source_sha256,
            report=with_lowered(_report(model, static, recipe), lowered, verification),
            figures=_figures(original, model) if recipe.iterate else {},
            # How a library for a GPU is called, docs/cuda.md shows.
            bundle=bundle_files(lowered, make_test_vector(computed, lowered), rounding) if target.gpu is None else {},
            verification=verification,
            rounding=rounding,
            force=force,
        )


def _rounded(static: Model, compacted: Model, lowered: Lowered, recipe: Recipe) -> tuple[Model, Rounding]:
    """What a library with narrower weights computes, and how far that is from `static`, on data where there is some.

    `compacted` is the model that was lowered.
    """
    from lwc_compiler.report.activations import sample_feeds
    from lwc_compiler.runtime.verify import measure_rounding

    stored, data = with_stored_weights(compacted, lowered.layers), recipe.val_data or recipe.train_data
    feeds, source = (sample_feeds(static, data), f"samples of {data}") if data else ((), "")
    return stored, measure_rounding(static, stored, lowered, recipe.lower.max_rounding_error, feeds, source)


def pruned_and_retrained(
    original: Model, recipe: Recipe, workdir: Path | None, progress: Callable[[Progress], None] | None
) -> Model:
    """What `recipe` makes of a normalized model before it is lowered."""
    if recipe.iterate and recipe.prune and recipe.train_data:
        with timed("prune and retrain in rounds"):
            return prune_in_rounds(
                original,
                recipe.train_data,
                recipe.val_data,
                recipe.prune,
                recipe.retrain or RetrainOptions(),
                recipe.iterate,
                workdir=workdir,
                progress=progress,
            )
    model = mark_zeros(original)
    if recipe.prune:
        with timed("prune"):
            data = recipe.val_data or recipe.train_data
            model = pruner_for(original, recipe.prune, data, workdir)(original, recipe.prune)
    if recipe.train_data:
        from lwc_compiler.passes.retrain import retrain

        with timed("retrain"):
            return retrain(
                model,
                recipe.train_data,
                recipe.val_data,
                recipe.retrain or RetrainOptions(),
                teacher=original,
                workdir=workdir,
                progress=progress,
            )
    if recipe.prune:
        logger.warning("there is no training data: the model was pruned without retraining")
    return model


@contextmanager
def timed(name: str) -> Iterator[None]:
    """Logs how long the pass took, once it is through."""
    start = time.monotonic()
    yield
    logger.info("%s: %.2f s", name, time.monotonic() - start)


def prune_in_rounds(
    model: Model,
    train_data: str,
    val_data: str | None,
    goal: PruneOptions,
    training: RetrainOptions,
    options: IterateOptions,
    *,
    workdir: Path | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> Model:
    """`passes.iterate` for a normalized model, with the prune pass."""
    from lwc_compiler.passes.iterate import iterate

    model = mark_zeros(model)
    pruner = pruner_for(model, goal, val_data or train_data, workdir)
    return iterate(
        model, train_data, val_data, goal, training, options, pruner=pruner, workdir=workdir, progress=progress
    )


def pruner_for(model: Model, options: PruneOptions, data: str | None, workdir: Path | None = None) -> Pruner:
    """The prune pass with the measurements that `options` ask for.

    Args:
        model: normalized and not pruned yet; the sensitivity of its layers is measured here, once.
        options: criterion, score and structure are read.
        data: to measure on, or the file of a scan; None: nothing is measured, and `prune` says so when that matters.
        workdir: where the scan keeps its measurements.
    """
    scan: Sensitivity | None = None
    if options.criterion == "sensitivity" and data is not None:
        if Path(data).suffix == ".json":
            scan = load_sensitivity(Path(data))
        else:
            from lwc_compiler.passes.sensitivity import sensitivity

            logger.info("measuring the sensitivity of the layers")
            settings = SensitivityOptions(structure=options.structure, score=options.score)
            scan = sensitivity(model, data, settings, workdir=workdir)

    def pruner(current: Model, stage: PruneOptions) -> Model:
        norms = None
        if stage.score == "activation" and data is not None:
            from lwc_compiler.passes.calibration import input_norms

            norms = input_norms(current, data)
        return prune(current, stage, sensitivity=scan, norms=norms)

    return pruner


def check_lowerable(model: Model, options: LowerOptions, *, thorough: bool) -> None:
    """Raises what `lower` would raise, without lowering; `thorough` imports the graph, which can take some seconds."""
    static = _static(model, options)
    from lwc_compiler.codegen.frontend import check_supported, import_onnx
    from lwc_compiler.codegen.link import find_compiler
    from lwc_compiler.passes.lower import check_for_device, check_precision, check_weight_type, measured_candidates

    check_weight_type(options)
    target = find_target(options.target)
    check_precision(options, target)
    for variant in target.variants or (target,):
        measured_candidates(options, variant)
    # Source is compiled here to be checked.
    find_compiler(None if target.source else target, options.cc)
    check_supported(static.proto)
    if target.gpu is not None:
        from lwc_compiler.codegen.cuda_compiler import find_cuda_compiler

        check_for_device(static.proto.graph, options)
        find_cuda_compiler(target.gpu.architectures)
    if thorough:
        import_onnx(static.proto)


def mark_zeros(model: Model) -> Model:
    """The model with masks that keep its zeros: weights that are exactly 0 count as pruned."""
    constants = constant_tensors(model.proto.graph)
    masks = {site.weight: numpy_helper.to_array(constants[site.weight]) != 0 for site in find_sites(model.proto)}
    return replace(model, masks={name: mask for name, mask in masks.items() if not np.all(mask)} | model.masks)


def _figures(dense: Model, pruned: Model) -> Mapping[str, Any] | None:
    """The plots of the report; None without matplotlib."""
    from lwc_compiler.report.plots import figures_of, plots_available

    return figures_of(dense, pruned) if plots_available() else None


def _static(model: Model, options: LowerOptions) -> Model:
    return normalize(model, shapes=dict(options.shapes), batch=options.batch, fold_batch_norm=True)


def _report(model: Model, static: Model, recipe: Recipe) -> Report:
    """The table of the layers, with activations measured on some of the data, or on random inputs without data.

    `static` is `model` with static shapes, as it is lowered.
    """
    from lwc_compiler.report.activations import activations_on, measure_activations

    data = recipe.val_data or recipe.train_data
    return layer_report(static, activations_on(model, data) if data else measure_activations(static))
