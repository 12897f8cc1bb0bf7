"""The workspace plan: buffers that live at the same time never overlap, others share memory."""

from dataclasses import replace

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from lwc_compiler.codegen.memory import lifetimes, plan_workspace
from lwc_compiler.codegen.program import BufferRef, Call, ConstantRef, Stage
from lwc_compiler.codegen.result import StepInfo, TensorSpec
from lwc_compiler.kernels.kernel import ALIGNMENT_BYTES, SLACK_BYTES


def stage(sizes: list[int], calls: list[list[int]]) -> Stage:
    spec = TensorSpec("x", "uint8", (sizes[0],))
    return Stage(
        kernels={},
        calls=tuple(Call("k", tuple(BufferRef(i) for i in call), StepInfo("", "k", ""), 0.0) for call in calls),
        buffers=tuple(sizes),
        constants=(np.zeros(1, np.float32),),
        inputs=((spec, BufferRef(0)),),
        outputs=((spec, BufferRef(calls[-1][-1])), (spec, ConstantRef(0))),
    )


@given(st.data())
def test_living_buffers_never_overlap(data: st.DataObject) -> None:
    count = data.draw(st.integers(1, 12))
    sizes = data.draw(st.lists(st.integers(0, 5000), min_size=count, max_size=count))
    calls = data.draw(st.lists(st.lists(st.integers(0, count - 1), min_size=1, max_size=4), min_size=1, max_size=12))
    plan = stage(sizes, calls)
    offsets, total = plan_workspace(plan)
    lives = lifetimes(plan)
    for i in range(count):
        assert offsets[i] % ALIGNMENT_BYTES == 0
        assert offsets[i] + sizes[i] + SLACK_BYTES <= total
        for j in range(i):
            together = lives[i][0] <= lives[j][1] and lives[j][0] <= lives[i][1]
            apart = (
                offsets[i] >= offsets[j] + sizes[j] + SLACK_BYTES or offsets[j] >= offsets[i] + sizes[i] + SLACK_BYTES
            )
            assert apart or not together


def test_a_chain_needs_two_buffers() -> None:
    offsets, total = plan_workspace(stage([1024] * 5, [[0, 1], [1, 2], [2, 3], [3, 4]]))
    assert total == 2 * (1024 + SLACK_BYTES)
    assert len(set(offsets)) == 2


def test_outputs_live_to_the_end_and_inputs_from_the_start() -> None:
    assert lifetimes(stage([8, 8, 8], [[0, 1], [1, 2]])) == [(0, 1), (1, 2), (2, 3)]


def test_buffers_that_lie_elsewhere_take_no_room() -> None:
    chain = stage([1024] * 3, [[0, 1], [1, 2]])
    assert plan_workspace(chain, [BufferRef(0), BufferRef(2)])[1] == 1024 + SLACK_BYTES


def test_what_a_loop_uses_lives_as_long_as_the_loop() -> None:
    plan = stage([8] * 6, [[0, 1], [1, 2], [2, 3], [3, 4], [4, 5]])
    calls = list(plan.calls)
    calls[3] = replace(calls[3], passes=7, back=2)  # the second to the fourth call
    looped = replace(plan, calls=tuple(calls))
    assert looped.loops == ((1, 3),)
    assert looped.passes == (1, 7, 7, 7, 1)
    assert lifetimes(looped) == [(0, 1), (1, 4), (2, 4), (2, 4), (2, 5), (5, 6)]
