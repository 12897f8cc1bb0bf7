"""Predicts the time of every way to compute a convolution, and picks the fastest.

The time is a sum of counts (vector loads, multiply-adds, line splits, vectors copied, ...), each with a weight in
cycles. The weights were fitted to 1,800 timings of ResNet-50, VGG-16 and MobileNet layers on one core of a Zen 4
(relative error 6 to 9 %); in the median the tiling they pick is within 2 % of the best one timed. Nothing is measured
when a model is compiled: the same layer gives the same code everywhere.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from lwc_compiler.kernels.taps import LINE, Problem, TapLayout, Tiling

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from lwc_compiler.targets.target import Target

_DENSE_ROWS = (8, 6, 4, 3, 2)
_NEARLY_DENSE = 0.9  # from this density on, leaving weights out gains nothing
_BLOCK_ROWS = (2, 4, 8)
_THREADS = 4  # that a layer's tiles should suffice for


@dataclass(frozen=True)
class Choice:
    """A format and a tiling, the phrase that says why, and the `cycles` predicted."""

    format: str
    tiling: Tiling
    why: str
    cycles: float = 0.0


def choose(problem: Problem, weight: NDArray[np.float32], target: Target) -> Choice:
    """Picks format and tiling of a convolution.

    Args:
        problem: its geometry.
        weight: (groups, out_channels, taps).
        target: what the code is for.
    """
    kept = weight != 0
    density = float(kept.mean())
    tiling, time = best_tiling(problem, target, "dense", 1.0)
    options = [(time, "dense", tiling)]
    for rows in () if density > _NEARLY_DENSE else (1, *_BLOCK_ROWS):
        blocks = _block_density(kept, rows)
        if rows > problem.out_channels or (rows > 1 and blocks > 1.5 * density):
            continue  # mostly filling: the zeros are not in blocks of this height
        # Rounded, so that layers of nearly equal density share a kernel.
        name = "csr" if rows == 1 else f"block{rows}"
        tiling, time = best_tiling(problem, target, name, float(np.ceil(blocks * 25) / 25))
        options.append((time, name, tiling))
    options.sort(key=lambda option: option[0])
    time, name, tiling = options[0]
    others = ", ".join(f"{other} {slower / time:.1f}x" for slower, other, _ in options[1:])
    why = f"density {density:.3g}; predicted " + (f"fastest (others: {others})" if others else f"{time:.3g} cycles")
    return Choice(name, tiling, why, time)


def _block_density(kept: NDArray[np.bool_], rows: int) -> float:
    """Share of the rows x 1 blocks that hold a weight."""
    channels = kept.shape[1] // rows * rows
    if not channels:
        return 1.0
    return float(kept[:, :channels].reshape(kept.shape[0], -1, rows, kept.shape[2]).any(axis=2).mean())


@lru_cache(maxsize=4096)
def best_tiling(problem: Problem, target: Target, format_name: str, density: float) -> tuple[Tiling, float]:
    """The tiling of a format with the fewest `cycles`, and these.

    A tiling whose tiles four threads could not share evenly has to be faster by a tenth of what they would lose.

    Args:
        problem: the layer.
        target: what the code is for.
        format_name: `dense`, `csr` or `block<rows>`.
        density: share of the row groups' taps that are stored.
    """
    best, time, least = None, 0.0, np.inf
    for tiling in tilings(problem, target, format_name):
        tiles, spent = TapLayout(problem, tiling).tiles, cycles(problem, tiling, target, density)
        uneven = -(-tiles // _THREADS) * _THREADS / tiles - 1
        if spent * (1 + 0.1 * uneven) < least:
            best, time, least = tiling, spent, spent * (1 + 0.1 * uneven)
    assert best is not None, "one vector of one row of pixels is always a tiling"
    return best, time


def tilings(problem: Problem, target: Target, format_name: str) -> Iterator[Tiling]:
    """Every sensible tiling of a format."""
    rows = {"dense": _DENSE_ROWS, "csr": (1,)}.get(format_name) or (int(format_name.removeprefix("block")),)
    if problem.out_channels == 1:
        rows = (1,)
    wide = target.vector_bits // 32
    for r in rows:
        if r > problem.out_channels:
            continue
        for lanes in dict.fromkeys((wide, 8)):
            # The sums stay in registers, beside the broadcast weights and a vector of input.
            most = max(1, (target.vector_registers - 4 if r == 1 else target.vector_registers * 3 // 4) // r)
            vectors = -(-problem.width.out // lanes)
            for across in sorted({-(-vectors // n) for n in range(1, vectors + 1)}):
                for down in range(1, min(problem.height.out, most // across) + 1):
                    if -(-problem.height.out // -(-problem.height.out // down)) == down:
                        yield from _blockings(problem, target, Tiling(lanes, r, down, across, 1, 1))


def _blockings(problem: Problem, target: Target, tiling: Tiling) -> Iterator[Tiling]:
    """The tiling with the input channels and the output channels cut in every sensible way."""
    one = TapLayout(problem, tiling)
    units = one.tiles // one.chunks
    parts = sorted({min(one.row_groups, count) for count in (1, 2, 4, 8)}) if units < 2 * _THREADS else [1]
    for kilobytes in (12, 20, 32, 64):
        blocks = -(-problem.planes // max(1, min(problem.planes, (kilobytes << 8) // one.plane)))
        channels = -(-problem.planes // blocks)
        for count in parts:
            chunk = -(-one.row_groups // count)
            sums = 4 * chunk * tiling.rows * tiling.tile_rows * tiling.tile_vectors * tiling.lanes
            if blocks > 1 and sums > target.l2_bytes // 4:
                chunk = max(1, chunk * (target.l2_bytes // 4) // sums)
            yield replace(tiling, channels=channels, chunk=chunk)


def cycles(problem: Problem, tiling: Tiling, target: Target, density: float) -> float:
    """Predicted cycles of the whole layer on one core.

    Args:
        problem: the layer.
        tiling: how it is cut.
        target: what the code is for.
        density: share of the row groups' taps that are stored.
    """
    layout, p, t = TapLayout(problem, tiling), problem, tiling
    unit = t.lanes / 16  # cycles of one vector multiply-add
    vectors = t.tile_rows * t.tile_vectors
    positions = p.height.kernel * p.width.kernel
    first = layout.offsets[:positions, None, None] + np.arange(t.tile_rows)[:, None] * layout.pitch
    split = float(((first + np.array(layout.starts)) % LINE + t.lanes > LINE).mean())
    missed = max(0.0, 1 - 0.75 * target.l1_bytes / (4 * layout.packed))
    tall = t.tile_vectors == 1 and t.tile_rows > 1  # all vectors of a tap lie in the same banks
    if t.rows > 1:
        unit = max(unit, target.vector_bits / 512)  # where vectors can be wider, narrow ones are no faster
    if t.rows == 1:
        load = (0.87 if t.lanes == 16 else 0.53) + unit * (0.76 * split + 0.1 * tall + 0.71 * missed)
        tap = 0.93 + max(vectors * load, 2.0)
        reload, store, overhead = 3.3, 2.3, 1.7
    else:
        load = (0.06 if t.lanes == 16 else 0.0) + unit * (0.1 * split + 0.1 * tall + 0.21 * missed)
        tap = 0.37 + 0.9 * max(t.rows * vectors * unit, 3.0) + vectors * load + (0.14 * t.rows if t.lanes < 16 else 0)
        reload, store, overhead = 1.1, 1.7, 0.0
    taps = p.planes * positions * density
    # Weights that do not fit the level-2 cache come from further away for every tile, 64 bytes in about a cycle.
    if 4 * taps * t.rows * layout.row_groups * p.groups > target.l2_bytes / 2:
        tap += t.rows * 4 / 64
    sums = t.rows * vectors * unit
    group = taps * tap + overhead * layout.blocks + sums * (store + reload * (layout.blocks - 1))
    copied = p.planes * layout.plane / LINE * (4.0 if p.width.stride == 1 else 8.5)
    return layout.tiles * (copied + 40) + layout.tiles / layout.chunks * layout.row_groups * group
