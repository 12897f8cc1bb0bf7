"""Where a benchmark leaves what it measured, and what it was measured on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parent / "results"


def write_outcome(folder: Path, name: str, results: dict[str, Any], text: str) -> None:
    """Prints a text, and writes it as `name`.md beside all figures in `name`.json; makes a folder that is missing."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    (folder / f"{name}.md").write_text(text, encoding="utf-8")
    print(text)


def processor() -> str:
    """What Linux calls the processor."""
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return "unknown"
