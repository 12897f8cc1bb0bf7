"""Networks for GPUs: what is launched computes what ONNX Runtime does; what is not lowered is refused in words."""

import json
from functools import partial

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

import lwc_compiler as lwc
from benchmarks.models import Network, alexnet, bert, lenet5, mobilenet_v2, resnet50
from lwc_compiler.codegen import cuda_compiler
from lwc_compiler.codegen.assemble import assemble
from lwc_compiler.codegen.batch import cut_batch
from lwc_compiler.codegen.cuda_compiler import compile_all
from lwc_compiler.codegen.device_build import check_launches, compile_device
from lwc_compiler.codegen.frontend import import_onnx
from lwc_compiler.codegen.layers import layer_call
from lwc_compiler.errors import OptionError, TargetError, ToolchainError, UnsupportedError
from lwc_compiler.kernels.choice import predicted
from lwc_compiler.kernels.kernel import Kernel, Launch
from lwc_compiler.model import Model
from lwc_compiler.passes.lower import lower, tensor_specs
from lwc_compiler.passes.normalize import normalize
from lwc_compiler.passes.pipeline import check_lowerable
from lwc_compiler.passes.prune import prune
from lwc_compiler.recipe.options import LowerOptions, PruneOptions
from lwc_compiler.runtime.reference import random_inputs, reference_session
from lwc_compiler.runtime.verify import TOLERANCE, relative_error
from lwc_compiler.targets import cuda, find_target
from tests.machine_code import check_resources
from tests.opencl_harness import run_stage

ARCHITECTURES = (find_target("cuda").gpu.architectures[0], find_target("cuda").gpu.architectures[-1])


def small_resnet():
    """Two blocks with shortcuts on planes of 32 x 32, and a classifier."""
    net = Network("small_resnet", (1, 3, 32, 32))
    x, inputs = net.max_pool(net.relu(net.conv(net.x, "stem", (3, 16), 7, 2, 3)), 3, 2, 1), 16
    for block, (outputs, stride) in enumerate(((16, 1), (40, 2))):
        y = net.relu(net.conv(x, f"{block}.first", (inputs, outputs), 3, stride, 1))
        y = net.conv(y, f"{block}.second", (outputs, outputs), 3, 1, 1)
        shortcut = x if stride == 1 else net.conv(x, f"{block}.shortcut", (inputs, outputs), 1, stride)
        x, inputs = net.relu(net.node("Add", y, shortcut)), outputs
    return net.model(net.classifier(net.node("GlobalAveragePool", x), (inputs, 30), ("fc",)), (1, 30))


def small_mobilenet():
    """A block with a depthwise convolution."""
    net = Network("small_mobilenet", (1, 3, 20, 20))
    x = net.relu6(net.conv(net.x, "stem", (3, 8), 3, 2, 1))
    y = net.relu6(net.conv(x, "expand", (8, 48), 1))
    y = net.conv(net.relu6(net.conv(y, "depthwise", (48, 48), 3, 1, 1, 48)), "project", (48, 8), 1)
    x = net.node("GlobalAveragePool", net.node("Add", x, y))
    return net.model(net.classifier(x, (8, 10), ("fc",)), (1, 10))


def operators():
    """Operators that are no linear layers, some of which a block of threads shares."""
    net = Network("operators", (1, 6, 10, 20))
    shape = net.constant("shape", np.array([1, 1200], np.int64))

    def integers(name, *values):
        return net.constant(name, np.array(values[0] if name == "axis" else values, np.int64))

    def vector(name):
        return net.random(name, (6,), 1.0)

    up = net.node("ConvTranspose", net.x, net.random("up", (6, 6, 2, 2), 0.3), strides=[2, 2])
    parts = [
        net.node("Softmax", net.node("Reshape", net.x, shape), axis=-1),
        net.node("ReduceSum", net.x),
        net.node("ReduceMax", net.x, axes=[1, 2]),
        net.node("Transpose", net.x, perm=[0, 2, 3, 1]),
        net.node("LRN", net.x, size=5),
        net.node("Sigmoid", net.node("AveragePool", up, kernel_shape=[3, 3], strides=[2, 2])),
        net.node("Concat", net.node("Exp", net.x), net.node("Neg", net.x), axis=2),
        net.node("Cast", net.node("ArgMax", net.x, axis=3), to=TensorProto.FLOAT),
        net.node("MatMul", net.x, net.node("Transpose", net.x, perm=[0, 1, 3, 2])),
        net.node("LogSoftmax", net.node("Tanh", net.x), axis=1),
        net.node("InstanceNormalization", net.x, vector("scale"), vector("shift")),
        net.node("Pad", net.x, integers("pads", 0, 1, 2, 0, 0, 0, 1, 3), mode="reflect"),
        net.node("Gather", net.x, integers("rows", 3, 0, 9, -1), axis=2),
        net.node("CumSum", net.x, integers("axis", 3)),
        net.node("Resize", net.x, "", net.constant("scales", np.array([1, 1, 2, 1.5], np.float32)), mode="linear"),
        net.node("Tile", net.node("Slice", net.x, integers("from", 1), integers("to", 5)), integers("n", 1, 1, 2, 1)),
        net.node("Where", net.node("Less", net.x, net.node("Abs", net.x)), net.x, net.node("Erf", net.x)),
        net.node("GlobalMaxPool", net.x),
        net.node("Atan", net.node("Tan", net.x)),
    ]
    flat = [net.node("Flatten", part, axis=0) for part in parts]
    return net.model(net.node("Concat", *flat, axis=1), (1, None))


def recurrent(kind: str, batch: int, *directions: str):
    """Layers on top of each other, each with the last states of the one before it, and a classifier."""
    time, hidden, gates = 5, 20, {"RNN": 1, "GRU": 3, "LSTM": 4}[kind]
    net = Network("recurrent", (time, batch, 12))
    x, inputs, states = net.x, 12, ["", ""]
    for number, direction in enumerate(directions):
        both = 1 + (direction == "bidirectional")
        names = [
            net.random(f"{number}.{name}", (both, *shape), 0.4)
            for name, shape in {
                "w": (gates * hidden, inputs), "r": (gates * hidden, hidden), "b": (2 * gates * hidden,)
            }.items()
        ]  # fmt: skip
        outputs = [f"{number}.{name}" for name in ("yhc" if kind == "LSTM" else "yh")]
        attributes = {"hidden_size": hidden, "direction": direction, "name": f"layer{number}"}
        attributes |= {"linear_before_reset": 1} if kind == "GRU" else {}
        given = [x, *names, "", *states[: len(outputs) - 1]]
        net.nodes.append(helper.make_node(kind, given, outputs, **attributes))
        x = net.node("Reshape", net.node("Transpose", outputs[0], perm=[0, 2, 1, 3]),
                     net.constant(f"{number}.shape", np.array([time, batch, both * hidden], np.int64)))  # fmt: skip
        states, inputs = [*outputs[1:], ""], both * hidden
    last = net.node("Gather", x, net.constant("last", np.array(time - 1)), axis=0)
    return net.model(net.classifier(last, (inputs, 7), ("fc",)), (batch, 7))


NETWORKS = {
    "lstm, sparse": (lambda: recurrent("LSTM", 1, "forward", "reverse"), 0.8, None),
    "lstm, dense": (lambda: recurrent("LSTM", 2, "bidirectional", "bidirectional"), 0.0, None),
    "gru, sparse": (lambda: recurrent("GRU", 9, "bidirectional"), 0.8, None),
    "rnn, sparse": (lambda: recurrent("RNN", 3, "forward", "forward", "forward"), 0.5, None),
    "lenet5, sparse": (lenet5, 0.9, 1),
    "lenet5, dense": (lenet5, 0.0, 3),
    "small_resnet, sparse": (small_resnet, 0.8, 2),
    "small_resnet, dense": (small_resnet, 0.0, 1),
    "small_mobilenet, sparse": (small_mobilenet, 0.6, 2),
    "bert, sparse": (lambda: bert(1, 128, 2, 72), 0.9, 1),
    "bert, dense": (lambda: bert(1, 64, 2, 80), 0.0, 2),
    "bert, few tokens": (lambda: bert(1, 64, 2, 40), 0.0, 1),
    "operators": (operators, 0.0, 1),
    "alexnet, sparse": (alexnet, 0.9, 1),
    "mobilenet_v2, sparse": (mobilenet_v2, 0.9, 1),
    "resnet50, sparse": (resnet50, 0.9, 1),
}


def network(make, sparsity: float, batch: int) -> Model:
    model = normalize(Model(make(), "net"), batch=batch, fold_batch_norm=True)
    return prune(model, PruneOptions(sparsity=sparsity)) if sparsity else model


def assembled(model: Model, target: str = "a100"):
    (part,) = cut_batch(model, find_target(target), predicted)
    takes, gives = tensor_specs(part.rest.graph.input), tensor_specs(part.rest.graph.output)
    return assemble(import_onnx(part.rest, layer_call), part.layers, takes, gives, "net_kernel", find_target(target))


@pytest.mark.parametrize("name", NETWORKS)
def test_launches_compute_what_onnx_runtime_does(device, name) -> None:
    model = network(*NETWORKS[name])
    stage = assembled(model)
    inputs = random_inputs(model.proto, tensor_specs(model.proto.graph.input), 0)
    outputs = run_stage(device, stage, inputs)
    expected = reference_session(model.proto, 1).run(list(outputs), inputs)
    for output, values in zip(outputs, expected, strict=True):
        assert relative_error(outputs[output], values) <= TOLERANCE


@pytest.mark.parametrize(
    ("name", "kernels", "turned"),
    [
        ("bert, sparse", ["gpu_attention"], 2),
        ("bert, dense", ["gpu_attention"], 0),
        ("bert, few tokens", ["gpu_batched", "softmax", "gpu_batched"], 0),
    ],
)
def test_products_take_what_is_around_them(name: str, kernels: list[str], turned: int) -> None:
    """Heads stay where they are: what is turned is for sparse layers, behind what is not turned yet."""
    stage = assembled(network(*NETWORKS[name]))
    names = [call.info.kernel for call in stage.calls]
    assert [name for name in names if name in {"gpu_attention", "gpu_batched", "softmax"}] == kernels
    assert sum(name.startswith("transpose") for name in names) == turned


@pytest.mark.parametrize("name", ["small_resnet, sparse", "bert, sparse", "operators", "lstm, sparse", "gru, sparse"])
def test_networks_compile_without_spills(name) -> None:
    stage = assembled(network(*NETWORKS[name]))
    for code in compile_all(compile_device(stage.kernels, "cuda"), ARCHITECTURES, ptx=False, threads=2):
        check_resources(code, stage.kernels)


def test_artifact(lwc, mlp, tmp_path) -> None:
    """`lwc compile` makes one, and says that nothing here could check it."""
    out = tmp_path / "mlp.lwc"
    done = lwc("compile", mlp, "-o", out, "--target", "cuda:sm_90", "--sparsity", 0.9)
    assert done.code == 0, done.err
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["target"] == "cuda:sm_90"
    kernels = {step["kernel"] for step in manifest["programs"][0]["steps"]}
    assert kernels == {"gpu_matvec_csr", "gpu_matvec_dense"}
    assert all("predicted fastest" in layer["why"] for layer in manifest["layers"])
    assert "NVRTC" in manifest["tools"]["compiler"]
    header = (out / "mlp.h").read_text()
    assert "mlp_create(int device, int *error)" in header
    assert "_WORKSPACE_" not in header


@pytest.mark.skipif(cuda.host_gpu() is not None, reason="there is a GPU here")
def test_without_a_gpu_an_artifact_is_refused_in_words(lwc, mlp, tmp_path) -> None:
    out = tmp_path / "mlp.lwc"
    assert lwc("compile", mlp, "-o", out, "--target", "t4").code == 0
    skipped = json.loads((out / "manifest.json").read_text())["verification"]["skipped"]
    assert skipped == "there is no GPU here that runs code for t4"
    done = lwc("bench", out)
    assert done.code == TargetError.exit_code
    assert "libcuda.so.1 cannot be loaded" in done.err


def test_the_same_network_gives_the_same_bytes(monkeypatch) -> None:
    """The text of the kernels stands for their machine code: of one text NVRTC makes another code once in a while."""

    def texts(source: str, architectures, **_further) -> list[cuda_compiler.Code]:
        return [cuda_compiler.Code(architecture, False, 13000, source.encode(), {}) for architecture in architectures]

    monkeypatch.setattr(cuda_compiler, "compile_all", texts)
    options = LowerOptions(target="cuda:sm_80")
    first, second = (lower(Model(lenet5(), "net"), options) for _ in range(2))
    assert first.library == second.library


def one_node(shape: tuple[int, ...]) -> Model:
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Neg", ["x"], ["y"])], "net", values[:1], values[1:])
    return Model(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), "net")


def test_tensors_beyond_indices_of_32_bits_are_refused() -> None:
    with pytest.raises(UnsupportedError, match=r"'x' has 4294967296 elements.*smaller batch"):
        lower(one_node((2**16, 2**16)), LowerOptions(target="cuda:sm_80"))


@pytest.mark.parametrize(
    ("target", "precision", "said"),
    [
        ("x86-64-v3", "float16", "precision float16: x86-64-v3 computes in float32; the others are for GPUs"),
        ("t4", "tf32", "precision tf32: t4 has code for sm_75, whose tensor cores take float16; give float16, or a"),
        ("cuda", "bfloat16", "precision bfloat16: cuda has code for sm_75, .* or a target from sm_80 on"),
    ],
)
def test_precisions_that_a_target_has_not_are_refused(lwc, mlp, tmp_path, target, precision, said) -> None:
    with pytest.raises(OptionError, match=said):
        lower(one_node((2, 3)), LowerOptions(target=target, precision=precision))
    done = lwc("compile", mlp, "-o", tmp_path / "out", "--target", target, "--precision", precision)
    assert done.code == OptionError.exit_code
    assert "precision" in done.err
    assert not (tmp_path / "out").exists()


def test_a_precision_reaches_the_kernels(lwc, mlp, tmp_path) -> None:
    out = tmp_path / "mlp.lwc"
    done = lwc("compile", mlp, "-o", out, "--target", "h100", "--batch", 2048, "--precision", "bfloat16")
    assert done.code == 0, done.err
    manifest = json.loads((out / "manifest.json").read_text())
    assert "gpu_mma" in {step["kernel"] for step in manifest["programs"][0]["steps"]}
    assert manifest["verification"]["tolerance"] == 2**-4


def test_blocks_of_a_network_go_to_tensor_cores() -> None:
    model = normalize(Model(small_resnet(), "net"), batch=4, fold_batch_norm=True)
    pruned = prune(model, PruneOptions(sparsity=0.8, structure="16x1"))
    lowered = lower(pruned, LowerOptions(target="cuda:sm_90", precision="float16"))
    used = {step.node for step in lowered.programs[0].steps if step.kernel == "gpu_mma_blocks"}
    assert used >= {"conv_5", "conv_10"}
    assert {layer.format for layer in lowered.layers if layer.node in used} == {"16x1"}
    assert lowered.library is not None


@pytest.mark.parametrize("gpu", [None, {"capability": 75}])
def test_measuring_needs_a_gpu_that_runs_the_code(monkeypatch, gpu) -> None:
    monkeypatch.setattr(cuda, "host_gpu", lambda: gpu)
    asked = LowerOptions(target="a100", tune=3)
    for refuses in (lower, partial(check_lowerable, thorough=False)):  # the latter before any training
        with pytest.raises(OptionError, match="tune 3: this machine cannot measure kernels for a100, it lacks sm_80; "):
            refuses(one_node((2, 3)), asked)


def test_more_blocks_than_a_gpu_takes_are_refused() -> None:
    kernel = Kernel("gpu_gemm", None, 1, launch=Launch((1, 70000, 1), (32, 1, 1)))
    with pytest.raises(UnsupportedError, match="gpu_gemm would be launched with 1 x 70000 x 1 blocks"):
        check_launches({"k": kernel})


def test_a_network_larger_than_the_gpu_is_refused(monkeypatch) -> None:
    board = cuda.replace(find_target("t4"), ram_bytes=1 << 20)
    monkeypatch.setattr("lwc_compiler.passes.lower.find_target", lambda name: board)
    with pytest.raises(TargetError, match=r"does not fit t4: a run takes .* of weights\) .* t4 has 1,048,576.*batch"):
        lower(Model(lenet5(), "net"), LowerOptions(target="t4"))


def test_no_compiler_for_gpus_is_said_before_any_work(monkeypatch, mlp, tmp_path) -> None:
    monkeypatch.setattr(cuda_compiler, "PACKAGES", ("nvidia-cuda-none",))
    monkeypatch.setattr(cuda_compiler, "_find_nvcc", lambda: None)
    said = r"needs NVIDIA's compiler: `pip install 'lwc-compiler\[cuda\]'`, or .cuda12. for .*, or CUDA's nvcc on PATH"
    with pytest.raises(ToolchainError, match=said):
        lwc.compile(mlp, tmp_path / "out", lwc.Recipe(lower=LowerOptions(target="cuda")))
    assert not (tmp_path / "out").exists()


def test_source_that_does_not_compile_is_an_error() -> None:
    with pytest.raises(ToolchainError, match=r"could not compile for sm_80: NVRTC_ERROR_COMPILATION[^$]*error"):
        compile_all("nonsense", [80], ptx=False)
    with pytest.raises(ToolchainError, match=r"NVRTC 13\.\d+ has no code for sm_9999.*newer"):
        compile_all("", [9999], ptx=False)


def test_weights_are_stored_once() -> None:
    """Two layers with the same weight share it."""
    weight = numpy_helper.from_array(np.eye(16, dtype=np.float32), "w")
    nodes = [helper.make_node("MatMul", [a, "w"], [b], name=b) for a, b in (("x", "h"), ("h", "y"))]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, (1, 16)) for name in "xy"]
    graph = helper.make_graph(nodes, "net", values[:1], values[1:], [weight])
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    stage = assembled(normalize(Model(proto, "net"), fold_batch_norm=True))
    assert len(stage.kernels) == 1
    assert len(stage.calls) == 2
    assert len(stage.constants) == len(stage.calls[0].args) - 2
