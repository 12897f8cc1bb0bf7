"""What an estimate says of a network and of its layers: the sums of what its layers take."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from lwc_compiler.passes.estimate_goals import MAIN
from lwc_compiler.report.estimates import LayerEstimate, Point

if TYPE_CHECKING:
    from lwc_compiler.codegen.result import Lowered
    from lwc_compiler.passes.estimate_forms import Forms
    from lwc_compiler.passes.estimate_goals import Goal, Network
    from lwc_compiler.targets.target import Target

_CLEARLY = 1.15  # slower by this factor: more than most estimates are off by
_DENSITIES = tuple(round(0.01 * percent, 2) for percent in range(1, 101))


class Points:
    """The table of an estimate.

    Args:
        network: the network.
        forms: how it is computed.
        target: what it is compiled for.
        measured: whether times are seconds on this machine; else they are cycles of the target.
    """

    def __init__(self, network: Network, forms: Forms, target: Target, *, measured: bool) -> None:
        self._network, self._forms, self._target, self._measured = network, forms, target, measured

    def at(self, goal: Goal | None, structure: str) -> Point:
        """What to expect at a goal; None: of the network as it is.

        Args:
            goal: one of the goals.
            structure: of the network whose code is looked at for one that was not lowered.
        """
        forms = [self._forms.dense, *(self._forms.at(goal) if goal is not None else ())]
        sums = [[(runs, self._forms.sample(layer, goal)) for layer, runs in form.layers] for form in forms]
        totals = [
            form.rest + sum(runs * sample.time for runs, sample in samples)
            for form, samples in zip(forms, sums, strict=True)
        ]
        best = likely(totals)
        timed = sum(runs * sample.time for runs, sample in sums[best] if sample.measured)
        timed += forms[best].rest if self._measured else 0.0
        like = own = self._forms.made.get(goal) if goal else None
        more = 0.0
        if like is None or like.lowered is None or not like.whole:  # the code is about the same
            like = self._forms.lowered_like(structure, MAIN)
            more = sum(sample.bytes() for _, sample in sums[best]) - like.layer_bytes
            more *= len(self._target.variants) or 1
        assert like.lowered is not None
        file_bytes = round(_file_bytes(like.lowered) + more)
        footprint = like.lowered.footprint
        static = file_bytes if footprint is None else footprint.static_ram
        workspace = own.workspace_bytes if own else None
        ram_bytes = static + (like.lowered.workspace_bytes if workspace is None else workspace) + self._forms.around
        cycles, seconds = self._times(totals[best])
        return Point(
            structure=goal.structure if goal else "",
            sparsity=goal.sparsity if goal else 0.0,
            density=self._network.kept_weights(goal) / self._network.kept_weights(None),
            seconds=seconds,
            cycles=cycles,
            measured=timed / totals[best],
            file_bytes=file_bytes,
            ram_bytes=ram_bytes,
            flops=self._flops(goal),
            fits=_fits(self._target, file_bytes, ram_bytes),
        )

    def layers(self, main: Goal, goals: Sequence[Goal]) -> Iterator[LayerEstimate]:
        """The layers of the form of a goal, beside the same layers as they are.

        Args:
            main: the goal.
            goals: all of them; up to which density a layer pays is found from what it takes at each.
        """
        dense: dict[str, float] = defaultdict(float)
        for layer, runs in self._forms.dense.layers:
            dense[layer.nodes[0]] += runs * self._forms.sample(layer, None).time
        total = sum(dense.values()) + self._forms.dense.rest
        for layer, _ in self._forms.made[main].layers:
            site = self._network.by_node[layer.nodes[0]]
            whole = sum(dense[node] for node in layer.nodes)
            reasons = [self._network.kept.get(self._network.by_node[node].weight) for node in layer.nodes]
            pruned = self._network.is_pruned(layer.nodes)
            yield LayerEstimate(
                nodes=layer.nodes,
                op=site.op_types[0],
                shape=site.shape,
                share=whole / total,
                kept_because=None if pruned else reasons[0],
                pays=self._pays(layer.nodes, whole, goals) if pruned else {},
            )

    def _times(self, total: float) -> tuple[float | None, float | None]:
        """A time of the sampler as cycles and seconds, as far as they are known."""
        if self._measured:
            return None, total
        gpu = self._target.gpu
        hertz = 1e9 * gpu.gigahertz if gpu else 1e6 * self._target.megahertz
        return total, total / hertz if hertz else None

    def _flops(self, goal: Goal | None) -> int:
        """Multiply-adds x 2 over the kept weights."""
        found = 0.0
        for layer, runs in self._forms.dense.layers:
            for decision in layer.decisions:
                weight = self._network.by_node[decision.node].weight
                found += runs * decision.dense_flops * (goal.densities.get(weight, 1.0) if goal else 1.0)
        return round(found)

    def _pays(self, nodes: Sequence[str], whole: float, goals: Sequence[Goal]) -> dict[str, float | None]:
        """Structure -> the highest density at which layers take no more time than with every weight stored.

        Args:
            nodes: of the layers.
            whole: what they take with every weight stored.
            goals: at which it is known what they take.
        """
        from lwc_compiler.codegen.sample import between

        found: dict[str, float | None] = {}
        for structure in dict.fromkeys(goal.structure for goal in goals):
            points: dict[float, float] = {}
            for goal in reversed([goal for goal in goals if goal.structure == structure]):
                if (time := self._sparse_time(nodes, goal)) is not None:
                    points[self._network.density(nodes, goal)] = time
            at, times = list(points), list(points.values())
            faster = [each for each in _DENSITIES if at and between(each, at, times) <= whole]
            found[structure] = max(faster, default=None)
        return found

    def _sparse_time(self, nodes: Sequence[str], goal: Goal) -> float | None:
        """What layers take with weights left out; None where that is not known for them alone."""
        layers = [(layer, runs) for layer, runs in self._forms.at(goal)[0].layers if set(layer.nodes) & set(nodes)]
        if {node for layer, _ in layers for node in layer.nodes} != set(nodes):
            return None
        samples = [(self._forms.left_out(layer, goal), runs) for layer, runs in layers]
        if any(sample is None for sample, _ in samples):
            return None
        return sum(runs * sample.time for sample, runs in samples if sample is not None)


def likely(totals: Sequence[float]) -> int:
    """Which form a network is likely to get: that of the network as it is only where it is clearly faster.

    Less of it was measured, and in a close race it may take twice the bytes.

    Args:
        totals: time of the network as it is, and of the forms that it was found to have with zeros, if any.
    """
    return min(range(len(totals)), key=lambda form: totals[form] * (1 if form else _CLEARLY))


def _file_bytes(lowered: Lowered) -> int:
    """Bytes of a library, of flash without an operating system, and of the constants where the code is text."""
    if lowered.footprint is not None:
        return lowered.footprint.flash
    return lowered.weight_bytes if lowered.library is None else len(lowered.library)


def _fits(target: Target, file_bytes: int, ram_bytes: int) -> bool:
    return not (target.flash_bytes and file_bytes > target.flash_bytes) and not (
        target.ram_bytes and ram_bytes > target.ram_bytes
    )
