"""Dropout while training: activations are multiplied by random masks that are graph inputs.

With masks made outside the graph the same step always drops the same, so that a run can go on exactly where it was.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, helper

from lwc_compiler.errors import UnsupportedError
from lwc_compiler.training.graph import TrainingGraph


@dataclass(frozen=True)
class Dropout:
    """One place: graph input that takes the mask, its shape, and the share of entries that are dropped."""

    input: str
    shape: tuple[int, ...]
    ratio: float

    def mask(self, rng: np.random.Generator) -> NDArray[np.float32]:
        """0 where an entry is dropped, 1 / (1 - ratio) elsewhere (ONNX operator Dropout in training mode)."""
        mask = (rng.random(self.shape, np.float32) >= self.ratio).astype(np.float32)
        mask *= np.float32(1 / (1 - self.ratio))
        return mask

    def nothing(self) -> NDArray[np.float32]:
        """The mask that drops nothing."""
        return np.ones(self.shape, np.float32)


def insert_dropout(graph: TrainingGraph, ratios: dict[str, float]) -> list[Dropout]:
    """Puts a Dropout after every tensor in `ratios` (tensor name -> ratio).

    Raises:
        UnsupportedError: a tensor is not computed any more in the graph that training uses.
    """
    made = []
    for tensor, ratio in ratios.items():
        index = next((i for i, node in enumerate(graph.nodes) if tensor in node.output), None)
        if index is None:
            raise UnsupportedError(
                f"dropout after '{tensor}' is not possible: the tensor is an input, a constant, or the output of an "
                "Identity; name the node that computes it"
            )
        dropped, mask = graph.name("dropped"), graph.name("dropout")
        for node in graph.nodes[index + 1 :]:
            for position, name in enumerate(node.input):
                if name == tensor:
                    node.input[position] = dropped
        graph.nodes.insert(index + 1, helper.make_node("Mul", [tensor, mask], [dropped], name=dropped))
        shape = graph.shape(tensor)
        graph.inputs[mask] = (TensorProto.FLOAT, shape)
        graph.shapes[dropped] = graph.shapes[mask] = shape
        graph.types[dropped] = graph.types[mask] = TensorProto.FLOAT
        made.append(Dropout(mask, shape, ratio))
    return made
