import json

import numpy as np
import onnx
import pytest

from lwc_compiler.recipe.schema import recipe_schema


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def recipe(mlp, mlp_data, tmp_path):
    """Writes a recipe that compiles the small network as C source."""

    def write(more="", name="recipe.toml"):
        text = 'model = "mlp.onnx"\nval_data = "data.npz"\n[prune]\nsparsity = 0.5\n[pack]\n[lower]\ntarget = "c"\n'
        (tmp_path / name).write_text(text + more, encoding="utf-8")
        return name

    return write


def test_build_prints_what_it_made(lwc, recipe, tmp_path):
    done = lwc("build", recipe("[gates]\nmin_speedup = 2.0\nmax_bytes = 1_000_000\n"))
    assert done.code == 0, done.err
    assert "accuracy" in done.out
    assert "passed  max_bytes of c: " in done.out
    assert "skipped min_speedup of c: not measured: C source" in done.out
    assert done.out.endswith("wrote mlp.build\n")
    assert sorted(path.name for path in (tmp_path / "mlp.build").iterdir()) == [
        *("c.lwc", "mlp.lwcp", "report.json", "report.md")
    ]


@pytest.mark.parametrize(
    ("gates", "code"),
    [
        ("max_accuracy_drop = 1.0", 0),
        ("min_metric = 1.0", 21),
        ("max_disagreement = 0.0", 22),
        ("max_bytes = 1", 23),
        ("max_packed_bytes = 1", 23),
        ("max_bytes = 1\nmin_metric = 1.0", 21),
    ],
)
def test_a_gate_that_fails_gives_the_exit_code_of_its_kind(lwc, recipe, tmp_path, gates, code):
    done = lwc("build", recipe(f"[gates]\n{gates}\n"), "-o", "out", "--json")
    assert done.code == code, done.err
    report = json.loads(done.out)
    assert report == json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))
    failed = [gate["name"] for gate in report["gates"] if gate["verdict"] == "failed"]
    assert bool(failed) == bool(code)
    assert all(name in done.err for name in failed)
    assert ("the results are in out all the same" in done.err) == bool(code)


def test_a_refused_model_is_written_as_sarif(lwc, recipe, mlp, tmp_path):
    proto = onnx.load(mlp)
    proto.graph.node[1].op_type = "Bernoulli"
    onnx.save(proto, mlp)
    done = lwc("build", recipe(), "--sarif", "refused.sarif")
    assert done.code == 4
    assert "Bernoulli" in (tmp_path / "refused.sarif").read_text(encoding="utf-8")
    assert not (tmp_path / "mlp.build").exists()


def test_check_works_on_nothing(lwc, recipe, tmp_path):
    done = lwc("recipe", "check", recipe())
    assert (done.code, done.out) == (0, "recipe.toml: mlp.onnx for c (c), into mlp.build\n")
    found = json.loads(lwc("recipe", "check", "recipe.toml", "-o", "elsewhere", "--json").out)
    assert (found["directory"], found["targets"]) == ("elsewhere", {"c": "c"})
    assert found["recipe"]["prune"]["sparsity"] == 0.5
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data.npz", "mlp.onnx", "recipe.toml"]


def test_check_refuses_what_build_would(lwc, recipe):
    done = lwc("recipe", "check", recipe("[gates]\nmax_byte = 1\n"))
    assert done.code == 2
    assert "gates.max_byte: there is no such key; the closest is 'max_bytes'" in done.err
    done = lwc("recipe", "check", recipe('cc = "sh evil.sh"\n'))
    assert done.code == 2
    assert "--allow-code" in done.err


def test_check_says_what_is_wrong_with_a_recipe_before_what_stands_in_its_way(lwc, recipe, tmp_path):
    (tmp_path / "mlp.build").mkdir()
    (tmp_path / "mlp.build" / "file").write_text("")
    assert "mlp.build exists" in lwc("recipe", "check", recipe()).err
    (tmp_path / "data.npz").unlink()
    assert "data.npz: there is no such file" in lwc("recipe", "check", "recipe.toml").err


def test_init_writes_a_recipe_that_runs(lwc, recipe, mlp, tmp_path):
    done = lwc("recipe", "init", "mlp.onnx", "--val-data", "data.npz", "--target", "c", "-o", "new.toml")
    assert (done.code, done.out) == (0, "wrote new.toml\nnext: lwc recipe check new.toml, lwc build new.toml\n")
    assert lwc("recipe", "init", "mlp.onnx", "-o", "new.toml").code == 9
    assert lwc("recipe", "check", "new.toml").code == 0
    text = (tmp_path / "new.toml").read_text(encoding="utf-8")
    (tmp_path / "new.toml").write_text(text.replace("max_accuracy_drop = 0.01", "max_accuracy_drop = 1.0"))
    assert lwc("build", "new.toml").code == 0
    assert json.loads((tmp_path / "mlp.build" / "report.json").read_text())["total"]["density"] == pytest.approx(
        0.5, abs=0.01
    )


def test_schema(lwc):
    assert json.loads(lwc("recipe", "schema").out) == recipe_schema()


def test_gates_of_an_artifact(lwc, mlp, mlp_data, tmp_path):
    assert lwc("compile", "mlp.onnx", "--sparsity", "0.5", "--prune-first", "--target", "c").code == 0
    done = lwc("gate", "mlp.lwc", "--max-bytes", "1000000")
    assert done.code == 0
    assert done.out.startswith("passed  max_bytes of c: ")
    measured = ("--against", "mlp.onnx", "--data", "data.npz")
    done = lwc("gate", "mlp.lwc", *measured, "--max-disagreement", "0", "--max-bytes", "1", "--json")
    assert done.code == 22
    assert [(gate["name"], gate["verdict"]) for gate in json.loads(done.out)] == [
        ("max_disagreement", "failed"),
        ("max_bytes", "failed"),
    ]
    assert lwc("gate", "mlp.lwc", *measured, "--max-accuracy-drop", "1", "--min-metric", "0").code == 0


def test_an_artifact_beside_an_earlier_run(lwc, mlp, mlp_data, tmp_path):
    recipe = 'model = "mlp.onnx"\nval_data = "data.npz"\nprune.sparsity = 0.9\ntargets.plain.target = "c"\n'
    (tmp_path / "first.toml").write_text(recipe, encoding="utf-8")
    assert lwc("build", "first.toml", "-o", "first").code == 0
    assert lwc("compile", "mlp.onnx", "--target", "c", "-o", "larger.lwc").code == 0
    size = ("--max-bytes-regression", "1", "--baseline", "first/report.json", "--json")
    for directory, code, verdict in (("first/plain.lwc", 0, "passed"), ("larger.lwc", 25, "failed")):
        done = lwc("gate", directory, *size)
        (result,) = json.loads(done.out)
        assert (done.code, result["verdict"], result["target"]) == (code, verdict, "plain")
    on_data = ("--data", "data.npz", "--against", "mlp.onnx")
    done = lwc("gate", "first/plain.lwc", *size, *on_data, "--max-accuracy-regression", "0")
    assert [(result["verdict"], result["value"]) for result in json.loads(done.out)] == [("passed", 0)] * 2
    done = lwc("gate", "larger.lwc", "--max-bytes-regression", "1", "--baseline", "none.json")
    assert (done.code, done.out.split()[0]) == (0, "skipped")


def test_speed_of_an_artifact(lwc, mlp, monkeypatch):
    monkeypatch.setattr("lwc_compiler.runtime.bench._WARM_UP_SECONDS", 0.001)
    monkeypatch.setattr("lwc_compiler.runtime.bench._BLOCK_SECONDS", 0.002)
    assert lwc("compile", "mlp.onnx").code == 0
    timed = ("gate", "mlp.lwc", "--against", "mlp.onnx", "--seconds", "0.01")
    assert lwc(*timed, "--min-speedup", "1e-6", "--max-latency-ms", "1e6").code == 0
    assert lwc(*timed, "--min-speedup", "1e6").code == 24
    assert lwc(*timed, "--max-latency-ms", "1e-6").code == 24


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ((), "there is no gate"),
        (("--min-metric", "0.5", "--against", "mlp.onnx"), "--data"),
        (("--min-metric", "0.5", "--data", "data.npz"), "--against"),
        (("--min-speedup", "2"), "--against"),
        (("--max-latency-regression", "2", "--baseline", "report.json"), "--against"),
        (("--max-accuracy-regression", "2", "--baseline", "report.json", "--against", "mlp.onnx"), "--data"),
        (("--max-bytes-regression", "2"), "'baseline'"),
        (("--baseline", "report.json"), "compared with nothing"),
        (("--max-bytes", "-1"), "max_bytes"),
    ],
)
def test_gates_that_cannot_be_judged(lwc, artifact, options, word):
    done = lwc("gate", artifact.directory, *options)
    assert done.code == 2
    assert word in done.err


def test_a_least_loss_is_refused(lwc, mlp, mlp_data, tmp_path):
    with np.load(mlp_data) as data:
        np.savez(tmp_path / "floats.npz", x=data["x"], labels=np.zeros((64, 4), np.float32))
    assert lwc("compile", "mlp.onnx", "--target", "c").code == 0
    done = lwc("gate", "mlp.lwc", "--against", "mlp.onnx", "--data", "floats.npz", "--min-metric", "0.5")
    assert done.code == 2
    assert "the metric is the loss here" in done.err
