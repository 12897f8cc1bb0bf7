"""Converters of recurrent layers without kernels of their own: one kernel, with plain loops, runs all steps."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from tvm import relax, te, tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as script

from lwc_compiler.codegen.converters import Node, Result, converter, literal, shape_of
from lwc_compiler.codegen.converters_tensor import reshape, slice_axis
from lwc_compiler.passes.recurrent import GATES, activations, directions, misfit

if TYPE_CHECKING:
    from collections.abc import Callable

_ACTIVATIONS: dict[str, Callable[[Any], Any]] = {
    "Relu": lambda x: tirx.max(x, literal(0, str(x.ty))),
    "Sigmoid": tirx.sigmoid,
    "Tanh": tirx.tanh,
}


@converter("RNN", "GRU", "LSTM", constant=(4,))
def _recurrent(node: Node) -> Result:
    """The states of all steps, and the last ones.

    Inputs: X (time, batch, input), W (directions, gates * hidden, input), R (directions, gates * hidden, hidden), B,
    lengths, the initial states (directions, batch, hidden), and LSTM's peephole weights P (directions, 3 * hidden).
    """
    batch_first = bool(node.attribute("layout", 0))
    x = node.expr(0)
    if batch_first:
        x = node.emit(relax.op.permute_dims(x, (1, 0, 2)))
    time, batch, _ = shape_of(x)
    _refuse_options(node, time)
    hidden = node.shape(2)[-1]
    sequences, finals = [], []
    for d, (backward, names) in enumerate(zip(directions(node.proto), activations(node.proto), strict=True)):
        y, *states = _run(node, x, d, backward, [_ACTIVATIONS[name] for name in names])
        sequences.append(reshape(node, y, (time, 1, batch, hidden)))
        finals.append([reshape(node, s, (1, batch, hidden)) for s in states])

    def joined(parts: list[relax.Expr], axis: int, order: tuple[int, ...]) -> relax.Expr:
        whole = parts[0] if len(parts) == 1 else node.emit(relax.op.concat(parts, axis))
        return node.emit(relax.op.permute_dims(whole, order)) if batch_first else whole

    last = [joined(list(parts), 0, (1, 0, 2)) for parts in zip(*finals, strict=True)]
    return [joined(sequences, 1, (2, 0, 1, 3)), *last]


def _refuse_options(node: Node, time: int) -> None:
    lengths = node.constant(4)
    if lengths is not None and (lengths != time).any():
        raise node.refuse("sequences of different lengths are not handled")
    layout = bool(node.attribute("layout", 0))
    if why := misfit(node.proto.op_type, [node.shape(i) if node.has(i) else None for i in range(7)], layout):
        raise node.refuse(why)
    for option in ("clip", "input_forget", "activation_alpha", "activation_beta"):
        if node.attribute(option):
            raise node.refuse(f"its attribute '{option}' is not handled")
    for name in node.attribute("activations", ()):
        if name not in _ACTIVATIONS:
            raise node.refuse(f"its activation {name} is not handled; {', '.join(_ACTIVATIONS)} are")


def _direction(node: Node, index: int, d: int, shape: tuple[int, ...]) -> relax.Expr:
    """Part `d` of input `index`, zeros when it is left out; shape (directions, ...) without the first dimension."""
    if not node.has(index):
        return relax.const(np.zeros(shape, node.dtype(0)))
    value = node.inputs[index]
    if isinstance(value, np.ndarray):
        return relax.const(np.ascontiguousarray(value[d]))
    return reshape(node, slice_axis(node, node.expr(index), 0, d, 1), shape)


def _transposed(node: Node, index: int, d: int) -> relax.Expr:
    value = node.inputs[index]
    if isinstance(value, np.ndarray):
        return relax.const(np.ascontiguousarray(value[d].T))
    return node.emit(relax.op.permute_dims(_direction(node, index, d, node.shape(index)[1:])))


def _run(node: Node, x: relax.Expr, d: int, backward: bool, functions: list[Callable[[Any], Any]]) -> list[relax.Expr]:
    """Direction `d`: hidden states of all steps (time * batch * hidden), then the last state, or states, flat."""
    kind, dtype = node.proto.op_type, node.dtype(0)
    (time, batch, _), hidden = shape_of(x), node.shape(2)[-1]
    width = GATES[kind] * hidden
    bias = _direction(node, 3, d, (2 * width,))
    from_input, from_state = (slice_axis(node, bias, 0, i * width, width) for i in range(2))
    projected = node.emit(relax.op.add(node.emit(relax.op.matmul(x, _transposed(node, 1, d))), from_input))
    initial = [_initial(node, index, d, batch, hidden) for index in ((5, 6) if kind == "LSTM" else (5,))]
    peepholes = _direction(node, 7, d, (3 * hidden,)) if kind == "LSTM" else relax.const(np.zeros(1, dtype))
    before_reset = bool(node.attribute("linear_before_reset", 0))
    operands = [projected, _transposed(node, 2, d), from_state, peepholes, *initial]
    flat = [reshape(node, e, (int(np.prod(shape_of(e))),)) for e in operands]
    f, *more = functions
    zero, one = literal(0, dtype), literal(1, dtype)

    def step(xs: Any, weights: Any, bias: Any, peephole: Any, acc: Any, h: Any, c: Any, at: Any, row: Any) -> None:
        """One time step of one sequence: `at` is where its projection starts, `row` where its state does."""

        def product(source: Any, start: Any, first: int, count: int, into: int) -> None:
            """acc[into + g] += sum over k of source[start + k] R[first + g, k], for `count` values of g."""
            with script.serial(0, hidden) as k, script.serial(0, count) as g:
                acc[into + g] = acc[into + g] + source[start + k] * weights[k * width + first + g]

        reset_first = kind == "GRU" and before_reset
        with script.serial(0, width) as g:
            if reset_first:  # the last gate's state part stays apart: it is multiplied by the reset gate
                acc[g] = xs[at + g] + tirx.if_then_else(g < 2 * hidden, bias[g], zero)
            else:
                acc[g] = xs[at + g] + bias[g]
        if kind != "GRU":
            product(h, row, 0, width, 0)
        else:
            product(h, row, 0, 2 * hidden, 0)
            with script.serial(0, hidden) as j:
                acc[j] = f(acc[j])
                acc[hidden + j] = f(acc[hidden + j])
                acc[width + j] = bias[2 * hidden + j] if reset_first else acc[hidden + j] * h[row + j]
            if reset_first:
                product(h, row, 2 * hidden, hidden, width)
            else:
                product(acc, width, 2 * hidden, hidden, 2 * hidden)
        with script.serial(0, hidden) as j:
            if kind == "RNN":
                h[row + j] = f(acc[j])
            elif kind == "GRU":  # acc: update, reset, candidate, scratch
                candidate = acc[2 * hidden + j] + (acc[hidden + j] * acc[width + j] if reset_first else zero)
                h[row + j] = (one - acc[j]) * more[0](candidate) + acc[j] * h[row + j]
            else:  # acc: input, output, forget, cell
                old = c[row + j]
                kept = f(acc[2 * hidden + j] + peephole[2 * hidden + j] * old) * old
                c[row + j] = kept + f(acc[j] + peephole[j] * old) * more[0](acc[3 * hidden + j])
                opened = f(acc[hidden + j] + peephole[hidden + j] * c[row + j])
                h[row + j] = opened * more[1](c[row + j])

    def body(*tensors: Any) -> Any:
        def emit(ins: Any, outs: Any) -> Any:
            xs, weights, bias, peephole, *starts = (script.buffer_proxy(b) for b in ins)
            out, acc, *states = (script.buffer_proxy(b) for b in outs)
            with IRBuilder() as start, script.serial(0, batch * hidden) as i:
                for state, given in zip(states, starts, strict=True):
                    state[i] = given[i]
            with IRBuilder() as steps, script.serial(0, time) as s, script.serial(0, batch) as b:
                here = (time - 1 - s if backward else s) * batch + b
                step(xs, weights, bias, peephole, acc, states[0], states[-1], here * width, b * hidden)
                with script.serial(0, hidden) as j:
                    out[here * hidden + j] = states[0][b * hidden + j]
            return tirx.SeqStmt([start.get(), steps.get()])

        sizes = [time * batch * hidden, width + hidden, *[batch * hidden] * len(initial)]
        shapes = [(literal(size, "int64"),) for size in sizes]
        buffers = [tirx.decl_buffer(t.shape, t.dtype) for t in tensors]
        results = [tirx.decl_buffer(shape, dtype) for shape in shapes]
        return te.extern(shapes, list(tensors), emit, in_buffers=buffers, out_buffers=results, name=kind.lower())

    run = node.compute(kind.lower(), body, *flat)
    y, _, *states = (node.emit(relax.TupleGetItem(run, i)) for i in range(2 + len(initial)))
    return [y, *states]


def _initial(node: Node, index: int, d: int, batch: int, hidden: int) -> relax.Expr:
    """The initial state of direction `d`: (directions, batch, hidden), batch first with `layout` 1."""
    if node.has(index) and node.attribute("layout", 0):
        return reshape(node, slice_axis(node, node.expr(index), 1, d, 1), (batch, hidden))
    return _direction(node, index, d, (batch, hidden))
