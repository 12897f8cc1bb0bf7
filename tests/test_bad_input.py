"""What lwc refuses: each with one sentence and its exit code, and nothing lost or half-written."""

import os
import re
import resource
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from lwc_compiler import errors
from lwc_compiler.codegen import link
from lwc_compiler.runtime import artifact as artifact_module

USAGE, MODEL, UNSUPPORTED, DATA, TRAINING, TARGET, TOOLCHAIN, ARTIFACT, VERIFICATION = range(2, 11)


def contents(folder):
    return {str(path.relative_to(folder)): path.is_file() and path.read_bytes() for path in folder.rglob("*")}


@pytest.fixture
def refused(lwc, tmp_path, tmp_path_factory, monkeypatch):
    """Runs a command line that must fail: with this code, one message with these words, and no trace of it."""
    temporary = tmp_path_factory.mktemp("temporary")
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    monkeypatch.chdir(tmp_path)

    def run(code, words, *arguments):
        before = contents(tmp_path)
        done = lwc(*arguments)
        assert done.code == code, done.err
        assert done.out == ""
        message = done.err[done.err.lower().index("error: ") :]
        for word in [words] if isinstance(words, str) else words:
            assert word in message
        assert "Traceback" not in done.err
        assert contents(tmp_path) == before
        assert contents(temporary) == {}

    return run


def edited(path, edit):
    """The model file `path` after `edit(graph)`."""
    proto = onnx.load(path)
    edit(proto.graph)
    onnx.save(proto, path)
    return path


def set_weight(name, index, value):
    def edit(graph):
        (tensor,) = [tensor for tensor in graph.initializer if tensor.name == name]
        array = numpy_helper.to_array(tensor).copy()
        array.flat[index] = value
        tensor.CopyFrom(numpy_helper.from_array(array, name))

    return edit


def test_exit_codes_are_those_of_the_classes():
    classes = (errors.OptionError, errors.ModelError, errors.UnsupportedError, errors.DataError, errors.TrainingError)
    classes += (errors.TargetError, errors.ToolchainError, errors.ArtifactError, errors.VerificationError)
    assert [kind.exit_code for kind in classes] == list(range(2, 11))


# Model files

COMMANDS = {
    "compile": ("-o", "out", "--sparsity", "0.5"),
    "prune": ("-o", "out.onnx", "--sparsity", "0.5"),
    "retrain": ("-o", "out.onnx", "--train-data", "data.npz"),
    "compact": ("-o", "out.onnx"),
    "lower": ("-o", "out"),
    "inspect": (),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_missing_model(refused, command):
    refused(MODEL, "none.onnx", command, "none.onnx", *COMMANDS[command])


@pytest.mark.parametrize("content", [b"", b"\0" * 64, b"GIF89a", b"{}", b"\x08\x08", bytes(range(256))], ids=range(6))
def test_file_that_is_no_model(refused, tmp_path, content):
    (tmp_path / "odd.onnx").write_bytes(content)
    refused(MODEL, "odd.onnx", "compile", "odd.onnx", *COMMANDS["compile"])


def test_model_is_a_directory_for_a_pass(refused, tmp_path):
    (tmp_path / "folder").mkdir()
    refused(MODEL, "folder", "prune", "folder", *COMMANDS["prune"])


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.99])
def test_truncated_model(refused, mlp, share):
    content = mlp.read_bytes()
    mlp.write_bytes(content[: int(share * len(content))])
    refused(MODEL, "mlp.onnx", "compile", mlp, *COMMANDS["compile"])


def test_fuzzed_models_never_crash(lwc, mlp, tmp_path):
    """A changed byte may leave a valid model; what must not happen is a defect or an output beside an error."""
    content = mlp.read_bytes()
    generator = np.random.default_rng(0)
    codes = set()
    for _ in range(150):
        fuzzed = bytearray(content)
        for position in generator.integers(0, len(content), 1 + generator.integers(4)):
            fuzzed[position] = generator.integers(256)
        mlp.write_bytes(fuzzed)
        done = lwc("prune", mlp, "-o", tmp_path / "out.onnx", "--sparsity", "0.5", "--force")
        assert done.code in (0, MODEL, UNSUPPORTED), done.err
        assert (tmp_path / "out.onnx").exists() == (done.code == 0)
        (tmp_path / "out.onnx").unlink(missing_ok=True)
        codes.add(done.code)
    assert {0, MODEL} <= codes


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_weights_that_are_no_numbers(refused, mlp, value):
    edited(mlp, set_weight("w2", 5, value))
    refused(MODEL, "w2", "compile", mlp, *COMMANDS["compile"])


def test_nothing_to_prune(refused, tmp_path):
    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 4]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", value[:1], value[1:])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / "r.onnx")
    refused(MODEL, "nothing to prune", "compile", "r.onnx", *COMMANDS["compile"])


def test_every_layer_kept(refused, mlp):
    refused(MODEL, ["nothing to prune", "w1", "keep"], "compile", mlp, *COMMANDS["compile"], "--keep", "*")


def test_opset_of_the_future(refused, mlp):
    proto = onnx.load(mlp)
    proto.opset_import[0].version = 999
    mlp.write_bytes(proto.SerializeToString())
    refused(UNSUPPORTED, "999", "compile", mlp, *COMMANDS["compile"])


def test_operator_that_cannot_be_lowered(refused, mlp, monkeypatch):
    def edit(graph):
        graph.node.append(helper.make_node("Multinomial", ["y"], ["thrown"], name="dice"))
        graph.output.append(helper.make_tensor_value_info("thrown", TensorProto.INT32, ["n", 1]))

    edited(mlp, edit)
    monkeypatch.setattr("lwc_compiler.passes.pipeline.prune", lambda *_: pytest.fail("work began"))
    refused(UNSUPPORTED, ["dice", "Multinomial"], "compile", mlp, *COMMANDS["compile"])


def test_operator_whose_definition_cannot_be_lowered(refused, mlp, monkeypatch):
    def edit(graph):
        graph.node[1].CopyFrom(helper.make_node("Bernoulli", ["hidden"], ["active"], name="dice"))

    edited(mlp, edit)
    monkeypatch.setattr("lwc_compiler.passes.pipeline.prune", lambda *_: pytest.fail("work began"))
    refused(UNSUPPORTED, "Random", "compile", mlp, *COMMANDS["compile"], "--train-data", "data.npz")


def test_dynamic_shape_not_given(refused, mlp):
    def edit(graph):
        for value in (graph.input[0], graph.output[0]):
            value.type.tensor_type.shape.dim[1].dim_param = "features"

    edited(mlp, edit)
    refused(UNSUPPORTED, ["'x'", "--shape"], "compile", mlp, *COMMANDS["compile"])


# Options


@pytest.mark.parametrize("sparsity", ["1", "1.5", "-0.1", "nan", "inf", "much", ""])
def test_sparsity_outside_its_range(refused, mlp, sparsity):
    refused(USAGE, "sparsity", "compile", mlp, "-o", "out", "--sparsity", sparsity)
    refused(USAGE, "sparsity", "prune", mlp, "-o", "out.onnx", "--sparsity", sparsity)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--sparsity", "keep", "--criterion", "std"), ["--sparsity keep", "leave the other pruning options out"]),
        (("--criterion", "std"), ["quality"]),
        (("--criterion", "std", "--quality", "1", "--sparsity", "0.5"), ["quality", "sparsity"]),
        (("--density", "fc1"), ["NAME=DENSITY", "fc1"]),
        (("--shape", "x=1,a"), ["NAME=D,D,...", "x=1,a"]),
        (("--criterion", "sometimes"), ["uniform"]),
        (("--batch", "0"), ["batch", "1"]),
        (("--threads", "0"), ["threads", "1"]),
        (("--epochs", "2"), ["training data", "--train-data"]),
        (("--shape", "nobody=1,16"), ["nobody", "x"]),
        (("--recipe", "none.toml"), ["none.toml"]),
    ],
)
def test_options_that_cannot_be(refused, mlp, options, words):
    refused(USAGE, words, "compile", mlp, "-o", "out", *options)


@pytest.mark.parametrize(
    ("text", "words"),
    [("[prune]\nsparsty = 0.5\n", "sparsty"), ("[prune\n", "line 1"), ("[prune]\nsparsity = 2\n", "prune.sparsity")],
)
def test_recipe_with_a_mistake(refused, mlp, tmp_path, text, words):
    (tmp_path / "r.toml").write_text(text)
    refused(USAGE, [words, "r.toml"], "compile", mlp, "-o", "out", "--recipe", "r.toml")


def test_unknown_target_names_the_closest(refused, mlp):
    refused(
        TARGET, ["'x86-64-v5'", "closest is 'x86-64-v"], "compile", mlp, *COMMANDS["compile"], "--target", "x86-64-v5"
    )


# Data


def save_data(path, **changes):
    generator = np.random.default_rng(0)
    arrays = {"x": generator.standard_normal((40, 16)).astype(np.float32), "labels": generator.integers(0, 4, 40)}
    np.savez(path, **{name: array for name, array in {**arrays, **changes}.items() if array is not None})


X = np.zeros((40, 16), np.float32)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"x": None, "z": X}, ["x"]),
        ({"x": X[:, :15]}, ["x", "15", "16"]),
        ({"x": X[:39]}, ["39", "40"]),
        ({"x": X.astype(complex)}, ["x", "complex"]),
        ({"x": np.where(np.arange(16) == 3, np.nan, X).astype(np.float32)}, ["x", "nan"]),
        ({"x": np.where(np.arange(16) == 3, np.inf, X).astype(np.float32)}, ["x", "inf"]),
        ({"labels": np.full(40, 4)}, ["4"]),
        ({"labels": np.full(40, -1)}, ["-1"]),
        ({"labels": np.zeros((40, 3), np.float32)}, ["3", "4"]),
    ],
)
def test_training_data_that_does_not_fit(refused, mlp, tmp_path, changes, words):
    save_data(tmp_path / "d.npz", **changes)
    refused(DATA, words, "retrain", mlp, "-o", "out.onnx", "--train-data", "d.npz", "--epochs", "1")


@pytest.mark.parametrize("data", ["none.npz", "none", "no_such_module:function", "mlp.onnx"])
def test_training_data_that_is_not_there(refused, mlp, data):
    refused(DATA, data.partition(":")[0], "retrain", mlp, "-o", "out.onnx", "--train-data", data)


def test_bad_training_data_stops_compile(refused, mlp, tmp_path):
    save_data(tmp_path / "d.npz", x=X[:, :15])
    refused(DATA, ["x", "15"], "compile", mlp, *COMMANDS["compile"], "--train-data", "d.npz")


def test_loss_that_diverges(refused, mlp, tmp_path):
    save_data(tmp_path / "d.npz")
    options = ("--train-data", "d.npz", "--optimizer", "sgd", "--learning-rate", "1e30", "--epochs", "3")
    refused(TRAINING, ["learning rate"], "compile", mlp, *COMMANDS["compile"], *options)


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ([], ["'values' is missing", "'values' (float32 [2, 3])"]),
        ([("values", np.zeros((2, 3), np.float32)), ("ids", np.zeros(2, np.int32))], ["'ids' is int32", "int64"]),
        ([("values", np.zeros((3, 2), np.float32)), ("ids", np.zeros(2, int))], ["shape [3, 2]", "[2, 3]"]),
        ([("values", np.zeros((2, 3), np.float32)), ("idz", np.zeros(2, int))], ["'ids' is missing"]),
        ([("values", np.array([None] * 6))], ["values.npy", "not a .npy file of numbers"]),
        ([("values", b"")], ["values.npy", "not a .npy file of numbers"]),
        ([("values", None)], ["cannot read values.npy"]),
    ],
)
def test_run_with_inputs_that_do_not_fit(refused, artifact, tmp_path, inputs, words):
    arguments = []
    for name, array in inputs:
        if isinstance(array, bytes):
            (tmp_path / f"{name}.npy").write_bytes(array)
        elif array is not None:
            np.save(tmp_path / f"{name}.npy", array)
        arguments += ["--input", f"{name}={name}.npy"]
    refused(DATA, words, "run", artifact.directory, *arguments, "--output-dir", "out")


def test_run_with_an_input_that_is_no_assignment(refused, artifact):
    refused(USAGE, ["NAME=FILE.npy"], "run", artifact.directory, "--input", "x.npy", "--output-dir", "out")


# Outputs


@pytest.mark.parametrize("command", ["compile", "prune", "retrain", "compact", "lower"])
def test_output_that_exists_or_has_no_place(refused, mlp, mlp_data, tmp_path, command):
    options = COMMANDS[command][2:]
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "thesis.tex").write_text("precious")
    refused(ARTIFACT, "there exists", command, mlp, "-o", "there", *options)
    refused(ARTIFACT, "there is ", command, mlp, "-o", "there", *options, "--force")
    refused(ARTIFACT, "create it first", command, mlp, "-o", "no/where", *options)


def test_the_model_is_no_output_directory(refused, mlp):
    refused(ARTIFACT, "mlp.onnx is not an lwc artifact", "compile", mlp, "-o", mlp, "--force")


def test_read_only_directory(refused, mlp, monkeypatch):
    monkeypatch.setattr(artifact_module.os, "access", lambda path, mode: False)
    for command in ("compile", "prune"):
        refused(ARTIFACT, "is read-only", command, mlp, *COMMANDS[command])


@pytest.mark.parametrize("command", ["lower", "prune"])
def test_full_disk(mlp, tmp_path, command):
    """A limit on the size of files stands for the disk, temporary files included."""
    output = tmp_path / "output"
    output.mkdir()

    def enlarge(graph):
        weights = {"w1": (16, 400), "b1": (400,), "w2": (400, 300), "b2": (300,)}
        for tensor in graph.initializer:
            tensor.CopyFrom(numpy_helper.from_array(np.ones(weights[tensor.name], np.float32), tensor.name))
        graph.output[0].type.tensor_type.shape.dim[1].dim_value = 300

    edited(mlp, enlarge)
    done = subprocess.run(
        [sys.executable, "-m", "lwc_compiler", command, str(mlp), "-o", str(output / "x"), *COMMANDS[command][2:]],
        env={**os.environ, "TMPDIR": str(output)},
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 18, 1 << 18)),
        check=False,
    )
    assert done.returncode == ARTIFACT, done.stderr
    message = done.stderr.splitlines()[-1]
    assert message.startswith("error: ")
    assert "File too large" in message
    assert contents(output) == {}


# Artifacts


@pytest.mark.parametrize("command", ["run", "bench", "inspect"])
def test_damaged_artifact(refused, artifact, tmp_path, command):
    options = ("--output-dir", "out") if command == "run" else ()
    with artifact.library.open("ab") as file:
        file.write(b"x")
    refused(ARTIFACT, "libtwice.so was changed", command, artifact.directory, *options)
    (artifact.directory / "manifest.json").unlink()
    refused(ARTIFACT, "not an lwc artifact", command, artifact.directory, *options)


def test_bench_against_another_model(refused, artifact, mlp):
    refused(DATA, ["inputs x", "ids, values"], "bench", artifact.directory, "--against", mlp)


# The machine


def test_no_c_compiler(refused, mlp, monkeypatch, tmp_path):
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(link.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr("lwc_compiler.passes.pipeline.prune", lambda *_: pytest.fail("work began"))
    refused(TOOLCHAIN, ["C compiler", "lwc-compiler[zig]"], "compile", mlp, *COMMANDS["compile"])


def test_c_compiler_that_does_not_run(refused, mlp, monkeypatch):
    monkeypatch.setenv("CC", "/no/such/cc")
    refused(TOOLCHAIN, "/no/such/cc", "compile", mlp, *COMMANDS["compile"])


def test_code_that_computes_something_else(refused, mlp, monkeypatch):
    monkeypatch.setattr("lwc_compiler.runtime.verify.relative_error", lambda *_: 0.01)
    refused(VERIFICATION, ["output 'y'", "0.01"], "compile", mlp, *COMMANDS["compile"])


# Interruptions

STAGES = {
    "prune": "lwc_compiler.passes.pipeline.prune",
    "compact": "lwc_compiler.passes.pipeline.compact",
    "lower": "lwc_compiler.passes.lower.lower_static",
    "verify": "lwc_compiler.runtime.verify.verify",
    "hash": "lwc_compiler.runtime.artifact.FileEntry",
}


@pytest.mark.parametrize("stage", STAGES)
def test_interrupt_in_every_stage_keeps_the_old_artifact(lwc, mlp, tmp_path, monkeypatch, stage):
    assert lwc("lower", mlp, "-o", tmp_path / "out").code == 0
    before = contents(tmp_path)

    def interrupt(*_arguments, **_options):
        raise KeyboardInterrupt

    monkeypatch.setattr(STAGES[stage], interrupt)
    done = lwc("compile", mlp, "-o", tmp_path / "out", "--sparsity", "0.5", "--force")
    assert (done.code, done.out) == (130, "")
    assert done.err.endswith("interrupted: nothing was written\n")
    assert contents(tmp_path) == before


def not_ignoring_interrupts() -> None:
    """A shell starts its background jobs ignoring SIGINT, and what runs these tests may be one."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class Training:
    """`lwc retrain` in a process of its own, in the midst of an endless training."""

    def __init__(self, mlp, data, folder: Path) -> None:
        self.temporary = folder / "temporary"
        self.temporary.mkdir()
        command = [sys.executable, "-m", "lwc_compiler", "retrain", str(mlp), "-o", str(folder / "out.onnx")]
        command += ["--train-data", str(data), "--epochs", "1000000"]
        environment = {**os.environ, "TMPDIR": str(self.temporary)}
        self.process = subprocess.Popen(
            command, stderr=subprocess.PIPE, text=True, env=environment, preexec_fn=not_ignoring_interrupts
        )
        while not re.search(r"epoch [1-9]", line := self.process.stderr.readline()):
            assert line, "the training ended"
        (self.child,) = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()

    def end(self) -> str:
        """Waits; returns the last line on stderr."""
        _, text = self.process.communicate(timeout=60)
        return text.splitlines()[-1]

    def child_is_gone(self) -> bool:
        deadline = time.monotonic() + 20
        while Path(f"/proc/{self.child}").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        return not Path(f"/proc/{self.child}").exists()


@pytest.fixture
def training(mlp, mlp_data, tmp_path):
    training = Training(mlp, mlp_data, tmp_path)
    yield training
    training.process.kill()
    training.process.communicate()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signal_while_training(training, tmp_path, number, code):
    training.process.send_signal(number)
    assert training.end() == "interrupted: nothing was written"
    assert training.process.returncode == code
    assert training.child_is_gone()
    assert contents(training.temporary) == {}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data.npz", "mlp.onnx", "temporary"]


def test_training_child_killed(training, tmp_path):
    os.kill(int(training.child), signal.SIGKILL)
    assert training.end().startswith("error: ")
    assert training.process.returncode == TRAINING
    assert contents(training.temporary) == {}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data.npz", "mlp.onnx", "temporary"]
