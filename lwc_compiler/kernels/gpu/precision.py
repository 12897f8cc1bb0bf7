"""Weights rounded to what tensor cores take, in words of 32 bits."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


def numbers_in_word(precision: str) -> int:
    """Numbers of the precision in 32 bits: 1 or 2."""
    return 2 if precision in ("float16", "bfloat16") else 1


def round_to(values: NDArray[np.float32], precision: str) -> NDArray[np.uint32]:
    """Words of the values, rounded to nearest: one each, or two with the first in the low half, along the last axis."""
    values = np.ascontiguousarray(values)
    words: NDArray[np.uint32] = values.view(np.uint32)
    if precision == "float16":
        words = values.astype(np.float16).view(np.uint32)
    elif precision == "tf32":  # ties away from zero, as the instruction that rounds inputs
        words = (words + np.uint32(0x1000)) & np.uint32(0xFFFFE000)
    else:
        halves = (words + np.uint32(0x7FFF) + ((words >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
        words = np.ascontiguousarray(halves.astype(np.uint16)).view(np.uint32)
    return words
