"""Runs the training process and turns whatever becomes of it into a result or an error.

The training runs in a process of its own because ONNX Runtime's gradient builder aborts on some graphs.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from lwc_compiler import errors
from lwc_compiler.errors import LwcError, TrainingError
from lwc_compiler.training.job import LOG
from lwc_compiler.training.progress import Progress

LOG_LINES = 5  # how much of a dead child's last words goes into the error
GRACE_SECONDS = 5.0
# NumPy has little to multiply in a training; threads of its own would only wait in the way of ONNX Runtime's.
ENVIRONMENT = {"OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


def run_worker(directory: Path, progress: Callable[[Progress], None] | None) -> None:
    """Trains the job in `directory` and waits; the child ends when this function is left in any way.

    Raises:
        LwcError: the one the child raised.
        TrainingError: the child died.
    """
    failure: LwcError | None = None
    done = False
    command = [sys.executable, "-m", "lwc_compiler.training.worker", str(directory)]
    with (directory / LOG).open("w+", encoding="utf-8", errors="replace") as log:
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            encoding="utf-8",
            env=ENVIRONMENT | os.environ,
        )
        assert child.stdout is not None
        try:
            for line in child.stdout:
                message = json.loads(line)
                if "progress" in message:
                    if progress is not None:
                        progress(Progress(**message["progress"]))
                elif "error" in message:
                    failure = getattr(errors, message["error"])(message["message"])
                else:
                    done = True
            child.wait()
        finally:
            stop(child)
            child.stdout.close()
    if failure is not None:
        raise failure
    if not done:
        raise TrainingError(describe_death(child.returncode, (directory / LOG).read_text("utf-8", errors="replace")))


def stop(child: subprocess.Popen[str]) -> None:
    """Ends the child and waits for it."""
    if child.poll() is None:
        child.terminate()
        try:
            child.wait(GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


def describe_death(code: int, log: str) -> str:
    """What happened to a child that left with `code`, and its last words."""
    if code < 0:
        try:
            name = signal.Signals(-code).name
        except ValueError:
            name = f"signal {-code}"
        what = f"the training process was ended by {name}"
        if -code == signal.SIGKILL:
            what += " (the system does that when memory runs out: try a smaller batch size)"
    else:
        what = f"the training process ended with exit code {code}"
    lines = [line for line in log.splitlines() if line.strip()][-LOG_LINES:]
    said = "\n  ".join(["; its last words:", *lines]) if lines else ""
    return f"{what}. Running it again with the same work directory goes on from the last finished epoch{said}"
