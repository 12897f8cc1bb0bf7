"""Runs the CUDA text of kernels on the CPU, by `cuda_emulator.cpp`, in two orders of the threads."""

import ctypes
import functools
import math
import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lwc_compiler.codegen.device_build import _DYNAMIC, _ENTRY, _with_dynamic_memory, compile_device
from lwc_compiler.codegen.device_emit import emit_device
from lwc_compiler.codegen.program import Stage
from lwc_compiler.kernels.kernel import Constant, Input, Kernel, Launch, Plan, Scratch
from lwc_compiler.targets import find_target

_GUARD, _POISON = 1024, 0xFFA5A5A5  # words around a buffer, NaNs as float32
_FLAGS = ("-std=c++17", "-w", "-fPIC", "-mf16c")
_RUN = """
extern "C" const char *run_{symbol}(
    void **operands, const unsigned *grid, const unsigned *block, int overlaps, int backwards, int without
) {{
    static void **pointers;
    pointers = operands;
    return emulator::launch([] {{ {call}; }}, grid, block, {cluster}, overlaps != 0, backwards != 0, without);
}}
"""
# Calls that order accesses to shared memory, as `cuda_emulator.h` has them.
_ORDERING = re.compile(
    r"\b(__sync(threads|warp)|lwc_wait_\d|lwc_cluster_sync|lwc_barrier_(arrive|wait)|lwc_wgmma_wait_\d)\("
)
_INPUTS_READY = re.compile(r"\blwc_inputs_ready\(\)")
# Tables of a library's source, and their rows.
_TABLE = re.compile(r"static const \w+ (lwc_\w+)\[[^\n]*\] = \{\n(.*?)\n\};", re.DOTALL)
_ROW = re.compile(r"^    \{(.*)\},$", re.MULTILINE)
_SOME = find_target("cuda:sm_90")
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
        self._library = ctypes.CDLL(str(self._path))
        self._functions = {symbol: self._library[f"run_{symbol}"] for symbol in calls}
        for function in self._functions.values():
            function.restype = ctypes.c_char_p

    def begin(self, *memory: np.ndarray) -> None:
        """Before the first of some launches: the GPU's memory that they write, in which hazards are looked for."""
        self._library.forget_memory()
        for part in memory:
            self._library.use_memory(ctypes.c_void_p(part.ctypes.data), ctypes.c_size_t(part.nbytes))

    def run(
        self, symbol: str, buffers: list[np.ndarray], launch: Launch, *, backwards: bool = False, without: int = 0
    ) -> None:
        """Runs a function.

        Args:
            symbol: which.
            buffers: what its pointers are to.
            launch: of which it takes the grid and the block, and whether it overlaps the one before.
            backwards: the order of the threads.
            without: a line whose wait or barrier is left out.

        Raises:
            HazardError: something is wrong with how it runs, such as a hazard in shared memory.
        """
        pointers = (ctypes.c_void_p * len(buffers))(*(buffer.ctypes.data for buffer in buffers))
        sizes = [(ctypes.c_uint * 3)(*sizes) for sizes in (launch.grid, launch.block)]
        wrong = self._functions[symbol](pointers, *sizes, int(launch.overlaps), int(backwards), without)
        if wrong is not None:
            raise HazardError(_PLACE.sub(self._line_at, wrong.decode()))

    def lines_with(self, pattern: re.Pattern[str], symbol: str) -> list[int]:
        """The numbers of a function's lines in which there is a pattern, as `run` takes them."""
        found, inside = [], False
        for number, line in enumerate(self.lines, 1):
            if line.startswith(_ENTRY):
                inside = f" {symbol}(" in line
            if inside and pattern.search(line):
                found.append(number)
        return found

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
        self._library = _library({self._symbols[key]: kernel for key, kernel in steps.items()}, folder)

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
        return [
            (number, f"line {number}: {self._library.lines[number - 1].strip()}")
            for symbol in symbols
            for number in self._library.lines_with(_ORDERING, symbol)
        ]

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
        self._library.begin(output, *scratch)
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


class Network:
    """The launches of an artifact's tables, on memory that is laid out as they say.

    Args:
        stage: the network.
        folder: what its kernels are written to.
    """

    def __init__(self, stage: Stage, folder: Path) -> None:
        self._stage = stage
        self._library = _library(stage.kernels, folder)
        tensors = [spec for spec, _ in (*stage.inputs, *stage.outputs)]
        source = emit_device(stage, [], tensors[: len(stage.inputs)], tensors[len(stage.inputs) :], "net", _SOME)
        self._weights = np.frombuffer(source.files["weights.bin"], np.uint8)
        self._arena_bytes = source.arena_bytes
        tables = _TABLE.findall(source.files["program.c"].decode())
        rows = {name: _ROW.findall(text) for name, text in tables}
        self._places = [self._place(row) for row in rows["lwc_places"]]
        self._tensors = [self._place(row) for row in rows["lwc_tensor_places"]]
        symbols = list(stage.kernels)
        self.launches = []  # symbol, threads, places of its operands
        for row in rows["lwc_launches"]:
            kernel, *sizes, _, overlaps, first, count = map(int, re.findall(r"\d+", row))
            launch = Launch(tuple(sizes[:3]), tuple(sizes[3:]), overlaps=bool(overlaps and self.launches))
            self.launches.append((symbols[kernel], launch, self._places[first : first + count]))

    @staticmethod
    def _place(row: str) -> tuple[bool, int]:
        """Whether it is among the weights, and the offset: the caller's tensors are in their room in the arena."""
        base, offset, _ = row.split(", ")
        return base == "LWC_WEIGHTS", int(offset)

    def waits(self, number: int) -> list[int]:
        """Lines of a launch's kernel that wait for its inputs."""
        return self._library.lines_with(_INPUTS_READY, self.launches[number][0])

    def run(
        self, inputs: dict[str, np.ndarray], *, backwards: bool = False, without: tuple[int, int] = (0, 0)
    ) -> dict[str, np.ndarray]:
        """The outputs.

        Args:
            inputs: by name.
            backwards: the order of the threads.
            without: number of a launch, and its line whose wait is left out.

        Raises:
            HazardError: something is wrong with how a launch runs, such as a hazard in memory.
        """
        arena, weights = (_buffer(size) for size in (self._arena_bytes, self._weights.nbytes))
        at = [memory[_GUARD:].view(np.uint8) for memory in (arena, weights)]
        at[1][: self._weights.nbytes] = self._weights
        self._library.begin(arena)
        for (spec, _), (_, offset) in zip(self._stage.inputs, self._tensors, strict=False):
            at[0][offset : offset + inputs[spec.name].nbytes] = inputs[spec.name].reshape(-1).view(np.uint8)
        for number, (symbol, launch, places) in enumerate(self.launches):
            operands = [at[constant][offset:] for constant, offset in places]
            line = without[1] if without[0] == number else 0
            self._library.run(symbol, operands, launch, backwards=backwards, without=line)
        outputs = zip(self._stage.outputs, self._tensors[len(self._stage.inputs) :], strict=True)
        return {
            spec.name: at[constant][offset:][: math.prod(spec.shape) * np.dtype(spec.dtype).itemsize]
            .view(spec.dtype)
            .reshape(spec.shape)
            for (spec, _), (constant, offset) in outputs
        }


def _library(kernels: dict[str, Kernel], folder: Path) -> Library:
    """Kernels, by symbol, compiled for the processor."""
    text = compile_device(kernels, "cuda")
    functions = re.split(rf"^(?={_ENTRY})", text[text.index(_ENTRY) :], flags=re.MULTILINE)
    text = "".join(map(_with_dynamic_memory, functions)).replace(f"\n  {_DYNAMIC}", "")
    calls = {
        symbol: (f"{symbol}({_operands(text, symbol, len(kernel.func.params))})", max(1, kernel.launch.cluster))
        for symbol, kernel in kernels.items()
    }
    return Library(text, calls, folder)


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
