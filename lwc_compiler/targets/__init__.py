"""The hardware code can be made for: one file a family, and boards by name.

A module of this package that has `TARGETS` is a family (see `target.Family`); a new file is found by itself.
"""

from __future__ import annotations

import difflib
import pkgutil
import platform
import sys
from dataclasses import replace
from importlib import import_module
from typing import cast

from lwc_compiler.errors import TargetError
from lwc_compiler.targets.boards import BOARDS
from lwc_compiler.targets.host import cache_sizes
from lwc_compiler.targets.target import Family, Target

HOST = "host"

_PLATFORMS = {"linux": "linux", "macos": "darwin", "none": "none"}  # as `sys.platform` begins

_MODULES = {module.name: import_module(f"{__name__}.{module.name}") for module in pkgutil.iter_modules(__path__)}
_FAMILIES = {name: cast(Family, module) for name, module in _MODULES.items() if hasattr(module, "TARGETS")}


def all_targets() -> tuple[Target, ...]:
    """Every target, family by family; of those without variants the most capable of each last."""
    return tuple(target for family in _FAMILIES.values() for target in family.TARGETS)


def all_boards() -> tuple[Target, ...]:
    """A target for every board: its processor's, with the board's name and memory."""
    targets = {target.name: target for target in all_targets()}
    return tuple(
        replace(
            targets[board.target],
            name=board.name,
            ram_bytes=board.ram_bytes,
            flash_bytes=board.flash_bytes,
            description=board.description,
            megahertz=board.megahertz,
            gpu=board.gpu or targets[board.target].gpu,
        )
        for board in BOARDS
    )


def missing_platform(target: Target) -> str:
    """The platform of `target` where this machine is another; empty where they are the same."""
    same = platform.machine() in target.machines and sys.platform.startswith(_PLATFORMS[target.os])
    return "" if same else target.triple


def missing_features(target: Target) -> list[str]:
    """What `target` needs and this machine lacks: the platform, or else instruction sets, sorted."""
    other = missing_platform(target)
    return [other] if other else sorted(target.features - _FAMILIES[target.family].host_features())


def host_cpu(target: Target) -> str:
    """Which CPU, or GPU, of the target's family this machine has; empty where it has none."""
    return _FAMILIES[target.family].host_cpu()


def find_target(name: str) -> Target:
    """The target or board called `name`; `host` is the most capable target that runs on this machine.

    Raises:
        TargetError: there is none, or none runs on this machine.
    """
    targets = {target.name: target for target in (*all_targets(), *all_boards())}
    if name == HOST:
        return _host_target()
    if name not in targets:
        close = difflib.get_close_matches(name, [*targets, HOST], n=1, cutoff=0.0)
        raise TargetError(f"unknown target '{name}': the closest is '{close[0]}'; `lwc targets` lists all")
    return targets[name]


def _host_target() -> Target:
    # A machine's own code needs no variants; a GPU is not taken without being asked for.
    targets = [t for t in all_targets() if not t.variants and t.machines and t.gpu is None]
    for target in reversed(targets):
        if not missing_features(target):
            sizes = cache_sizes()
            l1, l2 = sizes.get("1", target.l1_bytes), sizes.get("2", target.l2_bytes)
            return replace(target, l1_bytes=l1, l2_bytes=l2)
    same = [target for target in targets if platform.machine() in target.machines] or targets
    least = min(same, key=lambda target: len(missing_features(target)))
    raise TargetError(
        f"target '{HOST}': lwc makes no code for this machine ({platform.machine()}, {platform.system()}); the closest "
        f"target, {least.name}, needs {', '.join(missing_features(least))}. Name the target of the machine that will "
        "run the code; see `lwc targets`"
    )
