"""Times an artifact, side by side with ONNX Runtime.

Protocol: both run in this process, on the same inputs and the same number of threads. After a warm-up the two take
turns in short blocks, so that a slow phase of the machine hits both; each block begins with a pause, in which the other
one's threads stop spinning, and a run that is not counted. Every run is timed alone; the median is the figure.

On another machine (`via`) there is no ONNX Runtime: lwc's own code is timed there, that of the pruned and of the dense
model in turns, by the runner's clock (`runtime/c/runner.c`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime

from lwc_compiler.errors import DataError, TargetError
from lwc_compiler.model import Model, load_model
from lwc_compiler.runtime.artifact import Artifact, read_artifact
from lwc_compiler.runtime.elsewhere import RemoteSession, open_elsewhere
from lwc_compiler.runtime.layer_times import LayerTime, layer_times, milliseconds
from lwc_compiler.runtime.linkable import Linkable
from lwc_compiler.runtime.load import open_lowered, open_session
from lwc_compiler.runtime.manifest import Manifest
from lwc_compiler.runtime.reference import random_inputs, reference_session
from lwc_compiler.runtime.session import Session
from lwc_compiler.runtime.timing import Bench, Timing

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from lwc_compiler.codegen.result import Lowered, ProgramInfo, TensorSpec

_WARM_UP_SECONDS = 0.3
_BLOCK_SECONDS = 0.1
_BLOCKS_AT_LEAST = 5
_PAUSE_SECONDS = 0.01
_TURNS = 3
_DENSE = "lwc, not pruned"


def bench(
    directory: str | Path,
    *,
    against: str | Path | Model | None = None,
    threads: int | None = None,
    seconds: float = 3.0,
    layers: bool = False,
    via: str | None = None,
) -> Bench:
    """Times an artifact on random inputs.

    Args:
        directory: the artifact.
        against: an ONNX model with the same inputs, for example the one before pruning, to be run by ONNX Runtime.
        threads: threads of both; None: what the artifact was compiled for.
        seconds: time for the timed runs of each engine.
        layers: time the layers too; `against` is then compiled as it is, to be timed beside the artifact.
        via: where to run, see `load`; `against` is then compiled as it is, instead of being run by ONNX Runtime.

    Raises:
        ArtifactError, TargetError, OptionError, ToolchainError: see `load`.
        ModelError, UnsupportedError: `against` cannot be read or run.
        DataError: `against` has other inputs than the artifact.
    """
    artifact = read_artifact(directory)
    if via is not None:
        return _bench_elsewhere(artifact, via, against, threads, seconds, layers)
    with ExitStack() as stack:
        session = stack.enter_context(open_session(artifact, threads))
        inputs = random_inputs(load_model(artifact.model).proto, session.inputs, seed=0)
        engines: dict[str, Callable[[], object]] = {"lwc": lambda: session.run(inputs)}
        if against is not None:
            model = _model(against)
            reference = reference_session(model.proto, session.threads)
            _check_inputs(session.inputs, reference, model.name)
            names = [output.name for output in reference.get_outputs()]
            engines[f"ONNX Runtime {onnxruntime.__version__}"] = lambda: reference.run(names, inputs)
        profiled = [_Profiled(session, artifact.manifest.programs, inputs)] if layers else []
        if layers and against is not None:
            lowered = _lowered(model, artifact.manifest)
            dense = stack.enter_context(open_lowered(lowered, session.threads))
            engines[_DENSE] = lambda: dense.run(inputs)
            profiled.append(_Profiled(dense, lowered.programs, inputs))
        times = _interleave([*engines.values(), *(each.run for each in profiled)], seconds)
    found = dict(zip(engines, times, strict=False))
    entries = _layers(profiled, artifact.manifest) if layers else ()
    return _summary(session.threads, found, entries)


def _bench_elsewhere(
    artifact: Artifact,
    via: str,
    against: str | Path | Model | None,
    threads: int | None,
    seconds: float,
    layers: bool,
) -> Bench:
    manifest = artifact.manifest

    def opened(network: Linkable) -> RemoteSession:
        session = stack.enter_context(open_elsewhere(network, via, manifest.threads if threads is None else threads))
        if not isinstance(session, RemoteSession):
            raise TargetError(f"{manifest.target} is emulated without a clock: measure on the board itself")
        return session

    with ExitStack() as stack:
        session = opened(Linkable.of_artifact(artifact))
        engines = {"lwc": _Remote(session, manifest.programs)}
        if against is not None:
            model = _model(against)
            _check_inputs(session.inputs, reference_session(model.proto, session.threads), model.name)
            lowered = _lowered(model, manifest)
            dense = opened(Linkable.of_lowered(lowered, manifest.options.lower.cc))
            engines[_DENSE] = _Remote(dense, lowered.programs)
        inputs = random_inputs(load_model(artifact.model).proto, session.inputs, seed=0)
        for _ in range(_TURNS):
            for engine in engines.values():
                engine.time(inputs, seconds / _TURNS, steps=layers)
    found = {name: engine.turns for name, engine in engines.items()}
    entries = _layers(list(engines.values()), manifest) if layers else ()
    return _summary(session.threads, found, entries, session.where)


class _Remote:
    """An engine that runs, and times itself, elsewhere."""

    def __init__(self, session: RemoteSession, programs: Sequence[ProgramInfo]) -> None:
        self._session, self._programs = session, programs
        self.turns: list[list[float]] = []
        self.profiles: list[NDArray[np.float64]] = []

    def time(self, inputs: Mapping[str, Any], seconds: float, *, steps: bool) -> None:
        times = self._session.time(inputs, seconds, steps=steps)
        self.program = next(program for program in self._programs if program.target == times.target)
        self.turns.append(times.runs)
        self.profiles += times.steps


class _Profiled:
    """An engine that times its own steps."""

    def __init__(self, session: Session, programs: Sequence[ProgramInfo], inputs: Mapping[str, Any]) -> None:
        self.program = next(program for program in programs if program.target == session.target)
        self.profiles: list[NDArray[np.float64]] = []
        self._session, self._inputs = session, inputs

    def run(self) -> None:
        self.profiles.append(self._session.profile(self._inputs))


def _model(against: str | Path | Model) -> Model:
    return against if isinstance(against, Model) else load_model(against)


def _lowered(model: Model, manifest: Manifest) -> Lowered:
    """`model` compiled as the artifact was, without being pruned."""
    from lwc_compiler.passes.lower import lower

    return lower(model, manifest.options.lower.model_copy(update={"target": manifest.target}))


def _layers(profiled: Sequence[_Profiled | _Remote], manifest: Manifest) -> tuple[LayerTime, ...]:
    pruned, *dense = profiled
    beside = milliseconds(dense[0].program, dense[0].profiles) if dense else {}
    return layer_times(pruned.program, manifest.layers, pruned.profiles, beside)


def _interleave(engines: Sequence[Callable[[], object]], seconds: float) -> list[list[list[float]]]:
    """Seconds of every timed run of each engine, block by block."""
    for run in engines:
        start = time.perf_counter()
        while time.perf_counter() - start < _WARM_UP_SECONDS:
            run()
    times: list[list[list[float]]] = [[] for _ in engines]
    for _ in range(max(_BLOCKS_AT_LEAST, round(seconds / _BLOCK_SECONDS))):
        for run, blocks in zip(engines, times, strict=True):
            time.sleep(_PAUSE_SECONDS)
            run()
            blocks.append(spent := [])
            block = time.perf_counter()
            while (start := time.perf_counter()) - block < _BLOCK_SECONDS:
                run()
                spent.append(time.perf_counter() - start)
    return times


def _summary(
    threads: int, times: Mapping[str, list[list[float]]], layers: tuple[LayerTime, ...], where: str = ""
) -> Bench:
    """The figures from the seconds of every run, by engine and block."""
    timings = tuple(_timing(engine, blocks) for engine, blocks in times.items())
    if len(timings) == 1:
        return Bench(threads, timings, None, None, layers, where)
    first, second = (_medians(blocks) for blocks in list(times.values())[:2])
    spread = _half_interquartile_range(second / first)
    return Bench(threads, timings, timings[1].median_ms / timings[0].median_ms, spread, layers, where)


def _timing(engine: str, blocks: list[list[float]]) -> Timing:
    runs = np.concatenate(blocks)
    median, least, p90 = (1e3 * float(np.quantile(runs, q)) for q in (0.5, 0.0, 0.9))
    spread = 1e3 * _half_interquartile_range(_medians(blocks))
    return Timing(engine, len(runs), median, least, p90, spread)


def _medians(blocks: list[list[float]]) -> NDArray[np.float64]:
    return np.array([np.median(block) for block in blocks])


def _half_interquartile_range(values: NDArray[np.float64]) -> float:
    low, high = np.quantile(values, (0.25, 0.75))
    return float(high - low) / 2


def _check_inputs(inputs: Sequence[TensorSpec], reference: onnxruntime.InferenceSession, name: str) -> None:
    expected = {value.name: value for value in reference.get_inputs()}
    if set(expected) != {spec.name for spec in inputs}:
        raise DataError(
            f"model '{name}' has inputs {', '.join(sorted(expected))}, the artifact "
            f"{', '.join(sorted(spec.name for spec in inputs))}: give the model the artifact was compiled from"
        )
    for spec in inputs:
        shape = expected[spec.name].shape
        fits = len(shape) == len(spec.shape) and all(
            not isinstance(there, int) or there == here for there, here in zip(shape, spec.shape, strict=True)
        )
        if not fits:
            raise DataError(
                f"input '{spec.name}' of model '{name}' has shape {shape}, the artifact was compiled for "
                f"{list(spec.shape)}: give the model the artifact was compiled from, or compile it with that shape"
            )
