"""How good a model is on data: its loss, and its accuracy where labels are classes, for any values of its weights."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from lwc_compiler.errors import DataError
from lwc_compiler.model import convert_opset
from lwc_compiler.recipe.options import RetrainOptions
from lwc_compiler.training.batching import computes_the_same, fixed_batch, input_specs, with_open_batch
from lwc_compiler.training.data import Batch, LabelSpec, Source, open_source
from lwc_compiler.training.graph import OPSET, TrainingGraph
from lwc_compiler.training.losses import PER_SAMPLE
from lwc_compiler.training.objective import Objective
from lwc_compiler.training.session import open_session
from lwc_compiler.training.weights import detach


@dataclass(frozen=True)
class Score:
    """A measurement: mean loss, and accuracy where there are classes (agreement with the teacher without labels)."""

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


class Evaluator:
    """A model ready to be measured; it needs no gradients.

    Attributes:
        weights: trained weights and statistics; `measure` uses what they hold.
        batch: samples that go through the graph at once.
        group: batches that stand for one of `options.batch_size`.
        objective: the loss.
        graph: the model with the loss attached, the weights being inputs.
        first: the first samples of the data, at least `batch`.
    """

    def __init__(
        self,
        proto: onnx.ModelProto,
        masked: Iterable[str],
        data: Source,
        labels: LabelSpec | None,
        options: RetrainOptions,
        teacher: onnx.ModelProto | None,
    ) -> None:
        """Attaches the loss and opens the session.

        Args:
            proto: the user's model.
            masked: names of weights that are pruned; they are among `weights` wherever they are used.
            data: gives shapes and the first batch.
            labels: of all data that is going to be used.
            options: batch size, loss and threads are read.
            teacher: the original model.

        Raises:
            LwcError: no loss can be computed for the model, or not on this data; the message says why.
        """
        specs = input_specs(proto)
        bare, self.weights = detach(proto, set(masked), options.batch_norm == "train")
        bare = convert_opset(bare, OPSET)
        built_in = fixed_batch(specs)
        self.first = next(data.batches(2 * max(options.batch_size, built_in or 1)))
        bare, self.batch, self.group = self._choose_batch(bare, built_in, data, options)
        shapes = {name: (self.batch, *shape) for name, shape in data.shapes.items()}
        self.graph = TrainingGraph(bare, shapes)
        if teacher is not None:
            teacher = convert_opset(teacher, OPSET)
            if self.batch != built_in:
                teacher = with_open_batch(teacher, built_in)
        self.objective = Objective(self.graph, self.batch, labels, options, teacher)
        self._measured = [PER_SAMPLE, *([] if self.objective.class_axis is None else [self.objective.logits])]
        self._session = open_session(self.graph.to_proto(self._measured), options.threads)

    def _choose_batch(
        self, bare: onnx.ModelProto, built_in: int | None, data: Source, options: RetrainOptions
    ) -> tuple[onnx.ModelProto, int, int]:
        """The model, its batch, and how many batches make a step."""
        wanted = min(options.batch_size, data.samples)
        if built_in is None or built_in == wanted:
            return bare, wanted, options.accumulate
        values = self.weights.arrays()
        opened = with_open_batch(bare, built_in, values)
        if data.samples >= 2 * built_in and computes_the_same(bare, opened, built_in, self.first.inputs, values):
            return opened, wanted, options.accumulate
        if data.samples < built_in:
            raise DataError(f"the model takes batches of {built_in} samples only, and the data has {data.samples}")
        return bare, built_in, options.accumulate * max(1, round(wanted / built_in))

    def measure(self, data: Source) -> Score:
        """Loss and accuracy over all of `data`, with BatchNormalization using its running statistics."""
        total, count, right, predictions = 0.0, 0, 0, 0
        for batch in data.batches(self.batch):
            feeds = self.feeds(self.fill(batch))
            losses, *logits = self._session.run(self._measured, only(self._session, feeds))
            total += float(losses[: batch.samples].sum(dtype=np.float64))
            count += batch.samples
            if logits:
                found = self.objective.correct(logits[0][: batch.samples], batch, feeds)
                right, predictions = right + found[0], predictions + found[1]
        return Score(total / count, right / predictions if predictions else None)

    def losses(self, batch: Batch, values: dict[str, NDArray[np.float32]]) -> NDArray[np.float32]:
        """Loss of each sample of one full batch, with `values` for weights and statistics; float32 (batch,)."""
        feeds = batch.inputs | self.objective.targets(batch) | values
        result: NDArray[np.float32] = self._session.run([PER_SAMPLE], only(self._session, feeds))[0]
        return result

    def feeds(self, batch: Batch) -> dict[str, NDArray[Any]]:
        """Inputs, targets, weights and statistics for one full batch."""
        return batch.inputs | self.objective.targets(batch) | self.weights.arrays()

    def fill(self, batch: Batch) -> Batch:
        """`batch` with its first samples repeated up to the size of the graph."""
        if batch.samples == self.batch:
            return batch
        index = np.arange(self.batch) % batch.samples
        labels = None if batch.labels is None else batch.labels[index]
        return Batch({name: array[index] for name, array in batch.inputs.items()}, labels)


def only(session: Any, feeds: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Those of `feeds` that `session` takes."""
    return {value.name: feeds[value.name] for value in session.get_inputs()}


def open_data(proto: onnx.ModelProto, train_data: str, val_data: str | None) -> tuple[Source, Source, LabelSpec | None]:
    """Training and validation data for a model, and what the labels of both are.

    Raises:
        DataError: they cannot be read, or do not fit the model or each other.
    """
    specs = input_specs(proto)
    data = open_source(train_data, specs)
    if val_data is None:
        return *data.split(), data.labels
    validation = open_source(val_data, specs)
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
