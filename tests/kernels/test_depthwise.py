"""Depthwise convolutions row by row are right in every band, at every edge."""

import numpy as np
import pytest
from harness import NARROW, Case, KernelTests
from test_conv import conv, make_case

from lwc_compiler.kernels.depthwise import Band
from lwc_compiler.kernels.depthwise_plan import bands, computes, depthwise_candidates, plan_band
from lwc_compiler.kernels.layer import Epilogue
from lwc_compiler.kernels.tap_plan import canonical
from lwc_compiler.targets import find_target

GEOMETRIES = [
    conv(1, 9, (14, 14), 9, (3, 3), pads=(1, 1, 1, 1), groups=9),
    conv(2, 5, (37, 70), 5, (3, 3), pads=(1, 1, 1, 1), groups=5),
    conv(1, 4, (33, 36), 4, (3, 3), (2, 2), (1, 1, 1, 1), groups=4),
    conv(1, 4, (32, 112), 4, (3, 3), (2, 2), (0, 0, 1, 1), groups=4),
    conv(1, 6, (7, 7), 12, (5, 5), pads=(2, 2, 2, 2), groups=6),
    conv(1, 3, (28, 29), 3, (5, 5), (2, 2), (2, 2, 2, 2), groups=3),
    conv(1, 3, (3, 2), 3, (3, 3), pads=(1, 1, 1, 1), groups=3),
    conv(1, 3, (5, 3), 3, (5, 5), (2, 1), (4, 4, 4, 4), groups=3),
    conv(1, 2, (1, 40), 2, (1, 3), pads=(0, 1, 0, 1), groups=2),
    conv(1, 2, (40, 1), 2, (3, 1), pads=(3, 0, 3, 0), groups=2),
    conv(1, 2, (20, 40), 2, (3, 3), (2, 1), (-1, -2, 3, -4), groups=2),
    conv(1, 2, (19, 23), 2, (3, 3), pads=(2, 3, 3, 2), dilations=(2, 3), groups=2),
    conv(2, 3, (41,), 3, (3,), (2,), (1, 0), groups=3),
]
EPILOGUES = ("bias_relu", "residual_clip", "none", "bias_residual_leaky_relu", "hard_swish")


def one_band(which: int):
    """A planner that takes one of the bands that the cost model weighs."""

    def plan(weight, geometry, epilogue, target):
        problem = canonical(geometry)
        # Where none is offered, because registers are few, one is right all the same.
        every = list(dict.fromkeys(bands(problem, target))) or [Band(problem.height, problem.width, 1, 1)]
        return plan_band(weight, geometry, epilogue, every[which % len(every)])

    return plan


def band_case(number: int, which: int) -> Case:
    """A geometry in one of the bands."""
    epilogue = EPILOGUES[(number + which) % len(EPILOGUES)]
    return make_case(4 * number + which, GEOMETRIES[number], 1.0, epilogue, one_band(which))


CASES = [band_case(number, which) for number in range(len(GEOMETRIES)) for which in range(4)]


class TestEveryBand(KernelTests):
    cases = CASES
    scalar = True


@pytest.mark.parametrize(
    "geometry",
    [
        conv(1, 4, (9, 9), 4, (3, 3), groups=2),
        conv(1, 4, (9, 9), 4, (3, 3), (3, 3), groups=4),
        conv(1, 4, (19, 19), 4, (7, 7), groups=4),
        conv(1, 4, (9, 9), 4, (1, 1), groups=4),
        conv(1, 4, (9, 9, 9), 4, (3, 3, 3), groups=4),
    ],
    ids=["two channels a group", "stride 3", "large kernel", "pointwise", "depth"],
)
def test_other_convolutions_are_left_to_other_kernels(geometry) -> None:
    assert not computes(canonical(geometry))
    weight = np.ones((4, 4 // geometry.groups, *geometry.kernel), np.float32)
    assert depthwise_candidates(weight, geometry, Epilogue(), find_target("host")) == []


class TestNarrowVectors(KernelTests):
    cases = CASES
    targets = (NARROW,)
