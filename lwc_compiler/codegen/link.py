"""The C compiler: found on the system or in the `ziglang` package, used to compile the entry points and to link."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lwc_compiler.errors import ToolchainError

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True)
class Compiler:
    """A C compiler driver.

    Attributes:
        command: how it is started.
        version: the first line of its `--version`.
    """

    command: tuple[str, ...]
    version: str


def find_compiler() -> Compiler:
    """The compiler `CC` names, else the system's `cc`, `gcc` or `clang`, else the `ziglang` package's.

    Raises:
        ToolchainError: there is none, or the one `CC` names does not run.
    """
    chosen = os.environ.get("CC")
    candidates: list[tuple[str, ...]] = (
        [tuple(chosen.split())] if chosen else [(name,) for name in ("cc", "gcc", "clang") if shutil.which(name)]
    )
    if not chosen and importlib.util.find_spec("ziglang"):
        candidates.append((sys.executable, "-m", "ziglang", "cc"))
    for command in candidates:
        try:
            answer = subprocess.run([*command, "--version"], capture_output=True, text=True, check=False)
        except OSError:
            continue
        if answer.returncode == 0:
            return Compiler(command, answer.stdout.splitlines()[0].strip())
    found = f"CC={chosen!r} does not run" if chosen else "no cc, gcc or clang on the PATH, and no ziglang package"
    raise ToolchainError(f"linking needs a C compiler: {found}; install one, or `pip install lwc-compiler[zig]`")


def link_library(compiler: Compiler, files: Mapping[str, bytes], hidden: tuple[str, ...] = ()) -> bytes:
    """Compiles and links a shared library; the same files give the same bytes.

    Args:
        compiler: from `find_compiler`.
        files: file name -> contents; every `.c` and `.o` is compiled in, others are there to be included.
        hidden: patterns of symbols the library keeps to itself.

    Raises:
        ToolchainError: the compiler failed; the message ends with what it said.
    """
    with tempfile.TemporaryDirectory(prefix="lwc-") as folder:
        for name, contents in files.items():
            (Path(folder) / name).write_bytes(contents)
        (Path(folder) / "symbols.map").write_text(
            "{ local: " + " ".join(f"{s};" for s in hidden) + " };\n", encoding="utf-8"
        )
        sources = [name for name in files if name.endswith((".c", ".o"))]
        command = [
            *compiler.command, "-std=c11", "-D_POSIX_C_SOURCE=200809L", "-O2", "-fPIC", "-shared", "-pthread",
            "-fvisibility=hidden", "-Wall", "-Wextra", "-Wl,--build-id=none", "-Wl,-s", "-Wl,-z,noexecstack",
            "-Wl,--version-script=symbols.map",
            *sources, "-lm", "-o", "library.so",
        ]  # fmt: skip
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            said, name = done.stderr.strip()[-2000:], " ".join(compiler.command)
            raise ToolchainError(f"{name} could not link the library (exit {done.returncode}):\n{said}")
        return (Path(folder) / "library.so").read_bytes()
