"""Launches that overlap, in the memory that a library gives them: the CUDA text of networks, on the processor."""

from dataclasses import replace

import pytest

from lwc_compiler.codegen.device_build import written_parameters
from lwc_compiler.codegen.memory import plan_workspace
from lwc_compiler.codegen.program import BufferRef, Stage
from lwc_compiler.passes.lower import tensor_specs
from lwc_compiler.runtime.reference import random_inputs, reference_session
from lwc_compiler.runtime.verify import TOLERANCE, relative_error
from tests.codegen.test_device_lower import NETWORKS, assembled, network
from tests.cuda_harness import HazardError, Network

CHOSEN = [
    *["lenet5, sparse", "small_resnet, sparse", "small_mobilenet, sparse"],
    *["bert, sparse", "bert, few tokens", "operators", "lstm, dense", "gru, sparse"],
]


def all_overlapping(stage: Stage) -> Stage:
    """As if every launch were worth it: which do overlap follows from predictions, or from measurements."""
    kernels = {
        symbol: replace(kernel, launch=replace(kernel.launch, overlaps=True))
        for symbol, kernel in stage.kernels.items()
    }
    return replace(stage, kernels=kernels)


def depends(stage: Stage) -> list[bool]:
    """Whether each launch reads, or writes, memory that one before it writes, or reads."""
    offsets, _ = plan_workspace(stage)
    before: list[tuple[int, int, bool]] = []
    found = []
    for call in stage.calls:
        written = written_parameters(stage.kernels[call.symbol].func)
        own = [
            (offsets[ref.index] + ref.first, offsets[ref.index] + stage.buffers[ref.index], number in written)
            for number, ref in enumerate(call.args)
            if isinstance(ref, BufferRef)
        ]
        found.append(
            any(
                start < other_end and other_start < end and (writes or other_writes)
                for start, end, writes in own
                for other_start, other_end, other_writes in before
            )
        )
        before += own
    return found


@pytest.fixture(scope="module", params=CHOSEN)
def case(request, tmp_path_factory):
    model = network(*NETWORKS[request.param])
    stage = all_overlapping(assembled(model, "h100"))
    inputs = random_inputs(model.proto, tensor_specs(model.proto.graph.input), 0)
    return model, stage, inputs, Network(stage, tmp_path_factory.mktemp("network"))


@pytest.mark.parametrize("backwards", [False, True])
def test_launches_that_overlap_compute_what_onnx_runtime_does(case, backwards) -> None:
    """Where buffers share memory, too: nothing is read or written before all that came before it has ended."""
    model, _, inputs, launches = case
    assert all(launch.overlaps for _, launch, _ in launches.launches[1:])
    outputs = launches.run(inputs, backwards=backwards)
    expected = reference_session(model.proto, 1).run(list(outputs), inputs)
    for output, values in zip(outputs, expected, strict=True):
        assert relative_error(outputs[output], values) <= TOLERANCE


def test_every_wait_is_needed(case) -> None:
    """Without that of a launch which depends on an earlier one, a hazard is found, and none without another's."""
    _, stage, inputs, launches = case
    for number, needed in enumerate(depends(stage)):
        (line,) = launches.waits(number)
        found = False
        try:
            launches.run(inputs, without=(number, line))
        except HazardError as error:
            found = "before its wait" in str(error)
        assert found is needed, (number, stage.calls[number].info.kernel)
