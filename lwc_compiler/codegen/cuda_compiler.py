"""CUDA C++ to machine code by NVIDIA's compilers, with no GPU: NVRTC from PyPI, else the CUDA toolkit's nvcc."""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import subprocess
import tempfile
from abc import ABC, abstractmethod
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from lwc_compiler.errors import ToolchainError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

# Drivers for CUDA 13 run what CUDA 12's compiler made, and not the other way round: who has both wants the first.
PACKAGES = ("nvidia-cuda-nvrtc-cu12", "nvidia-cuda-nvrtc")
_INSTALL = "`pip install 'lwc-compiler[cuda]'`, or [cuda12] for drivers before 580"
_LEAST = (12, 5)  # whose PTX has all instructions of the kernels
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
        driver: least version of the driver that loads it, as `cuDriverGetVersion` says it.
        image: what `cuModuleLoadData` takes.
        resources: kernel -> what it uses; empty for PTX.
    """

    architecture: int
    ptx: bool
    driver: int
    image: bytes
    resources: dict[str, Resources]


class CudaCompiler(ABC):
    """One of NVIDIA's compilers; its text is its name and version.

    Attributes:
        name: as users know it.
        version: of CUDA.
        architectures: that it makes code for, compute capabilities times ten.
    """

    name: str
    version: tuple[int, int]
    architectures: frozenset[int]

    def __str__(self) -> str:
        return f"{self.name} {self.version[0]}.{self.version[1]}"

    @abstractmethod
    def compile(self, source: str, options: Sequence[str], *, ptx: bool) -> tuple[bytes, str]:
        """The image, and what the compiler says.

        Raises:
            ToolchainError: it refuses the source, with what it says.
        """


def find_cuda_compiler(architectures: Sequence[int]) -> CudaCompiler:
    """The compiler for these compute capabilities (times ten): the first one found that knows all.

    NVRTC of CUDA 12 and that of CUDA 13, of their packages, and nvcc where CUDA_HOME or CUDA_PATH says, on PATH, or
    where CUDA's toolkit is installed by default.

    Raises:
        ToolchainError: there is none, or all are too old, or one cannot be loaded.
    """
    refused = []
    for compiler in _installed():
        unknown = sorted(set(architectures) - compiler.architectures)
        if compiler.version >= _LEAST and not unknown:
            return compiler
        why = f"has no code for {', '.join(f'sm_{each}' for each in unknown)}" if unknown else "is too old"
        refused.append(f"{compiler} {why}")
    if not refused:
        raise ToolchainError(f"making code for GPUs needs NVIDIA's compiler: {_INSTALL}, or CUDA's nvcc on PATH")
    raise ToolchainError(
        f"{'; '.join(refused)}: {_INSTALL}, gives a newer compiler (at least CUDA {_LEAST[0]}.{_LEAST[1]}); or give a "
        "target for other GPUs, as cuda:sm_90"
    )


def compile_all(source: str, architectures: Sequence[int], *, ptx: bool, threads: int = 1) -> list[Code]:
    """Machine code for every architecture, in order, and then, with `ptx`, PTX for the last.

    Args:
        source: CUDA C++ that includes nothing.
        architectures: compute capabilities times ten.
        ptx: code for later GPUs too.
        threads: that compile at the same time.

    Raises:
        ToolchainError: as `find_cuda_compiler`, or the compiler refuses the source.
    """
    compiler = find_cuda_compiler(architectures)
    wanted = [(architecture, False) for architecture in architectures]
    if ptx:
        wanted.append((wanted[-1][0], True))
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(lambda each: _compile(compiler, source, *each), wanted))


def _compile(compiler: CudaCompiler, source: str, architecture: int, ptx: bool) -> Code:
    of = f"compute_{architecture}" if ptx else f"sm_{architecture}{'a' * (architecture == _ALONE)}"
    options = [f"--gpu-architecture={of}", "--ptxas-options=-v", "--std=c++17", "-w"]
    try:
        image, log = compiler.compile(source, options, ptx=ptx)
    except ToolchainError as error:
        raise ToolchainError(f"{compiler} could not compile for sm_{architecture}: {error}") from None
    used = {
        name: Resources(int(registers), int(stack), int(stores) + int(loads))
        for name, stack, stores, loads, registers in _USED.findall(log)
    }
    return Code(architecture, ptx, 1000 * compiler.version[0], image, used)


def _installed() -> Iterator[CudaCompiler]:
    """What is installed, in the order in which it is preferred."""
    for package in PACKAGES:
        if (path := _library_of(package)) is not None:
            yield _nvrtc(path)
    if (command := _find_nvcc()) is not None:
        yield _nvcc(command)


def _library_of(package: str) -> Path | None:
    """Where the NVRTC of a package is; None without the package."""
    try:
        files = metadata.files(package) or []
    except metadata.PackageNotFoundError:
        return None
    paths = [Path(str(file.locate())) for file in files if re.match(r"libnvrtc\.so\.\d+$", file.name)]
    if not paths:
        raise ToolchainError(
            f"the package {package} has no libnvrtc for this machine: {_INSTALL}, on x86-64 or Arm Linux"
        )
    return paths[0]


def _find_nvcc() -> Path | None:
    homes = [os.environ[name] for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
    for command in (*(f"{home}/bin/nvcc" for home in homes), "nvcc", "/usr/local/cuda/bin/nvcc"):
        if found := shutil.which(command):
            return Path(found)
    return None


@lru_cache
def _nvrtc(path: Path) -> Nvrtc:
    return Nvrtc(path)


@lru_cache
def _nvcc(path: Path) -> Nvcc:
    return Nvcc(path)


class Nvrtc(CudaCompiler):
    """NVIDIA's run-time compiler, a library."""

    name = "NVRTC"

    def __init__(self, path: Path) -> None:
        try:
            self._library = ctypes.CDLL(str(path))
        except OSError as error:
            raise ToolchainError(f"{path} cannot be loaded: {error}; {_INSTALL}") from error
        self._library.nvrtcGetErrorString.restype = ctypes.c_char_p
        major, minor, count = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
        self._library.nvrtcVersion(ctypes.byref(major), ctypes.byref(minor))
        self.version = major.value, minor.value
        self._library.nvrtcGetNumSupportedArchs(ctypes.byref(count))
        architectures = (ctypes.c_int * count.value)()
        self._library.nvrtcGetSupportedArchs(architectures)
        self.architectures = frozenset(architectures)

    def compile(self, source: str, options: Sequence[str], *, ptx: bool) -> tuple[bytes, str]:
        """See `CudaCompiler`."""
        library, program = self._library, ctypes.c_void_p()
        code = library.nvrtcCreateProgram(ctypes.byref(program), source.encode(), b"kernels.cu", 0, None, None)
        if code:
            raise ToolchainError(self._said(code))
        try:
            texts = [option.encode() for option in options]
            code = library.nvrtcCompileProgram(program, len(texts), (ctypes.c_char_p * len(texts))(*texts))
            log = self._read(program, "ProgramLog").rstrip(b"\0").decode(errors="replace")
            if code:
                raise ToolchainError(f"{self._said(code)}\n{log.strip()[-2000:]}")
            return self._read(program, "PTX" if ptx else "CUBIN"), log
        finally:
            library.nvrtcDestroyProgram(ctypes.byref(program))

    def _read(self, program: ctypes.c_void_p, what: str) -> bytes:
        """One of the results of a compilation."""
        size = ctypes.c_size_t()
        self._library[f"nvrtcGet{what}Size"](program, ctypes.byref(size))
        result = ctypes.create_string_buffer(max(1, size.value))
        self._library[f"nvrtcGet{what}"](program, result)
        return result.raw

    def _said(self, code: int) -> str:
        text: bytes = self._library.nvrtcGetErrorString(code)
        return text.decode()


class Nvcc(CudaCompiler):
    """The compiler of CUDA's toolkit, a command; it needs a C++ compiler beside it."""

    name = "nvcc"

    def __init__(self, path: Path) -> None:
        self._path = path
        version = re.search(r"release (\d+)\.(\d+)", self._run(["--version"]))
        if version is None:
            raise ToolchainError(f"{path} does not say which version it is; {_INSTALL} works without it")
        self.version = int(version[1]), int(version[2])
        self.architectures = frozenset(map(int, re.findall(r"compute_(\d+)$", self._run(["--list-gpu-arch"]), re.M)))

    def compile(self, source: str, options: Sequence[str], *, ptx: bool) -> tuple[bytes, str]:
        """See `CudaCompiler`."""
        with tempfile.TemporaryDirectory(prefix="lwc-nvcc-") as folder:
            text, image = Path(folder, "kernels.cu"), Path(folder, "image")
            text.write_text(source, encoding="utf-8")
            log = self._run([*options, "--ptx" if ptx else "--cubin", "-o", str(image), str(text)])
            return image.read_bytes(), log

    def _run(self, arguments: list[str]) -> str:
        """What the command says.

        Raises:
            ToolchainError: it cannot be started, or fails.
        """
        try:
            done = subprocess.run(
                [str(self._path), *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False
            )
        except OSError as error:
            raise ToolchainError(f"{self._path} cannot be started: {error}; {_INSTALL} works without it") from error
        said = done.stdout.decode(errors="replace")
        if done.returncode:
            raise ToolchainError(f"{self._path} ended with {done.returncode}\n{said.strip()[-2000:]}")
        return said
