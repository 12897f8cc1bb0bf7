"""Loops over taps that are written for Cortex-A53, run by QEMU."""

import functools
from functools import partial

import numpy as np
import pytest
import test_separable
import test_taps
from batch import Batch, run_batch
from test_conv import make_case

from lwc_compiler.kernels.kernel import Input, Output, Plan
from lwc_compiler.kernels.layer import ConvGeometry, Epilogue
from lwc_compiler.kernels.tap_plan import canonical, plan_tiling
from lwc_compiler.kernels.tilings import tilings
from lwc_compiler.targets import find_target
from lwc_compiler.targets.target import Target

# Format, geometry, density: lists with an odd and an even number of taps, and without any.
CHOICES = [
    ("csr", 0, 0.5),
    ("csr", 1, 0.02),
    ("block4", 0, 0.1),
    ("block4", 2, 0.5),
    ("block8", 1, 0.1),
    ("dense", 5, 1.0),
]


def forced(weight: np.ndarray, geometry: ConvGeometry, epilogue: Epilogue, target: Target, *, fmt: str) -> Plan:
    """A tiling picked at random from those whose loop is not LLVM's."""
    problem = canonical(geometry)
    candidates = [tiling for tiling in tilings(problem, target, fmt) if tiling.in_order]
    tiling = candidates[int(np.random.default_rng(0).integers(len(candidates)))]
    flat = weight.reshape(problem.groups, problem.out_channels, -1)
    return plan_tiling(flat, geometry, epilogue, fmt, tiling, Input(0), None, Output(0))


CASES = [
    make_case(number, test_taps.GEOMETRIES[geometry], density, "bias", partial(forced, fmt=fmt))
    for number, (fmt, geometry, density) in enumerate(CHOICES)
]
CASES += [test_separable.make_case(number, 0) for number in (0, 1, 3, 9)]


@functools.cache
def results() -> Batch:
    return run_batch(CASES, find_target("cortex-a53"))


@pytest.mark.xdist_group("emulated-cortex-a53")
@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_same_as_float64(case) -> None:
    results().results[case.name].check(case)
