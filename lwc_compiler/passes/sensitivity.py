"""The sensitivity scan: how good the network is with one layer pruned (Han et al. 2015, section 3.4, figure 6).

Nothing is retrained. Weights are inputs of the graph that is measured (`training/evaluate.py`), so a measurement sets
one weight, runs the sample and puts the weight back. Several threads measure at once, each with a session of its own
that uses one core; ONNX Runtime and NumPy release Python's lock while they work.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import numpy_helper

from lwc_compiler.errors import ArtifactError, ModelError, TrainingError
from lwc_compiler.model import Model
from lwc_compiler.passes.calibration import Norms, input_norms, open_sample
from lwc_compiler.passes.sites import constant_tensors, find_sites
from lwc_compiler.recipe.options import PruneOptions, RetrainOptions, SensitivityOptions
from lwc_compiler.report.table import layer_report
from lwc_compiler.sparsity.allocation import Budget, quality_factors
from lwc_compiler.sparsity.curves import Point, Sensitivity, SiteCurve, Suggestion
from lwc_compiler.sparsity.masks import Layer, choose_masks, parse_structure
from lwc_compiler.training.evaluate import Evaluator

LOG = "sensitivity.jsonl"
_DENSE = ""  # stands in the log for the weight when nothing is pruned


@dataclass(frozen=True)
class ScanProgress:
    """A moment of a scan.

    Attributes:
        done: measurements there are, those of an earlier run included.
        total: measurements there will be.
        seconds_left: estimate; None until one was timed.
    """

    done: int
    total: int
    seconds_left: float | None


def sensitivity(
    model: Model,
    data: str,
    options: SensitivityOptions | None = None,
    *,
    workdir: Path | None = None,
    progress: Callable[[ScanProgress], None] | None = None,
) -> Sensitivity:
    """Measures the model with each prunable layer pruned alone to each density.

    Masks are those of the prune pass with the criterion `per-layer`. A layer starts at the density that it has in the
    model; a density that leaves as many weights as the one before it (in a small layer) is left out.

    Args:
        model: left as it is.
        data: see `lwc_compiler.training.data`; labels of classes give accuracy and loss, other labels a loss, and data
            without labels the distance to the outputs of the model as it is.
        options: None: the defaults.
        workdir: directory in which every measurement is kept, in `sensitivity.jsonl`: the same call goes on where it
            was interrupted, and measures nothing when it was done. Scans of other models, data or options can be kept
            in the same directory. None: nothing is kept.
        progress: called after every measurement.

    Raises:
        ModelError: there is no float32 weight that can be pruned.
        DataError: the data does not exist, does not fit the model, or its labels do not fit the loss.
        UnsupportedError: no loss can be computed for the model.
        TrainingError: the loss of the dense model is NaN or Inf.
        ArtifactError: `workdir` cannot be written.
    """
    options = SensitivityOptions() if options is None else options
    scan = _Scan(model, data, options)
    log = _Log(workdir, scan.fingerprint())
    _measure_missing(scan, log, options.workers or os.cpu_count() or 1, progress)
    dense = log.found[_DENSE, 1.0]
    return Sensitivity(
        model=model.name,
        metric=dense["metric"],
        structure=options.structure,
        score=options.score,
        samples=scan.sample.samples,
        dense=Point(1.0, dense["loss"], dense["accuracy"]),
        sites=scan.curves(log.found),
    )


def _measure_missing(scan: _Scan, log: _Log, workers: int, progress: Callable[[ScanProgress], None] | None) -> None:
    """Everything that is not in the log."""
    pool = _Evaluators(scan)
    if (_DENSE, 1.0) not in log.found:
        log.add(_DENSE, 1.0, pool.dense())
    missing = [point for point in scan.points if point not in log.found]
    started, done = time.monotonic(), len(scan.points) - len(missing)

    def report(measured: int) -> None:
        if progress is not None:
            seconds = (time.monotonic() - started) / measured * (len(missing) - measured) if measured else None
            progress(ScanProgress(done + measured, len(scan.points), seconds))

    report(0)
    executor = ThreadPoolExecutor(workers)
    try:
        futures = {executor.submit(pool.measure, *point): point for point in missing}
        for measured, future in enumerate(as_completed(futures), start=1):
            log.add(*futures[future], future.result())
            report(measured)
    finally:
        # Ctrl-C waits for the measurements that run, not for those that have not begun.
        executor.shutdown(cancel_futures=True)


def suggest(model: Model, found: Sensitivity, budget: Budget, weights: Iterable[str] | None = None) -> Suggestion:
    """The densities of `weights` that meet `budget` with the least loss, and their quality factors.

    Args:
        model: the one that was scanned.
        found: the scan.
        budget: for `weights` together.
        weights: None: all that were scanned.

    Raises:
        OptionError: the budget is out of reach.
    """
    densities = found.densities(budget, weights)
    constants = constant_tensors(model.proto.graph)
    values = {name: numpy_helper.to_array(constants[name]) for name in densities}
    return Suggestion(budget, densities, quality_factors(values, densities))


class _Scan:
    """What is measured.

    Attributes:
        sample: the data.
        points: (weight, density) of every measurement but the dense one, in the order of the graph, densities falling.
    """

    def __init__(self, model: Model, data: str, options: SensitivityOptions) -> None:
        self.model, self.options = model, options
        found = [site for site in find_sites(model.proto) if site.dtype == "float32" and not site.other_uses]
        if not found:
            raise ModelError(
                f"model '{model.name}' has no layer whose sensitivity could be measured: none of its nodes is a Conv, "
                "ConvTranspose, Gemm, MatMul or recurrent layer with a constant float32 weight of its own"
            )
        self._sites = {site.weight: site for site in found}
        constants = constant_tensors(model.proto.graph)
        self._weights = {name: numpy_helper.to_array(constants[name]) for name in self._sites}
        self._kept = {name: self._kept_weights(name) for name in self._sites}
        self.sample = open_sample(model.proto, data, options.samples)
        self._norms: Norms = input_norms(model, data) if options.score == "activation" else {}
        self.points = [(name, density) for name in self._sites for density in self._densities(name)]

    def _kept_weights(self, name: str) -> NDArray[np.bool_]:
        kept: NDArray[np.bool_] = self._weights[name] != 0
        return kept & self.model.masks[name] if name in self.model.masks else kept

    def _density(self, name: str) -> float:
        """Of the layer as it is."""
        return int(self._kept[name].sum()) / self._sites[name].size

    def _densities(self, name: str) -> list[float]:
        highest = parse_structure(self.options.structure).highest_density
        asked = {density for density in self.options.densities if density < highest}
        return sorted((density for density in asked | {highest} if density < self._density(name)), reverse=True)

    def evaluator(self) -> Evaluator:
        """A session of its own, with the model's weights; weights outside the masks are 0."""
        options = RetrainOptions(
            batch_size=self.options.batch_size, loss=self.options.loss, batch_norm="frozen", threads=1
        )
        proto = self.model.proto
        evaluator = Evaluator(proto, set(self._sites), self.sample, self.sample.labels, options, proto)
        for name, kept in self._kept.items():
            np.copyto(evaluator.weights.trained[name], 0, where=~kept)
        return evaluator

    def measure(self, evaluator: Evaluator, name: str, density: float) -> dict[str, Any]:
        """The model with layer `name` alone at `density`."""
        site, weight = self._sites[name], evaluator.weights.trained[name]
        layer = Layer(
            matrix=site.to_matrix(self._weights[name]),
            kept=site.to_matrix(self._kept[name]),
            shape=site.shape,
            row_groups=site.row_groups,
            positions=site.positions,
            norms=self._norms.get(name),
        )
        rule = PruneOptions(criterion="per-layer", densities={name: density}, structure=self.options.structure)
        mask = site.from_matrix(choose_masks({name: layer}, rule)[name].mask)
        original = weight.copy()
        np.copyto(weight, 0, where=~mask)
        score = evaluator.measure(self.sample)
        np.copyto(weight, original)
        quality = quality_factors({name: original}, {name: density})[name]
        return {"loss": score.loss, "accuracy": score.accuracy, "kept": int(mask.sum()), "quality": quality}

    def curves(self, found: dict[tuple[str, float], dict[str, Any]]) -> tuple[SiteCurve, ...]:
        """The result, from all measurements."""
        flops: dict[str, int | None] = {}
        for row in layer_report(self.model).layers:
            known = flops.get(row.site, 0)
            flops[row.site] = None if row.flops is None or known is None else row.flops + known
        dense = found[_DENSE, 1.0]
        curves = []
        for name, site in self._sites.items():
            points = [Point(self._density(name), dense["loss"], dense["accuracy"])]
            last = int(self._kept[name].sum())
            for density in self._densities(name):
                entry = found[name, density]
                if entry["kept"] < last:
                    points.append(Point(density, entry["loss"], entry["accuracy"], entry["quality"]))
                last = entry["kept"]
            curves.append(
                SiteCurve(name, site.nodes, site.op_types[0], site.shape, site.size, flops[name], tuple(points))
            )
        return tuple(curves)

    def fingerprint(self) -> str:
        """SHA-256 of everything that a measurement depends on, but weight and density."""
        settings = self.options.model_dump(mode="json", exclude={"densities", "workers"})
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
        graph = self.model.proto.graph
        # Part by part: the whole may be above the 2 GiB of a message.
        for part in (*self.model.proto.opset_import, *graph.input, *graph.output, *graph.node, *graph.initializer):
            digest.update(part.SerializeToString(deterministic=True))
        arrays: list[NDArray[Any]] = [*self._kept.values(), *self._norms.values()]
        for batch in self.sample.batches(self.sample.samples):
            arrays += [*batch.inputs.values(), *([] if batch.labels is None else [batch.labels])]
        for array in arrays:
            digest.update(f"{array.dtype}{array.shape}".encode())
            digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()


class _Evaluators:
    """Evaluators that no thread uses at the moment; a new one is made where there is none."""

    def __init__(self, scan: _Scan) -> None:
        self._scan = scan
        self._idle: SimpleQueue[Evaluator] = SimpleQueue()

    def measure(self, name: str, density: float) -> dict[str, Any]:
        evaluator = self._take()
        try:
            return self._scan.measure(evaluator, name, density)
        finally:
            self._idle.put(evaluator)

    def dense(self) -> dict[str, Any]:
        """The model as it is."""
        evaluator = self._take()
        score = evaluator.measure(self._scan.sample)
        if not np.isfinite(score.loss):
            raise TrainingError(
                f"the loss of model '{self._scan.model.name}' is {score.loss} before anything is pruned: look for odd "
                "values in the data"
            )
        self._idle.put(evaluator)
        return {"loss": score.loss, "accuracy": score.accuracy, "metric": evaluator.objective.metric}

    def _take(self) -> Evaluator:
        try:
            return self._idle.get_nowait()
        except Empty:
            return self._scan.evaluator()


class _Log:
    """Measurements, in a file where there is a directory: one JSON object a line, on the disk before it counts.

    Attributes:
        found: (weight, density) -> measurement with this fingerprint.
    """

    def __init__(self, directory: Path | None, fingerprint: str) -> None:
        self.found: dict[tuple[str, float], dict[str, Any]] = {}
        self._fingerprint = fingerprint
        self._path = None if directory is None else directory / LOG
        if self._path is not None and self._path.exists():
            self._read(self._path)

    def _read(self, path: Path) -> None:
        """Takes the lines of this scan, and cuts off a line that was not written to its end."""
        try:
            text = path.read_bytes()
            whole = text.rfind(b"\n") + 1
            for line in text[:whole].splitlines():
                entry = json.loads(line)
                if entry.pop("scan") == self._fingerprint:
                    self.found[entry.pop("weight"), entry.pop("density")] = entry
            if whole < len(text):
                os.truncate(path, whole)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ArtifactError(f"{path} cannot be used ({error}): delete it, or give another directory") from None

    def add(self, weight: str, density: float, entry: dict[str, Any]) -> None:
        """Keeps a measurement."""
        self.found[weight, density] = entry
        if self._path is None:
            return
        line = {"scan": self._fingerprint, "weight": weight, "density": density, **entry}
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("ab") as file:
                file.write(json.dumps(line).encode() + b"\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise ArtifactError(f"cannot write {self._path}: {error.strerror or error}") from error
