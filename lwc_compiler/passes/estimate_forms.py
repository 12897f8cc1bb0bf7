"""How a network is computed at the sparsities that `lwc estimate` looks at, and what its layers take there."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import onnx
from onnx import helper

from lwc_compiler.passes.lower import assemble_parts, lower_parts

if TYPE_CHECKING:
    from lwc_compiler.codegen.batch import Part
    from lwc_compiler.codegen.layers import Layer
    from lwc_compiler.codegen.program import Stage
    from lwc_compiler.codegen.result import Lowered
    from lwc_compiler.codegen.sample import Sample, Sampler
    from lwc_compiler.kernels.choice import Task
    from lwc_compiler.passes.estimate_goals import Goal, Network
    from lwc_compiler.recipe.options import LowerOptions
    from lwc_compiler.targets.target import Target


@dataclass(frozen=True)
class Form:
    """How a network is computed at one goal.

    Attributes:
        layers: those with weights, and how often each runs for a batch.
        rest: time of all other steps together.
        workspace_bytes: that a run needs; None where only the library would tell.
        lowered: the library; None where it was not made.
    """

    layers: tuple[tuple[Layer, int], ...]
    rest: float
    workspace_bytes: int | None
    lowered: Lowered | None

    @property
    def whole(self) -> bool:
        """Whether every layer was planned with all its outputs."""
        return all(task_share(layer)[1] == 1 for layer, _ in self.layers)

    @property
    def layer_bytes(self) -> int:
        """Bytes of the constants of its layers, as they were planned."""
        return sum(step.constant_bytes for layer, _ in self.layers for step in layer.plan.steps)


class Forms:
    """The forms of a network.

    Attributes:
        around: bytes of its inputs and outputs.
        dense: the form of the network as it is.
        made: goal -> its form, for those that were looked at.

    Args:
        network: the network.
        target: what it is compiled for.
        options: how it is lowered.
        sampler: knows what layers take.
    """

    def __init__(self, network: Network, target: Target, options: LowerOptions, sampler: Sampler) -> None:
        self._network, self._target, self._options, self._sampler = network, target, options, sampler
        graph = network.model.proto.graph
        self.around = sum(_tensor_bytes(value) for value in (*graph.input, *graph.output))
        self.made: dict[Goal, Form] = {}
        self.dense = self._form(None, lower=False)

    def make(self, goal: Goal, *, lower: bool) -> None:
        """Looks at the network at a goal.

        Args:
            goal: what is pruned.
            lower: whether the library is made.
        """
        self.made[goal] = self._form(goal, lower=lower)

    def at(self, goal: Goal) -> list[Form]:
        """The form of a goal, or else those it may have: of its structure, where zeros cut off channels the nearest."""
        if goal in self.made:
            return [self.made[goal]]
        like = [other for other in self.made if other.structure == goal.structure] or list(self.made)
        if self._network.is_small:
            like = [min(like, key=lambda other: abs(other.sparsity - goal.sparsity))]
        return [self.made[other] for other in like]

    def lowered_like(self, structure: str, sparsity: float) -> Form:
        """A form with a library, at best of this structure and near this sparsity."""
        goals = [goal for goal, form in self.made.items() if form.lowered]
        return self.made[min(goals, key=lambda goal: (goal.structure != structure, abs(goal.sparsity - sparsity)))]

    def density(self, layer: Layer, goal: Goal) -> float:
        """Kept / all weights of a layer, of those that are pruned; 1 where none is."""
        own = self.made.get(goal)
        if own is not None and any(layer is each for each, _ in own.layers):
            return task_share(layer)[0].density  # of what is left of it, without channels that were cut off
        return self._network.density(layer.nodes, goal)

    def sparse_tasks(self, goal: Goal) -> list[tuple[Task, float]]:
        """The different layers that can be planned with fewer weights, and their densities at a goal."""
        found = {}
        for layer in (layer for form in self.at(goal) for layer, _ in form.layers):
            task, _ = task_share(layer)
            if task.again is not None and self._network.is_pruned(layer.nodes):
                found[task.layer] = (task, self.density(layer, goal))
        return list(found.values())

    def kept_tasks(self) -> list[Task]:
        """The layers that stay as they are at every goal."""
        layers = [layer for form in self.made.values() for layer, _ in form.layers]
        return [task_share(layer)[0] for layer in layers if not self._network.is_pruned(layer.nodes)]

    def dense_tasks(self) -> list[Task]:
        """The layers of the network as it is."""
        return [task_share(layer)[0] for layer, _ in self.dense.layers]

    def sample(self, layer: Layer, goal: Goal | None) -> Sample:
        """What a layer takes, in the way that is fastest."""
        task, _ = task_share(layer)
        weight_bytes = self._network.weight_bytes(goal)
        found = [self._sampler.whole(task, weight_bytes)]
        if goal is not None and self._network.is_pruned(layer.nodes):
            found.append(self._sampler.sparse(task, goal.structure, self.density(layer, goal), weight_bytes))
        return min((sample for sample in found if sample is not None), key=lambda sample: sample.time)

    def left_out(self, layer: Layer, goal: Goal) -> Sample | None:
        """What a layer takes with weights left out, or as it is where it stays so; None where that is not known."""
        task, _ = task_share(layer)
        if task.again is None or not self._network.is_pruned(layer.nodes):
            return self._sampler.whole(task, self._network.weight_bytes(goal))
        return self._sampler.sparse(task, goal.structure, self.density(layer, goal), self._network.weight_bytes(goal))

    def _form(self, goal: Goal | None, *, lower: bool) -> Form:
        from lwc_compiler.codegen.batch import cut_batch
        from lwc_compiler.codegen.emit import workspace_bytes
        from lwc_compiler.codegen.program import Program
        from lwc_compiler.codegen.recorded import planned_of

        model = self._network.model if goal is None else self._network.drawn(goal)
        targets = self._target.variants or (self._target,)
        chosen = [(variant, cut_batch(model, variant, self._sampler.record)) for variant in targets]
        _, parts = chosen[-1]
        layers = tuple((layer, part.runs) for part in parts for layer in part.layers if _is_sampled(layer))
        for layer, _ in layers:
            plan = planned_of(layer.plan)
            if goal is None or plan.task.again is None or not self._network.is_pruned(layer.nodes):
                self._sampler.take(plan)
            else:
                self._sampler.know(plan, goal.structure)
        lowered = lower_parts(model, self._target, self._options, chosen) if lower else None
        stages = assemble_parts(parts, "rest", targets[-1])
        workspace = None
        if lowered is not None:
            workspace = lowered.workspace_bytes
        elif goal is not None and self._target.gpu is None and len(targets) == 1:
            workspace = workspace_bytes(self._target, Program(tuple(stages)), self._options.threads)
        return Form(layers, self._rest(parts, stages), workspace, lowered)

    def _rest(self, parts: Sequence[Part], stages: Sequence[Stage]) -> float:
        """Time of all steps but those of layers that are sampled."""
        total = self._sampler.copies(self.around)
        for part, stage in zip(parts, stages, strict=True):
            sampled = {node for layer in part.layers if _is_sampled(layer) for node in layer.nodes}
            times = zip(stage.calls, stage.passes, strict=True)
            calls = [call for call, passes in times if call.info.node not in sampled for _ in range(passes)]
            total += part.runs * self._sampler.calls(stage, calls)
        return total


def _is_sampled(layer: Layer) -> bool:
    """Whether a layer has weights, and is not recurrent: those run several products in a loop."""
    from lwc_compiler.codegen.recorded import Planned

    return bool(layer.decisions) and isinstance(layer.plan, Planned)


def task_share(layer: Layer) -> tuple[Task, float]:
    """What a layer computes, and the share of its outputs that was planned."""
    from lwc_compiler.codegen.recorded import planned_of

    plan = planned_of(layer.plan)
    return plan.task, plan.share


def _tensor_bytes(value: onnx.ValueInfoProto) -> int:
    tensor = value.type.tensor_type
    item = int(np.dtype(helper.tensor_dtype_to_np_dtype(tensor.elem_type)).itemsize)
    elements: int = math.prod(d.dim_value for d in tensor.shape.dim)
    return elements * item
