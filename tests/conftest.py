import os
import subprocess
from dataclasses import dataclass

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from lwc_compiler.cli import main
from lwc_compiler.codegen.link import find_compiler
from lwc_compiler.codegen.result import LayerDecision, Lowered, ProgramInfo, StepInfo, TensorSpec
from lwc_compiler.kernels.kernel import Trial
from lwc_compiler.model import Model
from lwc_compiler.recipe.options import Recipe
from lwc_compiler.report.document import Report
from lwc_compiler.runtime.artifact import write_artifact
from lwc_compiler.runtime.manifest import Verification
from tests.opencl_harness import Device


@pytest.fixture(scope="session", autouse=True)
def _no_measurements():
    """Kernels are picked by prediction, unless a test asks for measurements: these take long and change no result."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lwc_compiler.passes.lower._TUNE", 0)
        yield


@pytest.fixture(scope="session", autouse=True)
def _cache_of_its_own(tmp_path_factory):
    """Nothing that other runs have cached is used, and nothing is left in the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LWC_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    return _without_skips((yield))


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector):
    return _without_skips((yield))


def _without_skips(report):
    """In CI everything a test wants is installed: a skip there hides something and fails.

    The tests of ONNX that tests/onnx_backend/exclusions.py leaves out by name are no such skips.
    """
    if os.environ.get("CI") and report.skipped and not hasattr(report, "wasxfail"):
        reason = report.longrepr[-1] if isinstance(report.longrepr, tuple) else report.longrepr
        if "matched exclude pattern" in str(reason):
            return report
        report.outcome, report.longrepr = "failed", f"skipped although CI is set: {reason}"
    return report


# The smallest library with the C interface of an artifact: doubled = values + values, same = ids. A run on 777
# waits, 20 s at most, until `twice_wanted` such runs are under way.
TWICE = r"""
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
typedef struct { int threads; } twice_pool;
_Atomic int twice_wanted, twice_arrived;
static int twice_meet(void) {
  const struct timespec millisecond = {0, 1000000};
  twice_arrived++;
  for (int i = 0; i < 20000; i++) {
    if (twice_arrived >= twice_wanted) return 0;
    nanosleep(&millisecond, NULL);
  }
  return 2;
}
int twice_live_pools;
size_t twice_workspace_bytes(int threads) { (void)threads; return 128; }
twice_pool *twice_pool_create(int threads) {
  if (threads > 64) return NULL;
  twice_pool *pool = malloc(sizeof *pool);
  pool->threads = threads;
  twice_live_pools++;
  return pool;
}
void twice_pool_destroy(twice_pool *pool) { free(pool); twice_live_pools--; }
int twice_run(
  const void *const *inputs, void *const *outputs, void *workspace, size_t workspace_bytes, twice_pool *pool
) {
  if (workspace_bytes < 128) return 3;
  const float *values = inputs[0];
  float *doubled = outputs[0];
  if ((uintptr_t)workspace % 64) return 1;
  memset(workspace, 1, 128);
  if (values[0] == 666 || (values[0] == 777 && twice_meet())) return 2;
  for (int i = 0; i < 6; i++) doubled[i] = FACTOR * values[i];
  if (pool && pool->threads == 7) doubled[0] = 7;
  memcpy(outputs[1], inputs[1], 2 * sizeof(int64_t));
  return 0;
}
const char *twice_error_string(int code) { return code == 1 ? "workspace is not aligned" : "the number of the beast"; }
const char *twice_version(void) { return "0"; }
int twice_cpu_supported(void) { return SUPPORTED; }
const char *twice_target(void) { return "x86-64-v3"; }
int twice_use_target(const char *target) { return strcmp(target, "x86-64-v3") == 0; }
int twice_step_count(void) { return 2; }
int twice_profile(
  const void *const *inputs, void *const *outputs, void *workspace, size_t workspace_bytes, twice_pool *pool,
  double *seconds
) {
  seconds[0] += 3e-3;
  seconds[1] += 1e-3;
  return twice_run(inputs, outputs, workspace, workspace_bytes, pool);
}
"""


@pytest.fixture(scope="session")
def make_lowered(tmp_path_factory):
    """Builds the library above as a `Lowered`; `factor` other than 2 makes it wrong, `supported` 0 alien here."""

    def make(factor: float = 2, supported: int = 1) -> Lowered:
        folder = tmp_path_factory.mktemp("twice")
        (folder / "twice.c").write_text(TWICE, encoding="utf-8")
        command = [
            *find_compiler().command,
            "-shared",
            "-fPIC",
            "-Wall",
            f"-DFACTOR={factor:.1f}f",
            f"-DSUPPORTED={supported}",
        ]
        subprocess.run([*command, "-o", "twice.so", "twice.c"], cwd=folder, check=True)
        return Lowered(
            name="twice",
            symbol="twice",
            library=(folder / "twice.so").read_bytes(),
            archive=b"!<arch>\n",
            header="/* twice */\n",
            inputs=(TensorSpec("values", "float32", (2, 3)), TensorSpec("ids", "int64", (2,))),
            outputs=(TensorSpec("doubled", "float32", (2, 3)), TensorSpec("same", "int64", (2,))),
            workspace_bytes=128,
            least_workspace_bytes=128,
            weight_bytes=0,
            layers=(
                LayerDecision(
                    site="w",
                    node="fc",
                    op="Gemm",
                    shape=(2, 3),
                    density=0.5,
                    format="csr",
                    kernel="csr_gemm",
                    bytes=20,
                    dense_bytes=24,
                    flops=6,
                    dense_flops=12,
                    why="sparse enough",
                    trials=(Trial("csr 1x4", 90.0, 3e-8), Trial("dense", 80.0, 5e-8)),
                ),
            ),
            programs=(ProgramInfo("x86-64-v3", (StepInfo("fc", "csr_gemm", "csr"), StepInfo("", "add", ""))),),
            target="x86-64-v3",
            threads=1,
            compiler="test cc 1.0",
        )

    return make


@pytest.fixture(scope="session")
def twice(make_lowered):
    return make_lowered(2.0)


@pytest.fixture(scope="session")
def twice_model():
    """The ONNX model of that library."""
    graph = helper.make_graph(
        [helper.make_node("Add", ["values", "values"], ["doubled"]), helper.make_node("Identity", ["ids"], ["same"])],
        "twice",
        [
            helper.make_tensor_value_info("values", TensorProto.FLOAT, ["n", 3]),
            helper.make_tensor_value_info("ids", TensorProto.INT64, [2]),
        ],
        [
            helper.make_tensor_value_info("doubled", TensorProto.FLOAT, ["n", 3]),
            helper.make_tensor_value_info("same", TensorProto.INT64, [2]),
        ],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return Model(proto, "twice")


@pytest.fixture
def artifact(tmp_path, twice, twice_model):
    """A written artifact."""
    return write_twice(tmp_path / "twice.lwc", twice, twice_model)


def write_twice(directory, lowered, model, **changes):
    arguments = {
        "recipe": Recipe(),
        "source_sha256": "",
        "report": Report("twice", (), {"weights, dense": 24, "library": len(lowered.library)}),
        "verification": Verification({"doubled": 1e-7, "same": 0.0}, 1e-4, 2),
        "figures": {},
        "bundle": {"README.md": b"# twice\n"},
    }
    return write_artifact(directory, lowered, model, **{**arguments, **changes})


@pytest.fixture
def mlp(tmp_path):
    """An ONNX file: x (n, 16) -> Gemm fc1 (w1) -> Relu -> Gemm fc2 (w2) -> y (n, 4)."""
    generator = np.random.default_rng(0)
    weights = {"w1": (16, 12), "b1": (12,), "w2": (12, 4), "b2": (4,)}
    graph = helper.make_graph(
        [
            helper.make_node("Gemm", ["x", "w1", "b1"], ["hidden"], name="fc1"),
            helper.make_node("Relu", ["hidden"], ["active"], name="relu"),
            helper.make_node("Gemm", ["active", "w2", "b2"], ["y"], name="fc2"),
        ],
        "mlp",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 16])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4])],
        [numpy_helper.from_array(generator.standard_normal(s).astype(np.float32), n) for n, s in weights.items()],
    )
    path = tmp_path / "mlp.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


@pytest.fixture(scope="module")
def device():
    """This processor, which kernels for GPUs run on as OpenCL."""
    return Device()


@pytest.fixture
def mlp_data(tmp_path):
    """Training data for it."""
    generator = np.random.default_rng(1)
    path = tmp_path / "data.npz"
    np.savez(path, x=generator.standard_normal((64, 16)).astype(np.float32), labels=generator.integers(0, 4, 64))
    return path


@dataclass(frozen=True)
class Done:
    """What a command line did."""

    code: int
    out: str
    err: str


@pytest.fixture
def lwc(capsys, monkeypatch, tmp_path_factory):
    """Runs a command line in this process, with a cache for this test: `lwc("prune", path, ...)`."""
    monkeypatch.setenv("LWC_CACHE", str(tmp_path_factory.mktemp("cache")))

    def run(*arguments) -> Done:
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        return Done(code, *capsys.readouterr())

    return run
