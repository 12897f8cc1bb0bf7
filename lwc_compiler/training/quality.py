"""How good a pruned model is beside the original one, on validation data."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
import onnx
from numpy.typing import NDArray

from lwc_compiler.errors import DataError, UnsupportedError
from lwc_compiler.figures import Quality
from lwc_compiler.recipe.options import RetrainOptions
from lwc_compiler.training.batching import fixed_batch, input_specs
from lwc_compiler.training.data import open_source
from lwc_compiler.training.evaluate import Evaluator, Score, open_data


class Judge:
    """Measures models against the original one, which is measured when the judge is made.

    Attributes:
        metric: `accuracy`, `agreement` or `loss`.
    """

    def __init__(
        self,
        original: onnx.ModelProto,
        train_data: str | None,
        val_data: str | None,
        options: RetrainOptions,
        *,
        metric: Literal["auto", "accuracy", "agreement", "loss"] = "auto",
        disagreement: bool = False,
    ) -> None:
        """Opens the data and measures the original model.

        Args:
            original: the model before pruning.
            train_data: see `lwc_compiler.training.data`.
            val_data: the same; None: the last tenth of `train_data`. One of both is there.
            options: batch size, loss and threads are read.
            metric: see `lwc_compiler.recipe.build.BuildRecipe`.
            disagreement: measure that, too.

        Raises:
            DataError: the data cannot be read, does not fit the model, or does not give the metric.
            UnsupportedError: no loss can be computed for the model, or it predicts no classes.
        """
        if train_data is not None:
            _, self._data, self._labels = open_data(original, train_data, val_data)
        else:
            assert val_data is not None
            self._data = open_source(val_data, input_specs(original))
            self._labels = self._data.labels
        self._where = val_data or f"the last tenth of {train_data}"
        self._original = original
        self._options = options.model_copy(update={"batch_norm": "frozen", "distill": 0.0})
        evaluator, self._dense = self._score(original)
        self.metric = evaluator.objective.metric if metric == "auto" else metric
        if metric == "accuracy" and evaluator.objective.metric != "accuracy":
            raise DataError(
                f"data {self._where}: there are no labels that are classes, which the metric 'accuracy' needs; "
                "'agreement' compares predictions with the original model's, 'loss' needs none"
            )
        self._predicted: list[NDArray[np.int64]] | None = None
        if disagreement or self.metric == "agreement":
            self._axis = self._class_axis(evaluator)
            self._predicted = list(self._predictions(original))

    def judge(self, proto: onnx.ModelProto) -> Quality:
        """Measures a model that has the inputs and outputs of the original one."""
        disagreement = None
        if self._predicted is not None:
            pairs = zip(self._predictions(proto), self._predicted, strict=True)
            disagreement = float(np.concatenate([mine != theirs for mine, theirs in pairs], axis=None).mean())
        if self.metric == "agreement":
            assert disagreement is not None
            value, dense = 1 - disagreement, 1.0
        else:
            score = self._score(proto)[1]
            value, dense = (self._figure(each) for each in (score, self._dense))
        return Quality(self.metric, value, dense, disagreement, self._data.samples, self._where)

    def _figure(self, score: Score) -> float:
        return score.loss if self.metric == "loss" else score.metric

    def _score(self, proto: onnx.ModelProto) -> tuple[Evaluator, Score]:
        evaluator = Evaluator(proto, (), self._data, self._labels, self._options, self._original)
        return evaluator, evaluator.measure(self._data)

    def _class_axis(self, evaluator: Evaluator) -> int:
        """The axis of the first output that the classes are on."""
        if evaluator.objective.class_axis is not None:
            return evaluator.objective.class_axis
        output = self._original.graph.output[0]
        dims = output.type.tensor_type.shape.dim
        if len(dims) == 2 and dims[1].dim_value != 1:
            return 1
        shape = ", ".join(str(dim.dim_value or dim.dim_param or "?") for dim in dims)
        raise UnsupportedError(
            f"predictions are compared by classes, and output '{output.name}' of shape ({shape}) does not tell which "
            "axis has them: end the model in a Softmax, give labels, or leave 'agreement' and 'max_disagreement' out"
        )

    def _predictions(self, proto: onnx.ModelProto) -> Iterator[NDArray[np.int64]]:
        """The class with the highest output, batch after batch."""
        from lwc_compiler.runtime.reference import reference_session

        session = reference_session(proto, self._options.threads)
        output = self._original.graph.output[0].name
        built_in = fixed_batch(input_specs(proto))
        for batch in self._data.batches(built_in or self._options.batch_size):
            index = np.arange(built_in or batch.samples) % batch.samples
            inputs: dict[str, NDArray[Any]] = {name: array[index] for name, array in batch.inputs.items()}
            yield session.run([output], inputs)[0][: batch.samples].argmax(axis=self._axis)
