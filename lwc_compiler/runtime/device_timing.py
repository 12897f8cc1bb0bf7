"""How long kernels take on a GPU when its level-2 cache has nothing of what they read.

Imports nothing of the package but the driver beside it: benchmarks take both files to machines without lwc.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from lwc_compiler.runtime.device_driver import Gpu, GpuError, LaunchOf

if TYPE_CHECKING:
    from typing_extensions import Self

_LEAST_LAUNCHES = 8  # in a graph that is timed
_MOST_SETS = 64
_SLACK_BYTES = 256  # that a kernel may read past the end of a buffer


def sets_of(l2_bytes: int, size: int) -> int:
    """How many copies of `size` bytes take turns, so that the level-2 cache has none of one when it is needed."""
    return max(1, min(_MOST_SETS, math.ceil(2 * l2_bytes / size)))


class Buffers:
    """What kernels read and write, in the GPU's memory, in sets of equal contents; a context manager.

    Args:
        gpu: where.
        contents: what is read, by the names that launches have for their operands.
        sizes: bytes of what is written, likewise.
        sets: how many.

    Attributes:
        sets: the addresses by the names, of each set.

    Raises:
        GpuError: there is too little memory.
    """

    def __init__(
        self, gpu: Gpu, contents: Mapping[Hashable, NDArray[Any]], sizes: Mapping[Hashable, int], sets: int = 1
    ) -> None:
        self._gpu = gpu
        self._blocks: list[int] = []
        self.sets: list[dict[Hashable, int]] = []
        try:
            for _ in range(sets):
                self.sets.append({name: self.place(array.nbytes, array) for name, array in contents.items()})
                self.sets[-1] |= {name: self.place(size) for name, size in sizes.items()}
        except GpuError:
            self.free()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.free()

    def place(self, size: int, contents: NDArray[Any] | None = None) -> int:
        """The address of new memory, with its contents, if there are any."""
        address = self.take(size + _SLACK_BYTES)
        if contents is not None:
            self._gpu.upload(address, contents)
        return address

    def take(self, size: int) -> int:
        """The address of `size` new bytes, which are given back with the others."""
        self._blocks.append(self._gpu.memory(size))
        return self._blocks[-1]

    def seconds(self, launches: Sequence[LaunchOf], budget: float) -> float:
        """The median time of launches that follow each other on one set of buffers after the other.

        They are nodes of a CUDA graph and overlap as in a network, with themselves on the next set, too.

        Args:
            launches: with the names of their operands.
            budget: seconds that may be spent.

        Raises:
            LaunchError: the GPU does not take one.
            GpuError: it failed.
        """
        rounds = math.ceil(_LEAST_LAUNCHES / len(self.sets))
        placed = [launch.at(places) for _ in range(rounds) for places in self.sets for launch in launches]
        graph = self._gpu.graph(placed)
        try:
            return self._gpu.seconds(lambda: self._gpu.run(graph), budget) / (rounds * len(self.sets))
        finally:
            self._gpu.destroy(graph)

    def free(self) -> None:
        """Gives the memory back."""
        while self._blocks:
            self._gpu.free(self._blocks.pop())
