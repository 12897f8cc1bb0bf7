"""A batch is cut into stages where that is predicted to be faster, and computes the same either way."""

import math
import re
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

import lwc_compiler as lwc
from lwc_compiler.codegen import batch
from lwc_compiler.codegen.batch import Part, cut_batch
from lwc_compiler.codegen.result import LayerDecision
from lwc_compiler.kernels.choice import Candidate, Pick, Task, predicted
from lwc_compiler.kernels.kernel import Plan, Trial
from lwc_compiler.passes.lower import lower_static
from lwc_compiler.passes.normalize import normalize
from lwc_compiler.passes.sites import node_label
from lwc_compiler.targets import find_target


def network(images: int, size: int = 14, channels: int = 48, *, pointwise: bool = False) -> lwc.Model:
    """A residual block on large planes, one on small ones, and a product; blocks of 3x3 or 1x1 convolutions."""
    generator = np.random.default_rng(0)
    nodes, constants, x = [], {}, "x"

    def conv(given: str, inputs: int, stride: int = 1) -> str:
        name, side = f"c{len(nodes)}", 1 if pointwise and stride == 1 and inputs > 3 else 3
        weight = generator.standard_normal((channels, inputs, side, side))
        weight *= generator.random(weight.shape) < 0.1
        constants[f"{name}_w"] = weight.astype(np.float32)
        pads, strides = [side // 2] * 4, [stride] * 2
        nodes.append(helper.make_node("Conv", [given, f"{name}_w"], [name], pads=pads, strides=strides))
        return name

    def then(op: str, *inputs: str, **attributes: int) -> str:
        nodes.append(helper.make_node(op, list(inputs), [f"{op}{len(nodes)}"], **attributes))
        return str(nodes[-1].output[0])

    x = then("Relu", conv(x, 3))
    for _ in range(2):
        x = then("Relu", conv(x, channels, stride=2))
        x = then("Relu", then("Add", conv(then("Relu", conv(x, channels)), channels), x))
    x = then("Flatten", then("GlobalAveragePool", x))
    constants["w"] = generator.standard_normal((channels, 10)).astype(np.float32)
    nodes.append(helper.make_node("MatMul", [x, "w"], ["y"]))
    graph = helper.make_graph(
        nodes,
        "batch",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, (images, 3, 4 * size, 4 * size))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, (images, 10))],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return normalize(lwc.Model(proto, "batch"), batch=images, fold_batch_norm=True)


def taking(*, images: float = 1.0, blocks: float = 1.0) -> Pick:
    """A pick for which a layer takes a second for an image alone, and these shares of it side by side."""

    def pick(task: Task, candidates: Sequence[Candidate]) -> Plan:
        seconds = 1.0
        # A product of images side by side is a convolution over them.
        if found := re.search(r"images=(8|16), grid=\(1, 1\)|in_size=\((8|16),\)", task.layer):
            seconds = images * int(found[1] or found[2])
        elif "images=" in task.layer and "images=1," not in task.layer:
            seconds = blocks
        return replace(predicted(task, candidates), trials=(Trial("", 0.0, seconds),))

    return pick


@pytest.fixture
def small_caches(monkeypatch):
    """The first two layers are too large to be computed side by side."""
    monkeypatch.setattr(batch, "_MOST_BYTES", 16 * 600_000)


@pytest.mark.usefixtures("small_caches")
def test_small_planes_are_computed_side_by_side_where_that_is_faster() -> None:
    first, last = cut_batch(network(32), find_target("x86-64-v4"), taking(images=0.9))
    assert (first.runs, last.runs) == (32, 2)
    assert (len(first.layers), len(last.layers)) == (2, 6)
    between = first.rest.graph.output[0]
    assert between.name == last.rest.graph.input[0].name
    assert last.rest.graph.input[0].type.tensor_type.shape.dim[0].dim_value == 16
    (part,) = cut_batch(network(32), find_target("x86-64-v4"), taking(images=1.1))
    assert (part.runs, len(part.layers)) == (32, 8)


def test_small_images_are_computed_side_by_side_from_the_start() -> None:
    (part,) = cut_batch(network(32), find_target("x86-64-v3"), taking(images=0.9))
    assert (part.runs, len(part.layers)) == (4, 8)


def steps(part: Part) -> list[str]:
    """The operators of a part; layers side by side by the shape they have there."""
    return [node.op_type for node in part.rest.graph.node]


def test_sparse_convolutions_are_computed_in_blocks_where_that_is_faster() -> None:
    """One image of 64 x 64: the last stage, 16 x 16, still has blocks of 4 x 4; pooling ends them."""
    (part,) = cut_batch(network(1, size=16), find_target("x86-64-v4"), taking(blocks=0.5))
    assert part.runs == 1
    assert steps(part)[:3] == ["Reshape", "Transpose", "Reshape"]
    assert steps(part)[-6:] == ["Reshape", "Transpose", "Reshape", "GlobalAveragePool", "Flatten", "LwcLayer"]
    assert steps(part).count("Transpose") == 2
    (part,) = cut_batch(network(1, size=16), find_target("x86-64-v4"), taking(blocks=1.5))
    assert "Transpose" not in steps(part)


def test_a_batch_may_have_stretches_of_all_kinds() -> None:
    """28 x 28 is cut in blocks, 14 x 14 is not: in a batch those images lie side by side."""
    first, last = cut_batch(network(16, size=28), find_target("x86-64-v4"), taking(blocks=0.5, images=0.9))
    assert (first.runs, last.runs) == (16, 1)
    assert steps(first).count("Transpose") == 2
    assert (len(first.layers), len(last.layers)) == (7, 1)


def test_a_batch_that_fills_no_vector_runs_image_by_image() -> None:
    (part,) = cut_batch(network(6), find_target("x86-64-v4"), predicted)
    assert part.runs == 6
    (part,) = cut_batch(network(1), find_target("x86-64-v4"), predicted)
    assert part.runs == 1


@pytest.mark.usefixtures("small_caches")
@pytest.mark.parametrize("threads", [1, 2, 5])
def test_stages_compute_what_onnx_runtime_computes(tmp_path, monkeypatch, threads: int) -> None:
    """`compile` compares with ONNX Runtime; more threads than runs of a stage, and fewer, agree bit for bit."""
    monkeypatch.setattr("lwc_compiler.kernels.choice.predicted", taking(blocks=0.5, images=0.4))
    recipe = lwc.Recipe(lower=lwc.LowerOptions(target="x86-64", threads=threads))
    artifact = lwc.compile(network(32), tmp_path / "out", recipe)
    x = np.random.default_rng(1).standard_normal((32, 3, 56, 56), np.float32)
    with lwc.load(artifact.directory) as session, lwc.load(artifact.directory, threads=1) as alone:
        expected = alone.run({"x": x})["y"]
        assert np.array_equal(session.run({"x": x})["y"], expected)
        assert np.array_equal(np.roll(alone.run({"x": np.roll(x, 3, axis=0)})["y"], -3, axis=0), expected)


@pytest.mark.usefixtures("small_caches")
def test_decisions_are_of_the_nodes_of_the_model(monkeypatch) -> None:
    """Whatever the layers were rewritten to: operators, weights and shapes are the user's, FLOPs those of the batch."""
    monkeypatch.setattr("lwc_compiler.kernels.choice.predicted", taking(blocks=0.5, images=0.4))
    model = network(32)
    lowered = lower_static(model, lwc.LowerOptions(target="x86-64-v4"))
    nodes = {node_label(node): node for node in model.proto.graph.node}
    weights = {tensor.name: tensor for tensor in model.proto.graph.initializer}
    assert len(lowered.layers) == len(weights)
    for decision in lowered.layers:
        node = nodes[decision.node]
        assert (decision.op, decision.site) == (node.op_type, node.input[1])
        assert decision.shape == tuple(weights[decision.site].dims)
        assert decision.dense_flops == 32 * expected_flops(decision)


def expected_flops(decision: LayerDecision) -> int:
    """Of an image: planes are 56, 28, 28, 28, 14, 14 and 14 pixels wide."""
    if decision.op == "MatMul":
        return 2 * math.prod(decision.shape)
    index = [0, 2, 4, 6, 9, 11, 13].index(int(decision.site.removeprefix("c").removesuffix("_w")))
    return 2 * math.prod(decision.shape) * (56, 28, 28, 28, 14, 14, 14)[index] ** 2
