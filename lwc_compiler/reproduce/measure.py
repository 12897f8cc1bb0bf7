"""Measures finished ONNX files: errors with plain ONNX Runtime, so that nothing of the trainer takes part."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from onnx import numpy_helper

from lwc_compiler.model import Model, load_model
from lwc_compiler.packing import pack
from lwc_compiler.passes.sites import constant_tensors, find_sites
from lwc_compiler.report.document import Report
from lwc_compiler.report.table import layer_report
from lwc_compiler.reproduce.datasets import Files
from lwc_compiler.reproduce.results import Round, Trained
from lwc_compiler.reproduce.steps import Step
from lwc_compiler.reproduce.tables import layers_of
from lwc_compiler.training.data import read_npz

_BATCH = 1_000


def error_of(model: Path, data: Path) -> float:
    """Share of the images in `data` (`.npz` with `pixels` and `labels`) whose highest score is not their label's."""
    from lwc_compiler.runtime.reference import reference_session

    session, arrays = reference_session(load_model(model).proto, threads=1), read_npz(data)
    wrong = 0
    for start in range(0, len(arrays["labels"]), _BATCH):
        part = slice(start, start + _BATCH)
        (scores,) = session.run(["scores"], {"pixels": np.ascontiguousarray(arrays["pixels"][part])})
        wrong += int(np.count_nonzero(scores.argmax(axis=1) != arrays["labels"][part]))
    return wrong / len(arrays["labels"])


def trained_network(name: str, step: Step, data: Files) -> Trained:
    """The figures of the network that a step gave, those on the test images included."""
    model = step.load()
    weights, kept, parameters = count(model)
    return Trained(
        name=name,
        weights=weights,
        kept=kept,
        parameters=parameters,
        packed_bytes=len(pack(model)),
        validation_error=error_of(step.file, data.validation),
        test_error=error_of(step.file, data.test),
        rounds=_rounds(model),
        layers=layers_of(_layer_report(model, data.validation)),
        seconds=step.seconds,
        interrupted=step.interrupted,
    )


def count(model: Model) -> tuple[int, int, int]:
    """Weights, weights that are not zero, and the same with biases."""
    sites = {site.weight for site in find_sites(model.proto)}
    constants = {name: numpy_helper.to_array(tensor) for name, tensor in constant_tensors(model.proto.graph).items()}
    kept = sum(int(np.count_nonzero(constants[name])) for name in sites)
    parameters = sum(int(np.count_nonzero(array)) for array in constants.values() if array.dtype == np.float32)
    return sum(constants[name].size for name in sites), kept, parameters


def _rounds(model: Model) -> tuple[Round, ...]:
    """What the last call of `iterate` says of its rounds."""
    entry: dict[str, Any] = model.provenance[-1]
    if entry["pass"] != "iterate":
        return ()
    return tuple(
        Round(
            density=each["density"],
            error_before_retraining=None if each["metric_pruned"] is None else 1 - each["metric_pruned"],
            error=1 - each["metric"],
        )
        for each in entry["rounds"]
    )


def _layer_report(model: Model, data: Path) -> Report:
    from lwc_compiler.report.activations import measure_activations

    pixels = np.ascontiguousarray(read_npz(data)["pixels"])
    return layer_report(model, measure_activations(model, [{"pixels": pixels}], source="validation images"))
