"""A network that can be run, wherever it runs, and the arrays that it takes and gives."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from lwc_compiler.errors import DataError, OptionError

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray
    from typing_extensions import Self

    from lwc_compiler.codegen.result import TensorSpec


class Network(ABC):
    """A compiled network that can be run; a context manager.

    Attributes:
        inputs: name, dtype and shape of every input.
        outputs: name, dtype and shape of every output.
        threads: threads that a run uses.
    """

    def __init__(self, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...], threads: int) -> None:
        if not isinstance(threads, int) or threads < 1:
            raise OptionError(f"threads is {threads!r}: a whole number, at least 1")
        self.inputs = inputs
        self.outputs = outputs
        self.threads = threads
        self._takes = tuple((spec.name, np.dtype(spec.dtype), spec.shape) for spec in inputs)
        self._gives = tuple((spec.name, np.dtype(spec.dtype), spec.shape) for spec in outputs)

    @abstractmethod
    def run(self, inputs: Mapping[str, ArrayLike]) -> dict[str, NDArray[np.generic]]:
        """Computes the outputs.

        Args:
            inputs: input name -> array of exactly the input's dtype and shape; also whatever NumPy makes an array of:
                objects with a buffer, `__array__` or `__dlpack__`, lists, numbers. Row-major ones are not copied.

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

    def __reduce__(self) -> NoReturn:
        raise TypeError(f"a {type(self).__name__} cannot be copied or pickled: load the artifact again")

    def arrays(self, inputs: Mapping[str, ArrayLike]) -> list[NDArray[np.generic]]:
        """The inputs in the order of the library, dense and row-major; copies of those that are not.

        Raises:
            DataError: one is missing, unknown, or of another dtype or shape.
        """
        if type(inputs) is not dict and not isinstance(inputs, Mapping):
            found = type(inputs).__name__
            raise DataError(f"inputs is of type {found}; a run takes arrays by name: {self._signature()}")
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
        """`value` as an array when it fits the input."""
        if value is None:
            raise DataError(f"input '{name}' is missing; the model's inputs are {self._signature()}")
        try:
            array = _as_array(value)
        except (TypeError, ValueError, RuntimeError, BufferError) as error:
            raise DataError(
                f"input '{name}' is of type {type(value).__name__}, no array in the processor's memory: {error}"
            ) from error
        if array.dtype != dtype:
            how = f"convert it with .astype('{dtype}')"
            if isinstance(value, bytes | bytearray):
                how = f"np.frombuffer(value, '{dtype}').reshape({list(shape)}) has the same memory"
            raise DataError(f"input '{name}' is {array.dtype}; the model takes {dtype}: {how}")
        if array.shape != shape:
            raise DataError(
                f"input '{name}' has shape {list(array.shape)}; the model was compiled for {list(shape)}: --batch or "
                "--shape compile it for others"
            )
        return array

    def results(
        self, out: Mapping[str, NDArray[np.generic]], inputs: Sequence[NDArray[np.generic]]
    ) -> dict[str, NDArray[np.generic]]:
        """An array for every output: that of `out`, or a new one.

        Raises:
            DataError: one cannot take its output, shares memory with another or an input, or is of no output.
        """
        results: dict[str, NDArray[np.generic]] = {}
        for name, dtype, shape in self._gives:
            array = out.get(name)
            if array is None:
                array = np.empty(shape, dtype)
            elif type(array) is not np.ndarray or array.dtype != dtype or array.shape != shape:
                is_ = f"{array.dtype} {list(array.shape)}" if isinstance(array, np.ndarray) else type(array).__name__
                raise DataError(f"out: '{name}' is {is_}; the output needs a NumPy array, {dtype} {list(shape)}")
            elif not (array.flags.c_contiguous and array.flags.writeable):
                what = "not row-major" if array.flags.writeable else "read-only"
                raise DataError(f"out: '{name}' is {what}: give an array that np.empty makes")
            elif any(np.may_share_memory(array, other) for other in (*inputs, *results.values())):
                raise DataError(f"out: '{name}' shares memory with an input or another output")
            results[name] = array
        if not out.keys() <= results.keys():
            unknown, known = (", ".join(f"'{name}'" for name in names) for names in (out.keys() - results, results))
            raise DataError(f"out: the model has no output {unknown}; its outputs are {known}")
        return results

    def _signature(self) -> str:
        return ", ".join(f"'{spec.name}' ({spec.dtype} {list(spec.shape)})" for spec in self.inputs)


def _as_array(value: Any) -> NDArray[np.generic]:
    """An array in the memory of `value`, where it has one; a new one of lists and numbers."""
    if hasattr(value, "__array__") or not hasattr(value, "__dlpack__"):
        return np.asarray(value)
    exported: NDArray[np.generic] = np.from_dlpack(value)
    return exported
