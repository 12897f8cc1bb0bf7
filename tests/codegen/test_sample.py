"""Layers planned again with other weights, and what is made of a few measurements."""

import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lwc_compiler.codegen import recorded, sample
from lwc_compiler.codegen.link import find_compiler
from lwc_compiler.codegen.recorded import planned_of, record
from lwc_compiler.codegen.sample import Sampler, between
from lwc_compiler.kernels.choice import Task, predicted
from lwc_compiler.kernels.conv import plan_conv, plan_conv_transpose
from lwc_compiler.kernels.kernel import Constant, Plan
from lwc_compiler.kernels.layer import Activation, ConvGeometry, Epilogue
from lwc_compiler.kernels.matmul import plan_matmul
from lwc_compiler.kernels.separable_plan import Part, plan_separable
from lwc_compiler.targets import find_target

HOST = find_target("host")


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LWC_CACHE", str(tmp_path / "lwc"))


def sparse(*shape: int, density: float = 0.1) -> np.ndarray:
    generator = np.random.default_rng(shape)
    return generator.standard_normal(shape, np.float32) * (generator.random(shape) < density).astype(np.float32)


PLAIN = ConvGeometry(1, 16, (14, 14), 32, (3, 3), (1, 1), (1, 1, 1, 1), (1, 1))


BIAS = np.arange(32, dtype=np.float32)
POINTWISE = replace(PLAIN, kernel=(1, 1), pads=(0, 0, 0, 0))
DEPTHWISE = replace(PLAIN, out_channels=16, groups=16)
LAYERS = {
    "conv": lambda pick, target: plan_conv(sparse(32, 16, 3, 3), PLAIN, Epilogue(BIAS), target, pick),
    "grouped": lambda pick, target: plan_conv(
        sparse(32, 4, 3, 3), replace(PLAIN, groups=4), Epilogue(BIAS, residual=True), target, pick
    ),
    "matmul": lambda pick, target: plan_matmul(sparse(200, 32), 1, Epilogue(BIAS), target, pick),
    "one pixel": lambda pick, target: plan_conv(
        sparse(32, 16, 1, 1), replace(PLAIN, kernel=(1, 1), pads=(0,) * 4, in_size=(1, 1)), Epilogue(), target, pick
    ),
}
HOST_LAYERS = {
    "transposed": lambda pick, target: plan_conv_transpose(
        sparse(16, 16, 3, 3),
        replace(PLAIN, groups=2, strides=(2, 2), transposed=True),
        Epilogue(BIAS, activation=Activation("relu")),
        target,
        pick,
    ),
    "chain": lambda pick, target: plan_separable(
        [
            Part(sparse(16, 1, 3, 3, density=1), DEPTHWISE, Epilogue()),
            Part(sparse(32, 16, 1, 1), POINTWISE, Epilogue()),
        ],
        target,
        pick,
    ),
}


class Note:
    """A pick that keeps the last task and the plan of what is predicted to be best."""

    task: Task
    plan: Plan

    def __call__(self, task: Task, candidates: list) -> Plan:
        self.task, self.plan = task, predicted(task, candidates)
        return self.plan


def constants(plan: Plan) -> list[np.ndarray]:
    return [arg.array for step in plan.steps for arg in step.args if isinstance(arg, Constant)]


@pytest.mark.parametrize(
    ("name", "target"),
    [
        *((name, target) for name in LAYERS for target in ("host", "cortex-m4", "cuda:sm_80")),
        *((n, "host") for n in HOST_LAYERS),
    ],
)
def test_a_layer_planned_again_with_its_own_weights_is_the_same(name: str, target: str) -> None:
    first, second = Note(), Note()
    {**LAYERS, **HOST_LAYERS}[name](first, find_target(target))
    assert first.task.again is not None
    first.task.again(lambda weights: weights, second)
    assert (second.task.layer, second.task.density) == (first.task.layer, first.task.density)
    assert second.plan.trials == first.plan.trials
    for before, after in zip(constants(first.plan), constants(second.plan), strict=True):
        np.testing.assert_array_equal(after, before)


def test_weights_are_seen_as_output_channels_and_inputs() -> None:
    for name, layer in {**LAYERS, **HOST_LAYERS}.items():
        seen: list[tuple[int, ...]] = []
        first = Note()
        layer(first, HOST)
        assert first.task.again is not None

        def redraw(weights: np.ndarray, seen: list[tuple[int, ...]] = seen) -> np.ndarray:
            seen.append(weights.shape)
            return weights

        first.task.again(redraw, predicted)
        expected = {"conv": (32, 16, 9), "grouped": (32, 4, 9), "matmul": (32, 200), "one pixel": (32, 16)}
        expected |= {"transposed": (32, 72, 1), "chain": (16, 9)}
        assert seen[0] == expected[name], name


def test_a_product_can_be_planned_for_its_first_outputs() -> None:
    first, part = Note(), Note()
    plan_matmul(sparse(200, 32), 1, Epilogue(BIAS), HOST, first)
    assert first.task.product == (200, 32)
    assert first.task.again is not None
    first.task.again(lambda weights: weights[:8], part)
    assert part.task.product == (200, 8)
    assert part.task.output == 4 * 8


def test_very_large_products_are_planned_in_part(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorded, "_MOST_WEIGHTS", 200 * 64)
    plan = planned_of(plan_matmul(sparse(200, 256), 1, Epilogue(), HOST, record))
    assert plan.share == 64 / 256
    assert plan.task.product == (200, 256)
    whole = plan_matmul(sparse(200, 256), 1, Epilogue(), HOST)
    assert plan.stored / plan.share == pytest.approx(whole.stored, rel=0.1)


def bytes_of(plan: Plan) -> int:
    return sum(step.constant_bytes for step in plan.steps)


def test_bytes_follow_the_density_and_predictions_are_cycles() -> None:
    note = Note()
    plan_conv(sparse(32, 16, 3, 3), PLAIN, Epilogue(), find_target("cortex-m4"), note)
    sampler = Sampler(find_target("cortex-m4"), None)
    assert not sampler.measures
    for density in (0.1, 0.4):
        sampler.plan(note.task, "element", density)
    low, middle, high = (sampler.sparse(note.task, "element", density, 0) for density in (0.1, 0.2, 0.4))
    assert low and middle and high
    assert low.bytes() == pytest.approx(bytes_of(note.plan), rel=0.05)
    assert middle.bytes() == pytest.approx(low.bytes() + (high.bytes() - low.bytes()) / 3)
    plan_conv(sparse(32, 16, 3, 3, density=0.2), PLAIN, Epilogue(), find_target("cortex-m4"), there := Note())
    sampler.plan(note.task, "element", 0.2)
    exact = sampler.sparse(note.task, "element", 0.2, 0)
    assert exact
    assert exact.bytes() == pytest.approx(bytes_of(there.plan), rel=0.02)
    assert low.time < middle.time < high.time
    assert low.time > 1000  # cycles, not seconds
    assert not low.measured
    assert sampler.sparse(note.task, "4x1", 0.1, 0) is None


def test_what_was_measured_goes_before_what_was_predicted() -> None:
    note = Note()
    plan_conv(sparse(32, 16, 3, 3), PLAIN, Epilogue(), HOST, note)
    sampler = Sampler(HOST, find_compiler())
    sampler.plan(note.task, "element", 0.1)
    (way,) = sampler.kernels(note.task, "element", 0.1, 0, sparse=True)
    sampler.measure([way], 0.0)
    assert way.seconds is None  # there was no time
    before = sampler.sparse(note.task, "element", 0.1, 0)
    assert before
    assert not before.measured
    sampler.measure([way], time.monotonic() + 60)
    after = sampler.sparse(note.task, "element", 0.1, 0)
    assert after
    assert after.measured
    assert 0 < after.time == way.seconds < 0.1


@pytest.mark.parametrize("l2_bytes", [1 << 20, 1000])
def test_weights_of_a_product_are_read_from_where_those_of_the_network_lie(
    l2_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sample, "read_seconds", lambda size: 5e-9 if size > 1 << 22 else 1e-9)
    target = replace(HOST, l2_bytes=l2_bytes)
    note, other = Note(), Note()
    plan_matmul(sparse(200, 256, density=0.5), 1, Epilogue(), target, note)
    plan_conv(sparse(32, 16, 3, 3), PLAIN, Epilogue(), target, other)
    sampler = Sampler(target, find_compiler())
    sampler.plan(note.task, "element", 0.5)
    sampler.plan(other.task, "element", 0.1)
    expected = [sampler.sparse(note.task, "element", 0.5, size) for size in (0, 1 << 30)]
    assert expected[0].time == expected[1].time  # predictions know where weights lie
    # One way alone, so that the same one is the fastest wherever the weights lie.
    way = sampler.kernels(note.task, "element", 0.5, 0, sparse=True)[0]
    sampler.measure([way], time.monotonic() + 60)
    in_l2, in_l3, in_memory = (sampler.sparse(note.task, "element", 0.5, size) for size in (0, 1 << 21, 1 << 30))
    assert in_l2 and in_l3 and in_memory
    # What measuring the layer alone, again and again, saw of it.
    known = 0.0 if in_l2.bytes() <= l2_bytes else 1e-9
    assert (known > 0) == (l2_bytes == 1000)
    assert in_l3.time == pytest.approx(in_l2.time + (1e-9 - known) * in_l2.bytes())
    assert in_memory.time == pytest.approx(in_l2.time + (5e-9 - known) * in_l2.bytes())
    planes, again = (sampler.sparse(other.task, "element", 0.1, size) for size in (0, 1 << 30))
    assert planes and again
    assert planes.time == again.time


def test_timings_are_there_the_next_time(monkeypatch: pytest.MonkeyPatch) -> None:
    note = Note()
    plan_conv(sparse(32, 16, 3, 3), PLAIN, Epilogue(), HOST, note)
    found = []
    for _ in range(2):
        sampler = Sampler(HOST, find_compiler())
        sampler.plan(note.task, "element", 0.1)
        sampler.measure(sampler.kernels(note.task, "element", 0.1, 0, sparse=True), time.monotonic() + 60)
        point = sampler.sparse(note.task, "element", 0.1, 0)
        found.append((point.time, point.bytes(), point.measured))
        monkeypatch.setattr(Sampler, "_time", lambda *_: pytest.fail("measured again"))
    assert found[0] == found[1]


def test_between_known_densities() -> None:
    assert between(0.3, [0.1, 0.5], [1.0, 3.0]) == pytest.approx(2.0)
    assert between(0.9, [0.1, 0.5], [1.0, 3.0]) == pytest.approx(5.0)
    assert between(0.05, [0.1, 0.5], [1.0, 3.0]) == pytest.approx(0.75)
    assert between(0.05, [0.1, 0.5], [1.0, 9.0]) == pytest.approx(0.5)  # not below a share of the lowest
    assert between(0.2, [0.1, 0.3, 0.5], [1.0, 2.0, 9.0]) == pytest.approx(1.5)
    assert 1.0 < between(0.2, [0.1], [1.0]) < 2.0
