"""Every technique on the same network: LeNet-300-100 on MNIST, 25 times fewer weights, the same epochs for all.

    python -m benchmarks.techniques [LENET_300_100_DENSE.onnx]

Without a file the dense network is trained first, with the settings of `lwc reproduce lenet-300-100`. Prints a table
and writes benchmarks/results/techniques.md and .json. Errors are those on the 5,000 validation images; the test images
are not looked at. One seed: differences below a quarter of a point say nothing.
"""

from __future__ import annotations

import json
import logging
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lwc_compiler as lwc
from lwc_compiler.model import Model, load_model
from lwc_compiler.reproduce.datasets import Files, cache_folder, prepare
from lwc_compiler.reproduce.measure import count, error_of
from lwc_compiler.reproduce.networks import he_normal, lenet_300_100
from lwc_compiler.reproduce.schedules import SCHEDULES

RESULTS = Path(__file__).resolve().parent / "results"
SPARSITY = 0.96
EPOCHS = 24
COMMON = {"optimizer": "sgd", "learning_rate": 0.1, "weight_decay": 1e-4, "batch_size": 128, "threads": 1}


@dataclass(frozen=True)
class Technique:
    """One row: what is asked of `lwc_compiler.iterate`; `rounds` 0 prunes without training."""

    name: str
    rounds: int = 1
    prune: dict[str, Any] = field(default_factory=dict)
    retrain: dict[str, Any] = field(default_factory=dict)
    iterate: dict[str, Any] = field(default_factory=dict)


GRADUAL = {"schedule": "gradual", "ramp": 0.5}
TECHNIQUES = (
    Technique("no retraining, uniform", rounds=0, prune={"criterion": "uniform"}),
    Technique("no retraining, global", rounds=0, prune={"criterion": "global"}),
    Technique("no retraining, Erdős-Rényi kernel", rounds=0),
    Technique("no retraining, sensitivity", rounds=0, prune={"criterion": "sensitivity"}),
    Technique(
        "no retraining, sensitivity, activation norms",
        rounds=0,
        prune={"criterion": "sensitivity", "score": "activation"},
    ),
    Technique("one round, uniform", prune={"criterion": "uniform"}),
    Technique("one round, global", prune={"criterion": "global"}),
    Technique("one round, Erdős-Rényi kernel"),
    Technique("one round, sensitivity", prune={"criterion": "sensitivity"}),
    Technique("one round, learning rate x 0.1", iterate={"learning_rate_factors": (0.1,)}),
    Technique("one round, weights drawn anew", iterate={"reinitialize": True}),
    Technique("4 rounds, geometric, learning rate rewound", rounds=4),
    Technique("4 rounds, geometric, learning rate x 0.1", rounds=4, iterate={"learning_rate_factors": (0.1,)}),
    Technique("4 rounds, cubic", rounds=4, iterate={"schedule": "cubic"}),
    Technique("gradual", iterate=GRADUAL),
    Technique("gradual, global", prune={"criterion": "global"}, iterate=GRADUAL),
    Technique("gradual, grows back by shadow", retrain={"grow": "shadow"}, iterate=GRADUAL),
    Technique("gradual, grows back by gradient", retrain={"grow": "gradient"}, iterate=GRADUAL),
    Technique("gradual, distillation", retrain={"distill": 0.5, "temperature": 2.0}, iterate=GRADUAL),
    Technique("gradual, L1", retrain={"l1": 1e-6, "weight_decay": 0.0}, iterate=GRADUAL),
    Technique("gradual, 4x1 blocks", prune={"structure": "4x1"}, iterate=GRADUAL),
    Technique("gradual, 1:4", prune={"structure": "1:4"}, iterate=GRADUAL),
)


def main(arguments: list[str]) -> None:
    """Runs all techniques."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    data = prepare("mnist", (784,), cache_folder())
    dense = load_model(arguments[0]) if arguments else _dense(data)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.onnx"
        for technique in TECHNIQUES:
            started = time.perf_counter()
            model = _pruned(dense, data, technique)
            lwc.save(model, file)
            weights, kept, _ = count(model)
            rows.append(
                {
                    "technique": technique.name,
                    "kept": kept,
                    "rate": weights / kept,
                    "validation_error": error_of(file, data.validation),
                    "seconds": round(time.perf_counter() - started, 1),
                }
            )
            print(_row(rows[-1]), flush=True)
        lwc.save(dense, file)
        dense_error = error_of(file, data.validation)
    caption = (
        f"LeNet-300-100 on MNIST, {1 / (1 - SPARSITY):.0f} times fewer weights, {EPOCHS} epochs of retraining. "
        f"The dense network has a validation error of {100 * dense_error:.2f} %. "
        "`python -m benchmarks.techniques` prints this table."
    )
    text = [
        caption,
        "",
        "| technique | fewer weights | validation error % |",
        "| --- | ---: | ---: |",
        *map(_row, rows),
    ]
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "techniques.md").write_text("\n".join(text) + "\n", encoding="utf-8")
    values = {"dense_validation_error": dense_error, "epochs": EPOCHS, "sparsity": SPARSITY, "rows": rows}
    (RESULTS / "techniques.json").write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def _row(row: dict[str, Any]) -> str:
    return f"| {row['technique']} | {row['rate']:.1f}x | {100 * row['validation_error']:.2f} |"


def _dense(data: Files) -> Model:
    return lwc.retrain(
        lenet_300_100(he_normal(0)), str(data.train), str(data.validation), SCHEDULES["lenet-300-100"].dense
    )


def _pruned(dense: Model, data: Files, technique: Technique) -> Model:
    prune = lwc.PruneOptions.model_validate(
        {"criterion": "erdos-renyi-kernel", "sparsity": SPARSITY, "keep_first": False, **technique.prune}
    )
    if technique.rounds == 0:
        return lwc.prune(dense, prune, str(data.validation))
    epochs = EPOCHS // technique.rounds
    return lwc.iterate(
        dense,
        str(data.train),
        str(data.validation),
        prune=prune,
        retrain=lwc.RetrainOptions.model_validate({**COMMON, "epochs": epochs, **technique.retrain}),
        options=lwc.IterateOptions.model_validate({"rounds": technique.rounds, **technique.iterate}),
    )


if __name__ == "__main__":
    main(sys.argv[1:])
