"""Small models from ONNX text, and what ONNX Runtime computes on them."""

import numpy as np
import onnx
import onnxruntime
from onnx import helper, numpy_helper

from lwc_compiler.model import Model, working_copy


def model(text, weights=None, *, opset=17, ir_version=8):
    """A `Model` of the graph `text`; `weights` become float32 initializers (other types stay as they are)."""
    header = f'<ir_version: {ir_version}, opset_import: ["" : {opset}, "com.example" : 1]>'
    proto = onnx.parser.parse_model(f"{header}\n{text}")
    for name, value in (weights or {}).items():
        array = np.asarray(value)
        array = array.astype(np.float32) if array.dtype == np.float64 else array
        proto.graph.initializer.append(numpy_helper.from_array(array, name))
    onnx.checker.check_model(proto)
    return Model(proto, "case")


def random_inputs(proto, rng, open_size=2):
    feeds = {}
    for value in proto.graph.input:
        tensor = value.type.tensor_type
        shape = [dim.dim_value or open_size for dim in tensor.shape.dim]
        dtype = helper.tensor_dtype_to_np_dtype(tensor.elem_type)
        floating = dtype.kind == "f"
        feeds[value.name] = (rng.standard_normal(shape) if floating else rng.integers(0, 2, shape)).astype(dtype)
    return feeds


def run(proto, feeds):
    """Outputs of ONNX Runtime, without its own graph rewriting."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    data = working_copy(proto).SerializeToString()
    return onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"]).run(None, feeds)


def assert_same_outputs(before, after, rng, tolerance=1e-5, feeds=None):
    """Both graphs are valid and give the same outputs, up to `tolerance` x the largest value, on random inputs."""
    onnx.checker.check_model(after, full_check=True)
    assert [value.name for value in after.graph.input] == [value.name for value in before.graph.input]
    assert [value.name for value in after.graph.output] == [value.name for value in before.graph.output]
    feeds = random_inputs(after, rng) if feeds is None else feeds
    for expected, actual in zip(run(before, feeds), run(after, feeds), strict=True):
        assert actual.shape == expected.shape
        assert actual.dtype == expected.dtype
        np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance * max(np.abs(expected).max(), 1e-6))


def operators(proto):
    return [node.op_type for node in proto.graph.node]


def initializers(proto):
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}


def shapes(proto):
    """Name -> dimensions (numbers, names or None) of every tensor with a declared shape."""
    values = (*proto.graph.input, *proto.graph.output, *proto.graph.value_info)
    return {
        value.name: [dim.dim_param or (dim.dim_value if dim.HasField("dim_value") else None) for dim in dims]
        for value in values
        if (dims := value.type.tensor_type.shape.dim) is not None
    }
