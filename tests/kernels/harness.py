"""What every kernel is tested for. Plans run as in the library, with buffers that show every access outside of them."""

import ctypes
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import NormalDist

import numpy as np
import tvm_ffi

from lwc_compiler.codegen.kernel_build import compile_kernels
from lwc_compiler.codegen.link import find_compiler, link_library
from lwc_compiler.kernels.kernel import ALIGNMENT_BYTES, SLACK_BYTES, Constant, Input, Moving, Output, Plan, Scratch
from lwc_compiler.kernels.layer import Activation, Epilogue
from lwc_compiler.targets import find_target, missing_features
from lwc_compiler.targets.target import Target

# A microcontroller's kernels, run here: without vectors, with memory for little.
SCALAR = replace(
    find_target("host"),
    name="scalar",
    vector_bits=32,
    vector_registers=32,
    l1_bytes=8 << 10,
    l2_bytes=64 << 10,
    os="none",
)
# Kernels as they are for the vectors of AArch64, as code that this machine runs.
NARROW = replace(
    find_target("x86-64-v3"),
    name="narrow",
    vector_bits=128,
    vector_registers=32,
    core=replace(find_target("cortex-a72").core, assembly=False),
)
TARGETS = [t for t in dict.fromkeys([find_target("x86-64-v3"), find_target("host")]) if not missing_features(t)]
DENSITIES = (0.0, 0.1, 0.5, 1.0, "blocks")
EPILOGUES = (
    "none",
    "bias",
    "bias_relu",
    "residual_clip",
    "bias_residual_leaky_relu",
    "bias_hard_sigmoid",
    "hard_swish",
    "bias_residual_gelu",
    "gelu",
)

# Both are NaNs as float32. As no result has these bits, a store outside of a buffer cannot leave them unchanged.
_READ_ONLY = 0xFFFFFFFF
_WRITABLE = 0xFFA5A5A5
_GUARD_BYTES = 4096


@dataclass
class Case:
    """One layer: how it is planned, its inputs, and the float64 result."""

    name: str
    plan: Callable[[Target], Plan]
    inputs: list[np.ndarray]
    expected: np.ndarray
    scale: float  # of the sums before the activation


@dataclass
class Built:
    """Plans of all cases, compiled to one library."""

    target: Target
    plans: dict[str, Plan] = field(default_factory=dict)
    functions: dict[str, list[Callable]] = field(default_factory=dict)


def variant(index: int, shift: int) -> tuple[object, str]:
    """Density and epilogue number `index`: as 5 and 9 have no common factor, every pair comes up."""
    return DENSITIES[(index + shift) % len(DENSITIES)], EPILOGUES[(index + 2 * shift) % len(EPILOGUES)]


def build(cases: list[Case], target: Target, folder: Path) -> Built:
    """Plans and compiles every case for the target."""
    built = Built(target, {case.name: case.plan(target) for case in cases})
    kernels = {
        (name, step): kernel
        for name, plan in built.plans.items()
        for step, kernel in enumerate(s.kernel for s in plan.steps)
    }
    symbols = {key: f"k{i}" for i, key in enumerate(kernels)}
    code = compile_kernels({symbols[key]: kernel for key, kernel in kernels.items()}, target.llvm())
    path = folder / "kernels.so"
    path.write_bytes(link_library(find_compiler(), {"kernels.o": code}, hidden=("__truncsfhf2",)))
    library = ctypes.CDLL(str(path))
    for (name, _), symbol in zip(kernels, symbols.values(), strict=True):
        function = library[symbol]
        function.restype = None
        built.functions.setdefault(name, []).append(function)
    return built


class Buffer:
    """Memory of `size` bytes at a 64-byte boundary, in the middle of NaNs and filled with them."""

    def __init__(self, size: int, poison: int) -> None:
        whole = -(-(size + SLACK_BYTES) // 64) * 64 + 2 * _GUARD_BYTES
        self.memory = np.full(whole // 4 + ALIGNMENT_BYTES // 4, poison, np.uint32).view(np.uint8)
        self.start = _GUARD_BYTES + -self.memory.ctypes.data % ALIGNMENT_BYTES
        self.size = size
        self.poison = self.memory.copy()

    @classmethod
    def of(cls, array: np.ndarray) -> "Buffer":
        """A read-only copy of the array."""
        buffer = cls(array.nbytes, _READ_ONLY)
        buffer.data[:] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        buffer.poison = buffer.memory.copy()
        buffer.memory.flags.writeable = False
        return buffer

    @property
    def data(self) -> np.ndarray:
        return self.memory[self.start : self.start + self.size]

    @property
    def pointer(self) -> ctypes.c_void_p:
        return ctypes.c_void_p(self.memory.ctypes.data + self.start)

    def check(self, what: str) -> None:
        """Nothing was written outside, and nothing at all when the buffer is read-only."""
        changed = self.memory != self.poison
        if self.memory.flags.writeable:
            changed[self.start : self.start + self.size] = False
        outside = np.flatnonzero(changed)
        assert not outside.size, f"{what}: bytes {outside[:4] - self.start} of {self.size} were overwritten"


def run(built: Built, case: Case, *, split: bool, over: bool = False) -> np.ndarray:
    """The plan's output.

    Args:
        built: the plans.
        case: one of them.
        split: every step computes its tiles in two calls, the second half first.
        over: the output takes the buffer of an input where the kernel allows it.
    """
    plan = built.plans[case.name]
    inputs = [Buffer.of(x) for x in case.inputs]
    scratch = [Buffer(size, _WRITABLE) for size in plan.scratch]
    output = Buffer(4 * case.expected.size, _WRITABLE)
    used = {"output": output, **{f"input {i}": b for i, b in enumerate(inputs)}}
    used |= {f"scratch {i}": b for i, b in enumerate(scratch)}
    number = turn = 0  # of the step, and of the pass of a loop
    while number < len(plan.steps):
        step, function, args = plan.steps[number], built.functions[case.name][number], []
        for position, operand in enumerate(step.args):
            offset = 0
            if isinstance(operand, Moving):
                offset, operand = operand.first + turn * operand.stride, operand.buffer
            if isinstance(operand, Constant):
                buffer = used[f"step {number}, constant {position}"] = Buffer.of(operand.array)
            elif isinstance(operand, Input):
                buffer = inputs[operand.index]
            elif isinstance(operand, Scratch):
                buffer = scratch[operand.index]
            else:
                assert operand == Output(0)
                buffer = output
            args.append(ctypes.c_void_p(buffer.pointer.value + offset))
        if over and step.kernel.over is not None:
            output.data[:] = inputs[step.args[step.kernel.over].index].data
            args[step.kernel.over] = output.pointer
        tiles, middle = step.kernel.tiles, (step.kernel.tiles + 1) // 3
        for part, (first, last) in enumerate([(middle, tiles), (0, middle)] if split else [(0, tiles)]):
            private = []
            if step.kernel.thread_bytes:
                buffer = used[f"step {number}, thread scratch {part}"] = Buffer(step.kernel.thread_bytes, _WRITABLE)
                private = [buffer.pointer]
            function(*args, *private, ctypes.c_int32(first), ctypes.c_int32(last))
        turn = (turn + 1) % step.passes if step.passes > 1 else turn
        number += -step.back if step.passes > 1 and turn else 1
    for what, buffer in used.items():
        buffer.check(what)
    return output.data.view(np.float32).reshape(case.expected.shape).copy()


class KernelTests:
    """The tests of every kernel: a module's test class inherits them and says which `cases` it has."""

    cases: list[Case]
    targets = tuple(TARGETS)
    vector_bits = 0  # of a target that can run them, at least
    scalar = False  # whether there are kernels without vectors

    def test_same_as_float64(self, built: Built, case: Case) -> None:
        """The result is the float64 reference, to 1e-5 of its scale; no NaN from outside a buffer gets into it."""
        error = np.abs(run(built, case, split=False) - case.expected)
        assert np.isfinite(error).all(), f"{np.isnan(error).sum()} of {error.size} results are not finite"
        assert error.max() <= 1e-5 * case.scale, f"error {error.max() / (case.scale or 1):.2g} of the scale"

    def test_tiles_can_be_split(self, built: Built, case: Case) -> None:
        """Tiles computed in two calls give the same bits, in the buffer of an input too where a kernel allows it."""
        whole, parts = run(built, case, split=False), run(built, case, split=True)
        assert np.array_equal(whole.view(np.uint32), parts.view(np.uint32))
        if any(step.kernel.over is not None for step in built.plans[case.name].steps):
            over = run(built, case, split=True, over=True)
            assert np.array_equal(whole.view(np.uint32), over.view(np.uint32))


def check_same_kernels(one: Plan, two: Plan) -> None:
    """Weights are data: where only they differ, the functions are the same and the library needs them once."""
    assert one.format == two.format
    for a, b in zip(one.steps, two.steps, strict=True):
        assert tvm_ffi.structural_equal(a.kernel.func, b.kernel.func)


def sparse(generator: np.random.Generator, shape: tuple[int, ...], density: object, axis: int) -> np.ndarray:
    """Weights with zeros at random; for `blocks`, in blocks of 4 along the axis of the output channels."""
    weight = generator.standard_normal(shape)
    if density == "blocks":
        mask = generator.random([-(-size // 4) if i == axis else size for i, size in enumerate(shape)]) < 0.25
        mask = np.repeat(mask, 4, axis).take(np.arange(shape[axis]), axis)
    else:
        mask = generator.random(shape) < density
    return (weight * mask).astype(np.float32)


def make_epilogue(generator: np.random.Generator, kind: str, channels: int) -> Epilogue:
    activation = {
        "relu": Activation("relu"),
        "clip": Activation("clip", -0.5, 0.75),
        "leaky_relu": Activation("leaky_relu", 0.1),
        "hard_sigmoid": Activation("hard_sigmoid", 0.2, 0.5),
        "hard_swish": Activation("hard_swish"),
        "gelu": Activation("gelu"),
    }
    bias = generator.standard_normal(channels).astype(np.float32) if "bias" in kind else None
    return Epilogue(bias, "residual" in kind, next((a for name, a in activation.items() if name in kind), None))


def finish(
    generator: np.random.Generator, sums: np.ndarray, epilogue: Epilogue, axis: int
) -> tuple[list[np.ndarray], np.ndarray, float]:
    """What an epilogue makes of float64 sums: further inputs, expected output, scale of the linear part."""
    y, further = sums, []
    if epilogue.bias is not None:
        y = y + epilogue.bias.astype(np.float64).reshape([-1 if i == axis else 1 for i in range(y.ndim)])
    if epilogue.residual:
        further.append(generator.standard_normal(y.shape).astype(np.float32))
        y = y + further[0]
    scale = float(np.abs(y).max())
    activation = epilogue.activation
    if activation is not None:
        low, high = activation.low, activation.high
        y = {
            "relu": lambda: np.maximum(y, 0),
            "clip": lambda: np.clip(y, low, high),
            "leaky_relu": lambda: np.where(y < 0, low * y, y),
            "hard_sigmoid": lambda: np.clip(low * y + high, 0, 1),
            "hard_swish": lambda: y * np.clip(y / 6 + 0.5, 0, 1),
            "gelu": lambda: y * np.vectorize(NormalDist().cdf)(y),
        }[activation.kind]()
        scale = max(scale, float(np.abs(y).max()))
    return further, y, scale
