"""Masks by score: which weights of which layer are kept, for a criterion and a structure.

Everything here works on the matrix view of a weight (rows = output channels, columns = inputs of one channel; see
`lwc_compiler.passes.sites.Site`). The score of a weight is |w|, or |w| x the norm of its input where a layer has norms.
Weights are pruned in units: single weights, or blocks of R consecutive rows in one column (fewer in the last block when
the rows are no multiple of R). A unit's score is the root mean square of its weights' scores: one threshold means the
same for every structure and for smaller last blocks.

Rules that hold for every criterion:
- A weight that is already zero or masked stays pruned: pruning again can only remove more.
- Equal scores are settled by position: the earlier unit is kept, in row-major order, layer after layer.
- A layer keeps at least its highest unit: a layer without weights cuts the network in two.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lwc_compiler.errors import OptionError
from lwc_compiler.recipe.options import PruneOptions
from lwc_compiler.sparsity.allocation import Budget, Curve, allocate

Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Structure:
    """The pattern that kept weights follow.

    Attributes:
        block_rows: R of `Rx1`: weights of R consecutive output channels and the same input are kept or pruned together.
        group_kept: N of `N:M`: at most N are kept of each group of M consecutive input channels of a row, at each
            position of the kernel; 0 without groups. The last group is shorter when the channels are no multiple of
            M; N of it may be kept.
        group_size: M of `N:M`; 0 without groups.
    """

    block_rows: int = 1
    group_kept: int = 0
    group_size: int = 0

    @property
    def highest_density(self) -> float:
        """The density that this structure can reach in any layer."""
        return self.group_kept / self.group_size if self.group_size else 1.0


def parse_structure(text: str) -> Structure:
    """`element`, `Rx1` or `N:M` as a `Structure` (the spellings `recipe.Structure` admits)."""
    if ":" in text:
        kept, size = map(int, text.split(":"))
        return Structure(group_kept=kept, group_size=size)
    return Structure() if text == "element" else Structure(block_rows=int(text.removesuffix("x1")))


@dataclass(frozen=True)
class Layer:
    """What the choice of a mask rests on.

    Attributes:
        matrix: the weights, float32 (rows, columns).
        kept: the weights not pruned before, bool (rows, columns).
        shape: shape of the weight as stored, for the Erdős-Rényi-kernel rule.
        row_groups: ranges of equally many rows that read different inputs (convolution groups); no block crosses them.
        norms: norm of the input that each column is multiplied with, float32 (row_groups, columns); None: the score of
            a weight is |w| alone. The criterion `std` takes none.
        curve: what pruning this layer costs, for the criterion `sensitivity`.
        positions: consecutive columns that are of the same input channel: the positions of a convolution's kernel.
    """

    matrix: NDArray[np.float32]
    kept: Mask
    shape: tuple[int, ...]
    row_groups: int = 1
    norms: NDArray[np.float32] | None = None
    curve: Curve | None = None
    positions: int = 1

    @property
    def scores(self) -> NDArray[np.float32]:
        """The score of each weight, (rows, columns)."""
        magnitudes: NDArray[np.float32] = np.abs(self.matrix)
        if self.norms is None:
            return magnitudes
        return magnitudes * np.repeat(self.norms, len(self.matrix) // self.row_groups, axis=0)


@dataclass(frozen=True)
class Choice:
    """What one layer keeps.

    Attributes:
        mask: kept weights, bool (rows, columns).
        requested: the density asked of this layer alone; None when the criterion sets none (`global`, `std`).
    """

    mask: Mask
    requested: float | None


def choose_masks(layers: Mapping[str, Layer], options: PruneOptions) -> dict[str, Choice]:
    """The masks of `layers` by `options.criterion` and `options.structure`; the `keep` options play no part here.

    Densities are kept / all weights. With `uniform`, `per-layer`, `erdos-renyi-kernel` and `sensitivity` each layer
    meets its density to within one unit, with `global` the whole does; a layer with fewer weights left than that keeps
    what it has. `N:M` first keeps the N highest of each group, then the criterion prunes further among them.

    Args:
        layers: name -> layer; with `per-layer`, exactly the names in `options.densities`; with `sensitivity`, each has
            a curve.
        options: criterion, structure, and the sparsity, quality or densities that the criterion takes.

    Raises:
        OptionError: a density above what an `N:M` structure can keep is requested, or below what the curves reach.
    """
    structure = parse_structure(options.structure)
    for name, density in ({"": _density(options)} if options.sparsity is not None else options.densities).items():
        _check_reachable(density, structure, options.structure, name)
    units = {name: _units(layer, structure) for name, layer in layers.items()}
    if options.criterion == "std":
        masks = {
            name: unit.mask_of(unit.scores >= _std_threshold(layers[name], options)) for name, unit in units.items()
        }
    elif options.criterion == "global":
        masks = _global_masks(units, _density(options))
    else:
        densities = _densities(layers, units, options)
        return {
            name: Choice(unit.mask_of(_highest(unit.scores, unit.sizes, densities[name] * unit.total)), densities[name])
            for name, unit in units.items()
        }
    return {name: Choice(mask, None) for name, mask in masks.items()}


def erdos_renyi_kernel(
    shapes: Mapping[str, tuple[int, ...]], density: float, limits: Mapping[str, float]
) -> dict[str, float]:
    """Densities proportional to (in + out + kh + kw) / (in·out·kh·kw) that give `density` over all the weights.

    The rule of Evci et al. 2020 (RigL), section 3. A layer whose density would pass its limit gets the limit, and the
    others share the rest.

    Args:
        shapes: layer -> shape of its weight.
        density: kept / all over all layers, in (0, 1].
        limits: layer -> the highest density it can have.
    """
    limited: set[str] = set()
    scale = 0.0
    raw = {name: sum(shape) / math.prod(shape) for name, shape in shapes.items()}
    while len(limited) < len(shapes):
        budget = density * sum(map(math.prod, shapes.values()))
        budget -= sum(limits[name] * math.prod(shapes[name]) for name in limited)
        scale = max(budget, 0.0) / sum(raw[name] * math.prod(shapes[name]) for name in shapes.keys() - limited)
        over = {name for name in shapes.keys() - limited if scale * raw[name] > limits[name]}
        if not over:
            break
        limited |= over
    return {name: limits[name] if name in limited else scale * raw[name] for name in shapes}


@dataclass(frozen=True)
class _Units:
    """The units of one layer.

    Attributes:
        scores: (blocks of rows, columns); infinite for the unit that is always kept, -1 for units with nothing to keep.
        sizes: weights that can be kept in each unit, of the shape of `scores`; None: 1 in each unit.
        heights: rows of each block of rows.
        available: weights that can be kept, bool (rows, columns).
    """

    scores: NDArray[Any]
    sizes: NDArray[np.int64] | None
    heights: NDArray[np.int64]
    available: Mask

    @property
    def total(self) -> int:
        """Number of weights of the layer, pruned ones included."""
        return self.available.size

    def mask_of(self, chosen: Mask) -> Mask:
        """The kept weights when the units `chosen` (of the shape of `scores`) are kept."""
        return np.repeat(chosen, self.heights, axis=0) & self.available


def _units(layer: Layer, structure: Structure) -> _Units:
    available, weight_scores = layer.kept & (layer.matrix != 0), layer.scores
    if structure.group_size:
        available &= _group_mask(np.where(available, weight_scores, 0), structure, layer.positions)
    rows = len(layer.matrix)
    group_rows = rows // layer.row_groups
    starts = np.arange(rows).reshape(layer.row_groups, group_rows)[:, :: structure.block_rows].ravel()
    heights = np.diff(starts, append=rows)
    sizes = None
    if structure.block_rows == 1:
        scores = np.where(available, weight_scores, np.float32(-1))
    else:
        sizes = np.add.reduceat(available, starts, dtype=np.int64)
        squares = np.square(np.where(available, weight_scores, 0), dtype=np.float64)
        scores = np.where(sizes > 0, np.sqrt(np.add.reduceat(squares, starts) / heights[:, None]), -1)
    if available.any():
        scores.flat[np.argmax(scores)] = np.inf
    return _Units(scores, sizes, heights, available)


def _group_mask(magnitudes: NDArray[Any], structure: Structure, positions: int) -> Mask:
    """The N highest of each group of M consecutive input channels at a position; `magnitudes` is (rows, columns)."""
    grouped = in_groups(magnitudes, structure, positions, -1)
    order = np.argsort(-grouped, axis=2, kind="stable")[:, :, : structure.group_kept]
    mask = np.zeros(grouped.shape, bool)
    np.put_along_axis(mask, order, True, axis=2)
    return mask.reshape(len(mask), -1)[:, : magnitudes.shape[1]]


def in_groups(matrix: NDArray[Any], structure: Structure, positions: int, filling: float) -> NDArray[Any]:
    """A matrix as (rows, groups, M, positions), its last group filled up.

    Args:
        matrix: (rows, columns); the columns are input channels, each at all positions of the kernel.
        structure: with groups.
        positions: of the kernel.
        filling: stands for channels that there are not.
    """
    size = structure.group_size * positions
    filled = ((0, 0), (0, -matrix.shape[1] % size))
    padded = np.pad(matrix, filled, constant_values=filling)
    return padded.reshape(len(matrix), -1, structure.group_size, positions)


def _highest(scores: NDArray[Any], sizes: NDArray[np.int64] | None, weights: float) -> Mask:
    """The highest units that together hold as near to `weights` weights as units allow, as a bool array like `scores`.

    Units with an infinite score are always among them, units with a negative one never.
    """
    flat = scores.ravel()
    chosen = np.zeros(flat.size, bool)
    always, candidates = int(np.isposinf(flat).sum()), int((flat >= 0).sum())
    if sizes is None:
        count = min(max(round(weights), always), candidates)
        if count:
            threshold = np.partition(flat, flat.size - count)[flat.size - count]
            chosen = flat > threshold
            chosen[np.flatnonzero(flat == threshold)[: count - int(chosen.sum())]] = True
    elif candidates:
        order = np.argsort(-flat, kind="stable")[:candidates]
        held = np.cumsum(sizes.ravel()[order])
        # The first prefix that reaches the request, or the one before it where that is nearer.
        last = min(int(np.searchsorted(held, weights)), candidates - 1)
        if last > 0 and weights - held[last - 1] < held[last] - weights:
            last -= 1
        chosen[order[: max(last + 1, always)]] = True
    return chosen.reshape(scores.shape)


def _global_masks(units: dict[str, _Units], density: float) -> dict[str, Mask]:
    scores = np.concatenate([unit.scores.ravel() for unit in units.values()])
    sizes = [unit.sizes.ravel() for unit in units.values() if unit.sizes is not None]
    total = sum(unit.total for unit in units.values())
    chosen = _highest(scores, np.concatenate(sizes) if sizes else None, density * total)
    parts = np.split(chosen, np.cumsum([unit.scores.size for unit in units.values()])[:-1])
    return {
        name: unit.mask_of(part.reshape(unit.scores.shape))
        for (name, unit), part in zip(units.items(), parts, strict=True)
    }


def _std_threshold(layer: Layer, options: PruneOptions) -> float:
    """`quality` x the standard deviation of the weights that are left (Han et al. 2015, section 3)."""
    left = layer.matrix[layer.kept & (layer.matrix != 0)]
    return (options.quality or 0.0) * float(np.std(left, dtype=np.float64)) if left.size else 0.0


def _density(options: PruneOptions) -> float:
    return round(1.0 - (options.sparsity or 0.0), 12)  # 1 - 0.9 is 0.1 for the reader of a report


def _densities(layers: Mapping[str, Layer], units: dict[str, _Units], options: PruneOptions) -> dict[str, float]:
    if options.criterion == "per-layer":
        return options.densities
    if options.criterion == "uniform":
        return dict.fromkeys(layers, _density(options))
    limits = {name: int(unit.available.sum()) / unit.total for name, unit in units.items()}
    if options.criterion == "sensitivity":
        curves = {name: layer.curve for name, layer in layers.items() if layer.curve is not None}
        return allocate(curves, Budget("density", _density(options)), limits)
    return erdos_renyi_kernel({name: layer.shape for name, layer in layers.items()}, _density(options), limits)


def _check_reachable(density: float, structure: Structure, spelling: str, name: str) -> None:
    limit = structure.highest_density
    # Sparsities are decimal fractions: 1 - 0.75 must count as reachable by 1:4.
    if density > limit + 1e-9:
        where = f" for {name!r}" if name else ""
        raise OptionError(
            f"a density of {density:g} (sparsity {1 - density:g}) is requested{where}, but structure '{spelling}' "
            f"keeps at most {limit:g} of the weights; ask for a sparsity of at least {1 - limit:g} or for "
            "another structure"
        )
