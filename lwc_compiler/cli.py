"""The command line: parse, call the API, print. Results go to stdout; progress, logs and errors to stderr."""

from __future__ import annotations

import logging
import os
import signal
import sys
import tempfile
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

import lwc_compiler as lwc
from lwc_compiler.cli_output import print_json, print_rich, print_table, shape_text, show_artifact, show_packed
from lwc_compiler.cli_progress import scan_progress, training_progress

DEFECT = 70  # EX_SOFTWARE of sysexits.h
INTERRUPTED = 128 + signal.SIGINT
TERMINATED = 128 + signal.SIGTERM

logger = logging.getLogger("lwc_compiler")


class _Command(click.Command):
    """A command with the options that every command has, and the recipe options of `parts`.

    The recipe options come from the recipe's classes, which take a while to import: they are made when they are needed.
    """

    def __init__(self, *args: Any, parts: Sequence[str] = (), **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._parts = tuple(parts)
        self._common: list[click.Parameter] = [
            click.Option(["-v", "--verbose"], is_flag=True, callback=_set_level, expose_value=False, help="Log more."),
            click.Option(
                ["--debug"], is_flag=True, callback=_set_debug, expose_value=False, help="Show an error's traceback."
            ),
        ]

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        if self._common:
            if self._parts:
                from lwc_compiler.cli_options import recipe_options

                self.params += recipe_options(self._parts)
            self.params += self._common
            self._common = []
        return super().get_params(ctx)


class _Group(click.Group):
    command_class = _Command

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)


class _InputFile(click.ParamType[tuple[str, Path]]):
    """`NAME=FILE`."""

    name = "file"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, Path]:
        name, equals, file = value.partition("=")
        if not (name and equals and file):
            self.fail(f"'{value}' is not of the form NAME=FILE.npy", param, ctx)
        return name, Path(file)


def _set_level(_ctx: click.Context, _option: click.Parameter, verbose: bool) -> None:
    logger.setLevel(logging.DEBUG if verbose else logging.INFO)


def _set_debug(ctx: click.Context, _option: click.Parameter, debug: bool) -> None:
    ctx.ensure_object(dict)["debug"] = debug


def _print_version(ctx: click.Context, _option: click.Parameter, wanted: bool) -> None:
    if wanted:
        from lwc_compiler.runtime.artifact import tool_versions

        tools = ", ".join(f"{tool} {version}" for tool, version in tool_versions().items())
        click.echo(f"lwc {lwc.__version__} ({tools})")
        ctx.exit()


_PATH = click.Path(path_type=Path, readable=False)  # what opens the file says what is wrong with it
_model = click.argument("model", type=_PATH)
_directory = click.argument("directory", type=_PATH)
_output_file = click.option(
    "-o", "--output", type=_PATH, required=True, metavar="FILE", help="ONNX file to write; its directory exists."
)
_force = click.option("--force", is_flag=True, help="Replace the output when it exists.")
_json = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
_DATA = (
    ".npz with one array for each input and `labels`, .npy with the only input, a folder with one folder of images for "
    "each class, or module:function that yields batches"
)
_val_data = click.option(
    "--val-data",
    metavar="DATA",
    help="Data the best epoch is chosen on; the same forms.  [default: the last tenth of the training data]",
)
_workdir = click.option(
    "--workdir",
    type=_PATH,
    metavar="DIR",
    help="Keep a checkpoint of every epoch here: the same command goes on from the last one.  [default: keep none]",
)


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_print_version,
    help="Show versions and exit.",
)
def cli() -> None:
    """Makes pruned neural networks smaller and faster: ONNX in, sparse machine code out.

    Results go to stdout; progress, logs and errors to stderr. `lwc COMMAND --help` explains a command.
    """


@cli.command("compile", parts=("prune", "retrain", "iterate", "lower"))
@_model
@click.option("-o", "--output", type=_PATH, metavar="DIR", help="Artifact to write.  [default: <model>.lwc]")
@click.option(
    "--recipe",
    type=_PATH,
    metavar="FILE.toml",
    help="Take options from a TOML file; those on the command line replace the file's.  [default: none]",
)
@click.option("--train-data", metavar="DATA", help=f"Retrain on this data: {_DATA}.  [default: do not retrain]")
@_val_data
@_workdir
@_force
@_json
def compile_command(
    model: Path,
    output: Path | None,
    recipe: Path | None,
    train_data: str | None,
    val_data: str | None,
    workdir: Path | None,
    force: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Compiles MODEL to an artifact.

    It is pruned, retrained, compacted and lowered, and the code is checked against ONNX Runtime. Without training data
    the model is pruned and lowered, and its accuracy is not measured. Without pruning options the zeros that it already
    has are used.
    """
    from lwc_compiler.cli_options import whole_recipe

    what = whole_recipe(recipe, train_data, val_data, options)
    directory = output or Path(f"{model.stem}.lwc")
    with training_progress() as progress:
        artifact = lwc.compile(model, directory, what, force=force, workdir=workdir, progress=progress)
    show_artifact(artifact, as_json)


@cli.command(parts=("prune",))
@_model
@_output_file
@click.option(
    "--data",
    metavar="DATA",
    help="Data that --criterion sensitivity and --score activation measure on, in the forms of --train-data, or the "
    "FILE.json of `lwc sensitivity`.  [default: none]",
)
@_force
@_json
def prune(model: Path, output: Path, data: str | None, force: bool, as_json: bool, **options: Any) -> None:
    """Sets the smallest weights of MODEL to zero."""
    from lwc_compiler.cli_options import part_of

    chosen = part_of(options, "prune")
    _check_file(output, force)
    _save(lwc.prune(model, chosen, data), output, as_json)


@cli.command(parts=("sensitivity",))
@_model
@click.option("--data", metavar="DATA", required=True, help=f"Data to measure on, with or without labels: {_DATA}.")
@click.option(
    "--budget",
    metavar="KIND=VALUE",
    help="Suggest the densities that lose least. density=D: this share of all weights is kept; flops=F: this share of "
    "the FLOPs is left; bytes=N: the weights pack into about N bytes.  [default: none]",
)
@click.option(
    "--workdir",
    type=_PATH,
    metavar="DIR",
    help="Keep every measurement here: the same command makes only those that are missing.  [default: keep none]",
)
@click.option("-o", "--output", type=_PATH, metavar="FILE.json", help="Write all points.  [default: none]")
@click.option(
    "--plots", type=_PATH, metavar="DIR", help="Draw the curves of all layers into this folder.  [default: draw none]"
)
@_force
@_json
def sensitivity(
    model: Path,
    data: str,
    budget: str | None,
    workdir: Path | None,
    output: Path | None,
    plots: Path | None,
    force: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Shows how good MODEL is when one layer alone is pruned.

    Nothing is retrained. With a budget, it suggests the densities that meet it with the least loss.
    """
    from lwc_compiler.cli_options import part_of
    from lwc_compiler.model import load_model
    from lwc_compiler.passes.normalize import normalize
    from lwc_compiler.passes.sensitivity import suggest
    from lwc_compiler.runtime.artifact import check_place
    from lwc_compiler.sparsity.allocation import Budget

    limit = None if budget is None else Budget.parse(budget)
    chosen = part_of(options, "sensitivity")
    if output is not None:
        _check_file(output, force)
    if plots is not None:
        check_place(plots, force=True)
    opened = normalize(load_model(model), fold_batch_norm=False)
    with scan_progress() as progress:
        found = lwc.sensitivity(opened, data, chosen, workdir=workdir, progress=progress)
    suggestion = None if limit is None else suggest(opened, found, limit)
    if output is not None:
        found.save(output, suggestion)
    if plots is not None:
        from lwc_compiler.report.plots import figure_of_scan, plots_available, save_plots

        if plots_available():
            suggested = None if suggestion is None else suggestion.densities
            save_plots({"sensitivity": figure_of_scan(found, suggested)}, plots)
    if as_json:
        print_json(found.to_json(suggestion))
        return
    columns, rows = found.cells(suggestion)
    print_table(columns, [tuple(row) for row in rows])
    dense = found.dense.loss if found.metric == "loss" else found.dense.accuracy
    click.echo(f"{found.metric} of the model as it is: {dense:.4g} on {found.samples} samples of {data}")
    click.echo("holds to: the lowest density without a loss above 1 %; quality: its threshold / standard deviation")
    if suggestion is not None:
        parts = " ".join(f"--density {name}={density:.4g}" for name, density in suggestion.densities.items())
        score = f" --score {found.score} --data {data}" if found.score == "activation" else ""
        click.echo(
            f"next: lwc prune {model} -o pruned.onnx --criterion per-layer --structure {found.structure}{score} {parts}"
        )


@cli.command(parts=("retrain",))
@_model
@_output_file
@click.option("--train-data", metavar="DATA", required=True, help=f"Data to train on: {_DATA}.")
@_val_data
@click.option(
    "--teacher",
    type=_PATH,
    metavar="FILE",
    help="Model to distil from, usually the one before pruning.  [default: none]",
)
@_workdir
@_force
@_json
def retrain(
    model: Path,
    output: Path,
    train_data: str,
    val_data: str | None,
    teacher: Path | None,
    workdir: Path | None,
    force: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Trains the weights of MODEL that are not zero."""
    from lwc_compiler.cli_options import part_of

    chosen = part_of(options, "retrain")
    _check_file(output, force)
    with training_progress() as progress:
        trained = lwc.retrain(model, train_data, val_data, chosen, teacher=teacher, workdir=workdir, progress=progress)
    _save(trained, output, as_json)


@cli.command(parts=("prune", "retrain", "iterate"))
@_model
@_output_file
@click.option("--train-data", metavar="DATA", required=True, help=f"Data to train on: {_DATA}.")
@_val_data
@_workdir
@_force
@_json
def iterate(
    model: Path,
    output: Path,
    train_data: str,
    val_data: str | None,
    workdir: Path | None,
    force: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Prunes and retrains MODEL in rounds, as far as its accuracy holds."""
    from lwc_compiler.cli_options import part_of

    goal, training, rounds = (part_of(options, part) for part in ("prune", "retrain", "iterate"))
    _check_file(output, force)
    with training_progress() as progress:
        pruned = lwc.iterate(
            model,
            train_data,
            val_data,
            prune=goal,
            retrain=training,
            options=rounds,
            workdir=workdir,
            progress=progress,
        )
    _save(pruned, output, as_json)


@cli.command()
@_model
@_output_file
@_force
@_json
def compact(model: Path, output: Path, force: bool, as_json: bool) -> None:
    """Removes the channels that pruning cut off.

    Those of MODEL whose inputs or outputs are all pruned go, and the outputs stay the same.
    """
    _check_file(output, force)
    _save(lwc.compact(model), output, as_json)


@cli.command(parts=("lower",))
@_model
@click.option("-o", "--output", type=_PATH, metavar="DIR", help="Artifact to write.  [default: <model>.lwc]")
@_force
@_json
def lower(model: Path, output: Path | None, force: bool, as_json: bool, **options: Any) -> None:
    """Compiles MODEL as it is, with its zeros.

    The code is checked against ONNX Runtime.
    """
    from lwc_compiler.cli_options import part_of

    artifact = lwc.lower(model, output or Path(f"{model.stem}.lwc"), part_of(options, "lower"), force=force)
    show_artifact(artifact, as_json)


@cli.command(parts=("pack",))
@_model
@click.option("-o", "--output", type=_PATH, metavar="FILE", help="File to write.  [default: <model>.lwcp]")
@_force
@_json
def pack(model: Path, output: Path | None, force: bool, as_json: bool, **options: Any) -> None:
    """Packs MODEL into one small file for shipping.

    It holds the weights that are not zero with relative indices, and `unpack` makes the ONNX file of it again. The
    table shows what takes how many bytes.
    """
    from lwc_compiler.cli_options import part_of
    from lwc_compiler.packing import sizes_of

    chosen = part_of(options, "pack")
    path = output or Path(f"{model.stem}.lwcp")
    _check_file(path, force)
    lwc.pack(model, path, chosen)
    show_packed(path, sizes_of(path), as_json)


@cli.command()
@click.argument("packed", type=_PATH)
@_output_file
@_force
@_json
def unpack(packed: Path, output: Path, force: bool, as_json: bool) -> None:
    """Makes the ONNX file of PACKED, a file that `pack` wrote."""
    _check_file(output, force)
    _save(lwc.unpack(packed), output, as_json)


@cli.command()
@_directory
@click.option(
    "--input",
    "inputs",
    multiple=True,
    type=_InputFile(),
    metavar="NAME=FILE.npy",
    help="Value of an input; once for each input of the model.",
)
@click.option("--output-dir", type=_PATH, required=True, metavar="DIR", help="Where <output>.npy files are written.")
@click.option("--threads", type=int, help="Threads, at least 1.  [default: what the artifact was compiled for]")
@_force
@_json
def run(
    directory: Path,
    inputs: tuple[tuple[str, Path], ...],
    output_dir: Path,
    threads: int | None,
    force: bool,
    as_json: bool,
) -> None:
    """Runs the artifact DIRECTORY on .npy files."""
    from lwc_compiler.runtime.arrays import read_arrays, write_arrays

    with lwc.load(directory, threads) as session:
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


@cli.command()
@_directory
@click.option("--against", type=_PATH, metavar="MODEL.onnx", help="Time ONNX Runtime on this model too.")
@click.option("--threads", type=int, help="Threads of both, at least 1.  [default: what the artifact was compiled for]")
@click.option(
    "--seconds",
    type=click.FloatRange(min=0),
    default=3.0,
    show_default=True,
    help="Time to measure each of the two for, at least 0.",
)
@_json
def bench(directory: Path, against: Path | None, threads: int | None, seconds: float, as_json: bool) -> None:
    """Times an artifact and ONNX Runtime.

    Both get the same random inputs and run in turns; a figure is the median of many runs.
    """
    from lwc_compiler.runtime import bench as module

    result = module.bench(directory, against=against, threads=threads, seconds=seconds)
    if as_json:
        print_json(asdict(result))
        return
    rows = [(t.engine, f"{t.median_ms:.4g}", f"{t.min_ms:.4g}", f"{t.p90_ms:.4g}", t.runs) for t in result.timings]
    print_table(("engine", "median ms", "min ms", "p90 ms", "runs"), rows)
    threads_text = f"{result.threads} thread{'s' if result.threads > 1 else ''}"
    click.echo(f"{threads_text}; {result.speedup:.2f}x ONNX Runtime" if result.speedup else threads_text)


@cli.command()
@click.argument("path", metavar="MODEL.onnx|DIRECTORY", type=_PATH)
@_json
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
                    d.format,
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
    from lwc_compiler.report.render import to_json
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
        for row in report.rows
    ]
    total = report.total
    rows.append(("total", "", "", total.weights, percent(total.density), quantity(total.flops), ""))
    print_table(("layer", "operator", "shape", "weights", "density %", "FLOPs", "kept because"), rows)


@cli.command()
@_model
@click.option("-o", "--output", type=_PATH, required=True, metavar="DIR", help="Report to write.")
@click.option(
    "--dense",
    type=_PATH,
    metavar="FILE",
    help="The model before pruning, whose weights the plots then show too.  [default: none]",
)
@click.option(
    "--data",
    metavar="DATA",
    help=f"Data to measure activations on: {_DATA}.  [default: none; Act% and FLOP% stay open]",
)
@_force
@_json
def report(model: Path, output: Path, dense: Path | None, data: str | None, force: bool, as_json: bool) -> None:
    """Writes the report of a pruned MODEL: report.md, report.json and plots."""
    from lwc_compiler.model import load_model
    from lwc_compiler.passes.normalize import normalize
    from lwc_compiler.report.activations import activations_on
    from lwc_compiler.report.render import to_json, to_rich
    from lwc_compiler.report.write import check_report_destination, write_report

    check_report_destination(output, force=force)
    pruned = normalize(load_model(model), fold_batch_norm=False)
    original = None if dense is None else normalize(load_model(dense), fold_batch_norm=False)
    activations = None if data is None else activations_on(pruned, data)
    written = write_report(output, pruned, original, activations=activations, force=force)
    if as_json:
        print_json(to_json(written))
        return
    print_rich(to_rich(written))
    click.echo(f"wrote {output}")


@cli.command()
@_json
def targets(as_json: bool) -> None:
    """Lists what code can be made for."""
    from lwc_compiler.targets import all_targets, missing_features

    listed = [(target, missing_features(target)) for target in all_targets()]
    if as_json:
        print_json([{**asdict(t), "features": sorted(t.features), "missing_here": missing} for t, missing in listed])
        return
    print_table(
        ("target", "vector bits", "runs here", "description"),
        [(t.name, t.vector_bits, f"no: {', '.join(m)}" if m else "yes", t.description) for t, m in listed],
    )


@cli.command()
@click.option(
    "-o",
    "--output",
    type=_PATH,
    metavar="DIR",
    help="Keep data, dense model and artifact here.  [default: keep nothing]",
)
@_json
def demo(output: Path | None, as_json: bool) -> None:
    """Shows the whole path on handwritten digits.

    Trains LeNet-300-100 on bundled images, prunes and retrains it to 12 times fewer weights, compiles it for this
    machine, and compares accuracy, size and speed with the dense network in ONNX Runtime.
    """
    from lwc_compiler.demo import run_demo, to_rich

    with training_progress() as progress:
        result = run_demo(output, progress=progress)
    if as_json:
        print_json(asdict(result))
    else:
        print_rich(to_rich(result))


@cli.command()
@click.argument("network", type=click.Choice(["lenet-300-100", "lenet-5", "alexnet", "vgg-16"]))
@click.option("-o", "--output", type=_PATH, metavar="DIR", help="Folder of results.  [default: reproduce-<network>]")
@click.option(
    "--data",
    type=click.Choice(["mnist", "fashion-mnist"]),
    default="mnist",
    show_default=True,
    help="What the LeNets are trained on; downloaded once.",
)
@click.option(
    "--seeds", type=click.IntRange(min=1), default=3, show_default=True, help="Runs of the LeNets, 1 or more."
)
@click.option("--figure-5", is_flag=True, help="Train the trade-off curves of figure 5 too, for the first seed.")
@click.option("--cache", type=_PATH, metavar="DIR", help="Keep data sets here.  [default: $LWC_CACHE, ~/.cache/lwc]")
@_json
def reproduce(
    network: str, output: Path | None, data: str, seeds: int, figure_5: bool, cache: Path | None, as_json: bool
) -> None:
    """Repeats the paper's results and shows them beside its own.

    The LeNets are trained, pruned and retrained on real images (tables 1 to 3 of Han et al. 2015). AlexNet and VGG-16
    get random weights at the paper's densities (tables 4 and 5): their accuracy takes ImageNet and is not measured. The
    same command with the same folder goes on where it was interrupted.
    """
    from lwc_compiler.reproduce.tables import to_rich

    folder = output or Path(f"reproduce-{network}")
    if network in ("alexnet", "vgg-16"):
        from lwc_compiler.reproduce import imagenet

        found = imagenet.summary(imagenet.reproduce_untrained(network, folder))
    else:
        from lwc_compiler.reproduce.datasets import cache_folder
        from lwc_compiler.reproduce.results import summary
        from lwc_compiler.reproduce.run import lenet_experiment, run

        with training_progress() as progress:
            experiment = lenet_experiment(network, data, cache or cache_folder())
            results = run(experiment, folder, seeds=range(seeds), figure_5=figure_5, progress=progress)
        found = summary(results)
    if as_json:
        print_json(found.figures)
        return
    for table in found.tables:
        print_rich(to_rich(table))
    click.echo(f"wrote {folder}")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command line and returns its exit code; `argv` is what follows `lwc`."""
    state: dict[str, Any] = {"debug": False, "interrupted": INTERRUPTED}
    try:
        with _logs_to_stderr(), _termination_unwinds(state):
            code = cli.main(args=argv, prog_name="lwc", standalone_mode=False, obj=state)
            sys.stdout.flush()
    except lwc.LwcError as error:
        _print_error(str(error), error, state["debug"])
        return error.exit_code
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        click.echo("interrupted: nothing was written", err=True)
        return int(state["interrupted"])
    except BrokenPipeError:
        # The reader has gone; what Python still holds for it must not fail once more at exit. click and rich exit
        # with 1 when it happens to them.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:  # a full disk, no permission: not lwc's fault
        where = f"{error.filename}: " if error.filename else ""
        temporary = f"temporary files are in {tempfile.gettempdir()}, which TMPDIR can change"
        _print_error(f"{where}{error.strerror or error}; {temporary}", error, state["debug"])
        return lwc.ArtifactError.exit_code
    except Exception as error:
        _print_error(f"{type(error).__name__}: {error}", error, state["debug"])
        click.echo(
            "this is a defect in lwc: please report it with the command, and what `lwc --version` and --debug print",
            err=True,
        )
        return DEFECT
    return code or 0


@contextmanager
def _logs_to_stderr() -> Iterator[None]:
    handler, before = _Handler(), (logger.level, logger.propagate)
    logger.addHandler(handler)
    # Packages that lwc imports give the root logger handlers of their own.
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.level, logger.propagate = before


class _Handler(logging.Handler):
    """Writes to whatever stderr is at that moment: a progress bar puts something in its place."""

    def emit(self, record: logging.LogRecord) -> None:
        prefix = f"{record.levelname.lower()}: " if record.levelno >= logging.WARNING else ""
        click.echo(prefix + record.getMessage(), err=True)


@contextmanager
def _termination_unwinds(state: dict[str, Any]) -> Iterator[None]:
    """SIGTERM ends the process the way Ctrl-C does, so that temporary files go."""

    def stop(*_: object) -> None:
        state["interrupted"] = TERMINATED
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _check_file(path: Path, force: bool) -> None:
    from lwc_compiler.runtime.artifact import check_file

    check_file(path, force=force)


def _save(model: lwc.Model, path: Path, as_json: bool) -> None:
    lwc.save(model, path)
    if as_json:
        print_json({"file": str(path), "passes": model.provenance})
    else:
        click.echo(f"wrote {path}")


def _print_error(message: str, error: Exception, debug: bool) -> None:
    if debug:
        traceback.print_exception(error)
    click.echo(f"error: {message}", err=True)
