"""Reading what DLPack's structure says, without a GPU: arrays of the processor that say they are on one."""

import numpy as np
import pytest

from lwc_compiler.codegen.result import TensorSpec
from lwc_compiler.errors import DataError
from lwc_compiler.runtime.dlpack import CUDA, _DLTensor, _pointer_in, device_tensor


class OnGpu:
    """Exports an array of NumPy as if it were on a GPU, at `address` if that is given."""

    def __init__(self, array, address=None, device=(CUDA, 0)):
        self.array, self.address, self.device = array, address, device
        self.streams = []

    def __dlpack_device__(self):
        return self.device

    def __dlpack__(self, *, stream):
        if stream == 13:
            raise BufferError("no such stream")
        self.streams.append(stream)
        capsule = self.array.__dlpack__()
        tensor = _DLTensor.from_address(_pointer_in(capsule))
        tensor.device_type = CUDA
        tensor.data = self.address or tensor.data
        return capsule


@pytest.mark.parametrize("dtype", ["float32", "float64", "int8", "int64", "uint16", "bool"])
@pytest.mark.parametrize("shape", [(), (3,), (2, 3), (2, 1, 3)])
def test_address_of_what_fits(dtype, shape):
    array = np.zeros(shape, dtype)
    exporter = OnGpu(array)
    tensor = device_tensor(exporter, TensorSpec("x", dtype, shape), 0, 77)
    assert tensor.address == array.ctypes.data
    assert exporter.streams == [77]


def test_memory_is_kept_while_it_is_used():
    freed = []

    class Array(np.ndarray):
        def __del__(self):
            freed.append(True)

    exporter = OnGpu(np.zeros((2, 3), np.float32).view(Array))
    tensor = device_tensor(exporter, TensorSpec("x", "float32", (2, 3)), 0, 1)
    del exporter
    assert not freed
    del tensor
    assert freed


def test_the_stride_of_a_dimension_of_one_element_does_not_matter():
    array = np.zeros((4, 3), np.float32)[::4]
    assert device_tensor(OnGpu(array), TensorSpec("x", "float32", (1, 3)), 0, 1).address == array.ctypes.data


@pytest.mark.parametrize(
    ("value", "stream", "message"),
    [
        (np.zeros((2, 3), np.float32), 1, "'x' is of type ndarray, no array in the memory of GPU 0"),
        ([1.0], 1, "'x' is of type list, no array in the memory of GPU 0"),
        (OnGpu(np.zeros((2, 3), np.float32), device=(CUDA, 1)), 1, "no array in the memory of GPU 0"),
        (OnGpu(np.zeros((2, 3))), 1, r"'x' is float64 \[2, 3\]; the model was compiled for float32 \[2, 3\]"),
        (OnGpu(np.zeros((2, 3), np.complex64)), 1, r"'x' is type 5 of 64 \[2, 3\]; "),
        (OnGpu(np.zeros((3, 2), np.float32)), 1, r"'x' is float32 \[3, 2\]; "),
        (OnGpu(np.zeros((3, 2), np.float32).T), 1, "'x' is not row-major: make a contiguous copy"),
        (OnGpu(np.zeros((2, 6), np.float32)[:, ::2]), 1, "'x' is not row-major"),
        (OnGpu(np.zeros((2, 3), np.float32)), 13, "'x' cannot be used by DLPack: no such stream"),
    ],
)
def test_what_does_not_fit_is_refused(value, stream, message):
    with pytest.raises(DataError, match=message):
        device_tensor(value, TensorSpec("x", "float32", (2, 3)), 0, stream)
