"""Picks the kernels of layers by measurement on this machine's GPU, and remembers what was measured.

A kernel is taken only if it computes what others do, every time, alone and among launches that overlap.

Making machine code takes most of the time, and more of it for one kernel after the other. So a network with layers that
were not measured is gone through twice: first to gather them, so that their kernels are compiled together, for this GPU
alone, and then to take what was the fastest. The timings lie where those of processors do, see `tune.py`.
"""

from __future__ import annotations

import logging
import math
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from lwc_compiler.codegen.cuda_compiler import compile_all, find_cuda_compiler
from lwc_compiler.codegen.device_build import compile_device
from lwc_compiler.codegen.tune import Timings, distinct_kernels, fastest_of, promising
from lwc_compiler.errors import TargetError
from lwc_compiler.kernels.choice import predicted, proven
from lwc_compiler.kernels.gpu.candidates import overlapping
from lwc_compiler.kernels.kernel import Constant, Input, Output, Scratch
from lwc_compiler.runtime.device_driver import Gpu, GpuError, LaunchError, LaunchOf
from lwc_compiler.runtime.device_timing import Buffers, sets_of
from lwc_compiler.runtime.verify import tolerance_of
from lwc_compiler.targets.cuda import host_gpu

if TYPE_CHECKING:
    import ctypes
    from collections.abc import Hashable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from lwc_compiler.kernels.choice import Candidate, Task
    from lwc_compiler.kernels.kernel import Kernel, Plan, Step
    from lwc_compiler.targets import target as targets
    from lwc_compiler.targets.target import Target

logger = logging.getLogger(__name__)

_SECONDS, _WARM_UP = 0.03, 0.2  # of a kernel's timing, and of work before the first, for the clocks to rise
_MOST_BYTES = 1 << 30  # of weights in all forms that wait to be measured
_TOGETHER = 8  # kernels that are compiled as one text
_CANNOT = math.inf  # seconds of a kernel that the GPU does not launch
_WRONG = -1.0  # and of one that computes something else than the others, or something else every time
_RUNS = 2  # of a kernel, whose results are compared, before it is timed


@dataclass(frozen=True)
class _Waiting:
    """A layer that has to be measured.

    Attributes:
        task: see `_told_apart`.
        plans: by the names of the candidates, those that are proven first.
    """

    task: Task
    plans: Mapping[str, Plan]


class DeviceTuner:
    """A `Pick` of what is the fastest on this machine's GPU.

    Of a layer that was not measured it gives any plan: when all layers of a network were asked for, `measure` says
    whether they have to be asked for again.

    Args:
        target: what the library is for; this machine's GPU runs its code.
        count: candidates measured for each layer, at least 1.
    """

    def __init__(self, target: Target, count: int) -> None:
        gpu = host_gpu()
        assert target.gpu is not None
        assert gpu is not None
        code = target.gpu.code_for(gpu["capability"])
        assert code is not None
        self._gpu, (self._architecture, self._ptx), self._name = target.gpu, code, str(gpu["name"])
        self._count = count
        self._timings = Timings(target, str(find_cuda_compiler([self._architecture])))
        self._waiting: dict[tuple[str, str], _Waiting] = {}
        self._any = False  # plan that was given without having been measured

    def __call__(self, task: Task, candidates: Sequence[Candidate]) -> Plan:
        """The plan of the fastest candidate; any, where that is not known.

        Raises:
            TargetError: the GPU launches none; or as `measure`, where much was waiting.
        """
        if len(candidates) == 1:
            return predicted(task, candidates)
        told, tried = _told_apart(task, candidates), _tried(candidates, self._count)
        seconds = self._timings.of(told)
        if any(candidate.name not in seconds for candidate in tried):
            return self._gathered(told, tried)
        right = [candidate for candidate in tried if seconds[candidate.name] not in (_CANNOT, _WRONG)]
        if not proven(right):
            raise TargetError(
                f"{self._name} launches none of the {len(proven(tried))} kernels that were tried for a layer "
                f"({tried[0].name}, ...), or not with the same results every time: give a target for this GPU, or "
                "tune 0, which takes what is predicted to be the fastest"
            )
        plan = fastest_of(task, right, seconds, {}, self._name)
        wrong = "; ".join(candidate.name for candidate in tried if seconds[candidate.name] == _WRONG)
        if wrong:
            logger.warning("%s computes wrong results by %s", self._name, wrong)
            plan = replace(plan, why=f"{plan.why}; not taken, as their results were wrong: {wrong}")
        return overlapping(plan, plan.seconds, self._gpu)

    def _gathered(self, task: Task, candidates: Sequence[Candidate]) -> Plan:
        """Any plan of a layer that has to be measured."""
        self._any = True
        key = task.layer, task.densities
        if key not in self._waiting:
            plans = {candidate.name: candidate.build() for candidate in candidates}
            self._waiting[key] = _Waiting(task, plans)
        plan = next(iter(self._waiting[key].plans.values()))
        if sum(plan.constant_bytes for each in self._waiting.values() for plan in each.plans.values()) > _MOST_BYTES:
            self._measure()
        return plan

    def measure(self) -> bool:
        """Measures the layers that have to be; what is measured is remembered, also if an error ends it.

        Returns:
            Whether there was one, so that plans that were given are not of what is the fastest.

        Raises:
            TargetError: the GPU has too little memory, or failed.
            ToolchainError: NVRTC refuses the kernels.
        """
        self._measure()
        given, self._any = self._any, False
        return given

    def _measure(self) -> None:
        layers = list(self._waiting.values())
        self._waiting.clear()
        if not layers:
            return
        logger.info("measuring %d ways to compute %d layers", sum(len(each.plans) for each in layers), len(layers))
        kernels, names = distinct_kernels([plan for layer in layers for plan in layer.plans.values()])
        images = self._compiled(kernels)
        try:
            with Gpu() as gpu:
                functions: dict[str, ctypes.c_void_p] = {}
                for part, image in images:
                    module = gpu.module(image)
                    functions |= {name: gpu.function(module, name) for name in part}
                self._time(gpu, layers, ([functions[name] for name in each] for each in names))
        except GpuError as error:
            raise TargetError(
                f"kernels cannot be timed on {self._name}: {error}; tune 0 takes what is predicted to be the fastest"
            ) from error

    def _compiled(self, kernels: Mapping[str, Kernel]) -> list[tuple[Sequence[str], bytes]]:
        """Names of kernels, and machine code of them."""
        names = list(kernels)
        parts = [names[first : first + _TOGETHER] for first in range(0, len(names), _TOGETHER)]

        def machine_code(text: str) -> bytes:
            return compile_all(text, (self._architecture,), ptx=self._ptx)[-1].image

        with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
            texts = (compile_device({name: kernels[name] for name in part}, "cuda") for part in parts)
            return list(zip(parts, pool.map(machine_code, texts), strict=True))

    def _time(self, gpu: Gpu, layers: Sequence[_Waiting], functions: Iterator[list[ctypes.c_void_p]]) -> None:
        """Times the plans of layers; `functions` are those of one after the other."""
        cold = True
        for layer in layers:
            stopwatch, seconds = _Stopwatch(gpu, layer.task, self._gpu), {}
            for name, plan in layer.plans.items():
                launched = next(functions)
                if cold:
                    stopwatch.seconds(plan, launched, _WARM_UP)
                    cold = False
                seconds[name] = stopwatch.seconds(plan, launched, _SECONDS)
            self._timings.remember(layer.task, self._timings.of(layer.task) | seconds)


def _tried(candidates: Sequence[Candidate], count: int) -> list[Candidate]:
    """What is measured: `count` that are proven, and as many that are not, where they are predicted to be faster."""
    first = promising(candidates, count)
    faster = [candidate for candidate in candidates if candidate.unproven and candidate.shared < first[0].shared]
    return [*first, *sorted(faster, key=lambda candidate: candidate.shared)[:count]]


class _Stopwatch:
    """Times plans of a layer, whose results have to be those of the first that gives the same every time.

    Args:
        gpu: where.
        task: the layer.
        planned_for: what says which launches overlap.
    """

    def __init__(self, gpu: Gpu, task: Task, planned_for: targets.Gpu) -> None:
        generator = np.random.default_rng(0)
        self._gpu, self._task, self._planned_for = gpu, task, planned_for
        self._inputs = [generator.standard_normal(size // 4, np.float32) for size in task.inputs]
        self._right: NDArray[np.float32] | None = None

    def seconds(self, plan: Plan, functions: Sequence[ctypes.c_void_p], budget: float) -> float:
        """What a plan takes with launches that overlap as they then will; `_CANNOT` or `_WRONG` where it is not right.

        Args:
            plan: of the layer.
            functions: its kernels.
            budget: seconds that may be spent.
        """
        contents: dict[Hashable, NDArray[Any]] = {Input(number): array for number, array in enumerate(self._inputs)}
        contents |= {
            operand: operand.array for step in plan.steps for operand in step.args if isinstance(operand, Constant)
        }
        written: dict[Hashable, int] = {Scratch(number): size for number, size in enumerate(plan.scratch)}
        written[Output(0)] = self._task.output
        size = sum(self._task.inputs) + self._task.output + plan.constant_bytes
        with Buffers(self._gpu, contents, written, sets_of(self._gpu.l2_bytes, size)) as buffers:
            try:
                launches = list(map(_launch, plan.steps, functions))
                results = [self._result(launches, buffers) for _ in range(_RUNS)]
                seconds = buffers.seconds(launches, budget)
                others = list(map(_launch, overlapping(plan, seconds, self._planned_for).steps, functions))
                if launches != others:
                    seconds = buffers.seconds(others, budget)
            except LaunchError:
                return _CANNOT
            results += [self._gpu.download(places[Output(0)], self._task.output) for places in buffers.sets]
        return seconds if self._are_right(results) else _WRONG

    def _result(self, launches: Sequence[LaunchOf], buffers: Buffers) -> NDArray[np.uint8]:
        """What launches write, one after the other."""
        places = buffers.sets[0]
        self._gpu.upload(places[Output(0)], np.zeros(self._task.output, np.uint8))
        self._gpu.once([launch.at(places) for launch in launches])
        return self._gpu.download(places[Output(0)], self._task.output)

    def _are_right(self, results: Sequence[NDArray[np.uint8]]) -> bool:
        """Whether all are the same, and, but for rounding, as those of the plans before."""
        result = results[0].view(np.float32)
        if any(not np.array_equal(other, results[0]) for other in results) or not np.isfinite(result).all():
            return False
        if self._right is None:
            self._right = result
        error = np.abs(result - self._right).max(initial=0.0)
        return bool(error <= tolerance_of(self._planned_for.precision) * np.abs(self._right).max(initial=0.0))


def _launch(step: Step, function: ctypes.c_void_p) -> LaunchOf:
    launch = step.kernel.launch
    assert launch is not None
    return LaunchOf(function, launch.grid, launch.block, launch.dynamic_bytes, launch.overlaps, step.args)


def _told_apart(task: Task, candidates: Sequence[Candidate]) -> Task:
    """The task, with what its weights allow: zeros in blocks, or 2:4, make others of its kernels, too, faster."""
    formats = ", ".join(dict.fromkeys(candidate.format for candidate in candidates))
    return replace(task, layer=f"{task.layer}; {formats}")
