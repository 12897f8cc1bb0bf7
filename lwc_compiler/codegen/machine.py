"""What machine an object file is for: a compiler that the user names may make code for another than the target."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lwc_compiler.targets.target import Target

# By the beginning of LLVM's triple; other platforms have object files that are not ELF.
_MACHINES = {
    "x86_64": "x86-64",
    "aarch64": "AArch64",
    "armv7": "32-bit Arm with the hard-float ABI",
    "thumb": "Cortex-M with the hard-float ABI",
    "riscv32": "RISC-V with the ABI ilp32f",
    "riscv64": "RISC-V with the ABI lp64d",
}
_NAMES = {"EM_X86_64": "x86-64", "EM_386": "32-bit x86", "EM_AARCH64": "AArch64"}
# Of C compilers that make code for a whole family of processors.
_FLAGS = {"thumb": "-mcpu={cpu} -mthumb -mfloat-abi=hard", "riscv32": "-march=rv32imafc -mabi=ilp32f"}
_RISCV_FLOATS = ("", "f", "d", "q")  # RISC-V ELF psABI: EF_RISCV_FLOAT_ABI, bits 1 and 2 of e_flags
_MICROCONTROLLER, _VFP_REGISTERS = ord("M"), 1  # Addenda to the ABI for the Arm Architecture, build attributes


def needed_machine(target: Target) -> str:
    """What `machine_of` says of a target's object files; empty where they are not ELF."""
    return next((name for start, name in _MACHINES.items() if target.triple.startswith(start)), "")


def needed_flags(target: Target) -> str:
    """The flags by which a compiler for many processors makes code for a target; empty where there are none such."""
    flags = next((flags for start, flags in _FLAGS.items() if target.triple.startswith(start)), "")
    return flags.format(cpu=target.cpu)


def machine_of(contents: bytes) -> str:
    """The machine, and where it has several the ABI, that an object file is for."""
    from elftools.elf.elffile import ELFFile

    if not contents.startswith(b"\x7fELF"):
        return "another platform"
    elf = ELFFile(io.BytesIO(contents))
    machine = elf["e_machine"]
    if machine == "EM_ARM":
        attributes = arm_attributes(elf)
        core = "Cortex-M" if attributes.get("TAG_CPU_ARCH_PROFILE") == _MICROCONTROLLER else "32-bit Arm"
        floats = "hard" if attributes.get("TAG_ABI_VFP_ARGS") == _VFP_REGISTERS else "soft"
        return f"{core} with the {floats}-float ABI"
    if machine == "EM_RISCV":
        integers = "ilp32" if elf.elfclass == 32 else "lp64"
        return f"RISC-V with the ABI {integers}{_RISCV_FLOATS[elf['e_flags'] >> 1 & 3]}"
    return _NAMES.get(machine, str(machine))


def arm_attributes(elf: Any) -> dict[str, Any]:
    """The build attributes of an Arm object file, by pyelftools' names of them."""
    section = elf.get_section_by_name(".ARM.attributes")
    if section is None:
        return {}
    return {
        attribute.tag: attribute.value
        for vendor in section.iter_subsections()
        for part in vendor.iter_subsubsections()
        for attribute in part.iter_attributes()
    }
