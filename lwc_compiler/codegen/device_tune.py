"""Picks the kernels of layers by measurement on this machine's GPU, and remembers what was measured.

Making machine code takes most of the time, and more of it for one kernel after the other. So a network's layers are
gone through twice: first to gather what has to be measured, which is compiled together for this GPU alone, and then to
take what was the fastest. The timings lie where those of processors do, see `tune.py`.
"""

from __future__ import annotations

import math
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from lwc_compiler.codegen.device_build import compile_device
from lwc_compiler.codegen.nvrtc import compile_all, nvrtc_version
from lwc_compiler.codegen.tune import Timings, distinct_kernels, fastest_of, promising
from lwc_compiler.errors import TargetError
from lwc_compiler.kernels.choice import predicted
from lwc_compiler.kernels.gpu.plan import overlapping
from lwc_compiler.kernels.kernel import Constant, Input, Output, Scratch
from lwc_compiler.runtime.device_driver import Gpu, GpuError, LaunchError, LaunchOf
from lwc_compiler.runtime.device_timing import Buffers, sets_of
from lwc_compiler.targets.cuda import host_gpu

if TYPE_CHECKING:
    import ctypes
    from collections.abc import Hashable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from lwc_compiler.kernels.choice import Candidate, Task
    from lwc_compiler.kernels.kernel import Kernel, Plan, Step
    from lwc_compiler.targets.target import Target

_SECONDS, _WARM_UP = 0.03, 0.2  # of a kernel's timing, and of work before the first, for the clocks to rise
_MOST_BYTES = 1 << 30  # of weights in all forms that wait to be measured
_TOGETHER = 8  # kernels that are compiled as one text
_CANNOT = math.inf  # seconds of a kernel that the GPU does not launch


@dataclass(frozen=True)
class _Waiting:
    """A layer that has to be measured.

    Attributes:
        task: see `_told_apart`.
        plans: by the names of the candidates.
    """

    task: Task
    plans: Mapping[str, Plan]


class DeviceTuner:
    """A `Pick` of what is the fastest on this machine's GPU, for networks that were gone through with `gather` before.

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
        self._timings = Timings(target, nvrtc_version())
        self._waiting: dict[str, _Waiting] = {}

    def __call__(self, task: Task, candidates: Sequence[Candidate]) -> Plan:
        """The plan of the fastest candidate.

        Raises:
            TargetError: the GPU launches none.
        """
        if len(candidates) == 1:
            return predicted(task, candidates)
        seconds = self._timings.of(_told_apart(task, candidates))
        tried = promising(candidates, self._count)
        launched = [candidate for candidate in tried if seconds[candidate.name] != _CANNOT]
        if not launched:
            raise TargetError(
                f"{self._name} launches none of the {len(tried)} kernels that were tried for a layer ({tried[0].name}, "
                "...): give a target for this GPU, or tune 0, which takes what is predicted to be the fastest"
            )
        plan = fastest_of(task, launched, seconds, {}, self._name)
        return overlapping(plan, plan.seconds, self._gpu)

    def gather(self, task: Task, candidates: Sequence[Candidate]) -> Plan:
        """A `Pick` that notes what has to be measured; the plan is any.

        Raises:
            TargetError: as `measure`, where much was waiting.
        """
        told = _told_apart(task, candidates)
        key, known = f"{told.layer}; {told.densities}", self._timings.of(told)
        missing = [candidate for candidate in promising(candidates, self._count) if candidate.name not in known]
        if len(candidates) == 1 or not missing or key in self._waiting:
            return candidates[0].build()
        plans = {candidate.name: candidate.build() for candidate in missing}
        self._waiting[key] = _Waiting(told, plans)
        waiting = [plan for each in self._waiting.values() for plan in each.plans.values()]
        if sum(plan.constant_bytes for plan in waiting) > _MOST_BYTES:
            self.measure()
        return next(iter(plans.values()))

    def measure(self) -> None:
        """Measures what was gathered; what is measured is remembered, also if an error ends it.

        Raises:
            TargetError: the GPU has too little memory, or failed.
            ToolchainError: NVRTC refuses the kernels.
        """
        layers = list(self._waiting.values())
        self._waiting.clear()
        if not layers:
            return
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
            seconds, inputs = {}, _inputs(layer.task)
            for name, plan in layer.plans.items():
                launches = list(map(_launch, plan.steps, next(functions)))
                if cold:
                    _seconds(gpu, plan, launches, layer.task, inputs, _WARM_UP)
                    cold = False
                seconds[name] = _seconds(gpu, plan, launches, layer.task, inputs, _SECONDS)
            self._timings.remember(layer.task, self._timings.of(layer.task) | seconds)


def _told_apart(task: Task, candidates: Sequence[Candidate]) -> Task:
    """The task, with what its weights allow: zeros in blocks, or 2:4, make others of its kernels, too, faster."""
    formats = ", ".join(dict.fromkeys(candidate.format for candidate in candidates))
    return replace(task, layer=f"{task.layer}; {formats}")


def _inputs(task: Task) -> dict[Hashable, NDArray[np.float32]]:
    generator = np.random.default_rng(0)
    return {Input(i): generator.standard_normal(size // 4, np.float32) for i, size in enumerate(task.inputs)}


def _launch(step: Step, function: ctypes.c_void_p) -> LaunchOf:
    launch = step.kernel.launch
    assert launch is not None
    return LaunchOf(function, launch.grid, launch.block, launch.dynamic_bytes, launch.overlaps, step.args)


def _seconds(
    gpu: Gpu,
    plan: Plan,
    launches: Sequence[LaunchOf],
    task: Task,
    inputs: Mapping[Hashable, NDArray[np.float32]],
    budget: float,
) -> float:
    """What a plan takes, `_CANNOT` where it takes no launch."""
    contents: dict[Hashable, NDArray[Any]] = dict(inputs)
    contents |= {
        operand: operand.array for step in plan.steps for operand in step.args if isinstance(operand, Constant)
    }
    written: dict[Hashable, int] = {Scratch(number): size for number, size in enumerate(plan.scratch)}
    written[Output(0)] = task.output
    sets = sets_of(gpu.l2_bytes, sum(task.inputs) + task.output + plan.constant_bytes)
    with Buffers(gpu, contents, written, sets) as buffers:
        try:
            gpu.once([launch.at(buffers.sets[0]) for launch in launches])
            return buffers.seconds(launches, budget)
        except LaunchError:
            return _CANNOT
