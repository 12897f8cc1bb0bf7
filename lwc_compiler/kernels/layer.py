"""What a linear layer computes: the geometry of a convolution, and what happens to its sums before they are stored."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from tvm import tirx

from lwc_compiler.kernels.builder import splat

# Minimax fits (Lawson's iteration) for `_gelu`: log2(1 - F(a)) on [0, 5.6], F the distribution function of the normal
# distribution, weighted by 1 - F(a) + 0.003; 2^r on [-1/2, 1/2], weighted for the relative error.
_GELU_END = 5.6
_LOG2_TAIL = (-0.9999999403953552, -1.1511083841323853, -0.45918112993240356, -0.05257997289299965,
              0.007181163877248764, -0.00021656075841747224, -0.00016320639406330884, 3.925040073227137e-05,
              -4.033326604258036e-06, 1.6439457795058843e-07)  # fmt: skip
_EXP2 = (1.0000001192092896, 0.6931469440460205, 0.24022120237350464, 0.05550713464617729, 0.009675547480583191,
         0.001327647129073739)  # fmt: skip
_ROUND = 12582912.0  # adding this rounds a small float to an integer, which then sits in the low bits

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from lwc_compiler.kernels.builder import KernelBuilder


@dataclass(frozen=True)
class Activation:
    """An elementwise function cheap enough for the store.

    Attributes:
        kind: the ONNX operator, in lower case; gelu is the one without approximation.
        low: lower bound of clip; `alpha` of leaky_relu and hard_sigmoid.
        high: upper bound of clip; `beta` of hard_sigmoid.
    """

    kind: Literal["relu", "clip", "leaky_relu", "hard_sigmoid", "hard_swish", "gelu"]
    low: float = 0.0
    high: float = 0.0

    def apply(self, b: KernelBuilder, value: Any, lanes: int) -> Any:
        """The function of a vector expression."""
        if self.kind == "gelu" and b.has_erf:
            return value * 0.5 * (1.0 + tirx.erf(value * math.sqrt(0.5)))
        if self.kind == "gelu":
            return _gelu(b, value, lanes)
        zero, one = splat(0.0, lanes), splat(1.0, lanes)
        if self.kind == "relu":
            return tirx.max(value, zero)
        if self.kind == "clip":
            if math.isfinite(self.low):
                value = tirx.max(value, splat(self.low, lanes))
            return tirx.min(value, splat(self.high, lanes)) if math.isfinite(self.high) else value
        if self.kind == "leaky_relu":
            return tirx.Select(value < zero, value * splat(self.low, lanes), value)
        if self.kind == "hard_sigmoid":
            line = value * splat(self.low, lanes) + splat(self.high, lanes)
            return tirx.min(tirx.max(line, zero), one)
        line = value * splat(1 / 6, lanes) + splat(0.5, lanes)
        return value * tirx.min(tirx.max(line, zero), one)


def _gelu(b: KernelBuilder, x: Any, lanes: int) -> Any:
    """GELU, x F(x) with F the normal distribution's function (Hendrycks & Gimpel 2016, arXiv:1606.08415).

    It is max(x, 0) - |x| (1 - F(|x|)), and the logarithm of 1 - F is close to a parabola: one polynomial and one power
    of two do for all x. The error is below 1.5e-7 |x|.
    """
    x = b.let("x", x)
    negated = splat(0.0, lanes) - x
    a = b.let("a", tirx.Select(x < negated, negated, x))
    a = b.let("a", tirx.Select(a > splat(_GELU_END, lanes), splat(_GELU_END, lanes), a))
    exponent = b.let("exponent", _polynomial(a, _LOG2_TAIL, lanes))
    register = b.register(lanes)  # TVM would cancel the two _ROUND out
    register.set(exponent + splat(_ROUND, lanes))
    rounded = register.get()
    r = b.let("r", exponent - (rounded - splat(_ROUND, lanes)))
    shape = f"x{lanes}" if lanes > 1 else ""
    shift = tirx.reinterpret(f"int32{shape}", rounded) << splat(tirx.const(23, "int32"), lanes)
    tail = tirx.reinterpret(f"int32{shape}", _polynomial(r, _EXP2, lanes)) + shift
    return tirx.max(x, splat(0.0, lanes)) - a * tirx.reinterpret(f"float32{shape}", tail)


def _polynomial(x: Any, coefficients: tuple[float, ...], lanes: int) -> Any:
    result = splat(coefficients[-1], lanes)
    for coefficient in reversed(coefficients[:-1]):
        result = result * x + splat(coefficient, lanes)
    return result


def store_result(
    b: KernelBuilder, y: Any, at: Any, value: Any, residual: Any | None, activation: Activation | None, lanes: int = 1
) -> None:
    """Stores a layer's sums with the bias in them: adds the residual, which is laid out like `y`, and activates."""
    if residual is not None:
        value = value + b.load(residual, at, lanes)
    if activation is not None:
        value = activation.apply(b, value, lanes)
    b.store(y, at, value, lanes)


@dataclass(frozen=True, eq=False)
class Epilogue:
    """What is done to a layer's sums before they are stored, in this order.

    Attributes:
        bias: float32 (output channels,), added.
        residual: a second input of the output's shape is added.
        activation: applied last.
    """

    bias: NDArray[np.float32] | None = None
    residual: bool = False
    activation: Activation | None = None

    def __str__(self) -> str:
        parts = ["bias"] * (self.bias is not None) + ["residual"] * self.residual
        return " ".join([*parts, *([str(self.activation)] if self.activation else [])]) or "nothing"


@dataclass(frozen=True)
class ConvGeometry:
    """Geometry of a convolution over 1 to 3 spatial dimensions, in the terms of ONNX `Conv`.

    `pads` holds the begins, then the ends; negative pads crop. For a transposed convolution `pads` and
    `output_padding` are those of ONNX `ConvTranspose`, and `out_size` follows its formula.

    With `images` > 1 a convolution over two dimensions is computed for so many images that lie side by side: x is
    (N, H, C, W, images), the output (N, H', O, W', images). With a `grid` these are blocks of an image, down x across,
    and sizes are those of a block; pads are what a block reads of its neighbours, or zeros.
    """

    batch: int
    in_channels: int
    in_size: tuple[int, ...]
    out_channels: int
    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    pads: tuple[int, ...]
    dilations: tuple[int, ...]
    groups: int = 1
    transposed: bool = False
    output_padding: tuple[int, ...] = ()
    images: int = 1
    grid: tuple[int, int] = (1, 1)

    @property
    def out_size(self) -> tuple[int, ...]:
        """Spatial size of the output."""
        n = len(self.in_size)
        spans = [(k - 1) * d + 1 for k, d in zip(self.kernel, self.dilations, strict=True)]
        pads = [self.pads[i] + self.pads[n + i] for i in range(n)]
        if self.transposed:
            extra = self.output_padding or (0,) * n
            return tuple(
                (size - 1) * s + span - pad + e
                for size, s, span, pad, e in zip(self.in_size, self.strides, spans, pads, extra, strict=True)
            )
        return tuple(
            (size + pad - span) // s + 1
            for size, s, span, pad in zip(self.in_size, self.strides, spans, pads, strict=True)
        )

    @property
    def group_inputs(self) -> int:
        """Input channels of a group."""
        return self.in_channels // self.groups

    @property
    def group_outputs(self) -> int:
        """Output channels of a group."""
        return self.out_channels // self.groups

    @property
    def in_shape(self) -> tuple[int, ...]:
        """Shape of the input (N, C, *spatial), or (N, H, C, W, images)."""
        return self._shape(self.in_channels, self.in_size)

    @property
    def out_shape(self) -> tuple[int, ...]:
        """Shape of the output (N, O, *spatial), or (N, H', O, W', images)."""
        return self._shape(self.out_channels, self.out_size)

    def _shape(self, channels: int, size: tuple[int, ...]) -> tuple[int, ...]:
        if self.images == 1:
            return (self.batch, channels, *size)
        return (self.batch, size[0], channels, size[1], self.images)
