"""The training itself: first everything is checked and built, then come masked steps, and a checkpoint every epoch."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from lwc_compiler.errors import DataError, TrainingError
from lwc_compiler.model import convert_opset
from lwc_compiler.recipe import RetrainOptions
from lwc_compiler.training.batching import computes_the_same, fixed_batch, input_specs, with_open_batch
from lwc_compiler.training.checkpoint import Groups, load_checkpoint, save_checkpoint
from lwc_compiler.training.data import Batch, LabelSpec, Source, open_source
from lwc_compiler.training.gradient import (
    Arrays,
    build_gradient,
    check_gradient,
    gradient_name,
    nearby,
    rewrite_for_gradients,
)
from lwc_compiler.training.graph import OPSET, TrainingGraph
from lwc_compiler.training.losses import LOSS, PER_SAMPLE, SAMPLE_WEIGHTS
from lwc_compiler.training.objective import Objective
from lwc_compiler.training.optimizer import OPTIMIZERS, learning_rate
from lwc_compiler.training.progress import Progress
from lwc_compiler.training.session import open_session
from lwc_compiler.training.weights import Weights, detach

Report = Callable[[Progress], None]


@dataclass
class Score:
    """A measurement on validation data: mean loss, and accuracy where labels are classes."""

    loss: float
    accuracy: float | None

    @property
    def metric(self) -> float:
        """What epochs are compared by and users are shown."""
        return self.loss if self.accuracy is None else self.accuracy

    def better_than(self, other: Score) -> bool:
        """Higher accuracy, then lower loss."""
        if self.accuracy is not None and other.accuracy is not None and self.accuracy != other.accuracy:
            return self.accuracy > other.accuracy
        return self.loss < other.loss


class Trainer:
    """A model ready to train: sessions, weights and optimizer.

    Attributes:
        weights: trained weights and statistics, changed in place by `step`.
        objective: the loss.
        batch: samples that go through the graph at once.
        group: batches whose mean gradient makes one step.
        optimizer: holds the masks and the state.
    """

    def __init__(
        self,
        proto: onnx.ModelProto,
        masks: dict[str, NDArray[np.bool_]],
        data: Source,
        labels: LabelSpec | None,
        options: RetrainOptions,
        teacher: onnx.ModelProto | None,
    ) -> None:
        """Builds the graphs and checks the gradient on the first batch of `data`.

        Args:
            proto: the user's model.
            masks: weight name -> kept entries.
            data: gives shapes and the first batch.
            labels: of all data that is going to be used.
            options: how to train.
            teacher: the original model.

        Raises:
            LwcError: the model cannot be trained, or not on this data; the message says why.
        """
        self._specs = input_specs(proto)
        bare, self.weights = detach(proto, set(masks), options.batch_norm == "train")
        for name, mask in masks.items():
            np.copyto(self.weights.trained[name], 0, where=~mask)
        bare = convert_opset(bare, OPSET)
        first = next(data.batches(2 * max(options.batch_size, fixed_batch(self._specs) or 1)))
        bare, self.batch, self.group = self._choose_batch(bare, data, options, first)
        shapes = {name: (self.batch, *shape) for name, shape in data.shapes.items()}
        graph = TrainingGraph(bare, shapes)
        if teacher is not None:
            teacher = convert_opset(teacher, OPSET)
            if self.batch != fixed_batch(self._specs):
                teacher = with_open_batch(teacher, fixed_batch(self._specs))
        self.objective = Objective(graph, self.batch, labels, options, teacher)
        self._measured = [PER_SAMPLE, *([] if self.objective.class_axis is None else [self.objective.logits])]
        self._forward = open_session(graph.to_proto(self._measured), options.threads)
        self._build_backward(graph, options)
        trained = {name: self.weights.trained[name] for name in self._gradients}
        self.optimizer = OPTIMIZERS[options.optimizer](trained, masks, self.weights.decayed, options)
        self._seed = options.seed
        self._check(first.part(0, self.batch))

    def _choose_batch(
        self, bare: onnx.ModelProto, data: Source, options: RetrainOptions, first: Batch
    ) -> tuple[onnx.ModelProto, int, int]:
        """The model, its batch, and how many batches make a step."""
        wanted, built_in = min(options.batch_size, data.samples), fixed_batch(self._specs)
        if built_in is None or built_in == wanted:
            return bare, wanted, options.accumulate
        opened = with_open_batch(bare, built_in, self.weights.arrays())
        if data.samples >= 2 * built_in and computes_the_same(
            bare, opened, built_in, first.inputs, self.weights.arrays()
        ):
            return opened, wanted, options.accumulate
        if data.samples < built_in:
            raise DataError(f"the model takes batches of {built_in} samples only, and the data has {data.samples}")
        return bare, built_in, options.accumulate * max(1, round(wanted / built_in))

    def _build_backward(self, graph: TrainingGraph, options: RetrainOptions) -> None:
        self._rewritten = graph.copy()
        updated = rewrite_for_gradients(self._rewritten, set(self.weights.statistics))
        proto = build_gradient(self._rewritten, list(self.weights.trained))
        self._backward = open_session(proto, options.threads)
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

    # -- steps --------------------------------------------------------------------------------------------------------

    def step(self, batches: list[Batch], rate: float) -> float:
        """One optimizer step on the mean gradient of `batches` (`self.batch` samples each); returns the mean loss."""
        loss = self._run_backward(batches[0], len(batches))
        if len(batches) > 1:
            total = {name: array.copy() for name, array in self._gradients.items()}
            for batch in batches[1:]:
                loss += self._run_backward(batch, len(batches))
                for name, array in self._gradients.items():
                    total[name] += array
        else:
            total = self._gradients
        if not math.isfinite(loss):
            return loss
        self.optimizer.step(total, rate)
        return loss

    def _run_backward(self, batch: Batch, parts: int) -> float:
        """Gradients of the mean loss over `parts` such batches into the buffers, new statistics into the weights."""
        feeds = self._feed(batch) | {SAMPLE_WEIGHTS: np.full(self.batch, 1 / (self.batch * parts), np.float32)}
        held = {name: shared(array) for name, array in feeds.items() if name in self._feeds}
        for name, value in held.items():
            self._binding.bind_ortvalue_input(name, value)
        self._backward.run_with_iobinding(self._binding)
        for name, array in self._updates.items():
            np.copyto(self.weights.statistics[name], array)
        return float(self._loss)

    def _feed(self, batch: Batch) -> dict[str, NDArray[Any]]:
        return batch.inputs | self.objective.targets(batch)

    # -- measuring ----------------------------------------------------------------------------------------------------

    def measure(self, data: Source) -> Score:
        """Loss and accuracy over all of `data`, with BatchNormalization using its running statistics."""
        total, count, right, predictions = 0.0, 0, 0, 0
        for batch in data.batches(self.batch):
            full = self._fill(batch)
            feeds = self._feed(full) | self.weights.arrays()
            losses, *logits = self._forward.run(self._measured, self._only(self._forward, feeds))
            total += float(losses[: batch.samples].sum(dtype=np.float64))
            count += batch.samples
            if logits and batch.labels is not None:
                found = self.objective.correct(logits[0][: batch.samples], batch.labels)
                right, predictions = right + found[0], predictions + found[1]
        return Score(total / count, right / predictions if predictions else None)

    def _fill(self, batch: Batch) -> Batch:
        """`batch` with its first samples repeated up to the size of the graph."""
        if batch.samples == self.batch:
            return batch
        index = np.arange(self.batch) % batch.samples
        labels = None if batch.labels is None else batch.labels[index]
        return Batch({name: array[index] for name, array in batch.inputs.items()}, labels)

    @staticmethod
    def _only(session: Any, feeds: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        return {value.name: feeds[value.name] for value in session.get_inputs()}

    def _check(self, batch: Batch) -> None:
        """Checks the gradient at the start, and that the rewritten graph computes what the model does."""
        import onnxruntime

        options = onnxruntime.RunOptions()
        options.only_execute_path_to_fetches = True
        feeds = self._feed(self._fill(batch)) | {SAMPLE_WEIGHTS: np.full(self.batch, 1 / self.batch, np.float32)}
        point = self.weights.arrays()

        def losses(weights: Arrays) -> NDArray[np.float32]:
            fed = self._only(self._backward, feeds | weights)
            result: NDArray[np.float32] = self._backward.run([PER_SAMPLE], fed, options)[0]
            return result

        if not self._updates:
            plain = self._forward.run([PER_SAMPLE], self._only(self._forward, feeds | point))[0]
            gap = float(np.abs(losses(point) - plain).max())
            if gap > 1e-3 * max(1.0, float(np.abs(plain).max())):
                raise TrainingError(f"the graph that was rewritten for training is off: its loss differs by {gap:.2g}")
        if not np.isfinite(losses(point)).all():
            raise TrainingError("the loss is NaN or Inf before the first step: look for odd values in the data")
        mean = lambda weights: float(losses(weights).mean(dtype=np.float64))  # noqa: E731
        moved = point | nearby({name: point[name] for name in self._gradients}, self._seed)
        names = [gradient_name(name) for name in self._gradients]
        values = self._backward.run(names, self._only(self._backward, feeds | moved))
        check_gradient(self._rewritten, mean, moved, dict(zip(self._gradients, values, strict=True)), self._seed)

    # -- state --------------------------------------------------------------------------------------------------------

    def state(self) -> Groups:
        """Everything that changes from step to step."""
        return {"weights": self.weights.trained, "statistics": self.weights.statistics, "state": self.optimizer.state}

    def restore(self, groups: Groups, steps: int) -> None:
        """Puts `state()` of another process back."""
        for group, arrays in self.state().items():
            for name, array in arrays.items():
                np.copyto(array, groups[group][name])
        self.optimizer.steps = steps


def shared(array: NDArray[Any]) -> Any:
    """An OrtValue on the memory of `array`, which has to live as long."""
    import onnxruntime

    return onnxruntime.OrtValue.ortvalue_from_numpy(array)


@dataclass(frozen=True)
class Job:
    """What to train, on what, and where the checkpoint goes."""

    proto: onnx.ModelProto
    masks: dict[str, NDArray[np.bool_]]
    train_data: str
    val_data: str | None
    options: RetrainOptions
    teacher: onnx.ModelProto | None
    checkpoint: Path
    fingerprint: str


def train(job: Job, report: Report) -> None:
    """Trains to the end, from the checkpoint where there is one; the result is in the last checkpoint.

    Raises:
        LwcError: what `Trainer` raises; the loss diverged; the checkpoint is of another job.
    """
    options = job.options
    data, validation, labels = open_data(job)
    trainer = Trainer(job.proto, job.masks, data, labels, options, job.teacher)
    steps = steps_per_epoch(data.samples, trainer)
    found = load_checkpoint(job.checkpoint)
    if found is not None:
        meta, groups = found
        if meta["fingerprint"] != job.fingerprint:
            raise TrainingError(
                f"{job.checkpoint.parent} holds the checkpoint of another run (model, data or options differ); "
                "delete it or take another directory"
            )
        trainer.restore(groups, meta["steps"])
        history, best_epoch, best = meta["history"], meta["best_epoch"], groups["best"]
    else:
        score = trainer.measure(validation)
        history = [{"epoch": 0, "train_loss": None, "val_loss": score.loss, "metric": score.metric, "seconds": 0.0}]
        best_epoch, best = 0, copies(trainer.weights)
        report(Progress(0, options.epochs, 0, steps, None, score.metric, None))
    scores = [to_score(entry, trainer) for entry in history]
    clock = Clock(options.epochs * steps, (len(history) - 1) * steps)
    for epoch in range(len(history), options.epochs + 1):
        if options.patience is not None and epoch - 1 - best_epoch >= options.patience:
            break
        started = time.monotonic()
        train_loss = run_epoch(trainer, data, epoch, steps, options, scores[-1].metric, clock, report)
        score = trainer.measure(validation)
        if not math.isfinite(score.loss):
            raise TrainingError(diverged(score.loss, f"the validation loss after epoch {epoch}", options))
        if score.better_than(scores[best_epoch]):
            best_epoch, best = epoch, copies(trainer.weights)
        scores.append(score)
        seconds = round(time.monotonic() - started, 3)
        history.append(
            {
                "epoch": epoch,
                "train_loss": train_loss,
                "val_loss": score.loss,
                "metric": score.metric,
                "seconds": seconds,
            }
        )
        meta = {
            "fingerprint": job.fingerprint,
            "steps": trainer.optimizer.steps,
            "history": history,
            "best_epoch": best_epoch,
            "loss": trainer.objective.kind,
            "metric": "loss" if trainer.objective.class_axis is None else "accuracy",
        }
        save_checkpoint(job.checkpoint, meta, trainer.state() | {"best": best})
        report(Progress(epoch, options.epochs, steps, steps, train_loss, score.metric, clock.left(epoch * steps)))


def open_data(job: Job) -> tuple[Source, Source, LabelSpec | None]:
    """Training and validation data, and what the labels of both are."""
    specs = input_specs(job.proto)
    data = open_source(job.train_data, specs)
    if job.val_data is None:
        return *data.split(), data.labels
    validation = open_source(job.val_data, specs)
    if validation.shapes != data.shapes:
        raise DataError(f"validation data has shapes {validation.shapes}, training data {data.shapes}")
    ours, theirs = data.labels, validation.labels
    if ours is None or theirs is None:
        if ours is not theirs:
            name = "training" if ours is None else "validation"
            raise DataError(f"the {name} data has no labels, but the other data has")
        return data, validation, None
    if (ours.kind, ours.shape) != (theirs.kind, theirs.shape):
        raise DataError(
            f"the labels of the validation data are {theirs.kind} {('N', *theirs.shape)}, "
            f"those of the training data {ours.kind} {('N', *ours.shape)}"
        )
    return data, validation, ours.join(theirs)


def run_epoch(
    trainer: Trainer,
    data: Source,
    epoch: int,
    steps: int,
    options: RetrainOptions,
    metric: float,
    clock: Clock,
    report: Report,
) -> float:
    """One pass over the data in an order that depends on seed and epoch only; returns the mean loss."""
    total, step = 0.0, 0
    order = np.random.default_rng([options.seed, epoch]).permutation(data.samples)
    for step, group in enumerate(groups_of(full_batches(data, trainer.batch, order), trainer.group), start=1):
        done = (epoch - 1) * steps + step - 1
        rate = learning_rate(options, min(done, epoch * steps - 1), steps)
        loss = trainer.step(group, rate)
        if not math.isfinite(loss):
            raise TrainingError(diverged(loss, f"the loss at step {step} of epoch {epoch}", options))
        total += loss
        clock.tick()
        if clock.due():
            report(Progress(epoch, options.epochs, step, steps, total / step, metric, clock.left(done + 1)))
    if step == 0:
        raise DataError(f"data has no full batch of {trainer.batch} samples in epoch {epoch}")
    return total / step


def full_batches(data: Source, size: int, order: NDArray[np.int64]) -> Iterator[Batch]:
    """Batches of exactly `size`; what is left over waits for another epoch's order."""
    return (batch for batch in data.batches(size, order) if batch.samples == size)


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


def steps_per_epoch(samples: int, trainer: Trainer) -> int:
    """Optimizer steps."""
    return math.ceil(samples // trainer.batch / trainer.group)


def diverged(loss: float, what: str, options: RetrainOptions) -> str:
    """The message for a loss that is not a number any more."""
    advice = f"lower the learning rate (it is {options.learning_rate:g}; try {options.learning_rate / 10:g})"
    if options.clip_norm is None:
        advice += " or clip the gradients (clip_norm = 1.0)"
    return f"training diverged: {what} is {loss}; {advice}"


def copies(weights: Weights) -> Arrays:
    """All arrays, copied."""
    return {name: array.copy() for name, array in weights.arrays().items()}


def to_score(entry: dict[str, Any], trainer: Trainer) -> Score:
    """The score an entry of the history was written from."""
    return Score(entry["val_loss"], None if trainer.objective.class_axis is None else entry["metric"])


class Clock:
    """Time left, from the steps of this process; at most ten reports a second."""

    def __init__(self, steps: int, done: int) -> None:
        self._steps, self._start_at = steps, done
        self._started = self._reported = time.monotonic()
        self._now = self._started

    def tick(self) -> None:
        self._now = time.monotonic()

    def due(self) -> bool:
        if self._now - self._reported < 0.1:
            return False
        self._reported = self._now
        return True

    def left(self, done: int) -> float | None:
        """Seconds, after `done` steps of the whole run."""
        if done <= self._start_at:
            return None
        return (self._steps - done) * (time.monotonic() - self._started) / (done - self._start_at)
