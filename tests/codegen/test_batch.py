"""A batch is cut into stages where that is predicted to be faster, and computes the same either way."""

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

import lwc_compiler as lwc
from lwc_compiler.codegen.batch import cut_batch
from lwc_compiler.kernels.choice import predicted
from lwc_compiler.passes.normalize import normalize
from lwc_compiler.targets import find_target

IMAGES = {"x86-64-v3": 8, "x86-64-v4": 16}


def network(batch: int, size: int = 14, channels: int = 48) -> lwc.Model:
    """A residual block on large planes, one on small ones, and a product."""
    generator = np.random.default_rng(0)
    nodes, constants, x = [], {}, "x"

    def conv(given: str, inputs: int, stride: int = 1) -> str:
        name = f"c{len(nodes)}"
        weight = generator.standard_normal((channels, inputs, 3, 3)) * (
            generator.random((channels, inputs, 3, 3)) < 0.1
        )
        constants[f"{name}_w"] = weight.astype(np.float32)
        nodes.append(helper.make_node("Conv", [given, f"{name}_w"], [name], pads=[1] * 4, strides=[stride] * 2))
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
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, (batch, 3, 4 * size, 4 * size))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, (batch, 10))],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return normalize(lwc.Model(proto, "batch"), batch=batch, fold_batch_norm=True)


@pytest.mark.parametrize("target", IMAGES)
def test_small_planes_are_computed_side_by_side(target: str) -> None:
    images = IMAGES[target]
    first, last = cut_batch(network(2 * images), find_target(target), predicted)
    assert (first.runs, last.runs) == (2 * images, 2)
    assert len(first.layers) + len(last.layers) == 8
    assert len(first.layers) in (1, 2, 4, 5)  # not within a residual block
    between = first.rest.graph.output[0]
    assert between.name == last.rest.graph.input[0].name
    assert last.rest.graph.input[0].type.tensor_type.shape.dim[0].dim_value == images


def test_a_batch_that_fills_no_vector_runs_image_by_image() -> None:
    (part,) = cut_batch(network(6), find_target("x86-64-v4"), predicted)
    assert part.runs == 6
    (part,) = cut_batch(network(1), find_target("x86-64-v4"), predicted)
    assert part.runs == 1


def test_large_activations_are_not_laid_side_by_side() -> None:
    """Every layer of these images reads and writes more than the limit, but for the product at the end."""
    first, *rest = cut_batch(network(16, size=200, channels=24), find_target("x86-64-v4"), predicted)
    assert len(first.layers) >= 5
    assert sum(len(part.layers) for part in rest) <= 3


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_stages_compute_what_onnx_runtime_computes(tmp_path, threads: int) -> None:
    """`compile` compares with ONNX Runtime; more threads than runs of a stage, and fewer, agree bit for bit."""
    recipe = lwc.Recipe(lower=lwc.LowerOptions(target="x86-64", threads=threads))
    artifact = lwc.compile(network(32), tmp_path / "out", recipe)
    x = np.random.default_rng(1).standard_normal((32, 3, 56, 56), np.float32)
    with lwc.load(artifact.directory) as session, lwc.load(artifact.directory, threads=1) as alone:
        expected = alone.run({"x": x})["y"]
        assert np.array_equal(session.run({"x": x})["y"], expected)
        assert np.array_equal(np.roll(alone.run({"x": np.roll(x, 3, axis=0)})["y"], -3, axis=0), expected)
