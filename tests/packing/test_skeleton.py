import numpy as np
from onnx import TensorProto, helper, numpy_helper

from lwc_compiler.model import Model
from lwc_compiler.packing.skeleton import put_back, take_apart, tensors_of


def constant(output, size):
    return helper.make_node("Constant", [], [output], value=numpy_helper.from_array(np.ones(size, np.float32), "value"))


def model():
    """Initializers a (raw_data) and b (float_data), constants c and, in a branch between them, d and e."""
    info = helper.make_tensor_value_info("e", TensorProto.FLOAT, [16])
    branch = helper.make_graph([constant("d", 15), constant("e", 16)], "branch", [], [info])
    graph = helper.make_graph(
        [constant("c", 17), helper.make_node("If", ["flag"], ["y"], then_branch=branch, else_branch=branch)],
        "graph",
        [helper.make_tensor_value_info("flag", TensorProto.BOOL, [])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [16])],
        [
            numpy_helper.from_array(np.arange(32, dtype=np.int16), "a"),
            helper.make_tensor("b", TensorProto.FLOAT, [4, 4], np.arange(16, dtype=np.float32)),
        ],
    )
    return Model(helper.make_model(graph), "model")


def test_order_and_names():
    names = [name for name, _ in tensors_of(model().proto.graph)]
    assert names == ["a", "b", "c", "d", "e", "d", "e"]


def test_tensors_of_64_bytes_leave_the_graph():
    skeleton, payloads = take_apart(model())
    # d, with 60 bytes, is in places 3 and 5.
    assert {place: (field, elements.size) for place, (field, elements) in payloads.items()} == {
        0: (TensorProto.RAW_DATA_FIELD_NUMBER, 32),
        1: (TensorProto.FLOAT_DATA_FIELD_NUMBER, 16),
        2: (TensorProto.RAW_DATA_FIELD_NUMBER, 17),
        4: (TensorProto.RAW_DATA_FIELD_NUMBER, 16),
        6: (TensorProto.RAW_DATA_FIELD_NUMBER, 16),
    }
    for place, (_, tensor) in enumerate(tensors_of(skeleton.graph)):
        assert bool(tensor.raw_data or tensor.float_data) == (place not in payloads)


def test_put_back():
    skeleton, payloads = take_apart(model())
    put_back(skeleton, payloads)
    assert skeleton.SerializeToString(deterministic=True) == model().proto.SerializeToString(deterministic=True)
