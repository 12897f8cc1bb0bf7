"""Whole networks on a GPU, by the C interface of their libraries."""

from __future__ import annotations

import ctypes
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.gpu.bundle import Bundle, random_input
from lwc_compiler.runtime.device_driver import Gpu, GpuError

NAMES = ("model", "variant", "batch", "precision")  # what tells networks apart
_PROFILES = 20
_HOST_RUNS = 30


class Library:
    """A network's library, with a context on the first GPU.

    Raises:
        GpuError: the library cannot make one.
    """

    def __init__(self, path: Path, symbol: str) -> None:
        self._library, self._symbol = ctypes.CDLL(str(path)), symbol
        pointer = ctypes.c_void_p
        self._take("create", [ctypes.c_int, pointer], pointer)
        self._take("destroy", [pointer], None)
        self._take("error_string", [ctypes.c_int], ctypes.c_char_p)
        self._take("run", [pointer] * 3, ctypes.c_int)
        self._take("run_device", [pointer] * 4, ctypes.c_int)
        self._take("profile", [pointer] * 4, ctypes.c_int)
        code = ctypes.c_int()
        self._context = self._call("create", 0, ctypes.addressof(code))
        if not self._context:
            raise GpuError(self._call("error_string", code.value).decode())

    def _take(self, name: str, arguments: list[Any], result: Any) -> None:
        function = self._library[f"{self._symbol}_{name}"]
        function.argtypes, function.restype = arguments, result
        setattr(self, f"_{name}", function)

    def _call(self, name: str, *arguments: Any) -> Any:
        return getattr(self, f"_{name}")(*arguments)

    def call(self, name: str, *arguments: Any) -> None:
        """Calls `run`, `run_device` or `profile` on the context.

        Raises:
            GpuError: it failed.
        """
        code = self._call(name, self._context, *arguments)
        if code:
            raise GpuError(f"{name}: {self._call('error_string', code).decode()} (code {code})")

    def close(self) -> None:
        """Gives the GPU's memory back."""
        self._call("destroy", self._context)


def pointers(*addresses: int) -> ctypes.Array[ctypes.c_void_p]:
    """An array of C pointers."""
    return (ctypes.c_void_p * len(addresses))(*addresses)


def run_network(gpu: Gpu, bundle: Bundle, entry: dict[str, Any]) -> dict[str, Any]:
    """Checks and times a network.

    Returns:
        What the table says of it; `error`, and perhaps `wrong`; `ms` of a run on tensors of the GPU,
        `host_ms` of one with tensors of the processor; `steps`, (node, kernel, ms) of each launch and of the copies.
    """
    row: dict[str, Any] = {key: entry[key] for key in (*NAMES, "device_bytes")}
    x = random_input(entry["input"])
    y = np.empty(entry["output"], np.float32)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "network.so"
        path.write_bytes(bundle.data(entry["library"]))
        library = Library(path, entry["symbol"])
    takes, gives = pointers(x.ctypes.data), pointers(y.ctypes.data)
    library.call("run", takes, gives)
    row |= check_network(y, bundle.array(entry["expected"]), entry["tolerance"])
    row["host_ms"] = 1e3 * _host_seconds(lambda: library.call("run", takes, gives))
    row["steps"] = _step_times(library, entry["steps"], takes, gives)
    row["ms"] = 1e3 * _device_seconds(gpu, library, x, y)
    library.close()
    return row


def check_network(y: NDArray[np.float32], expected: NDArray[np.float32], tolerance: float) -> dict[str, Any]:
    """The error of the outputs of a batch's first and last image, relative to the largest of `expected`."""
    chosen = y[[0, -1]] if len(expected) > 1 else y
    error = float(np.abs(chosen.astype(np.float64) - expected).max() / np.abs(expected).max())
    if not np.isfinite(y).all():
        return {"error": None, "wrong": "not finite"}
    return {"error": error} | ({"wrong": f"error above {tolerance:g}"} if error > tolerance else {})


def _host_seconds(run: Any) -> float:
    times = []
    for _ in range(_HOST_RUNS):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def _step_times(library: Library, steps: list[list[str]], takes: Any, gives: Any) -> list[list[Any]]:
    profiles = np.zeros((_PROFILES, len(steps) + 1))
    for row in profiles:
        library.call("profile", takes, gives, row.ctypes.data)
    medians = 1e3 * np.median(profiles, axis=0)
    return [[*step, float(ms)] for step, ms in zip([*steps, ["", "copies"]], medians, strict=True)]


def _device_seconds(gpu: Gpu, library: Library, x: NDArray[np.float32], y: NDArray[np.float32]) -> float:
    x_there, y_there = gpu.memory(x.nbytes), gpu.memory(y.nbytes)
    gpu.upload(x_there, x)
    takes, gives = pointers(x_there), pointers(y_there)
    seconds = gpu.seconds(lambda: library.call("run_device", takes, gives, gpu.stream))
    same = np.array_equal(gpu.download(y_there, y.nbytes), y.reshape(-1).view(np.uint8))
    gpu.free(x_there)
    gpu.free(y_there)
    if not same:
        raise GpuError("run_device gives other outputs than run")
    return seconds
