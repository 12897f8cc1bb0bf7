import logging
import os
import subprocess
import sys
from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib.patches import StepPatch
from onnx import numpy_helper, parser
from PIL import Image

from lwc_compiler.errors import ArtifactError
from lwc_compiler.model import Model
from lwc_compiler.report.plots import (
    Curve,
    TrainedRound,
    figure_of_scan,
    figures_of,
    files,
    kernel_picture,
    layer_density,
    layer_time,
    mask_picture,
    plots_available,
    save_plots,
    sensitivity,
    trade_off,
    training_curve,
    weight_histogram,
)
from lwc_compiler.sparsity.curves import Point, Sensitivity, SiteCurve

RNG = np.random.default_rng(0)


def line(axes, label):
    """The x and y values of the line with this label."""
    (found,) = [artist for artist in axes.get_lines() if artist.get_label() == label]
    return list(found.get_xdata()), list(found.get_ydata())


def labels(axes):
    return [text.get_text() for text in axes.get_legend().get_texts()]


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


L2 = Curve("L2", [0.5, 0.1, 0.02], [0.984, 0.983, 0.95], spread=[0.001, 0.002, 0.003], missed=[False, False, True])
L1 = Curve("L1, not retrained", [0.5, 0.1], [0.97, 0.4])


def every_plot():
    return {
        "trade-off": trade_off([L2, L1], dense=0.984, chosen=(0.1, 0.983)),
        "sensitivity": sensitivity([L2, L1], suggested={"L2": 0.1}, dense=0.984),
        "grid": sensitivity([Curve(f"layer{i}", [1, 0.5, 0.1], [0.9, 0.8, 0.1 * i]) for i in range(7)]),
        "histogram": weight_histogram({"fc": (np.arange(-4.0, 5), np.array([0.0, 3, -3]))}),
        "times": layer_time({"conv": (2.0, 0.5), "softmax": (None, 0.1)}),
        "density": layer_density({"conv": (9, 9), "fc": (5, 100)}),
        "mask": mask_picture("fc", np.eye(64, dtype=bool), (8, 8)),
        "kernels": kernel_picture("conv", np.ones((4, 3, 3, 3), bool)),
        "training": training_curve([TrainedRound("1", 0.5, [0, 1, 2], [0.1, 0.8, 0.9], 2)] * 2, dense=0.9),
    }


def test_files_are_png_and_svg_and_the_same_each_time(tmp_path):
    figures = every_plot()
    paths = save_plots(figures, tmp_path / "plots")
    assert [path.name for path in paths[:2]] == ["trade-off.png", "trade-off.svg"]
    assert sorted(paths) == sorted((tmp_path / "plots").iterdir())
    assert len(paths) == 2 * len(figures)
    for path in paths:
        if path.suffix == ".png":
            with Image.open(path) as image:
                image.verify()
                assert image.format == "PNG"
                assert "Software" not in image.info
        else:
            assert ElementTree.parse(path).getroot().tag == "{http://www.w3.org/2000/svg}svg"
            assert not [word for word in ("dc:date", "dc:creator") if word in path.read_text(encoding="utf-8")]
    save_plots(every_plot(), tmp_path / "again")
    assert content(tmp_path / "again") == content(tmp_path / "plots")


def test_settings_of_the_user_neither_count_nor_change(tmp_path):
    """In a process of its own, whose matplotlib has other settings and in which pyplot was never imported."""
    script = (
        "import sys, pathlib, matplotlib\n"
        "matplotlib.rcParams.update({'lines.linewidth': 9, 'font.size': 30, 'axes.facecolor': 'red'})\n"
        "def settings():\n"
        "    values = {key: dict.__getitem__(matplotlib.rcParams, key) for key in matplotlib.rcParams.keys()}\n"
        "    return {key: str(value) for key, value in values.items()}\n"
        "before = settings()\n"
        "from lwc_compiler.report.plots import layer_density, save_plots\n"
        "save_plots({'density': layer_density({'fc': (5, 100)})}, pathlib.Path(sys.argv[1]))\n"
        "assert settings() == before\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", script, str(tmp_path / "other")], check=True)
    save_plots({"density": layer_density({"fc": (5, 100)})}, tmp_path / "plain")
    assert content(tmp_path / "other") == content(tmp_path / "plain")


def test_a_failed_write_leaves_no_part_of_a_file(tmp_path, monkeypatch):
    figure = layer_density({"fc": (5, 100)})
    (tmp_path / "plots").mkdir()
    (tmp_path / "plots" / "density.png").write_bytes(b"old")

    def full(new, **_):
        new.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(figure, "savefig", full)
    with pytest.raises(ArtifactError, match=r"cannot write plots to .*plots: No space left on device"):
        save_plots({"density": figure}, tmp_path / "plots")
    assert content(tmp_path / "plots") == {"density.png": b"old"}


def test_matplotlib_is_looked_for_and_its_absence_logged(monkeypatch, caplog):
    assert plots_available()
    assert not caplog.records
    monkeypatch.setattr(files, "find_spec", lambda name: None)
    with caplog.at_level(logging.WARNING):
        assert not plots_available()
    assert caplog.messages == ["reports come without plots: install lwc-compiler[plots]"]


def test_importing_needs_no_matplotlib():
    script = "import sys; sys.modules['matplotlib'] = None; import lwc_compiler.report.plots, lwc_compiler.report.write"
    subprocess.run([sys.executable, "-c", script], check=True, env={**os.environ})


def test_trade_off_shows_what_it_is_given():
    figure = trade_off([L2, L1], dense=0.984, chosen=(0.1, 0.983))
    axes = figure.axes[0]
    assert line(axes, "L2") == ([0.5, 0.1, 0.02], [0.984, 0.983, 0.95])
    assert line(axes, "L1, not retrained") == ([0.5, 0.1], [0.97, 0.4])
    assert line(axes, "model kept") == ([0.1], [0.983])
    assert line(axes, "dense")[1] == [0.984, 0.984]
    assert labels(axes) == ["dense", "L2", "L1, not retrained", "accuracy not held", "model kept"]
    bars = [segment[:, 1].tolist() for segment in axes.collections[0].get_segments()]
    assert bars == [pytest.approx(ends) for ends in ([0.983, 0.985], [0.981, 0.985], [0.947, 0.953])]
    (hollow,) = [
        artist for artist in axes.get_lines() if artist.get_markerfacecolor() == "white" and artist.get_xdata().size
    ]
    assert list(hollow.get_xdata()) == [0.02]


def test_trade_off_axes():
    figure = trade_off([L2, L1], dense=0.984)
    axes = figure.axes[0]
    assert axes.get_xlabel() == "Weights pruned (%)"
    assert axes.get_ylabel() == "Accuracy (%)"
    assert axes.get_xscale() == "log"
    left, right = axes.get_xlim()
    assert left > 0.5 > 0.02 > right
    ticks = dict(zip(axes.get_xticks(), [text.get_text() for text in axes.get_xticklabels()], strict=True))
    assert ticks == {0.5: "50", 0.2: "80", 0.1: "90", 0.05: "95", 0.02: "98"}
    (above,) = axes.child_axes
    times = [text.get_text().rstrip("\N{MULTIPLICATION SIGN}") for text in above.get_xticklabels()]
    assert times == ["2", "5", "10", "20", "50"]
    # The highest value is the end of an error bar, 0.985; 5 points below it the view ends, and a margin of 6 % of that.
    assert axes.get_ylim() == pytest.approx((0.935 - 0.003, 0.985 + 0.003))


def test_the_view_follows_a_curve_that_is_bad_throughout():
    low, high = trade_off([Curve("bad", [0.1, 0.05], [0.3, 0.1])], dense=0.984).axes[0].get_ylim()
    assert 0.1 < low < 0.3
    assert high > 0.984


def test_a_curve_beside_better_ones_may_leave_the_view_and_the_legend_says_so():
    axes = trade_off([Curve("good", [0.1, 0.05], [0.98, 0.97]), Curve("bad", [0.1, 0.05], [0.3, 0.1])]).axes[0]
    assert axes.get_ylim()[0] > 0.9
    assert labels(axes) == ["good", "bad (out of view)"]


def test_errors_are_better_when_low():
    axes = trade_off([Curve("a", [0.5, 0.1, 0.05], [0.016, 0.02, 0.9])], dense=0.0164, metric="error").axes[0]
    assert axes.get_ylim() == pytest.approx((0.016 - 0.003, 0.066 + 0.003))
    assert axes.get_ylabel() == "Error (%)"


def test_other_metrics_are_shown_whole():
    axes = trade_off([Curve("a", [0.5, 0.1], [0.1, 20.0])], metric="loss").axes[0]
    assert axes.get_ylabel() == "Loss"
    low, high = axes.get_ylim()
    assert low < 0.1 < 20 < high


@pytest.mark.parametrize("count", [1, 6, 7, 54])
def test_sensitivity_of_any_number_of_layers(count):
    curves = [Curve(f"/block{i}/conv", [1.0, 0.5, 0.1], [0.9, 0.8, 0.01 * i]) for i in range(count)]
    figure = sensitivity(curves, suggested={curve.name: 0.3 for curve in curves}, dense=0.9)
    panels = figure.axes
    assert len(panels) == (1 if count <= 6 else count)
    for index, curve in enumerate(curves):
        panel = panels[0 if count <= 6 else index]
        assert line(panel, curve.name) == (list(curve.density), list(curve.metric))
    suggested = [artist for panel in panels for artist in panel.get_lines() if list(artist.get_xdata()) == [0.3, 0.3]]
    assert len(suggested) == count
    if count > 6:
        assert [panel.get_title(loc="left") for panel in panels] == [curve.name for curve in curves]
        assert figure.get_supylabel() == "Accuracy (%)"


def test_no_layers_make_an_empty_plot(tmp_path):
    figures = {"sensitivity": sensitivity([]), "density": layer_density({}), "histogram": weight_histogram({})}
    assert len(save_plots({**figures, "trade-off": trade_off([])}, tmp_path)) == 8


def test_histogram_counts_the_weights():
    before, after = np.array([[-2.0, -0.5, 0.5, 2.0]], np.float32), np.array([[-2.0, 0, 0, 2.0]], np.float16)
    figure = weight_histogram({"fc1": (before, after), "new": (None, after)})
    assert [axes.get_title(loc="left") for axes in figure.axes] == [
        "fc1, dense: 4 weights",
        "fc1, pruned: 2 weights",
        "new, dense: 0 weights",
        "new, pruned: 2 weights",
    ]
    for axes, values in zip(figure.axes, ([-2, -0.5, 0.5, 2], [-2, 2], [], [-2, 2]), strict=True):
        (steps,) = [patch for patch in axes.patches if isinstance(patch, StepPatch)]
        counts, edges, _ = steps.get_data()
        assert edges[-1] == -edges[0] == axes.get_xlim()[1]
        expected = [value for value in values if edges[0] <= value <= edges[-1]]
        assert counts.sum() == len(expected)
        for value in expected:
            assert counts[np.searchsorted(edges, value, side="right") - 1 - (value == edges[-1])] >= 1


def test_histogram_without_the_dense_model_has_one_column():
    assert len(weight_histogram({"fc1": (None, np.ones(3)), "fc2": (None, np.zeros(3))}).axes) == 2


def test_density_bars():
    axes = layer_density({"conv1": (500, 500), "fc1": (32_000, 400_000)}).axes[0]
    assert [bar.get_width() for bar in axes.patches] == [1.0, 0.08]
    assert [text.get_text() for text in axes.texts] == ["100 % of 0.5K", "8 % of 400K"]
    assert [text.get_text() for text in axes.get_yticklabels()] == ["conv1", "fc1"]
    assert max(axes.get_xticks()) <= 1
    low, high = axes.get_ylim()
    assert low > high  # the first is on top


def test_mask_picture_of_a_matrix():
    mask = RNG.random((300, 784)) < 0.1
    dots, pixels = mask_picture("fc1", mask, (28, 28)).axes
    np.testing.assert_array_equal(dots.images[0].get_array(), mask[:100, :300])
    assert dots.get_title(loc="left").endswith(
        "first 100 \N{MULTIPLICATION SIGN} 300 of 300 \N{MULTIPLICATION SIGN} 784"
    )
    np.testing.assert_array_equal(pixels.images[0].get_array(), mask.sum(axis=0).reshape(28, 28))


def test_channels_of_an_image_are_added():
    mask = RNG.random((5, 3 * 4 * 4)) < 0.5
    counts = mask_picture("fc", mask, (4, 4)).axes[1].images[0].get_array()
    np.testing.assert_array_equal(counts, mask.reshape(5, 3, 4, 4).sum(axis=(0, 1)))


def test_kernel_picture_holds_every_kernel_apart():
    mask = RNG.random((4, 2, 3, 2)) < 0.5
    sheet = kernel_picture("conv", mask).axes[0].images[0].get_array().filled(np.nan)
    assert np.isnan(sheet[3::4]).all()
    assert np.isnan(sheet[:, 2::3]).all()
    tiles = [
        sheet[top : top + 3, left : left + 2] for top in range(0, len(sheet), 4) for left in range(0, sheet.shape[1], 3)
    ]
    np.testing.assert_array_equal(np.stack(tiles)[:8], mask.reshape(8, 3, 2))
    assert np.isnan(np.stack(tiles)[8:]).all()


@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (2, 3, 5), (2, 2, 2, 3, 3), (64, 3, 7, 7)])
@pytest.mark.parametrize("kept", [True, False])
def test_kernels_of_any_shape_full_and_empty(shape, kept):
    axes = kernel_picture("conv", np.full(shape, kept)).axes[0]
    assert np.ma.compressed(axes.images[0].get_array()).mean() == kept
    assert axes.get_title(loc="left").startswith(f"conv: {100 if kept else 0} % kept")


@pytest.mark.parametrize("shape", [(1, 1), (10, 100), (500, 3)])
def test_empty_masks(shape, tmp_path):
    save_plots({"mask": mask_picture("fc", np.zeros(shape, bool), (1, shape[1]))}, tmp_path)


def test_training_curve_puts_rounds_end_to_end():
    rounds = [
        TrainedRound("1", 0.5, [0, 1, 2], [0.1, 0.8, 0.9], 2, chosen=True),
        TrainedRound("2", 0.2, [0, 1], [0.5, 0.7], 1),
    ]
    above, below = training_curve(rounds, dense=0.95).axes
    assert line(above, "validation") == ([0, 1, 2, 2, 3], [0.1, 0.8, 0.9, 0.5, 0.7])
    assert line(above, "epoch kept") == ([2, 3], [0.9, 0.7])
    (steps,) = [patch for patch in below.patches if isinstance(patch, StepPatch)]
    assert list(steps.get_data().values) == [0.5, 0.2]
    assert list(steps.get_data().edges) == [0, 2, 3]
    assert [(text.get_text(), text.get_weight()) for text in above.texts] == [("1", "bold"), ("2", "normal")]
    low, high = above.get_ylim()
    assert low < 0.7 < 0.95 < high  # the best of a bad round is in view


def test_training_without_densities_has_one_panel():
    figure = training_curve([TrainedRound("1", None, [0, 1], [2.0, 1.0], 1)], metric="loss")
    assert len(figure.axes) == 1
    assert not figure.axes[0].texts


@pytest.mark.parametrize("name", ["a$b$c", "x" * 99, "層", "a\x01b", "<&>--"])
def test_layers_may_have_any_name(name, tmp_path):
    figures = {"density": layer_density({name: (1, 2)}), "trade-off": trade_off([Curve(name, [0.5], [0.9])])}
    for path in save_plots(figures, tmp_path):
        if path.suffix == ".svg":
            ElementTree.parse(path)


# Figures of a model


def model_of(text, provenance=(), **weights):
    proto = parser.parse_model('<ir_version: 10, opset_import: ["" : 17]>' + text)
    proto.graph.initializer.extend(numpy_helper.from_array(array, key) for key, array in weights.items())
    return Model(proto, "net", provenance=tuple(provenance))


def sparse(*shape, density):
    return np.where(RNG.random(shape) < density, RNG.standard_normal(shape), 0).astype(np.float32)


def mlp(inputs="N, 64", provenance=(), density=0.2):
    return model_of(
        f"agraph (float[{inputs}] x) => (float[N, 4] out) {{"
        "f = Flatten (x) [fc1] a = Gemm (f, w1) r = Relu (a) [fc2] out = Gemm (r, w2) }",
        provenance,
        w1=sparse(64, 20, density=density),
        w2=sparse(20, 4, density=0.5 if density < 1 else 1),
    )


def round_entry(number, density, metric, held, stage="all", metric_pruned=0.5):
    history = [{"epoch": epoch, "metric": value} for epoch, value in enumerate([0.5, metric - 0.01, metric])]
    return {
        "round": number,
        "stage": stage,
        "density": density,
        "metric": metric,
        "metric_pruned": metric_pruned,
        "held": held,
        "best_epoch": 2,
        "history": history,
    }


def iterated(*rounds, best_round):
    return {"pass": "iterate", "metric": "accuracy", "dense_metric": 0.98, "rounds": rounds, "best_round": best_round}


ROUNDS = (round_entry(1, 0.4, 0.98, True), round_entry(2, 0.1, 0.9, False), round_entry(3, 0.2, 0.97, True))


def test_figures_of_a_model_that_was_pruned_in_rounds():
    before, after = mlp(density=1), mlp(provenance=[iterated(*ROUNDS, best_round=3)])
    figures = figures_of(before, after)
    assert list(figures) == ["trade-off", "training", "density", "histogram", "mask-1", "mask-2"]
    axes = figures["trade-off"].axes[0]
    assert line(axes, "retrained") == ([0.4, 0.2, 0.1], [0.98, 0.97, 0.9])
    assert line(axes, "before retraining (out of view)") == ([0.4, 0.2, 0.1], [0.5] * 3)
    assert line(axes, "model kept") == ([0.2], [0.97])
    x, y = line(figures["training"].axes[0], "validation")
    assert x == [0, 1, 2, 2, 3, 4, 4, 5, 6]
    assert y == pytest.approx([0.5, 0.97, 0.98, 0.5, 0.89, 0.9, 0.5, 0.96, 0.97])
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in after.proto.graph.initializer}
    shares = [bar.get_width() for bar in figures["density"].axes[0].patches]
    assert shares == [np.count_nonzero(weights[name]) / weights[name].size for name in ("w1", "w2")]
    dots, pixels = figures["mask-1"].axes
    np.testing.assert_array_equal(dots.images[0].get_array(), weights["w1"].T != 0)
    np.testing.assert_array_equal(pixels.images[0].get_array(), (weights["w1"] != 0).sum(axis=1).reshape(8, 8))
    assert len(figures["histogram"].axes) == 4


def test_rounds_of_which_none_holds():
    figures = figures_of(None, mlp(provenance=[iterated(round_entry(1, 0.4, 0.9, False), best_round=0)]))
    assert labels(figures["trade-off"].axes[0]) == [
        "dense",
        "retrained",
        "before retraining (out of view)",
        "accuracy not held",
    ]


def test_rounds_in_stages_count_after_the_last_one():
    rounds = [round_entry(1, 0.4, 0.98, True, "fc"), round_entry(1, 0.3, 0.97, True, "conv")]
    figures = figures_of(None, mlp(provenance=[iterated(*rounds, best_round=1)]))
    assert line(figures["trade-off"].axes[0], "retrained") == ([0.3], [0.97])
    names = [(text.get_text(), text.get_weight()) for text in figures["training"].axes[0].texts]
    assert names == [("1 fc", "normal"), ("1 conv", "bold")]


def test_a_gradual_training_has_no_metric_before_retraining():
    only = round_entry(1, 0.1, 0.97, None, metric_pruned=None)
    axes = figures_of(None, mlp(provenance=[iterated(only, best_round=1)]))["trade-off"].axes[0]
    assert labels(axes) == ["dense", "retrained", "model kept"]


def test_retrainings_are_rounds_with_the_density_of_the_pruning_before():
    history = [{"epoch": i, "metric": 0.5 + 0.1 * i} for i in range(3)]
    trained = {"pass": "retrain", "metric": "accuracy", "history": history, "best_epoch": 2}
    passes = [{"pass": "prune", "density": 0.4}, trained, {"pass": "prune", "density": 0.1}, trained]
    figures = figures_of(None, mlp(provenance=[*passes]))
    assert list(figures) == ["training", "density", "histogram", "mask-1", "mask-2"]
    above, below = figures["training"].axes
    assert line(above, "epoch kept")[0] == [2, 4]
    (steps,) = [patch for patch in below.patches if isinstance(patch, StepPatch)]
    assert list(steps.get_data().values) == [0.4, 0.1]


@pytest.mark.parametrize(("metric", "values"), [("accuracy", [0.9, 0.5]), ("loss", [0.1, 2.0])])
def test_figure_of_a_scan(metric, values):
    points = (Point(1.0, 0.1, 0.9), Point(0.1, 2.0, 0.5))
    sites = tuple(
        SiteCurve(weight, (f"node of {weight}",), "Gemm", (4, 4), 16, None, points) for weight in ("w1", "w2")
    )
    found = Sensitivity("net", metric, "element", "magnitude", 100, points[0], sites)
    axes = figure_of_scan(found, {"w2": 0.25}).axes[0]
    assert line(axes, "node of w1") == ([1.0, 0.1], values)
    assert line(axes, "dense")[1] == [values[0]] * 2
    (suggested,) = [artist for artist in axes.get_lines() if list(artist.get_xdata()) == [0.25, 0.25]]
    assert suggested.get_color() == next(a for a in axes.get_lines() if a.get_label() == "node of w2").get_color()


def test_a_dense_model_that_was_never_trained_gives_nothing():
    assert figures_of(None, mlp(density=1)) == {}
    assert figures_of(None, model_of("agraph (float[N, 4] x) => (float[N, 4] out) { out = Relu (x) }")) == {}


@pytest.mark.parametrize(
    ("inputs", "pixels"),
    [
        ("N, 64", (8, 8)),
        ("N, 1, 8, 8", (8, 8)),
        ("N, 4, 16", (4, 16)),
        ("N, 4, 4, 4", (4, 4)),
        ("N, 8, 4, 2", None),
    ],
)
def test_inputs_are_seen_as_an_image_where_they_can_be_one(inputs, pixels):
    axes = figures_of(None, mlp(inputs))["mask-1"].axes
    assert (axes[1].images[0].get_array().shape if len(axes) > 1 else None) == pixels


def test_convolutions_show_kernels_and_pointwise_ones_a_matrix():
    text = """agraph (float[1, 2, 8, 8] x) => (float[1, 4, 6, 6] out) {
        [conv1] a = Conv (x, w1)
        [conv2] out = Conv (a, w2)
    }"""
    w1, w2 = sparse(3, 2, 3, 3, density=0.5), sparse(4, 3, 1, 1, density=0.5)
    figures = figures_of(None, model_of(text, w1=w1, w2=w2))
    kernels = figures["mask-1"].axes[0].images[0].get_array()
    assert np.ma.count(kernels) == w1.size
    assert kernels.sum() == np.count_nonzero(w1)
    np.testing.assert_array_equal(figures["mask-2"].axes[0].images[0].get_array(), w2[:, :, 0, 0] != 0)


def test_layers_that_share_a_name_go_by_their_weights():
    model = mlp()
    for node in model.proto.graph.node:
        if node.op_type == "Gemm":
            node.name = "same"
    axes = figures_of(None, model)["density"].axes[0]
    assert [text.get_text() for text in axes.get_yticklabels()] == ["w1", "w2"]
