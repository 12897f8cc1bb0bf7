"""Plans for matrix products."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from lwc_compiler.kernels.conv import plan_conv
from lwc_compiler.kernels.gemm import GemmLayout, gemm_kernel, pack_panels
from lwc_compiler.kernels.kernel import Constant, Input, Output, Plan, Scratch, Step
from lwc_compiler.kernels.layer import ConvGeometry, Epilogue
from lwc_compiler.kernels.matvec import MatvecLayout, matvec_kernel, pack_matvec
from lwc_compiler.kernels.transpose import transpose_kernel

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from lwc_compiler.kernels.kernel import Operand
    from lwc_compiler.targets.target import Target

# Denser weights are multiplied whole: a sparse kernel reaches about 0.4 of the dense one's multiply-adds a second.
_SPARSE_DENSITY = 0.4
# From this many rows on a sparse product is turned, so that its vectors run along the rows.
_TURNED_ROWS = 8


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
    density = float((weight != 0).mean())
    if density <= _SPARSE_DENSITY and rows >= _TURNED_ROWS:
        return _plan_turned(weight, rows, epilogue, target)
    residual = (Input(1),) if epilogue.residual else ()
    bias = (Constant(epilogue.bias),) if epilogue.bias is not None else ()
    why = f"density {density:.3g}, sparse up to {_SPARSE_DENSITY:g}"
    if density > _SPARSE_DENSITY:
        layout = _gemm_layout(1, rows, k, n, target)
        kernel = gemm_kernel("gemm", layout, epilogue, constant=True)
        args = (Input(0), pack_panels(weight, layout), *residual, *bias, Output(0))
        return Plan((Step(kernel, args),), (), "dense", why, weight.size, 2 * weight.size * rows)
    vec = MatvecLayout(rows, k, n, min(k, 6144), min(n, 64))
    constants, stored = pack_matvec(np.ascontiguousarray(weight.T), vec)
    kernel = matvec_kernel("matvec_csr", vec, epilogue)
    args = (Input(0), *residual, *constants, *bias, Output(0))
    return Plan((Step(kernel, args),), (), "csr", why, stored, 2 * stored * rows)


def _plan_turned(weight: NDArray[np.float32], rows: int, epilogue: Epilogue, target: Target) -> Plan:
    """The product turned: a pointwise convolution whose pixels are the rows, between two transpositions.

    Every weight then meets a vector of consecutive rows.
    """
    k, n = weight.shape
    geometry = ConvGeometry(1, k, (rows,), n, (1,), (1,), (0, 0), (1,))
    taps = np.ascontiguousarray(weight.T).reshape(n, k, 1)
    inner = plan_conv(taps, geometry, Epilogue(epilogue.bias), target)
    (product,) = inner.steps
    swapped: dict[Operand, Operand] = {Input(0): Scratch(0), Output(0): Scratch(1)}
    args = tuple(a if isinstance(a, Constant) else swapped[a] for a in product.args)
    turn = transpose_kernel("transpose", rows, k, Epilogue())
    back = transpose_kernel("transpose", n, rows, replace(epilogue, bias=None))
    residual: tuple[Operand, ...] = (Input(1),) if epilogue.residual else ()
    steps = (
        Step(turn, (Input(0), Scratch(0))),
        Step(product.kernel, args),
        Step(back, (Scratch(1), *residual, Output(0))),
    )
    return replace(inner, steps=steps, scratch=(4 * k * rows, 4 * n * rows))


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
