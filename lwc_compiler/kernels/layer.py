"""What a linear layer computes: the geometry of a convolution, and what happens to its sums before they are stored."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from tvm import tirx

from lwc_compiler.kernels.builder import splat

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from lwc_compiler.kernels.builder import KernelBuilder


@dataclass(frozen=True)
class Activation:
    """An elementwise function cheap enough for the store.

    Attributes:
        kind: the ONNX operator, in lower case.
        low: lower bound of clip; `alpha` of leaky_relu and hard_sigmoid.
        high: upper bound of clip; `beta` of hard_sigmoid.
    """

    kind: Literal["relu", "clip", "leaky_relu", "hard_sigmoid", "hard_swish"]
    low: float = 0.0
    high: float = 0.0

    def apply(self, value: Any, lanes: int) -> Any:
        """The function of a vector expression."""
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


def store_result(
    b: KernelBuilder, y: Any, at: Any, value: Any, residual: Any | None, activation: Activation | None, lanes: int = 1
) -> None:
    """Stores a layer's sums with the bias in them: adds the residual, which is laid out like `y`, and activates."""
    if residual is not None:
        value = value + b.load(residual, at, lanes)
    if activation is not None:
        value = activation.apply(value, lanes)
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
