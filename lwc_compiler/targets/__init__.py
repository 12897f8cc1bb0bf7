"""The hardware code can be made for: one file a family.

Every module of this package but `target` is a family (see `target.Family`); a new file is found by itself.
"""

from __future__ import annotations

import difflib
import pkgutil
import platform
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import cast

from lwc_compiler.errors import TargetError
from lwc_compiler.targets.target import Family, Target

HOST = "host"

_CACHES = Path("/sys/devices/system/cpu/cpu0/cache")

_FAMILIES = {
    module.name: cast(Family, import_module(f"{__name__}.{module.name}"))
    for module in pkgutil.iter_modules(__path__)
    if module.name != "target"
}


def all_targets() -> tuple[Target, ...]:
    """Every target, family by family; of those without variants the most capable of each last."""
    return tuple(target for family in _FAMILIES.values() for target in family.TARGETS)


def missing_features(target: Target) -> list[str]:
    """Instruction sets that `target` needs and this machine lacks, sorted; empty where its code can run."""
    return sorted(target.features - _FAMILIES[target.family].host_features())


def host_cpu(target: Target) -> str:
    """Which CPU this machine has; empty where it is not of the target's family."""
    return _FAMILIES[target.family].host_cpu()


def find_target(name: str) -> Target:
    """The target called `name`; `host` is the most capable one that runs on this machine.

    Raises:
        TargetError: there is no such target, or none runs on this machine.
    """
    targets = {target.name: target for target in all_targets()}
    if name == HOST:
        return _host_target()
    if name not in targets:
        close = difflib.get_close_matches(name, [*targets, HOST], n=1, cutoff=0.0)
        raise TargetError(
            f"unknown target '{name}': the closest is '{close[0]}'. Targets are {', '.join(targets)} and {HOST}; "
            "see `lwc targets`"
        )
    return targets[name]


def _cache_sizes() -> dict[str, int]:
    """Level -> bytes of this machine's data caches, as Linux tells them; those it does not tell are left out."""
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


def _host_target() -> Target:
    # A machine's own code needs no variants.
    targets = [target for target in all_targets() if not target.variants]
    for target in reversed(targets):
        if not missing_features(target):
            sizes = _cache_sizes()
            l1, l2 = sizes.get("1", target.l1_bytes), sizes.get("2", target.l2_bytes)
            return replace(target, l1_bytes=l1, l2_bytes=l2)
    least = min(targets, key=lambda target: len(missing_features(target)))
    raise TargetError(
        f"target '{HOST}': lwc makes no code for this machine ({platform.machine()}, {platform.system()}); the closest "
        f"target, {least.name}, needs {', '.join(missing_features(least))}. Name the target of the machine that will "
        "run the code; see `lwc targets`"
    )
