"""Sparse pointwise convolutions by pairs of outputs are right in every layout, whatever the cost model prefers."""

import numpy as np
import pytest
from harness import TARGETS, KernelTests, build, check_same_kernels, run, sparse, variant
from test_conv import conv, make_case, random_layout

from lwc_compiler.kernels.kernel import Input, Output, Plan
from lwc_compiler.kernels.layer import ConvGeometry, Epilogue
from lwc_compiler.kernels.pair_plan import layouts, pair_candidates, plan_pairs

GEOMETRIES = [
    conv(1, 32, (16,), 8, (1,)),
    conv(2, 33, (17,), 7, (1,)),
    conv(1, 5, (128,), 64, (1,)),
    conv(1, 700, (49,), 33, (1,)),
    conv(3, 100, (7, 9), 1, (1, 1)),
    conv(1, 300, (14, 14), 50, (1, 1)),
    conv(1, 64, (31,), 129, (1,)),
    conv(2, 900, (100,), 10, (1,)),
]


def planned(weight: np.ndarray, geometry: ConvGeometry, epilogue: Epilogue, layout) -> Plan:
    residual = Input(1) if epilogue.residual else None
    matrix = weight.reshape(geometry.out_channels, -1)
    return plan_pairs(matrix, epilogue, layout, Input(0), residual, Output(0))


CASES = [
    make_case(number, geometry, *variant(number, number // len(GEOMETRIES)), random_layout(number, layouts, planned))
    for number, geometry in enumerate(5 * GEOMETRIES)
]


class TestEveryLayout(KernelTests):
    cases = CASES


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_layers_alike_share_their_kernels(target) -> None:
    geometry = conv(1, 96, (128,), 40, (1,))
    layout = next(layouts(geometry, target))
    weights = [sparse(np.random.default_rng(seed), (40, 96, 1), 0.1, 0) for seed in (1, 2)]
    check_same_kernels(*(planned(weight, geometry, Epilogue(), layout) for weight in weights))


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_inputs_reach_only_the_outputs_that_read_them(target, tmp_path) -> None:
    """Filling adds 0 times an input: one that is not finite must not get into a sum by it."""
    geometry, generator = conv(1, 600, (40,), 91, (1,)), np.random.default_rng(0)
    weight = sparse(generator, (91, 600, 1), 0.02, 0)
    weight[3:6] = 0
    x = generator.standard_normal(geometry.in_shape).astype(np.float32)
    x[:, ::37] = np.inf
    x[:, 5::37] = np.nan
    read = (weight[:, ~np.isfinite(x[0, :, 0]), 0] != 0).any(axis=1)
    case = make_case(
        0, geometry, 0.0, "none", lambda *_: planned(weight, geometry, Epilogue(), next(layouts(geometry, target)))
    )
    case.inputs = [x]
    result = run(build([case], target, tmp_path), case, split=False)
    assert np.array_equal(np.isfinite(result), np.broadcast_to(~read[None, :, None], result.shape))


@pytest.mark.parametrize(
    "geometry",
    [
        conv(1, 8, (64,), 8, (3,), pads=(1, 1)),
        conv(1, 8, (64,), 8, (1,), (2,)),
        conv(1, 8, (64,), 8, (1,), groups=2),
        conv(1, 8, (3,), 8, (1,)),
    ],
)
def test_other_convolutions_have_no_pairs(geometry: ConvGeometry) -> None:
    weight = np.zeros((geometry.out_channels, geometry.in_channels // geometry.groups, *geometry.kernel), np.float32)
    assert not pair_candidates(weight, geometry, Epilogue(), TARGETS[0], Input(0), None, Output(0))
