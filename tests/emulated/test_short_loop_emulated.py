"""Loops over taps of few instructions, run by QEMU."""

import functools
from functools import partial

import numpy as np
import pytest
import test_taps
from batch import Batch, run_batch
from test_conv import make_case

from lwc_compiler.kernels.kernel import Input, Output, Plan
from lwc_compiler.kernels.layer import ConvGeometry, Epilogue
from lwc_compiler.kernels.tap_plan import canonical, plan_tiling
from lwc_compiler.kernels.tilings import tilings
from lwc_compiler.targets import find_target
from lwc_compiler.targets.target import Target

DENSITIES = (0.02, 0.1, 0.5)
CHOICES = [
    (fmt, geometry, flat)
    for fmt in ("csr", "block2", "block4", "block8")
    for geometry in test_taps.GEOMETRIES
    for flat in (False, True)
]


def short_tilings(geometry: ConvGeometry, fmt: str, flat: bool) -> list:
    found = tilings(canonical(geometry), find_target("cortex-a72"), fmt)
    return [tiling for tiling in found if tiling.short and tiling.flat == flat]


def forced(
    weight: np.ndarray,
    geometry: ConvGeometry,
    epilogue: Epilogue,
    _target: Target,
    *,
    fmt: str,
    number: int,
    flat: bool,
) -> Plan:
    """A tiling picked at random from those whose loop is not LLVM's."""
    problem, candidates = canonical(geometry), short_tilings(geometry, fmt, flat)
    tiling = candidates[int(np.random.default_rng(number).integers(len(candidates)))]
    weight = weight.reshape(problem.groups, problem.out_channels, -1)
    return plan_tiling(weight, geometry, epilogue, fmt, tiling, Input(0), None, Output(0))


CASES = [
    make_case(number, geometry, DENSITIES[number % 3], "bias", partial(forced, fmt=fmt, number=number, flat=flat))
    for number, (fmt, geometry, flat) in enumerate(CHOICES)
    if short_tilings(geometry, fmt, flat)
]


@functools.cache
def results() -> Batch:
    return run_batch(CASES, find_target("cortex-a72"))


def test_there_are_cases_of_every_kind() -> None:
    kinds = {(fmt, flat) for fmt, geometry, flat in CHOICES if short_tilings(geometry, fmt, flat)}
    assert kinds >= {("csr", False), ("csr", True), ("block2", False), ("block4", False), ("block8", False)}


@pytest.mark.xdist_group("emulated-cortex-a72")
@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_same_as_float64(case) -> None:
    results().results[case.name].check(case)
