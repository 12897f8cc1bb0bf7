"""What code can be made for: plain data, so that kernels, schedules and cost models ask the target, never its name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Protocol

ALL_WEIGHT_TYPES = ("float32", "float16", "int8")
Precision = Literal["float32", "tf32", "float16", "bfloat16"]


@dataclass(frozen=True)
class Core:
    """What bounds an inner loop on a core; each target's file says where its numbers come from.

    A vector is one of the target's `vector_bits`; a scalar where kernels are scalar.

    Attributes:
        multiplies: vector fused multiply-adds it starts in a cycle.
        loads: vectors it loads in a cycle.
        issue: instructions it starts in a cycle.
        latency: cycles from a multiply-add to the next one that adds to its result.
        in_order: it starts instructions in the order of the program, so that one that waits holds up all others.
        near_line: cycles to bring a cache line from the level-2 cache, with others on their way.
        far_line: the same from memory.
        by_lane: a multiply-add takes one lane of a vector as a factor; elsewhere weights are loaded one by one.
        assembly: loops over taps may be AArch64's instructions, see `kernels/short_loop.py`.
    """

    multiplies: float
    loads: float
    issue: float
    latency: float
    in_order: bool = False
    near_line: float = 8.0
    far_line: float = 30.0
    by_lane: bool = False
    assembly: bool = False


# Shared memory that a block can have (CUDA C++ Programming Guide, Technical Specifications per Compute Capability).
BLOCK_KILOBYTES = {75: 64, 80: 163, 86: 99, 87: 163, 89: 99, 90: 227, 100: 227, 120: 99}


@dataclass(frozen=True)
class Gpu:
    """An NVIDIA GPU, or several with one library.

    Attributes:
        architectures: compute capabilities that there is machine code for, times ten, ascending: 75 is sm_75.
        multiprocessors: how many.
        lanes: float32 multiply-adds of a multiprocessor in a cycle.
        gigahertz: its clock.
        gigabytes_a_second: bandwidth of its memory.
        l2_bytes: level-2 cache.
        tensor_lanes: float16 multiply-adds of a multiprocessor's tensor cores in a cycle, with sums in float32.
        precision: what factors are rounded to when layers are multiplied; sums are float32.
        ptx: the library also has code that the driver of a later GPU translates.
    """

    architectures: tuple[int, ...]
    multiprocessors: int
    lanes: int
    gigahertz: float
    gigabytes_a_second: float
    l2_bytes: int
    tensor_lanes: int
    precision: Precision = "float32"
    ptx: bool = False

    def code_for(self, capability: int) -> tuple[int, bool] | None:
        """Which code a GPU runs, as a library chooses it: the architecture, and whether it is PTX; None: it has none.

        Code for X.Y runs on X.Z with Z >= Y (CUDA C++ Programming Guide, Binary Compatibility), PTX on all later GPUs.

        Args:
            capability: the GPU's compute capability, times ten.
        """
        same = [each for each in self.architectures if each // 10 == capability // 10 and each <= capability]
        if same:
            return same[-1], False
        last = self.architectures[-1]
        return (last, True) if self.ptx and last <= capability else None

    @property
    def block_shared_bytes(self) -> int:
        """Shared memory that a block can have on each of the architectures."""
        return min(BLOCK_KILOBYTES[architecture] for architecture in self.architectures) << 10


@dataclass(frozen=True)
class Target:
    """Hardware that machine code is made for.

    Attributes:
        name: what users type, e.g. `x86-64-v3`.
        family: the module of this package that declares the target.
        triple: LLVM target triple.
        cpu: LLVM CPU name.
        features: instruction sets that a processor of the family may lack and the code uses, by the names the family's
            operating system or compiler has for them; with variants, those that the least demanding one uses.
        vector_bits: width of a vector register, in bits; 32 where kernels are scalar.
        vector_registers: number of vector registers; of float registers where kernels are scalar.
        l1_bytes: level-1 data cache of one core, in bytes; without caches, what a kernel may use of memory for itself.
        l2_bytes: the level-2 cache, as far as one core may count on it, in bytes.
        description: one line for `lwc targets`.
        threads: that share the tiles of a kernel.
        variants: targets that the library has code for, the least demanding first, to choose from when it runs; none:
            this one alone.
        os: what the code runs under; `none`: no operating system, no threads and no clock.
        machines: what Python's `platform.machine` says on machines that run the code; none where no Python runs.
        zig: what `zig cc -target` calls the platform; empty where only the machine's own compiler links.
        zig_cpu: what `zig cc -mcpu=` calls the processor.
        emulator: QEMU's program that runs what is made for the target, and its arguments that choose a processor with
            no more instructions; none where there is no such program.
        llvm_options: more entries of TVM's description of the target (`mattr`, `mabi`, `mfloat-abi`, `cl-opt`).
        core: what predictions of time rest on; none: on what was fitted to timings of x86-64.
        source: the code is C99 text for whatever compiler, and not machine code.
        flash_bytes: bytes of flash memory that code and weights have to fit; 0: not limited by the target.
        ram_bytes: bytes of memory; 0: not limited by the target.
        megahertz: clock of a board's processor; 0: not stated.
        gpu: what the network is computed on; None: the processor.
        weight_types: how kernels for it can store a weight, see `WeightType`.
        weight_type: how they do, where that is smaller.
        converts_half: the core converts float16 to float32 in one instruction.
    """

    name: str
    family: str
    triple: str
    cpu: str
    features: frozenset[str]
    vector_bits: int
    vector_registers: int
    l1_bytes: int
    l2_bytes: int
    description: str
    threads: int = 1
    variants: tuple[Target, ...] = ()
    os: Literal["linux", "macos", "none"] = "linux"
    machines: tuple[str, ...] = ()
    zig: str = ""
    zig_cpu: str = ""
    emulator: tuple[str, ...] = ()
    llvm_options: tuple[tuple[str, Any], ...] = ()
    core: Core | None = None
    source: bool = False
    flash_bytes: int = 0
    ram_bytes: int = 0
    megahertz: int = 0
    gpu: Gpu | None = None
    weight_types: tuple[str, ...] = ("float32",)
    weight_type: str = "float32"
    converts_half: bool = False

    def library_file(self, name: str) -> str:
        """File name of the shared library of a model called `name`."""
        return f"lib{name}.dylib" if self.os == "macos" else f"lib{name}.so"

    def llvm(self) -> dict[str, Any]:
        """TVM's description of this target."""
        options = {key: list(value) if isinstance(value, tuple) else value for key, value in self.llvm_options}
        return {"kind": "llvm", "mtriple": self.triple, "mcpu": self.cpu, **options}


class Family(Protocol):
    """What a module of this package provides."""

    @property
    def TARGETS(self) -> tuple[Target, ...]:  # noqa: N802 - a constant of the module
        """The family's targets, the most capable last but for those with variants."""

    def host_features(self) -> frozenset[str]:
        """Instruction sets of this machine, by the names the family's targets use; none where it is of another."""

    def host_cpu(self) -> str:
        """Which CPU, or GPU, this machine has, as exactly as timings depend on it; empty where it has none of them."""
