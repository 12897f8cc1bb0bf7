"""RISC-V: 64 bits under Linux, with and without vectors; 32-bit microcontrollers with a float unit."""

from __future__ import annotations

from lwc_compiler.targets.host import first_cpu
from lwc_compiler.targets.target import ALL_WEIGHT_TYPES, Core, Target

# Estimates, not checked: SiFive's U74, in order, one float unit; SpacemiT's X60, whose vectors are as
# wide as two of the target's, likewise.
_U74 = Core(1, 1, 2, 5, in_order=True, near_line=12, far_line=60)
_X60 = Core(1, 1, 2, 5, in_order=True, near_line=12, far_line=60)

_MACHINES = ("riscv64",)
# QEMU's processor has more than the targets.
_EMULATED = "rv64,zba=false,zbb=false,zbc=false,zbs=false"


def _rv64(name: str, core: Core, extensions: str, bits: int, features: str, description: str) -> Target:
    return Target(
        name=name,
        family="riscv",
        triple="riscv64-unknown-linux-gnu",
        cpu="generic-rv64",
        features=frozenset(features.split()),
        vector_bits=bits,
        vector_registers=32,
        l1_bytes=32 << 10,
        l2_bytes=512 << 10,
        description=description,
        machines=_MACHINES,
        zig="riscv64-linux-gnu.2.28",
        core=core,
        zig_cpu="generic_rv64" + extensions.replace(" ", ""),
        emulator=("qemu-riscv64", "-cpu", _EMULATED + (",v=true,vlen=128" if "v" in features else ",v=false")),
        llvm_options=(("mattr", tuple(extensions.split())), ("mabi", "lp64d")),
    )


TARGETS = (
    Target(
        name="rv32imafc",
        family="riscv",
        triple="riscv32-unknown-none-elf",
        cpu="generic-rv32",
        features=frozenset(),
        vector_bits=32,
        vector_registers=32,
        l1_bytes=8 << 10,
        l2_bytes=64 << 10,
        description="32-bit microcontrollers with a float unit: ESP32-P4",
        os="none",
        core=Core(1, 1, 1, 4, in_order=True),
        zig="riscv32-freestanding-none",
        zig_cpu="generic_rv32+m+a+f+c",
        llvm_options=(("mattr", ("+m", "+a", "+f", "+c")), ("mabi", "ilp32f")),
        weight_types=ALL_WEIGHT_TYPES,
    ),
    _rv64("riscv64", _U74, "+m +a +f +d +c", 32, "", "64-bit RISC-V (rv64gc) under Linux: VisionFive 2"),
    _rv64("rv64gcv", _X60, "+m +a +f +d +c +v", 128, "v", "the same with vectors of 128 bits or more: K1, SG2044"),
)


def host_features() -> frozenset[str]:
    """The letters of this machine's instruction set, as Linux gives them; none on other machines."""
    isa = first_cpu(_MACHINES).get("isa", "").removeprefix("rv64").partition("_")[0]
    return frozenset(isa)


def host_cpu() -> str:
    """Microarchitecture and instruction set of this CPU; empty on other machines."""
    cpu = first_cpu(_MACHINES)
    return " ".join(cpu[key] for key in ("uarch", "mvendorid", "marchid", "isa") if key in cpu)
