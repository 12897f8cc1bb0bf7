"""Code for Cortex-M and 32-bit RISC-V, run without an operating system in QEMU, against ONNX Runtime."""

import shutil

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import lwc_compiler as lwc
from benchmarks.models import MODELS
from lwc_compiler.codegen.footprint import footprint
from lwc_compiler.codegen.link import compile_objects, find_compiler, make_archive
from lwc_compiler.errors import ArtifactError, DataError, NotRunError, ToolchainError
from lwc_compiler.model import load_model
from lwc_compiler.runtime import bare_metal
from lwc_compiler.runtime.bare_metal import MACHINES, machine_for
from lwc_compiler.runtime.linkable import Linkable
from lwc_compiler.runtime.reference import random_inputs, reference_session
from lwc_compiler.runtime.verify import TOLERANCE, relative_error
from lwc_compiler.targets import all_targets, find_target

TARGETS = ("cortex-m4", "cortex-m7", "cortex-m33", "cortex-m55", "rv32imafc")
TIMEOUT = 120.0
DENSITIES = (0.0, 0.05, 0.5, 1.0)


def needs(emulator):
    return pytest.mark.skipif(not shutil.which(emulator), reason=f"{emulator} is not installed")


needs_qemu = needs("qemu-system-arm")


def emulated(*targets):
    """Targets as parameters of a test that runs their code."""
    return [pytest.param(name, marks=needs(machine_for(find_target(name)).emulator)) for name in targets]


def compiled(proto, folder, target, weight_type="float32", **prune):
    options = lwc.LowerOptions(target=target, batch=1, weight_type=weight_type, max_rounding_error=1.0)
    recipe = lwc.Recipe(prune=lwc.PruneOptions(**prune) if prune else None, lower=options)
    return lwc.compile(lwc.Model(proto, "net"), folder / "net.lwc", recipe)


def assert_right(artifact, outputs, seed=0):
    """The outputs are ONNX Runtime's on the artifact's model, for the inputs of a seed."""
    proto, manifest = load_model(artifact.model).proto, artifact.manifest
    expected = reference_session(proto, 1).run(list(outputs), random_inputs(proto, manifest.inputs, seed))
    errors = {n: relative_error(outputs[n], e) for n, e in zip(outputs, expected, strict=True)}
    assert outputs
    assert max(errors.values()) <= TOLERANCE, errors


def emulate(artifact, inputs, timeout=TIMEOUT):
    return bare_metal.emulate(Linkable.of_artifact(artifact), inputs, timeout=timeout)


def run_emulated(artifact, inputs, timeout=TIMEOUT):
    return emulate(artifact, inputs, timeout).outputs


def inputs_of(artifact, seed=0):
    return random_inputs(load_model(artifact.model).proto, artifact.manifest.inputs, seed)


@pytest.mark.parametrize("target", emulated(*TARGETS))
@pytest.mark.parametrize("name", ["lenet300", "lenet5"])
def test_lenets_run_on_emulated_boards(tmp_path, name, target):
    artifact = compiled(MODELS[name](), tmp_path, target, sparsity=11 / 12, keep_first=False)
    done = emulate(artifact, inputs_of(artifact))
    assert_right(artifact, done.outputs)
    stack = artifact.manifest.stack
    assert stack is not None
    # To align a frame at 16 bytes may take 12 more on Cortex-M55; RISC-V reserves up to 12 that are not written.
    assert stack.bytes - 12 <= done.stack_bytes <= stack.bytes < 512
    assert set(stack.beside) <= {"memcpy"}
    assert f"stack of a run{', without that of `memcpy`' if stack.beside else ''} | {stack.bytes} |" in (
        (artifact.directory / "README.md").read_text()
    )
    assert artifact.report["sizes"]["stack"] == stack.bytes
    kept = sum(layer.flops for layer in artifact.manifest.layers) / 2
    assert done.instructions is not None
    assert kept < done.instructions < 12 * kept
    memory = footprint(artifact.archive.read_bytes())
    assert memory.flash <= sum(layer.dense_bytes for layer in artifact.manifest.layers) / 8
    assert memory.code <= 16 << 10
    assert memory.static_ram == 0


class Layers:
    """A model of layers each of which has an input and an output of its own."""

    def __init__(self):
        self.generator = np.random.default_rng(0)
        self.nodes, self.inputs, self.outputs, self.weights = [], [], [], []

    def weight(self, name, shape, density):
        value = self.generator.standard_normal(shape).astype(np.float32) * (self.generator.random(shape) < density)
        self.weights.append(numpy_helper.from_array(value.astype(np.float32), name))
        return name

    def layer(self, operator, shape, operands, out_shape, **attributes):
        number = len(self.nodes)
        self.inputs.append(helper.make_tensor_value_info(f"x{number}", TensorProto.FLOAT, shape))
        self.outputs.append(helper.make_tensor_value_info(f"y{number}", TensorProto.FLOAT, out_shape))
        self.nodes.append(
            helper.make_node(operator, [f"x{number}", *operands], [f"y{number}"], name=f"n{number}", **attributes)
        )

    def conv(self, channels, size, kernel, density, stride=1, pad=0, dilation=1, group=1):
        (c, o), (h, w) = channels, size
        number = len(self.nodes)
        operands = [
            self.weight(f"w{number}", (o, c // group, *kernel), density),
            self.weight(f"b{number}", (o,), 1.0),
        ]
        out = [(s + 2 * pad - dilation * (k - 1) - 1) // stride + 1 for s, k in zip((h, w), kernel, strict=True)]
        self.layer(
            "Conv", (1, c, h, w), operands, (1, o, *out), strides=[stride] * 2, pads=[pad] * 4,
            dilations=[dilation] * 2, group=group,
        )  # fmt: skip

    def gemm(self, k, n, density, **attributes):
        number = len(self.nodes)
        shape = (n, k) if attributes.get("transB") else (k, n)
        operands = [self.weight(f"w{number}", shape, density), self.weight(f"b{number}", (n,), 1.0)]
        self.layer("Gemm", (1, k), operands, (1, n), **attributes)

    def model(self):
        graph = helper.make_graph(self.nodes, "edges", self.inputs, self.outputs, self.weights)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def _edges():
    """Layers at the edges of tiles, in every density."""
    layers = Layers()
    for density in DENSITIES:
        for width in (1, 4, 5, 13, 29):  # around a row of a tile
            layers.conv((3, 5), (7, width + 2), (3, 3), density)
        layers.conv((3, 7), (9, 11), (3, 3), density, stride=2, pad=1)
        layers.conv((4, 6), (12, 10), (2, 3), density, stride=3)
        layers.conv((2, 9), (10, 13), (3, 3), density, dilation=2, pad=2)
        layers.conv((70, 3), (6, 6), (3, 3), density, pad=1)  # more planes than a kernel may copy
        layers.conv((8, 33), (5, 7), (1, 1), density)
        layers.conv((8, 12), (6, 5), (3, 3), density, group=4, pad=1)
        layers.conv((6, 6), (9, 8), (3, 3), density, pad=1, group=6)
        for k, n in ((1, 1), (7, 9), (64, 64), (65, 63), (400, 10)):
            layers.gemm(k, n, density)
    layers.layer("MaxPool", (1, 3, 7, 9), [], (1, 3, 3, 4), kernel_shape=[3, 3], strides=[2, 2])
    layers.layer("AveragePool", (1, 3, 7, 9), [], (1, 3, 7, 9), kernel_shape=[3, 3], pads=[1] * 4)
    for operator in ("Sigmoid", "Tanh", "Erf", "Exp", "Softmax"):
        layers.layer(operator, (2, 37), [], (2, 37))
    layers.layer("Identity", (3, 5), [], (3, 5))  # an input that is an output
    model = layers.model()
    # An output that is there twice.
    model.graph.node.append(helper.make_node("Identity", ["y0"], ["again"], name="again"))
    model.graph.output.append(helper.make_tensor_value_info("again", TensorProto.FLOAT, (1, 5, 5, 1)))
    return model


def _rounded_layers():
    """Layers whose weights may be narrower: lists of taps of odd length, several blocks of channels, factors."""
    layers = Layers()
    for density in (0.3, 1.0):
        layers.conv((3, 5), (7, 3), (3, 3), density)  # few sums: taps in pairs
        layers.conv((70, 3), (6, 6), (3, 3), density, pad=1)  # several blocks of channels
        layers.conv((8, 12), (6, 5), (3, 3), density, group=4, pad=1)
        layers.conv((8, 9), (1, 1), (1, 1), density)  # a product
        layers.gemm(65, 63, density)
        layers.gemm(400, 10, density, transB=1, alpha=0.3)
    layers.conv((5, 4), (1, 1), (3, 3), 0.5, pad=1)  # weights that nothing is multiplied by
    return layers.model()


@pytest.mark.parametrize("target", emulated("cortex-m7", "cortex-m55"))
def test_kernels_run_at_the_edges_of_their_tiles(tmp_path, target):
    artifact = compiled(_edges(), tmp_path, target)
    assert_right(artifact, run_emulated(artifact, inputs_of(artifact)))


def assert_narrow(proto, tmp_path, target, weight_type):
    """Sparse and dense layers have narrower weights, and `compile` found them right on the rounded weights."""
    artifact = compiled(proto, tmp_path, target, weight_type)
    narrow = {(layer.op, layer.format) for layer in artifact.manifest.layers if layer.weight_type == weight_type}
    slow = {("Gemm", "dense")} if (target, weight_type) == ("c", "float16") else set()
    assert narrow == {("Conv", "csr"), ("Conv", "dense"), ("Gemm", "csr"), ("Gemm", "dense")} - slow
    for layer in artifact.manifest.layers:
        assert (layer.weight_type == "float32") == (layer.float32_bytes is None)
        assert layer.float32_bytes is None or layer.bytes < layer.float32_bytes
    assert artifact.manifest.layers[-1].weight_type == "float32"
    assert artifact.manifest.verification.skipped == ""
    assert 0 < artifact.manifest.verification.worst <= TOLERANCE
    assert TOLERANCE < artifact.manifest.rounding.worst < 0.1


@needs_qemu
@pytest.mark.parametrize(("target", "weight_type"), [("cortex-m4", "float16"), ("cortex-m55", "int8")])
def test_narrower_weights_are_expanded(tmp_path, target, weight_type):
    assert_narrow(_rounded_layers(), tmp_path, target, weight_type)


@pytest.mark.parametrize("weight_type", ["float16", "int8"])
def test_narrower_weights_are_expanded_in_c(tmp_path, weight_type):
    assert_narrow(_rounded_layers(), tmp_path, "c", weight_type)


def _mlp(tmp_path, mlp, target="cortex-m4"):
    return compiled(onnx.load(mlp), tmp_path, target)


@pytest.mark.parametrize(
    ("target", "emulator", "package"),
    [
        ("cortex-m4", "qemu-system-arm", "qemu-system-arm"),
        ("rv32imafc", "qemu-system-riscv32", "qemu-system-misc"),
    ],
)
def test_a_missing_emulator_is_named(tmp_path, mlp, monkeypatch, target, emulator, package):
    artifact = _mlp(tmp_path, mlp, target)
    monkeypatch.setattr(bare_metal.shutil, "which", lambda name: None)
    with pytest.raises(ToolchainError, match=f"code for {target} needs {emulator}: install .*the package {package}"):
        run_emulated(artifact, inputs_of(artifact))


def test_inputs_are_checked(tmp_path, mlp):
    artifact = _mlp(tmp_path, mlp)
    with pytest.raises(DataError, match="input 'x' is missing"):
        run_emulated(artifact, {})
    with pytest.raises(DataError, match="no input 'z'"):
        run_emulated(artifact, inputs_of(artifact) | {"z": np.zeros(1)})


@pytest.fixture
def broken(tmp_path, mlp):
    """An artifact whose run is the given C statements."""

    def make(statements, target="cortex-m4"):
        artifact = _mlp(tmp_path, mlp, target)
        source = f"""
            #include "net.h"
            size_t net_workspace_bytes(int threads) {{ return 0 * threads; }}
            const char *net_error_string(int code) {{ return code == 3 ? "three is too many" : "ok"; }}
            int net_run(const void *const *in, void *const *out, void *work, size_t bytes, net_pool *pool) {{
                (void)in, (void)out, (void)work, (void)bytes, (void)pool;
                {statements}
            }}"""
        compiler = find_compiler(find_target(target))
        files = {"net.h": artifact.header.read_bytes(), "net.c": source.encode()}
        artifact.archive.write_bytes(make_archive(compiler, compile_objects(compiler, files)))
        return artifact

    return make


@needs_qemu
@pytest.mark.parametrize(
    ("statements", "message"),
    [
        ('__asm__ volatile("udf #0"); return 0;', "met a fault"),
        ("return *(volatile int *)0x70000000;", "met a fault"),
        ("return 3;", "three is too many"),
    ],
)
def test_failures_of_the_program_are_errors(broken, statements, message):
    artifact = broken(statements)
    with pytest.raises(ArtifactError, match=f"failed in mps2-an500.*{message}"):
        run_emulated(artifact, inputs_of(artifact))


@needs("qemu-system-riscv32")
@pytest.mark.parametrize(
    ("statements", "message"),
    [
        ('__asm__ volatile("unimp"); return 0;', "met a fault"),
        ("return *(volatile int *)0xf0000000;", "met a fault"),
        ("return 3;", "three is too many"),
    ],
)
def test_failures_of_a_riscv_program_are_errors(broken, statements, message):
    artifact = broken(statements, "rv32imafc")
    with pytest.raises(ArtifactError, match=f"failed in virt.*{message}"):
        run_emulated(artifact, inputs_of(artifact))


@needs_qemu
def test_a_program_that_hangs_is_stopped(broken):
    artifact = broken("for (volatile int i = 0;; i++) continue;")
    with pytest.raises(NotRunError, match="did not end within 1 seconds in mps2-an500"):
        run_emulated(artifact, inputs_of(artifact), timeout=1)


@needs_qemu
def test_a_program_that_is_too_large_is_refused(broken):
    artifact = broken("static volatile char all[5 << 20]; return all[bytes];")
    with pytest.raises(ToolchainError, match="cannot be linked into a program for mps2-an500"):
        run_emulated(artifact, inputs_of(artifact))


@pytest.mark.parametrize("target", emulated("cortex-m4", "rv32imafc"))
def test_the_stack_is_measured(broken, target):
    artifact = broken("volatile char deep[3000]; deep[bytes] = 1; return 0;", target)
    assert 3000 <= emulate(artifact, inputs_of(artifact)).stack_bytes < 3200


def test_every_microcontroller_has_a_machine():
    for target in all_targets():
        if target.os == "none" and target.family in ("arm", "riscv"):
            assert machine_for(target) in MACHINES
    with pytest.raises(NotRunError, match="no machine that lwc emulates runs code for cortex-a7"):
        machine_for(find_target("cortex-a7"))
