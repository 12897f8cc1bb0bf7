"""The kernel of convolutions is right in every format and tiling, whether the cost model likes it or not."""

import numpy as np
from harness import Case, KernelTests, finish, make_epilogue, sparse
from test_conv import conv, reference, weight_shape

from lwc_compiler.kernels.kernel import Input, Output, Plan
from lwc_compiler.kernels.layer import ConvGeometry, Epilogue
from lwc_compiler.kernels.registry import KERNELS
from lwc_compiler.kernels.tap_plan import canonical, plan_tiling
from lwc_compiler.kernels.tilings import tilings
from lwc_compiler.targets import find_target

GEOMETRIES = [
    conv(1, 30, (14, 19), 21, (3, 3), pads=(1, 1, 1, 1)),
    conv(2, 70, (9, 11), 26, (1, 1)),
    conv(1, 24, (13, 40), 22, (3, 2), (2, 2), (1, 0, 1, 3), groups=2),
    conv(2, 12, (14, 11), 20, (3, 2), (2, 3), groups=2),
    conv(1, 6, (5, 9, 8), 9, (2, 3, 3), (2, 1, 1), (0, -1, 0, 0, 0, -1), (2, 1, 2)),
    conv(1, 20, (8, 16), 32, (3, 3), pads=(1, 1, 1, 1)),
]
FORMATS = [entry.format for entry in KERNELS if entry.name.startswith("conv_")]


# Planes whose rows follow each other in the vectors: padding on one side or on both, phases, dilation, no padding.
NARROW = [
    conv(1, 40, (7, 7), 24, (3, 3), pads=(1, 1, 1, 1)),
    conv(2, 24, (14, 14), 21, (3, 3), (2, 2), (1, 1, 1, 1)),
    conv(1, 20, (13, 20), 16, (5, 5), (2, 2), (2, 2, 2, 2)),
    conv(1, 24, (10, 10), 18, (3, 3), pads=(2, 2, 2, 2), dilations=(2, 2)),
    conv(1, 16, (9, 12), 16, (2, 3), pads=(0, 0, 1, 2), groups=2),
    conv(1, 12, (6, 5, 9), 9, (2, 3, 3), (2, 1, 3), (0, 1, 2, 0, 1, 0)),
]


def forced(
    weight: np.ndarray,
    geometry: ConvGeometry,
    epilogue: Epilogue,
    fmt: str,
    number: int,
    target,
    flat: bool = False,
) -> Plan:
    """A tiling picked at random from all that the cost model weighs, or from those whose rows follow each other."""
    problem = canonical(geometry)
    candidates = list(tilings(problem, target, fmt))
    if flat:
        candidates = [tiling for tiling in candidates if tiling.flat] or candidates
    tiling = candidates[int(np.random.default_rng(number).integers(len(candidates)))]
    taps = weight.reshape(problem.groups, problem.out_channels, -1)
    residual = Input(1) if epilogue.residual else None
    return plan_tiling(taps, geometry, epilogue, fmt, tiling, Input(0), residual, Output(0))


def make_case(number: int, geometry: ConvGeometry, fmt: str) -> Case:
    generator = np.random.default_rng(number)
    weight = sparse(generator, weight_shape(geometry), (0.1, "blocks", 1.0)[number % 3], axis=0)
    epilogue = make_epilogue(generator, "bias_residual_leaky_relu" if number % 2 else "none", geometry.out_channels)
    x = generator.standard_normal(geometry.in_shape).astype(np.float32)
    further, expected, scale = finish(generator, reference(x, weight, geometry), epilogue, axis=1)

    def plan(target) -> Plan:
        return forced(weight, geometry, epilogue, fmt, number, target, geometry in NARROW)

    return Case(f"{number}-{fmt}", plan, [x, *further], expected, scale)


PAIRS = [(geometry, fmt) for geometry in GEOMETRIES for fmt in FORMATS for _ in range(2)]
PAIRS += [(geometry, fmt) for geometry in NARROW for fmt in ("csr", "block2", "dense")]
CASES = [make_case(number, *pair) for number, pair in enumerate(PAIRS)]


class TestEveryChoice(KernelTests):
    cases = CASES
    scalar = True


def test_outputs_may_take_the_residuals_buffer_where_none_is_computed_twice() -> None:
    plans = [case.plan(find_target("x86-64-v3")) for case in CASES if len(case.inputs) > 1]
    assert {plan.steps[0].kernel.over for plan in plans} == {None, 1}
    alone = [case.plan(find_target("x86-64-v3")) for case in CASES if len(case.inputs) == 1]
    assert {plan.steps[0].kernel.over for plan in alone} == {None}


def test_rows_follow_each_other_where_they_leave_lanes_empty() -> None:
    target = find_target("x86-64-v4")
    for geometry in NARROW:
        assert any(tiling.flat for tiling in tilings(canonical(geometry), target, "csr")), geometry
    wide = conv(1, 20, (8, 16), 32, (3, 3), pads=(1, 1, 1, 1))
    assert not any(tiling.flat for tiling in tilings(canonical(wide), target, "csr"))
