"""Finding a C compiler and linking with it."""

import ctypes

import pytest

from lwc_compiler.codegen import link
from lwc_compiler.errors import ToolchainError
from lwc_compiler.targets import find_target

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
