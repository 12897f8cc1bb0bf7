"""Convolutions of images that lie side by side compute what they compute one by one."""

import numpy as np
from harness import Case, KernelTests, finish, make_epilogue, sparse, variant
from test_conv import conv, reference, weight_shape

from lwc_compiler.kernels.conv import plan_conv
from lwc_compiler.kernels.layer import ConvGeometry

GEOMETRIES = [
    conv(1, 24, (7, 7), 20, (3, 3), pads=(1, 1, 1, 1)),
    conv(1, 40, (14, 14), 33, (3, 3), pads=(1, 1, 1, 1)),
    conv(2, 70, (9, 11), 26, (1, 1)),
    conv(1, 300, (5, 7), 40, (1, 1)),
    conv(1, 16, (1, 1), 31, (1, 1)),
    conv(1, 8, (9, 11), 12, (1, 1), (2, 2)),
    conv(1, 9, (13, 40), 5, (3, 3), (2, 2), (1, 1, 1, 1)),
    conv(1, 9, (14, 12), 5, (3, 3), (2, 2), (0, 0, 1, 1)),
    conv(1, 6, (19, 6), 5, (3, 2), (1, 3), (2, 0, 0, 1)),
    conv(1, 5, (16, 21), 6, (3, 3), (2, 1), (3, 2, 1, 4), (2, 3)),
    conv(1, 6, (12, 15), 7, (3, 3), (2, 2), (2, -1, -2, 3)),
    conv(1, 16, (14, 14), 16, (3, 3), pads=(1, 1, 1, 1), groups=16),
    conv(2, 10, (15, 9), 10, (3, 3), (2, 2), (1, 1, 1, 1), groups=10),
    conv(1, 12, (8, 10), 8, (5, 5), pads=(2, 2, 2, 2), groups=4),
    conv(1, 150, (20, 21), 36, (3, 3), pads=(1, 1, 1, 1)),
    conv(1, 11, (2, 2), 6, (3, 3), pads=(1, 1, 1, 1)),
]


def make_case(number: int, alone: ConvGeometry, images: int) -> Case:
    """The images one by one in float64, as (H, O, W, images)."""
    generator = np.random.default_rng(number)
    density, kind = variant(number, 1)
    weight = sparse(generator, weight_shape(alone), density, axis=0)
    epilogue = make_epilogue(generator, kind, alone.out_channels)
    geometry = ConvGeometry(
        alone.batch, alone.in_channels, alone.in_size, alone.out_channels, alone.kernel, alone.strides, alone.pads,
        alone.dilations, alone.groups, images=images,
    )  # fmt: skip
    x = generator.standard_normal(geometry.in_shape).astype(np.float32)
    turned = [reference(x[..., i].swapaxes(1, 2), weight, alone).swapaxes(1, 2) for i in range(images)]
    further, expected, scale = finish(generator, np.stack(turned, -1), epilogue, axis=2)
    assert expected.shape == geometry.out_shape
    name = f"{number}-{'x'.join(map(str, (*alone.in_shape, *alone.kernel)))}-{images}-{kind}"
    return Case(name, lambda target: plan_conv(weight, geometry, epilogue, target), [x, *further], expected, scale)


EIGHT, SIXTEEN = (
    [make_case(number, geometry, images) for number, geometry in enumerate(GEOMETRIES)] for images in (8, 16)
)


class TestEightImages(KernelTests):
    cases = EIGHT


class TestSixteenImages(KernelTests):
    cases = SIXTEEN
    vector_bits = 512
