"""A GPU through its driver alone: memory, launches and events, by ctypes."""

from __future__ import annotations

import ctypes
import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

_CLOCK_KHZ, _MULTIPROCESSORS, _MEMORY_KHZ, _BUS_BITS, _L2_BYTES = 13, 16, 36, 37, 38
_MAJOR, _MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_*
_NON_BLOCKING, _THREAD_LOCAL = 1, 1
_PROGRAMMATIC = 6  # CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION
_HOPPER = 9
_MOST_SHARED_BYTES = 8  # CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
_LEAST_BLOCK = 1e-3  # seconds between two events, so that the time of an event is nothing beside it


class GpuError(Exception):
    """The driver is missing, or one of its calls failed."""


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
    """A function of a module, its blocks and threads, its dynamic shared memory, and the addresses that it gets."""

    function: ctypes.c_void_p
    grid: Sequence[int]
    block: Sequence[int]
    shared_bytes: int
    overlaps: bool
    operands: Sequence[int]


class Gpu:
    """The first GPU of the process: its primary context, current in this thread, and a stream.

    Attributes:
        stream: all work goes there.

    Raises:
        GpuError: there is no driver, or no GPU.
    """

    def __init__(self) -> None:
        try:
            self._cuda = ctypes.CDLL("libcuda.so.1")
        except OSError as error:
            raise GpuError(f"there is no NVIDIA driver: {error}") from error
        self.call("cuInit", 0)
        self._device, context, self.stream = ctypes.c_int(), ctypes.c_void_p(), ctypes.c_void_p()
        self.call("cuDeviceGet", ctypes.byref(self._device), 0)
        self.call("cuDevicePrimaryCtxRetain", ctypes.byref(context), self._device)
        self.call("cuCtxPushCurrent_v2", context)
        self.call("cuStreamCreate", ctypes.byref(self.stream), _NON_BLOCKING)
        self._events = [ctypes.c_void_p(), ctypes.c_void_p()]
        for event in self._events:
            self.call("cuEventCreate", ctypes.byref(event), 0)

    def call(self, name: str, *arguments: Any) -> None:
        """Calls a function of the driver.

        Raises:
            GpuError: it failed.
        """
        code = self._cuda[name](*arguments)
        if code:
            raise GpuError(f"{name} failed with CUDA's error {code}")

    def describe(self) -> dict[str, Any]:
        """Name and numbers of the GPU and the driver; the bandwidth is clock x width x 2, as of the data sheet."""
        name, version = ctypes.create_string_buffer(256), ctypes.c_int()
        self.call("cuDeviceGetName", name, len(name), self._device)
        self.call("cuDriverGetVersion", ctypes.byref(version))
        return {
            "name": name.value.decode(),
            "driver": f"CUDA {version.value // 1000}.{version.value % 1000 // 10}",
            "capability": 10 * self._attribute(_MAJOR) + self._attribute(_MINOR),
            "multiprocessors": self._attribute(_MULTIPROCESSORS),
            "gigahertz": self._attribute(_CLOCK_KHZ) / 1e6,
            "l2_bytes": self.l2_bytes,
            "gigabytes_a_second": 2e3 * self._attribute(_MEMORY_KHZ) * self._attribute(_BUS_BITS) / 8 / 1e9,
        }

    @property
    def l2_bytes(self) -> int:
        """Size of the level-2 cache."""
        return self._attribute(_L2_BYTES)

    def _attribute(self, number: int) -> int:
        value = ctypes.c_int()
        self.call("cuDeviceGetAttribute", ctypes.byref(value), number, self._device)
        return value.value

    def memory(self, size: int) -> int:
        """The address of `size` new bytes."""
        address = ctypes.c_uint64()
        self.call("cuMemAlloc_v2", ctypes.byref(address), ctypes.c_size_t(max(size, 4)))
        return address.value

    def free(self, address: int) -> None:
        self.call("cuMemFree_v2", ctypes.c_uint64(address))

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
        """Loads machine code."""
        module = ctypes.c_void_p()
        self.call("cuModuleLoadData", ctypes.byref(module), ctypes.c_char_p(image))
        return module

    def function(self, module: ctypes.c_void_p, name: str) -> ctypes.c_void_p:
        """A kernel of a module."""
        function = ctypes.c_void_p()
        self.call("cuModuleGetFunction", ctypes.byref(function), module, name.encode())
        return function

    def graph(self, launches: Sequence[LaunchOf], *, overlapping: bool = False) -> ctypes.c_void_p:
        """The launches, one after the other, as a graph.

        Args:
            launches: of kernels that wait for their inputs themselves, see `launches.cuh`.
            overlapping: those that do so in networks start before the one before them has ended, from Hopper on.
        """
        graph, executable = ctypes.c_void_p(), ctypes.c_void_p()
        programmatic = _Attribute(_PROGRAMMATIC, (ctypes.c_uint64 * 8)(1))
        overlapping &= self._attribute(_MAJOR) >= _HOPPER
        self.call("cuStreamBeginCapture_v2", self.stream, _THREAD_LOCAL)
        try:
            for launch in launches:
                operands = [ctypes.c_uint64(address) for address in launch.operands]
                pointers = [ctypes.cast(ctypes.pointer(operand), ctypes.c_void_p) for operand in operands]
                arguments = (ctypes.c_void_p * len(operands))(*pointers)
                if launch.shared_bytes:
                    self.call("cuFuncSetAttribute", launch.function, _MOST_SHARED_BYTES, launch.shared_bytes)
                grid, block = (ctypes.c_uint * 3)(*launch.grid), (ctypes.c_uint * 3)(*launch.block)
                attributes = ctypes.pointer(programmatic)
                config = _Config(
                    grid, block, launch.shared_bytes, self.stream, attributes, overlapping and launch.overlaps
                )
                self.call("cuLaunchKernelEx", ctypes.byref(config), launch.function, arguments, None)
        finally:
            self.call("cuStreamEndCapture", self.stream, ctypes.byref(graph))
        self.call("cuGraphInstantiateWithFlags", ctypes.byref(executable), graph, ctypes.c_uint64(0))
        self.call("cuGraphDestroy", graph)
        return executable

    def destroy(self, graph: ctypes.c_void_p) -> None:
        """Frees a graph."""
        self.call("cuGraphExecDestroy", graph)

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
    end, times = time.perf_counter() + budget, []
    while len(times) < 5 or time.perf_counter() < end:
        times.append(block(runs))
        if len(times) >= 200:
            break
    return statistics.median(times)
