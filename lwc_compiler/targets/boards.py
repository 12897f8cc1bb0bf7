"""Boards by name: a processor, and what there is of memory.

Of a microcontroller `ram_bytes` is the largest piece in one range of addresses, since the workspace is one piece.
"""

from __future__ import annotations

from dataclasses import dataclass

from lwc_compiler.targets.target import Gpu

_KB, _MB, _GB = 1 << 10, 1 << 20, 1 << 30


@dataclass(frozen=True)
class Board:
    """A board.

    Attributes:
        name: what users type.
        target: name of the target it is built around.
        ram_bytes: bytes of memory.
        flash_bytes: bytes of flash for code and weights; 0 where they come from a file system.
        description: one line for `lwc targets`.
        megahertz: highest clock of its processor, by the data sheet; 0: not stated.
        gpu: where its GPU is another than the one its target stands for.
    """

    name: str
    target: str
    ram_bytes: int
    flash_bytes: int
    description: str
    megahertz: int = 0
    gpu: Gpu | None = None


BOARDS = (
    Board("rpi-zero2", "cortex-a53", 512 * _MB, 0, "Raspberry Pi Zero 2 W, 64-bit Linux", 1000),
    Board("rpi3", "cortex-a53", 1 * _GB, 0, "Raspberry Pi 3, 64-bit Linux", 1200),
    Board("rpi4", "cortex-a72", 1 * _GB, 0, "Raspberry Pi 4, 64-bit Linux", 1500),
    Board("rpi5", "cortex-a76", 2 * _GB, 0, "Raspberry Pi 5, 64-bit Linux", 2400),
    Board("jetson-nano-cpu", "cortex-a57", 4 * _GB, 0, "Jetson Nano, its CPU alone", 1430),
    Board("imx8mm", "cortex-a53", 1 * _GB, 0, "i.MX 8M Mini evaluation kit, 64-bit Linux", 1800),
    Board("beaglebone", "armv7", 512 * _MB, 0, "BeagleBone Black (AM3358, Cortex-A8), 32-bit Linux", 1000),
    Board("stm32mp1", "cortex-a7", 512 * _MB, 0, "STM32MP157 discovery kit, 32-bit Linux", 650),
    Board("visionfive2", "riscv64", 2 * _GB, 0, "VisionFive 2 (JH7110), Linux", 1500),
    Board("stm32f4", "cortex-m4", 128 * _KB, 1 * _MB, "STM32F407: 112 + 16 KB of SRAM in one range", 168),
    Board("stm32f7", "cortex-m7", 320 * _KB, 1 * _MB, "STM32F746", 216),
    Board("stm32h7", "cortex-m7", 512 * _KB, 2 * _MB, "STM32H743: 512 KB of AXI SRAM", 480),
    Board("nrf52840", "cortex-m4", 256 * _KB, 1 * _MB, "nRF52840", 64),
    Board(
        "rp2350", "cortex-m33", 520 * _KB, 4 * _MB, "Raspberry Pi Pico 2 (RP2350, its Arm cores), flash over QSPI", 150
    ),
    Board("stm32u5", "cortex-m33", 768 * _KB, 2 * _MB, "STM32U585: SRAM1 to SRAM3", 160),
    Board("esp32p4", "rv32imafc", 768 * _KB, 16 * _MB, "ESP32-P4: its level-2 memory, flash over QSPI", 400),
    Board("mps2-an500", "cortex-m7", 4 * _MB, 4 * _MB, "Arm MPS2 with a Cortex-M7, as QEMU emulates it", 25),
    Board("mps3-an547", "cortex-m55", 2 * _MB, 512 * _KB, "Arm MPS3 with a Cortex-M55, as QEMU emulates it", 32),
    Board("t4", "cuda:sm_75", 16 * _GB, 0, "NVIDIA T4"),
    Board("a100", "cuda:sm_80", 40 * _GB, 0, "NVIDIA A100, 40 GB"),
    Board("l4", "cuda:sm_89", 24 * _GB, 0, "NVIDIA L4"),
    Board("h100", "cuda:sm_90", 80 * _GB, 0, "NVIDIA H100 SXM"),
    Board("h200", "cuda:sm_90", 141 * _GB, 0, "NVIDIA H200", gpu=Gpu((90,), 132, 128, 1.98, 4800.0, 50 * _MB, 2048)),
    Board(
        "rtx4090", "cuda:sm_89", 24 * _GB, 0, "GeForce RTX 4090", gpu=Gpu((89,), 128, 128, 2.52, 1008.0, 72 * _MB, 512)
    ),
    Board(
        "jetson-orin-nano",
        "cuda:sm_87",
        8 * _GB,
        0,
        "Jetson Orin Nano",
        gpu=Gpu((87,), 8, 128, 0.625, 68.0, 2 * _MB, 1024),
    ),
    Board("jetson-agx-orin", "cuda:sm_87", 64 * _GB, 0, "Jetson AGX Orin"),
)
