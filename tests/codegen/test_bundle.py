"""What a C developer links: the example, the headers, CMake, under sanitizers and valgrind, without warnings."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import lwc_compiler
from benchmarks.models import lenet5
from lwc_compiler.codegen.bundle import fill
from lwc_compiler.codegen.c_text import c_number
from lwc_compiler.codegen.footprint import footprint
from lwc_compiler.codegen.link import compile_objects
from lwc_compiler.model import Model
from lwc_compiler.passes.lower import lower
from lwc_compiler.recipe.options import LowerOptions, PruneOptions, Recipe

STRICT = ("-Wall", "-Wextra", "-Wconversion", "-pedantic", "-Werror")
C99, C11 = ("-std=c99",), ("-std=c11", "-D_POSIX_C_SOURCE=200809L")
SANITIZED = ("-g", "-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
LIBRARIES = ("-lm", "-pthread")
ZIG = (sys.executable, "-m", "ziglang", "cc")
MAIN = Path(__file__).with_name("lenet5_main.c")
# valgrind knows no AVX-512.
TARGET = "x86-64-v3"


def tool(name):
    if not shutil.which(name):
        pytest.skip(f"{name} is not installed")
    return name


def run(*command, cwd=None, code=0, **environment):
    done = subprocess.run(
        list(map(str, command)),
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **environment},
    )
    assert done.returncode == code, f"{done.returncode}\n{done.stdout[-3000:]}\n{done.stderr[-6000:]}"
    return done.stdout + done.stderr


@pytest.fixture(scope="module", params=["embed", "file"])
def weights(request):
    return request.param


@pytest.fixture(scope="module")
def model():
    return lwc_compiler.prune(Model(lenet5(), "lenet5"), PruneOptions(sparsity=0.9))


@pytest.fixture(scope="module")
def made(tmp_path_factory, model, weights):
    return compile_and_keep(model, tmp_path_factory.mktemp("bundle"), target=TARGET, weights=weights)


@pytest.fixture(scope="module")
def artifact(made):
    return made[0]


@pytest.fixture(scope="module")
def sources(made):
    """A folder with what the library was made of."""
    return made[1]


def compile_and_keep(model, folder, **options):
    """The artifact, and a folder with what its library was made of."""
    sources = folder / "sources"
    sources.mkdir()

    def kept(compiler, files):
        for name, contents in files.items():
            (sources / name).write_bytes(contents)
        return compile_objects(compiler, files)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lwc_compiler.codegen.link.compile_objects", kept)
        artifact = lwc_compiler.compile(model, folder / "lenet5.lwc", Recipe(lower=LowerOptions(**options)))
    return artifact, sources


def test_the_example_is_right_and_has_no_warning(artifact, tmp_path):
    example = tmp_path / "example"
    run("cc", *C99, *STRICT, "-O2", "example.c", "liblenet5.a", *LIBRARIES, "-o", example, cwd=artifact.directory)
    assert run(example, cwd=artifact.directory) == "right: 0 of 10 numbers differ from ONNX Runtime's\n"


def test_the_example_sees_what_is_wrong(artifact, tmp_path):
    shutil.copytree(artifact.directory, tmp_path / "net")
    header = tmp_path / "net" / "test_vector.h"
    text = header.read_text()
    last = text[text.index("test_expected_0") :].splitlines()[1].split(",")[0].strip()
    header.write_text(text.replace(last, "1e9f"))
    run("cc", *C99, "example.c", "liblenet5.a", *LIBRARIES, "-o", "example", cwd=tmp_path / "net")
    said = run("./example", cwd=tmp_path / "net", code=1)
    assert said == "wrong: 1 of 10 numbers differ from ONNX Runtime's\n"


def test_a_large_vector_is_a_file(tmp_path):
    proto = helper.make_model(
        helper.make_graph(
            [
                helper.make_node("Gather", ["table", "ids"], ["rows"]),
                helper.make_node("Add", ["rows", "x"], ["y"]),
                helper.make_node("Identity", ["ids"], ["same"]),
            ],
            "rows",
            [
                helper.make_tensor_value_info("x", TensorProto.FLOAT, [200, 50]),
                helper.make_tensor_value_info("ids", TensorProto.INT64, [200]),
            ],
            [
                helper.make_tensor_value_info("y", TensorProto.FLOAT, [200, 50]),
                helper.make_tensor_value_info("same", TensorProto.INT64, [200]),
            ],
            [numpy_helper.from_array(np.random.default_rng(0).standard_normal((9, 50)).astype(np.float32), "table")],
        ),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
    )
    onnx.checker.check_model(proto)
    directory = tmp_path / "rows.lwc"
    lwc_compiler.compile(Model(proto, "rows"), directory, Recipe(lower=LowerOptions(weights="file")))
    assert (directory / "test_vector.bin").stat().st_size == 2 * 4 * 200 * 50 + 2 * 8 * 200
    assert (directory / "test_vector.h").stat().st_size < 1000
    example = tmp_path / "example"
    run("cc", *C99, *STRICT, "example.c", "librows.a", *LIBRARIES, "-o", example, cwd=directory)
    assert run(example, cwd=directory).startswith("right: 0 of 10200 numbers")
    assert run(example, directory / "test_vector.bin", directory / "rows.weights").startswith("right")
    assert "cannot be read" in run(example, code=1, cwd=tmp_path)
    (tmp_path / "short").write_bytes((directory / "rows.weights").read_bytes()[:-1])
    said = run(example, directory / "test_vector.bin", tmp_path / "short", code=1)
    assert said == "weights: a pointer is NULL\n"


@pytest.mark.parametrize("compiler", [("cc",), ZIG], ids=["cc", "zig"])
def test_the_source_of_a_library_has_no_warning(sources, compiler, tmp_path):
    run(*compiler, *C11, *STRICT, "-O2", "-c", "program.c", "-o", tmp_path / "program.o", cwd=sources)


@pytest.mark.parametrize("compiler", ["arm-none-eabi-gcc -mcpu=cortex-m4 -mthumb", "zig"])
def test_the_source_for_a_microcontroller_is_c99(model, tmp_path, weights, compiler):
    _, sources = compile_and_keep(model, tmp_path, target="cortex-m4", weights=weights)
    if compiler == "zig":
        command = [*ZIG, "-target", "thumb-freestanding-eabihf", "-mcpu=cortex_m4"]
    else:
        command = compiler.split()
        tool(command[0])
    run(*command, *C99, *STRICT, "-O2", "-c", "program.c", cwd=sources)


@pytest.mark.parametrize("weights_of_target", ["embed", "file"])
def test_the_example_for_a_microcontroller_needs_no_c_library(model, tmp_path, weights_of_target):
    options = LowerOptions(target="cortex-m4", weights=weights_of_target)
    directory = lwc_compiler.compile(model, tmp_path / "net", Recipe(lower=options)).directory
    command = [*ZIG, "-target", "thumb-freestanding-eabihf", "-mcpu=cortex_m4", *C99, *STRICT, "-c", "example.c"]
    if weights_of_target == "file":
        assert "define WEIGHTS_ADDRESS" in run(*command, cwd=directory, code=1)
        command.append("-DWEIGHTS_ADDRESS=0x90000000")
    run(*command, "-o", tmp_path / "example.o", cwd=directory)
    assert not list(directory.glob("*.bin"))


def test_cpp_programs_may_use_it(artifact, tmp_path):
    source = (artifact.directory / "example.c").read_text()
    (tmp_path / "main.cpp").write_text(source)
    command = ["g++", "-std=c++11", "-Wall", "-Wextra", "-pedantic", "-Werror", f"-I{artifact.directory}"]
    run(*command, tmp_path / "main.cpp", artifact.archive, *LIBRARIES, "-o", tmp_path / "main")
    assert run(tmp_path / "main", cwd=artifact.directory).startswith("right")


def test_the_call_in_the_readme_runs(artifact, tmp_path):
    readme = (artifact.directory / "README.md").read_text()
    call = readme.split("```c\n")[1].split("```")[0]
    declared, given = ("const void *weights", "NULL") if artifact.weights else ("void", "")
    assert f"int run({declared}) {{" in call
    wanted = "LENET5_ERROR_NULL" if artifact.weights else "0"
    call = call.replace("int run(", "static int run(") + f"int main(void) {{ return run({given}) != {wanted}; }}\n"
    (tmp_path / "main.c").write_text(call)
    linked = (artifact.archive, *LIBRARIES)
    run("cc", *C99, *STRICT, f"-I{artifact.directory}", tmp_path / "main.c", *linked, "-o", tmp_path / "main")
    run(tmp_path / "main")


def test_two_libraries_go_into_one_program(artifact, tmp_path, mlp):
    other = lwc_compiler.compile(mlp, tmp_path / "mlp.lwc", Recipe(lower=LowerOptions(target=TARGET)))
    (tmp_path / "main.c").write_text(
        '#include "lenet5.h"\n#include "mlp.h"\n'
        "int main(void) { return lenet5_input_count() + mlp_input_count() + "
        "(lenet5_workspace_bytes(1) == 0) + (mlp_workspace_bytes(1) == 0) - 2; }\n"
    )
    folders = [f"-I{each.directory}" for each in (artifact, other)]
    objects = ["-Wl,--whole-archive", artifact.archive, other.archive, "-Wl,--no-whole-archive"]
    run("cc", *C99, *STRICT, *folders, tmp_path / "main.c", *objects, *LIBRARIES, "-o", tmp_path / "main")
    run(tmp_path / "main")


def build_main(artifact, folder, linked, *flags):
    """The program that tries everything, and its arguments."""
    run("cc", *C11, *STRICT, *flags, f"-I{artifact.directory}", MAIN, *linked, *LIBRARIES, "-o", folder / "main")
    return [folder / "main", *([artifact.weights] if artifact.weights else [])]


def test_the_library_does_what_its_header_says(artifact, tmp_path):
    assert run(*build_main(artifact, tmp_path, [artifact.archive])) == "as described\n"


def test_sanitizers_find_nothing(artifact, sources, tmp_path):
    program = tmp_path / "program.o"
    run("cc", *C11, *STRICT, *SANITIZED, "-c", "program.c", "-o", program, cwd=sources)
    objects = [program, *sources.glob("kernels-*.o")]
    assert run(*build_main(artifact, tmp_path, objects, *SANITIZED)) == "as described\n"
    example = tmp_path / "example"
    run("cc", *C99, *SANITIZED, "example.c", *objects, *LIBRARIES, "-o", example, cwd=artifact.directory)
    assert run(example, cwd=artifact.directory).startswith("right")


def test_valgrind_finds_nothing(artifact, tmp_path):
    command = build_main(artifact, tmp_path, [artifact.archive], "-g")
    checked = [tool("valgrind"), "-q", "--error-exitcode=99", "--leak-check=full", *command]
    assert run(*checked) == "as described\n"


CONSUMER = """\
cmake_minimum_required(VERSION 3.13)
project(application C)
{find}
add_executable(static example.c)
target_link_libraries(static PRIVATE lenet5::lenet5)
add_executable(shared example.c)
target_link_libraries(shared PRIVATE lenet5::lenet5_shared)
"""


@pytest.mark.parametrize("way", ["add_subdirectory", "find_package"])
def test_cmake_projects_take_it_in(artifact, tmp_path, way):
    cmake = tool("cmake")
    find = f'add_subdirectory("{artifact.directory}" net)'
    arguments = []
    if way == "find_package":
        find, arguments = "find_package(lenet5 CONFIG REQUIRED)", [f"-Dlenet5_DIR={artifact.directory}"]
    (tmp_path / "CMakeLists.txt").write_text(CONSUMER.format(find=find))
    shutil.copy(artifact.directory / "example.c", tmp_path)
    run(cmake, "-S", tmp_path, "-B", tmp_path / "build", "-Werror=dev", *arguments)
    run(cmake, "--build", tmp_path / "build")
    for kind in ("static", "shared"):
        assert run(tmp_path / "build" / kind, cwd=artifact.directory).startswith("right")


def test_cmake_builds_and_runs_the_example(artifact, tmp_path):
    cmake = tool("cmake")
    run(cmake, "-S", artifact.directory, "-B", tmp_path / "build")
    run(cmake, "--build", tmp_path / "build")
    assert "100% tests passed" in run("ctest", cwd=tmp_path / "build")


def test_the_readme_gives_the_sizes_that_binutils_sees(artifact):
    lines = run("size", artifact.archive).splitlines()[1:]
    text, data, zeros = (sum(int(line.split()[column]) for line in lines) for column in range(3))
    sizes = footprint(artifact.archive.read_bytes())
    assert (sizes.code + sizes.constants, sizes.data, sizes.zeros) == (text, data, zeros)
    readme = (artifact.directory / "README.md").read_text()
    assert f"| flash: code | {sizes.code:,} |" in readme
    assert f" constants | {sizes.constants:,} |" in readme
    assert f"| RAM: workspace, one thread | {artifact.manifest.workspace_bytes:,} |" in readme
    assert "| flash or a file: weights |" in readme or artifact.weights is None


def test_sizes_of_objects_for_32_bits(model):
    lowered = lower(model, LowerOptions(target="cortex-m4"))
    sizes = footprint(lowered.archive)
    assert sizes.constants >= lowered.weight_bytes > 0
    assert 0 < sizes.code < 100_000


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (np.float32(0.1), "0.100000001f"),
        (np.float32(3), "3.0f"),
        (np.float32(-np.inf), "-INFINITY"),
        (np.float64("nan"), "NAN"),
        (np.float64(1e300), "1.0000000000000001e+300"),
        (np.int64(-(2**63)), "INT64_MIN"),
        (np.uint64(2**64 - 1), "UINT64_C(18446744073709551615)"),
        (np.bool_(True), "1"),
        (np.int8(-3), "-3"),
    ],
)
def test_numbers_are_written_as_c_reads_them(value, text):
    assert c_number(value) == text
    if np.isfinite(value) and isinstance(value, np.floating):
        assert type(value)(text.rstrip("f")) == value


def test_templates_keep_one_side_of_a_choice():
    template = "a\n@if one\nb @name@\n@if two\nc\n@end\n@else\nd\n@end\ne\n"
    assert fill(template, {"name": "x"}, {"one": True, "two": False}) == "a\nb x\ne\n"
    assert fill(template, {"name": "x"}, {"one": False, "two": True}) == "a\nd\ne\n"
