"""lwc as a backend in the sense of `onnx.backend.base`, for the ONNX project's tests.

Compiling and linking cost about as much for one node as for fifty, so tests with the same operator sets are compiled
together, as one graph with many inputs and outputs; a group that fails is halved until the failing test is alone.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx.backend.base import Backend, BackendRep

from lwc_compiler.backend import PreparedModel, supports_device
from lwc_compiler.model import Model
from lwc_compiler.recipe.options import LowerOptions
from tests.onnx_backend.cases import Array, Case, bind, collect, fingerprint, load_cases
from tests.onnx_backend.exclusions import reason

GROUP = 48


def group(cases: Sequence[Case]) -> list[list[Case]]:
    """Cases that can be compiled together: the same operator sets and IR version, and no branches.

    (`add_prefix` does not rename the values that a branch reads from around it.)
    """

    def key(case: Case) -> Any:
        return case.model.ir_version, sorted((o.domain, o.version) for o in case.model.opset_import)

    branching = [c for c in cases if any(a.HasField("g") for n in c.model.graph.node for a in n.attribute)]
    groups = [[case] for case in branching]
    alone = {case.fingerprint for case in branching}
    for _, same in itertools.groupby(sorted((c for c in cases if c.fingerprint not in alone), key=key), key):
        members = list(same)
        groups += [members[i : i + GROUP] for i in range(0, len(members), GROUP)]
    return groups


def merge(cases: Sequence[Case]) -> onnx.ModelProto:
    """One model that holds all of `cases`, the values of case i prefixed with `c<i>_`; a single one stays as it is."""
    if len(cases) == 1:
        return cases[0].model
    merged = onnx.ModelProto(ir_version=cases[0].model.ir_version)
    merged.opset_import.extend(cases[0].model.opset_import)
    merged.graph.name = "merged"
    for i, case in enumerate(cases):
        graph = onnx.compose.add_prefix(case.model, f"c{i}_").graph
        for field in ("node", "initializer", "input", "output"):
            getattr(merged.graph, field).extend(getattr(graph, field))
    return merged


def compile_and_run(cases: Sequence[Case]) -> list[list[Array]]:
    """The outputs of each case, compiled together.

    Raises:
        LwcError: one of them cannot be lowered.
    """
    model = merge(cases)
    prefixes = [f"c{i}_" if len(cases) > 1 else "" for i in range(len(cases))]
    feeds = {p + name: value for p, case in zip(prefixes, cases, strict=True) for name, value in case.inputs.items()}
    # Not by `prepare`, which reads no model of before opset 7.
    outputs = PreparedModel(Model(model, "merged"), LowerOptions()).run(feeds)
    return [[outputs[p + o.name] for o in case.model.graph.output] for p, case in zip(prefixes, cases, strict=True)]


def results(cases: Sequence[Case]) -> dict[str, list[Array] | Exception]:
    """Fingerprint -> outputs, or what went wrong."""
    try:
        return dict(zip([c.fingerprint for c in cases], compile_and_run(cases), strict=True))
    except Exception as error:
        if len(cases) == 1:
            return {cases[0].fingerprint: error}
        middle = len(cases) // 2
        return results(cases[:middle]) | results(cases[middle:])


class LwcBackendRep(BackendRep):
    """A model that is compiled when its first inputs are known, some of which become constants."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = model

    def run(self, inputs: Any, **_: Any) -> tuple[Array, ...]:
        values = [np.asarray(v) for v in inputs]
        outcome = _outcomes(fingerprint(self.model, values))
        if outcome is None:
            (outcome,) = results([bind("single", self.model, values)]).values()
        if isinstance(outcome, Exception):
            raise outcome
        return tuple(outcome)


class LwcBackend(Backend):
    @classmethod
    def prepare(cls, model: onnx.ModelProto, device: str = "CPU", **kwargs: Any) -> LwcBackendRep:
        super().prepare(model, device, **kwargs)
        return LwcBackendRep(model)

    @classmethod
    def supports_device(cls, device: str) -> bool:
        return supports_device(device)


@functools.cache
def _groups() -> dict[str, list[Case]]:
    """Fingerprint of a case -> the cases it is compiled with."""
    cases = [case for test in collect().values() if reason(test.name) is None for case in load_cases(test)]
    return {case.fingerprint: members for members in group(cases) for case in members}


_done: dict[str, list[Array] | Exception] = {}


def _outcomes(key: str) -> list[Array] | Exception | None:
    """What the case with fingerprint `key` gave; None when it belongs to no group."""
    if key not in _done and key in _groups():
        _done.update(results(_groups()[key]))
    return _done.get(key)
