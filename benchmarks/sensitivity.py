"""Accuracy of the paper's two small networks after pruning, without retraining, for every criterion and score.

Run: python benchmarks/sensitivity.py [number of seeds]

The data are the images that `lwc demo` trains on, enlarged to 28 x 28 pixels for LeNet-5. Norms and sensitivity are
measured on the training images, accuracy on the validation images, which also chose the epoch of the dense network.
Prints Markdown: the mean over the seeds (of the first weights and of the order of the samples) of the accuracy in %.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from onnx import numpy_helper

import lwc_compiler as lwc
from lwc_compiler.demo import load_digits
from lwc_compiler.model import Model
from lwc_compiler.passes.calibration import Norms, input_norms
from lwc_compiler.passes.prune import prune
from lwc_compiler.passes.sensitivity import sensitivity
from lwc_compiler.passes.sites import constant_tensors, find_sites
from lwc_compiler.recipe.options import SensitivityOptions
from lwc_compiler.reproduce.networks import he_normal, lenet_5, lenet_300_100
from lwc_compiler.runtime.reference import reference_session
from lwc_compiler.sparsity.masks import Layer, choose_masks
from lwc_compiler.training.weights import attach

DENSITIES = (0.5, 0.4, 0.3, 0.2, 0.1)
CRITERIA = ("uniform", "global", "erdos-renyi-kernel", "sensitivity")
SCORES = ("magnitude", "activation")
BY_ROW = "activation, each output alone"
NETWORKS: dict[str, Callable[[int], Model]] = {
    "LeNet-300-100": lambda seed: lenet_300_100(he_normal(seed), pixels=64),
    "LeNet-5": lambda seed: lenet_5(he_normal(seed)),
}


def images(shape: tuple[int | None, ...]) -> dict[str, dict[str, np.ndarray]]:
    """`train` and `validation`: pixels of one sample's `shape`, and labels."""
    digits = load_digits()
    parts = {}
    for part in ("train", "validation"):
        pixels = digits[f"{part}_pixels"]
        if len(shape) == 3:
            large = np.kron(pixels.reshape(-1, 8, 8), np.ones((1, 3, 3), np.float32))
            pixels = np.pad(large, ((0, 0), (2, 2), (2, 2)))[:, None]
        parts[part] = {"pixels": pixels, "labels": digits[f"{part}_labels"]}
    return parts


def pruned_by_row(model: Model, density: float, norms: Norms) -> Model:
    """The criterion `uniform` with every output channel as a layer of its own, as in Sun et al. 2024."""
    constants = constant_tensors(model.proto.graph)
    pruned = {}
    for site in find_sites(model.proto):
        matrix = site.to_matrix(numpy_helper.to_array(constants[site.weight]))
        scales = np.repeat(norms[site.weight], len(matrix) // site.row_groups, axis=0)
        rows = {
            str(row): Layer(weights[None], np.ones((1, weights.size), bool), (1, weights.size), norms=scales[None, row])
            for row, weights in enumerate(matrix)
        }
        choices = choose_masks(rows, lwc.PruneOptions(sparsity=1 - density))
        mask = np.concatenate([choices[str(row)].mask for row in range(len(matrix))])
        pruned[site.weight] = site.from_matrix(np.where(mask, matrix, np.float32(0)))
    return Model(attach(model.proto, pruned), model.name)


def accuracies(network: Callable[[int], Model], seed: int, folder: Path) -> dict[tuple[str, str, float], float]:
    """(criterion, score, density) -> accuracy of one seed's network; the dense one's for density 1."""
    model = network(seed)
    dims = model.proto.graph.input[0].type.tensor_type.shape.dim
    data = images(tuple(dim.dim_value for dim in dims[1:]))
    for part, arrays in data.items():
        np.savez(folder / f"{part}.npz", **arrays)
    train, validation = (str(folder / f"{part}.npz") for part in ("train", "validation"))
    options = lwc.RetrainOptions(epochs=15, batch_size=32, weight_decay=0.1, seed=seed)
    dense = lwc.retrain(model, train, validation, options)

    def accuracy(pruned: Model) -> float:
        scores = reference_session(pruned.proto, 1).run(None, {"pixels": data["validation"]["pixels"]})[0]
        return float((scores.argmax(axis=1) == data["validation"]["labels"]).mean())

    found = {("dense", "", 1.0): accuracy(dense)}
    norms = input_norms(dense, train)
    for score in SCORES:
        scan = sensitivity(dense, train, SensitivityOptions(score=score))
        for criterion in CRITERIA:
            for density in DENSITIES:
                rule = lwc.PruneOptions(criterion=criterion, score=score, sparsity=1 - density, keep_first=False)
                found[criterion, score, density] = accuracy(prune(dense, rule, sensitivity=scan, norms=norms))
    found |= {("uniform", BY_ROW, density): accuracy(pruned_by_row(dense, density, norms)) for density in DENSITIES}
    return found


def main() -> None:
    seeds = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    for name, network in NETWORKS.items():
        with tempfile.TemporaryDirectory() as folder:
            runs = [accuracies(network, seed, Path(folder)) for seed in range(seeds)]
        mean = {key: 100 * np.mean([run[key] for run in runs]) for key in runs[0]}
        print(f"\n{name}, dense {mean['dense', '', 1.0]:.1f} %; mean of {seeds} seeds\n")
        print("| criterion | score |", " | ".join(f"density {density:g}" for density in DENSITIES), "|")
        print("| --- | --- |", " | ".join("---:" for _ in DENSITIES), "|")
        for criterion in CRITERIA:
            for score in (*SCORES, BY_ROW):
                if (criterion, score, DENSITIES[0]) in mean:
                    cells = (f"{mean[criterion, score, density]:.1f}" for density in DENSITIES)
                    print(f"| {criterion} | {score} |", " | ".join(cells), "|", flush=True)


if __name__ == "__main__":
    main()
