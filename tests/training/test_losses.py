"""Losses of every kind against float64 formulas."""

import numpy as np
import pytest
from onnx import TensorProto

from lwc_compiler.errors import DataError, OptionError, UnsupportedError
from lwc_compiler.recipe.options import RetrainOptions
from lwc_compiler.training.data import Batch, describe_labels
from lwc_compiler.training.graph import TrainingGraph
from lwc_compiler.training.losses import PER_SAMPLE, Head, find_head
from lwc_compiler.training.objective import Objective, choose_loss
from lwc_compiler.training.session import open_session

BATCH = 5


def log_softmax(z, axis):
    z = z - z.max(axis=axis, keepdims=True)
    return z - np.log(np.exp(z).sum(axis=axis, keepdims=True))


def losses(build, body, x, labels=None, teacher=None, outputs="y", **options):
    """The loss of every sample of a model without weights, y = body(x)."""
    dims = ",".join(map(str, x.shape))
    text = "(float[{}] x) => ({}) {{ {} }}"
    declared = ", ".join(f"float {name}" for name in outputs.split())
    graph = TrainingGraph(build(text.format(dims, declared, body), {}, opset=21), {})
    original = None if teacher is None else build(text.format(dims, declared, teacher), {}, opset=21)
    spec = None if labels is None else describe_labels(labels)
    objective = Objective(graph, BATCH, spec, RetrainOptions(threads=1, **options), original)
    batch = Batch({"x": x}, labels)
    session = open_session(graph.to_proto([PER_SAMPLE]), threads=1)
    feeds = {"x": x} | objective.targets(batch)
    return session.run(None, {value.name: feeds[value.name] for value in session.get_inputs()})[0], objective


@pytest.fixture
def z(rng):
    return (rng.normal(size=(BATCH, 4)) * 3).astype(np.float32)


@pytest.mark.parametrize("body", ["y = Neg(x)", "n = Neg(x) y = Softmax(n)", "n = Neg(x) y = LogSoftmax<axis=1>(n)"])
def test_cross_entropy_is_taken_before_a_last_softmax(build, rng, z, body):
    labels = rng.integers(0, 4, BATCH)
    found, objective = losses(build, body, z, labels)
    assert objective.kind == "cross-entropy"
    expected = -log_softmax(-z.astype(np.float64), 1)[np.arange(BATCH), labels]
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_a_softmax_of_flattened_rows_is_looked_through(build, rng):
    """So does the conversion from opsets before 13 write it."""
    body = "f = Flatten<axis=2>(x) s = Softmax(f) shape = Shape(x) y = Reshape(s, shape)"
    x = rng.normal(size=(BATCH, 2, 4)).astype(np.float32)
    _, objective = losses(build, body, x, rng.integers(0, 4, (BATCH, 2)))
    assert (objective.logits, objective.class_axis) == ("x", 2)


def written_out(shape, axis, *steps):
    """Steps after n = -x, with constants for the `axis` of a sum and the shapes it leaves and is filled up to."""
    kept = (*shape[:axis], 1, *shape[axis + 1 :])
    constants = [
        f"{name} = Constant<value = int64[{len(values)}] {{{', '.join(map(str, values))}}}>()"
        for name, values in (("axes", [axis]), ("kept", kept), ("whole", shape))
    ]
    return " ".join([*constants, "n = Neg(x)", *steps])


SHIFTED = "most = ReduceMax<keepdims=1>(n, axes) d = Sub(n, most) e = Exp(d)"
SHIFTED_BY_JAX = """
    most = ReduceMax<keepdims=0>(n, axes) lowest = Constant<value_float=-inf>() safe = Max(lowest, most)
    column = Reshape(safe, kept) wide = Expand(column, kept) d = Sub(n, wide) e = Exp(d)
"""
TOTAL = "total = ReduceSum<keepdims=1>(e, axes)"
TOTAL_OF_JAX = "sum = ReduceSum<keepdims=0>(e, axes) sums = Reshape(sum, kept) total = Expand(sums, whole)"


@pytest.mark.parametrize(("shape", "axis"), [((BATCH, 4), 1), ((BATCH, BATCH), 1), ((BATCH, 3, 2, 3), 1)])
@pytest.mark.parametrize(
    ("shift", "total"),
    [
        (SHIFTED, TOTAL),
        (SHIFTED_BY_JAX, TOTAL_OF_JAX),
        (SHIFTED, "s = ReduceSum<keepdims=0>(e, axes) total = Unsqueeze(s, axes)"),
    ],
)
@pytest.mark.parametrize(
    ("activation", "end"),
    [
        ("Softmax", "y = Div(e, total)"),
        ("Softmax", "p = Div(e, total) y = Reshape(p, whole)"),
        ("LogSoftmax", "l = Log(total) y = Sub(d, l)"),
    ],
)
def test_a_softmax_that_is_written_out_is_looked_through(build, rng, shape, axis, shift, total, activation, end):
    """Its rows are off by 300, so that no exponential of them is finite or none is left."""
    x = (rng.normal(size=shape) * 3 + 300 * rng.choice([-1, 1], (BATCH,) + (1,) * (len(shape) - 1))).astype(np.float32)
    body = written_out(shape, axis, shift, total, end)
    found, objective = losses(build, body, x, None, body.replace("Neg", "Abs"))
    head = objective.heads[0]
    assert (head.value, head.activation, head.axis) == ("n", activation, axis)
    assert objective.metric == "agreement"
    exact = x.astype(np.float64)
    p, q = log_softmax(np.abs(exact), axis), log_softmax(-exact, axis)
    expected = (np.exp(p) * (p - q)).sum(axis=axis).reshape(BATCH, -1).mean(axis=1)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "shift",
    ["d = Identity(n) e = Exp(d)", "first = Gather<axis=1>(n, axes) d = Sub(n, first) e = Exp(d)"],
    ids=["nothing", "another value"],
)
def test_logits_of_a_softmax_need_not_be_shifted_by_their_maximum(build, z, shift):
    """Softmax is the same for logits that differ by a number, so those before the exponential will do."""
    body = written_out(z.shape, 1, shift, TOTAL, "y = Div(e, total)")
    found, objective = losses(build, body, z, None, body.replace("Neg", "Abs"))
    assert objective.heads[0].activation == "Softmax"
    exact = z.astype(np.float64)
    p, q = log_softmax(np.abs(exact), 1), log_softmax(-exact, 1)
    np.testing.assert_allclose(found, (np.exp(p) * (p - q)).sum(axis=1), rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize(
    "steps",
    {
        "sum of other exponentials": [SHIFTED, "o = Exp(x) total = ReduceSum<keepdims=1>(o, axes) y = Div(e, total)"],
        "mean": [SHIFTED, "total = ReduceMean<keepdims=1>(e, axes) y = Div(e, total)"],
        "upside down": [SHIFTED, TOTAL, "y = Div(total, e)"],
        "no exponential": ["e = Abs(n)", TOTAL, "y = Div(e, total)"],
        "sum over everything": [SHIFTED, "total = ReduceSum<keepdims=1>(e) y = Div(e, total)"],
        "sum along another axis": [SHIFTED, "total = ReduceSum<keepdims=0>(e, axes) y = Div(e, total)"],
        "sums turned": [SHIFTED, TOTAL, "t = Reshape(total, whole_row) y = Div(e, t)"],
        "filled up along another axis": [
            SHIFTED,
            "sum = ReduceSum<keepdims=0>(e, axes) total = Expand(sum, whole) y = Div(e, total)",
        ],
        "clipped": [SHIFTED, TOTAL, "one = Constant<value_float=1.0>() c = Max(one, total) y = Div(e, c)"],
        "logarithm of one only": [SHIFTED, TOTAL, "l = Log(total) y = Div(e, l)"],
        "no logarithm": [SHIFTED, TOTAL, "y = Sub(d, total)"],
        "logarithm taken from other logits": [SHIFTED, TOTAL, "l = Log(total) y = Sub(x, l)"],
        "a softmax, and more": [SHIFTED, TOTAL, "p = Div(e, total) y = Add(p, p)"],
    }.items(),
    ids=lambda item: item[0],
)
def test_what_only_looks_like_a_softmax_is_left_alone(build, rng, steps):
    """Square inputs, so that every shape fits."""
    square = (BATCH, BATCH)
    row = f"whole_row = Constant<value = int64[2] {{1, {BATCH}}}>()"
    body = written_out(square, 1, row, *steps[1])
    graph = TrainingGraph(build(f"(float[{BATCH},{BATCH}] x) => (float y) {{ {body} }}", {}, opset=21), {})
    assert find_head(graph, "y") == Head("y", "y", "", None)


@pytest.mark.parametrize(("shape", "axis"), [((BATCH, 3, 2, 6), 1), ((BATCH, 7, 3), 2)])
def test_cross_entropy_of_many_positions_is_their_mean(build, rng, shape, axis):
    x = rng.normal(size=shape).astype(np.float32)
    labels = rng.integers(0, 3, shape[:axis] + shape[axis + 1 :])
    found, objective = losses(build, "y = Neg(x)", x, labels)
    picked = np.take_along_axis(-log_softmax(-x.astype(np.float64), axis), np.expand_dims(labels, axis), axis)
    np.testing.assert_allclose(found, picked.reshape(BATCH, -1).mean(axis=1), rtol=1e-5)
    right, count = objective.correct(-x, Batch({"x": x}, labels), {})
    assert (right, count) == (int(((-x).argmax(axis) == labels).sum()), labels.size)


def test_labels_may_have_a_last_dimension_of_one(build, rng, z):
    labels = rng.integers(0, 4, BATCH)
    plain, _ = losses(build, "y = Neg(x)", z, labels)
    column, _ = losses(build, "y = Neg(x)", z, labels[:, None])
    np.testing.assert_array_equal(plain, column)


def test_mse(build, rng, z):
    labels = rng.normal(size=z.shape).astype(np.float32)
    found, objective = losses(build, "y = Neg(x)", z, labels)
    assert objective.kind == "mse"
    np.testing.assert_allclose(found, ((-z.astype(np.float64) - labels) ** 2).mean(axis=1), rtol=1e-5)


@pytest.mark.parametrize("body", ["y = Identity(x)", "y = Sigmoid(x)"])
def test_bce_is_taken_before_a_last_sigmoid_and_is_finite_far_out(build, body):
    z = np.array([[0.0], [300.0], [-300.0], [2.0], [-1.0]], np.float32)
    labels = np.array([1, 0, 1, 1, 0])
    found, _ = losses(build, body, z, labels, loss="bce")
    exact = z.astype(np.float64)[:, 0]
    np.testing.assert_allclose(found, np.logaddexp(0, exact) - exact * labels, rtol=1e-5)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_distillation_of_classes(build, z, temperature):
    body, teacher = "n = Neg(x) y = Softmax(n)", "n = Mul(x, x) y = Softmax(n)"
    found, objective = losses(build, body, z, None, teacher, temperature=temperature)
    assert (objective.kind, objective.class_axis, objective.metric) == ("distillation", 1, "agreement")
    exact = z.astype(np.float64)
    p, q = (log_softmax(v / temperature, 1) for v in (exact**2, -exact))
    np.testing.assert_allclose(found, temperature**2 * (np.exp(p) * (p - q)).sum(axis=1) / 1, rtol=2e-5)


def test_distillation_with_class_labels_measures_accuracy(build, rng, z):
    labels = rng.integers(0, 4, BATCH)
    found, objective = losses(build, "y = Neg(x)", z, labels, "y = Mul(x, x)", loss="distillation")
    assert objective.class_axis == 1
    p, q = log_softmax(z.astype(np.float64) ** 2, 1), log_softmax(-z.astype(np.float64), 1)
    np.testing.assert_allclose(found, (np.exp(p) * (p - q)).sum(axis=1), rtol=2e-5)


def test_distillation_of_values_sums_the_heads(build, z):
    body = "y = Neg(x) two = Abs(x)"
    teacher = "y = Mul(x, x) two = Identity(x)"
    found, _ = losses(build, body, z, None, teacher, outputs="y two")
    exact = z.astype(np.float64)
    expected = ((-exact - exact**2) ** 2).mean(axis=1) + ((np.abs(exact) - exact) ** 2).mean(axis=1)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_a_sample_of_a_divergence_over_many_positions_is_their_mean(build, rng):
    x = rng.normal(size=(BATCH, 6, 3)).astype(np.float32)
    found, _ = losses(build, "n = Neg(x) y = Softmax(n)", x, None, "n = Mul(x, x) y = Softmax(n)")
    p, q = log_softmax(x.astype(np.float64) ** 2, 2), log_softmax(-x.astype(np.float64), 2)
    np.testing.assert_allclose(found, (np.exp(p) * (p - q)).sum(axis=2).mean(axis=1), rtol=2e-5)


@pytest.mark.parametrize("temperature", [1.0, 3.0])
@pytest.mark.parametrize("share", [0.3, 1.0])
def test_distillation_is_mixed_into_cross_entropy(build, rng, z, temperature, share):
    """(1 - a) x cross-entropy + a x T^2 KL."""
    labels = rng.integers(0, 4, BATCH)
    found, objective = losses(build, "y = Neg(x)", z, labels, "y = Mul(x, x)", distill=share, temperature=temperature)
    assert (objective.kind, objective.metric) == ("cross-entropy", "accuracy")
    exact = z.astype(np.float64)
    student = -log_softmax(-exact, 1)[np.arange(BATCH), labels]
    p, q = (log_softmax(v / temperature, 1) for v in (exact**2, -exact))
    taught = temperature**2 * (np.exp(p) * (p - q)).sum(axis=1)
    np.testing.assert_allclose(found, (1 - share) * student + share * taught, rtol=2e-5)


def test_distillation_is_mixed_into_squared_errors(build, rng, z):
    labels = rng.normal(size=z.shape).astype(np.float32)
    found, objective = losses(build, "y = Neg(x)", z, labels, "y = Mul(x, x)", distill=0.25)
    assert (objective.kind, objective.metric) == ("mse", "loss")
    exact = z.astype(np.float64)
    expected = 0.75 * (-exact - labels) ** 2 + 0.25 * (-exact - exact**2) ** 2
    np.testing.assert_allclose(found, expected.mean(axis=1), rtol=1e-5)


def test_distillation_is_mixed_into_binary_cross_entropy(build, rng, z):
    """The labels' loss is taken before the Sigmoid, the teacher's is the squared error of the probabilities."""
    labels = rng.random(z.shape).astype(np.float32)
    body, teacher = "n = Neg(x) y = Sigmoid(n)", "n = Mul(x, x) y = Sigmoid(n)"
    found, _ = losses(build, body, z, labels, teacher, loss="bce", distill=0.25)
    exact = z.astype(np.float64)
    student = np.logaddexp(0, -exact) + exact * labels
    ours, theirs = 1 / (1 + np.exp(exact)), 1 / (1 + np.exp(-(exact**2)))
    np.testing.assert_allclose(found, (0.75 * student + 0.25 * (ours - theirs) ** 2).mean(axis=1), rtol=1e-5)


def test_a_share_of_distillation_reads_the_first_output_only(build, rng, z):
    labels = rng.integers(0, 4, BATCH)
    body, teacher = "y = Neg(x) two = Abs(x)", "y = Mul(x, x) two = Identity(x)"
    both, _ = losses(build, body, z, labels, teacher, outputs="y two", distill=0.5)
    first, _ = losses(build, "y = Neg(x)", z, labels, "y = Mul(x, x)", distill=0.5)
    np.testing.assert_array_equal(both, first)


def test_agreement_counts_the_teacher_s_predictions(build, z):
    """Rows of -x and x^2 agree where the least of x is the one that is farthest from 0."""
    _, objective = losses(build, "n = Neg(x) y = Softmax(n)", z, None, "n = Mul(x, x) y = Softmax(n)")
    batch = Batch({"x": z}, None)
    targets = objective.targets(batch)
    expected = int((z.argmin(axis=1) == np.abs(z).argmax(axis=1)).sum())
    assert objective.correct(-z, batch, targets) == (expected, BATCH)
    assert objective.correct(-z[:2], Batch({"x": z[:2]}, None), targets)[1] == 2
    assert 0 < expected < BATCH


def test_a_share_of_distillation_needs_a_teacher(build, rng, z):
    with pytest.raises(OptionError, match="teacher"):
        losses(build, "y = Neg(x)", z, rng.integers(0, 4, BATCH), distill=0.5)


def test_auto():
    assert choose_loss("auto", None) == "distillation"
    assert choose_loss("auto", describe_labels(np.array([1, 2]))) == "cross-entropy"
    assert choose_loss("auto", describe_labels(np.array([1.0, 2.0]))) == "mse"


@pytest.mark.parametrize(
    ("labels", "options", "message"),
    [
        (None, {"loss": "mse"}, "needs labels"),
        (np.ones(BATCH), {"loss": "cross-entropy"}, "integer labels"),
        (np.full(BATCH, 4), {}, "has 4 classes"),
        (np.full(BATCH, -1), {}, "have to be 0 to 3"),
        (np.ones((BATCH, 3), int), {}, "fit output 'y'"),
        (np.ones((BATCH, 3)), {}, "do not fit output 'y'"),
        (np.full((BATCH, 4), 1.5), {"loss": "bce"}, "from 0 to 1"),
    ],
)
def test_labels_that_do_not_fit(build, z, labels, options, message):
    with pytest.raises(DataError, match=message):
        losses(build, "y = Neg(x)", z, labels, **options)


def test_distillation_needs_a_teacher(build, z):
    with pytest.raises(OptionError, match="teacher"):
        losses(build, "y = Neg(x)", z)


def test_a_temperature_needs_classes(build, z):
    with pytest.raises(OptionError, match="nothing says so"):
        losses(build, "y = Neg(x)", z, None, "y = Neg(x)", temperature=2.0)


def test_an_output_without_a_batch_is_refused(build, z):
    with pytest.raises(UnsupportedError, match="first dimension"):
        losses(build, "y = Transpose(x)", z, np.zeros(BATCH, int))


def test_an_integer_output_is_refused(build):
    graph = TrainingGraph(build("(float[5,4] x) => (int64 y) { y = ArgMax<axis=1, keepdims=0>(x) }", {}, opset=21), {})
    assert graph.types["y"] == TensorProto.INT64
    with pytest.raises(UnsupportedError, match="not float32"):
        Objective(graph, BATCH, describe_labels(np.zeros(BATCH, int)), RetrainOptions(), None)
