"""A report as a directory: its files in the formats of `report/outputs.py`, and `plots/`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from lwc_compiler.errors import ArtifactError, ModelError
from lwc_compiler.files import check_place, written_whole
from lwc_compiler.passes.sites import constant_tensors, find_sites
from lwc_compiler.report.document import Report
from lwc_compiler.report.markdown import plot_parts
from lwc_compiler.report.outputs import MARKDOWN, NAMES, output_files, write_files
from lwc_compiler.report.plots import figures_of, plots_available, save_plots
from lwc_compiler.report.table import Activations, layer_report

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from matplotlib.figure import Figure

    from lwc_compiler.model import Model

PLOTS = "plots"
_FILES = {*NAMES, PLOTS}
_FORMATS = ("json", "markdown")


def check_report_destination(directory: Path, *, force: bool) -> None:
    """Refuses, before any work, a place that `write_report` could not write to.

    Raises:
        ArtifactError: the parent directory is missing or read-only; something is there and `force` is not given; what
            is there is not a report, which `force` never replaces.
    """
    check_place(directory, force=force)
    if directory.is_symlink() or (directory.exists() and not directory.is_dir()):
        raise ArtifactError(f"{directory} is not a directory: give another place")
    if directory.exists() and not {path.name for path in directory.iterdir()} <= _FILES:
        raise ArtifactError(f"{directory} is not an lwc report: --force replaces only those; give another directory")


def write_report(
    directory: str | Path,
    model: Model,
    dense: Model | None = None,
    *,
    activations: Activations | None = None,
    force: bool = False,
) -> Report:
    """Writes a directory with the report of a pruned model; it appears whole or not at all.

    Args:
        directory: where; its parent exists.
        model: normalized; its zeros count as pruned, its provenance tells of rounds and training.
        dense: the model before pruning, normalized, for the histograms; None: they show the pruned weights alone.
        activations: measured ones; None leaves those columns of the table open.
        force: replace the report that is there; it stays as it is when anything fails.

    Raises:
        ArtifactError: something is there and `force` is not given, or it is no report, which `force` never replaces;
            or the directory cannot be written. Nothing is left behind.
        ModelError: `dense` has no layer of `model`.
    """
    check_report_destination(Path(directory), force=force)
    report, figures = report_of(model, dense, activations)
    write_directory(Path(directory), report, figures, force=force)
    return report


def report_of(
    model: Model, dense: Model | None = None, activations: Activations | None = None
) -> tuple[Report, Mapping[str, Figure] | None]:
    """The report of a model, and its plots, which are None where they cannot be drawn; arguments of `write_report`.

    Raises:
        ModelError: `dense` has no layer of `model`.
    """
    if dense is not None:
        _check_dense(model, dense)
    return layer_report(model, activations), figures_of(dense, model) if plots_available() else None


def write_directory(
    directory: Path,
    report: Report,
    figures: Mapping[str, Figure] | None,
    formats: Sequence[str] = _FORMATS,
    *,
    force: bool = False,
) -> None:
    """Writes a report as a directory; it appears whole or not at all. Arguments and errors of `write_report_files`.

    Raises:
        ArtifactError: something is there and `force` is not given, or it is no report, which `force` never replaces.
    """
    check_report_destination(directory, force=force)
    with written_whole(directory) as new:
        check_report_destination(directory, force=force)  # what another process has written there in the meantime
        write_report_files(new, report, figures, formats)


def write_report_files(
    directory: Path, report: Report, figures: Mapping[str, Figure] | None, formats: Sequence[str] = _FORMATS
) -> None:
    """Writes the files of a report into a directory that exists.

    Args:
        directory: where.
        report: what they say.
        figures: file name -> plot; None: without plots, because they could not be drawn.
        formats: of `lwc_compiler.report.outputs.FORMATS`.

    Raises:
        ArtifactError: a file cannot be written.
        OptionError: a format is unknown.
    """
    files = output_files(report, formats)
    if figures:
        save_plots(figures, directory / PLOTS)
    if MARKDOWN in files:
        links = None if figures is None else [f"{PLOTS}/{name}.svg" for name in figures]
        files[MARKDOWN] += "".join(f"\n{part}\n" for part in plot_parts(links))
    write_files(directory, files)


def _check_dense(model: Model, dense: Model) -> None:
    known = constant_tensors(dense.proto.graph)
    sites = find_sites(model.proto)
    if sites and not any(site.weight in known for site in sites):
        raise ModelError(
            f"the dense model '{dense.name}' has no weight '{sites[0].weight}', nor any other layer of '{model.name}': "
            "give the model that was pruned"
        )
