"""The ONNX project's own backend tests, as data: models and inputs."""

from __future__ import annotations

import functools
import hashlib
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper
from onnx.backend.test.loader import load_model_tests

from lwc_compiler.codegen.frontend import CONSTANT_INPUTS

Array = NDArray[Any]
KINDS = ("node", "real", "simple", "pytorch-converted", "pytorch-operator")

# Inputs that functions (operators lowered by their definition) need to know when compiling.
_FUNCTION_CONSTANTS = {
    "AffineGrid": (1,), "BlackmanWindow": (0,), "CenterCropPad": (1,), "ConstantOfShape": (0,), "HammingWindow": (0,),
    "HannWindow": (0,), "Range": (0, 1, 2),
}  # fmt: skip
_SHAPE_ONLY = {"Shape", "Size"}


@dataclass(frozen=True)
class Case:
    """One test: a model and its inputs.

    Attributes:
        name: as the ONNX project calls it.
        fingerprint: of the ONNX project's model and inputs.
        model: the inputs that must be known when compiling are initializers, with the values of the test.
        inputs: graph input -> value, of those that are left.
    """

    name: str
    fingerprint: str
    model: onnx.ModelProto
    inputs: dict[str, Array]


@functools.cache
def collect() -> dict[str, Any]:
    """Name -> test of the onnx package."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the package computes its references with overflows and divisions by 0
        return {test.name: test for kind in KINDS for test in load_model_tests(kind=kind)}


def load_cases(test: Any) -> list[Case]:
    """One case for each data set of `test`."""
    if test.model is not None:
        return [bind(test.name, test.model, [_array(v) for v in values]) for values, _ in test.data_sets]
    folder = Path(test.model_dir)
    model = onnx.load(folder / "model.onnx")
    cases = []
    for data in sorted(folder.glob("test_data_set_*")):
        paths = sorted(data.glob("input_*.pb"), key=lambda path: int(path.stem.removeprefix("input_")))
        cases.append(bind(test.name, model, [_array(onnx.load_tensor(path)) for path in paths]))
    return cases


def _array(value: Any) -> Array:
    return numpy_helper.to_array(value) if isinstance(value, onnx.TensorProto) else np.asarray(value)


def fingerprint(model: onnx.ModelProto, values: Sequence[Array]) -> str:
    """The same for the same model and inputs."""
    digest = hashlib.sha256(model.SerializeToString(deterministic=True))
    for value in values:
        digest.update(f"{value.dtype}{value.shape}".encode() + np.ascontiguousarray(value).tobytes())
    return digest.hexdigest()


def bind(name: str, model: onnx.ModelProto, values: Sequence[Array]) -> Case:
    """`model` with `values` for its inputs."""
    bound = onnx.ModelProto()
    bound.CopyFrom(model)
    initializers = {i.name for i in model.graph.initializer}
    names = [i.name for i in model.graph.input if i.name not in initializers]
    inputs = dict(zip(names, values, strict=True))
    empty = {name for name, value in inputs.items() if not value.size}
    for known in (needed_constants(model) | empty) & inputs.keys():
        bound.graph.initializer.append(numpy_helper.from_array(inputs.pop(known), known))
    kept = [i for i in bound.graph.input if i.name in inputs]
    del bound.graph.input[:]
    bound.graph.input.extend(kept)
    bound.ir_version = max(bound.ir_version, 4)  # from which on initializers need not be inputs
    return Case(name, fingerprint(model, values), bound, inputs)


def needed_constants(model: onnx.ModelProto) -> set[str]:
    """The graph inputs whose values lwc must know when compiling."""
    makers = {output: node for node in model.graph.node for output in node.output}
    pending = [
        node.input[index]
        for node in model.graph.node
        for index in (CONSTANT_INPUTS | _FUNCTION_CONSTANTS).get(node.op_type, ())
        if index < len(node.input)
    ]
    seen: set[str] = set()
    while pending:
        name = pending.pop()
        if not name or name in seen:
            continue
        seen.add(name)
        if name in makers and makers[name].op_type not in _SHAPE_ONLY:
            pending.extend(_reads(makers[name]))
    return seen & {i.name for i in model.graph.input}


def _reads(node: onnx.NodeProto) -> set[str]:
    """The values `node` reads, in its branches too."""
    nested = (n for a in node.attribute if a.HasField("g") for n in a.g.node)
    return set(node.input).union(*map(_reads, nested))
