"""Depthwise convolutions on a GPU: a thread computes one output from inputs that its neighbours read too."""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING

from tvm import tirx

from lwc_compiler.kernels.builder import divide, smaller, splat, unravel
from lwc_compiler.kernels.gpu.builder import DeviceBuilder, ceil_div, strides_of
from lwc_compiler.kernels.layer import store_result

if TYPE_CHECKING:
    from lwc_compiler.kernels.kernel import Kernel
    from lwc_compiler.kernels.layer import ConvGeometry, Epilogue

THREADS = 128
_HELD = 32  # weights that are read while the inputs are not there yet


def depthwise_kernel(name: str, g: ConvGeometry, epilogue: Epilogue) -> Kernel:
    """The kernel of a convolution with one input channel a group: x, [residual,] weights (O, *kernel), [bias,] y."""
    image_outputs = math.prod(g.out_shape[1:])
    b = DeviceBuilder((ceil_div(image_outputs, THREADS), g.batch, 1), THREADS)
    x = b.pointer("x")
    residual = b.pointer("residual") if epilogue.residual else None
    weights = b.constant("weights")
    bias = b.constant("bias") if epilogue.bias is not None else None
    y = b.pointer("y")
    number = b.let("number", b.block[0] * THREADS + b.thread)
    # Threads without an output read the weights of the last one.
    output, *at = unravel(b, b.let("existing", smaller(number, image_outputs - 1)), g.out_shape[1:])
    first = b.let("first", output * math.prod(g.kernel))
    held = [b.register(1) for _ in range(min(math.prod(g.kernel), _HELD))]
    for tap, register in enumerate(held):
        register.set(b.load(weights, first + tap))
    total = b.register(1)
    total.set(splat(0.0, 1) if bias is None else b.load(bias, output))
    b.inputs_ready()
    with b.when(number < image_outputs):
        channel = b.let("channel", divide(output, g.out_channels // g.groups))
        strides = strides_of(g.in_shape)
        corner = [b.let("corner", p * s - pad) for p, s, pad in zip(at, g.strides, g.pads, strict=False)]
        plane = b.let("plane", b.block[1] * strides[0] + channel * strides[1])
        for tap, position in enumerate(itertools.product(*map(range, g.kernel))):
            places = [c + k * d for c, k, d in zip(corner, position, g.dilations, strict=True)]
            bounds = [bound for p, size in zip(places, g.in_size, strict=True) for bound in (p >= 0, p < size)]
            from_ = plane
            for place, stride in zip(places, strides[2:], strict=True):
                from_ = from_ + place * stride
            value = tirx.if_then_else(tirx.all(*bounds), b.load(x, from_), tirx.const(0.0, "float32"))
            weight = held[tap].get() if tap < _HELD else b.load(weights, first + tap)
            total.set(total.get() + value * weight)
        to = b.let("to", b.block[1] * image_outputs + number)
        store_result(b, y, to, total.get(), residual, epilogue.activation)
    return b.finished(name)
