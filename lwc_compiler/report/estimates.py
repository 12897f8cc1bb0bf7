"""What an estimate found: plain data, and the cells of its tables."""

from __future__ import annotations

from dataclasses import dataclass

from lwc_compiler.report.render import percent, quantity


@dataclass(frozen=True)
class Point:
    """What to expect of the network at one sparsity, on one core or on a GPU.

    Attributes:
        structure: of the zeros; empty for the network as it is.
        sparsity: pruned / all weights of the layers that are pruned.
        density: kept / all weights of all layers.
        seconds: latency of a run; None where the target's clock is not known.
        cycles: predicted cycles of a run; None where kernels are measured.
        measured: share of the latency that rests on measured kernels; the rest is predicted.
        file_bytes: of the library; without an operating system: of flash.
        ram_bytes: of the workspace, inputs, outputs and, under an operating system, the library.
        flops: multiply-adds x 2 over the kept weights.
        fits: whether the target's memory is enough; true where it has no limit.
    """

    structure: str
    sparsity: float
    density: float
    seconds: float | None
    cycles: float | None
    measured: float
    file_bytes: int
    ram_bytes: int
    flops: int
    fits: bool


@dataclass(frozen=True)
class LayerEstimate:
    """A linear layer, or several that one kernel computes where they are sparse.

    Attributes:
        nodes: ONNX nodes.
        op: ONNX operator type.
        shape: of the first node's weight.
        share: of the latency of the network as it is.
        kept_because: why it is not pruned; None where it is.
        pays: structure -> density up to which leaving weights out is faster than storing all; None: at none.
    """

    nodes: tuple[str, ...]
    op: str
    shape: tuple[int, ...]
    share: float
    kept_because: str | None
    pays: dict[str, float | None]


@dataclass(frozen=True)
class Estimate:
    """What to expect of a network before it is pruned.

    Attributes:
        model: its name.
        target: what it was estimated for.
        batch: images, or other inputs, of a run.
        criterion: how the density is shared among the layers.
        dense: the network as it is.
        points: the network pruned, structure by structure, by ascending sparsity.
        layers: in the order of the graph.
        notes: what else there is to say: points that are not there and why, how far figures can be trusted.
    """

    model: str
    target: str
    batch: int
    criterion: str
    dense: Point
    points: tuple[Point, ...]
    layers: tuple[LayerEstimate, ...]
    notes: tuple[str, ...] = ()


def point_cells(estimate: Estimate) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Columns and rows of the table of the network."""
    timed = estimate.dense.seconds is not None
    limited = not all(point.fits for point in (estimate.dense, *estimate.points))
    columns = (
        "structure",
        "sparsity %",
        "latency ms" if timed else "Mcycles",
        "times faster",
        "file bytes",
        "RAM bytes",
        "FLOPs",
    )
    rows = []
    for point in (estimate.dense, *estimate.points):
        latency = _milliseconds(point.seconds) if point.seconds is not None else f"{(point.cycles or 0) / 1e6:.4g}"
        cells = (
            point.structure or "dense",
            f"{100 * point.sparsity:g}",
            latency,
            f"{_time(estimate.dense) / _time(point):.2f}",
            quantity(point.file_bytes),
            quantity(point.ram_bytes),
            quantity(point.flops),
            *((f"{100 * point.measured:.0f} %",) if point.cycles is None else ()),
            *(("yes" if point.fits else "no",) if limited else ()),
        )
        rows.append(cells)
    measured = ("measured",) if estimate.dense.cycles is None else ()
    return (*columns, *measured, *(("fits",) if limited else ())), rows


def layer_cells(estimate: Estimate) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Columns and rows of the table of the layers."""
    structures = list(dict.fromkeys(point.structure for point in estimate.points))
    columns = ("layer", "operator", "shape", "time %", *(f"{name} pays up to density %" for name in structures))
    rows = []
    for layer in estimate.layers:
        pays = [layer.pays.get(name) for name in structures]
        cells = ["never" if density is None else percent(density) for density in pays]
        if layer.kept_because is not None:
            cells = [f"kept: {layer.kept_because}", *[""] * (len(structures) - 1)]
        shape = "x".join(map(str, layer.shape))
        rows.append((" + ".join(layer.nodes), layer.op, shape, percent(layer.share), *cells))
    return columns, rows


def _time(point: Point) -> float:
    return point.seconds if point.seconds is not None else point.cycles or 0.0


def _milliseconds(seconds: float) -> str:
    return f"{1e3 * seconds:.4g}"
