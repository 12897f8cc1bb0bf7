"""What commands print on stdout: tables for people, JSON for programs."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from lwc_compiler.targets import find_target, missing_platform

if TYPE_CHECKING:
    from pathlib import Path

    from rich.table import Table

    import lwc_compiler as lwc
    from lwc_compiler.packing import PackedSizes
    from lwc_compiler.runtime.layer_times import LayerTime
    from lwc_compiler.runtime.manifest import Rounding
    from lwc_compiler.runtime.timing import Bench
    from lwc_compiler.targets.target import Target


def show_artifact(artifact: lwc.Artifact, as_json: bool) -> None:
    """What was compiled, and what to do next."""
    manifest, report = artifact.manifest, artifact.report
    if as_json:
        print_json({"directory": str(artifact.directory), "report": report, **manifest.model_dump(mode="json")})
        return
    total, sizes, check = report["total"], report["sizes"], manifest.verification
    click.echo(f"{artifact.directory}: code for {manifest.target}")
    for name, text in {
        "inputs": ", ".join(f"{spec.name} {spec.dtype} {shape_text(spec.shape)}" for spec in manifest.inputs),
        "outputs": ", ".join(f"{spec.name} {spec.dtype} {shape_text(spec.shape)}" for spec in manifest.outputs),
        "weights": f"{total['kept']:,} of {total['weights']:,} kept ({total['density']:.1%})",
        "size": f"{sizes['weights, dense']:,} bytes of dense weights became {_size(sizes, manifest.target)}",
        "error": check.skipped
        or f"{check.worst:.1e} of the output's scale from ONNX Runtime ({check.tolerance:g} allowed)"
        + (f", run by {check.emulator}" if check.emulator else ""),
        **({"rounding": _rounding(manifest.rounding)} if manifest.rounding else {}),
        "accuracy": _accuracy(report["passes"]),
    }.items():
        click.echo(f"  {name:<9} {text}")
    click.echo(f"next: {_next(artifact.directory, find_target(manifest.target))}")


def _size(sizes: dict[str, int], target: str) -> str:
    """What a network takes that was compiled."""
    if "flash" in sizes:
        return f"{sizes['flash']:,} bytes of flash, with {sizes['workspace']:,} bytes of RAM for a run"
    return f"{'C source' if find_target(target).source else 'a library'} of {sizes['library']:,} bytes"


def _next(directory: Path, target: Target) -> str:
    """What to do with an artifact: what can be run here, or on a board that this machine reaches."""
    name = shlex.quote(str(directory))
    inspect = f"lwc inspect {name}"
    if not (target.source or missing_platform(target)):
        return f"lwc bench {name} --against MODEL.onnx, {inspect}"
    if target.os == "linux" and not target.source and target.gpu is None:
        return f"lwc bench {name} --via ssh://USER@HOST, {inspect}"
    return f"{inspect}; {directory / 'README.md'} says how to link it"


def show_build(made: lwc.Build) -> None:
    """What a run made, measured and judged."""
    figures = made.figures
    rows: list[tuple[Any, ...]] = [
        (
            name,
            each.target,
            each.bytes,
            each.flash_bytes,
            each.ram_bytes,
            f"{each.speed.median_ms:.4g}" if each.speed else None,
            f"{each.speed.speedup:.2f}x {each.speed.against}" if each.speed else None,
        )
        for name, each in figures.targets.items()
    ]
    print_table(("target", "code for", "bytes", "flash", "RAM", "median ms", "ratio"), rows)
    if figures.packed_bytes is not None:
        click.echo(f"{made.packed}: {figures.packed_bytes:,} bytes")
    if quality := figures.quality:
        on = f"{quality.samples:,} samples of {quality.data}"
        click.echo(f"{quality.metric} {quality.value:.4g}, of the original {quality.dense:.4g}, on {on}")
    show_gates(made.gates)
    click.echo(f"wrote {made.directory}")


def show_gates(gates: Sequence[lwc.GateResult]) -> None:
    """What became of every gate, a line each."""
    for gate in gates:
        click.echo(f"{gate.verdict:<7} {gate.message}")


def show_packed(path: Path, sizes: PackedSizes, as_json: bool) -> None:
    """What each tensor takes in a packed file."""
    from lwc_compiler.report.render import percent

    if as_json:
        print_json({"file": str(path), **sizes.to_json()})
        return
    rows: list[tuple[Any, ...]] = [
        (
            size.name,
            shape_text(size.shape),
            size.coding.layout,
            size.coding.values,
            percent(size.density),
            None if size.bits_per_index is None else f"{size.bits_per_index:.2f}",
            size.bytes,
            f"{size.ratio:.1f}x",
        )
        for size in sizes.tensors
    ]
    rows.append(("graph and small tensors", "", "deflated", None, "", None, sizes.graph_bytes, ""))
    rows.append(("total", "", "", None, "", None, sizes.bytes, f"{sizes.ratio:.1f}x"))
    print_table(("tensor", "shape", "layout", "values", "density %", "bits/index", "bytes", "smaller"), rows)
    click.echo(f"{path}: {sizes.dense_bytes:,} bytes of ONNX in {sizes.bytes:,}")


def show_bench(result: Bench) -> None:
    """The time of every engine, and of every layer where those were timed."""
    rows = [(t.engine, f"{t.median_ms:.4g}", f"{t.min_ms:.4g}", f"{t.p90_ms:.4g}", t.runs) for t in result.timings]
    print_table(("engine", "median ms", "min ms", "p90 ms", "runs"), rows)
    if result.layers:
        _show_layer_times(result.layers)
    threads = f"{result.threads} thread{'s' if result.threads > 1 else ''}"
    ratio = f"; {result.speedup:.2f}x {'lwc, not pruned' if result.where else 'ONNX Runtime'}" if result.speedup else ""
    click.echo(f"{threads}{f' by {result.where}' if result.where else ''}{ratio}")
    if result.where.startswith("qemu"):
        click.echo("an emulator's times say little of a processor's: measure on the board, --via ssh://USER@HOST")


def _show_layer_times(layers: Sequence[LayerTime]) -> None:
    from lwc_compiler.report.render import percent

    rows: list[tuple[Any, ...]] = [
        (
            entry.layer,
            entry.kernel,
            entry.format,
            None if entry.density is None else percent(entry.density),
            f"{entry.ms:.4g}",
            f"{100 * entry.share:.1f}",
            None if entry.gflops is None else f"{entry.gflops:.3g}",
            None if entry.dense_ms is None else f"{entry.dense_ms:.4g}",
            None if entry.dense_ms is None or not entry.ms else f"{entry.dense_ms / entry.ms:.2f}x",
        )
        for entry in layers
    ]
    columns = ("layer", "kernel", "format", "density %", "ms", "share %", "useful GFLOP/s", "not pruned, ms", "ratio")
    # The last two are about the model that was given to compare with.
    count = len(columns) if any(entry.dense_ms is not None for entry in layers) else len(columns) - 2
    print_table(columns[:count], [row[:count] for row in rows])


def _rounding(rounding: Rounding) -> str:
    return (
        f"outputs move by at most {rounding.worst:.2g} of their scale with the narrower weights "
        f"({rounding.tolerance:g} allowed; {rounding.measured_with})"
    )


def _accuracy(passes: Sequence[dict[str, Any]]) -> str:
    for entry in reversed(passes):
        if entry["pass"] == "prune":  # what was measured before is not this model's
            break
        if entry["pass"] == "retrain":
            before, after = (entry["history"][epoch]["metric"] for epoch in (0, entry["best_epoch"]))
            return (
                f"{entry['metric']} on validation data {before:.4g} before retraining, {after:.4g} after "
                f"(epoch {entry['best_epoch']})"
            )
    return "not measured, since there is no training data"


def shape_text(shape: Sequence[int]) -> str:
    """A shape as people write it: `3x224x224`."""
    return "x".join(str(size) for size in shape) or "scalar"


def print_json(values: Any) -> None:
    """One JSON document."""
    click.echo(json.dumps(values, indent=2, ensure_ascii=False))


def print_table(columns: Sequence[str], rows: Sequence[tuple[Any, ...]]) -> None:
    """A table; columns of numbers are aligned to the right, None is left empty."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD)
    for column, cells in zip(columns, zip(*rows, strict=True), strict=False):
        table.add_column(column, justify="right" if all(isinstance(cell, int | float) for cell in cells) else "left")
    for row in rows:
        table.add_row(*("" if cell is None else str(cell) for cell in row))
    print_rich(table)


def print_rich(table: Table) -> None:
    """A table of rich, as wide as the terminal."""
    from rich.console import Console

    # A pipe has no width: nothing is folded there.
    Console(width=None if sys.stdout.isatty() else 1000, markup=False).print(table)
