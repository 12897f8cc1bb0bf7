"""Results in the cache: kept whole, checked before they are used, made by one process at a time."""

import os
import signal
import subprocess
import sys
import time

import pytest

from lwc_compiler.cache import results as module
from lwc_compiler.cache.results import Entry, entry

KEY = "0" * 64


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LWC_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "results"


def fill(folder, text="text"):
    (folder / "plots").mkdir()
    (folder / "plots" / "a.svg").write_text(text)
    (folder / "model.onnx").write_bytes(b"model")


def keep(key=KEY, text="text"):
    with entry(key) as result:
        result.store(lambda folder: fill(folder, text))


def test_what_is_stored_is_fetched():
    with entry(KEY) as result:
        assert result.fetch() is None
    keep()
    with entry(KEY) as result:
        files = result.fetch()
    assert (files / "plots" / "a.svg").read_text() == "text"
    assert (files / "model.onnx").read_bytes() == b"model"
    assert sorted(path.name for path in files.iterdir()) == ["model.onnx", "plots"]
    with entry("1" * 64) as other:
        assert other.fetch() is None


def change(files):
    data = bytearray((files / "model.onnx").read_bytes())
    data[2] ^= 1
    (files / "model.onnx").write_bytes(data)


DAMAGES = {
    "a changed bit": change,
    "a missing file": lambda files: (files / "model.onnx").unlink(),
    "a file more": lambda files: (files / "more").write_text(""),
    "no hashes": lambda files: (files.parent / "sha256.json").unlink(),
    "half the hashes": lambda files: (files.parent / "sha256.json").write_text('{"model.onnx": "12'),
    "no files": lambda files: files.rename(files.parent / "elsewhere"),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_result_is_noticed_and_made_again(caplog, cache, damage):
    keep()
    damage(cache / KEY / "files")
    with entry(KEY) as result:
        assert result.fetch() is None
        assert f"the cached result {cache / KEY} is damaged" in caplog.text
        assert not (cache / KEY).exists()
        result.store(fill)
        assert result.fetch() is not None


def test_a_result_that_fails_half_way_is_not_kept(cache):
    def fail(folder):
        fill(folder)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), entry(KEY) as result:
        result.store(fail)
    assert list(cache.iterdir()) == []


def test_a_full_disk_is_no_loss(cache, caplog):
    def fail(folder):
        raise OSError(28, "No space left on device")

    with entry(KEY) as result:
        result.store(fail)
    assert "the result is not kept in the cache: cannot write" in caplog.text
    assert "No space left on device" in caplog.text
    assert list(cache.iterdir()) == []


def test_a_cache_that_cannot_be_written_is_no_loss(tmp_path, caplog):
    (tmp_path / "cache").write_text("a file is in the way")
    with entry(KEY) as result:
        assert result == Entry(None)
        result.store(fill)
        assert result.fetch() is None
    assert f"the cache {tmp_path}/cache/results cannot be used: Not a directory" in caplog.text


def test_results_that_were_not_used_for_long_go_first(cache, monkeypatch):
    for number, name in enumerate("abc"):
        keep(name, "x" * 1000)
        os.utime(cache / name, (number, number))
    with entry("a") as result:  # now used last
        result.fetch()
    monkeypatch.setattr(module, "_LIMIT_BYTES", 4000)
    keep("d", "x" * 1000)
    assert {path.name for path in cache.iterdir()} == {"a", "c", "d"}
    monkeypatch.setattr(module, "_LIMIT_BYTES", 10)
    keep("e", "x" * 1000)  # one result is kept, however large
    assert {path.name for path in cache.iterdir()} == {"e"}


def test_what_killed_processes_left_goes_after_a_day(cache):
    for name, age in (("old", 25), ("young", 23)):
        (cache / f".{name}.partial").mkdir(parents=True)
        then = time.time() - age * 60 * 60
        os.utime(cache / f".{name}.partial", (then, then))
    keep()
    assert {path.name for path in cache.iterdir()} == {".young.partial", KEY}


MAKE = (
    "import pathlib, sys\n"
    "from lwc_compiler.cache.results import entry\n"
    "def fill(folder):\n"
    "    (folder / 'result').write_text('whole')\n"
    "    (pathlib.Path(sys.argv[1]) / f'made by {sys.argv[2]}').touch()\n"
    "with entry('key') as result:\n"
    "    print('in', flush=True)\n"
    "    sys.stdin.read()\n"
    "    if result.fetch() is None:\n"
    "        result.store(fill)\n"
    "    print((result.fetch() / 'result').read_text())\n"
)


def start(folder, name):
    command = [sys.executable, "-c", MAKE, str(folder), name]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def test_one_process_makes_what_others_wait_for(tmp_path):
    (tmp_path / "made").mkdir()
    first = start(tmp_path / "made", "first")
    assert first.stdout.readline() == "in\n"
    second = start(tmp_path / "made", "second")
    assert second.poll() is None
    assert first.communicate("")[0] == "whole\n"
    assert second.communicate("")[0] == "in\nwhole\n"
    assert [path.name for path in (tmp_path / "made").iterdir()] == ["made by first"]


def test_the_next_goes_on_where_one_was_killed(tmp_path):
    (tmp_path / "made").mkdir()
    first = start(tmp_path / "made", "first")
    assert first.stdout.readline() == "in\n"
    second = start(tmp_path / "made", "second")
    os.kill(first.pid, signal.SIGKILL)
    first.communicate()
    assert second.communicate("")[0] == "in\nwhole\n"
    assert [path.name for path in (tmp_path / "made").iterdir()] == ["made by second"]
