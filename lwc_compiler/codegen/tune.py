"""Picks the kernel of a layer by measurement on this machine, and remembers what was measured.

The timings lie in a file of the user's cache directory, by CPU, target, lwc's kernels, layer and density: the next time
the same layer is compiled on the same machine, nothing is measured and the choice is the same.
"""

from __future__ import annotations

import _ctypes
import ctypes
import hashlib
import json
import tempfile
import time
from collections import defaultdict
from contextlib import suppress
from dataclasses import replace
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import tvm_ffi

from lwc_compiler.cache.folder import cache_folder
from lwc_compiler.cache.locks import locked
from lwc_compiler.codegen.kernel_build import compile_kernels
from lwc_compiler.codegen.link import Compiler, link_library
from lwc_compiler.kernels.choice import explain, formats_best, predicted, proven
from lwc_compiler.kernels.kernel import ALIGNMENT_BYTES, SLACK_BYTES, Constant, Input, Moving, Output, Trial
from lwc_compiler.targets import host_cpu

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray
    from typing_extensions import Self

    from lwc_compiler.kernels.choice import Candidate, Task
    from lwc_compiler.kernels.kernel import Kernel, Plan
    from lwc_compiler.targets.target import Target

_WORTH_CYCLES = 30_000  # predicted; shorter layers are not worth a measurement
_HOPELESS = 2.0  # a format that is predicted to be slower by this factor is not measured
_ROUNDS, _SECONDS = 6, 0.012  # runs of each candidate at least, and how long each is timed
_TRIED, _OUT_OF_THE_RACE = 3, 2.0  # slower by this factor after so many rounds: not run again


class Tuner:
    """A `Pick` that measures.

    Args:
        target: what the kernels are compiled for; this machine can run it.
        count: candidates measured for each layer, at least 1.
        compiler: links them.
    """

    def __init__(self, target: Target, count: int, compiler: Compiler) -> None:
        self._target, self._count, self._compiler = target, count, compiler
        self._timings = Timings(target)

    def __call__(self, task: Task, candidates: Sequence[Candidate]) -> Plan:
        """The plan of the fastest candidate."""
        if len(candidates) == 1 or min(c.cycles for c in candidates) < _WORTH_CYCLES:
            return predicted(task, candidates)
        chosen = promising(candidates, self._count)
        seconds = self._timings.of(task)
        plans: dict[str, Plan] = {}
        if any(candidate.name not in seconds for candidate in chosen):
            plans = {candidate.name: candidate.build() for candidate in chosen}
            times = measure(list(plans.values()), task, self._target, self._compiler)
            seconds = seconds | dict(zip(plans, times, strict=True))  # others: measured for another number of threads
            self._timings.remember(task, seconds)
        return fastest_of(task, chosen, seconds, plans)


def fastest_of(
    task: Task,
    candidates: Sequence[Candidate],
    seconds: Mapping[str, float],
    plans: Mapping[str, Plan],
    where: str = "",
) -> Plan:
    """The plan of the candidate that was measured to be the fastest.

    Args:
        task: the layer.
        candidates: that were measured, at least one.
        seconds: of each, by its name.
        plans: of those that are built already.
        where: what they were measured on, for the report.
    """
    shared = {candidate.name: seconds[candidate.name] * candidate.uneven for candidate in candidates}
    ordered = sorted(candidates, key=lambda candidate: shared[candidate.name])
    ranked = sorted(formats_best(ordered, shared), key=lambda item: item[1])
    best = ordered[0]
    return replace(
        plans[best.name] if best.name in plans else best.build(),
        why=explain(task, "measured", ranked, where),
        trials=tuple(Trial(c.name, c.cycles, seconds[c.name]) for c in ordered),
    )


class Timings:
    """What was measured on this machine for a target: of every layer and density, the seconds of kernels by name.

    Args:
        target: what the kernels are compiled for.
        compiler: that makes machine code of them, where that is not lwc's.
    """

    def __init__(self, target: Target, compiler: str = "") -> None:
        self._file = cache_folder() / f"timings-{_digest_of_kernels()}.json"
        self._machine = "; ".join(filter(None, (host_cpu(target), compiler, target.name)))
        self._timings = _read(self._file)

    def of(self, task: Task) -> dict[str, float]:
        """The seconds of the ways to compute a task, by their names."""
        return self._timings.get(self._machine, {}).get(f"{task.layer}; {task.densities}", {})

    def remember(self, task: Task, seconds: dict[str, float]) -> None:
        """Notes the seconds of the ways to compute a task.

        They are added to the file, with what others wrote to it since; a file that cannot be written is no loss.
        """
        self._timings.setdefault(self._machine, {})[f"{task.layer}; {task.densities}"] = seconds
        new = self._file.with_suffix(".new")
        with suppress(OSError):
            self._file.parent.mkdir(parents=True, exist_ok=True)
            with locked(self._file.with_suffix(".lock"), "writes its timings"):
                timings = _read(self._file)
                timings[self._machine] = timings.get(self._machine, {}) | self._timings[self._machine]
                try:
                    new.write_text(json.dumps(timings), encoding="utf-8")
                    new.replace(self._file)
                finally:
                    new.unlink(missing_ok=True)


def promising(candidates: Sequence[Candidate], count: int) -> list[Candidate]:
    """`count` candidates that are proven: the best of every format that has a chance, then the best of all."""
    ordered = sorted(proven(candidates), key=lambda candidate: candidate.shared)
    heads = {c.name: c for c, _ in formats_best(ordered, {c.name: c.shared for c in ordered})}
    first = [c for c in ordered if c.name in heads and c.shared <= _HOPELESS * ordered[0].shared]
    return [*first, *(c for c in ordered if c.name not in heads)][:count]


def measure(plans: Sequence[Plan], task: Task, target: Target, compiler: Compiler) -> list[float]:
    """Seconds of each plan's fastest run on one core, the plans taking turns.

    Args:
        plans: of one layer.
        task: the layer.
        target: what the kernels are compiled for; this machine can run it.
        compiler: links them.
    """
    with Library(plans, target, compiler) as library:
        generator = np.random.default_rng(0)
        inputs = [generator.standard_normal(size // 4, np.float32) for size in task.inputs]
        runs = [library.runner(i, inputs, task.output)[0] for i in range(len(plans))]
        return fastest(runs, _SECONDS * len(plans))


class Library:
    """The kernels of some plans as a loaded library."""

    def __init__(self, plans: Sequence[Plan], target: Target, compiler: Compiler) -> None:
        kernels, names = distinct_kernels(plans)
        code = link_library(compiler, {"kernels.o": compile_kernels(kernels, target.llvm())}, hidden=("__truncsfhf2",))
        with tempfile.TemporaryDirectory(prefix="lwc-") as folder:
            path = Path(folder) / "kernels.so"
            path.write_bytes(code)
            self._library = ctypes.CDLL(str(path))
        self._plans, self._names = plans, names

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        _ctypes.dlclose(self._library._handle)

    def runner(
        self, index: int, inputs: Sequence[NDArray[np.float32]], output: int
    ) -> tuple[Callable[..., None], NDArray[np.uint8]]:
        """A function that runs plan `index` on one core, and the bytes it writes the output to.

        Given 0, it makes the same calls and computes nothing.

        Args:
            index: of the plan.
            inputs: of the layer.
            output: bytes of the output.
        """
        plan = self._plans[index]
        data, result = [_copied(x) for x in inputs], _memory(output)
        scratch = [_memory(size) for size in plan.scratch]
        calls: list[tuple[Any, list[ctypes.c_void_p], int]] = []
        held = [*data, result, *scratch]
        for step, name in zip(plan.steps, self._names[index], strict=True):
            buffers = []
            for operand in step.args:
                if isinstance(operand, Constant):
                    buffers.append(_copied(operand.array))
                elif isinstance(operand, Input):
                    buffers.append(data[operand.index])
                else:
                    assert not isinstance(operand, Moving)  # a layer with a loop is measured product by product
                    buffers.append(result if isinstance(operand, Output) else scratch[operand.index])
            if step.kernel.over is not None:  # as in most networks; what the result then is does not matter
                buffers[-1] = buffers[step.kernel.over]
            if step.kernel.thread_bytes:
                buffers.append(_memory(step.kernel.thread_bytes))
            held += buffers
            pointers = [ctypes.c_void_p(b.ctypes.data) for b in buffers]
            calls.append((self._library[name], pointers, step.kernel.tiles))

        def run(times: int = 1) -> None:
            for function, pointers, tiles in calls:
                function(*pointers, 0, times * tiles)

        run.buffers = held  # type: ignore[attr-defined]  # they live as long as the function
        return run, result[:output]


def distinct_kernels(plans: Sequence[Plan]) -> tuple[dict[str, Kernel], list[list[str]]]:
    """The kernels of plans by new names, and the names of each plan's; kernels that do the same share one."""
    kernels: dict[str, Kernel] = {}
    alike: dict[int, list[str]] = defaultdict(list)

    def name_of(kernel: Kernel) -> str:
        names = alike[tvm_ffi.structural_hash(kernel.func)]
        for name in names:
            if tvm_ffi.structural_equal(kernels[name].func, kernel.func):
                return name
        names.append(f"k{len(kernels)}")
        kernels[names[-1]] = kernel
        return names[-1]

    names = [[name_of(step.kernel) for step in plan.steps] for plan in plans]
    return kernels, names


def fastest(runs: Sequence[Callable[[], object]], seconds: float) -> list[float]:
    """Seconds of each function's fastest run; they take turns, and the slow ones drop out.

    What other programs take of the core does not count, but for what they push out of its caches.

    Args:
        runs: the functions.
        seconds: for all of them together; each is run a few times at least.
    """
    times = [float("inf")] * len(runs)
    for run in runs:
        run()
    end, rounds = time.perf_counter() + seconds, 0
    while time.perf_counter() < end or rounds < _ROUNDS:
        limit = _OUT_OF_THE_RACE * min(times) if rounds >= 2 else float("inf")
        for i, run in enumerate(runs):
            if rounds and times[i] > limit:
                continue
            start = time.thread_time()
            run()
            times[i] = min(times[i], time.thread_time() - start)
        rounds += 1
    return times


def _memory(size: int) -> NDArray[np.uint8]:
    """Memory as kernels expect it: aligned, with slack past the end."""
    whole = np.zeros(size + SLACK_BYTES + ALIGNMENT_BYTES, np.uint8)
    return whole[-whole.ctypes.data % ALIGNMENT_BYTES :][: size + SLACK_BYTES]


def _copied(array: NDArray[Any]) -> NDArray[np.uint8]:
    buffer = _memory(array.nbytes)
    buffer[: array.nbytes] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    return buffer


@lru_cache(maxsize=1)
def _digest_of_kernels() -> str:
    """Changes with every change of the code that makes kernels."""
    digest = hashlib.sha256()
    for package in ("lwc_compiler.kernels", "lwc_compiler.kernels.gpu", "lwc_compiler.codegen"):
        for file in sorted(resources.files(package).iterdir(), key=lambda file: file.name):
            if file.name.endswith((".py", ".cuh")):
                digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def _read(file: Path) -> dict[str, dict[str, dict[str, float]]]:
    """What the file holds; nothing when there is none, or it is damaged."""
    try:
        timings = json.loads(file.read_text(encoding="utf-8"))
        return {
            machine: {layer: {name: float(time) for name, time in seconds.items()} for layer, seconds in layers.items()}
            for machine, layers in timings.items()
        }
    except (OSError, ValueError, TypeError, AttributeError):
        return {}
