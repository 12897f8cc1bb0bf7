"""Runs code for microcontrollers in QEMU: one program without an operating system, start-up code and all.

The program (`c/semihosting.c`) reads and writes files of this machine by semihosting calls. The compiler that links
libraries for the target links it, too.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lwc_compiler.codegen.link import find_compiler
from lwc_compiler.errors import ArtifactError, NotRunError, OptionError, ToolchainError
from lwc_compiler.runtime.network import Network

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import ArrayLike, NDArray

    from lwc_compiler.codegen.result import TensorSpec
    from lwc_compiler.runtime.linkable import Linkable
    from lwc_compiler.targets.target import Target

_RUN_SECONDS = 600
_FLAGS = ("-std=c99", "-Os", "-ffreestanding", "-fno-builtin", "-nostdlib", "-Wl,--gc-sections")


@dataclass(frozen=True)
class Machine:
    """A machine that QEMU emulates.

    Attributes:
        name: QEMU's name of it; `c/<name>.ld` says where its memory is.
        triples: LLVM's target triples of code that it runs.
        hertz: the clock that the program reads: the processor's, or the instructions that it counts.
        emulator: QEMU's program that emulates it.
        package: of Debian and Ubuntu that has the program.
        arguments: of the program, beside the machine's name.
    """

    name: str
    triples: tuple[str, ...]
    hertz: float
    emulator: str = "qemu-system-arm"
    package: str = "qemu-system-arm"
    arguments: tuple[str, ...] = ()


MACHINES = (
    Machine("mps2-an500", ("thumbv7em-none-eabihf",), 25e6),
    Machine("mps3-an547", ("thumbv8m.main-none-eabihf", "thumbv8.1m.main-none-eabihf"), 32e6),
    Machine(
        "virt",
        ("riscv32-unknown-none-elf",),
        1e9,
        "qemu-system-riscv32",
        "qemu-system-misc",
        ("-cpu", "sifive-e34", "-bios", "none"),  # the core has rv32imafc and no more
    ),
)


@dataclass(frozen=True)
class Emulation:
    """What a run in the emulator gave.

    Attributes:
        outputs: output name -> array.
        stack_bytes: the deepest the run's stack was, measured; that of the model's function and all that it calls.
        instructions: instructions that the run executed, to within about 40; None for more than half a billion.
    """

    outputs: dict[str, NDArray[np.generic]]
    stack_bytes: int
    instructions: int | None


class BoardSession(Network):
    """A network for a microcontroller that runs on an emulated board, one program a run.

    Attributes:
        where: the emulator.
        limit_seconds: a run that takes longer is ended.
    """

    def __init__(self, network: Linkable, threads: int) -> None:
        if threads != 1:
            raise OptionError(f"threads is {threads}: {network.target.name} has one")
        super().__init__(network.inputs, network.outputs, threads)
        self.where = machine_for(network.target).emulator
        self.limit_seconds = _RUN_SECONDS
        self._network = network

    def run(self, inputs: Mapping[str, ArrayLike]) -> dict[str, NDArray[np.generic]]:
        return emulate(self._network, inputs, timeout=self.limit_seconds).outputs

    def close(self) -> None:
        """Nothing is held."""


def emulate(network: Linkable, inputs: Mapping[str, ArrayLike], *, timeout: float) -> Emulation:
    """Runs a network for a microcontroller in the emulator, and measures the run.

    Args:
        network: for a Cortex-M or a 32-bit RISC-V.
        inputs: input name -> array of exactly the input's dtype and shape.
        timeout: seconds after which the emulator is stopped.

    Raises:
        DataError: an input is missing, unknown, or of another dtype or shape.
        NotRunError: no machine that is emulated here runs the code, or it took too long.
        ToolchainError: QEMU or the compiler is missing, or the program cannot be linked (it may not fit the memory of
            the emulated machine).
        ArtifactError: the program crashed, or says that the library failed.
    """
    machine = machine_for(network.target)
    arrays = BoardSession(network, 1).arrays(inputs)
    if not shutil.which(machine.emulator):
        raise ToolchainError(
            f"running code for {network.target.name} needs {machine.emulator}: install QEMU's emulators of whole "
            f"machines (Debian and Ubuntu: the package {machine.package})"
        )
    with tempfile.TemporaryDirectory(prefix="lwc-") as name:
        folder = Path(name)
        _link(network, machine, folder)
        (folder / "inputs").write_bytes(b"".join(array.tobytes() for array in arrays))
        _run(machine, folder, timeout)
        contents = (folder / "outputs").read_bytes()
        stack, ticks = np.fromfile(folder / "measured", np.uint32).tolist()
    outputs: dict[str, NDArray[np.generic]] = {}
    offset = 0
    for spec, size in zip(network.outputs, _sizes(network.outputs), strict=True):
        outputs[spec.name] = np.frombuffer(contents[offset : offset + size], spec.dtype).reshape(spec.shape).copy()
        offset += size
    # Every instruction takes a nanosecond of the machine's time (`-icount shift=0`).
    instructions = None if ticks == np.iinfo(np.uint32).max else round(ticks * 1e9 / machine.hertz)
    return Emulation(outputs, stack, instructions)


def machine_for(target: Target) -> Machine:
    """The emulated machine that runs a target's code.

    Raises:
        NotRunError: there is none.
    """
    for machine in MACHINES:
        if target.triple in machine.triples:
            return machine
    raise NotRunError(
        f"no machine that lwc emulates runs code for {target.name} ({target.triple}): it emulates Cortex-M4, M7, M33, "
        "M55 and rv32imafc"
    )


def _sizes(specs: Sequence[TensorSpec]) -> list[int]:
    return [int(np.prod(spec.shape, dtype=np.int64)) * np.dtype(spec.dtype).itemsize for spec in specs]


def _link(network: Linkable, machine: Machine, folder: Path) -> None:
    """Makes `program.elf` of a network in a folder."""
    if network.weights is not None:
        raise NotRunError("the emulated boards have no place for a file of weights: compile with --weights embed")
    sources = resources.files("lwc_compiler.runtime").joinpath("c")
    for file in ("semihosting.c", "cortex_m.h", "riscv32.h", "sections.ld", f"{machine.name}.ld"):
        (folder / file).write_bytes(sources.joinpath(file).read_bytes())
    defines = [
        f"-DMODEL={network.symbol}",
        "-DLWC_INPUT_BYTES=" + ",".join(map(str, _sizes(network.inputs))),
        "-DLWC_OUTPUT_BYTES=" + ",".join(map(str, _sizes(network.outputs))),
    ]
    (folder / f"{network.symbol}.h").write_bytes(network.header)
    (folder / "network.a").write_bytes(network.archive)
    command = [
        *find_compiler(network.target).command, *_FLAGS, *defines, "semihosting.c", "network.a",
        f"-Wl,-T,{machine.name}.ld", "-o", "program.elf",
    ]  # fmt: skip
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        said = done.stderr.strip()[-2000:]
        raise ToolchainError(f"the network cannot be linked into a program for {machine.name}:\n{said}")


def _run(machine: Machine, folder: Path, timeout: float) -> None:
    """Runs `program.elf` in a folder, where it finds `inputs` and leaves `outputs` and `measured`."""
    command = [
        machine.emulator, "-machine", machine.name, *machine.arguments,
        "-display", "none", "-monitor", "none", "-serial", "none", "-icount", "shift=0",
        "-semihosting-config", "enable=on,target=native", "-kernel", "program.elf",
    ]  # fmt: skip
    try:
        done = subprocess.run(
            command, cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise NotRunError(f"the program did not end within {timeout:g} seconds in {machine.name}") from error
    if done.returncode != 0:
        said = done.stderr.strip()[-2000:] or "it said nothing"
        raise ArtifactError(f"the program failed in {machine.name} (exit {done.returncode}): {said}")
