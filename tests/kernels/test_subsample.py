"""Pointwise convolutions with a stride, computed without one on the pixels that they read."""

import numpy as np
from harness import Case, KernelTests
from test_conv import conv, make_case

from lwc_compiler.kernels.conv import plan_conv

GEOMETRIES = [
    conv(1, 40, (14, 14), 30, (1, 1), (2, 2)),
    conv(2, 21, (9, 23), 12, (1, 1), (2, 3)),
    conv(1, 300, (7, 33), 9, (1, 1), (1, 2)),
    conv(1, 16, (28, 5), 8, (1, 1), (3, 1)),
    conv(2, 8, (8, 8), 12, (1, 1), (2, 2), groups=2),
]


def subsampled(number: int):
    """A planner that takes one of these candidates at random."""

    def pick(task, candidates):
        found = [candidate for candidate in candidates if candidate.name.endswith("subsampled")]
        plan = found[int(np.random.default_rng(number).integers(len(found)))].build()
        assert plan.steps[0].kernel.name == "subsample"
        return plan

    return lambda weight, geometry, epilogue, target: plan_conv(weight, geometry, epilogue, target, pick)


def cases() -> list[Case]:
    kinds = ["none", "bias_relu", "residual_clip"]
    pairs = [(geometry, kind) for geometry in GEOMETRIES for kind in kinds]
    return [make_case(n, geometry, 0.1, kind, subsampled(n)) for n, (geometry, kind) in enumerate(pairs)]


CASES = cases()


class TestSubsampled(KernelTests):
    cases = CASES
