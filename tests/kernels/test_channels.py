"""Dense convolutions with channels in the vectors are right in every layout, whether the cost model likes it or not."""

import numpy as np
from harness import KernelTests
from test_conv import conv, random_layouts

from lwc_compiler.kernels.channel_plan import ChannelLayout, layouts, plan_channels
from lwc_compiler.kernels.kernel import Plan
from lwc_compiler.kernels.layer import ConvGeometry, Epilogue
from lwc_compiler.kernels.tap_plan import canonical

GEOMETRIES = [
    conv(1, 16, (7, 7), 32, (3, 3), pads=(1, 1, 1, 1)),
    conv(2, 20, (9, 13), 33, (1, 1), (2, 2)),
    conv(3, 6, (14, 5), 70, (3, 2), (2, 1), (0, 1, 2, 0)),
    conv(1, 24, (6, 31), 34, (3, 3), pads=(1, 2, 0, 1), groups=2),
    conv(2, 5, (8, 19), 17, (5, 3)),
    conv(1, 7, (1, 12), 16, (3, 3), pads=(1, 1, 1, 1)),
]


def planned(weight: np.ndarray, geometry: ConvGeometry, epilogue: Epilogue, layout: ChannelLayout) -> Plan:
    return plan_channels(weight.reshape(geometry.groups, -1, weight[0].size), epilogue, layout)


def every_layout(geometry: ConvGeometry, target):
    return layouts(canonical(geometry), target)


CASES = random_layouts(5 * GEOMETRIES, 2, every_layout, planned)


class TestEveryLayout(KernelTests):
    cases = CASES
