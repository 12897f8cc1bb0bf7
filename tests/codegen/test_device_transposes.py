"""Transpositions on a GPU: the tiles compute what ONNX Runtime does, and are there where they help."""

import numpy as np
import pytest
from test_device_rows import lowered, plan

from benchmarks.models import Network
from lwc_compiler.codegen.cuda_compiler import compile_all
from lwc_compiler.codegen.device_build import compile_device
from lwc_compiler.passes.lower import tensor_specs
from lwc_compiler.runtime.reference import random_inputs, reference_session
from tests.cuda_harness import Emulator
from tests.machine_code import check_resources
from tests.opencl_harness import Device, run_stage

# Shapes, and the order of axes of the result.
TILED = {
    "matrix": ((64, 96), (1, 0)),
    "odd matrices": ((3, 45, 70), (0, 2, 1)),
    "channels last": ((2, 37, 7, 9), (0, 2, 3, 1)),
    "channels first": ((2, 7, 9, 16), (0, 3, 1, 2)),
    "heads and features": ((2, 19, 3, 33), (0, 2, 3, 1)),
    "all axes": ((9, 5, 3, 40), (3, 1, 2, 0)),
}
OTHERS = {"rows stay": ((2, 10, 3, 40), (0, 2, 1, 3)), "few columns": ((300, 3), (1, 0)), "nothing": ((5, 40), (0, 1))}


def transposed(shape: tuple[int, ...], perm: tuple[int, ...]):
    return lowered(shape, lambda net: net.node("Transpose", net.x, perm=list(perm)))


@pytest.mark.parametrize("starts", [(3, 0), (0, 5)])
def test_a_part_of_a_tensor_is_none(starts: tuple[int, int]) -> None:
    """What is read does not begin where the tensor does."""

    def build(net: Network) -> str:
        values = [net.constant(f"{starts}{i}", np.array(v, np.int64)) for i, v in enumerate((starts, (20, 21)))]
        return net.node("Squeeze", net.node("Slice", net.x, *values))

    model, stage = lowered((40, 30), build)
    inputs = random_inputs(model.proto, tensor_specs(model.proto.graph.input), 0)
    (output,) = run_stage(Device(), stage, inputs).values()
    (expected,) = reference_session(model.proto, 1).run(None, inputs)
    assert np.array_equal(output, expected)
    assert (32, 8, 1) not in blocks_of_threads(stage)


def blocks_of_threads(stage) -> set[tuple[int, ...]]:
    return {kernel.launch.block for kernel in stage.kernels.values()}


@pytest.mark.parametrize("name", [*TILED, *OTHERS])
def test_same_as_onnx_runtime(name: str) -> None:
    model, stage = transposed(*(TILED | OTHERS)[name])
    inputs = random_inputs(model.proto, tensor_specs(model.proto.graph.input), 0)
    (output,) = run_stage(Device(), stage, inputs).values()
    (expected,) = reference_session(model.proto, 1).run(None, inputs)
    assert np.array_equal(output, expected)
    assert (blocks_of_threads(stage) == {(32, 8, 1)}) == (name in TILED)


def test_as_cuda_text(tmp_path) -> None:
    """In two orders of the threads, which show what is read before it is written."""
    cases = {name: transposed(*TILED[name]) for name in TILED}
    emulator = Emulator({name: plan(stage) for name, (_, stage) in cases.items()}, tmp_path)
    for name, (model, _) in cases.items():
        inputs = random_inputs(model.proto, tensor_specs(model.proto.graph.input), 0)
        (expected,) = reference_session(model.proto, 1).run(None, inputs)
        assert np.array_equal(emulator.run(name, [*inputs.values()], expected.shape), expected), name


def test_machine_code_has_no_spills() -> None:
    kernels = {f"k{i}": next(iter(transposed(*case)[1].kernels.values())) for i, case in enumerate(TILED.values())}
    (code,) = compile_all(compile_device(kernels, "cuda"), [90], ptx=False)
    check_resources(code, kernels)
