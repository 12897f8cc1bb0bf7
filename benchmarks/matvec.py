"""Times sparse fully connected layers against the CSR products of Intel MKL and SciPy: one thread.

Run: python -m benchmarks.matvec [--layers TEXT] [--rows 1 16] [--target NAME] [--seconds 1]

MKL is its inspector-executor interface, optimized for many calls; it and SciPy come from PyPI into an environment of
their own, `.cache/mkl`. All engines take turns in one process; the figure is the median. GB/s are the weights as our
kernel stores them, useful GFLOP/s count the non-zero weights only.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import statistics
import subprocess
import sys
import time
import venv
from collections.abc import Callable
from pathlib import Path

import numpy as np

from lwc_compiler.codegen.link import find_compiler
from lwc_compiler.codegen.tune import Library
from lwc_compiler.kernels.kernel import Constant
from lwc_compiler.kernels.layer import Epilogue
from lwc_compiler.kernels.matmul import plan_dense, plan_matmul
from lwc_compiler.targets import find_target
from lwc_compiler.targets.target import Target

# name, inputs, outputs, density
LAYERS = [
    ("VGG-16 fc6", 25088, 4096, 0.04),
    ("VGG-16 fc6", 25088, 4096, 0.1),
    ("VGG-16 fc7", 4096, 4096, 0.04),
    ("VGG-16 fc7", 4096, 4096, 0.1),
    ("AlexNet fc1", 9216, 4096, 0.09),
    ("AlexNet fc2", 4096, 4096, 0.09),
    ("ResNet fc", 2048, 1000, 0.1),
    ("LeNet-300 fc1", 784, 300, 0.08),
]
PEERS = Path(__file__).resolve().parent.parent / ".cache" / "mkl"
_NO_TRANSPOSE, _ROW_MAJOR, _GENERAL, _CALLS = 10, 101, 20, 1_000_000


class _Description(ctypes.Structure):
    _fields_ = (("type", ctypes.c_int), ("mode", ctypes.c_int), ("diag", ctypes.c_int))


def install_peers() -> None:
    """Makes the environment of MKL and SciPy, once."""
    done = PEERS / "done"
    if not done.exists():
        venv.create(PEERS, with_pip=True)
        pip = [str(PEERS / "bin" / "python"), "-m", "pip", "install", "--quiet", "mkl", "scipy"]
        subprocess.run(pip, check=True)
        done.touch()


def mkl_product(ends: np.ndarray, columns: np.ndarray, values: np.ndarray, x: np.ndarray) -> Callable[[], np.ndarray]:
    """MKL's product of a CSR matrix (outputs, inputs) with x (inputs, rows)."""
    (path,) = (PEERS / "lib").glob("libmkl_rt.so*")
    mkl = ctypes.CDLL(str(path))
    mkl.MKL_Set_Num_Threads(1)

    def pointer(array: np.ndarray, skip: int = 0) -> ctypes.c_void_p:
        return ctypes.c_void_p(array.ctypes.data + skip)

    (inputs, rows), outputs = x.shape, ends.size - 1
    handle, kind = ctypes.c_void_p(), _Description(_GENERAL, 0, 0)
    y = np.zeros((outputs, rows), np.float32)
    one, zero = ctypes.c_float(1), ctypes.c_float(0)
    shape = (ctypes.c_int(outputs), ctypes.c_int(inputs))
    matrix = (pointer(ends), pointer(ends, 4), pointer(columns), pointer(values))
    states = [mkl.mkl_sparse_s_create_csr(ctypes.byref(handle), 0, *shape, *matrix)]
    if rows == 1:
        states.append(mkl.mkl_sparse_set_mv_hint(handle, _NO_TRANSPOSE, kind, _CALLS))
    else:
        states.append(mkl.mkl_sparse_set_mm_hint(handle, _NO_TRANSPOSE, kind, _ROW_MAJOR, rows, _CALLS))
    states.append(mkl.mkl_sparse_optimize(handle))
    if any(states):
        raise RuntimeError(f"MKL returned {states}")

    def run() -> np.ndarray:
        if rows == 1:
            mkl.mkl_sparse_s_mv(_NO_TRANSPOSE, one, handle, kind, pointer(x), zero, pointer(y))
        else:
            layout = (_ROW_MAJOR, pointer(x), rows, rows)
            mkl.mkl_sparse_s_mm(_NO_TRANSPOSE, one, handle, kind, *layout, zero, pointer(y), rows)
        return y.T

    # MKL keeps the addresses only.
    run.held = (ends, columns, values, x)  # type: ignore[attr-defined]
    return run


def medians(runs: dict[str, Callable[[], object]], seconds: float) -> dict[str, float]:
    """Seconds of each function's median run, in turns."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        run()
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(next(iter(times.values()))) < 5:
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def into(run: Callable[[], None], result: np.ndarray, rows: int) -> Callable[[], np.ndarray]:
    """A function that runs a kernel and gives the (rows, outputs) that it wrote to the bytes `result`."""

    def call() -> np.ndarray:
        run()
        return result.view(np.float32).reshape(rows, -1)

    return call


def compare(inputs: int, outputs: int, density: float, rows: int, target: Target, seconds: float) -> str:
    """Times one layer; the end of its line in the table."""
    import scipy.sparse  # type: ignore[import-not-found]

    generator = np.random.default_rng(0)
    weight = generator.standard_normal((inputs, outputs), np.float32)
    weight *= generator.random((inputs, outputs), np.float32) < density
    x = np.random.default_rng(1).standard_normal((rows, inputs), np.float32)
    plan = plan_matmul(weight, rows, Epilogue(), target)
    dense = plan_dense(weight, rows, Epilogue(), target)
    matrix = scipy.sparse.csr_matrix(weight.T)
    columns = np.ascontiguousarray(x.T)
    mkl = mkl_product(matrix.indptr.astype(np.int32), matrix.indices.astype(np.int32), matrix.data, columns)
    expected = x.astype(np.float64) @ weight
    with Library([plan, dense], target, find_compiler()) as library:
        runs: dict[str, Callable[[], np.ndarray]] = {"mkl": mkl, "scipy": lambda: (matrix @ columns).T}
        for i, name in enumerate(("lwc", "dense")):
            runs[name] = into(*library.runner(i, [x.reshape(-1)], 4 * rows * outputs), rows)
        for name, run in runs.items():
            assert np.abs(run() - expected).max() <= 1e-5 * np.abs(expected).max(), name
        # In pairs, so that only two matrices share the caches.
        times = {name: medians({"lwc": runs["lwc"], name: run}, seconds) for name, run in runs.items() if name != "lwc"}
    best = times["mkl"]["lwc"]
    stored = sum(arg.array.nbytes for step in plan.steps for arg in step.args if isinstance(arg, Constant))
    useful = 2 * np.count_nonzero(weight) * rows / best * 1e-9
    kernel = next(step.kernel.name for step in plan.steps if step.kernel.name != "transpose")
    peers = "".join(f"{times[name][name] * 1e3:9.3f}" for name in ("mkl", "scipy", "dense"))
    return (
        f"{kernel:14}{best * 1e3:9.3f}{stored / best * 1e-9:7.1f}{useful:9.1f}{peers}{times['mkl']['mkl'] / best:8.2f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", default="", help="only layers whose name contains this text, e.g. 'VGG'")
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 16], help="rows of the input (batch)")
    parser.add_argument("--target", default="host", help="as `lwc targets` lists them")
    parser.add_argument("--seconds", type=float, default=1.0, help="how long each pair is timed")
    options = parser.parse_args()
    try:
        install_peers()
    except (OSError, subprocess.CalledProcessError) as error:
        sys.exit(f"skipped: MKL and SciPy cannot be installed ({error})")
    (packages,) = (PEERS / "lib").glob("python*/site-packages")
    sys.path.append(str(packages))  # what our own environment has comes first
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    target = find_target(options.target)
    print(f"{'layer':15}density rows kernel           lwc ms   GB/s GFLOP/s   MKL ms SciPy ms dense ms MKL/lwc")
    for name, inputs, outputs, density in (layer for layer in LAYERS if options.layers in layer[0]):
        for rows in options.rows:
            line = compare(inputs, outputs, density, rows, target, options.seconds)
            print(f"{name:15}{density:7g}{rows:5d} {line}", flush=True)


if __name__ == "__main__":
    main()
