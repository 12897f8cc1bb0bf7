"""The states of recurrent layers on a GPU: before the first step, in every step, and after the last one."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from tvm import tirx

from lwc_compiler.kernels.builder import splat, unravel
from lwc_compiler.kernels.gpu.builder import DeviceBuilder, ceil_div
from lwc_compiler.kernels.recurrence import next_states

if TYPE_CHECKING:
    from lwc_compiler.kernels.kernel import Kernel
    from lwc_compiler.kernels.recurrence import Recurrence

_THREADS = 128
_FUNCTIONS = {"sigmoid": tirx.sigmoid, "tanh": tirx.tanh, "relu": lambda x: tirx.max(x, tirx.const(0.0, "float32"))}


def copy_kernel(size: int, *, given: bool) -> Kernel:
    """Copies a state, or makes it 0 where none is given; parameters: [x], y, of so many elements."""
    b = DeviceBuilder((ceil_div(size, _THREADS), 1, 1), _THREADS)
    x = b.pointer("x") if given else None
    y = b.pointer("y")
    number = b.let("number", b.block[0] * _THREADS + b.thread)
    with b.when(number < size if size % _THREADS else True):
        b.store(y, number, splat(0.0, 1) if x is None else b.load(x, number))
    return b.finished("gpu_recurrent_copy")


def cell_kernel(layer: Recurrence, functions: tuple[str, ...]) -> Kernel:
    """The new states of a step; parameters: projected, summed (batch, gates x hidden), h, [c] (batch, hidden), [y].

    The states are replaced; y (batch, hidden) is the same as the new h. A thread has a unit of a sequence.
    """
    size, hidden, gates = layer.batch * layer.hidden, layer.hidden, layer.gates
    b = DeviceBuilder((ceil_div(size, _THREADS), 1, 1), _THREADS)
    projected, summed = b.pointer("projected"), b.pointer("summed")
    states = [b.pointer(name) for name in ("hc" if layer.kind == "LSTM" else "h")]
    y = b.pointer("y") if layer.wanted[0] else None
    number = b.let("number", b.block[0] * _THREADS + b.thread)

    def once(value: Any) -> Any:
        return b.let("value", value)

    def apply(function: str, value: Any) -> Any:
        return once(_FUNCTIONS[function](once(value)))

    with b.when(number < size if size % _THREADS else True):
        row, unit = unravel(b, number, (layer.batch, hidden))
        places = [b.let("at", (row * gates + gate) * hidden + unit) for gate in range(gates)]
        given, own = ([once(b.load(pointer, place)) for place in places] for pointer in (projected, summed))
        before = [once(b.load(pointer, number)) for pointer in states]
        after = next_states(layer, functions, given, own, before, apply, once, splat(1.0, 1))
        for pointer, value in zip(states, after, strict=True):
            b.store(pointer, number, value)
        if y is not None:
            b.store(y, number, after[0])
    kernel = b.finished("gpu_recurrent_cell")
    assert kernel.launch is not None
    return replace(kernel, launch=replace(kernel.launch, overlaps=True))  # it is short, and waits for one that is, too
