"""A batch runs image by image only where that cannot change the result."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import lwc_compiler as lwc
from lwc_compiler.passes.images import one_image, weights_outweigh
from lwc_compiler.passes.normalize import normalize

BATCH = 5


def model(
    nodes: list[onnx.NodeProto], shape: tuple[int, ...], out: tuple[int, ...], **constants: np.ndarray
) -> lwc.Model:
    """Nodes from `x` to `y`, normalized for a batch."""
    graph = helper.make_graph(
        nodes,
        "batch",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, out)],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return normalize(lwc.Model(proto, "batch"), batch=BATCH, fold_batch_norm=True)


def network() -> lwc.Model:
    """Convolution, pooling, a reshape to tokens and a product of activations."""
    generator = np.random.default_rng(0)
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("MaxPool", ["r"], ["p"], kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Reshape", ["p", "tokens"], ["t"]),
        helper.make_node("Transpose", ["t"], ["u"], perm=[0, 2, 1]),
        helper.make_node("MatMul", ["t", "u"], ["s"]),
        helper.make_node("Softmax", ["s"], ["a"], axis=-1),
        helper.make_node("ReduceMean", ["a"], ["y"], axes=[1], keepdims=0),
    ]
    weight = generator.standard_normal((8, 3, 3, 3), np.float32)
    return model(nodes, (BATCH, 3, 16, 16), (BATCH, 8), w=weight, tokens=np.array([BATCH, 8, 64]))


def test_gives_the_network_on_one_image() -> None:
    found = one_image(network())
    assert found is not None
    single, count = found
    assert count == BATCH
    assert [d.dim_value for d in single.proto.graph.input[0].type.tensor_type.shape.dim] == [1, 3, 16, 16]


@pytest.mark.parametrize("threads", [1, 2, 8])
def test_runs_every_image_as_the_batch_would(tmp_path, threads: int) -> None:
    """`compile` compares with ONNX Runtime on the batch; fewer and more threads than images agree bit for bit."""
    recipe = lwc.Recipe(lower=lwc.LowerOptions(threads=threads))
    artifact = lwc.compile(network(), tmp_path / "out", recipe)
    x = np.random.default_rng(1).standard_normal((BATCH, 3, 16, 16), np.float32)
    with lwc.load(artifact.directory) as session, lwc.load(artifact.directory, threads=1) as alone:
        assert np.array_equal(session.run({"x": x})["y"], alone.run({"x": x})["y"])
        moved = alone.run({"x": np.roll(x, 1, axis=0)})["y"]
        assert np.array_equal(np.roll(moved, -1, axis=0), alone.run({"x": x})["y"])


NODE = helper.make_node
DEPENDENT = {
    "softmax over the batch": ([NODE("Softmax", ["x"], ["y"], axis=0)], (BATCH, 6), (BATCH, 6), {}),
    "mean over the batch": (
        [NODE("ReduceMean", ["x"], ["m"], axes=[0]), NODE("Sub", ["x", "m"], ["y"])], (BATCH, 6), (BATCH, 6), {},
    ),
    "images of a constant": (
        [NODE("Mul", ["x", "c"], ["y"])], (BATCH, 6), (BATCH, 6), {"c": np.ones((BATCH, 6), np.float32)},
    ),
    "a transpose": (
        [NODE("Transpose", ["x"], ["t"], perm=[1, 0]), NODE("Relu", ["t"], ["y"])], (BATCH, BATCH), (BATCH, BATCH), {},
    ),
    "images as weights": (
        [NODE("Relu", ["x"], ["r"]), NODE("Conv", ["x", "r"], ["c"]), NODE("Relu", ["c"], ["y"])],
        (BATCH, 3, 4, 4), (BATCH, BATCH, 1, 1), {},
    ),
    "a product of images": (
        [NODE("Relu", ["x"], ["r"]), NODE("MatMul", ["x", "r"], ["y"])], (BATCH, BATCH), (BATCH, BATCH), {},
    ),
    "a reshape across images": (
        [
            NODE("Reshape", ["x", "s"], ["t"]),
            NODE("Softmax", ["t"], ["u"], axis=-1),
            NODE("Reshape", ["u", "o"], ["y"]),
        ],
        (BATCH, 6), (BATCH, 6), {"s": np.array([6, BATCH]), "o": np.array([BATCH, 6])},
    ),
    "an operator without a rule": ([NODE("CumSum", ["x", "c"], ["y"])], (BATCH, 6), (BATCH, 6), {"c": np.array(0)}),
}  # fmt: skip


@pytest.mark.parametrize("name", DEPENDENT)
def test_leaves_a_batch_whole_whose_images_depend_on_each_other(name: str) -> None:
    nodes, shape, out, constants = DEPENDENT[name]
    chain = [*_chain(), *(_reading(node, "x20") for node in nodes)]
    assert one_image(model(chain, shape, out, **constants)) is None


def test_the_chain_alone_would_run_image_by_image() -> None:
    assert one_image(model([*_chain(), NODE("Relu", ["x20"], ["y"])], (BATCH, 6), (BATCH, 6))) is not None


def _chain() -> list[onnx.NodeProto]:
    return [NODE("Sigmoid", [f"x{i}" if i else "x"], [f"x{i + 1}"]) for i in range(20)]


def _reading(node: onnx.NodeProto, name: str) -> onnx.NodeProto:
    """The node with `name` in the place of `x`."""
    changed = onnx.NodeProto()
    changed.CopyFrom(node)
    changed.input[:] = [name if value == "x" else value for value in node.input]
    return changed


def test_weights_outweigh_activations() -> None:
    weight = np.random.default_rng(0).standard_normal((64, 64), np.float32)
    found = one_image(model([NODE("MatMul", ["x", "w"], ["y"])], (BATCH, 64), (BATCH, 64), w=weight))
    assert found is not None
    assert weights_outweigh(found[0])
    found = one_image(network())
    assert found is not None
    assert not weights_outweigh(found[0])


def test_one_image_is_no_batch() -> None:
    nodes = [NODE("Relu", ["x"], ["y"])]
    graph = helper.make_graph(
        nodes,
        "one",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, (1, 6))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, (1, 6))],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    assert one_image(normalize(lwc.Model(proto, "one"), batch=1, fold_batch_norm=True)) is None
