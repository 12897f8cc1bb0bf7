"""The retrain pass: the surviving weights learn to make up for the pruned ones (Han et al. 2015, section 3.3)."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lwc_compiler.errors import ModelError, OptionError, TrainingError
from lwc_compiler.model import Model
from lwc_compiler.passes.dropout import dropout_ratios
from lwc_compiler.passes.sites import constant_tensors, find_sites, node_label
from lwc_compiler.recipe.options import PruneOptions, RetrainOptions, build
from lwc_compiler.sparsity.masks import parse_structure
from lwc_compiler.training.progress import Progress
from lwc_compiler.training.runtime_check import require_training

if TYPE_CHECKING:
    from lwc_compiler.training.masking import Pruning


def retrain(
    model: Model,
    train_data: str,
    val_data: str | None,
    options: RetrainOptions,
    *,
    teacher: Model | None = None,
    pruning: Pruning | None = None,
    workdir: Path | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> Model:
    """Trains the weights of a model, keeping pruned ones at exactly 0.

    Weights with a mask train under it, the others densely; without masks this is plain training. The training runs in
    a process of its own. It starts with everything that can go wrong early: data and options are checked, the graph is
    made fit for gradients, and the gradient is compared once with the change of the loss.

    Args:
        model: the user's model, normalized; `masks` say what is pruned.
        train_data: see `lwc_compiler.training.data`.
        val_data: data of the same form that the best epoch is chosen on; None: the last tenth of `train_data`.
        options: how to train.
        teacher: the original model, for distillation.
        pruning: how masks change on the way. None: not at all, or, where weights may grow back, within the density
            that each layer has and with the structure it was pruned to.
        workdir: directory for checkpoints. When a run was interrupted, the same call with the same directory goes on
            after its last finished epoch and ends with the very same weights. None: a temporary directory.
        progress: called with every report of the training process.

    Returns:
        The model with the weights (and masks, where these change) of the best epoch on validation data, the untrained
        weights (epoch 0) included; names, metadata, opset and all else of the graph are as they were. The provenance
        entry holds `history` (an entry an epoch: `train_loss`, `val_loss`, `metric`, `density`), `best_epoch`, the
        `dropout` ratios, and what `metric` and `loss` are.

    Raises:
        ToolchainError: ONNX Runtime Training is not installed, or its installation is broken.
        DataError: the data does not exist, does not fit the model, or holds NaN or Inf.
        UnsupportedError: an operator has no gradient; the message names node and operator.
        TrainingError: the loss diverged, a gradient is wrong, or the training process died.
        OptionError: distillation without a teacher, or a name in the options that the model does not have.
        ModelError: the model has no weights, or a mask does not fit one.
    """
    require_training()
    from lwc_compiler.training.checkpoint import load_checkpoint
    from lwc_compiler.training.child import run_worker
    from lwc_compiler.training.job import CHECKPOINT, is_finished, write_job
    from lwc_compiler.training.weights import attach

    check_masks(model)
    dropout = dropout_ratios(model, options.dropout, adjust=options.adjust_dropout)
    frozen = frozen_weights(model, options.freeze)
    if pruning is None and options.grow != "none":
        pruning = current_pruning(model)
    with tempfile.TemporaryDirectory(prefix="lwc-retrain-") as temporary:
        directory = Path(temporary) if workdir is None else workdir
        write_job(
            directory,
            model,
            train_data,
            val_data,
            options,
            frozen=frozen,
            dropout=dropout,
            pruning=pruning,
            teacher=teacher,
        )
        if not is_finished(directory):
            run_worker(directory, progress)
        found = load_checkpoint(directory / CHECKPOINT)
    if found is None:
        raise TrainingError(f"the training process left no checkpoint in {directory}")
    meta, groups = found
    masks = model.masks if pruning is None else model.masks | groups["best_masks"]
    return replace(model, masks=masks).after(
        "retrain",
        attach(model.proto, groups["best"]),
        options=options.model_dump(mode="json"),
        dropout=dropout,
        loss=meta["loss"],
        metric=meta["metric"],
        history=meta["history"],
        best_epoch=meta["best_epoch"],
    )


def check_masks(model: Model) -> None:
    """Masks are bool, and have the shape of the weight they belong to.

    Raises:
        ModelError: one is not, or has not.
    """
    shapes = {name: tuple(tensor.dims) for name, tensor in constant_tensors(model.proto.graph).items()}
    for name, mask in model.masks.items():
        if mask.dtype != np.bool_ or mask.shape != shapes.get(name):
            raise ModelError(
                f"the mask of '{name}' ({mask.dtype} {mask.shape}) does not fit the weight {shapes.get(name)}"
            )


def frozen_weights(model: Model, patterns: Iterable[str]) -> tuple[str, ...]:
    """Names of the constants that the layers in `patterns` learn: their weights and biases.

    Args:
        model: any.
        patterns: `conv`, `fc`, or weight and node names with shell-style wildcards.

    Raises:
        OptionError: a pattern matches nothing, or everything is frozen.
    """
    sites = find_sites(model.proto)
    constants = constant_tensors(model.proto.graph)
    frozen: dict[str, None] = {}
    for pattern in patterns:
        found = [
            site
            for site in sites
            if pattern == site.kind or any(fnmatchcase(name, pattern) for name in (site.weight, *site.nodes))
        ]
        if not found:
            names = ", ".join(f"'{site.weight}'" for site in sites[:5])
            raise OptionError(f"freeze: '{pattern}' matches no layer; there are {names}, and the kinds conv and fc")
        labels = {label for site in found for label in site.nodes}
        results = {name for site in found for name in site.outputs}
        for node in model.proto.graph.node:
            if node_label(node) in labels or (node.op_type == "Add" and results.intersection(node.input)):
                frozen |= dict.fromkeys(name for name in node.input if name in constants)
        frozen |= dict.fromkeys(site.weight for site in found)
    if sites and all(site.weight in frozen for site in sites):
        raise OptionError("freeze: every layer is frozen, so there is nothing to train")
    return tuple(frozen)


def current_pruning(model: Model) -> Pruning:
    """Each masked layer keeps its density, and the structure that the model was pruned to.

    Raises:
        OptionError: nothing is pruned.
    """
    from lwc_compiler.training.masking import Pruning

    structure = next(
        (entry["options"]["structure"] for entry in reversed(model.provenance) if entry.get("pass") == "prune"),
        "element",
    )
    sites = [site for site in find_sites(model.proto) if site.weight in model.masks]
    if not sites:
        raise OptionError("nothing is pruned, so nothing can grow back: prune first, or leave `grow` out")
    # A structure can keep a weight more than its share where groups are cut off or counts are odd.
    highest = parse_structure(structure).highest_density
    densities = {site.weight: min(float(model.masks[site.weight].mean()), highest) for site in sites}
    goal: PruneOptions = build(
        PruneOptions, {"criterion": "per-layer", "densities": densities, "structure": structure}, "grow"
    )
    return Pruning(goal, tuple(densities))
