"""Weight sharing: the weights of a layer take a few values, found by k-means (Han et al. 2016, section 3)."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

_ROUNDS = 1000


def share_weights(values: NDArray[Any], bits: int) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Shared values for the weights that are not zero, and which weight takes which.

    The weights are `np.where(values == 0, 0, codebook[codes])`: zeros are pruned, stay zero and have no share in the
    codebook. When no more than 2^bits values are different, they are the codebook. Otherwise it is k-means from
    centroids evenly spaced between the least and the greatest value, the initialization that keeps the rare large
    weights best (Han et al. 2016, section 3.2); the result depends on nothing but the arguments.

    Args:
        values: finite floats of any shape.
        bits: 1 to 8.

    Returns:
        codes: uint8 of the shape of `values`, indices into the codebook; 0 where `values` is zero.
        codebook: float32 (at most 2^bits,), ascending, each used; empty when all values are zero.
    """
    if not np.isfinite(values).all():
        raise ValueError("weights that hold NaN or Inf cannot be shared")
    kept = values != 0
    distinct, counts = np.unique(values[kept], return_counts=True)
    if distinct.size == 0:
        return np.zeros(values.shape, np.uint8), np.zeros(0, np.float32)
    if distinct.size <= 1 << bits:
        firsts, codebook = np.arange(distinct.size), distinct.astype(np.float32)
    else:
        firsts, codebook = _k_means(distinct.astype(np.float64), counts, 1 << bits)
    codes = np.searchsorted(distinct[firsts[1:]], values, side="right").astype(np.uint8)
    codes[~kept] = 0
    return codes, codebook


def _k_means(
    distinct: NDArray[np.float64], counts: NDArray[np.int64], clusters: int
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Lloyd's algorithm in one dimension, where a cluster is a range of the sorted values.

    Args:
        distinct: the values, ascending.
        counts: how often each occurs.
        clusters: how many there may be; those without values are left out.

    Returns:
        firsts: index of the first value of each cluster.
        means: float32, of the values of each cluster.
    """
    counted = np.concatenate([[0], np.cumsum(counts)])
    summed = np.concatenate([[0], np.cumsum(distinct * counts)])
    centroids = np.linspace(distinct[0], distinct[-1], clusters)
    bounds = np.zeros(0, np.int64)
    for _ in range(_ROUNDS):
        inner = np.searchsorted(distinct, (centroids[1:] + centroids[:-1]) / 2)
        before, bounds = bounds, np.concatenate([[0], inner, [distinct.size]])
        if np.array_equal(before, bounds):
            break
        sizes = np.diff(counted[bounds])
        centroids = np.where(sizes > 0, np.diff(summed[bounds]) / np.maximum(sizes, 1), centroids)
    used = np.diff(bounds) > 0
    return bounds[:-1][used], centroids[used].astype(np.float32)
