"""Tensors of other libraries on a GPU, by DLPack: https://dmlc.github.io/dlpack/latest/c_api.html.

NumPy reads what lies in the processor's memory; what lies elsewhere needs only its address, dtype and shape.
"""

from __future__ import annotations

import ctypes
import math
from typing import TYPE_CHECKING, Any, NamedTuple

from lwc_compiler.errors import DataError

if TYPE_CHECKING:
    from lwc_compiler.codegen.result import TensorSpec

CUDA = 2  # kDLCUDA
_KINDS = {0: "int", 1: "uint", 2: "float", 6: "bool"}  # DLDataTypeCode


class _DLTensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


class DeviceTensor(NamedTuple):
    """Memory of a GPU.

    Attributes:
        address: of the first element.
        owner: what keeps the memory alive.
    """

    address: int
    owner: object


def device_tensor(value: Any, spec: TensorSpec, device: int, stream: int) -> DeviceTensor:
    """The memory of `value`, which is as `spec` says and row-major, on a GPU.

    Args:
        value: an object with `__dlpack__` and `__dlpack_device__`.
        spec: name, dtype and shape that it must have.
        device: number of the GPU.
        stream: where it will be used, as `__dlpack__` takes it; work that the exporter has started elsewhere is
            waited for there.

    Raises:
        DataError: it is something else.
    """
    if not hasattr(value, "__dlpack__") or tuple(value.__dlpack_device__()) != (CUDA, device):
        raise DataError(f"'{spec.name}' is of type {type(value).__name__}, no array in the memory of GPU {device}")
    try:
        capsule = value.__dlpack__(stream=stream)
    except (TypeError, ValueError, RuntimeError, BufferError) as error:
        raise DataError(f"'{spec.name}' cannot be used by DLPack: {error}") from error
    tensor = _DLTensor.from_address(_pointer_in(capsule))
    shape = tuple(tensor.shape[: tensor.ndim])
    kind = _KINDS.get(tensor.code, f"type {tensor.code} of ")
    dtype = kind if kind == "bool" else f"{kind}{tensor.bits}"
    if (dtype, tensor.lanes, shape) != (spec.dtype, 1, spec.shape):
        raise DataError(
            f"'{spec.name}' is {dtype} {list(shape)}; the model was compiled for {spec.dtype} {list(spec.shape)}"
        )
    if tensor.strides and not _is_row_major(shape, tensor.strides[: tensor.ndim]):
        raise DataError(f"'{spec.name}' is not row-major: make a contiguous copy of it")
    # The capsule is not consumed: when it is dropped, its exporter's reference goes.
    return DeviceTensor((tensor.data or 0) + tensor.byte_offset, capsule)


def _pointer_in(capsule: object) -> int:
    get = ctypes.pythonapi.PyCapsule_GetPointer
    get.argtypes, get.restype = [ctypes.py_object, ctypes.c_char_p], ctypes.c_void_p
    pointer: int = get(capsule, b"dltensor")
    return pointer


def _is_row_major(shape: tuple[int, ...], strides: list[int]) -> bool:
    """Whether elements follow each other; the stride of a dimension of one element does not matter."""
    return all(
        size == 1 or stride == math.prod(shape[axis + 1 :])
        for axis, (size, stride) in enumerate(zip(shape, strides, strict=True))
    )
