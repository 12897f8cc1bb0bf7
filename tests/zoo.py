"""Real models, built or read the same way every time: `zoo.load(name)`, for every name in `zoo.NAMES`.

Random weights are He-normal (He et al. 2015, arXiv:1502.01852), drawn per tensor from its name, with BatchNorm
statistics near 0 and 1, and the layer before a softmax is scaled so that the logits have standard deviation 2: nothing
vanishes, overflows or saturates, so a wrong kernel shows in the outputs.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from benchmarks.models import lenet5, lenet300
from tests.wheels import read_member

Array = NDArray[Any]
LIGHT = (
    "bvlc_alexnet", "densenet121", "inception_v1", "inception_v2", "resnet50", "shufflenet", "squeezenet", "vgg19",
    "zfnet512",
)  # fmt: skip
_OCR = "rapidocr_onnxruntime/models/"
_WHEEL_MODELS = {
    "ppocr_v4_det": ("rapidocr", _OCR + "ch_PP-OCRv4_det_infer.onnx"),
    "ppocr_v4_rec": ("rapidocr", _OCR + "ch_PP-OCRv4_rec_infer.onnx"),
    "ppocr_v2_cls": ("rapidocr", _OCR + "ch_ppocr_mobile_v2.0_cls_infer.onnx"),
    "nudenet": ("nudenet", "nudenet/320n.onnx"),
    "magika": ("magika", "magika/models/standard_v3_3/model.onnx"),
}
_TORCH = ("resnet18", "mobilenet_v2", "encoder")

# Every dimension of the inputs of models with open ones; the sizes the models are used with.
SHAPES: dict[str, dict[str, tuple[int, ...]]] = {
    "ppocr_v4_det": {"x": (1, 3, 320, 320)},
    "ppocr_v4_rec": {"x": (1, 3, 48, 320)},
    "ppocr_v2_cls": {"x": (1, 3, 48, 192)},
    "nudenet": {"images": (1, 3, 320, 320)},
    "magika": {"bytes": (1, 2048)},
}


def generator(key: str) -> np.random.Generator:
    return np.random.default_rng(zlib.crc32(key.encode()))


def inputs(proto: onnx.ModelProto, shapes: dict[str, tuple[int, ...]] | None = None, seed: int = 0) -> dict[str, Array]:
    """Random values for the graph inputs of `proto`.

    Args:
        proto: any model.
        shapes: shapes of inputs with open dimensions.
        seed: other values for other seeds.
    """
    values: dict[str, Array] = {}
    initializers = {i.name for i in proto.graph.initializer}
    for value in proto.graph.input:
        if value.name in initializers:
            continue
        tensor = value.type.tensor_type
        shape = (shapes or {}).get(value.name) or tuple(d.dim_value for d in tensor.shape.dim)
        random = generator(f"{value.name}/{seed}")
        dtype = helper.tensor_dtype_to_np_dtype(tensor.elem_type)
        if np.issubdtype(dtype, np.floating):
            values[value.name] = random.standard_normal(shape).astype(dtype)
        else:
            values[value.name] = random.integers(0, 256, shape).astype(dtype)
    return values


# --- the models of the onnx package ----------------------------------------------------------------------------------


def _light(name: str) -> onnx.ModelProto:
    """A model of onnx/backend/test/data/light: its weights are ConstantOfShape nodes, here drawn at random."""
    path = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light" / f"light_{name}.onnx"
    proto = onnx.load(path)
    graph = proto.graph
    given = {i.name: numpy_helper.to_array(i) for i in graph.initializer}
    readers = _readers(graph)
    drawn, nodes = [], []
    for node in graph.node:
        if node.op_type == "ConstantOfShape":
            output = node.output[0]
            shape = tuple(int(d) for d in given.pop(node.input[0]))
            drawn.append(numpy_helper.from_array(_draw(f"{name}/{output}", shape, *readers[output]), output))
        else:
            nodes.append(node)
    kept = [i for i in graph.initializer if i.name in given]
    names = {i.name for i in graph.initializer}
    open_inputs = [i for i in graph.input if i.name not in names]
    del graph.node[:], graph.initializer[:], graph.input[:]
    graph.node.extend(nodes)
    graph.initializer.extend([*kept, *drawn])
    graph.input.extend(open_inputs)
    proto.ir_version = 4  # from which on initializers need not be inputs
    return _scale_logits(proto)


def _readers(graph: onnx.GraphProto) -> dict[str, tuple[str, int]]:
    """Value -> operator that reads it, and as which input; looking through Unsqueeze."""
    readers: dict[str, tuple[str, int]] = {}
    for node in reversed(graph.node):
        for index, name in enumerate(node.input):
            readers[name] = (node.op_type, index)
            if node.op_type == "Unsqueeze" and node.output[0] in readers:
                readers[name] = readers[node.output[0]]
    return readers


def _draw(key: str, shape: tuple[int, ...], operator: str, index: int) -> Array:
    random = generator(key)
    if operator in ("Conv", "Gemm") and index == 1:
        fan_in = math.prod(shape[1:])
        return random.standard_normal(shape, np.float32) * np.float32(math.sqrt(2 / fan_in))
    if (operator, index) in (("BatchNormalization", 1), ("BatchNormalization", 4), ("Mul", 1), ("Mul", 0)):
        return random.uniform(0.7, 1.0, shape).astype(np.float32)
    return random.standard_normal(shape, np.float32) * np.float32(0.1)


def _scale_logits(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Scales the layer that feeds the final softmax, if there is one, to logits of standard deviation 2."""
    import onnxruntime

    graph = proto.graph
    by_output = {o: n for n in graph.node for o in n.output}
    last = by_output[graph.output[0].name]
    while last.op_type in ("Reshape", "Flatten", "Softmax", "GlobalAveragePool", "Relu", "Squeeze"):
        last = by_output[last.input[0]]
    if last.op_type not in ("Conv", "Gemm"):
        return proto
    probe = onnx.ModelProto()
    probe.CopyFrom(proto)
    probe.graph.output.append(helper.make_tensor_value_info(last.output[0], TensorProto.FLOAT, None))
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(probe.SerializeToString(), options, providers=["CPUExecutionProvider"])
    (logits,) = session.run([last.output[0]], inputs(proto))
    factor = np.float32(2 / logits.std())
    for tensor in graph.initializer:
        if tensor.name in last.input[1:]:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * factor, tensor.name))
    return proto


# --- all of them -----------------------------------------------------------------------------------------------------


def _torch_export(name: str, *, dynamo: bool) -> onnx.ModelProto:
    from tests import torch_models  # PyTorch is needed for these models alone

    return torch_models.export(name, dynamo=dynamo)


def _wheel_model(wheel: str, member: str) -> onnx.ModelProto:
    return onnx.load_from_string(read_member(wheel, member))


_MODELS: dict[str, Callable[[], onnx.ModelProto]] = {
    "lenet300": lenet300,
    "lenet5": lenet5,
    **{f"light_{name}": lambda name=name: _light(name) for name in LIGHT},
    **{name: lambda where=where: _wheel_model(*where) for name, where in _WHEEL_MODELS.items()},
    **{f"{name}_dynamo": lambda name=name: _torch_export(name, dynamo=True) for name in _TORCH},
    **{f"{name}_torchscript": lambda name=name: _torch_export(name, dynamo=False) for name in _TORCH},
}
NAMES = tuple(_MODELS)
FROM_TORCH = tuple(f"{name}_{exporter}" for name in _TORCH for exporter in ("dynamo", "torchscript"))


def load(name: str) -> onnx.ModelProto:
    """Model `name`, one of `NAMES`."""
    return _MODELS[name]()
