"""The kernel with output channels in the vectors is right in every layout, whether the cost model likes it or not."""

import numpy as np
from harness import Case, KernelTests, finish, make_epilogue, sparse, variant
from test_conv import conv, reference, weight_shape

from lwc_compiler.kernels.channel_plan import layouts, plan_channels
from lwc_compiler.kernels.kernel import Plan
from lwc_compiler.kernels.layer import ConvGeometry
from lwc_compiler.kernels.tap_plan import canonical

GEOMETRIES = [
    conv(1, 12, (14, 14), 32, (3, 3), pads=(1, 1, 1, 1)),
    conv(2, 9, (14, 14), 33, (1, 1), (2, 2)),
    conv(3, 17, (7, 7), 70, (3, 3), pads=(1, 1, 1, 1)),
    conv(2, 5, (15, 23), 16, (3, 3), (2, 3), (1, 2, 2, 1)),
    conv(1, 36, (13, 13), 96, (3, 3), pads=(1, 1, 1, 1), groups=2),
    conv(1, 6, (12, 31), 50, (5, 3), (1, 1), (2, 0, 2, 0)),
    conv(1, 3, (31, 29), 31, (7, 7), (2, 2), (3, 3, 3, 3)),
    conv(1, 8, (12, 15), 40, (3, 3), pads=(-1, -2, -2, -1)),
    conv(1, 5, (10, 21), 17, (3, 3), pads=(5, 6, 5, 6), dilations=(3, 3)),
    conv(2, 4, (6, 1), 16, (3, 3), pads=(1, 1, 1, 1)),
    conv(1, 500, (9, 9), 20, (3, 3), (2, 2), (1, 1, 0, 0)),
]


def make_case(number: int, geometry: ConvGeometry) -> Case:
    generator = np.random.default_rng(number)
    density, kind = variant(number, 2)
    weight = sparse(generator, weight_shape(geometry), density, axis=0)
    epilogue = make_epilogue(generator, kind, geometry.out_channels)
    x = generator.standard_normal(geometry.in_shape).astype(np.float32)
    further, expected, scale = finish(generator, reference(x, weight, geometry), epilogue, axis=1)

    def plan(target) -> Plan:
        """A layout picked at random from all that the cost model weighs."""
        candidates = list(layouts(canonical(geometry), target))
        layout = candidates[int(np.random.default_rng(number).integers(len(candidates)))]
        return plan_channels(weight.reshape(geometry.groups, -1, weight[0].size), epilogue, layout, "")

    return Case(f"{number}-{density}-{kind}", plan, [x, *further], expected, scale)


CASES = [make_case(number, geometry) for number, geometry in enumerate(3 * GEOMETRIES)]


class TestEveryLayout(KernelTests):
    cases = CASES
