"""Plans for matrix products."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from lwc_compiler.kernels.choice import Candidate, Pick, Task, predicted
from lwc_compiler.kernels.gemm import GemmLayout, gemm_kernel, pack_panels
from lwc_compiler.kernels.kernel import Constant, Input, Output, Plan, Scratch, Step
from lwc_compiler.kernels.layer import ConvGeometry, Epilogue
from lwc_compiler.kernels.matvec import MatvecLayout, matvec_kernel, pack_matvec
from lwc_compiler.kernels.tap_plan import tap_candidates
from lwc_compiler.kernels.transpose import transpose_kernel

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from lwc_compiler.kernels.kernel import Operand
    from lwc_compiler.targets.target import Target

_FEWEST_TOKENS = 4  # below, most lanes of a vector of tokens are empty
# Cycles, measured on Zen 4: to load a dense weight from memory, for a gathered non-zero, to transpose an element.
_DENSE_LOAD, _GATHER, _TRANSPOSE = 0.4, 1.1, 0.35


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
    k, n = weight.shape
    density = float((weight != 0).mean())
    cycles = max(rows * k * n / (target.vector_bits / 32), k * n * _DENSE_LOAD)
    candidates = [Candidate("dense", "dense", cycles, lambda: plan_dense(weight, rows, epilogue, target))]
    if density < 1:
        cycles = rows * (k * n * density + n) * _GATHER
        candidates.append(
            Candidate("csr", "csr gathered", cycles, lambda: plan_gathered(weight, rows, epilogue, target))
        )
        if rows >= _FEWEST_TOKENS:
            candidates += _token_candidates(weight, rows, epilogue, target)
    inputs = (4 * rows * k, *((4 * rows * n,) if epilogue.residual else ()))
    return pick(Task(f"matmul {rows}x{k}x{n} {epilogue}", density, inputs, 4 * rows * n), candidates)


def plan_dense(weight: NDArray[np.float32], rows: int, epilogue: Epilogue, target: Target) -> Plan:
    """`plan_matmul` with every weight stored."""
    k, n = weight.shape
    layout = _gemm_layout(1, rows, k, n, target)
    kernel = gemm_kernel("gemm", layout, epilogue, constant=True)
    args = (Input(0), pack_panels(weight, layout), *_extra(epilogue), Output(0))
    return Plan((Step(kernel, args),), (), "dense", "", weight.size, 2 * weight.size * rows)


def plan_gathered(weight: NDArray[np.float32], rows: int, epilogue: Epilogue, target: Target) -> Plan:
    """`plan_matmul` row by row: every non-zero loads its input; best for a single row."""
    k, n = weight.shape
    layout = MatvecLayout(rows, k, n, min(k, target.l1_bytes * 3 // 16), min(n, 64))
    constants, stored = pack_matvec(np.ascontiguousarray(weight.T), layout)
    kernel = matvec_kernel("matvec_csr", layout, epilogue)
    residual, bias = _extra(replace(epilogue, bias=None)), _extra(replace(epilogue, residual=False))
    args = (Input(0), *residual, *constants, *bias, Output(0))
    return Plan((Step(kernel, args),), (), "csr", "", stored, 2 * stored * rows)


def _token_candidates(weight: NDArray[np.float32], rows: int, epilogue: Epilogue, target: Target) -> list[Candidate]:
    """`plan_matmul` as a pointwise convolution over the rows of x, between two transpositions."""
    k, n = weight.shape
    geometry = ConvGeometry(1, k, (rows,), n, (1,), (1,), (0, 0), (1,))
    summed = Epilogue(epilogue.bias, activation=None if epilogue.residual else epilogue.activation)
    finish = Epilogue(None, residual=True, activation=epilogue.activation) if epilogue.residual else Epilogue()
    taps = np.ascontiguousarray(weight.T)[:, :, None]

    def between(plan: Plan) -> Plan:
        steps = (
            Step(transpose_kernel("transpose", rows, k, Epilogue()), (Input(0), Scratch(0))),
            *plan.steps,
            Step(transpose_kernel("transpose", n, rows, finish), (Scratch(1), *_extra(finish), Output(0))),
        )
        return replace(plan, steps=steps, scratch=(4 * rows * k, 4 * rows * n))

    return [
        candidate.then(between, _TRANSPOSE * rows * (k + n))
        for candidate in tap_candidates(taps, geometry, summed, target, Scratch(0), None, Scratch(1))
        if candidate.format != "dense"
    ]


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
    layout = _gemm_layout(batch, m, k, n, target, a_transposed=a_transposed, b_transposed=b_transposed)
    kernel = gemm_kernel("gemm_batched", layout, Epilogue(), constant=False, scale=scale)
    return Plan((Step(kernel, (Input(0), Input(1), Output(0))),), flops=2 * batch * m * k * n)


def _gemm_layout(
    batch: int, m: int, k: int, n: int, target: Target, *, a_transposed: bool = False, b_transposed: bool = False
) -> GemmLayout:
    lanes = target.vector_bits // 32
    while lanes > n:
        lanes //= 2
    budget = target.vector_registers * 3 // 4
    most = 4 if target.vector_registers >= 32 else 2
    vectors = min(-(-n // lanes), most if m > 1 else budget // 2)
    rows = min(m, budget // vectors)
    rows = -(-m // -(-m // rows))  # even groups
    block = max(16, min(k, target.l2_bytes // 4 // (vectors * lanes * 4)))
    chunk = -(-min(m, 256) // rows) * rows
    return GemmLayout(batch, m, k, n, lanes, rows, vectors, block, chunk, a_transposed, b_transposed)
