"""What `make gpu-prepare` writes runs without lwc, says what is wrong, and leaves out what is missing with a reason."""

import json
import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from benchmarks.gpu import kernels, layers, prepare, run
from benchmarks.gpu.bundle import Bundle, Writer
from benchmarks.gpu.layers import Layer
from benchmarks.gpu.table import markdown
from benchmarks.models import Network as Graph
from lwc_compiler.kernels.layer import ConvGeometry
from lwc_compiler.runtime.device_driver import GpuError
from lwc_compiler.targets import find_target
from tests.driver_harness import build_driver, check_all_given_back
from tests.opencl_harness import Device

TARGET = find_target("h100")
SQUARE = ConvGeometry(3, 20, (7, 7), 80, (3, 3), (1, 1), (1,) * 4, (1, 1))
LAYERS = (
    Layer("", 3, 70, 50, precisions=layers.PRECISIONS),
    Layer("", geometry=SQUARE, precisions=layers.PRECISIONS),
    Layer("single weights", geometry=replace(SQUARE, batch=1, kernel=(1, 1), pads=(0,) * 4)),
)
CASES = 3 * layers._CANDIDATES


class OnProcessor:
    """`device_driver.Gpu` for kernels that are compiled as OpenCL."""

    l2_bytes = 1000

    def __init__(self, compiled: dict) -> None:
        self.device, self.buffers = Device(), {}
        self.functions = {symbol: (f, compiled[symbol]) for symbol, f in self.device.build(compiled).items()}

    def memory(self, size):
        address = (len(self.buffers) + 1) << 32
        self.buffers[address >> 32] = self.device.cl.Buffer(
            self.device.context, self.device.cl.mem_flags.READ_WRITE, size
        )
        return address

    def free(self, address):
        self.buffers[address >> 32].release()

    def upload(self, address, array):
        buffer, offset = self.buffers[address >> 32], address & 0xFFFFFFFF
        self.device.cl.enqueue_copy(self.device.queue, buffer, np.ascontiguousarray(array), dst_offset=offset)

    def download(self, address, size):
        result = np.empty(size, np.uint8)
        buffer, offset = self.buffers[address >> 32], address & 0xFFFFFFFF
        self.device.cl.enqueue_copy(self.device.queue, result, buffer, src_offset=offset)
        return result

    def module(self, image):
        assert image.startswith(b"\x7fELF")

    def function(self, _module, symbol):
        return self.functions[symbol]

    def graph(self, launches):
        return launches

    def destroy(self, graph):
        pass

    def run(self, launches):
        self.once(launches)

    def once(self, launches):
        for launch in launches:
            function, kernel = launch.function
            assert (tuple(launch.grid), tuple(launch.block)) == (kernel.launch.grid, kernel.launch.block)
            sizes = tuple(n * m for n, m in zip(launch.grid, launch.block, strict=True))
            parts = [self.buffers[a >> 32].get_sub_region(a & 0xFFFFFFFF, 4096) for a in launch.operands]
            function(self.device.queue, sizes, launch.block, *parts)
            self.device.queue.finish()

    def seconds(self, start, _budget):
        start()
        return 1e-6


@pytest.fixture(scope="module")
def compiled():
    """The kernels of the bundle, by symbol."""
    return {}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory, compiled):
    path = tmp_path_factory.mktemp("bundle") / "gpu.pyz"
    make_text = prepare.compile_device
    patch = pytest.MonkeyPatch()
    patch.setattr(prepare, "compile_device", lambda found, to: compiled.update(found) or make_text(found, to))
    patch.setitem(prepare.MODELS, "small", small)
    with Writer(path) as writer:
        writer.table["made"] = {"lwc": "1", "target": "h100", "compiler": "NVRTC"}
        writer.table["checks"] = {"code": writer.add("none.cubin", b"\x7fELF" + bytes(60)), "cases": []}
        # OpenCL has no tensor cores.
        in_float32 = [replace(layer, precisions=("float32",)) for layer in LAYERS]
        prepare.pack_layers(writer, in_float32, TARGET)
        writer.table["networks"] = [prepare.pack_network(writer, "small", "90", 3, "float32", TARGET)]
    patch.undo()
    return path


def small():
    net = Graph("small", (1, 3, 12, 12))
    x = net.max_pool(net.relu(net.conv(net.x, "a", (3, 8), 3, 1, 1)), 2, 2)
    return net.model(net.classifier(net.conv(x, "b", (8, 8), 3, 1, 1), (288, 10), ("fc",)), (1, 10))


def test_kernels_in_the_bundle_compute_what_it_expects(bundle, compiled) -> None:
    """Each with the operands that the bundle says: right, in buffers that nothing else was written around."""
    opened = Bundle(bundle)
    rows = kernels.run_cases(OnProcessor(compiled), opened, "layers", lambda: 60.0)
    assert len(rows) == CASES
    assert {row["format"] for row in rows} == {"csr", "dense"}
    assert {row["format"] for row in rows if row["purpose"]} == {"csr"}
    assert {row["layer"] for row in rows if row["chosen"]} >= {layer.name for layer in LAYERS if not layer.purpose}
    assert not [row["wrong"] for row in rows if "wrong" in row]
    assert all(0 < row["error"] < 1e-5 and row["ms"] > 0 and row["bytes"] > 0 for row in rows)


def test_a_layer_comes_in_every_precision() -> None:
    cases = layers.cases_of(Layer("", 64, 256, 512, precisions=layers.PRECISIONS), TARGET)
    assert len({case.name for case in cases}) == len(cases)
    tolerances = [case.tolerance for case in cases]
    assert tolerances == [1e-5] * layers._CANDIDATES + [2**-7, 2**-7, 2**-4]
    assert [case.plan.steps[0].kernel.name for case in cases[-3:]] == ["gpu_mma"] * 3


def test_blocks_come_beside_every_weight() -> None:
    cases = layers.cases_of(Layer("", 64, 256, 512, precisions=("float16",), block=16), TARGET)
    found = [case.plan.steps[0].kernel.name for case in cases]
    assert found == ["gpu_mma_blocks"] * layers._BLOCK_CANDIDATES + ["gpu_mma"]
    assert cases[0].name.startswith("64 x 256 x 512, 10% in 16x1: ")


def test_two_of_four_come_by_both_instructions() -> None:
    """And in the checks; what lwc takes without a measurement is not what is unproven."""
    cases = layers.cases_of(Layer("2:4", 256, 256, 512, density=0.5, precisions=("float16",)), find_target("h200"))
    found = [case.plan.steps[-1].kernel.name for case in cases]
    assert found[:-1] == ["gpu_wgmma_sparse"] * layers._CUTS
    assert found[-1] in ("gpu_mma_sparse", "gpu_gemm_sum")
    assert not any(case.layer["chosen"] for case in cases[:-1])
    checks = prepare.test_cases(find_target("h200"))
    assert sum(case.plan.steps[-1].kernel.name == "gpu_wgmma_sparse" for case in checks) >= 8


def test_one_of_two_comes_beside_every_weight() -> None:
    """In tf32, by `mma.sp`, and in the checks; what lwc takes without a measurement is not what is unproven."""
    layer = Layer("1:2", 256, 256, 512, density=0.5, precisions=("tf32",))
    *full, sparse = layers.cases_of(layer, find_target("h200"))
    assert [case.plan.steps[1].kernel.name for case in full] == ["gpu_wgmma"] * layers._CUTS
    assert (sparse.plan.format, sparse.plan.steps[0].kernel.name) == ("1:2", "gpu_mma_sparse")
    assert not sparse.layer["chosen"]
    for target in ("a100", "h200"):
        checks = prepare.test_cases(find_target(target))
        assert sum(case.plan.format == "1:2" for case in checks) >= 8
    assert not any(case.plan.format == "1:2" for case in prepare.test_cases(find_target("t4")))


def test_wrong_results_are_told() -> None:
    right = np.ones((2, 3), np.float32)
    other = right + np.float32(1e-3)

    def said(results, *, outside=False):
        return kernels.compare(results, right, 1.0, 1e-5, outside).get("wrong")

    assert said([right, right]) is None
    assert said([other, other]) == "error above 1e-05"
    assert said([right, other]) == "runs differ"
    assert said([right * np.nan] * 2) == "not finite"
    assert said([right, right], outside=True) == "wrote outside of its memory"


def test_writes_around_a_buffer_are_seen(bundle, compiled) -> None:
    opened, gpu = Bundle(bundle), OnProcessor(compiled)
    entry = opened.table["layers"]["cases"][0]
    case = kernels.Case(gpu, opened, gpu.functions, entry)
    assert not case._written_outside()
    gpu.upload(case.sets[0]["output", 0] - 4, np.zeros(1, np.float32))
    assert case._written_outside()


@pytest.fixture(scope="module")
def driver(tmp_path_factory):
    return build_driver(tmp_path_factory.mktemp("driver"))


def played(bundle, driver, tmp_path, *arguments):
    """The program against a driver that runs no kernel."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    environment |= {"LD_LIBRARY_PATH": str(driver), "FAKE_LOG": str(tmp_path / "log")}
    command = [sys.executable, str(bundle), *arguments]
    return subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)


def test_program(bundle, driver, tmp_path) -> None:
    """It runs from the file alone; as no kernel runs, all results are wrong; what is missing has its reason."""
    done = played(bundle, driver, tmp_path, "--output", "results", "--minutes", "5")
    assert done.returncode == 1, done.stderr
    results = json.loads((tmp_path / "results" / "gpu-fake-gpu.json").read_text())
    assert [row["wrong"] for row in results["layers"]] == ["not finite"] * CASES
    (network,) = results["networks"]
    assert network["wrong"] == "error above 0.0001"
    assert network["steps"][-1][:2] == ["", "copies"]
    assert {kernel for _, kernel, _ in network["steps"]} >= {"gpu_gemm"}
    assert results["missing"].keys() == {"torch", "sanitizer"}
    assert "PyTorch has no CUDA here" in results["missing"]["torch"]
    assert "compute-sanitizer" in results["missing"]["sanitizer"]
    log = (tmp_path / "log").read_text().splitlines()
    check_all_given_back(log)
    launches = [line.split() for line in log if "cuLaunchKernelEx" in line]
    checked, timed = ([line for line in launches if line[-1] == overlaps] for overlaps in "01")
    assert len(launches) == len(checked) + len(timed)
    assert len(timed) > len(checked) > 0  # launches overlap only where they are timed
    text = (tmp_path / "results" / "gpu-fake-gpu.md").read_text()
    assert "| small | 90 | 3 | float32 | error above 0.0001 |" in text
    assert "torch is missing: RuntimeError: PyTorch has no CUDA here" in text


def test_a_network_that_cannot_run_is_a_wrong_result(bundle, tmp_path, monkeypatch) -> None:
    """The others go on; none is begun when the time is up."""
    state = run.Run(Bundle(bundle), tmp_path, 1.0)
    monkeypatch.setattr(run, "run_network", lambda *_: (_ for _ in ()).throw(GpuError("create: no memory")))
    entries = state.bundle.table["networks"]
    assert run.run_networks(state, None, entries) == [
        {"model": "small", "variant": "90", "batch": 3, "precision": "float32", "wrong": "create: no memory"}
    ]
    assert state.wrong == 1
    assert "| small | 90 | 3 | float32 | create: no memory |" in markdown(state.results)
    late = run.Run(Bundle(bundle), tmp_path, 0.0)
    assert run.run_networks(late, None, entries) == []
    assert late.results["missing"]["networks"] == "1 of 1: the time was up"


def test_layers_that_lwc_would_not_take_are_begun_last(bundle, compiled, tmp_path, monkeypatch) -> None:
    """And none when the time is up."""
    lefts = iter([60.0, 60.0, 0.0])
    monkeypatch.setattr(run.Run, "left", property(lambda _: next(lefts)))
    state = run.Run(Bundle(bundle), tmp_path, 1.0)
    rows = run.run_layers(state, OnProcessor(compiled))
    assert [row["chosen"] for row in rows] == [True, True]
    assert state.results["missing"]["layers"].startswith(f"{CASES - 2} candidates: ")


SANITIZER = """#!/bin/sh
case "$2" in
    memcheck) echo "========= ERROR SUMMARY: 0 errors" ;;
    racecheck) echo "========= RACECHECK SUMMARY: 2 hazards displayed (2 errors, 0 warnings)" ;;
    initcheck) echo "Device not supported" ;;
    *) sleep 100 ;;
esac
"""


def test_tools_of_the_sanitizer_run_at_the_same_time(bundle, tmp_path, monkeypatch) -> None:
    program = tmp_path / "compute-sanitizer"
    program.write_text(SANITIZER)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr(run, "_SANITIZER_SECONDS", 5.0)
    assert run.sanitize(run.Run(Bundle(bundle), tmp_path, 1.0)) == {
        "memcheck": "0 found", "racecheck": "2 found", "initcheck": "Device not supported",
        "synccheck": "not done in time",
    }  # fmt: skip


def test_checks_alone(bundle, driver, tmp_path) -> None:
    done = played(bundle, driver, tmp_path, "--only-checks")
    assert (done.returncode, done.stdout) == (0, "0 of 0 are wrong\n")
    assert list(tmp_path.iterdir()) == [tmp_path / "log"]


def test_without_a_driver_one_sentence(bundle, tmp_path) -> None:
    (tmp_path / "libcuda.so.1").write_bytes(b"no library")
    done = played(bundle, tmp_path, tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith("there is no NVIDIA driver: ")
    assert "Traceback" not in done.stderr


def test_a_fault_in_one_part_does_not_cost_the_others(bundle, tmp_path) -> None:
    state = run.Run(Bundle(bundle), tmp_path, 1.0)
    state.part("layers", lambda: 1 / 0)
    state.part("networks", list)
    written = json.loads((tmp_path / "gpu-none.json").read_text())
    assert "ZeroDivisionError" in written["missing"]["layers"]
    assert written["networks"] == []


def test_levels_keep_zeros_and_signs() -> None:
    weight = np.random.default_rng(0).standard_normal(1000).astype(np.float32)
    weight[::3] = 0
    rounded = layers.levels(weight)
    assert np.array_equal(np.sign(rounded), np.sign(weight))
    assert len(np.unique(rounded)) <= layers._LEVELS + 1


def test_cases_of_the_kernels_tests() -> None:
    """The bundle has those; their names are told apart."""
    cases = prepare.test_cases(TARGET)
    t4 = prepare.test_cases(find_target("t4"))
    assert {case.name for case in cases} - {case.name for case in t4} > {"conv0-tf32", "product2-bfloat16"}
    assert len({case.name for case in cases}) == len(cases) > 50
    assert {step.kernel.name for case in cases for step in case.plan.steps} >= {
        "gpu_taps", "gpu_gemm", "gpu_gemm_sum", "gpu_mma", "gpu_depthwise", "gpu_matvec_csr", "gpu_matvec_dense"
    }  # fmt: skip
