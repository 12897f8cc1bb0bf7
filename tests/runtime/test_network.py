"""Arrays that a network takes and gives: which are copied, and what is refused. Addresses tell."""

import array
import ctypes

import numpy as np
import pytest
import torch

from lwc_compiler.errors import DataError
from lwc_compiler.runtime.load import load

VALUES = np.arange(6, dtype=np.float32).reshape(2, 3)
IDS = np.array([3, 4])


@pytest.fixture
def session(artifact):
    with load(artifact.directory) as session:
        yield session


class OnlyDlpack:
    """What exports its memory by DLPack and nothing else."""

    def __init__(self, exporter):
        self.exporter = exporter

    def __dlpack__(self, **options):
        return self.exporter.__dlpack__(**options)

    def __dlpack_device__(self):
        return self.exporter.__dlpack_device__()


class OnDevice(OnlyDlpack):
    """Says that its memory is a GPU's (DLPack's type 2), as the second field of a DLTensor."""

    def __dlpack__(self, **options):
        capsule = self.exporter.__dlpack__()
        pointer = ctypes.pythonapi.PyCapsule_GetPointer
        pointer.argtypes, pointer.restype = [ctypes.py_object, ctypes.c_char_p], ctypes.c_void_p
        ctypes.c_int32.from_address(pointer(capsule, b"dltensor") + ctypes.sizeof(ctypes.c_void_p)).value = 2
        return capsule

    def __dlpack_device__(self):
        return 2, 0


def read_only():
    values = VALUES.copy()
    values.flags.writeable = False
    return values


def memory_map(path):
    np.save(path / "values.npy", VALUES)
    return np.load(path / "values.npy", mmap_mode="r")


def unaligned():
    memory = bytearray(1 + VALUES.nbytes)
    memory[1:] = VALUES.tobytes()
    values = np.frombuffer(memory, np.float32, offset=1).reshape(2, 3)
    assert values.ctypes.data % 4
    return values


# What makes the value, and where its memory is.
SHARED = {
    "ndarray": lambda path: VALUES.copy(),
    "read-only": lambda path: read_only(),
    "memory map": memory_map,
    "unaligned": lambda path: unaligned(),
    "bytes": lambda path: np.frombuffer(VALUES.tobytes(), np.float32).reshape(2, 3),
    "memoryview": lambda path: memoryview(VALUES.copy()),
    "memoryview of array.array": lambda path: memoryview(array.array("f", range(6))).cast("B").cast("f", (2, 3)),
    "ctypes": lambda path: ((ctypes.c_float * 3) * 2)((0, 1, 2), (3, 4, 5)),
    "torch": lambda path: torch.from_numpy(VALUES.copy()),
    "DLPack of torch": lambda path: OnlyDlpack(torch.from_numpy(VALUES.copy())),
    "DLPack of NumPy": lambda path: OnlyDlpack(VALUES.copy()),
}


def address(value):
    if isinstance(value, OnlyDlpack):
        value = value.exporter
    return value.data_ptr() if isinstance(value, torch.Tensor) else np.asarray(value).ctypes.data


@pytest.mark.parametrize("name", SHARED)
def test_row_major_memory_goes_to_the_library_as_it_is(session, name, tmp_path):
    value = SHARED[name](tmp_path)
    lane = session._lanes.take()
    session._lanes.give(lane)
    np.testing.assert_array_equal(session.run({"values": value, "ids": IDS})["doubled"], 2 * VALUES)
    assert list(lane.inputs) == [address(value), IDS.ctypes.data]


def test_a_flat_buffer_fits_a_flat_input(session):
    ids = array.array("q", [3, 4])
    np.testing.assert_array_equal(session.run({"values": VALUES, "ids": ids})["same"], IDS)
    assert session.arrays({"values": VALUES, "ids": ids})[1].ctypes.data == ids.buffer_info()[0]


@pytest.mark.parametrize(
    "value", [np.asfortranarray(VALUES), np.repeat(VALUES, 2, axis=1)[:, ::2], torch.from_numpy(VALUES.T.copy()).T]
)
def test_other_strides_are_copied(session, value):
    before = np.asarray(value).copy()
    taken = session.arrays({"values": value, "ids": IDS})[0]
    assert taken.flags.c_contiguous
    assert not np.may_share_memory(taken, np.asarray(value))
    np.testing.assert_array_equal(session.run({"values": value, "ids": IDS})["doubled"], 2 * VALUES)
    np.testing.assert_array_equal(np.asarray(value), before)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (
            VALUES.tobytes(),
            r"is \|S24; the model takes float32: np.frombuffer\(value, 'float32'\).reshape\(\[2, 3\]",
        ),
        (memoryview(VALUES.tobytes()), "is uint8; the model takes float32"),
        (VALUES.astype(">f4"), r"is >f4; the model takes float32: convert it with .astype\('float32'\)"),
        (array.array("f", range(6)), r"has shape \[6\]; the model was compiled for \[2, 3\]"),
        (torch.from_numpy(VALUES).double(), "is float64; the model takes float32"),
        (torch.from_numpy(VALUES).bfloat16(), "is of type Tensor, no array in the processor's memory: .*BFloat16"),
        (
            torch.from_numpy(VALUES).requires_grad_(),
            r"is of type Tensor, no array in the processor's memory: .*detach\(\)",
        ),
        (OnDevice(torch.from_numpy(VALUES)), "is of type OnDevice, no array in the processor's memory: .*device"),
        ([[1.0, 2.0], [3.0]], "is of type list, no array in the processor's memory: .*inhomogeneous"),
        ("values", "is <U6; the model takes float32"),
    ],
)
def test_values_that_do_not_fit_are_refused(session, value, message):
    with pytest.raises(DataError, match=f"^input 'values' {message}"):
        session.run({"values": value, "ids": IDS})


def test_outputs_go_to_arrays_of_the_caller(session):
    doubled = np.full((2, 3), -1, np.float32)
    outputs = session.run({"values": VALUES, "ids": IDS}, {"doubled": doubled})
    assert outputs["doubled"] is doubled
    np.testing.assert_array_equal(doubled, 2 * VALUES)
    np.testing.assert_array_equal(outputs["same"], IDS)
    assert list(outputs) == ["doubled", "same"]


def test_outputs_can_be_views_of_tensors_of_others(session):
    tensor = torch.zeros(4, 3)
    session.run({"values": VALUES, "ids": IDS}, {"doubled": tensor.numpy()[1:3]})
    np.testing.assert_array_equal(tensor, np.pad(2 * VALUES, ((1, 1), (0, 0))))


def test_new_outputs_are_shared_by_dlpack(session):
    doubled = session.run({"values": VALUES, "ids": IDS})["doubled"]
    tensor = torch.from_dlpack(doubled)
    assert tensor.data_ptr() == doubled.ctypes.data


SHARES = np.zeros(8, np.float32)


@pytest.mark.parametrize(
    ("out", "message"),
    [
        ({"doubled": np.zeros((2, 3))}, r"'doubled' is float64 \[2, 3\]; .* a NumPy array, float32 \[2, 3\]"),
        ({"doubled": np.zeros((3, 2), np.float32)}, r"'doubled' is float32 \[3, 2\]; "),
        ({"doubled": np.zeros((3, 2), np.float32).T}, "'doubled' is not row-major: give an array that np.empty makes"),
        ({"doubled": read_only()}, "'doubled' is read-only"),
        ({"doubled": torch.zeros(2, 3)}, "'doubled' is Tensor; the output needs a NumPy array"),
        ({"doubled": VALUES}, "'doubled' shares memory with an input or another output"),
        ({"doubled": SHARES[:6].reshape(2, 3), "same": SHARES[4:].view(np.int64)}, "'same' shares memory"),
        ({"halved": np.zeros((2, 3), np.float32)}, "no output 'halved'; its outputs are 'doubled', 'same'"),
    ],
)
def test_arrays_that_cannot_take_an_output_are_refused(session, out, message):
    before = {name: np.asarray(given).copy() for name, given in out.items()}
    with pytest.raises(DataError, match=f"^out: .*{message}"):
        session.run({"values": VALUES, "ids": IDS}, out)
    for name, given in out.items():
        assert np.asarray(given).tobytes() == before[name].tobytes()
