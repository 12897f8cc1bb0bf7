"""Processors of Arm: AArch64 and ARMv7 under Linux and macOS, Cortex-M without an operating system.

Sizes of caches are those of the usual chip with the core (rpi3, rpi4, rpi5, Graviton 2 and 3 among them); a level-2
cache that cores share counts as one core's.
"""

from __future__ import annotations

from typing import Any

from lwc_compiler.targets.host import first_cpu
from lwc_compiler.targets.target import Core, Target

# Estimates. Multiply-adds, loads and latency of Cortex-A72 and Neoverse N1 are those of LLVM's models; no other number
# was checked against a model, a guide or a processor. Cortex-A53 is taken to load 64 bits in a cycle (LLVM's
# model: 128), Cortex-A7, A8 and A9 to multiply 32 or 64.
_A53 = Core(1, 0.5, 2, 8, in_order=True, near_line=12, far_line=60, by_lane=True)
_A72 = Core(1, 1, 3, 4, by_lane=True)
_A76 = Core(2, 2, 4, 4, near_line=6, far_line=20, by_lane=True)
_V1 = Core(4, 3, 8, 4, near_line=4, far_line=20, by_lane=True)
_A7 = Core(0.25, 0.5, 2, 8, in_order=True, near_line=12, far_line=60)
_A9 = Core(0.5, 0.5, 2, 9, in_order=True, near_line=12, far_line=60)
# Cortex-M have no level-2 cache; the M55 does half a vector in a cycle.
_M4 = Core(1 / 3, 0.5, 1, 3, in_order=True)
_M7 = Core(1, 1, 2, 3, in_order=True)
_M55 = Core(0.5, 0.5, 1, 4, in_order=True)

# LLVM takes multiply-adds apart on a Cortex-A7, as one that waits for the last is slow; ours do not wait.
_ARMV7_ATTRIBUTES = ("+neon", "-slowfpvfmx")

_AARCH64_MACHINES = ("aarch64", "arm64")
_ARMV7_MACHINES = ("armv7l", "armv8l")


def _aarch64(name: str, cpu: str, core: Core, l1: int, l2: int, features: str, description: str, **more: Any) -> Target:
    return Target(
        name=name,
        family="arm",
        cpu=cpu,
        features=frozenset(features.split()),
        vector_bits=128,
        vector_registers=32,
        l1_bytes=l1 << 10,
        l2_bytes=l2 << 10,
        description=description,
        machines=_AARCH64_MACHINES,
        zig_cpu=cpu.replace("-", "_"),
        core=core,
        **{"triple": "aarch64-unknown-linux-gnu", "zig": "aarch64-linux-gnu.2.28", **more},
    )


def _armv7(name: str, cpu: str, core: Core, l2: int, features: str, description: str) -> Target:
    return Target(
        name=name,
        family="arm",
        triple="armv7-unknown-linux-gnueabihf",
        cpu=cpu,
        features=frozenset(features.split()),
        vector_bits=128,
        vector_registers=16,
        l1_bytes=32 << 10,
        l2_bytes=l2 << 10,
        description=description,
        machines=_ARMV7_MACHINES,
        zig="arm-linux-gnueabihf.2.28",
        zig_cpu=cpu.replace("-", "_"),
        core=core,
        llvm_options=(("mattr", _ARMV7_ATTRIBUTES), ("mfloat-abi", "hard")),
    )


def _cortex_m(name: str, core: Core, triple: str, description: str, bits: int = 32, registers: int = 32) -> Target:
    return Target(
        name=name,
        family="arm",
        triple=triple,
        cpu=name,
        features=frozenset(),
        vector_bits=bits,
        vector_registers=registers,
        l1_bytes=8 << 10,
        l2_bytes=64 << 10,
        description=description,
        os="none",
        core=core,
        zig="thumb-freestanding-eabihf",
        zig_cpu=name.replace("-", "_"),
        llvm_options=(("mfloat-abi", "hard"),),
    )


TARGETS = (
    _cortex_m("cortex-m4", _M4, "thumbv7em-none-eabihf", "microcontrollers with a float unit: STM32F4, nRF52840"),
    _cortex_m("cortex-m7", _M7, "thumbv7em-none-eabihf", "microcontrollers: STM32F7, STM32H7, i.MX RT"),
    _cortex_m(
        "cortex-m33", _M4, "thumbv8m.main-none-eabihf", "microcontrollers with a float unit: RP2350, STM32U5, nRF5340"
    ),
    _cortex_m("cortex-m55", _M55, "thumbv8.1m.main-none-eabihf", "microcontrollers with Helium vectors", 128, 8),
    _armv7("armv7", "cortex-a8", _A9, 256, "neon", "32-bit ARMv7-A with NEON, hard float, under Linux"),
    _armv7("cortex-a9", "cortex-a9", _A9, 512, "neon", "32-bit: Zynq-7000, i.MX6, Cyclone V"),
    _armv7(
        "cortex-a7", "cortex-a7", _A7, 512, "neon vfpv4", "32-bit with fused multiply-adds: Raspberry Pi 2, STM32MP1"
    ),
    _aarch64("aarch64", "generic", _A72, 32, 512, "asimd", "any 64-bit ARMv8-A under Linux"),
    _aarch64(
        "cortex-a53", "cortex-a53", _A53, 32, 512, "asimd", "in order, small: Raspberry Pi 3 and Zero 2, i.MX8M Mini"
    ),
    _aarch64("cortex-a57", "cortex-a57", _A72, 32, 2048, "asimd", "Jetson Nano and TX1"),
    _aarch64("cortex-a72", "cortex-a72", _A72, 32, 1024, "asimd", "Raspberry Pi 4, Graviton, LX2160A"),
    _aarch64(
        "cortex-a76",
        "cortex-a76",
        _A76,
        64,
        512,
        "asimd asimddp asimdhp atomics",
        "Raspberry Pi 5, RK3588's large cores",
    ),
    _aarch64("neoverse-n1", "neoverse-n1", _A76, 64, 1024, "asimd asimddp asimdhp atomics", "Graviton 2, Ampere Altra"),
    _aarch64(
        "neoverse-v1",
        "neoverse-v1",
        _V1,
        64,
        1024,
        "asimd asimddp asimdhp atomics sve",
        "Graviton 3; its four NEON units do as much as its two of SVE",
    ),
    _aarch64(
        "apple-m1",
        "apple-m1",
        _V1,
        128,
        4096,
        "",
        "Macs with Apple silicon, under macOS",
        os="macos",
        triple="arm64-apple-macos11",
        zig="aarch64-macos.11.0",
    ),
)


def host_features() -> frozenset[str]:
    """Instruction sets of this machine as Linux calls them; none on other machines."""
    return frozenset(first_cpu((*_AARCH64_MACHINES, *_ARMV7_MACHINES)).get("Features", "").split())


def host_cpu() -> str:
    """Implementer, architecture, variant, part and revision of this CPU; empty on other machines."""
    cpu = first_cpu((*_AARCH64_MACHINES, *_ARMV7_MACHINES))
    keys = ("CPU implementer", "CPU architecture", "CPU variant", "CPU part", "CPU revision")
    return " ".join(cpu[key] for key in keys if key in cpu)
