"""The registry lists the kernels that plans are made of."""

import re

import test_channels
import test_conv
import test_depthwise
import test_gpu
import test_gpu_attention
import test_gpu_batched
import test_gpu_mma_blocks
import test_gpu_precision
import test_gpu_wgmma
import test_matmul
import test_pairs
import test_phases
import test_pooled
import test_recurrent
import test_separable
import test_subsample
import test_taps
import test_winograd

from lwc_compiler.kernels.registry import KERNELS
from lwc_compiler.targets import find_target


def test_lists_every_tested_kernel_and_no_other() -> None:
    formats = {}
    modules = (
        test_channels, test_conv, test_depthwise, test_matmul, test_pairs, test_phases, test_pooled, test_recurrent,
        test_separable, test_subsample, test_taps, test_winograd,
    )  # fmt: skip
    plans = [case.plan(find_target("x86-64-v4")) for module in modules for case in module.CASES]
    plans += [
        case.plan(find_target("a100")) for case in (*test_gpu.CASES, *test_gpu_attention.CASES, *test_gpu_batched.CASES)
    ]
    plans += [case.plan(find_target("a100")) for case in test_recurrent.CASES[::20]]
    precise = (test_gpu_mma_blocks, test_gpu_precision, test_gpu_wgmma)
    plans += [case.plan for module in precise for case in module.CASES.values()]
    for plan in plans:
        for step in plan.steps:
            found = formats.setdefault(step.kernel.name, set())
            if " + " not in plan.format:  # a recurrent layer may store its two weights in two ways
                found.add(plan.format)
    assert set(formats) == {entry.name for entry in KERNELS}
    for entry in KERNELS:
        found = formats[entry.name]
        if entry.format == "rx1":
            assert all(re.fullmatch(r"\d+x1", format_) for format_ in found)
        elif entry.format == "r:2r":
            assert found == {"1:2", "2:4"}
        else:
            assert not entry.format or found == {entry.format}
