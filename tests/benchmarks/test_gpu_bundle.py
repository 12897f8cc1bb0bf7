"""What `make gpu-prepare` writes runs without lwc, says what is wrong, and leaves out what is missing with a reason."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from onnx import numpy_helper

from benchmarks.gpu import kernels, prepare, run
from benchmarks.gpu.bundle import Bundle, Writer
from benchmarks.gpu.driver import GpuError
from benchmarks.gpu.table import markdown
from benchmarks.gpu.torch_side import Network
from benchmarks.models import Network as Graph
from benchmarks.models import bert, lenet5, mobilenet_v2
from lwc_compiler.codegen.link import find_compiler
from lwc_compiler.kernels.layer import ConvGeometry
from lwc_compiler.runtime.reference import reference_session
from lwc_compiler.runtime.verify import relative_error
from lwc_compiler.targets import find_target
from tests.opencl_harness import Device

TARGET = find_target("h100")
LAYERS = (
    prepare.Layer(3, 70, 50),
    prepare.Layer(geometry=ConvGeometry(2, 20, (7, 7), 12, (3, 3), (1, 1), (1,) * 4, (1, 1))),
)
DRIVER = Path(__file__).parents[1] / "runtime" / "fake_driver.c"


class OnProcessor:
    """`driver.Gpu` for kernels that are compiled as OpenCL."""

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
        for launch in launches:
            function, kernel = launch.function
            assert (tuple(launch.grid), tuple(launch.block)) == (kernel.launch.grid, kernel.launch.block)
            sizes = tuple(n * m for n, m in zip(launch.grid, launch.block, strict=True))
            parts = [self.buffers[a >> 32].get_sub_region(a & 0xFFFFFFFF, 4096) for a in launch.operands]
            function(self.device.queue, sizes, launch.block, *parts)
            self.device.queue.finish()

    def seconds(self, start):
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
        cases = [case for layer in LAYERS for case in prepare.cases_of(layer, TARGET)]
        writer.table["made"] = {"lwc": "1", "target": "h100", "compiler": "NVRTC"}
        writer.table["checks"] = {"code": writer.add("none.cubin", b"\x7fELF" + bytes(60)), "cases": []}
        # OpenCL has no tensor cores.
        cases = [case for case in cases if case.tolerance == prepare._KERNEL_TOLERANCE]
        writer.table["layers"] = prepare.pack_cases(writer, cases, TARGET)
        writer.table["layers_alone"] = [prepare.describe(layer) for layer in LAYERS]
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
    rows = kernels.run_cases(OnProcessor(compiled), opened, "layers", timed=True)
    assert len(rows) == 2 * prepare._CANDIDATES
    assert {row["format"] for row in rows} == {"csr", "dense"}
    assert not [row["wrong"] for row in rows if "wrong" in row]
    assert all(0 < row["error"] < 1e-5 and row["ms"] > 0 and row["bytes"] > 0 for row in rows)


def test_a_layer_comes_in_every_precision() -> None:
    cases = prepare.cases_of(prepare.Layer(64, 256, 512), TARGET)
    assert len({case.name for case in cases}) == len(cases)
    tolerances = [case.tolerance for case in cases]
    assert tolerances == [1e-5] * prepare._CANDIDATES + [2**-7, 2**-7, 2**-4]
    assert [case.plan.steps[0].kernel.name for case in cases[-3:]] == ["gpu_mma"] * 3


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
    gpu.upload(case._sets[0]["output", 0] - 4, np.zeros(1, np.float32))
    assert case._written_outside()


@pytest.fixture(scope="module")
def driver(tmp_path_factory):
    folder = tmp_path_factory.mktemp("driver")
    command = [*find_compiler().command, "-shared", "-fPIC", "-O1", str(DRIVER), "-o", str(folder / "libcuda.so.1")]
    subprocess.run(command, check=True)
    return folder


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
    assert [row["wrong"] for row in results["layers"]] == ["not finite"] * 2 * prepare._CANDIDATES
    (network,) = results["networks"]
    assert network["wrong"] == "error above 0.0001"
    assert network["steps"][-1][:2] == ["", "copies"]
    assert {kernel for _, kernel, _ in network["steps"]} >= {"gpu_gemm"}
    assert "PyTorch has no CUDA here" in results["missing"]["torch"]
    assert "compute-sanitizer" in results["missing"]["sanitizer"]
    text = (tmp_path / "results" / "gpu-fake-gpu.md").read_text()
    assert "| small | 90 | 3 | float32 | error above 0.0001 |" in text
    assert "torch is missing: RuntimeError: PyTorch has no CUDA here" in text


def test_a_network_that_cannot_run_is_a_wrong_result(bundle, tmp_path, monkeypatch) -> None:
    """The others go on; none is begun when half of the time is up."""
    state = run.Run(Bundle(bundle), tmp_path, 1.0)
    monkeypatch.setattr(run, "run_network", lambda *_: (_ for _ in ()).throw(GpuError("create: no memory")))
    assert run.run_networks(state, None) == [
        {"model": "small", "variant": "90", "batch": 3, "precision": "float32", "wrong": "create: no memory"}
    ]
    state.results["networks"] = run.run_networks(state, None)
    assert state.wrong == 1
    assert "| small | 90 | 3 | float32 | create: no memory |" in markdown(state.results)
    state.seconds = 300.0
    assert run.run_networks(state, None) == []
    assert state.results["missing"]["networks"] == "1 of 1: half of the time was up"


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


def test_tables_have_all_that_was_measured() -> None:
    layer = {"layer": "1 x 2 x 3", "candidate": "csr", "format": "csr", "predicted_ms": 0.5, "flops": 1e6, "bytes": 1e6}
    results = {
        "made": {"lwc": "1", "target": "h100", "compiler": "NVRTC 13"},
        "missing": {},
        "gpu": {
            "name": "GPU", "driver": "CUDA 13.0", "multiprocessors": 2, "gigahertz": 1.5, "gigabytes_a_second": 2000.0
        },
        "copy_gigabytes_a_second": 1000.0,
        "checks": [{"name": "a", "error": 1e-7}, {"name": "b", "error": 0.5, "wrong": "error above 1e-05"}],
        "layers": [{**layer, "name": "n", "error": 1e-7, "ms": 0.01}],
        "networks": [
            {
                "model": "m", "variant": "90", "batch": 1, "precision": "float32", "error": 1e-6,
                "ms": 0.5, "host_ms": 1.0,
                "steps": [["fc", "gpu_gemm", 0.3], ["", "copies", 0.1]],
            }
        ],
        "sanitizer": {"memcheck": "0 found"},
        "torch": {
            "layers": [{"name": "1 x 2 x 3", "dense float32": 0.02, "2:4 float16": "not here | there"}],
            "networks": [
                {"model": "m", "batch": 1, "precision": "float32", "eager_ms": 3.0, "graph_ms": 2.0},
                {"model": "m", "batch": 1, "precision": "tf32", "missing": "the time was up"},
            ],
        },
    }  # fmt: skip
    lines = markdown(results).splitlines()
    assert "2 cases, 1 wrong; the largest error is 5.0e-01 of the result's scale." in lines
    assert (
        "| network | zeros | batch | precision | error | lwc | host | PyTorch float32, graph | PyTorch float32, eager |"
        in lines
    )
    assert "| m | 90 | 1 | float32 | 1.0e-06 | 0.5 | 1 | 2 | 3 |" in lines
    assert "| m | 1 | float32 | fc | gpu_gemm | 0.3 | 75% |" in lines
    assert "| 1 x 2 x 3 | lwc, csr | 1.0e-07 | 0.01 | 0.5 | 100 | 10% | 100 |" in lines
    assert "| 1 x 2 x 3 | PyTorch, dense float32 |  | 0.02 |  |  |  |  |" in lines
    assert "| 1 x 2 x 3 | PyTorch, 2:4 float16 |  | not here / there |  |  |  |  |" in lines


def normalized():
    net = Graph("normalized", (1, 6, 5, 5))
    return net.model(net.node("LRN", net.x, size=5, alpha=1e-1, beta=0.75, bias=1.0), (1, 6, 5, 5))


@pytest.mark.parametrize(
    "make",
    [lenet5, normalized, lambda: mobilenet_v2(64), lambda: bert(1, 32, 2, 8)],
    ids=["lenet5", "lrn", "v2", "bert"],
)
def test_pytorch_computes_the_same_network(make) -> None:
    proto = make()
    network = Network(prepare.graph_of(proto))
    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}
    for name, place in network._places.items():
        network.weights[place].data = torch.from_numpy(arrays[name].copy())
    x = np.random.default_rng(0).standard_normal(
        [d.dim_value for d in proto.graph.input[0].type.tensor_type.shape.dim], np.float32
    )
    (expected,) = reference_session(proto, 1).run(None, {"input": x})
    with torch.inference_mode():
        assert relative_error(network(torch.from_numpy(x)).numpy(), expected) < 1e-5


def test_levels_keep_zeros_and_signs() -> None:
    weight = np.random.default_rng(0).standard_normal(1000).astype(np.float32)
    weight[::3] = 0
    rounded = prepare.levels(weight)
    assert np.array_equal(np.sign(rounded), np.sign(weight))
    assert len(np.unique(rounded)) <= prepare._LEVELS + 1


def test_cases_of_the_kernels_tests() -> None:
    """The bundle has those; their names are told apart."""
    cases = prepare.test_cases(TARGET)
    t4 = prepare.test_cases(find_target("t4"))
    assert {case.name for case in cases} - {case.name for case in t4} > {"conv0-tf32", "product2-bfloat16"}
    assert len({case.name for case in cases}) == len(cases) > 50
    assert {step.kernel.name for case in cases for step in case.plan.steps} >= {
        "gpu_taps", "gpu_gemm", "gpu_gemm_sum", "gpu_mma", "gpu_depthwise", "gpu_matvec_csr", "gpu_matvec_dense"
    }  # fmt: skip
