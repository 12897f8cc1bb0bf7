"""Rewrites of operators that move or mix elements: slices, padding, resizing, products of tensors (see `rewrites`)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from lwc_compiler.errors import UnsupportedError
from lwc_compiler.training.graph import IR_VERSION, OPSET, Node, TrainingGraph


def split(g: TrainingGraph, node: Node) -> bool:
    """The gradient of Split is wrong when an output is not used; slices have no such trouble."""
    if all(g.uses[name] for name in node.outputs):
        return False
    x = node.inputs[0]
    axis = node.attributes.get("axis", 0) % g.rank(x)
    start = 0
    for name in node.outputs:
        stop = start + g.shape(name)[axis]
        if name:
            g.add("Slice", x, g.indices(start), g.indices(stop), g.indices(axis), output=name)
        start = stop
    return True


def matmul_of_vectors(g: TrainingGraph, node: Node) -> bool:
    """MatMul with a 1-D operand as a product of matrices."""
    a, b = node.inputs
    ranks = g.rank(a), g.rank(b)
    if 1 not in ranks:
        return False
    left = g.add("Unsqueeze", a, g.indices(0)) if ranks[0] == 1 else a
    right = g.add("Unsqueeze", b, g.indices(1)) if ranks[1] == 1 else b
    product = g.add("MatMul", left, right)
    added = [axis for axis, rank in ((-2, ranks[0]), (-1, ranks[1])) if rank == 1]
    g.add("Squeeze", product, g.indices(*added), output=node.outputs[0])
    return True


def depth_to_space(g: TrainingGraph, node: Node) -> bool:
    x, block = node.inputs[0], node.attributes["blocksize"]
    n, c, h, w = g.shape(x)
    depth = c // block**2
    if node.attributes.get("mode", "DCR") == "DCR":
        shape, order = (n, block, block, depth, h, w), [0, 3, 4, 1, 5, 2]
    else:
        shape, order = (n, depth, block, block, h, w), [0, 1, 4, 2, 5, 3]
    moved = g.add("Transpose", g.add("Reshape", x, g.indices(*shape)), perm=order)
    g.add("Reshape", moved, g.indices(n, depth, h * block, w * block), output=node.outputs[0])
    return True


def space_to_depth(g: TrainingGraph, node: Node) -> bool:
    x, block = node.inputs[0], node.attributes["blocksize"]
    n, c, h, w = g.shape(x)
    cells = g.add("Reshape", x, g.indices(n, c, h // block, block, w // block, block))
    moved = g.add("Transpose", cells, perm=[0, 3, 5, 1, 2, 4])
    g.add("Reshape", moved, g.indices(n, c * block**2, h // block, w // block), output=node.outputs[0])
    return True


def pad(g: TrainingGraph, node: Node) -> bool:
    """Modes that repeat elements become a Gather an axis; constant padding of some axes is spelled out for all."""
    x, mode = node.inputs[0], node.attributes.get("mode", "constant")
    shape = g.shape(x)
    if node.inputs[1] not in g.constants:
        raise UnsupportedError(f"{node}: pads that are computed have no gradient")
    amounts = [int(amount) for amount in g.constants[node.inputs[1]]]
    axes = [int(a) % len(shape) for a in g.constants[node.input(3)]] if node.input(3) else list(range(len(shape)))
    begin, end = amounts[: len(axes)], amounts[len(axes) :]
    if mode == "constant":
        if not node.input(3):
            return False
        full = np.zeros((2, len(shape)), np.int64)
        full[0, axes], full[1, axes] = begin, end
        g.add("Pad", x, g.indices(*full.ravel().tolist()), node.input(2), output=node.outputs[0])
        return True
    value = x
    for axis, before, after in zip(axes, begin, end, strict=True):
        if before or after:
            index = np.pad(np.arange(shape[axis]), (before, after), mode=mode)  # the modes have the same names
            value = g.add("Gather", value, g.indices(*index.tolist()), axis=axis)
    g.add("Identity", value, output=node.outputs[0])
    return True


def einsum(g: TrainingGraph, node: Node) -> bool:
    """Two operands: one MatMul, (batch, rows, summed) x (batch, summed, columns); one operand: sum and transpose."""
    equation = node.attributes["equation"].replace(" ", "")
    left, _, result = equation.partition("->")
    terms = left.split(",")
    if "." in equation or "->" not in equation or len(terms) > 2 or any(len(set(t)) < len(t) for t in [*terms, result]):
        raise UnsupportedError(f"{node}: equation '{equation}' has no gradient; retraining takes one or two operands")
    sizes = {c: d for t, name in zip(terms, node.inputs, strict=True) for c, d in zip(t, g.shape(name), strict=True)}

    def arranged(name: str, term: str, order: str, shape: list[int] | None) -> str:
        lost = [index for index, c in enumerate(term) if c not in order]
        if lost:
            name = g.add("ReduceSum", name, g.indices(*lost), keepdims=0)
            term = "".join(c for c in term if c in order)
        if term != order:
            name = g.add("Transpose", name, perm=[term.index(c) for c in order])
        return name if shape is None else g.add("Reshape", name, g.indices(*shape))

    def size(letters: str) -> int:
        return int(np.prod([sizes[c] for c in letters], dtype=np.int64))

    if len(terms) == 1:
        g.add("Identity", arranged(node.inputs[0], left, result, None), output=node.outputs[0])
        return True
    a, b = terms
    batch = "".join(c for c in result if c in a and c in b)
    rows = "".join(c for c in result if c in a and c not in b)
    columns = "".join(c for c in result if c in b and c not in a)
    summed = "".join(c for c in a if c in b and c not in result)
    first = arranged(node.inputs[0], a, batch + rows + summed, [size(batch), size(rows), size(summed)])
    second = arranged(node.inputs[1], b, batch + summed + columns, [size(batch), size(summed), size(columns)])
    product = g.add("MatMul", first, second)
    letters = batch + rows + columns
    shaped = g.add("Reshape", product, g.indices(*(sizes[c] for c in letters)))
    g.add("Identity", arranged(shaped, letters, result, None), output=node.outputs[0])
    return True


def resize(g: TrainingGraph, node: Node) -> bool:
    """Resizing is linear along each axis: a product with a matrix an axis, whatever the mode."""
    x, y = node.inputs[0], node.outputs[0]
    before, after = g.shape(x), g.shape(y)
    if node.attributes.get("coordinate_transformation_mode") == "tf_crop_and_resize":
        raise UnsupportedError(f"{node}: tf_crop_and_resize has no gradient")
    scales = g.constants.get(node.input(2))
    value = x
    for axis, (size, wanted) in enumerate(zip(before, after, strict=True)):
        scale = None
        if scales is not None and scales.size:
            axes = node.attributes.get("axes") or list(range(len(before)))
            scale = float(scales[axes.index(axis)]) if axis in axes else 1.0
        if size == wanted and scale in (None, 1.0):
            continue
        matrix = resize_matrix(node, size, wanted, scale)
        if axis == len(before) - 1:
            value = g.add("MatMul", value, g.constant(matrix.T))
        elif axis == len(before) - 2:
            value = g.add("MatMul", g.constant(matrix), value)
        else:
            raise UnsupportedError(f"{node}: resizing axis {axis} has no gradient; retraining takes the last two axes")
    g.add("Identity", value, output=y)
    return True


def resize_matrix(node: Node, size: int, wanted: int, scale: float | None) -> NDArray[np.float32]:
    """(wanted, size) matrix of a one-dimensional Resize: what ONNX Runtime makes of the unit vectors."""
    from lwc_compiler.training.session import open_session

    kept = {k: v for k, v in node.attributes.items() if k not in ("axes", "keep_aspect_ratio_policy")}
    inputs = ["x", "", "scales"] if scale is not None else ["x", "", "", "sizes"]
    values: dict[str, NDArray[Any]] = {
        "scales": np.array([1, 1, scale or 1, 1], np.float32),
        "sizes": np.array([size, 1, wanted, 1], np.int64),
        "x": np.eye(size, dtype=np.float32).reshape(size, 1, size, 1),
    }
    graph = helper.make_graph(
        [helper.make_node("Resize", inputs, ["y"], **kept)],
        "resize",
        [],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(values[name], name) for name in inputs if name],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    result: NDArray[np.float32] = open_session(model, threads=1).run(None, {})[0]
    return np.ascontiguousarray(result[:, 0, :, 0].T)


RULES: dict[str, Callable[[TrainingGraph, Node], bool]] = {
    "DepthToSpace": depth_to_space,
    "Einsum": einsum,
    "MatMul": matmul_of_vectors,
    "Pad": pad,
    "Resize": resize,
    "SpaceToDepth": space_to_depth,
    "Split": split,
}
