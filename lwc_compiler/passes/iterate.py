"""Iterative pruning: prune, retrain, prune more, as long as the accuracy holds (Han et al. 2015, section 3.4)."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from glob import escape
from pathlib import Path
from typing import Any

import numpy as np
from onnx import numpy_helper

from lwc_compiler.errors import OptionError
from lwc_compiler.model import Model
from lwc_compiler.passes.compact import prune_dead
from lwc_compiler.passes.retrain import frozen_weights, retrain
from lwc_compiler.passes.sites import constant_tensors, find_sites
from lwc_compiler.recipe.options import IterateOptions, PruneOptions, RetrainOptions
from lwc_compiler.sparsity.schedule import Densities, between, rounds, target_of
from lwc_compiler.training.progress import Progress
from lwc_compiler.training.runtime_check import require_training

# Densities that are tried between the last round that holds and the first that does not.
_TRIES_BETWEEN = 2

# Stage of a round -> what stays as it is in it.
_FROZEN: dict[str, tuple[str, ...]] = {"all": (), "fc": ("conv",), "conv": ("fc",)}

Pruner = Callable[[Model, PruneOptions], Model]

logger = logging.getLogger(__name__)


def iterate(
    model: Model,
    train_data: str,
    val_data: str | None,
    goal: PruneOptions,
    training: RetrainOptions,
    options: IterateOptions,
    *,
    pruner: Pruner,
    workdir: Path | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> Model:
    """Prunes a trained model in rounds, each followed by retraining.

    Args:
        model: normalized and trained; it is also the teacher where `training` distils.
        train_data: see `lwc_compiler.training.data`.
        val_data: data of the same form, which epochs and rounds are judged on; None: the last tenth of `train_data`.
        goal: what the last round prunes to.
        training: how every round retrains; `seed` and all else are the same in every round.
        options: the rounds.
        pruner: the prune pass, with whatever measurements its criterion needs.
        workdir: directory for checkpoints, a folder a round: the same call goes on where an interrupted one was.
        progress: called with every report of a training.

    Returns:
        The model of the last round, or with `options.max_accuracy_drop` of the sparsest round that holds (the given
        model where none does). The provenance entry holds `metric` (its name), `dense_metric`, `best_round` (0: none)
        and `rounds`: for each its `round`, `stage` (`all`, `fc`, `conv`), `target` (sparsity or quality factor, None
        with densities a layer), `density` over the pruned layers, `metric_pruned` before and `metric` after retraining,
        `held` (None without a limit), `best_epoch`, `learning_rate`, `dropout` ratios, `dead` (connections that went
        with dead neurons), `sites` (weight -> density) and `history` as in `retrain`.

    Raises:
        OptionError: the options do not fit each other or the model.
        LwcError: what `prune` and `retrain` raise.
    """
    require_training()
    start = Densities.of(model.masks)
    stages = rounds(goal, options, start)
    if options.schedule == "gradual" and options.reinitialize:
        raise OptionError("re-initializing starts a round anew, and the gradual schedule has no rounds")
    if training.codebook and options.schedule == "gradual":
        raise OptionError("a codebook is made for the weights that are left: prune first, then retrain with it")
    if goal.score == "activation" and (options.schedule == "gradual" or training.grow != "none"):
        raise OptionError("score 'activation' is measured between trainings, not within one: take 'magnitude'")
    dense, metric = _measure(model, train_data, val_data, training)
    logger.info("dense model: %s %.4f", metric, dense)
    run = _Run(model, train_data, val_data, training, options, pruner, workdir, progress, len(stages))
    best, entries, best_round, tries = model, [], 0, 0
    held_stage: PruneOptions | None = None
    failed_stage: PruneOptions | None = None
    current = model
    while stages:
        stage = stages.pop(0)
        outcome = run.round(current, stage)
        entries += outcome.entries
        drop = dense - outcome.metric if metric != "loss" else outcome.metric - dense
        held = None if options.max_accuracy_drop is None else drop <= options.max_accuracy_drop + 1e-9
        for entry in outcome.entries:
            entry["held"] = held
        _log(outcome.entries[-1], metric, run.rounds)
        if held is not False:
            best, best_round, held_stage, current = outcome.model, run.number, stage, outcome.model
        else:
            failed_stage = stage
        if failed_stage is not None:
            # Nothing sparser will hold either, but something between the two may.
            more = options.schedule != "gradual" and tries < _TRIES_BETWEEN
            middle = between(held_stage, failed_stage, start) if more else None
            stages, tries = ([] if middle is None else [middle]), tries + 1
            run.rounds = run.number + len(stages)
    if options.max_accuracy_drop is not None and best_round == 0:
        logger.warning(
            "no round holds the %s within %g of the dense model's %.4f: the model is returned as it was; "
            "train longer, prune less, or allow a larger drop",
            metric,
            options.max_accuracy_drop,
            dense,
        )
    kept = [entry for entry in best.provenance[len(model.provenance) :] if entry["pass"] in ("prune", "retrain")][-2:]
    return replace(best, provenance=(*model.provenance, *kept)).after(
        "iterate",
        best.proto,
        options=options.model_dump(mode="json"),
        metric=metric,
        dense_metric=dense,
        rounds=entries,
        best_round=best_round,
    )


@dataclass
class _Outcome:
    """What one round gave: its model, its metric after retraining, and an entry for each of its stages."""

    model: Model
    metric: float
    entries: list[dict[str, Any]]


class _Run:
    """What is the same in all rounds."""

    def __init__(
        self,
        dense: Model,
        train_data: str,
        val_data: str | None,
        training: RetrainOptions,
        options: IterateOptions,
        pruner: Pruner,
        workdir: Path | None,
        progress: Callable[[Progress], None] | None,
        planned: int,
    ) -> None:
        self.number, self.rounds = 0, planned
        self._dense, self._train_data, self._val_data = dense, train_data, val_data
        self._training, self._options, self._pruner = training, options, pruner
        self._workdir, self._progress = workdir, progress
        self._sites: dict[str, None] = {}  # all that were pruned so far

    def round(self, model: Model, stage: PruneOptions) -> _Outcome:
        """Prunes `model` to `stage` and retrains it."""
        self.number += 1
        outcome = _Outcome(model, math.nan, [])
        parts = self._parts(model, stage)
        for name, _ in parts:  # what cannot be trained is refused before anything is
            frozen_weights(model, (*self._training.freeze, *_FROZEN[name]))
        for name, others in parts:
            part = stage
            if others:
                densities = {key: value for key, value in stage.densities.items() if key not in others}
                part = stage.model_copy(update={"keep": (*stage.keep, *map(escape, others)), "densities": densities})
            after, entry = self._train(outcome.model, part, name)
            outcome = _Outcome(after, entry["metric"], [*outcome.entries, entry])
        return outcome

    def _parts(self, model: Model, stage: PruneOptions) -> list[tuple[str, tuple[str, ...]]]:
        """Names of the stages of a round, and the weight and node names that each leaves alone."""
        if not self._options.alternate:
            return [("all", ())]
        pruned = _pruned_sites(self._pruner(model, stage))
        names: dict[str, list[str]] = {"fc": [], "conv": []}
        for site in find_sites(model.proto):
            if site.weight in pruned:
                names[site.kind] += [site.weight, *site.nodes]
        if not (names["fc"] and names["conv"]):
            return [("all", ())]
        return [("fc", tuple(names["conv"])), ("conv", tuple(names["fc"]))]

    def _train(self, model: Model, stage: PruneOptions, name: str) -> tuple[Model, dict[str, Any]]:
        from lwc_compiler.training.masking import Pruning

        pruned = self._pruner(model, stage)
        sites = _pruned_sites(pruned)
        self._sites |= dict.fromkeys(sites)
        target = target_of(stage)
        pruning, gradual = None, self._options.schedule == "gradual"
        if gradual or self._training.grow != "none":
            if stage.criterion in ("per-layer", "sensitivity"):
                densities = {weight: entry["requested"] for weight, entry in sites.items()}
                values = {"criterion": "per-layer", "densities": densities, "sparsity": None}
                stage = stage.model_copy(update=values)
            pruning = Pruning(stage, tuple(sites), self._options.ramp if gradual else 0.0)
        start = replace(model, provenance=pruned.provenance) if gradual else pruned
        if self._training.grow == "shadow":  # what is pruned goes on learning from where it is
            start = replace(start, proto=model.proto)
        if self._options.reinitialize:
            start = _reinitialized(start, set(sites), self._training.seed + self.number)
        factors = self._options.learning_rate_factors
        rate = self._training.learning_rate * factors[min(self.number, len(factors)) - 1]
        trained = retrain(
            start,
            self._train_data,
            self._val_data,
            self._training.model_copy(
                update={"learning_rate": rate, "freeze": (*self._training.freeze, *_FROZEN[name])},
            ),
            teacher=self._dense,
            pruning=pruning,
            workdir=None if self._workdir is None else self._workdir / f"round-{self.number:02d}-{name}",
            progress=None if self._progress is None else self._with_round(self._progress),
        )
        after = prune_dead(trained) if self._options.remove_dead else trained
        last = trained.provenance[-1]
        kept = {weight: int(after.masks[weight].sum()) for weight in self._sites if weight in trained.masks}
        return after, {
            "round": self.number,
            "stage": name,
            "target": target,
            "density": sum(kept.values()) / sum(after.masks[weight].size for weight in kept),
            "metric_pruned": None if gradual else last["history"][0]["metric"],
            "metric": last["history"][last["best_epoch"]]["metric"],
            "held": None,
            "best_epoch": last["best_epoch"],
            "learning_rate": rate,
            "dropout": last["dropout"],
            "dead": sum(int(trained.masks[weight].sum()) - count for weight, count in kept.items()),
            "sites": {weight: count / after.masks[weight].size for weight, count in kept.items()},
            "history": last["history"],
        }

    def _with_round(self, progress: Callable[[Progress], None]) -> Callable[[Progress], None]:
        started = time.monotonic()

        def report(now: Progress) -> None:
            left = now.seconds_left
            if left is not None:  # the rounds to come take as long as this one
                left += (self.rounds - self.number) * (time.monotonic() - started + left)
            progress(replace(now, round=self.number, rounds=self.rounds, seconds_left=left))

        return report


def _measure(model: Model, train_data: str, val_data: str | None, options: RetrainOptions) -> tuple[float, str]:
    """The metric of the dense model on the validation data, and its name."""
    from lwc_compiler.training.evaluate import Evaluator, open_data

    data, validation, labels = open_data(model.proto, train_data, val_data)
    evaluator = Evaluator(model.proto, model.masks, data, labels, options, model.proto)
    return evaluator.measure(validation).metric, evaluator.objective.metric


def _pruned_sites(model: Model) -> dict[str, dict[str, Any]]:
    """Weight name -> its entry in the provenance of the prune pass, for the sites it did not keep."""
    sites: dict[str, dict[str, Any]] = model.provenance[-1]["sites"]
    return {name: entry for name, entry in sites.items() if "kept_because" not in entry}


def _reinitialized(model: Model, names: set[str], seed: int) -> Model:
    """The model with these weights drawn anew, normal with variance 2 / kept inputs (He et al. 2015, eq. 10)."""
    from lwc_compiler.training.weights import attach

    generator = np.random.default_rng(seed)
    constants = constant_tensors(model.proto.graph)
    drawn = {}
    for site in find_sites(model.proto):
        if site.weight not in names:
            continue
        mask = model.masks[site.weight]
        inputs = max(1.0, float(mask.sum()) / site.matrix_shape[0])
        values = generator.standard_normal(site.shape) * math.sqrt(2 / inputs)
        drawn[site.weight] = np.where(mask, values, 0).astype(numpy_helper.to_array(constants[site.weight]).dtype)
    return replace(model, proto=attach(model.proto, drawn))


def _log(entry: dict[str, Any], metric: str, planned: int) -> None:
    density = entry["density"]
    before = "" if entry["metric_pruned"] is None else f" ({entry['metric_pruned']:.4f} before)"
    holds = {None: "", True: ": holds", False: ": does not hold"}[entry["held"]]
    logger.info(
        "round %d/%d: density %.2f %% (%.1fx fewer weights), %s %.4f after retraining%s%s",
        entry["round"],
        planned,
        100 * density,
        1 / density,
        metric,
        entry["metric"],
        before,
        holds,
    )
