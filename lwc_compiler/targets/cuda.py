"""NVIDIA GPUs, by compute capability.

Sizes, clocks (boost) and rates are those of the data sheets; a target without a board stands for a common GPU of its
compute capability.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from typing import Any

from lwc_compiler.targets.target import Gpu, Target

_MB = 1 << 20
_HOST: dict[str, Any] = {
    "family": "cuda",
    "cpu": "",
    "vector_bits": 32,
    "vector_registers": 255,
}
_X86: dict[str, Any] = {
    "triple": "x86_64-unknown-linux-gnu",
    "machines": ("x86_64", "AMD64"),
    "zig": "x86_64-linux-gnu.2.28",
    "zig_cpu": "x86_64",
}
_ARM: dict[str, Any] = {
    "triple": "aarch64-unknown-linux-gnu",
    "machines": ("aarch64",),
    "zig": "aarch64-linux-gnu.2.28",
    "zig_cpu": "generic",
}


def _target(capability: int, gpu: Gpu, l1_bytes: int, description: str, host: dict[str, Any] = _X86) -> Target:
    name = f"sm_{capability}"
    return Target(
        name=f"cuda:{name}",
        features=frozenset({name}),
        l1_bytes=l1_bytes,
        l2_bytes=gpu.l2_bytes,
        description=description,
        gpu=gpu,
        **_HOST,
        **host,
    )


_ONE = (
    _target(75, Gpu((75,), 40, 64, 1.59, 320.0, 4 * _MB, 512), 64 << 10, "Turing: T4, RTX 20"),
    _target(80, Gpu((80,), 108, 64, 1.41, 1555.0, 40 * _MB, 1024), 164 << 10, "Ampere: A100, A30"),
    _target(86, Gpu((86,), 72, 128, 1.7, 600.0, 6 * _MB, 512), 100 << 10, "Ampere: A10, RTX 30"),
    _target(
        87, Gpu((87,), 16, 128, 1.3, 204.8, 4 * _MB, 1024), 164 << 10, "Ampere: Jetson Orin, 64-bit Arm Linux", _ARM
    ),
    _target(89, Gpu((89,), 58, 128, 2.04, 300.0, 48 * _MB, 512), 100 << 10, "Ada: L4, L40, RTX 40"),
    _target(90, Gpu((90,), 132, 128, 1.98, 3350.0, 50 * _MB, 2048), 228 << 10, "Hopper: H100, H200"),
    _target(100, Gpu((100,), 148, 128, 1.96, 8000.0, 126 * _MB, 4096), 228 << 10, "Blackwell: B200"),
    _target(120, Gpu((120,), 170, 128, 2.41, 1792.0, 96 * _MB, 256), 100 << 10, "Blackwell: RTX 50"),
)
# The kernels of a library for all of them are chosen as for an A100.
_ALL = Gpu((75, 80, 86, 89, 90, 100, 120), 108, 64, 1.41, 1555.0, 40 * _MB, 1024, ptx=True)
TARGETS = (
    *_ONE,
    replace(
        _ONE[1],
        name="cuda",
        features=frozenset({"cuda"}),
        gpu=_ALL,
        description="Turing to Blackwell in one library, and what comes later",
    ),
)


def host_features() -> frozenset[str]:
    """Of the targets' features, those whose code this machine's first GPU runs; none without a GPU and its driver."""
    gpu = host_gpu()
    if gpu is None:
        return frozenset()
    return frozenset(
        feature
        for target in TARGETS
        if target.gpu is not None and target.gpu.code_for(gpu["capability"]) is not None
        for feature in target.features
    )


def host_cpu() -> str:
    """This machine's first GPU, its clocks and its driver."""
    gpu = host_gpu()
    if gpu is None:
        return ""
    return (
        f"{gpu['name']}, sm_{gpu['capability']}, {gpu['multiprocessors']} multiprocessors, {gpu['gigahertz']:g} GHz, "
        f"{gpu['gigabytes_a_second']:.0f} GB/s, {gpu['driver']}"
    )


@lru_cache(maxsize=1)
def host_gpu() -> dict[str, Any] | None:
    """What the driver says of this machine's first GPU, see `Device.describe`; None without one."""
    from lwc_compiler.runtime.device_driver import Device, GpuError

    try:
        return Device().describe()
    except GpuError:
        return None
