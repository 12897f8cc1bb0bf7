"""Buffers of kernels that are timed on a GPU take turns, and are given back whatever happens."""

import numpy as np
import pytest

from lwc_compiler.runtime.device_driver import GpuError, LaunchOf
from lwc_compiler.runtime.device_timing import Buffers, sets_of


class Gpu:
    """Memory by address, and the graphs that are made."""

    def __init__(self, blocks: int = 100) -> None:
        self.sizes, self.contents, self.graphs, self.destroyed = {}, {}, [], []
        self.blocks = blocks

    def memory(self, size):
        if len(self.sizes) == self.blocks:
            raise GpuError("cuMemAlloc_v2 failed: out of memory (CUDA's error 2)")
        self.sizes[address := (len(self.sizes) + 1) << 32] = size
        return address

    def free(self, address):
        del self.sizes[address]

    def upload(self, address, array):
        assert array.nbytes < self.sizes[address]  # there is something behind it
        self.contents[address] = array.tolist()

    def graph(self, launches):
        self.graphs.append(launches)
        return len(self.graphs)

    def destroy(self, graph):
        self.destroyed.append(graph)

    def run(self, graph):
        assert graph not in self.destroyed

    def seconds(self, start, budget):
        start()
        return budget


LAUNCHES = [
    LaunchOf(None, (1, 1, 1), (32, 1, 1), 0, True, ["x", "w", "part"]),
    LaunchOf(None, (1, 1, 1), (32, 1, 1), 0, True, ["part", "y"]),
]
CONTENTS = {"x": np.arange(3.0), "w": np.arange(2)}
WRITTEN = {"part": 8, "y": 4}


def test_every_launch_is_on_another_set_than_the_one_before() -> None:
    gpu = Gpu()
    with Buffers(gpu, CONTENTS, WRITTEN, sets=3) as buffers:
        assert buffers.seconds(LAUNCHES, 9.0) == 9.0 / 9  # three times on each set, which is more than eight
        (launches,) = gpu.graphs
        assert gpu.destroyed == [1]
        first, second = launches[::2], launches[1::2]
        xs = [launch.operands[0] for launch in first]
        assert len(set(xs)) == 3
        assert xs == xs[:3] * 3
        assert all(gpu.contents[x] == [0.0, 1.0, 2.0] for x in xs)
        assert [launch.operands[2] for launch in first] == [launch.operands[0] for launch in second]
        assert len(gpu.sizes) == 3 * 4
    assert gpu.sizes == {}


def test_memory_is_given_back_where_it_does_not_do() -> None:
    gpu = Gpu(blocks=6)
    with pytest.raises(GpuError, match="out of memory"):
        Buffers(gpu, CONTENTS, WRITTEN, sets=2)
    assert gpu.sizes == {}


@pytest.mark.parametrize(
    ("l2_bytes", "size", "sets"), [(50, 10, 10), (50, 100, 1), (50, 99, 2), (50, 1000, 1), (50 << 20, 1, 64), (0, 5, 1)]
)
def test_so_many_sets_that_the_cache_has_none(l2_bytes, size, sets) -> None:
    assert sets_of(l2_bytes, size) == sets
