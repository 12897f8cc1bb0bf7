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
from lwc_compiler.passes.prune import prune
from lwc_compiler.passes.retrain import current_pruning, retrain
from lwc_compiler.passes.sites import find_sites
from lwc_compiler.recipe.options import PruneOptions, RetrainOptions
from lwc_compiler.training.job import read_job
from lwc_compiler.training.loop import train


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


# -- what is trained, and what may change -----------------------------------------------------------------------------


@pytest.fixture
def in_process(monkeypatch):
    """Training runs in this process, which is faster."""
    monkeypatch.setattr(
        "lwc_compiler.training.child.run_worker", lambda directory, _: train(read_job(directory), print)
    )


@pytest.fixture
def mixed():
    """A convolution, and two fully connected layers; the bias of the last is an Add."""
    rng = np.random.default_rng(5)
    text = """<ir_version: 8, opset_import: ["" : 17]>
        net (float[n, 6] x) => (float[n, 3] y) {
            i = Reshape(x, shape) c = Conv(i, k, kb) r = Relu(c) f = Flatten(r)
            h = Gemm(f, w, wb) s = Relu(h) m = MatMul(s, v) y = Add(m, vb) }"""
    proto = onnx.parser.parse_model(text)
    shapes = {"k": (4, 1, 2, 2), "kb": (4,), "w": (8, 10), "wb": (10,), "v": (10, 3), "vb": (3,)}
    arrays = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    arrays["shape"] = np.array([-1, 1, 2, 3])
    for name, array in arrays.items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    for node, label in zip(
        proto.graph.node, ("to image", "conv_1", "r", "f", "dense_1", "s", "dense_2", "a"), strict=True
    ):
        node.name = label
    return prune(Model(proto, "mixed"), PruneOptions(sparsity=0.5, structure="2:4", keep_first=False))


FROZEN = {
    ("conv",): {"k", "kb"},
    ("fc",): {"w", "wb", "v", "vb"},
    ("dense_*",): {"w", "wb", "v", "vb"},
    ("dense_2",): {"v", "vb"},
    ("w", "k"): {"w", "wb", "k", "kb"},
}


@pytest.mark.parametrize("patterns", FROZEN, ids=str)
@pytest.mark.usefixtures("in_process")
def test_frozen_layers_stay_to_the_last_bit(mixed, digits, patterns):
    result = retrain(
        mixed, str(digits / "train.npz"), None, options(epochs=1, freeze=patterns, weight_decay=0.1, l1=0.1)
    )
    assert result.provenance[-1]["best_epoch"] == 1
    before, after = weights(mixed), weights(result)
    same = {name for name in before if np.array_equal(before[name], after[name])}
    assert same == FROZEN[patterns] | {"shape"}


@pytest.mark.parametrize(
    ("patterns", "message"),
    [
        (("conv", "fc"), "every layer is frozen"),
        (("*",), "every layer is frozen"),
        (("layer9",), "'layer9' matches no layer; there are 'k', 'w', 'v', and the kinds conv and fc"),
    ],
)
def test_freezing_all_or_nothing_is_refused(mixed, digits, patterns, message):
    with pytest.raises(OptionError, match=message):
        retrain(mixed, str(digits / "train.npz"), None, options(freeze=patterns))


@pytest.mark.parametrize("grow", ["shadow", "gradient"])
@pytest.mark.usefixtures("in_process")
def test_growth_keeps_density_and_structure_of_every_layer(mixed, digits, grow):
    result = retrain(mixed, str(digits / "train.npz"), None, options(grow=grow, mask_interval=2, learning_rate=0.1))
    after = weights(result)
    for site in find_sites(mixed.proto):
        mask = result.masks[site.weight]
        assert abs(int(mask.sum()) - int(mixed.masks[site.weight].sum())) <= 1
        assert not after[site.weight][~mask].any()
        channels = site.to_matrix(mask).reshape(site.matrix_shape[0], -1, site.positions)
        for start in range(0, channels.shape[1], 4):
            assert channels[:, start : start + 4].sum(axis=1).max() <= 2
    assert any((result.masks[name] != mask).any() for name, mask in mixed.masks.items())
    assert result.provenance[-1]["best_epoch"] > 0


def test_growth_needs_something_pruned(model, digits):
    with pytest.raises(OptionError, match="nothing is pruned, so nothing can grow back"):
        retrain(model, str(digits / "train.npz"), None, options(grow="shadow"))


def test_the_goal_of_growth_is_within_reach_of_the_structure(mixed):
    """Half of 15 weights are 8, which is more than half."""
    proto = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> net (float[n, 3] x) => (float[n, 5] y) { y = MatMul(x, w) }'
    )
    array = np.random.default_rng(0).normal(size=(3, 5)).astype(np.float32)
    proto.graph.initializer.append(onnx.numpy_helper.from_array(array, "w"))
    pruned = prune(Model(proto, "net"), PruneOptions(sparsity=0.5, structure="2:4", keep_first=False))
    assert int(pruned.masks["w"].sum()) == 8
    assert current_pruning(pruned).goal.densities == {"w": 0.5}
    assert current_pruning(mixed).goal.structure == "2:4"


@pytest.mark.usefixtures("in_process")
def test_dropout_is_adjusted_and_leaves_the_graph_alone(mixed, digits):
    result = retrain(mixed, str(digits / "train.npz"), None, options(epochs=1, dropout={"s": 0.5}))
    assert result.provenance[-1]["dropout"] == {"s": pytest.approx(0.5 * np.sqrt(0.5))}
    assert [node.op_type for node in result.proto.graph.node] == [node.op_type for node in mixed.proto.graph.node]
    fixed = retrain(mixed, str(digits / "train.npz"), None, options(epochs=1, dropout={"s": 0.5}, adjust_dropout=False))
    assert fixed.provenance[-1]["dropout"] == {"s": 0.5}


def test_dropout_after_nothing_is_refused(mixed, digits):
    with pytest.raises(OptionError, match="dropout: 'relu9' is no node"):
        retrain(mixed, str(digits / "train.npz"), None, options(dropout={"relu9": 0.5}))


@pytest.mark.usefixtures("in_process")
def test_a_codebook_leaves_few_values(mixed, digits):
    result = retrain(mixed, str(digits / "train.npz"), None, options(codebook={"fc": 3, "conv": 2}))
    after = weights(result)
    for name, bits in (("k", 2), ("w", 3), ("v", 3)):
        values = np.unique(after[name][result.masks[name]])
        assert len(values) <= 2**bits
        assert 0 not in values
        assert not after[name][~mixed.masks[name]].any()
