"""Where the time of a run goes: the steps of a program, summed up by the layer they belong to."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from lwc_compiler.codegen.result import LayerDecision, ProgramInfo

COPIES = "inputs and outputs"


@dataclass(frozen=True)
class LayerTime:
    """Time of one linear layer, or of several that one kernel computes, or of all calls of a kernel of none.

    Attributes:
        layer: ONNX node, or several with " + " between them; empty for what belongs to no linear layer.
        kernel: names of the kernels, in the order they run.
        format: how the weights are stored; empty without weights.
        density: kept / all weights; None without weights.
        ms: median over the runs, in milliseconds.
        share: `ms` / the sum over all entries.
        gflops: 2 x kept weights x positions / time, in GFLOP/s; None without weights.
        dense_ms: `ms` of the same layers in the dense model compiled by lwc; None where there are none.
    """

    layer: str
    kernel: str
    format: str
    density: float | None
    ms: float
    share: float
    gflops: float | None
    dense_ms: float | None


def layer_times(
    program: ProgramInfo,
    layers: Sequence[LayerDecision],
    profiles: Sequence[NDArray[np.float64]],
    dense: Mapping[tuple[str, str], float],
) -> tuple[LayerTime, ...]:
    """The entries of a program, in the order they first run; their shares add up to 1.

    Args:
        program: what ran.
        layers: what is known of its layers.
        profiles: what `Session.profile` gave, run by run.
        dense: `milliseconds` of the dense model.
    """
    decisions: dict[str, list[LayerDecision]] = defaultdict(list)  # a recurrent layer has two
    for decision in layers:
        decisions[decision.node].append(decision)
    kernels: dict[tuple[str, str], dict[str, None]] = {}
    formats: dict[tuple[str, str], str] = {}
    nodes: dict[tuple[str, str], tuple[str, ...]] = {}
    for step, key in zip(program.steps, _keys(program), strict=False):
        kernels.setdefault(key, {})[step.kernel] = None
        formats[key] = step.format or formats.get(key, "")
        nodes[key] = (step.node, *step.further)
    times = milliseconds(program, profiles)
    total = sum(times.values())
    entries = []
    for key, ms in times.items():
        own = [decision for node in nodes.get(key, ()) for decision in decisions.get(node, ())]
        useful = sum(decision.dense_flops * decision.density for decision in own)
        weights = sum(math.prod(decision.shape) for decision in own)
        apart = [dense.get((node, "")) for node in nodes.get(key, ())]
        known = [spent for spent in apart if spent is not None]
        entries.append(
            LayerTime(
                layer=key[0],
                kernel=" + ".join(kernels.get(key, {})) or key[1],
                format=formats.get(key, ""),
                density=sum(d.density * math.prod(d.shape) for d in own) / weights if own else None,
                ms=ms,
                share=ms / total if total else 0.0,
                gflops=useful / ms / 1e6 if own and ms else None,
                dense_ms=dense.get(key, sum(known) if known and len(known) == len(apart) else None),
            )
        )
    return tuple(entries)


def milliseconds(program: ProgramInfo, profiles: Sequence[NDArray[np.float64]]) -> dict[tuple[str, str], float]:
    """(nodes, "") of a layer or ("", kernel) -> median of the milliseconds that all its steps took in a run."""
    columns: dict[tuple[str, str], list[int]] = {}
    for index, key in enumerate(_keys(program)):
        columns.setdefault(key, []).append(index)
    runs = 1e3 * np.array(profiles)
    return {key: float(np.median(runs[:, chosen].sum(axis=1))) for key, chosen in columns.items()}


def _keys(program: ProgramInfo) -> list[tuple[str, str]]:
    """The entry of every number that `Session.profile` gives."""
    names = [" + ".join((step.node, *step.further)) for step in program.steps]
    kernels = ["" if step.node else step.kernel for step in program.steps]
    return [*zip(names, kernels, strict=True), ("", COPIES)]
