"""Checks generated code against ONNX Runtime."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from lwc_compiler.errors import VerificationError
from lwc_compiler.runtime.artifact import Verification
from lwc_compiler.runtime.reference import random_inputs, reference_session
from lwc_compiler.runtime.session import open_lowered
from lwc_compiler.targets import find_target, missing_features

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from onnx import GraphProto

    from lwc_compiler.codegen.result import Lowered
    from lwc_compiler.model import Model

TOLERANCE = 1e-4
ROUNDS = 2


def verify(model: Model, lowered: Lowered) -> Verification:
    """Compares the library with ONNX Runtime on random inputs.

    Code for a CPU that this machine is not cannot run here: then the check is skipped, and says so. Of a library with
    code for several, all that can run here is checked.

    Args:
        model: what the library must compute: the pruned model in the user's own graph.
        lowered: the library.

    Raises:
        VerificationError: an output is further from ONNX Runtime's than `TOLERANCE` times its scale.
    """
    target = find_target(lowered.target)
    missing = missing_features(target)
    if missing and target.gpu is not None:
        return Verification({}, TOLERANCE, 0, f"there is no GPU here that runs code for {lowered.target}")
    if missing:
        return Verification({}, TOLERANCE, 0, f"this CPU cannot run code for {lowered.target}: no {', '.join(missing)}")
    errors = {spec.name: 0.0 for spec in lowered.outputs}
    names = list(errors)
    ranges = dict.fromkeys(_sigmoids(model.proto.graph), 1.0)
    reference = reference_session(model.proto, lowered.threads)
    runnable = [program.target for program in lowered.programs if not missing_features(find_target(program.target))]
    with open_lowered(lowered, lowered.threads) as session:
        for seed in range(ROUNDS):
            inputs = random_inputs(model.proto, lowered.inputs, seed)
            outcome = reference.run(names, inputs)
            for variant in runnable:
                session.use_target(variant)
                outputs = session.run(inputs)
                for name, expected in zip(names, outcome, strict=True):
                    errors[name] = max(errors[name], relative_error(outputs[name], expected, ranges.get(name)))
    worst = max(errors, key=errors.__getitem__)
    if not errors[worst] <= TOLERANCE:
        raise VerificationError(
            f"output '{worst}' of the generated code is off by {errors[worst]:.3g} of its scale from ONNX Runtime "
            f"(at most {TOLERANCE:g} is accepted): this is a defect in lwc; please report it with the model. "
            "Nothing was written"
        )
    return Verification(errors, TOLERANCE, ROUNDS)


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
    scale = scale or float(np.abs(b[finite]).max()) or 1.0
    return float(np.abs(a[finite] - b[finite]).max()) / scale


def _sigmoids(graph: GraphProto) -> set[str]:
    """Outputs that are sigmoids: their scale is their range, 1.

    Far out on its tail, where random inputs can drive it, a sigmoid multiplies the relative error of its input by the
    input's size: two optimization levels of ONNX Runtime differ there by more than any tolerance of the largest value.
    """
    made_by = {name: node.op_type for node in graph.node for name in node.output}
    return {value.name for value in graph.output if made_by.get(value.name) in ("Sigmoid", "HardSigmoid")}
