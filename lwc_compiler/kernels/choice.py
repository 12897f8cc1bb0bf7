"""The ways to compute one layer, and how one of them is picked."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from lwc_compiler.kernels.kernel import Trial

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lwc_compiler.kernels.kernel import Plan
    from lwc_compiler.kernels.layer import ConvGeometry, Epilogue

# Takes float32 weights (output channels, inputs of one), or (output channels, input channels, positions of the kernel),
# and gives others for the same layer; of a matrix product they may be those of its first outputs alone.
Redraw: TypeAlias = Callable[[NDArray[np.float32]], NDArray[np.float32]]

_MOST_TIMES = 2.0  # the predicted time with float32 that a layer with narrower weights may take at most


@dataclass(frozen=True)
class Task:
    """What is to be computed.

    Attributes:
        layer: everything that tells the layer from others but its weights.
        density: kept / all weights.
        inputs: bytes of each input.
        output: bytes of the output.
        again: plans the layer with other weights; None where its weights do not matter.
        parts: densities of the layers of a chain; none for one layer.
        product: inputs and outputs of a product with weights, which can be planned `again` for its first outputs alone;
            None for any other layer.
    """

    layer: str
    density: float
    inputs: tuple[int, ...]
    output: int
    again: Callable[[Redraw, Pick], Plan | None] | None = None
    parts: tuple[float, ...] = ()
    product: tuple[int, int] | None = None

    @property
    def densities(self) -> str:
        """What of the weights matters for time, as text."""
        return "density " + ", ".join(f"{density:.2f}" for density in self.parts or (self.density,))


@dataclass(frozen=True)
class Candidate:
    """One way to compute a layer.

    Attributes:
        format: how it stores the weights.
        name: format and cut; for one layer, equal names are equal kernels.
        cycles: predicted time on one core, or on the whole of a GPU.
        build: makes the plan.
        uneven: how much longer than an even share of that time threads take for it.
        weight_type: how a weight is stored, see `WeightType`.
        unproven: no machine has computed the right results by it yet: it is taken only where it is measured, and
            computes what another candidate does.
    """

    format: str
    name: str
    cycles: float
    build: Callable[[], Plan]
    uneven: float = 1.0
    weight_type: str = "float32"
    unproven: bool = False

    @property
    def shared(self) -> float:
        """`cycles` times `uneven`: what is compared."""
        return self.cycles * self.uneven

    def then(self, change: Callable[[Plan], Plan], cycles: float = 0.0) -> Candidate:
        """The candidate whose plan is this one's, changed; it takes `cycles` more."""
        return replace(self, cycles=self.cycles + cycles, build=lambda: change(self.build()))


def conv_task(
    weight: NDArray[np.float32],
    geometry: ConvGeometry,
    epilogue: Epilogue,
    plan: Callable[[NDArray[np.float32], Pick], Plan],
) -> Task:
    """A convolution as a task.

    Args:
        weight: float32 (O, ...).
        geometry: transposed or not.
        epilogue: of the convolution.
        plan: plans it with weights of that shape.
    """
    output = 4 * math.prod(geometry.out_shape)
    inputs = (4 * math.prod(geometry.in_shape), *((output,) if epilogue.residual else ()))

    def again(redraw: Redraw, pick: Pick) -> Plan:
        return plan(redraw(weight.reshape(*weight.shape[:2], -1)).reshape(weight.shape), pick)

    return Task(f"conv {geometry} {epilogue}", float((weight != 0).mean()), inputs, output, again)


def matmul_task(
    weight: NDArray[np.float32],
    rows: int,
    epilogue: Epilogue,
    plan: Callable[[NDArray[np.float32], Epilogue, Pick], Plan],
) -> Task:
    """The product of rows and weights as a task.

    Args:
        weight: float32 (K, N).
        rows: that are multiplied.
        epilogue: of the product.
        plan: plans it with weights (K, N or fewer) and what is left of the epilogue.
    """
    k, n = weight.shape
    inputs = (4 * rows * k, *((4 * rows * n,) if epilogue.residual else ()))

    def again(redraw: Redraw, pick: Pick) -> Plan:
        drawn = redraw(weight.T)
        bias = None if epilogue.bias is None else epilogue.bias[: len(drawn)]
        return plan(drawn.T, replace(epilogue, bias=bias), pick)

    density = float((weight != 0).mean())
    return Task(f"matmul {rows}x{k}x{n} {epilogue}", density, inputs, 4 * rows * n, again, product=(k, n))


def uneven(tiles: int, threads: int) -> float:
    """How much longer than an even share of the time threads take for so many equal tiles."""
    return -(-tiles // threads) * threads / tiles


class Pick(Protocol):
    """Picks one of the ways to compute a layer and builds its plan."""

    def __call__(self, task: Task, candidates: Sequence[Candidate]) -> Plan:
        """The plan of one of the candidates, with `why` and `trials`; there is at least one."""


def proven(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Those that may be taken without having been measured; there is always one."""
    return [candidate for candidate in candidates if not candidate.unproven]


def predicted(task: Task, candidates: Sequence[Candidate]) -> Plan:
    """Picks what is predicted to be the fastest, of what is proven."""
    candidates = proven(candidates)
    best = min(candidates, key=lambda candidate: candidate.shared)
    ranked = sorted(formats_best(candidates, {c.name: c.shared for c in candidates}), key=lambda item: item[1])
    trials = tuple(Trial(c.name, c.cycles, None) for c, _ in ranked)
    return replace(best.build(), why=explain(task, "predicted", ranked), trials=trials)


def narrowest(task: Task, candidates: Sequence[Candidate]) -> Plan:
    """Picks the fastest with the type of weights that is asked for, where that is smaller and not much slower."""
    plain = predicted(task, [c for c in candidates if c.weight_type == "float32"])
    others = [c for c in candidates if c.weight_type != "float32"]
    if not others:
        return replace(plain, why=f"{plain.why}; float32: its kernel reads no other weights")
    best = min(others, key=lambda candidate: candidate.shared)
    times, plan = best.shared / plain.trials[0].cycles, best.build()
    said = f"{best.weight_type}: {plan.constant_bytes:,} bytes, not {plain.constant_bytes:,}, and {times:.2f}x the time"
    if plan.constant_bytes >= plain.constant_bytes or times > _MOST_TIMES:
        return replace(plain, why=f"{plain.why}; float32, not {said}")
    return replace(
        plan,
        why=f"{plain.why}; {said}",
        trials=(Trial(best.name, best.cycles, None), *plain.trials),
        weight_type=best.weight_type,
        float32_bytes=plain.constant_bytes,
    )


def formats_best(candidates: Sequence[Candidate], times: dict[str, float]) -> list[tuple[Candidate, float]]:
    """The best candidate of every format and its time; `times` by name, those without one do not count."""
    best: dict[str, tuple[Candidate, float]] = {}
    for candidate in candidates:
        time = times.get(candidate.name)
        if time is not None and (candidate.format not in best or time < best[candidate.format][1]):
            best[candidate.format] = (candidate, time)
    return list(best.values())


def explain(task: Task, how: str, ranked: Sequence[tuple[Candidate, float]], where: str = "") -> str:
    """Why the first of the formats was taken, and how much slower the others are."""
    (_, least), *others = ranked
    slower = ", ".join(f"{candidate.format} {time / least:.1f}x" for candidate, time in others)
    place = f" on {where}" if where else ""
    return f"density {task.density:.3g}; {how} fastest{place}" + (f" (others: {slower})" if slower else "")
