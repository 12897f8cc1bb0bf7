"""Whether plots can be drawn here, and figures as PNG and SVG files."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lwc_compiler.errors import ArtifactError
from lwc_compiler.report.plots.style import styled
from lwc_compiler.report.render import NO_PLOTS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Files hold no date and no version: the same figure gives the same bytes.
_METADATA: dict[str, dict[str, Any]] = {"png": {"Software": None}, "svg": {"Date": None, "Creator": None}}

logger = logging.getLogger(__name__)


def plots_available() -> bool:
    """Whether matplotlib is installed; where it is not, the log says what to do."""
    available = find_spec("matplotlib") is not None
    if not available:
        logger.warning(NO_PLOTS)
    return available


@styled
def save_plots(figures: Mapping[str, Figure], directory: str | Path) -> list[Path]:
    """Writes each figure as `<name>.png` and `<name>.svg`, every file whole or not at all.

    Args:
        figures: name, fit for a file, -> figure.
        directory: made when it is not there; files of these names are replaced.

    Raises:
        ArtifactError: a file cannot be written.
    """
    directory = Path(directory)
    paths = [directory / f"{name}.{kind}" for name in figures for kind in _METADATA]
    try:
        directory.mkdir(exist_ok=True)
        for path in paths:
            _save(figures[path.stem], path)
    except OSError as error:
        raise ArtifactError(f"cannot write plots to {directory}: {error.strerror or error}") from error
    return paths


def _save(figure: Figure, path: Path) -> None:
    kind = path.suffix.removeprefix(".")
    new = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with warnings.catch_warnings():
            # The name of a layer may hold characters the font lacks: they are drawn as boxes.
            warnings.filterwarnings("ignore", message="Glyph .* missing from font")
            figure.savefig(new, format=kind, metadata=_METADATA[kind])
        new.replace(path)
    finally:
        new.unlink(missing_ok=True)
