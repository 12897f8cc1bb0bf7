"""The paper's tables with ours beside them, against tables written by hand."""

import json

import pytest

from lwc_compiler.errors import ArtifactError
from lwc_compiler.reproduce.paper import NETWORKS, Figure
from lwc_compiler.reproduce.results import Results, Round, TradeOff, Trained, summary
from lwc_compiler.reproduce.tables import Layer, mean_like, to_markdown, write_summary

COLUMNS = ("weights", "FLOP", "Act%", "Weights%", "FLOP%")
SEEDS = "lwc: mean ± standard deviation of 2 seeds."
RATE = (
    "Parameters include biases, the rate counts weights. Packed: the file of `lwc pack`, against 4 bytes for each "
    "dense parameter; `shared` networks have weights of few values. Images were as they are. "
    "Minutes are those of one seed and stage on 1 thread."
)
DENSE = (
    Layer("fc1", 235_200, 470_400, 0.5, 1.0, 1.0),
    Layer("fc2", 30_000, 60_000, 0.75, 1.0, 0.5),
    Layer("fc3", 1_000, 2_000, 1.0, 1.0, 0.75),
    Layer("total", 266_200, 532_400, 0.567, 1.0, 0.943),
)


def pruned(kept, active):
    """Rows of a pruned network; the total's shares are made up."""
    return (
        Layer("fc1", 235_200, 470_400, active, kept, kept),
        Layer("fc2", 30_000, 60_000, 0.6, 0.09, 0.09 * active),
        Layer("fc3", 1_000, 2_000, 1.0, 0.26, 0.156),
        Layer("total", 266_200, 532_400, 0.5, 0.08, None),
    )


def trained(name, kept, test_error, layers, **others):
    values = {"rounds": (Round(0.2, 0.5, 0.02),), "seconds": 90.0, "interrupted": False, **others}
    return Trained(
        name=name,
        weights=266_200,
        kept=kept,
        parameters=kept + 410,
        packed_bytes=4 * kept,
        validation_error=0.015,
        test_error=test_error,
        layers=layers,
        **values,
    )


def results(dataset="mnist", **others):
    return Results(
        "lenet-300-100",
        dataset,
        {
            0: (
                trained("dense", 266_200, 0.0160, DENSE, rounds=()),
                trained("12x", 22_000, 0.0150, pruned(0.07, 0.4)),
            ),
            1: (
                trained("dense", 266_200, 0.0164, DENSE, rounds=()),
                trained("12x", 22_000, 0.0154, pruned(0.09, 0.2), **others),
            ),
        },
        (TradeOff("L2, no retraining", (1.0, 0.5), (0.015, 0.02)), TradeOff("L1, retrained", (1.0, 0.1), (0.016, 0.3))),
        threads=1,
        note="Images were as they are.",
    )


def test_report():
    # Standard deviations by hand: two values d apart have d / sqrt(2).
    assert to_markdown(summary(results())).splitlines() == [
        "# LeNet-300-100 on MNIST",
        "",
        "## Table 1: LeNet-300-100 on MNIST",
        "",
        "|  | test error % | validation error % | parameters | weights | rate | packed bytes | smaller | minutes |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
        "| paper, dense | 1.64 | - | 267K | - | - | - | - | - |",
        "| paper, pruned | 1.59 | - | 22K | - | 12x | - | - | - |",
        "| lwc, dense | 1.62 ± 0.03 | 1.50 | 266.6K | 266.2K | 1.0x | 1064.8K | 1.0x | 1.5 |",
        "| lwc, 12x | 1.52 ± 0.03 | 1.50 | 22.4K | 22.0K | 12.1x | 88.0K | 12.1x | 1.5 |",
        "",
        f"{SEEDS} The test images were used once, after all training. {RATE}",
        "",
        "## Table 2: LeNet-300-100, 12x",
        "",
        f"| layer | {' | '.join(f'{name}, paper | {name}, lwc' for name in COLUMNS)} |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
        "| fc1 | 235K | 235K | 470K | 470K | 38 | 30 ± 14 | 8 | 8 ± 1 | 8 | 8 ± 1 |",
        "| fc2 | 30K | 30K | 60K | 60K | 65 | 60 | 9 | 9 | 4 | 3 ± 1 |",
        "| fc3 | 1K | 1K | 2K | 2K | 100 | 100 | 26 | 26 | 17 | 16 |",
        "| total | 266K | 266K | 532K | 532K | 46 | 50 | 8 | 8 | 8 | - |",
        "",
        f"{SEEDS} Act% was measured on the validation images.",
        "",
        "## Figure 5: what is lost without retraining, and what L1 and L2 do",
        "",
        "| weights kept % | L2, no retraining | L1, retrained |",
        "| --- | ---: | ---: |",
        "| 100 | 1.50 | 1.60 |",
        "| 50 | 2.00 | - |",
        "| 10 | - | 30.00 |",
        "",
        "Validation error in percent against the weights kept in percent; seed 0.",
    ]


def test_other_data_stands_alone_and_interruptions_are_told():
    table, layers, _ = summary(results("fashion-mnist", interrupted=True)).tables
    assert [row[0] for row in table.rows] == ["lwc, dense", "lwc, 12x"]
    assert table.title == "Table 1: LeNet-300-100 on Fashion-MNIST"
    assert layers.note.endswith("The paper's figures are for MNIST.")
    assert table.note.endswith("on 1 thread; some runs were interrupted, and count from there.")


def test_json_holds_every_figure(tmp_path):
    write_summary(summary(results()), tmp_path)
    content = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    assert content["seeds"]["1"][1]["test_error"] == 0.0154
    assert content["seeds"]["0"][1]["layers"][0]["kept"] == 0.07
    assert content["seeds"]["0"][1]["rounds"] == [{"density": 0.2, "error_before_retraining": 0.5, "error": 0.02}]
    assert content["figure_5"][1]["errors"] == [0.016, 0.3]


def test_results_that_cannot_be_written_are_an_error(tmp_path):
    with pytest.raises(ArtifactError, match=r"cannot write results to .*missing"):
        write_summary(summary(results()), tmp_path / "missing")


def test_means_are_printed_like_the_papers_figures():
    assert mean_like(Figure("0.5K"), [500, 500]) == "0.5K"
    assert mean_like(Figure("25K"), [24_000, 26_000]) == "25K ± 1K"
    assert mean_like(Figure("8"), [8.1]) == "8"
    assert mean_like(Figure("8"), [None]) == "-"


def test_every_network_of_the_paper_has_the_columns():
    assert {network.table for network in NETWORKS.values()} == {2, 3, 4, 5}
