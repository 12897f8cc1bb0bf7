"""Prunes in growing steps, retrains after each, and compiles the last step that kept its accuracy.

python examples/ml-engineer/prune_in_steps.py demo-output/dense.onnx demo-output/train.npz demo-output/validation.npz
"""

from __future__ import annotations

import sys
from pathlib import Path

import lwc_compiler as lwc

TOLERATED_LOSS = 0.005  # accuracy
STEPS = (0.6, 0.8, 0.9, 0.95)
OPTIONS = lwc.RetrainOptions(epochs=40, batch_size=32, learning_rate=5e-3)


def main(path: str, train: str, validation: str) -> None:
    """Prunes the model in `path`; the artifact is written into the working directory."""
    kept = None
    model: str | lwc.Model = path
    for sparsity in STEPS:
        options = lwc.PruneOptions(sparsity=sparsity, criterion="erdos-renyi-kernel", keep_first=False)
        model = lwc.retrain(lwc.prune(model, options), train, validation, OPTIONS, teacher=path)
        training = model.provenance[-1]
        accuracy = training["history"][training["best_epoch"]]["metric"]
        print(f"{sparsity:.0%} zeros: validation accuracy {accuracy:.4f}")
        if kept is None:
            best = accuracy
        elif accuracy < best - TOLERATED_LOSS:
            break
        best, kept = max(best, accuracy), model
    artifact = lwc.lower(kept, f"{kept.name}-pruned.lwc")
    print(Path(artifact.directory, "report.md").read_text(encoding="utf-8"))


if __name__ == "__main__":
    main(*sys.argv[1:])
