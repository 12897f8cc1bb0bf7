"""The retrain pass: the surviving weights learn to make up for the pruned ones (Han et al. 2015, section 3.3)."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from lwc_compiler.errors import ModelError, TrainingError
from lwc_compiler.model import Model
from lwc_compiler.passes.sites import constant_tensors
from lwc_compiler.recipe import RetrainOptions
from lwc_compiler.training.progress import Progress
from lwc_compiler.training.runtime_check import require_training


def retrain(
    model: Model,
    train_data: str,
    val_data: str | None,
    options: RetrainOptions,
    *,
    teacher: Model | None = None,
    workdir: Path | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> Model:
    """Trains the weights of a model, keeping pruned ones at exactly 0.

    Weights with a mask train under it, the others densely; without masks this is plain training. The training runs in
    a process of its own. It starts with everything that can go wrong early: data and options are checked, the graph is
    made fit for gradients, and the gradient is compared once with the change of the loss.

    Args:
        model: the user's model; `masks` say what is pruned.
        train_data: see `lwc_compiler.training.data`.
        val_data: data of the same form that the best epoch is chosen on; None: the last tenth of `train_data`.
        options: how to train.
        teacher: the original model, for the loss `distillation`.
        workdir: directory for checkpoints. When a run was interrupted, the same call with the same directory goes on
            after its last finished epoch and ends with the very same weights. None: a temporary directory.
        progress: called with every report of the training process.

    Returns:
        The model with the weights of the best epoch on validation data, the untrained weights (epoch 0) included;
        names, metadata, opset and all else of the graph are as they were. The provenance entry holds `history` (an
        entry an epoch: `train_loss`, `val_loss`, `metric`, `seconds`), `best_epoch`, and what `metric` and `loss` are.

    Raises:
        ToolchainError: ONNX Runtime Training is not installed, or its installation is broken.
        DataError: the data does not exist, does not fit the model, or holds NaN or Inf.
        UnsupportedError: an operator has no gradient; the message names node and operator.
        TrainingError: the loss diverged, a gradient is wrong, or the training process died.
        OptionError: distillation without a teacher.
        ModelError: the model has no weights, or a mask does not fit one.
    """
    require_training()
    from lwc_compiler.training.checkpoint import load_checkpoint
    from lwc_compiler.training.child import run_worker
    from lwc_compiler.training.job import CHECKPOINT, write_job
    from lwc_compiler.training.weights import attach

    check_masks(model)
    with tempfile.TemporaryDirectory(prefix="lwc-retrain-") as temporary:
        directory = Path(temporary) if workdir is None else workdir
        write_job(directory, model, train_data, val_data, options, teacher)
        run_worker(directory, progress)
        found = load_checkpoint(directory / CHECKPOINT)
    if found is None:
        raise TrainingError(f"the training process left no checkpoint in {directory}")
    meta, groups = found
    return model.after(
        "retrain",
        attach(model.proto, groups["best"]),
        options=options.model_dump(mode="json"),
        loss=meta["loss"],
        metric=meta["metric"],
        history=meta["history"],
        best_epoch=meta["best_epoch"],
    )


def check_masks(model: Model) -> None:
    """Masks are bool, and have the shape of the weight they belong to."""
    shapes = {name: tuple(tensor.dims) for name, tensor in constant_tensors(model.proto.graph).items()}
    for name, mask in model.masks.items():
        if mask.dtype != np.bool_ or mask.shape != shapes.get(name):
            raise ModelError(
                f"the mask of '{name}' ({mask.dtype} {mask.shape}) does not fit the weight {shapes.get(name)}"
            )
