"""Locks between processes: one holder at a time, none after a crash, no file left."""

import errno
import os
import signal
import subprocess
import sys
import threading

import pytest

from lwc_compiler.cache.locks import locked

HOLD = (
    "import pathlib, sys, time\n"
    "from lwc_compiler.cache.locks import locked\n"
    "with locked(pathlib.Path(sys.argv[1]), 'tests'):\n"
    "    print('held', flush=True)\n"
    "    sys.stdin.read()\n"
)


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the lock until its stdin is closed."""
    command = [sys.executable, "-c", HOLD, str(tmp_path / "lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_the_second_waits_for_the_first_and_says_so(holder, tmp_path, caplog):
    with caplog.at_level("INFO", "lwc_compiler"):
        release = threading.Timer(0.3, holder.stdin.close)
        release.start()
        with locked(tmp_path / "lock", "writes model.lwc"):
            assert holder.wait(10) == 0
    release.join()
    assert caplog.messages == ["waiting for another lwc that writes model.lwc"]
    assert list(tmp_path.iterdir()) == []


def test_a_killed_holder_holds_nobody_up(holder, tmp_path, caplog):
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    assert (tmp_path / "lock").exists()
    with caplog.at_level("INFO", "lwc_compiler"), locked(tmp_path / "lock", "tests"):
        pass
    assert caplog.messages == []
    assert list(tmp_path.iterdir()) == []


def test_a_wait_ends_with_ctrl_c(holder, tmp_path, request):
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # in the background it is ignored
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, before))
    alarm = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT))
    alarm.start()
    with pytest.raises(KeyboardInterrupt), locked(tmp_path / "lock", "tests"):
        pass
    alarm.join()
    assert (tmp_path / "lock").exists()
    assert holder.poll() is None


def test_many_processes_take_turns(tmp_path):
    """Each adds 1 to a number a hundred times; an addition is lost where two read before one has written."""
    script = (
        "import pathlib, sys\n"
        "from lwc_compiler.cache.locks import locked\n"
        "folder = pathlib.Path(sys.argv[1])\n"
        "for _ in range(100):\n"
        "    with locked(folder / 'lock', 'counts'):\n"
        "        number = int((folder / 'number').read_text())\n"
        "        (folder / 'number').write_text(str(number + 1))\n"
    )
    (tmp_path / "number").write_text("0")
    command = [sys.executable, "-c", script, str(tmp_path)]
    processes = [subprocess.Popen(command) for _ in range(4)]
    assert [process.wait() for process in processes] == [0] * 4
    assert (tmp_path / "number").read_text() == "400"
    assert not (tmp_path / "lock").exists()


def test_a_file_system_without_locks_is_written_with_a_warning(tmp_path, monkeypatch, caplog):
    def none(descriptor, how):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("lwc_compiler.cache.locks.fcntl.flock", none)
    with locked(tmp_path / "lock", "tests"):
        assert (tmp_path / "lock").exists()
    assert f"there are no locks in {tmp_path} (No locks available)" in caplog.text
    assert list(tmp_path.iterdir()) == []
