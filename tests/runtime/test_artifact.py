import json
import resource
import signal
import subprocess
import sys
import threading
from dataclasses import replace

import onnx
import pytest

from lwc_compiler.errors import ArtifactError
from lwc_compiler.files import sha256_of
from lwc_compiler.report.document import Report
from lwc_compiler.runtime import artifact as module
from lwc_compiler.runtime.artifact import MANIFEST, read_artifact, write_artifact
from lwc_compiler.runtime.manifest import SCHEMA_VERSION


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def write(twice, twice_model, artifact):
    """Writes the artifact once more, elsewhere or over the first."""
    manifest = artifact.manifest

    def again(directory, **changes):
        arguments = {
            "recipe": manifest.options,
            "source_sha256": "",
            "report": Report("twice", (), {}),
            "verification": manifest.verification,
            "figures": {},
            "bundle": {"README.md": b"# twice\n"},
        }
        return write_artifact(directory, twice, twice_model, **{**arguments, **changes})

    return again


def edit_manifest(artifact, edit):
    path = artifact.directory / MANIFEST
    values = json.loads(path.read_text())
    edit(values)
    path.write_text(json.dumps(values))


def test_what_is_written_can_be_read(artifact, twice):
    again = read_artifact(artifact.directory)
    assert again == artifact
    assert again.library.read_bytes() == twice.library
    assert again.header.read_text() == twice.header
    assert onnx.load(again.model).graph.node[0].op_type == "Add"
    assert sorted(again.manifest.files) == [
        "README.md",
        "libtwice.a",
        "libtwice.so",
        "report.json",
        "report.md",
        "twice.h",
        "twice.onnx",
    ]
    assert again.manifest.files["libtwice.so"].sha256 == sha256_of(again.library)
    assert again.manifest.layers == tuple(replace(decision, trials=()) for decision in twice.layers)
    assert "trials" not in json.loads((artifact.directory / MANIFEST).read_text(encoding="utf-8"))["layers"][0]
    assert again.manifest.tools["compiler"] == "test cc 1.0"
    assert again.manifest.tools["onnx"] == onnx.__version__
    assert [path.name for path in artifact.directory.parent.iterdir()] == ["twice.lwc"]


def test_two_writes_give_the_same_bytes(write, tmp_path):
    write(tmp_path / "first.lwc")
    write(tmp_path / "again.lwc")
    assert contents(tmp_path / "again.lwc") == contents(tmp_path / "first.lwc")


def test_permissions_are_those_of_any_new_directory(artifact, tmp_path):
    (tmp_path / "plain").mkdir()
    assert artifact.directory.stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_existing_output_needs_force(artifact, write):
    before = contents(artifact.directory)
    with pytest.raises(ArtifactError, match=r"exists: give another place, or --force"):
        write(artifact.directory)
    assert contents(artifact.directory) == before
    write(artifact.directory, report=Report("new", (), {}), force=True)
    assert (artifact.directory / "report.md").read_text().startswith("# new\n")
    assert read_artifact(artifact.directory).report["model"] == "new"
    assert [path.name for path in artifact.directory.parent.iterdir()] == ["twice.lwc"]


@pytest.mark.parametrize("kind", ["file", "directory", "link"])
def test_force_replaces_nothing_but_artifacts(artifact, write, tmp_path, kind):
    place = tmp_path / "mine"
    if kind == "file":
        place.write_text("precious")
    elif kind == "directory":
        place.mkdir()
        (place / "thesis.tex").write_text("precious")
    else:
        place.symlink_to(artifact.directory)
    before = contents(tmp_path)
    with pytest.raises(ArtifactError, match=r"not an lwc artifact"):
        write(place, force=True)
    assert contents(tmp_path) == before


def test_force_fills_an_empty_directory(write, tmp_path):
    (tmp_path / "empty").mkdir()
    write(tmp_path / "empty", force=True)
    read_artifact(tmp_path / "empty")


def test_missing_parent_is_refused(write, tmp_path):
    with pytest.raises(ArtifactError, match=r"there is no directory .*/nowhere; create it first"):
        write(tmp_path / "nowhere" / "out")
    assert not (tmp_path / "nowhere").exists()


def test_read_only_parent_is_refused(write, tmp_path, monkeypatch):
    monkeypatch.setattr(module.os, "access", lambda path, mode: False)
    with pytest.raises(ArtifactError, match=r"is read-only"):
        write(tmp_path / "out")


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize("force", [False, True])
def test_a_write_that_stops_leaves_what_was_there(artifact, write, monkeypatch, tmp_path, error, force):
    def fail(path):
        raise error

    monkeypatch.setattr(module, "sha256_of", fail)
    before = contents(tmp_path)
    expected = ArtifactError if isinstance(error, OSError) else KeyboardInterrupt
    with pytest.raises(expected):
        write(artifact.directory if force else tmp_path / "out", force=force)
    assert contents(tmp_path) == before
    assert [path.name for path in tmp_path.iterdir()] == ["twice.lwc"]


def test_a_stop_between_the_renames_restores_the_old_artifact(artifact, write, monkeypatch, tmp_path):
    rename = module.Path.rename

    def interrupted(self, target):
        if self.name == "new":
            raise KeyboardInterrupt
        return rename(self, target)

    before = contents(tmp_path)
    monkeypatch.setattr(module.Path, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write(artifact.directory, report=Report("new", (), {}), force=True)
    assert contents(tmp_path) == before


KILLED = """
import os, pathlib, signal, sys
from lwc_compiler.files import written_whole
rename = pathlib.Path.rename
def renamed(self, target):
    if self.name == sys.argv[2]:
        os.kill(os.getpid(), signal.SIGKILL)
    return rename(self, target)
pathlib.Path.rename = renamed
with written_whole(pathlib.Path(sys.argv[1])) as new:
    (new / "half").write_text("half")
"""


@pytest.mark.parametrize("before", ["twice.lwc", "new"])
def test_what_a_killed_process_left_is_cleared_away(artifact, write, tmp_path, before):
    """Killed with nothing of the new artifact in place, or when the old one was moved away already."""
    command = [sys.executable, "-c", KILLED, artifact.directory, before]
    assert subprocess.run(command).returncode == -signal.SIGKILL
    assert {".twice.lwc.lock", ".twice.lwc.partial"} <= {path.name for path in tmp_path.iterdir()}
    with pytest.raises(ArtifactError, match="exists: give another place"):
        write(artifact.directory)
    assert read_artifact(artifact.directory) == artifact
    write(artifact.directory, report=Report("new", (), {}), force=True)
    assert [path.name for path in tmp_path.iterdir()] == ["twice.lwc"]
    assert read_artifact(artifact.directory).report["model"] == "new"


def test_two_that_write_one_directory_take_turns(artifact, write, tmp_path, monkeypatch):
    """Without --force the second is refused as late as it can be: the first one's artifact is not replaced."""
    waiting, turn = threading.Event(), threading.Event()

    def slow(path):
        waiting.set()
        turn.wait(10)
        return sha256_of(path)

    with monkeypatch.context() as patch:
        patch.setattr(module, "sha256_of", slow)
        first = threading.Thread(target=write, args=(tmp_path / "out",), kwargs={"report": Report("first", (), {})})
        first.start()
        assert waiting.wait(10)
    release = threading.Timer(0.2, turn.set)
    release.start()
    with pytest.raises(ArtifactError, match="exists"):
        write(tmp_path / "out", report=Report("second", (), {}))
    first.join()
    assert read_artifact(tmp_path / "out").report["model"] == "first"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "twice.lwc"]


def test_full_disk_leaves_nothing(tmp_path):
    """A file-size limit stands for the disk: the kernel refuses the write halfway."""
    script = (
        "import sys, pathlib\n"
        "from lwc_compiler.errors import ArtifactError\n"
        "from lwc_compiler.files import written_whole\n"
        "try:\n"
        "    with written_whole(pathlib.Path(sys.argv[1])) as new:\n"
        "        (new / 'big').write_bytes(bytes(1 << 20))\n"
        "except ArtifactError as error:\n"
        "    sys.exit(str(error))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "out")],
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, 1 << 16)),
    )
    assert done.returncode == 1
    assert done.stderr.startswith(f"cannot write {tmp_path}/out: ")
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_artifact_is_refused(tmp_path):
    with pytest.raises(ArtifactError, match=r"there is no artifact directory"):
        read_artifact(tmp_path / "none")
    (tmp_path / "model.onnx").write_bytes(b"")
    with pytest.raises(
        ArtifactError, match=r"model.onnx is a file; an artifact is the directory that lwc compile writes$"
    ):
        read_artifact(tmp_path / "model.onnx")
    with pytest.raises(ArtifactError, match=r"not an lwc artifact: it has no manifest.json$"):
        read_artifact(tmp_path)
    for name in ("b.lwc", "a.lwc"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "manifest.json").write_text("{}")
    with pytest.raises(ArtifactError, match=r"no manifest.json; give one of those in it: a.lwc, b.lwc$"):
        read_artifact(tmp_path)


def test_newer_layout_is_refused_in_a_sentence(artifact):
    edit_manifest(artifact, lambda values: values.update(schema_version=4, lwc_version="7.1", invented="later"))
    with pytest.raises(ArtifactError, match=r"made by lwc 7.1 in layout 4; this lwc .* reads layout 3: upgrade"):
        read_artifact(artifact.directory)


def test_older_layout_is_refused_in_a_sentence(artifact):
    edit_manifest(artifact, lambda values: values.update(schema_version=2, lwc_version="0.1"))
    with pytest.raises(ArtifactError, match=r"made by lwc 0.1 in layout 2.* reads layout 3: compile the model again"):
        read_artifact(artifact.directory)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda values: values.pop("symbol"), "symbol: Field required"),
        (lambda values: values.pop("schema_version"), "no schema_version"),
        (lambda values: values.update(threads="many"), "threads: "),
        (lambda values: values.update(surprise=1), "surprise: "),
        (lambda values: values["files"].pop("libtwice.a"), "files does not list libtwice.a"),
        (lambda values: values["files"].update({"../x": {"bytes": 1, "sha256": ""}}), "not a file of the directory"),
    ],
)
def test_damaged_manifest_is_refused(artifact, edit, message):
    edit_manifest(artifact, edit)
    with pytest.raises(ArtifactError, match=f"damaged: .*{message}|damaged: it has {message}"):
        read_artifact(artifact.directory)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b"null"])
def test_manifest_that_is_not_json_is_refused(artifact, content):
    (artifact.directory / MANIFEST).write_bytes(content)
    with pytest.raises(ArtifactError, match=r"damaged"):
        read_artifact(artifact.directory)


def test_changed_and_missing_files_are_noticed(artifact):
    content = bytearray(artifact.library.read_bytes())
    content[-1] ^= 1
    artifact.library.write_bytes(content)
    with pytest.raises(ArtifactError, match=r"libtwice.so was changed after it was written"):
        read_artifact(artifact.directory)
    artifact.library.unlink()
    with pytest.raises(ArtifactError, match=r"incomplete: libtwice.so is missing"):
        read_artifact(artifact.directory)


def test_layout_that_is_written():
    assert SCHEMA_VERSION == 3
