"""What training minimizes: which loss, on which outputs, with which targets, and the metric that goes with it."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from lwc_compiler.errors import DataError, OptionError
from lwc_compiler.recipe.options import RetrainOptions
from lwc_compiler.training.data import Batch, LabelSpec
from lwc_compiler.training.graph import TrainingGraph
from lwc_compiler.training.losses import Head, Kind, LossBuilder, check_heads, class_axis, find_head, squeezed
from lwc_compiler.training.session import open_session

Targets = dict[str, NDArray[Any]]
CLASS_ACTIVATIONS = ("Softmax", "LogSoftmax")
LABELS = "lwc/labels"


class Objective:
    """A loss attached to a graph.

    Losses on labels read the first output, as does the share of distillation that `options.distill` adds to them.
    Distillation alone reads all outputs and sums: a divergence for a head of classes (one that ends in Softmax, or the
    first output when the labels are integers), a squared error for any other.

    Attributes:
        kind: the loss.
        heads: what it reads.
        class_axis: class axis of the first head; None: there are no classes to be right or wrong about.
        metric: what epochs are compared by: `accuracy` where labels are classes; `agreement`, the share of the
            predictions that the teacher makes too, where there are classes but no labels; otherwise `loss`.
    """

    def __init__(
        self,
        graph: TrainingGraph,
        batch: int,
        labels: LabelSpec | None,
        options: RetrainOptions,
        teacher: onnx.ModelProto | None,
    ) -> None:
        """Attaches the loss to `graph`.

        Args:
            graph: the model for batches of `batch` samples.
            batch: size of the first dimension of every input.
            labels: what the labels are; None: there are none.
            options: loss, temperature and threads are read.
            teacher: the original model, in an opset that ONNX Runtime reads.

        Raises:
            OptionError: distillation without a teacher, or with a temperature though no output is of classes.
            DataError: the labels do not fit the loss or the output.
            UnsupportedError: an output that no loss can be attached to.
        """
        self.kind = choose_loss(options.loss, labels)
        heads = [find_head(graph, output) for output in graph.outputs]
        self.heads = heads if self.kind == "distillation" else heads[:1]
        check_heads(graph, self.heads, batch)
        self._temperature, self._distill = options.temperature, options.distill
        self.class_axis, self._target_shape = self._fit_labels(graph, labels)
        self.metric = "loss" if self.class_axis is None else "agreement" if labels is None else "accuracy"
        if self._distills:
            if teacher is None:
                raise OptionError("distillation needs the original model as the teacher")
            if options.temperature != 1 and not any(classes for _, classes in self._teacher_reads()):
                raise OptionError(
                    f"a temperature of {options.temperature:g} needs outputs that are classes; nothing says so: the "
                    "model ends in no Softmax and the data has no integer labels"
                )
            shapes = {name: shape for name, (_, shape) in graph.inputs.items()}
            self._teacher = Teacher(TrainingGraph(teacher, shapes), self._teacher_reads(), options.threads)
        builder = LossBuilder(graph, batch)
        builder.finish([self._attach(builder, i) for i in range(len(self.heads))])

    @property
    def _distills(self) -> bool:
        return self.kind == "distillation" or self._distill > 0

    @property
    def logits(self) -> str:
        """The value the accuracy is computed from."""
        return self.heads[0].value

    def targets(self, batch: Batch) -> Targets:
        """Target input name -> array, for a batch of the graph's size."""
        targets: Targets = {}
        if self._distills:
            targets = {teacher_name(i): output for i, output in enumerate(self._teacher.outputs(batch.inputs))}
        if self.kind != "distillation":
            assert batch.labels is not None
            dtype = np.int64 if self.kind == "cross-entropy" else np.float32
            labels = batch.labels.reshape(batch.samples, *self._target_shape)
            targets[LABELS] = np.ascontiguousarray(labels, dtype)
        return targets

    def correct(self, logits: NDArray[np.float32], batch: Batch, targets: Targets) -> tuple[int, int]:
        """Number of right predictions, and of predictions.

        Args:
            logits: value of `self.logits` for the first samples of the batch that the graph ran on.
            batch: these samples.
            targets: what `targets` gave for the whole batch.
        """
        predicted = logits.argmax(axis=self.class_axis)
        if batch.labels is None:
            expected = targets[teacher_name(0)][: len(logits)].argmax(axis=self.class_axis)
        else:
            expected = batch.labels.reshape(predicted.shape)
        return int((predicted == expected).sum()), predicted.size

    def _fit_labels(self, graph: TrainingGraph, labels: LabelSpec | None) -> tuple[int | None, tuple[int, ...]]:
        """Class axis and shape of one sample's target."""
        head = self.heads[0]
        shape = graph.shape(head.value)
        if self.kind in ("mse", "bce"):
            assert labels is not None
            if squeezed(labels.shape) != squeezed(shape[1:]):
                wanted = ("N", *shape[1:])
                raise DataError(f"labels of shape {('N', *labels.shape)} do not fit output '{head.output}' {wanted}")
            if self.kind == "bce" and (labels.low < 0 or labels.high > 1):
                raise DataError(f"loss 'bce' wants labels from 0 to 1, found {labels.low:g} to {labels.high:g}")
            return None, shape[1:]
        if labels is None:
            return (head.axis if head.activation in CLASS_ACTIVATIONS else None), ()
        if labels.kind != "int":
            return None, ()
        axis = class_axis(head, shape[1:], labels.shape)
        if labels.low < 0 or labels.high >= shape[axis]:
            raise DataError(
                f"the labels are {labels.low:g} to {labels.high:g}, but '{head.output}' has {shape[axis]} classes: "
                f"they have to be 0 to {shape[axis] - 1}" + (" (or use loss 'bce')" if shape[axis] == 1 else "")
            )
        return axis, shape[1:axis] + shape[axis + 1 :]

    def _divergence_axis(self, head: Head) -> int | None:
        if head.activation in CLASS_ACTIVATIONS:
            return head.axis
        return self.class_axis if head is self.heads[0] else None

    def _teacher_reads(self) -> list[tuple[Head, bool]]:
        return [(head, self._divergence_axis(head) is not None) for head in self.heads]

    def _attach(self, builder: LossBuilder, index: int) -> str:
        head, student = self.heads[index], None
        if self.kind == "cross-entropy":
            assert self.class_axis is not None
            student = builder.cross_entropy(head.value, self.class_axis, LABELS)
        elif self.kind == "bce":
            student = builder.bce(head.value, LABELS)
        elif self.kind == "mse":
            student = builder.mse(head.output, LABELS)
        if not self._distills:
            assert student is not None
            return student
        axis = self._divergence_axis(head)
        if axis is None:
            taught = builder.mse(head.output, teacher_name(index))
        else:
            taught = builder.divergence(head.value, axis, teacher_name(index), self._temperature)
        return taught if student is None else builder.mixed(student, taught, self._distill)


class Teacher:
    """The original model, run for its outputs."""

    def __init__(self, graph: TrainingGraph, heads: list[tuple[Head, bool]], threads: int) -> None:
        """Opens it for the values that `heads` need: logits where the flag is set, outputs elsewhere.

        Raises:
            OptionError: the teacher has no such output.
        """
        self._values = []
        for head, logits in heads:
            if head.output not in graph.outputs:
                raise OptionError(f"the teacher has no output '{head.output}'; it has to be the original of this model")
            own = find_head(graph, head.output)
            self._values.append(own.value if logits else own.output)
        self._session = open_session(graph.to_proto(self._values), threads)
        self._inputs = [value.name for value in self._session.get_inputs()]

    def outputs(self, inputs: dict[str, NDArray[Any]]) -> list[NDArray[np.float32]]:
        """One array a head."""
        result: list[NDArray[np.float32]] = self._session.run(
            self._values, {name: inputs[name] for name in self._inputs}
        )
        return result


def teacher_name(head: int) -> str:
    """Name of the graph input that takes the teacher's values of a head."""
    return f"lwc/teacher_{head}"


def choose_loss(asked: str, labels: LabelSpec | None) -> Kind:
    """The loss that `auto` means for these labels, or the one asked for.

    Raises:
        DataError: the loss needs labels, or labels of another type.
    """
    if asked == "auto":
        return "distillation" if labels is None else "cross-entropy" if labels.kind == "int" else "mse"
    if asked == "distillation":
        return "distillation"
    if labels is None:
        raise DataError(f"loss '{asked}' needs labels, and the data has none; 'distillation' needs none")
    if asked == "cross-entropy" and labels.kind != "int":
        raise DataError("loss 'cross-entropy' needs integer labels (class numbers), found floats")
    kinds: dict[str, Kind] = {"cross-entropy": "cross-entropy", "mse": "mse", "bce": "bce"}
    return kinds[asked]
