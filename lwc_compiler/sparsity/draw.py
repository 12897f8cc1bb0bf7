"""Random weights with zeros in a structure: what a pruned layer looks like to a kernel, before anything is trained."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from lwc_compiler.sparsity.masks import in_groups, parse_structure


def random_weights(
    shape: tuple[int, int], density: float, structure: str, seed: int = 0, positions: int = 1
) -> NDArray[np.float32]:
    """A float32 matrix of which each unit of the structure is kept with the probability `density`; nothing kept is 0.

    Args:
        shape: (output channels, inputs of one).
        density: kept / all weights, in (0, 1]; an `N:M` structure keeps at most N / M.
        structure: as in `PruneOptions`.
        seed: of the generator.
        positions: of the kernel; each input channel has as many columns.
    """
    rows, columns = shape
    pattern = parse_structure(structure)
    generator = np.random.default_rng(seed)
    drawn = generator.random((-(-rows // pattern.block_rows), columns), np.float32)
    if pattern.group_size:
        # The N smallest numbers of a group are those that may be kept; spread over [0, N / M) again.
        ranks = in_groups(drawn, pattern, positions, 1).argsort(axis=2).argsort(axis=2)
        among = (ranks < pattern.group_kept).reshape(rows, -1)[:, :columns]
        again = generator.random(drawn.shape, np.float32) * pattern.highest_density
        drawn = np.where(among, again, np.float32(1))
    kept = drawn < density
    drawn += 1
    drawn *= kept
    return drawn if pattern.block_rows == 1 else np.repeat(drawn, pattern.block_rows, axis=0)[:rows]
