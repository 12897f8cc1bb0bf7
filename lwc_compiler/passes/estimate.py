"""What to expect of a network at several sparsities, before anything is pruned or trained.

The network gets random weights with zeros where pruning could leave them, and is lowered up to the choice of kernels:
that gives its stages, its layers and what lies between them. The same layers at other densities are planned one by one
(`codegen/sample.py`). The time of the network is the sum over the calls of its stages.
"""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import onnx
from onnx import helper

from lwc_compiler.errors import ModelError, OptionError
from lwc_compiler.model import Model
from lwc_compiler.passes.compact import compact
from lwc_compiler.passes.lower import assemble_parts, check_for_device, lower_parts
from lwc_compiler.passes.normalize import normalize
from lwc_compiler.passes.prune import kept_sites
from lwc_compiler.passes.sites import SITE_OPERATORS, constant_tensors, find_sites
from lwc_compiler.recipe.options import EstimateOptions, LowerOptions, PruneOptions
from lwc_compiler.report.estimates import Estimate, LayerEstimate, Point
from lwc_compiler.sparsity.draw import random_weights
from lwc_compiler.sparsity.masks import erdos_renyi_kernel, parse_structure
from lwc_compiler.targets import HOST, find_target

if TYPE_CHECKING:
    from lwc_compiler.codegen.batch import Part
    from lwc_compiler.codegen.layers import Layer
    from lwc_compiler.codegen.result import Lowered
    from lwc_compiler.codegen.sample import Sample, Way
    from lwc_compiler.kernels.choice import Task
    from lwc_compiler.targets.target import Target

_STRUCTURES, _GPU_STRUCTURES = ("element", "4x1"), ("element",)  # by default; on a GPU, one that takes half the time
_MAIN = 0.9  # what networks are pruned to most often: the sparsity that is looked at first
_FORMS, _FORMS_OF_SMALL = 0.4, 0.7  # share of the time for looking at whole networks, where kernels are to be measured
_PLANS = 0.6  # and after which no more densities are planned
_DENSITIES = tuple(round(0.01 * percent, 2) for percent in range(1, 101))
_LEAST = 0.2  # of that time is for measurements, also where a large network took longer to look at
_SMALL = 1 << 22  # weights of a network up to which zeros at random cut channels off
_PAIR_BYTES = 6  # of a kept weight and its index


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
    return _Estimator(model, options).result()


@dataclass(frozen=True)
class _Goal:
    """A structure, a sparsity, and what they mean for each weight that is pruned."""

    structure: str
    sparsity: float
    densities: Mapping[str, float]


@dataclass(frozen=True)
class _Form:
    """How a network is computed at one goal.

    Attributes:
        layers: those with weights, and how often each runs for a batch.
        rest: time of all other steps together.
        lowered: the library; None where it was not made.
    """

    layers: tuple[tuple[Layer, int], ...]
    rest: float
    lowered: Lowered | None

    @property
    def whole(self) -> bool:
        """Whether every layer was planned with all its outputs."""
        from lwc_compiler.codegen.sample import planned_of

        return all(planned_of(layer.plan).share == 1 for layer, _ in self.layers)

    @property
    def layer_bytes(self) -> int:
        """Bytes of the constants of its layers, as they were planned."""
        return sum(step.constant_bytes for layer, _ in self.layers for step in layer.plan.steps)


class _Estimator:
    def __init__(self, model: Model, options: EstimateOptions) -> None:
        self.begin = time.monotonic()
        self.options, self.target = options, find_target(options.target)
        shapes = dict(options.shapes)
        self.model = normalize(model, shapes=shapes, batch=options.batch, fold_batch_norm=True)
        self.lowering = LowerOptions(target=options.target, batch=options.batch, shapes=shapes, cc=options.cc, tune=0)
        self.sites = find_sites(self.model.proto)
        self.by_node = {node: site for site in self.sites for node in site.nodes}
        pruning = PruneOptions(
            sparsity=_MAIN, keep=options.keep, keep_first=options.keep_first, keep_depthwise=options.keep_depthwise
        )
        self.kept = kept_sites(self.sites, pruning, {})
        self.pruned = [site for site in self.sites if site.weight not in self.kept]
        if not self.pruned:
            listed = ", ".join(SITE_OPERATORS)
            raise ModelError(
                f"model '{model.name}' has nothing to prune: no {listed} with a constant weight that may be"
            )
        self.goals, self.skipped = self._goals()

    def _goals(self) -> tuple[list[_Goal], list[str]]:
        shapes, ones = {site.weight: site.shape for site in self.pruned}, {site.weight: 1.0 for site in self.pruned}
        goals, skipped = [], []
        for name in self.options.structures or (_GPU_STRUCTURES if self.target.gpu else _STRUCTURES):
            most = parse_structure(name).highest_density
            for sparsity in sorted(self.options.sparsities):
                density = round(1 - sparsity, 12)
                if density > most + 1e-9:
                    skipped.append(f"{name} at {100 * sparsity:g} %: it keeps at most {100 * most:g} % of the weights")
                elif self.options.criterion == "uniform":
                    goals.append(_Goal(name, sparsity, dict.fromkeys(shapes, density)))
                else:
                    limits = {weight: most * one for weight, one in ones.items()}
                    goals.append(_Goal(name, sparsity, erdos_renyi_kernel(shapes, density, limits)))
        if not goals:
            raise OptionError("; ".join(skipped))
        return goals, skipped

    def result(self) -> Estimate:
        from lwc_compiler.codegen.frontend import check_supported
        from lwc_compiler.codegen.link import find_compiler
        from lwc_compiler.codegen.sample import Sampler

        graph = self.model.proto.graph
        if self.target.gpu is not None:
            check_for_device(graph, self.lowering)
        check_supported(self.model.proto)
        compiler = None if self.target.source else find_compiler(self.target, self.options.cc)
        self.around = sum(_tensor_bytes(value) for value in (*graph.input, *graph.output))
        main = [self._main(structure) for structure in dict.fromkeys(goal.structure for goal in self.goals)]
        weight_bytes = _PAIR_BYTES * self._kept_weights(main[0])
        self.sampler = Sampler(self.fastest, compiler if self.options.target == HOST else None, weight_bytes)
        self.dense = self._form(None, lower=False)
        self.forms = self._forms(main)
        self._plan_and_measure(main)
        return Estimate(
            model=self.model.name,
            target=self.target.name,
            batch=self.options.batch,
            criterion=self.options.criterion,
            dense=self._point(None),
            points=tuple(self._point(goal) for goal in self.goals),
            layers=tuple(self._layers(main[0])),
            notes=tuple(self._notes()),
        )

    @property
    def fastest(self) -> Target:
        """The target, or the most capable that its library has code for."""
        return (self.target.variants or (self.target,))[-1]

    def _main(self, structure: str) -> _Goal:
        return min(
            (goal for goal in self.goals if goal.structure == structure), key=lambda goal: abs(goal.sparsity - _MAIN)
        )

    def _notes(self) -> Iterator[str]:
        yield from self.skipped
        if not self.sampler.measures:
            yield f"times are predicted by the model of {self.target.name}; nothing was measured"
        if len(self.forms) < len(self.goals):
            made = sum(form.lowered is not None for form in self.forms.values())
            yield f"bytes and RAM: exact at {made} of {len(self.goals)} sparsities, derived from these at the others"

    # How the network is computed

    def _forms(self, main: Sequence[_Goal]) -> dict[int, _Form]:
        """Goal (its `id`) -> how the network is computed there: for the main ones, and others as there is time."""
        others = [goal for goal in self.goals if goal not in main]
        share = (_FORMS_OF_SMALL if self._is_small() else _FORMS) if self.sampler.measures else 1.0
        budget = share * self.options.seconds
        forms: dict[int, _Form] = {}
        spent = 0.0  # on the last one
        for goal in (*main, *others):
            start = time.monotonic()
            late = start - self.begin + spent > budget
            if forms and late and (goal not in main or start - self.begin > budget):
                break
            forms[id(goal)] = self._form(goal, lower=not late or not forms)
            spent = time.monotonic() - start
        return forms

    def _form(self, goal: _Goal | None, *, lower: bool) -> _Form:
        """How the network is computed at a goal, or as it is.

        Args:
            goal: None: as it is.
            lower: whether the library is made.
        """
        from lwc_compiler.codegen.batch import cut_batch
        from lwc_compiler.codegen.sample import planned_of, record

        model = self.model if goal is None else self._drawn(goal)
        chosen = [(variant, cut_batch(model, variant, record)) for variant in self.target.variants or (self.target,)]
        _, parts = chosen[-1]
        layers = tuple((layer, part.runs) for part in parts for layer in part.layers if layer.decisions)
        for layer, _ in layers:
            plan = planned_of(layer.plan)
            if goal is None or plan.task.again is None or not self._is_pruned(layer.nodes):
                self.sampler.take(plan)
        lowered = lower_parts(model, self.target, self.lowering, chosen) if lower else None
        return _Form(layers, self._rest(parts), lowered)

    def _drawn(self, goal: _Goal) -> Model:
        """The network with random weights and the zeros of a goal, and without the channels that these cut off."""
        proto = onnx.ModelProto()
        proto.CopyFrom(self.model.proto)
        tensors = constant_tensors(proto.graph)
        for seed, site in enumerate(self.pruned):  # equal weights would be stored once
            density = goal.densities[site.weight]
            matrix = random_weights(site.matrix_shape, density, goal.structure, seed, site.positions)
            tensors[site.weight].ClearField("float_data")
            tensors[site.weight].raw_data = site.from_matrix(matrix).astype("<f4", copy=False).tobytes()
        model = Model(proto, self.model.name)
        return compact(model) if self._is_small() else model

    def _is_small(self) -> bool:
        return sum(site.size for site in self.sites) <= _SMALL

    def _rest(self, parts: Sequence[Part]) -> float:
        """Time of all steps but those of layers with weights."""
        total = self.sampler.copies(self.around)
        for part, stage in zip(parts, assemble_parts(parts, "rest", self.fastest), strict=True):
            with_weights = {node for layer in part.layers if layer.decisions for node in layer.nodes}
            calls = [call for call in stage.calls if call.info.node not in with_weights]
            total += part.runs * self.sampler.calls(stage, calls)
        return total

    # What its layers take

    def _plan_and_measure(self, main: Sequence[_Goal]) -> None:
        """Plans the layers at the densities of goals, and measures them, those first that matter most."""
        from lwc_compiler.codegen.sample import planned_of

        every = self.sampler
        sparsest, least = (
            list({goal.structure: goal for goal in goals}.values()) for goals in (self.goals, self.goals[::-1])
        )
        needed = list({id(goal): goal for goal in (*main, *sparsest, *least)}.values())
        planned = []
        for goal in (*needed, *(goal for goal in reversed(self.goals) if goal not in needed)):
            late = time.monotonic() - self.begin > self.options.seconds * (_PLANS if every.measures else 1.0)
            if late and goal not in needed and id(goal) not in self.forms:
                break  # what lies between the others is interpolated
            planned.append(goal)
            for task, density in self._sparse_tasks(goal):
                every.plan(task, goal.structure, density)

        def kernels(goals: Sequence[_Goal], rank: int, *, sparse: bool) -> list[Way]:
            tasks = [(task, goal.structure, density) for goal in goals for task, density in self._sparse_tasks(goal)]
            return [way for job in tasks for way in every.kernels(*job, rank, sparse=sparse)]

        layers = [layer for form in self.forms.values() for layer, _ in form.layers if not self._is_pruned(layer.nodes)]
        kept = [way for layer in layers for way in every.kernel(planned_of(layer.plan).task)]
        dense = [way for layer, _ in self.dense.layers for way in every.kernel(planned_of(layer.plan).task)]
        whole = kernels(main[:1], 0, sparse=False)
        known = {way.task.layer for way in whole}
        end = max(self.begin, time.monotonic() - (1 - _LEAST) * self.options.seconds) + self.options.seconds
        for turn in (
            [*kept, *kernels([*main, *sparsest], 0, sparse=True)],
            kernels(main, 1, sparse=True),
            [*whole, *(way for way in dense if way.task.layer not in known)],
            kernels(planned, 0, sparse=True),
            kernels(planned, 1, sparse=True),
            kernels(planned, 2, sparse=True),
        ):
            every.measure(turn, end)

    def _forms_at(self, goal: _Goal) -> list[_Form]:
        """The form of a goal, or else those of its structure."""
        own = self.forms.get(id(goal))
        like = [g for g in self.goals if g.structure == goal.structure and id(g) in self.forms]
        return [own] if own is not None else [self.forms[id(g)] for g in like] or list(self.forms.values())

    def _sparse_tasks(self, goal: _Goal) -> list[tuple[Task, float]]:
        """The different layers that can be planned with fewer weights, and their densities at a goal."""
        from lwc_compiler.codegen.sample import planned_of

        layers = [layer for form in self._forms_at(goal) for layer, _ in form.layers if self._is_pruned(layer.nodes)]
        tasks = [(planned_of(layer.plan).task, layer) for layer in layers]
        found = {task.layer: (task, layer) for task, layer in tasks if task.again is not None}
        return [(task, self._density(layer, goal)) for task, layer in found.values()]

    def _is_pruned(self, nodes: Sequence[str]) -> bool:
        return any(self.by_node[node].weight not in self.kept for node in nodes)

    def _density(self, layer: Layer, goal: _Goal) -> float:
        """Kept / all weights of a layer, of those that are pruned; 1 where none is."""
        from lwc_compiler.codegen.sample import planned_of

        own = self.forms.get(id(goal))
        if own is not None and any(layer is each for each, _ in own.layers):
            return planned_of(layer.plan).task.density  # of what is left of it, without channels that were cut off
        pruned = [site for site in (self.by_node[node] for node in layer.nodes) if site.weight not in self.kept]
        total = sum(site.size for site in pruned)
        return sum(site.size * goal.densities[site.weight] for site in pruned) / total if total else 1.0

    def _sample(self, layer: Layer, goal: _Goal | None) -> Sample:
        """What a layer takes, in the way that is fastest."""
        from lwc_compiler.codegen.sample import planned_of

        task = planned_of(layer.plan).task
        found = [self.sampler.whole(task)]
        if goal is not None and self._is_pruned(layer.nodes):
            found.append(self.sampler.sparse(task, goal.structure, self._density(layer, goal)))
        return min((sample for sample in found if sample is not None), key=lambda sample: sample.time)

    # What it adds up to

    def _point(self, goal: _Goal | None) -> Point:
        """What to expect at a goal; None: of the network as it is."""
        made = self.forms.get(id(goal))
        forms = [self.dense, *(self._forms_at(goal) if goal is not None else ())]
        sums = [[(runs, self._sample(layer, goal)) for layer, runs in form.layers] for form in forms]
        totals = [
            form.rest + sum(runs * sample.time for runs, sample in samples)
            for form, samples in zip(forms, sums, strict=True)
        ]
        best = min(range(len(forms)), key=totals.__getitem__)
        timed = sum(runs * sample.time for runs, sample in sums[best] if sample.measured)
        timed += forms[best].rest if self.sampler.measures else 0.0
        exact = made is not None and made.lowered is not None and made.whole
        like = made if made and exact else self._lowered(goal.structure if goal else self.goals[0].structure)
        assert like.lowered is not None
        more = 0.0
        if not exact:  # the code is about the same
            more = sum(sample.bytes for _, sample in sums[best]) - like.layer_bytes
            more *= len(self.target.variants) or 1
        file_bytes = round(_file_bytes(like.lowered) + more)
        footprint = like.lowered.footprint
        static = file_bytes if footprint is None else footprint.static_ram
        ram_bytes = static + like.lowered.workspace_bytes + self.around
        cycles, seconds = self._times(totals[best])
        return Point(
            structure=goal.structure if goal else "",
            sparsity=goal.sparsity if goal else 0.0,
            density=self._kept_weights(goal) / sum(site.size for site in self.sites),
            seconds=seconds,
            cycles=cycles,
            measured=timed / totals[best],
            file_bytes=file_bytes,
            ram_bytes=ram_bytes,
            flops=self._flops(goal),
            fits=_fits(self.target, file_bytes, ram_bytes),
        )

    def _lowered(self, structure: str) -> _Form:
        """A form with a library, at best of this structure and near what is usual."""
        goals = [goal for goal in self.goals if id(goal) in self.forms and self.forms[id(goal)].lowered]
        nearest = min(goals, key=lambda goal: (goal.structure != structure, abs(goal.sparsity - _MAIN)))
        return self.forms[id(nearest)]

    def _times(self, total: float) -> tuple[float | None, float | None]:
        """A time of the sampler as cycles and seconds, as far as they are known."""
        if self.sampler.measures:
            return None, total
        hertz = 1e9 * self.target.gpu.gigahertz if self.target.gpu else 1e6 * self.target.megahertz
        return total, total / hertz if hertz else None

    def _kept_weights(self, goal: _Goal | None) -> float:
        return sum(site.size * (goal.densities.get(site.weight, 1.0) if goal else 1.0) for site in self.sites)

    def _flops(self, goal: _Goal | None) -> int:
        """Multiply-adds x 2 over the kept weights."""
        found = 0.0
        for layer, runs in self.dense.layers:
            for decision in layer.decisions:
                site = self.by_node[decision.node]
                found += runs * decision.dense_flops * (goal.densities.get(site.weight, 1.0) if goal else 1.0)
        return round(found)

    def _layers(self, main: _Goal) -> Iterator[LayerEstimate]:
        """The layers of the form of a goal, beside the same layers as they are."""
        dense: dict[str, float] = defaultdict(float)
        for layer, runs in self.dense.layers:
            dense[layer.nodes[0]] += runs * self._sample(layer, None).time
        total = sum(dense.values()) + self.dense.rest
        for layer, _ in self.forms[id(main)].layers:
            site = self.by_node[layer.nodes[0]]
            whole = sum(dense[node] for node in layer.nodes)
            reasons = [self.kept.get(self.by_node[node].weight) for node in layer.nodes]
            yield LayerEstimate(
                nodes=layer.nodes,
                op=site.op_types[0],
                shape=site.shape,
                share=whole / total,
                kept_because=None if self._is_pruned(layer.nodes) else reasons[0],
                pays=self._pays(layer.nodes, whole) if self._is_pruned(layer.nodes) else {},
            )

    def _pays(self, nodes: Sequence[str], whole: float) -> dict[str, float | None]:
        """Structure -> the highest density at which layers take no more time than with every weight stored.

        Args:
            nodes: of the layers.
            whole: what they take with every weight stored.
        """
        from lwc_compiler.codegen.sample import between

        found: dict[str, float | None] = {}
        for structure in dict.fromkeys(goal.structure for goal in self.goals):
            points: dict[float, float] = {}
            for goal in reversed([goal for goal in self.goals if goal.structure == structure]):
                if (time := self._sparse_time(nodes, goal)) is not None:
                    weights = [self.by_node[node] for node in nodes if self.by_node[node].weight not in self.kept]
                    kept = sum(goal.densities[site.weight] * site.size for site in weights)
                    points[kept / sum(site.size for site in weights)] = time
            at, times = list(points), list(points.values())
            faster = [each for each in _DENSITIES if at and between(each, at, times) <= whole]
            found[structure] = max(faster, default=None)
        return found

    def _sparse_time(self, nodes: Sequence[str], goal: _Goal) -> float | None:
        """What layers take with weights left out; None where that is not known for them alone."""
        from lwc_compiler.codegen.sample import planned_of

        layers = [(layer, runs) for layer, runs in self._forms_at(goal)[0].layers if set(layer.nodes) & set(nodes)]
        if {node for layer, _ in layers for node in layer.nodes} != set(nodes):
            return None
        total = 0.0
        for layer, runs in layers:
            task = planned_of(layer.plan).task
            found = self.sampler.sparse(task, goal.structure, self._density(layer, goal))
            if found is None and self._is_pruned(layer.nodes):
                return None
            found = found or self.sampler.whole(task)
            assert found is not None
            total += runs * found.time
        return total


def _file_bytes(lowered: Lowered) -> int:
    """Bytes of a library, of flash without an operating system, and of the constants where the code is text."""
    if lowered.footprint is not None:
        return lowered.footprint.flash
    return lowered.weight_bytes if lowered.library is None else len(lowered.library)


def _fits(target: Target, file_bytes: int, ram_bytes: int) -> bool:
    return not (target.flash_bytes and file_bytes > target.flash_bytes) and not (
        target.ram_bytes and ram_bytes > target.ram_bytes
    )


def _tensor_bytes(value: onnx.ValueInfoProto) -> int:
    tensor = value.type.tensor_type
    item = int(np.dtype(helper.tensor_dtype_to_np_dtype(tensor.elem_type)).itemsize)
    elements: int = math.prod(d.dim_value for d in tensor.shape.dim)
    return elements * item
