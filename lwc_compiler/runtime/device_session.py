"""Runs an artifact for a GPU from Python: NumPy arrays in and out."""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING, Any

from lwc_compiler.errors import DataError, TargetError
from lwc_compiler.runtime.dlpack import device_tensor
from lwc_compiler.runtime.lanes import Lane, Lanes
from lwc_compiler.runtime.network import Network
from lwc_compiler.runtime.session import Functions, Session

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from lwc_compiler.codegen.result import TensorSpec


_DEVICE = 0
_LEGACY_STREAM = 1  # CU_STREAM_LEGACY, and what `__dlpack__` takes for it


class DeviceSession(Session):
    """A loaded library with its weights and memory on the first GPU of the process.

    Attributes:
        threads: of what is compared with it; a GPU takes none.

    Raises:
        TargetError: there is no driver or no GPU that runs the code, or too little of its memory is free.
    """

    def __init__(
        self,
        path: Path,
        symbol: str,
        inputs: tuple[TensorSpec, ...],
        outputs: tuple[TensorSpec, ...],
        threads: int,
    ) -> None:
        Network.__init__(self, inputs, outputs, threads)
        library = _DeviceLibrary(path, symbol)
        code = ctypes.c_int()
        context = library.create(_DEVICE, ctypes.byref(code))
        if not context:
            message = library.error_string(code.value).decode()
            library.close()
            raise TargetError(f"the network cannot run on this machine's GPU: {message} (code {code.value})")
        self._run_device = library.run_device
        self._open(library, _free, library, context)
        arguments, results = (ctypes.c_void_p * len(inputs))(), (ctypes.c_void_p * len(outputs))()
        lane = Lane(arguments, results, (ctypes.c_void_p(context), arguments, results))
        # The context has one place for activations.
        self._lanes = Lanes(lambda: lane, 1)

    def run_device(self, inputs: Mapping[str, Any], out: Mapping[str, Any], stream: int = _LEGACY_STREAM) -> None:
        """Starts a run on arrays in the GPU's memory, and returns before it has ended; nothing goes over the bus.

        Runs of one session use the same memory for activations: give them all the same stream, and wait for it before
        a call of `run`.

        Args:
            inputs: input name -> array with `__dlpack__` (CuPy, PyTorch, JAX, ...) of exactly the input's dtype and
                shape, row-major. Its memory must not be given to work on another stream before the run has ended.
            out: output name -> array that takes it, for every output.
            stream: the CUDA stream, as a number: its handle, or 1, which is the default stream; 0 is taken for 1.

        Raises:
            DataError: an array is missing, unknown, not on the GPU, or of another dtype, shape or order.
            ArtifactError: the session is closed, or the library reports an error.
        """
        stream = stream or _LEGACY_STREAM
        given = []
        for what, arrays, specs in (("input", inputs, self.inputs), ("output", out, self.outputs)):
            if wrong := {spec.name for spec in specs} ^ arrays.keys():
                raise DataError(
                    f"the {what}s are {[spec.name for spec in specs]}: {sorted(wrong)} is missing or unknown"
                )
            given.append([device_tensor(arrays[spec.name], spec, _DEVICE, stream) for spec in specs])
        lane = self._lanes.take()
        try:
            pointers = [(ctypes.c_void_p * len(tensors))(*(t.address for t in tensors)) for tensors in given]
            self._check(self._run_device(lane.passed[0], *pointers, ctypes.c_void_p(stream)))
        finally:
            self._lanes.give(lane)

    def use_target(self, name: str) -> None:
        """Does nothing for the target of the library, which has no other.

        Raises:
            TargetError: it is for another.
        """
        if name != self.target:
            raise TargetError(f"the library has no code for {name}")


class _DeviceLibrary(Functions):
    """The C functions of a library for GPUs."""

    def __init__(self, path: Path, symbol: str) -> None:
        super().__init__(path, symbol)
        self.create, self.destroy = self.function("create"), self.function("destroy")
        self.run_device = self.function("run_device")
        self.create.argtypes = [ctypes.c_int, ctypes.POINTER(ctypes.c_int)]
        self.create.restype = ctypes.c_void_p
        self.destroy.argtypes, self.destroy.restype = [ctypes.c_void_p], None


def _free(library: _DeviceLibrary, context: int) -> None:
    library.destroy(context)
    library.close()
