"""What is measured to be the fastest on a GPU is taken, once; the GPU is a driver whose times the test decides."""

import os
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from benchmarks.models import Network
from lwc_compiler.codegen import cuda_compiler
from lwc_compiler.codegen.cuda_compiler import compile_all
from lwc_compiler.codegen.device_tune import _TOGETHER, DeviceTuner
from lwc_compiler.codegen.tune import promising
from lwc_compiler.errors import TargetError
from lwc_compiler.kernels.choice import Candidate, Pick, Task, predicted
from lwc_compiler.kernels.gpu.candidates import overlapping
from lwc_compiler.kernels.gpu.plan import plan_conv, plan_matmul
from lwc_compiler.kernels.kernel import Plan
from lwc_compiler.kernels.layer import Activation, ConvGeometry, Epilogue
from lwc_compiler.model import Model
from lwc_compiler.passes.lower import lower
from lwc_compiler.recipe.options import LowerOptions
from lwc_compiler.runtime import device_driver
from lwc_compiler.sparsity.draw import random_weights
from lwc_compiler.targets import find_target
from lwc_compiler.targets.cuda import host_gpu
from tests.driver_harness import build_driver, check_all_given_back, names

TARGET = find_target("cuda:sm_90")
GEOMETRY = ConvGeometry(1, 32, (14, 14), 64, (3, 3), (1, 1), (1, 1, 1, 1), (1, 1))
COUNT = 4
compile_once = lru_cache(partial(compile_all, ptx=False))  # equal texts, which most tests have


@pytest.fixture(scope="module")
def driver(tmp_path_factory) -> Path:
    return build_driver(tmp_path_factory.mktemp("driver"))


@pytest.fixture(autouse=True)
def gpu(driver, tmp_path, monkeypatch):
    """The driver, with a log in the test's folder."""
    monkeypatch.setattr(device_driver, "_LIBRARY", str(driver / "libcuda.so.1"))
    monkeypatch.setattr(
        "lwc_compiler.codegen.device_tune.compile_all",
        lambda text, to, *, ptx: compile_all(text, to, ptx=True) if ptx else compile_once(text, to),
    )
    monkeypatch.setattr("lwc_compiler.codegen.device_tune._SECONDS", 1e-3)
    monkeypatch.setattr("lwc_compiler.codegen.device_tune._WARM_UP", 1e-3)
    for name, value in {"LWC_CACHE": "lwc", "FAKE_LOG": "log", "FAKE_TIMES": "times"}.items():
        monkeypatch.setenv(name, str(tmp_path / value))
    host_gpu.cache_clear()
    yield
    host_gpu.cache_clear()


def weight(density: float = 0.1) -> np.ndarray:
    generator = np.random.default_rng(0)
    return generator.standard_normal((64, 32, 3, 3), np.float32) * (generator.random((64, 32, 3, 3)) < density)


def plan(pick: Pick, density: float = 0.1, epilogue: Epilogue = Epilogue()) -> Plan:  # noqa: B008 - it is immutable
    return plan_conv(weight(density), GEOMETRY, epilogue, TARGET, pick)


def shape(candidate: Candidate) -> str:
    """Grid and block of its first kernel, as the driver has them."""
    launch = candidate.build().steps[0].kernel.launch
    return " ".join("x".join(map(str, sizes)) for sizes in (launch.grid, launch.block))


@pytest.fixture(scope="module")
def offered() -> tuple[Task, list[Candidate]]:
    """A layer, and all the ways to compute it, what is predicted to be the fastest first."""
    found: list[tuple[Task, list[Candidate]]] = []

    def note(task: Task, candidates: Sequence[Candidate]) -> Plan:
        found.append((task, sorted(candidates, key=lambda candidate: candidate.cycles)))
        return candidates[0].build()

    plan(note)
    return found[0]


@pytest.fixture(scope="module")
def told_apart(offered) -> dict[str, Candidate]:
    """Some of them by their shapes; none is of several kernels, or launched early whatever it takes."""
    found: dict[str, Candidate] = {}
    for candidate in (each for each in offered[1] if each.format == "csr"):
        built = candidate.build()
        if not overlapping(built, 1.0, TARGET.gpu).steps[0].kernel.launch.overlaps:
            found.setdefault(shape(candidate), replace(candidate, build=partial(replace, built)))
        if len(found) == COUNT:
            break
    assert len(found) == COUNT
    return found


def take_times(tmp_path: Path, milliseconds: dict[str, float]) -> None:
    """Says what kernels take, by `shape`."""
    text = "".join(f"{launched} {time}\n" for launched, time in milliseconds.items())
    (tmp_path / "times").write_text(text, encoding="utf-8")


@pytest.fixture
def take_results(tmp_path, monkeypatch):
    """Says what kernels compute, by `shape`: the first number, and how much more it is in each run after."""
    monkeypatch.setenv("FAKE_RESULTS", str(tmp_path / "results"))

    def take(results: dict[str, tuple[float, float]]) -> None:
        text = "".join(f"{launched} {first} {further}\n" for launched, (first, further) in results.items())
        (tmp_path / "results").write_text(text, encoding="utf-8")

    return take


def calls(tmp_path: Path) -> list[str]:
    """Those since the last time."""
    log = tmp_path / "log"
    lines = log.read_text(encoding="utf-8").splitlines() if log.exists() else []
    log.unlink(missing_ok=True)
    return lines


@pytest.fixture
def candidates(tmp_path, told_apart) -> list[Candidate]:
    """The better the prediction, the longer they take."""
    take_times(tmp_path, {each: 0.001 * (COUNT - number) for number, each in enumerate(told_apart)})
    return list(told_apart.values())


@pytest.fixture
def tuned(offered, candidates):
    """What a tuner takes."""

    def run(tuner: DeviceTuner) -> Plan:
        tuner(offered[0], candidates)
        tuner.measure()
        return tuner(offered[0], candidates)

    return run


def test_the_fastest_measured_kernel_is_taken_and_not_the_predicted_one(tmp_path, candidates, tuned) -> None:
    best = tuned(DeviceTuner(TARGET, COUNT))
    assert best.steps[0].kernel.launch.grid == candidates[-1].build().steps[0].kernel.launch.grid
    assert [trial.name for trial in best.trials] == [candidate.name for candidate in candidates[::-1]]
    assert [trial.seconds for trial in best.trials] == pytest.approx([1e-6, 2e-6, 3e-6, 4e-6], rel=1e-3)
    assert "; measured fastest on Fake GPU" in best.why
    done = calls(tmp_path)
    check_all_given_back(done)
    assert names(done).count("cuModuleLoadData") == 1


def test_a_layer_is_measured_once(tmp_path, tuned) -> None:
    first = tuned(DeviceTuner(TARGET, COUNT))
    calls(tmp_path)
    second = tuned(DeviceTuner(TARGET, COUNT))
    assert second.trials == first.trials
    assert second.steps[0].kernel.launch == first.steps[0].kernel.launch
    assert calls(tmp_path) == []


@pytest.mark.parametrize(
    "other", [{"name": "Other GPU"}, {"capability": 91}, {"gigahertz": 1.0}, {"driver": "CUDA 13.1"}]
)
def test_another_gpu_or_driver_is_measured_again(tmp_path, monkeypatch, tuned, other) -> None:
    tuned(DeviceTuner(TARGET, COUNT))
    calls(tmp_path)
    known = host_gpu()
    for module in ("targets.cuda", "codegen.device_tune"):
        monkeypatch.setattr(f"lwc_compiler.{module}.host_gpu", lambda: known | other)
    tuned(DeviceTuner(TARGET, COUNT))
    assert "cuEventElapsedTime" in names(calls(tmp_path))


def test_zeros_in_a_pattern_are_another_layer(tmp_path) -> None:
    """A kernel for single weights takes other times where these lie in blocks."""
    tuner = DeviceTuner(TARGET, COUNT)
    plan(tuner)
    tuner.measure()
    calls(tmp_path)
    tuner, blocks = DeviceTuner(TARGET, COUNT), weight().reshape(16, 4, 32, 3, 3)
    blocks = np.repeat(blocks[:, :1], 4, axis=1).reshape(64, 32, 3, 3)
    plan_conv(blocks, GEOMETRY, Epilogue(), TARGET, tuner)
    tuner.measure()
    assert "cuEventElapsedTime" in names(calls(tmp_path))


def test_layers_are_compiled_together(tmp_path) -> None:
    """As many as have a text's number of kernels, and equal ones once."""
    tuner = DeviceTuner(TARGET, 2)
    for kind in ("relu", "relu", "gelu", "hard_swish"):
        plan(tuner, epilogue=Epilogue(activation=Activation(kind)))
    for density in (0.1, 0.11):
        plan(tuner, density)
    plan_matmul(weight().reshape(64, -1).T.copy(), 1, Epilogue(), TARGET, tuner)
    assert "cuDevicePrimaryCtxRetain" not in names(calls(tmp_path))  # nothing is measured yet
    tuner.measure()
    done = calls(tmp_path)
    kernels = len({call for call in done if call.startswith("cuModuleGetFunction")})
    assert 8 <= kernels <= 12
    assert names(done).count("cuModuleLoadData") == -(-kernels // _TOGETHER) == 2
    assert names(done).count("cuDevicePrimaryCtxRetain") == 1
    check_all_given_back(done)


def test_no_more_weights_wait_than_memory_has_room_for(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("lwc_compiler.codegen.device_tune._MOST_BYTES", 1)
    tuner = DeviceTuner(TARGET, 2)
    plan(tuner)
    assert "cuEventElapsedTime" in names(calls(tmp_path))


def test_a_kernel_that_is_not_launched_is_left_out(tmp_path, candidates, tuned) -> None:
    """Also in the next compilation, which does not try again."""
    times = dict.fromkeys(map(shape, candidates), 0.002)
    times |= {shape(candidates[0]): -1.0, shape(candidates[2]): -1.0}
    take_times(tmp_path, times)
    for again in (False, True):
        best = tuned(DeviceTuner(TARGET, COUNT))
        assert {trial.name for trial in best.trials} == {candidates[1].name, candidates[3].name}
        done = calls(tmp_path)
        assert ("cuLaunchKernelEx" in names(done)) != again
        check_all_given_back(done)


def test_without_a_kernel_that_is_launched_there_is_an_error(tmp_path, candidates, tuned) -> None:
    take_times(tmp_path, dict.fromkeys(map(shape, candidates), -1.0))
    with pytest.raises(TargetError, match="Fake GPU launches none of the 4 kernels that were tried for a layer"):
        tuned(DeviceTuner(TARGET, COUNT))


@pytest.mark.parametrize("result", [(1.01, 0.0), (1.0, 1e-6), (float("nan"), 0.0)])
def test_a_kernel_with_other_results_is_never_taken(
    tmp_path, monkeypatch, caplog, candidates, tuned, take_results, result
) -> None:
    """Not the fastest: whether they are wrong, or others every time; and it is said, in the next compilation, too."""
    take_results(dict.fromkeys(map(shape, candidates), (1.0, 0.0)) | {shape(candidates[3]): result})
    for again in (False, True):
        caplog.clear()
        best = tuned(DeviceTuner(TARGET, COUNT))
        assert [trial.name for trial in best.trials] == [each.name for each in candidates[2::-1]]
        assert best.why.endswith(f"; not taken, as their results were wrong: {candidates[3].name}")
        assert f"Fake GPU computes wrong results by {candidates[3].name}" in caplog.text
        done = calls(tmp_path)
        assert ("cuMemcpyDtoHAsync_v2" in names(done)) != again
        check_all_given_back(done)


def test_results_may_be_rounded_otherwise(candidates, tuned, take_results) -> None:
    take_results({shape(each): (1.0 + 1e-6 * number, 0.0) for number, each in enumerate(candidates)})
    assert len(tuned(DeviceTuner(TARGET, COUNT)).trials) == COUNT


def test_what_gives_other_results_every_time_is_no_reference(candidates, tuned, take_results) -> None:
    take_results(dict.fromkeys(map(shape, candidates), (1.0, 0.0)) | {shape(candidates[0]): (1.5, 0.1)})
    assert {trial.name for trial in tuned(DeviceTuner(TARGET, COUNT)).trials} == {each.name for each in candidates[1:]}


@pytest.fixture
def with_unproven(offered, candidates):
    """What a tuner takes that measures one of the candidates that are proven; the two fastest ones are not."""
    some = [replace(each, unproven=number > 1, cycles=4 - number) for number, each in enumerate(candidates)]

    def run() -> Plan:
        tuner = DeviceTuner(TARGET, 1)
        tuner(offered[0], some)
        tuner.measure()
        return tuner(offered[0], some)

    return run


def test_what_is_unproven_is_measured_beside_what_is_proven(candidates, with_unproven) -> None:
    best = with_unproven()
    assert [trial.name for trial in best.trials] == [candidates[3].name, candidates[1].name]


def test_what_is_unproven_has_to_be_right(candidates, with_unproven, take_results) -> None:
    take_results({shape(each): (float(number), 0.0) for number, each in enumerate(candidates)})
    assert [trial.name for trial in with_unproven().trials] == [candidates[1].name]


def test_what_is_unproven_is_not_taken_without_another(tmp_path, candidates, with_unproven) -> None:
    take_times(tmp_path, {shape(each): -1.0 if number == 1 else 0.001 for number, each in enumerate(candidates)})
    with pytest.raises(TargetError, match="launches none of the 1 kernels"):
        with_unproven()


def test_what_is_unproven_is_not_predicted(candidates) -> None:
    some = [replace(each, unproven=number != 1) for number, each in enumerate(candidates)]
    task = Task("any", 0.1, (4,), 4)
    assert [trial.name for trial in predicted(task, some).trials] == [candidates[1].name]
    assert promising(some, 4) == [some[1]]


@pytest.mark.parametrize(
    ("call", "number", "code"),
    [
        ("cuDevicePrimaryCtxRetain", 1, 2),
        ("cuCtxPushCurrent_v2", 1, 201),
        ("cuStreamCreate", 1, 2),
        ("cuEventCreate", 2, 2),
        ("cuModuleLoadData", 1, 209),
        ("cuModuleGetFunction", 2, 500),
        ("cuMemAlloc_v2", 1, 2),
        ("cuMemAlloc_v2", 7, 2),
        ("cuMemcpyHtoDAsync_v2", 2, 700),
        ("cuMemcpyDtoHAsync_v2", 3, 700),
        ("cuStreamSynchronize", 9, 700),
        ("cuLaunchKernelEx", 3, 700),
        ("cuStreamBeginCapture_v2", 1, 999),
        ("cuStreamEndCapture", 2, 900),
        ("cuGraphInstantiateWithFlags", 2, 2),
        ("cuGraphLaunch", 2, 716),
        ("cuEventRecordWithFlags", 2, 700),
        ("cuEventElapsedTime", 3, 700),
    ],
)
def test_an_error_in_between_is_told_and_nothing_is_kept(
    tmp_path, monkeypatch, offered, candidates, tuned, call, number, code
) -> None:
    """And the next one measures as if nothing had been."""
    tuner = DeviceTuner(TARGET, COUNT)
    tuner(offered[0], candidates)
    calls(tmp_path)
    monkeypatch.setenv("FAKE_FAIL", f"{call} {number} {code}")
    said = rf"kernels cannot be timed on Fake GPU: .*error {code} of the fake \(CUDA's error {code}\); tune 0 takes"
    with pytest.raises(TargetError, match=said):
        tuner.measure()
    check_all_given_back(calls(tmp_path), call)
    monkeypatch.delenv("FAKE_FAIL")
    assert [trial.name for trial in tuned(tuner).trials] == [candidate.name for candidate in candidates[::-1]]


def test_layers_before_an_error_are_not_measured_again(tmp_path, monkeypatch) -> None:
    first = DeviceTuner(TARGET, 2)
    plan(first, 0.1)
    assert first.measure()
    graphs = names(calls(tmp_path)).count("cuStreamBeginCapture_v2")
    monkeypatch.setenv("LWC_CACHE", str(tmp_path / "another"))
    tuner = DeviceTuner(TARGET, 2)
    plan(tuner, 0.1)
    plan(tuner, 0.5)
    monkeypatch.setenv("FAKE_FAIL", f"cuStreamBeginCapture_v2 {graphs + 1} 700")
    with pytest.raises(TargetError):
        tuner.measure()
    monkeypatch.delenv("FAKE_FAIL")
    calls(tmp_path)
    again = DeviceTuner(TARGET, 2)
    plan(again, 0.1)
    assert not again.measure()
    assert "cuMemAlloc_v2" not in names(calls(tmp_path))
    plan(again, 0.5)
    assert again.measure()
    assert "cuMemAlloc_v2" in names(calls(tmp_path))


@pytest.mark.parametrize(("milliseconds", "overlaps"), [(0.001, True), (10.0, False)])
def test_measured_times_decide_about_overlapping_launches(tmp_path, told_apart, tuned, milliseconds, overlaps) -> None:
    first = next(iter(told_apart))
    take_times(tmp_path, dict.fromkeys(told_apart, 20.0) | {first: milliseconds})
    best = tuned(DeviceTuner(TARGET, COUNT))
    assert best.trials[0].name == told_apart[first].name
    assert best.steps[0].kernel.launch.overlaps == overlaps
    launched = [call for call in calls(tmp_path) if call.startswith("cuLaunchKernelEx") and f" {first} " in call]
    assert launched[-1].endswith(f" {overlaps:d}")  # and it was timed so


@pytest.mark.parametrize(("capability", "code"), [(86, 86), (121, 120), (130, 0)])
def test_kernels_are_compiled_as_the_library_has_them(tmp_path, monkeypatch, capability, code) -> None:
    monkeypatch.setenv("FAKE_CAPABILITY", str(capability))
    every = find_target("cuda")
    tuner = DeviceTuner(replace(every, gpu=replace(every.gpu, precision="float16")), 2)
    plan(tuner)
    tuner.measure()
    (loaded,) = {call.split()[1] for call in calls(tmp_path) if call.startswith("cuModuleLoadData")}
    assert (0 if loaded == "ptx" else int(loaded) >> 8 & 255) == code  # the file's flags have the architecture there


def network() -> Model:
    generator = np.random.default_rng(0)
    kept = generator.random((64, 32, 3, 3)) < 0.1
    arrays = {
        "conv.w": generator.standard_normal((64, 32, 3, 3)) * kept,
        "fc.w": generator.standard_normal((64, 10)),
        "deep.w": generator.standard_normal((64, 1, 3, 3)),
    }
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["x", "conv.w"], ["a"], name="conv", pads=[1, 1, 1, 1]),
            helper.make_node("Conv", ["a", "deep.w"], ["b"], name="deep", pads=[1, 1, 1, 1], group=64),
            helper.make_node("GlobalAveragePool", ["b"], ["c"], name="pool"),
            helper.make_node("Flatten", ["c"], ["d"], name="flatten"),
            helper.make_node("Gemm", ["d", "fc.w"], ["y"], name="fc"),
        ],
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 32, 14, 14])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 10])],
        [numpy_helper.from_array(array.astype(np.float32), name) for name, array in arrays.items()],
    )
    return Model(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), "net")


def test_a_network_has_what_was_measured(tmp_path, offered, monkeypatch) -> None:
    """Each layer, where there is more than one way; the same library, and nothing measured, the next time.

    Of one text NVRTC makes another code once in a while: so it is asked once.
    """
    monkeypatch.setattr(cuda_compiler, "compile_all", lambda text, to, **_further: compile_once(text, tuple(to)))
    tried = promising(offered[1], COUNT)
    fast = shape(tried[-1])
    take_times(tmp_path, dict.fromkeys(map(shape, tried), 9.0) | {fast: 0.1})
    options = LowerOptions(target="cuda:sm_90", tune=COUNT)
    lowered = lower(network(), options)
    why = {layer.node: layer.why for layer in lowered.layers}
    assert "measured fastest on Fake GPU" in why["conv"]
    assert "measured fastest on Fake GPU" in why["fc"]
    assert "predicted fastest" in why["deep"]
    (conv,) = [layer for layer in lowered.layers if layer.node == "conv"]
    assert conv.trials[0].name in {each.name for each in tried if shape(each) == fast}
    check_all_given_back(calls(tmp_path))
    again = lower(network(), options)
    assert again.library == lowered.library
    assert "cuDevicePrimaryCtxRetain" not in names(calls(tmp_path))
    assert os.listdir(tmp_path / "lwc")


def test_one_of_two_in_tf32_is_taken_where_it_is_measured(lwc, tmp_path, monkeypatch) -> None:
    """From the command line; without a measurement the layer has every weight."""
    monkeypatch.setenv("FAKE_CAPABILITY", "80")
    monkeypatch.setattr("lwc_compiler.runtime.verify.missing_features", lambda _: frozenset({"sm_80"}))
    net = Network("net", (2048, 256))
    hidden = net.relu(net.node("MatMul", net.x, net.random("first", (256, 256), 0.1)))
    model = tmp_path / "net.onnx"
    onnx.save(net.model(net.node("MatMul", hidden, net.random("second", (256, 512), 0.1)), (2048, 512)), model)
    precise = find_target("cuda:sm_80")
    precise = replace(precise, gpu=replace(precise.gpu, precision="tf32"))
    offered: list[Candidate] = []

    def note(task: Task, candidates: Sequence[Candidate]) -> Plan:
        offered[:] = sorted(candidates, key=lambda candidate: candidate.cycles)
        return predicted(task, candidates)

    plan_matmul(random_weights((512, 256), 0.5, "1:2").T.copy(), 2048, Epilogue(), precise, note)
    others = set(map(shape, promising(offered, COUNT)))
    measured = [candidate for candidate in offered if candidate.unproven][:COUNT]
    take_times(tmp_path, {next(each for each in map(shape, measured) if each not in others): 0.1})
    for number, (kernel, format_, why) in enumerate(
        (("gpu_mma", "dense", "predicted fastest"), ("gpu_mma_sparse", "1:2", "measured fastest on Fake GPU"))
    ):
        out = tmp_path / f"{number}.lwc"
        asked = ["--target", "cuda:sm_80", "--precision", "tf32", "--structure", "1:2", "--sparsity", "0.5"]
        done = lwc("compile", model, "-o", out, *asked, *(["--tune", COUNT] * number))
        assert done.code == 0, done.err
        (line,) = [line for line in lwc("inspect", out).out.splitlines() if "256x512" in line]
        assert {kernel, format_} <= set(line.split())
        assert why in line
