"""Predicts the time of every way to compute a convolution, and picks the fastest.

The time is a sum of counts (vector loads, multiply-adds, line splits, vectors copied, ...), each with a weight in
cycles. For x86-64 the weights were fitted to 2,600 timings of ResNet-50, VGG-16 and MobileNet layers on one core of an
Intel Xeon with AVX-512 (median error 15 % for single non-zeros, 11 % for dense layers and blocks; the fastest of the
four tilings that are predicted to be best is in the mean within 3 and 5 % of the fastest timed). It decides alone where
nothing can be measured; elsewhere it says what is worth a measurement (`codegen/tune.py`).

For other cores, on which nothing was timed, the weights follow from the target's `Core`: what it multiplies, loads and
starts in a cycle. `python -m benchmarks.arm_inner_loops` compares them with LLVM's models of the pipelines.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from lwc_compiler.kernels import in_order, short_loop
from lwc_compiler.kernels.choice import uneven
from lwc_compiler.kernels.tap_layout import LINE, Problem, TapLayout, Tiling
from lwc_compiler.kernels.tilings import THREADS, pairs_loads, tilings

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from lwc_compiler.targets.target import Core, Target


@dataclass(frozen=True)
class Pace:
    """How many times as long as on the cores that a planner's constants were fitted to something takes.

    Attributes:
        multiply: a multiply-add.
        memory: a load, a store, a vector copied.
        far: bytes from beyond the level-2 cache.
    """

    multiply: float
    memory: float
    far: float


def pace(target: Target) -> Pace:
    """The pace of a target's core; the constants are those of cores with two multiply-adds and two loads a cycle."""
    core = target.core
    return Pace(2 / core.multiplies, 2 / core.loads, core.far_line / _FITTED_LINE) if core else Pace(1.0, 1.0, 1.0)


@dataclass(frozen=True)
class _Weights:
    """Cycles of everything the model counts.

    Attributes:
        tap: a tap's offset and loop.
        load: a vector of input.
        split: more, when it crosses a cache line.
        missed: more, when it comes from the level-2 cache.
        full: how fast the level-1 cache fills, by the share of it that a tile takes, and ...
        room: ... the share of it that does no harm.
        latency: at least, of a tap's multiply-adds.
        multiply: a multiply-add of several rows.
        broadcast: a weight of several rows.
        far_weight: a weight from beyond the level-2 cache.
        block: starting a row in a block of channels.
        group: a group of rows.
        reload: a vector of sums kept between blocks of channels.
        far_reload: the same, when they do not fit the level-1 cache.
        store: a vector of output.
        far_store: the same, when the output does not fit the level-2 cache.
        copy: 16 floats of input, copied.
        copy_strided: the same with a stride.
        far_copy: more, as a share, when the input does not fit the level-2 cache, and ...
        far_input: ... for each of its cache lines, once: the rows that tiles share are then in the level-2 cache.
        tile: a tile.
    """

    tap: float
    load: float
    split: float
    missed: float
    full: float
    room: float
    latency: float
    far_weight: float
    block: float
    group: float
    reload: float
    far_reload: float
    store: float
    far_store: float
    copy: float
    copy_strided: float
    far_copy: float
    multiply: float = 0.0
    broadcast: float = 0.0
    tile: float = 0.0
    far_input: float = 0.0


def _fitted(wide: dict[str, float], narrow: dict[str, float], both: dict[str, float]) -> tuple[_Weights, _Weights]:
    return _Weights(**narrow, **both), _Weights(**wide, **both)


def _derived(core: Core, rows: int) -> _Weights:
    """The weights of a core, for so many rows that share their taps."""
    load, instruction, vector = 1 / core.loads, 1 / core.issue, core.near_line / 4
    # What a load and the multiply-adds that wait for it take, beside a list's start and end: in the order of the
    # program one after the other, elsewhere at the same time.
    if core.in_order:
        taken, tap = (load + 1 / core.multiplies if rows == 1 else load), 2 * load + _LOAD_TO_USE
    else:
        taken, tap = (max(load, 1 / core.multiplies) if rows == 1 else 0.0), 2 * load if rows == 1 else 0.5
    wait = vector if core.in_order else vector / 2
    return _Weights(
        tap=tap,
        load=taken,
        split=load / 2,
        missed=wait,
        full=1.32,
        room=0.889,
        latency=core.latency,
        far_weight=core.far_line * (4 + 2 / rows) / 64,
        block=8 + 8 * instruction,
        group=8 * instruction,
        reload=2 * load,
        far_reload=2 * load + 2 * wait,
        store=load + 3 * instruction,
        far_store=load + core.far_line / 4,
        copy=8 * load + 2 * instruction,
        copy_strided=12 * load + 4 * instruction,
        far_copy=0.0,
        far_input=core.far_line,
        multiply=1 / core.multiplies,
        broadcast=0.0 if core.by_lane or not core.in_order else load,
        tile=30 * instruction,
    )


def issued(target: Target, instructions: float) -> float:
    """Cycles of so many instructions beside those that they wait for others."""
    return _ISSUED * instructions / target.core.issue if target.core and pairs_loads(target) else 0.0


def tap_cycles(core: Core, vectors: int) -> float:
    """Cycles of a single non-zero that multiplies so many vectors of inputs in the level-1 cache."""
    weights = _derived(core, 1)
    return weights.tap + vectors * weights.load


_LIST = 4  # instructions of a tap for its offset, and for the loop
_LOAD_TO_USE = 4.0  # cycles that a core that works in order waits for a load
_ISSUED = 0.5  # of the time in which an instruction starts, even where all wait for something else
_FITTED_LINE = 8.0  # cycles of a cache line from beyond the level-2 cache, on the cores that were timed
_NEARLY_DENSE = 0.9  # from this density on, leaving weights out gains nothing
_BLOCK_ROWS = (2, 4, 8)
_RANKED = 16  # tilings of a format that are worth a measurement


# Of single non-zeros and of rows that share their taps, each for vectors of 8 and of 16.
_SINGLE = _fitted(
    wide={"load": 0.676, "split": 0.69, "missed": 0.798},
    narrow={"load": 0.54, "split": 0.262, "missed": 0.264},
    both={
        "tap": 1.01,
        "full": 1.32,
        "room": 0.889,
        "latency": 1.48,
        "far_weight": 0.303,
        "block": 10.3,
        "group": 2.69,
        "reload": 0.86,
        "far_reload": 2.88,
        "store": 3.58,
        "far_store": 8.5,
        "copy": 4.9,
        "copy_strided": 4.96,
        "far_copy": 0.327,
        "tile": 0,
    },
)
_BLOCK = _fitted(
    wide={"load": 0.209, "split": 0.077, "missed": 0.38},
    narrow={"load": 0, "split": 0.079, "missed": 0.142},
    both={
        "tap": 0.428,
        "full": 1.04,
        "room": 0.708,
        "latency": 2.25,
        "far_weight": 0.083,
        "block": 2.95,
        "group": 3.57,
        "reload": 1.87,
        "far_reload": 2.31,
        "store": 3.2,
        "far_store": 9.52,
        "copy": 4.97,
        "copy_strided": 3.32,
        "far_copy": 0.694,
        "tile": 1.53,
        "multiply": 0.459,
        "broadcast": 0.305,
    },
)


# Without vectors: instructions of the code for Cortex-M7, counted.
_SCALAR_REACH = 255  # float32 from an address on that a load reaches without an addition
_SCALAR_COPIES = {"copy": 64.0, "copy_strided": 64.0, "far_copy": 0.0}
_SCALAR_SINGLE = _Weights(
    **_SCALAR_COPIES, tap=5, load=2, split=0, missed=0, full=0, room=0, latency=4, far_weight=0, block=16, group=16,
    reload=2, far_reload=2, store=2, far_store=2, tile=40,
)  # fmt: skip
_SCALAR_BLOCK = replace(_SCALAR_SINGLE, load=1, multiply=1, broadcast=1)


def stored_density(kept: NDArray[np.bool_], rows: int) -> float:
    """Share of the rows x 1 blocks that hold a weight.

    Args:
        kept: (groups, out_channels, taps).
        rows: height of a block.
    """
    channels = kept.shape[1] // rows * rows
    if not channels:
        return 1.0
    return float(kept[:, :channels].reshape(kept.shape[0], -1, rows, kept.shape[2]).any(axis=2).mean())


def formats(problem: Problem, kept: NDArray[np.bool_]) -> dict[str, float]:
    """The formats that suit a layer's zeros, and the density each stores.

    Args:
        problem: its geometry.
        kept: (groups, out_channels, taps).
    """
    density, result = float(kept.mean()), {"dense": 1.0}
    for rows in () if density > _NEARLY_DENSE else (1, *_BLOCK_ROWS):
        blocks = stored_density(kept, rows)
        if rows > problem.out_channels or (rows > 1 and blocks > 1.5 * density):
            continue  # mostly filling: the zeros are not in blocks of this height
        # Rounded, so that layers of nearly equal density share a kernel.
        result["csr" if rows == 1 else f"block{rows}"] = float(np.ceil(blocks * 25) / 25)
    return result


@lru_cache(maxsize=4096)
def ranked(problem: Problem, target: Target, format_name: str, density: float) -> tuple[tuple[float, Tiling], ...]:
    """The best tilings of a format with their predicted cycles, best first; no two differ in `chunk` only.

    A tiling whose tiles four threads could not share evenly has to be faster by a tenth of what they would lose; one
    whose tiles the target's threads do not share evenly, by all that they lose.

    Args:
        problem: the layer.
        target: what the code is for.
        format_name: `dense`, `csr` or `block<rows>`.
        density: share of the row groups' taps that are stored.
    """
    best: dict[Tiling, tuple[float, float, Tiling]] = {}
    for cost in _costs(problem, target, format_name):
        time = cost.cycles(density) * (1 + 0.1 * (uneven(cost.tiles, THREADS) - 1))
        shared = time * uneven(cost.tiles, target.threads)
        if cost.cut not in best or shared < best[cost.cut][0]:
            best[cost.cut] = (shared, time, cost.tiling)
    ordered = sorted(best.values(), key=lambda item: item[0])
    return tuple((time, tiling) for _, time, tiling in ordered[:_RANKED])


@dataclass(frozen=True)
class Cost:
    """What a layer is predicted to take in a tiling, by the share of its taps that is stored.

    Attributes:
        tiling: how it is cut.
        cut: the same for all tilings that differ in `chunk` only.
        tiles: of the layer.
        taps: of a row group.
        tap: cycles of one.
        far: cycles more, where the weights do not fit the level-2 cache.
        near: taps of a row group that fit there.
        groups: how often a row group is computed.
        start: cycles until its taps begin, in all blocks.
        store: cycles of its sums.
        end: other cycles of a row group.
        rest: cycles of everything else.
    """

    tiling: Tiling
    cut: Tiling
    tiles: int
    taps: int
    tap: float
    far: float
    near: float
    groups: float
    start: float
    store: float
    end: float
    rest: float

    def cycles(self, density: float) -> float:
        """Cycles of the whole layer on one core.

        Args:
            density: share of the row groups' taps that are stored.
        """
        taps = self.taps * density
        tap = self.tap + (self.far if taps > self.near else 0.0)
        return self.rest + self.groups * (taps * tap + self.start + self.store + self.end)


@lru_cache(maxsize=512)
def _costs(problem: Problem, target: Target, format_name: str) -> tuple[Cost, ...]:
    """What every sensible tiling takes: layers are planned at many densities."""
    return tuple(cost_of(problem, tiling, target) for tiling in tilings(problem, target, format_name))


def cost_of(problem: Problem, tiling: Tiling, target: Target) -> Cost:
    """What a layer is predicted to take in a tiling.

    Args:
        problem: the layer.
        tiling: how it is cut.
        target: what the code is for.
    """
    layout, p, t = TapLayout(problem, tiling), problem, tiling
    wide, vectors = t.lanes > 8, layout.vectors
    positions = p.height.kernel * p.width.kernel
    reads = layout.reads
    ends = [(offset + read) % LINE + t.lanes for offset in layout.plane_offsets for read in reads]
    split = sum(end > LINE for end in ends) / len(ends)
    c = (
        (_SCALAR_SINGLE if t.rows == 1 else _SCALAR_BLOCK)
        if t.lanes == 1
        else (_SINGLE if t.rows == 1 else _BLOCK)[wide]
    )
    latency = c.latency
    if target.core and t.lanes > 1:
        c = _derived(target.core, t.rows)
        latency = c.latency / layout.chains
    missed = min(1.0, max(0.0, c.full * 4 * layout.packed / target.l1_bytes - c.room))
    load = vectors * (c.load + c.split * split + c.missed * missed)
    if t.lanes == 1:
        load += sum(read > _SCALAR_REACH for read in reads) + (t.tile_vectors == 1) * vectors / 2
    if t.rows == 1:
        tap = c.tap + max(load, latency)
    else:
        tap = c.tap + max(t.rows * vectors * c.multiply, latency) + load + t.rows * c.broadcast
    start = c.block
    if t.in_order:
        tap = in_order.tap_cycles(t.rows, vectors) + vectors * (c.split * split + c.missed * missed)
        start += in_order.start_cycles(t.rows, vectors)
    elif t.short:
        tap += issued(target, short_loop.tap_instructions(t.rows, reads))
        start += tap / 2  # every other list has one more for the last pass
    elif t.adjoining:
        tap += issued(target, _tap_instructions(layout))
    sums = t.rows * vectors
    waiting = 4 * t.chunk * sums * t.lanes if layout.blocks > 1 else 0
    reload = c.far_reload if waiting > target.l1_bytes / 3 else c.reload
    pixels = 4 * p.batch * p.groups * p.images
    stored = pixels * p.out_channels * p.height.out * p.width.out * p.depth.out
    store = c.far_store if stored > 0.75 * target.l2_bytes else c.store
    copied = layout.tiles * p.planes * layout.plane / LINE * (c.copy if p.width.stride == 1 else c.copy_strided)
    read = pixels * p.in_channels * p.height.size * p.width.size * p.depth.size
    if read > 0.75 * target.l2_bytes:
        copied = copied * (1 + c.far_copy) + c.far_input * layout.chunks * read / (4 * LINE)
    if t.in_place:
        copied = 0.0
    return Cost(
        tiling=t,
        cut=replace(t, chunk=0),
        tiles=layout.tiles,
        taps=p.planes * positions,
        tap=tap,
        far=c.far_weight * t.rows,  # for every tile
        near=target.l2_bytes / 2 / ((4 * t.rows + 2) * layout.row_groups * p.groups),
        groups=layout.tiles / layout.chunks * layout.row_groups,
        start=start * layout.blocks,
        store=sums * (store + reload * (layout.blocks - 1)),
        end=c.group,
        rest=copied + layout.tiles * c.tile,
    )


def _tap_instructions(layout: TapLayout) -> int:
    """Instructions of a tap, where one loads two vectors that adjoin."""
    t, reads = layout.tiling, layout.reads
    loads = i = 0
    while i < len(reads):
        i += 2 if reads[i + 1 : i + 2] == [reads[i] + t.lanes] else 1
        loads += 1
    weights = t.rows // t.lanes if t.by_lane else t.rows
    return t.rows * layout.vectors + loads + weights + _LIST
