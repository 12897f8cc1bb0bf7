"""Minimal filtering is right in every layout, whether the cost model likes it or not."""

import numpy as np
import pytest
from harness import KernelTests
from test_conv import conv, random_layouts

from lwc_compiler.kernels.kernel import Plan
from lwc_compiler.kernels.layer import ConvGeometry, Epilogue
from lwc_compiler.kernels.winograd import matrices
from lwc_compiler.kernels.winograd_plan import WinogradLayout, layouts, plan_winograd

GEOMETRIES = [
    conv(1, 16, (14, 14), 32, (3, 3), pads=(1, 1, 1, 1)),
    conv(2, 20, (9, 13), 33, (3, 3), pads=(1, 1, 1, 1)),
    conv(3, 17, (5, 4), 18, (3, 3), pads=(0, 1, 2, 0)),
    conv(5, 24, (7, 7), 70, (3, 3), pads=(1, 1, 1, 1)),
    conv(1, 130, (20, 21), 40, (3, 3), pads=(1, 1, 1, 1)),
    conv(2, 16, (1, 5), 16, (3, 3), pads=(1, 1, 1, 1)),
    conv(1, 31, (19, 1), 50, (3, 3), pads=(1, 1, 1, 1)),
    conv(1, 33, (12, 38), 17, (3, 3), pads=(-1, -2, -2, -1)),
    conv(2, 16, (6, 35), 47, (3, 3), pads=(3, 4, 2, 5)),
    conv(2, 20, (10, 14), 33, (4, 4), pads=(2, 2, 1, 1)),
]


def planned(weight: np.ndarray, _geometry: ConvGeometry, epilogue: Epilogue, layout: WinogradLayout) -> Plan:
    return plan_winograd(weight, epilogue, layout)


CASES = random_layouts(4 * GEOMETRIES, 3, layouts, planned)


class TestEveryLayout(KernelTests):
    cases = CASES


@pytest.mark.parametrize(("square", "kernel"), [(2, 3), (4, 3), (3, 4)])
def test_matrices_filter_a_signal(square: int, kernel: int) -> None:
    """A^T [(G g) * (B^T d)] is the signal's correlation with the filter."""
    generator = np.random.default_rng(square)
    signal, taps = generator.standard_normal(square + kernel - 1), generator.standard_normal(kernel)
    backward, weights, forward = matrices(square, kernel)
    assert np.allclose(backward @ ((weights @ taps) * (forward @ signal)), np.correlate(signal, taps))
    for matrix in (backward, forward):
        assert np.array_equal(matrix, matrix.astype(np.float32))
