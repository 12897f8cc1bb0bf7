"""Softmax, normalization and means on a GPU: one launch each, with the numbers of ONNX Runtime."""

import numpy as np
import pytest

from benchmarks.models import Network
from lwc_compiler.codegen.assemble import assemble
from lwc_compiler.codegen.cuda_compiler import compile_all
from lwc_compiler.codegen.device_build import compile_device
from lwc_compiler.codegen.frontend import import_onnx
from lwc_compiler.codegen.program import BufferRef, ConstantRef, Stage
from lwc_compiler.kernels.kernel import Constant, Input, Output, Plan, Step
from lwc_compiler.model import Model
from lwc_compiler.passes.lower import tensor_specs
from lwc_compiler.passes.normalize import normalize
from lwc_compiler.runtime.reference import random_inputs, reference_session
from lwc_compiler.runtime.verify import relative_error
from lwc_compiler.targets import find_target
from tests.cuda_harness import Emulator
from tests.machine_code import check_resources
from tests.opencl_harness import Device, run_stage

ERROR = 1e-5  # of the output's scale: sums in another order, and a product with an inverse where ONNX divides


def axes(net: Network, *values: int) -> str:
    return net.constant(f"axes{values}", np.array(values, np.int64))


def number(net: Network, value: float) -> str:
    return net.constant(f"number{value:g}", np.array(value, np.float32))


def mean(net: Network, x: str, axis: int) -> str:
    return net.node("ReduceMean", x, axes=[axis])


def softmax(axis: int):
    return lambda net: net.node("Softmax", net.x, axis=axis)


def layer_norm(axis: int = -1, *, x: str = Network.x):
    """As exporters write it."""

    def build(net: Network) -> str:
        shape = [1] * len(net.shape)
        shape[axis] = net.shape[axis]
        centred = net.node("Sub", x, mean(net, x, axis))
        variance = mean(net, net.node("Pow", centred, number(net, 2)), axis)
        deviation = net.node("Sqrt", net.node("Add", variance, number(net, 1e-5)))
        scaled = net.node("Mul", net.node("Div", centred, deviation), net.random("scale", shape, 1.0))
        return net.node("Add", scaled, net.random("shift", shape, 1.0))

    return build


def rms_norm(net: Network) -> str:
    power = mean(net, net.node("Mul", net.x, net.x), -1)
    inverse = net.node("Reciprocal", net.node("Sqrt", net.node("Add", power, number(net, 1e-6))))
    return net.node("Mul", net.node("Mul", net.x, inverse), net.random("scale", net.shape[-1:], 1.0))


def residual_norm(net: Network) -> str:
    """The sum is read by the normalization alone, twice."""
    total = net.node("Add", net.x, net.random("residual", net.shape, 1.0))
    return layer_norm(x=total)(net)


def masked_softmax(net: Network) -> str:
    mask = net.constant("mask", np.arange(net.shape[-1]) % 3 > 0)
    scores = net.node("Where", mask, net.node("Mul", net.x, number(net, 0.5)), number(net, -np.inf))
    return net.node("Softmax", scores, axis=-1)


def normalization(operator: str, *, channels: int = 1, **attributes):
    def build(net: Network) -> str:
        shape = net.shape[channels:] if operator == "LayerNormalization" else net.shape[1:2]
        return net.node(operator, net.x, net.random("scale", shape, 1.0), net.random("shift", shape, 1.0), **attributes)

    return build


def pooled(net: Network) -> str:
    return net.node("Relu", net.node("GlobalAveragePool", net.x))


def alone(operator: str, **attributes):
    return lambda net: net.node(operator, net.x, **attributes)


# Rows of a thread, of a warp and of a block, too long for registers, odd, and across memory.
FUNCTIONS = {
    "softmax of few numbers": ((3, 7), softmax(-1)),
    "softmax of a thread each": ((5, 10, 90, 12), softmax(-1)),
    "softmax of a warp each": ((2, 3, 200, 130), softmax(-1)),
    "softmax of a block": ((2, 3001), softmax(-1)),
    "softmax of a long row": ((1, 20000), softmax(-1)),
    "softmax of channels, a thread each": ((2, 21, 50, 52), softmax(1)),
    "softmax of more channels, a thread each": ((2, 41, 50, 43), softmax(1)),
    "softmax of channels of few pixels": ((2, 130, 36), softmax(1)),
    "softmax of channels of more pixels": ((1, 70, 9, 232), softmax(1)),
    "softmax of channels of many pixels": ((4, 70, 32, 33), softmax(1)),
    "softmax of many channels": ((2, 1100, 5), softmax(1)),
    "log softmax": ((4, 50), alone("LogSoftmax", axis=-1)),
    "masked softmax": ((2, 40, 100), masked_softmax),
    "layer norm": ((1, 5, 768), layer_norm()),
    "layer norm across": ((1, 300, 20), layer_norm(1)),
    "layer norm of odd rows": ((3, 11, 77), layer_norm()),
    "layer norm of a sum": ((2, 40, 64), residual_norm),
    "layer norm, the operator": ((2, 9, 100), normalization("LayerNormalization", channels=2)),
    "layer norm of planes": ((2, 9, 10, 12), normalization("LayerNormalization", channels=2, axis=2)),
    "instance norm": ((2, 5, 9, 11), normalization("InstanceNormalization")),
    "rms norm": ((6, 50, 128), rms_norm),
    "mean of planes": ((2, 70, 7, 7), pooled),
    "norm of vectors": ((4, 33, 40), alone("LpNormalization", axis=1)),
    "sum of all": ((3, 50, 41), alone("ReduceSumSquare", keepdims=0)),
    "local response": ((2, 7, 9, 11), alone("LRN", size=5, alpha=0.1)),
    "local response of few channels": ((1, 3, 6, 5), alone("LRN", size=3, beta=0.6)),
    "largest": ((3, 50, 41), alone("ReduceMax", axes=[0, 2])),
}


def lowered(shape: tuple[int, ...], build) -> tuple[Model, Stage]:
    net = Network("rows", shape)
    proto = net.model(build(net), None)
    proto.opset_import[0].version = 17
    model = normalize(Model(proto, "rows"), fold_batch_norm=True)
    takes, gives = tensor_specs(model.proto.graph.input), tensor_specs(model.proto.graph.output)
    return model, assemble(import_onnx(model.proto), (), takes, gives, "rows", find_target("a100"))


def checked(device: Device, shape: tuple[int, ...], build) -> Stage:
    model, stage = lowered(shape, build)
    inputs = random_inputs(model.proto, tensor_specs(model.proto.graph.input), 0)
    outputs = run_stage(device, stage, inputs)
    expected = reference_session(model.proto, 1).run(list(outputs), inputs)
    for output, values in zip(outputs, expected, strict=True):
        assert relative_error(outputs[output], values) <= ERROR
    return stage


@pytest.mark.parametrize("name", FUNCTIONS)
def test_one_launch_computes_what_onnx_runtime_does(device, name) -> None:
    stage = checked(device, *FUNCTIONS[name])
    assert len(stage.calls) == 1


def test_the_cuda_text_computes_the_same(tmp_path) -> None:
    """Lanes show each other their sums there, and not through shared memory."""
    names = [name for name in FUNCTIONS if "long" not in name and "thread" not in name]
    cases = {name: lowered(*FUNCTIONS[name]) for name in names}
    emulator = Emulator({name: plan(stage) for name, (_, stage) in cases.items()}, tmp_path)
    for name, (model, _) in cases.items():
        inputs = random_inputs(model.proto, tensor_specs(model.proto.graph.input), 0)
        (expected,) = reference_session(model.proto, 1).run(None, inputs)
        found = emulator.run(name, [*inputs.values()], expected.shape)
        assert relative_error(found, expected) <= ERROR, name


def plan(stage: Stage) -> Plan:
    """The one call of a stage."""
    (call,) = stage.calls
    ((_, taken),) = stage.inputs

    def operand(ref: BufferRef | ConstantRef) -> Constant | Input | Output:
        if isinstance(ref, ConstantRef):
            return Constant(stage.constants[ref.index])
        return Input(0) if ref == taken else Output(0)

    return Plan((Step(stage.kernels[call.symbol], tuple(map(operand, call.args))),))


def test_machine_code_has_no_spills() -> None:
    kernels = {}
    for number, case in enumerate(FUNCTIONS.values()):
        _, stage = lowered(*case)
        kernels |= {f"k{number}_{symbol}": kernel for symbol, kernel in stage.kernels.items()}
    (code,) = compile_all(compile_device(kernels, "cuda"), [90], ptx=False)
    check_resources(code, kernels)


def test_products_and_windows_are_no_rows(device) -> None:
    def build(net: Network) -> str:
        scores = net.node("MatMul", net.x, net.node("Transpose", net.x, perm=[0, 2, 1]))
        return net.node("MaxPool", net.node("Unsqueeze", scores, axes(net, 1)), kernel_shape=[6, 6], strides=[2, 2])

    assert len(checked(device, (2, 40, 64), build).calls) > 1


def test_what_others_read_stays(device) -> None:
    """The mean and the centred values are read behind the pooling, which a later member must not wait for."""

    def build(net: Network) -> str:
        average = mean(net, net.x, -1)
        centred = net.node("Sub", net.x, average)
        pooled = net.node("MaxPool", centred, kernel_shape=[3], pads=[1, 1])
        variance = mean(net, net.node("Mul", centred, centred), -1)
        scaled = net.node("Div", centred, net.node("Sqrt", variance))
        return net.node("Add", net.node("Add", scaled, pooled), average)

    assert len(checked(device, (2, 40, 64), build).calls) == 2


def test_a_long_row_is_not_merged(device) -> None:
    """A row that no block can keep in registers is read again in any case, and by more blocks."""
    assert len(checked(device, (1, 2, 90, 180), lambda net: net.node("Mul", net.x, mean(net, net.x, -1))).calls) == 1
    build = lambda net: net.node("Mul", net.x, net.node("GlobalAveragePool", net.x))  # noqa: E731
    assert len(checked(device, (1, 2, 90, 180), build).calls) == 2
