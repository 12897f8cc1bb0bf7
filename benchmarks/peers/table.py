"""Rows of results: how they are made from times, merged with older ones, and shown.

A row is one network with its zeros at one batch, and has every engine that ran: those that use zeros with the pruned
file and with the dense one, the others with the dense one. All that is compared in a row was measured in one run.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any

import numpy as np

from benchmarks.models import MODELS
from benchmarks.variants import DENSE

TOLERANCE = 1e-3  # of the largest output; lwc's own check when it compiles is stricter
LWC = "lwc"
PEERS = {
    "onnxruntime": "ONNX Runtime",
    "deepsparse": "DeepSparse",
    "openvino": "OpenVINO",
    "mnn": "MNN",
    "ncnn": "ncnn",
}

Row = dict[str, Any]
_KEY = ("isa", "threads", "batch", "model", "variant")


def timing(engine: str, zeros: bool, blocks: Sequence[Sequence[float]], error: float, limited: bool) -> dict[str, Any]:
    """The times of one engine on one file.

    Args:
        engine: its name.
        zeros: whether it ran the pruned file.
        blocks: for each round the seconds of every run.
        error: relative error of its output.
        limited: whether it was kept to the instruction set of the row.
    """
    times = 1e3 * np.concatenate([np.asarray(block) for block in blocks])
    least, first, median, third = (float(np.quantile(times, q)) for q in (0, 0.25, 0.5, 0.75))
    return {
        "engine": engine,
        "zeros": zeros,
        "median_ms": median,
        "q1_ms": first,
        "q3_ms": third,
        "min_ms": least,
        "runs": len(times),
        "rounds_ms": [1e3 * float(np.median(block)) for block in blocks],
        "error": error,
        "agrees": error <= TOLERANCE,
        "limited": limited,
    }


def best_of(row: Row, engine: str) -> dict[str, Any] | None:
    """The fastest correct timing of an engine in a row, or else a wrong one; None where it has none."""
    found = [entry for entry in row["timings"] if entry["engine"] == engine]
    return min(found, key=lambda entry: (not entry["agrees"], entry["median_ms"]), default=None)


def ours(row: Row) -> dict[str, Any] | None:
    """Lwc on the row's own file."""
    zeros = row["variant"] != DENSE
    return next((e for e in row["timings"] if e["engine"] == LWC and e["zeros"] == zeros), None)


def best_peer(row: Row) -> dict[str, Any] | None:
    """The fastest timing of a peer that is correct."""
    found = [entry for engine in PEERS if (entry := best_of(row, engine)) is not None and entry["agrees"]]
    return min(found, key=lambda entry: entry["median_ms"], default=None)


def ratio(row: Row, peer: dict[str, Any]) -> tuple[float, float, float]:
    """How many times as long as lwc a peer takes: by the medians, and the quartiles of the rounds' own ratios.

    The engines of a round ran within seconds of each other, so a slow phase of the machine hardly shows in its ratio.
    """
    lwc = ours(row)
    assert lwc is not None
    rounds = np.asarray(peer["rounds_ms"]) / np.asarray(lwc["rounds_ms"])
    return peer["median_ms"] / lwc["median_ms"], float(np.quantile(rounds, 0.25)), float(np.quantile(rounds, 0.75))


def merge(old: Sequence[Row], new: Sequence[Row]) -> list[Row]:
    """All rows in order; a new one takes the place of an old one of the same network, batch, threads and ISA."""
    rows = {tuple(row[key] for key in _KEY): row for row in (*old, *new)}
    names = list(MODELS)
    return sorted(
        rows.values(),
        key=lambda row: (
            row["isa"] != "native",
            row["threads"],
            row["batch"],
            names.index(row["model"]) if row["model"] in names else len(names),
            row["variant"] != DENSE,
            row["variant"],
        ),
    )


def milliseconds(value: float) -> str:
    """Three significant digits or so, without an exponent."""
    return f"{value:.3f}" if value < 10 else f"{value:.1f}" if value < 100 else f"{value:.0f}"


def markdown(rows: Sequence[Row]) -> str:
    """The rows as a document: a table for each instruction set, number of threads and batch."""
    lines = [
        "# lwc and its peers",
        "",
        "`make bench` or `python -m benchmarks.peers`; protocol: [README.md](../README.md); all figures: `peers.json`.",
        "Medians in milliseconds, float32; in parentheses the quartiles of the ratio over the rounds.",
        "",
        "The row of a pruned network has lwc on the pruned file and each peer at its best. ONNX Runtime, OpenVINO and",
        "ncnn do not use zeros and run the dense file only; `d` marks another peer that is faster on the dense file.",
        "The best peer is in bold. `wrong`: the output differs from ONNX Runtime's by more than 1e-3.",
        "",
    ]
    for (isa, threads, batch), group in groupby(rows, key=lambda row: (row["isa"], row["threads"], row["batch"])):
        found = list(group)
        lines += [f"## {threads} thread{'s' * (threads > 1)}, batch {batch}{', AVX2' * (isa == 'avx2')}", ""]
        if isa == "avx2":
            free = sorted({e["engine"] for row in found for e in row["timings"] if not e["limited"]})
            lines += [f"Without a switch for AVX2, so with all that the machine has: {', '.join(free) or 'none'}.", ""]
        lines += [f"| network | lwc | lwc, dense | {' | '.join(PEERS.values())} | best peer / lwc |"]
        lines += ["| --- |" + " ---: |" * (len(PEERS) + 3)]
        lines += [_line(row) for row in found]
        lines += ["", *_about(found), ""]
    return "\n".join(lines)


def _line(row: Row) -> str:
    peer, lwc = best_peer(row), ours(row)
    cells = [row["model"] if row["variant"] == DENSE else f"{row['model']}-{row['variant']}"]
    cells.append("-" if lwc is None else _cell(lwc))
    dense = next((e for e in row["timings"] if e["engine"] == LWC and not e["zeros"]), None)
    cells.append("-" if dense is None else _cell(dense))
    for engine in PEERS:
        entry = best_of(row, engine)
        choice = len([e for e in row["timings"] if e["engine"] == engine]) > 1
        text = "-" if entry is None else _cell(entry) + " d" * (choice and not entry["zeros"])
        cells.append(f"**{text}**" if entry is not None and entry is peer else text)
    if lwc is None or peer is None or not lwc["agrees"]:
        cells.append("-")
    else:
        cells.append("{:.2f}x ({:.2f}-{:.2f})".format(*ratio(row, peer)))
    return f"| {' | '.join(cells)} |"


def _cell(entry: dict[str, Any]) -> str:
    return milliseconds(entry["median_ms"]) + " wrong" * (not entry["agrees"])


def _about(rows: Sequence[Row]) -> list[str]:
    """What the rows of a table were measured with, a line for each machine, date and set of versions."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        versions = ", ".join(f"{name} {number}" for name, number in row["versions"].items())
        machine = row["machine"]
        text = f"{row['date']}, {machine['cpu']}, {machine['caches']}; {versions}; Python {machine['python']}"
        groups.setdefault(text, []).append(row)
    lines = []
    for text, found in groups.items():
        probes = [value for row in found for value in row["probe_gflops"]]
        names = "" if len(groups) == 1 else f"{', '.join(dict.fromkeys(row['model'] for row in found))}: "
        lines.append(f"{names}{text}. Probe {min(probes):.0f} to {max(probes):.0f} GFLOP/s. ")
    reasons = {f"{name}: {reason}" for row in rows for name, reason in row["missing"].items()}
    return [*lines, *(["", f"Missing: {'; '.join(sorted(reasons))}."] if reasons else [])]
