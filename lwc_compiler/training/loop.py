"""The training itself: first everything is checked and built, then come masked steps, and a checkpoint every epoch."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from lwc_compiler.errors import DataError, TrainingError
from lwc_compiler.passes.sites import find_sites
from lwc_compiler.recipe.options import RetrainOptions
from lwc_compiler.training.checkpoint import Groups, load_checkpoint, save_checkpoint
from lwc_compiler.training.data import Batch, LabelSpec, Source, load_function
from lwc_compiler.training.dropout import insert_dropout
from lwc_compiler.training.evaluate import Evaluator, Score, only, open_data
from lwc_compiler.training.gradient import (
    Arrays,
    build_gradient,
    check_gradient,
    gradient_name,
    nearby,
    rewrite_for_gradients,
)
from lwc_compiler.training.losses import LOSS, PER_SAMPLE, SAMPLE_WEIGHTS
from lwc_compiler.training.masking import MaskChanges, Masks, Pruning
from lwc_compiler.training.optimizer import OPTIMIZERS, learning_rate
from lwc_compiler.training.progress import Progress
from lwc_compiler.training.session import open_session
from lwc_compiler.training.sharing import SharedWeights

Report = Callable[[Progress], None]
DROPOUT_STREAM = 1  # sets the random numbers of dropout apart from the order of the samples
REPORT_SECONDS = 0.1


@dataclass(frozen=True)
class Job:
    """What to train, on what, and where the checkpoint goes.

    Attributes:
        proto: the user's model.
        masks: weight name -> kept entries.
        train_data: see `lwc_compiler.training.data`.
        val_data: the same; None: the last tenth of `train_data`.
        options: how to train; `freeze` and `dropout` are not read from here.
        checkpoint: file.
        fingerprint: of all the rest.
        frozen: names of weights that stay as they are.
        dropout: tensor name -> ratio.
        pruning: how masks may change; None: they do not.
        teacher: the original model.
    """

    proto: onnx.ModelProto
    masks: Masks
    train_data: str
    val_data: str | None
    options: RetrainOptions
    checkpoint: Path
    fingerprint: str
    frozen: tuple[str, ...] = ()
    dropout: dict[str, float] = field(default_factory=dict)
    pruning: Pruning | None = None
    teacher: onnx.ModelProto | None = None


class Trainer:
    """A model ready to train: sessions, weights, masks and optimizer.

    Attributes:
        evaluator: measures the weights as they are.
        weights: trained weights and statistics, changed in place by `step`; pruned ones are exactly 0.
        masks: weight name -> kept entries.
        changes: when masks change; None: they do not.
        optimizer: holds the state, and the shadows of pruned weights where these go on learning.
        batch: samples that go through the graph at once.
        group: batches whose mean gradient makes one step.
        steps_per_epoch: optimizer steps.
    """

    def __init__(self, job: Job, data: Source, labels: LabelSpec | None) -> None:
        """Builds the graphs and checks the gradient on the first batch of `data`.

        Args:
            job: what to train.
            data: the training data.
            labels: of all data that is going to be used.

        Raises:
            LwcError: the model cannot be trained, or not on this data; the message says why.
        """
        options = job.options
        self.evaluator = Evaluator(job.proto, job.masks, data, labels, options, job.teacher)
        self.weights, self.batch, self.group = self.evaluator.weights, self.evaluator.batch, self.evaluator.group
        self.masks = {name: mask.copy() for name, mask in job.masks.items() if name in self.weights.trained}
        given = {name: self.weights.trained[name].copy() for name in self.masks}
        for name, mask in self.masks.items():
            np.copyto(self.weights.trained[name], 0, where=~mask)
        self._build_backward(job)
        self.steps_per_epoch = math.ceil(data.samples // self.batch / self.group)
        self.changes = self._plan_changes(job)
        shadowed = self.changes.sites if self.changes is not None and self.changes.shadows else {}
        trained = self.weights.trained
        learned = {
            name: given.get(name, trained[name]).copy() if name in shadowed else trained[name]
            for name in self._gradients
        }
        masks = {name: mask for name, mask in self.masks.items() if name not in shadowed}
        self.optimizer = OPTIMIZERS[options.optimizer](learned, masks, self.weights.decayed, options)
        self.shared = SharedWeights(job.proto, learned, options)
        self._seed = options.seed
        self._check(self.evaluator.first.part(0, self.batch))

    def _build_backward(self, job: Job) -> None:
        graph = self.evaluator.graph.copy()
        self._dropouts = insert_dropout(graph, job.dropout)
        updated = rewrite_for_gradients(graph, set(self.weights.statistics))
        self._rewritten = graph
        proto = build_gradient(graph, [name for name in self.weights.trained if name not in job.frozen])
        self._backward = open_session(proto, job.options.threads)
        outputs = [output.name for output in self._backward.get_outputs()]
        self._gradients: Arrays = {
            name: np.zeros_like(w) for name, w in self.weights.trained.items() if gradient_name(name) in outputs
        }
        self._loss = np.zeros((), np.float32)
        self._updates = {name: np.zeros_like(self.weights.statistics[name]) for name in updated}
        buffers = {LOSS: self._loss} | {gradient_name(name): array for name, array in self._gradients.items()}
        buffers |= {updated[name]: array for name, array in self._updates.items()}
        self._feeds = {value.name for value in self._backward.get_inputs()}
        self._binding = self._backward.io_binding()
        for name, array in buffers.items():
            self._binding.bind_ortvalue_output(name, shared(array))
        for name, array in self.weights.arrays().items():
            if name in self._feeds:
                self._binding.bind_ortvalue_input(name, shared(array))

    def _plan_changes(self, job: Job) -> MaskChanges | None:
        if job.pruning is None:
            return None
        sites = {site.weight: site for site in find_sites(job.proto) if site.weight in job.pruning.sites}
        for name, site in sites.items():
            self.masks.setdefault(name, np.ones(site.shape, np.bool_))
        trained = {name: site for name, site in sites.items() if name in self._gradients}
        steps = job.options.epochs * self.steps_per_epoch
        return MaskChanges(trained, job.pruning, job.options, steps, self.masks)

    # -- steps --------------------------------------------------------------------------------------------------------

    def step(self, batches: list[Batch], rate: float) -> float:
        """One optimizer step on the mean gradient of `batches` (`self.batch` samples each); returns the mean loss."""
        rng = np.random.default_rng([self._seed, self.optimizer.steps, DROPOUT_STREAM])
        loss = self._run_backward(batches[0], len(batches), rng)
        if len(batches) > 1:
            total = {name: array.copy() for name, array in self._gradients.items()}
            for batch in batches[1:]:
                loss += self._run_backward(batch, len(batches), rng)
                for name, array in self._gradients.items():
                    total[name] += array
        else:
            total = self._gradients
        if not math.isfinite(loss):
            return loss
        if self.changes is not None and self.changes.due(self.optimizer.steps):
            self._change_masks(self.changes, total)
        self.shared.combine(total)
        self.optimizer.step(total, rate)
        self._hide_shadows()
        return loss

    def _change_masks(self, changes: MaskChanges, gradients: Arrays) -> None:
        step = self.optimizer.steps
        self.masks |= changes.choose(step, self.optimizer.weights, self.masks, gradients)
        if not changes.shadows or step == changes.last:  # then the shadows are given up
            self.optimizer.set_masks(self.masks)

    def _hide_shadows(self) -> None:
        """The network sees what the optimizer changed, without what is pruned."""
        for name, learned in self.optimizer.weights.items():
            seen = self.weights.trained[name]
            if seen is not learned:
                np.copyto(seen, learned)
                np.copyto(seen, 0, where=~self.masks[name])

    def _run_backward(self, batch: Batch, parts: int, rng: np.random.Generator) -> float:
        """Gradients of the mean loss over `parts` such batches into the buffers, new statistics into the weights."""
        feeds = batch.inputs | self.evaluator.objective.targets(batch)
        feeds |= {dropout.input: dropout.mask(rng) for dropout in self._dropouts}
        feeds[SAMPLE_WEIGHTS] = np.full(self.batch, 1 / (self.batch * parts), np.float32)
        held = {name: shared(array) for name, array in feeds.items() if name in self._feeds}
        for name, value in held.items():
            self._binding.bind_ortvalue_input(name, value)
        self._backward.run_with_iobinding(self._binding)
        for name, array in self._updates.items():
            np.copyto(self.weights.statistics[name], array)
        return float(self._loss)

    def _check(self, batch: Batch) -> None:
        """Checks the gradient at the start, and that the rewritten graph computes what the model does."""
        import onnxruntime

        options = onnxruntime.RunOptions()
        options.only_execute_path_to_fetches = True
        batch = self.evaluator.fill(batch)
        feeds = self.evaluator.feeds(batch) | {SAMPLE_WEIGHTS: np.full(self.batch, 1 / self.batch, np.float32)}
        feeds |= {dropout.input: dropout.nothing() for dropout in self._dropouts}
        point = self.weights.arrays()

        def losses(weights: Arrays) -> NDArray[np.float32]:
            fed = only(self._backward, feeds | weights)
            result: NDArray[np.float32] = self._backward.run([PER_SAMPLE], fed, options)[0]
            return result

        if not self._updates:
            plain = self.evaluator.losses(batch, point)
            gap = float(np.abs(losses(point) - plain).max())
            if gap > 1e-3 * max(1.0, float(np.abs(plain).max())):
                raise TrainingError(f"the graph that was rewritten for training is off: its loss differs by {gap:.2g}")
        if not np.isfinite(losses(point)).all():
            raise TrainingError("the loss is NaN or Inf before the first step: look for odd values in the data")
        mean = lambda weights: float(losses(weights).mean(dtype=np.float64))  # noqa: E731
        moved = point | nearby({name: point[name] for name in self._gradients}, self._seed)
        names = [gradient_name(name) for name in self._gradients]
        values = self._backward.run(names, only(self._backward, feeds | moved))
        check_gradient(self._rewritten, mean, moved, dict(zip(self._gradients, values, strict=True)), self._seed)

    # -- state --------------------------------------------------------------------------------------------------------

    @property
    def density(self) -> float | None:
        """Kept / all over the weights with a mask; None without masks."""
        total = sum(mask.size for mask in self.masks.values())
        return sum(int(np.count_nonzero(mask)) for mask in self.masks.values()) / total if total else None

    def complete(self) -> bool:
        """Whether the masks have the density that they are to end with."""
        return self.changes is None or self.changes.reached(self.optimizer.steps)

    def result(self) -> Groups:
        """Copies of weights, statistics and masks as they are now."""
        weights = {name: array.copy() for name, array in self.weights.arrays().items()}
        return {"best": weights, "best_masks": {name: mask.copy() for name, mask in self.masks.items()}}

    def state(self) -> Groups:
        """Everything that changes from step to step."""
        return {
            "weights": self.weights.trained,
            "statistics": self.weights.statistics,
            "learned": self.optimizer.weights,
            "state": self.optimizer.state,
            "masks": self.masks,
        }

    def restore(self, groups: Groups, steps: int) -> None:
        """Puts `state()` of another process back."""
        for group, arrays in self.state().items():
            for name, array in arrays.items():
                np.copyto(array, groups[group][name])
        self.optimizer.steps = steps
        if self.changes is not None and not (self.changes.shadows and steps <= self.changes.last):
            self.optimizer.set_masks(self.masks)


def shared(array: NDArray[Any]) -> Any:
    """An OrtValue on the memory of `array`, which has to live as long."""
    import onnxruntime

    return onnxruntime.OrtValue.ortvalue_from_numpy(array)


def train(job: Job, report: Report) -> None:
    """Trains to the end, from the checkpoint where there is one; the result is in the last checkpoint.

    Raises:
        LwcError: what `Trainer` raises; the loss diverged; the checkpoint is of another job.
    """
    options = job.options
    data, validation, labels = open_data(job.proto, job.train_data, job.val_data)
    trainer = Trainer(job, data, labels)
    found = load_checkpoint(job.checkpoint)
    history: list[dict[str, Any]] = []
    best_epoch: int | None = None
    best: Groups = {}
    if found is not None:
        meta, groups = found
        if meta["fingerprint"] != job.fingerprint:
            raise TrainingError(
                f"{job.checkpoint.parent} holds the checkpoint of another run (model, data or options differ); "
                "delete it or take another directory"
            )
        trainer.restore(groups, meta["steps"])
        history, best_epoch = meta["history"], meta["best_epoch"]
        best = {name: groups[name] for name in ("best", "best_masks") if name in groups}
    scores = [Score(entry["val_loss"], entry["accuracy"]) for entry in history]
    monitor = Monitor(trainer, options, len(history), report)
    for epoch in range(len(history), options.epochs + 1):
        train_loss = run_epoch(trainer, data, epoch, options, monitor) if epoch else None
        score = trainer.evaluator.measure(validation)
        if not math.isfinite(score.loss):
            raise TrainingError(diverged(score.loss, f"the validation loss after epoch {epoch}", options))
        if trainer.complete() and (best_epoch is None or score.better_than(scores[best_epoch])):
            best_epoch, best = epoch, trainer.result()
        scores.append(score)
        history.append(
            {
                "epoch": epoch,
                "train_loss": train_loss,
                "val_loss": score.loss,
                "metric": score.metric,
                "accuracy": score.accuracy,
                "density": trainer.density,
            }
        )
        patient = options.patience is None or best_epoch is None or epoch - best_epoch < options.patience
        finished = epoch == options.epochs or not patient
        if finished and best_epoch is None:
            raise TrainingError(
                "the run ended before its masks were final, since the data gave fewer batches than at first: let it "
                "give the same number of samples in every epoch"
            )
        if epoch:
            meta = {
                "fingerprint": job.fingerprint,
                "finished": finished,
                "steps": trainer.optimizer.steps,
                "history": history,
                "best_epoch": best_epoch,
                "loss": trainer.evaluator.objective.kind,
                "metric": trainer.evaluator.objective.metric,
            }
            save_checkpoint(job.checkpoint, meta, trainer.state() | best)
        monitor.finished(epoch, train_loss, score.metric, None if best_epoch is None else scores[best_epoch].metric)
        if finished:
            break


def run_epoch(trainer: Trainer, data: Source, epoch: int, options: RetrainOptions, monitor: Monitor) -> float:
    """One pass over the data in an order that depends on seed and epoch only; returns the mean loss."""
    total, step, steps = 0.0, 0, trainer.steps_per_epoch
    generator = np.random.default_rng([options.seed, epoch])
    batches = full_batches(data, trainer.batch, generator.permutation(data.samples))
    if options.augment is not None:
        batches = augmented(batches, options.augment, generator)
    for step, group in enumerate(groups_of(batches, trainer.group), start=1):
        done = (epoch - 1) * steps + step - 1
        rate = learning_rate(options, min(done, epoch * steps - 1), steps)
        loss = trainer.step(group, rate)
        if not math.isfinite(loss):
            raise TrainingError(diverged(loss, f"the loss at step {step} of epoch {epoch}", options))
        total += loss
        monitor.stepped(epoch, step, total / step)
    if step == 0:
        raise DataError(f"data has no full batch of {trainer.batch} samples in epoch {epoch}")
    return total / step


def full_batches(data: Source, size: int, order: NDArray[np.int64]) -> Iterator[Batch]:
    """Batches of exactly `size`; what is left over waits for another epoch's order."""
    return (batch for batch in data.batches(size, order) if batch.samples == size)


def augmented(batches: Iterator[Batch], name: str, generator: np.random.Generator) -> Iterator[Batch]:
    """The batches with their inputs changed by the function `name` (`module:function`).

    Raises:
        DataError: there is no such function, it failed, or it changed names, shapes or types.
    """
    function = load_function(name)
    for batch in batches:
        try:
            changed = function(dict(batch.inputs), generator)
            inputs = {key: np.ascontiguousarray(array) for key, array in changed.items()}
        except Exception as error:  # whatever the user's code raises
            raise DataError(f"augment {name}: the function raised {type(error).__name__}: {error}") from error
        found, wanted = ({key: (a.shape, a.dtype) for key, a in arrays.items()} for arrays in (inputs, batch.inputs))
        if found != wanted:
            raise DataError(f"augment {name}: the function returned {found}, expected {wanted}")
        yield Batch(inputs, batch.labels)


def groups_of(batches: Iterator[Batch], size: int) -> Iterator[list[Batch]]:
    """Lists of `size` batches, the last one may be shorter."""
    group: list[Batch] = []
    for batch in batches:
        group.append(batch)
        if len(group) == size:
            yield group
            group = []
    if group:
        yield group


def diverged(loss: float, what: str, options: RetrainOptions) -> str:
    """The message for a loss that is not a number any more."""
    advice = f"lower the learning rate (it is {options.learning_rate:g}; try {options.learning_rate / 10:g})"
    if options.clip_norm is None:
        advice += " or clip the gradients (clip_norm = 1.0)"
    return f"training diverged: {what} is {loss}; {advice}"


class Monitor:
    """Reports on a training while it runs, at most ten times a second within an epoch."""

    def __init__(self, trainer: Trainer, options: RetrainOptions, finished: int, report: Report) -> None:
        """`finished`: epochs that were done before, the measurement of the untrained model being one."""
        self._trainer, self._epochs, self._steps, self._report = (
            trainer,
            options.epochs,
            trainer.steps_per_epoch,
            report,
        )
        self._metric: float | None = None
        self._best: float | None = None
        self._start_at = max(finished - 1, 0) * self._steps
        self._started = self._reported = time.monotonic()

    def stepped(self, epoch: int, step: int, loss: float) -> None:
        """A step is done; `loss` is the mean of the epoch so far. The last one is reported once it is measured."""
        if step < self._steps and time.monotonic() - self._reported >= REPORT_SECONDS:
            self._reported = time.monotonic()
            self._send(epoch, step, loss)

    def finished(self, epoch: int, loss: float | None, metric: float, best: float | None) -> None:
        """An epoch is done and measured."""
        self._metric, self._best = metric, best
        self._send(epoch, self._steps if epoch else 0, loss)

    def _send(self, epoch: int, step: int, loss: float | None) -> None:
        done = max(epoch - 1, 0) * self._steps + step
        left = None
        if done > self._start_at:
            seconds = time.monotonic() - self._started
            left = (self._epochs * self._steps - done) * seconds / (done - self._start_at)
        self._report(
            Progress(
                epoch=epoch,
                epochs=self._epochs,
                step=step,
                steps=self._steps,
                loss=loss,
                metric=self._metric,
                seconds_left=left,
                density=self._trainer.density,
                best=self._best,
            )
        )
