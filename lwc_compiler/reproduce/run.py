"""Trains, prunes and measures the LeNets: everything `lwc reproduce` does for them, seed by seed and step by step.

A folder of results looks like this; a run that was interrupted goes on from it:

    seed-0/dense/, seed-0/<stage>/    steps: settings.json, done.json, model.onnx
    seed-0/figure-5/<variant>/...     the networks of the trade-off curves, first seed only
    results.json, report.md           all figures
    sensitivity.json                  what each layer of the first seed's dense network bears (figure 6)
    plots/                            PNG and SVG
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import lwc_compiler as lwc
from lwc_compiler.errors import OptionError
from lwc_compiler.model import Model
from lwc_compiler.recipe.options import PruneOptions, RetrainOptions
from lwc_compiler.reproduce.datasets import Files, prepare
from lwc_compiler.reproduce.draw import draw
from lwc_compiler.reproduce.measure import count, error_of, trained_network
from lwc_compiler.reproduce.networks import BUILDERS, Draw, he_normal
from lwc_compiler.reproduce.results import Results, TradeOff, Trained, summary
from lwc_compiler.reproduce.schedules import ANY_DATA, SCHEDULES, Schedule, Stage, Variant
from lwc_compiler.reproduce.steps import Step, take_step
from lwc_compiler.reproduce.tables import write_summary
from lwc_compiler.training.progress import Progress

DENSE, PLOTS = "dense", "plots"
_INPUT_SHAPES = {"lenet-300-100": (784,), "lenet-5": (1, 28, 28)}

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Experiment:
    """What is reproduced, and with what.

    Attributes:
        network: a name of `paper.NETWORKS`.
        build: makes the untrained network.
        dataset: what the data is called.
        data: the data.
        schedule: how it is trained and pruned.
    """

    network: str
    build: Callable[[Draw], Model]
    dataset: str
    data: Files
    schedule: Schedule


def lenet_experiment(network: str, dataset: str, cache: Path) -> Experiment:
    """The experiment for `lenet-300-100` or `lenet-5` on a data set of `DATASETS`, which is fetched into `cache`.

    Raises:
        ToolchainError, DataError: the data cannot be had; see `datasets.prepare`.
    """
    data = prepare(dataset, _INPUT_SHAPES[network], cache)
    schedule = SCHEDULES[network]
    if dataset != "mnist":
        schedule = replace(schedule, stages=tuple(stage for stage in schedule.stages if stage.name in ANY_DATA))
    return Experiment(network, BUILDERS[network], dataset, data, schedule)


def run(
    experiment: Experiment,
    folder: Path,
    *,
    seeds: Sequence[int] = (0, 1, 2),
    figure_5: bool = False,
    progress: Callable[[Progress], None] | None = None,
) -> Results:
    """Reproduces the network's tables.

    Args:
        experiment: what to do.
        folder: gets the results; what it holds of an earlier run of the same experiment is not done again.
        seeds: of the weights at the start and the order of the data; each is a run of its own.
        figure_5: train the trade-off curves of figure 5 too, for the first seed.
        progress: called while networks train.

    Raises:
        OptionError: there are no seeds.
        ArtifactError: the folder holds other results, or cannot be written.
        LwcError: what training and pruning raise.
    """
    if not seeds:
        raise OptionError("give at least one seed")
    folder = folder.absolute()
    runs = [_Seed(experiment, folder / f"seed-{seed}", seed, progress) for seed in seeds]
    trained = [run.train() for run in runs]
    curves = runs[0].trade_offs() if figure_5 else ()
    scan = lwc.sensitivity(trained[0][DENSE].load(), str(experiment.data.train))
    scan.save(folder / "sensitivity.json")
    # The test images are looked at from here on.
    logger.info("measuring on test images")
    networks = {run.seed: run.measure(steps) for run, steps in zip(runs, trained, strict=True)}
    schedule = experiment.schedule
    results = Results(experiment.network, experiment.dataset, networks, curves, schedule.dense.threads, schedule.note)
    plots = draw(results, trained[0], scan, folder / PLOTS)
    write_summary(summary(results), folder, None if plots is None else [f"{PLOTS}/{name}" for name in plots])
    return results


class _Seed:
    """The steps of one seed."""

    def __init__(
        self, experiment: Experiment, folder: Path, seed: int, progress: Callable[[Progress], None] | None
    ) -> None:
        self.seed = seed
        self._experiment, self._folder, self._progress = experiment, folder, progress
        self._data = (str(experiment.data.train), str(experiment.data.validation))

    def train(self) -> dict[str, Step]:
        """The dense network and those of all stages, by name."""
        schedule = self._experiment.schedule
        steps = {DENSE: self._dense(DENSE, schedule.dense)}
        for stage in schedule.stages:
            steps[stage.name] = self._stage(stage, steps[stage.start])
        return steps

    def trade_offs(self) -> tuple[TradeOff, ...]:
        """The curves of figure 5."""
        plan = self._experiment.schedule.figure_5
        dense = {
            False: self._dense(DENSE, self._experiment.schedule.dense),
            True: self._dense("figure-5/dense-l1", plan.l1),
        }
        return tuple(self._trade_off(variant, dense[variant.l1]) for variant in plan.variants)

    def measure(self, steps: dict[str, Step]) -> tuple[Trained, ...]:
        """The figures of every network, those on the test images included."""
        return tuple(trained_network(name, step, self._experiment.data) for name, step in steps.items())

    def _dense(self, name: str, options: RetrainOptions) -> Step:
        experiment, options = self._experiment, self._seeded(options)
        settings = {
            "network": experiment.network,
            "dataset": experiment.dataset,
            "seed": self.seed,
            "train": options.model_dump(mode="json"),
        }

        def work(folder: Path) -> Model:
            self._say("training the dense network")
            model = experiment.build(he_normal(self.seed))
            return lwc.retrain(model, *self._data, options, workdir=folder, progress=self._progress)

        return take_step(self._folder / name, settings, work)

    def _stage(self, stage: Stage, start: Step) -> Step:
        training = self._seeded(stage.retrain)
        settings = {
            "start": start.settings,
            "retrain": training.model_dump(mode="json"),
            "rounds": None if stage.rounds is None else [part.model_dump(mode="json") for part in stage.rounds],
        }

        def work(folder: Path) -> Model:
            self._say(f"stage {stage.name}")
            if stage.rounds is None:
                return lwc.retrain(start.load(), *self._data, training, workdir=folder, progress=self._progress)
            return lwc.iterate(
                start.load(),
                *self._data,
                prune=stage.rounds[0],
                retrain=training,
                options=stage.rounds[1],
                workdir=folder,
                progress=self._progress,
            )

        return take_step(self._folder / stage.name, settings, work)

    def _trade_off(self, variant: Variant, dense: Step) -> TradeOff:
        plan, validation = self._experiment.schedule.figure_5, self._experiment.data.validation
        densities, errors = [1.0], [error_of(dense.file, validation)]
        start = dense
        for sparsity in plan.sparsities:
            prune = plan.prune.model_copy(update={"sparsity": sparsity})
            done = self._point(variant, prune, start)
            weights, kept, _ = count(done.load())
            densities.append(kept / weights)
            errors.append(error_of(done.file, validation))
            start = done if variant.iterative else dense
        return TradeOff(variant.name, tuple(densities), tuple(errors))

    def _point(self, variant: Variant, prune: PruneOptions, start: Step) -> Step:
        training = None if variant.retrain is None else self._seeded(variant.retrain)
        settings = {
            "start": start.settings,
            "prune": prune.model_dump(mode="json"),
            "retrain": None if training is None else training.model_dump(mode="json"),
        }

        def work(folder: Path) -> Model:
            self._say(f"figure 5, {variant.name}: {prune.sparsity:.0%} zeros")
            pruned = lwc.prune(start.load(), prune)
            if training is None:
                return pruned
            return lwc.retrain(pruned, *self._data, training, workdir=folder, progress=self._progress)

        name = variant.name.lower().replace(",", "").replace(" ", "-")
        return take_step(self._folder / "figure-5" / name / f"{prune.sparsity}", settings, work)

    def _seeded(self, options: RetrainOptions) -> RetrainOptions:
        return options.model_copy(update={"seed": self.seed})

    def _say(self, what: str) -> None:
        logger.info("%s, seed %d: %s", self._experiment.network, self.seed, what)
