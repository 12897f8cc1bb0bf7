"""Random deformations of images of 28 x 28 pixels, for training: an affine map and a smooth displacement each.

`deform` and `deform_slightly` fit `RetrainOptions.augment`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

_SIDE = 28
# Of `deform`: the largest of each, drawn uniformly from plus and minus that.
_SHIFT = 2.0  # pixels
_ANGLE = np.deg2rad(10)
_SCALE = 0.1
_SHEAR = 0.1
# Elastic deformation (Simard et al. 2003, section 2): displacements are drawn on a coarse grid.
_GRID = 6
_DISPLACEMENT = 1.0  # standard deviation at a grid point, in pixels
_PIECE = 32  # images at a time: what they need fits the cache, which makes it three times faster


def deform(arrays: dict[str, NDArray[Any]], generator: np.random.Generator) -> dict[str, NDArray[Any]]:
    """Deforms the images of a batch, each in its own way.

    Args:
        arrays: `pixels`, (batch, 784) or (batch, 1, 28, 28) float32, background 0.
        generator: where the randomness comes from: the same state gives the same images.

    Returns:
        The same arrays, with `pixels` replaced.
    """
    return _deformed(arrays, generator, 1.0)


def deform_slightly(arrays: dict[str, NDArray[Any]], generator: np.random.Generator) -> dict[str, NDArray[Any]]:
    """Deforms the images of a batch half as much as `deform`, which see."""
    return _deformed(arrays, generator, 0.5)


def _deformed(
    arrays: dict[str, NDArray[Any]], generator: np.random.Generator, strength: float
) -> dict[str, NDArray[Any]]:
    images = arrays["pixels"].reshape(-1, _SIDE, _SIDE)
    positions = _grids(len(images), generator, strength) @ _INTERPOLATION
    pieces = (slice(start, start + _PIECE) for start in range(0, len(images), _PIECE))
    moved = np.concatenate([sample(images[piece], positions[:, piece]) for piece in pieces])
    return {**arrays, "pixels": moved.reshape(arrays["pixels"].shape)}


def _grids(count: int, generator: np.random.Generator, strength: float) -> NDArray[np.float32]:
    """(2, count, grid points) row and column of the image that each point of a grid over the result is taken from."""

    def draw(largest: float, *shape: int) -> NDArray[np.float64]:
        drawn: NDArray[np.float64] = generator.uniform(-largest, largest, (*shape, count))
        return strength * drawn

    angle, shear, height, width = draw(_ANGLE), draw(_SHEAR), 1 + draw(_SCALE), 1 + draw(_SCALE)
    cos, sin = np.cos(angle), np.sin(angle)
    affine = np.array([[height * cos, height * (shear * cos - sin)], [width * sin, width * (shear * sin + cos)]])
    centre = (_SIDE - 1) / 2
    axis = np.linspace(-centre, centre, _GRID)
    points = np.stack(np.meshgrid(axis, axis, indexing="ij")).reshape(2, -1)
    positions: NDArray[np.float64] = np.einsum("ijn,jp->inp", affine, points) + draw(_SHIFT, 2)[:, :, None] + centre
    positions += generator.normal(0, strength * _DISPLACEMENT, positions.shape)
    return positions.astype(np.float32)


def _interpolation() -> NDArray[np.float32]:
    """(grid points, pixels) bilinear weights; they keep an affine map of the grid points affine."""
    axis = np.maximum(1 - np.abs(np.linspace(0, _GRID - 1, _SIDE) - np.arange(_GRID)[:, None]), 0)
    weights: NDArray[np.float64] = np.kron(axis, axis)
    return weights.astype(np.float32)


_INTERPOLATION = _interpolation()


def sample(images: NDArray[np.float32], positions: NDArray[np.float32]) -> NDArray[np.float32]:
    """(images, pixels): each image, (28, 28), at its `positions`, (2, images, pixels), bilinear; outside is 0."""
    padded = np.pad(images, ((0, 0), (1, 2), (1, 2)))
    width = padded.shape[2]
    positions = np.clip(positions + np.float32(1), 0, np.float32(_SIDE + 1))
    corner = positions.astype(np.intp)
    down, right = positions - corner.astype(np.float32)
    index = corner[0] * width + corner[1]
    index += np.arange(len(images))[:, None] * padded[0].size
    flat = padded.ravel()
    top, bottom = flat.take(index), flat.take(index + width)
    top += (flat.take(index + 1) - top) * right
    bottom += (flat.take(index + width + 1) - bottom) * right
    result: NDArray[np.float32] = top + (bottom - top) * down
    return result
