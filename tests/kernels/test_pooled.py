"""A dense convolution and the max pooling after it in one kernel are what they are one by one, in every layout."""

from dataclasses import replace

import numpy as np
import pytest
from harness import Case, KernelTests, finish, make_epilogue, sparse
from test_conv import conv, reference, weight_shape

from lwc_compiler.kernels.layer import ConvGeometry, Epilogue
from lwc_compiler.kernels.pooled import Pool
from lwc_compiler.kernels.pooled_plan import layouts, plan_layout, plan_pooled
from lwc_compiler.targets import find_target

LAYERS = [
    (conv(1, 3, (31, 29), 64, (7, 7), (2, 2), (3, 3, 3, 3)), Pool((3, 3), (2, 2), (1, 1), (8, 8)), "bias_relu"),
    (conv(2, 4, (12, 40), 33, (3, 3), pads=(1, 1, 1, 1)), Pool((2, 2), (2, 2), (0, 0), (6, 20)), "bias_leaky_relu"),
    (conv(1, 6, (9, 13), 48, (3, 2), (2, 1), groups=2), Pool((3, 3), (1, 1), (1, 1), (4, 12)), "none"),
    (conv(1, 5, (14, 19), 17, (3, 3), pads=(1, 1, 1, 1)), Pool((3, 2), (2, 3), (0, 1), (7, 7)), "bias_gelu"),
    (conv(3, 2, (8, 20), 70, (5, 3)), Pool((4, 5), (3, 2), (2, 2), (2, 9)), "hard_swish"),
]


def pooled(y: np.ndarray, pool: Pool) -> np.ndarray:
    """What ONNX's MaxPool computes."""
    (height, width), (down, across), (top, left), (rows, columns) = pool.kernel, pool.strides, pool.pads, pool.out_size
    more = [max(0, (n - 1) * s + k) for n, s, k in zip(pool.out_size, pool.strides, pool.kernel, strict=True)]
    padded = np.full((*y.shape[:2], top + y.shape[2] + more[0], left + y.shape[3] + more[1]), -np.inf)
    padded[:, :, top : top + y.shape[2], left : left + y.shape[3]] = y
    result = np.empty((*y.shape[:2], rows, columns))
    for i in range(rows):
        for j in range(columns):
            window = padded[:, :, i * down : i * down + height, j * across : j * across + width]
            result[:, :, i, j] = window.max(axis=(2, 3))
    return result


def make_case(number: int, which: int) -> Case:
    """A layer in one of the layouts the planner weighs."""
    generator = np.random.default_rng(10 * number + which)
    geometry, pool, kind = LAYERS[number]
    weight = sparse(generator, weight_shape(geometry), 1.0, axis=0)
    epilogue = make_epilogue(generator, kind, geometry.out_channels)
    x = generator.standard_normal(geometry.in_shape).astype(np.float32)
    _, y, scale = finish(generator, reference(x, weight, geometry), epilogue, axis=1)

    def plan(target):
        every = list(layouts(geometry, pool, target))
        taps = weight.reshape(geometry.groups, geometry.out_channels // geometry.groups, -1)
        return plan_layout(taps, epilogue, every[which * (len(every) - 1) // 4])

    return Case(f"{number}-layout-{which}", plan, [x], pooled(y, pool), scale)


CASES = [make_case(number, which) for number in range(len(LAYERS)) for which in range(5)]


class TestEveryLayout(KernelTests):
    cases = CASES


@pytest.mark.parametrize("threads", [1, 2, 7])
def test_threads_share_the_tiles_evenly(threads: int) -> None:
    geometry = conv(1, 3, (224, 224), 64, (7, 7), (2, 2), (3, 3, 3, 3))
    target = replace(find_target("x86-64-v4"), threads=threads)
    weight = np.ones((64, 3, 7, 7), np.float32)
    plan = plan_pooled(weight, geometry, Epilogue(), Pool((3, 3), (2, 2), (1, 1), (56, 56)), target)
    assert plan is not None
    assert plan.steps[0].kernel.tiles % threads == 0


def test_what_the_kernel_does_not_compute() -> None:
    plain, pool = conv(1, 4, (15, 15), 32, (3, 3)), Pool((3, 3), (2, 2), (0, 0), (6, 6))

    def planned(geometry: ConvGeometry = plain, pool: Pool = pool, residual: bool = False) -> bool:
        weight = np.ones((geometry.out_channels, geometry.in_channels, *geometry.kernel), np.float32)
        return plan_pooled(weight, geometry, Epilogue(residual=residual), pool, find_target("x86-64-v4")) is not None

    assert planned()
    assert not planned(residual=True)
    assert not planned(pool=Pool((1, 1), (2, 2), (0, 0), (7, 7)))
    assert not planned(conv(1, 4, (15, 15), 32, (1, 1)))
