"""Convolutions and transposed convolutions compute what ONNX says, and touch nothing outside of their buffers."""

import itertools

import numpy as np
import pytest
from harness import TARGETS, Case, KernelTests, check_same_kernels, finish, make_epilogue, sparse, variant

from lwc_compiler.kernels.conv import plan_conv, plan_conv_transpose
from lwc_compiler.kernels.kernel import Plan
from lwc_compiler.kernels.layer import ConvGeometry, Epilogue
from lwc_compiler.targets.target import Target


def conv(batch, channels, size, out, kernel, strides=0, pads=0, dilations=0, groups=1) -> ConvGeometry:
    n = len(size)
    strides, dilations, pads = strides or (1,) * n, dilations or (1,) * n, pads or (0,) * 2 * n
    return ConvGeometry(batch, channels, size, out, kernel, strides, pads, dilations, groups)


def transposed(batch, channels, size, out, kernel, strides=0, pads=0, dilations=0, groups=1, extra=()) -> ConvGeometry:
    n = len(size)
    strides, dilations, pads = strides or (1,) * n, dilations or (1,) * n, pads or (0,) * 2 * n
    return ConvGeometry(batch, channels, size, out, kernel, strides, pads, dilations, groups, True, extra)


CONVOLUTIONS = [
    # one dimension
    conv(1, 3, (17,), 5, (3,), pads=(1, 1)),
    conv(2, 4, (33,), 8, (5,), (2,), (2, 1)),
    conv(3, 6, (29,), 6, (7,), (3,), (0, 5), groups=6),
    conv(1, 8, (50,), 12, (3,), pads=(4, 0), dilations=(2,), groups=2),
    conv(1, 5, (21,), 1, (1,)),
    conv(2, 3, (40,), 4, (5,), (2,), (-3, -2)),
    conv(1, 2, (1,), 3, (3,), pads=(1, 1)),
    # pointwise
    conv(1, 16, (7, 7), 24, (1, 1)),
    conv(2, 13, (14, 9), 9, (1, 1)),
    conv(3, 32, (1, 1), 16, (1, 1)),
    conv(1, 64, (5, 3), 31, (1, 1)),
    conv(2, 8, (9, 11), 12, (1, 1), (2, 2)),
    conv(1, 6, (5, 7), 7, (1, 1), (3, 2), (1, 0, 0, 2)),
    conv(1, 12, (6, 5), 20, (1, 1), groups=4),
    # 3 x 3
    conv(1, 3, (32, 32), 16, (3, 3), (2, 2), (0, 0, 1, 1)),
    conv(1, 16, (14, 14), 16, (3, 3), pads=(1, 1, 1, 1)),
    conv(2, 8, (13, 17), 12, (3, 3), pads=(1, 1, 1, 1)),
    conv(1, 24, (7, 7), 20, (3, 3), pads=(1, 1, 1, 1)),
    conv(3, 7, (5, 5), 10, (3, 3), pads=(1, 1, 1, 1)),
    conv(1, 64, (9, 9), 8, (3, 3), pads=(1, 1, 1, 1)),
    conv(1, 9, (19, 6), 5, (3, 3), (1, 2), (2, 0, 0, 1)),
    conv(2, 6, (15, 23), 8, (3, 3), (3, 3), (1, 2, 2, 1)),
    conv(1, 5, (16, 21), 6, (3, 3), (2, 1), (3, 2, 1, 4), (2, 3)),
    conv(1, 4, (12, 40), 1, (3, 3), pads=(1, 1, 1, 1)),
    conv(1, 8, (11, 70), 4, (3, 3), pads=(0, 1, 2, 1)),
    conv(1, 6, (12, 15), 7, (3, 3), pads=(-1, -2, -2, -1)),
    conv(1, 6, (12, 15), 7, (3, 3), (2, 2), (2, -1, -2, 3)),
    conv(2, 5, (10, 10), 4, (3, 3), pads=(5, 6, 5, 6), dilations=(3, 3)),
    conv(1, 4, (6, 6), 5, (3, 3), (1, 1), (4, 4, 4, 4)),
    # tiny planes
    conv(1, 20, (1, 1), 12, (3, 3), pads=(1, 1, 1, 1)),
    conv(2, 11, (2, 2), 6, (3, 3), pads=(1, 1, 1, 1)),
    conv(3, 9, (3, 3), 8, (3, 3)),
    conv(1, 8, (3, 2), 9, (3, 3), (2, 2), (1, 1, 1, 1)),
    conv(1, 10, (1, 3), 7, (1, 3), pads=(0, 1, 0, 1)),
    conv(2, 6, (3, 1), 4, (3, 1), pads=(1, 0, 1, 0)),
    # larger and mixed kernels
    conv(1, 3, (31, 29), 8, (7, 7), (2, 2), (3, 3, 3, 3)),
    conv(1, 4, (13, 13), 6, (5, 5), pads=(2, 2, 2, 2)),
    conv(2, 3, (11, 18), 5, (5, 3), (1, 3), (2, 1, 1, 0)),
    conv(1, 6, (9, 20), 4, (1, 7), pads=(0, 3, 0, 3)),
    conv(1, 6, (20, 9), 4, (7, 1), pads=(3, 0, 3, 0)),
    conv(1, 2, (8, 8), 3, (8, 8)),
    # input channels in several blocks, many output channels, a tile that takes more than 16-bit offsets
    conv(1, 150, (20, 21), 36, (3, 3), pads=(1, 1, 1, 1)),
    conv(1, 331, (14, 14), 70, (1, 1)),
    conv(2, 130, (12, 12), 10, (3, 3), (2, 2), (1, 1, 1, 1), groups=2),
    conv(1, 70, (16, 30), 300, (3, 3), pads=(1, 1, 1, 1)),
    conv(1, 2, (300, 310), 3, (3, 3), pads=(1, 1, 1, 1), dilations=(140, 140)),
    # groups
    conv(1, 16, (14, 14), 16, (3, 3), pads=(1, 1, 1, 1), groups=16),
    conv(2, 10, (15, 9), 10, (3, 3), (2, 2), (1, 1, 1, 1), groups=10),
    conv(1, 7, (11, 13), 14, (5, 5), pads=(2, 2, 2, 2), groups=7),
    conv(1, 12, (8, 10), 8, (3, 3), pads=(1, 1, 1, 1), groups=4),
    conv(1, 6, (12, 12), 6, (3, 3), (1, 1), (2, 2, 2, 2), (2, 2), groups=6),
    conv(1, 9, (3, 3), 9, (3, 3), pads=(1, 1, 1, 1), groups=9),
    # three dimensions
    conv(1, 3, (5, 6, 7), 4, (3, 3, 3), pads=(1, 1, 1, 1, 1, 1)),
    conv(2, 4, (4, 7, 9), 6, (2, 3, 3), (2, 2, 2), (0, 1, 1, 1, 0, 1)),
    conv(1, 6, (5, 5, 5), 6, (3, 1, 3), (1, 2, 1), (1, 0, 2, 1, 0, 0), (2, 1, 2), groups=3),
    conv(1, 8, (3, 4, 5), 5, (1, 1, 1)),
    conv(1, 4, (6, 5, 8), 4, (3, 3, 3), (1, 1, 1), (-1, 1, 1, -1, 1, 1), groups=4),
    conv(1, 5, (1, 1, 1), 3, (3, 3, 3), pads=(1,) * 6),
]

TRANSPOSED = [
    transposed(1, 3, (9,), 4, (3,), (2,), (1, 1), extra=(1,)),
    transposed(2, 4, (13,), 5, (5,), (3,), (0, 2)),
    transposed(1, 4, (8,), 4, (4,), (2,), (1, 1), groups=4),
    transposed(1, 3, (7,), 2, (1,), (3,)),
    transposed(1, 8, (7, 7), 6, (2, 2), (2, 2)),
    transposed(2, 5, (6, 9), 4, (4, 4), (2, 2), (1, 1, 1, 1)),
    transposed(1, 6, (5, 5), 3, (3, 3), (2, 2), (1, 1, 1, 1), extra=(1, 1)),
    transposed(1, 4, (6, 5), 7, (3, 3), pads=(1, 1, 1, 1)),
    transposed(1, 3, (8, 8), 1, (3, 3)),
    transposed(2, 6, (5, 7), 9, (3, 5), (1, 2), (0, 1, 2, 3), extra=(0, 1)),
    transposed(1, 4, (6, 6), 4, (3, 3), (3, 2), (1, 0, 0, 1), (2, 3)),
    transposed(1, 5, (4, 4), 3, (2, 2), (3, 3), extra=(1, 2)),
    transposed(3, 12, (1, 1), 5, (4, 4)),
    transposed(1, 7, (2, 3), 4, (5, 5), (2, 2), (2, 2, 2, 2), extra=(1, 0)),
    transposed(1, 8, (6, 6), 8, (4, 4), (2, 2), (1, 1, 1, 1), groups=8),
    transposed(2, 6, (5, 4), 4, (3, 3), (2, 1), (1, 1, 0, 0), groups=2),
    transposed(1, 4, (5, 5), 3, (3, 3), (2, 2), (-1, 0, 1, -2)),
    transposed(1, 4, (9, 33), 2, (1, 1), (2, 2)),
    transposed(1, 3, (3, 4, 5), 4, (3, 3, 3), (2, 2, 2), (1,) * 6, extra=(1, 1, 1)),
    transposed(1, 4, (3, 3, 4), 4, (2, 3, 2), (1, 2, 3), (0, 1, 0, 0, 0, 1), groups=2),
]


def windows(geometry: ConvGeometry, position: tuple[int, ...], size: tuple[int, ...]) -> tuple[slice, ...]:
    """Where a kernel position lies, `size` times, in the padded and strided plane."""
    axes = zip(position, geometry.dilations, geometry.strides, size, strict=True)
    return (..., *(slice(k * d, k * d + (count - 1) * s + 1, s) for k, d, s, count in axes))


def padded(array: np.ndarray, begins: tuple[int, ...], ends: tuple[int, ...]) -> np.ndarray:
    """Zeros around the spatial dimensions; negative numbers crop."""
    pairs = [(0, 0), (0, 0), *zip(begins, ends, strict=True)]
    array = array[tuple(slice(max(-b, 0), size - max(-e, 0)) for (b, e), size in zip(pairs, array.shape, strict=True))]
    return np.pad(array, [(max(b, 0), max(e, 0)) for b, e in pairs])


def reference(x: np.ndarray, weight: np.ndarray, geometry: ConvGeometry) -> np.ndarray:
    """The sums, in float64, position by position of the kernel."""
    g, n = geometry.groups, len(geometry.in_size)
    x, weight = x.astype(np.float64), weight.astype(np.float64)
    begins, ends = geometry.pads[:n], geometry.pads[n:]
    positions = itertools.product(*map(range, geometry.kernel))
    if geometry.transposed:
        spans = [(k - 1) * d + 1 for k, d in zip(geometry.kernel, geometry.dilations, strict=True)]
        extra = geometry.output_padding or (0,) * n
        axes = zip(geometry.in_size, geometry.strides, spans, extra, strict=True)
        full = np.zeros((geometry.batch, geometry.out_channels, *((i - 1) * s + span + e for i, s, span, e in axes)))
        grouped = x.reshape(geometry.batch, g, -1, *geometry.in_size)
        weight = weight.reshape(g, geometry.in_channels // g, -1, *geometry.kernel)
        for position in positions:
            part = np.einsum("ngc...,gco->ngo...", grouped, weight[(..., *position)])
            full[windows(geometry, position, geometry.in_size)] += part.reshape(*full.shape[:2], *geometry.in_size)
        return padded(full, tuple(-b for b in begins), tuple(-e for e in ends))
    x = padded(x, begins, ends)
    y = np.zeros(geometry.out_shape)
    weight = weight.reshape(g, geometry.out_channels // g, -1, *geometry.kernel)
    for position in positions:
        part = x[windows(geometry, position, geometry.out_size)].reshape(geometry.batch, g, -1, *geometry.out_size)
        y += np.einsum("ngc...,goc->ngo...", part, weight[(..., *position)]).reshape(y.shape)
    return y


def weight_shape(geometry: ConvGeometry) -> tuple[int, ...]:
    first, second = geometry.out_channels, geometry.in_channels
    if geometry.transposed:
        first, second = second, first
    return (first, second // geometry.groups, *geometry.kernel)


def make_case(number: int, geometry: ConvGeometry, density: object, kind: str, plan=None) -> Case:
    """A case with random numbers; `plan` is called as `plan_conv`, which it is when it is not given."""
    generator = np.random.default_rng(number)
    g = geometry
    weight = sparse(generator, weight_shape(g), density, axis=1 if g.transposed else 0)
    epilogue = make_epilogue(generator, kind, g.out_channels)
    x = generator.standard_normal(g.in_shape).astype(np.float32)
    further, expected, scale = finish(generator, reference(x, weight, g), epilogue, axis=1)
    assert expected.shape == g.out_shape
    plan = plan or (plan_conv_transpose if g.transposed else plan_conv)
    sizes = ["x".join(map(str, v)) for v in (g.in_shape, g.kernel, g.strides)]
    name = f"{number}-{'transposed' if g.transposed else 'conv'}-{sizes[0]}-to-{g.out_channels}-kernel-{sizes[1]}"
    name += f"-strides-{sizes[2]}-groups-{g.groups}-{density}-{kind}"
    return Case(name, lambda target: plan(weight, geometry, epilogue, target), [x, *further], expected, scale)


def random_layout(number: int, layouts, planned):
    """A planner that takes one at random of the layouts that the cost model weighs.

    Args:
        number: the seed.
        layouts: gives the layouts for a geometry and a target.
        planned: makes a plan of a weight, its geometry, an epilogue and a layout.
    """

    def plan(weight: np.ndarray, geometry: ConvGeometry, epilogue: Epilogue, target: Target) -> Plan:
        candidates = list(layouts(geometry, target))
        layout = candidates[int(np.random.default_rng(number).integers(len(candidates)))]
        return planned(weight, geometry, epilogue, layout)

    return plan


def random_layouts(geometries: list[ConvGeometry], shift: int, layouts, planned) -> list[Case]:
    """A case for every geometry, each with a layout at random; `shift` as of `variant`."""
    return [
        make_case(number, g, *variant(number, shift), random_layout(number, layouts, planned))
        for number, g in enumerate(geometries)
    ]


def make_cases() -> list[Case]:
    chosen = []
    for i, geometry in enumerate(CONVOLUTIONS):
        # every other geometry twice, with unlike densities
        chosen += [(geometry, *variant(i, shift)) for shift in ((0, 2) if i % 2 else (0,))]
    for i, geometry in enumerate(TRANSPOSED):
        chosen += [(geometry, *variant(i, shift)) for shift in ((1, 3) if i % 2 else (1,))]
    return [make_case(number, *case) for number, case in enumerate(chosen)]


CASES = make_cases()


class TestConvolutions(KernelTests):
    cases = CASES


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
@pytest.mark.parametrize(
    "geometry",
    [
        conv(1, 16, (14, 14), 16, (3, 3), pads=(1, 1, 1, 1)),
        conv(2, 13, (14, 9), 9, (1, 1)),
        conv(1, 16, (14, 14), 16, (3, 3), pads=(1, 1, 1, 1), groups=16),
        transposed(2, 5, (6, 9), 4, (4, 4), (2, 2), (1, 1, 1, 1)),
    ],
    ids=["full", "pointwise", "depthwise", "transposed"],
)
@pytest.mark.parametrize("density", [0.1, 1.0])
def test_layers_alike_share_their_kernels(target, geometry: ConvGeometry, density: float) -> None:
    plan = plan_conv_transpose if geometry.transposed else plan_conv
    weight = sparse(np.random.default_rng(0), weight_shape(geometry), density, 1 if geometry.transposed else 0)
    # other places of the zeros, but as many single ones and as many blocks: no reason to choose another format
    other = 2 * (np.flip(weight, 0) if geometry.transposed else np.flip(weight, range(1, weight.ndim)))
    check_same_kernels(*(plan(np.ascontiguousarray(w), geometry, Epilogue(), target) for w in (weight, other)))
