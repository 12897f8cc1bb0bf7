"""How the weights of the kernel that looks inputs up are packed."""

from dataclasses import replace

import numpy as np
import pytest
from harness import sparse

from lwc_compiler.kernels.lookup import LookupLayout, pack_lookup

LAYOUT = LookupLayout(vectors=1, inputs=2048, outputs=500, window=64, chunk=16, block=1024, far=False)


def unpacked(constants, layout):
    """The weight (outputs, inputs) that the constants stand for, and how often it is added."""
    ends, *rows, bases, codes, values = (constant.array for constant in constants)
    weight = np.zeros((layout.groups * 16, layout.inputs), np.float32)
    added = np.zeros(weight.shape, int)
    for number in range(layout.blocks * layout.groups):
        group = number % layout.groups
        first = group // layout.chunk * layout.chunk * 16
        for step in range(ends[number], ends[number + 1]):
            for lane in range(16):
                code = int(codes.reshape(-1, 16)[step, lane])
                if code < 128:
                    place = first + int(rows[0][16 * number + lane]) if layout.far else 16 * group + lane
                    column = 16 * int(bases[step]) + code
                    weight[place, column] += values.reshape(-1, 16)[step, lane]
                    added[place, column] += 1
    return weight[: layout.outputs], added[: layout.outputs]


@pytest.mark.parametrize("window", [64, 96, 128])
@pytest.mark.parametrize("far", [False, True])
def test_every_weight_is_stored_once_in_the_row_it_belongs_to(window: int, far: bool) -> None:
    weight = sparse(np.random.default_rng(0), (90, 300), 0.1, 0)
    layout = replace(LAYOUT, inputs=300, outputs=90, chunk=4, block=112, window=window, far=far)
    constants, _ = pack_lookup(weight, layout)
    found, added = unpacked(constants, layout)
    assert np.array_equal(found, weight)
    assert np.array_equal(added, weight != 0)


def test_rows_alike_share_groups_so_that_less_is_filling() -> None:
    generator = np.random.default_rng(0)
    weight = generator.standard_normal((500, 2048)).astype(np.float32) * (generator.random((500, 2048)) < 0.1)
    kept = np.count_nonzero(weight)
    stored = {far: pack_lookup(weight, replace(LAYOUT, window=128, far=far))[1] / kept for far in (False, True)}
    assert stored[True] > 1 and stored[True] - 1 < 0.75 * (stored[False] - 1)
