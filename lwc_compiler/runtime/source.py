"""Runs the C source of a network: compiled for this machine, called by ctypes."""

from __future__ import annotations

import ctypes
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lwc_compiler.codegen.link import find_compiler, link_library
from lwc_compiler.errors import VerificationError
from lwc_compiler.kernels.kernel import ALIGNMENT_BYTES

if TYPE_CHECKING:
    from typing import TypeAlias

    from numpy.typing import NDArray

    from lwc_compiler.codegen.result import Lowered

    Arrays: TypeAlias = Mapping[str, NDArray[np.generic]]

_EXPORTED = '#define LWC_API __attribute__((visibility("default")))\n'


@contextmanager
def compiled_source(lowered: Lowered) -> Iterator[Callable[[Arrays], Arrays]]:
    """A function that runs the network: input name -> array of the input's dtype and shape; output name -> new array.

    Raises:
        ToolchainError: this machine has no C compiler, or it fails.
        VerificationError: from the function: the network returns an error code.
    """
    assert lowered.source is not None
    files = {f"{lowered.name}.h": lowered.header.encode(), "network.c": (_EXPORTED + lowered.source).encode()}
    with tempfile.TemporaryDirectory(prefix="lwc-") as folder:
        path = Path(folder) / "network.so"
        path.write_bytes(link_library(find_compiler(), files, hidden=("lwc_*",)))
        library = ctypes.CDLL(str(path))
    count = library[f"{lowered.symbol}_workspace_bytes"]
    count.restype = ctypes.c_size_t
    workspace, size = _aligned(bytes(count(1))), ctypes.c_size_t(count(1))
    weights = [] if lowered.weights is None else [_aligned(lowered.weights)]

    def run(inputs: Arrays) -> Arrays:
        arrays = [np.ascontiguousarray(inputs[spec.name]) for spec in lowered.inputs]
        outputs = {spec.name: np.zeros(spec.shape, spec.dtype) for spec in lowered.outputs}
        pointers = [_addresses(arrays), _addresses(outputs.values())]
        code = library[f"{lowered.symbol}_run"](
            *(ctypes.c_void_p(each.ctypes.data) for each in weights), *pointers,
            ctypes.c_void_p(workspace.ctypes.data), size, None,
        )  # fmt: skip
        if code:
            raise VerificationError(
                f"the compiled source of '{lowered.name}' failed with code {code}: please report it"
            )
        return outputs

    yield run


def _aligned(contents: bytes) -> NDArray[np.uint8]:
    memory = np.empty(len(contents) + ALIGNMENT_BYTES, np.uint8)
    start = -memory.ctypes.data % ALIGNMENT_BYTES
    memory[start : start + len(contents)] = np.frombuffer(contents, np.uint8)
    return memory[start:]  # not cut to its length: NumPy moves an array without elements


def _addresses(arrays: Any) -> Any:
    return (ctypes.c_void_p * max(1, len(arrays)))(*(array.ctypes.data for array in arrays))
