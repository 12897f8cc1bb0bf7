"""Prunes a network in rounds as far as its accuracy holds, and compiles it.

python examples/ml-engineer/prune_in_rounds.py demo-output/dense.onnx demo-output/train.npz demo-output/validation.npz
"""

from __future__ import annotations

import sys
from pathlib import Path

import lwc_compiler as lwc


def main(path: str, train: str, validation: str) -> None:
    """Prunes the model in `path`; the artifact is written into the working directory."""
    pruned = lwc.iterate(
        path,
        train,
        validation,
        prune=lwc.PruneOptions(sparsity=0.95, criterion="erdos-renyi-kernel", keep_first=False),
        retrain=lwc.RetrainOptions(epochs=40, batch_size=32, learning_rate=5e-3),
        options=lwc.IterateOptions(rounds=5, max_accuracy_drop=0.005),
    )
    rounds = pruned.provenance[-1]
    print(f"dense: validation accuracy {rounds['dense_metric']:.4f}")
    for entry in rounds["rounds"]:
        holds = "holds" if entry["held"] else "does not hold"
        print(f"{entry['density']:.1%} of the weights: {entry['metric']:.4f}, {holds}")
    artifact = lwc.lower(pruned, f"{pruned.name}-pruned.lwc")
    print(Path(artifact.directory, "report.md").read_text(encoding="utf-8"))


if __name__ == "__main__":
    main(*sys.argv[1:])
