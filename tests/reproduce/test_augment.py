"""Deformed images are near the original, each in its own way, and the same for the same generator."""

import numpy as np
import pytest

from lwc_compiler.reproduce.augment import deform, deform_slightly, sample


def blobs(count):
    """Images with a bright square of 6 x 6 pixels in the middle."""
    images = np.zeros((count, 28, 28), np.float32)
    images[:, 11:17, 11:17] = 1
    return images


def places(shift):
    """Every pixel of two images, moved by `shift`."""
    grid = np.stack(np.meshgrid(np.arange(28), np.arange(28), indexing="ij")).reshape(2, 1, 784)
    return np.repeat(grid + np.reshape(shift, (2, 1, 1)), 2, axis=1).astype(np.float32)


def test_sampling_where_pixels_are_gives_the_image():
    images = np.random.default_rng(0).random((2, 28, 28), np.float32)
    np.testing.assert_array_equal(sample(images, places((0, 0))), images.reshape(2, 784))


@pytest.mark.parametrize("shift", [(3, -2), (-5, 0), (40, 1)])
def test_sampling_elsewhere_moves_the_image_and_shows_background_beyond(shift):
    images = np.random.default_rng(1).random((2, 28, 28), np.float32)
    expected = np.zeros_like(images)
    for row in range(28):
        for column in range(28):
            if 0 <= row + shift[0] < 28 and 0 <= column + shift[1] < 28:
                expected[:, row, column] = images[:, row + shift[0], column + shift[1]]
    np.testing.assert_array_equal(sample(images, places(shift)).reshape(expected.shape), expected)


def test_sampling_between_pixels_is_bilinear():
    images = np.zeros((2, 28, 28), np.float32)
    images[:, 5, 7], images[:, 6, 8] = 1, 2
    found = sample(images, places((0.25, 0.5))).reshape(images.shape)
    # At (5.25, 7.5): a quarter of row 6 and half of column 8.
    assert found[0, 5, 7] == pytest.approx(0.75 * 0.5 * 1 + 0.25 * 0.5 * 2)


@pytest.mark.parametrize("shape", [(40, 784), (40, 1, 28, 28)])
def test_images_are_deformed_a_little(shape):
    before = blobs(40).reshape(shape)
    arrays = deform({"pixels": before}, np.random.default_rng(0))
    after = arrays["pixels"]
    assert after.shape == shape
    assert after.dtype == np.float32
    assert after.min() >= 0
    assert after.max() <= 1
    images = after.reshape(-1, 28, 28)
    assert len({image.tobytes() for image in images}) == 40
    # The square has 36 pixels: it grows or shrinks, but neither vanishes nor fills the image.
    sizes = images.sum(axis=(1, 2))
    assert 36 / 3 < sizes.min() < 36 < sizes.max() < 36 * 3
    assert 36 * 0.9 < sizes.mean() < 36 * 1.1
    centre = np.einsum("nrc,r->n", images, np.arange(28)) / sizes
    assert np.abs(centre - 13.5).max() < 4
    assert np.abs(centre.mean() - 13.5) < 1
    np.testing.assert_array_equal(before, blobs(40).reshape(shape))


def test_generator_decides():
    pixels = blobs(5).reshape(5, 784)
    first, again, other = (deform({"pixels": pixels}, np.random.default_rng(seed))["pixels"] for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_other_arrays_stay():
    extra = np.arange(3)
    assert deform({"pixels": blobs(3), "extra": extra}, np.random.default_rng(0))["extra"] is extra


def test_slightly_is_half_as_much():
    # A pixel whose brightness is its column tells where it was taken from.
    ramp = np.tile(np.arange(28, dtype=np.float32), (200, 28, 1)).reshape(200, 784)
    moved = [
        (function({"pixels": ramp}, np.random.default_rng(0))["pixels"] - ramp).reshape(-1, 28, 28)[:, 8:20, 8:20]
        for function in (deform, deform_slightly)
    ]
    largely, slightly = (float(np.abs(each).mean()) for each in moved)
    assert slightly == pytest.approx(largely / 2, rel=0.02)
