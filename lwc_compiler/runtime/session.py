"""Runs an artifact from Python: the shared library by ctypes, NumPy arrays in and out."""

from __future__ import annotations

import _ctypes
import ctypes
import os
import tempfile
import threading
import weakref
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

import numpy as np

from lwc_compiler.errors import ArtifactError, DataError, OptionError, TargetError
from lwc_compiler.runtime.artifact import read_artifact

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from lwc_compiler.codegen.result import TensorSpec

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
    artifact = read_artifact(directory)
    manifest = artifact.manifest
    return Session(
        artifact.library,
        manifest.symbol,
        manifest.inputs,
        manifest.outputs,
        manifest.workspace_bytes,
        manifest.threads if threads is None else threads,
        manifest.target,
    )


class Session:
    """A loaded library with its workspace and its thread pool.

    Calls of `run` from several threads are safe: they take turns. To run at the same time, load the artifact once for
    each thread. A session frees its pool and library when it is closed or no longer used; it works as a context manager.

    Attributes:
        inputs: name, dtype and shape of every input.
        outputs: name, dtype and shape of every output.
        threads: threads that a run uses.
    """

    def __init__(
        self,
        library: Path,
        symbol: str,
        inputs: tuple[TensorSpec, ...],
        outputs: tuple[TensorSpec, ...],
        workspace_bytes: int,
        threads: int,
        target: str,
    ) -> None:
        if threads < 1:
            raise OptionError(f"threads is {threads}: at least 1")
        self.inputs = inputs
        self.outputs = outputs
        self.threads = threads
        self._library = _open(library)
        self._lock = threading.Lock()
        # One block of bytes that holds an aligned workspace; NumPy alone promises 16 bytes.
        self._memory = np.empty(workspace_bytes + ALIGNMENT_BYTES, np.uint8)
        self._workspace = ctypes.c_void_p(-(-self._memory.ctypes.data // ALIGNMENT_BYTES) * ALIGNMENT_BYTES)
        self._arguments = (ctypes.c_void_p * len(inputs))()
        self._results = (ctypes.c_void_p * len(outputs))()
        self._slots = tuple((spec.name, np.dtype(spec.dtype), spec.shape) for spec in inputs)
        self._makers = tuple((spec.name, np.dtype(spec.dtype), spec.shape) for spec in outputs)
        try:
            self._run = self._function(f"{symbol}_run", ctypes.c_int, [ctypes.c_void_p] * 4)
            self._error_string = self._function(f"{symbol}_error_string", ctypes.c_char_p, [ctypes.c_int])
            destroy = self._function(f"{symbol}_pool_destroy", None, [ctypes.c_void_p])
            create = self._function(f"{symbol}_pool_create", ctypes.c_void_p, [ctypes.c_int])
            if not self._function(f"{symbol}_cpu_supported", ctypes.c_int, [])():
                raise TargetError(_unsupported_cpu(target))
            # Without a pool the library runs on the calling thread.
            self._pool = create(threads) if threads > 1 else None
            if threads > 1 and not self._pool:
                raise TargetError(f"this machine could not start {threads} threads: ask for fewer")
        except BaseException:
            _ctypes.dlclose(self._library._handle)
            raise
        self._close = weakref.finalize(self, _free, self._library._handle, destroy, self._pool)

    def run(self, inputs: Mapping[str, NDArray[np.generic]]) -> dict[str, NDArray[np.generic]]:
        """Computes the outputs.

        Args:
            inputs: input name -> array of exactly the input's dtype and shape; any strides.

        Returns:
            Output name -> new array.

        Raises:
            DataError: an input is missing, unknown, or of another dtype or shape.
            ArtifactError: the session is closed, or the library reports an error.
        """
        arrays = []
        for name, dtype, shape in self._slots:
            array = inputs.get(name)
            if type(array) is not np.ndarray or array.dtype != dtype or array.shape != shape:
                array = self._accept(name, dtype, shape, array)
            arrays.append(array if array.flags.c_contiguous else np.ascontiguousarray(array))
        if len(inputs) != len(self._slots):
            unknown = ", ".join(f"'{name}'" for name in inputs if name not in {slot[0] for slot in self._slots})
            raise DataError(f"the model has no input {unknown}; its inputs are {self._signature()}")
        outputs = {name: np.empty(shape, dtype) for name, dtype, shape in self._makers}
        with self._lock:
            if not self._close.alive:
                raise ArtifactError("the session is closed: load the artifact again")
            for index, array in enumerate(arrays):
                self._arguments[index] = array.ctypes.data
            for index, array in enumerate(outputs.values()):
                self._results[index] = array.ctypes.data
            code = self._run(self._arguments, self._results, self._workspace, self._pool)
        if code:
            raise ArtifactError(f"the library failed: {self._error_string(code).decode()} (code {code})")
        return outputs

    def close(self) -> None:
        """Stops the threads and unloads the library; waits for a run that is under way."""
        with self._lock:
            self._close()

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

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

    def _function(
        self, name: str, result: type[ctypes._SimpleCData[object]] | None, arguments: list[type[ctypes.c_void_p]]
    ) -> ctypes._NamedFuncPointer:
        try:
            function = self._library[name]
        except AttributeError:
            raise ArtifactError(f"{self._library._name} has no function {name}: compile the model again") from None
        function.restype = result
        function.argtypes = arguments
        return function


def _open(library: Path) -> ctypes.CDLL:
    # The loader takes a library whose path it has seen for the same library, although the file may be a new one: so
    # every session opens its own name for it.
    with tempfile.TemporaryDirectory(prefix="lwc-") as folder:
        link = Path(folder) / library.name
        link.symlink_to(library.resolve())
        try:
            return ctypes.CDLL(os.fspath(link))
        except OSError as error:
            raise ArtifactError(f"{library} cannot be loaded on this machine: {error}") from error


def _free(library: int, destroy: ctypes._NamedFuncPointer, pool: int | None) -> None:
    if pool:
        destroy(pool)
    _ctypes.dlclose(library)


def _unsupported_cpu(target: str) -> str:
    from lwc_compiler.targets import find_target, missing_features

    missing = ", ".join(missing_features(find_target(target))) or "what it needs"
    return f"this CPU cannot run code for {target}: it lacks {missing}; compile with --target host on this machine"
