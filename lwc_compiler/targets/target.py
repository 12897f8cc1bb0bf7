"""What code can be made for: plain data, so that kernels, schedules and cost models ask the target, never its name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Target:
    """Hardware that machine code is made for.

    Attributes:
        name: what users type, e.g. `x86-64-v3`.
        family: the module of this package that declares the target.
        triple: LLVM target triple.
        cpu: LLVM CPU name.
        features: instruction sets the code uses, by the names of GCC's `__builtin_cpu_supports`; with variants, those
            that the least demanding one uses.
        vector_bits: width of a vector register, in bits.
        vector_registers: number of vector registers.
        l1_bytes: level-1 data cache of one core, in bytes.
        l2_bytes: level-2 cache of one core, in bytes.
        description: one line for `lwc targets`.
        threads: that share the tiles of a kernel.
        variants: targets that the library has code for, the least demanding first, to choose from when it runs; none:
            this one alone.
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

    def llvm(self) -> dict[str, str]:
        """TVM's description of this target."""
        return {"kind": "llvm", "mtriple": self.triple, "mcpu": self.cpu}


class Family(Protocol):
    """What a module of this package provides."""

    @property
    def TARGETS(self) -> tuple[Target, ...]:  # noqa: N802 - a constant of the module
        """The family's targets, the most capable last but for those with variants."""

    def host_features(self) -> frozenset[str]:
        """Instruction sets of this machine, by GCC's names; none where it is not of this family."""

    def host_cpu(self) -> str:
        """Which CPU this machine has, as exactly as timings depend on it; empty where it is not of this family."""
