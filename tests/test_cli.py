"""The command line: what each command prints and writes. What it refuses is in test_bad_input.py."""

import json
import os
import subprocess
import sys
import typing

import click
import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper

from lwc_compiler import cli as module
from lwc_compiler.cli import cli
from lwc_compiler.commands import options as cli_options
from lwc_compiler.commands.options import HELP, recipe_options
from lwc_compiler.commands.progress import training_progress
from lwc_compiler.demo import DemoResult
from lwc_compiler.recipe.options import (
    EstimateOptions,
    IterateOptions,
    LowerOptions,
    PackOptions,
    PruneOptions,
    Recipe,
    RetrainOptions,
    SensitivityOptions,
)
from lwc_compiler.runtime.artifact import read_artifact
from lwc_compiler.runtime.timing import Bench, Timing
from lwc_compiler.training.progress import Progress

CLASSES = {
    "prune": PruneOptions,
    "retrain": RetrainOptions,
    "iterate": IterateOptions,
    "sensitivity": SensitivityOptions,
    "lower": LowerOptions,
    "pack": PackOptions,
    "estimate": EstimateOptions,
}


def weight(path, name):
    (tensor,) = [tensor for tensor in onnx.load(path).graph.initializer if tensor.name == name]
    return numpy_helper.to_array(tensor)


# Options


@pytest.mark.parametrize("part", CLASSES)
def test_every_field_of_the_recipe_is_an_option_with_help(part):
    assert set(HELP[part]) == set(CLASSES[part].model_fields)
    assert {option.name for option in recipe_options([part])} == {f"{part}_{field}" for field in HELP[part]}


def test_choices_are_those_of_the_recipe():
    options = {option.name: option for option in recipe_options(list(CLASSES))}
    loss = RetrainOptions.model_fields["loss"].annotation
    assert tuple(options["retrain_loss"].type.choices) == typing.get_args(loss)
    assert isinstance(options["lower_batch"].type, click.types.IntParamType)


@pytest.mark.parametrize("name", list(cli.commands))
def test_help_explains_every_option(name, lwc):
    done = lwc(name, "--help")
    assert done.code == 0
    command = cli.commands[name]
    assert command.help
    for option in command.get_params(click.Context(command)):
        if isinstance(option, click.Option):
            assert option.help, f"{name} {option.opts}"
            assert option.opts[0] in done.out
            assert option.help.lower().count("default:") <= 1, f"{name} {option.opts}"


def parsed(*arguments):
    """The recipe that these options of `lwc compile` make."""
    seen = []
    command = cli.commands["compile"]
    context = command.make_context("compile", ["m.onnx", *arguments])
    options = {name: value for name, value in context.params.items() if name.partition("_")[0] in CLASSES}
    seen = cli_options.whole_recipe(
        context.params["recipe"], context.params["train_data"], context.params["val_data"], options
    )
    return seen


def test_no_options_keep_the_zeros():
    assert parsed() == parsed("--sparsity", "keep") == Recipe()


def test_options_make_the_recipe():
    recipe = parsed(
        *("--criterion", "per-layer", "--density", "a=b=0.5", "--density", "c=1", "--keep", "d*", "--keep", "e"),
        *("--prune-first", "--structure", "4x1", "--train-data", "t.npz", "--epochs", "3", "--clip-norm", "1"),
        *("--train-threads", "2", "--threads", "3", "--batch", "4", "--shape", "x=1,3", "--shape", "y=7"),
    )
    assert recipe == Recipe(
        prune=PruneOptions(
            criterion="per-layer", densities={"a=b": 0.5, "c": 1.0}, keep=("d*", "e"), keep_first=False, structure="4x1"
        ),
        retrain=RetrainOptions(epochs=3, clip_norm=1.0, threads=2),
        lower=LowerOptions(threads=3, batch=4, shapes={"x": (1, 3), "y": (7,)}),
        train_data="t.npz",
    )


def test_command_line_wins_over_the_recipe_file(tmp_path):
    file = tmp_path / "r.toml"
    file.write_text(
        'train_data = "a.npz"\n[prune]\nsparsity = 0.5\nkeep = ["x"]\n[retrain]\nepochs = 7\n[lower]\nthreads = 2\n'
    )
    recipe = parsed("--recipe", str(file))
    assert recipe == Recipe(
        prune=PruneOptions(sparsity=0.5, keep=("x",)),
        retrain=RetrainOptions(epochs=7),
        lower=LowerOptions(threads=2),
        train_data=str(tmp_path / "a.npz"),
    )
    recipe = parsed("--recipe", str(file), "--sparsity", "0.75", "--seed", "1", "--train-data", "b.npz")
    assert recipe.prune == PruneOptions(sparsity=0.75, keep=("x",))
    assert recipe.retrain == RetrainOptions(epochs=7, seed=1)
    assert recipe.train_data == "b.npz"
    assert parsed("--recipe", str(file), "--sparsity", "keep").prune is None


# Commands


def test_help_is_quick_and_light():
    script = (
        "import sys\n"
        "from lwc_compiler.cli import main\n"
        "main(['--help'])\n"
        "print(*(name for name in sys.modules if '.' not in name), file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    loaded = set(done.stderr.split())
    assert "click" in loaded
    assert not loaded & {"tvm", "onnx", "onnxruntime", "onnx_graphsurgeon", "numpy", "pydantic", "rich", "torch"}
    assert all(name in done.stdout for name in cli.commands)


def test_version_names_the_tools(lwc):
    done = lwc("--version")
    assert done.code == 0
    assert done.out.startswith("lwc 0.")
    assert f"onnx {onnx.__version__}" in done.out


def test_targets(lwc):
    done = lwc("targets", "--json")
    listed = {target["name"]: target for target in json.loads(done.out)}
    assert listed["x86-64-v4"]["ram_bytes"] == 0
    assert (listed["stm32f4"]["cpu"], listed["stm32f4"]["flash_bytes"]) == ("cortex-m4", 1 << 20)
    text = lwc("targets").out
    assert "x86-64-v4" in text
    assert "rpi4" in text


def test_prune_writes_zeros_and_leaves_the_input(lwc, mlp, tmp_path):
    before = mlp.read_bytes()
    done = lwc("prune", mlp, "-o", tmp_path / "pruned.onnx", "--sparsity", "0.75", "--prune-first")
    assert (done.code, done.out) == (0, f"wrote {tmp_path}/pruned.onnx\n")
    assert np.count_nonzero(weight(tmp_path / "pruned.onnx", "w1")) == 48
    assert np.count_nonzero(weight(tmp_path / "pruned.onnx", "w2")) == 12
    assert mlp.read_bytes() == before


def test_passes_alone_in_a_row(lwc, mlp, mlp_data, tmp_path):
    pruned, trained, small = (tmp_path / f"{name}.onnx" for name in ("pruned", "trained", "small"))
    assert lwc("prune", mlp, "-o", pruned, "--sparsity", "0.9", "--prune-first").code == 0
    done = lwc("retrain", pruned, "-o", trained, "--train-data", mlp_data, "--epochs", "2", "--json")
    assert done.code == 0
    assert [entry["pass"] for entry in json.loads(done.out)["passes"]][-1] == "retrain"
    assert "retrain: epoch 2/2" in done.err
    np.testing.assert_array_equal(weight(trained, "w1") != 0, weight(pruned, "w1") != 0)
    assert np.abs(weight(trained, "w1") - weight(pruned, "w1")).max() > 0
    assert lwc("compact", trained, "-o", small).code == 0
    assert weight(small, "w2").shape[0] < 12
    x = np.random.default_rng(0).standard_normal((5, 16)).astype(np.float32)
    outputs = [onnxruntime.InferenceSession(path).run(None, {"x": x})[0] for path in (trained, small)]
    np.testing.assert_allclose(*outputs, rtol=1e-5, atol=1e-5)
    assert lwc("lower", small, "-o", tmp_path / "small.lwc").code == 0
    assert read_artifact(tmp_path / "small.lwc").manifest.layers


def test_compile_run_bench_inspect(lwc, mlp, tmp_path, monkeypatch):
    directory = tmp_path / "mlp.lwc"
    done = lwc("compile", mlp, "-o", directory, "--sparsity", "0.5", "--batch", "3")
    assert done.code == 0
    assert "warning: there is no training data: the model was pruned without retraining" in done.err
    for text in ("216 of 240 kept", "x float32 3x16", "not measured", "from ONNX Runtime", f"lwc bench {directory}"):
        assert text in done.out

    x = np.random.default_rng(0).standard_normal((3, 16)).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    done = lwc("run", directory, "--input", f"x={tmp_path}/x.npy", "--output-dir", tmp_path / "out", "--json")
    assert json.loads(done.out) == {"y": {"dtype": "float32", "shape": [3, 4], "file": f"{tmp_path}/out/y.npy"}}
    expected = onnxruntime.InferenceSession(directory / "mlp.onnx").run(None, {"x": x})[0]
    np.testing.assert_allclose(np.load(tmp_path / "out" / "y.npy"), expected, rtol=1e-5, atol=1e-5)
    assert lwc("run", directory, "--input", f"x={tmp_path}/x.npy", "--output-dir", tmp_path / "out").code == 9
    done = lwc("run", directory, "--input", f"x={tmp_path}/x.npy", "--output-dir", tmp_path / "out", "--force")
    assert (done.code, "3x4" in done.out) == (0, True)

    monkeypatch.setattr("lwc_compiler.runtime.bench._BLOCK_SECONDS", 0.001)
    monkeypatch.setattr("lwc_compiler.runtime.bench._WARM_UP_SECONDS", 0.001)
    result = json.loads(lwc("bench", directory, "--against", mlp, "--seconds", "0", "--json").out)
    assert [timing["engine"].split()[0] for timing in result["timings"]] == ["lwc", "ONNX"]
    assert result["speedup"] > 0
    assert "1 thread\n" in lwc("bench", directory, "--seconds", "0").out
    plots = tmp_path / "plots"
    done = lwc("bench", directory, "--against", mlp, "--seconds", "0", "--layers", "--plots", plots)
    assert all(text in done.out for text in ("fc1", "fc2", "inputs and outputs", "useful GFLOP/s", "not pruned, ms"))
    assert {path.name for path in plots.iterdir()} == {"layer-times.png", "layer-times.svg"}
    assert "not pruned" not in lwc("bench", directory, "--seconds", "0", "--layers").out
    assert "give --layers too" in lwc("bench", directory, "--plots", plots).err

    layers = json.loads(lwc("inspect", directory, "--json").out)["layers"]
    assert [layer["node"] for layer in layers] == ["fc1", "fc2"]
    assert layers[1]["density"] < 0.6
    text = lwc("inspect", directory).out
    assert all(word in text for word in ("fc1", "fc2", "FLOPs", "why"))


def test_compile_twice_gives_the_same_library(lwc, mlp, tmp_path):
    for name in ("a", "b"):
        assert lwc("compile", mlp, "-o", tmp_path / name, "--sparsity", "0.5").code == 0
    files = {path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*") if path.is_file()}
    assert len(files) == 12
    for file in files:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes(), file


def test_compile_with_data_retrains(lwc, mlp, mlp_data, tmp_path):
    options = ("--sparsity", "0.5", "--train-data", mlp_data, "--val-data", mlp_data, "--epochs", "1", "--json")
    done = lwc("compile", mlp, "-o", tmp_path / "out", *options)
    assert done.code == 0
    result = json.loads(done.out)
    assert result["directory"] == str(tmp_path / "out")
    assert result["options"]["retrain"]["epochs"] == 1
    assert str(mlp_data) in result["report"]["activations_measured_with"]
    assert [entry["pass"] for entry in result["report"]["passes"]].count("retrain") == 1


def test_default_output_is_named_after_the_model(lwc, mlp, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert lwc("lower", mlp).code == 0
    assert read_artifact(tmp_path / "mlp.lwc").manifest.name == "mlp"


def test_inspect_model(lwc, mlp):
    report = json.loads(lwc("inspect", mlp, "--json").out)
    assert [(layer["node"], layer["flops"]) for layer in report["layers"]] == [("fc1", 384), ("fc2", 96)]
    assert report["total"]["weights"] == 240
    text = lwc("inspect", mlp).out
    assert all(word in text for word in ("fc1", "Gemm", "16x12", "192", "total", "240"))


def test_demo_prints_what_it_measured(lwc, monkeypatch, tmp_path):
    def run_demo(output, progress):
        progress(Progress(0, 2, 0, 5, None, 0.25, None))
        progress(Progress(1, 2, 3, 5, 0.5, 0.25, 8.0))
        progress(Progress(2, 2, 5, 5, 0.4, 0.5, 4.0))
        bench = Bench(
            1,
            (Timing("lwc", 9, 0.001, 0.001, 0.002, 0.0), Timing("ONNX Runtime", 9, 0.004, 0.003, 0.005, 0.0)),
            4.0,
            0.1,
        )
        return DemoResult(1200, 100, 0.95, 0.96, 300, 4800, 900, 9000, 1e-7, bench, 12.0)

    monkeypatch.setattr("lwc_compiler.demo.run_demo", run_demo)
    done = lwc("demo", "-o", tmp_path / "out")
    assert done.code == 0
    assert all(text in done.out for text in ("accuracy", "95.00%", "96.00%"))
    assert done.err == ("retrain: epoch 0/2, validation 0.25\nretrain: epoch 2/2, loss 0.4, validation 0.5, 4 s left\n")
    assert json.loads(lwc("demo", "--json").out)["kept"] == 100


def test_progress_is_a_bar_on_a_terminal(monkeypatch, capsys):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    with training_progress() as progress:
        progress(Progress(1, 2, 3, 5, 0.5, 0.25, 8.0))
        module.click.echo("a log line", err=True)
    err = capsys.readouterr().err
    assert "epoch 1/2, step 3/5, loss 0.5, validation 0.25, 8 s left" in err
    assert "a log line" in err


def test_lines_of_progress_end_with_the_last_epoch_as_it_was_measured(monkeypatch, caplog):
    now = 0.0
    monkeypatch.setattr("lwc_compiler.commands.progress.time.monotonic", lambda: now)
    monkeypatch.setattr("sys.stderr.isatty", lambda: False)
    caplog.set_level("INFO")
    with training_progress() as progress:
        progress(Progress(0, 2, 0, 50, None, 0.25, None))
        now = 1.0
        progress(Progress(1, 2, 10, 50, 0.9, 0.25, 9.0))  # too soon after the line before
        now = 9.0
        progress(Progress(1, 2, 40, 50, 0.7, 0.25, 4.0))
        progress(Progress(1, 2, 50, 50, 0.7, 0.5, 3.0))
        progress(Progress(2, 2, 1, 50, 0.6, 0.5, 3.0))
        progress(Progress(2, 2, 50, 50, 0.4, 0.75, 0.0))
    assert caplog.messages == [
        "retrain: epoch 0/2, validation 0.25",
        "retrain: epoch 1/2, step 40/50, loss 0.7, validation 0.25, 4 s left",
        "retrain: epoch 2/2, loss 0.4, validation 0.75, 0 s left",
    ]


def test_force_replaces_an_output_file(lwc, mlp, tmp_path):
    output = tmp_path / "pruned.onnx"
    assert lwc("prune", mlp, "-o", output, "--sparsity", "0.5").code == 0
    assert lwc("prune", mlp, "-o", output, "--sparsity", "0.25").code == 9
    assert np.count_nonzero(weight(output, "w2")) == 24
    assert lwc("prune", mlp, "-o", output, "--sparsity", "0.25", "--force").code == 0
    assert np.count_nonzero(weight(output, "w2")) == 36


# Errors and signals


def test_errors_are_one_line_and_debug_shows_where(lwc, tmp_path):
    done = lwc("inspect", tmp_path / "none.onnx")
    assert done.code == 3
    assert done.out == ""
    assert done.err.startswith("error: ")
    assert "Traceback" not in done.err
    done = lwc("inspect", tmp_path / "none.onnx", "--debug")
    assert done.code == 3
    assert "Traceback" in done.err


def test_defects_ask_for_a_report(lwc, mlp, monkeypatch):
    monkeypatch.setattr("lwc_compiler.report.table.layer_report", lambda model: 1 // 0)
    done = lwc("inspect", mlp)
    assert done.code == 70
    assert done.err.startswith("error: ZeroDivisionError: ")
    assert "please report it" in done.err
    assert "Traceback" not in done.err


@pytest.mark.parametrize("arguments", [("squeeze",), ("prune",), ("inspect", "a", "b"), ("bench", "d", "--nope")])
def test_wrong_usage_is_2(lwc, arguments):
    done = lwc(*arguments)
    assert done.code == 2
    assert "Error: " in done.err


def test_verbose_logs_more(lwc, mlp, tmp_path, monkeypatch):
    def talk(model, options, **_):
        module.logger.debug("a detail")
        module.logger.info("a step")
        return model

    monkeypatch.setattr("lwc_compiler.passes.pipeline.prune", talk)
    arguments = ("prune", mlp, "--sparsity", "0.5", "--force", "-o", tmp_path / "out.onnx")
    assert lwc(*arguments).err == "a step\n"
    assert lwc(*arguments, "-v").err == "a detail\na step\n"


@pytest.mark.parametrize("arguments", [("targets",), ("targets", "--json"), ("--help",)])
def test_reader_that_goes_away_is_no_error(arguments):
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "lwc_compiler", *arguments]
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True, check=False)
    os.close(write)
    assert (done.returncode, done.stderr) == (1, "")


# Pruning in rounds, and what goes with it


ROUNDS = ("--sparsity", "0.8", "--prune-first", "--keep-dead", "--rounds", "2", "--epochs", "2", "--train-threads", "1")


def test_iterate_report_pack_and_unpack(lwc, mlp, mlp_data, tmp_path):
    pruned, report, packed, again = (tmp_path / name for name in ("p.onnx", "report", "p.lwcp", "again.onnx"))
    done = lwc("iterate", mlp, "-o", pruned, "--train-data", mlp_data, "--val-data", mlp_data, *ROUNDS)
    assert (done.code, done.out) == (0, f"wrote {pruned}\n")
    assert "round 2/2: density 20." in done.err
    assert np.count_nonzero(weight(pruned, "w1")) <= 0.21 * 16 * 12
    done = lwc("report", pruned, "--dense", mlp, "-o", report)
    assert done.code == 0
    assert "## Rounds" in (report / "report.md").read_text(encoding="utf-8")
    assert {path.name for path in (report / "plots").iterdir()} >= {"trade-off.png", "trade-off.svg", "density.svg"}
    unmeasured = json.loads((report / "report.json").read_text(encoding="utf-8"))
    assert unmeasured["activations_measured_with"] == "not measured"
    assert lwc("report", pruned, "-o", report, "--data", mlp_data, "--force").code == 0
    measured = json.loads((report / "report.json").read_text(encoding="utf-8"))
    assert measured["activations_measured_with"] == f"samples of {mlp_data}"
    assert 0 < measured["layers"][0]["activation_density"] < 1
    done = lwc("pack", pruned, "-o", packed, "--json")
    assert json.loads(done.out)["bytes"] == packed.stat().st_size
    assert lwc("unpack", packed, "-o", again).code == 0
    assert again.read_bytes() == pruned.read_bytes()


def test_rounds_in_compile_leave_plots_in_the_artifact(lwc, mlp, mlp_data, tmp_path):
    out = tmp_path / "net.lwc"
    done = lwc("compile", mlp, "-o", out, "--train-data", mlp_data, "--val-data", mlp_data, *ROUNDS)
    assert done.code == 0
    read_artifact(out)
    assert "plots/trade-off.svg" in json.loads((out / "manifest.json").read_text(encoding="utf-8"))["files"]


def test_rounds_need_a_goal_and_data(lwc, mlp, tmp_path):
    done = lwc("compile", mlp, "-o", tmp_path / "net.lwc", "--sparsity", "0.5", "--rounds", "2")
    assert done.code == 2
    assert "give --sparsity and --train-data" in done.err


def test_sensitivity_suggests_what_prune_takes(lwc, mlp, mlp_data, tmp_path):
    scan = tmp_path / "scan.json"
    few = ("--at-density", "0.5", "--at-density", "0.2", "--samples", "32", "--workers", "1")
    written = ("-o", scan, "--plots", tmp_path / "plots")
    done = lwc("sensitivity", mlp, "--data", mlp_data, "--budget", "density=0.3", *written, *few)
    assert done.code == 0
    assert sorted(path.name for path in (tmp_path / "plots").iterdir()) == ["sensitivity.png", "sensitivity.svg"]
    assert "w1" in done.out
    assert "next: lwc prune" in done.out
    pruned = tmp_path / "p.onnx"
    criterion = ("--criterion", "sensitivity", "--sparsity", "0.7", "--prune-first")
    assert lwc("prune", mlp, "-o", pruned, *criterion, "--data", scan).code == 0
    kept = sum(np.count_nonzero(weight(pruned, name)) for name in ("w1", "w2"))
    assert kept == pytest.approx(0.3 * (16 * 12 + 12 * 4), abs=2)
    refused = lwc("prune", mlp, "-o", pruned, "--force", *criterion)
    assert refused.code == 2
    assert "data" in refused.err


def test_plots_without_a_place_are_refused_before_the_scan(lwc, mlp, mlp_data, tmp_path):
    done = lwc("sensitivity", mlp, "--data", mlp_data, "--plots", tmp_path / "missing" / "plots", "--workdir", tmp_path)
    assert done.code == 9
    assert "there is no directory" in done.err
    assert not (tmp_path / "sensitivity.jsonl").exists()
