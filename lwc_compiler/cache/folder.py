"""Where lwc keeps what it would otherwise fetch or measure again."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """Downloads, data sets and timings: `$LWC_CACHE`, else `lwc` in `$XDG_CACHE_HOME`, else in `~/.cache`."""
    given = os.environ.get("LWC_CACHE")
    return Path(given) if given else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lwc"
