"""Convolutions with a stride, computed without one over the phases of their input."""

import numpy as np
import pytest
from harness import Case, KernelTests, variant
from test_conv import conv, make_case

from lwc_compiler.kernels.conv import plan_conv
from lwc_compiler.kernels.kernel import Plan
from lwc_compiler.kernels.layer import ConvGeometry, Epilogue
from lwc_compiler.kernels.winograd_plan import phased_candidates
from lwc_compiler.targets import find_target
from lwc_compiler.targets.target import Target

GEOMETRIES = [
    conv(1, 4, (32, 32), 16, (7, 7), (2, 2), pads=(3, 3, 3, 3)),
    conv(2, 5, (23, 17), 33, (7, 7), (2, 2), pads=(3, 3, 2, 3)),
    conv(1, 6, (21, 30), 18, (5, 5), (2, 2), pads=(2, 2, 2, 2)),
    conv(2, 4, (26, 9), 20, (6, 5), (2, 2), pads=(2, 1, 2, 2)),
    conv(1, 3, (35, 51), 24, (11, 11), (4, 4), pads=(2, 2, 2, 2)),
    conv(1, 16, (17, 20), 16, (4, 7), (1, 2), pads=(1, 3, 1, 3)),
    conv(1, 5, (40, 31), 17, (7, 9), (3, 3)),
]


def phased(number: int):
    """A planner that takes one of these candidates at random."""

    def plan(weight: np.ndarray, geometry: ConvGeometry, epilogue: Epilogue, target: Target) -> Plan:
        found = phased_candidates(weight, geometry, epilogue, target)
        chosen = found[int(np.random.default_rng(number).integers(len(found)))].build()
        assert chosen.steps[0].kernel.name == "phases"
        return chosen

    return plan


def cases() -> list[Case]:
    return [make_case(n, geometry, *variant(n, 1), phased(n)) for n, geometry in enumerate(2 * GEOMETRIES)]


CASES = cases()


class TestPhased(KernelTests):
    cases = CASES


@pytest.mark.parametrize(
    "geometry",
    [
        conv(1, 4, (32, 32), 16, (3, 3), (2, 2), pads=(1, 1, 1, 1)),
        conv(1, 4, (32, 32), 16, (7, 7), (1, 1), pads=(3, 3, 3, 3)),
        conv(1, 4, (32, 32), 16, (7, 7), (2, 2), pads=(3, 3, 3, 3), groups=2),
        conv(1, 4, (32, 32), 16, (7, 7), (2, 2), pads=(6, 6, 6, 6), dilations=(2, 2)),
        conv(1, 4, (32, 32), 16, (9, 9), (2, 2), pads=(4, 4, 4, 4)),
    ],
    ids=["small", "no stride", "groups", "dilated", "large"],
)
def test_others_are_left_to_other_kernels(geometry: ConvGeometry) -> None:
    weight = np.ones((16, geometry.group_inputs, *geometry.kernel), np.float32)
    assert not phased_candidates(weight, geometry, Epilogue(), find_target("cortex-a72"))


@pytest.mark.parametrize(("name", "steps"), [("cortex-a72", ["phases", "winograd"]), ("x86-64-v4", ["conv_channels"])])
def test_first_layers_are_filtered_where_vectors_are_narrow(name: str, steps: list[str]) -> None:
    geometry = conv(1, 3, (224, 224), 64, (7, 7), (2, 2), pads=(3, 3, 3, 3))
    weight = np.ones((64, 3, 7, 7), np.float32)
    plan = plan_conv(weight, geometry, Epilogue(), find_target(name))
    assert [step.kernel.name for step in plan.steps] == steps
    assert (plan.stored, plan.flops) == (weight.size, 2 * weight.size * 112 * 112)
