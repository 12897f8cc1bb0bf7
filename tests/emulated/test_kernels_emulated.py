"""Every kernel is right on every class of processors, at the edges of its tiles and from no weights to all of them."""

import functools
import itertools
from functools import partial

import pytest
import test_channels
import test_conv
import test_conv_beside
import test_depthwise
import test_matmul
import test_pairs
import test_phases
import test_pooled
import test_recurrent
import test_separable
import test_subsample
import test_taps
import test_winograd
from batch import TARGETS, Batch, run_batch
from harness import EPILOGUES, Case

from lwc_compiler.kernels.conv import plan_conv_transpose
from lwc_compiler.kernels.matmul import plan_blocks, plan_dense, plan_gathered, plan_matmul, plan_shared
from lwc_compiler.kernels.registry import KERNELS
from lwc_compiler.targets.target import Target

DENSITIES = (0.0, 0.05, 0.5, 1.0)


def taps(fmt: str):
    return lambda number: (
        lambda weight, geometry, epilogue, target: test_taps.forced(weight, geometry, epilogue, fmt, number, target)
    )


def layouts(module, every=None):
    return lambda number: test_conv.random_layout(number, every or module.layouts, module.planned)


# Name -> geometries, planner for a number.
CONVOLUTIONS = {
    **{fmt: (test_taps.GEOMETRIES, taps(fmt)) for fmt in test_taps.FORMATS},
    "pairs": (test_pairs.GEOMETRIES, layouts(test_pairs)),
    "channels": (test_channels.GEOMETRIES[:4], layouts(test_channels, test_channels.every_layout)),
    "winograd": (test_winograd.GEOMETRIES[::2], layouts(test_winograd)),
    "depthwise": (test_depthwise.GEOMETRIES[::2], test_depthwise.one_band),
    "phases": (test_phases.GEOMETRIES[::2], test_phases.phased),
    "subsample": (test_subsample.GEOMETRIES, test_subsample.subsampled),
    "transposed": (test_conv.TRANSPOSED[::4], lambda number: plan_conv_transpose),
}
# Name -> (rows, inner dimension, columns), planner.
PRODUCTS = {
    "any": (test_matmul.PRODUCTS[1::4], plan_matmul),
    "dense": (test_matmul.PRODUCTS[::5], plan_dense),
    "gathered": (test_matmul.GATHERED, plan_gathered),
    "shared": (test_matmul.SHARED[::2], plan_shared),
    "lookup": (test_matmul.LOOKUP[:4], test_matmul.lookup_where_possible),
    **{f"block{height}": (test_matmul.BLOCKS[:4], partial(plan_blocks, height=height)) for height in (2, 4, 8)},
}


def cases_for(target: Target) -> list[Case]:
    """Every geometry once, and every density at least once for each kernel; epilogues come in turns."""
    numbers = itertools.count()
    cases = []
    for name, (geometries, planner) in CONVOLUTIONS.items():
        if name == "subsample" and target.vector_bits == 32:
            continue
        for i in range(max(len(geometries), len(DENSITIES))):
            number, geometry = next(numbers), geometries[i % len(geometries)]
            density, kind = DENSITIES[i % len(DENSITIES)], EPILOGUES[number % len(EPILOGUES)]
            cases.append(test_conv.make_case(number, geometry, density, kind, planner(number)))
            cases[-1].name = f"{name}-{cases[-1].name}"
    for name, (shapes, planner) in PRODUCTS.items():
        for i in range(max(len(shapes), len(DENSITIES))):
            number = next(numbers)
            density, kind = DENSITIES[i % len(DENSITIES)], EPILOGUES[number % len(EPILOGUES)]
            cases.append(test_matmul.make_case(number, *shapes[i % len(shapes)], density, kind, planner, name))
    cases += [test_matmul.make_batched(*shape) for shape in test_matmul.BATCHED[::3]]
    cases += [test_pooled.make_case(number, number) for number in range(len(test_pooled.LAYERS))]
    cases += test_recurrent.CASES[::4]
    chains = [number for number in range(len(test_separable.CHAINS)) if test_separable.has_cuts(number, target)]
    cases += [test_separable.make_case(number, which) for which, number in enumerate(chains[::2])]
    lanes = target.vector_bits // 32
    if lanes > 1:
        cases += [
            test_conv_beside.make_case(number, geometry, lanes)
            for number, geometry in enumerate(test_conv_beside.GEOMETRIES[::3])
        ]
        cases += [
            test_conv_beside.block_case(number, whole, (2, lanes // 2), 1)
            for number, whole in enumerate(test_conv_beside.BLOCKS[::3])
        ]
    return cases


CASES = {target.name: cases_for(target) for target in TARGETS}


@functools.cache
def batch_of(target: Target) -> Batch:
    """All cases of a target, compiled and run in one program."""
    return run_batch(CASES[target.name], target)


# One worker of pytest-xdist gets all of a target.
EVERY_TARGET = [pytest.param(t, id=t.name, marks=pytest.mark.xdist_group(f"emulated-{t.name}")) for t in TARGETS]
EVERY_CASE = [
    pytest.param(t, case, id=f"{t.name}-{case.name}", marks=pytest.mark.xdist_group(f"emulated-{t.name}"))
    for t in TARGETS
    for case in CASES[t.name]
]


@pytest.mark.parametrize(("target", "case"), EVERY_CASE)
def test_same_as_float64(target: Target, case: Case) -> None:
    """To 1e-5 of the scale, whole and with its tiles in two parts, and nothing else is touched."""
    batch_of(target).results[case.name].check(case)


@pytest.mark.parametrize("target", EVERY_TARGET)
def test_every_kernel_was_run(target: Target) -> None:
    """The registry's, but for those that need instructions of other processors, or vectors."""
    others = {"subsample"} if target.vector_bits == 32 else set()
    ran = {step.kernel.name for plan in batch_of(target).plans.values() for step in plan.steps}
    assert ran == {entry.name for entry in KERNELS if entry.features <= target.features} - others
