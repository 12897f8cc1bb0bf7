"""Every technique on the same network on MNIST, with as many weights in the end and as many epochs for all.

    python -m benchmarks.techniques {lenet-300-100,lenet-5} [DENSE.onnx]

Without a file the dense network is trained first, with the settings of `lwc reproduce`. Prints a table and writes
benchmarks/results/techniques-<network>.md and .json. Errors are those on the 5,000 validation images; the test images
are not looked at. One seed: differences below a quarter of a point say nothing.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import lwc_compiler as lwc
from benchmarks.outcome import RESULTS, write_outcome
from lwc_compiler.cache.folder import cache_folder
from lwc_compiler.model import Model, load_model
from lwc_compiler.reproduce.datasets import Files
from lwc_compiler.reproduce.measure import count, error_of
from lwc_compiler.reproduce.networks import BUILDERS, he_normal
from lwc_compiler.reproduce.paper import NETWORKS
from lwc_compiler.reproduce.run import lenet_experiment
from lwc_compiler.reproduce.schedules import SCHEDULES


@dataclass(frozen=True)
class Setting:
    """What is the same for all techniques.

    Attributes:
        rate: all weights / kept weights.
        epochs: of retraining, over all rounds.
        retrain: options of every retraining.
    """

    rate: float
    epochs: int
    retrain: dict[str, Any]


_SGD = {"optimizer": "sgd", "weight_decay": 1e-4, "threads": 1}
SETTINGS = {
    "lenet-300-100": Setting(25, 24, {**_SGD, "learning_rate": 0.1, "batch_size": 128}),
    "lenet-5": Setting(100, 6, {**_SGD, "learning_rate": 0.02, "batch_size": 64, "clip_norm": 1.0}),
}


@dataclass(frozen=True)
class Technique:
    """One row: what is asked of `lwc_compiler.iterate`; `rounds` 0 prunes without training."""

    name: str
    rounds: int = 1
    prune: dict[str, Any] = field(default_factory=dict)
    retrain: dict[str, Any] = field(default_factory=dict)
    iterate: dict[str, Any] = field(default_factory=dict)


DROPOUT = {"dropout": {"relu1": 0.5}}
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
    Technique("3 rounds, geometric, learning rate rewound", rounds=3),
    Technique("3 rounds, geometric, learning rate x 0.1", rounds=3, iterate={"learning_rate_factors": (0.1,)}),
    Technique("3 rounds, cubic", rounds=3, iterate={"schedule": "cubic"}),
    Technique("3 rounds, geometric, dropout adjusted", rounds=3, retrain=DROPOUT),
    Technique("3 rounds, geometric, dropout fixed", rounds=3, retrain={**DROPOUT, "adjust_dropout": False}),
    Technique("3 rounds, fully connected layers and convolutions in turn", rounds=3, iterate={"alternate": True}),
    Technique("gradual", iterate=GRADUAL),
    Technique("gradual, global", prune={"criterion": "global"}, iterate=GRADUAL),
    Technique("gradual, grows back by shadow", retrain={"grow": "shadow"}, iterate=GRADUAL),
    Technique("gradual, grows back by gradient", retrain={"grow": "gradient"}, iterate=GRADUAL),
    Technique("gradual, distillation", retrain={"distill": 0.5, "temperature": 2.0}, iterate=GRADUAL),
    Technique("gradual, L1", retrain={"l1": 1e-6, "weight_decay": 0.0}, iterate=GRADUAL),
    Technique("gradual, 4x1 blocks", prune={"structure": "4x1"}, iterate=GRADUAL),
    Technique("gradual, 1:4", prune={"structure": "1:4"}, iterate=GRADUAL),
)


def main() -> None:
    """Runs all techniques."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("network", choices=SETTINGS)
    parser.add_argument("dense", type=Path, nargs="?", help="ONNX file of the dense network; trained if not given")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    network, setting = arguments.network, SETTINGS[arguments.network]
    data = lenet_experiment(network, "mnist", cache_folder()).data
    dense = load_model(arguments.dense) if arguments.dense else _dense(network, data)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.onnx"
        lwc.save(dense, file)
        dense_error = error_of(file, data.validation)
        for technique in _techniques(network):
            started = time.perf_counter()
            model = _pruned(dense, data, setting, technique)
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
    caption = (
        f"{NETWORKS[network].title} on MNIST, {setting.rate:g} times fewer weights, {setting.epochs} epochs of "
        f"retraining. The dense network has a validation error of {100 * dense_error:.2f} %. "
        f"`python -m benchmarks.techniques {network}` prints this table."
    )
    text = [
        caption,
        "",
        "| technique | fewer weights | validation error % |",
        "| --- | ---: | ---: |",
        *map(_row, rows),
    ]
    values = {"dense_validation_error": dense_error, **asdict(setting), "rows": rows}
    write_outcome(RESULTS, f"techniques-{network}", values, "\n".join(text) + "\n")


def _techniques(network: str) -> list[Technique]:
    """All but those that need convolutions where there are none."""
    convolutions = any("conv" in row.layer for row in NETWORKS[network].layers)
    return [technique for technique in TECHNIQUES if convolutions or not technique.iterate.get("alternate")]


def _row(row: dict[str, Any]) -> str:
    return f"| {row['technique']} | {row['rate']:.1f}x | {100 * row['validation_error']:.2f} |"


def _dense(network: str, data: Files) -> Model:
    start = BUILDERS[network](he_normal(0))
    return lwc.retrain(start, str(data.train), str(data.validation), SCHEDULES[network].dense)


def _pruned(dense: Model, data: Files, setting: Setting, technique: Technique) -> Model:
    sparsity = 1 - 1 / setting.rate
    prune = lwc.PruneOptions.model_validate(
        {"criterion": "erdos-renyi-kernel", "sparsity": sparsity, "keep_first": False, **technique.prune}
    )
    if technique.rounds == 0:
        return lwc.prune(dense, prune, str(data.validation))
    epochs = setting.epochs // (technique.rounds * (2 if technique.iterate.get("alternate") else 1))
    return lwc.iterate(
        dense,
        str(data.train),
        str(data.validation),
        prune=prune,
        retrain=lwc.RetrainOptions.model_validate({**setting.retrain, "epochs": epochs, **technique.retrain}),
        options=lwc.IterateOptions.model_validate({"rounds": technique.rounds, **technique.iterate}),
    )


if __name__ == "__main__":
    main()
