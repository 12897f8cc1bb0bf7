"""The retrain pass through its training process."""

import os
import signal
from pathlib import Path

import numpy as np
import onnx
import pytest

from lwc_compiler import errors
from lwc_compiler.errors import DataError, ModelError, OptionError, TrainingError
from lwc_compiler.model import Model
from lwc_compiler.passes.retrain import retrain
from lwc_compiler.recipe import RetrainOptions


@pytest.fixture
def digits(tmp_path):
    """Three classes of points in six dimensions."""
    rng = np.random.default_rng(3)
    labels = rng.integers(0, 3, 300)
    x = (rng.normal(size=(300, 6)) * 0.3 + np.eye(6)[labels * 2]).astype(np.float32)
    np.savez(tmp_path / "train.npz", x=x[:250], labels=labels[:250])
    np.savez(tmp_path / "val.npz", x=x[250:], labels=labels[250:])
    np.save(tmp_path / "plain.npy", x)
    return tmp_path


@pytest.fixture
def model():
    """6 -> 16 -> 3 in opset 9 and IR version 4, with names and metadata of its user's own."""
    rng = np.random.default_rng(4)
    text = """<ir_version: 4, opset_import: ["" : 9], producer_name: "someone">
        net (float[n, 6] x) => (float[n, 3] probabilities) {
            h = Gemm <transB = 1> (x, "layer.0/weight", bias)
            r = Relu(h) m = MatMul(r, last) probabilities = Softmax(m) }"""
    proto = onnx.parser.parse_model(text.replace('"layer.0/weight"', "first"))
    proto.doc_string, proto.graph.node[0].name = "a model", "the first"
    proto.metadata_props.add(key="author", value="someone")
    for name, shape in (("first", (16, 6)), ("bias", (16,)), ("last", (16, 3))):
        proto.graph.initializer.append(onnx.numpy_helper.from_array(rng.normal(size=shape).astype(np.float32), name))
    return Model(proto, "net", {}, ({"pass": "normalize"},))


@pytest.fixture
def pruned(model):
    """The model with a third of its matrices."""
    proto, masks = onnx.ModelProto(), {}
    proto.CopyFrom(model.proto)
    for tensor in proto.graph.initializer:
        array = onnx.numpy_helper.to_array(tensor)
        if array.ndim == 2:
            masks[tensor.name] = np.abs(array) > np.quantile(np.abs(array), 2 / 3)
            tensor.CopyFrom(onnx.numpy_helper.from_array(array * masks[tensor.name], tensor.name))
    return Model(proto, "net", masks)


def weights(model):
    return {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.proto.graph.initializer}


def options(**changes):
    return RetrainOptions(**{"epochs": 4, "batch_size": 16, "threads": 1, "learning_rate": 0.01, **changes})


def children():
    return {
        int(child)
        for task in Path("/proc/self/task").iterdir()
        for child in (task / "children").read_text().split()
        if b"lwc_compiler.training.worker" in Path(f"/proc/{child}/cmdline").read_bytes()
    }


def test_pruned_weights_stay_zero_and_the_rest_of_the_model_stays_as_it_was(pruned, digits):
    seen = []
    result = retrain(pruned, str(digits / "train.npz"), str(digits / "val.npz"), options(), progress=seen.append)
    before, after = weights(pruned), weights(result)
    for name, mask in pruned.masks.items():
        assert not after[name][~mask].any()
        assert (after[name] != before[name])[mask].any()
    entry = result.provenance[-1]
    assert (entry["pass"], entry["loss"], entry["metric"]) == ("retrain", "cross-entropy", "accuracy")
    assert [epoch["epoch"] for epoch in entry["history"]] == [0, 1, 2, 3, 4]
    assert entry["history"][entry["best_epoch"]]["metric"] == max(epoch["metric"] for epoch in entry["history"])
    assert entry["history"][-1]["metric"] > entry["history"][0]["metric"]
    assert seen[0].epoch == 0
    assert (seen[-1].epoch, seen[-1].step, seen[-1].steps, seen[-1].epochs) == (4, 15, 15, 4)
    assert seen[-1].metric == entry["history"][-1]["metric"]
    for tensor in result.proto.graph.initializer:
        tensor.CopyFrom(onnx.numpy_helper.from_array(before[tensor.name], tensor.name))
    assert result.proto == pruned.proto
    assert result.masks == pruned.masks
    onnx.checker.check_model(result.proto)
    assert not children()


def test_plain_training_without_masks_and_without_validation_data(model, digits):
    result = retrain(model, str(digits / "train.npz"), None, options(epochs=8, learning_rate=0.03))
    assert result.provenance[0] == {"pass": "normalize"}
    assert max(epoch["metric"] for epoch in result.provenance[-1]["history"]) > 0.9


def test_distillation_needs_no_labels(model, pruned, digits):
    result = retrain(pruned, str(digits / "plain.npy"), None, options(temperature=2.0), teacher=model)
    entry = result.provenance[-1]
    assert entry["loss"] == "distillation"
    assert entry["history"][-1]["val_loss"] < 0.5 * entry["history"][0]["val_loss"]


def test_a_killed_run_is_resumed_bit_by_bit(pruned, digits, tmp_path):
    arguments = (str(digits / "train.npz"), str(digits / "val.npz"), options(epochs=5, optimizer="sgd"))
    whole = retrain(pruned, *arguments, workdir=tmp_path / "whole")

    def kill(progress):
        if progress.epoch == 3:
            for child in children():
                os.kill(child, signal.SIGKILL)

    with pytest.raises(TrainingError, match="ended by SIGKILL"):
        retrain(pruned, *arguments, workdir=tmp_path / "parts", progress=kill)
    seen = []
    parts = retrain(pruned, *arguments, workdir=tmp_path / "parts", progress=seen.append)
    assert min(progress.epoch for progress in seen) > 1
    assert parts.proto.SerializeToString() == whole.proto.SerializeToString()
    assert parts.provenance == whole.provenance


def test_a_finished_run_is_not_repeated(pruned, digits, tmp_path):
    arguments = (str(digits / "train.npz"), None, options(epochs=1))
    first = retrain(pruned, *arguments, workdir=tmp_path / "work")
    seen = []
    again = retrain(pruned, *arguments, workdir=tmp_path / "work", progress=seen.append)
    assert (seen, again.provenance, again.proto) == ([], first.provenance, first.proto)


def test_an_abort_of_the_process_is_an_error(pruned, digits):
    def abort(_):
        for child in children():
            os.kill(child, signal.SIGABRT)

    with pytest.raises(TrainingError, match="ended by SIGABRT") as caught:
        retrain(pruned, str(digits / "train.npz"), None, options(epochs=10000), progress=abort)
    assert "same work directory" in str(caught.value)


def test_interrupting_ends_the_process(pruned, digits):
    def interrupt(_):
        assert children()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        retrain(pruned, str(digits / "train.npz"), None, options(epochs=10000), progress=interrupt)
    assert not children()


BROKEN = """
import os
import numpy as np

def crash():
    print("to standard output")
    raise SystemExit("the disk of the data is gone")
    yield

def leave():
    os._exit(7)
"""


@pytest.mark.parametrize(("function", "said"), [("crash", "code 1.*the disk of the data is gone"), ("leave", "code 7")])
def test_the_last_words_of_a_process_are_in_the_error(pruned, digits, monkeypatch, function, said):
    monkeypatch.chdir(digits)
    (digits / "broken_stream.py").write_text(BROKEN, encoding="utf-8")
    with pytest.raises(TrainingError, match=f"(?s){said}"):
        retrain(pruned, f"broken_stream:{function}", str(digits / "val.npz"), options())


def test_a_callable_in_the_working_directory(pruned, digits, monkeypatch):
    monkeypatch.chdir(digits)
    body = "import numpy as np\n\ndef batches():\n    print('noise')\n    yield dict(np.load('train.npz'))\n"
    (digits / "own_stream.py").write_text(body, encoding="utf-8")
    result = retrain(pruned, "own_stream:batches", str(digits / "val.npz"), options(epochs=1))
    assert len(result.provenance[-1]["history"]) == 2


@pytest.mark.parametrize(
    ("data", "changes", "kind", "message"),
    [
        ("nowhere.npz", {}, DataError, "no such file"),
        ("plain.npy", {"loss": "cross-entropy"}, DataError, "needs labels"),
        ("plain.npy", {}, OptionError, "teacher"),
        ("train.npz", {"learning_rate": 1e20, "optimizer": "sgd"}, TrainingError, "diverged"),
    ],
)
def test_errors_of_the_process_come_back_as_they_are(pruned, digits, data, changes, kind, message):
    with pytest.raises(kind, match=message) as caught:
        retrain(pruned, str(digits / data), None, options(**changes))
    assert type(caught.value) in vars(errors).values()
    assert not children()


def test_a_work_directory_that_cannot_be_made(pruned, digits):
    (digits / "file").write_text("")
    with pytest.raises(TrainingError, match="cannot prepare"):
        retrain(pruned, str(digits / "train.npz"), None, options(), workdir=digits / "file" / "work")


def test_a_mask_that_does_not_fit(model, digits):
    wrong = Model(model.proto, "net", {"first": np.ones((3, 3), bool)})
    with pytest.raises(ModelError, match="mask of 'first'"):
        retrain(wrong, str(digits / "train.npz"), None, options())
