"""Which of NVIDIA's compilers makes the code, and what CUDA 12 and nvcc make of kernels."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

import lwc_compiler as lwc
from benchmarks.gpu import prepare
from lwc_compiler.codegen import cuda_compiler
from lwc_compiler.codegen.cuda_compiler import CudaCompiler, Nvcc, Nvrtc, compile_all, find_cuda_compiler
from lwc_compiler.codegen.device_build import compile_device
from lwc_compiler.errors import TargetError, ToolchainError
from lwc_compiler.kernels.kernel import Kernel
from lwc_compiler.recipe.options import LowerOptions
from lwc_compiler.targets import find_target
from tests.driver_harness import build_driver, names
from tests.machine_code import check_resources
from tests.wheels import unpack

ADD = 'extern "C" __global__ void add(float *x) { x[threadIdx.x] += 1.f; }'
NVCC = ("nvcc", "nvcc's nvvm", "nvcc's headers", "nvcc's runtime")
# Targets, of which each compiler makes some of the kernels that are tested.
TARGETS = {"t4": 12, "h200": 8, "cuda:sm_120": 12}

pytestmark = pytest.mark.xdist_group("NVIDIA's compilers")


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory):
    """Where CUDA 12's NVRTC and CUDA 13's nvcc are, as their packages have them."""
    folder = tmp_path_factory.mktemp("compilers")
    unpack(["nvrtc 12"], folder / "nvrtc")
    unpack(NVCC, folder / "nvcc")
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def nvrtc(unpacked) -> Nvrtc:
    return Nvrtc(unpacked / "nvrtc/nvidia/cuda_nvrtc/lib/libnvrtc.so.12")


@pytest.fixture(scope="module")
def nvcc(unpacked) -> Nvcc:
    if shutil.which("g++") is None:
        pytest.skip("nvcc needs g++")
    return Nvcc(unpacked / "nvcc/nvidia/cu13/bin/nvcc")


@pytest.fixture(params=["nvrtc", "nvcc"])
def compiler(request, monkeypatch):
    """Each of the two, as the one that is installed."""
    found = request.getfixturevalue(request.param)
    monkeypatch.setattr(cuda_compiler, "_installed", lambda: iter([found]))
    return found


def some_kernels(name: str) -> dict[str, Kernel]:
    """Kernels of a target, from all over those of the tests."""
    kernels = [step.kernel for case in prepare.test_cases(find_target(name)) for step in case.plan.steps]
    return {f"k{number}": kernel for number, kernel in enumerate(kernels[:: TARGETS[name]])}


@pytest.mark.parametrize("name", TARGETS)
def test_kernels_compile_without_spills(compiler, name: str) -> None:
    kernels, gpu = some_kernels(name), find_target(name).gpu
    code, *ptx = compile_all(compile_device(kernels, "cuda"), gpu.architectures, ptx=gpu.ptx)
    check_resources(code, kernels)
    assert code.driver == 1000 * compiler.version[0]
    assert code.image.startswith(b"\x7fELF")
    assert [b".entry k0" in each.image for each in ptx] == [True] * gpu.ptx


def test_same_text_gives_code_of_each_architecture(compiler) -> None:
    codes = compile_all(ADD, [75, 90], ptx=True, threads=2)
    assert [(code.architecture, code.ptx, set(code.resources)) for code in codes] == [
        (75, False, {"add"}),
        (90, False, {"add"}),
        (90, True, set()),
    ]


def test_what_the_compiler_says_is_told(compiler) -> None:
    with pytest.raises(ToolchainError, match=rf"{compiler} could not compile for sm_80: [^$]*nonsense"):
        compile_all("nonsense", [80], ptx=False)


def test_an_artifact_by_cuda_12(nvrtc, monkeypatch, tmp_path) -> None:
    """It needs a driver for CUDA 12, and the newest function of the driver only where it is there."""
    monkeypatch.setattr(cuda_compiler, "_installed", lambda: iter([nvrtc]))
    nodes = [helper.make_node("MatMul", [a, f"w{b}"], [b]) for a, b in (("x", "h"), ("h", "y"))]
    generator = np.random.default_rng(0)
    weights = [
        numpy_helper.from_array(generator.standard_normal((64, 64)).astype(np.float32), f"w{name}") for name in "hy"
    ]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, (1, 64)) for name in "xy"]
    graph = helper.make_graph(nodes, "net", values[:1], values[1:], weights)
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    artifact = lwc.compile(proto, tmp_path / "net.lwc", lwc.Recipe(lower=LowerOptions(target="h200")))
    assert artifact.manifest.tools["compiler"].endswith("; NVRTC 12.9")

    x = tmp_path / "x.npy"
    np.save(x, np.ones((1, 64), np.float32))

    def run(version: int, *flags: str) -> tuple[subprocess.CompletedProcess[str], list[str]]:
        folder = tmp_path / f"driver-{version}{''.join(flags)}"
        folder.mkdir()
        log = folder / "log"
        variables = {**os.environ, "LD_LIBRARY_PATH": str(build_driver(folder, *flags)), "FAKE_LOG": str(log)}
        variables |= {"FAKE_VERSION": str(version), "FAKE_CAPABILITY": "90", "FAKE_OPERANDS": "3"}
        command = [
            sys.executable,
            "-m",
            "lwc_compiler",
            "run",
            str(tmp_path / "net.lwc"),
            "--input",
            f"x={x}",
            "--output-dir",
            str(folder / "y"),
        ]
        done = subprocess.run(command, env=variables, capture_output=True, text=True, check=False)
        return done, names(log.read_text().splitlines()) if log.exists() else []

    done, _ = run(11080)
    assert done.returncode == TargetError.exit_code
    assert "the NVIDIA driver is too old: this library needs one for CUDA 12.0 or later (code 3)" in done.stderr
    done, calls = run(12030)
    assert (done.returncode, calls.count("cuGraphAddDependencies_v2")) == (0, 1), done.stderr
    done, calls = run(12020, "-DBEFORE_12_3")
    assert (done.returncode, calls.count("cuGraphAddKernelNode_v2")) == (0, 2), done.stderr


class Fake(CudaCompiler):
    """A compiler that is only there."""

    def __init__(self, version: tuple[int, int], *architectures: int) -> None:
        self.name, self.version, self.architectures = "NVRTC", version, frozenset(architectures)

    def compile(self, source: str, options, *, ptx: bool) -> tuple[bytes, str]:
        raise AssertionError(source, options, ptx)


@pytest.mark.parametrize(
    ("architectures", "taken"),
    [([75], "NVRTC 12.6"), ([75, 90], "NVRTC 12.6"), ([90, 120], "NVRTC 13.0"), ([120], "NVRTC 13.0")],
)
def test_the_first_that_knows_all_is_taken(monkeypatch, architectures: list[int], taken: str) -> None:
    found = [Fake((12, 4), 75, 90), Fake((12, 6), 75, 90), Fake((13, 0), 75, 90, 120), Fake((13, 5), 75, 90, 120)]
    monkeypatch.setattr(cuda_compiler, "_installed", lambda: iter(found))
    assert str(find_cuda_compiler(architectures)) == taken


def test_why_none_is_taken(monkeypatch) -> None:
    found = [Fake((12, 4), 75, 90), Fake((12, 6), 75, 90)]
    monkeypatch.setattr(cuda_compiler, "_installed", lambda: iter(found))
    said = r"^NVRTC 12.4 has no code for sm_120; NVRTC 12.6 has no code for sm_120: .*at least CUDA 12.5.*cuda:sm_90"
    with pytest.raises(ToolchainError, match=said):
        find_cuda_compiler([90, 120])
    monkeypatch.setattr(cuda_compiler, "_installed", lambda: iter(found[:1]))
    with pytest.raises(ToolchainError, match=r"^NVRTC 12.4 is too old: "):
        find_cuda_compiler([90])


def test_cuda_12_comes_before_13_and_both_before_the_toolkit(unpacked, monkeypatch) -> None:
    """A process whose environment has all three."""
    code = (
        "from lwc_compiler.codegen.cuda_compiler import _installed; print([str(each) for each in _installed()])\n"
        "from lwc_compiler.codegen.cuda_compiler import find_cuda_compiler; print(find_cuda_compiler([75, 120]))"
    )
    variables = {
        "PYTHONPATH": f"{Path(__file__).parents[2]}:{unpacked}/nvrtc",
        "CUDA_HOME": f"{unpacked}/nvcc/nvidia/cu13",
    }
    done = subprocess.run([sys.executable, "-c", code], env=os.environ | variables, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found, taken = done.stdout.splitlines()
    assert re.fullmatch(r"\['NVRTC 12\.9', 'NVRTC 13\.\d+', 'nvcc 13\.5'\]", found)
    assert taken == "NVRTC 12.9"


def command(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


def test_where_nvcc_is_looked_for(tmp_path, monkeypatch) -> None:
    for folder in ("home/bin", "path/bin", "on-path"):
        command(tmp_path / folder / "nvcc", "echo")
    monkeypatch.setenv("PATH", str(tmp_path / "on-path"))
    monkeypatch.setenv("CUDA_PATH", str(tmp_path / "path"))
    monkeypatch.delenv("CUDA_HOME", raising=False)
    assert cuda_compiler._find_nvcc() == tmp_path / "path/bin/nvcc"
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "home"))
    assert cuda_compiler._find_nvcc() == tmp_path / "home/bin/nvcc"
    for variable in ("CUDA_HOME", "CUDA_PATH"):
        monkeypatch.setenv(variable, "")
    assert cuda_compiler._find_nvcc() == tmp_path / "on-path/nvcc"


def test_a_broken_nvcc_is_told(tmp_path) -> None:
    nvcc = tmp_path / "nvcc"
    command(nvcc, "echo no license; exit 3")
    with pytest.raises(ToolchainError, match=r"nvcc ended with 3\nno license"):
        Nvcc(nvcc)
    command(nvcc, "echo hello")
    with pytest.raises(ToolchainError, match=r"does not say which version it is"):
        Nvcc(nvcc)
    nvcc.write_text("no program")
    with pytest.raises(ToolchainError, match=r"nvcc cannot be started: "):
        Nvcc(nvcc)


def test_a_broken_nvrtc_is_told(tmp_path) -> None:
    (tmp_path / "libnvrtc.so.12").write_bytes(b"no library")
    with pytest.raises(ToolchainError, match=r"libnvrtc.so.12 cannot be loaded: .*pip install 'lwc-compiler\[cuda\]'"):
        Nvrtc(tmp_path / "libnvrtc.so.12")
