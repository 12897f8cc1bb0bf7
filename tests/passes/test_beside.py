"""A network on images that lie side by side computes the same as on a batch."""

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

import lwc_compiler as lwc
from lwc_compiler.passes.beside import CONV, DOMAIN, Stretch, blocks_beside, images_beside
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
    """The model with every `ConvBeside` as a Conv of whole images, which ONNX Runtime can run."""
    proto = onnx.ModelProto()
    proto.CopyFrom(model.proto)
    infos = {value.name: value for value in (*proto.graph.input, *proto.graph.value_info, *proto.graph.output)}
    nodes = []
    for node in proto.graph.node:
        if node.domain != DOMAIN:
            nodes.append(node)
            continue
        assert node.op_type == CONV
        x, y = node.input[0], node.output[0]
        attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        grid = attributes.pop("grid", [1, 1])
        shapes = [[d.dim_value for d in infos[name].type.tensor_type.shape.dim] for name in (x, y)]
        proto.graph.initializer.extend(
            numpy_helper.from_array(np.array(value), f"{y} {name}")
            for name, value in {
                "split": [*shapes[0][:3], shapes[0][3] // (grid[0] * grid[1]), *grid],
                "image": [-1, shapes[0][1], shapes[0][0] * grid[0], shapes[0][2] * grid[1]],
                "blocks": [-1, shapes[1][1], grid[0], shapes[1][0], grid[1], shapes[1][2]],
                "joined": shapes[1],
            }.items()
        )
        nodes += [
            NODE("Reshape", [x, f"{y} split"], [f"{y} 1"]),
            NODE("Transpose", [f"{y} 1"], [f"{y} 2"], perm=[3, 1, 4, 0, 5, 2]),
            NODE("Reshape", [f"{y} 2", f"{y} image"], [f"{y} 3"]),
            NODE("Conv", [f"{y} 3", *node.input[1:]], [f"{y} 4"], **attributes),
            NODE("Reshape", [f"{y} 4", f"{y} blocks"], [f"{y} 5"]),
            NODE("Transpose", [f"{y} 5"], [f"{y} 6"], perm=[3, 1, 5, 0, 2, 4]),
            NODE("Reshape", [f"{y} 6", f"{y} joined"], [y]),
        ]
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)
    onnx.checker.check_model(proto, full_check=True)
    return proto


def whole_of(model: lwc.Model) -> Stretch:
    return Stretch(0, len(model.proto.graph.node), "x", ("y",))


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
    single = network(nodes, shape, out, 1, **constants)
    turned = images_beside(single, whole_of(single), IMAGES)
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
    single = network(nodes, shape, out, 1, **constants)
    assert images_beside(single, whole_of(single), IMAGES) is None


BLOCKS = {
    "convolutions": (
        [
            NODE("Conv", ["x", "w1", "b1"], ["c1"], pads=[1, 1, 1, 1], strides=[2, 1]),
            NODE("Relu", ["c1"], ["r1"]),
            NODE("Conv", ["r1", "w2"], ["c2"], pads=[2, 2, 2, 2], dilations=[2, 2], group=2),
            NODE("Add", ["c2", "r1"], ["a"]),
            NODE("MaxPool", ["a"], ["p"], kernel_shape=[2, 2], strides=[2, 2]),
            NODE("Mul", ["p", "per_channel"], ["m"]),
            NODE("Conv", ["m", "w3"], ["y"]),
        ],
        (3, 32, 16), (5, 8, 8),
        {
            "w1": constant(6, 3, 3, 3), "b1": constant(6), "w2": constant(6, 3, 3, 3),
            "per_channel": constant(6, 1, 1), "w3": constant(5, 6, 1, 1),
        },
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BLOCKS)
@pytest.mark.parametrize("grid", [(2, 2), (2, 4), (4, 2)])
def test_blocks_compute_the_same(name: str, grid: tuple[int, int]) -> None:
    nodes, shape, out, constants = BLOCKS[name]
    single = network(nodes, shape, out, 1, **constants)
    turned = blocks_beside(single, whole_of(single), grid)
    assert turned is not None
    x = np.random.default_rng(1).standard_normal((1, *shape), np.float32)
    np.testing.assert_allclose(run(with_plain_convolutions(turned), x), run(single.proto, x), rtol=1e-4, atol=1e-5)


NO_BLOCKS = {
    "a size that the grid does not divide": ([NODE("Relu", ["x"], ["y"])], (3, 6, 8), (3, 6, 8), {}),
    "a convolution that takes the edge away": (
        [NODE("Conv", ["x", "w"], ["y"])], (3, 8, 8), (4, 4, 4), {"w": constant(4, 3, 5, 5)},
    ),
    "windows across blocks": (
        [NODE("MaxPool", ["x"], ["y"], kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])],
        (3, 8, 8), (3, 4, 4), {},
    ),
    "a sum over pixels": ([NODE("GlobalAveragePool", ["x"], ["y"])], (3, 8, 8), (3, 1, 1), {}),
    "more padding than a neighbour has": (
        [NODE("Conv", ["x", "w"], ["y"], pads=[3, 3, 3, 3])], (3, 8, 8), (4, 8, 8), {"w": constant(4, 3, 7, 7)},
    ),
    "a flattened image": (
        [NODE("Flatten", ["x"], ["f"]), NODE("MatMul", ["f", "w"], ["y"])], (3, 8, 8), (4,), {"w": constant(192, 4)},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", NO_BLOCKS)
def test_says_what_blocks_cannot_compute(name: str) -> None:
    nodes, shape, out, constants = NO_BLOCKS[name]
    single = network(nodes, shape, out, 1, **constants)
    assert blocks_beside(single, whole_of(single), (4, 4)) is None
