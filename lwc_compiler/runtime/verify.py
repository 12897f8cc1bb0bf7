"""Checks generated code against ONNX Runtime."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from lwc_compiler.codegen.bundle import TestVector
from lwc_compiler.errors import NotRunError, RoundingError, ToolchainError, VerificationError
from lwc_compiler.runtime.elsewhere import open_elsewhere
from lwc_compiler.runtime.linkable import Linkable
from lwc_compiler.runtime.load import open_lowered
from lwc_compiler.runtime.manifest import Rounding, Verification
from lwc_compiler.runtime.reference import random_inputs, reference_session
from lwc_compiler.runtime.source import compiled_source
from lwc_compiler.targets import find_target, missing_features

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from onnx import GraphProto

    from lwc_compiler.codegen.result import Lowered
    from lwc_compiler.model import Model
    from lwc_compiler.runtime.session import Session

TOLERANCE = 1e-4
# Where the factors of layers are rounded: 16 times the rounding error of one, which is 2^-11 with a significand of 11
# bits. The error of a layer is about twice that; errors add up with the square root of the number of layers.
_TOLERANCES = {"float32": TOLERANCE, "tf32": 2**-7, "float16": 2**-7, "bfloat16": 2**-4}
ROUNDS = 2
_ROUNDING_ROUNDS = 8
_EMULATED_ROUNDS = 1  # a run of a large network takes many seconds there
_EMULATED_SECONDS = 120  # of one run

_Arrays: TypeAlias = "Mapping[str, NDArray[np.generic]]"


def verify(model: Model, lowered: Lowered, cc: str | None = None) -> Verification:
    """Compares the library with ONNX Runtime on random inputs.

    Code for a CPU that this machine is not runs in an emulator, where there is one; else the check is skipped, and says
    so. Of a library with code for several, all that can run here is checked.

    Args:
        model: what the library must compute: the pruned model in the user's own graph, or one with the weights that
            the library has.
        lowered: the library.
        cc: the compiler that links programs with it, see `find_compiler`.

    Raises:
        VerificationError: an output is further from ONNX Runtime's than the precision's tolerance times its scale.
        TargetError: the code crashed in the emulator.
    """
    target = find_target(lowered.target)
    missing = missing_features(target)
    if not missing:
        with open_lowered(lowered, lowered.threads) as session:
            return _compared(model, lowered, lambda inputs: _on_every_target(session, lowered, inputs), ROUNDS)
    if target.source:
        with compiled_source(lowered) as run:
            return _compared(model, lowered, lambda inputs: [run(inputs)], ROUNDS)
    if target.gpu is not None:
        return Verification(
            {}, tolerance_of(lowered.precision), 0, f"there is no GPU here that runs code for {lowered.target}"
        )
    reason = f"this CPU cannot run code for {lowered.target}: no {', '.join(missing)}"
    if not target.emulator and target.os != "none":
        return Verification({}, TOLERANCE, 0, reason)
    try:
        with open_elsewhere(Linkable.of_lowered(lowered, cc), "qemu", lowered.threads) as emulated:
            emulated.limit_seconds = _EMULATED_SECONDS
            verification = _compared(model, lowered, lambda inputs: [emulated.run(inputs)], _EMULATED_ROUNDS)
            return replace(verification, emulator=emulated.where)
    except (NotRunError, ToolchainError) as error:
        return Verification({}, TOLERANCE, 0, f"{reason}; in an emulator: {error}")


def _on_every_target(session: Session, lowered: Lowered, inputs: _Arrays) -> Iterator[_Arrays]:
    """The outputs of every program of the library that this machine can run."""
    for program in lowered.programs:
        if not missing_features(find_target(program.target)):
            session.use_target(program.target)
            yield session.run(inputs)


def _compared(model: Model, lowered: Lowered, run: Callable[[_Arrays], Iterable[_Arrays]], rounds: int) -> Verification:
    """Compares all that `run` gives for some random inputs with ONNX Runtime's outputs."""
    errors = {spec.name: 0.0 for spec in lowered.outputs}
    names = list(errors)
    ranges = dict.fromkeys(_sigmoids(model.proto.graph), 1.0)
    reference = reference_session(model.proto, lowered.threads)
    for seed in range(rounds):
        inputs = random_inputs(model.proto, lowered.inputs, seed)
        outcome = reference.run(names, inputs)
        for outputs in run(inputs):
            for name, expected in zip(names, outcome, strict=True):
                errors[name] = max(errors[name], relative_error(outputs[name], expected, ranges.get(name)))
    worst, tolerance = max(errors, key=errors.__getitem__), tolerance_of(lowered.precision)
    if not errors[worst] <= tolerance:
        reason = "this is a defect in lwc; please report it with the model"
        if lowered.precision != "float32":
            reason = f"{lowered.precision} is not precise enough for the model, or has too few exponents: give float32"
        raise VerificationError(
            f"output '{worst}' of the generated code is off by {errors[worst]:.3g} of its scale from ONNX Runtime "
            f"(at most {tolerance:g} is accepted): {reason}. Nothing was written"
        )
    return Verification(errors, tolerance, rounds)


def tolerance_of(precision: str) -> float:
    """How far an output may be from ONNX Runtime's, of its scale."""
    return _TOLERANCES[precision]


def measure_rounding(
    model: Model, stored: Model, lowered: Lowered, limit: float, feeds: Sequence[_Arrays] = (), source: str = ""
) -> Rounding:
    """How far narrower weights move the outputs, by ONNX Runtime.

    Args:
        model: before rounding, with static shapes.
        stored: the same with the weights that the library has.
        lowered: the library.
        limit: largest change that is accepted, as a share of an output's scale.
        feeds: input name -> array, one mapping a run; empty: random inputs.
        source: what `feeds` are, for the reader of the report.

    Raises:
        RoundingError: an output changes by more than the limit.
    """
    if not feeds:
        feeds = [random_inputs(model.proto, lowered.inputs, seed) for seed in range(_ROUNDING_ROUNDS)]
        source = f"{_ROUNDING_ROUNDS} random inputs, not data"
    names = [spec.name for spec in lowered.outputs]
    errors, ranges = dict.fromkeys(names, 0.0), dict.fromkeys(_sigmoids(model.proto.graph), 1.0)
    before, after = (reference_session(each.proto, lowered.threads) for each in (model, stored))
    for feed in feeds:
        for name, exact, rounded in zip(names, before.run(names, feed), after.run(names, feed), strict=True):
            errors[name] = max(errors[name], relative_error(rounded, exact, ranges.get(name)))
    worst = max(errors, key=errors.__getitem__)
    if not errors[worst] <= limit:
        types = ", ".join(sorted({layer.weight_type for layer in lowered.layers} - {"float32"}))
        raise RoundingError(
            f"with weights in {types}, output '{worst}' moves by {errors[worst]:.3g} of its scale, measured with "
            f"{source} (at most {limit:g} is accepted). Nothing was written. Take a wider --weight-type, or accept "
            "more with --max-rounding-error"
        )
    return Rounding(errors, limit, source)


def make_test_vector(model: Model, lowered: Lowered) -> TestVector:
    """Random inputs, ONNX Runtime's outputs, and how far the library's may be from them: as `verify` accepts it."""
    inputs = random_inputs(model.proto, lowered.inputs, seed=0)
    outcome = reference_session(model.proto, lowered.threads).run([spec.name for spec in lowered.outputs], inputs)
    ranges = dict.fromkeys(_sigmoids(model.proto.graph), 1.0)
    scales = [ranges.get(s.name) or _scale(array) for s, array in zip(lowered.outputs, outcome, strict=True)]
    return TestVector(
        tuple(inputs[spec.name] for spec in lowered.inputs), tuple(outcome), tuple(TOLERANCE * s for s in scales)
    )


def relative_error(actual: NDArray[np.generic], expected: NDArray[np.generic], scale: float | None = None) -> float:
    """Error of `actual`: max |actual - expected| / scale, over the finite entries.

    The scale is max |expected| where none is given; that of an all-zero output is 1. The error is infinite when shapes
    differ, or when one has NaN or an infinity where the other has something else.
    """
    if actual.shape != expected.shape:
        return float("inf")
    a, b = actual.astype(np.float64), expected.astype(np.float64)
    finite = np.isfinite(b)
    if not np.array_equal(a[~finite], b[~finite], equal_nan=True) or not np.isfinite(a[finite]).all():
        return float("inf")
    if not finite.any():
        return 0.0
    return float(np.abs(a[finite] - b[finite]).max()) / (scale or _scale(expected))


def _scale(expected: NDArray[np.generic]) -> float:
    """The largest finite number's size; 1 where all are zero."""
    values = expected.astype(np.float64)
    return float(np.abs(values[np.isfinite(values)]).max(initial=0.0)) or 1.0


def _sigmoids(graph: GraphProto) -> set[str]:
    """Outputs that are sigmoids: their scale is their range, 1.

    Far out on its tail, where random inputs can drive it, a sigmoid multiplies the relative error of its input by the
    input's size: two optimization levels of ONNX Runtime differ there by more than any tolerance of the largest value.
    """
    made_by = {name: node.op_type for node in graph.node for name in node.output}
    return {value.name for value in graph.output if made_by.get(value.name) in ("Sigmoid", "HardSigmoid")}
