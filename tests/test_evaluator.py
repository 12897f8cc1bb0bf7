"""What replaces parts of ONNX's reference implementation, against ONNX Runtime."""

import numpy as np
import onnxruntime
import pytest
from onnx import helper

from lwc_compiler.evaluator import evaluator


@pytest.mark.parametrize(
    ("data", "indices", "axis"),
    [
        ((1, 512), (1, 32), 1),  # of BERT's buffer of token types, the first ones
        ((3, 40), (3, 40), 1),
        ((40, 3), (25, 3), 0),
        ((4, 50, 3), (4, 7, 3), -2),
        ((4, 5, 3), (2, 7, 3), 1),
        ((4, 3), (4, 3), None),
    ],
)
def test_gather_elements_takes_axes_of_any_length(data, indices, axis):
    rng = np.random.default_rng(0)
    x = rng.standard_normal(data).astype(np.float32)
    length = x.shape[axis or 0]
    at = rng.integers(-length, length, indices)
    node = helper.make_node("GatherElements", ["x", "at"], ["y"], **({} if axis is None else {"axis": axis}))
    values = [
        helper.make_tensor_value_info(name, kind, shape) for name, kind, shape in (("x", 1, data), ("at", 7, indices))
    ]
    graph = helper.make_graph([node], "g", values, [helper.make_tensor_value_info("y", 1, indices)])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (expected,) = session.run(None, {"x": x, "at": at})
    (found,) = evaluator(model).run(None, {"x": x, "at": at})
    assert np.array_equal(found, expected)
