"""What is asked of the machine code of kernels for GPUs, which needs no GPU."""

import math

from lwc_compiler.codegen.cuda_compiler import Code
from lwc_compiler.kernels.kernel import Kernel

_REGISTERS = 65536  # of a multiprocessor, and the most of a block


def check_resources(code: Code, kernels: dict[str, Kernel]) -> None:
    """Asserts that all kernels are there, that registers hold what they compute, and that a block has so many."""
    assert set(code.resources) == set(kernels)
    assert not {name: used for name, used in code.resources.items() if used.spill_bytes or used.stack_bytes}
    for name, kernel in kernels.items():
        assert code.resources[name].registers * math.prod(kernel.launch.block) <= _REGISTERS, name
