"""The tests of the ONNX project that lwc does not run, and why: pattern of the test's name -> reason."""

from __future__ import annotations

import re

_TYPES = "element types are bool, integers of 8 to 64 bits, float16, float32 and float64"
_STRINGS = "strings are not handled"
_SEQUENCES = "sequences and optional values are not handled"
_CONTROL = "control flow that depends on the inputs is not handled"
_OUTPUT_SHAPE = "the shape of the output depends on the input's values"
_QUANTIZED = "integer arithmetic of quantized networks is not handled"
_TRAINING = "operators of training are not handled"
_RANDOM = "random numbers are not handled"
_EMPTY = "a tensor without elements as output is refused"
_RARE = "the operator is not handled"
_COMPUTED = "what must be known when compiling is computed from the inputs"
_HALF = "float16 is rounded after other steps than in the reference; one unit in the last place differs"

EXCLUDED: dict[str, str] = {
}  # fmt: skip


def reason(name: str) -> str | None:
    """Why test `name` is left out; None when it runs."""
    return next((why for pattern, why in EXCLUDED.items() if re.search(pattern, name)), None)
