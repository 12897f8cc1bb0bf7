"""Results of earlier runs are used again: the same bytes, only for the same inputs, whatever happens to a process."""

import re
import shutil
import signal
import subprocess
import sys

from lwc_compiler.cache import folder as cache
from lwc_compiler.model import load_model
from lwc_compiler.passes.reuse import Reuse
from lwc_compiler.recipe.options import Recipe
from lwc_compiler.runtime.manifest import Verification

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


def test_what_was_retrained_is_lowered_again_without(lwc, mlp, mlp_data, tmp_path):
    """As for another target: here the artifact is taken out of the cache, so that the two can be compared."""
    arguments = ("compile", mlp, "--target", "c", "--train-data", mlp_data, *RETRAIN)
    assert "retrain" in passes(lwc(*arguments, "-o", tmp_path / "a"))
    (artifact,) = (path for path in entries() if (path / "files" / "manifest.json").exists())
    shutil.rmtree(artifact)
    done = lwc(*arguments, "-o", tmp_path / "b")
    assert "retrained before with the same model, data, options and version" in done.err
    assert [name for name in passes(done) if name in ("prune", "retrain", "lower")] == ["lower"]
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


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


def start(mlp, output):
    command = [sys.executable, "-m", "lwc_compiler", "compile", str(mlp), "-o", str(output), "--tune", "0"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_one_of_two_at_once_is_killed_and_the_other_goes_on(lwc, mlp, tmp_path):
    cached = cache.cache_folder() / "results"
    first = start(mlp, tmp_path / "a")
    assert any(line.startswith("lowering for ") for line in first.stderr)
    second = start(mlp, tmp_path / "b")
    assert "waiting for another lwc that makes the same result\n" in iter(second.stderr.readline, "")
    first.send_signal(signal.SIGKILL)
    first.communicate()
    assert second.communicate()[0].startswith(f"{tmp_path}/b: code for ")
    assert second.returncode == 0
    assert not (tmp_path / "a").exists()
    assert len(entries()) == 1
    assert not list(cached.glob("*.lock"))
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]
    assert "compiled before" in lwc("compile", mlp, "-o", tmp_path / "c", "--tune", "0").err
    assert contents(tmp_path / "b") == contents(tmp_path / "c")
