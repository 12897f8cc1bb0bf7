import io
import json
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from rich.console import Console

from lwc_compiler.errors import DataError
from lwc_compiler.gates import GateResult
from lwc_compiler.passes.sites import find_sites
from lwc_compiler.report.activations import measure_activations
from lwc_compiler.report.document import to_json
from lwc_compiler.report.markdown import to_markdown
from lwc_compiler.report.render import gate_cells, layer_cells, percent, quantity, to_rich
from lwc_compiler.report.table import Activations, handed_on_tensors, layer_report, with_lowered
from tests.report.conftest import CHECKED, decision, lowered, model_of

RNG = np.random.default_rng(0)


def random(*shape):
    return RNG.standard_normal(shape, dtype=np.float32)


def zeros(*shape):
    # Allocated, never touched: weights of any size cost nothing where only their shape matters.
    return np.zeros(shape, np.float32)


# The architectures of the paper's tables 2 to 4.
LENET_300_100 = (
    """agraph (float[N, 784] x) => (float[N, 10] out) {
        [fc1] a = Gemm (x, w1, b1)
        r = Relu (a)
        [fc2] b = Gemm (r, w2)
        s = Relu (b)
        [fc3] out = Gemm (s, w3)
    }""",
    {"w1": (784, 300), "b1": (300,), "w2": (300, 100), "w3": (100, 10)},
)
LENET_5 = (
    """agraph (float[N, 1, 28, 28] x) => (float[N, 10] out) {
        [conv1] a = Conv (x, w1)
        p = MaxPool <kernel_shape=[2, 2], strides=[2, 2]> (a)
        [conv2] b = Conv (p, w2)
        q = MaxPool <kernel_shape=[2, 2], strides=[2, 2]> (b)
        f = Flatten (q)
        [fc1] c = Gemm (f, w3)
        r = Relu (c)
        [fc2] out = Gemm (r, w4)
    }""",
    {"w1": (20, 1, 5, 5), "w2": (50, 20, 5, 5), "w3": (800, 500), "w4": (500, 10)},
)
ALEXNET = (
    """agraph (float[N, 3, 227, 227] x) => (float[N, 1000] out) {
        [conv1] a1 = Conv <strides=[4, 4]> (x, w1)
        r1 = Relu (a1)
        n1 = LRN <size=5> (r1)
        p1 = MaxPool <kernel_shape=[3, 3], strides=[2, 2]> (n1)
        [conv2] a2 = Conv <group=2, pads=[2, 2, 2, 2]> (p1, w2)
        r2 = Relu (a2)
        p2 = MaxPool <kernel_shape=[3, 3], strides=[2, 2]> (r2)
        [conv3] a3 = Conv <pads=[1, 1, 1, 1]> (p2, w3)
        r3 = Relu (a3)
        [conv4] a4 = Conv <group=2, pads=[1, 1, 1, 1]> (r3, w4)
        r4 = Relu (a4)
        [conv5] a5 = Conv <group=2, pads=[1, 1, 1, 1]> (r4, w5)
        r5 = Relu (a5)
        p5 = MaxPool <kernel_shape=[3, 3], strides=[2, 2]> (r5)
        f = Flatten (p5)
        [fc1] a6 = Gemm <transB=1> (f, w6)
        r6 = Relu (a6)
        [fc2] a7 = Gemm <transB=1> (r6, w7)
        r7 = Relu (a7)
        [fc3] out = Gemm <transB=1> (r7, w8)
    }""",
    {
        "w1": (96, 3, 11, 11),
        "w2": (256, 48, 5, 5),
        "w3": (384, 256, 3, 3),
        "w4": (384, 192, 3, 3),
        "w5": (256, 192, 3, 3),
        "w6": (4096, 9216),
        "w7": (4096, 4096),
        "w8": (1000, 4096),
    },
)

# Printed in the paper: weights, FLOPs, Act%, Weights%, FLOP%; the total last.
PAPER = {
    "LeNet-300-100": (
        LENET_300_100,
        [(235e3, 470e3, 38, 8, 8), (30e3, 60e3, 65, 9, 4), (1e3, 2e3, 100, 26, 17), (266e3, 532e3, 46, 8, 8)],
    ),
    "LeNet-5": (
        LENET_5,
        [
            (0.5e3, 576e3, 82, 66, 66),
            (25e3, 3200e3, 72, 12, 10),
            (400e3, 800e3, 55, 8, 6),
            (5e3, 10e3, 100, 19, 10),
            (431e3, 4586e3, 77, 8, 16),
        ],
    ),
    "AlexNet": (
        ALEXNET,
        [
            (35e3, 211e6, 88, 84, 84),
            (307e3, 448e6, 52, 38, 33),
            (885e3, 299e6, 37, 35, 18),
            (663e3, 224e6, 40, 37, 14),
            (442e3, 150e6, 34, 37, 14),
            (38e6, 75e6, 36, 9, 3),
            (17e6, 34e6, 40, 9, 3),
            (4e6, 8e6, 100, 25, 10),
            (61e6, 1.5e9, 54, 11, 30),
        ],
    ),
}


@cache
def paper_model(network):
    text, shapes = PAPER[network][0]
    return model_of(text, **{name: zeros(*shape) for name, shape in shapes.items()})


@pytest.mark.parametrize("network", PAPER)
def test_weights_and_flops_are_the_papers(network):
    printed = PAPER[network][1]
    report = layer_report(paper_model(network))
    # The paper rounds, and in places truncates, to two or three digits.
    for row, (weights, flops, *_) in zip(report.layers, printed, strict=False):
        assert row.weights == pytest.approx(weights, rel=0.025)
        assert row.flops == pytest.approx(flops, rel=0.025)
    assert report.total.weights == pytest.approx(printed[-1][0], rel=0.002)
    assert report.total.flops == pytest.approx(printed[-1][1], rel=0.04)


@pytest.mark.parametrize("network", PAPER)
def test_shares_follow_from_densities_as_in_the_paper(network):
    model, printed = paper_model(network), PAPER[network][1]
    sites = find_sites(model.proto)
    sizes = {"LeNet-300-100": [300, 100, 10], "LeNet-5": [2880, 800, 500, 10]}.get(
        network, [69984, 43264, 64896, 64896, 9216, 4096, 4096, 1000]
    )
    handed_on = handed_on_tensors(model.proto, sites)
    counts = {"x": (1, 10)}  # the paper counts the network's own input as dense
    for site, size, (_, _, act, _, _) in zip(sites, sizes, printed, strict=False):
        counts[handed_on[site.outputs[0]]] = (round(act / 100 * size), size)
    report = layer_report(model, Activations("the paper", counts))
    rows = [
        replace(row, kept=round(kept / 100 * row.weights))
        for row, (_, _, _, kept, _) in zip(report.layers, printed, strict=False)
    ]
    report = replace(report, layers=tuple(rows))
    for row, (_, _, act, _, flops) in zip(report.layers, printed, strict=False):
        assert 100 * row.activation_density == pytest.approx(act, abs=0.2)
        assert 100 * row.flops_kept == pytest.approx(flops, abs=1)
    act, kept, flops = printed[-1][2:]
    assert 100 * report.total.activation_density == pytest.approx(act, abs=0.5)
    assert 100 * report.total.density == pytest.approx(kept, abs=0.75)
    assert 100 * report.total.flops_kept == pytest.approx(flops, abs=0.5)


@pytest.mark.parametrize(
    ("body", "shape", "out", "flops"),
    [
        # 4 inputs x 6 x 6 positions, each into 8 output channels x 3 x 3.
        ("out = ConvTranspose (x, w)", (4, 8, 3, 3), "1, 8, H, W", 2 * 4 * 36 * 8 * 9),
        ("out = Conv <group=4, pads=[1, 1, 1, 1]> (x, w)", (4, 1, 3, 3), "1, 4, H, W", 2 * 4 * 36 * 9),
        ("out = MatMul (x, w)", (6, 5), "1, 4, 6, 5", 2 * 4 * 6 * 6 * 5),
        ("out = MatMul (w, x)", (3, 6), "1, 4, 3, 6", 2 * 4 * 6 * 6 * 3),
        ("out = MatMul (x, w)", (4, 6, 5), "1, 4, 6, 5", 2 * 4 * 6 * 6 * 5),
    ],
)
def test_flops_of_each_operator(body, shape, out, flops):
    model = model_of(f"agraph (float[1, 4, 6, 6] x) => (float[{out}] out) {{ {body} }}", w=random(*shape))
    (row,) = layer_report(model).layers
    assert row.flops == flops


def test_open_dimensions_beyond_the_batch_leave_flops_open():
    model = model_of("agraph (float[N, L, 4] x) => (float[N, L, 4] out) { out = MatMul (x, w) }", w=random(4, 4))
    report = layer_report(model)
    assert report.layers[0].flops is None
    assert report.total.flops is None
    assert to_json(report)["layers"][0]["flops"] is None
    assert layer_cells(report).rows[0][3] == "-"
    with pytest.raises(DataError, match="input 'x' has open dimensions"):
        measure_activations(model)


SHARED = """agraph (float[N, 4] x) => (float[N, 3] out) {
    [a] p = MatMul (x, w)
    q = Relu (p)
    [b] r = MatMul (q, w)
    s = Tanh (r)
    [c] out = MatMul (s, v)
}"""


def test_a_shared_weight_has_a_row_for_each_node_and_counts_once():
    model = model_of(SHARED, w=np.eye(4, dtype=np.float32), v=random(4, 3))
    report = layer_report(model)
    assert [(row.node, row.site) for row in report.layers] == [("a", "w"), ("b", "w"), ("c", "v")]
    assert report.total.weights == 16 + 12
    assert report.total.kept == 4 + 12
    assert report.total.flops == 2 * (16 + 16 + 12)


def test_measured_densities_are_those_of_what_is_fed():
    w = np.eye(4, dtype=np.float32)
    model = model_of(SHARED, w=w, v=np.ones((4, 3), np.float32))
    feeds = [
        {"x": np.array([[1, -1, 2, -2], [1, 1, 1, 0]], np.float32)},
        {"x": np.array([[-1, -1, -1, -1]], np.float32)},
    ]
    measured = measure_activations(model, feeds, source="three rows")
    # a reads x, hands on q; b hands on s; c reads s.
    assert measured.counts == {"x": (11, 12), "q": (5, 12), "s": (5, 12), "out": (6, 9)}
    report = layer_report(model, measured)
    assert [row.activation_density for row in report.layers] == [5 / 12, 5 / 12, 6 / 9]
    assert report.layers[2].flops_kept == 5 / 12
    assert report.activations_measured_with == "three rows"


def test_shares_are_open_without_measurement():
    report = layer_report(model_of(SHARED, w=random(4, 4), v=random(4, 3)))
    assert report.total.activation_density is None
    assert report.total.flops_kept is None
    assert report.activations_measured_with == "not measured"


def test_random_inputs_are_said_to_be_random():
    model = model_of(SHARED, w=random(4, 4), v=random(4, 3))
    measured = measure_activations(model)
    assert "random" in measured.source
    assert measured.counts["x"] == (4, 4)
    assert "(random inputs, not data" in to_markdown(layer_report(model, measured))
    assert measure_activations(model) == measured


def test_measuring_leaves_the_model_alone():
    model = model_of(SHARED, w=random(4, 4), v=random(4, 3))
    before = model.proto.SerializeToString()
    measure_activations(model)
    layer_report(model)
    assert model.proto.SerializeToString() == before


def test_inputs_that_do_not_fit_are_refused():
    model = model_of(SHARED, w=random(4, 4), v=random(4, 3))
    with pytest.raises(DataError, match="the inputs do not fit model 'net'"):
        measure_activations(model, [{"x": np.ones((1, 5), np.float32)}])


def test_activations_are_taken_where_something_else_reads_them():
    text = """agraph (float[1, 4] x) => (float[1, 4] out, float[1, 4] u) {
        a = MatMul (x, w)
        b = Relu (a)
        c = MatMul (b, v)
        d = Add (b, c)
        u = Relu (d)
        e = MatMul (u, t)
        out = Relu (e)
    }"""
    model = model_of(text, w=random(4, 4), v=random(4, 4), t=random(4, 4))
    # b goes on to c and d; c is added to something that varies; out is the model's own.
    assert handed_on_tensors(model.proto, find_sites(model.proto)) == {"a": "b", "c": "c", "e": "out"}


def test_sizes_are_those_of_the_packed_weights(pruned):
    sizes = layer_report(pruned).sizes
    # stem stays dense: 144 bytes. conv keeps 29 of 288 in 8 rows, fc 128 of 1280 in 10 rows: 4 + 2 bytes each.
    assert sizes["weights, csr"] == 144 + 29 * 6 + 9 * 4 + 128 * 6 + 11 * 4
    assert 144 + 29 * 5 + 128 * 4.625 <= sizes["weights, relative index"] < sizes["weights, csr"]


def test_decisions_of_lowering_are_merged_by_weight_and_node(pruned):
    merged = with_lowered(layer_report(pruned), lowered(decision("w2", "conv", "fastest measured")), CHECKED)
    assert [row.decision and row.decision.why for row in merged.layers] == [None, "fastest measured", None]
    assert (merged.target, merged.verification) == ("host", CHECKED)
    assert merged.sizes["library"] == 4
    assert merged.sizes["constants in the library"] == 99
    assert merged.sizes["workspace"] == 512
    cells = layer_cells(merged)
    assert cells.columns[-4:] == ("format", "kernel", "bytes", "why")
    assert cells.rows[0][-4:] == ("-",) * 4
    assert cells.rows[1][-4:] == ("csr", "conv_csr", "1,234", "fastest measured")
    assert cells.last[-4:] == ("", "", "1,234", "")
    assert all(len(row) == len(cells.columns) for row in (*cells.rows, cells.last))


def test_spreads_of_gates_are_short():
    gates = [
        GateResult("g", "speed", "host", 1.0, 0.015451, unit, spread, "passed", "m")
        for unit, spread in (("ms", 3.16e-5), ("x", 0.0397), ("ms", 0.0))
    ]
    assert [row[4] for row in gate_cells(gates).rows] == [
        "0.01545 ms ± 0.000032",
        "0.01545x ± 0.04x",
        "0.01545 ms ± 0",
    ]


def test_terminal_table(pruned):
    stream = io.StringIO()
    Console(file=stream, width=160).print(to_rich(layer_report(pruned)))
    text = stream.getvalue()
    for word in ("layer", "stem|0", "8x4x3x3", "first layer (keep_first)", "total", "activations: not measured"):
        assert word in text


def test_model_without_sites_has_an_empty_table():
    report = layer_report(model_of("agraph (float[N, 4] x) => (float[N, 4] out) { out = Relu (x) }"))
    assert report.layers == ()
    assert report.total.density == 1.0
    assert json.dumps(to_json(report))
    cells = layer_cells(report)
    assert (cells.rows, cells.last) == ((), ("total", "", "0", "0", "-", "100", "-"))
    assert "Layers" not in to_markdown(report)


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0"),
        (36, "36"),
        (500, "0.5K"),
        (25_000, "25K"),
        (235_200, "235K"),
        (884_736, "885K"),
        (3_200_000, "3.2M"),
        (15.47e9, "15.5B"),
    ],
)
def test_quantities(number, text):
    assert quantity(number) == text


@pytest.mark.parametrize(
    ("share", "text"), [(None, "-"), (0, "0"), (1, "100"), (0.38, "38"), (0.0123, "1.2"), (0.0999, "10")]
)
def test_percentages(share, text):
    assert percent(share) == text
