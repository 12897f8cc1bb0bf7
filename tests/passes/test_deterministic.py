"""`--deterministic`: the same bytes, whatever differs around the run."""

import os
import subprocess
import sys

import pytest

from lwc_compiler.recipe.options import LowerOptions, PruneOptions, Recipe, RetrainOptions

ROUNDS = ("--sparsity", "0.8", "--prune-first", "--rounds", "1", "--epochs", "1", "--deterministic", "--no-cache")


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def compiled(folder, mlp, data, cores, **environment):
    """Compiles in a folder of its own, with copies of the inputs at the same place in it."""
    for name in ("temporary", "cache"):
        (folder / name).mkdir(parents=True)
    for file in (mlp, data):
        (folder / file.name).write_bytes(file.read_bytes())
    command = [sys.executable, "-m", "lwc_compiler", "compile", mlp.name, "-o", f"{folder.name}.lwc", *ROUNDS]
    done = subprocess.run(
        [*command, "--train-data", data.name, "--val-data", data.name],
        cwd=folder,
        env=os.environ
        | {"TMPDIR": str(folder / "temporary"), "LWC_CACHE": str(folder / "cache"), "PYTHONHASHSEED": folder.name}
        | environment,
        preexec_fn=lambda: os.sched_setaffinity(0, cores),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return contents(folder / f"{folder.name}.lwc")


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="the system does not choose cores for a process")
def test_runs_elsewhere_and_later_give_the_same_bytes(mlp, mlp_data, tmp_path):
    """Another folder, output, hash seed, time zone, locale, and number of cores."""
    cores = sorted(os.sched_getaffinity(0))
    first = compiled(tmp_path / "1", mlp, mlp_data, cores)
    second = compiled(tmp_path / "2", mlp, mlp_data, cores[:1], TZ="Asia/Tokyo", LC_ALL="C", HOME="/")
    assert first.keys() == second.keys()
    assert [str(name) for name in first if first[name] != second[name]] == []
    assert any(name.suffix == ".png" for name in first)


def test_what_is_settled():
    recipe = Recipe(prune=PruneOptions(sparsity=0.5), train_data="d.npz", deterministic=True).settled()
    assert recipe.lower.tune == 0
    assert recipe.retrain == RetrainOptions(threads=1)
    assert Recipe(deterministic=True).settled() == Recipe(deterministic=True, lower=LowerOptions(tune=0))
    free = Recipe(lower=LowerOptions(tune=3), retrain=RetrainOptions(threads=4), train_data="d.npz")
    assert free.settled() == free


@pytest.mark.parametrize(
    ("options", "complaint"),
    [(("--tune", "2"), "leave 'tune' out"), (("--train-threads", "2"), "leave 'threads' of 'retrain' out")],
)
def test_what_contradicts_it_is_refused(lwc, mlp, mlp_data, tmp_path, options, complaint):
    done = lwc("compile", mlp, "-o", tmp_path / "out", "--train-data", mlp_data, "--deterministic", *options)
    assert done.code == 2
    assert complaint in done.err
