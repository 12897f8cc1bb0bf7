"""Lowering whole small networks: numbers against ONNX Runtime, fused layers, reproducible self-contained libraries."""

import math
import subprocess

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from lwc_compiler.codegen.layers import extract_layers
from lwc_compiler.errors import OptionError, UnsupportedError
from lwc_compiler.model import Model, working_copy
from lwc_compiler.passes.layouts import reorder_axes
from lwc_compiler.passes.lower import lower
from lwc_compiler.passes.normalize import normalize
from lwc_compiler.recipe.options import LowerOptions
from lwc_compiler.runtime.session import Session
from lwc_compiler.targets import find_target, missing_features


def make(nodes, weights, inputs, outputs, opset=18) -> Model:
    values = [
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in group.items()]
        for group in (inputs, outputs)
    ]
    constants = [numpy_helper.from_array(np.asarray(array, np.float32), name) for name, array in weights.items()]
    graph = helper.make_graph([helper.make_node(*n[:3], **n[3]) for n in nodes], "net", *values, constants)
    return Model(helper.make_model(graph, ir_version=9, opset_imports=[helper.make_opsetid("", opset)]), "net")


def normal(*shape: int, density: float = 1.0) -> np.ndarray:
    """The same values every time for the same shape."""
    rng = np.random.default_rng(shape)
    return rng.standard_normal(shape) * (rng.random(shape) < density)


def sparse(*shape: int) -> np.ndarray:
    return normal(*shape, density=0.2)


def residual_block(batch: int | str = 1) -> Model:
    """Two convolutions joined by a residual Add, as in ResNet, then a pooled classifier."""
    return make(
        [
            ("Conv", ["x", "w1", "b1"], ["c1"], {"pads": [1, 1, 1, 1], "name": "conv1"}),
            ("Relu", ["c1"], ["r1"], {}),
            ("Conv", ["r1", "w2"], ["c2"], {"pads": [1, 1, 1, 1], "name": "conv2"}),
            ("Conv", ["x", "w3", "b3"], ["c3"], {"name": "shortcut"}),
            ("Add", ["c2", "c3"], ["a"], {}),
            ("Clip", ["a", "zero", "six"], ["r2"], {}),
            ("GlobalAveragePool", ["r2"], ["p"], {}),
            ("Flatten", ["p"], ["f"], {}),
            ("Gemm", ["f", "w4", "b4"], ["g"], {"transB": 1, "alpha": 0.5, "beta": 2.0, "name": "fc"}),
            ("Softmax", ["g"], ["y"], {}),
        ],
        {
            "w1": sparse(16, 4, 3, 3), "b1": normal(16), "w2": sparse(8, 16, 3, 3),
            "w3": sparse(8, 4, 1, 1), "b3": normal(8), "zero": 0.0, "six": 6.0,
            "w4": sparse(5, 8), "b4": normal(1, 5),
        },
        {"x": [batch, 4, 13, 11]},
        {"y": [batch, 5]},
    )  # fmt: skip


def attention(tokens: int = 9) -> Model:
    """One head of self-attention with constant projections, one of them from the left."""
    return make(
        [
            ("MatMul", ["x", "wq"], ["q"], {"name": "q"}),
            ("Add", ["q", "bq"], ["qb"], {}),
            ("MatMul", ["x", "wk"], ["k"], {"name": "k"}),
            ("Transpose", ["k"], ["kt"], {"perm": [0, 2, 1]}),
            ("MatMul", ["qb", "kt"], ["s"], {"name": "scores"}),
            ("Softmax", ["s"], ["p"], {}),
            ("MatMul", ["p", "x"], ["o"], {"name": "mix"}),
            ("MatMul", ["wl", "o"], ["l"], {"name": "left"}),
            ("Add", ["l", "x"], ["y"], {}),
        ],
        {"wq": sparse(24, 16), "bq": normal(16), "wk": sparse(24, 16), "wl": sparse(tokens, tokens)},
        {"x": [2, tokens, 24]},
        {"y": [2, tokens, 24]},
    )


def gelu(order: str) -> tuple[list[tuple], dict[str, np.ndarray]]:
    """The nodes from h to g = h / 2 (1 + erf(h / sqrt(2))), as exporters write them, and their constants."""
    scaled = ("Div", ["h", "root"], ["e"], {}) if order != "halves first" else ("Mul", ["h", "inverse"], ["e"], {})
    erf = [scaled, ("Erf", ["e"], ["f"], {}), ("Add", ["f", "one"], ["u"], {})]
    nodes = {
        "halves last": [*erf, ("Mul", ["h", "u"], ["v"], {}), ("Mul", ["v", "half"], ["g"], {})],
        "halves first": [("Mul", ["half", "h"], ["v"], {}), *erf, ("Mul", ["v", "u"], ["g"], {})],
        "halves between": [*erf, ("Mul", ["u", "half"], ["v"], {}), ("Mul", ["v", "h"], ["g"], {})],
    }[order]
    numbers = {"root": math.sqrt(2), "inverse": math.sqrt(0.5), "one": 1, "half": 0.5}
    used = {name for _, inputs, _, _ in nodes for name in inputs}
    return nodes, {name: np.array(value, np.float32) for name, value in numbers.items() if name in used}


def tokens(order: str) -> Model:
    """Sparse layers on tokens, attention between them, and a GELU."""
    nodes, constants = gelu(order)
    return make(
        [
            ("MatMul", ["x", "wq"], ["q"], {"name": "q"}),
            ("MatMul", ["x", "wk"], ["k"], {"name": "k"}),
            ("Transpose", ["k"], ["kt"], {"perm": [0, 2, 1]}),
            ("MatMul", ["q", "kt"], ["s"], {"name": "scores"}),
            ("Div", ["s", "eight"], ["d"], {}),
            ("Softmax", ["d"], ["p"], {}),
            ("MatMul", ["p", "x"], ["o"], {"name": "mix"}),
            ("MatMul", ["o", "wu"], ["ou"], {"name": "up"}),
            ("Add", ["ou", "bu"], ["h"], {}),
            *nodes,
            ("MatMul", ["g", "wd"], ["gd"], {"name": "down"}),
            ("Add", ["gd", "x"], ["y"], {}),
        ],
        {
            "wq": normal(24, 20, density=0.1), "wk": normal(24, 20, density=0.1), "wu": normal(24, 50, density=0.1),
            "bu": normal(50), "wd": normal(50, 24, density=0.1), "eight": np.array(8, np.float32), **constants,
        },
        {"x": [2, 41, 24]},
        {"y": [2, 41, 24]},
    )  # fmt: skip


def inverted_bottleneck() -> Model:
    """As in MobileNetV2: 1x1, depthwise and 1x1 with a shortcut around them; then a depthwise pair with a stride."""
    return make(
        [
            ("Conv", ["x", "w1", "b1"], ["c1"], {"name": "expand"}),
            ("Clip", ["c1", "zero", "six"], ["r1"], {}),
            ("Conv", ["r1", "w2", "b2"], ["c2"], {"pads": [1, 1, 1, 1], "group": 60, "name": "depthwise"}),
            ("Relu", ["c2"], ["r2"], {}),
            ("Conv", ["r2", "w3", "b3"], ["c3"], {"name": "project"}),
            ("Add", ["x", "c3"], ["a"], {}),
            ("Conv", ["a", "w4"], ["c4"], {"pads": [2] * 4, "strides": [2, 2], "group": 12, "name": "pair1"}),
            ("Conv", ["c4", "w5", "b5"], ["c5"], {"name": "pair2"}),
            ("HardSwish", ["c5"], ["y"], {}),
        ],
        {
            "w1": sparse(60, 12, 1, 1), "b1": normal(60), "w2": normal(60, 1, 3, 3), "b2": normal(60),
            "w3": sparse(12, 60, 1, 1), "b3": normal(12), "w4": normal(12, 1, 5, 5), "w5": sparse(9, 12, 1, 1),
            "b5": normal(9), "zero": 0.0, "six": 6.0,
        },
        {"x": ["n", 12, 60, 56]},
        {"y": ["n", 9, 30, 28]},
    )  # fmt: skip


def transposed() -> Model:
    return make(
        [
            ("ConvTranspose", ["x", "w", "b"], ["u"], {"strides": [2, 2], "pads": [1, 0, 0, 1], "name": "up"}),
            ("LeakyRelu", ["u"], ["v"], {"alpha": 0.1}),
            ("Conv", ["v", "w2"], ["y"], {"auto_pad": "SAME_LOWER", "strides": [2, 2], "group": 2, "name": "down"}),
        ],
        {"w": sparse(6, 8, 3, 3), "b": normal(8), "w2": sparse(4, 4, 4, 4)},
        {"x": [1, 6, 7, 5]},
        {"y": [1, 4, 7, 5]},
    )


def reference(model: Model, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(
        working_copy(model.proto).SerializeToString(), providers=["CPUExecutionProvider"]
    )
    return session.run(None, feeds)


def compare(model: Model, tmp_path, options: LowerOptions, shape: list[int], threads: int = 1) -> None:
    lowered = lower(model, options)
    path = tmp_path / "libnet.so"
    path.write_bytes(lowered.library)
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    expected = reference(model, {"x": x})
    with Session(path, lowered.symbol, lowered.inputs, lowered.outputs, threads, lowered.target) as session:
        got = session.run({"x": x})
    for spec, wanted in zip(lowered.outputs, expected, strict=True):
        assert np.abs(got[spec.name] - wanted).max() <= 1e-5 * np.abs(wanted).max()


@pytest.mark.parametrize("target", ["x86-64-v3", "host", "x86-64"])
@pytest.mark.parametrize("threads", [1, 2])
def test_residual_block(tmp_path, target: str, threads: int) -> None:
    compare(residual_block(), tmp_path, LowerOptions(target=target), [1, 4, 13, 11], threads)


def test_open_batch_is_set_by_the_option(tmp_path) -> None:
    compare(residual_block("n"), tmp_path, LowerOptions(batch=3), [3, 4, 13, 11])


def test_attention(tmp_path) -> None:
    compare(attention(), tmp_path, LowerOptions(), [2, 9, 24])


@pytest.mark.parametrize("target", ["x86-64-v3", "host"])
@pytest.mark.parametrize("order", ["halves last", "halves first", "halves between"])
def test_sparse_layers_on_tokens(tmp_path, target: str, order: str) -> None:
    compare(tokens(order), tmp_path, LowerOptions(target=target), [2, 41, 24])


@pytest.mark.parametrize("order", ["halves last", "halves first", "halves between"])
def test_what_follows_a_layer_on_tokens_is_fused_into_it(order: str) -> None:
    model = normalize(tokens(order), batch=1, shapes={}, fold_batch_norm=True)
    rest, layers = extract_layers(reorder_axes(model.proto), find_target("x86-64-v3"))
    assert [node.op_type for node in rest.graph.node if node.op_type != "LwcLayer"] == ["Softmax"]
    assert {decision.site for layer in layers for decision in layer.decisions} == {"wq", "wk", "wu", "wd"}


@pytest.mark.parametrize("kind", ["erf of another scale", "read elsewhere", "an output"])
def test_what_is_no_gelu_is_not_fused_as_one(tmp_path, kind: str) -> None:
    nodes, constants = gelu("halves last")
    outputs = {"y": [3, 16]}
    if kind == "erf of another scale":
        constants["root"] = np.array(1.5, np.float32)
    last = ("Add", ["g", "u" if kind == "read elsewhere" else "h"], ["y"], {})
    if kind == "an output":
        outputs["u"] = [3, 16]
    nodes = [("MatMul", ["x", "w"], ["h"], {}), *nodes, last]
    compare(make(nodes, {"w": normal(8, 16), **constants}, {"x": [3, 8]}, outputs), tmp_path, LowerOptions(), [3, 8])


@pytest.mark.parametrize("target", ["x86-64-v3", "host", "x86-64"])
@pytest.mark.parametrize(("batch", "threads"), [(1, 1), (3, 1), (1, 2)])
def test_inverted_bottleneck(tmp_path, target: str, batch: int, threads: int) -> None:
    options = LowerOptions(target=target, batch=batch, threads=threads)
    compare(inverted_bottleneck(), tmp_path, options, [batch, 12, 60, 56], threads)


def test_layers_of_one_kernel_have_a_decision_each() -> None:
    model = normalize(inverted_bottleneck(), batch=1, shapes={}, fold_batch_norm=True)
    rest, layers = extract_layers(model.proto, find_target("x86-64-v4"))
    assert [list(node.input) for node in rest.graph.node] == [["x", "x"], ["a"]]
    assert [layer.nodes for layer in layers] == [("expand", "depthwise", "project"), ("pair1", "pair2")]
    decisions = [decision for layer in layers for decision in layer.decisions]
    assert [decision.site for decision in decisions] == ["w1", "w2", "w3", "w4", "w5"]
    assert [decision.format for decision in decisions] == ["csr", "dense", "csr", "dense", "csr"]
    weights = {t.name: numpy_helper.to_array(t) for t in model.proto.graph.initializer}
    for decision in decisions:
        assert decision.kernel == "separable"
        assert decision.density == np.count_nonzero(weights[decision.site]) / weights[decision.site].size
        assert decision.dense_flops * decision.density <= decision.flops <= decision.dense_flops
    assert decisions[0].why.startswith("one kernel for expand, depthwise, project; density")


def test_transposed_and_auto_padded(tmp_path) -> None:
    compare(transposed(), tmp_path, LowerOptions(), [1, 6, 7, 5])


@pytest.mark.parametrize("weight", ["w", "x"])
@pytest.mark.parametrize(
    ("attributes", "size"),
    [
        ({"auto_pad": "SAME_UPPER", "strides": [2, 2], "output_shape": [5, 5]}, 5),
        ({"auto_pad": "VALID", "strides": [2, 2], "output_shape": [3, 3]}, 3),
        ({"auto_pad": "SAME_LOWER", "strides": [4, 4]}, 6),
    ],
    ids=["beyond the input", "shape and mode", "stride beyond the kernel"],
)
def test_transposed_to_a_given_size(tmp_path, attributes: dict, size: int, weight: str) -> None:
    """As a layer, whose weight is constant, and by Relax, where the weight is the input itself."""
    node = ("ConvTranspose", ["x", weight], ["y"], attributes)
    weights = {"w": normal(2, 2, 2, 2)} if weight == "w" else {}
    model = make([node], weights, {"x": [2, 2, 2, 2]}, {"y": [2, 2, size, size]})
    compare(model, tmp_path, LowerOptions(), [2, 2, 2, 2])


def test_what_follows_a_layer_is_fused_into_it() -> None:
    model = normalize(residual_block(), batch=1, shapes={}, fold_batch_norm=True)
    rest, layers = extract_layers(model.proto, find_target("x86-64-v3"))
    assert [n.op_type for n in rest.graph.node if n.op_type != "LwcLayer"] == [
        "GlobalAveragePool",
        "Flatten",
        "Softmax",
    ]
    assert [decision.site for layer in layers for decision in layer.decisions] == ["w1", "w2", "w3", "w4"]
    fused = next(n for n in rest.graph.node if n.output[0] == "r2")
    assert list(fused.input) == ["r1", "c3"]  # conv2 with the shortcut as residual and the Clip


def test_layers_say_what_was_decided() -> None:
    model = residual_block()
    decisions = {d.site: d for d in lower(model, LowerOptions(target="x86-64-v3")).layers}
    weights = {t.name: numpy_helper.to_array(t) for t in model.proto.graph.initializer}
    first = decisions["w1"]
    assert (first.node, first.op, first.shape) == ("conv1", "Conv", (16, 4, 3, 3))
    assert first.density == np.count_nonzero(weights["w1"]) / weights["w1"].size
    assert first.dense_flops == 2 * 16 * 4 * 9 * 13 * 11
    assert first.dense_bytes == 4 * (16 * 4 * 9 + 16)
    assert all(d.format and d.kernel and d.why and d.bytes > 0 for d in decisions.values())


def test_a_value_used_twice_is_not_fused_away(tmp_path) -> None:
    model = make(
        [("Conv", ["x", "w"], ["c"], {}), ("Relu", ["c"], ["r"], {}), ("Add", ["c", "r"], ["y"], {})],
        {"w": sparse(4, 3, 1, 1)},
        {"x": [1, 3, 5, 5]},
        {"y": [1, 4, 5, 5], "c": [1, 4, 5, 5]},
    )
    compare(model, tmp_path, LowerOptions(), [1, 3, 5, 5])


def test_input_and_constant_as_outputs(tmp_path) -> None:
    model = make(
        [("Identity", ["x"], ["y"], {}), ("Identity", ["k"], ["z"], {}), ("Relu", ["x"], ["r"], {})],
        {"k": [1.0, 2.0]},
        {"x": [2, 3]},
        {"y": [2, 3], "z": [2], "r": [2, 3]},
    )
    compare(model, tmp_path, LowerOptions(), [2, 3])


def test_results_do_not_depend_on_the_number_of_threads(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("lwc_compiler.codegen.emit._NANOSECONDS_A_THREAD", 1)  # even small steps are shared
    lowered = lower(residual_block(), LowerOptions())
    (tmp_path / "libnet.so").write_bytes(lowered.library)
    x = np.random.default_rng(0).standard_normal([1, 4, 13, 11]).astype(np.float32)
    results = set()
    for threads in (1, 2, 5, 64):
        arguments = (tmp_path / "libnet.so", "net", lowered.inputs, lowered.outputs, threads, lowered.target)
        with Session(*arguments) as session:
            results.update(session.run({"x": x})["y"].tobytes() for _ in range(20))
    assert len(results) == 1


@pytest.mark.parametrize("variant", find_target("x86-64").variants, ids=lambda variant: variant.name)
def test_every_variant_of_a_library_computes_the_network(tmp_path, variant) -> None:
    if missing_features(variant):
        pytest.skip(f"this CPU cannot run {variant.name}")
    model = residual_block()
    lowered = lower(model, LowerOptions(target="x86-64"))
    (tmp_path / "libnet.so").write_bytes(lowered.library)
    x = np.random.default_rng(0).standard_normal([1, 4, 13, 11]).astype(np.float32)
    (expected,) = reference(model, {"x": x})
    with Session(tmp_path / "libnet.so", "net", lowered.inputs, lowered.outputs, 1, "x86-64") as session:
        runnable = [v.name for v in find_target("x86-64").variants if not missing_features(v)]
        assert session.target == runnable[-1]
        session.use_target(variant.name)
        assert session.target == variant.name
        np.testing.assert_allclose(session.run({"x": x})["y"], expected, rtol=1e-5, atol=1e-6)
        (steps,) = (program.steps for program in lowered.programs if program.target == variant.name)
        assert len(session.profile({"x": x})) == len(steps) + 1


def test_variants_use_their_own_instructions_and_share_equal_constants(tmp_path, monkeypatch) -> None:
    linked = {}

    def link(compiler, files, hidden):
        linked.update(files)
        return b""

    monkeypatch.setattr("lwc_compiler.codegen.link.link_library", link)
    lowered = lower(residual_block(), LowerOptions(target="x86-64"))
    assert [program.target for program in lowered.programs] == ["x86-64-v3", "x86-64-v4"]
    for name, wide in (("x86-64-v3", False), ("x86-64-v4", True)):
        (tmp_path / "kernels.o").write_bytes(linked[f"kernels-{name}.o"])
        code = subprocess.run(
            ["objdump", "-d", "kernels.o"], cwd=tmp_path, capture_output=True, text=True, check=True
        ).stdout
        assert ("%zmm" in code, "%ymm" in code) == (wide, True)
    single = [lower(residual_block(), LowerOptions(target=program.target)) for program in lowered.programs]
    assert lowered.weight_bytes < sum(each.weight_bytes for each in single)


def large_convolution() -> Model:
    """A layer that takes long enough to be worth a measurement."""
    return make(
        [("Conv", ["x", "w"], ["y"], {"pads": [1, 1, 1, 1], "name": "conv"})],
        {"w": sparse(64, 64, 3, 3)},
        {"x": [1, 64, 28, 28]},
        {"y": [1, 64, 28, 28]},
    )


@pytest.mark.parametrize(
    ("options", "how"),
    [
        (LowerOptions(tune=3), "measured"),
        (LowerOptions(tune=0), "predicted"),
        (LowerOptions(target="x86-64-v3"), "predicted"),
        (LowerOptions(target="x86-64-v3", tune=2), "measured"),
    ],
)
def test_kernels_are_measured_where_that_is_asked_for(tmp_path, monkeypatch, options: LowerOptions, how: str) -> None:
    monkeypatch.setenv("LWC_CACHE", str(tmp_path))
    (decision,) = lower(large_convolution(), options).layers
    assert f"{how} fastest" in decision.why
    times = [trial.cycles if how == "predicted" else trial.seconds for trial in decision.trials]
    assert len(times) > 1
    assert times == sorted(times)
    assert all((trial.seconds is None) == (how == "predicted") for trial in decision.trials)


def test_kernels_are_measured_for_the_host_unless_told_otherwise(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("LWC_CACHE", str(tmp_path))
    monkeypatch.setattr("lwc_compiler.passes.lower._TUNE", 2)
    (decision,) = lower(large_convolution(), LowerOptions()).layers
    assert "measured fastest" in decision.why


def test_measuring_for_another_machine_is_refused(monkeypatch) -> None:
    monkeypatch.setattr("lwc_compiler.passes.lower.missing_features", lambda target: ["avx512f"])
    with pytest.raises(
        OptionError, match=r"tune 2: this machine cannot measure kernels for x86-64-v4, it lacks avx512f"
    ):
        lower(large_convolution(), LowerOptions(target="x86-64-v4", tune=2))


def test_two_compilations_are_byte_identical() -> None:
    first, second = (lower(residual_block(), LowerOptions(target="x86-64-v3")) for _ in range(2))
    assert first == second


def test_the_library_needs_only_the_c_library_and_exports_only_its_interface(tmp_path) -> None:
    path = tmp_path / "libnet.so"
    path.write_bytes(lower(residual_block(), LowerOptions(target="x86-64-v3")).library)
    dynamic = subprocess.run(["readelf", "-d", path], capture_output=True, text=True, check=True).stdout
    needed = {line.split("[")[1].rstrip("]") for line in dynamic.splitlines() if "NEEDED" in line}
    assert needed <= {"libc.so.6", "libm.so.6"}
    symbols = subprocess.run(["nm", "-D", "--defined-only", path], capture_output=True, text=True, check=True).stdout
    assert {line.split()[-1] for line in symbols.splitlines()} == {
        f"net_{name}"
        for name in (
            "run", "workspace_bytes", "pool_create", "pool_destroy", "error_string", "version", "cpu_supported",
            "input_count", "output_count", "inputs", "outputs", "target", "use_target", "step_count", "profile",
        )
    }  # fmt: skip


def test_unknown_operator_is_refused_by_node_and_name() -> None:
    model = make(
        [("NonZero", ["x"], ["i"], {"name": "find"}), ("Cast", ["i"], ["y"], {"to": 1})],
        {},
        {"x": [4]},
        {"y": [1, None]},
    )
    with pytest.raises(UnsupportedError, match=r"'find' \(NonZero\)"):
        lower(model, LowerOptions())


def test_header_compiles_as_c_and_cpp(tmp_path) -> None:
    (tmp_path / "net.h").write_text(lower(attention(), LowerOptions()).header)
    for language, standard in (("c", "c99"), ("c++", "c++11")):
        command = ["cc", "-x", language, f"-std={standard}", "-Wall", "-Wextra", "-Wconversion", "-pedantic", "-Werror"]
        subprocess.run([*command, "-fsyntax-only", tmp_path / "net.h"], check=True)


def test_models_are_valid_where_onnx_can_tell() -> None:
    for model in (residual_block(), attention(), transposed()):
        onnx.checker.check_model(model.proto, full_check=True)


def test_pooling_is_part_of_the_convolution_before_it(tmp_path) -> None:
    nodes = [
        ("Conv", ["x", "w1", "b"], ["c1"], {"pads": [3, 3, 3, 3], "strides": [2, 2], "name": "stem"}),
        ("Relu", ["c1"], ["r1"], {}),
        ("MaxPool", ["r1"], ["p"], {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}),
        ("Conv", ["p", "w2"], ["y"], {}),
    ]
    weights = {"w1": normal(32, 3, 7, 7), "b": normal(32), "w2": sparse(16, 32, 1, 1)}
    model = make(nodes, weights, {"x": [1, 3, 64, 72]}, {"y": [1, 16, 16, 18]})
    options = LowerOptions(target="x86-64-v3")
    assert lower(model, options).programs[0].steps[0].kernel == "conv_pooled"
    compare(model, tmp_path, options, [1, 3, 64, 72])
