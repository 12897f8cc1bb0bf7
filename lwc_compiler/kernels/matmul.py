"""Plans for matrix products."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from lwc_compiler.kernels.gemm import GemmLayout, gemm_kernel, pack_panels
from lwc_compiler.kernels.kernel import Constant, Input, Output, Plan, Step
from lwc_compiler.kernels.layer import Epilogue
from lwc_compiler.kernels.matvec import MatvecLayout, matvec_kernel, pack_matvec

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from lwc_compiler.targets.target import Target


def plan_matmul(weight: NDArray[np.float32], rows: int, epilogue: Epilogue, target: Target) -> Plan:
    """Plans y (rows, N) = x (rows, K) @ weight (K, N).

    Input 0 is x, input 1 the residual if there is one, output 0 is y; all float32, dense, row-major.

    Args:
        weight: float32 (K, N); its zeros are what sparse formats leave out.
        rows: rows of x (batch, or tokens).
        epilogue: bias (N,), residual, activation.
        target: what the code is for.
    """
    k, n = weight.shape
    residual = (Input(1),) if epilogue.residual else ()
    bias = (Constant(epilogue.bias),) if epilogue.bias is not None else ()
    density = float((weight != 0).mean())
    if density > 0.4:
        layout = _gemm_layout(1, rows, k, n, target)
        kernel = gemm_kernel("gemm", layout, epilogue, constant=True)
        args = (Input(0), pack_panels(weight, layout), *residual, *bias, Output(0))
        return Plan((Step(kernel, args),), (), "dense", "", weight.size, 2 * weight.size * rows)
    vec = MatvecLayout(rows, k, n, min(k, 6144), min(n, 64))
    constants, stored = pack_matvec(np.ascontiguousarray(weight.T), vec)
    kernel = matvec_kernel("matvec_csr", vec, epilogue)
    args = (Input(0), *residual, *constants, *bias, Output(0))
    return Plan((Step(kernel, args),), (), "csr", "", stored, 2 * stored * rows)


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
