"""ONNX's reference implementation, which computes what is constant, without what it gets wrong."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from onnx import ModelProto


class GatherElements(OpRun):
    """Takes data of any size, and indices of another shape than the data's.

    That of onnx 1.23 fails, or reads the wrong elements, where the axis has more than 32 of them.
    """

    def _run(self, data: NDArray[Any], indices: NDArray[Any], axis: int | None = None) -> tuple[NDArray[Any]]:
        places: list[NDArray[Any]] = list(np.indices(indices.shape, sparse=True))
        places[axis or 0] = indices
        return (data[tuple(places)],)


def evaluator(model: ModelProto) -> ReferenceEvaluator:
    """Runs `model` on arrays."""
    return ReferenceEvaluator(model, new_ops=[GatherElements])
