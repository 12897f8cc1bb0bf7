"""Runs an artifact from Python: the shared library by ctypes, NumPy arrays in and out."""

from __future__ import annotations

import _ctypes
import ctypes
import math
import os
import tempfile
import threading
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lwc_compiler.errors import ArtifactError, DataError, OptionError, TargetError
from lwc_compiler.runtime.artifact import Artifact, read_artifact
from lwc_compiler.targets import find_target, missing_features, missing_platform

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from typing_extensions import Self

    from lwc_compiler.codegen.result import Lowered, TensorSpec

ALIGNMENT_BYTES = 64


def load(directory: str | Path, threads: int | None = None) -> Session:
    """Opens an artifact for running.

    Args:
        directory: what compile wrote.
        threads: threads of the session, at least 1; None: what the artifact was compiled for.

    Raises:
        ArtifactError: the artifact is missing, damaged, or newer than this lwc.
        OptionError: `threads` is below 1.
        TargetError: this machine cannot run the artifact's code.
    """
    return open_session(read_artifact(directory), threads)


def open_session(artifact: Artifact, threads: int | None = None) -> Session:
    """What `load` does, for an artifact that is read and checked already."""
    manifest = artifact.manifest
    target = find_target(manifest.target)
    if target.source:
        raise TargetError(f"{artifact.directory} is C source: compile it into a program, as its README.md says")
    other = missing_platform(target)
    if other:
        raise TargetError(
            f"{artifact.directory} is for {manifest.target} ({other}), which this machine is not: run it there, or by "
            "--via qemu or --via ssh://USER@HOST"
        )
    if target.gpu is not None:
        from lwc_compiler.runtime.device_session import DeviceSession

        threads = manifest.threads if threads is None else threads
        return DeviceSession(artifact.library, manifest.symbol, manifest.inputs, manifest.outputs, threads)
    return Session(
        artifact.library,
        manifest.symbol,
        manifest.inputs,
        manifest.outputs,
        manifest.threads if threads is None else threads,
        manifest.target,
        artifact.weights,
    )


def open_lowered(lowered: Lowered, threads: int) -> Session:
    """A session of a library in memory, for this machine, on `threads` threads."""
    assert lowered.library is not None
    with tempfile.TemporaryDirectory(prefix="lwc-") as folder:
        library = Path(folder) / find_target(lowered.target).library_file(lowered.name)
        library.write_bytes(lowered.library)
        if find_target(lowered.target).gpu is not None:
            from lwc_compiler.runtime.device_session import DeviceSession

            return DeviceSession(library, lowered.symbol, lowered.inputs, lowered.outputs, threads)
        weights = None
        if lowered.weights is not None:
            weights = Path(folder) / f"{lowered.name}.weights"
            weights.write_bytes(lowered.weights)
        return Session(library, lowered.symbol, lowered.inputs, lowered.outputs, threads, lowered.target, weights)


class Network(ABC):
    """A compiled network that can be run; a context manager.

    Attributes:
        inputs: name, dtype and shape of every input.
        outputs: name, dtype and shape of every output.
        threads: threads that a run uses.
    """

    def __init__(self, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...], threads: int) -> None:
        if threads < 1:
            raise OptionError(f"threads is {threads}: at least 1")
        self.inputs = inputs
        self.outputs = outputs
        self.threads = threads
        self._takes = tuple((spec.name, np.dtype(spec.dtype), spec.shape) for spec in inputs)

    @abstractmethod
    def run(self, inputs: Mapping[str, NDArray[np.generic]]) -> dict[str, NDArray[np.generic]]:
        """Computes the outputs.

        Args:
            inputs: input name -> array of exactly the input's dtype and shape; any strides.

        Returns:
            Output name -> new array.

        Raises:
            DataError: an input is missing, unknown, or of another dtype or shape.
            ArtifactError: the session is closed, or the library reports an error.
            TargetError: the network runs elsewhere, and that went wrong.
        """

    @abstractmethod
    def close(self) -> None:
        """Frees what the network holds."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def arrays(self, inputs: Mapping[str, NDArray[np.generic]]) -> list[NDArray[np.generic]]:
        """The inputs in the order of the library, dense and row-major.

        Raises:
            DataError: one is missing, unknown, or of another dtype or shape.
        """
        arrays = []
        for name, dtype, shape in self._takes:
            array = inputs.get(name)
            if type(array) is not np.ndarray or array.dtype != dtype or array.shape != shape:
                array = self._accept(name, dtype, shape, array)
            arrays.append(array if array.flags.c_contiguous else np.ascontiguousarray(array))
        if len(inputs) != len(self._takes):
            unknown = ", ".join(f"'{name}'" for name in inputs if name not in {spec.name for spec in self.inputs})
            raise DataError(f"the model has no input {unknown}; its inputs are {self._signature()}")
        return arrays

    def _accept(
        self, name: str, dtype: np.dtype[np.generic], shape: tuple[int, ...], value: object
    ) -> NDArray[np.generic]:
        """`value` as an array when it fits the input; lists, scalars and subclasses of arrays are welcome."""
        if value is None:
            raise DataError(f"input '{name}' is missing; the model's inputs are {self._signature()}")
        array: NDArray[np.generic] = np.asarray(value)
        if array.dtype != dtype:
            raise DataError(
                f"input '{name}' is {array.dtype}; the model takes {dtype}: convert it with .astype('{dtype}')"
            )
        if array.shape != shape:
            raise DataError(f"input '{name}' has shape {list(array.shape)}; the model was compiled for {list(shape)}")
        return array

    def _signature(self) -> str:
        return ", ".join(f"'{spec.name}' ({spec.dtype} {list(spec.shape)})" for spec in self.inputs)


class Session(Network):
    """A loaded library with its workspace and its thread pool.

    Calls of `run` from several threads are safe: they take turns. To run at the same time, load the artifact once for
    each thread. A session frees its pool and library when it is closed or no longer used.
    """

    def __init__(
        self,
        path: Path,
        symbol: str,
        inputs: tuple[TensorSpec, ...],
        outputs: tuple[TensorSpec, ...],
        threads: int,
        target: str,
        weights: Path | None = None,
    ) -> None:
        self._set_tensors(inputs, outputs, threads)
        self._functions: Functions
        self._functions = self._library = library = _Library(path, symbol, weights=weights is not None)
        if not library.cpu_supported():
            library.close()
            raise TargetError(_unsupported_cpu(target))
        # Without a pool the library runs on the calling thread.
        self._pool = library.pool_create(threads) if threads > 1 else None
        if threads > 1 and not self._pool:
            library.close()
            raise TargetError(f"this machine could not start {threads} threads: ask for fewer")
        self._close: weakref.finalize[..., Session] = weakref.finalize(self, _free, library, self._pool)
        # One block of bytes that holds an aligned workspace; NumPy alone promises 16 bytes.
        self._memory = np.empty(library.workspace_bytes(threads) + ALIGNMENT_BYTES, np.uint8)
        self._workspace = ctypes.c_void_p(-(-self._memory.ctypes.data // ALIGNMENT_BYTES) * ALIGNMENT_BYTES)
        # Values of ctypes, which a call takes as they are.
        self._passed: tuple[object, ...] = (
            *self._mapped(weights),
            self._arguments,
            self._results,
            self._workspace,
            ctypes.c_size_t(library.workspace_bytes(threads)),
            ctypes.c_void_p(self._pool),
        )

    def _set_tensors(self, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...], threads: int) -> None:
        """What the network takes and gives, and the pointers to both that a run passes."""
        super().__init__(inputs, outputs, threads)
        self._lock = threading.Lock()
        self._arguments = (ctypes.c_void_p * len(inputs))()
        self._results = (ctypes.c_void_p * len(outputs))()
        self._gives = tuple((spec.name, np.dtype(spec.dtype), spec.shape, _memory_of(spec)) for spec in outputs)

    def run(self, inputs: Mapping[str, NDArray[np.generic]]) -> dict[str, NDArray[np.generic]]:
        return self._call(self._functions.run, self._passed, inputs)

    def profile(self, inputs: Mapping[str, NDArray[np.generic]]) -> NDArray[np.float64]:
        """Runs the network once and gives the seconds of each of its steps, and then of the copies of its tensors.

        The manifest's `programs` say what the steps are, see `target`.

        Raises:
            DataError, ArtifactError: see `run`.
        """
        seconds = np.zeros(self._functions.step_count() + 1)
        self._call(self._functions.profile, (*self._passed, ctypes.c_void_p(seconds.ctypes.data)), inputs)
        return seconds

    @property
    def target(self) -> str:
        """The target whose code runs: of those that the library has code for, the most capable that this CPU can."""
        name: bytes = self._functions.target()
        return name.decode()

    def use_target(self, name: str) -> None:
        """Makes this and other sessions of the library in this process run the code for a target of less capable CPUs.

        Raises:
            TargetError: the library has no code for it, or this CPU cannot run it.
        """
        if not self._library.use_target(name.encode()):
            raise TargetError(f"the library has no code for {name} that this CPU can run")

    def _call(
        self, function: Callable[..., int], passed: tuple[object, ...], inputs: Mapping[str, NDArray[np.generic]]
    ) -> dict[str, NDArray[np.generic]]:
        """Calls one of the library's functions that compute the outputs."""
        arrays = self.arrays(inputs)
        outputs: dict[str, NDArray[np.generic]] = {}
        addresses = []
        for name, dtype, shape, make in self._gives:
            # Memory of ctypes gives away its address much faster than an array does.
            memory = make()
            outputs[name] = np.ndarray(shape, dtype, memory)  # type: ignore[arg-type]  # any buffer will do
            addresses.append(ctypes.addressof(memory))
        with self._lock:
            if not self._close.alive:
                raise ArtifactError("the session is closed: load the artifact again")
            for index, array in enumerate(arrays):
                self._arguments[index] = _address(array)
            for index, address in enumerate(addresses):
                self._results[index] = address
            code = function(*passed)
        if code:
            raise ArtifactError(f"the library failed: {self._functions.error_string(code).decode()} (code {code})")
        return outputs

    def _mapped(self, weights: Path | None) -> tuple[ctypes.c_void_p, ...]:
        """What a run takes before all else: the address of the file of weights, where there is one.

        Raises:
            ArtifactError: it is not the library's.
        """
        if weights is None:
            return ()
        self._weights = np.memmap(weights, np.uint8, "r")
        address = ctypes.c_void_p(self._weights.ctypes.data)
        code = self._library.check_weights(address, self._weights.size)
        if code:
            said = self._library.error_string(code).decode()
            self.close()
            raise ArtifactError(f"{weights}: {said}; compile the model again")
        return (address,)

    def close(self) -> None:
        """Stops the threads and unloads the library; waits for a run that is under way."""
        with self._lock:
            self._close()


def _memory_of(spec: TensorSpec) -> type[ctypes.Array[ctypes.c_char]]:
    return ctypes.c_char * max(1, math.prod(spec.shape) * np.dtype(spec.dtype).itemsize)


def _address(array: NDArray[np.generic]) -> int:
    # Several times as quick as `array.ctypes`; needs a buffer that can be written and has a first byte.
    if array.flags.writeable and array.size:
        return ctypes.addressof(ctypes.c_char.from_buffer(array))  # type: ignore[arg-type]  # an array is a buffer
    return array.ctypes.data


class Functions:
    """The C functions that every library has; its header documents them."""

    def __init__(self, path: Path, symbol: str) -> None:
        # The loader takes a path it has seen for the library it has loaded, although the file may be a new one: so
        # every session opens the file by a name of its own.
        with tempfile.TemporaryDirectory(prefix="lwc-") as folder:
            link = Path(folder) / path.name
            link.symlink_to(path.resolve())
            try:
                self._opened = ctypes.CDLL(os.fspath(link))
            except OSError as error:
                raise ArtifactError(f"{path} cannot be loaded on this machine: {error}") from error
        self._path, self._symbol = path, symbol
        self.run = self.function("run")
        self.profile = self.function("profile")
        self.step_count = self.function("step_count")
        self.target = self.function("target")
        self.error_string = self.function("error_string")
        self.target.restype = ctypes.c_char_p
        self.error_string.argtypes, self.error_string.restype = [ctypes.c_int], ctypes.c_char_p

    def function(self, name: str) -> Any:
        """A function of the library, whose name has the model's prefix.

        Raises:
            ArtifactError: there is none.
        """
        try:
            return self._opened[f"{self._symbol}_{name}"]
        except AttributeError as error:
            self.close()
            raise ArtifactError(
                f"{self._path} lacks a function of the model: {error}; compile the model again"
            ) from None

    def close(self) -> None:
        """Unloads the library."""
        _ctypes.dlclose(self._opened._handle)


class _Library(Functions):
    """The C functions of a library for processors."""

    def __init__(self, path: Path, symbol: str, *, weights: bool) -> None:
        super().__init__(path, symbol)
        pointer = ctypes.c_void_p
        if weights:
            self.check_weights = self.function("check_weights")
            self.check_weights.argtypes = [pointer, ctypes.c_size_t]
        self.use_target = self.function("use_target")
        self.workspace_bytes = self.function("workspace_bytes")
        self.cpu_supported = self.function("cpu_supported")
        self.pool_create = self.function("pool_create")
        self.pool_destroy = self.function("pool_destroy")
        self.use_target.argtypes = [ctypes.c_char_p]
        self.workspace_bytes.argtypes, self.workspace_bytes.restype = [ctypes.c_int], ctypes.c_size_t
        self.pool_create.argtypes, self.pool_create.restype = [ctypes.c_int], pointer
        self.pool_destroy.argtypes, self.pool_destroy.restype = [pointer], None


def _free(library: _Library, pool: int | None) -> None:
    if pool:
        library.pool_destroy(pool)
    library.close()


def _unsupported_cpu(target: str) -> str:
    missing = ", ".join(missing_features(find_target(target))) or "what it needs"
    return f"this CPU cannot run code for {target}: it lacks {missing}; compile with --target host on this machine"
