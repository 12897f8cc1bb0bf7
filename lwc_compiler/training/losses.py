"""Losses as ONNX operators, one value a sample, and the place in a model that each is computed from.

A loss on probabilities throws away precision, so a model that ends in Softmax or Sigmoid gets its loss at their input.
JAX and TensorFlow write softmax out as exponentials and sums; that is taken for the Softmax that it is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from onnx import TensorProto

from lwc_compiler.errors import DataError, UnsupportedError
from lwc_compiler.training.graph import Node, TrainingGraph

Kind = Literal["cross-entropy", "mse", "bce", "distillation"]
RESHAPING = {"Flatten", "Identity", "Reshape", "Squeeze", "Unsqueeze"}
PER_SAMPLE = "lwc/loss_per_sample"
LOSS = "lwc/loss"
SAMPLE_WEIGHTS = "lwc/sample_weights"


@dataclass(frozen=True)
class Head:
    """Where a loss is attached.

    Attributes:
        output: name of the model's output.
        value: the value the loss reads: the output itself, or the input of the last activation.
        activation: `Softmax`, `LogSoftmax` (as one operator or written out), `Sigmoid` or ''.
        axis: class axis of the activation; None without one.
    """

    output: str
    value: str
    activation: str
    axis: int | None


def find_head(graph: TrainingGraph, output: str) -> Head:
    """The head that computes `output`; a last reshaping is looked through where it leaves the batch alone."""
    node = graph.producer(output)
    while node is not None and node.op in RESHAPING:
        node = graph.producer(node.inputs[0])
    head = None if node is None else _activation_head(graph, node, output)
    if head is not None and graph.shape(head.value)[:1] == graph.shape(output)[:1]:
        return head
    return Head(output, output, "", None)


def _activation_head(graph: TrainingGraph, node: Node, output: str) -> Head | None:
    """The head before `node`, if that is the last step of an activation."""
    if node.op == "Sigmoid":
        return Head(output, node.inputs[0], node.op, None)
    if node.op in ("Softmax", "LogSoftmax"):
        value, axis = _normalized_axis(graph, node, graph.shape(output))
        return Head(output, value, node.op, axis)
    if node.op == "Div":  # exp(d) / sum(exp(d))
        exponential, total = node.inputs
        exp = graph.producer(exponential)
        found = _reduction(graph, total, "ReduceSum", [])
        if exp is not None and exp.op == "Exp" and found is not None and found[0] == exponential:
            return Head(output, _unshifted(graph, exp.inputs[0], found[1]), "Softmax", found[1])
    if node.op == "Sub":  # d - log(sum(exp(d)))
        shifted, log_total = node.inputs
        found = _reduction(graph, log_total, "ReduceSum", ["Log"])
        exp = None if found is None else graph.producer(found[0])
        if found is not None and exp is not None and exp.op == "Exp" and exp.inputs[0] == shifted:
            return Head(output, _unshifted(graph, shifted, found[1]), "LogSoftmax", found[1])
    return None


def _unshifted(graph: TrainingGraph, value: str, axis: int) -> str:
    """Without a maximum along `axis` that was subtracted from `value`; softmax is the same with and without."""
    node = graph.producer(value)
    if node is None or node.op != "Sub" or _reduction(graph, node.inputs[1], "ReduceMax", []) != (node.inputs[0], axis):
        return value
    return node.inputs[0]


def _reduction(graph: TrainingGraph, value: str, op: str, then: list[str]) -> tuple[str, int] | None:
    """What `op` reduces, and along which axis, if `value` is that with the axis of length 1, or filled up again.

    Args:
        graph: where `value` is.
        value: name.
        op: `ReduceMax` or `ReduceSum`.
        then: operators that are applied to the result, besides reshaping and a maximum with minus infinity.
    """
    steps: list[Node] = []
    node = graph.producer(value)
    while node is not None and node.op in ("Expand", "Reshape", "Unsqueeze", "Log", "Max"):
        inputs = [name for name in node.inputs if node.op != "Max" or not _is_lowest(graph, name)]
        if node.op == "Max" and len(inputs) != 1:
            return None
        steps.append(node)
        node = graph.producer(inputs[0])
    if node is None or node.op != op or [step.op for step in steps if step.op == "Log"] != then:
        return None
    whole = graph.shapes.get(node.inputs[0])
    axes = node.attributes.get("axes", graph.constants.get(node.inputs[1], ()) if len(node.inputs) > 1 else ())
    if whole is None or len(axes) != 1:
        return None
    axis = int(axes[0]) % len(whole)
    kept = (*whole[:axis], 1, *whole[axis + 1 :])
    for step in steps:
        before, after = (graph.shapes.get(name) for name in (step.inputs[0], step.outputs[0]))
        if (step.op in ("Reshape", "Unsqueeze") and after != kept) or (step.op == "Expand" and before != kept):
            return None
    return (node.inputs[0], axis) if graph.shapes.get(value) in (kept, whole) else None


def _is_lowest(graph: TrainingGraph, name: str) -> bool:
    """Whether a value is the scalar -inf."""
    return name in graph.constants and graph.constants[name].shape == () and bool(np.isneginf(graph.constants[name]))


def _normalized_axis(graph: TrainingGraph, softmax: Node, shape: tuple[int, ...]) -> tuple[str, int]:
    """What Softmax is taken of, and along which axis.

    Before opset 13, Softmax flattened its input; the conversion to newer opsets spells that out. Where one axis alone
    is flattened into the rows, the value before has the output's shape.
    """
    value = softmax.inputs[0]
    before = graph.producer(value)
    if before is not None and before.op == "Flatten" and graph.shape(before.inputs[0]) == shape:
        start = before.attributes.get("axis", 1) % len(shape)
        wide = [axis for axis in range(start, len(shape)) if shape[axis] > 1]
        if len(wide) <= 1:
            return before.inputs[0], wide[0] if wide else start
    return value, softmax.attributes.get("axis", -1) % graph.rank(value)


def class_axis(head: Head, shape: tuple[int, ...], labels: tuple[int, ...]) -> int:
    """The axis of `shape` that `labels` index into; the shapes are those of one sample, dimensions of 1 do not count.

    Raises:
        DataError: the labels fit no axis.
    """
    axes = [0, len(shape) - 1] if head.axis is None else [head.axis - 1]
    for axis in axes:
        if 0 <= axis < len(shape) and squeezed(shape[:axis] + shape[axis + 1 :]) == squeezed(labels):
            return axis + 1
    raise DataError(
        f"integer labels of shape {('N', *labels)} do not fit output '{head.output}' of shape {('N', *shape)}: "
        "cross entropy wants the output's shape without the class axis"
    )


def squeezed(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Without dimensions of 1."""
    return tuple(dim for dim in shape if dim != 1)


class LossBuilder:
    """Appends losses to a graph; each gives a value of shape (batch,)."""

    def __init__(self, graph: TrainingGraph, batch: int) -> None:
        self.graph = graph
        self.batch = batch

    def target(self, name: str, kind: int, shape: tuple[int, ...]) -> str:
        """Adds a graph input."""
        self.graph.inputs[name] = (kind, shape)
        return name

    def cross_entropy(self, logits: str, axis: int, target: str) -> str:
        """-log softmax(logits)[label], for int64 labels; a mean over positions where a sample has several."""
        g, shape = self.graph, self.graph.shape(logits)
        labels = self.target(target, TensorProto.INT64, shape[:axis] + shape[axis + 1 :])
        index = g.add("Unsqueeze", labels, g.indices(axis))
        picked = g.add("GatherElements", g.add("LogSoftmax", logits, axis=axis), index, axis=axis)
        return self.sample_mean(g.add("Neg", picked), len(shape))

    def mse(self, prediction: str, target: str) -> str:
        """Mean of (prediction - target)^2."""
        g, shape = self.graph, self.graph.shape(prediction)
        difference = g.add("Sub", prediction, self.target(target, TensorProto.FLOAT, shape))
        return self.sample_mean(g.add("Mul", difference, difference), len(shape))

    def bce(self, logits: str, target: str) -> str:
        """Binary cross entropy of sigmoid(z), z = logits: log(1 + exp(z)) - z y; finite for every finite z."""
        g, shape = self.graph, self.graph.shape(logits)
        labels = self.target(target, TensorProto.FLOAT, shape)
        loss = g.add("Sub", softplus(g, logits), g.add("Mul", logits, labels))
        return self.sample_mean(loss, len(shape))

    def divergence(self, logits: str, axis: int, target: str, temperature: float) -> str:
        """T^2 KL(softmax(t / T) || softmax(z / T)), t: the teacher's logits (Hinton et al. 2015, section 2)."""
        g, shape = self.graph, self.graph.shape(logits)
        scale = g.constant(1 / temperature)
        teacher = g.add("Mul", self.target(target, TensorProto.FLOAT, shape), scale)
        student = g.add("LogSoftmax", g.add("Mul", logits, scale), axis=axis)
        gap = g.add("Sub", g.add("LogSoftmax", teacher, axis=axis), student)
        terms = g.add("Mul", g.add("Softmax", teacher, axis=axis), gap)
        loss = self.sample_mean(g.add("ReduceSum", terms, g.indices(axis), keepdims=1), len(shape))
        return g.add("Mul", loss, g.constant(temperature**2))

    def mixed(self, first: str, second: str, share: float) -> str:
        """(1 - share) x first + share x second."""
        g = self.graph
        return g.add("Add", g.add("Mul", first, g.constant(1 - share)), g.add("Mul", second, g.constant(share)))

    def sample_mean(self, value: str, rank: int) -> str:
        """Mean over everything but the batch."""
        g = self.graph
        if rank == 1:
            return value
        return g.add("ReduceMean", value, g.indices(*range(1, rank)), keepdims=0)

    def finish(self, losses: list[str]) -> None:
        """Sums the losses of several heads into `PER_SAMPLE`, and weighs the samples into the scalar `LOSS`.

        The sample weights are an input: 1 / batch gives the mean, 1 / (batch x steps) the mean over accumulated steps.
        """
        g = self.graph
        total = losses[0]
        for loss in losses[1:]:
            total = g.add("Add", total, loss)
        g.add("Identity", total, output=PER_SAMPLE)
        weights = self.target(SAMPLE_WEIGHTS, TensorProto.FLOAT, (self.batch,))
        weighted = g.add("Mul", total, weights)
        g.add("ReduceSum", weighted, g.indices(0), output=LOSS, keepdims=0)


def softplus(graph: TrainingGraph, value: str) -> str:
    """log(1 + exp(x)) as log-sum-exp over (x, 0): finite and with the right gradient everywhere."""
    last = graph.indices(-1)
    column = graph.add("Unsqueeze", value, last)
    zeros = graph.add("Mul", column, graph.constant(0.0))
    both = graph.add("Concat", column, zeros, axis=-1)
    return graph.add("ReduceLogSumExp", both, last, keepdims=0)


def check_heads(graph: TrainingGraph, heads: list[Head], batch: int) -> None:
    """Refuses heads that no loss a sample can be made from.

    Raises:
        UnsupportedError: an output is not float32, or its first dimension is not the batch.
    """
    for head in heads:
        if graph.types.get(head.value) != TensorProto.FLOAT:
            raise UnsupportedError(f"output '{head.output}' is not float32; a loss needs a float32 output")
        shape = graph.shape(head.value)
        if not shape or shape[0] != batch:
            raise UnsupportedError(
                f"output '{head.output}' has shape {shape} for a batch of {batch}: its first dimension has to be it"
            )
