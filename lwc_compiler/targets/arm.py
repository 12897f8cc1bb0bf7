"""Processors of Arm: AArch64 and ARMv7 under Linux and macOS, Cortex-M without an operating system.

Code for SVE takes its vectors to be at least as long as the target's: `sve256` promises it.

Sizes of caches are those of the usual chip with the core (rpi3, rpi4, rpi5, Graviton 2 and 3 among them); a level-2
cache that cores share counts as one core's.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lwc_compiler.targets.host import first_cpu
from lwc_compiler.targets.target import ALL_WEIGHT_TYPES, Core, Target

# Estimates. Multiply-adds, loads and latency of Cortex-A72 and Neoverse N1 are those of LLVM's models, and those of
# Cortex-A53, which loads 64 bits in a cycle, of measurements (`kernels/in_order.py`); no other number was checked
# against a model, a guide or a processor. Cortex-A7, A8 and A9 are taken to multiply 32 or 64.
_A53 = Core(1, 0.5, 2, 8, in_order=True, near_line=12, far_line=60, by_lane=True)
_A72 = Core(1, 1, 3, 4, by_lane=True, assembly=True)
_A76 = Core(2, 2, 4, 4, near_line=6, far_line=20, by_lane=True, assembly=True)
_V1 = Core(2, 2, 8, 4, near_line=4, far_line=20)  # in vectors of SVE, whose multiply-adds take no lane of a whole one
_M1 = Core(4, 3, 8, 4, near_line=4, far_line=20, by_lane=True)
_A7 = Core(0.25, 0.5, 2, 8, in_order=True, near_line=12, far_line=60)
_A9 = Core(0.5, 0.5, 2, 9, in_order=True, near_line=12, far_line=60)

# LLVM takes multiply-adds apart on a Cortex-A7, as one that waits for the last is slow; ours do not wait.
_ARMV7_ATTRIBUTES = ("+neon", "-slowfpvfmx")

_SVE_BYTES = Path("/proc/sys/abi/sve_default_vector_length")
_AARCH64_MACHINES = ("aarch64", "arm64")
_ARMV7_MACHINES = ("armv7l", "armv8l")


def _aarch64(name: str, cpu: str, core: Core, l1: int, l2: int, features: str, description: str, **more: Any) -> Target:
    return Target(
        name=name,
        family="arm",
        cpu=cpu,
        features=frozenset(features.split()),
        vector_registers=32,
        l1_bytes=l1 << 10,
        l2_bytes=l2 << 10,
        description=description,
        machines=_AARCH64_MACHINES,
        zig_cpu=cpu.replace("-", "_"),
        core=core,
        **{
            "triple": "aarch64-unknown-linux-gnu",
            "zig": "aarch64-linux-gnu.2.28",
            "vector_bits": 128,
            "emulator": ("qemu-aarch64", "-cpu", cpu),
            **more,
        },
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
        emulator=("qemu-arm", "-cpu", cpu),
        core=core,
        llvm_options=(("mattr", _ARMV7_ATTRIBUTES), ("mfloat-abi", "hard")),
    )


def _cortex_m(
    name: str,
    triple: str,
    float_unit: str,
    description: str,
    bits: int = 32,
    registers: int = 32,
    attributes: str = "",
) -> Target:
    """A microcontroller; `float_unit` is what the C compiler, which leaves it out by default, calls its float unit."""
    options: tuple[tuple[str, Any], ...] = (
        ("mfloat-abi", "hard"),
        ("vector-width", 128),
    )  # TVM warns that it assumes so otherwise
    if attributes:
        options += (("mattr", tuple(attributes.split())),)
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
        zig="thumb-freestanding-eabihf",
        zig_cpu=f"{name.replace('-', '_')}+{float_unit}",
        llvm_options=options,
        weight_types=ALL_WEIGHT_TYPES,
        converts_half=True,  # each of these float units does
    )


TARGETS = (
    _cortex_m(
        "cortex-m4", "thumbv7em-none-eabihf", "vfp4d16sp", "microcontrollers with a float unit: STM32F4, nRF52840"
    ),
    _cortex_m(
        "cortex-m7",
        "thumbv7em-none-eabihf",
        "fp_armv8d16sp",
        "microcontrollers: STM32F7, STM32H7, i.MX RT",
        # Some have no double precision; LLVM's scheduler would put every load right before its use, which waits for it.
        attributes="-fp64 -use-misched",
    ),
    _cortex_m(
        "cortex-m33",
        "thumbv8m.main-none-eabihf",
        "fp_armv8d16sp",
        "microcontrollers with a float unit: RP2350, STM32U5, nRF5340",
    ),
    _cortex_m(
        "cortex-m55",
        "thumbv8.1m.main-none-eabihf",
        "fp_armv8d16+mve_fp",
        "microcontrollers with Helium vectors",
        128,
        8,
    ),
    _armv7("armv7", "cortex-a8", _A9, 256, "neon", "32-bit ARMv7-A with NEON, hard float, under Linux"),
    _armv7("cortex-a9", "cortex-a9", _A9, 512, "neon", "32-bit: Zynq-7000, i.MX6, Cyclone V"),
    _armv7(
        "cortex-a7", "cortex-a7", _A7, 512, "neon vfpv4", "32-bit with fused multiply-adds: Raspberry Pi 2, STM32MP1"
    ),
    _aarch64(
        "aarch64",
        "generic",
        _A72,
        32,
        512,
        "asimd",
        "any 64-bit ARMv8-A under Linux",
        emulator=("qemu-aarch64", "-cpu", "cortex-a53"),
    ),
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
        "asimd asimddp asimdhp atomics sve sve256",
        "Graviton 3: SVE with vectors of 256 bits",
        vector_bits=256,
        llvm_options=(("cl-opt", ("-aarch64-sve-vector-bits-min:uint=256",)),),
        emulator=("qemu-aarch64", "-cpu", "max"),  # QEMU knows the core itself since 8.1
    ),
    _aarch64(
        "apple-m1",
        "apple-m1",
        _M1,
        128,
        4096,
        "",
        "Macs with Apple silicon, under macOS",
        os="macos",
        emulator=(),
        triple="arm64-apple-macos11",
        zig="aarch64-macos.11.0",
    ),
)


def host_features() -> frozenset[str]:
    """Instruction sets of this machine as Linux calls them, and `sve256`; none on other machines."""
    features = first_cpu((*_AARCH64_MACHINES, *_ARMV7_MACHINES)).get("Features", "").split()
    wide = _SVE_BYTES.exists() and int(_SVE_BYTES.read_text(encoding="utf-8")) >= 256 // 8
    return frozenset([*features, *(["sve256"] if wide else [])])


def host_cpu() -> str:
    """Implementer, architecture, variant, part and revision of this CPU; empty on other machines."""
    cpu = first_cpu((*_AARCH64_MACHINES, *_ARMV7_MACHINES))
    keys = ("CPU implementer", "CPU architecture", "CPU variant", "CPU part", "CPU revision")
    return " ".join(cpu[key] for key in keys if key in cpu)
