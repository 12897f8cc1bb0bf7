"""Loops over taps that are written in assembly, as functions in LLVM's language that become part of a kernel."""

from __future__ import annotations

import hashlib
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

_NAME = re.compile(r"\{(?:(\w):)?(\w+)\}")
_CHANGED = ("offsets", "values", "count")  # operands that the loop moves on, besides the sums


def tap_function(
    lines: Sequence[str], sums: Sequence[str], vectors: Sequence[str], whole: Sequence[str], used: Sequence[str] = ()
) -> tuple[str, str]:
    """A function that adds taps to the sums of a tile, and its name.

    Its parameters: offsets, values, the input, a count (int32), and the sums, row by row.

    Args:
        lines: instructions of AArch64, names of operands in braces, where a letter before a colon is the part that is
            meant. Operands are `offsets`, `values`, `count`, the input `x`, and those below.
        sums: vector registers that the function's last parameters are the places of.
        vectors: other vector registers.
        whole: integer registers.
        used: registers that the instructions call by their own names.
    """
    whole = [*_CHANGED, *whole]
    number = {name: i for i, name in enumerate([*sums, *vectors, *whole, "x"])}

    def operand(match: re.Match[str]) -> str:
        part, name = match.groups()
        return f"${{{number[name]}:{part}}}" if part else f"${{{number[name]}}}"

    text = "\\0A".join(_NAME.sub(operand, line) for line in lines)
    outputs = ["=&w"] * (len(sums) + len(vectors)) + ["=&r"] * len(whole)
    tied = [str(number[name]) for name in [*sums, *_CHANGED]]
    constraints = ",".join([*outputs, "r", *tied, *(f"~{{{name}}}" for name in used), "~{cc}", "~{memory}"])
    types = ["<4 x float>"] * (len(sums) + len(vectors)) + ["ptr" if n in _CHANGED[:2] else "i64" for n in whole]
    passed = ["ptr %x", *(f"<4 x float> %{name}" for name in sums), "ptr %offsets", "ptr %values", "i64 %wide"]
    result = f"{{ {', '.join(types)} }}"
    parameters = ["ptr %offsets", "ptr %values", "ptr %x", "i32 %count", *(f"ptr %p{name}" for name in sums)]
    body = [
        *(f"%{name} = load <4 x float>, ptr %p{name}, align 16" for name in sums),
        "%wide = zext i32 %count to i64",
        f'%all = call {result} asm sideeffect "{text}", "{constraints}"({", ".join(passed)})',
    ]
    for i, name in enumerate(sums):
        body += [f"%n{name} = extractvalue {result} %all, {i}", f"store <4 x float> %n{name}, ptr %p{name}, align 16"]
    body.append("ret void")
    inside = "\n".join([f"({', '.join(parameters)}) {{", *body, "}", ""])
    name = f"lwc_taps_{hashlib.sha256(inside.encode()).hexdigest()[:12]}"
    return f"define void @{name}{inside}", name
