"""The target `c`: source that any C99 compiler takes, and what it computes."""

import ctypes
import math
import shutil
import subprocess

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper
from tvm import tirx

import lwc_compiler
from benchmarks.models import lenet5
from lwc_compiler.codegen.c_source import print_kernels
from lwc_compiler.errors import TargetError
from lwc_compiler.kernels.builder import KernelBuilder, splat
from lwc_compiler.model import Model
from lwc_compiler.recipe.options import LowerOptions, PruneOptions, Recipe
from lwc_compiler.runtime.artifact import read_artifact

STRICT = ("-std=c99", "-Wall", "-Wextra", "-Wconversion", "-pedantic", "-Werror")


def mobilenet() -> Model:
    """As MobileNetV2 has it: a 3x3, an inverted bottleneck with a shortcut, one with a stride, a classifier."""
    rng = np.random.default_rng(0)
    weights = {}

    def conv(x, name, channels, size=1, stride=1, group=1):
        inputs, outputs = channels
        shape = (outputs, inputs // group, size, size)
        values = rng.standard_normal(shape) / math.sqrt(math.prod(shape[1:]))
        weights[f"{name}.w"] = (values if group > 1 else values * (rng.random(shape) < 0.2)).astype(np.float32)
        weights[f"{name}.b"] = rng.standard_normal(outputs).astype(np.float32)
        pads = [size // 2] * 4
        return helper.make_node(
            "Conv", [x, f"{name}.w", f"{name}.b"], [name], name, strides=[stride] * 2, pads=pads, group=group
        )

    def relu6(x):
        return helper.make_node("Clip", [x, "zero", "six"], [f"{x}.relu"])

    nodes = [
        conv("x", "stem", (3, 8), 3, 2), relu6("stem"),
        conv("stem.relu", "expand", (8, 24)), relu6("expand"),
        conv("expand.relu", "depth", (24, 24), 3, group=24), relu6("depth"),
        conv("depth.relu", "project", (24, 8)),
        helper.make_node("Add", ["stem.relu", "project"], ["sum"]),
        conv("sum", "expand2", (8, 24)), relu6("expand2"),
        conv("expand2.relu", "depth2", (24, 24), 3, 2, group=24), relu6("depth2"),
        conv("depth2.relu", "project2", (24, 16)),
        helper.make_node("GlobalAveragePool", ["project2"], ["pool"]),
        helper.make_node("Flatten", ["pool"], ["flat"]),
        helper.make_node("Gemm", ["flat", "fc.w"], ["scores"], "fc"),
        helper.make_node("Softmax", ["scores"], ["y"]),
    ]  # fmt: skip
    weights |= {"fc.w": rng.standard_normal((16, 10)).astype(np.float32)}
    weights |= {name: np.array(value, np.float32) for name, value in (("zero", 0), ("six", 6))}
    graph = helper.make_graph(
        nodes,
        "mobile",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 31, 29])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 10])],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    return Model(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), "mobile")


def lenet() -> Model:
    return lwc_compiler.prune(Model(lenet5(), "lenet5"), PruneOptions(sparsity=0.9))


@pytest.fixture(scope="module", params=[lenet, mobilenet], ids=["lenet5", "mobile"])
def model(request):
    return request.param()


@pytest.fixture(scope="module", params=["embed", "file"])
def artifact(request, tmp_path_factory, model):
    directory = tmp_path_factory.mktemp("source") / "net.lwc"
    options = LowerOptions(target="c", weights=request.param)
    return lwc_compiler.compile(model, directory, Recipe(lower=options))


def run(*command, cwd=None):
    done = subprocess.run(list(map(str, command)), cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{done.returncode}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"


def test_the_artifact_is_source_that_was_checked(artifact):
    assert artifact.source.is_file()
    assert not list(artifact.directory.glob("lib*"))
    assert not artifact.manifest.verification.skipped
    assert artifact.manifest.verification.worst < 1e-5
    assert read_artifact(artifact.directory) == artifact
    assert "tvm" not in artifact.source.read_text().lower()


def test_strict_c99_computes_what_onnx_runtime_computes(artifact, tmp_path):
    name, place = artifact.manifest.name, []
    if artifact.weights:
        # A program of this machine has no flash; its weights are an array.
        numbers = ",".join(map(str, artifact.weights.read_bytes()))
        text = f"static const unsigned char image[] __attribute__((aligned(64))) = {{{numbers}}};\n"
        (tmp_path / "weights.h").write_text(text)
        place = ["-include", tmp_path / "weights.h", "-DWEIGHTS_ADDRESS=image"]
    flags = (*STRICT, "-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
    run("cc", *flags, *place, "-c", "example.c", "-o", tmp_path / "example.o", cwd=artifact.directory)
    run("cc", *flags, "-c", f"{name}.c", "-o", tmp_path / "net.o", cwd=artifact.directory)
    run("cc", *flags, tmp_path / "example.o", tmp_path / "net.o", "-lm", "-o", tmp_path / "example")
    run(tmp_path / "example")


def test_a_compiler_for_microcontrollers_takes_it(artifact, tmp_path):
    compiler = "arm-none-eabi-gcc"
    if not shutil.which(compiler):
        pytest.skip(f"{compiler} is not installed")
    run(compiler, "-mcpu=cortex-m4", "-mthumb", *STRICT, "-O2", "-c", artifact.source, "-o", tmp_path / "net.o")


def test_cmake_compiles_it_with_the_project(artifact, tmp_path):
    if not shutil.which("cmake"):
        pytest.skip("cmake is not installed")
    symbol = artifact.manifest.symbol
    (tmp_path / "CMakeLists.txt").write_text(
        "cmake_minimum_required(VERSION 3.13)\nproject(application C)\n"
        f'add_subdirectory("{artifact.directory}" net)\n'
        f"add_executable(main main.c)\ntarget_link_libraries(main PRIVATE {symbol}::{symbol})\n"
    )
    (tmp_path / "main.c").write_text(
        f'#include "{artifact.manifest.name}.h"\nint main(void) {{ return {symbol}_input_count() - 1; }}\n'
    )
    run("cmake", "-S", tmp_path, "-B", tmp_path / "build")
    run("cmake", "--build", tmp_path / "build")
    run(tmp_path / "build" / "main")


def with_vectors():
    """A kernel of 4 lanes: loads with a stride, a shuffle of a register with itself, a broadcast, a clamp."""
    b = KernelBuilder()
    x, y = b.pointer("x"), b.pointer("y")
    with b.loop("t", b.first, b.last) as t:
        picked = b.register(4)
        picked.set(b.load(x, t * 8, 4, stride=2))
        turned = b.shuffle(picked, picked, [3, 2, 1, 0])
        picked.set(tirx.max(turned.get() * splat(0.1, 4), splat(-math.inf, 4)))
        picked.set(tirx.min(picked.get(), splat(0.5, 4)))
        b.prefetch(x, t * 8)
        b.store(y, t * 4, picked.get(), 4)
    return b.build("turn", 2)


def test_vectors_are_taken_apart(tmp_path):
    text = print_kernels({"turn": with_vectors()})
    (tmp_path / "turn.c").write_text(
        "#include <math.h>\n#include <stdbool.h>\n#include <stdint.h>\n#include <string.h>\n"
        f"{text}\nvoid run(float *x, float *y);\nvoid run(float *x, float *y) {{ turn(x, y, 0, 2); }}\n"
    )
    run("cc", *STRICT, "-O2", "-shared", "-fPIC", "turn.c", "-o", "turn.so", cwd=tmp_path)
    x, y = np.linspace(-8, 8, 16, dtype=np.float32), np.zeros(8, np.float32)
    ctypes.CDLL(str(tmp_path / "turn.so")).run(ctypes.c_void_p(x.ctypes.data), ctypes.c_void_p(y.ctypes.data))
    expected = np.minimum(x.reshape(2, 8)[:, ::2][:, ::-1] * np.float32(0.1), np.float32(0.5))
    assert np.array_equal(y.reshape(2, 4), expected)


def test_a_parameter_that_nothing_reads_is_no_warning(tmp_path):
    b = KernelBuilder()
    x, y = b.pointer("x"), b.pointer("y")
    b.store(y, 0, b.load(x, 0))
    text = print_kernels({"first": b.build("first", 1)})
    assert "(void)t0;" in text
    (tmp_path / "first.c").write_text(
        f"#include <stdint.h>\n{text}\nvoid run(float *x);\nvoid run(float *x) {{ first(x, x, 0, 1); }}\n"
    )
    run("cc", *STRICT, "-c", "first.c", cwd=tmp_path)


def test_a_running_maximum_is_not_an_old_one():
    """TVM's printer would keep the register's value in a variable, and use it for the second maximum too."""
    b = KernelBuilder()
    x, y = b.pointer("x"), b.pointer("y")
    with b.loop("t", b.first, b.last) as t:
        most = b.register(1)
        most.set(b.load(x, 0))
        most.set(tirx.max(most.get(), b.load(x, 1)))
        most.set(tirx.max(most.get(), b.load(x, 2)))
        b.store(y, t, most.get())
    assert print_kernels({"most": b.build("most", 1)}).count("lwc_max_float32(r_ptr[0], x[") == 2


def test_numbers_keep_all_their_digits():
    b = KernelBuilder()
    y = b.pointer("y")
    with b.loop("t", b.first, b.last) as t:
        b.store(y, t, tirx.const(float(np.float32(0.12345679)), "float32"))
    assert "0.123456791f" in print_kernels({"number": b.build("number", 1)})


def test_source_is_not_run_as_a_library(artifact):
    with pytest.raises(TargetError, match=r"net.lwc is C source: compile it into a program"):
        lwc_compiler.load(artifact.directory)


def test_a_transposition_needs_no_vectors(tmp_path):
    graph = helper.make_graph(
        [helper.make_node("Transpose", ["x"], ["t"]), helper.make_node("Abs", ["t"], ["y"])],
        "turn",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [16, 24])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [24, 16])],
    )
    model = Model(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), "turn")
    artifact = lwc_compiler.compile(model, tmp_path / "turn.lwc", Recipe(lower=LowerOptions(target="c")))
    assert artifact.manifest.verification.worst == 0
    assert "fabsf(" in artifact.source.read_text()
