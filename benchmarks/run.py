"""Times pruned networks compiled by lwc against ONNX Runtime, and against lwc itself, on the dense ones.

See README.md for the protocol.

Run: python -m benchmarks.run [--models NAME ...] [--threads 1 2] [--sparsity 0.9 ...] [--seconds 3] [--output DIR]
"""

from __future__ import annotations

import argparse
import platform
import resource
import tempfile
import time
from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import Any

import onnxruntime

import lwc_compiler as lwc
from benchmarks.models import MODELS
from benchmarks.outcome import RESULTS, processor, write_outcome
from lwc_compiler.runtime.bench import bench
from tests import zoo

_DEFAULT = tuple(MODELS)
_COLUMNS = ("model", "threads", "sparsity", "ONNX Runtime, dense", "lwc, dense", "lwc, pruned", "speedup")
_COLUMNS += ("faster than lwc, dense", "error", "library, MB", "compile, s")


def measure(name: str, threads: int, sparsity: float, seconds: float) -> dict[str, Any]:
    """Compiles model `name` and times it; the numbers of one row."""
    dense = lwc.Model(MODELS[name]() if name in MODELS else zoo.load(name), name)
    options = lwc.LowerOptions(threads=threads, shapes={} if name in MODELS else zoo.SHAPES.get(name, {}))
    recipe = lwc.Recipe(prune=lwc.PruneOptions(sparsity=sparsity) if sparsity else None, lower=options)
    with tempfile.TemporaryDirectory(prefix="lwc-") as folder:
        start = time.perf_counter()
        artifact = lwc.compile(dense, Path(folder) / name, recipe)
        compile_seconds = time.perf_counter() - start
        # With `layers` lwc's code for the dense network takes turns too.
        result = bench(Path(folder) / name, against=dense, threads=threads, seconds=seconds, layers=sparsity > 0)
        library_bytes = artifact.library.stat().st_size
    ours, theirs, *own_dense = map(asdict, result.timings)
    return {
        "model": name,
        "threads": threads,
        "sparsity": sparsity,
        "speedup": result.speedup,
        "error": artifact.manifest.verification.worst,
        "lwc": ours,
        "lwc_dense": own_dense[0] if own_dense else ours,
        "onnxruntime": theirs,
        "compile_seconds": compile_seconds,
        "library_bytes": library_bytes,
    }


def machine() -> dict[str, Any]:
    """What the numbers were taken on."""
    return {
        "cpu": processor(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "lwc": lwc.__version__,
        "onnxruntime": onnxruntime.__version__,
        "date": time.strftime("%Y-%m-%d"),
    }


def table(results: dict[str, Any]) -> str:
    """The results as Markdown."""
    about = results["machine"]
    lines = [
        f"# Results of {about['date']}",
        "",
        f"{about['cpu']}; ONNX Runtime {about['onnxruntime']}, lwc {about['lwc']}, Python {about['python']}.",
        "Protocol: [README.md](../README.md). Medians in milliseconds, batch 1.",
        "",
        f"| {' | '.join(_COLUMNS)} |",
        "|" + "---|" * len(_COLUMNS),
    ]
    lines += [
        f"| {row['model']} | {row['threads']} | {row['sparsity']:g} | {row['onnxruntime']['median_ms']:.3f} | "
        f"{row['lwc_dense']['median_ms']:.3f} | {row['lwc']['median_ms']:.3f} | {row['speedup']:.2f}x | "
        f"{row['lwc_dense']['median_ms'] / row['lwc']['median_ms']:.2f}x | {row['error']:.1e} | "
        f"{row['library_bytes'] / 1e6:.1f} | {row['compile_seconds']:.1f} |"
        for row in results["rows"]
    ]
    return "\n".join([*lines, ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = (*MODELS, *(name for name in zoo.NAMES if name not in MODELS))
    parser.add_argument("--models", nargs="+", choices=names, default=_DEFAULT, metavar="NAME", help=", ".join(names))
    parser.add_argument("--threads", nargs="+", type=int, default=(1, 2))
    parser.add_argument("--sparsity", nargs="+", type=float, default=(0.9,), help="0 leaves the network dense")
    parser.add_argument("--seconds", type=float, default=3.0, help="time for the timed runs of each engine")
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    rows = []
    for name, threads, sparsity in product(arguments.models, arguments.threads, arguments.sparsity):
        row = measure(name, threads, sparsity, arguments.seconds)
        rows.append(row)
        print(f"{name}, {threads} threads, sparsity {sparsity:g}: {row['speedup']:.2f}x", flush=True)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    results = {"machine": machine(), "peak_memory_bytes": memory, "rows": rows}
    write_outcome(arguments.output, "results", results, table(results))


if __name__ == "__main__":
    main()
