"""Rows of pixels, for kernels with channels in the vectors: read with their padding, written transposed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lwc_compiler.kernels.builder import pieces, splat
from lwc_compiler.kernels.layer import store_result
from lwc_compiler.kernels.transpose import transpose_square

if TYPE_CHECKING:
    from lwc_compiler.kernels.builder import KernelBuilder
    from lwc_compiler.kernels.layer import Activation


def copy_row(
    b: KernelBuilder, x: Any, source: Any, scratch: Any, to: Any, *, width: int, left: int, pitch: int, most: int
) -> None:
    """Copies a row of input pixels, with zeros for the padding.

    Args:
        b: builder of the kernel.
        x: where the row is.
        source: index of its first pixel.
        scratch: where it goes.
        to: index of the first of the `pitch` values that are written.
        width: pixels of the row.
        left: zeros before it; negative, pixels left out.
        pitch: values written.
        most: float32 in a vector.
    """
    begin, skip = max(0, left), max(0, -left)
    count = max(0, min(width - skip, pitch - begin))
    at = b.address(source + skip)
    fill_row(b, scratch, to, min(begin, pitch), most)
    for start, lanes in pieces(count, most):
        b.store(scratch, to + (begin + start), b.load(x, at + start, lanes), lanes)
    fill_row(b, scratch, to + (begin + count), pitch - begin - count, most)


def fill_row(b: KernelBuilder, scratch: Any, to: Any, count: int, most: int) -> None:
    """Writes `count` zeros."""
    for start, lanes in pieces(max(0, count), most):
        b.store(scratch, to + start, splat(0.0, lanes), lanes)


def store_turned(
    b: KernelBuilder,
    scratch: Any,
    at: Any,
    stride: int,
    y: Any,
    to: Any,
    *,
    plane: int,
    pixels: int,
    lanes: int,
    residual: Any | None,
    activation: Activation | None,
) -> None:
    """Stores a vector of channels of up to `lanes` pixels as rows of pixels, one for each channel.

    Args:
        b: builder of the kernel.
        scratch: holds the vectors; those of `lanes` pixels are read, whatever `pixels` is.
        at: index of the first pixel's vector.
        stride: distance of the next pixel's.
        y: the output.
        to: index of the first pixel of the first channel.
        plane: distance of the next channel's.
        pixels: pixels that are stored.
        lanes: float32 in a vector.
        residual: see `store_result`.
        activation: see `store_result`.
    """
    values = [b.register(lanes) for _ in range(lanes)]
    for k, value in enumerate(values):
        value.set(b.load(scratch, at + k * stride, lanes))
    transpose_square(b, values)
    for c, value in enumerate(values):
        for start, part in pieces(pixels, lanes):
            stored = value.get() if part == lanes else value.part(start, part)
            store_result(b, y, to + (c * plane + start), stored, residual, activation, part)
