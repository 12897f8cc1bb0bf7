"""Single kernels on a GPU: whether they compute what they should, and how long they take."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.gpu.bundle import Bundle, random_input
from lwc_compiler.runtime.device_driver import Gpu, GpuError, LaunchOf
from lwc_compiler.runtime.device_timing import Buffers, sets_of

_GUARD_BYTES = 4096
_POISON = 0xFFA5A5A5  # a NaN as float32
_RUNS = 3
_BUDGET = 0.05  # seconds of one timing
_LEAST_SECONDS = 2.0  # with less left, none is begun


class Case(Buffers):
    """A layer's kernels, and their buffers in the GPU's memory with NaNs around and in them, but for their contents.

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
        self._case = case
        contents: dict[Hashable, NDArray[Any]] = {
            ("input", number): bundle.array(source["array"]) if "array" in source else random_input(source["shape"])
            for number, source in enumerate(case["inputs"])
        }
        names = {name for step in case["steps"] for kind, name in step["args"] if kind == "constant"}
        contents |= {("constant", name): bundle.array(name) for name in sorted(names)}
        self._size = 4 * math.prod(case["shape"])
        self._written: dict[Hashable, int] = {("scratch", i): size for i, size in enumerate(case["scratch"])}
        self._written["output", 0] = self._size
        self._launches = [
            LaunchOf(
                functions[step["symbol"]],
                step["grid"],
                step["block"],
                step["shared_bytes"],
                step["overlaps"],
                [tuple(operand) for operand in step["args"]],
            )
            for step in case["steps"]
        ]
        super().__init__(gpu, contents, self._written, sets)

    def place(self, size: int, contents: NDArray[Any] | None = None) -> int:
        """The address of new memory in the middle of NaNs."""
        whole = _whole(size)
        address = self.take(whole) + _GUARD_BYTES
        self._poison(address, size)
        if contents is not None:
            self._gpu.upload(address, contents)
        return address

    def _poison(self, address: int, size: int) -> None:
        self._gpu.upload(address - _GUARD_BYTES, np.full(_whole(size) // 4, _POISON, np.uint32))

    def check(self, expected: NDArray[np.float32]) -> dict[str, Any]:
        """Runs the case several times, and compares.

        Args:
            expected: see `layers.Checked`.

        Returns:
            `error`, of the result's scale; and `wrong`, what is wrong with it, where something is.
        """
        places, results = self.sets[0], []
        launches = [launch.at(places) for launch in self._launches]
        for _ in range(_RUNS):
            for name, size in self._written.items():
                self._poison(places[name], size)
            self._gpu.once(launches)
            result = self._gpu.download(places["output", 0], self._size)
            results.append(result.view(np.float32).reshape(self._case["shape"]))
        images = self._case["images"]
        if images is not None:
            expected = expected[:, np.arange(self._case["shape"][1]) % expected.shape[1]]
        limits = self._case["scale"], self._case["tolerance"]
        return compare(results, expected, *limits, self._written_outside(), images)

    def _written_outside(self) -> bool:
        for name, size in self._written.items():
            address = self.sets[0][name]
            before = self._gpu.download(address - _GUARD_BYTES, _GUARD_BYTES).view(np.uint32)
            after = self._gpu.download(address + _whole(size) - 2 * _GUARD_BYTES, _GUARD_BYTES).view(np.uint32)
            if (before != _POISON).any() or (after != _POISON).any():
                return True
        return False

    def time(self) -> float:
        """The median time of the case, its buffers cold in the level-2 cache where there are many sets."""
        return self.seconds(self._launches, _BUDGET)


def _whole(size: int) -> int:
    """Bytes of a buffer with what is around it."""
    return -(-size // 256) * 256 + 2 * _GUARD_BYTES


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
            with Case(gpu, bundle, functions, entry, sets) as case:
                row |= case.check(bundle.array(entry["expected"]))
                if left is not None:
                    row["ms"] = 1e3 * case.time()
        except GpuError as error:
            rows.append(row | {"error": None, "wrong": str(error)})
            break  # the context is lost
        rows.append(row)
    return rows
