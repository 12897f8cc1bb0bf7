"""Plans for matrix products."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from lwc_compiler.kernels.choice import Candidate, Pick, matmul_task, predicted
from lwc_compiler.kernels.cost import pace, stored_density
from lwc_compiler.kernels.gemm import GemmLayout, gemm_kernel, pack_panels
from lwc_compiler.kernels.gpu import plan as gpu
from lwc_compiler.kernels.gpu.batched import Products, plan_products
from lwc_compiler.kernels.gpu.factors import Matrix
from lwc_compiler.kernels.kernel import Constant, Input, Output, Plan, Scratch, Step
from lwc_compiler.kernels.layer import ConvGeometry, Epilogue
from lwc_compiler.kernels.lookup import FEATURES, LANES, STEP_BYTES, LookupLayout, lookup_kernel, pack_lookup
from lwc_compiler.kernels.matvec import MatvecLayout, matvec_kernel, pack_matvec
from lwc_compiler.kernels.pair_plan import pair_candidates
from lwc_compiler.kernels.tap_plan import tap_candidates
from lwc_compiler.kernels.transpose import transpose_kernel
from lwc_compiler.kernels.weight_types import FLOAT32, WeightType, weight_type_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from lwc_compiler.kernels.kernel import Kernel, Operand
    from lwc_compiler.targets.target import Core, Target

_MOST_SHARED = 2  # vectors of rows that share a non-zero
_FEWEST_TOKENS = 4  # below, most lanes of a vector of tokens are empty
_LONG_ROW = 32  # non-zeros
_MOST_INPUTS = 1 << 20  # of a layer whose inputs are looked up
_FEWEST_TILES, _MOST_GROUPS = 4, 16  # of it; groups of a tile

_HEIGHTS = (2, 4, 8)  # of blocks of outputs
_MOSTLY_KEPT = 1.5  # weights that blocks of that height store for each that is kept, at most
_CHAINS = 4  # sums of a run of non-zeros
_RUN = 12.0  # cycles of the start and end of a run, on a target with a `core`

# Cycles, measured on Zen 4: to load a byte of weights from the level-2 cache and from beyond it, for a gathered
# non-zero, to transpose an element.
_NEAR_BYTE, _DISTANT_BYTE, _GATHER, _TRANSPOSE = 0.025, 0.1, 1.1, 0.35
# Cycles, measured on Sapphire Rapids: of a look-up step by its window, with weights in the level-2 cache and beyond it;
# of a non-zero that several rows share, and for each byte of its inputs.
_LOOKUP_STEP = {64: (4.0, 7.5), 96: (4.9, 7.5), 128: (5.6, 7.6)}
_SHARED, _SHARED_BYTE = 0.9, 0.014
# Without vectors: instructions of the code for Cortex-M7, counted.
_SCALAR_GATHER, _SCALAR_MULTIPLY = 5.7, 2.2


def plan_matmul(
    weight: NDArray[np.float32], rows: int, epilogue: Epilogue, target: Target, pick: Pick = predicted
) -> Plan:
    """Plans y (rows, N) = x (rows, K) @ weight (K, N).

    Input 0 is x, input 1 the residual if there is one, output 0 is y; all float32, dense, row-major.

    Args:
        weight: float32 (K, N); its zeros are what sparse formats leave out.
        rows: rows of x (batch, or tokens).
        epilogue: bias (N,), residual, activation.
        target: what the code is for.
        pick: chooses among the ways to compute it.
    """
    if target.gpu is not None:
        return gpu.plan_matmul(weight, rows, epilogue, target, pick)
    k, n = weight.shape
    task = matmul_task(weight, rows, epilogue, lambda w, e, pick: plan_matmul(w, rows, e, target, pick))
    density = task.density
    lanes = target.vector_bits // 32

    def candidate(name: str, cycles: float, plan: Callable[..., Plan]) -> Candidate:
        return Candidate(name.split()[0], name, cycles, lambda: plan(weight, rows, epilogue, target))

    def candidates_of(name: str, cycles: float, per_load: float, plan: Callable[..., Plan]) -> list[Candidate]:
        """Candidates for float32, with so many instructions for each weight that is loaded, and for what is asked."""

        def of(kind: WeightType) -> Candidate:
            as_asked = replace(target, weight_type=kind.name)
            time = cycles * (1 + kind.instructions / per_load)
            build = partial(plan, weight, rows, epilogue, as_asked)
            return Candidate(name.split()[0], f"{name}{kind}", time, build, weight_type=kind.name)

        return [of(kind) for kind in dict.fromkeys((FLOAT32, weight_type_of(target)))]

    byte = _byte(4 * k * n, target)
    multiply = pace(target).multiply / lanes if lanes > 1 else _SCALAR_MULTIPLY
    cycles = max(rows * k * n * multiply, 4 * k * n * byte)
    candidates = candidates_of("dense", cycles, _SCALAR_MULTIPLY * _gemm_layout(1, rows, k, n, target).rows, plan_dense)
    if density < 1:
        cycles = rows * _gathered_cycles(k, n, density, target)
        candidates += candidates_of("csr gathered", cycles, _SCALAR_GATHER, plan_gathered)
        candidates += _block_candidates(weight, rows, epilogue, target)
        if target.features >= FEATURES and k <= _MOST_INPUTS:
            layout, cycles = lookup_layout(k, n, rows, density, target)
            build = partial(plan_lookup, weight, epilogue, layout)
            candidates.append(Candidate("csr", "csr lookup", cycles, build))
        if 1 < rows <= _MOST_SHARED * lanes:
            cycles = k * n * density * (_SHARED + 4 * rows * _SHARED_BYTE) + _TRANSPOSE * rows * (k + n)
            candidates.append(candidate("csr shared", cycles, plan_shared))
        if rows >= _FEWEST_TOKENS:
            candidates += _token_candidates(weight, rows, epilogue, target)
    return pick(task, candidates)


def _byte(size: int, target: Target) -> float:
    """Cycles to load one of `size` bytes of weights."""
    near = size <= target.l2_bytes / 2
    if target.core:
        return (target.core.near_line if near else target.core.far_line) / 64
    return _NEAR_BYTE if near else _DISTANT_BYTE


def _gathered_cycles(k: int, n: int, density: float, target: Target) -> float:
    """Predicted cycles of one row, non-zero by non-zero."""
    kept = k * n * density
    if target.vector_bits == 32:
        return (kept + n) * _SCALAR_GATHER
    if not target.core:
        return (kept + n) * _GATHER
    return _spent(target.core, kept, 1.5, 4.5, 6 * _byte(int(6 * kept), target)) + n * _RUN


def _spent(core: Core, count: float, loads: float, instructions: float, read: float) -> float:
    """Cycles of so many steps, each of which loads so many vectors and takes `read` cycles for its weights."""
    parts = (loads / core.loads, instructions / core.issue, read)
    return count * (sum(parts) if core.in_order else max(parts))


def _block_candidates(weight: NDArray[np.float32], rows: int, epilogue: Epilogue, target: Target) -> list[Candidate]:
    """`plan_matmul` row by row, in blocks of several outputs, where the zeros come in such."""
    (k, n), found = weight.shape, []
    if target.core is None:
        return []  # `codegen/tune.py` would have to measure them: looking inputs up is as fast
    kept = (weight.T != 0)[None]
    for height in (height for height in _HEIGHTS if n % height == 0):
        stored = stored_density(kept, height)
        if stored > _MOSTLY_KEPT * float(kept.mean()):
            continue
        blocks, vectors = k * (n // height) * stored, -(-height * 32 // target.vector_bits)
        read = (2 + 4 * height) * _byte(int((2 + 4 * height) * blocks), target)
        cycles = rows * (_spent(target.core, blocks, 2 + vectors, 5 + 2 * vectors, read) + n // height * _RUN)

        def build(height: int = height) -> Plan:
            return plan_blocks(weight, rows, epilogue, target, height)

        found.append(Candidate(f"block{height}", f"block{height} rows", cycles, build))
    return found


def lookup_layout(k: int, n: int, rows: int, density: float, target: Target) -> tuple[LookupLayout, float]:
    """The best layout for looking inputs up, and the cycles it takes."""
    groups, blocks = -(-n // LANES), -(-k // (target.l1_bytes // 16))
    chunk = min(_MOST_GROUPS, -(-groups // max(_FEWEST_TILES, 2 * target.threads)))
    block = -(-k // (blocks * LANES)) * LANES

    def layout(window: int) -> tuple[LookupLayout, float]:
        # Fitted to random weights: the fewer non-zeros a row has in a window, the more lanes are idle.
        filled = 1 + 1.3 * math.pow(max(density * window, 0.1), -0.85)
        steps = groups * k * density * filled
        far = steps * STEP_BYTES > target.l2_bytes / 2
        near, distant = _LOOKUP_STEP[window]
        cycles = steps * ((distant if far else near) + (rows - 1) * near) + rows * n
        return LookupLayout(rows, k, n, window, chunk, block, far), cycles

    return min((layout(window) for window in _LOOKUP_STEP), key=lambda option: option[1])


def plan_dense(weight: NDArray[np.float32], rows: int, epilogue: Epilogue, target: Target) -> Plan:
    """`plan_matmul` with every weight stored."""
    k, n = weight.shape
    layout = _gemm_layout(1, rows, k, n, target)
    kind = weight_type_of(target)
    codes, scales = _encoded(weight.T, kind)
    kernel = gemm_kernel("gemm", layout, epilogue, constant=True, kind=kind)
    panels = kind.stored(pack_panels(codes.T, layout).array)
    args = (Input(0), Constant(panels), *scales, *_extra(epilogue), Output(0))
    return Plan((Step(kernel, args),), (), "dense", "", weight.size, 2 * weight.size * rows)


def plan_gathered(weight: NDArray[np.float32], rows: int, epilogue: Epilogue, target: Target) -> Plan:
    """`plan_matmul` row by row: every non-zero loads its input."""
    k, n = weight.shape
    block, chunk = min(k, target.l1_bytes * 3 // 16), min(n, 64)
    gathered = target.core is not None and target.vector_bits == 32 * _CHAINS and target.os != "none"
    layout = MatvecLayout(rows, 1, k, n, 1, block, chunk, _CHAINS if gathered else 8, gathered=gathered)
    kind = weight_type_of(target)
    codes, scales = _encoded(weight.T, kind)
    constants, stored = pack_matvec(codes, layout)
    if target.os == "none":
        # No cache to stay in, and the fewest bytes; short rows would mostly be filling.
        layout = replace(layout, block=min(k, 1 << 16), chains=8 if np.count_nonzero(codes) >= _LONG_ROW * n else 4)
        options = [replace(layout, distances=distances) for distances in (True, False)]
        packed = {option: pack_matvec(codes, option) for option in options}
        layout = min(options, key=lambda option: sum(c.array.nbytes for c in packed[option][0]))
        constants, stored = packed[layout]
    kernel = matvec_kernel("matvec_csr", layout, epilogue, kind)
    ends, indices, values = constants
    return _one_step(kernel, [ends, indices, Constant(kind.stored(values.array)), *scales], epilogue, stored, rows)


def _encoded(weight: NDArray[np.float32], kind: WeightType) -> tuple[NDArray[Any], list[Constant]]:
    """Codes of a weight (outputs, inputs), and the scales of those that are scaled."""
    codes, scales = kind.encode(np.ascontiguousarray(weight))
    return codes, [] if scales is None else [Constant(scales)]


def plan_blocks(weight: NDArray[np.float32], rows: int, epilogue: Epilogue, target: Target, height: int) -> Plan:
    """`plan_matmul` row by row, in blocks of `height` outputs, a power of two that divides them all."""
    k, n = weight.shape
    lanes = min(height, target.vector_bits // 32)
    chains = max(1, min(_CHAINS, target.vector_registers // 2 * lanes // height))
    block, chunk = min(k, target.l1_bytes * 3 // 16), min(n, 64)
    layout = MatvecLayout(rows, 1, k, n, lanes, block, chunk, 1 << (chains.bit_length() - 1), height=height)
    constants, stored = pack_matvec(np.ascontiguousarray(weight.T), layout)
    plan = _one_step(matvec_kernel(f"matvec_block{height}", layout, epilogue), constants, epilogue, stored, rows)
    return replace(plan, format=f"block{height}")


def plan_lookup(weight: NDArray[np.float32], epilogue: Epilogue, layout: LookupLayout) -> Plan:
    """`plan_matmul` row by row: inputs are looked up in registers."""
    constants, stored = pack_lookup(np.ascontiguousarray(weight.T), layout)
    return _one_step(lookup_kernel("matvec_lookup", layout, epilogue), constants, epilogue, stored, layout.vectors)


def _one_step(kernel: Kernel, constants: list[Constant], epilogue: Epilogue, stored: int, rows: int) -> Plan:
    residual, bias = _extra(replace(epilogue, bias=None)), _extra(replace(epilogue, residual=False))
    args = (Input(0), *residual, *constants, *bias, Output(0))
    return Plan((Step(kernel, args),), (), "csr", "", stored, 2 * stored * rows)


def plan_shared(weight: NDArray[np.float32], rows: int, epilogue: Epilogue, target: Target) -> Plan:
    """`plan_matmul` with all rows of x side by side, between two transpositions: they share every non-zero."""
    k, n = weight.shape
    lanes = min(target.vector_bits // 32, 1 << (rows - 1).bit_length())
    block = min(k, 1 << 16, target.l2_bytes // (16 * rows))
    layout = MatvecLayout(1, rows, k, n, lanes, block, min(n, max(64, n // 16)), 4)
    constants, stored = pack_matvec(np.ascontiguousarray(weight.T), layout)
    summed, finish = _split(epilogue)
    kernel = matvec_kernel("matvec_shared", layout, summed)
    args = (Scratch(0), *constants, *_extra(summed), Scratch(1))
    inner = Plan((Step(kernel, args),), (), "csr", "", stored, 2 * stored * rows)
    return _transposed(inner, weight, rows, finish)


def _token_candidates(weight: NDArray[np.float32], rows: int, epilogue: Epilogue, target: Target) -> list[Candidate]:
    """`plan_matmul` as a pointwise convolution over the rows of x, between two transpositions."""
    k, n = weight.shape
    geometry = ConvGeometry(1, k, (rows,), n, (1,), (1,), (0, 0), (1,))
    summed, finish = _split(epilogue)
    taps = np.ascontiguousarray(weight.T)[:, :, None]
    return [
        candidate.then(lambda plan: _transposed(plan, weight, rows, finish), _TRANSPOSE * rows * (k + n))
        for planner in (tap_candidates, pair_candidates)
        for candidate in planner(taps, geometry, summed, target, Scratch(0), None, Scratch(1))
        if candidate.format != "dense"
    ]


def _split(epilogue: Epilogue) -> tuple[Epilogue, Epilogue]:
    """What is done to transposed sums, and what to the result: a residual is not transposed."""
    if not epilogue.residual:
        return epilogue, Epilogue()
    return Epilogue(epilogue.bias), Epilogue(None, residual=True, activation=epilogue.activation)


def _transposed(inner: Plan, weight: NDArray[np.float32], rows: int, finish: Epilogue) -> Plan:
    """A plan from Scratch(0), (K, rows), to Scratch(1), (N, rows), between two transpositions."""
    k, n = weight.shape
    steps = (
        Step(transpose_kernel("transpose", 1, rows, k, Epilogue()), (Input(0), Scratch(0))),
        *inner.steps,
        Step(transpose_kernel("transpose", 1, n, rows, finish), (Scratch(1), *_extra(finish), Output(0))),
    )
    return replace(inner, steps=steps, scratch=(4 * rows * k, 4 * rows * n))


def plan_transpose(batch: int, rows: int, columns: int) -> Plan:
    """Plans y (batch, columns, rows) = x (batch, rows, columns) transposed; input 0 is x, output 0 is y, float32."""
    kernel = transpose_kernel("transpose", batch, rows, columns, Epilogue())
    return Plan((Step(kernel, (Input(0), Output(0))),))


def _extra(epilogue: Epilogue) -> tuple[Operand, ...]:
    residual = (Input(1),) if epilogue.residual else ()
    return (*residual, *((Constant(epilogue.bias),) if epilogue.bias is not None else ()))


def plan_batched_matmul(
    batch: int,
    m: int,
    k: int,
    n: int,
    target: Target,
    *,
    a_transposed: bool = False,
    b_transposed: bool = False,
    scale: float = 1.0,
) -> Plan:
    """Plans y (batch, m, n) = scale * a (batch, m, k) @ b (batch, k, n).

    Inputs 0 and 1 are a and b, output 0 is y; all float32, dense, row-major.

    Args:
        batch: products.
        m: rows of a and y.
        k: inner dimension.
        n: columns of b and y.
        target: what the code is for.
        a_transposed: a is stored (batch, k, m).
        b_transposed: b is stored (batch, n, k).
        scale: factor of the product.
    """
    if target.gpu is not None:
        a, b = Matrix((m * k,), k, 1), Matrix((k * n,), n, 1)
        a, b = Matrix((m * k,), 1, m) if a_transposed else a, Matrix((k * n,), 1, k) if b_transposed else b
        return plan_products(Products((batch,), m, k, n, a, b, Matrix((m * n,), n, 1), scale), target.gpu)
    layout = _gemm_layout(batch, m, k, n, target, a_transposed=a_transposed, b_transposed=b_transposed)
    kernel = gemm_kernel("gemm_batched", layout, Epilogue(), constant=False, scale=scale)
    return Plan((Step(kernel, (Input(0), Input(1), Output(0))),), flops=2 * batch * m * k * n)


def _gemm_layout(
    batch: int, m: int, k: int, n: int, target: Target, *, a_transposed: bool = False, b_transposed: bool = False
) -> GemmLayout:
    lanes = target.vector_bits // 32
    while lanes > n:
        lanes //= 2
    budget = target.vector_registers * 3 // 4 if lanes > 1 else target.vector_registers // 2
    most = 4 if target.vector_registers >= 32 else 2
    needed = -(-n // lanes)
    vectors = -(-needed // -(-needed // (most if m > 1 else budget // 2)))  # even panels
    rows = min(m, budget // vectors)
    rows = -(-m // -(-m // rows))  # even groups
    block = max(16, min(k, target.l2_bytes // 4 // (vectors * lanes * 4)))
    chunk = -(-min(m, 256) // rows) * rows
    return GemmLayout(batch, m, k, n, lanes, rows, vectors, block, chunk, a_transposed, b_transposed)
