"""Finding a C compiler and linking with it."""

import ctypes
import io
import shlex
import sys

import pytest
from elftools.elf.elffile import ELFFile

from lwc_compiler.codegen import link
from lwc_compiler.codegen.machine import arm_attributes, machine_of, needed_machine
from lwc_compiler.errors import ToolchainError
from lwc_compiler.targets import all_targets, find_target

SOURCE = b"int answer(void);\nint hidden_part(void) { return 41; }\nint answer(void) { return hidden_part() + 1; }\n"
EXPORT = b'__attribute__((visibility("default"))) '


def without_system_compilers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(link.shutil, "which", lambda _name: None)


def test_linked_library_runs_and_is_reproducible(tmp_path) -> None:
    compiler = link.find_compiler()
    files = {"a.c": SOURCE.replace(b"int answer(void) {", EXPORT + b"int answer(void) {")}
    library = link.link_library(compiler, files, hidden=("hidden_*",))
    assert library == link.link_library(compiler, files, hidden=("hidden_*",))
    (tmp_path / "a.so").write_bytes(library)
    loaded = ctypes.CDLL(str(tmp_path / "a.so"))
    assert loaded.answer() == 42
    with pytest.raises(AttributeError):
        _ = loaded.hidden_part


def test_objects_are_compiled_once_for_both_libraries(tmp_path) -> None:
    compiler = link.find_compiler()
    (tmp_path / "given.o").write_bytes(link.compile_objects(compiler, {"b.c": b"int b(void) { return 1; }"})["b.o"])
    files = {
        "given.o": (tmp_path / "given.o").read_bytes(),
        "answer.h": b"int answer(void);",
        "a.c": b'#include "answer.h"\nint b(void);\n' + EXPORT + b"int answer(void) { return b() + 1; }\n",
    }
    objects = link.compile_objects(compiler, files)
    assert list(objects) == ["given.o", "a.o"]
    assert objects["given.o"] == files["given.o"]
    (tmp_path / "a.so").write_bytes(link.link_library(compiler, objects, hidden=("b",)))
    assert ctypes.CDLL(str(tmp_path / "a.so")).answer() == 2
    archive = link.make_archive(compiler, objects)
    assert all(contents in archive for contents in objects.values())
    with pytest.raises(ToolchainError, match=r"could not compile the library(?s:.*)nonsense"):
        link.compile_objects(compiler, {"a.c": b"int f(void) { return nonsense; }"})


def test_zig_serves_when_the_system_has_no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ziglang")
    without_system_compilers(monkeypatch)
    compiler = link.find_compiler()
    assert compiler.command[1:] == ("-m", "ziglang", "cc")
    assert "clang" in compiler.version


def test_no_compiler_at_all_is_a_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    without_system_compilers(monkeypatch)
    monkeypatch.setattr(link.importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(ToolchainError, match=r"no cc, gcc or clang on the PATH.*pip install lwc-compiler\[zig\]"):
        link.find_compiler()


def test_a_bad_cc_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", "no-such-compiler --fast")
    with pytest.raises(ToolchainError, match="CC='no-such-compiler --fast' does not run"):
        link.find_compiler()


def test_what_the_compiler_says_is_in_the_error() -> None:
    with pytest.raises(ToolchainError, match="could not link the library") as error:
        link.link_library(link.find_compiler(), {"a.c": b"int f(void) { return nonsense; }"})
    assert "nonsense" in str(error.value)


@pytest.mark.parametrize("target", ["x86-64-v3", "cortex-m4"])
def test_archives_are_reproducible(target: str) -> None:
    compiler = link.find_compiler(find_target(target))
    first, second = (link.make_archive(compiler, link.compile_objects(compiler, {"a.c": SOURCE})) for _ in range(2))
    assert first == second
    assert b"/tmp" not in first


ZIG = shlex.join([sys.executable, "-m", "ziglang", "cc"])


@pytest.mark.parametrize(
    ("target", "cc", "made", "needed", "advice"),
    [
        ("cortex-m4", "cc", "x86-64", "Cortex-M with the hard-float ABI", "-mcpu=cortex-m4 -mthumb -mfloat-abi=hard'"),
        (
            "cortex-m4",
            f"{ZIG} -target thumb-freestanding-eabi -mcpu=cortex_m4",
            "Cortex-M with the soft-float ABI",
            "Cortex-M with the hard-float ABI",
            "-mfloat-abi=hard",
        ),
        (
            "cortex-m7",
            f"{ZIG} -target arm-linux-musleabihf",
            "32-bit Arm with the hard-float ABI",
            "Cortex-M with the hard-float ABI",
            "-mcpu=cortex-m7",
        ),
        (
            "esp32p4",
            f"{ZIG} -target riscv32-freestanding-none -mcpu=generic_rv32+m+a+c",
            "RISC-V with the ABI ilp32",
            "RISC-V with the ABI ilp32f",
            "-march=rv32imafc -mabi=ilp32f",
        ),
        ("rpi4", "cc", "x86-64", "AArch64", "a compiler for aarch64-unknown-linux-gnu"),
        ("rpi4", f"{ZIG} -target aarch64-macos", "another platform", "AArch64", "aarch64-unknown-linux-gnu"),
    ],
)
def test_a_compiler_for_another_machine_is_refused(target: str, cc: str, made: str, needed: str, advice: str) -> None:
    with pytest.raises(ToolchainError) as error:
        link.find_compiler(find_target(target), cc)
    said = f"--cc {cc!r} makes code for {made}, and {target} needs code for {needed}: name a compiler "
    assert str(error.value).startswith(said)
    assert advice in str(error.value)


@pytest.mark.parametrize("target", [t.name for t in all_targets() if needed_machine(t) and t.zig and t.gpu is None])
def test_a_compiler_for_the_target_is_taken(target: str) -> None:
    chosen = find_target(target)
    cc = f"{ZIG} -target {chosen.zig} -mcpu={chosen.zig_cpu}"
    compiler = link.find_compiler(chosen, cc)
    assert compiler.command == tuple(shlex.split(cc))
    assert machine_of(link.compile_objects(compiler, {"a.c": SOURCE})["a.o"]) == needed_machine(chosen)


@pytest.mark.parametrize("relative", [True, False])
def test_a_compiler_may_lie_in_a_folder_with_spaces(tmp_path, monkeypatch: pytest.MonkeyPatch, relative: bool) -> None:
    compiler = tmp_path / "my tools" / "cc"
    compiler.parent.mkdir()
    compiler.write_text(f'#!/bin/sh\nexec {ZIG} "$@"\n', encoding="utf-8")
    compiler.chmod(0o700)
    flags = ("-target", "thumb-freestanding-eabihf", "-mcpu=cortex_m4+vfp4d16sp")
    monkeypatch.chdir(tmp_path)
    named = compiler.relative_to(tmp_path) if relative else compiler
    found = link.find_compiler(find_target("cortex-m4"), shlex.join([str(named), *flags]))
    assert found.command == (str(compiler), *flags)


@pytest.mark.parametrize("cc", ["'cc", " "])
def test_a_command_that_no_shell_reads_is_refused(cc: str) -> None:
    with pytest.raises(ToolchainError, match=r"--cc .* is no command: name a C compiler"):
        link.find_compiler(find_target("cortex-m4"), cc)


def test_objects_for_cortex_m_have_the_enums_of_gcc() -> None:
    objects = link.compile_objects(link.find_compiler(find_target("cortex-m4")), {"a.c": SOURCE})
    assert arm_attributes(ELFFile(io.BytesIO(objects["a.o"])))["TAG_ABI_ENUM_SIZE"] == 1  # as small as they can be


@pytest.mark.parametrize("target", ["cortex-m4", "rpi4", "apple-m1"])
def test_looking_for_a_compiler_leaves_nothing_behind(target: str, tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    link.find_compiler(find_target(target))
    assert not list(tmp_path.iterdir())
