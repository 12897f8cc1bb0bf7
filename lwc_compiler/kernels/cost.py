"""Predicts the time of every way to compute a convolution, and picks the fastest.

Times are in cycles of one core, for a processor that does one fused multiply-add of its widest vectors a cycle and
loads one such vector a cycle (Zen 4 and, at half the width, every AVX2 processor since Haswell). The constants were
fitted to measurements on Zen 4. Nothing is measured here: the same layer gives the same code everywhere.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from lwc_compiler.kernels.taps import Problem, TapLayout, Tiling

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from lwc_compiler.targets.target import Target

_BLOCK_ROWS = (8, 4, 2)  # r x 1 blocks that have a kernel
_UNITS = 8  # units of work that a layer is cut into where it costs little, for threads to share


@dataclass(frozen=True)
class Choice:
    """A format and a tiling, and the phrase that says why."""

    format: str
    tiling: Tiling
    why: str


def choose(problem: Problem, weight: NDArray[np.float32], target: Target) -> Choice:
    """Picks format and tiling of a convolution.

    Args:
        problem: its geometry.
        weight: (groups, out_channels, taps).
        target: what the code is for.
    """
    kept = weight != 0
    nonzero = int(kept.sum())
    options = []
    tiling, cycles = best_tiling(problem, target, "dense", 1.0)
    options.append((cycles, "dense", tiling))
    taps = weight.shape[2]
    for rows in (*_BLOCK_ROWS, 1):
        if problem.out_channels < rows or not _vectors(target, rows):
            continue
        groups = -(-problem.out_channels // rows)
        first = np.minimum(np.arange(groups) * rows, problem.out_channels - rows)
        present = kept[:, first].copy()
        for i in range(1, rows):
            present |= kept[:, first + i]
        blocks = int(present.sum())
        if rows > 1 and blocks * rows > 2 * nonzero:
            continue  # more filling than weights: the zeros are not in blocks of this height
        density = blocks / (problem.groups * groups * taps)
        # A little quantised: layers with nearly equal density share their kernel.
        density = float(np.ceil(density * 50) / 50)
        tiling, cycles = best_tiling(problem, target, "csr" if rows == 1 else f"block{rows}", density)
        options.append((cycles, "csr" if rows == 1 else f"block{rows}", tiling))
    cycles, name, tiling = min(options, key=lambda option: option[0])
    others = ", ".join(f"{other} {time / cycles:.2g}x" for time, other, _ in options if other != name)
    density = nonzero / kept.size
    return Choice(name, tiling, f"predicted fastest at density {density:.3g}" + (f" ({others})" if others else ""))


@lru_cache(maxsize=4096)
def best_tiling(problem: Problem, target: Target, format_name: str, density: float) -> tuple[Tiling, float]:
    """The fastest tiling of a format by `cycles`, and its cycles."""
    rows = [1] if format_name == "csr" else [int(format_name[5:])] if format_name != "dense" else [6, 4, 3, 2, 1]
    best: tuple[Tiling, float] | None = None
    for tiling in _tilings(problem, target, [r for r in rows if r <= problem.out_channels]):
        time = cycles(problem, tiling, target, density)
        if best is None or time < best[1]:
            best = tiling, time
    assert best is not None
    return best


def _vectors(target: Target, rows: int) -> int:
    """Most vectors of a tile: sums, one vector of input, and the broadcast weights stay in registers."""
    return min(28, (target.vector_registers - 2 - (rows if rows > 1 else 0)) // rows)


def _tilings(problem: Problem, target: Target, rows: list[int]) -> Iterator[Tiling]:
    wide = target.vector_bits // 32
    for r in rows:
        most = _vectors(target, r)
        for lanes in dict.fromkeys((wide, 8)):
            vectors = -(-problem.width.out // lanes)
            for across in sorted({-(-vectors // n) for n in range(1, vectors + 1)}):
                for down in range(1, problem.height.out + 1):
                    if across * down > most:
                        break
                    if -(-problem.height.out // -(-problem.height.out // down)) == down:
                        yield from _blockings(problem, target, Tiling(lanes, r, down, across, 1, 1))


def _blockings(problem: Problem, target: Target, tiling: Tiling) -> Iterator[Tiling]:
    one = TapLayout(problem, tiling)
    groups = one.row_groups
    units = one.tiles // one.chunks
    chunks = {1, min(groups, max(1, -(-_UNITS // units)))}
    for kilobytes in (12, 20, 32, 64):
        blocks = -(-problem.planes // max(1, min(problem.planes, (kilobytes << 8) // one.plane)))
        channels = -(-problem.planes // blocks)
        for count in chunks if units < _UNITS else {1}:
            chunk = -(-groups // count)
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
        density: kept / all taps of a group of rows.
    """
    layout = TapLayout(problem, tiling)
    p, t = problem, tiling
    full = target.vector_bits // 32
    vector = max(0.5, t.lanes / 16) if full >= 16 else 0.5  # of one multiply-add, or one load
    vectors = t.tile_rows * t.tile_vectors
    positions = layout.offsets[: p.height.kernel * p.width.kernel, None, None] % 16
    starts = (np.arange(t.tile_rows)[:, None] * layout.pitch + np.array(layout.starts)) % 16
    split = float(((positions + starts) % 16 + t.lanes > 16).mean())
    crowded = 1.0 + min(0.25, max(0.0, (4 * layout.packed / target.l1_bytes - 0.375)) * 0.4)
    load = vector * (1.2 if t.lanes < 16 else 1.0) + 0.25 * split
    if t.tile_vectors == 1 and t.tile_rows > 1:
        load *= 1.2  # the rows of a tall tile lie in the same banks
    if t.rows == 1:
        tap = 0.5 + max(vectors * load * crowded, 4.0)
    else:
        tap = max(t.rows * vectors * vector, 4.0) * 1.03 + 0.1 * vectors * load * crowded + 0.5
    taps = p.planes * p.height.kernel * p.width.kernel * density
    moved = 0.25 * vectors * t.rows + 2 * vectors * t.rows * vector  # start from the bias, store the result
    if layout.blocks > 1:
        moved += 3 * vectors * t.rows * vector * (layout.blocks - 1)
    group = taps * tap + moved + (14 if density < 1 else 6) * layout.blocks
    row = 8 + layout.pitch * (0.2 if p.width.stride == 1 else 0.35)
    copied = p.planes * (4 + row * (layout.plane // layout.pitch))
    each = layout.chunks * copied + layout.row_groups * group
    return layout.tiles / layout.chunks * (each + 40)
