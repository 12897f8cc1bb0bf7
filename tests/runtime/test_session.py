import copy
import ctypes
import gc
import pickle
import shutil
import threading

import numpy as np
import pytest

from lwc_compiler.errors import ArtifactError, DataError, OptionError, TargetError
from lwc_compiler.runtime import session as module
from lwc_compiler.runtime.load import load
from lwc_compiler.runtime.session import Session

VALUES = np.arange(6, dtype=np.float32).reshape(2, 3)
IDS = np.array([3, 4])


@pytest.fixture
def session(artifact):
    with load(artifact.directory) as session:
        yield session


@pytest.fixture
def open_library(tmp_path):
    """A session of a `Lowered` that was not written as an artifact."""

    def make(lowered, symbol="twice", threads=1):
        path = tmp_path / "libtwice.so"
        path.unlink(missing_ok=True)
        path.write_bytes(lowered.library)
        return Session(path, symbol, lowered.inputs, lowered.outputs, threads, lowered.target)

    return make


def test_run_computes_every_output(session):
    outputs = session.run({"values": VALUES, "ids": IDS})
    assert list(outputs) == ["doubled", "same"]
    np.testing.assert_array_equal(outputs["doubled"], 2 * VALUES)
    np.testing.assert_array_equal(outputs["same"], IDS)
    assert outputs["doubled"].dtype == np.float32
    assert outputs["same"].dtype == np.int64


def test_outputs_belong_to_the_caller(session):
    first = session.run({"values": VALUES, "ids": IDS})["doubled"]
    session.run({"values": VALUES + 1, "ids": IDS})
    np.testing.assert_array_equal(first, 2 * VALUES)


def test_any_strides_are_taken(session):
    for values in (np.asfortranarray(VALUES), np.repeat(VALUES, 2, axis=1)[:, ::2], VALUES[::-1][::-1]):
        np.testing.assert_array_equal(session.run({"ids": IDS, "values": values})["doubled"], 2 * VALUES)


def test_read_only_arrays_are_taken(session):
    values = VALUES.copy()
    values.flags.writeable = False
    np.testing.assert_array_equal(session.run({"ids": IDS, "values": values})["doubled"], 2 * VALUES)


def test_profile_gives_the_seconds_of_steps_and_copies(session):
    np.testing.assert_array_equal(session.profile({"values": VALUES, "ids": IDS}), [3e-3, 1e-3, 0])
    with pytest.raises(ArtifactError, match="number of the beast"):
        session.profile({"values": np.full((2, 3), 666, np.float32), "ids": IDS})


def test_only_targets_of_the_library_can_be_used(session):
    session.use_target("x86-64-v3")
    assert session.target == "x86-64-v3"
    with pytest.raises(TargetError, match="no code for x86-64-v4"):
        session.use_target("x86-64-v4")


def test_lists_are_taken_when_their_dtype_fits(session):
    np.testing.assert_array_equal(session.run({"values": VALUES, "ids": [3, 4]})["same"], IDS)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"values": VALUES}, r"input 'ids' is missing; .*'values' \(float32 \[2, 3\]\), 'ids' \(int64 \[2\]\)"),
        ({"values": VALUES, "ids": IDS, "idz": IDS}, r"no input 'idz'; its inputs are 'values'"),
        ({"values": VALUES.astype(float), "ids": IDS}, r"'values' is float64; the model takes float32: convert"),
        ({"values": VALUES.tolist(), "ids": IDS}, r"'values' is float64; the model takes float32"),
        ({"values": VALUES, "ids": IDS.astype(np.int32)}, r"'ids' is int32; the model takes int64"),
        ({"values": VALUES.T, "ids": IDS}, r"'values' has shape \[3, 2\]; the model was compiled for \[2, 3\]"),
        (VALUES, r"inputs is of type ndarray; a run takes arrays by name: 'values' \(float32 \[2, 3\]\), 'ids'"),
        (None, r"inputs is of type NoneType; "),
        ({"values": VALUES, "ids": IDS[:1]}, r"'ids' has shape \[1\]; the model was compiled for \[2\]"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(session, inputs, message):
    with pytest.raises(DataError, match=message):
        session.run(inputs)


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, pickle.dumps])
def test_what_is_loaded_cannot_be_duplicated(session, duplicate):
    with pytest.raises(TypeError, match=r"a Session cannot be copied or pickled: load the artifact again"):
        duplicate(session)


def test_error_of_the_library_is_passed_on(session):
    with pytest.raises(ArtifactError, match=r"number of the beast \(code 2\)"):
        session.run({"values": np.full((2, 3), 666, np.float32), "ids": IDS})
    np.testing.assert_array_equal(session.run({"values": VALUES, "ids": IDS})["doubled"], 2 * VALUES)


def test_threads_come_from_the_artifact_or_the_caller(artifact):
    with load(artifact.directory) as session:
        assert session.threads == artifact.manifest.threads == 1
    with load(artifact.directory, threads=7) as session:
        assert session.run({"values": VALUES, "ids": IDS})["doubled"][0, 0] == 7
    with pytest.raises(OptionError, match="threads is 0: a whole number, at least 1"):
        load(artifact.directory, threads=0)
    with pytest.raises(OptionError, match="threads is '2': a whole number, at least 1"):
        load(artifact.directory, threads="2")
    with pytest.raises(TargetError, match="could not start 65 threads"):
        load(artifact.directory, threads=65)


def test_pool_is_freed_when_closed(twice, tmp_path, open_library):
    session = open_library(twice, threads=2)
    live = ctypes.c_int.in_dll(ctypes.CDLL(str(tmp_path / "libtwice.so")), "twice_live_pools")
    assert live.value == 1
    session.close()
    session.close()
    assert live.value == 0
    with pytest.raises(ArtifactError, match="session is closed"):
        session.run({"values": VALUES, "ids": IDS})


def test_pool_is_freed_when_forgotten(twice, tmp_path, open_library):
    session = open_library(twice, threads=2)
    live = ctypes.c_int.in_dll(ctypes.CDLL(str(tmp_path / "libtwice.so")), "twice_live_pools")
    assert live.value == 1
    del session
    gc.collect()
    assert live.value == 0


def test_one_session_serves_many_threads(session):
    wrong = []

    def work(number):
        values = np.full((2, 3), number, np.float32)
        outputs = [session.run({"values": values, "ids": IDS})["doubled"] for _ in range(300)]
        wrong.extend(number for output in outputs if not (output == 2 * number).all())

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_a_library_rebuilt_in_place_is_loaded_anew(make_lowered, open_library):
    inputs = {"values": VALUES, "ids": IDS}
    first = open_library(make_lowered(2))
    np.testing.assert_array_equal(first.run(inputs)["doubled"], 2 * VALUES)
    second = open_library(make_lowered(3))
    np.testing.assert_array_equal(second.run(inputs)["doubled"], 3 * VALUES)
    np.testing.assert_array_equal(first.run(inputs)["doubled"], 2 * VALUES)


def test_cpu_without_the_features_is_refused(make_lowered, open_library, monkeypatch):
    monkeypatch.setattr(module, "missing_features", lambda target: ["avx2", "fma"])
    with pytest.raises(TargetError, match=r"cannot run code for x86-64-v3: it lacks avx2, fma; compile with --target"):
        open_library(make_lowered(2, supported=0))


def test_library_without_the_functions_is_refused(twice, open_library):
    with pytest.raises(ArtifactError, match=r"lacks a function of the model: .*thrice_run"):
        open_library(twice, symbol="thrice")


def test_file_that_is_no_library_is_refused(twice, tmp_path):
    path = tmp_path / "libtwice.so"
    path.write_bytes(b"not ELF")
    with pytest.raises(ArtifactError, match="cannot be loaded on this machine"):
        Session(path, "twice", twice.inputs, twice.outputs, 1, "x86-64-v3")


def test_artifact_can_be_moved_and_deleted_after_loading(artifact, tmp_path):
    moved = artifact.directory.rename(tmp_path / "moved")
    with load(moved) as session:
        shutil.rmtree(moved)
        gc.collect()
        np.testing.assert_array_equal(session.run({"values": VALUES, "ids": IDS})["doubled"], 2 * VALUES)
