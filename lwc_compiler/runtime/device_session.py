"""Runs an artifact for a GPU from Python: NumPy arrays in and out."""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING, NoReturn

from lwc_compiler.errors import OptionError, TargetError
from lwc_compiler.runtime.lanes import Lane, Lanes
from lwc_compiler.runtime.network import Network
from lwc_compiler.runtime.session import Functions, Session

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from lwc_compiler.codegen.result import TensorSpec


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
        context = library.create(0, ctypes.byref(code))
        if not context:
            message = library.error_string(code.value).decode()
            library.close()
            raise TargetError(f"the network cannot run on this machine's GPU: {message} (code {code.value})")
        self._open(library, _free, library, context)
        arguments, results = (ctypes.c_void_p * len(inputs))(), (ctypes.c_void_p * len(outputs))()
        lane = Lane(arguments, results, (ctypes.c_void_p(context), arguments, results))
        # The context has one place for activations.
        self._lanes = Lanes(lambda: lane, 1)

    def use_target(self, name: str) -> None:
        """Does nothing for the target of the library, which has no other.

        Raises:
            TargetError: it is for another.
        """
        if name != self.target:
            raise TargetError(f"the library has no code for {name}")

    def profile(self, inputs: Mapping[str, NDArray[np.generic]]) -> NoReturn:
        """Steps are not timed on a GPU.

        Raises:
            OptionError: always.
        """
        raise OptionError("the layers of a network on a GPU are not timed: leave --layers out")


class _DeviceLibrary(Functions):
    """The C functions of a library for GPUs."""

    def __init__(self, path: Path, symbol: str) -> None:
        super().__init__(path, symbol)
        self.create, self.destroy = self.function("create"), self.function("destroy")
        self.create.argtypes = [ctypes.c_int, ctypes.POINTER(ctypes.c_int)]
        self.create.restype = ctypes.c_void_p
        self.destroy.argtypes, self.destroy.restype = [ctypes.c_void_p], None


def _free(library: _DeviceLibrary, context: int) -> None:
    library.destroy(context)
    library.close()
