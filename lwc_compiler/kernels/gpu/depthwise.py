"""Depthwise convolutions on a GPU: a thread computes outputs below each other, and reads what they share once.

Neighbouring threads have neighbouring columns. What these share comes from the level-1 cache.
"""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING

from tvm import tirx

from lwc_compiler.kernels.builder import divide, smaller, splat, unravel
from lwc_compiler.kernels.gpu.builder import DeviceBuilder, both, ceil_div, strides_of
from lwc_compiler.kernels.layer import store_result

if TYPE_CHECKING:
    from lwc_compiler.kernels.gpu.builder import Expr
    from lwc_compiler.kernels.kernel import Kernel
    from lwc_compiler.kernels.layer import ConvGeometry, Epilogue
    from lwc_compiler.targets.target import Gpu

THREADS = 128
_HELD = 32  # weights that are read while the inputs are not there yet
_ROWS = (8, 4, 2)  # outputs of a thread, where there are enough threads then
_FULL = 2048  # threads of a multiprocessor
_MOST_FILLED = 1.15  # rows that are computed then, of those that exist


def rows_of_thread(g: ConvGeometry, gpu: Gpu) -> int:
    """Outputs below each other that a thread computes: several where the GPU is full all the same."""
    if len(g.out_size) == 1:
        return 1
    height, outputs = g.out_size[-2], math.prod(g.out_shape)
    fitting = (
        rows
        for rows in _ROWS
        if outputs >= rows * gpu.multiprocessors * _FULL and ceil_div(height, rows) * rows <= _MOST_FILLED * height
    )
    return next(fitting, 1)


def depthwise_kernel(name: str, g: ConvGeometry, rows: int, epilogue: Epilogue) -> Kernel:
    """The kernel of a convolution with one input channel a group: x, [residual,] weights (O, *kernel), [bias,] y.

    Args:
        name: of the kernel.
        g: its geometry.
        rows: outputs of a thread along the last dimension but one.
        epilogue: what is done to the sums.
    """
    down = max(0, len(g.out_size) - 2)  # the dimension along which a thread has several outputs
    units = tuple(ceil_div(size, rows) if rows > 1 and axis == down else size for axis, size in enumerate(g.out_size))
    image_threads = g.out_channels * math.prod(units)
    b = DeviceBuilder((ceil_div(image_threads, THREADS), g.batch, 1), THREADS)
    x = b.pointer("x")
    residual = b.pointer("residual") if epilogue.residual else None
    weights = b.constant("weights")
    bias = b.constant("bias") if epilogue.bias is not None else None
    y = b.pointer("y")
    number = b.let("number", b.block[0] * THREADS + b.thread)
    # Threads without an output read the weights of the last one.
    existing = b.let("existing", smaller(number, image_threads - 1))
    output, *at = unravel(b, existing, (g.out_channels, *units))
    at[down] = b.let("first_row", at[down] * rows)
    first = b.let("first", output * math.prod(g.kernel))
    held = [b.register(1) for _ in range(min(math.prod(g.kernel), _HELD))]
    for tap, register in enumerate(held):
        register.set(b.load(weights, first + tap))
    sums = [b.register(1) for _ in range(rows)]
    for total in sums:
        total.set(splat(0.0, 1) if bias is None else b.load(bias, output))
    b.inputs_ready()
    with b.when(number < image_threads):
        strides = strides_of(g.in_shape)
        channel = b.let("channel", divide(output, g.out_channels // g.groups))
        base = b.block[1] * strides[0] + channel * strides[1]
        # Of each dimension, the places that a thread reads: by their distance from the first, where and whether.
        places = []
        for axis, (place, step, dilation, size) in enumerate(zip(at, g.strides, g.dilations, g.kernel, strict=True)):
            corner = b.let("corner", place * step - g.pads[axis])
            base = base + corner * strides[2 + axis]
            outputs = rows if axis == down else 1
            distances = sorted({r * step + k * dilation for r in range(outputs) for k in range(size)})
            places.append({d: _inside(b, g, axis, corner + d, outputs) for d in distances})
        base = b.let("base", base)
        for distance in itertools.product(*places):
            used = _used(g, down, rows, distance)
            if not used:
                continue
            exists: Expr = True
            from_ = base
            for axis, d in enumerate(distance):
                exists = both(exists, places[axis][d])
                from_ = from_ + d * strides[2 + axis]
            value = b.load(x, from_)
            if exists is not True:
                value = tirx.if_then_else(exists, value, tirx.const(0.0, "float32"))
            value = b.let("value", value)
            for row, tap in used:
                weight = held[tap].get() if tap < _HELD else b.load(weights, first + tap)
                sums[row].set(sums[row].get() + value * weight)
        to = b.block[1] * math.prod(g.out_shape[1:])
        for index, stride in zip((output, *at), strides_of(g.out_shape[1:]), strict=True):
            to = to + index * stride
        to = b.let("to", to)
        for row, total in enumerate(sums):
            with b.when(at[down] + row < g.out_size[down] if g.out_size[down] % rows else True):
                below = row * math.prod(g.out_size[down + 1 :])
                store_result(b, y, to + below, total.get(), residual, epilogue.activation)
    return b.finished(name)


def _inside(b: DeviceBuilder, g: ConvGeometry, axis: int, place: Expr, outputs: int) -> Expr:
    """Whether a place is inside the input along a dimension; True where every output's are."""
    exists: Expr = True
    if g.pads[axis] > 0:
        exists = both(exists, place >= 0)
    if g.pads[axis + len(g.in_size)] > 0 or g.out_size[axis] % outputs:
        exists = both(exists, place < g.in_size[axis])
    return exists if exists is True else b.let("inside", exists)


def _used(g: ConvGeometry, down: int, rows: int, distance: tuple[int, ...]) -> list[tuple[int, int]]:
    """Which outputs of a thread multiply the input at a distance from the first, and by which weight."""
    found = []
    for tap, position in enumerate(itertools.product(*map(range, g.kernel))):
        moved = [d - k * dilation for d, k, dilation in zip(distance, position, g.dilations, strict=True)]
        row = moved[down] // g.strides[down]
        moved[down] -= row * g.strides[down]
        if 0 <= row < rows and not any(moved):
            found.append((row, tap))
    return found
