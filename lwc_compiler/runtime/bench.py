"""Times an artifact, side by side with ONNX Runtime.

Protocol: both run in this process, on the same inputs and the same number of threads. After a warm-up the two take
turns in short blocks, so that a slow phase of the machine hits both; each block begins with a pause, in which the other
one's threads stop spinning, and a run that is not counted. Every run is timed alone; the median is the figure.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime

from lwc_compiler.errors import DataError
from lwc_compiler.model import Model, load_model
from lwc_compiler.runtime.artifact import read_artifact
from lwc_compiler.runtime.reference import random_inputs, reference_session
from lwc_compiler.runtime.session import Session, open_session

_WARM_UP_SECONDS = 0.3
_BLOCK_SECONDS = 0.1
_BLOCKS_AT_LEAST = 5
_PAUSE_SECONDS = 0.01


@dataclass(frozen=True)
class Timing:
    """Time of one run.

    Attributes:
        engine: what ran.
        runs: runs that were timed.
        median_ms: median, in milliseconds.
        min_ms: fastest run.
        p90_ms: nine in ten runs were at most this long.
    """

    engine: str
    runs: int
    median_ms: float
    min_ms: float
    p90_ms: float


@dataclass(frozen=True)
class Bench:
    """Timings of an artifact and, when asked for, of ONNX Runtime.

    Attributes:
        threads: threads of both.
        timings: lwc first.
        speedup: ONNX Runtime's median / lwc's; None without ONNX Runtime.
    """

    threads: int
    timings: tuple[Timing, ...]
    speedup: float | None


def bench(
    directory: str | Path,
    *,
    against: str | Path | Model | None = None,
    threads: int | None = None,
    seconds: float = 3.0,
) -> Bench:
    """Times an artifact on random inputs.

    Args:
        directory: the artifact.
        against: an ONNX model with the same inputs, for example the one before pruning, to be run by ONNX Runtime.
        threads: threads of both; None: what the artifact was compiled for.
        seconds: time for the timed runs of each engine.

    Raises:
        ArtifactError, TargetError, OptionError: see `load`.
        ModelError, UnsupportedError: `against` cannot be read or run.
        DataError: `against` has other inputs than the artifact.
    """
    artifact = read_artifact(directory)
    with open_session(artifact, threads) as session:
        inputs = random_inputs(load_model(artifact.model).proto, session.inputs, seed=0)
        engines: dict[str, Callable[[], object]] = {"lwc": lambda: session.run(inputs)}
        if against is not None:
            model = against if isinstance(against, Model) else load_model(against)
            reference = reference_session(model.proto, session.threads)
            _check_inputs(session, reference, model.name)
            names = [output.name for output in reference.get_outputs()]
            engines[f"ONNX Runtime {onnxruntime.__version__}"] = lambda: reference.run(names, inputs)
        timings = tuple(_timing(engine, times) for engine, times in _interleave(engines, seconds).items())
    speedup = timings[1].median_ms / timings[0].median_ms if len(timings) > 1 else None
    return Bench(session.threads, timings, speedup)


def _interleave(engines: dict[str, Callable[[], object]], seconds: float) -> dict[str, list[float]]:
    """Engine -> seconds of every timed run."""
    for run in engines.values():
        start = time.perf_counter()
        while time.perf_counter() - start < _WARM_UP_SECONDS:
            run()
    times: dict[str, list[float]] = {engine: [] for engine in engines}
    for _ in range(max(_BLOCKS_AT_LEAST, round(seconds / _BLOCK_SECONDS))):
        for engine, run in engines.items():
            time.sleep(_PAUSE_SECONDS)
            run()
            block = time.perf_counter()
            while (start := time.perf_counter()) - block < _BLOCK_SECONDS:
                run()
                times[engine].append(time.perf_counter() - start)
    return times


def _timing(engine: str, times: list[float]) -> Timing:
    median, least, p90 = (1e3 * float(np.quantile(times, q)) for q in (0.5, 0.0, 0.9))
    return Timing(engine, len(times), median, least, p90)


def _check_inputs(session: Session, reference: onnxruntime.InferenceSession, name: str) -> None:
    expected = {value.name: value for value in reference.get_inputs()}
    if set(expected) != {spec.name for spec in session.inputs}:
        raise DataError(
            f"model '{name}' has inputs {', '.join(sorted(expected))}, the artifact "
            f"{', '.join(sorted(spec.name for spec in session.inputs))}: give the model the artifact was compiled from"
        )
    for spec in session.inputs:
        shape = expected[spec.name].shape
        fits = len(shape) == len(spec.shape) and all(
            not isinstance(there, int) or there == here for there, here in zip(shape, spec.shape, strict=True)
        )
        if not fits:
            raise DataError(
                f"input '{spec.name}' of model '{name}' has shape {shape}, the artifact was compiled for "
                f"{list(spec.shape)}: give the model the artifact was compiled from, or compile it with that shape"
            )
