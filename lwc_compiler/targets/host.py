"""What Linux says of the machine this runs on."""

from __future__ import annotations

import platform
from collections.abc import Collection
from pathlib import Path

_CPUINFO = Path("/proc/cpuinfo")
_CACHES = Path("/sys/devices/system/cpu/cpu0/cache")


def first_cpu(machines: Collection[str]) -> dict[str, str]:
    """The entries on the first CPU; none where the machine is none of `machines`, or not said."""
    if platform.machine() not in machines or not _CPUINFO.exists():
        return {}
    first = _CPUINFO.read_text(encoding="utf-8").split("\n\n")[0]
    pairs = (line.partition(":") for line in first.splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}


def cache_sizes() -> dict[str, int]:
    """Level -> bytes of the data caches of a core; those that are not said are left out."""
    sizes = {}
    for index in sorted(_CACHES.glob("index*")):
        try:
            level, kind, size = (
                (index / name).read_text(encoding="utf-8").strip() for name in ("level", "type", "size")
            )
        except OSError:
            continue
        if kind != "Instruction" and size.endswith("K"):
            sizes[level] = int(size[:-1]) << 10
    return sizes
