"""The rules give what was measured on the core: cycles from the tests of github.com/daniestevez/qsdr."""

import re

import pytest

from benchmarks.cortex_a53 import cycles
from lwc_compiler.kernels.in_order import most_vectors, suits, tap_cycles, tap_lines

_ADD = "fadd v{0}.4s, v{0}.4s, v{0}.4s"
MEASURED = [
    ([_ADD.format(0), "ldr x1, [x0]"], 1),
    (["ldr x1, [x0]", _ADD.format(0)], 2),
    ([_ADD.format(1), "ldr d0, [x0]"], 2),
    (["ldr d0, [x0]", _ADD.format(1)], 2),
    (["ldr d0, [x0]", _ADD.format(0)], 4),
    (["ldr d0, [x0]", "ldr d1, [x0]", _ADD.format(1)], 5),
    (["ldr q0, [x0]", _ADD.format(0)], 5),
    (["ldr q0, [x0]", "ldr q1, [x0]", _ADD.format(1)], 7),
    (["ldp q0, q1, [x0]", _ADD.format(0)], 5),
    (["ldp q0, q1, [x0]", _ADD.format(1)], 7),
    (["ldr d0, [x0]", "mov v1.d[1], x1"], 1),
    (["mov v1.d[1], x1", "ldr d0, [x0]"], 1),
    (["ldr d0, [x0]", "mov v0.d[1], x1"], 2),
    (["mov v0.d[1], x1", "mov v1.d[1], x2"], 1),
    (["mov v0.d[0], x1", "mov v0.d[1], x2"], 2),
    (["mov v0.d[1], x1", _ADD.format(0)], 3),
    (["str q1, [x0]", _ADD.format(0)], 2),
    (["nop", "nop"], 1),
]


@pytest.mark.parametrize(("instructions", "measured"), MEASURED)
def test_takes_as_long_as_measured(instructions: list[str], measured: int) -> None:
    assert cycles(instructions, passes=1) == measured


def test_loads_of_whole_vectors_hold_up_multiply_adds() -> None:
    sums = [f"fmla v{i}.4s, v30.4s, v31.s[0]" for i in range(12)]
    assert cycles(sums) == 12
    assert cycles([*sums, "ldr q29, [x0]"]) == 12 + 4 + 2
    halves = [line for i in range(0, 12, 3) for line in [f"ldr d{26 + i // 3}, [x0]", *sums[i : i + 3]]]
    assert cycles(halves) == 16


@pytest.mark.parametrize("rows", [1, 4, 8])
def test_loops_for_this_core_take_what_the_compiler_expects(rows: int) -> None:
    counted = {}
    for vectors in range(1, most_vectors(rows) + 1):
        reads = [4 * v for v in range(vectors)]
        if not suits(rows, reads):
            continue
        lines = tap_lines(rows, reads, 2)
        numbers: dict[str, int] = {}

        def register(match: re.Match[str], numbers: dict[str, int] = numbers) -> str:
            part, name = match.groups()
            kind = part or ("v" if re.fullmatch(r"(s|in|w)\d+", name) else "x")
            return f"{kind}{numbers.setdefault(name, len(numbers))}"

        body = lines[lines.index("1:") + 1 : lines.index("2:")]
        counted[vectors] = cycles([re.sub(r"\{(?:(\w):)?(\w+)\}", register, line) for line in body]) / 2
    expected = {vectors: tap_cycles(rows, vectors) for vectors in counted}
    if rows == 4:
        expected[3] += 0.5  # two instructions on integers too many
    assert counted == expected
