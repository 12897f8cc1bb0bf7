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
from lwc_compiler.commands.artifacts import bench, inspect, run, targets
from lwc_compiler.commands.completion import completion
from lwc_compiler.commands.estimate import estimate
from lwc_compiler.commands.output import print_json, print_rich, print_table, show_artifact, show_packed
from lwc_compiler.commands.parts import (
    DATA,
    PATH,
    Group,
    allow_code_option,
    force_option,
    json_option,
    model_argument,
    no_cache_option,
    output_file,
    sarif_option,
    val_data_option,
    workdir_option,
)
from lwc_compiler.commands.progress import scan_progress, training_progress
from lwc_compiler.commands.recipe import build, gate, recipe_group
from lwc_compiler.commands.report import refusals_as_sarif, report

DEFECT = 70  # EX_SOFTWARE of sysexits.h
INTERRUPTED = 128 + signal.SIGINT
TERMINATED = 128 + signal.SIGTERM

logger = logging.getLogger("lwc_compiler")


def _print_version(ctx: click.Context, _option: click.Parameter, wanted: bool) -> None:
    if wanted:
        from lwc_compiler.runtime.artifact import tool_versions

        tools = ", ".join(f"{tool} {version}" for tool, version in tool_versions().items())
        click.echo(f"lwc {lwc.__version__} ({tools})")
        ctx.exit()


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
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
@model_argument
@click.option("-o", "--output", type=PATH, metavar="DIR", help="Artifact to write.  [default: <model>.lwc]")
@click.option(
    "--recipe",
    type=PATH,
    metavar="FILE.toml",
    help="Take options from a TOML file; those on the command line replace the file's.  [default: none]",
)
@click.option("--train-data", metavar="DATA", help=f"Retrain on this data: {DATA}.  [default: do not retrain]")
@val_data_option
@workdir_option
@allow_code_option
@sarif_option
@click.option(
    "--deterministic",
    is_flag=True,
    help="Same bytes for the same inputs: choose kernels by prediction and train on one thread.",
)
@no_cache_option
@force_option
@json_option
def compile_command(
    model: Path,
    output: Path | None,
    recipe: Path | None,
    train_data: str | None,
    val_data: str | None,
    workdir: Path | None,
    allow_code: bool,
    sarif: Path | None,
    deterministic: bool,
    no_cache: bool,
    force: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Compiles MODEL to an artifact.

    It is pruned, retrained, compacted and lowered, and the code is checked against ONNX Runtime. Without training data
    the model is pruned and lowered, and its accuracy is not measured. Without pruning options the zeros that it already
    has are used.
    """
    from lwc_compiler.commands.options import whole_recipe

    what = whole_recipe(recipe, train_data, val_data, options, allow_code=allow_code, deterministic=deterministic)
    directory = output or Path(f"{model.stem}.lwc")
    with refusals_as_sarif(sarif, model, force=force), training_progress() as progress:
        artifact = lwc.compile(
            model, directory, what, force=force, cache=not no_cache, workdir=workdir, progress=progress
        )
    show_artifact(artifact, as_json)


cli.add_command(estimate)
cli.add_command(build)
cli.add_command(recipe_group)


@cli.command(parts=("prune",))
@model_argument
@output_file
@click.option(
    "--data",
    metavar="DATA",
    help="Data that --criterion sensitivity and --score activation measure on, in the forms of --train-data, or the "
    "FILE.json of `lwc sensitivity`.  [default: none]",
)
@force_option
@json_option
def prune(model: Path, output: Path, data: str | None, force: bool, as_json: bool, **options: Any) -> None:
    """Sets the smallest weights of MODEL to zero."""
    from lwc_compiler.commands.options import part_of

    chosen = part_of(options, "prune")
    _check_file(output, force)
    _save(lwc.prune(model, chosen, data), output, as_json)


@cli.command(parts=("sensitivity",))
@model_argument
@click.option("--data", metavar="DATA", required=True, help=f"Data to measure on, with or without labels: {DATA}.")
@click.option(
    "--budget",
    metavar="KIND=VALUE",
    help="Suggest the densities that lose least. density=D: this share of all weights is kept; flops=F: this share of "
    "the FLOPs is left; bytes=N: the weights pack into about N bytes.  [default: none]",
)
@click.option(
    "--workdir",
    type=PATH,
    metavar="DIR",
    help="Keep every measurement here: the same command makes only those that are missing.  [default: keep none]",
)
@click.option("-o", "--output", type=PATH, metavar="FILE.json", help="Write all points.  [default: none]")
@click.option(
    "--plots", type=PATH, metavar="DIR", help="Draw the curves of all layers into this folder.  [default: draw none]"
)
@force_option
@json_option
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
    from lwc_compiler.commands.options import part_of
    from lwc_compiler.files import check_place
    from lwc_compiler.model import load_model
    from lwc_compiler.passes.normalize import normalize
    from lwc_compiler.passes.sensitivity import suggest
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
    dense = found.value(found.dense)
    click.echo(f"{found.metric} of the model as it is: {dense:.4g} on {found.samples} samples of {data}")
    click.echo("holds to: the lowest density without a loss above 1 %; quality: its threshold / standard deviation")
    if suggestion is not None:
        parts = " ".join(f"--density {name}={density:.4g}" for name, density in suggestion.densities.items())
        score = f" --score {found.score} --data {data}" if found.score == "activation" else ""
        click.echo(
            f"next: lwc prune {model} -o pruned.onnx --criterion per-layer --structure {found.structure}{score} {parts}"
        )


@cli.command(parts=("retrain",))
@model_argument
@output_file
@click.option("--train-data", metavar="DATA", required=True, help=f"Data to train on: {DATA}.")
@val_data_option
@click.option(
    "--teacher",
    type=PATH,
    metavar="FILE",
    help="Model to distil from, usually the one before pruning.  [default: none]",
)
@workdir_option
@force_option
@json_option
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
    from lwc_compiler.commands.options import part_of

    chosen = part_of(options, "retrain")
    _check_file(output, force)
    with training_progress() as progress:
        trained = lwc.retrain(model, train_data, val_data, chosen, teacher=teacher, workdir=workdir, progress=progress)
    _save(trained, output, as_json)


@cli.command(parts=("prune", "retrain", "iterate"))
@model_argument
@output_file
@click.option("--train-data", metavar="DATA", required=True, help=f"Data to train on: {DATA}.")
@val_data_option
@workdir_option
@force_option
@json_option
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
    from lwc_compiler.commands.options import part_of

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
@model_argument
@output_file
@force_option
@json_option
def compact(model: Path, output: Path, force: bool, as_json: bool) -> None:
    """Removes the channels that pruning cut off.

    Those of MODEL whose inputs or outputs are all pruned go, and the outputs stay the same.
    """
    _check_file(output, force)
    _save(lwc.compact(model), output, as_json)


@cli.command(parts=("lower",))
@model_argument
@click.option("-o", "--output", type=PATH, metavar="DIR", help="Artifact to write.  [default: <model>.lwc]")
@sarif_option
@force_option
@json_option
def lower(model: Path, output: Path | None, sarif: Path | None, force: bool, as_json: bool, **options: Any) -> None:
    """Compiles MODEL as it is, with its zeros.

    The code is checked against ONNX Runtime.
    """
    from lwc_compiler.commands.options import part_of

    with refusals_as_sarif(sarif, model, force=force):
        artifact = lwc.lower(model, output or Path(f"{model.stem}.lwc"), part_of(options, "lower"), force=force)
    show_artifact(artifact, as_json)


@cli.command(parts=("pack",))
@model_argument
@click.option("-o", "--output", type=PATH, metavar="FILE", help="File to write.  [default: <model>.lwcp]")
@force_option
@json_option
def pack(model: Path, output: Path | None, force: bool, as_json: bool, **options: Any) -> None:
    """Packs MODEL into one small file for shipping.

    It holds the weights that are not zero with relative indices, and `unpack` makes the ONNX file of it again. The
    table shows what takes how many bytes.
    """
    from lwc_compiler.commands.options import part_of
    from lwc_compiler.packing import sizes_of

    chosen = part_of(options, "pack")
    path = output or Path(f"{model.stem}.lwcp")
    _check_file(path, force)
    lwc.pack(model, path, chosen)
    show_packed(path, sizes_of(path), as_json)


@cli.command()
@click.argument("packed", type=PATH)
@output_file
@force_option
@json_option
def unpack(packed: Path, output: Path, force: bool, as_json: bool) -> None:
    """Makes the ONNX file of PACKED, a file that `pack` wrote."""
    _check_file(output, force)
    _save(lwc.unpack(packed), output, as_json)


for _command in (run, bench, inspect, gate):
    cli.add_command(_command)


cli.add_command(report)
for _command in (targets, completion):
    cli.add_command(_command)


@cli.command()
@click.option(
    "-o",
    "--output",
    type=PATH,
    metavar="DIR",
    help="Keep data, dense model and artifact here.  [default: keep nothing]",
)
@json_option
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
@click.option("-o", "--output", type=PATH, metavar="DIR", help="Folder of results.  [default: reproduce-<network>]")
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
@click.option("--cache", type=PATH, metavar="DIR", help="Keep data sets here.  [default: $LWC_CACHE, ~/.cache/lwc]")
@json_option
def reproduce(
    network: str, output: Path | None, data: str, seeds: int, figure_5: bool, cache: Path | None, as_json: bool
) -> None:
    """Repeats the results of Han et al. 2015, and shows the paper's figures beside its own.

    The LeNets are trained, pruned and retrained on real images (tables 1 to 3). AlexNet and VGG-16 get random weights
    at the paper's densities (tables 4 and 5): their accuracy takes ImageNet and is not measured. The same command with
    the same folder goes on where it was interrupted.
    """
    from lwc_compiler.reproduce.tables import to_rich

    folder = output or Path(f"reproduce-{network}")
    if network in ("alexnet", "vgg-16"):
        from lwc_compiler.reproduce import imagenet

        found = imagenet.summary(imagenet.reproduce_untrained(network, folder))
    else:
        from lwc_compiler.cache.folder import cache_folder
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
    from lwc_compiler.files import check_file

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
