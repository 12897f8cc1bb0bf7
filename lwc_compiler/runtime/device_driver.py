"""A GPU through its driver alone: memory, launches and events, by ctypes.

Imports nothing of the package: benchmarks take this file to machines without it.
"""

from __future__ import annotations

import ctypes
import math
import statistics
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from typing_extensions import Self

_LIBRARY = "libcuda.so.1"
_CLOCK_KHZ, _MULTIPROCESSORS, _MEMORY_KHZ, _BUS_BITS, _L2_BYTES = 13, 16, 36, 37, 38
_MAJOR, _MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_*
_NON_BLOCKING, _THREAD_LOCAL = 1, 1
_PROGRAMMATIC = 6  # CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION
_HOPPER = 9
_MOST_SHARED_BYTES = 8  # CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
_REFUSED = (1, 701)  # CUDA_ERROR_INVALID_VALUE and _LAUNCH_OUT_OF_RESOURCES
_LEAST_BLOCK = 1e-3  # seconds between two events, so that the time of an event is nothing beside it


class GpuError(Exception):
    """The driver is missing, or one of its calls failed."""


class LaunchError(GpuError):
    """The GPU does not take a launch: it asks for too many threads, registers or bytes of shared memory."""


class _Attribute(ctypes.Structure):
    """A CUlaunchAttribute whose value is a number."""

    _fields_ = (("number", ctypes.c_int), ("value", ctypes.c_uint64 * 8))


class _Config(ctypes.Structure):
    """A CUlaunchConfig."""

    _fields_ = (
        ("grid", ctypes.c_uint * 3),
        ("block", ctypes.c_uint * 3),
        ("shared_bytes", ctypes.c_uint),
        ("stream", ctypes.c_void_p),
        ("attributes", ctypes.POINTER(_Attribute)),
        ("count", ctypes.c_uint),
    )


@dataclass(frozen=True)
class LaunchOf:
    """A launch of a kernel.

    Attributes:
        function: of a module.
        grid: blocks along x, y and z.
        block: threads of a block along x, y and z.
        shared_bytes: of shared memory that it does not declare.
        overlaps: it may start before the launch before it has ended.
        operands: the addresses that it gets, or names that `at` gives addresses for.
    """

    function: ctypes.c_void_p
    grid: Sequence[int]
    block: Sequence[int]
    shared_bytes: int
    overlaps: bool
    operands: Sequence[Any]

    def at(self, places: Mapping[Hashable, int]) -> LaunchOf:
        """The launch with the addresses of its operands."""
        return replace(self, operands=[places[operand] for operand in self.operands])


class Device:
    """The first GPU of the process, of which nothing is taken.

    Raises:
        GpuError: there is no driver, or no GPU.
    """

    def __init__(self) -> None:
        try:
            self._cuda = ctypes.CDLL(_LIBRARY)
        except OSError as error:
            raise GpuError(f"there is no NVIDIA driver: {error}") from error
        self._device = ctypes.c_int()
        self.call("cuInit", 0)
        self.call("cuDeviceGet", ctypes.byref(self._device), 0)

    def call(self, name: str, *arguments: Any) -> None:
        """Calls a function of the driver.

        Raises:
            GpuError: it failed, or the driver does not have it.
        """
        if code := self._code(name, *arguments):
            raise GpuError(f"{name} failed: {self._said(code)}")

    def _code(self, name: str, *arguments: Any) -> int:
        """What a function of the driver gives: 0, or CUDA's error."""
        try:
            function = self._cuda[name]
        except AttributeError as error:
            raise GpuError(f"NVIDIA's driver is too old: it has no {name}") from error
        code: int = function(*arguments)
        return code

    def _said(self, code: int) -> str:
        text = ctypes.c_char_p()
        self._code("cuGetErrorString", code, ctypes.byref(text))
        return f"{(text.value or b'unknown error').decode()} (CUDA's error {code})"

    def describe(self) -> dict[str, Any]:
        """Name and numbers of the GPU and the driver; the bandwidth is clock x width x 2, as of the data sheet."""
        name, version = ctypes.create_string_buffer(256), ctypes.c_int()
        self.call("cuDeviceGetName", name, len(name), self._device)
        self.call("cuDriverGetVersion", ctypes.byref(version))
        return {
            "name": name.value.decode(),
            "driver": f"CUDA {version.value // 1000}.{version.value % 1000 // 10}",
            "capability": self.capability,
            "multiprocessors": self._attribute(_MULTIPROCESSORS),
            "gigahertz": self._attribute(_CLOCK_KHZ) / 1e6,
            "l2_bytes": self.l2_bytes,
            "gigabytes_a_second": 2e3 * self._attribute(_MEMORY_KHZ) * self._attribute(_BUS_BITS) / 8 / 1e9,
        }

    @property
    def capability(self) -> int:
        """Compute capability times ten."""
        return 10 * self._attribute(_MAJOR) + self._attribute(_MINOR)

    @property
    def l2_bytes(self) -> int:
        """Size of the level-2 cache."""
        return self._attribute(_L2_BYTES)

    def _attribute(self, number: int) -> int:
        value = ctypes.c_int()
        self.call("cuDeviceGetAttribute", ctypes.byref(value), number, self._device)
        return value.value


class Gpu(Device):
    """The first GPU of the process: its primary context, current in this thread, and a stream; a context manager.

    Attributes:
        stream: all work goes there.

    Raises:
        GpuError: there is no driver, or no GPU.
    """

    def __init__(self) -> None:
        super().__init__()
        context, self.stream = ctypes.c_void_p(), ctypes.c_void_p()
        self._events = [ctypes.c_void_p(), ctypes.c_void_p()]
        with ExitStack() as taken:
            self.call("cuDevicePrimaryCtxRetain", ctypes.byref(context), self._device)
            taken.callback(self._code, "cuDevicePrimaryCtxRelease_v2", self._device)
            self.call("cuCtxPushCurrent_v2", context)
            taken.callback(self._code, "cuCtxPopCurrent_v2", ctypes.byref(context))
            self.call("cuStreamCreate", ctypes.byref(self.stream), _NON_BLOCKING)
            taken.callback(self._code, "cuStreamDestroy_v2", self.stream)
            for event in self._events:
                self.call("cuEventCreate", ctypes.byref(event), 0)
                taken.callback(self._code, "cuEventDestroy_v2", event)
            self._taken = taken.pop_all()  # given back whatever CUDA says: it may have lost the context

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._taken.close()

    def memory(self, size: int) -> int:
        """The address of `size` new bytes."""
        address = ctypes.c_uint64()
        self.call("cuMemAlloc_v2", ctypes.byref(address), ctypes.c_size_t(max(size, 4)))
        return address.value

    def free(self, address: int) -> None:
        """Gives memory back; a context that CUDA has lost has none."""
        self._code("cuMemFree_v2", ctypes.c_uint64(address))

    def upload(self, address: int, array: NDArray[Any]) -> None:
        """Copies an array to the GPU."""
        dense = np.ascontiguousarray(array)
        self.call(
            "cuMemcpyHtoDAsync_v2", ctypes.c_uint64(address), ctypes.c_void_p(dense.ctypes.data),
            ctypes.c_size_t(dense.nbytes), self.stream,
        )  # fmt: skip
        self.wait()

    def download(self, address: int, size: int) -> NDArray[np.uint8]:
        """A copy of `size` bytes."""
        result = np.empty(size, np.uint8)
        self.call(
            "cuMemcpyDtoHAsync_v2", ctypes.c_void_p(result.ctypes.data), ctypes.c_uint64(address),
            ctypes.c_size_t(size), self.stream,
        )  # fmt: skip
        self.wait()
        return result

    def copy(self, to: int, from_: int, size: int) -> None:
        """Starts to copy from one place of the GPU's memory to another."""
        addresses = ctypes.c_uint64(to), ctypes.c_uint64(from_)
        self.call("cuMemcpyDtoDAsync_v2", *addresses, ctypes.c_size_t(size), self.stream)

    def wait(self) -> None:
        """Waits for all work."""
        self.call("cuStreamSynchronize", self.stream)

    def module(self, image: bytes) -> ctypes.c_void_p:
        """Loads machine code, or PTX that ends with a zero."""
        module = ctypes.c_void_p()
        self.call("cuModuleLoadData", ctypes.byref(module), ctypes.c_char_p(image))
        self._taken.callback(self._code, "cuModuleUnload", module)
        return module

    def function(self, module: ctypes.c_void_p, name: str) -> ctypes.c_void_p:
        """A kernel of a module."""
        function = ctypes.c_void_p()
        self.call("cuModuleGetFunction", ctypes.byref(function), module, name.encode())
        return function

    def once(self, launches: Sequence[LaunchOf]) -> None:
        """Makes the launches and waits for them.

        Raises:
            LaunchError: the GPU does not take one.
        """
        for launch in launches:
            self._launch(launch, overlaps=False)
        self.wait()

    def graph(self, launches: Sequence[LaunchOf]) -> ctypes.c_void_p:
        """The launches, one after the other, as a graph; those that overlap do so from Hopper on.

        Args:
            launches: of kernels that wait for their inputs themselves, see `launches.cuh`.

        Raises:
            LaunchError: the GPU does not take one.
        """
        graph, executable = ctypes.c_void_p(), ctypes.c_void_p()
        able = self._attribute(_MAJOR) >= _HOPPER
        self.call("cuStreamBeginCapture_v2", self.stream, _THREAD_LOCAL)
        try:
            try:
                for launch in launches:
                    self._launch(launch, overlaps=able and launch.overlaps)
            finally:
                ended = self._code("cuStreamEndCapture", self.stream, ctypes.byref(graph))
            if ended:
                raise GpuError(f"cuStreamEndCapture failed: {self._said(ended)}")
            self.call("cuGraphInstantiateWithFlags", ctypes.byref(executable), graph, ctypes.c_uint64(0))
        finally:
            if graph:
                self._code("cuGraphDestroy", graph)
        return executable

    def _launch(self, launch: LaunchOf, *, overlaps: bool) -> None:
        operands = [ctypes.c_uint64(address) for address in launch.operands]
        pointers = [ctypes.cast(ctypes.pointer(operand), ctypes.c_void_p) for operand in operands]
        arguments = (ctypes.c_void_p * len(operands))(*pointers)
        programmatic = _Attribute(_PROGRAMMATIC, (ctypes.c_uint64 * 8)(1))
        grid, block = (ctypes.c_uint * 3)(*launch.grid), (ctypes.c_uint * 3)(*launch.block)
        config = _Config(grid, block, launch.shared_bytes, self.stream, ctypes.pointer(programmatic), overlaps)
        code = 0
        if launch.shared_bytes:
            code = self._code("cuFuncSetAttribute", launch.function, _MOST_SHARED_BYTES, launch.shared_bytes)
        code = code or self._code("cuLaunchKernelEx", ctypes.byref(config), launch.function, arguments, None)
        if code:
            kind = LaunchError if code in _REFUSED else GpuError
            raise kind(f"a launch of {tuple(launch.grid)} blocks failed: {self._said(code)}")

    def destroy(self, graph: ctypes.c_void_p) -> None:
        """Gives a graph back."""
        self._code("cuGraphExecDestroy", graph)

    def run(self, graph: ctypes.c_void_p) -> None:
        """Starts a graph."""
        self.call("cuGraphLaunch", graph, self.stream)

    def seconds(self, start: Callable[[], None], budget: float = 0.2) -> float:
        """The median time of a piece of work, from runs back to back on the stream, by events around blocks of them.

        Args:
            start: starts it on the stream.
            budget: seconds that may be spent.
        """

        def block(runs: int) -> float:
            self.call("cuEventRecordWithFlags", self._events[0], self.stream, 0)
            for _ in range(runs):
                start()
            self.call("cuEventRecordWithFlags", self._events[1], self.stream, 0)
            self.wait()
            milliseconds = ctypes.c_float()
            self.call("cuEventElapsedTime", ctypes.byref(milliseconds), *self._events)
            return 1e-3 * milliseconds.value / runs

        return median_seconds(block, budget)


def median_seconds(block: Callable[[int], float], budget: float) -> float:
    """Median of the seconds a run, over blocks of at least a millisecond; a block's size is found while warming up.

    Args:
        block: makes so many runs and gives the seconds of each.
        budget: seconds that may be spent.
    """
    block(1)
    once = max(block(3), 1e-7)
    runs = math.ceil(_LEAST_BLOCK / once)
    block(runs)
    times: list[float] = []
    end = time.perf_counter() + budget
    while len(times) < 5 or time.perf_counter() < end:
        times.append(block(runs))
        if len(times) >= 200:
            break
    return statistics.median(times)
