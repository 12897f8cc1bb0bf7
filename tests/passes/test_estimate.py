"""Estimates beside what is compiled, and what they say of themselves."""

import itertools
import json
import math
from pathlib import Path

import pytest

import lwc_compiler as lwc
from benchmarks.models import Network
from lwc_compiler.codegen.sample import Sampler, Way
from lwc_compiler.passes.compact import compact
from lwc_compiler.passes.estimate_points import likely
from lwc_compiler.passes.lower import lower
from lwc_compiler.passes.prune import prune
from lwc_compiler.report.estimates import Estimate, layer_cells, point_cells
from lwc_compiler.sparsity.masks import erdos_renyi_kernel

STRUCTURES = ("element", "4x1")


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LWC_CACHE", str(tmp_path / "lwc"))


def small(name: str = "small") -> lwc.Model:
    """Convolutions, a depthwise one, and fully connected layers; zeros at random cut no channel off."""
    net = Network(name, (1, 3, 16, 16))
    x = net.max_pool(net.relu(net.conv(net.x, "first", (3, 32), 3, 1, 1)), 2, 2)
    y = net.relu(net.conv(x, "second", (32, 32), 3, 1, 1))
    x = net.relu(net.node("Add", net.conv(y, "third", (32, 32), 3, 1, 1), x))
    x = net.max_pool(net.relu(net.conv(x, "depthwise", (32, 32), 3, 1, 1, 32)), 2, 2)
    return lwc.Model(net.model(net.classifier(x, (512, 128, 512), ("fc1", "fc2")), (1, 512)), name)


def estimate(target: str, **options: object) -> Estimate:
    model = options.pop("model", None) or small()
    return lwc.estimate(model, lwc.EstimateOptions(target=target, **{"seconds": 5, **options}))


@pytest.mark.parametrize("target", ["host", "x86-64", "rpi4", "cortex-m4", "cuda:sm_80", "c"])
def test_more_zeros_never_take_more(target: str) -> None:
    found = estimate(target)
    structures = list(dict.fromkeys(point.structure for point in found.points))
    assert structures == (["element"] if "cuda" in target else ["element", "4x1"])
    for structure in structures:
        points = [found.dense, *(point for point in found.points if point.structure == structure)]
        assert [point.sparsity for point in points] == [0, 0.5, 0.7, 0.8, 0.9, 0.95]
        for less, more in itertools.pairwise(points):
            assert more.flops < less.flops
            assert more.density < less.density
            assert more.file_bytes > 0
        assert points[-1].file_bytes < points[0].file_bytes
        if target != "host":  # nothing is measured: no noise in what kernels are chosen, which decides on the bytes
            for less, more in itertools.pairwise(points):
                assert more.file_bytes <= less.file_bytes
                # The kernel for fewer weights may copy more of its input: not less than at the sparsity before.
                assert more.ram_bytes <= 1.02 * found.dense.ram_bytes
            times = [point.cycles for point in points]
            assert times == sorted(times, reverse=True)


@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize(
    ("target", "made"),
    # At 90 % the library is made; at 80 % figures are derived from it. Here measurements choose formats there.
    [("host", 0.9), *((target, made) for target in ("rpi4", "cortex-m4", "cuda:sm_80") for made in (0.9, 0.8))],
)
def test_bytes_and_ram_are_those_of_what_is_compiled(target: str, structure: str, made: float) -> None:
    options = lwc.PruneOptions(sparsity=made, structure=structure)
    lowered = lower(compact(prune(small(), options)), lwc.LowerOptions(target=target))
    found = estimate(target, structures=(structure,), sparsities=(0.5, made, 0.9) if made < 0.9 else (0.9,), seconds=0)
    (point,) = [point for point in found.points if point.sparsity == made]
    size = len(lowered.library) if lowered.footprint is None else lowered.footprint.flash
    around = 4 * (3 * 16 * 16 + 512)
    static = size if lowered.footprint is None else lowered.footprint.static_ram
    # Sections of a library begin at pages.
    assert point.file_bytes == pytest.approx(size, rel=0.05, abs=0 if lowered.footprint else 4096)
    assert point.ram_bytes == pytest.approx(static + lowered.workspace_bytes + around, rel=0.05)


def test_kernels_are_measured_here_and_predicted_elsewhere() -> None:
    unmeasured = estimate("host", sparsities=(0.9,), seconds=0)
    assert all(0 <= point.measured < 1 for point in unmeasured.points)
    here = estimate("host", sparsities=(0.9,), seconds=600)
    assert all(point.cycles is None and 0 < point.seconds < 0.1 for point in (here.dense, *here.points))
    assert [point.measured for point in here.points] == [pytest.approx(1)] * 2
    core, board = estimate("cortex-m4", sparsities=(0.9,)), estimate("stm32f4", sparsities=(0.9,))
    for processor, same in zip((core.dense, *core.points), (board.dense, *board.points), strict=True):
        assert processor.seconds is None
        assert processor.measured == 0
        assert same.cycles == processor.cycles
        assert same.seconds == pytest.approx(processor.cycles / 168e6)
    assert any("predicted" in note for note in core.notes)
    assert not any("predicted" in note for note in here.notes)


def test_one_kernel_of_each_kind_is_measured_early(monkeypatch: pytest.MonkeyPatch) -> None:
    turns: list[list[Way]] = []
    monkeypatch.setattr(Sampler, "measure", lambda self, ways, end: turns.append(list(ways)))
    estimate("host", sparsities=(0.9,))
    _, kinds, _, dense, *_ = turns
    assert sorted(way.kind for way in kinds) == sorted({way.kind for way in dense})
    assert len(kinds) > 1
    for largest in kinds:
        alike = [way.candidate.cycles for way in dense if way.kind == largest.kind]
        assert largest.candidate.cycles == max(alike)


def test_a_form_of_the_network_as_it_is_has_to_be_clearly_faster() -> None:
    assert likely([1.0]) == 0
    assert likely([0.99, 1.0]) == 1
    assert likely([0.8, 1.0, 1.1]) == 0
    assert likely([0.99, 1.1, 1.0]) == 2


def test_a_board_without_the_memory_is_said_and_not_refused() -> None:
    net = Network("large", (1, 1024))
    model = lwc.Model(net.model(net.classifier(net.x, (1024, 2048, 32, 10), ("fc1", "fc2", "fc3")), (1, 10)), "large")
    found = estimate("stm32f4", model=model, sparsities=(0.5, 0.95), keep_first=False)
    assert [point.fits for point in found.points if point.structure == "element"] == [False, True]
    assert not found.dense.fits
    columns, rows = point_cells(found)
    assert columns[-1] == "fits"
    assert {row[-1] for row in rows} == {"yes", "no"}


def test_layers_that_are_kept_are_named_with_the_reason() -> None:
    found = estimate("cortex-m4", sparsities=(0.9,), keep=("fc2*",))
    kept = {layer.nodes[0]: layer.kept_because for layer in found.layers}
    assert list(kept.values()) == [
        "first layer (keep_first)",
        None,
        None,
        "depthwise convolution (keep_depthwise)",
        None,
        "keep entry 'fc2*'",
    ]
    assert sum(layer.share for layer in found.layers) < 1 + 1e-9
    pruned = [layer for layer in found.layers if layer.kept_because is None]
    assert all(set(layer.pays) == set(STRUCTURES) for layer in pruned)
    sizes = {"first": 864, "second": 9216, "third": 9216, "depthwise": 288, "fc1": 65536, "fc2": 65536}
    total = sum(sizes.values())
    kept_weights = sizes["first"] + sizes["depthwise"] + sizes["fc2"]
    assert found.points[0].density == pytest.approx((kept_weights + 0.1 * (total - kept_weights)) / total)


def test_a_layer_pays_from_where_it_is_as_fast_as_with_all_weights() -> None:
    found = estimate("cortex-m4", sparsities=(0.05, 0.5, 0.9))
    for layer in (layer for layer in found.layers if layer.kept_because is None):
        for structure in STRUCTURES:
            assert layer.pays[structure] is None or 0.01 <= layer.pays[structure] <= 1
    (fc1,) = [layer for layer in found.layers if layer.shape == (128, 512)]
    # A non-zero of a scalar product takes 5.7 cycles, a stored one 2.2 (kernels/matmul.py).
    assert fc1.pays["element"] == pytest.approx(2.2 / 5.7, abs=0.02)


def test_criteria_share_the_density_differently() -> None:
    uniform = estimate("cortex-m4", sparsities=(0.9,), structures=("element",)).points[0]
    shared = estimate("cortex-m4", sparsities=(0.9,), structures=("element",), criterion="erdos-renyi-kernel").points[0]
    assert shared.density == pytest.approx(uniform.density, rel=1e-6)
    shapes = {"second": (32, 32, 3, 3), "third": (32, 32, 3, 3), "fc1": (128, 512), "fc2": (512, 128)}
    positions = {"second": 64, "third": 64, "fc1": 1, "fc2": 1}
    densities = erdos_renyi_kernel(shapes, 0.1, dict.fromkeys(shapes, 1.0))
    pruned = sum(positions[name] * math.prod(shape) * densities[name] for name, shape in shapes.items())
    assert shared.flops == pytest.approx(2 * (864 * 256 + 288 * 64 + pruned), abs=1)
    assert shared.flops != uniform.flops


def test_what_a_structure_cannot_keep_is_left_out() -> None:
    found = estimate("cortex-m4", sparsities=(0.5, 0.8), structures=("1:4",))
    assert [point.sparsity for point in found.points] == [0.8]
    assert "1:4 at 50 %" in found.notes[0]
    with pytest.raises(lwc.OptionError, match="at most 25 %"):
        estimate("cortex-m4", sparsities=(0.5,), structures=("1:4",))


def test_what_cannot_be_estimated_is_refused() -> None:
    with pytest.raises(lwc.TargetError, match="unknown target"):
        estimate("cortex-m5")
    with pytest.raises(lwc.ModelError, match="nothing to prune"):
        estimate("cortex-m4", keep=("*",))
    net = Network("nonzero", (1, 8))
    x = net.dense(net.x, "fc", 8, 8)
    model = lwc.Model(net.model(net.node("NonZero", x), (2, 8)), "nonzero")
    with pytest.raises(lwc.UnsupportedError, match="NonZero"):
        estimate("cortex-m4", model=model, keep_first=False)


def test_command(lwc, tmp_path: Path) -> None:
    import lwc_compiler

    lwc_compiler.save(small(), tmp_path / "small.onnx")
    arguments = ("estimate", tmp_path / "small.onnx", "--target", "cortex-m4", "--sparsity", "0.9")
    done = lwc(*arguments)
    assert done.code == 0, done.err
    assert "Mcycles" in done.out
    assert "element pays up to density %" in " ".join(done.out.split())
    found = json.loads(lwc(*arguments, "--json").out)
    assert [point["sparsity"] for point in found["points"]] == [0.9, 0.9]
    assert found["target"] == "cortex-m4"
    assert lwc("estimate", tmp_path / "small.onnx", "--target", "nothing").code == lwc_compiler.TargetError.exit_code


def test_tables() -> None:
    found = estimate("host", sparsities=(0.9,))
    for columns, rows in (point_cells(found), layer_cells(found)):
        assert {len(row) for row in rows} == {len(columns)}
    columns, rows = point_cells(found)
    assert columns[2] == "latency ms"
    assert rows[0][:2] == ("dense", "0")
    assert [row[:2] for row in rows[1:]] == [("element", "90"), ("4x1", "90")]
