"""Predictions for cores that nothing was timed on, and the tilings they choose from."""

import numpy as np
import pytest

from lwc_compiler.kernels.cost import cost_of, ranked
from lwc_compiler.kernels.layer import ConvGeometry
from lwc_compiler.kernels.tap_layout import TapLayout
from lwc_compiler.kernels.tap_plan import canonical
from lwc_compiler.kernels.tilings import tilings
from lwc_compiler.targets import all_targets

NARROW = [target for target in all_targets() if target.core is not None and target.vector_bits == 128]
PROBLEM = canonical(ConvGeometry(1, 64, (28, 28), 64, (3, 3), (1, 1), (1, 1, 1, 1), (1, 1)))


@pytest.mark.parametrize("target", NARROW, ids=lambda target: target.name)
@pytest.mark.parametrize("format_name", ["csr", "block2", "block4", "block8", "dense"])
def test_sums_weights_and_an_input_fit_the_registers(target, format_name: str) -> None:
    for tiling in set(tilings(PROBLEM, target, format_name)):
        sums = tiling.rows * tiling.tile_rows * tiling.tile_vectors
        # RISC-V and Helium multiply by a scalar register.
        scalar = target.family == "riscv" or target.os == "none"
        weights = 0 if scalar else -(-tiling.rows // tiling.lanes) if tiling.by_lane else tiling.rows
        assert tiling.lanes == 4
        assert sums == tiling.rows or sums + weights + 1 <= target.vector_registers


@pytest.mark.parametrize("target", NARROW, ids=lambda target: target.name)
@pytest.mark.parametrize("format_name", ["csr", "block4"])
def test_nothing_is_predicted_faster_than_the_multiply_adds(target, format_name: str) -> None:
    rows = 1 if format_name == "csr" else 4
    needed = 0.1 * 64 * 64 * 9 * 28 * 28 / 4 / target.core.multiplies
    for _, tiling in ranked(PROBLEM, target, format_name, 0.1):
        assert tiling.rows == rows
        assert cost_of(PROBLEM, tiling, target).cycles(0.1) >= needed


def test_cores_that_wait_for_loads_gain_more_by_blocks() -> None:
    targets = {target.name: target for target in NARROW}
    gains = [
        np.divide(*(ranked(PROBLEM, targets[name], format_name, 0.1)[0][0] for format_name in ("csr", "block4")))
        for name in ("cortex-a53", "cortex-a72")
    ]
    assert gains[0] > gains[1] > 1


@pytest.mark.parametrize(("name", "starts"), [("cortex-a72", [0, 4]), ("rv64gcv", [0, 3])])
def test_vectors_of_a_narrow_row_adjoin_where_one_instruction_loads_two(name: str, starts: list[int]) -> None:
    target = next(target for target in NARROW if target.name == name)
    problem = canonical(ConvGeometry(1, 64, (7, 7), 64, (3, 3), (1, 1), (1, 1, 1, 1), (1, 1)))
    whole = [tiling for tiling in tilings(problem, target, "csr") if tiling.tile_vectors == 2]
    assert {tuple(TapLayout(problem, tiling).starts) for tiling in whole} == {tuple(starts)}


@pytest.mark.parametrize("format_name", ["csr", "block4", "block8", "dense"])
def test_loops_are_written_in_order_where_the_core_works_in_order(format_name: str) -> None:
    targets = {target.name: target for target in NARROW}
    assert ranked(PROBLEM, targets["cortex-a53"], format_name, 0.1)[0][1].in_order
    assert not any(tiling.in_order for tiling in tilings(PROBLEM, targets["cortex-a72"], format_name))
