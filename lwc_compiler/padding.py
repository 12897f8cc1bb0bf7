"""The padding that a Conv, ConvTranspose or pooling node asks for, as numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def window_pads(
    attributes: Mapping[str, Any], sizes: Sequence[int], kernel: Sequence[int], *, transposed: bool = False
) -> tuple[list[int], list[int]]:
    """Padding before and after each spatial dimension, with `auto_pad` and `output_shape` resolved.

    The formulas are those of the ONNX operators Conv and ConvTranspose (attributes `auto_pad`, `output_shape`). With
    extent = (kernel - 1) dilation + 1, the total padding of a dimension is

    - for SAME_UPPER and SAME_LOWER (ceil(size / stride) - 1) stride + extent - size, at least 0;
    - of a ConvTranspose stride (size - 1) + output_padding + extent - wanted. With `output_shape` that is the wanted
      size; else, for SAME_UPPER and SAME_LOWER, size x stride is, and the total is at least 0.

    An odd total is larger after the dimension for SAME_UPPER, else before it. Like in ONNX Runtime, a negative total
    (`output_shape` asks for more than the input reaches) is all after the dimension, and `output_shape` may begin with
    batch and channels.

    Args:
        attributes: the node's, texts decoded; one that is left out has ONNX's default.
        sizes: of the input's spatial dimensions.
        kernel: sizes of the kernel.
        transposed: whether the node is a ConvTranspose.
    """
    rank, mode = len(kernel), attributes.get("auto_pad", "NOTSET")
    wanted = attributes.get("output_shape") if transposed else None
    if not wanted and mode == "NOTSET":
        pads = attributes.get("pads") or [0] * (2 * rank)
        return list(pads[:rank]), list(pads[rank:])
    if not wanted and mode == "VALID":
        return [0] * rank, [0] * rank
    strides, dilations = attributes.get("strides") or [1] * rank, attributes.get("dilations") or [1] * rank
    extra = attributes.get("output_padding") or [0] * rank
    before, after = [], []
    for i, (size, stride) in enumerate(zip(sizes, strides, strict=True)):
        extent = (kernel[i] - 1) * dilations[i] + 1
        if transposed:
            reach = stride * (size - 1) + extra[i] + extent
            total = reach - wanted[i - rank] if wanted else max(reach - size * stride, 0)
        else:
            total = max((-(-size // stride) - 1) * stride + extent - size, 0)
        less = max(total, 0) // 2
        before.append(less if mode == "SAME_UPPER" else max(total, 0) - less)
        after.append(total - before[-1])
    return before, after
