"""Runs the CUDA text of kernels on the CPU, by `cuda_emulator.h`, in two orders of the threads."""

import ctypes
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lwc_compiler.codegen.device_build import compile_device
from lwc_compiler.kernels.kernel import Constant, Input, Plan, Scratch

_GUARD, _POISON = 1024, 0xFFA5A5A5  # words around a buffer, NaNs as float32
_ENTRY = """
extern "C" void run_{symbol}(void **p, const unsigned *grid, const unsigned *block, int backwards) {{
    static void **pointers;
    pointers = p;
    emulator::body = [] {{ {symbol}({operands}); }};
    emulator::launch(grid, block, {cluster}, backwards != 0);
}}
"""


class Emulator:
    """Plans whose kernels are compiled to one library.

    Args:
        plans: by name.
        folder: what it is written to.
    """

    def __init__(self, plans: dict[str, Plan], folder: Path) -> None:
        if shutil.which("g++") is None:
            pytest.skip("g++ compiles the CUDA text of kernels for the CPU")
        self._plans = plans
        steps = {(name, i): step.kernel for name, plan in plans.items() for i, step in enumerate(plan.steps)}
        symbols = {key: f"k{number}" for number, key in enumerate(steps)}
        kernels = {symbols[key]: kernel for key, kernel in steps.items()}
        text = compile_device(kernels, "cuda")
        text = text[text.index('extern "C" __global__') :]
        text = re.sub(r"extern __shared__ [^;]*;", "", text)
        text = re.sub(r"__shared__ (alignas\(\d+\))", r"\1 static", text)
        entries = [
            _ENTRY.format(
                symbol=symbol,
                operands=_operands(text, symbol, len(kernel.func.params)),
                cluster=max(1, kernel.launch.cluster),
            )
            for symbol, kernel in kernels.items()
        ]
        source = folder / "kernels.cpp"
        source.write_text('#include "cuda_emulator.h"\n' + text + "".join(entries), encoding="utf-8")
        flags = ["-std=c++17", "-O1", "-w", "-fPIC", "-shared", "-mf16c", f"-I{Path(__file__).parent}"]
        subprocess.run(["g++", *flags, str(source), "-o", str(folder / "kernels.so")], check=True)
        library = ctypes.CDLL(str(folder / "kernels.so"))
        self._functions = {key: library[f"run_{symbol}"] for key, symbol in symbols.items()}

    def run(self, name: str, inputs: list[np.ndarray], shape: tuple[int, ...]) -> np.ndarray:
        """A plan's output, float32: the same in both orders, and nothing is written outside of a buffer."""
        first, second = (self._run_once(name, inputs, shape, backwards) for backwards in (False, True))
        assert np.array_equal(first.view(np.uint32), second.view(np.uint32)), "the order of threads changes the result"
        return first

    def check(self, name: str, case: Any) -> None:
        """Asserts that a plan gives what a case expects: only sums are rounded otherwise, to 1e-5 of their scale."""
        result = self.run(name, case.inputs, case.expected.shape)
        assert np.isfinite(result).all(), name
        assert np.abs(result - case.expected).max() <= 1e-5 * case.scale, name

    def _run_once(self, name: str, inputs: list[np.ndarray], shape: tuple[int, ...], backwards: bool) -> np.ndarray:
        plan = self._plans[name]
        scratch = [_buffer(size) for size in plan.scratch]
        size = int(np.prod(shape))
        output = _buffer(4 * size)
        read_only = []
        for number, step in enumerate(plan.steps):
            buffers = []
            for operand in step.args:
                if isinstance(operand, (Constant, Input)):
                    array = operand.array if isinstance(operand, Constant) else inputs[operand.index]
                    buffers.append(_buffer(array.nbytes, array))
                    read_only.append((buffers[-1], buffers[-1].copy()))
                else:
                    buffers.append(scratch[operand.index] if isinstance(operand, Scratch) else output)
            launch = step.kernel.launch
            pointers = (ctypes.c_void_p * len(buffers))(*(buffer.ctypes.data + 4 * _GUARD for buffer in buffers))
            sizes = [(ctypes.c_uint * 3)(*sizes) for sizes in (launch.grid, launch.block)]
            self._functions[name, number](pointers, *sizes, int(backwards))
        for buffer, before in read_only:
            assert np.array_equal(buffer, before), "something was written to a constant or an input"
        for buffer, words in ((output, size), *zip(scratch, (n // 4 for n in plan.scratch), strict=True)):
            assert (buffer[:_GUARD] == _POISON).all(), "something was written before a buffer"
            assert (buffer[_GUARD + words :] == _POISON).all(), "something was written behind a buffer"
        return output[_GUARD : _GUARD + size].view(np.float32).reshape(shape)


def _operands(text: str, symbol: str, count: int) -> str:
    """The pointers, each of its parameter's type."""
    parameters = text[text.index(f" {symbol}(") + len(symbol) + 2 :].split(")")[0].split(", ")
    assert len(parameters) == count
    types = [parameter.split("*")[0] + "*" for parameter in parameters]
    return ", ".join(f"({type_})pointers[{i}]" for i, type_ in enumerate(types))


def _buffer(size: int, contents: np.ndarray | None = None) -> np.ndarray:
    """Words at a 64-byte boundary with NaNs around them, and in them but for their contents."""
    words = -(-size // 4)
    memory = np.full(words + 2 * _GUARD + 16, _POISON, np.uint32)
    buffer = memory[-(memory.ctypes.data // 4) % 16 :][: words + 2 * _GUARD]
    if contents is not None:
        buffer[_GUARD:].view(np.uint8)[:size] = np.ascontiguousarray(contents).reshape(-1).view(np.uint8)
    return buffer
