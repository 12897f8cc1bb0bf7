"""The files of a report, in every form that people and CI systems read."""

from __future__ import annotations

import json
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
from lwc_compiler.report.sarif import to_sarif

# Format -> what gives its files, by their names.
_FORMATS: dict[str, Callable[[Report], dict[str, str]]] = {
    "json": lambda report: {REPORT: json_text(report)},
    "markdown": lambda report: {"report.md": to_markdown(report)},
    "junit": lambda report: {"junit.xml": to_junit(report)},
    "sarif": lambda report: {"report.sarif": json.dumps(to_sarif(report), indent=2, ensure_ascii=False) + "\n"},
    "html": lambda report: {"report.html": to_html(report)},
    "badges": lambda report: {f"badges/{name}": text for name, text in to_badges(report).items()},
}
FORMATS = tuple(_FORMATS)


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
    files = {name: text for kind in formats for name, text in _files(checked, kind).items()}
    try:
        directory.mkdir(exist_ok=True)
        for name, text in files.items():
            _write(directory / name, text)
    except OSError as error:
        raise ArtifactError(f"cannot write {error.filename or directory}: {error.strerror or error}") from error
    return [directory / name for name in files]


def _files(report: Report, kind: str) -> dict[str, str]:
    if kind not in _FORMATS:
        raise OptionError(f"there is no report format '{kind}': choose from {', '.join(FORMATS)}")
    return _FORMATS[kind](report)


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(exist_ok=True)
    new = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        new.write_text(text, encoding="utf-8")
        new.replace(path)
    finally:
        new.unlink(missing_ok=True)
