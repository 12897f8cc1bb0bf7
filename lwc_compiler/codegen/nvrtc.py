"""CUDA C++ to machine code: by NVIDIA's run-time compiler, from PyPI, with neither a GPU nor the CUDA toolkit."""

from __future__ import annotations

import ctypes
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from importlib import metadata
from typing import TYPE_CHECKING

from lwc_compiler.errors import ToolchainError

if TYPE_CHECKING:
    from collections.abc import Iterable

PACKAGE = "nvidia-cuda-nvrtc"
_INSTALL = "`pip install lwc-compiler[cuda]`"
_ALONE = 90  # an architecture whose major version has no other: its code may have what is of no use to others
_USED = re.compile(
    r"Compiling entry function '(\w+)'.*?(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads"
    r".*?Used (\d+) registers",
    re.DOTALL,
)


@dataclass(frozen=True)
class Resources:
    """What a thread of a kernel uses.

    Attributes:
        registers: of 32 bits.
        stack_bytes: of its own memory: arrays that are no registers.
        spill_bytes: that are stored or loaded because registers did not do.
    """

    registers: int
    stack_bytes: int
    spill_bytes: int


@dataclass(frozen=True)
class Code:
    """Code for one architecture.

    Attributes:
        architecture: compute capability times ten.
        ptx: it is for the driver to translate, and not machine code.
        image: what `cuModuleLoadData` takes.
        resources: kernel -> what it uses; empty for PTX.
    """

    architecture: int
    ptx: bool
    image: bytes
    resources: dict[str, Resources]


def nvrtc_version() -> str:
    """The compiler and its version.

    Raises:
        ToolchainError: it is not installed, or cannot be loaded.
    """
    major, minor = ctypes.c_int(), ctypes.c_int()
    _library().nvrtcVersion(ctypes.byref(major), ctypes.byref(minor))
    return f"NVRTC {major.value}.{minor.value}"


def compile_all(source: str, architectures: Iterable[int], *, ptx: bool, threads: int = 1) -> list[Code]:
    """Machine code for every architecture, in order, and then, with `ptx`, PTX for the last.

    Args:
        source: CUDA C++ that includes nothing.
        architectures: compute capabilities times ten.
        ptx: code for later GPUs too.
        threads: that compile at the same time.

    Raises:
        ToolchainError: NVRTC is missing, is too old for an architecture, or refuses the source.
    """
    wanted = [(architecture, False) for architecture in architectures]
    if ptx:
        wanted.append((wanted[-1][0], True))
    _library()
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(lambda each: _compile(source, *each), wanted))


def _compile(source: str, architecture: int, ptx: bool) -> Code:
    library, program = _library(), ctypes.c_void_p()
    wanted = f"compute_{architecture}" if ptx else f"sm_{architecture}{'a' * (architecture == _ALONE)}"
    options = [f"--gpu-architecture={wanted}".encode(), b"--ptxas-options=-v", b"--std=c++17", b"-w"]
    code = library.nvrtcCreateProgram(ctypes.byref(program), source.encode(), b"kernels.cu", 0, None, None)
    if code:
        raise ToolchainError(f"NVRTC cannot compile: {_said(code)}")
    try:
        code = library.nvrtcCompileProgram(program, len(options), (ctypes.c_char_p * len(options))(*options))
        log = _read(program, "ProgramLog").rstrip(b"\0").decode(errors="replace")
        if code:
            raise ToolchainError(
                f"{nvrtc_version()} could not compile for sm_{architecture} ({_said(code)}); a newer {PACKAGE} may "
                f"know it: {_INSTALL}\n{log.strip()[-2000:]}"
            )
        image = _read(program, "PTX" if ptx else "CUBIN")
    finally:
        library.nvrtcDestroyProgram(ctypes.byref(program))
    used = {
        name: Resources(int(registers), int(stack), int(stores) + int(loads))
        for name, stack, stores, loads, registers in _USED.findall(log)
    }
    return Code(architecture, ptx, image, used)


def _read(program: ctypes.c_void_p, what: str) -> bytes:
    """One of the results of a compilation."""
    size = ctypes.c_size_t()
    _library()[f"nvrtcGet{what}Size"](program, ctypes.byref(size))
    result = ctypes.create_string_buffer(max(1, size.value))
    _library()[f"nvrtcGet{what}"](program, result)
    return result.raw


def _said(code: int) -> str:
    text: bytes = _library().nvrtcGetErrorString(code)
    return text.decode()


@lru_cache(maxsize=1)
def _library() -> ctypes.CDLL:
    try:
        files = metadata.files(PACKAGE) or []
    except metadata.PackageNotFoundError:
        raise ToolchainError(f"making code for GPUs needs the package {PACKAGE}: {_INSTALL}") from None
    paths = [str(file.locate()) for file in files if re.match(r"libnvrtc\.so\.\d+$", file.name)]
    if not paths:
        raise ToolchainError(
            f"the package {PACKAGE} has no libnvrtc for this machine: {_INSTALL} on x86-64 or Arm Linux"
        )
    try:
        library = ctypes.CDLL(paths[0])
    except OSError as error:
        raise ToolchainError(f"{paths[0]} cannot be loaded: {error}; {_INSTALL}") from error
    library.nvrtcGetErrorString.restype = ctypes.c_char_p
    return library
