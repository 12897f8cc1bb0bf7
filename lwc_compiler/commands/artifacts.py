"""The commands that take an artifact, and `lwc targets`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

import lwc_compiler as lwc
from lwc_compiler.commands.output import print_json, print_table, shape_text, show_bench
from lwc_compiler.commands.parts import (
    PATH,
    Command,
    InputFile,
    directory_argument,
    force_option,
    json_option,
    via_option,
)
from lwc_compiler.errors import OptionError
from lwc_compiler.targets.target import Target


@click.command(cls=Command)
@directory_argument
@click.option(
    "--input",
    "inputs",
    multiple=True,
    type=InputFile(),
    metavar="NAME=FILE.npy",
    help="Value of an input; once for each input of the model.",
)
@click.option("--output-dir", type=PATH, required=True, metavar="DIR", help="Where <output>.npy files are written.")
@click.option("--threads", type=int, help="Threads, at least 1.  [default: what the artifact was compiled for]")
@via_option
@force_option
@json_option
def run(
    directory: Path,
    inputs: tuple[tuple[str, Path], ...],
    output_dir: Path,
    threads: int | None,
    via: str | None,
    force: bool,
    as_json: bool,
) -> None:
    """Runs the artifact DIRECTORY on .npy files."""
    from lwc_compiler.runtime.arrays import read_arrays, write_arrays

    opened = lwc.load(directory, threads) if via is None else lwc.load(directory, threads, via=via)
    with opened as session:
        outputs = session.run(read_arrays(inputs))
    files = write_arrays(output_dir, outputs, force=force)
    rows = [(name, outputs[name].dtype.name, outputs[name].shape, str(file)) for name, file in files.items()]
    if as_json:
        print_json({name: {"dtype": dtype, "shape": shape, "file": file} for name, dtype, shape, file in rows})
        return
    print_table(
        ("output", "dtype", "shape", "file"),
        [(name, dtype, shape_text(shape), file) for name, dtype, shape, file in rows],
    )


@click.command(cls=Command)
@directory_argument
@click.option(
    "--against",
    type=PATH,
    metavar="MODEL.onnx",
    help="Time ONNX Runtime on this model too; with --via that model compiled by lwc as it is.",
)
@via_option
@click.option("--threads", type=int, help="Threads of all, at least 1.  [default: what the artifact was compiled for]")
@click.option(
    "--seconds",
    type=click.FloatRange(min=0),
    default=3.0,
    show_default=True,
    help="Time to measure each of them for, at least 0.",
)
@click.option(
    "--layers",
    is_flag=True,
    help="Show where the time goes, layer by layer; with --against beside that model compiled by lwc as it is.",
)
@click.option(
    "--plots", type=PATH, metavar="DIR", help="With --layers: draw the layers into this folder.  [default: draw none]"
)
@json_option
def bench(
    directory: Path,
    against: Path | None,
    via: str | None,
    threads: int | None,
    seconds: float,
    layers: bool,
    plots: Path | None,
    as_json: bool,
) -> None:
    """Times an artifact and ONNX Runtime.

    Both get the same random inputs and run in turns; a figure is the median of many runs. With --via, ONNX Runtime
    does not take part: lwc's code is timed there.
    """
    from lwc_compiler.files import check_place
    from lwc_compiler.runtime import bench as module

    if plots is not None:
        if not layers:
            raise OptionError("--plots draws the layers: give --layers too")
        check_place(plots, force=True)
    result = module.bench(directory, against=against, threads=threads, seconds=seconds, layers=layers, via=via)
    if plots is not None:
        from lwc_compiler.report.plots import layer_time, plots_available, save_plots

        if plots_available():
            times = {entry.layer or entry.kernel: (entry.dense_ms, entry.ms) for entry in result.layers}
            save_plots({"layer-times": layer_time(times)}, plots)
    if as_json:
        print_json(asdict(result))
    else:
        show_bench(result)


@click.command(cls=Command)
@click.argument("path", metavar="MODEL.onnx|DIRECTORY", type=PATH)
@json_option
def inspect(path: Path, as_json: bool) -> None:
    """Shows every layer of a model or artifact.

    Of an artifact also the kernel a layer got, and why. FLOPs are those of one run; an open batch counts as 1.
    """
    from lwc_compiler.report.render import percent, quantity

    if path.is_dir():
        from lwc_compiler.runtime.artifact import read_artifact

        manifest = read_artifact(path).manifest
        if as_json:
            print_json(manifest.model_dump(mode="json"))
            return
        print_table(
            ("layer", "operator", "shape", "density %", "format", "kernel", "bytes", "FLOPs", "why"),
            [
                (
                    d.node,
                    d.op,
                    shape_text(d.shape),
                    percent(d.density),
                    d.storage,
                    d.kernel,
                    d.bytes,
                    quantity(d.flops),
                    d.why,
                )
                for d in manifest.layers
            ],
        )
        return
    from lwc_compiler.model import load_model
    from lwc_compiler.passes.normalize import normalize
    from lwc_compiler.report.document import to_json
    from lwc_compiler.report.table import layer_report

    report = layer_report(normalize(load_model(path), fold_batch_norm=False))
    if as_json:
        print_json(to_json(report))
        return
    rows = [
        (
            row.node,
            row.op,
            shape_text(row.shape),
            row.weights,
            percent(row.density),
            quantity(row.flops),
            row.kept_because,
        )
        for row in report.layers
    ]
    total = report.total
    rows.append(("total", "", "", total.weights, percent(total.density), quantity(total.flops), ""))
    print_table(("layer", "operator", "shape", "weights", "density %", "FLOPs", "kept because"), rows)


@click.command(cls=Command)
@json_option
def targets(as_json: bool) -> None:
    """Lists what code can be made for: processors, then boards."""
    from lwc_compiler.report.render import memory
    from lwc_compiler.targets import all_boards, all_targets, missing_features, missing_platform
    from lwc_compiler.targets.boards import BOARDS

    processors = all_targets()
    if as_json:
        print_json(
            [
                {
                    **asdict(target),
                    "features": sorted(target.features),
                    "variants": [variant.name for variant in target.variants],
                    "missing_here": missing_features(target),
                }
                for target in (*processors, *all_boards())
            ]
        )
        return

    def here(target: Target) -> str:
        missing = missing_features(target)
        return "another platform" if missing_platform(target) else f"no: {', '.join(missing)}" if missing else "yes"

    print_table(
        ("target", "vector bits", "runs here", "description"),
        [(t.name, t.vector_bits, here(t), t.description) for t in processors],
    )
    print_table(
        ("board", "processor", "RAM", "flash", "description"),
        [(b.name, b.target, memory(b.ram_bytes), memory(b.flash_bytes), b.description) for b in BOARDS],
    )
