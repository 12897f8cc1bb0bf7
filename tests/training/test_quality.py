import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from lwc_compiler.errors import DataError, UnsupportedError
from lwc_compiler.recipe.options import RetrainOptions
from lwc_compiler.training.quality import Judge

OPTIONS = RetrainOptions(batch_size=32, threads=1)


@pytest.fixture
def network():
    """Makes x (n, 3) -> MatMul -> y: each class is an input, weighted as given."""

    def make(*weights, batch="n", softmax=False):
        matrix = numpy_helper.from_array(np.diag(np.float32(weights)), "w")
        nodes = [helper.make_node("MatMul", ["x", "w"], ["logits"])]
        nodes.append(helper.make_node("Softmax" if softmax else "Identity", ["logits"], ["y"]))
        graph = helper.make_graph(
            nodes,
            "net",
            [helper.make_tensor_value_info("x", 1, [batch, 3])],
            [helper.make_tensor_value_info("y", 1, [batch, 3])],
            [matrix],
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)

    return make


@pytest.fixture
def points(tmp_path):
    """A file of 50 points; the label is the largest coordinate."""
    values = np.random.default_rng(0).uniform(1, 2, (50, 3)).astype(np.float32)

    def write(labels=True):
        path = tmp_path / "points.npz"
        np.savez(path, x=values, **({"labels": values.argmax(1)} if labels else {}))
        return str(path)

    write.values = values
    return write


def share_that_differs(values, *weights):
    return float(np.mean((values * np.float32(weights)).argmax(1) != values.argmax(1)))


@pytest.mark.parametrize("batch", ["n", 1, 16])
def test_accuracy_and_disagreement(network, points, batch):
    judge = Judge(network(1, 1, 1, batch=batch), None, points(), OPTIONS, disagreement=True)
    found = judge.judge(network(1, 1.2, 1, batch=batch))
    wrong = share_that_differs(points.values, 1, 1.2, 1)
    assert 0 < wrong < 1
    assert (found.metric, found.samples, found.dense) == ("accuracy", 50, 1.0)
    assert found.value == pytest.approx(1 - wrong)
    assert found.disagreement == pytest.approx(wrong)
    assert found.drop == pytest.approx(wrong)


def test_disagreement_is_with_the_model_not_with_the_labels(network, points):
    found = Judge(network(2, 1, 1), None, points(), OPTIONS, disagreement=True).judge(network(2, 1, 1))
    assert found.value == found.dense < 1
    assert found.disagreement == 0


@pytest.mark.parametrize("softmax", [False, True])
def test_agreement_needs_no_labels(network, points, softmax):
    data = points(labels=False)
    judge = Judge(network(1, 1, 1, softmax=softmax), None, data, OPTIONS, metric="agreement")
    found = judge.judge(network(1, 1.2, 1, softmax=softmax))
    assert (found.metric, found.dense) == ("agreement", 1.0)
    assert found.value == pytest.approx(1 - share_that_differs(points.values, 1, 1.2, 1))
    auto = Judge(network(1, 1, 1, softmax=softmax), None, data, OPTIONS)
    assert auto.metric == ("agreement" if softmax else "loss")


def test_loss_rises(network, points):
    judge = Judge(network(1, 1, 1), None, points(), OPTIONS, metric="loss")
    found = judge.judge(network(1, 2, 1))
    assert found.metric == "loss"
    assert found.drop == pytest.approx(found.value - found.dense)
    assert found.drop > 0
    assert found.disagreement is None


def test_without_validation_data_it_is_the_last_tenth(network, points):
    found = Judge(network(1, 1, 1), points(), None, OPTIONS).judge(network(1, 1, 1))
    assert found.samples == 5
    assert found.data.startswith("the last tenth of ")


def test_accuracy_without_labels_is_refused(network, points):
    with pytest.raises(DataError, match="no labels that are classes, which the metric 'accuracy' needs"):
        Judge(network(1, 1, 1), None, points(labels=False), OPTIONS, metric="accuracy")


def test_an_output_without_classes_is_refused(points, network):
    proto = network(1, 1, 1)
    proto.graph.node[1].CopyFrom(helper.make_node("Unsqueeze", ["logits", "axes"], ["y"]))
    proto.graph.initializer.append(numpy_helper.from_array(np.array([2]), "axes"))
    proto.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["n", 3, 1]))
    with pytest.raises(UnsupportedError, match=r"output 'y' of shape \(n, 3, 1\) does not tell which axis"):
        Judge(proto, None, points(labels=False), OPTIONS, disagreement=True)
