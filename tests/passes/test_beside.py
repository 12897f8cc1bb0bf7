"""A network on images that lie side by side computes the same as on a batch."""

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

import lwc_compiler as lwc
from lwc_compiler.passes.beside import CONV, DOMAIN, beside
from lwc_compiler.passes.normalize import normalize

IMAGES = 8
NODE = helper.make_node


def constant(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)


def network(nodes: list[onnx.NodeProto], shape: tuple, out: tuple, batch: int, **constants: np.ndarray) -> lwc.Model:
    graph = helper.make_graph(
        nodes,
        "images",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, (batch, *shape))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, (batch, *out))],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return normalize(lwc.Model(proto, "images"), batch=batch, fold_batch_norm=True)


def with_plain_convolutions(model: lwc.Model) -> onnx.ModelProto:
    """The model with every `ConvBeside` as a Conv between two Transposes, which ONNX Runtime can run."""
    proto = onnx.ModelProto()
    proto.CopyFrom(model.proto)
    nodes = []
    for node in proto.graph.node:
        if node.domain != DOMAIN:
            nodes.append(node)
            continue
        assert node.op_type == CONV
        x, y = node.input[0], node.output[0]
        node.domain, node.op_type = "", "Conv"
        node.input[0], node.output[0] = f"{y} in", f"{y} out"
        nodes += [
            NODE("Transpose", [x], [f"{y} in"], perm=[3, 1, 0, 2]),
            node,
            NODE("Transpose", [f"{y} out"], [y], perm=[2, 1, 3, 0]),
        ]
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)
    onnx.checker.check_model(proto, full_check=True)
    return proto


def run(proto: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})[0]


NETWORKS = {
    "convolutions, pooling and products": (
        [
            NODE("Conv", ["x", "w1", "b1"], ["c1"], pads=[1, 1, 1, 1], strides=[2, 1]),
            NODE("Clip", ["c1", "low", "high"], ["r1"]),
            NODE("MaxPool", ["r1"], ["p1"], kernel_shape=[3, 2], strides=[2, 2], pads=[1, 0, 1, 1]),
            NODE("Conv", ["p1", "w2"], ["c2"], pads=[1, 1, 1, 1], group=2),
            NODE("Add", ["c2", "p1"], ["a"]),
            NODE("Mul", ["a", "per_channel"], ["m"]),
            NODE("Flatten", ["m"], ["f"]),
            NODE("Relu", ["f"], ["r2"]),
            NODE("Gemm", ["r2", "w3", "b3"], ["g"], transB=1, alpha=0.5, beta=2.0),
            NODE("Tanh", ["g"], ["t"]),
            NODE("MatMul", ["t", "w4"], ["n"]),
            NODE("Add", ["n", "b4"], ["s"]),
            NODE("Softmax", ["s"], ["y"], axis=1),
        ],
        (3, 12, 10), (5,),
        {
            "w1": constant(6, 3, 3, 3), "b1": constant(6), "low": np.float32(-1.0), "high": np.float32(1.5),
            "w2": constant(6, 3, 3, 3), "per_channel": constant(6, 1, 1), "w3": constant(7, 90), "b3": constant(7),
            "w4": constant(7, 5), "b4": constant(5),
        },
    ),
    "squeeze and excitation": (
        [
            NODE("GlobalAveragePool", ["x"], ["g"]),
            NODE("Conv", ["g", "w"], ["c"]),
            NODE("HardSigmoid", ["c"], ["s"]),
            NODE("Mul", ["x", "s"], ["y"]),
        ],
        (4, 5, 6), (4, 5, 6), {"w": constant(4, 4, 1, 1)},
    ),
    "means of windows and a concatenation": (
        [
            NODE("AveragePool", ["x"], ["a"], kernel_shape=[3, 3], pads=[1, 1, 1, 1], count_include_pad=1),
            NODE("AveragePool", ["x"], ["b"], kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
            NODE("GlobalMaxPool", ["x"], ["m"]),
            NODE("Concat", ["a", "b"], ["c"], axis=1),
            NODE("LRN", ["c"], ["l"], size=3),
            NODE("Conv", ["l", "w"], ["d"]),
            NODE("Sub", ["d", "m"], ["y"]),
        ],
        (4, 7, 5), (4, 7, 5), {"w": constant(4, 8, 1, 1)},
    ),
    "a flattened pixel": (
        [
            NODE("GlobalAveragePool", ["x"], ["g"]),
            NODE("Reshape", ["g", "flat"], ["f"]),
            NODE("Add", ["f", "b"], ["y"]),
        ],
        (6, 4, 4), (6,), {"flat": np.array([-1, 6]), "b": constant(6)},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", NETWORKS)
def test_computes_the_same(name: str) -> None:
    nodes, shape, out, constants = NETWORKS[name]
    whole = network(nodes, shape, out, IMAGES, **constants)
    turned = beside(network(nodes, shape, out, 1, **constants), 0, "x", IMAGES)
    assert turned is not None
    x = np.random.default_rng(1).standard_normal((IMAGES, *shape), np.float32)
    np.testing.assert_allclose(run(with_plain_convolutions(turned), x), run(whole.proto, x), rtol=1e-4, atol=1e-5)


IMPOSSIBLE = {
    "a transpose": ([NODE("Transpose", ["x"], ["y"], perm=[0, 1, 3, 2])], (3, 4, 4), (3, 4, 4), {}),
    "a constant for every pixel": ([NODE("Add", ["x", "c"], ["y"])], (3, 4, 4), (3, 4, 4), {"c": constant(3, 4, 4)}),
    "three dimensions": ([NODE("Relu", ["x"], ["y"])], (3, 4), (3, 4), {}),
    "a softmax over columns": ([NODE("Softmax", ["x"], ["y"], axis=3)], (3, 4, 4), (3, 4, 4), {}),
    "flattened pixels as a result": ([NODE("Flatten", ["x"], ["y"])], (3, 4, 4), (48,), {}),
    "a bias for every flattened pixel": (
        [NODE("Flatten", ["x"], ["f"]), NODE("Add", ["f", "b"], ["a"]), NODE("MatMul", ["a", "w"], ["y"])],
        (3, 4, 4), (5,), {"b": constant(48), "w": constant(48, 5)},
    ),
    "computed weights": (
        [NODE("Relu", ["x"], ["r"]), NODE("Conv", ["x", "r"], ["y"])], (3, 1, 1), (1, 1, 1), {},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", IMPOSSIBLE)
def test_says_what_has_no_such_form(name: str) -> None:
    nodes, shape, out, constants = IMPOSSIBLE[name]
    assert beside(network(nodes, shape, out, 1, **constants), 0, "x", IMAGES) is None
