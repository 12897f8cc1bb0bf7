"""Converters of operators that sample an image at other positions."""

from __future__ import annotations

from typing import Any

import numpy as np
from tvm import relax, te

from lwc_compiler.codegen.converters import Array, Node, Result, converter, dtype_of, literal, scalar, shape_of


def _coordinates(mode: str, size: int, out: int, scale: float, roi: tuple[float, float]) -> Array:
    """Where each of `out` positions lies in an input of `size` (ONNX Resize, coordinate_transformation_mode)."""
    i = np.arange(out, dtype=np.float64)
    if mode == "align_corners":
        return i * (size - 1) / (out - 1) if out > 1 else i * 0
    if mode == "asymmetric":
        return i / scale
    if mode == "tf_crop_and_resize":
        start, end = roi
        if out == 1:
            return np.array([0.5 * (start + end) * (size - 1)])
        return start * (size - 1) + i * (end - start) * (size - 1) / (out - 1)
    if mode == "pytorch_half_pixel":
        return (i + 0.5) / scale - 0.5 if out > 1 else i * 0 - 0.5 + 0.5
    if mode == "tf_half_pixel_for_nn":
        return (i + 0.5) / scale
    offset = 0.0
    if mode == "half_pixel_symmetric":
        offset = size / 2 * (1 - out / (scale * size))
    return offset + (i + 0.5) / scale - 0.5


def _taps(node: Node, kind: str, coordinates: Array, size: int, scale: float) -> tuple[Array, Array]:
    """Positions (out, taps) and weights (out, taps) of the input elements that make each output along a dimension."""
    if kind == "nearest":
        rounding = node.attribute("nearest_mode", "round_prefer_floor" if node.opset > 10 else "floor")
        round_down, round_up = np.ceil(coordinates - 0.5), np.floor(coordinates + 0.5)
        nearest = {
            "round_prefer_floor": round_down, "round_prefer_ceil": round_up,
            "floor": np.floor(coordinates), "ceil": np.ceil(coordinates),
        }[rounding]  # fmt: skip
        return np.clip(nearest, 0, size - 1).astype(np.int32)[:, None], np.ones((len(coordinates), 1))
    stretch = max(1.0, 1 / scale) if node.attribute("antialias", 0) else 1.0
    radius = (1 if kind == "linear" else 2) * stretch
    first = np.floor(coordinates - radius).astype(np.int64) + 1
    count = int(np.ceil(2 * radius)) + (1 if stretch > 1 else 0)
    positions = first[:, None] + np.arange(count)
    distance = np.abs(positions - coordinates[:, None]) / stretch
    if kind == "linear":
        weights = np.maximum(1 - distance, 0)
    else:
        a = node.attribute("cubic_coeff_a", -0.75)
        near = (a + 2) * distance**3 - (a + 3) * distance**2 + 1
        far = a * distance**3 - 5 * a * distance**2 + 8 * a * distance - 4 * a
        weights = np.where(distance <= 1, near, np.where(distance < 2, far, 0))
    if node.attribute("exclude_outside", 0):
        weights = np.where((positions < 0) | (positions >= size), 0, weights)
    weights = weights / weights.sum(1, keepdims=True)
    return np.clip(positions, 0, size - 1).astype(np.int32), weights


@converter("Resize", "Upsample", constant=(1, 2, 3))
def _resize(node: Node) -> Result:
    """Interpolation is separable: one dimension after the other, each output a weighted sum of few inputs."""
    shape, dtype = node.shape(0), node.dtype(0)
    kind = node.attribute("mode", "nearest")
    upsample = node.proto.op_type == "Upsample"
    old = upsample or node.opset < 11
    mode = "asymmetric" if old else node.attribute("coordinate_transformation_mode", "half_pixel")
    axes = [a % len(shape) for a in node.attribute("axes", range(len(shape)))]
    scales = node.constant(1 if old else 2)
    if upsample and "scales" in node.attributes:
        scales = np.array(node.attribute("scales"))
    sizes = None if old else node.integers(3, "sizes")
    if sizes:
        factors = [s / shape[a] for s, a in zip(sizes, axes, strict=True)]
        policy = node.attribute("keep_aspect_ratio_policy", "stretch")
        if policy != "stretch":
            factor = min(factors) if policy == "not_larger" else max(factors)
            factors = [factor] * len(axes)
            sizes = [int(np.floor(factor * shape[a] + 0.5)) for a in axes]
    else:
        assert scales is not None
        factors = [float(s) for s in np.ravel(scales)]
        sizes = [int(np.floor(shape[a] * np.float32(s))) for s, a in zip(factors, axes, strict=True)]
    region = node.constant(1) if mode == "tf_crop_and_resize" else None
    x = node.expr(0)
    outside: list[tuple[int, Array]] = []
    for n, (axis, factor, out) in enumerate(zip(axes, factors, sizes, strict=True)):
        size = shape[axis]
        roi = (0.0, 1.0) if region is None else (float(region[n]), float(region[n + len(axes)]))
        if out == size and factor == 1 and region is None:
            continue
        coordinates = _coordinates(mode, size, out, factor, roi)
        if region is not None:
            outside.append((axis, (coordinates < 0) | (coordinates > size - 1)))
        x = _interpolate(node, x, axis, *_taps(node, kind, coordinates, size, factor))
    if outside and any(mask.any() for _, mask in outside):
        mask = np.zeros(shape_of(x), bool)
        for axis, hit in outside:
            mask |= hit.reshape([-1 if i == axis else 1 for i in range(len(shape))])
        fill = scalar(node.attribute("extrapolation_value", 0.0), dtype)
        x = node.emit(relax.op.where(relax.const(mask, "bool"), fill, x))
    return x


def _interpolate(node: Node, x: relax.Expr, axis: int, positions: Array, weights: Array) -> relax.Expr:
    """out[.., i, ..] = sum over t of weights[i, t] x[.., positions[i, t], ..] along `axis`."""
    shape, dtype = shape_of(x), dtype_of(x)
    out, count = positions.shape
    working = dtype if dtype in ("float32", "float64") else "float32"
    sizes = (*shape[:axis], out, *shape[axis + 1 :])
    ratio = out // shape[axis]
    repeats = bool(ratio) and count == 1 and np.array_equal(positions[:, 0], np.arange(out) // ratio)

    def body(x: Any, *tables: Any) -> Any:
        def element(*index: Any) -> Any:
            def pick(at: Any) -> Any:
                return x(*index[:axis], at, *index[axis + 1 :])

            i = index[axis]
            if repeats:
                return pick(i // ratio)
            if count == 1:
                return pick(tables[0](i, literal(0, "int64")))
            total: Any = None
            for t in range(count):
                tap = (i, literal(t, "int64"))
                term = pick(tables[0](*tap)).astype(working) * tables[1](*tap)
                total = term if total is None else total + term
            return total.astype(dtype)

        return te.compute(sizes, element, name="resize")

    tables = [] if repeats else [relax.const(positions, "int32")]
    if count > 1:
        tables.append(relax.const(weights.astype(working), working))
    return node.compute("resize", body, x, *tables)


@converter("GridSample")
def _grid_sample(node: Node) -> Result:
    rank = len(node.shape(0)) - 2
    if rank not in (2, 3):
        raise node.refuse(f"it has {rank} spatial dimensions; 2 and 3 are handled")
    method = {"linear": "bilinear", "cubic": "bicubic"}.get(
        node.attribute("mode", "linear"), node.attribute("mode", "linear")
    )
    if rank == 3 and method == "bicubic":
        raise node.refuse("cubic interpolation is handled in two dimensions")
    grid = node.emit(relax.op.permute_dims(node.expr(1), (0, rank + 1, *range(1, rank + 1))))
    return node.emit(
        relax.op.image.grid_sample(
            node.expr(0), grid, method=method, layout="NCHW" if rank == 2 else "NCDHW",
            padding_mode=node.attribute("padding_mode", "zeros"),
            align_corners=bool(node.attribute("align_corners", 0)),
        )
    )  # fmt: skip
