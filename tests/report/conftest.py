import numpy as np
import pytest
from onnx import numpy_helper, parser

from lwc_compiler import figures
from lwc_compiler.codegen.result import LayerDecision, Lowered
from lwc_compiler.errors import Refusal
from lwc_compiler.figures import Figures, Speed, TargetFigures
from lwc_compiler.gates import GateResult
from lwc_compiler.kernels.kernel import Trial
from lwc_compiler.model import Model
from lwc_compiler.passes.prune import prune
from lwc_compiler.recipe.options import PruneOptions
from lwc_compiler.report.document import LayerRow, Report
from lwc_compiler.runtime.layer_times import LayerTime
from lwc_compiler.runtime.manifest import Verification
from lwc_compiler.runtime.timing import Bench, Timing
from lwc_compiler.sparsity.curves import Point, Sensitivity, SiteCurve

# A name that every format has to quote.
NASTY = "<script>alert('x')</script> | \"a\" & `b` ]]> ${c} {{ d }}\x07\n*e* 名"


def model_of(text, name="net", **weights):
    proto = parser.parse_model('<ir_version: 10, opset_import: ["" : 17]>' + text)
    proto.graph.initializer.extend(numpy_helper.from_array(array, key) for key, array in weights.items())
    return Model(proto, name)


@pytest.fixture
def pruned():
    """Three layers, the first left alone and named `stem|0`, the others with a tenth of their weights."""
    generator = np.random.default_rng(0)
    text = """agraph (float[N, 1, 8, 8] x) => (float[N, 10] out) {
        [stem] a = Conv (x, w1)
        r = Relu (a)
        [conv] b = Conv (r, w2)
        s = Relu (b)
        f = Flatten (s)
        [fc] out = Gemm (f, w3)
    }"""
    shapes = {"w1": (4, 1, 3, 3), "w2": (8, 4, 3, 3), "w3": (128, 10)}
    weights = {name: generator.standard_normal(shape, dtype=np.float32) for name, shape in shapes.items()}
    model = model_of(text, **weights)
    model.proto.graph.node[0].name = "stem|0"
    return prune(model, PruneOptions(sparsity=0.9))


def lowered(*decisions):
    return Lowered(
        name="net",
        symbol="net",
        library=b"\x7fELF",
        archive=b"!<arch>\n",
        header="",
        inputs=(),
        outputs=(),
        workspace_bytes=512,
        least_workspace_bytes=512,
        weight_bytes=99,
        layers=decisions,
        programs=(),
        target="host",
        threads=1,
        compiler="cc",
    )


def decision(site, node, why, *trials):
    return LayerDecision(site, node, "Conv", (8, 4, 3, 3), 0.1, "csr", "conv_csr", 1234, 5678, 10, 100, why, trials)


CHECKED = Verification({"out": 1e-7}, 1e-4, 2)


def iterated(name="accuracy", **changes):
    """A provenance entry of two rounds."""
    first = {
        "round": 1,
        "stage": "fc",
        "target": 0.6,
        "density": 0.4,
        "metric": 0.98125,
        "metric_pruned": 0.5,
        "held": True,
        "best_epoch": 7,
        "learning_rate": 0.0001,
        "dropout": {},
        "dead": 1234,
        "sites": {},
        "history": [],
    }
    second = {**first, "round": 2, "stage": "all", "density": 0.08, "metric": 0.9, "held": False, **changes}
    return {
        "pass": "iterate",
        "options": {},
        "metric": name,
        "dense_metric": 0.9836,
        "rounds": [first, second],
        "best_round": 1,
    }


def gate(name, verdict, **changes):
    values = {
        "kind": "size",
        "target": "host",
        "limit": 2000,
        "value": 1234,
        "unit": "bytes",
        "spread": None,
        "message": f"{name} {verdict}",
    }
    return GateResult(name=name, verdict=verdict, **{**values, **changes})


@pytest.fixture
def whole():
    """A report that has everything a report can have, with names that have to be quoted."""
    trials = (Trial("csr 2x3", 9000.0, 1.25e-6), Trial("dense", 8000.0, None))
    chosen = decision("w2", "fc", NASTY, *trials)
    layers = (
        LayerRow(NASTY, "Conv", "w1", (8, 4, 3, 3), 288, 29, 9216, (72, 144), (32, 128), None, None),
        LayerRow(
            "fc",
            "Gemm",
            "w2",
            (128, 10),
            1280,
            128,
            2560,
            (32, 128),
            (10, 10),
            NASTY,
            chosen,
        ),
    )
    points = (Point(1.0, 0.1, 0.98), Point(0.1, 0.2, 0.9), Point(0.01, 1.5, 0.3))
    curves = tuple(
        SiteCurve(row.site, (row.node,), row.op, row.shape, row.weights, row.flops, points) for row in layers
    )
    return Report(
        model=NASTY,
        layers=layers,
        sizes={"weights, dense": 6272, "weights, csr": 1000, "library": 23456},
        activations_measured_with=NASTY,
        passes=(iterated(),),
        source="models/net 1.onnx",
        target="x86-64-v3",
        verification=CHECKED,
        times=Bench(
            1,
            (Timing("lwc", 50, 0.02, 0.019, 0.03, 0.001), Timing("ONNX Runtime 1.19.2", 50, 0.1, 0.09, 0.12, 0.002)),
            5.0,
            0.2,
            (
                LayerTime(NASTY, "csr_conv", "csr", 0.1, 0.015, 0.75, 1.2, 0.04),
                LayerTime("", "pool", "", None, 0.005, 0.25, None, None),
            ),
        ),
        sensitivity=Sensitivity(NASTY, "accuracy", "element", "magnitude", 100, points[0], curves),
        figures=Figures(
            quality=figures.Quality("accuracy", 0.98125, 0.9836, 0.0125, 320, NASTY),
            packed_bytes=900,
            targets={
                "host": TargetFigures(
                    "x86-64-v3",
                    "host.lwc",
                    23456,
                    None,
                    None,
                    Speed(0.02, 0.001, 5.0, 0.2, "ONNX Runtime 1.19.2", "some CPU", 2),
                    "",
                    "",
                ),
                "board|1": TargetFigures("cortex-m4", "board.lwc", 0, 4096, 2048, None, "no clock here", ""),
            },
        ),
        gates=(
            gate("max_bytes", "failed", message=NASTY),
            gate("min_speedup", "warned", kind="speed", limit=4.0, value=5.0, unit="x", spread=1.5),
            gate("max_latency_ms", "skipped", kind="speed", value=None, unit="ms", target="cortex-m4.x"),
            gate("min_metric", "passed", kind="accuracy", limit=0.9, value=0.98125, unit="", target=""),
        ),
    )


@pytest.fixture
def refused():
    """The report of a model that cannot be compiled."""
    reason = "the operator is not handled"
    return Report(NASTY, refused=(Refusal(NASTY, "my.Op", reason), Refusal("", "", "'x' is a sequence")))
