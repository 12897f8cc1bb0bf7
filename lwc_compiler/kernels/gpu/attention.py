"""A whole attention on a GPU in one kernel: scores, their softmax, and the values that they weigh.

A block has some queries of one head and keeps their scores for all keys in shared memory, so that they are neither
written to memory nor read from it. Products are computed as `factors.py` says. Where so many scores do not fit, the
products and the softmax are kernels of their own.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tvm import tirx

from lwc_compiler.kernels.builder import divide, modulo, smaller, splat, unravel
from lwc_compiler.kernels.gpu.builder import WARP, DeviceBuilder, blocks_at_once, ceil_div
from lwc_compiler.kernels.gpu.factors import VECTOR, CopiedFactors, Cut, Factors, Matrix, Product, Side
from lwc_compiler.kernels.kernel import Input, Output, Plan, Step

if TYPE_CHECKING:
    from collections.abc import Callable

    from lwc_compiler.kernels.gpu.builder import Expr
    from lwc_compiler.kernels.kernel import Kernel
    from lwc_compiler.targets.target import Gpu

_KEYS = 128  # of a tile of scores
_MOST_STAGES = 3
_TOGETHER = 32  # scores of a thread that become powers at a time
_WARPS = 8  # of a multiprocessor, which hide what each of them waits for
# By the queries of a block: how scores are computed, the factors of a slice, and how up to 64 and 128 features are.
_CUTS = {
    64: (Cut(_KEYS, 64, 8, 8), 16, (Cut(64, 64, 8, 4), Cut(128, 64, 8, 8))),
    32: (Cut(_KEYS, 32, 8, 4), 32, (Cut(64, 32, 4, 4), Cut(128, 32, 8, 4))),
    16: (Cut(_KEYS, 16, 4, 4, 2), 32, (Cut(64, 16, 4, 4, 4), Cut(128, 16, 4, 4, 2))),
}


@dataclass(frozen=True)
class Attention:
    """y (features, queries) = values (features, keys) @ softmax(scale * keys (keys, inner) @ queries (inner, queries)).

    The softmax is over the keys of each query (Vaswani et al. 2017, arXiv:1706.03762, equation 1, transposed).

    Attributes:
        batch: how many, along each axis.
        key_count: keys.
        query_count: queries.
        inner: features of a key and of a query.
        features: of a value.
        keys: how they lie in memory.
        queries: likewise.
        values: likewise.
        y: likewise.
        scale: factor of the scores.
        mask: how what is added to scaled scores (keys, queries) lies, with 0 along axes that share it, or None.
    """

    batch: tuple[int, ...]
    key_count: int
    query_count: int
    inner: int
    features: int
    keys: Matrix
    queries: Matrix
    values: Matrix
    y: Matrix
    scale: float = 1.0
    mask: Matrix | None = None


@dataclass(frozen=True)
class AttentionTile:
    """How attentions are cut into blocks.

    Attributes:
        key_count: keys of each.
        queries: of a block.
        scores: how scores are computed.
        depth: factors of a slice.
        mixed: how the features of the result are.
        stages: slices that shared memory has room for.
    """

    key_count: int
    queries: int
    scores: Cut
    depth: int
    mixed: Cut
    stages: int = _MOST_STAGES

    @property
    def key_tiles(self) -> int:
        """Tiles of scores."""
        return ceil_div(self.key_count, _KEYS)

    @property
    def threads(self) -> int:
        """Threads of a block."""
        return self.scores.threads

    @property
    def stage(self) -> int:
        """Elements of a slice, at most."""
        return (self.depth + VECTOR) * (max(_KEYS + self.queries, self.mixed.rows))

    @property
    def kept(self) -> int:
        """Elements of the scores."""
        return self.key_tiles * _KEYS * self.queries

    @property
    def shared_bytes(self) -> int:
        """Of a block."""
        return 4 * (self.kept + self.stages * self.stage + 2 * self.threads)


def attention_tile(heads: int, key_count: int, query_count: int, features: int, gpu: Gpu) -> AttentionTile | None:
    """The cut with the most queries in a block that leaves work for all of the GPU; None where there is none.

    Args:
        heads: attentions.
        key_count: keys of each.
        query_count: queries of each.
        features: of a value.
        gpu: what it is for.
    """
    if key_count <= _KEYS // 2:
        return None  # most of a tile of scores would be empty
    found = None
    for queries, (scores, depth, mixed) in _CUTS.items():
        cut = next((cut for cut in mixed if features <= cut.rows), None)
        if cut is None:
            return None
        tiles = [AttentionTile(key_count, queries, scores, depth, cut, stages) for stages in (2, _MOST_STAGES)]
        there = [blocks_at_once(gpu, tile.shared_bytes, tile.threads) for tile in tiles]
        if tiles[0].shared_bytes > gpu.block_shared_bytes:
            continue
        blocks = heads * ceil_div(query_count, queries)
        # More slices are no gain where fewer blocks fit for them.
        deep = tiles[1].shared_bytes <= gpu.block_shared_bytes
        deep = deep and there[1] >= min(there[0], ceil_div(blocks, gpu.multiprocessors))
        found = tiles[deep]
        if blocks >= gpu.multiprocessors and there[deep] * found.threads >= _WARPS * WARP:
            break
    return found


def plan_attention(a: Attention, tile: AttentionTile) -> Plan:
    """Plans attentions; inputs are keys, queries, values and the mask if there is one, output 0 is y, all float32."""
    inputs = [Input(i) for i in range(3 if a.mask is None else 4)]
    step = Step(attention_kernel("gpu_attention", a, tile), (*inputs, Output(0)))
    return Plan((step,), flops=2 * math.prod(a.batch) * a.key_count * a.query_count * (a.inner + a.features))


def attention_kernel(name: str, a: Attention, t: AttentionTile) -> Kernel:
    """The kernel: keys, queries, values, [mask,] y."""
    grid = (*a.batch, ceil_div(a.query_count, t.queries))
    b = DeviceBuilder((math.prod(grid), 1, 1), t.threads)
    keys, queries, values = (b.pointer(name) for name in ("keys", "queries", "values"))
    mask = b.pointer("mask") if a.mask is not None else None
    y = b.pointer("y")
    scores = b.shared("scores", t.kept)
    slices = b.shared("slices", t.stages * t.stage)
    parts = b.shared("parts", 2 * t.threads)
    *batch, across = unravel(b, b.block[0], grid)
    first_query = b.let("first_query", across * t.queries)
    kept = Matrix((), t.queries, 1)
    with b.loop("tile", 0, t.key_tiles) as tile:
        first_key = b.let("first_key", tile * _KEYS)
        product = Product(b, t.scores, slices, t.stages)
        left = CopiedFactors(
            b, Side.left(a.keys, a.key_count, a.inner, t.scores, t.depth), slices, product.own_row, keys, batch,
            first_key, t.threads,
        )  # fmt: skip
        right = CopiedFactors(
            b, Side.right(a.queries, a.query_count, a.inner, t.scores, t.depth), slices, product.own_column, queries,
            batch, first_query, t.threads,
        )  # fmt: skip
        product.start(left, right)
        product.finish(left, right)
        product.multiply([splat(a.scale, VECTOR)] * (t.scores.each_columns // VECTOR))
        product.store(scores, kept, [], (first_key, 0), left, right)
        b.barrier()
    mixed = Product(b, t.mixed, slices, t.stages)
    left = CopiedFactors(
        b, Side.left(a.values, a.features, a.key_count, t.mixed, t.depth), slices, mixed.own_row, values, batch, 0,
        t.threads,
    )  # fmt: skip
    weights = Factors(b, Side.right(kept, a.query_count, a.key_count, t.mixed, t.depth), scores, mixed.own_column)
    mixed.start(left, weights)

    def score(key: Expr, query: Expr) -> Expr:
        value = b.load(scores, key * t.queries + query)
        if a.mask is None:
            return value
        # What lies beyond the last key or query reads the mask of the last one, and is not used.
        key, query = smaller(key, a.key_count - 1), smaller(first_query + query, a.query_count - 1)
        return value + b.load(mask, a.mask.offset(batch, key, query))

    _exponentiate(b, t, scores, parts, score)
    mixed.finish(left, weights)
    mixed.multiply([b.load(parts, place, VECTOR) for place in weights.places[::VECTOR]])
    mixed.store(y, a.y, batch, (0, first_query), left, weights)
    return b.finished(name)


def _exponentiate(
    b: DeviceBuilder, t: AttentionTile, scores: Expr, parts: Expr, score: Callable[[Expr, Expr], Expr]
) -> None:
    """Makes the scores of each query powers of e, the largest 1; the inverse of their sum is where `parts` begins."""
    shares = t.threads // t.queries  # threads of a query
    query, share = b.let("query", modulo(b.thread, t.queries)), b.let("share", divide(b.thread, t.queries))

    def combined(combine: object, first: int) -> Expr:
        total = b.load(parts, first + query)
        for other in range(1, shares):
            total = combine(total, b.load(parts, first + other * t.queries + query))  # type: ignore[operator]
        return total

    largest, total = b.register(1), b.register(1)
    total.set(tirx.const(0.0, "float32"))
    nothing = tirx.const(-math.inf, "float32")
    largest.set(nothing)
    with b.loop("step", 0, ceil_div(t.key_count, shares)) as step:
        key = b.let("key", step * shares + share)
        largest.set(tirx.max(largest.get(), tirx.Select(key < t.key_count, score(key, query), nothing)))
    b.store(parts, t.threads + b.thread, largest.get())
    b.barrier()
    most = b.let("most", combined(tirx.max, t.threads))
    # Keys that do not exist, but are in the last slice, weigh nothing. Loads of some are under way together.
    steps = ceil_div(ceil_div(t.key_count, t.depth) * t.depth, shares)
    together = min(steps, _TOGETHER)
    with b.loop("step", 0, ceil_div(steps, together)) as step:
        keys = [b.let("key", (step * together + i) * shares + share) for i in range(together)]
        powers = [b.register(1) for _ in keys]
        for key, power in zip(keys, powers, strict=True):
            raised = tirx.exp(score(key, query) - most)
            power.set(tirx.Select(key < t.key_count, raised, tirx.const(0.0, "float32")))
            total.set(total.get() + power.get())
        for key, power in zip(keys, powers, strict=True):
            b.store(scores, key * t.queries + query, power.get())
    b.store(parts, b.thread, total.get())
    b.barrier()
    inverse = b.register(1)
    inverse.set(tirx.const(1.0, "float32") / combined(lambda one, other: one + other, 0))
    b.barrier()
    with b.when(share == 0):
        b.store(parts, query, inverse.get())
