"""The registry lists the kernels that plans are made of."""

import test_channels
import test_conv
import test_matmul
import test_taps
import test_winograd

from lwc_compiler.kernels.registry import KERNELS
from lwc_compiler.targets import find_target


def test_lists_every_tested_kernel_and_no_other() -> None:
    formats = {}
    for case in [*test_channels.CASES, *test_conv.CASES, *test_matmul.CASES, *test_taps.CASES, *test_winograd.CASES]:
        plan = case.plan(find_target("x86-64-v4"))
        for step in plan.steps:
            formats.setdefault(step.kernel.name, set()).add(plan.format)
    assert set(formats) == {entry.name for entry in KERNELS}
    for entry in KERNELS:
        assert not entry.format or formats[entry.name] == {entry.format}
