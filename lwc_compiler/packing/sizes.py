"""What takes how many bytes in a packed file."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from lwc_compiler.packing.tensor_codec import Coding


@dataclass(frozen=True)
class TensorSize:
    """A tensor that is stored outside the graph.

    Attributes:
        name: of the initializer, or of the first output of the node that holds it.
        shape: of the tensor.
        elements: number of its elements.
        nonzero: elements that are not zero bits.
        coding: how it is stored.
        bytes: what it takes in the file.
        dense_bytes: what it takes in the ONNX file.
    """

    name: str
    shape: tuple[int, ...]
    elements: int
    nonzero: int
    coding: Coding
    bytes: int
    dense_bytes: int

    @property
    def density(self) -> float:
        """Elements that are not zero / all elements."""
        return self.nonzero / self.elements

    @property
    def bits_per_index(self) -> float | None:
        """Bits of the indices, fillers included, for each element that is not zero; None without any."""
        return 8 * self.coding.index_bytes / self.nonzero if self.coding.gap_bits and self.nonzero else None

    @property
    def ratio(self) -> float:
        """How many times smaller than dense it is."""
        return self.dense_bytes / self.bytes


@dataclass(frozen=True)
class PackedSizes:
    """Sizes of a packed file.

    Attributes:
        tensors: those outside the graph, in the order of the file.
        graph_bytes: everything else: the graph with its small tensors, deflated, header and checksum.
        bytes: the whole file.
        dense_bytes: the ONNX file it unpacks to.
    """

    tensors: tuple[TensorSize, ...]
    graph_bytes: int
    bytes: int
    dense_bytes: int

    @property
    def ratio(self) -> float:
        """How many times smaller than the ONNX file the packed file is."""
        return self.dense_bytes / self.bytes

    def to_json(self) -> dict[str, Any]:
        """All attributes and properties, JSON-able."""
        tensors = [
            {**asdict(size), "density": size.density, "bits_per_index": size.bits_per_index, "ratio": size.ratio}
            for size in self.tensors
        ]
        return {**asdict(self), "tensors": tensors, "ratio": self.ratio}
