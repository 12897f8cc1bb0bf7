"""Separable convolutions in one kernel are what their layers are one by one, in every cut, at every edge."""

import numpy as np
import pytest
from harness import Case, KernelTests, finish, make_epilogue, sparse
from test_conv import conv, reference, weight_shape

from lwc_compiler.kernels.layer import Epilogue
from lwc_compiler.kernels.separable import SeparableLayout
from lwc_compiler.kernels.separable_plan import Part, cuts, fits, plan_layout, plan_separable, separable_candidates
from lwc_compiler.kernels.tap_plan import canonical
from lwc_compiler.targets import find_target

# (batch, input channels or 0 for none, channels, output channels, size), the depthwise layer, epilogues
CHAINS = [
    ((1, 12, 40, 20, (14, 14)), ((3, 3), (1, 1), (1, 1, 1, 1)), ("bias_relu", "bias_relu", "bias_residual_clip")),
    ((2, 7, 19, 9, (28, 20)), ((3, 3), (2, 2), (1, 1, 1, 1)), ("bias", "hard_swish", "none")),
    ((1, 5, 33, 6, (7, 7)), ((5, 5), (1, 1), (2, 2, 2, 2)), ("hard_swish", "bias_hard_sigmoid", "residual_clip")),
    ((1, 3, 6, 5, (30, 56)), ((3, 3), (1, 1), (1, 1, 1, 1)), ("bias_relu", "none", "bias_residual_leaky_relu")),
    ((1, 4, 9, 3, (37, 41)), ((5, 5), (2, 2), (2, 2, 2, 2)), ("none", "bias_relu", "hard_swish")),
    ((1, 6, 8, 5, (3, 2)), ((3, 3), (1, 1), (1, 1, 1, 1)), ("bias_relu", "none", "bias")),
    ((1, 3, 5, 4, (11, 70)), ((3, 2), (1, 2), (0, 2, 3, -3)), ("bias_relu", "none", "bias_relu")),
    ((1, 3, 5, 4, (40, 23)), ((3, 3), (1, 1), (4, 0, 2, 1)), ("bias_relu", "none", "bias_relu")),
    ((1, 3, 4, 4, (5, 9)), ((3, 3), (1, 1), (2, 2, 2, 2), (2, 2)), ("leaky_relu", "none", "bias")),
    ((2, 0, 40, 20, (14, 14)), ((3, 3), (1, 1), (1, 1, 1, 1)), ("bias_relu", "bias_residual_clip")),
    ((1, 0, 9, 7, (30, 112)), ((3, 3), (2, 2), (0, 0, 1, 1)), ("hard_swish", "bias_relu")),
    ((1, 0, 5, 3, (4, 4)), ((5, 5), (1, 1), (2, 2, 2, 2)), ("none", "none")),
]


def make_parts(generator: np.random.Generator, number: int, density: float) -> list[Part]:
    (batch, inputs, channels, outputs, size), depthwise, kinds = CHAINS[number]
    geometries = [conv(batch, channels, size, channels, *depthwise, groups=channels)]
    if inputs:
        geometries.insert(0, conv(batch, inputs, size, channels, (1, 1)))
    geometries.append(conv(batch, channels, geometries[-1].out_size, outputs, (1, 1)))
    return [
        Part(
            sparse(generator, weight_shape(geometry), 1.0 if geometry.groups > 1 else density, axis=0),
            geometry,
            make_epilogue(generator, kind, geometry.out_channels),
        )
        for geometry, kind in zip(geometries, kinds, strict=True)
    ]


def has_cuts(number: int, target) -> bool:
    """Whether the target has the registers for a chain's rows."""
    *_, depthwise, _ = make_parts(np.random.default_rng(0), number, 0.1)
    return bool(cuts(canonical(depthwise.geometry), target))


def make_case(number: int, which: int) -> Case:
    """A chain in one of the cuts the planner weighs."""
    generator = np.random.default_rng(10 * number + which)
    density = (0.1, 0.3, 0.0, 0.5)[(number + which) % 4]
    parts = make_parts(generator, number, density)
    assert fits(parts)
    x = generator.standard_normal(parts[0].geometry.in_shape).astype(np.float32)
    inputs, y, scale = [x], x, 0.0
    for part in parts:
        further, y, own = finish(generator, reference(y, part.weight, part.geometry), part.epilogue, axis=1)
        inputs += further
        scale = max(scale, own)

    def plan(target):
        *expand, depthwise, project = [canonical(part.geometry) for part in parts]
        every = cuts(depthwise, target)
        cut = every[which % len(every)]
        return plan_layout(parts, SeparableLayout(expand[0] if expand else None, depthwise, project, cut))

    return Case(f"{number}-cut-{which}-density-{density}", plan, inputs, y, scale)


CASES = [make_case(number, which) for number in range(len(CHAINS)) for which in (0, 3, 5)]


class TestEveryCut(KernelTests):
    cases = CASES


def test_what_the_plan_says_of_its_layers() -> None:
    parts = make_parts(np.random.default_rng(0), 0, 0.1)
    plan = separable_candidates(parts, find_target("x86-64-v4"), 1)[0].build()
    first, second, third = plan.shares
    assert [share.format for share in plan.shares] == ["csr", "dense", "csr"]
    assert second.flops == 2 * 40 * 9 * 14 * 14
    assert second.bytes == 4 * 40 * 10  # with a bias
    assert first.flops == 2 * np.count_nonzero(parts[0].weight) * 14 * 14
    assert plan.flops == first.flops + second.flops + third.flops
    assert sum(share.bytes for share in plan.shares) == sum(step.constant_bytes for step in plan.steps)


def test_what_the_kernel_cannot_compute_is_left_alone() -> None:
    pointwise, depthwise, project = make_parts(np.random.default_rng(0), 0, 0.1)
    assert fits([pointwise, depthwise, project])
    assert fits([depthwise, project])
    assert not fits([pointwise, depthwise])
    assert not fits([depthwise, depthwise])
    dense = Part(np.ones_like(project.weight), project.geometry, project.epilogue)
    assert not fits([depthwise, dense])
    residual = Part(depthwise.weight, depthwise.geometry, Epilogue(None, True))
    assert not fits([residual, project])


@pytest.mark.parametrize("threads", [1, 8])
def test_tiles_are_as_many_as_threads_need(threads: int) -> None:
    """One band of a plane of 14 x 14 would leave seven threads without work."""
    parts = make_parts(np.random.default_rng(0), 0, 0.1)
    target = find_target("x86-64-v4")
    assert bool(separable_candidates(parts, target, threads)) == (threads == 1)
    assert (plan_separable(parts, target, threads) is None) == (threads == 8)


def test_rows_of_pixels_beyond_the_registers_are_left_alone() -> None:
    wide = conv(1, 8, (20, 2000), 8, (3, 3), pads=(1, 1, 1, 1), groups=8)
    assert cuts(canonical(wide), find_target("x86-64-v4")) == []
