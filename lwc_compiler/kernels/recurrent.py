"""Recurrent layers: LSTM, GRU and RNN.

What the gates take from the input is one matrix product for all steps. What they take from the state is a product in
every step, of one row a sequence, by the same kernels; another kernel then makes the new state of all gates. Gates and
states have as many units as fill whole vectors: the units that are added have no weights, and stay 0. A GPU has no
vectors, and kernels of its own for all of that (`gpu/recurrent.py`).
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from tvm import tirx

from lwc_compiler.kernels.builder import KernelBuilder, pieces, splat
from lwc_compiler.kernels.choice import Pick, predicted
from lwc_compiler.kernels.elementary import FUNCTIONS
from lwc_compiler.kernels.gpu import recurrent as gpu
from lwc_compiler.kernels.kernel import Input, Moving, Output, Plan, Scratch, Share, Step
from lwc_compiler.kernels.layer import Epilogue
from lwc_compiler.kernels.matmul import plan_matmul
from lwc_compiler.kernels.recurrence import next_states

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from lwc_compiler.kernels.kernel import Kernel, Operand
    from lwc_compiler.kernels.recurrence import Recurrence
    from lwc_compiler.targets.target import Target


def plan_recurrent(layer: Recurrence, target: Target, pick: Pick = predicted) -> tuple[Plan, Plan, Plan]:
    """Plans a recurrent layer.

    Input 0 is x (time, batch, input), then come the states that are given, each (directions, batch, hidden). Outputs
    are those wanted of the states of all steps, (time, directions, batch, hidden), and the last states, each
    (directions, batch, hidden). All are float32, dense, row-major.

    Args:
        layer: what is computed.
        target: what the code is for.
        pick: chooses among the ways to compute the products.

    Returns:
        The plan, with a share for the weights of the input and one for those of the state; and the products with
        either, of all directions and steps.
    """
    target = replace(target, weight_type="float32")
    on_gpu = target.gpu is not None
    lanes = 1 if on_gpu else target.vector_bits // 32
    width = -(-layer.hidden // lanes) * lanes
    steps: list[Step] = []
    scratch: list[int] = []
    products: tuple[list[Plan], list[Plan]] = ([], [])

    def buffer(size: int) -> Scratch:
        scratch.append(4 * size)
        return Scratch(len(scratch) - 1)

    def copies(columns: int, before: int, after: int) -> Kernel:
        if on_gpu:
            return gpu.copy_kernel(layer.batch * layer.hidden, given=columns > 0)
        return _copy_kernel(layer.batch, columns, before, after)

    def product(plan: Plan, source: Operand, result: Scratch) -> list[Step]:
        own = [buffer(size // 4) for size in plan.scratch]

        def place(operand: Operand) -> Operand:
            if isinstance(operand, Scratch):
                return own[operand.index]
            return source if isinstance(operand, Input) else result if isinstance(operand, Output) else operand

        return [replace(step, args=tuple(map(place, step.args))) for step in plan.steps]

    for d, backward in enumerate(layer.backward):
        from_input, from_state, gate_bias, state_bias = _padded(layer, d, width)
        gates = from_input.shape[1]
        rows = layer.time * layer.batch
        project = plan_matmul(from_input, rows, Epilogue(gate_bias), target, pick)
        recur = plan_matmul(from_state, layer.batch, Epilogue(state_bias), target, pick)
        products[0].append(project)
        products[1].append(replace(recur, flops=layer.time * recur.flops))

        projected, summed = buffer(rows * gates), buffer(layer.batch * gates)
        states = [buffer(layer.batch * width) for _ in layer.given]
        steps += product(project, Input(0), projected)
        part = 4 * d * layer.batch * layer.hidden
        for i, state in enumerate(states):
            given = (Moving(Input(1 + sum(layer.given[:i])), part, 0),) if layer.given[i] else ()
            steps.append(Step(copies(layer.hidden if given else 0, layer.hidden, width), (*given, state)))

        def moving(whole: Input | Output | Scratch, first: int, size: int, backward: bool = backward) -> Moving:
            """What of `size` bytes a step reads or writes."""
            return Moving(whole, first + (layer.time - 1) * size if backward else first, -size if backward else size)

        functions = layer.functions[d]
        cell = gpu.cell_kernel(layer, functions) if on_gpu else _cell_kernel(layer, functions, width, lanes)
        args: list[Operand] = [moving(projected, 0, 4 * layer.batch * gates), summed, *states]
        if layer.wanted[0]:
            args.append(moving(Output(0), part, 4 * len(layer.backward) * layer.batch * layer.hidden))
        loop = [*product(recur, states[0], summed), Step(cell, tuple(args))]
        loop[-1] = replace(loop[-1], passes=layer.time, back=len(loop) - 1)
        steps += loop
        for i, state in enumerate(states):
            if layer.wanted[1 + i]:
                result = Moving(Output(sum(layer.wanted[: 1 + i])), part, 0)
                steps.append(Step(copies(layer.hidden, width, layer.hidden), (state, result)))
    of_input, of_state = map(_together, products)
    shares = tuple(Share(plan.format, plan.constant_bytes, plan.flops) for plan in (of_input, of_state))
    formats = " + ".join(dict.fromkeys(share.format for share in shares))
    stored, flops = of_input.stored + of_state.stored, of_input.flops + of_state.flops
    whole = Plan(tuple(steps), tuple(scratch), formats, "", stored, flops, shares=shares)
    return whole, of_input, of_state


def _padded(layer: Recurrence, d: int, width: int) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any], Any]:
    """Weights (inputs, gates x width) of the input and (width, gates x width) of the state, and their biases."""
    gates, hidden = layer.gates, layer.hidden
    more = width - hidden

    def padded(array: NDArray[np.float32], inputs: int = 0) -> NDArray[np.float32]:
        split = array.reshape(gates, hidden, -1)
        wide = np.pad(split, ((0, 0), (0, more), (0, inputs)))
        return np.ascontiguousarray(wide.reshape(gates * width, -1).T)

    to_input, to_state = layer.bias[d].reshape(2, gates * hidden).copy()
    # What the reset gate of a GRU is multiplied with keeps the bias of the state.
    joined = hidden * (gates - 1) if layer.kind == "GRU" else hidden * gates
    to_input[:joined] += to_state[:joined]
    to_state[:joined] = 0
    from_state = padded(layer.from_state[d], more)
    state_bias = padded(to_state).ravel() if to_state.any() else None
    return padded(layer.from_input[d]), from_state, padded(to_input).ravel(), state_bias


def _together(plans: Sequence[Plan]) -> Plan:
    """Plans of the same kind of product as one."""
    return replace(
        plans[0],
        steps=tuple(step for plan in plans for step in plan.steps),
        format=" + ".join(dict.fromkeys(plan.format for plan in plans)),
        stored=sum(plan.stored for plan in plans),
        flops=sum(plan.flops for plan in plans),
    )


def _copy_kernel(rows: int, columns: int, before: int, after: int) -> Kernel:
    """Copies the first columns of rows of `before` to rows of `after`, and makes what those have more 0.

    Its parameters are [x], y: without columns there is nothing to copy.
    """
    b = KernelBuilder()
    x = b.pointer("x") if columns else None
    y = b.pointer("y")
    with b.loop("row", b.first, b.last) as row:
        if columns:
            with b.loop("column", 0, columns) as column:
                b.store(y, row * after + column, b.load(x, row * before + column))
        if after > columns:
            with b.loop("column", columns, after) as column:
                b.store(y, row * after + column, splat(0.0, 1))
    return b.build("recurrent_copy", rows)


def _cell_kernel(layer: Recurrence, functions: tuple[str, ...], width: int, lanes: int) -> Kernel:
    """The new states of a step; parameters: projected, summed (batch, gates x width), h, [c] (batch, width), [y].

    The states are replaced; y (batch, hidden) is the same as the new h. A tile is a sequence.
    """
    b, hidden, gates = KernelBuilder(), layer.hidden, layer.gates
    projected, summed, h = b.pointer("projected"), b.pointer("summed"), b.pointer("h")
    c = b.pointer("c") if layer.kind == "LSTM" else None
    y = b.pointer("y") if layer.wanted[0] else None

    def once(value: Any) -> Any:
        register = b.register(lanes, str(value.ty.dtype).partition("x")[0])
        register.set(value)
        return register.get()

    def apply(function: str, value: Any) -> Any:
        value = once(value)
        return once(tirx.max(value, splat(0.0, lanes)) if function == "relu" else FUNCTIONS[function](value, once))

    def units(row: Any, first: Any, count: int) -> None:
        """Computes a vector of units, of which `count` exist."""
        at = [b.let("at", row * (gates * width) + gate * width + first) for gate in range(gates)]
        state = b.let("state", row * width + first)
        given = [b.load(projected, place, lanes) for place in at]
        own = [b.load(summed, place, lanes) for place in at]
        pointers = [h] if c is None else [h, c]
        states = [b.load(pointer, state, lanes) for pointer in pointers]
        results = next_states(layer, functions, given, own, states, apply, once, splat(1.0, lanes))
        for pointer, result in zip(pointers, results, strict=True):
            b.store(pointer, state, result, lanes)
        new = results[0]
        if y is not None:
            place = b.address(row * hidden + first)  # rows of y begin anywhere
            if count == lanes:
                b.store(y, place, new, lanes)
                return
            register = b.register(lanes)
            register.set(new)
            for start, wide in pieces(count, lanes):
                b.store(y, place + start, register.part(start, wide), wide)

    with b.loop("row", b.first, b.last) as row:
        if hidden >= lanes:
            with b.loop("vector", 0, hidden // lanes) as vector:
                units(row, vector * lanes, lanes)
        if hidden % lanes:
            units(row, hidden // lanes * lanes, hidden % lanes)
    return b.build("recurrent_cell", layer.batch)
