"""Runs kernels for GPUs on the CPU: the same TIR as OpenCL C, by PoCL."""

import math
import warnings

import numpy as np
import pytest

from lwc_compiler.codegen.device_build import compile_device, written_parameters
from lwc_compiler.codegen.program import BufferRef, Ref, Stage
from lwc_compiler.kernels.kernel import Constant, Input, Kernel, Plan, Scratch

_READ_ONLY, _WRITABLE = 0xFFFFFFFF, 0xFFA5A5A5  # NaNs as float32, as in `harness`
_GUARD_BYTES = 4096
# PoCL's optimizer makes wrong code on processors that are newer than it (seen on AMD's family 25, model 17): kernels
# crash there or give other sums, which are right without it, and by the emulator of CUDA.
_OPTIONS = ["-cl-opt-disable"]
# Functions that TVM calls by their names in C.
_C_NAMES = "#define atanf atan\n#define tanf tan\n"


class Device:
    """The CPU as an OpenCL device."""

    def __init__(self) -> None:
        reason = "pyopencl and pocl-binary-distribution run kernels for GPUs on the CPU"
        pytest.importorskip("pocl_binary_distribution", reason=reason)
        self.cl = pytest.importorskip("pyopencl", reason=reason)
        (pocl,) = [p for p in self.cl.get_platforms() if p.name == "Portable Computing Language"]
        self.context = self.cl.Context(pocl.get_devices())
        self.queue = self.cl.CommandQueue(self.context)

    def build(self, kernels: dict[str, Kernel]) -> dict[str, object]:
        """Symbol -> kernel that can be launched."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what PoCL's compiler says
            program = self.cl.Program(self.context, _C_NAMES + compile_device(kernels, "opencl")).build(_OPTIONS)
        return {symbol: self.cl.Kernel(program, symbol) for symbol in kernels}

    def launch(self, function, kernel: Kernel, buffers: "list[DeviceBuffer]") -> None:
        launch = kernel.launch
        sizes = tuple(n * m for n, m in zip(launch.grid, launch.block, strict=True))
        function(self.queue, sizes, launch.block, *(buffer.part for buffer in buffers))
        self.queue.finish()


class _Part:
    """A buffer from a byte on: a copy, where that is not its beginning, since OpenCL has such parts at few places."""

    def __init__(self, device: Device, buffer: "DeviceBuffer", first: int) -> None:
        self._device, self._buffer, self._first = device, buffer, first
        self.part = buffer.part
        if first:
            self._bytes = buffer.size - first
            self.part = device.cl.Buffer(device.context, device.cl.mem_flags.READ_WRITE, self._bytes)
            device.cl.enqueue_copy(device.queue, self.part, buffer.part, src_offset=first, byte_count=self._bytes)

    def put_back(self) -> None:
        """Makes what was written to it the buffer's."""
        if self._first:
            to, queue = self._buffer.part, self._device.queue
            self._device.cl.enqueue_copy(queue, to, self.part, dst_offset=self._first, byte_count=self._bytes)


class DeviceBuffer:
    """Memory of `size` bytes in the middle of NaNs and filled with them."""

    def __init__(self, device: Device, size: int, contents: np.ndarray | None = None) -> None:
        whole = -(-max(size, 4) // _GUARD_BYTES) * _GUARD_BYTES + 2 * _GUARD_BYTES
        self.size, self.read_only, self._device = size, contents is not None, device
        self._before = np.full(whole // 4, _WRITABLE if contents is None else _READ_ONLY, np.uint32).view(np.uint8)
        if contents is not None:
            flat = np.ascontiguousarray(contents).reshape(-1).view(np.uint8)
            self._before[_GUARD_BYTES : _GUARD_BYTES + size] = flat
        flags = device.cl.mem_flags.READ_WRITE | device.cl.mem_flags.COPY_HOST_PTR
        self._whole = device.cl.Buffer(device.context, flags, hostbuf=self._before)
        self.part = self._whole.get_sub_region(_GUARD_BYTES, max(size, 4))

    @classmethod
    def of(cls, device: Device, array: np.ndarray) -> "DeviceBuffer":
        """A read-only copy of the array."""
        return cls(device, array.nbytes, array)

    def read(self, what: str) -> np.ndarray:
        """The bytes in it; nothing was written outside of it, and nothing at all when it is read-only."""
        now = np.empty_like(self._before)
        self._device.cl.enqueue_copy(self._device.queue, now, self._whole)
        changed = now != self._before
        if not self.read_only:
            changed[_GUARD_BYTES : _GUARD_BYTES + self.size] = False
        outside = np.flatnonzero(changed)
        assert not outside.size, f"{what}: bytes {outside[:4] - _GUARD_BYTES} of {self.size} were overwritten"
        return now[_GUARD_BYTES : _GUARD_BYTES + self.size]


def run_plan(device: Device, plan: Plan, inputs: list[np.ndarray], shape: tuple[int, ...]) -> np.ndarray:
    """The plan's output, float32."""
    functions = device.build({f"k{i}": step.kernel for i, step in enumerate(plan.steps)})
    used = {f"input {i}": DeviceBuffer.of(device, x) for i, x in enumerate(inputs)}
    used |= {f"scratch {i}": DeviceBuffer(device, size) for i, size in enumerate(plan.scratch)}
    output = DeviceBuffer(device, 4 * int(np.prod(shape)))
    for number, (step, function) in enumerate(zip(plan.steps, functions.values(), strict=True)):
        buffers = []
        for position, operand in enumerate(step.args):
            if isinstance(operand, Constant):
                name = f"step {number}, constant {position}"
                used[name] = DeviceBuffer.of(device, operand.array)
            elif isinstance(operand, (Input, Scratch)):
                name = f"{'input' if isinstance(operand, Input) else 'scratch'} {operand.index}"
            buffers.append(used[name] if isinstance(operand, (Constant, Input, Scratch)) else output)
        device.launch(function, step.kernel, buffers)
    for what, buffer in used.items():
        buffer.read(what)
    return output.read("output").view(np.float32).reshape(shape)


def run_stage(device: Device, stage: Stage, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What a stage computes, call by call, each buffer in memory of its own."""
    functions = device.build(stage.kernels)
    buffers = [DeviceBuffer(device, size) for size in stage.buffers]
    constants = [DeviceBuffer.of(device, constant) for constant in stage.constants]
    for spec, ref in stage.inputs:
        buffers[ref.index] = DeviceBuffer.of(device, inputs[spec.name])

    def at(ref: Ref) -> DeviceBuffer:
        return buffers[ref.index] if isinstance(ref, BufferRef) else constants[ref.index]

    for call in stage.calls:
        parts = [_Part(device, at(ref), ref.first if isinstance(ref, BufferRef) else 0) for ref in call.args]
        device.launch(functions[call.symbol], stage.kernels[call.symbol], parts)
        for number in written_parameters(stage.kernels[call.symbol].func):
            parts[number].put_back()
    for number, buffer in enumerate([*buffers, *constants]):
        buffer.read(f"buffer {number}")
    return {
        spec.name: at(ref)
        .read(spec.name)[: math.prod(spec.shape) * np.dtype(spec.dtype).itemsize]
        .view(spec.dtype)
        .reshape(spec.shape)
        for spec, ref in stage.outputs
    }
