"""`--timeout`: a clear error wherever the time is over, and nothing left of what was begun."""

import os
import signal
import subprocess
import tempfile
import time
from contextlib import suppress
from importlib import import_module

import pytest

from lwc_compiler.commands.timeout import time_limit
from lwc_compiler.errors import TimeLimitError

RETRAIN = ("--sparsity", "0.5", "--epochs", "200", "--train-threads", "1")


def test_work_in_time_is_left_alone():
    before = signal.getsignal(signal.SIGALRM)
    with time_limit(1000):
        assert 0 < signal.getitimer(signal.ITIMER_REAL)[0] <= 1000
    with time_limit(None):
        assert signal.getitimer(signal.ITIMER_REAL)[0] == 0
    assert signal.getsignal(signal.SIGALRM) is before


def test_errors_in_time_are_left_alone():
    with pytest.raises(ZeroDivisionError), time_limit(1000):
        raise ZeroDivisionError
    assert signal.getitimer(signal.ITIMER_REAL)[0] == 0


def test_what_an_interruption_became_counts_as_one():
    """TVM makes a RuntimeError of an exception in a function that it calls."""

    def work():
        try:
            time.sleep(60)
        except KeyboardInterrupt:
            raise RuntimeError("in native code") from None

    with pytest.raises(TimeLimitError, match=r"not done after 0\.01 s, the limit of --timeout"), time_limit(0.01):
        work()


def test_a_lost_interruption_is_repeated(monkeypatch):
    monkeypatch.setattr("lwc_compiler.commands.timeout._AGAIN_SECONDS", 0.01)
    with pytest.raises(TimeLimitError), time_limit(0.01):
        with suppress(KeyboardInterrupt):
            time.sleep(60)
        time.sleep(60)


@pytest.mark.parametrize("seconds", ["0", "-1", "soon"])
def test_limits_that_are_none(lwc, seconds):
    assert lwc("targets", "--timeout", seconds).code == 2


def soon(monkeypatch, module, name):
    """Lets the time be over shortly after a function has begun."""
    module = import_module(f"lwc_compiler.{module}")
    real = getattr(module, name)

    def late(*arguments, **options):
        signal.setitimer(signal.ITIMER_REAL, 0.02)
        return real(*arguments, **options)

    monkeypatch.setattr(module, name, late)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Where temporary files go."""
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    return tmp_path / "temporary"


def assert_ended(done, folder):
    assert done.code == 124
    assert done.out == ""
    assert done.err.splitlines()[-1].startswith("error: not done after 1000 s, the limit of --timeout")
    assert list(folder.iterdir()) == []
    assert {path.name for path in folder.parent.iterdir()} <= {"temporary", "mlp.onnx", "data.npz"}
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


def test_during_retraining(lwc, mlp, mlp_data, folder, monkeypatch):
    children = []
    popen = subprocess.Popen

    def started(*arguments, **options):
        children.append(popen(*arguments, **options))
        return children[-1]

    def progress(_):
        if signal.getitimer(signal.ITIMER_REAL)[0] > 1:
            signal.setitimer(signal.ITIMER_REAL, 0.02)

    monkeypatch.setattr("lwc_compiler.training.child.subprocess.Popen", started)
    monkeypatch.setattr("lwc_compiler.commands.progress._progress_lines", lambda: progress)
    output = folder.parent / "out"
    assert_ended(lwc("compile", mlp, "-o", output, "--train-data", mlp_data, *RETRAIN, "--timeout", "1000"), folder)
    assert children[-1].args[2] == "lwc_compiler.training.worker"
    assert children[-1].returncode == -signal.SIGTERM


def test_during_lowering(lwc, mlp, folder, monkeypatch):
    soon(monkeypatch, "codegen.assemble", "assemble")
    assert_ended(lwc("compile", mlp, "-o", folder.parent / "out", "--timeout", "1000"), folder)


def test_during_the_work_of_a_c_compiler(lwc, mlp, folder, monkeypatch, tmp_path_factory):
    slow = tmp_path_factory.mktemp("bin") / "slow-cc"
    slow.write_text('#!/bin/sh\n[ "$1" = --version ] && echo slow 1 || exec sleep 60\n')
    slow.chmod(0o755)
    soon(monkeypatch, "codegen.link", "_run")
    assert_ended(lwc("compile", mlp, "-o", folder.parent / "out", "--cc", slow, "--timeout", "1000"), folder)


def test_during_measurements(lwc, mlp, folder, monkeypatch):
    monkeypatch.setattr("lwc_compiler.codegen.tune._WORTH_CYCLES", 0)
    monkeypatch.setattr("lwc_compiler.codegen.tune._SECONDS", 60)
    soon(monkeypatch, "codegen.tune", "fastest")
    options = ("--sparsity", "0.5", "--prune-first", "--batch", "16", "--tune", "4")
    assert_ended(lwc("compile", mlp, "-o", folder.parent / "out", *options, "--timeout", "1000"), folder)
    assert [path.name for path in os.scandir(os.environ["LWC_CACHE"])] == ["results"]


def test_while_another_process_has_the_cache(lwc, mlp, folder, monkeypatch):
    import fcntl

    def taken(descriptor, how):
        if how & fcntl.LOCK_NB:
            raise BlockingIOError
        signal.setitimer(signal.ITIMER_REAL, 0.02)
        time.sleep(60)

    monkeypatch.setattr("lwc_compiler.cache.locks.fcntl.flock", taken)
    done = lwc("compile", mlp, "-o", folder.parent / "out", "--timeout", "1000")
    assert done.code == 124
    assert "waiting for another lwc that makes the same result" in done.err
