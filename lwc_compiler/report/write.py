"""A report as files: `report.md`, `report.json` and `plots/`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from lwc_compiler.errors import ArtifactError, ModelError
from lwc_compiler.passes.sites import constant_tensors, find_sites
from lwc_compiler.report.document import REPORT, Report, json_text
from lwc_compiler.report.markdown import to_markdown
from lwc_compiler.report.plots import figures_of, plots_available, save_plots
from lwc_compiler.report.table import Activations, layer_report
from lwc_compiler.runtime.artifact import check_place, written_whole

if TYPE_CHECKING:
    from collections.abc import Mapping

    from matplotlib.figure import Figure

    from lwc_compiler.model import Model

PLOTS = "plots"
_FILES = {REPORT, "report.md", PLOTS}


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
    directory = Path(directory)
    check_report_destination(directory, force=force)
    if dense is not None:
        _check_dense(model, dense)
    report = layer_report(model, activations)
    with written_whole(directory) as new:
        write_report_files(new, report, figures_of(dense, model) if plots_available() else None)
    return report


def write_report_files(directory: Path, report: Report, figures: Mapping[str, Figure] | None) -> None:
    """Writes the files of a report into a directory that exists.

    Args:
        directory: where.
        report: the table.
        figures: file name -> plot; None: without plots.

    Raises:
        ArtifactError: a plot cannot be written.
        OSError: another file cannot be written.
    """
    if figures:
        save_plots(figures, directory / PLOTS)
    links = None if figures is None else [f"{PLOTS}/{name}.svg" for name in figures]
    (directory / REPORT).write_text(json_text(report), encoding="utf-8")
    (directory / "report.md").write_text(to_markdown(report, links), encoding="utf-8")


def _check_dense(model: Model, dense: Model) -> None:
    known = constant_tensors(dense.proto.graph)
    sites = find_sites(model.proto)
    if sites and not any(site.weight in known for site in sites):
        raise ModelError(
            f"the dense model '{dense.name}' has no weight '{sites[0].weight}', nor any other layer of '{model.name}': "
            "give the model that was pruned"
        )
