"""Convolutions of images, or blocks of one, that lie side by side compute what they compute one by one."""

from dataclasses import replace

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
    geometry = replace(alone, images=images)
    x = generator.standard_normal(geometry.in_shape).astype(np.float32)
    turned = [reference(x[..., i].swapaxes(1, 2), weight, alone).swapaxes(1, 2) for i in range(images)]
    further, expected, scale = finish(generator, np.stack(turned, -1), epilogue, axis=2)
    assert expected.shape == geometry.out_shape
    name = f"{number}-{'x'.join(map(str, (*alone.in_shape, *alone.kernel)))}-{images}-{kind}"
    return Case(name, lambda target: plan_conv(weight, geometry, epilogue, target), [x, *further], expected, scale)


BLOCKS = [
    # the geometry of a whole image; blocks are 1 / grid of it
    conv(1, 24, (28, 28), 20, (3, 3), pads=(1, 1, 1, 1)),
    conv(1, 9, (16, 32), 7, (3, 3), (2, 2), (1, 1, 1, 1)),
    conv(1, 9, (24, 16), 7, (3, 3), (2, 2), (0, 0, 1, 1)),
    conv(1, 6, (16, 16), 7, (5, 5), (1, 2), (2, 2, 2, 2)),
    conv(1, 70, (8, 16), 26, (1, 1)),
    conv(1, 8, (8, 16), 12, (1, 1), (2, 2)),
    conv(1, 6, (16, 24), 4, (3, 3), pads=(2, 2, 2, 2), dilations=(2, 2)),
    conv(1, 12, (8, 8), 12, (3, 3), pads=(1, 1, 1, 1), groups=12),
    conv(1, 150, (20, 40), 30, (3, 3), pads=(1, 1, 1, 1)),
]


def block_case(number: int, whole: ConvGeometry, grid: tuple[int, int], images: int) -> Case:
    """Blocks of some images as the image in float64, as (H / down, O, W / across, images x blocks)."""
    generator = np.random.default_rng(number)
    density, kind = variant(number, 2)
    weight = sparse(generator, weight_shape(whole), density, axis=0)
    epilogue = make_epilogue(generator, kind, whole.out_channels)
    down, across = grid
    geometry = replace(
        whole, in_size=(whole.in_size[0] // down, whole.in_size[1] // across), images=images * down * across, grid=grid
    )

    def blocks(y: np.ndarray) -> np.ndarray:
        n, c, h, w = y.shape
        y = y.reshape(n, c, down, h // down, across, w // across).transpose(3, 1, 5, 0, 2, 4)
        return y.reshape(1, h // down, c, w // across, n * down * across)

    x = generator.standard_normal((images, whole.in_channels, *whole.in_size)).astype(np.float32)
    result = blocks(reference(x, weight, replace(whole, batch=images)))
    further, expected, scale = finish(generator, result, epilogue, axis=2)
    assert expected.shape == geometry.out_shape
    name = f"{number}-{images}x{down}x{across}-{'x'.join(map(str, (*whole.in_shape, *whole.kernel)))}-{kind}"
    return Case(
        name, lambda target: plan_conv(weight, geometry, epilogue, target), [blocks(x), *further], expected, scale
    )


EIGHT, SIXTEEN = (
    [make_case(number, geometry, images) for number, geometry in enumerate(GEOMETRIES)] for images in (8, 16)
)
EIGHT += [block_case(number, whole, (2, 4), 1) for number, whole in enumerate(BLOCKS)]
EIGHT += [block_case(number, whole, (2, 2), 2) for number, whole in enumerate(BLOCKS)]
SIXTEEN += [block_case(number, whole, (4, 4), 1) for number, whole in enumerate(BLOCKS)]


class TestEightLanes(KernelTests):
    cases = EIGHT


class TestSixteenLanes(KernelTests):
    cases = SIXTEEN
    vector_bits = 512
