"""Every sensible way to cut a convolution into tiles of taps; `cost.py` predicts which are the fastest."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from lwc_compiler.kernels import in_order, short_loop
from lwc_compiler.kernels.tap_layout import LINE, Problem, TapLayout, Tiling, readable_in_place

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lwc_compiler.targets.target import Target

THREADS = 4  # that a layer's tiles should suffice for at least
_DENSE_ROWS = (8, 6, 4, 3, 2)
_BLOCK_KILOBYTES = (12, 20, 28, 40, 64)  # of a tile's input, beside a level-1 cache of 32 KB
_FLAT = 0.9  # of the vectors of rows of their own, that rows one after the other may take
_SCALAR_SPARE = 12  # registers beside the sums, without vectors: for the weights, and for inputs that are loaded ahead


def pairs_loads(target: Target) -> bool:
    """Whether one instruction loads two vectors that adjoin; such targets' instructions are counted."""
    return target.core is not None and target.core.by_lane


def tilings(problem: Problem, target: Target, format_name: str) -> Iterator[Tiling]:
    """Every sensible tiling of a format."""
    rows = {"dense": _DENSE_ROWS, "csr": (1,)}.get(format_name) or (int(format_name.removeprefix("block")),)
    if problem.out_channels == 1:
        rows = (1,)
    wide = target.vector_bits // 32
    for r in rows:
        if r > problem.out_channels:
            continue
        for lanes in dict.fromkeys((wide, min(wide, 8))):
            if problem.images > 1 and lanes != problem.images:
                continue
            by_lane = target.core is not None and target.core.by_lane and lanes > 1 and r % lanes == 0
            adjoining = pairs_loads(target) and problem.images == 1
            ordered = target.core is not None and target.core.in_order and target.core.by_lane and lanes > 1
            short = target.core is not None and target.core.assembly and problem.images == 1 and format_name != "dense"
            most = max(1, _room(target, r, by_lane) // r)
            vectors = -(-problem.width.out * problem.images // lanes)
            flat = (short or not adjoining) and problem.images == 1 and problem.height.out > 1
            filled = 1.0 if short else _FLAT
            for across in sorted({-(-vectors // n) for n in range(1, vectors + 1)}):
                for down in _parts(problem.height.out):
                    cut = Tiling(lanes, r, down, across, 1, 1, by_lane=by_lane, adjoining=adjoining)
                    if ordered and down * across <= in_order.most_vectors(r):
                        cut = replace(cut, in_order=in_order.suits(r, TapLayout(problem, cut).reads))
                    if short:
                        cut = replace(cut, short=_can_be_short(problem, cut))
                    if cut.in_order or down * across <= most:
                        yield from _blockings(problem, target, cut)
            for down in _parts(problem.height.out) if flat else ():
                across = -(-((down - 1) * problem.width.pitch + problem.width.out) // lanes)
                if across <= most and across <= filled * down * vectors:
                    cut = Tiling(lanes, r, down, across, 1, 1, by_lane=by_lane, flat=True)
                    if short:
                        cut = replace(cut, short=_can_be_short(problem, cut))
                    yield from _blockings(problem, target, cut)


def _can_be_short(problem: Problem, tiling: Tiling) -> bool:
    """Whether the loop of few instructions computes a tiling, of one channel at least."""
    layout = TapLayout(problem, tiling)
    return 4 * layout.packed <= short_loop.REACH and short_loop.suits(tiling.rows, layout.reads)


def _parts(rows: int) -> list[int]:
    """The numbers of rows that tiles can have which share `rows` as evenly as possible."""
    return [down for down in range(1, rows + 1) if -(-rows // -(-rows // down)) == down]


def _room(target: Target, rows: int, by_lane: bool) -> int:
    """How many vectors of sums stay in registers, beside the weights of a tap and a vector of input or more."""
    registers, core = target.vector_registers, target.core
    if target.vector_bits == 32:
        return registers - _SCALAR_SPARE
    if (rows == 1 or by_lane) and not (core and core.in_order):
        return registers - 4
    if core is None or rows == 1 or by_lane:
        return registers * 3 // 4
    return min(registers * 3 // 4, registers - rows - 2)


def _blockings(problem: Problem, target: Target, tiling: Tiling) -> Iterator[Tiling]:
    """The tiling with the input channels and the output channels cut in every sensible way."""
    one = TapLayout(problem, tiling)
    units = one.tiles // one.chunks
    few = units < 2 * max(THREADS, target.threads)
    parts = sorted({min(one.row_groups, count) for count in (1, 2, 4, 8)}) if few else [1]
    if target.os == "none" and readable_in_place(problem, tiling.lanes):
        for count in parts:
            yield replace(tiling, channels=problem.planes, chunk=-(-one.row_groups // count), in_place=True)
        return
    for kilobytes in _BLOCK_KILOBYTES:
        room = kilobytes * min(1024, target.l1_bytes // 32) // 4
        if tiling.short:
            room = min(room, short_loop.REACH // 4 - LINE)
        blocks = -(-problem.planes // max(1, min(problem.planes, room // one.plane)))
        channels = -(-problem.planes // blocks)
        for count in parts:
            chunk = -(-one.row_groups // count)
            sums = 4 * chunk * tiling.rows * one.vectors * tiling.lanes
            if blocks > 1 and sums > target.l2_bytes // 4:
                chunk = max(1, chunk * (target.l2_bytes // 4) // sums)
            yield replace(tiling, channels=channels, chunk=chunk)
