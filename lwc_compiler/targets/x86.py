"""x86-64, by the micro-architecture levels of the System V ABI (x86-64 psABI 1.0, section 3.1.1, table 3.1)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from lwc_compiler.targets.host import first_cpu
from lwc_compiler.targets.target import Target

_MACHINES = ("x86_64", "AMD64")
# Linux calls these by other names than GCC.
_GCC_NAMES = {"abm": "lzcnt", "bmi1": "bmi"}
_PLATFORM: dict[str, Any] = {
    "family": "x86",
    "triple": "x86_64-unknown-linux-gnu",
    "machines": _MACHINES,
    "zig": "x86_64-linux-gnu.2.28",
}
_V3 = frozenset({"avx", "avx2", "bmi", "bmi2", "f16c", "fma", "lzcnt", "movbe"})
_V4 = _V3 | {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"}

_LEVELS = (
    Target(
        name="x86-64-v3",
        cpu="x86-64-v3",
        zig_cpu="x86_64_v3",
        features=_V3,
        vector_bits=256,
        vector_registers=16,
        l1_bytes=32 << 10,
        l2_bytes=256 << 10,
        description="AVX2 and FMA: Intel since Haswell (2013), AMD since Excavator (2015) and every Zen",
        **_PLATFORM,
    ),
    Target(
        name="x86-64-v4",
        cpu="x86-64-v4",
        zig_cpu="x86_64_v4",
        features=_V4,
        vector_bits=512,
        vector_registers=32,
        l1_bytes=32 << 10,
        l2_bytes=1 << 20,
        description="AVX-512 F, BW, CD, DQ and VL: Intel servers since Skylake-SP (2017), AMD since Zen 4 (2022)",
        **_PLATFORM,
    ),
)
TARGETS = (
    *_LEVELS,
    replace(
        _LEVELS[0],
        name="x86-64",
        description="AVX2 and AVX-512 code in one library, which takes what the processor has when it runs",
        variants=_LEVELS,
    ),
)


def host_features() -> frozenset[str]:
    """Instruction sets that this CPU has and the operating system lets programs use; none on other machines."""
    return frozenset(_GCC_NAMES.get(flag, flag) for flag in first_cpu(_MACHINES).get("flags", "").split())


def host_cpu() -> str:
    """Vendor, name, family, model and stepping of this CPU; empty on other machines."""
    cpu = first_cpu(_MACHINES)
    keys = ("vendor_id", "model name", "cpu family", "model", "stepping")
    return " ".join(cpu[key] for key in keys if key in cpu)
