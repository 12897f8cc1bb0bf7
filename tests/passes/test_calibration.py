"""Norms against what NumPy computes, and the sample of the data."""

import numpy as np
import pytest

from lwc_compiler.errors import DataError
from lwc_compiler.passes.calibration import input_norms, open_sample
from tests.passes.graphs import model


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def norms_of(graph, tmp_path, samples=1000, **inputs):
    np.savez(tmp_path / "data.npz", **inputs)
    return input_norms(graph, str(tmp_path / "data.npz"), samples, threads=1)


def norm(array, axis):
    return np.sqrt(np.square(array, dtype=np.float64).sum(axis=axis))


def test_perceptron(rng, tmp_path):
    first, second = rng.standard_normal((4, 6)), rng.standard_normal((4, 3))
    graph = model(
        "net (float[n, 6] x) => (float[n, 3] y) { h = Gemm<transB=1>(x, w1, b) r = Relu(h) y = MatMul(r, w2) }",
        {"w1": first, "w2": second, "b": rng.standard_normal(4)},
    )
    bias = next(t for t in graph.proto.graph.initializer if t.name == "b")
    x = rng.standard_normal((50, 6)).astype(np.float32)
    found = norms_of(graph, tmp_path, x=x)
    hidden = np.maximum(x @ first.T + np.frombuffer(bias.raw_data, np.float32), 0)
    assert {name: (array.shape, array.dtype) for name, array in found.items()} == {
        "w1": ((1, 6), np.float32),
        "w2": ((1, 4), np.float32),
    }
    np.testing.assert_allclose(found["w1"][0], norm(x, 0), rtol=1e-6)
    np.testing.assert_allclose(found["w2"][0], norm(hidden, 0), rtol=1e-5)


@pytest.mark.parametrize("operator", ["Conv", "ConvTranspose"])
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_convolutions(rng, tmp_path, operator, groups):
    shape = (8, 4 // groups, 3, 2) if operator == "Conv" else (4, 8 // groups, 3, 2)
    graph = model(
        f"net (float[n, 4, 5, 5] x) => (float[n, 8, h, w] y) {{ y = {operator}<group={groups}>(x, w0) }}",
        {"w0": rng.standard_normal(shape)},
    )
    x = rng.standard_normal((40, 4, 5, 5)).astype(np.float32) * np.arange(1, 5, dtype=np.float32)[:, None, None]
    found = norms_of(graph, tmp_path, x=x)["w0"]
    channels = norm(x, (0, 2, 3)).reshape(groups, 4 // groups)
    np.testing.assert_allclose(found, np.repeat(channels, 6, axis=1), rtol=1e-6)


@pytest.mark.parametrize(
    ("node", "weight", "x", "axis"),
    [
        ("Gemm(x, w0)", (5, 3), (7, 5), 0),
        ("Gemm<transB=1>(x, w0)", (3, 5), (7, 5), 0),
        ("Gemm<transA=1>(x, w0)", (7, 3), (7, 5), 1),
        ("Gemm(w0, x)", (3, 7), (7, 5), 1),
        ("Gemm<transA=1>(w0, x)", (7, 3), (7, 5), 1),
        ("Gemm<transB=1>(w0, x)", (3, 5), (7, 5), 0),
        ("MatMul(x, w0)", (5, 3), (7, 4, 5), (0, 1)),
        ("MatMul(w0, x)", (3, 4), (7, 4, 5), (0, 2)),
        ("MatMul(x, w0)", (5, 3), (7, 2, 4, 5), (0, 1, 2)),
    ],
)
def test_the_features_of_matrix_products(rng, tmp_path, node, weight, x, axis):
    dimensions = ", ".join(map(str, x))
    graph = model(f"net (float[{dimensions}] x) => (float[a] y) {{ y = {node} }}", {"w0": np.ones(weight)})
    del graph.proto.graph.output[0].type.tensor_type.shape.dim[:]
    graph.proto.graph.output[0].type.tensor_type.ClearField("shape")
    values = rng.standard_normal(x).astype(np.float32)
    found = norms_of(graph, tmp_path, x=values)["w0"]
    np.testing.assert_allclose(found, norm(values, axis)[None], rtol=1e-6)


@pytest.mark.parametrize(
    ("weight", "x", "expected"),
    [
        ((3, 5, 2), (7, 3, 4, 5), lambda x: norm(x, (0, 2))),
        ((1, 5, 2), (7, 3, 4, 5), lambda x: norm(x, (0, 1, 2))[None]),
        ((3, 5, 2), (7, 1, 4, 5), lambda x: np.repeat(norm(x, (0, 1, 2))[None], 3, axis=0)),
    ],
)
def test_a_batch_of_matrices_has_norms_of_its_own(rng, tmp_path, weight, x, expected):
    dimensions = ", ".join(map(str, x))
    graph = model(
        f"net (float[{dimensions}] x) => (float[7, 3, 4, 2] y) {{ y = MatMul(x, w0) }}", {"w0": np.ones(weight)}
    )
    values = rng.standard_normal(x).astype(np.float32)
    np.testing.assert_allclose(norms_of(graph, tmp_path, x=values)["w0"], expected(values), rtol=1e-6)


def test_nodes_that_share_a_weight_count_together(rng, tmp_path):
    graph = model(
        "net (float[n, 3] x) => (float[n, 3] y) { h = MatMul(x, w) r = Relu(h) y = MatMul(r, w) }",
        {"w": np.eye(3)},
    )
    x = rng.standard_normal((20, 3)).astype(np.float32)
    expected = np.sqrt(norm(x, 0) ** 2 + norm(np.maximum(x, 0), 0) ** 2)
    np.testing.assert_allclose(norms_of(graph, tmp_path, x=x)["w"][0], expected, rtol=1e-6)


def test_a_node_that_reads_the_transposed_weight_does_not_count(rng, tmp_path):
    graph = model(
        "net (float[n, 3] x) => (float[n, 3] y) { h = MatMul(x, w) t = Transpose(w) r = Relu(h) y = MatMul(r, t) }",
        {"w": np.eye(3)},
    )
    x = rng.standard_normal((20, 3)).astype(np.float32)
    np.testing.assert_allclose(norms_of(graph, tmp_path, x=x)["w"][0], norm(x, 0), rtol=1e-6)


def test_a_model_for_one_batch_size_gets_whole_batches(rng, tmp_path):
    graph = model("net (float[8, 3] x) => (float[8, 2] y) { y = MatMul(x, w) }", {"w": np.ones((3, 2))})
    x = rng.standard_normal((20, 3)).astype(np.float32)
    np.testing.assert_allclose(norms_of(graph, tmp_path, x=x)["w"][0], norm(x[:16], 0), rtol=1e-6)
    with pytest.raises(DataError, match="batches of 8 samples only, and the data has 5"):
        norms_of(graph, tmp_path, x=x[:5])


def test_a_sample_is_drawn_from_all_of_the_data_and_always_the_same(rng, tmp_path):
    graph = model("net (float[n, 1] x) => (float[n, 2] y) { y = MatMul(x, w) }", {"w": np.ones((1, 2))})
    path = tmp_path / "data.npz"
    np.savez(path, x=np.arange(1000, dtype=np.float32)[:, None], labels=np.arange(1000))
    first, second = (next(open_sample(graph.proto, str(path), 100).batches(200)) for _ in range(2))
    assert first.samples == 100
    np.testing.assert_array_equal(first.inputs["x"], second.inputs["x"])
    np.testing.assert_array_equal(first.inputs["x"][:, 0], first.labels)
    assert len(set(first.labels)) == 100
    assert first.labels.min() < 100
    assert first.labels.max() >= 900
    assert open_sample(graph.proto, str(path), 5000).samples == 1000


def stream():
    for start in range(0, 100, 7):
        yield {"x": np.arange(start, start + 7, dtype=np.float32)[:, None]}


def test_a_callable_gives_its_first_samples():
    graph = model("net (float[n, 1] x) => (float[n, 2] y) { y = MatMul(x, w) }", {"w": np.ones((1, 2))})
    sample = open_sample(graph.proto, f"{__name__}:stream", 40)
    assert sample.labels is None
    np.testing.assert_array_equal(next(sample.batches(100)).inputs["x"][:, 0], np.arange(40))


def test_an_input_that_is_named_like_labels_is_one(tmp_path):
    proto = model("net (float[n, 2] labels) => (float[n, 2] out) { out = MatMul(labels, w) }", {"w": np.eye(2)}).proto
    np.savez(tmp_path / "data.npz", labels=np.ones((5, 2), np.float32), y=np.zeros(5, np.int64))
    batch = next(open_sample(proto, str(tmp_path / "data.npz"), 3).batches(9))
    assert batch.inputs["labels"].shape == (3, 2)
    assert batch.labels.tolist() == [0, 0, 0]
