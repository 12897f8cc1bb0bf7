"""Runs at the same time: results, workspaces and the GIL. What waits is counted, not timed."""

import ctypes
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import lwc_compiler
from lwc_compiler.errors import ArtifactError, TargetError
from lwc_compiler.runtime import lanes
from lwc_compiler.runtime.lanes import Lane, Lanes
from lwc_compiler.runtime.load import load

IDS = np.array([3, 4])
INPUTS = {"values": np.ones((2, 3), np.float32), "ids": IDS}
MEETING = {"values": np.full((2, 3), 777, np.float32), "ids": IDS}


@pytest.fixture
def four_processors(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 1, 2, 3})


@pytest.fixture
def twice_library(artifact):
    """The library that sessions of the artifact have open: its variables."""
    return ctypes.CDLL(str(artifact.library))


def variable(library, name):
    return ctypes.c_int.in_dll(library, f"twice_{name}")


def test_as_many_runs_as_there_is_room_for(four_processors):
    assert [lanes.lanes_for(threads) for threads in (1, 2, 3, 4, 5)] == [4, 2, 1, 1, 1]


@pytest.mark.parametrize("threads", [1, 2])
def test_runs_happen_at_the_same_time(artifact, twice_library, four_processors, threads):
    """No run returns before all are in the library, each with a pool of its own."""
    together = 4 // threads
    variable(twice_library, "wanted").value = together
    with load(artifact.directory, threads) as session, ThreadPoolExecutor(together) as executor:
        outputs = list(executor.map(session.run, [MEETING] * together))
        assert variable(twice_library, "arrived").value == together
        assert variable(twice_library, "live_pools").value == (0 if threads == 1 else together)
    assert all((output["doubled"] == 2 * 777).all() for output in outputs)
    assert variable(twice_library, "live_pools").value == 0


def test_the_gil_is_free_during_a_run(artifact, twice_library):
    """The run returns when this thread, which needs the GIL, has arrived too."""
    wanted, arrived = variable(twice_library, "wanted"), variable(twice_library, "arrived")
    wanted.value = 1000
    with load(artifact.directory) as session, ThreadPoolExecutor(1) as executor:
        run = executor.submit(session.run, MEETING)
        while not arrived.value:
            assert not run.done()
        assert not run.done()
        wanted.value = 0
        np.testing.assert_array_equal(run.result()["doubled"], 2 * 777)


def test_the_gil_is_free_while_a_run_waits_for_another(artifact, twice_library, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0})
    wanted, arrived = variable(twice_library, "wanted"), variable(twice_library, "arrived")
    wanted.value = 1000
    with load(artifact.directory) as session, ThreadPoolExecutor(2) as executor:
        runs = [executor.submit(session.run, MEETING) for _ in range(2)]
        while not arrived.value:
            pass
        wanted.value = 0
        assert all((run.result()["doubled"] == 2 * 777).all() for run in runs)
    assert arrived.value == 2


def test_close_waits_for_runs_under_way(artifact, twice_library, four_processors):
    wanted, arrived = variable(twice_library, "wanted"), variable(twice_library, "arrived")
    wanted.value = 1000
    session = load(artifact.directory, threads=2)
    with ThreadPoolExecutor(3) as executor:
        runs = [executor.submit(session.run, MEETING) for _ in range(2)]
        while arrived.value < 2:
            pass
        closing = executor.submit(session.close)
        while not session._lanes._closed:
            pass
        assert not closing.done()
        wanted.value = 0
        assert all((run.result()["doubled"] == 2 * 777).all() for run in runs)
        closing.result()
    assert variable(twice_library, "live_pools").value == 0
    with pytest.raises(ArtifactError, match="session is closed"):
        session.run(INPUTS)


def test_who_waits_when_the_session_is_closed_gets_an_error():
    entered = threading.Event()

    class Observed(Lanes):
        def _next(self):
            entered.set()
            return super()._next()

    lane = Lane((ctypes.c_void_p * 1)(), (ctypes.c_void_p * 1)(), ())
    pool = Observed(lambda: lane, 1)
    entered.clear()
    assert pool.take() is lane
    with ThreadPoolExecutor(3) as executor:
        waiting = executor.submit(pool.take)
        entered.wait()
        closing = executor.submit(pool.close)
        while not pool._closed:
            pass
        pool.give(lane)
        closing.result()
        for late in (waiting, executor.submit(pool.take)):
            with pytest.raises(ArtifactError, match="session is closed"):
                late.result()


def test_threads_that_cannot_be_started_later(artifact, twice_library, four_processors, monkeypatch):
    """The run that would need them fails; those that are there go on."""
    with load(artifact.directory, threads=2) as session, ThreadPoolExecutor(1) as executor:
        variable(twice_library, "wanted").value = 1000
        first = executor.submit(session.run, MEETING)
        while not variable(twice_library, "arrived").value:
            pass
        monkeypatch.setattr(session._library, "pool_create", lambda threads: None)
        with pytest.raises(TargetError, match="could not start 2 threads"):
            session.run(INPUTS)
        variable(twice_library, "wanted").value = 0
        assert (first.result()["doubled"] == 2 * 777).all()
        assert (session.run(INPUTS)["doubled"] == 2).all()


def test_a_process_may_end_while_a_thread_runs(artifact):
    script = (
        "import ctypes, sys, threading, numpy as np, lwc_compiler as lwc\n"
        "library = ctypes.CDLL(sys.argv[2])\n"
        "wanted, arrived = (ctypes.c_int.in_dll(library, 'twice_' + name) for name in ('wanted', 'arrived'))\n"
        "wanted.value = 1000\n"
        "session = lwc.load(sys.argv[1], 2)\n"
        "inputs = {'values': np.full((2, 3), 777, np.float32), 'ids': np.zeros(2, np.int64)}\n"
        "threading.Thread(target=session.run, args=(inputs,), daemon=True).start()\n"
        "while not arrived.value: pass\n"
        "import _ctypes; _ctypes.dlclose(library._handle)\n"
        "print('ends')\n"
    )
    command = [sys.executable, "-c", script, str(artifact.directory), str(artifact.library)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "ends\n"), done.stderr


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """A network with sparse layers on images, batch 2: the artifact and eight inputs."""
    generator = np.random.default_rng(0)
    shapes = {"w1": (16, 3, 3, 3), "w2": (16, 16, 3, 3), "w3": (16 * 64, 10)}
    weights = {
        n: generator.standard_normal(s).astype(np.float32) * (generator.random(s) < 0.3) for n, s in shapes.items()
    }
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["a"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Conv", ["b", "w2"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node("Softmax", ["c"], ["d"], axis=1),
        helper.make_node("Flatten", ["d"], ["e"]),
        helper.make_node("MatMul", ["e", "w3"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 3, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 10])],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    folder = tmp_path_factory.mktemp("compiled")
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), folder / "net.onnx")
    lwc_compiler.lower(folder / "net.onnx", folder / "net.lwc", lwc_compiler.LowerOptions(target="x86-64-v3"))
    return folder / "net.lwc", [generator.standard_normal((2, 3, 8, 8)).astype(np.float32) for _ in range(8)]


@pytest.mark.parametrize("threads", [1, 2])
def test_results_are_those_of_one_thread_bit_for_bit(compiled, four_processors, threads):
    directory, inputs = compiled
    with load(directory, threads) as alone:
        expected = [alone.run({"x": x})["y"].tobytes() for x in inputs]
    assert len(set(expected)) == len(inputs)
    start = threading.Barrier(8)

    with load(directory, threads) as session, ThreadPoolExecutor(8) as executor:
        for lane in [session._lanes.take() for _ in range(4 // threads)]:
            session._lanes.give(lane)

        def work(number):
            start.wait()
            return {session.run({"x": inputs[number]})["y"].tobytes() for _ in range(200)}

        assert list(executor.map(work, range(8))) == [{one} for one in expected]
