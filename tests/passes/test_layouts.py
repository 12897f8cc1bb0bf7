"""Values in other orders of axes give the same outputs, and transpositions go where every node can do without."""

import numpy as np
import onnx
import pytest
from graphs import assert_same_outputs, operators
from onnx import TensorProto, helper, numpy_helper

import lwc_compiler as lwc
from lwc_compiler.passes.layouts import reorder_axes
from lwc_compiler.passes.normalize import normalize

TOKENS, WIDTH, HEADS = 40, 24, 4


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def sparse(*shape: int, density: float = 0.1) -> np.ndarray:
    generator = np.random.default_rng(shape)
    return (generator.standard_normal(shape) * (generator.random(shape) < density)).astype(np.float32)


def dense(*shape: int) -> np.ndarray:
    return sparse(*shape, density=1.0)


def network(nodes: list[tuple], constants: dict[str, np.ndarray], shapes: dict[str, list[int]], opset: int = 17):
    """Nodes (operator, inputs, outputs, attributes) from the inputs in `shapes` to y, normalized."""
    graph = helper.make_graph(
        [helper.make_node(operator, inputs, outputs, **attributes) for operator, inputs, outputs, attributes in nodes],
        "net",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items()],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    return normalize(lwc.Model(proto, "net"), batch=1, fold_batch_norm=True).proto


def linear(x: str, name: str, y: str) -> list[tuple]:
    return [("MatMul", [x, name], [f"{y} sum"], {"name": name}), ("Add", [f"{y} sum", f"{name} bias"], [y], {})]


def linear_constants(**sizes: tuple[int, int]) -> dict[str, np.ndarray]:
    weights = {name: sparse(*size) for name, size in sizes.items()}
    return weights | {f"{name} bias": dense(weight.shape[1]) for name, weight in weights.items()}


def encoder(batch: int, opset: int) -> onnx.ModelProto:
    """A layer of a transformer with one projection for queries, keys and values, and a mask."""
    nodes = [
        ("LayerNormalization", ["x", "scale", "shift"], ["n"], {}),
        *linear("n", "qkv", "all"),
        ("Split", ["all"], ["q", "k", "v"], {"axis": -1, **({"num_outputs": 3} if opset > 17 else {})}),
        *[("Reshape", [i, "heads"], [f"{i}h"], {}) for i in "qkv"],
        ("Transpose", ["qh"], ["qt"], {"perm": [0, 2, 1, 3]}),
        ("Transpose", ["kh"], ["kt"], {"perm": [0, 2, 3, 1]}),
        ("Transpose", ["vh"], ["vt"], {"perm": [0, 2, 1, 3]}),
        ("MatMul", ["qt", "kt"], ["s"], {}),
        ("Mul", ["s", "factor"], ["f"], {}),
        ("Add", ["f", "mask"], ["m"], {}),
        ("Softmax", ["m"], ["p"], {"axis": -1}),
        ("MatMul", ["p", "vt"], ["o"], {}),
        ("Transpose", ["o"], ["ot"], {"perm": [0, 2, 1, 3]}),
        ("Reshape", ["ot", "joined"], ["j"], {}),
        *linear("j", "out", "a"),
        ("Add", ["x", "a"], ["r"], {}),
        ("LayerNormalization", ["r", "scale"], ["n2"], {"axis": -1, "epsilon": 1e-3}),
        *linear("n2", "up", "h"),
        ("Tanh", ["h"], ["g"], {}),
        *linear("g", "down", "d"),
        ("Add", ["d", "r"], ["y"], {}),
    ]
    constants = linear_constants(
        qkv=(WIDTH, 3 * WIDTH), out=(WIDTH, WIDTH), up=(WIDTH, 2 * WIDTH), down=(2 * WIDTH, WIDTH)
    )
    constants |= {"scale": dense(WIDTH), "shift": dense(WIDTH), "factor": np.array(0.4, np.float32)}
    constants |= {
        "heads": np.array([batch, TOKENS, HEADS, WIDTH // HEADS]),
        "joined": np.array([batch, TOKENS, WIDTH]),
    }
    return network(nodes, constants, {"x": [batch, TOKENS, WIDTH], "mask": [batch, 1, 1, TOKENS]}, opset)


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("opset", [17, 18])
def test_a_transformer_is_transposed_at_its_ends_only(rng, batch: int, opset: int) -> None:
    before = encoder(batch, opset)
    after = reorder_axes(before)
    assert_same_outputs(before, after, rng, 1e-5)
    turned = [node for node in after.graph.node if node.op_type == "Transpose"]
    # Its input twice (normalized, and for the sum), the mask, the left side of the scores, its output.
    assert len(turned) <= 5
    assert sum(node.output[0] == "y" for node in turned) == 1


CASES = {
    "two axes": ([("Gemm", ["x", "w", "b"], ["y"], {"transB": 1})], {"w": sparse(30, 24), "b": dense(30)}, [40, 24]),
    "a bias of one row": ([("Gemm", ["x", "w", "b"], ["y"], {})], {"w": sparse(24, 30), "b": dense(1, 30)}, [40, 24]),
    "no bias": ([("Gemm", ["x", "w"], ["y"], {})], {"w": sparse(24, 30)}, [40, 24]),
    "small images": ([("MatMul", ["x", "w"], ["y"], {})], {"w": sparse(24, 30)}, [20, 3, 24]),
    "pictures": ([("MatMul", ["x", "w"], ["y"], {})], {"w": sparse(24, 30)}, [2, 7, 9, 24]),
    "channels first, between": (
        [
            ("Transpose", ["x"], ["t"], {"perm": [0, 2, 3, 1]}),
            *linear("t", "w", "h"),
            ("Relu", ["h"], ["r"], {}),
            *linear("r", "v", "o"),
            ("Transpose", ["o"], ["y"], {"perm": [0, 3, 1, 2]}),
        ],
        linear_constants(w=(24, 30), v=(30, 8)),
        [2, 24, 7, 9],
    ),
    "tokens first": (
        [
            ("Transpose", ["x"], ["t"], {"perm": [1, 0, 2]}),
            *linear("t", "w", "h"),
            ("Transpose", ["h"], ["y"], {"perm": [1, 0, 2]}),
        ],
        linear_constants(w=(24, 30)),
        [50, 2, 24],
    ),
    "a weight of two layers": (
        [("MatMul", ["x", "w"], ["h"], {}), ("Relu", ["h"], ["r"], {}), ("MatMul", ["r", "w"], ["y"], {})],
        {"w": sparse(24, 24)},
        [1, 40, 24],
    ),
    "mean over the tokens": (
        [*linear("x", "w", "h"), ("ReduceMean", ["h"], ["y"], {"axes": [1], "keepdims": 0})],
        linear_constants(w=(24, 30)),
        [2, 40, 24],
    ),
    "one more token": (
        [
            *linear("x", "w", "h"),
            *linear("x", "v", "g"),
            ("Concat", ["h", "g"], ["c"], {"axis": 1}),
            ("Concat", ["c", "h"], ["y"], {"axis": -2}),
        ],
        linear_constants(w=(24, 30), v=(24, 30)),
        [2, 40, 24],
    ),
    "what cannot be done in another order": (
        [*linear("x", "w", "h"), ("Slice", ["h", "start", "end"], ["s"], {}), ("CumSum", ["s", "one"], ["y"], {})],
        linear_constants(w=(24, 30)) | {"start": np.array([0]), "end": np.array([1]), "one": np.array(1)},
        [2, 40, 24],
    ),
    "a reshape across axes": (
        [*linear("x", "w", "h"), ("Reshape", ["h", "flat"], ["f"], {}), ("Relu", ["f"], ["y"], {})],
        linear_constants(w=(24, 30)) | {"flat": np.array([2, -1])},
        [2, 40, 24],
    ),
    "operands of different ranks and orders": (
        [
            *linear("x", "w", "h"),
            ("PRelu", ["h", "slope"], ["p"], {}),
            ("Mul", ["p", "x"], ["m"], {}),
            ("ReduceMax", ["m"], ["r"], {"axes": [-1], "keepdims": 1}),
            ("Sub", ["m", "r"], ["s"], {}),
            ("Softmax", ["s"], ["t"], {"axis": 1}),
            ("ReduceSum", ["t", "axes"], ["y"], {"keepdims": 0}),
        ],
        linear_constants(w=(24, 24)) | {"slope": dense(40, 1), "axes": np.array([2])},
        [2, 40, 24],
    ),
    "products of activations in every order": (
        [
            *linear("x", "w", "h"),
            ("Transpose", ["x"], ["t"], {"perm": [0, 2, 1]}),
            ("MatMul", ["h", "t"], ["a"], {}),
            ("MatMul", ["t", "h"], ["b"], {}),
            ("MatMul", ["a", "h"], ["c"], {}),
            ("MatMul", ["c", "b"], ["y"], {}),
        ],
        linear_constants(w=(24, 24)),
        [2, 40, 24],
    ),
}


@pytest.mark.parametrize(("nodes", "constants", "shape"), CASES.values(), ids=CASES)
def test_outputs_stay(rng, nodes: list[tuple], constants: dict[str, np.ndarray], shape: list[int]) -> None:
    before = network(nodes, constants, {"x": shape})
    after = reorder_axes(before)
    assert after is not before
    assert_same_outputs(before, after, rng, 1e-5)


def test_channels_first_around_sparse_layers_needs_no_transposition() -> None:
    nodes, constants, shape = CASES["channels first, between"]
    assert "Transpose" not in operators(reorder_axes(network(nodes, constants, {"x": shape})))


@pytest.mark.parametrize(
    ("weight", "shape"),
    [(dense(24, 30), [2, 40, 24]), (sparse(24, 30), [2, 16, 24]), (sparse(24, 30, density=0.6), [2, 40, 24])],
    ids=["dense", "few rows", "hardly pruned"],
)
def test_other_networks_are_left_alone(weight: np.ndarray, shape: list[int]) -> None:
    proto = network([("MatMul", ["x", "w"], ["y"], {})], {"w": weight}, {"x": shape})
    assert reorder_axes(proto) is proto


def test_a_weight_that_is_read_otherwise_too_is_left_alone() -> None:
    nodes = [("MatMul", ["x", "w"], ["h"], {}), ("Mul", ["h", "w"], ["y"], {})]
    proto = network(nodes, {"w": sparse(40, 40)}, {"x": [40, 40]})
    assert reorder_axes(proto) is proto
