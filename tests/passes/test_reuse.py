"""Results of earlier runs are used again: the same bytes, only for the same inputs, whatever happens to a process."""

import json
import re
import signal
import subprocess
import sys

import pytest

from lwc_compiler import cache
from lwc_compiler.model import load_model
from lwc_compiler.passes.reuse import Reuse
from lwc_compiler.recipe import Recipe
from lwc_compiler.runtime.artifact import Verification, read_artifact

RETRAIN = ("--sparsity", "0.5", "--epochs", "1", "--train-threads", "1")


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def entries():
    return [path for path in (cache.cache_folder() / "results").iterdir() if path.is_dir()]


def passes(done):
    """The passes that a run went through, by its log."""
    return re.findall(r"^([a-z ]+): \d+\.\d\d s$", done.err, re.MULTILINE)


def test_the_same_again_is_a_copy(lwc, mlp, tmp_path):
    first = lwc("compile", mlp, "-o", tmp_path / "a")
    assert passes(first) == ["normalize", "check that it can be lowered", "compact", "lower", "verify", "write"]
    second = lwc("compile", mlp, "-o", tmp_path / "b")
    assert second.code == 0
    assert second.err.startswith("compiled before from the same model, data, recipe and version: using ")
    assert passes(second) == []
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    assert second.out == first.out.replace(f"{tmp_path}/a", f"{tmp_path}/b")
    assert lwc("compile", mlp, "-o", tmp_path / "b").code == 9
    assert lwc("compile", mlp, "-o", tmp_path / "b", "--force").code == 0


def test_no_cache_makes_it_anew_and_keeps_nothing(lwc, mlp, tmp_path):
    assert "lower" in passes(lwc("compile", mlp, "-o", tmp_path / "a", "--no-cache"))
    assert not (cache.cache_folder() / "results").exists()
    assert "lower" in passes(lwc("compile", mlp, "-o", tmp_path / "b"))
    assert "lower" in passes(lwc("compile", mlp, "-o", tmp_path / "c", "--no-cache"))


def test_another_target_needs_no_other_retraining(lwc, mlp, mlp_data, tmp_path):
    arguments = ("compile", mlp, "--train-data", mlp_data, *RETRAIN)
    assert "retrain" in passes(lwc(*arguments, "-o", tmp_path / "a"))
    done = lwc(*arguments, "-o", tmp_path / "b", "--target", "c")
    assert "retrained before with the same model, data, options and version" in done.err
    assert [name for name in passes(done) if name in ("prune", "retrain", "lower")] == ["lower"]
    assert lwc(*arguments, "-o", tmp_path / "c", "--target", "c", "--no-cache").code == 0
    assert contents(tmp_path / "b") == contents(tmp_path / "c")


def test_a_build_takes_what_an_earlier_one_made(lwc, mlp, tmp_path):
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(f'model = "{mlp}"\n[prune]\nsparsity = 0.5\n[targets.c]\n[gates]\nmax_bytes = 1\n')
    first = lwc("build", recipe, "-o", tmp_path / "a")
    second = lwc("build", recipe, "-o", tmp_path / "b")
    assert (first.code, second.code) == (23, 23)  # the gates are judged again
    assert "lower" in passes(first)
    assert "lower" not in passes(second)
    assert "compiled before" in second.err
    assert contents(tmp_path / "a" / "c.lwc") == contents(tmp_path / "b" / "c.lwc")
    assert "lower" in passes(lwc("build", recipe, "-o", tmp_path / "c", "--no-cache"))


def test_what_code_returns_is_not_cached(mlp, caplog):
    with caplog.at_level("INFO", "lwc_compiler"):
        reuse = Reuse.of(load_model(mlp), Recipe(train_data="loader:batches"))
    assert reuse == Reuse(None)
    assert caplog.messages == ["nothing is cached: 'loader:batches' is code, and what it returns may change unseen"]


def test_a_damaged_result_is_made_again(lwc, mlp, tmp_path):
    assert lwc("compile", mlp, "-o", tmp_path / "a").code == 0
    (damaged,) = (path / "files" / "libmlp.so" for path in entries())
    data = bytearray(damaged.read_bytes())
    data[len(data) // 2] ^= 1
    damaged.write_bytes(data)
    done = lwc("compile", mlp, "-o", tmp_path / "b")
    assert done.code == 0
    assert "is damaged (files have changed): it is made again" in done.err
    assert "lower" in passes(done)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    assert "compiled before" in lwc("compile", mlp, "-o", tmp_path / "c").err


def test_what_was_not_checked_is_not_kept(lwc, mlp, tmp_path, monkeypatch):
    monkeypatch.setattr("lwc_compiler.runtime.verify.verify", lambda *_: Verification({}, 1e-4, 0, "no emulator"))
    assert lwc("compile", mlp, "-o", tmp_path / "a").code == 0
    assert entries() == []


def start(mlp, *arguments):
    command = [sys.executable, "-m", "lwc_compiler", "compile", str(mlp), *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.fixture
def own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("LWC_CACHE", str(tmp_path / "cache"))


@pytest.mark.usefixtures("own_cache")
def test_two_at_once_make_it_once(mlp, tmp_path):
    processes = [start(mlp, "-o", tmp_path / name, "--json") for name in "ab"]
    logs = []
    for process in processes:
        out, err = process.communicate()
        assert process.returncode == 0, err
        assert json.loads(out)["name"] == "mlp"
        logs.append(err)
    assert sorted("compiled before" in log for log in logs) == [False, True]
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    assert not list((tmp_path / "cache" / "results").glob("*.lock"))


@pytest.mark.usefixtures("own_cache")
def test_the_next_goes_on_where_one_was_killed(mlp, tmp_path):
    first = start(mlp, "-o", tmp_path / "out")
    assert any(line.startswith("lowering for ") for line in first.stderr)
    first.send_signal(signal.SIGKILL)
    first.communicate()
    assert not (tmp_path / "out").exists()
    second = start(mlp, "-o", tmp_path / "out")
    _, log = second.communicate()
    assert second.returncode == 0, log
    assert read_artifact(tmp_path / "out").manifest.name == "mlp"
    assert not list((tmp_path / "cache" / "results").glob("*.lock"))
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]
