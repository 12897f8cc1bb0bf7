"""What to expect of a network at several sparsities, before anything is pruned or trained.

The network gets random weights with zeros where pruning could leave them (`estimate_goals.py`), and is lowered up to
the choice of kernels: that gives its stages, its layers and what lies between them (`estimate_forms.py`). The same
layers at other densities are planned one by one, and measured as long as there is time (`codegen/sample.py`). The time
of the network is the sum over the calls of its stages (`estimate_points.py`).
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from lwc_compiler.model import Model
from lwc_compiler.passes.estimate_forms import Forms
from lwc_compiler.passes.estimate_goals import MAIN, Goal, Network
from lwc_compiler.passes.estimate_points import Points
from lwc_compiler.passes.lower import check_for_device
from lwc_compiler.recipe.options import EstimateOptions, LowerOptions
from lwc_compiler.report.estimates import Estimate
from lwc_compiler.targets import HOST, find_target

if TYPE_CHECKING:
    from lwc_compiler.codegen.sample import Sampler, Way
    from lwc_compiler.kernels.choice import Task

_STRUCTURES, _GPU_STRUCTURES = ("element", "4x1"), ("element",)  # by default; on a GPU, one that takes half the time
_FORMS, _FORMS_OF_SMALL = 0.4, 0.85  # share of the time for looking at whole networks, where kernels are to be measured
_PLANS = 0.6  # and after which no more densities are planned
_LEAST = 0.2  # of that time is for measurements, also where a large network took longer to look at


def estimate(model: Model, options: EstimateOptions) -> Estimate:
    """What to expect of `model` at the sparsities and structures that `options` name.

    Latency is that of one core, or of the GPU. Weights that are zero already count like any other.

    Args:
        model: as it was loaded.
        options: what to look at.

    Raises:
        ModelError: nothing can be pruned.
        OptionError: an entry of `keep` matches no layer, or no structure reaches any of the sparsities.
        TargetError: the target is unknown.
        ToolchainError: there is no C compiler for the target.
        UnsupportedError: an operator, a type or a dimension that cannot be lowered.
    """
    from lwc_compiler.codegen.frontend import check_supported
    from lwc_compiler.codegen.link import find_compiler
    from lwc_compiler.codegen.sample import Sampler

    begin, target = time.monotonic(), find_target(options.target)
    network = Network(model, options)
    structures = options.structures or (_GPU_STRUCTURES if target.gpu else _STRUCTURES)
    goals, skipped = network.goals(structures, options)
    shapes = dict(options.shapes)
    lowering = LowerOptions(target=options.target, batch=options.batch, shapes=shapes, cc=options.cc, tune=0)
    if target.gpu is not None:
        check_for_device(network.model.proto.graph, lowering)
    check_supported(network.model.proto)
    compiler = None if target.source else find_compiler(target, options.cc)
    main = _near_main(goals)
    fastest = (target.variants or (target,))[-1]  # of what its library has code for
    sampler = Sampler(fastest, compiler if options.target == HOST else None)
    forms = Forms(network, target, lowering, sampler)
    clock = _Clock(begin, options.seconds)
    looks, plans = (_FORMS_OF_SMALL if network.is_small else _FORMS, _PLANS) if sampler.measures else (1.0, 1.0)
    # Zeros at random cut channels off a small network, most where it is sparsest.
    needed = list(dict.fromkeys((*main, *_last_of_each(goals)))) if network.is_small else main
    _look(forms, goals, needed, clock, looks)
    _measure(forms, sampler, _plan(forms, sampler, goals, main, clock, plans), main, clock.end(_LEAST))
    points = Points(network, forms, target, measured=sampler.measures)
    return Estimate(
        model=network.model.name,
        target=target.name,
        batch=options.batch,
        criterion=options.criterion,
        dense=points.at(None, goals[0].structure),
        points=tuple(points.at(goal, goal.structure) for goal in goals),
        layers=tuple(points.layers(main[0], goals)),
        notes=(*skipped, *_notes(forms, goals, target.name, measured=sampler.measures)),
    )


class _Clock:
    """The time that an estimate may take.

    Args:
        begin: when it began, by `time.monotonic`.
        seconds: that it may take.
    """

    def __init__(self, begin: float, seconds: float) -> None:
        self._begin, self._seconds = begin, seconds

    def past(self, share: float, more: float = 0.0) -> bool:
        """Whether a share of the time will be over in so many seconds."""
        return time.monotonic() - self._begin + more > share * self._seconds

    def end(self, least: float) -> float:
        """When the time is over, by `time.monotonic`; after this share of it at the earliest."""
        return max(self._begin + self._seconds, time.monotonic() + least * self._seconds)


def _near_main(goals: Sequence[Goal]) -> list[Goal]:
    """The goal of each structure that is nearest to what networks are pruned to most often."""
    structures = dict.fromkeys(goal.structure for goal in goals)
    return [min((g for g in goals if g.structure == s), key=lambda g: abs(g.sparsity - MAIN)) for s in structures]


def _look(forms: Forms, goals: Sequence[Goal], needed: Sequence[Goal], clock: _Clock, share: float) -> None:
    """Looks at the whole network at the goals that are needed until a share of the time is over, then at the others.

    The library is made for the first one, and for the others as long as there is time for one at each that is left.
    """
    order, most = (*needed, *(goal for goal in reversed(goals) if goal not in needed)), 0.0  # seconds that one took
    for done, goal in enumerate(order):
        if done and clock.past(share, 0.0 if goal in needed else most):
            return
        start = time.monotonic()
        forms.make(goal, lower=not done or not clock.past(share, most * (len(order) - done)))
        most = max(most, time.monotonic() - start)


def _plan(
    forms: Forms, sampler: Sampler, goals: Sequence[Goal], main: Sequence[Goal], clock: _Clock, share: float
) -> list[Goal]:
    """Plans the layers at the densities of goals, until a share of the time is over; which goals it was."""
    ends = [*_last_of_each(goals), *_last_of_each(goals[::-1])]
    needed = list(dict.fromkeys((*main, *ends)))
    planned = []
    for goal in (*needed, *(goal for goal in reversed(goals) if goal not in needed)):
        if clock.past(share) and goal not in needed and goal not in forms.made:
            break  # what lies between the others is interpolated
        planned.append(goal)
        for task, density in forms.sparse_tasks(goal):
            sampler.plan(task, goal.structure, density)
    return planned


def _last_of_each(goals: Sequence[Goal]) -> list[Goal]:
    return list({goal.structure: goal for goal in goals}.values())


def _measure(forms: Forms, sampler: Sampler, planned: Sequence[Goal], main: Sequence[Goal], end: float) -> None:
    """Measures kernels until the clock `time.monotonic` says `end`, those first that matter most."""

    def kernels(goals: Sequence[Goal], rank: int, *, sparse: bool = True) -> list[Way]:
        tasks = [(task, goal.structure, density) for goal in goals for task, density in forms.sparse_tasks(goal)]
        return [way for job in tasks for way in sampler.kernels(*job, rank, sparse=sparse)]

    def as_they_are(tasks: Sequence[Task], rank: int) -> list[Way]:
        return [way for task in tasks for way in sampler.as_it_is(task, rank)]

    kept, whole = forms.kept_tasks(), kernels(main[:1], 0, sparse=False)
    known = {way.task.layer for way in whole}
    dense = [task for task in forms.dense_tasks() if task.layer not in known]
    first = [*main, *_last_of_each(sorted(planned, key=lambda goal: goal.sparsity))]
    # One of each kind says how far to trust what is predicted of the others, which are not alike.
    kinds = {way.kind: way for way in sorted([*whole, *as_they_are(dense, 0)], key=lambda way: way.candidate.cycles)}
    for turn in (
        [*as_they_are(kept, 0), *kernels(first, 0)],
        kinds.values(),
        [*as_they_are(kept, 1), *kernels(first, 1)],
        [*whole, *as_they_are(dense, 0)],
        [*as_they_are(kept, 2), *kernels(planned, 0)],
        kernels(planned, 1),
        kernels(planned, 2),
    ):
        sampler.measure(turn, end)


def _notes(forms: Forms, goals: Sequence[Goal], target: str, *, measured: bool) -> Iterator[str]:
    if not measured:
        yield f"times are predicted by the model of {target}; nothing was measured"
    if len(forms.made) < len(goals):
        made = sum(form.lowered is not None for form in forms.made.values())
        yield f"bytes and RAM: exact at {made} of {len(goals)} sparsities, derived from these at the others"
