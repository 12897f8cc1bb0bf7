"""Names, types, strings and numbers as C99 text."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

_COLUMNS = 120
_TYPES = {"float32": "float", "float64": "double", "bool": "bool"}


def c_identifier(name: str) -> str:
    """`name` as a C identifier: other characters become `_`, a leading digit gets one before it."""
    text = re.sub(r"\W", "_", name, flags=re.ASCII)
    return text if re.match(r"[A-Za-z_]", text) else f"_{text}"


def c_string(text: str) -> str:
    """`text` as a C string literal, in UTF-8, everything but plain characters as octal escapes."""
    plain = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789 ._-/:"
    return '"' + "".join(chr(b) if chr(b) in plain else f"\\{b:03o}" for b in text.encode()) + '"'


def c_type(dtype: str) -> str:
    """The C99 type of elements, from NumPy's name; `bool` needs <stdbool.h>, integers <stdint.h>."""
    return _TYPES.get(dtype, f"{dtype}_t")


def c_rows(array: NDArray[np.generic]) -> list[str]:
    """The elements as C text that gives the very same values, in lines of few columns."""
    lines, line = [], "   "
    for text in [c_number(value) for value in array.ravel()] or ["0"]:
        if len(line) + len(text) + 2 > _COLUMNS:
            lines.append(line)
            line = "   "
        line += f" {text},"
    return [*lines, line]


def with_math(text: str) -> str:
    """`text`, after <math.h> where one of its numbers needs it; not every target has that header."""
    return f"#include <math.h>\n{text}" if re.search(r"\b(NAN|INFINITY)\b", text) else text


def c_number(value: np.generic) -> str:
    """A C99 constant with exactly this value; infinities and NaN need <math.h>, integers <stdint.h>."""
    if not isinstance(value, np.floating):
        integer = int(value)
        if isinstance(value, np.int64):
            return f"INT64_C({integer})" if integer > -(1 << 63) else "INT64_MIN"
        if isinstance(value, np.uint64):
            return f"UINT64_C({integer})"
        return f"{integer}"
    if not np.isfinite(value):
        return "NAN" if np.isnan(value) else ("-INFINITY" if value < 0 else "INFINITY")
    single = isinstance(value, np.float32)
    text = f"{float(value):.9g}" if single else f"{float(value):.17g}"
    if not any(character in text for character in ".e"):
        text += ".0"
    return f"{text}f" if single else text
