"""Processes that run PyTorch: they compile at the same time, wait, and measure one after the other when told to.

A process has one job: a network in one precision, or the layers. Its lines of output are JSON: `{"ready": true}` once,
then what it finds, as it finds it.
"""

from __future__ import annotations

import importlib.util
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    from typing_extensions import Self

_READY = {"ready": True}
_LATE = "not ready in time"
_NETWORK_SECONDS = 20.0  # to measure one
_LAYERS_SECONDS = 60.0
_START_SECONDS = 30.0  # of a process that compiles nothing
_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "TORCHINDUCTOR_COMPILE_THREADS": "1",  # there are as many processes as cores
    "TOKENIZERS_PARALLELISM": "false",
}


class Process:
    """A process with a job, started at once.

    Args:
        command: what to run.
        folder: of what it says on standard error, and of what PyTorch compiles.
        name: of the file in it.
    """

    def __init__(self, command: Sequence[str], folder: Path, name: str) -> None:
        self._errors = folder / f"{name}.log"
        environment = os.environ | _ENVIRONMENT | {"TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor")}
        with self._errors.open("w", encoding="utf-8") as errors:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True,
                start_new_session=True, env=environment,
            )  # fmt: skip
        self._said: queue.Queue[dict[str, Any] | None] = queue.Queue()
        self._early: list[dict[str, Any]] = []  # what it found before it was ready
        assert self._process.stdout is not None
        self._listener = threading.Thread(target=self._listen, args=(self._process.stdout,), daemon=True)
        self._listener.start()

    def _listen(self, stdout: IO[str]) -> None:
        with stdout:
            for line in stdout:
                if line.startswith("{"):
                    self._said.put(json.loads(line))
        self._said.put(None)

    def wait_ready(self, seconds: float) -> str | None:
        """Waits until it is ready; gives the reason why it is not."""
        end = time.monotonic() + seconds
        while True:
            try:
                said = self._said.get(timeout=max(0.0, end - time.monotonic()))
            except queue.Empty:
                return _LATE
            if said is None or "missing" in said:
                return said["missing"] if said else self._last_words()
            if said == _READY:
                return None
            self._early.append(said)

    def measure(self, seconds: float) -> Iterator[dict[str, Any]]:
        """Lets it go on; what it finds, and in the end perhaps the reason why there is no more, as `missing`."""
        end = time.monotonic() + seconds
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # it has ended: what it said, or its last words, say why
            self._process.stdin.write("go\n")
            self._process.stdin.flush()
        yield from self._early
        while True:
            try:
                said = self._said.get(timeout=max(0.0, end - time.monotonic()))
            except queue.Empty:
                yield {"missing": "the time was up"}
                return
            if said is None:
                if self._process.wait():
                    yield {"missing": self._last_words()}
                return
            yield said

    def end(self) -> None:
        """Ends it, with all that it started, and waits until the GPU has nothing of it."""
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._listener.join()
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            self._process.stdin.close()

    def _last_words(self) -> str:
        said = self._errors.read_text(encoding="utf-8", errors="replace").strip()
        return said.splitlines()[-1][:300] if said else f"it ended with status {self._process.wait()}"


class Job:
    """The other side: what a process says, and when it waits."""

    def __init__(self) -> None:
        self._waited = False

    def say(self, said: dict[str, Any]) -> None:
        print(json.dumps(said), flush=True)

    def wait(self) -> None:
        """Says, once, that it is ready, and waits until it may use the GPU alone.

        Raises:
            SystemExit: the other process is gone.
        """
        if not self._waited:
            self._waited = True
            self.say(_READY)
            if not sys.stdin.readline():
                sys.exit(1)


class Beside:
    """All processes that there are to be; a context manager, which ends them.

    Args:
        networks: of the bundle's table.
        program: the command that runs a job, but for its arguments.
        precisions: in which networks and layers are measured; batches above 1 in the first alone.
        folder: see `Process`.
    """

    def __init__(
        self, networks: Sequence[dict[str, Any]], program: Sequence[str], precisions: Sequence[str], folder: Path
    ) -> None:
        self._program, self._precisions, self._folder = program, precisions, folder
        numbers = {(entry["model"], entry["batch"]): number for number, entry in enumerate(networks)}
        self._jobs: dict[str, dict[str, Any]] = {}  # in the order in which they are measured
        for precision in precisions:
            for (model, batch), number in sorted(numbers.items(), key=lambda item: item[0][1]):
                if batch == 1 or precision == precisions[0]:
                    self._jobs[f"{number} {precision}"] = {"model": model, "batch": batch, "precision": precision}
            self._jobs["layers"] = {}
        self._processes: dict[str, Process] = {}
        if importlib.util.find_spec("torch") is not None:
            self._processes = {job: self._start(job) for job in self._jobs}

    def _start(self, job: str) -> Process:
        arguments = ["--torch-job", job, "--precisions", *self._precisions]
        return Process([*self._program, *arguments], self._folder, job.replace(" ", "-"))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes.values():
            process.end()

    def measure(self, ready: float, until: float) -> dict[str, Any]:
        """Lets one after the other measure; those that still compile start anew, and do not compile.

        Args:
            ready: seconds in which all have to be ready.
            until: seconds in which all have to be done.

        Returns:
            `versions`; `layers`, `name` and way -> milliseconds; `networks`, `model`, `batch`, `precision` and what
            `torch_side.network_times` gives. `missing` says why something is not there.

        Raises:
            ImportError: PyTorch is not installed.
            RuntimeError: it cannot use the GPU.
        """
        if not self._processes:
            raise ImportError("PyTorch is not installed")
        start = time.monotonic()
        reasons = {job: p.wait_ready(start + ready - time.monotonic()) for job, p in self._processes.items()}
        if all(reason not in (None, _LATE) for reason in reasons.values()):
            raise RuntimeError(reasons["layers"])
        for job in [job for job, reason in reasons.items() if reason == _LATE]:
            self._processes[job].end()
            self._processes[job] = self._start(f"{job} uncompiled")
            reasons[job] = self._processes[job].wait_ready(_START_SECONDS)
        found: dict[str, Any] = {"versions": {}, "layers": [], "networks": []}
        for job, about in self._jobs.items():
            most = _NETWORK_SECONDS if about else _LAYERS_SECONDS
            left = min(most, start + until - time.monotonic())
            reason = reasons[job] or ("the time was up" if left < 1 else None)
            rows = [{"missing": reason}] if reason else self._processes[job].measure(left)
            if about:
                found["networks"].append(about)
            for row in rows:
                if about:
                    about |= row
                elif "versions" in row:
                    found |= row
                else:
                    found["layers"].append({"name": "all", **row} if "missing" in row else row)
            self._processes[job].end()
        return found
