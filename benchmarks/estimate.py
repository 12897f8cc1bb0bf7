"""Compares what `lwc estimate` expects with what is then compiled: latency, file and RAM.

Run: python -m benchmarks.estimate [--models lenet5 resnet50 ...] [--points element:0.9 4x1:0.9 ...]

Each network is estimated once, with an empty cache of timings. Then it is pruned to each sparsity, compiled for this
machine as `lwc compile` does, and timed on one thread, step by step: a call from Python takes 3 microseconds more.
Networks have random weights (benchmarks/models.py). Results go to results/estimate.json and .md; a run replaces the
rows of the networks that it measured.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import lwc_compiler as lwc
from benchmarks.models import MODELS
from benchmarks.outcome import RESULTS, processor, write_outcome
from lwc_compiler.runtime.bench import bench

NETWORKS = ("lenet5", "mobilenet_v1", "mobilenet_v2", "resnet50", "alexnet", "vgg16")
POINTS = ("element:0.8", "element:0.9", "element:0.95", "4x1:0.9")
GOAL = 0.2  # of the latency of what is compiled
SECONDS = 3.0  # that each artifact is timed


def estimated(name: str, wanted: list[tuple[str, float]]) -> tuple[lwc.Estimate, float]:
    """What is expected of a network, and the seconds that this took."""
    options = lwc.EstimateOptions(structures=tuple(dict.fromkeys(structure for structure, _ in wanted)))
    model = lwc.Model(MODELS[name](), name)
    before = os.environ.get("LWC_CACHE")
    with tempfile.TemporaryDirectory(prefix="lwc-") as folder:
        os.environ["LWC_CACHE"] = folder
        start = time.monotonic()
        found = lwc.estimate(model, options)
        seconds = time.monotonic() - start
    if before is None:
        del os.environ["LWC_CACHE"]
    else:
        os.environ["LWC_CACHE"] = before
    return found, seconds


def compiled(name: str, structure: str, sparsity: float) -> dict[str, float]:
    """Latency in seconds, and bytes of file and RAM, of a network that was compiled."""
    recipe = lwc.Recipe(prune=lwc.PruneOptions(sparsity=sparsity, structure=structure))
    with tempfile.TemporaryDirectory(prefix="lwc-") as folder:
        artifact = lwc.compile(lwc.Model(MODELS[name](), name), Path(folder) / "model", recipe)
        manifest = artifact.manifest
        file_bytes = artifact.library.stat().st_size
        around = sum(4 * math.prod(spec.shape) for spec in (*manifest.inputs, *manifest.outputs))
        timed = bench(artifact.directory, threads=1, seconds=SECONDS, layers=True)
        milliseconds = sum(layer.ms for layer in timed.layers)
        ram = file_bytes + manifest.workspace_bytes + around
        return {"seconds": milliseconds / 1e3, "file_bytes": file_bytes, "ram_bytes": ram}


def measure(name: str, wanted: list[tuple[str, float]]) -> list[dict[str, Any]]:
    """The rows of a network."""
    found, seconds = estimated(name, wanted)
    rows = []
    for point in found.points:
        if (point.structure, point.sparsity) not in wanted:
            continue
        made = compiled(name, point.structure, point.sparsity)
        row = {
            "model": name,
            "structure": point.structure,
            "sparsity": point.sparsity,
            "estimate_took": seconds,
            "measured": point.measured,
            "estimated": {key: getattr(point, key) for key in made},
            "compiled": made,
        }
        rows.append(row)
        print(_line(row), flush=True)
    return rows


def _line(row: dict[str, Any]) -> str:
    expected, made = row["estimated"], row["compiled"]
    latency = expected["seconds"] / made["seconds"] - 1
    cells = [
        row["model"],
        row["structure"],
        f"{100 * row['sparsity']:g} %",
        f"{1e3 * expected['seconds']:.4g}",
        f"{1e3 * made['seconds']:.4g}",
        f"{100 * latency:+.0f} %" if abs(latency) <= GOAL else f"**{100 * latency:+.0f} %**",
        f"{expected['file_bytes'] / 1e6:.4g}",
        f"{made['file_bytes'] / 1e6:.4g}",
        f"{expected['ram_bytes'] / 1e6:.4g}",
        f"{made['ram_bytes'] / 1e6:.4g}",
        f"{100 * row['measured']:.0f} %",
        f"{row['estimate_took']:.0f}",
    ]
    return f"| {' | '.join(cells)} |"


def table(results: dict[str, Any]) -> str:
    """The results as Markdown."""
    off = [abs(row["estimated"]["seconds"] / row["compiled"]["seconds"] - 1) for row in results["rows"]]
    lines = [
        f"# Estimates beside what was compiled, {results['date']}",
        "",
        f"`python -m benchmarks.estimate`, one core of: {results['cpu']}.",
        "Latency in milliseconds (median), file and RAM in megabytes: first what was expected. Measured: the share of",
        "the expected latency that rests on measured kernels. Took: seconds of the estimate, without earlier timings.",
        f"Within {100 * GOAL:.0f} %: {sum(each <= GOAL for each in off)} of {len(off)}; others are in bold.",
        "",
        "| network | zeros of | zeros | ms | compiled | off by | file | compiled | RAM | compiled | measured | took |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
        *(_line(row) for row in results["rows"]),
    ]
    return "\n".join([*lines, ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(NETWORKS), metavar="NAME")
    parser.add_argument("--points", nargs="+", default=list(POINTS), help="structure:sparsity, of the default ones")
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    wanted = [(structure, float(sparsity)) for structure, _, sparsity in (p.rpartition(":") for p in options.points)]
    file = options.output / "estimate.json"
    known = json.loads(file.read_text(encoding="utf-8"))["rows"] if file.exists() else []
    rows = [row for row in known if row["model"] not in options.models]
    for name in options.models:
        rows += measure(name, wanted)
    order = list(MODELS)
    rows.sort(key=lambda row: (order.index(row["model"]), row["structure"] != "element", row["sparsity"]))
    results = {"date": time.strftime("%Y-%m-%d"), "cpu": processor(), "rows": rows}
    write_outcome(options.output, "estimate", results, table(results))


if __name__ == "__main__":
    main()
