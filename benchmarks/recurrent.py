"""Recurrent layers beside ONNX Runtime: LSTM, GRU and RNN, dense and with zeros, one direction and both.

Run: python -m benchmarks.recurrent [--kinds LSTM GRU RNN] [--hidden 64 256 512] [--threads 1 2] [-o DIR]

Weights are drawn at random, those with zeros have them at random places. ONNX Runtime computes the dense layer; both
run in turns, warm, and the table has medians.
"""

from __future__ import annotations

import argparse
import datetime
import tempfile
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

import lwc_compiler as lwc
from benchmarks.outcome import RESULTS, processor, write_outcome
from lwc_compiler.runtime.bench import bench

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
SPARSITY = 0.9
CASE = ("layer", "hidden", "steps", "batch", "directions", "threads")
COLUMNS = (*CASE, "ONNX Runtime", "lwc", "ratio", "zeros", "ratio", "bytes", "zeros")
FIGURES = (*CASE, "ONNX Runtime", "lwc", "bytes", "ONNX Runtime beside zeros", "zeros", "bytes of zeros")


def network(kind: str, hidden: int, time: int, batch: int, directions: int, sparsity: float) -> onnx.ModelProto:
    """One layer with as many inputs as units, as PyTorch exports it; zeros at random places."""
    generator = np.random.default_rng(0)
    rows = GATES[kind] * hidden
    bound = hidden**-0.5

    def drawn(*shape: int, density: float = 1.0) -> np.ndarray:
        kept = generator.random(shape) < density
        return (kept * generator.uniform(-bound, bound, shape)).astype(np.float32)

    weights = {
        "w": drawn(directions, rows, hidden, density=1 - sparsity),
        "r": drawn(directions, rows, hidden, density=1 - sparsity),
        "b": drawn(directions, 2 * rows),
    }
    attributes: dict[str, Any] = {"direction": "bidirectional" if directions == 2 else "forward"}
    if kind == "GRU":
        attributes["linear_before_reset"] = 1
    node = helper.make_node(kind, ["x", "w", "r", "b"], ["y"], name="layer", hidden_size=hidden, **attributes)
    graph = helper.make_graph(
        [node],
        "recurrent",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, (time, batch, hidden))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, (time, directions, batch, hidden))],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def measure(kind: str, hidden: int, time: int, batch: int, directions: int, threads: int, seconds: float) -> list[Any]:
    """Milliseconds of ONNX Runtime, of lwc dense and with zeros, and the bytes of either library."""
    found: list[Any] = []
    with tempfile.TemporaryDirectory() as folder:
        dense = Path(folder) / "dense.onnx"
        onnx.save(network(kind, hidden, time, batch, directions, 0.0), dense)
        for sparsity in (0.0, SPARSITY):
            proto = network(kind, hidden, time, batch, directions, sparsity)
            artifact = Path(folder) / f"{sparsity}.lwc"
            lwc.compile(proto, artifact, lwc.Recipe(lower=lwc.LowerOptions(threads=threads)))
            result = bench(artifact, against=dense, threads=threads, seconds=seconds)
            ours, theirs = (timing.median_ms for timing in result.timings)
            found += [theirs, ours, next(artifact.glob("lib*.so")).stat().st_size]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", nargs="+", default=list(GATES), choices=list(GATES))
    parser.add_argument("--hidden", type=int, nargs="+", default=[64, 128, 256, 512])
    parser.add_argument("--time", type=int, nargs="+", default=[64])
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--directions", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--seconds", type=float, default=0.5, help="timed runs of each engine")
    parser.add_argument("-o", "--output", type=Path, default=RESULTS, help="folder of the results")
    options = parser.parse_args()
    today = datetime.datetime.now(datetime.UTC).date()
    lines = [
        f"# Recurrent layers, {today}",
        "",
        "`python -m benchmarks.recurrent`",
        "",
        f"{processor()}; ONNX Runtime {onnxruntime.__version__}, lwc {lwc.__version__}. As many inputs as units;",
        "medians in milliseconds, and bytes of the library. Columns `zeros` are of the layer with",
        f"{100 * SPARSITY:.0f} % zeros at random places; both ratios are to ONNX Runtime's time for the dense layer.",
        "",
        f"| {' | '.join(COLUMNS)} |",
        "| --- |" + " ---: |" * 12,
    ]
    rows = []
    each = product(options.kinds, options.hidden, options.time, options.batch, options.directions, options.threads)
    for case in each:
        first, dense, dense_bytes, second, sparse, sparse_bytes = measure(*case, options.seconds)
        rows.append([*case, first, dense, dense_bytes, second, sparse, sparse_bytes])
        lines.append(
            f"| {' | '.join(map(str, case))} | {first:.3f} | {dense:.3f} | {first / dense:.2f}x | {sparse:.3f} | "
            f"{second / sparse:.2f}x | {dense_bytes:,} | {sparse_bytes:,} |"
        )
        print(lines[-1], flush=True)
    write_outcome(options.output, "recurrent", {"columns": FIGURES, "rows": rows}, "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
