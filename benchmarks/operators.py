"""Times every operator that is not a linear layer against ONNX Runtime's own: one thread, shapes of real networks.

Run: python benchmarks/operators.py [part of a case's name ...]

Both times are without the cost of a call (a call with no work; an ONNX Runtime session over one element), the lower
quartile of many runs, in alternation.
"""

from __future__ import annotations

import ctypes
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

from lwc_compiler.codegen.assemble import assemble
from lwc_compiler.codegen.frontend import import_onnx
from lwc_compiler.codegen.kernel_build import compile_kernels
from lwc_compiler.codegen.link import find_compiler, link_library
from lwc_compiler.codegen.program import BufferRef, Stage
from lwc_compiler.codegen.result import TensorSpec
from lwc_compiler.kernels.kernel import ALIGNMENT_BYTES, SLACK_BYTES
from lwc_compiler.targets import find_target

Arrays = dict[str, np.ndarray]


def op(kind: str, inputs: str, output: str = "y", **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(kind, inputs.split(), output.split(), **attributes)


def model(nodes: list[onnx.NodeProto], shapes: dict[str, tuple[int, ...]], constants: Arrays) -> onnx.ModelProto:
    """Graph inputs are the names in `shapes` (float32, or int64 for names that start with i)."""
    inputs = [
        helper.make_tensor_value_info(n, TensorProto.INT64 if n[0] == "i" else TensorProto.FLOAT, s)
        for n, s in shapes.items()
    ]
    outputs = [helper.make_empty_tensor_value_info(o) for o in nodes[-1].output]
    initializers = [numpy_helper.from_array(a, n) for n, a in constants.items()]
    graph = helper.make_graph(nodes, "operator", inputs, outputs, initializers)
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return onnx.shape_inference.infer_shapes(proto, strict_mode=True, data_prop=True)


def f32(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def i64(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


def pool(kind: str, kernel: int, stride: int, pad: int = 0) -> list[onnx.NodeProto]:
    return [op(kind, "x", kernel_shape=[kernel] * 2, strides=[stride] * 2, pads=[pad] * 4)]


LAYER_NORM = [
    op("ReduceMean", "x", "m", axes=[-1]), op("Sub", "x m", "d"), op("Mul", "d d", "s"),
    op("ReduceMean", "s", "v", axes=[-1]), op("Add", "v eps", "ve"), op("Sqrt", "ve", "r"), op("Div", "d r", "n"),
    op("Mul", "n g", "ng"), op("Add", "ng b"),
]  # fmt: skip
GELU = [
    op("Div", "x root", "a"),
    op("Erf", "a", "e"),
    op("Add", "e one", "p"),
    op("Mul", "x p", "q"),
    op("Mul", "q half"),
]
SILU = [op("Sigmoid", "x", "s"), op("Mul", "x s")]
GELU_CONSTANTS = {k: np.float32(v).reshape(()) for k, v in {"root": 2**0.5, "one": 1.0, "half": 0.5}.items()}
RESIZE = {"coordinate_transformation_mode": "asymmetric", "mode": "nearest", "nearest_mode": "floor"}
LINEAR = {"coordinate_transformation_mode": "half_pixel", "mode": "linear"}
UP2 = {"scales": np.array([1, 1, 2, 2], np.float32)}

Case = tuple[list[onnx.NodeProto], dict[str, tuple[int, ...]], Arrays]
CASES: dict[str, Case] = {
    "resnet50 maxpool 3x3 s2 64x112": (pool("MaxPool", 3, 2, 1), {"x": (1, 64, 112, 112)}, {}),
    "resnet50 add+relu 256x56": (
        [op("Add", "x z", "a"), op("Relu", "a")],
        {"x": (1, 256, 56, 56), "z": (1, 256, 56, 56)},
        {},
    ),
    "resnet50 relu 2048x7": ([op("Relu", "x")], {"x": (1, 2048, 7, 7)}, {}),
    "resnet50 global average 2048x7": ([op("GlobalAveragePool", "x")], {"x": (1, 2048, 7, 7)}, {}),
    "densenet bn+relu 256x56": (
        [op("BatchNormalization", "x g b m v", "a"), op("Relu", "a")],
        {"x": (1, 256, 56, 56)},
        {"g": f32(256), "b": f32(256), "m": f32(256), "v": abs(f32(256)) + 0.5},
    ),
    "densenet concat 64+32+32 56": (
        [op("Concat", "x z w", axis=1)],
        {"x": (1, 64, 56, 56), "z": (1, 32, 56, 56), "w": (1, 32, 56, 56)},
        {},
    ),
    "densenet avgpool 2x2 s2 128x56": (pool("AveragePool", 2, 2), {"x": (1, 128, 56, 56)}, {}),
    "inception maxpool 3x3 s1 192x28": (pool("MaxPool", 3, 1, 1), {"x": (1, 192, 28, 28)}, {}),
    "inception maxpool 3x3 s2 64x112": (pool("MaxPool", 3, 2), {"x": (1, 64, 112, 112)}, {}),
    "inception avgpool 3x3 s1 288x35": (pool("AveragePool", 3, 1, 1), {"x": (1, 288, 35, 35)}, {}),
    "inception lrn 64x56": ([op("LRN", "x", size=5, alpha=1e-4, beta=0.75, bias=1.0)], {"x": (1, 64, 56, 56)}, {}),
    "inception concat 4 28": (
        [op("Concat", "x z w u", axis=1)],
        {"x": (1, 64, 28, 28), "z": (1, 128, 28, 28), "w": (1, 32, 28, 28), "u": (1, 32, 28, 28)},
        {},
    ),
    "vgg maxpool 2x2 s2 64x224": (pool("MaxPool", 2, 2), {"x": (1, 64, 224, 224)}, {}),
    "mobilenet relu6 96x112": (
        [op("Clip", "x lo hi")],
        {"x": (1, 96, 112, 112)},
        {"lo": np.float32(0).reshape(()), "hi": np.float32(6).reshape(())},
    ),
    "mobilenet hardswish 16x160": ([op("HardSwish", "x")], {"x": (1, 16, 160, 160)}, {}),
    "senet hardsigmoid*x 96x40": (
        [op("HardSigmoid", "z", "s", alpha=1 / 6, beta=0.5), op("Mul", "x s")],
        {"x": (1, 96, 40, 40), "z": (1, 96, 1, 1)},
        {},
    ),
    "reduce mean hw 480x14": ([op("ReduceMean", "x", axes=[2, 3])], {"x": (1, 480, 14, 14)}, {}),
    "reduce mean c 64x80": ([op("ReduceMean", "x", axes=[1])], {"x": (1, 64, 80, 80)}, {}),
    "reduce max last 1000x256": ([op("ReduceMax", "x", axes=[1])], {"x": (1000, 256)}, {}),
    "ppocr sigmoid 640x640": ([op("Sigmoid", "x")], {"x": (1, 1, 640, 640)}, {}),
    "ppocr resize x2 96x80": ([op("Resize", "x r scales", **RESIZE)], {"x": (1, 96, 80, 80)}, {"r": f32(0), **UP2}),
    "resize bilinear x2 64x40": ([op("Resize", "x r scales", **LINEAR)], {"x": (1, 64, 40, 40)}, {"r": f32(0), **UP2}),
    "ppocr rec softmax 40x6625": ([op("Softmax", "x", axis=-1)], {"x": (1, 40, 6625)}, {}),
    "yolov8 silu 64x80": (SILU, {"x": (1, 64, 80, 80)}, {}),
    "yolov8 maxpool 5x5 s1 128x10": (pool("MaxPool", 5, 1, 2), {"x": (1, 128, 10, 10)}, {}),
    "yolov8 split 64x40": ([op("Split", "x", "y0 y1", axis=1)], {"x": (1, 64, 40, 40)}, {}),
    "yolov8 softmax 16 (1x16x4x2100)": ([op("Softmax", "x", axis=1)], {"x": (1, 16, 4, 2100)}, {}),
    "yolov8 transpose 4x16x2100": ([op("Transpose", "x", perm=[0, 2, 1, 3])], {"x": (1, 4, 16, 2100)}, {}),
    "yolov8 sigmoid 80x2100": ([op("Sigmoid", "x")], {"x": (1, 80, 2100)}, {}),
    "yolov8 concat last 64x(1600+400+100)": (
        [op("Concat", "x z w", axis=2)],
        {"x": (1, 64, 1600), "z": (1, 64, 400), "w": (1, 64, 100)},
        {},
    ),
    "bert softmax 12x128x128": ([op("Softmax", "x", axis=-1)], {"x": (1, 12, 128, 128)}, {}),
    "bert layernorm 128x768": (
        [op("LayerNormalization", "x g b", axis=-1)],
        {"x": (1, 128, 768)},
        {"g": f32(768), "b": f32(768)},
    ),
    "bert layernorm decomposed": (
        LAYER_NORM,
        {"x": (1, 128, 768)},
        {"eps": np.float32(1e-5).reshape(()), "g": f32(768), "b": f32(768)},
    ),
    "bert gelu 128x3072": (GELU, {"x": (1, 128, 3072)}, GELU_CONSTANTS),
    "bert tanh 128x768": ([op("Tanh", "x")], {"x": (1, 128, 768)}, {}),
    "bert exp 128x768": ([op("Exp", "x")], {"x": (1, 128, 768)}, {}),
    "bert bias+residual 128x768": (
        [op("Add", "x b", "a"), op("Add", "a z")],
        {"x": (1, 128, 768), "z": (1, 128, 768)},
        {"b": f32(768)},
    ),
    "bert transpose heads 128x12x64": ([op("Transpose", "x", perm=[0, 2, 1, 3])], {"x": (1, 128, 12, 64)}, {}),
    "bert transpose keys 128x12x64": ([op("Transpose", "x", perm=[0, 2, 3, 1])], {"x": (1, 128, 12, 64)}, {}),
    "transpose nchw-nhwc 64x56": ([op("Transpose", "x", perm=[0, 2, 3, 1])], {"x": (1, 64, 56, 56)}, {}),
    "transpose nhwc-nchw 56x64": ([op("Transpose", "x", perm=[0, 3, 1, 2])], {"x": (1, 56, 56, 64)}, {}),
    "bert embedding 128 of 30522x768": ([op("Gather", "t i", axis=0)], {"i": (1, 128)}, {"t": f32(30522, 768)}),
    "pad 64x56": ([op("Pad", "x p")], {"x": (1, 64, 56, 56)}, {"p": i64(0, 0, 1, 1, 0, 0, 1, 1)}),
    "slice step 2 64x56": (
        [op("Slice", "x s e a t")],
        {"x": (1, 64, 56, 56)},
        {"s": i64(0, 0), "e": i64(56, 56), "a": i64(2, 3), "t": i64(2, 2)},
    ),
    "argmax classes 21x128": ([op("ArgMax", "x", axis=1)], {"x": (1, 21, 128, 128)}, {}),
    "argmax last 40x6625": ([op("ArgMax", "x", axis=2)], {"x": (1, 40, 6625)}, {}),
    "instancenorm 64x56": (
        [op("InstanceNormalization", "x g b")],
        {"x": (1, 64, 56, 56)},
        {"g": f32(64), "b": f32(64)},
    ),
    "leakyrelu 128x28": ([op("LeakyRelu", "x", alpha=0.1)], {"x": (1, 128, 28, 28)}, {}),
    "prelu 128x28": ([op("PRelu", "x s")], {"x": (1, 128, 28, 28)}, {"s": f32(128, 1, 1)}),
    "depth to space 64x40": ([op("DepthToSpace", "x", blocksize=2)], {"x": (1, 64, 40, 40)}, {}),
}


def aligned(size: int) -> np.ndarray:
    memory = np.zeros(size + ALIGNMENT_BYTES + SLACK_BYTES, np.uint8)
    start = -memory.ctypes.data % ALIGNMENT_BYTES
    return memory[start : start + size]


class Ours:
    """The kernels of a program, called from Python."""

    def __init__(self, proto: onnx.ModelProto, folder: Path) -> None:
        start = time.perf_counter()
        module = import_onnx(proto)
        specs = [[_spec(v) for v in values] for values in (proto.graph.input, proto.graph.output)]
        self.stage: Stage = assemble(module, [], *specs, "op", find_target("host"))
        self.seconds = time.perf_counter() - start
        objects = {"kernels.o": compile_kernels(self.stage.kernels, find_target("host").llvm())}
        path = folder / f"lib{len(list(folder.iterdir()))}.so"
        path.write_bytes(link_library(find_compiler(), objects, hidden=("__truncsfhf2", "__extendhfsf2")))
        library = ctypes.CDLL(str(path))
        self.buffers = [aligned(size) for size in self.stage.buffers]
        constants = [aligned(c.nbytes) for c in self.stage.constants]
        for memory, constant in zip(constants, self.stage.constants, strict=True):
            memory[:] = np.ascontiguousarray(constant).reshape(-1).view(np.uint8)
        self.calls = []
        for call in self.stage.calls:
            kernel = self.stage.kernels[call.symbol]
            memory = [(self.buffers if isinstance(a, BufferRef) else constants)[a.index] for a in call.args]
            if kernel.thread_bytes:
                memory.append(aligned(kernel.thread_bytes))
                self.buffers.append(memory[-1])
            pointers = [ctypes.c_void_p(m.ctypes.data) for m in memory]
            self.calls.append((library[call.symbol], (*pointers, 0, kernel.tiles), (*pointers, 0, 0)))
        self._constants = constants

    def run(self) -> None:
        for function, args, _ in self.calls:
            function(*args)

    def run_nothing(self) -> None:
        for function, _, args in self.calls:
            function(*args)

    def set(self, inputs: Arrays) -> None:
        for spec, ref in self.stage.inputs:
            self.buffers[ref.index][:] = inputs[spec.name].reshape(-1).view(np.uint8)

    def outputs(self) -> list[np.ndarray]:
        pairs = [(s, r) for s, r in self.stage.outputs if isinstance(r, BufferRef)]
        return [self.buffers[r.index].view(s.dtype).reshape(s.shape).copy() for s, r in pairs]


def _spec(value: onnx.ValueInfoProto) -> TensorSpec:
    tensor = value.type.tensor_type
    dtype = helper.tensor_dtype_to_np_dtype(tensor.elem_type)
    return TensorSpec(value.name, str(dtype), tuple(d.dim_value for d in tensor.shape.dim))


class Theirs:
    """An ONNX Runtime session on one thread, with inputs and outputs bound."""

    def __init__(self, proto: onnx.ModelProto, inputs: Arrays) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self.session = ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
        self.binding = self.session.io_binding()
        self._values = [ort.OrtValue.ortvalue_from_numpy(a) for a in inputs.values()]
        for name, value in zip(inputs, self._values, strict=True):
            self.binding.bind_ortvalue_input(name, value)
        expected = self.session.run(None, inputs)
        for output, array in zip(self.session.get_outputs(), expected, strict=True):
            value = ort.OrtValue.ortvalue_from_numpy(np.zeros_like(array))
            self._values.append(value)
            self.binding.bind_ortvalue_output(output.name, value)
        self.expected = expected

    def run(self) -> None:
        self.session.run_with_iobinding(self.binding)


def lower_quartile(functions: list[Callable[[], None]], seconds: float) -> list[float]:
    """Microseconds of each function, run in turn."""
    times: list[list[float]] = [[] for _ in functions]
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times[0]) < 10:
        for function, own in zip(functions, times, strict=True):
            function()  # brings its data into the cache
            start = time.perf_counter()
            function()
            own.append(time.perf_counter() - start)
    return [sorted(own)[len(own) // 4] * 1e6 for own in times]


def main() -> None:
    wanted = sys.argv[1:]
    tiny = Theirs(model([op("Relu", "x")], {"x": (1,)}, {}), {"x": f32(1)})
    slow = []
    print(f"{'case':40} {'lwc us':>9} {'ort us':>9} {'ratio':>6}  {'error':>7} kernels  schedule ms")
    with tempfile.TemporaryDirectory() as folder:
        for name, case in CASES.items():
            if wanted and not any(w in name for w in wanted):
                continue
            proto = model(*case)
            rng = np.random.default_rng(1)
            inputs = {
                n: rng.integers(0, 30000, s) if n[0] == "i" else rng.standard_normal(s).astype(np.float32)
                for n, s in case[1].items()
            }
            theirs = Theirs(proto, inputs)
            ours = Ours(proto, Path(folder))
            ours.set(inputs)
            ours.run()
            error = max(
                float(np.abs(a.astype(np.float64) - b).max())
                for a, b in zip(ours.outputs(), theirs.expected, strict=True)
            )
            times = lower_quartile([ours.run, ours.run_nothing, theirs.run, tiny.run], 0.3)
            mine, other = max(times[0] - times[1], 0.1), max(times[2] - times[3], 0.1)
            ratio = mine / other
            if ratio > 1.3:
                slow.append(name)
            line = f"{name:40} {mine:9.1f} {other:9.1f} {ratio:6.2f}  {error:7.1e}"
            print(f"{line} {len(ours.calls):7}  {ours.seconds * 1e3:8.0f}", flush=True)
    print(f"{len(slow)} slower than 1.3 times ONNX Runtime: {slow}")


if __name__ == "__main__":
    main()
