"""What a layer takes at a density: measured on this machine, or predicted, with weights drawn at random.

A layer is planned anew at a few densities (`Task.again`). Each way to compute it is first predicted; then the most
promising ones are compiled and timed, those first that matter most, until the time for it is spent. Where no time is
left the prediction is scaled by what measurements of like kernels said of it.
"""

from __future__ import annotations

import math
import time
from collections import defaultdict
from dataclasses import dataclass, replace
from functools import cached_property
from statistics import median
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from lwc_compiler.codegen.assemble import BYTES_A_NANOSECOND
from lwc_compiler.codegen.kernel_times import kernel_seconds, read_seconds
from lwc_compiler.codegen.program import BufferRef
from lwc_compiler.codegen.recorded import Planned, planned_outputs, record
from lwc_compiler.codegen.tune import Library, Timings, promising
from lwc_compiler.kernels.choice import Candidate, Task
from lwc_compiler.kernels.cost import pace
from lwc_compiler.kernels.kernel import SECONDS_A_CYCLE, Constant, Input, Plan, Step, Trial
from lwc_compiler.sparsity.draw import random_weights

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from numpy.typing import NDArray

    from lwc_compiler.codegen.link import Compiler
    from lwc_compiler.codegen.program import Call, Stage
    from lwc_compiler.kernels.kernel import Operand
    from lwc_compiler.targets.target import Target

SPARSE = 3  # ways to leave out weights that are looked at
_NEAR = 0.05  # relative difference of densities that makes none
_TURNS = 3  # of timing the kernels that were linked together
_TOGETHER = 8  # kernels compiled and linked at a time
_COMPILED = 1.1  # how much slower by prediction a kernel may be to be used for several densities
_WHOLE = ("dense", "channels", "winograd", "depthwise")  # formats that store every weight
_FIXED = 0.15  # share of a sparse layer's time that its density does not change, where only one density is known
_SCALAR_CYCLES = 3.0  # of a number that is read or written without vectors: estimated


@dataclass(frozen=True)
class Sample:
    """What a layer takes at a density.

    Attributes:
        time: of a run on one core: seconds where kernels are measured, else cycles.
        bytes: of its constants; they are packed, which takes a while, when it is asked for.
        measured: whether its kernel was timed, at this density or at others.
    """

    time: float
    bytes: Callable[[], float]
    measured: bool


class Way:
    """A way to compute a layer, or the share of its outputs that is planned, at one density.

    Attributes:
        task: the layer, or its first outputs.
        candidate: how.
        share: of the outputs.
        seconds: measured; None: not yet.
    """

    def __init__(self, task: Task, candidate: Candidate, share: float) -> None:
        self.task, self.candidate, self.share = task, candidate, share
        self.seconds: float | None = None

    @cached_property
    def plan(self) -> Plan:
        return self.candidate.build()

    @property
    def bytes(self) -> int:
        """Bytes of the constants of what is planned."""
        return sum(step.constant_bytes for step in self.plan.steps)

    @property
    def timed(self) -> bool:
        """Whether it was measured."""
        return self.seconds is not None

    @property
    def kind(self) -> str:
        """What predictions are alike for."""
        return self.candidate.format if self.candidate.format == "separate" else self.candidate.name.split()[0]


@dataclass(frozen=True)
class _Knot:
    """A layer planned at one density: its most promising ways, in the order they are to be measured.

    Attributes:
        sparse: those that leave out weights.
        whole: those that store all.
    """

    sparse: tuple[Way, ...]
    whole: tuple[Way, ...]


class _Later:
    """A plan that is built when more is asked of it than what it is predicted to take."""

    def __init__(self, candidate: Candidate) -> None:
        self.trials = (Trial(candidate.name, candidate.cycles, None),)
        self._build = candidate.build

    @cached_property
    def _plan(self) -> Plan:
        return self._build()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._plan, name)


class Sampler:
    """What layers take.

    Args:
        target: what kernels are made for.
        compiler: links kernels that are measured; None: nothing is measured.
    """

    def __init__(self, target: Target, compiler: Compiler | None) -> None:
        self._target, self._compiler = target, compiler
        self._timings = Timings(target) if compiler else None
        self._knots: dict[str, dict[str, dict[float, _Knot]]] = defaultdict(lambda: defaultdict(dict))
        self._as_it_is: dict[str, list[Way]] = {}
        self._ratios: dict[str, list[float]] = defaultdict(list)

    @property
    def measures(self) -> bool:
        """Whether kernels can be measured; times are seconds then, and else cycles."""
        return self._compiler is not None

    def record(self, task: Task, candidates: Sequence[Candidate]) -> Plan:
        """`record`, but for a chain of layers, which becomes one kernel wherever a measurement could find it faster.

        Kernels one after the other stay a way to compute the chain; several layers would not become one again.
        """
        together = [c for c in promising(candidates, len(candidates)) if c.format != "separate"]
        if not (self.measures and task.parts and together):
            return record(task, candidates)
        return replace(cast("Planned", record(task, together)), candidates=tuple(candidates))

    def take(self, plan: Planned) -> None:
        """Notes the plan of a layer whose weights stay as they are."""
        if plan.task.layer not in self._as_it_is:
            best = plan.trials[0]
            others = promising([c for c in plan.candidates if c.name != best.name], SPARSE - 1)
            ways = (Candidate(plan.format, best.name, best.cycles, lambda: plan), *others)
            self._as_it_is[plan.task.layer] = [self._way(plan.task, way, plan.share) for way in ways]

    def plan(self, task: Task, structure: str, density: float) -> None:
        """Plans a layer with weights drawn at random, unless it was planned at about that density before."""
        layer, knots = task.layer, self._knots[task.layer][structure]
        if _near(density, knots) is not None:
            return
        met: list[tuple[Task, Sequence[Candidate]]] = []

        def note(task: Task, candidates: Sequence[Candidate]) -> Plan:
            met.append((task, candidates))
            if task.layer == layer:  # what becomes of it does not matter
                return Plan(())
            return cast("Plan", _Later(min(candidates, key=lambda candidate: candidate.shared)))

        outputs = planned_outputs(task)

        def redraw(weights: NDArray[np.float32]) -> NDArray[np.float32]:
            part = weights if outputs is None else weights[: outputs[0]]
            if task.parts and np.all(part):  # of a chain some layers are not pruned
                return part
            shape, positions = (len(part), part[0].size), math.prod(part.shape[2:])
            return random_weights(shape, density, structure, positions=positions).reshape(part.shape)

        assert task.again is not None
        task.again(redraw, note)
        inner, candidates = met[-1]  # a chain's layers come before it
        share = 1.0 if outputs is None else outputs[0] / outputs[1]
        knots[density] = self._knot(inner, candidates, share, knots.values())

    def know(self, plan: Planned, structure: str) -> None:
        """Notes how a layer was planned in a network with weights drawn at random."""
        knots = self._knots[plan.task.layer][structure]
        if plan.share == 1 and _near(plan.task.density, knots) is None:
            knots[plan.task.density] = self._knot(plan.task, plan.candidates, 1.0, knots.values())

    def _knot(self, task: Task, candidates: Sequence[Candidate], share: float, others: Iterable[_Knot]) -> _Knot:
        unique = list({candidate.name: candidate for candidate in candidates}.values())
        sparse = [candidate for candidate in unique if candidate.format not in _WHOLE]
        whole = [candidate for candidate in unique if candidate.format in _WHOLE]
        known = {way.candidate.name for knot in others for way in knot.sparse[:1]}
        chosen = promising(sparse, SPARSE)
        # A kernel that is compiled for another density need not be compiled again.
        enough = _COMPILED * min((candidate.cycles for candidate in chosen), default=0.0)
        chosen = sorted(chosen, key=lambda c: c.name not in known or c.cycles > enough)
        return _Knot(
            tuple(self._way(task, candidate, share) for candidate in chosen),
            tuple(self._way(task, candidate, share) for candidate in promising(whole, 1)),
        )

    def as_it_is(self, task: Task, rank: int) -> list[Way]:
        """The kernel of this rank, by prediction, of a layer that was taken as it is; none where there is none."""
        return self._as_it_is.get(task.layer, [])[rank : rank + 1]

    def kernels(self, task: Task, structure: str, density: float, rank: int, *, sparse: bool) -> list[Way]:
        """The kernel of this rank, by prediction, of a layer as it was planned; none where there is none."""
        knots = self._knots[task.layer][structure]
        near = _near(density, knots)
        if near is None:
            return []
        return list((knots[near].sparse if sparse else knots[near].whole)[rank : rank + 1])

    def measure(self, kernels: Iterable[Way], end: float) -> None:
        """Times kernels, those of the slowest layers first, until the clock `time.monotonic` says `end`."""
        waiting = list({id(way): way for way in kernels if way.seconds is None}.values())
        cycles: dict[str, float] = defaultdict(float)
        for way in waiting:
            cycles[way.task.layer] = max(cycles[way.task.layer], way.candidate.cycles / way.share)
        waiting.sort(key=lambda way: (-cycles[way.task.layer], way.task.layer))
        for first in range(0, len(waiting), _TOGETHER):
            if self._compiler is None or time.monotonic() > end:
                return
            self._time(waiting[first : first + _TOGETHER], self._compiler)

    def whole(self, task: Task, weight_bytes: float) -> Sample | None:
        """What a layer takes with every weight stored, or as it is; None where that is not known.

        Args:
            task: the layer.
            weight_bytes: of all layers of its network: where they lie while it runs.
        """
        knots = [knot for each in self._knots[task.layer].values() for knot in each.values()]
        ways = [*self._as_it_is.get(task.layer, []), *(way for knot in knots for way in knot.whole)]
        best = self._best(ways, weight_bytes)
        if best is None:
            return None
        return Sample(self._seconds(best, weight_bytes) / best.share, lambda: best.bytes / best.share, best.timed)

    def sparse(self, task: Task, structure: str, density: float, weight_bytes: float) -> Sample | None:
        """What a layer takes with weights left out; None where that was not planned, or there is no such kernel.

        Args:
            task: the layer.
            structure: of its zeros.
            density: kept / all weights.
            weight_bytes: of all layers of its network: where they lie while it runs.
        """
        knots = sorted(self._knots[task.layer][structure].items())
        ways = {at: best for at, knot in knots if (best := self._best(knot.sparse, weight_bytes)) is not None}
        if not ways:
            return None
        timed = {at: way for at, way in ways.items() if way.timed}

        def stored() -> float:
            if (own := _near(density, ways)) is not None:
                return ways[own].bytes / ways[own].share
            known = timed if len(timed) > 1 else ways
            return between(density, list(known), _least_from_right([w.bytes / w.share for w in known.values()]))

        times = _least_from_right([self._seconds(way, weight_bytes) / way.share for way in ways.values()])
        return Sample(between(density, list(ways), times), stored, bool(timed))

    def calls(self, stage: Stage, calls: Sequence[Call]) -> float:
        """What calls of a stage take that no layer with weights is the reason of."""
        if self._compiler is None:
            return sum(call.nanoseconds for call in calls) * self._cycles_a_nanosecond()
        symbols = {call.symbol: call for call in calls}
        plans = [_alone(stage, call) for call in symbols.values()]
        if not plans:
            return 0.0
        with Library([plan for plan, _ in plans], self._target, self._compiler) as library:
            runs = [library.runner(number, inputs, 0)[0] for number, (_, inputs) in enumerate(plans)]
            seconds = dict(zip(symbols, map(kernel_seconds, runs), strict=True))
        return sum(seconds[call.symbol] for call in calls)

    def copies(self, size: int) -> float:
        """What copying so many bytes from one place to another takes."""
        if self._compiler is not None:
            return read_seconds(size) * size
        return size / BYTES_A_NANOSECOND * self._cycles_a_nanosecond()

    def _cycles_a_nanosecond(self) -> float:
        """Cycles of the target for a nanosecond of the processors that the rough times of calls were found for."""
        if self._target.gpu is not None:
            return self._target.gpu.gigahertz * BYTES_A_NANOSECOND / self._target.gpu.gigabytes_a_second
        if self._target.vector_bits == 32:
            return _SCALAR_CYCLES * BYTES_A_NANOSECOND / 4
        return 1e-9 / SECONDS_A_CYCLE * pace(self._target).memory * 512 / self._target.vector_bits

    def _way(self, task: Task, candidate: Candidate, share: float) -> Way:
        """A way, with what was measured of it before."""
        way = Way(task, candidate, share)
        if self._timings is not None:
            self._learn(way, self._timings.of(task).get(candidate.name))
        return way

    def _learn(self, way: Way, seconds: float | None) -> None:
        if seconds is not None:
            way.seconds = seconds
            for alike in (f"{way.kind} {way.task.layer}", way.kind, ""):
                self._ratios[alike].append(seconds / way.candidate.cycles)

    def _time(self, ways: Sequence[Way], compiler: Compiler) -> None:
        with Library([way.plan for way in ways], self._target, compiler) as library:
            inputs = [[np.ones(size // 4, np.float32) for size in way.task.inputs] for way in ways]
            runs = [library.runner(i, inputs[i], way.task.output)[0] for i, way in enumerate(ways)]
            # In turns: a phase in which other programs slow the core down then does not hit all that is known of one.
            times = [[kernel_seconds(run) for run in runs] for _ in range(_TURNS)]
        for way, seconds in zip(ways, map(min, zip(*times, strict=True)), strict=True):
            self._learn(way, seconds)
            if self._timings is not None:
                self._timings.remember(way.task, self._timings.of(way.task) | {way.candidate.name: seconds})

    def _best(self, ways: Sequence[Way], weight_bytes: float) -> Way | None:
        """The fastest of ways; those that were measured go before those that were not."""
        known = [way for way in ways if way.timed] or ways
        return min(known, key=lambda way: self._seconds(way, weight_bytes), default=None)

    def _seconds(self, way: Way, weight_bytes: float) -> float:
        """Seconds of what is planned of a layer, or cycles where nothing is measured."""
        if self._compiler is None:
            return way.candidate.cycles
        seconds = way.seconds
        if seconds is None:
            # Predictions have weights come from where all of the layer's lie; how many bytes says only a plan, packed.
            ratios = self._ratios.get(f"{way.kind} {way.task.layer}") or self._ratios.get(way.kind) or self._ratios[""]
            return way.candidate.cycles * (median(ratios) if ratios else SECONDS_A_CYCLE)
        if way.task.product is None or weight_bytes <= self._target.l2_bytes:
            return seconds
        # Weights of a product with a row are read once a run, from where those of a network of this size lie. What was
        # timed again and again had them in the level-2 cache, or in the next one.
        read = read_seconds(weight_bytes) - (read_seconds(0) if way.bytes > self._target.l2_bytes else 0)
        return seconds + max(read, 0.0) * way.bytes


def _alone(stage: Stage, call: Call) -> tuple[Plan, list[NDArray[np.float32]]]:
    """A call as a plan, all of whose buffers are inputs, and zeros for them: also where they are indices."""
    args: list[Operand] = []
    inputs: list[NDArray[np.float32]] = []
    for ref in call.args:
        if isinstance(ref, BufferRef):
            args.append(Input(len(inputs)))
            inputs.append(np.zeros(-(-stage.buffers[ref.index] // 4), np.float32))
        else:
            args.append(Constant(stage.constants[ref.index]))
    return Plan((Step(stage.kernels[call.symbol], tuple(args)),)), inputs


def _near(density: float, knots: Iterable[float]) -> float | None:
    """The density among `knots` that is about the same."""
    return next((known for known in knots if abs(density / known - 1) < _NEAR), None)


def _least_from_right(values: Sequence[float]) -> list[float]:
    """Of each value and those after it the least: the kernel for more weights takes no longer with fewer."""
    least: list[float] = np.minimum.accumulate(values[::-1])[::-1].tolist()
    return least


def between(density: float, known: Sequence[float], values: Sequence[float]) -> float:
    """A straight line through the known points next to a density; with one of them, most of its value in proportion.

    Args:
        density: kept / all weights.
        known: densities, ascending.
        values: one for each.
    """
    if len(known) == 1:
        return values[0] * (_FIXED + (1 - _FIXED) * density / known[0])
    right = min(max(int(np.searchsorted(known, density)), 1), len(known) - 1)
    (a, b), (low, high) = known[right - 1 : right + 1], values[right - 1 : right + 1]
    line = low + (high - low) * (density - a) / (b - a)
    return max(line, values[0] * density / known[0]) if density < a else line
