"""C compilers: the system's for this machine, the `ziglang` package's for every other, to compile and to link."""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lwc_compiler.codegen.machine import machine_of, needed_flags, needed_machine
from lwc_compiler.errors import ToolchainError
from lwc_compiler.targets import missing_platform

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lwc_compiler.targets.target import Target

_ZIG = (sys.executable, "-m", "ziglang")
_WARNINGS = ("-Wall", "-Wextra")
# Debug information would name the temporary folder, so that equal files would not give equal bytes.
_FLAGS = ("-O2", "-g0", "-fPIC", "-fvisibility=hidden", *_WARNINGS)
# Small, at a fixed address (so that tables of pointers stay in flash), and what is not called can be left out.
_BARE_FLAGS = (
    "-Os", "-fno-pic", "-ffunction-sections", "-fdata-sections", "-fno-unwind-tables",
    "-fno-asynchronous-unwind-tables", "-g0", *_WARNINGS,
    "-fshort-enums",  # as GCC's default: its linker warns of objects without it, even if they have no enums
)  # fmt: skip
_PROBE = b"int probe(float x);\nint probe(float x) { return (int)x; }\n"


@dataclass(frozen=True)
class Compiler:
    """A C compiler driver.

    Attributes:
        command: how it is started, with what makes it compile for the target.
        version: the first line of its `--version`.
        archiver: how the program that makes static libraries is started.
        os: what the programs run under, see `Target`.
    """

    command: tuple[str, ...]
    version: str
    archiver: tuple[str, ...]
    os: str = "linux"

    @property
    def flags(self) -> tuple[str, ...]:
        """Flags to compile with; threads need C11's atomics."""
        if self.os == "none":
            return ("-std=c99", *_BARE_FLAGS)
        return ("-std=c11", "-D_POSIX_C_SOURCE=200809L", *_FLAGS)


def find_compiler(target: Target | None = None, cc: str | None = None, *, static: bool = False) -> Compiler:
    """A C compiler that makes code for `target`.

    For this machine it is the one that the environment's `CC` names, else the system's `cc`, `gcc` or `clang`; for
    another, and where the system has none, that of the `ziglang` package.

    Args:
        target: what the code runs on; None: this machine.
        cc: the command of a compiler to take instead, with its flags.
        static: programs are linked that hold their C library.

    Raises:
        ToolchainError: there is none, or the one that is named does not run, or makes code for another machine.
    """
    native = target is None or not missing_platform(target)
    chosen, name = (cc, "--cc ") if cc or not native else (os.environ.get("CC"), "CC=")
    system = ("linux" if sys.platform != "darwin" else "macos") if target is None else target.os
    candidates: list[tuple[tuple[str, ...], tuple[str, ...]]] = []
    if chosen:
        command = _words(chosen, name)
        candidates.append((command, (_archiver_of(command[0]),)))
    else:
        if native:
            candidates += [((name,), ("ar",)) for name in ("cc", "gcc", "clang") if shutil.which(name)]
        if importlib.util.find_spec("ziglang"):
            platform = [] if target is None or native else ["-target", target.zig, f"-mcpu={target.zig_cpu}"]
            if target is not None and static:
                # musl may be linked statically. It is built once a platform, which takes a while: not for every CPU.
                platform = ["-target", re.sub(r"gnu(\w*)[.\d]*$", r"musl\1", target.zig)]
            candidates.append(((*_ZIG, "cc", *platform), (*_ZIG, "ar")))
    for command, archiver in candidates:
        try:
            # Asked so, zig leaves an empty object file for macOS in the folder it is started in.
            with tempfile.TemporaryDirectory(prefix="lwc-") as folder:
                answer = subprocess.run(
                    [*command, "--version"], cwd=folder, capture_output=True, text=True, check=False
                )
        except OSError:
            continue
        if answer.returncode == 0:
            compiler = Compiler(command, answer.stdout.splitlines()[0].strip(), archiver, system)
            if chosen and target is not None and not native:
                _check_machine(compiler, chosen, target)
            return compiler
    if chosen:
        raise ToolchainError(f"linking needs a C compiler: {name}{chosen!r} does not run; name one that does")
    if native:
        raise ToolchainError(
            "linking needs a C compiler: no cc, gcc or clang on the PATH, and no ziglang package; install one, or "
            "`pip install lwc-compiler[zig]`"
        )
    assert target is not None
    raise ToolchainError(
        f"linking for {target.name} needs a C compiler for {target.triple}: there is no ziglang package; "
        "`pip install lwc-compiler[zig]`, or name a compiler with --cc"
    )


def _words(command: str, name: str) -> tuple[str, ...]:
    """The words of a command, as a shell splits it; it is started in other folders than this one."""
    try:
        words = tuple(shlex.split(command))
    except ValueError:  # a quotation that does not end
        words = ()
    if not words:
        raise ToolchainError(f"{name}{command!r} is no command: name a C compiler, and its flags, as for a shell")
    program = os.path.abspath(words[0]) if os.sep in words[0] else words[0]
    return (program, *words[1:])


def _check_machine(compiler: Compiler, command: str, target: Target) -> None:
    """Refuses a compiler for another machine: what it makes would be found out by the linker, if at all."""
    made = machine_of(compile_objects(compiler, {"probe.c": _PROBE})["probe.o"])
    needed, flags = needed_machine(target), needed_flags(target)
    if needed and made != needed:
        advice = f"with its flags, for example --cc {f'COMPILER {flags}'!r}" if flags else f"for {target.triple}"
        raise ToolchainError(
            f"--cc {command!r} makes code for {made}, and {target.name} needs code for {needed}: "
            f"name a compiler {advice}"
        )


def _archiver_of(compiler: str) -> str:
    """The `ar` that belongs to a compiler: arm-none-eabi-gcc has arm-none-eabi-ar."""
    stem = compiler
    for name in ("gcc", "clang", "cc"):
        if compiler.endswith(name):
            stem = compiler.removesuffix(name) + "ar"
            break
    return stem if stem != compiler and shutil.which(stem) else "ar"


def link_library(
    compiler: Compiler, files: Mapping[str, bytes], hidden: tuple[str, ...] = (), libraries: tuple[str, ...] = ("m",)
) -> bytes:
    """Links a shared library; the same files give the same bytes.

    Args:
        compiler: from `find_compiler`.
        files: file name -> contents; every `.o` is linked, every `.c` compiled before; others are there to be included.
        hidden: patterns of symbols the library keeps to itself.
        libraries: of the system that it needs beside the C library.

    Raises:
        ToolchainError: the compiler failed; the message ends with what it said.
    """
    with tempfile.TemporaryDirectory(prefix="lwc-") as folder:
        sources = _written(files, Path(folder))
        if compiler.os == "macos":
            linking = ["-Wl,-x"]
        else:
            patterns = " ".join(f"{pattern};" for pattern in hidden)
            (Path(folder) / "symbols.map").write_text(f"{{ local: {patterns} }};\n", encoding="utf-8")
            linking = [
                "-Wl,--build-id=none", "-Wl,-s", "-Wl,-z,noexecstack", "-Wl,--version-script=symbols.map"
            ]  # fmt: skip
        flags = [*compiler.flags, "-shared", "-pthread", *linking]
        _run(
            [*compiler.command, *flags, *sources, *(f"-l{name}" for name in libraries), "-o", "library.so"],
            folder,
            "could not link the library",
        )
        return (Path(folder) / "library.so").read_bytes()


def compile_objects(compiler: Compiler, files: Mapping[str, bytes]) -> dict[str, bytes]:
    """Compiles C files for a static and a shared library alike; the same files give the same bytes.

    Args:
        compiler: from `find_compiler`.
        files: as for `link_library`.

    Returns:
        Name -> contents of the object files, those that were given included, in the order of `files`.

    Raises:
        ToolchainError: the compiler failed; the message ends with what it said.
    """
    with tempfile.TemporaryDirectory(prefix="lwc-") as folder:
        objects = []
        for name in _written(files, Path(folder)):
            path = Path(name)
            objects.append(f"{path.stem}.o")
            if path.suffix == ".c":
                command = [*compiler.command, *compiler.flags, "-c", path.name, "-o", objects[-1]]
                _run(command, folder, "could not compile the library")
        return {name: (Path(folder) / name).read_bytes() for name in objects}


def make_archive(compiler: Compiler, objects: Mapping[str, bytes]) -> bytes:
    """Makes a static library of object files; the same files give the same bytes.

    Raises:
        ToolchainError: the archiver failed; the message ends with what it said.
    """
    with tempfile.TemporaryDirectory(prefix="lwc-") as folder:
        names = _written(objects, Path(folder))
        _run([*compiler.archiver, "rcsD", "library.a", *names], folder, "could not make the static library")
        return (Path(folder) / "library.a").read_bytes()


def link_program(compiler: Compiler, files: Mapping[str, bytes], flags: Sequence[str] = ()) -> bytes:
    """Compiles and links a program that needs nothing but the operating system.

    Args:
        compiler: from `find_compiler`, static.
        files: as for `link_library`; every `.a` is linked, too.
        flags: for the compiler, for example definitions.

    Raises:
        ToolchainError: the compiler failed; the message ends with what it said.
    """
    with tempfile.TemporaryDirectory(prefix="lwc-") as folder:
        sources = _written(files, Path(folder))
        command = [*compiler.command, *compiler.flags, "-static", "-pthread", *flags]
        _run([*command, *sources, "-lm", "-o", "program"], folder, "could not link a static program")
        return (Path(folder) / "program").read_bytes()


def _written(files: Mapping[str, bytes], folder: Path) -> list[str]:
    """Writes the files; gives the names of those to be compiled and linked in."""
    for name, contents in files.items():
        (folder / name).write_bytes(contents)
    return [name for name in files if name.endswith((".c", ".o", ".a"))]


def _run(command: Sequence[str], folder: str, complaint: str) -> None:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        said = done.stderr.strip()[-2000:]
        raise ToolchainError(f"{' '.join(command[:3])} {complaint} (exit {done.returncode}):\n{said}")
