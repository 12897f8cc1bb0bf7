"""Weights in fewer bytes than float32, which a kernel expands as it loads them; it computes in float32.

- `float16`: IEEE 754 binary16, rounded to nearest.
- `int8`: symmetric, one scale for each output channel, as ONNX's QuantizeLinear and DequantizeLinear define it with
  zero point 0 and `axis` the output channels: weight = code * scale, scale = the channel's largest |weight| / 127. A
  kernel sums code * input and multiplies the sum by the scale.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from lwc_compiler.targets.target import Target

_DTYPES = {"float32": "float32", "float16": "int16", "int8": "int8"}
_LARGEST_CODE = 127


@dataclass(frozen=True)
class WeightType:
    """How the weights of a kernel are stored.

    Attributes:
        name: `float32`, `float16` or `int8`.
        converts_half: the core converts float16 to float32 in one instruction.
    """

    name: str = "float32"
    converts_half: bool = False

    def __str__(self) -> str:
        return "" if self.name == "float32" else f" {self.name}"

    @property
    def dtype(self) -> str:
        """NumPy's name of what is stored: of float16 the bits."""
        return _DTYPES[self.name]

    @property
    def scaled(self) -> bool:
        """Whether sums are multiplied by a scale of their output channel."""
        return self.name == "int8"

    @property
    def instructions(self) -> int:
        """Instructions of a load beside that of float32, on a core without vectors: counted in code for Cortex-M."""
        return {"float32": 0, "float16": 2 if self.converts_half else 4, "int8": 2}[self.name]

    def encode(self, weight: NDArray[np.float32]) -> tuple[NDArray[Any], NDArray[np.float32] | None]:
        """What is stored of weights, and the scales where sums are scaled.

        Args:
            weight: float32 (output channels, ...).

        Returns:
            Codes of the weight's shape, float16 as such and not as its bits; float32 (output channels,).
        """
        if self.name == "float32":
            return weight, None
        if self.name == "float16":
            with np.errstate(over="ignore", under="ignore"):
                return weight.astype(np.float16), None
        flat = weight.reshape(len(weight), -1)
        scales = np.abs(flat).max(axis=1, initial=0.0).astype(np.float32) / np.float32(_LARGEST_CODE)
        scales[scales == 0] = 1.0
        codes = np.clip(np.rint(flat / scales[:, None]), -_LARGEST_CODE, _LARGEST_CODE)
        return codes.astype(np.int8).reshape(weight.shape), scales

    def rounded(self, weight: NDArray[np.float32]) -> NDArray[np.float32]:
        """The weights that a kernel computes with: `encode` and back."""
        codes, scales = self.encode(weight)
        values = codes.astype(np.float32)
        if scales is not None:
            values *= scales.reshape(-1, *[1] * (weight.ndim - 1))
        return values

    def stored(self, codes: NDArray[Any]) -> NDArray[Any]:
        """`codes` as the kernel reads them."""
        return codes.view(np.int16) if self.name == "float16" else codes


FLOAT32 = WeightType()


def weight_type_of(target: Target) -> WeightType:
    """The type of weights that is asked for on a target."""
    return WeightType(target.weight_type, target.converts_half)
