"""Runs the CUDA text of kernels on the CPU, by `cuda_emulator.cpp`, in two orders of the threads."""

import ctypes
import functools
import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lwc_compiler.codegen.device_build import _DYNAMIC, _ENTRY, _with_dynamic_memory, compile_device
from lwc_compiler.kernels.kernel import Constant, Input, Launch, Plan, Scratch

_GUARD, _POISON = 1024, 0xFFA5A5A5  # words around a buffer, NaNs as float32
_FLAGS = ("-std=c++17", "-w", "-fPIC", "-mf16c")
_RUN = """
extern "C" const char *run_{symbol}(
    void **operands, const unsigned *grid, const unsigned *block, int backwards, int without
) {{
    static void **pointers;
    pointers = operands;
    return emulator::launch([] {{ {call}; }}, grid, block, {cluster}, backwards != 0, without);
}}
"""
# Calls that order accesses to shared memory, as `cuda_emulator.h` has them.
_ORDERING = re.compile(
    r"\b(__sync(threads|warp)|lwc_wait_\d|lwc_cluster_sync|lwc_barrier_(arrive|wait)|lwc_wgmma_wait_\d)\("
)
_PLACE = re.compile(r"\{(0x[0-9a-f]+)\}")  # in messages


class HazardError(AssertionError):
    """A kernel does what nothing orders, or what no GPU does."""


class Library:
    """CUDA C++, compiled for the processor.

    Args:
        text: functions that include nothing, and whose shared memory is what their launches ask for.
        calls: symbol -> a call of the function with operands from `pointers`, and blocks of a cluster.
        folder: what it is written to.
    """

    def __init__(self, text: str, calls: dict[str, tuple[str, int]], folder: Path) -> None:
        if shutil.which("g++") is None:
            pytest.skip("g++ compiles the CUDA text of kernels for the CPU")
        runs = [_RUN.format(symbol=name, call=call, cluster=cluster) for name, (call, cluster) in calls.items()]
        text = '#include "cuda_emulator.h"\n' + text + "".join(runs)
        self.lines = text.splitlines()
        source, self._path = folder / "kernels.cpp", folder / "kernels.so"
        source.write_text(text, encoding="utf-8")
        compiled = folder / "kernels.o"
        # With GCC's calls at every access, which `shared_hazards.h` takes.
        flags = [*_FLAGS, "-Og", "-g1", "-fsanitize=thread", f"-I{Path(__file__).parent}"]
        subprocess.run(["g++", *flags, "-c", str(source), "-o", str(compiled)], check=True)
        subprocess.run(["g++", "-shared", str(compiled), str(_emulator()), "-o", str(self._path)], check=True)
        library = ctypes.CDLL(str(self._path))
        self._functions = {symbol: library[f"run_{symbol}"] for symbol in calls}
        for function in self._functions.values():
            function.restype = ctypes.c_char_p

    def run(
        self, symbol: str, buffers: list[np.ndarray], launch: Launch, *, backwards: bool = False, without: int = 0
    ) -> None:
        """Runs a function.

        Args:
            symbol: which.
            buffers: what its pointers are to.
            launch: of which it takes the grid and the block.
            backwards: the order of the threads.
            without: a line whose wait or barrier is left out.

        Raises:
            HazardError: something is wrong with how it runs, such as a hazard in shared memory.
        """
        pointers = (ctypes.c_void_p * len(buffers))(*(buffer.ctypes.data for buffer in buffers))
        sizes = [(ctypes.c_uint * 3)(*sizes) for sizes in (launch.grid, launch.block)]
        wrong = self._functions[symbol](pointers, *sizes, int(backwards), without)
        if wrong is not None:
            raise HazardError(_PLACE.sub(self._line_at, wrong.decode()))

    def _line_at(self, found: re.Match[str]) -> str:
        """The text of a line, for where a call in it returns to."""
        before = hex(int(found[1], 16) - 1)
        command = ["addr2line", "-e", str(self._path), before]
        place = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        number = int(place.split(":")[1].split()[0])
        return f"line {number}: {self.lines[number - 1].strip()[:200]}"


class Emulator:
    """Plans whose kernels are compiled to one library.

    Args:
        plans: by name.
        folder: what it is written to.
    """

    def __init__(self, plans: dict[str, Plan], folder: Path) -> None:
        self._plans = plans
        steps = {(name, i): step.kernel for name, plan in plans.items() for i, step in enumerate(plan.steps)}
        self._symbols = {key: f"k{number}" for number, key in enumerate(steps)}
        kernels = {self._symbols[key]: kernel for key, kernel in steps.items()}
        text = compile_device(kernels, "cuda")
        functions = re.split(rf"^(?={_ENTRY})", text[text.index(_ENTRY) :], flags=re.MULTILINE)
        text = "".join(map(_with_dynamic_memory, functions)).replace(f"\n  {_DYNAMIC}", "")
        calls = {
            symbol: (f"{symbol}({_operands(text, symbol, len(kernel.func.params))})", max(1, kernel.launch.cluster))
            for symbol, kernel in kernels.items()
        }
        self._library = Library(text, calls, folder)

    def run(self, name: str, inputs: list[np.ndarray], shape: tuple[int, ...]) -> np.ndarray:
        """A plan's output, float32: the same in both orders, and nothing is written outside of a buffer.

        Raises:
            HazardError: something is wrong with how a kernel runs, such as a hazard in shared memory.
        """
        first, second = (self._run_once(name, inputs, shape, backwards) for backwards in (False, True))
        assert np.array_equal(first.view(np.uint32), second.view(np.uint32)), "the order of threads changes the result"
        return first

    def check(self, name: str, case: Any) -> None:
        """Asserts that a plan gives what a case expects: only sums are rounded otherwise, to 1e-5 of their scale."""
        result = self.run(name, case.inputs, case.expected.shape)
        assert np.isfinite(result).all(), name
        assert np.abs(result - case.expected).max() <= 1e-5 * case.scale, name

    def not_needed(self, name: str, case: Any) -> list[str]:
        """The waits and barriers of a plan's kernels without which no hazard is found."""
        shape = case.expected.shape
        return [
            text for line, text in self._orderings(name) if not self._is_wrong_without(name, case.inputs, shape, line)
        ]

    def _orderings(self, name: str) -> list[tuple[int, str]]:
        """Lines of the text that order what threads do, and what is in them."""
        symbols = [symbol for (plan, _), symbol in self._symbols.items() if plan == name]
        found, inside = [], False
        for number, line in enumerate(self._library.lines, 1):
            if line.startswith(_ENTRY):
                inside = any(f" {symbol}(" in line for symbol in symbols)
            if inside and _ORDERING.search(line):
                found.append((number, f"line {number}: {line.strip()}"))
        return found

    def _is_wrong_without(self, name: str, inputs: list[np.ndarray], shape: tuple[int, ...], line: int) -> bool:
        try:
            for backwards in (False, True):
                self._run_once(name, inputs, shape, backwards, line)
        except HazardError:
            return True
        return False

    def _run_once(
        self, name: str, inputs: list[np.ndarray], shape: tuple[int, ...], backwards: bool, without: int = 0
    ) -> np.ndarray:
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
            contents = [buffer[_GUARD:] for buffer in buffers]
            symbol = self._symbols[name, number]
            try:
                self._library.run(symbol, contents, step.kernel.launch, backwards=backwards, without=without)
            except HazardError as error:
                raise HazardError(f"{step.kernel.name} of {name}: {error}") from None
        for buffer, before in read_only:
            assert np.array_equal(buffer, before), "something was written to a constant or an input"
        for buffer, words in ((output, size), *zip(scratch, (n // 4 for n in plan.scratch), strict=True)):
            assert (buffer[:_GUARD] == _POISON).all(), "something was written before a buffer"
            assert (buffer[_GUARD + words :] == _POISON).all(), "something was written behind a buffer"
        return output[_GUARD : _GUARD + size].view(np.float32).reshape(shape)


@functools.lru_cache(maxsize=1)
def _emulator_folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory()


@functools.lru_cache(maxsize=1)
def _emulator() -> Path:
    """`cuda_emulator.cpp`, compiled."""
    path = Path(_emulator_folder().name) / "emulator.o"
    source = Path(__file__).with_name("cuda_emulator.cpp")
    subprocess.run(["g++", *_FLAGS, "-O2", "-c", str(source), "-o", str(path)], check=True)
    return path


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
