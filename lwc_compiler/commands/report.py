"""`lwc report`: reports in every format, and what changed between two; and `--sarif`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from lwc_compiler.commands.output import print_json, print_rich, print_table
from lwc_compiler.commands.parts import DATA, PATH, Group, force_option, json_option
from lwc_compiler.errors import OptionError, UnsupportedError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from lwc_compiler.report.document import Report

_FORMATS = ("json", "markdown", "junit", "sarif", "html", "badges")


class _ReportGroup(Group):
    """`report SOURCE` is `report write SOURCE`."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        return super().resolve_command(ctx, args if args[0] in self.commands else ["write", *args])


# Options may come before SOURCE: the group leaves them to the command.
@click.group(cls=_ReportGroup, context_settings={"ignore_unknown_options": True})
def report() -> None:
    """Writes reports and compares them.

    `lwc report SOURCE ...` is short for `lwc report write SOURCE ...`.
    """


@report.command()
@click.argument("source", type=PATH)
@click.option("-o", "--output", type=PATH, required=True, metavar="DIR", help="Report to write.")
@click.option(
    "--format",
    "formats",
    type=click.Choice(_FORMATS),
    multiple=True,
    default=("json", "markdown"),
    show_default=True,
    help="A form to write it in. Can be given many times.",
)
@click.option(
    "--dense",
    type=PATH,
    metavar="FILE",
    help="The model before pruning, whose weights the plots then show too.  [default: none]",
)
@click.option(
    "--data",
    metavar="DATA",
    help=f"Data to measure activations on: {DATA}.  [default: none; Act% and FLOP% stay open]",
)
@click.option(
    "--times",
    type=PATH,
    metavar="FILE.json",
    help="Times to show, as `lwc bench --json` printed them.  [default: those of SOURCE]",
)
@click.option(
    "--sensitivity",
    type=PATH,
    metavar="FILE.json",
    help="Sensitivity to show, as `lwc sensitivity -o` wrote it.  [default: that of SOURCE]",
)
@force_option
@json_option
def write(
    source: Path,
    output: Path,
    formats: tuple[str, ...],
    dense: Path | None,
    data: str | None,
    times: Path | None,
    sensitivity: Path | None,
    force: bool,
    as_json: bool,
) -> None:
    """Writes the report of SOURCE: a pruned model, an artifact, or a report that is there.

    Of a model there are plots too.
    """
    from lwc_compiler.report.document import read_report, read_times, to_json
    from lwc_compiler.report.render import to_rich
    from lwc_compiler.report.write import check_report_destination, write_directory
    from lwc_compiler.sparsity.curves import load_sensitivity

    check_report_destination(output, force=force)
    figures: Mapping[str, Figure] | None = {}
    if source.is_dir() or source.suffix == ".json":
        if dense is not None or data is not None:
            raise OptionError(f"--dense and --data are for the report of a model, and {source} is a report already")
        written = read_report(source)
    else:
        written, figures = _report_of_file(source, dense, data)
    if times is not None:
        written = replace(written, times=read_times(times))
    if sensitivity is not None:
        written = replace(written, sensitivity=load_sensitivity(sensitivity))
    write_directory(output, written, figures, formats, force=force)
    if as_json:
        print_json(to_json(written))
        return
    if written.layers:
        print_rich(to_rich(written))
    click.echo(f"wrote {output}")


@report.command()
@click.argument("before", type=PATH)
@click.argument("after", type=PATH)
@click.option("--markdown", "as_markdown", is_flag=True, help="Print it as Markdown.")
@json_option
def diff(before: Path, after: Path, as_markdown: bool, as_json: bool) -> None:
    """Shows what changed from BEFORE to AFTER: artifacts, report directories or report.json files."""
    from lwc_compiler.report.diff import diff_cells, diff_json, diff_markdown, diff_reports
    from lwc_compiler.report.document import read_report

    found = diff_reports(read_report(before), read_report(after))
    if as_json:
        print_json(diff_json(found))
    elif as_markdown:
        click.echo(diff_markdown(found), nl=False)
    else:
        click.echo(f"{found.before} -> {found.after}" if found.changes else "nothing differs")
        for section, cells in diff_cells(found).items():
            print_table((section, *cells.columns[1:]), cells.rows)


@report.command()
def schema() -> None:
    """Prints the JSON schema of report.json."""
    from lwc_compiler.report.document import json_schema

    print_json(json_schema())


@contextmanager
def refusals_as_sarif(file: Path | None, model: Path, *, force: bool) -> Iterator[None]:
    """Writes why the block refuses `model`, or that it does not, when it ends.

    Args:
        file: SARIF to write; None: nothing is written.
        model: its file.
        force: replace `file`.
    """
    if file is None:
        yield
        return
    from lwc_compiler.files import check_file
    from lwc_compiler.report.document import Report, refused_report, source_of
    from lwc_compiler.report.outputs import write_files
    from lwc_compiler.report.sarif import sarif_text

    check_file(file, force=force)

    def write_found(found: Report) -> None:
        write_files(file.parent, {file.name: sarif_text(found)})

    try:
        yield
    except UnsupportedError as error:
        write_found(refused_report(model, error))
        raise
    write_found(Report(model.stem, source=source_of(model)))


def _report_of_file(model: Path, dense: Path | None, data: str | None) -> tuple[Report, Mapping[str, Figure] | None]:
    """The report of a model, and its plots."""
    from lwc_compiler.model import load_model
    from lwc_compiler.passes.normalize import normalize
    from lwc_compiler.report.activations import activations_on
    from lwc_compiler.report.document import source_of
    from lwc_compiler.report.write import report_of

    pruned = normalize(load_model(model), fold_batch_norm=False)
    original = None if dense is None else normalize(load_model(dense), fold_batch_norm=False)
    found, figures = report_of(pruned, original, None if data is None else activations_on(pruned, data))
    return replace(found, source=source_of(model)), figures
