"""The host code of an artifact for GPUs, against a driver that records every call and fails when it is told to."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import lwc_compiler as lwc
from lwc_compiler.codegen.cuda_compiler import compile_all
from lwc_compiler.passes.lower import lower
from lwc_compiler.recipe.options import LowerOptions
from lwc_compiler.targets import find_target
from tests.driver_harness import PAIRS, build_driver, check_all_given_back, names

# Calls the library as a C program would, with what the test says in `script`.
CHILD = """
import ctypes, json, os, sys
library = ctypes.CDLL(sys.argv[1])
library.net_create.restype = ctypes.c_void_p
library.net_create.argtypes = [ctypes.c_int, ctypes.POINTER(ctypes.c_int)]
library.net_destroy.argtypes = [ctypes.c_void_p]
library.net_error_string.restype = ctypes.c_char_p
library.net_run.argtypes, library.net_run_device.argtypes = [ctypes.c_void_p] * 3, [ctypes.c_void_p] * 4
library.net_profile.argtypes = [ctypes.c_void_p] * 4
said = []
def say(value): said.append(value)
def create(device=0):
    code = ctypes.c_int(-1)
    context = library.net_create(device, ctypes.byref(code))
    say([bool(context), code.value])
    return context
x, y, same = (ctypes.c_float * 16)(*range(16)), (ctypes.c_float * 4)(), (ctypes.c_float * 16)()
def pointers(*arrays):
    addresses = [a if isinstance(a, int) else ctypes.addressof(a) for a in arrays]
    return (ctypes.c_void_p * len(arrays))(*addresses)
def run(context): say(library.net_run(context, pointers(x), pointers(y, same)))
def profile(context, seconds=(ctypes.c_double * 3)()):
    say(library.net_profile(context, pointers(x), pointers(y, same), seconds))
    return seconds
def run_device(context, first, second, third, stream):
    say(library.net_run_device(context, pointers(first), pointers(second, third), stream))
exec(sys.argv[2])
print(json.dumps(said))
"""


OLD = "the NVIDIA driver is too old: this library needs one for CUDA 13.0 or later"
LOST = "a kernel read or wrote outside of its memory; the context is lost"


@pytest.fixture(scope="module")
def lowered():
    """X (1, 16) -> Gemm, Relu, Gemm -> y (1, 4), and x as (4, 4)."""
    generator = np.random.default_rng(0)
    weights = {"w1": (16, 12), "b1": (12,), "w2": (12, 4), "b2": (4,)}
    constants = [
        numpy_helper.from_array(generator.standard_normal(s).astype(np.float32), n) for n, s in weights.items()
    ]
    graph = helper.make_graph(
        [
            helper.make_node("Gemm", ["x", "w1", "b1"], ["hidden"], name="fc1"),
            helper.make_node("Relu", ["hidden"], ["active"], name="relu"),
            helper.make_node("Gemm", ["active", "w2", "b2"], ["y"], name="fc2"),
            helper.make_node("Reshape", ["x", "shape"], ["same"], name="reshape"),
        ],
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 16])],
        [
            helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 4]),
            helper.make_tensor_value_info("same", TensorProto.FLOAT, [4, 4]),
        ],
        [*constants, numpy_helper.from_array(np.array([4, 4]), "shape")],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(proto)
    return lower(lwc.Model(proto, "net"), LowerOptions(target="cuda"))


@pytest.fixture(scope="module")
def library(lowered, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("library") / "libnet.so"
    path.write_bytes(lowered.library)
    return path


@pytest.fixture(scope="module")
def driver(tmp_path_factory) -> Path:
    return build_driver(tmp_path_factory.mktemp("driver"))


@pytest.fixture
def play(library, driver, tmp_path):
    """Runs a script against the library: what it said, and the calls of the driver."""

    def run(script: str, folder: Path = driver, **environment: object):
        log = tmp_path / "log"
        log.unlink(missing_ok=True)
        variables = {**os.environ, "LD_LIBRARY_PATH": str(folder), "FAKE_LOG": str(log), "FAKE_OPERANDS": "4"}
        variables |= {name: str(value) for name, value in environment.items()}
        command = [sys.executable, "-c", CHILD, str(library), script]
        done = subprocess.run(command, env=variables, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout), log.read_text().splitlines() if log.exists() else []

    return run


def test_calls_of_a_whole_life(play, lowered) -> None:
    said, calls = play("c = create(); run(c); run(c); say(list(same)); library.net_destroy(c)")
    assert said == [[True, 0], 0, 0, [float(i) for i in range(16)]]
    assert names(calls) == [
        *["cuInit", "cuDriverGetVersion", "cuDeviceGetCount", "cuDeviceGet", "cuDevicePrimaryCtxRetain"],
        *["cuCtxPushCurrent_v2", "cuDeviceGetAttribute", "cuDeviceGetAttribute", "cuModuleLoadData"],
        *["cuModuleGetFunction", "cuModuleGetFunction", "cuMemAlloc_v2", "cuMemAlloc_v2", "cuStreamCreate"],
        *["cuMemcpyHtoDAsync_v2", "cuStreamSynchronize", "cuCtxPopCurrent_v2"],
        # the first run makes a graph of the launches
        *["cuCtxPushCurrent_v2", "cuMemcpyHtoDAsync_v2", "cuGraphCreate", "cuGraphAddKernelNode_v2"],
        *["cuGraphAddKernelNode_v2", "cuGraphAddDependencies_v2", "cuGraphInstantiateWithFlags", "cuGraphLaunch"],
        *["cuMemcpyDtoHAsync_v2", "cuMemcpyDtoHAsync_v2", "cuStreamSynchronize", "cuCtxPopCurrent_v2"],
        # later ones replay it
        *["cuCtxPushCurrent_v2", "cuMemcpyHtoDAsync_v2", "cuGraphLaunch"],
        *["cuMemcpyDtoHAsync_v2", "cuMemcpyDtoHAsync_v2", "cuStreamSynchronize", "cuCtxPopCurrent_v2"],
        *["cuCtxPushCurrent_v2", "cuStreamSynchronize", "cuGraphExecDestroy", "cuGraphDestroy", "cuStreamDestroy_v2"],
        *["cuMemFree_v2", "cuMemFree_v2", "cuModuleUnload", "cuCtxPopCurrent_v2", "cuDevicePrimaryCtxRelease_v2"],
    ]
    sizes = [int(call.split()[1]) for call in calls if call.startswith("cuMemAlloc_v2")]
    assert sizes == [lowered.weight_bytes, lowered.workspace_bytes]
    uploads = [int(call.split()[1]) for call in calls if call.startswith("cuMemcpyHtoDAsync_v2")]
    assert uploads == [lowered.weight_bytes, 64, 64]
    assert all(call.split()[2] == "0x9" for call in calls if call.startswith("cuMemcpy"))
    check_all_given_back(calls)


def test_profile_has_an_event_around_every_launch(play) -> None:
    """Each event is a millisecond after the one before it; the second profile adds to the first."""
    said, calls = play(
        "c = create(); profile(c); say([round(1e3 * s, 3) for s in profile(c)]); say(library.net_step_count())\n"
        "say(list(same)); run(c); library.net_destroy(c)"
    )
    assert said == [[True, 0], 0, 0, [2.0, 2.0, 4.0], 2, [float(i) for i in range(16)], 0]
    first = names(calls).index("cuEventCreate")
    run = ["cuMemcpyDtoHAsync_v2", "cuMemcpyDtoHAsync_v2", "cuEventRecord", "cuStreamSynchronize"]
    assert names(calls)[first : names(calls).index("cuCtxPopCurrent_v2", first)] == [
        *5 * ["cuEventCreate"],
        *["cuEventRecord", "cuMemcpyHtoDAsync_v2", "cuGraphCreate"],
        *2 * ["cuGraphAddEventRecordNode", "cuGraphAddKernelNode_v2"],
        *["cuGraphAddEventRecordNode", "cuGraphInstantiateWithFlags"],
        *["cuGraphLaunch", *run, *4 * ["cuEventElapsedTime"]],
    ]
    assert names(calls).count("cuGraphInstantiateWithFlags") == 2  # a run has a graph without events
    check_all_given_back(calls)


def test_a_profile_needs_a_place(play) -> None:
    said, _ = play("c = create(); profile(c, None); library.net_destroy(c)")
    assert said == [[True, 0], 1]


# Memory of the GPU at `at`, with x in it; `there` is what lies there. The driver's kernels pass on 16 bytes, so that y
# is the first row of x.
GPU = """
driver = ctypes.CDLL('libcuda.so.1'); memory = ctypes.c_ulonglong()
driver.cuMemAlloc_v2(ctypes.byref(memory), ctypes.c_size_t(1024)); at = memory.value
def there(offset, count): return list((ctypes.c_float * count).from_address(at + offset))
def place(offset): ctypes.memmove(at + offset, x, 64)
c = create(); place(0)
"""
FREE = "driver.cuMemFree_v2(memory); library.net_destroy(c)"
X = [float(i) for i in range(16)]


def work_on_gpu(calls: list[str]) -> list[str]:
    """Calls that change a graph or put work on the stream."""
    chosen = ("cuMemcpyDtoD", "cuGraph")
    return [call.replace("_v2", "") for call in calls if call.startswith(chosen) and "Destroy" not in call]


def test_tensors_of_the_gpu_and_a_stream_of_the_caller(play) -> None:
    """Kernels have them where they are; only an output that is an input is copied."""
    script = f"{GPU}for _ in range(2): run_device(c, at, at + 64, at + 128, 77)\nsay(there(64, 32)[:20])\n{FREE}"
    said, calls = play(script)
    assert said == [[True, 0], 0, 0, X[:4] + 12 * [0.0] + X[:4]]
    runs = [call for call in work_on_gpu(calls) if not call.startswith(("cuGraphAdd", "cuGraphCreate", "cuGraphInst"))]
    assert runs == 2 * ["cuGraphLaunch 0x4d", "cuMemcpyDtoDAsync 64 0x4d"]
    assert names(calls).count("cuGraphCreate") == 1
    assert names(calls).count("cuStreamSynchronize") == 2  # when it is created and destroyed
    check_all_given_back(calls)


def test_tensors_at_other_places(play) -> None:
    """Only launches that have them get the new places; the graph is made once."""
    script = (
        f"{GPU}run_device(c, at, at + 64, at + 128, None); place(256)\n"
        "run_device(c, at + 256, at + 64, at + 128, None); run_device(c, at + 256, at + 320, at + 128, None)\n"
        "x[0] = 50.0; run(c); say([y[0], same[0], there(320, 1)[0]])\n"
        "run_device(c, at + 256, at + 384, at + 128, None); say([there(offset, 1)[0] for offset in (64, 320, 384)])\n"
        f"{FREE}"
    )
    said, calls = play(script)
    assert said == [[True, 0], 0, 0, 0, 0, [50.0, 50.0, 0.0], 0, [0.0, 0.0, 0.0]]
    changes = re.findall(r"cuGraphExecKernelNodeSetParams_v2 net_kernel_0_(\d)", "\n".join(calls))
    assert changes == ["0", "1", "0", "1", "0", "1"]
    assert names(calls).count("cuGraphCreate") == names(calls).count("cuGraphInstantiateWithFlags") == 1
    check_all_given_back(calls)


@pytest.mark.parametrize(
    ("places", "copies"),
    [
        ((4, 128, 256), ["in", "launch", "same"]),  # x is at no multiple of 16 bytes
        ((0, 132, 256), ["launch", "y", "same"]),
        ((0, 128, 260), ["launch", "same"]),
        ((0, 0, 256), ["in", "launch", "y", "same"]),  # y where x is
        ((0, 48, 256), ["in", "launch", "y", "same"]),
        ((0, 128, 0), ["in", "launch", "y", "same"]),
        ((0, 128, 80), ["in", "launch", "y", "same"]),  # the outputs have a part in common: the last has it
    ],
)
def test_where_kernels_cannot_have_tensors_they_are_copied(play, places, copies) -> None:
    first, second, third = (f"at + {place}" for place in places)
    script = (
        f"{GPU}place({places[0]}); run_device(c, {first}, {second}, {third}, 77)\n"
        f"say(there({places[1]}, 4)); say(there({places[2]}, 16))\n{FREE}"
    )
    said, calls = play(script)
    assert said[:2] == [[True, 0], 0]
    assert said[3] == X
    assert said[2] == (X[12:] if places[2] == 80 else X[:4])
    kinds = {"in": "cuMemcpyDtoDAsync 64 0x4d", "launch": "cuGraphLaunch 0x4d", "y": "cuMemcpyDtoDAsync 16 0x4d"}
    kinds["same"] = kinds["in"]
    made = [call for call in work_on_gpu(calls) if not call.startswith(("cuGraphAdd", "cuGraphCreate", "cuGraphInst"))]
    assert made == [kinds[copy] for copy in copies]
    check_all_given_back(calls)


def recurrent() -> onnx.ModelProto:
    """X (3, 1, 4) -> an RNN of 4 units, backwards -> all states (3, 1, 1, 4) and the last one (1, 1, 4)."""
    generator = np.random.default_rng(0)
    constants = [
        numpy_helper.from_array(generator.standard_normal(shape).astype(np.float32), name)
        for name, shape in {"w": (1, 4, 4), "r": (1, 4, 4), "b": (1, 8)}.items()
    ]
    node = helper.make_node("RNN", ["x", "w", "r", "b"], ["y", "same"], hidden_size=4, direction="reverse")
    shapes = {"x": (3, 1, 4), "y": (3, 1, 1, 4), "same": (1, 1, 4)}
    x, *results = (helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items())
    graph = helper.make_graph([node], "net", [x], results, constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_steps_of_a_recurrent_layer_have_parts_of_a_tensor(play, tmp_path) -> None:
    """Each of the three writes its own 16 bytes of y, wherever y is; those are what they get from the input: 0 here."""
    path = tmp_path / "libnet.so"
    path.write_bytes(lower(lwc.Model(recurrent(), "net"), LowerOptions(target="cuda:sm_90")).library)
    script = (
        f"library = ctypes.CDLL({str(path)!r}); library.net_create.restype = ctypes.c_void_p\n"
        "library.net_run_device.argtypes = [ctypes.c_void_p] * 4; library.net_destroy.argtypes = [ctypes.c_void_p]\n"
        f"{GPU}\n"
        "for to in (64, 192):\n"
        "    ctypes.memmove(at + to, (ctypes.c_float * 16)(*[7] * 16), 64)\n"
        "    run_device(c, at, at + to, at + 320, None); say(there(to, 16))\n"
        f"{FREE}"
    )
    said, calls = play(script, FAKE_KERNEL="gpu_recurrent_cell")
    assert said == [[True, 0], *2 * [0, 12 * [0.0] + 4 * [7.0]]]
    launched = [call.split()[1] for call in calls if call.startswith("cuGraphAddKernelNode")]
    steps = ["gpu_matvec_dense", "gpu_recurrent_cell"]
    assert [name.partition("gpu")[1] + name.partition("gpu")[2] for name in launched] == [
        *["gpu_matvec_dense", "gpu_recurrent_copy", *3 * steps, "gpu_recurrent_copy"]
    ]
    moved = [call.split()[1].partition("gpu")[2] for call in calls if call.startswith("cuGraphExecKernelNodeSet")]
    assert moved == 3 * ["_recurrent_cell"]
    check_all_given_back(calls)


def test_tensors_of_another_gpu_are_copied(play) -> None:
    script = f"{GPU}run_device(c, at, at + 64, at + 128, None); say(there(64, 4)); say(there(128, 16))\n{FREE}"
    said, calls = play(script, FAKE_OWNER=1, FAKE_DEVICES=2)
    assert said == [[True, 0], 0, X[:4], X]
    copies = [call.split()[1] for call in calls if call.startswith("cuMemcpyDtoD")]
    assert copies == ["64", "16", "64"]
    check_all_given_back(calls)


@pytest.mark.parametrize("number", [1, 2])
def test_a_launch_that_does_not_get_its_new_places(play, number) -> None:
    """The error gets out; the next run makes the graph again, so that no launch has places of the run before."""
    script = (
        f"{GPU}run_device(c, at, at + 64, at + 128, None); place(256)\n"
        f"os.environ['FAKE_FAIL'] = 'cuGraphExecKernelNodeSetParams_v2 {number} 1'\n"
        "run_device(c, at + 256, at + 320, at + 128, None); del os.environ['FAKE_FAIL']; say(there(320, 4))\n"
        f"run_device(c, at + 256, at + 320, at + 128, None); say(there(320, 4)); {FREE}"
    )
    said, calls = play(script)
    assert said == [[True, 0], 0, 1001, 4 * [0.0], 0, X[:4]]
    assert names(calls).count("cuGraphCreate") == 2
    check_all_given_back(calls)


@pytest.mark.parametrize(("capability", "overlaps"), [(75, False), (89, False), (90, True), (121, True), (140, True)])
def test_launches_overlap_from_hopper_on(play, capability, overlaps) -> None:
    """All but the first, which waits for what the stream did before; those that are timed do not."""
    script = "c = create(); run(c); profile(c); library.net_destroy(c)"
    said, calls = play(script, FAKE_CAPABILITY=capability)
    assert said == [[True, 0], 0, 0]
    edges = [call for call in calls if call.startswith("cuGraphAddDependencies")]
    assert edges == overlaps * ["cuGraphAddDependencies_v2 port 1 to 0 type 1"]
    after = [call.split()[-1] for call in calls if call.startswith("cuGraphAddKernelNode")]
    assert after == ["0", "0" if overlaps else "1", "1", "1"]


def test_pointers_to_other_memory_are_refused(play) -> None:
    said, calls = play(
        "c = create(); run_device(c, x, y, same, None); say(library.net_error_string(8).decode())\n"
        "say(library.net_run(c, None, pointers(y, same))); say(library.net_run(c, pointers(x), pointers(y, 0)))\n"
        "say(library.net_run(None, pointers(x), pointers(y, same))); run(c); library.net_destroy(c)"
    )
    assert said == [[True, 0], 8, "a pointer is not to memory of the GPU", 1, 1, 1, 0]
    assert not any(call.startswith("cuMemcpyDtoD") for call in calls)
    check_all_given_back(calls)


@pytest.mark.parametrize(
    ("environment", "device", "code", "message"),
    [
        ({"FAKE_DEVICES": 0}, 0, 4, "there is no such GPU"),
        ({"FAKE_DEVICES": 2}, 2, 4, "there is no such GPU"),
        ({}, -1, 4, "there is no such GPU"),
        ({"FAKE_FAIL": "cuInit 1 100"}, 0, 4, "there is no such GPU"),
        ({"FAKE_VERSION": 12090}, 0, 3, OLD),
        ({"FAKE_CAPABILITY": 70}, 0, 5, "the library has no code for this GPU"),
        ({"FAKE_FAIL": "cuModuleLoadData 1 209"}, 0, 5, "the library has no code for this GPU"),
        (
            {"FAKE_FAIL": "cuModuleLoadData 1 222"},
            0,
            3,
            OLD,
        ),
        ({"FAKE_FAIL": "cuMemAlloc_v2 1 2"}, 0, 6, "the GPU has too little free memory"),
        ({"FAKE_FAIL": "cuMemAlloc_v2 2 2"}, 0, 6, "the GPU has too little free memory"),
        ({"FAKE_FAIL": "cuStreamCreate 1 304"}, 0, 1304, "the NVIDIA driver reports the error code - 1000"),
    ],
)
def test_what_cannot_be_created(play, environment, device, code, message) -> None:
    """Nothing is kept, and the process goes on: it creates a context when the reason is gone."""
    again = (
        "for name in list(os.environ):\n    if name.startswith('FAKE_') and name != 'FAKE_LOG': del os.environ[name]\n"
    )
    script = f"c = create({device}); say(library.net_error_string({code}).decode())\n{again}c = create(); run(c)\n"
    said, calls = play(script + "library.net_destroy(c)", **environment)
    assert said == [[False, code], message, [True, 0], 0]
    check_all_given_back(calls, environment.get("FAKE_FAIL", "").split(" ")[0])


def test_no_driver(play, tmp_path) -> None:
    (tmp_path / "libcuda.so.1").write_bytes(b"no library")
    said, calls = play("create(); say(library.net_error_string(2).decode())", tmp_path)
    assert said == [[False, 2], "there is no NVIDIA driver: libcuda.so.1 cannot be loaded"]
    assert calls == []


def test_driver_without_a_function(play, tmp_path) -> None:
    said, calls = play("create()", build_driver(tmp_path, "-DOLD"))
    assert (said, calls) == ([[False, 3]], [])


@pytest.mark.parametrize("code", [1, 719])
@pytest.mark.parametrize("work", ["run", "profile"])
def test_any_call_may_fail(play, work, code) -> None:
    """Each function of the driver in turn, in its first call of a run: the code gets out, and all is given back."""
    _, calls = play(f"c = create(); {work}(c); library.net_destroy(c)")
    first = names(calls).index("cuCtxPopCurrent_v2")
    last = len(calls) - 1 - names(calls)[::-1].index("cuCtxPushCurrent_v2")  # what destroys comes after
    during = [name for name in dict.fromkeys(names(calls)[first + 1 : last]) if not re.search("Pop|GraphDestroy", name)]
    assert {"cuGraphAddKernelNode_v2", "cuGraphLaunch", "cuGraphCreate", "cuMemcpyDtoHAsync_v2"} <= set(during)
    for name in during:
        script = (
            f"c = create(); os.environ['FAKE_FAIL'] = '{name} 1 {code}'; {work}(c); del os.environ['FAKE_FAIL']\n"
            f"{work}(c); library.net_destroy(c)"
        )
        said, calls = play(script)
        # Pushing the context fails before anything is at work, so that it is not remembered.
        lost = code == 719 and name != "cuCtxPushCurrent_v2"
        assert said == [[True, 0], 1000 + code, 1719 if lost else 0], name
        check_all_given_back(calls, name if name in PAIRS else "")


def test_a_lost_context_calls_the_driver_no_more(play) -> None:
    said, calls = play(
        "c = create(); os.environ['FAKE_FAIL'] = 'cuGraphLaunch 1 700'; run(c); del os.environ['FAKE_FAIL']\n"
        "run(c); say(library.net_error_string(1700).decode()); library.net_destroy(c)"
    )
    assert said == [[True, 0], 1700, 1700, LOST]
    assert names(calls).count("cuGraphLaunch") == 1
    check_all_given_back(calls)


def test_contexts_in_threads_are_independent(play) -> None:
    """Two threads with a context each: what one copies in is what it gets out."""
    script = (
        "import threading\n"
        "contexts = [create() for _ in range(2)]\n"
        "results = [(ctypes.c_float * 16)() for _ in contexts]\n"
        "def work(i):\n"
        "    mine, sums = (ctypes.c_float * 16)(*[i] * 16), (ctypes.c_float * 4)()\n"
        "    for _ in range(50): assert library.net_run(contexts[i], pointers(mine), pointers(sums, results[i])) == 0\n"
        "threads = [threading.Thread(target=work, args=(i,)) for i in range(2)]\n"
        "for t in threads: t.start()\n"
        "for t in threads: t.join()\n"
        "say([list(r) for r in results])\n"
        "for c in contexts: library.net_destroy(c)"
    )
    said, calls = play(script)
    assert said[-1] == [[0.0] * 16, [1.0] * 16]
    check_all_given_back(calls)


def test_the_best_code_for_a_gpu(play, lowered) -> None:
    architectures = find_target("cuda").gpu.architectures
    assert architectures == (75, 80, 86, 89, 90, 100, 120)
    # Where a file of machine code says what it is for: the word of flags in the header of an ELF file.
    codes = compile_all("", architectures, ptx=False)
    flags = {code.architecture: str(int.from_bytes(code.image[48:52], "little")) for code in codes}
    for capability, architecture in {75: 75, 80: 80, 87: 86, 89: 89, 90: 90, 103: 100, 120: 120, 121: 120}.items():
        _, calls = play("library.net_destroy(create())", FAKE_CAPABILITY=capability)
        assert f"cuModuleLoadData {flags[architecture]}" in calls, capability
    for capability in (130, 140):
        _, calls = play("library.net_destroy(create())", FAKE_CAPABILITY=capability)
        assert "cuModuleLoadData ptx" in calls
    said, _ = play("create()", FAKE_CAPABILITY=110)
    assert said == [[False, 5]]


def printed(script: str, driver: Path, library: Path, folder: Path) -> list[str]:
    """The lines that a Python program prints, which gets the library and finds the driver; its log is in `folder`."""
    environment = {**os.environ, "LD_LIBRARY_PATH": str(driver), "FAKE_LOG": str(folder / "log")}
    command = [sys.executable, "-c", script, str(library)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_session(lowered, driver, library, tmp_path) -> None:
    """From Python: the same errors in sentences, and arrays in and out."""
    script = (
        "import numpy as np, sys\n"
        "from lwc_compiler.codegen.result import TensorSpec as T\n"
        "from lwc_compiler.errors import ArtifactError, TargetError\n"
        "from lwc_compiler.runtime.device_session import DeviceSession\n"
        "import os, pathlib\n"
        "specs = (T('x', 'float32', (1, 16)),), (T('y', 'float32', (1, 4)), T('same', 'float32', (4, 4)))\n"
        "def session(): return DeviceSession(pathlib.Path(sys.argv[1]), 'net', *specs, 1)\n"
        "x = np.arange(16, dtype=np.float32)[None]\n"
        "with session() as s:\n"
        "    assert np.array_equal(s.run({'x': x})['same'], x.reshape(4, 4)); print(s.target)\n"
        "    print(s.profile({'x': x}).shape)\n"
        "    os.environ['FAKE_FAIL'] = 'cuGraphLaunch 1 700'\n"
        "    for call in (lambda: s.run({'x': x}), lambda: s.use_target('cuda:sm_90')):\n"
        "        try: call()\n"
        "        except (ArtifactError, TargetError) as error: print(type(error).__name__, error)\n"
        "os.environ['FAKE_CAPABILITY'] = '70'\n"
        "try: session()\n"
        "except TargetError as error: print(error)\n"
    )
    assert printed(script, driver, library, tmp_path) == [
        "cuda",
        "(3,)",
        f"ArtifactError the library failed: {LOST} (code 1700)",
        "TargetError the library has no code for cuda:sm_90",
        "the network cannot run on this machine's GPU: the library has no code for this GPU (code 5)",
    ]
    check_all_given_back((tmp_path / "log").read_text().splitlines())


def test_arrays_on_the_gpu_from_python(driver, library, tmp_path) -> None:
    """Their addresses and the stream get to the driver, which copies nothing from or to the processor."""
    script = (
        "import ctypes, pathlib, sys\n"
        "import numpy as np\n"
        "from lwc_compiler.codegen.result import TensorSpec as T\n"
        "from lwc_compiler.errors import ArtifactError, DataError\n"
        "from lwc_compiler.runtime.device_session import DeviceSession\n"
        "from tests.runtime.test_dlpack import OnGpu\n"
        "specs = (T('x', 'float32', (1, 16)),), (T('y', 'float32', (1, 4)), T('same', 'float32', (4, 4)))\n"
        "driver, memory = ctypes.CDLL('libcuda.so.1'), ctypes.c_ulonglong()\n"
        "with DeviceSession(pathlib.Path(sys.argv[1]), 'net', *specs, 1) as session:\n"
        "    driver.cuMemAlloc_v2(ctypes.byref(memory), ctypes.c_size_t(256)); at = memory.value\n"
        "    values = np.arange(16, dtype=np.float32)\n"
        "    ctypes.memmove(at, values.ctypes.data, 64)\n"
        "    x = OnGpu(np.empty((1, 16), np.float32), at)\n"
        "    y, same = OnGpu(np.empty((1, 4), np.float32), at + 64), OnGpu(np.empty((4, 4), np.float32), at + 128)\n"
        "    out = {'y': y, 'same': same}\n"
        "    session.run_device({'x': x}, out, 77)\n"
        "    assert np.array_equal((ctypes.c_float * 16).from_address(at + 128), values)\n"
        "    session.run_device({'x': x}, out)\n"
        "    session.run_device({'x': x}, out, 0)\n"
        "    assert x.streams == out['same'].streams == [77, 1, 1]\n"
        "    elsewhere = OnGpu(np.empty((1, 16), np.float32))\n"
        "    for given in ({'x': elsewhere}, {}, {'x': x, 'z': x}):\n"
        "        try: session.run_device(given, out)\n"
        "        except (ArtifactError, DataError) as error: print(error)\n"
        "    driver.cuMemFree_v2(memory)\n"
    )
    assert printed(script, driver, library, tmp_path) == [
        "the library failed: a pointer is not to memory of the GPU (code 8)",
        "the inputs are ['x']: ['x'] is missing or unknown",
        "the inputs are ['x']: ['z'] is missing or unknown",
    ]
    calls = (tmp_path / "log").read_text().splitlines()
    streams = [call.split()[-1] for call in calls if call.startswith(("cuMemcpyDtoD", "cuGraphLaunch"))]
    assert streams == 2 * ["0x4d"] + 4 * ["0x1"]
    assert not [call for call in calls if call.startswith("cuMemcpyDtoH")]
    check_all_given_back(calls)


def test_library_needs_the_c_library_alone(library) -> None:
    needed = subprocess.run(["readelf", "-d", str(library)], capture_output=True, text=True, check=True).stdout
    assert set(re.findall(r"NEEDED.*\[(.*?)\]", needed)) <= {"libc.so.6", "libdl.so.2"}
