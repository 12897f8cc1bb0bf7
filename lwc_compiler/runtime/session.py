"""Runs an artifact from Python: the shared library by ctypes, NumPy arrays in and out."""

from __future__ import annotations

import _ctypes
import ctypes
import os
import tempfile
import weakref
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lwc_compiler.errors import ArtifactError, TargetError
from lwc_compiler.runtime.artifact import Artifact, read_artifact
from lwc_compiler.runtime.lanes import Lane, Lanes, lanes_for
from lwc_compiler.runtime.network import Network
from lwc_compiler.targets import find_target, missing_features, missing_platform

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from lwc_compiler.codegen.result import Lowered, TensorSpec
    from lwc_compiler.runtime.artifact import Manifest

ALIGNMENT_BYTES = 64
_addressof, _from_buffer = ctypes.addressof, ctypes.c_char.from_buffer


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
        ways = {
            "linux": "run it there, or by --via qemu or --via ssh://USER@HOST",
            "none": "--via qemu runs it on an emulated board where there is one, and README.md says how to link it",
            "macos": "run it there",
        }
        raise TargetError(
            f"{artifact.directory} is for {manifest.target} ({other}), which this machine is not: {ways[target.os]}"
        )
    threads = manifest.threads if threads is None else threads
    return _session(artifact.library, manifest, threads, artifact.weights)


def open_lowered(lowered: Lowered, threads: int) -> Session:
    """A session of a library in memory, for this machine, on `threads` threads."""
    assert lowered.library is not None
    with tempfile.TemporaryDirectory(prefix="lwc-") as folder:
        library = Path(folder) / find_target(lowered.target).library_file(lowered.name)
        library.write_bytes(lowered.library)
        weights = None
        if lowered.weights is not None:
            weights = Path(folder) / f"{lowered.name}.weights"
            weights.write_bytes(lowered.weights)
        return _session(library, lowered, threads, weights)


def _session(library: Path, network: Manifest | Lowered, threads: int, weights: Path | None) -> Session:
    """A session of a library, which `network` describes, for processors or a GPU."""
    if find_target(network.target).gpu is not None:
        from lwc_compiler.runtime.device_session import DeviceSession

        return DeviceSession(library, network.symbol, network.inputs, network.outputs, threads)
    return Session(library, network.symbol, network.inputs, network.outputs, threads, network.target, weights)


class Session(Network):
    """A loaded library with its workspaces and thread pools.

    Any number of threads may call `run`, which does not hold the GIL. As many runs as this process has processors for
    (divided by the threads of one) happen at the same time, each with a workspace and a thread pool of its own; others
    wait. A session frees its pools and the library when it is closed or no longer used.
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
        super().__init__(inputs, outputs, threads)
        library = _Library(path, symbol, weights=weights is not None)
        if not library.cpu_supported():
            library.close()
            raise TargetError(_unsupported_cpu(target))
        pools: list[int] = []
        self._open(library, _free, library, pools)
        try:
            first = self._mapped(library, weights)
            make = partial(_make_lane, library, pools, threads, first, len(inputs), len(outputs))
            self._lanes = Lanes(make, lanes_for(threads))
        except (ArtifactError, TargetError):
            self._close()
            raise
        self._library = library

    def _open(self, functions: Functions, free: Callable[..., None], *arguments: object) -> None:
        """Keeps the library, and what is called with `arguments` once the session is closed or no longer used."""
        self._functions = functions
        self._close = weakref.finalize(self, free, *arguments)
        # When the process ends, a thread may still be in the library.
        self._close.atexit = False

    def run(
        self, inputs: Mapping[str, ArrayLike], out: Mapping[str, NDArray[np.generic]] | None = None
    ) -> dict[str, NDArray[np.generic]]:
        """Computes the outputs; see `Network.run`.

        Args:
            inputs: see `Network.run`. They must not change until the run is over.
            out: output name -> row-major array of exactly the output's dtype and shape that takes it; it shares no
                memory with another output or an input. Other outputs are new arrays.

        Returns:
            Output name -> array; that of `out` where it was given.

        Raises:
            DataError: an input or an array of `out` does not fit.
            ArtifactError: the session is closed, or the library reports an error.
        """
        return self._call(self._functions.run, inputs, out)

    def profile(self, inputs: Mapping[str, ArrayLike]) -> NDArray[np.float64]:
        """Runs the network once and gives the seconds of each of its steps, and then of the copies of its tensors.

        The manifest's `programs` say what the steps are, see `target`.

        Raises:
            DataError, ArtifactError: see `run`.
        """
        seconds = np.zeros(self._functions.step_count() + 1)
        self._call(self._functions.profile, inputs, None, ctypes.c_void_p(seconds.ctypes.data))
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
        self,
        function: Callable[..., int],
        inputs: Mapping[str, ArrayLike],
        out: Mapping[str, NDArray[np.generic]] | None,
        *more: object,
    ) -> dict[str, NDArray[np.generic]]:
        """Calls one of the library's functions that compute the outputs; `more` are its last arguments."""
        arrays = self.arrays(inputs)
        if out is None:
            outputs: dict[str, NDArray[np.generic]] = {
                name: np.empty(shape, dtype) for name, dtype, shape in self._gives
            }
        else:
            outputs = self.results(out, arrays)
        lane = arguments, results, passed = self._lanes.take()
        try:
            for index, array in enumerate(arrays):
                arguments[index] = _address(array)
            for index, array in enumerate(outputs.values()):
                results[index] = _address(array)
            code = function(*passed, *more)
        finally:
            self._lanes.give(lane)
        self._check(code)
        return outputs

    def _check(self, code: int) -> None:
        if code:
            raise ArtifactError(f"the library failed: {self._functions.error_string(code).decode()} (code {code})")

    def _mapped(self, library: _Library, weights: Path | None) -> tuple[ctypes.c_void_p, ...]:
        """What a run takes before all else: the address of the file of weights, where there is one.

        Raises:
            ArtifactError: it is not the library's.
        """
        if weights is None:
            return ()
        self._weights = np.memmap(weights, np.uint8, "r")
        address = ctypes.c_void_p(self._weights.ctypes.data)
        code = library.check_weights(address, self._weights.size)
        if code:
            raise ArtifactError(f"{weights}: {library.error_string(code).decode()}; compile the model again")
        return (address,)

    def close(self) -> None:
        """Stops the threads and unloads the library; waits for runs that are under way."""
        self._lanes.close()
        self._close()


def _make_lane(
    library: _Library, pools: list[int], threads: int, first: tuple[object, ...], inputs: int, outputs: int
) -> Lane:
    """A lane with a workspace and a pool, which `pools` gets; `first` is what a run takes before all else.

    Raises:
        TargetError: this machine cannot start the threads.
    """
    pool = None  # without one the library runs on the calling thread
    if threads > 1:
        pool = library.pool_create(threads)
        if not pool:
            raise TargetError(f"this machine could not start {threads} threads: ask for fewer")
        pools.append(pool)
    size = library.workspace_bytes(threads)
    # One block of bytes that holds an aligned workspace; NumPy alone promises 16 bytes.
    memory = np.empty(size + ALIGNMENT_BYTES, np.uint8)
    workspace = memory[-memory.ctypes.data % ALIGNMENT_BYTES :]
    arguments, results = (ctypes.c_void_p * inputs)(), (ctypes.c_void_p * outputs)()
    # Values of ctypes, which a call takes as they are.
    pointer = workspace.ctypes.data_as(ctypes.c_void_p)
    return Lane(arguments, results, (*first, arguments, results, pointer, ctypes.c_size_t(size), ctypes.c_void_p(pool)))


def _address(array: NDArray[np.generic]) -> int:
    # Several times as quick as `array.ctypes`; needs a buffer that can be written and has a first byte.
    if array.flags.writeable and array.size:
        return _addressof(_from_buffer(array))  # type: ignore[arg-type]  # an array is a buffer
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


def _free(library: _Library, pools: list[int]) -> None:
    for pool in pools:
        library.pool_destroy(pool)
    library.close()


def _unsupported_cpu(target: str) -> str:
    missing = ", ".join(missing_features(find_target(target))) or "what it needs"
    return f"this CPU cannot run code for {target}: it lacks {missing}; compile with --target host on this machine"
