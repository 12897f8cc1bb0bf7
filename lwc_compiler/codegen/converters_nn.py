"""Converters of neural network layers: convolution, pooling, normalization, softmax, resizing, products of matrices."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
from tvm import relax, te, tirx, topi

from lwc_compiler.codegen.converters import (
    Array,
    Node,
    Result,
    cast,
    converter,
    dtype_of,
    elementwise,
    literal,
    lowest,
    raised,
    scalar,
    shape_of,
)
from lwc_compiler.codegen.converters_reduce import maximum_of, reduce
from lwc_compiler.codegen.converters_tensor import pad, reshape
from lwc_compiler.padding import window_pads

# --- products of matrices --------------------------------------------------------------------------------------------


@converter("MatMul")
def _matmul(node: Node) -> Result:
    return node.emit(relax.op.matmul(*node.exprs()))


@converter("Gemm")
def _gemm(node: Node) -> Result:
    dtype = node.dtype(0)
    a, b = (
        node.emit(relax.op.permute_dims(node.expr(i))) if node.attribute(name, 0) else node.expr(i)
        for i, name in enumerate(("transA", "transB"))
    )
    product = _scaled(node, node.emit(relax.op.matmul(a, b)), node.attribute("alpha", 1.0), dtype)
    if not node.has(2):
        return product
    return node.emit(relax.op.add(product, _scaled(node, node.expr(2), node.attribute("beta", 1.0), dtype)))


def _scaled(node: Node, x: relax.Expr, factor: float, dtype: str) -> relax.Expr:
    return x if factor == 1 else node.emit(relax.op.multiply(x, scalar(factor, dtype)))


@converter("Einsum")
def _einsum(node: Node) -> Result:
    """The sum, over the labels that the output lacks, of the product of the operands' elements."""
    equation = node.attribute("equation").replace(" ", "")
    left, _, right = equation.partition("->")
    shapes = [node.shape(i) for i in range(len(node.inputs))]
    broadcast_rank = max(
        (len(s) - len(t.replace("...", "")) for t, s in zip(left.split(","), shapes, strict=True) if "..." in t),
        default=0,
    )
    dots = [f".{i}" for i in range(broadcast_rank)]  # labels of the dimensions an ellipsis stands for

    def labels(term: str, rank: int | None = None) -> list[str]:
        head, ellipsis, tail = term.partition("...")
        taken = dots if rank is None else dots[len(dots) - (rank - len(head) - len(tail)) :]
        return [*head, *(taken if ellipsis else []), *tail]

    terms = [labels(t, len(s)) for t, s in zip(left.split(","), shapes, strict=True)]
    sizes: dict[str, int] = {}
    for label, size in itertools.chain.from_iterable(
        zip(t, s, strict=True) for t, s in zip(terms, shapes, strict=True)
    ):
        sizes[label] = max(size, sizes.get(label, 1))
    counted = [label for t in terms for label in t]
    if "->" in equation:
        output = labels(right)
    else:
        output = dots + sorted(x for x in set(counted) - set(dots) if counted.count(x) == 1)
    summed = [label for label in sizes if label not in output]

    def body(*operands: Any) -> Any:
        axes = {label: te.reduce_axis((0, sizes[label]), f"r{i}") for i, label in enumerate(summed)}

        def element(*index: Any) -> Any:
            at = dict(zip(output, index, strict=True)) | axes
            product: Any = None
            for x, term, shape in zip(operands, terms, shapes, strict=True):
                picked = x(*(literal(0, "int64") if d == 1 else at[t] for t, d in zip(term, shape, strict=True)))
                product = picked if product is None else product * picked
            return te.sum(product, axis=list(axes.values())) if axes else product

        return te.compute([sizes[label] for label in output], element, name="einsum")

    return node.compute("einsum", body, *node.exprs())


# --- convolution -----------------------------------------------------------------------------------------------------


@converter("Conv")
def _conv(node: Node) -> Result:
    rank = len(node.shape(0)) - 2
    function = {1: relax.op.nn.conv1d, 2: relax.op.nn.conv2d, 3: relax.op.nn.conv3d}.get(rank)
    if function is None:
        raise node.refuse(f"it has {rank} spatial dimensions; 1, 2 and 3 are handled")
    strides, dilations = node.attribute("strides", [1] * rank), node.attribute("dilations", [1] * rank)
    before, after = window_pads(node.attributes, node.shape(0)[2:], node.shape(1)[2:])
    x = function(
        node.expr(0), node.expr(1), strides=strides, padding=before + after, dilation=dilations,
        groups=node.attribute("group", 1),
    )  # fmt: skip
    return _biased(node, node.emit(x))


def _biased(node: Node, x: relax.Expr) -> relax.Expr:
    if not node.has(2):
        return x
    bias = node.inputs[2]
    shape = (1, -1) + (1,) * (len(shape_of(x)) - 2)
    if isinstance(bias, np.ndarray):
        return node.emit(relax.op.add(x, relax.const(bias.reshape(shape))))
    return node.emit(relax.op.add(x, reshape(node, node.expr(2), [d if d == 1 else shape_of(x)[1] for d in shape])))


@converter("ConvTranspose")
def _conv_transpose(node: Node) -> Result:
    """Every input element adds weight x value to a window of the output; here the output gathers what it is given."""
    (n, channels, *sizes), (_, per_group, *kernel) = node.shape(0), node.shape(1)
    rank, groups, dtype = len(sizes), node.attribute("group", 1), node.dtype(0)
    strides, dilations = node.attribute("strides", [1] * rank), node.attribute("dilations", [1] * rank)
    extra = node.attribute("output_padding", [0] * rank)
    before, after = window_pads(node.attributes, sizes, kernel, transposed=True)
    out = [
        s * (i - 1) + o + (k - 1) * d + 1 - b - a
        for s, i, o, k, d, b, a in zip(strides, sizes, extra, kernel, dilations, before, after, strict=True)
    ]
    inputs_per_group = channels // groups

    def body(x: Any, w: Any) -> Any:
        taps = [te.reduce_axis((0, k), f"k{i}") for i, k in enumerate(kernel)]
        channel = te.reduce_axis((0, inputs_per_group), "c")

        def element(*index: Any) -> Any:
            group, within = index[1] // per_group, index[1] % per_group
            source = group * inputs_per_group + channel
            shifted = [o + b - k * d for o, b, k, d in zip(index[2:], before, taps, dilations, strict=True)]
            at = [tirx.floordiv(i, s) for i, s in zip(shifted, strides, strict=True)]
            hit = [
                tirx.all(a >= 0, a < size, tirx.floormod(i, s) == 0)
                for a, i, s, size in zip(at, shifted, strides, sizes, strict=True)
            ]
            value = tirx.if_then_else(tirx.all(*hit), x(index[0], source, *at), literal(0, dtype))
            return te.sum(value * w(source, within, *taps), axis=[channel, *taps])

        return te.compute((n, per_group * groups, *out), element, name="conv_transpose")

    return _biased(node, node.compute("conv_transpose", body, node.expr(0), node.expr(1)))


# --- pooling ---------------------------------------------------------------------------------------------------------


def _window(node: Node) -> tuple[list[int], list[int], list[int], list[int], list[int], list[int]]:
    """Kernel, strides, dilations, padding before, padding after, output size; one number a spatial dimension.

    With `ceil_mode` the padding after is what the last window reads; a window that would start beyond the padded
    input is dropped.
    """
    kernel = list(node.attribute("kernel_shape"))
    strides = list(node.attribute("strides", [1] * len(kernel)))
    dilations = list(node.attribute("dilations", [1] * len(kernel)))
    before, after = window_pads(node.attributes, node.shape(0)[2:], kernel)
    ceil = node.attribute("ceil_mode", 0) and node.attribute("auto_pad", "NOTSET") == "NOTSET"
    sizes = []
    for i, size in enumerate(node.shape(0)[2:]):
        span = (kernel[i] - 1) * dilations[i] + 1
        room = before[i] + size + after[i] - span
        count = (-(-room // strides[i]) if ceil else room // strides[i]) + 1
        if ceil and (count - 1) * strides[i] >= size + before[i]:
            count -= 1
        sizes.append(count)
    return kernel, strides, dilations, before, after, sizes


def _pool(
    node: Node, name: str, x: relax.Expr, fill: float, function: Any, window: tuple[list[int], ...]
) -> relax.Expr:
    """`function` over the elements of each window of `x`, which reads `fill` outside."""
    kernel, strides, dilations, before, _, sizes = window
    reach = [
        (o - 1) * s + (k - 1) * d + 1 - b
        for o, s, k, d, b in zip(sizes, strides, kernel, dilations, before, strict=True)
    ]
    shape = shape_of(x)
    after = [r - size for r, size in zip(reach, shape[2:], strict=True)]
    pads = [0, 0, *before], [0, 0, *(max(a, 0) for a in after)]

    def body(x: Any) -> Any:
        # Padded in the same function, whose schedule never stores the padded input.
        if any(pads[0]) or any(pads[1]):
            x = topi.nn.pad(x, *pads, literal(fill, x.dtype))
        taps = [te.reduce_axis((0, k), f"k{i}") for i, k in enumerate(kernel)]

        def element(*index: Any) -> Any:
            at = [o * s + k * d for o, s, k, d in zip(index[2:], strides, taps, dilations, strict=True)]
            return function(x(*index[:2], *at), axis=taps)

        return te.compute((*shape[:2], *sizes), element, name=name)

    return node.compute(name, body, x)


@converter("MaxPool")
def _max_pool(node: Node) -> Result:
    window = _window(node)
    pooled = _pool(node, "max_pool", node.expr(0), lowest(node.dtype(0)), maximum_of, window)
    return [pooled, _max_pool_indices(node, pooled, window)] if len(node.proto.output) > 1 else pooled


def _max_pool_indices(node: Node, pooled: relax.Expr, window: tuple[list[int], ...]) -> relax.Expr:
    """The flat position in input 0 of the first maximum of each window."""
    kernel, strides, dilations, before, _, _ = window
    shape, sizes = node.shape(0), node.shape(0)[2:]
    column_major = node.attribute("storage_order", 0)
    order = list(range(len(sizes)))[:: -1 if column_major else 1]
    total = math.prod(shape)

    def body(x: Any, largest: Any) -> Any:
        taps = [te.reduce_axis((0, k), f"k{i}") for i, k in enumerate(kernel)]

        def element(*index: Any) -> Any:
            at = [o * s + k * d - b for o, s, k, d, b in zip(index[2:], strides, taps, dilations, before, strict=True)]
            inside = tirx.all(*(tirx.all(a >= 0, a < size) for a, size in zip(at, sizes, strict=True)))
            held = tirx.if_then_else(inside, x(*index[:2], *at) == largest(*index), literal(0, "bool"))
            position: Any = index[0] * shape[1] + index[1]
            for axis in order:
                position = position * sizes[axis] + at[axis]
            return te.min(tirx.Select(held, position.astype("int64"), literal(total, "int64")), axis=taps)

        return te.compute(shape_of(pooled), element, name="max_pool_indices")

    return node.compute("max_pool_indices", body, node.expr(0), pooled)


@converter("AveragePool")
def _average_pool(node: Node) -> Result:
    window = _window(node)
    kernel, strides, dilations, before, after, sizes = window
    dtype, include = node.dtype(0), node.attribute("count_include_pad", 0)
    total = _pool(node, "sum_pool", node.expr(0), 0.0, te.sum, window)
    counts = []  # elements of the window of each output position, along each dimension
    for i, size in enumerate(node.shape(0)[2:]):
        low, high = (-before[i], size + after[i]) if include else (0, size)
        taps = np.arange(sizes[i])[:, None] * strides[i] - before[i] + np.arange(kernel[i]) * dilations[i]
        counts.append(((taps >= low) & (taps < high)).sum(1))
    count = np.array(1.0)
    for along in counts:
        count = np.multiply.outer(count, along)
    inverse: Array = (1 / count).astype(dtype)
    factor = (
        scalar(inverse.flat[0], dtype)
        if (inverse == inverse.flat[0]).all()
        else relax.const(inverse[None, None], dtype)
    )
    return node.emit(relax.op.multiply(total, factor))


@converter("LpPool")
def _lp_pool(node: Node) -> Result:
    p = node.attribute("p", 2)
    powers = elementwise(node, "power", lambda x: raised(tirx.abs(x), p))
    return _root(node, _pool(node, "sum_pool", powers, 0.0, te.sum, _window(node)), p)


def _root(node: Node, x: relax.Expr, p: float) -> relax.Expr:
    return x if p == 1 else node.emit(relax.op.power(x, scalar(1 / p, dtype_of(x))))


@converter("GlobalAveragePool", "GlobalMaxPool")
def _global_pool(node: Node) -> Result:
    kind = "ReduceMean" if node.proto.op_type == "GlobalAveragePool" else "ReduceMax"
    return reduce(node, kind, node.expr(0), tuple(range(2, len(node.shape(0)))), keep=True)


@converter("GlobalLpPool")
def _global_lp_pool(node: Node) -> Result:
    p = node.attribute("p", 2)
    powers = elementwise(node, "power", lambda x: raised(tirx.abs(x), p))
    return _root(node, node.emit(relax.op.sum(powers, list(range(2, len(node.shape(0)))), True)), p)


# --- softmax ---------------------------------------------------------------------------------------------------------


@converter("Softmax", "LogSoftmax")
def _softmax(node: Node) -> Result:
    function = relax.op.nn.softmax if node.proto.op_type == "Softmax" else relax.op.nn.log_softmax
    return _along(node, lambda x, axis: node.emit(function(x, axis)))


def _along(node: Node, function: Any) -> relax.Expr:
    """`function` along `axis`; before operator set 13 along all dimensions from `axis` on, taken as one."""
    shape = node.shape(0)
    if node.opset >= 13:
        return function(node.expr(0), node.attribute("axis", -1) % len(shape))
    axis = node.attribute("axis", 1) % len(shape)
    rows = reshape(node, node.expr(0), (math.prod(shape[:axis]), math.prod(shape[axis:])))
    return reshape(node, function(rows, 1), shape)


@converter("Hardmax")
def _hardmax(node: Node) -> Result:
    def hardmax(x: relax.Expr, axis: int) -> relax.Expr:
        shape, dtype = shape_of(x), dtype_of(x)

        def body(x: Any) -> Any:
            first = topi.argmax(x, axis, True)

            def element(*index: Any) -> Any:
                at = [literal(0, "int64") if i == axis else v for i, v in enumerate(index)]
                return (first(*at) == index[axis].astype(first.dtype)).astype(dtype)

            return te.compute(shape, element, name="hardmax")

        return node.compute("hardmax", body, x)

    return _along(node, hardmax)


# --- normalization ---------------------------------------------------------------------------------------------------


def _per_channel(node: Node, value: relax.Expr, rank: int) -> relax.Expr:
    return reshape(node, value, shape_of(value) + (1,) * (rank - 2))


@converter("BatchNormalization")
def _batch_norm(node: Node) -> Result:
    if node.attribute("training_mode", 0) or any(node.proto.output[1:]):
        raise node.refuse("it is in training mode; export the model for inference")
    rank, epsilon, parameters = len(node.shape(0)), node.attribute("epsilon", 1e-5), node.inputs[1:5]
    dtype = node.dtype(0)
    if all(isinstance(p, np.ndarray) for p in parameters):
        scale, bias, mean, variance = (np.asarray(p, np.float64) for p in parameters)
        slope = scale / np.sqrt(variance + epsilon)
        shape = (-1,) + (1,) * (rank - 2)
        factor, term = (relax.const(v.reshape(shape).astype(dtype), dtype) for v in (slope, bias - mean * slope))
        return node.emit(relax.op.add(node.emit(relax.op.multiply(node.expr(0), factor)), term))
    scale, bias, mean, variance = (cast(node, node.expr(i), dtype) for i in range(1, 5))
    deviation = node.emit(relax.op.sqrt(node.emit(relax.op.add(variance, scalar(epsilon, dtype)))))
    slope = node.emit(relax.op.divide(scale, deviation))
    centred = node.emit(relax.op.subtract(node.expr(0), _per_channel(node, mean, rank)))
    scaled = node.emit(relax.op.multiply(centred, _per_channel(node, slope, rank)))
    return node.emit(relax.op.add(scaled, _per_channel(node, bias, rank)))


def _standardize(node: Node, x: relax.Expr, inner: int, epsilon: float, dtype: str) -> list[relax.Expr]:
    """(x - mean) / sqrt(variance + epsilon) over the last `inner` dimensions, the mean, and the inverse deviation."""
    shape = shape_of(x)
    outer, count = shape[: len(shape) - inner], math.prod(shape[len(shape) - inner :])
    rank = len(outer)

    def body(x: Any) -> Any:
        def axes(name: str) -> list[Any]:
            return [te.reduce_axis((0, d), f"{name}{i}") for i, d in enumerate(shape[rank:])]

        first, second = axes("a"), axes("b")
        share = literal(1 / count, dtype)
        total = te.compute(outer, lambda *i: te.sum(x(*i, *first).astype(dtype), axis=first), name="total")
        mean = te.compute(outer, lambda *i: total(*i) * share, name="mean")

        def square(*i: Any) -> Any:
            centred = x(*i, *second).astype(dtype) - mean(*i)
            return te.sum(centred * centred, axis=second)

        squares = te.compute(outer, square, name="squares")
        inverse = te.compute(
            outer,
            lambda *i: literal(1, dtype) / tirx.sqrt(squares(*i) * share + literal(epsilon, dtype)),
            name="inverse",
        )
        out = te.compute(
            shape, lambda *i: (x(*i).astype(dtype) - mean(*i[:rank])) * inverse(*i[:rank]), name="standardize"
        )
        return [out, mean, inverse]

    results = node.compute("standardize", body, x)
    return [node.emit(relax.TupleGetItem(results, i)) for i in range(3)]


@converter("LayerNormalization")
def _layer_norm(node: Node) -> Result:
    shape, axis, dtype = node.shape(0), node.attribute("axis", -1), node.dtype(0)
    axis %= len(shape)
    working = "float64" if dtype == "float64" else "float32"
    x, *statistics = _standardize(node, node.expr(0), len(shape) - axis, node.attribute("epsilon", 1e-5), working)
    x = node.emit(relax.op.multiply(cast(node, x, dtype), node.expr(1)))
    if node.has(2):
        x = node.emit(relax.op.add(x, node.expr(2)))
    kept = shape[:axis] + (1,) * (len(shape) - axis)
    return [x, *(reshape(node, s, kept) for s in statistics[: max(len(node.proto.output) - 1, 0)])]


@converter("InstanceNormalization")
def _instance_norm(node: Node) -> Result:
    rank, dtype = len(node.shape(0)), node.dtype(0)
    x, _, _ = _standardize(node, node.expr(0), rank - 2, node.attribute("epsilon", 1e-5), dtype)
    x = node.emit(relax.op.multiply(x, _per_channel(node, node.expr(1), rank)))
    return node.emit(relax.op.add(x, _per_channel(node, node.expr(2), rank)))


@converter("GroupNormalization")
def _group_norm(node: Node) -> Result:
    shape, groups, dtype = node.shape(0), node.attribute("num_groups"), node.dtype(0)
    (n, c, *sizes), rank = shape, len(shape)
    x = reshape(node, node.expr(0), (n, groups, c // groups * math.prod(sizes)))
    x, _, _ = _standardize(node, x, 1, node.attribute("epsilon", 1e-5), dtype)
    x = reshape(node, x, shape)
    scale, bias = node.expr(1), node.expr(2)
    if shape_of(scale) == (groups,) and groups != c:  # before operator set 21: one number a group
        scale, bias = (reshape(node, node.emit(relax.op.repeat(v, c // groups, 0)), (c,)) for v in (scale, bias))
    x = node.emit(relax.op.multiply(x, _per_channel(node, scale, rank)))
    return node.emit(relax.op.add(x, _per_channel(node, bias, rank)))


@converter("LRN")
def _lrn(node: Node) -> Result:
    """The quotient x / (bias + alpha / size * sum of squares over `size` neighbouring channels) ^ beta."""
    size, dtype = node.attribute("size"), node.dtype(0)
    alpha, beta, bias = (node.attribute(k, v) for k, v in (("alpha", 1e-4), ("beta", 0.75), ("bias", 1.0)))
    rank = len(node.shape(0))
    before = (size - 1) // 2
    x = node.expr(0)
    squares = pad(
        node,
        node.emit(relax.op.multiply(x, x)),
        [0, before] + [0] * (rank - 2),
        [0, size - 1 - before] + [0] * (rank - 2),
        "constant",
    )

    def body(x: Any, squares: Any) -> Any:
        near = te.reduce_axis((0, size), "near")
        sums = te.compute(x.shape, lambda n, c, *i: te.sum(squares(n, c + near, *i), axis=near), name="neighbours")

        def element(*i: Any) -> Any:
            base = sums(*i) * literal(alpha / size, dtype) + literal(bias, dtype)
            return x(*i) * _negative_power(base, beta, dtype)

        return te.compute(x.shape, element, name="lrn")

    return node.compute("lrn", body, x, squares)


def _negative_power(base: Any, beta: float, dtype: str) -> Any:
    one = literal(1, dtype)
    if beta == 0.75:  # the usual one, by square roots, which vectorize
        root = tirx.sqrt(base)
        return one / (root * tirx.sqrt(root))
    return one / raised(base, beta)


@converter("LpNormalization")
def _lp_norm(node: Node) -> Result:
    p, axis = node.attribute("p", 2), node.attribute("axis", -1) % len(node.shape(0))
    x, dtype = node.expr(0), node.dtype(0)
    norm = reduce(node, "ReduceL1" if p == 1 else "ReduceL2", x, (axis,), keep=True)
    # All-zero vectors stay zero.
    safe = node.emit(relax.op.where(node.emit(relax.op.equal(norm, scalar(0, dtype))), scalar(1, dtype), norm))
    return node.emit(relax.op.divide(x, safe))
