"""Runs engines side by side: a process each, all of which sleep but the one whose turn it is."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from benchmarks.peers.environments import CACHE, ONNXRUNTIME, UnavailableError, install
from benchmarks.peers.files import WORKERS, Network, last_line

WARM_UP_SECONDS = 0.5
BLOCK_SECONDS = 0.3
ROUNDS_AT_LEAST = 5
_PROBE_SIZE, _PROBE_SECONDS = 768, 0.03
_CLOSE_SECONDS = 20
# Threads are told to engines one by one; this is for the libraries below them.
_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


class Worker:
    """A process that holds one model in one engine; see `workers/serve.py`.

    It is stopped by a signal whenever it has nothing to do, so that no thread of it can take time from the others.
    """

    def __init__(
        self, python: Path, script: str, model: Path, array: Path, threads: int, variables: Mapping[str, str]
    ) -> None:
        readable, writable = os.pipe()
        job = json.dumps({"model": str(model), "input": str(array), "threads": threads, "answers": writable})
        self._answers = os.fdopen(readable)
        self._log = tempfile.NamedTemporaryFile(prefix="worker-", suffix=".log")  # noqa: SIM115 - until it is closed
        self._process = subprocess.Popen(
            [python, WORKERS / script, job],
            stdin=subprocess.PIPE,
            stdout=self._log,
            stderr=self._log,
            pass_fds=[writable],
            text=True,
            env=os.environ | dict.fromkeys(_VARIABLES, str(threads)) | dict(variables),
        )
        os.close(writable)
        try:
            self._answer()
        except UnavailableError:
            self.close()
            raise

    def run(self, seconds: float) -> list[float]:
        """The seconds of every run in a block of `seconds`."""
        times: list[float] = self._ask({"run": seconds})
        return times

    def output(self) -> NDArray[np.float32]:
        """What the model computes."""
        with tempfile.TemporaryDirectory(prefix="lwc-") as folder:
            path = Path(folder) / "output.npy"
            self._ask({"output": str(path)})
            array: NDArray[np.float32] = np.load(path)
            return array

    def close(self) -> None:
        """Ends the process."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGCONT)
        try:
            self._process.communicate(timeout=_CLOSE_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.communicate()
        self._answers.close()
        self._log.close()

    def _ask(self, question: dict[str, Any]) -> Any:
        self._process.send_signal(signal.SIGCONT)
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(question) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise UnavailableError(f"its process died: {last_line(Path(self._log.name))}") from None
        return self._answer()

    def _answer(self) -> Any:
        line = self._answers.readline()
        if not line:
            raise UnavailableError(f"its process died: {last_line(Path(self._log.name))}")
        answer = json.loads(line)
        if isinstance(answer, dict):
            raise UnavailableError(answer["error"])
        self._process.send_signal(signal.SIGSTOP)
        return answer


@contextmanager
def pinned(threads: int) -> Iterator[None]:
    """Keeps what is started meanwhile to the last `threads` of the cores that this process may use.

    Raises:
        UnavailableError: it may use fewer.
    """
    allowed = os.sched_getaffinity(0)
    if len(allowed) < threads:
        raise UnavailableError(f"{threads} threads need as many cores, and this process may use {len(allowed)}")
    os.sched_setaffinity(0, sorted(allowed)[-threads:])
    try:
        yield
    finally:
        os.sched_setaffinity(0, allowed)


def probe_worker() -> Worker:
    """A product of two matrices in ONNX Runtime: its speed tells whether the machine is as fast as before."""
    folder = CACHE / "models" / "probe"
    if not (folder / "input.npy").is_file():
        folder.mkdir(parents=True, exist_ok=True)
        shape = (_PROBE_SIZE, _PROBE_SIZE)
        values = np.full(shape, 0.5, np.float32)
        graph = helper.make_graph(
            [helper.make_node("MatMul", ["input", "weight"], ["output"])],
            "probe",
            [helper.make_tensor_value_info("input", TensorProto.FLOAT, shape)],
            [helper.make_tensor_value_info("output", TensorProto.FLOAT, shape)],
            [onnx.numpy_helper.from_array(values, "weight")],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
        onnx.save(model, folder / "model.onnx")
        np.save(folder / "input.npy", values)
    return Worker(install(ONNXRUNTIME), "run_onnxruntime.py", folder / "model.onnx", folder / "input.npy", 1, {})


def probe(worker: Worker) -> float:
    """GFLOP/s of one core."""
    return 2e-9 * _PROBE_SIZE**3 / float(np.median(worker.run(_PROBE_SECONDS)))


def reference(network: Network) -> NDArray[np.float32]:
    """What ONNX Runtime computes for a network."""
    path = network.folder / "reference.npy"
    if not path.is_file():
        worker = Worker(install(ONNXRUNTIME), "run_onnxruntime.py", network.onnx, network.input, 1, {})
        try:
            np.save(path, worker.output())
        finally:
            worker.close()
    output: NDArray[np.float32] = np.load(path)
    return output


def relative_error(output: NDArray[np.float32], expected: NDArray[np.float32]) -> float:
    """The largest difference, in parts of the largest expected value; infinite for an output of another size."""
    if output.size != expected.size or not np.isfinite(output).all():
        return float("inf")
    return float(np.abs(output.reshape(expected.shape) - expected).max() / np.abs(expected).max())


def take_turns(workers: Mapping[str, Worker], prober: Worker, seconds: float) -> tuple[dict[str, Any], list[float]]:
    """Times workers in turns, about `seconds` each, in rounds of one short block each.

    Returns:
        Name of a worker -> for each round the seconds of every run; the probe before every round and after the last.
    """
    for worker in workers.values():
        worker.run(WARM_UP_SECONDS)
    blocks: dict[str, Any] = {name: [] for name in workers}
    probes = [probe(prober)]
    for index in range(max(ROUNDS_AT_LEAST, round(seconds / BLOCK_SECONDS))):
        # Every other round goes backwards, so that nobody always follows the same engine.
        for name in list(workers)[:: -1 if index % 2 else 1]:
            blocks[name].append(workers[name].run(BLOCK_SECONDS))
        probes.append(probe(prober))
    return blocks, probes
