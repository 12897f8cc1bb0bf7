"""Converters of operators that move data: shapes, slices, gathers, scatters, concatenation, padding."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from tvm import relax, te, tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as script

from lwc_compiler.codegen.converters import (
    Node,
    Result,
    cast,
    converter,
    dtype_of,
    literal,
    normalized,
    numpy_name,
    shape_of,
)


def reshape(node: Node, x: relax.Expr, shape: Sequence[int]) -> relax.Expr:
    if 0 in shape:
        return relax.const(np.zeros(shape, dtype_of(x)))
    return x if shape_of(x) == tuple(shape) else node.emit(relax.op.reshape(x, tuple(shape)))


# --- shapes ----------------------------------------------------------------------------------------------------------


@converter("Shape")
def _shape(node: Node) -> Result:
    shape = node.shape(0)
    return np.array(shape[slice(node.attribute("start", 0), node.attribute("end"))], np.int64)


@converter("Size")
def _size(node: Node) -> Result:
    return np.array(math.prod(node.shape(0)), np.int64)


@converter("EyeLike")
def _eye_like(node: Node) -> Result:
    rows, columns = node.shape(0)
    element_type = node.attribute("dtype")
    dtype = node.dtype(0) if element_type is None else numpy_name(element_type, node)
    return np.eye(rows, columns, node.attribute("k", 0), np.dtype(dtype))


@converter("Reshape", constant=(1,))
def _reshape(node: Node) -> Result:
    shape, target = node.shape(0), node.integers(1, "shape")
    assert target is not None
    if not node.attribute("allowzero", 0):
        target = [shape[i] if d == 0 else d for i, d in enumerate(target)]
    if -1 in target:
        rest = math.prod(d for d in target if d != -1)
        target[target.index(-1)] = math.prod(shape) // rest
    return reshape(node, node.expr(0), target)


@converter("Flatten")
def _flatten(node: Node) -> Result:
    shape, axis = node.shape(0), node.attribute("axis", 1)
    axis = axis + len(shape) if axis < 0 else axis
    return reshape(node, node.expr(0), (math.prod(shape[:axis]), math.prod(shape[axis:])))


@converter("Squeeze", constant=(1,))
def _squeeze(node: Node) -> Result:
    shape, axes = node.shape(0), node.integers(1, "axes")
    dropped = [i for i, d in enumerate(shape) if d == 1] if axes is None else normalized(axes, len(shape))
    return reshape(node, node.expr(0), [d for i, d in enumerate(shape) if i not in dropped])


@converter("Unsqueeze", constant=(1,))
def _unsqueeze(node: Node) -> Result:
    shape, axes = node.shape(0), node.integers(1, "axes")
    assert axes is not None
    rank = len(shape) + len(axes)
    added, rest = normalized(axes, rank), iter(shape)
    return reshape(node, node.expr(0), [1 if i in added else next(rest) for i in range(rank)])


@converter("Transpose")
def _transpose(node: Node) -> Result:
    return node.emit(relax.op.permute_dims(node.expr(0), node.attribute("perm")))


@converter("DepthToSpace")
def _depth_to_space(node: Node) -> Result:
    (n, c, h, w), b = node.shape(0), node.attribute("blocksize")
    if node.attribute("mode", "DCR") == "DCR":
        split, order = (n, b, b, c // b**2, h, w), (0, 3, 4, 1, 5, 2)
    else:
        split, order = (n, c // b**2, b, b, h, w), (0, 1, 4, 2, 5, 3)
    x = node.emit(relax.op.permute_dims(reshape(node, node.expr(0), split), order))
    return reshape(node, x, (n, c // b**2, h * b, w * b))


@converter("SpaceToDepth")
def _space_to_depth(node: Node) -> Result:
    (n, c, h, w), b = node.shape(0), node.attribute("blocksize")
    x = reshape(node, node.expr(0), (n, c, h // b, b, w // b, b))
    order = (0, 3, 5, 1, 2, 4) if node.attribute("mode", "DCR") == "DCR" else (0, 1, 3, 5, 2, 4)
    return reshape(node, node.emit(relax.op.permute_dims(x, order)), (n, c * b * b, h // b, w // b))


@converter("Expand", constant=(1,))
def _expand(node: Node) -> Result:
    target = node.integers(1, "shape")
    assert target is not None
    shape = np.broadcast_shapes(node.shape(0), tuple(target))
    return node.inputs[0] if shape == node.shape(0) else node.emit(relax.op.broadcast_to(node.expr(0), shape))


@converter("Tile", constant=(1,))
def _tile(node: Node) -> Result:
    return node.emit(relax.op.tile(node.expr(0), node.integers(1, "repeats")))


@converter("Concat")
def _concat(node: Node) -> Result:
    given = [node.expr(i) for i in range(len(node.inputs)) if 0 not in node.shape(i)]
    if not given:
        axis = node.attribute("axis", 1)
        shape = list(node.shape(0))
        shape[axis] = sum(node.shape(i)[axis] for i in range(len(node.inputs)))
        return np.zeros(shape, node.dtype(0))
    return given[0] if len(given) == 1 else node.emit(relax.op.concat(given, node.attribute("axis", 1)))


@converter("Split", constant=(1,))
def _split(node: Node) -> Result:
    axis, sizes = node.attribute("axis", 0), node.integers(1, "split")
    length = node.shape(0)[axis]
    if sizes is None:
        parts = node.attribute("num_outputs", len(node.proto.output))
        size = -(-length // parts)
        sizes = [min(size, length - i * size) for i in range(parts)]
    starts = np.cumsum([0, *sizes])
    return [slice_axis(node, node.expr(0), axis, int(s), n) for s, n in zip(starts[:-1], sizes, strict=True)]


def slice_axis(node: Node, x: relax.Expr, axis: int, start: int, size: int) -> relax.Expr:
    shape = shape_of(x)
    axis %= len(shape)
    starts = [start if i == axis else 0 for i in range(len(shape))]
    return strided(node, x, starts, [1] * len(shape), [size if i == axis else d for i, d in enumerate(shape)])


def strided(node: Node, x: relax.Expr, starts: Sequence[int], steps: Sequence[int], sizes: Sequence[int]) -> relax.Expr:
    """out[i] = x[start + i * step], one start, step and size a dimension."""
    if tuple(sizes) == shape_of(x) and all(s == 1 for s in steps):
        return x

    def body(x: Any) -> Any:
        return te.compute(
            sizes,
            lambda *index: x(*(i * t + s for i, t, s in zip(index, steps, starts, strict=True))),
            name="strided_slice",
        )

    return node.compute("strided_slice", body, x)


@converter("Slice", constant=(1, 2, 3, 4))
def _slice(node: Node) -> Result:
    shape = node.shape(0)
    begins, ends = node.integers(1, "starts"), node.integers(2, "ends")
    assert begins is not None and ends is not None
    axes = node.integers(3, "axes") or list(range(len(begins)))
    strides = node.integers(4, "steps") or [1] * len(begins)
    starts, steps, sizes = [0] * len(shape), [1] * len(shape), list(shape)
    for axis, begin, end, step in zip(axes, begins, ends, strides, strict=True):
        taken = range(shape[axis])[begin:end:step]
        axis %= len(shape)
        starts[axis], steps[axis], sizes[axis] = taken.start, step, len(taken)
    if 0 in sizes:
        return np.zeros(sizes, node.dtype(0))
    return strided(node, node.expr(0), starts, steps, sizes)


@converter("Pad", constant=(1, 2, 3))
def _pad(node: Node) -> Result:
    shape, mode = node.shape(0), node.attribute("mode", "constant")
    widths = node.integers(1, "pads" if "pads" in node.attributes else "paddings")
    assert widths is not None
    axes = node.integers(3, "axes")
    axes = list(range(len(shape))) if axes is None else [a % len(shape) for a in axes]
    before, after = [0] * len(shape), [0] * len(shape)
    for axis, b, a in zip(axes, widths[: len(axes)], widths[len(axes) :], strict=True):
        before[axis], after[axis] = b, a
    dtype = node.dtype(0)
    value = node.constant(2)
    fill = node.attribute("value", 0.0) if value is None else value.item()
    return pad(node, node.expr(0), before, after, mode, fill if dtype.startswith("float") else int(fill))


def pad(
    node: Node, x: relax.Expr, before: Sequence[int], after: Sequence[int], mode: str, fill: float = 0.0
) -> relax.Expr:
    """`x` with `before` and `after` elements added to each dimension; negative numbers take elements away."""
    shape, dtype = shape_of(x), str(x.ty.dtype)
    if not any(before) and not any(after):
        return x
    if mode == "constant" and min(*before, *after, 0) == 0 and dtype != "bool":
        widths = [w for pair in zip(before, after, strict=True) for w in pair]
        return node.emit(relax.op.nn.pad(x, widths, "constant", fill))
    sizes = [b + d + a for b, d, a in zip(before, shape, after, strict=True)]

    def source(i: Any, width: int, size: int) -> Any:
        i = i - width
        if mode == "edge":
            return tirx.max(literal(0, "int64"), tirx.min(literal(size - 1, "int64"), i))
        if mode == "wrap":
            return tirx.floormod(i, literal(size, "int64"))
        if size == 1:
            return literal(0, "int64")
        period = literal(2 * (size - 1), "int64")  # reflect: 0 1 .. n-1 n-2 .. 1, over and over
        i = tirx.floormod(i, period)
        return tirx.min(i, period - i)

    def body(x: Any) -> Any:
        def element(*index: Any) -> Any:
            if mode != "constant":
                return x(*(source(i, b, d) for i, b, d in zip(index, before, shape, strict=True)))
            inside = tirx.all(*(tirx.all(i >= b, i < b + d) for i, b, d in zip(index, before, shape, strict=True)))
            return tirx.if_then_else(
                inside, x(*(i - b for i, b in zip(index, before, strict=True))), literal(fill, dtype)
            )

        return te.compute(sizes, element, name="pad")

    return node.compute("pad", body, x)


@converter("Trilu", constant=(1,))
def _trilu(node: Node) -> Result:
    k, upper, dtype = node.constant(1), node.attribute("upper", 1), node.dtype(0)
    offset = 0 if k is None else int(k.item())

    def body(x: Any) -> Any:
        def element(*index: Any) -> Any:
            row, column = index[-2:]
            kept = column - row >= offset if upper else column - row <= offset
            return tirx.Select(kept, x(*index), literal(0, dtype))

        return te.compute(x.shape, element, name="trilu")

    return node.compute("trilu", body, node.expr(0))


@converter("OneHot", constant=(1,))
def _one_hot(node: Node) -> Result:
    count = node.constant(1)
    assert count is not None
    depth, shape = int(count.item()), node.shape(0)
    axis = node.attribute("axis", -1) % (len(shape) + 1)
    indices = cast(node, node.expr(0), "int64")

    def body(indices: Any, values: Any) -> Any:
        def element(*index: Any) -> Any:
            picked = indices(*index[:axis], *index[axis + 1 :])
            hit = tirx.any(picked == index[axis], picked + depth == index[axis])
            return tirx.Select(hit, values[1], values[0])

        return te.compute((*shape[:axis], depth, *shape[axis:]), element, name="one_hot")

    return node.compute("one_hot", body, indices, node.expr(2))


@converter("ReverseSequence")
def _reverse_sequence(node: Node) -> Result:
    batch, time = node.attribute("batch_axis", 1), node.attribute("time_axis", 0)

    def body(x: Any, lengths: Any) -> Any:
        def element(*index: Any) -> Any:
            length, i = lengths(index[batch]).astype("int64"), index[time]
            source = tirx.Select(i < length, length - 1 - i, i)
            return x(*(source if d == time else at for d, at in enumerate(index)))

        return te.compute(x.shape, element, name="reverse_sequence")

    return node.compute("reverse_sequence", body, *node.exprs())


# --- gather and scatter ----------------------------------------------------------------------------------------------


def _inside(index: Any, size: int) -> Any:
    """`index`, counted from the end where negative, kept inside the dimension: nothing is read beside a buffer."""
    index = index.astype("int64")
    index = tirx.Select(index < 0, index + size, index)
    return tirx.max(literal(0, "int64"), tirx.min(index, literal(size - 1, "int64")))


@converter("Gather")
def _gather(node: Node) -> Result:
    shape, indices_shape = node.shape(0), node.shape(1)
    axis = node.attribute("axis", 0) % len(shape)
    indices = node.inputs[1]
    if isinstance(indices, np.ndarray) and indices.size:
        flat = np.where(indices < 0, indices + shape[axis], indices).ravel()
        step = int(flat[1] - flat[0]) if flat.size > 1 else 1
        if indices.ndim <= 1 and step != 0 and (np.diff(flat) == step).all():  # a slice: no table of indices
            starts = [int(flat[0]) if i == axis else 0 for i in range(len(shape))]
            steps = [step if i == axis else 1 for i in range(len(shape))]
            sizes = [flat.size if i == axis else d for i, d in enumerate(shape)]
            x = strided(node, node.expr(0), starts, steps, sizes)
            return reshape(node, x, shape[:axis] + indices_shape + shape[axis + 1 :])
    rank = len(indices_shape)

    def body(x: Any, indices: Any) -> Any:
        def element(*index: Any) -> Any:
            picked = _inside(indices(*index[axis : axis + rank]), shape[axis])
            return x(*index[:axis], picked, *index[axis + rank :])

        return te.compute(shape[:axis] + indices_shape + shape[axis + 1 :], element, name="gather")

    return node.compute("gather", body, node.expr(0), node.expr(1))


@converter("GatherElements")
def _gather_elements(node: Node) -> Result:
    shape = node.shape(0)
    axis = node.attribute("axis", 0) % len(shape)

    def body(x: Any, indices: Any) -> Any:
        def element(*index: Any) -> Any:
            return x(*index[:axis], _inside(indices(*index), shape[axis]), *index[axis + 1 :])

        return te.compute(indices.shape, element, name="gather_elements")

    return node.compute("gather_elements", body, node.expr(0), node.expr(1))


@converter("GatherND")
def _gather_nd(node: Node) -> Result:
    shape, indices_shape, batch = node.shape(0), node.shape(1), node.attribute("batch_dims", 0)
    depth, outer = indices_shape[-1], len(indices_shape) - 1

    def body(x: Any, indices: Any) -> Any:
        def element(*index: Any) -> Any:
            picked = [_inside(indices(*index[:outer], literal(i, "int64")), shape[batch + i]) for i in range(depth)]
            return x(*index[:batch], *picked, *index[outer:])

        return te.compute(indices_shape[:-1] + shape[batch + depth :], element, name="gather_nd")

    return node.compute("gather_nd", body, node.expr(0), node.expr(1))


@converter("Compress", constant=(1,))
def _compress(node: Node) -> Result:
    x, axis, condition = node.expr(0), node.attribute("axis"), node.constant(1)
    assert condition is not None
    if axis is None:
        x, axis = reshape(node, x, (math.prod(node.shape(0)),)), 0
    kept = np.flatnonzero(condition)
    if kept.size == 0:
        shape = list(shape_of(x))
        shape[axis] = 0
        return np.zeros(shape, node.dtype(0))
    return node.emit(relax.op.take(x, relax.const(kept, "int64"), axis % len(shape_of(x))))


_UPDATES = {
    "none": lambda old, new: new,
    "add": lambda old, new: old + new,
    "mul": lambda old, new: old * new,
    "max": tirx.max,
    "min": tirx.min,
}


def _scatter(node: Node, name: str, count: int, place: Any, reduction: str) -> relax.Expr:
    """A copy of input 0 in which `count` elements of input 2, in order, update the elements where `place` says.

    Args:
        node: Scatter, ScatterElements or ScatterND.
        name: of the kernel.
        count: elements of input 2.
        place: (flat view of input 1, element number) -> flat position in input 0.
        reduction: key of `_UPDATES`.
    """
    size = math.prod(node.shape(0))
    update = _UPDATES[reduction]

    def body(x: Any, indices: Any, updates: Any) -> Any:
        def emit(ins: Any, outs: Any) -> Any:
            source, at, new, out = (script.buffer_proxy(b) for b in (*ins, *outs))
            with IRBuilder() as copy, script.serial(0, size) as i:
                out[i] = source[i]
            with IRBuilder() as scatter, script.serial(0, count) as i:
                position = place(at, i)
                out[position] = update(out[position], new[i])
            return tirx.SeqStmt([copy.get(), scatter.get()])

        operands = [x, indices, updates]
        buffers = [tirx.decl_buffer(t.shape, t.dtype) for t in (*operands, x)]
        return te.extern([x.shape], operands, emit, in_buffers=buffers[:3], out_buffers=buffers[3:], name=name)

    flat = [reshape(node, e, (math.prod(shape_of(e)),)) for e in node.exprs()]
    return reshape(node, node.compute(name, body, *flat), node.shape(0))


@converter("Scatter", "ScatterElements")
def _scatter_elements(node: Node) -> Result:
    shape, indices_shape = node.shape(0), node.shape(1)
    axis = node.attribute("axis", 0) % len(shape)
    if 0 in indices_shape:
        return node.inputs[0]

    def place(at: Any, i: Any) -> Any:
        position: Any = literal(0, "int64")
        for d, size in enumerate(shape):
            index = i // math.prod(indices_shape[d + 1 :]) % indices_shape[d]
            position = position * size + (_inside(at[i], size) if d == axis else index)
        return position

    return _scatter(node, "scatter_elements", math.prod(indices_shape), place, node.attribute("reduction", "none"))


@converter("ScatterND")
def _scatter_nd(node: Node) -> Result:
    shape, depth = node.shape(0), node.shape(1)[-1]
    run = math.prod(shape[depth:])
    count = math.prod(node.shape(2))
    if count == 0:
        return node.inputs[0]

    def place(at: Any, i: Any) -> Any:
        position: Any = literal(0, "int64")
        for d in range(depth):
            position = position * shape[d] + _inside(at[i // run * depth + d], shape[d])
        return position * run + i % run

    return _scatter(node, "scatter_nd", count, place, node.attribute("reduction", "none"))


# --- order -----------------------------------------------------------------------------------------------------------


@converter("TopK", constant=(1,))
def _top_k(node: Node) -> Result:
    """Ranks by counting, which needs no sort: an element's rank is how many others come before it."""
    count = node.integers(1, "k")
    assert count is not None
    k, shape = count[0], node.shape(0)
    axis = node.attribute("axis", -1) % len(shape)
    length, largest = shape[axis], bool(node.attribute("largest", 1))

    def along(index: Sequence[Any], at: Any) -> list[Any]:
        return [*index[:axis], at, *index[axis + 1 :]]

    def body(x: Any) -> Any:
        other, candidate = te.reduce_axis((0, length), "other"), te.reduce_axis((0, length), "candidate")

        def before(*index: Any) -> Any:
            mine, theirs = x(*index), x(*along(index, other))
            ahead = theirs > mine if largest else theirs < mine
            tie = tirx.all(theirs == mine, other < index[axis])
            return te.sum(tirx.any(ahead, tie).astype("int32"), axis=other)

        rank = te.compute(shape, before, name="rank")
        picked_shape = along(shape, k)

        def position(*index: Any) -> Any:
            here = rank(*along(index, candidate)) == index[axis].astype("int32")
            return te.sum(tirx.Select(here, candidate.astype("int64"), literal(0, "int64")), axis=candidate)

        indices = te.compute(picked_shape, position, name="indices")
        values = te.compute(picked_shape, lambda *index: x(*along(index, indices(*index))), name="values")
        return [values, indices]

    both = node.compute("top_k", body, node.expr(0))
    return [node.emit(relax.TupleGetItem(both, i)) for i in range(2)]


@converter("CumSum", "CumProd", constant=(1,))
def _cumulative(node: Node) -> Result:
    axis_value = node.constant(1)
    assert axis_value is not None
    shape, dtype = node.shape(0), node.dtype(0)
    axis = int(axis_value.item()) % len(shape)
    length, inner, outer = shape[axis], math.prod(shape[axis + 1 :]), math.prod(shape[:axis])
    exclusive, reverse = node.attribute("exclusive", 0), node.attribute("reverse", 0)
    product = node.proto.op_type == "CumProd"

    def body(x: Any) -> Any:
        def emit(ins: Any, outs: Any) -> Any:
            with IRBuilder() as builder:
                source, out = script.buffer_proxy(ins[0]), script.buffer_proxy(outs[0])
                with script.serial(0, outer) as o, script.serial(0, length) as step, script.serial(0, inner) as i:
                    at = length - 1 - step if reverse else step
                    here = (o * length + at) * inner + i
                    back = here + inner if reverse else here - inner
                    term = source[back if exclusive else here]
                    first = literal(1 if product else 0, dtype) if exclusive else source[here]
                    so_far = tirx.if_then_else(step == 0, literal(0, dtype), out[back])
                    joined = so_far * term if product else so_far + term
                    out[here] = tirx.if_then_else(step == 0, first, joined)
                return builder.get()

        buffers = [tirx.decl_buffer(x.shape, dtype) for _ in range(2)]
        return te.extern([x.shape], [x], emit, in_buffers=buffers[:1], out_buffers=buffers[1:], name="cumulative")

    x = reshape(node, node.expr(0), (math.prod(shape),))
    return reshape(node, node.compute("cumulative", body, x), shape)
