"""The files of a report, in every form that people and CI systems read."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lwc_compiler.errors import ArtifactError, OptionError
from lwc_compiler.report.badges import to_badges
from lwc_compiler.report.document import REPORT, Report, from_json, json_text
from lwc_compiler.report.html import to_html
from lwc_compiler.report.junit import to_junit
from lwc_compiler.report.markdown import to_markdown
from lwc_compiler.report.sarif import sarif_text

MARKDOWN = "report.md"
# What is in a file each; badges are several.
_TEXTS: dict[str, tuple[str, Callable[[Report], str]]] = {
    "json": (REPORT, json_text),
    "markdown": (MARKDOWN, to_markdown),
    "junit": ("junit.xml", to_junit),
    "sarif": ("report.sarif", sarif_text),
    "html": ("report.html", to_html),
}
_BADGES = "badges"
FORMATS = (*_TEXTS, _BADGES)
# Every file and folder that `write_outputs` makes.
NAMES = frozenset((_BADGES, *(name for name, _ in _TEXTS.values())))


def write_outputs(report: Mapping[str, Any], directory: Path, formats: Sequence[str]) -> list[Path]:
    """Writes a report in the given formats; each file appears whole or not at all.

    Args:
        report: what `report.json` holds (`lwc_compiler.report.document`).
        directory: made if it is not there, in a parent that is; files of the same names are replaced.
        formats: of `FORMATS`.

    Returns:
        The files, in the order of `formats`.

    Raises:
        OptionError: a format is unknown.
        ArtifactError: `report` is none, or a file cannot be written.
    """
    checked = from_json(report)
    files = output_files(checked, formats)
    write_files(directory, files)
    return [directory / name for name in files]


def output_files(report: Report, formats: Sequence[str]) -> dict[str, str]:
    """File name -> content, in the order of `formats`.

    Raises:
        OptionError: a format is unknown.
    """
    files: dict[str, str] = {}
    for kind in formats:
        if kind == _BADGES:
            files |= {f"{_BADGES}/{name}": text for name, text in to_badges(report).items()}
        elif kind in _TEXTS:
            name, text_of = _TEXTS[kind]
            files[name] = text_of(report)
        else:
            raise OptionError(f"there is no report format '{kind}': choose from {', '.join(FORMATS)}")
    return files


def write_files(directory: Path, files: Mapping[str, str]) -> None:
    """Writes texts into a directory, which is made if it is not there; each file appears whole or not at all.

    Raises:
        ArtifactError: a file cannot be written.
    """
    try:
        directory.mkdir(exist_ok=True)
        for name, text in files.items():
            path = directory / name
            path.parent.mkdir(exist_ok=True)
            _write(path, text)
    except OSError as error:
        raise ArtifactError(f"cannot write {error.filename or directory}: {error.strerror or error}") from error


def _write(path: Path, text: str) -> None:
    new = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        new.write_text(text, encoding="utf-8")
        new.replace(path)
    finally:
        new.unlink(missing_ok=True)
