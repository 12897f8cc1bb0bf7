"""Single kernels on a GPU: whether they compute what they should, and how long they take."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.gpu.bundle import Bundle, random_input
from benchmarks.gpu.driver import Gpu, GpuError, LaunchOf

_GUARD_BYTES = 4096
_POISON = 0xFFA5A5A5  # a NaN as float32
_RUNS = 3
_LEAST_LAUNCHES = 8  # in a graph that is timed
_MOST_SETS = 64
_BUDGET = 0.05  # seconds of one timing
_LEAST_SECONDS = 2.0  # with less left, none is begun


class Case:
    """A layer's kernels in the GPU's memory.

    Args:
        gpu: where.
        bundle: what the case's arrays are in.
        functions: symbol -> kernel.
        case: an entry of the bundle's table.
        sets: copies of all buffers.
    """

    def __init__(
        self, gpu: Gpu, bundle: Bundle, functions: dict[str, Any], case: dict[str, Any], sets: int = 1
    ) -> None:
        self._gpu, self._case, self._functions = gpu, case, functions
        self._blocks: list[int] = []
        self._inputs = [
            bundle.array(source["array"]) if "array" in source else random_input(source["shape"])
            for source in case["inputs"]
        ]
        names = {name for step in case["steps"] for kind, name in step["args"] if kind == "constant"}
        constants = {name: bundle.array(name) for name in sorted(names)}
        self._size = 4 * math.prod(case["shape"])
        writable: list[tuple[int, int]] = []
        self._sets = [self._place(constants, writable) for _ in range(sets)]
        self._writable = writable[: len(writable) // sets]  # of the set that is checked

    def _place(self, constants: dict[str, NDArray[Any]], writable: list[tuple[int, int]]) -> dict[tuple[str, Any], int]:
        """(kind, number or name) -> the address of a buffer; adds those without contents, with their sizes."""
        places: dict[tuple[str, Any], int] = {}
        for number, array in enumerate(self._inputs):
            places["input", number] = self._buffer(array.nbytes, array)
        for name, array in constants.items():
            places["constant", name] = self._buffer(array.nbytes, array)
        for number, size in enumerate(self._case["scratch"]):
            places["scratch", number] = self._buffer(size)
            writable.append((places["scratch", number], size))
        places["output", 0] = self._buffer(self._size)
        writable.append((places["output", 0], self._size))
        return places

    def _buffer(self, size: int, contents: NDArray[Any] | None = None) -> int:
        """Memory with NaNs around and in it, but for its contents."""
        whole = -(-size // 256) * 256 + 2 * _GUARD_BYTES
        block = self._gpu.memory(whole)
        self._blocks.append(block)
        self._gpu.upload(block, np.full(whole // 4, _POISON, np.uint32))
        if contents is not None:
            self._gpu.upload(block + _GUARD_BYTES, contents)
        return block + _GUARD_BYTES

    def launches(self, places: dict[tuple[str, Any], int]) -> list[LaunchOf]:
        """The case's launches on one set of buffers."""
        return [
            LaunchOf(
                self._functions[step["symbol"]],
                step["grid"],
                step["block"],
                step["shared_bytes"],
                step["overlaps"],
                [places[kind, which] for kind, which in step["args"]],
            )
            for step in self._case["steps"]
        ]

    def check(self, expected: NDArray[np.float32]) -> dict[str, Any]:
        """Runs the case several times, and compares.

        Args:
            expected: see `layers.Checked`.

        Returns:
            `error`, of the result's scale; and `wrong`, what is wrong with it, where something is.
        """
        graph, results = self._gpu.graph(self.launches(self._sets[0])), []
        for _ in range(_RUNS):
            for address, size in self._writable:
                poison = np.full((-(-size // 256) * 256 + 2 * _GUARD_BYTES) // 4, _POISON, np.uint32)
                self._gpu.upload(address - _GUARD_BYTES, poison)
            self._gpu.run(graph)
            result = self._gpu.download(self._sets[0]["output", 0], self._size)
            results.append(result.view(np.float32).reshape(self._case["shape"]))
        self._gpu.destroy(graph)
        images = self._case["images"]
        if images is not None:
            expected = expected[:, np.arange(self._case["shape"][1]) % expected.shape[1]]
        limits = self._case["scale"], self._case["tolerance"]
        return compare(results, expected, *limits, self._written_outside(), images)

    def _written_outside(self) -> bool:
        for address, size in self._writable:
            before = self._gpu.download(address - _GUARD_BYTES, _GUARD_BYTES).view(np.uint32)
            after = self._gpu.download(address + -(-size // 256) * 256, _GUARD_BYTES).view(np.uint32)
            if (before != _POISON).any() or (after != _POISON).any():
                return True
        return False

    def seconds(self) -> float:
        """The median time of the case, its buffers cold in the level-2 cache where there are many sets."""
        rounds = math.ceil(_LEAST_LAUNCHES / len(self._sets))
        launches = [launch for _ in range(rounds) for places in self._sets for launch in self.launches(places)]
        graph = self._gpu.graph(launches, overlapping=True)
        seconds = self._gpu.seconds(lambda: self._gpu.run(graph), _BUDGET) / (rounds * len(self._sets))
        self._gpu.destroy(graph)
        return seconds

    def free(self) -> None:
        """Gives the memory back."""
        for block in self._blocks:
            self._gpu.free(block)


def compare(
    results: list[NDArray[np.float32]],
    expected: NDArray[np.float32],
    scale: float,
    tolerance: float,
    written_outside: bool,
    images: list[int] | None = None,
) -> dict[str, Any]:
    """What `Case.check` gives.

    Args:
        results: of equal runs.
        expected: float32, of the same shape but for its first dimension if `images` are given.
        scale: what errors are relative to; 0 counts as 1.
        tolerance: the largest error that is right.
        written_outside: a kernel wrote outside of its buffers.
        images: indices along the results' first dimension of what is compared.
    """
    wrong, error = [], None
    if not np.isfinite(results[0]).all():
        wrong.append("not finite")
    else:
        compared = results[0] if images is None else results[0][images]
        error = float(np.abs(compared.astype(np.float64) - expected).max(initial=0.0)) / (scale or 1.0)
        if error > tolerance:
            wrong.append(f"error above {tolerance:g}")
    if any(not np.array_equal(result.view(np.uint32), results[0].view(np.uint32)) for result in results):
        wrong.append("runs differ")
    if written_outside:
        wrong.append("wrote outside of its memory")
    return {"error": error} | ({"wrong": ", ".join(wrong)} if wrong else {})


def sets_of(l2_bytes: int, size: int) -> int:
    """How many copies of `size` bytes take turns, so that the level-2 cache has none of one when it is needed."""
    return max(1, min(_MOST_SETS, math.ceil(2 * l2_bytes / size)))


def run_cases(gpu: Gpu, bundle: Bundle, kind: str, left: Callable[[], float] | None = None) -> list[dict[str, Any]]:
    """Checks the bundle's cases of a kind.

    Args:
        gpu: where.
        bundle: has the cases.
        kind: `checks` or `layers`.
        left: if given, they are timed, too, as long as it gives some seconds; those that lwc takes come first.

    Returns:
        Of each case its name and what else the table has of it (`layer`), `error`, perhaps `wrong`, and `ms`.
    """
    part = bundle.table[kind]
    module = gpu.module(bundle.data(part["code"]))
    functions = {
        symbol: gpu.function(module, symbol)
        for symbol in sorted({step["symbol"] for case in part["cases"] for step in case["steps"]})
    }
    rows = []
    for entry in sorted(part["cases"], key=lambda entry: not entry["layer"].get("chosen")):
        if left is not None and left() < _LEAST_SECONDS:
            break
        row: dict[str, Any] = {"name": entry["name"], **entry.get("layer", {})}
        try:
            sets = sets_of(gpu.l2_bytes, entry["layer"]["bytes"]) if left is not None else 1
            case = Case(gpu, bundle, functions, entry, sets)
            row |= case.check(bundle.array(entry["expected"]))
            if left is not None:
                row["ms"] = 1e3 * case.seconds()
            case.free()
        except GpuError as error:
            rows.append(row | {"error": None, "wrong": str(error)})
            break  # the context is lost
        rows.append(row)
    return rows
