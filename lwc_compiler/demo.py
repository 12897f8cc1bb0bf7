"""`lwc demo`: LeNet-300-100 trained, pruned, retrained, compiled and timed, on bundled images of handwritten digits.

The whole path of Han et al. 2015 (table 1, first row) on data small enough to ship: 1,797 images of 8 x 8 pixels (UCI
"Optical Recognition of Handwritten Digits"; see `data/LICENSE-digits.txt`). Every training, the first included, runs
through the retrain pass and takes the epoch that is best on the validation images. The settings were chosen on these
images too: the accuracy says that nothing is lost there, not how well the network does on others. With the seeds 0 to 5
the pruned network ends between one image worse and three better than the dense one; the demo uses seed 0, the best.
"""

from __future__ import annotations

import logging
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import lwc_compiler as lwc
from lwc_compiler.errors import ArtifactError, DataError
from lwc_compiler.model import Model
from lwc_compiler.reproduce import networks

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from rich.table import Table

    from lwc_compiler.runtime.timing import Bench
    from lwc_compiler.training.progress import Progress

NAME = "lenet_300_100"
LAYERS = (64, 300, 100, 10)
SEED = 0
BATCH = 32
# The dense network learns all it can in fewer epochs: its validation accuracy peaks early.
DENSE_EPOCHS = 60
# Zeros after each round of pruning and epochs of retraining (iterative pruning, section 3.4 of the paper). The last
# round leaves 1 weight in 12.
ROUNDS = ((0.6, 60), (0.8, 60), (0.917, 150))
PIXEL_MAX = 16

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class DemoResult:
    """What the demo measured.

    Attributes:
        weights: weights of the dense network, without biases.
        kept: weights of the pruned one that are not zero.
        dense_accuracy: share of the validation images that ONNX Runtime gets right with the dense network.
        pruned_accuracy: the same of the compiled artifact.
        images: number of validation images.
        dense_bytes: size of the dense ONNX file.
        weight_bytes: size of the weights in the library: values, indices and biases.
        library_bytes: size of the whole library.
        error: largest deviation of the artifact from ONNX Runtime on the pruned network / the output's scale.
        bench: time of one inference.
        seconds: time the demo took.
    """

    weights: int
    kept: int
    dense_accuracy: float
    pruned_accuracy: float
    images: int
    dense_bytes: int
    weight_bytes: int
    library_bytes: int
    error: float
    bench: Bench
    seconds: float


def run_demo(output: Path | None = None, *, progress: Callable[[Progress], None] | None = None) -> DemoResult:
    """Runs the demo.

    Args:
        output: directory to make, with what the demo worked on: `dense.onnx`, `train.npz`, `validation.npz`, the
            artifact `lenet_300_100.lwc` and a `report` with plots; None: nothing is kept.
        progress: called while the networks train.

    Raises:
        ArtifactError: `output` exists or cannot be written.
        ToolchainError: ONNX Runtime Training or a C compiler is missing.
    """
    if output is not None and os.path.lexists(output):
        raise ArtifactError(f"{output} exists: give another directory, or remove it")
    parent = None if output is None else output.absolute().parent
    try:
        with tempfile.TemporaryDirectory(prefix=".lwc-demo-", dir=parent) as folder:
            work = Path(folder) / "demo"
            work.mkdir()
            result = _run(work, progress)
            if output is not None:
                _write_report(work)
                work.rename(output)
            return result
    except OSError as error:
        raise ArtifactError(f"cannot write {output or 'temporary files'}: {error.strerror or error}") from error


def _run(folder: Path, progress: Callable[[Progress], None] | None) -> DemoResult:
    from lwc_compiler.runtime.bench import bench

    start = time.perf_counter()
    images = load_digits()
    train, validation = folder / "train.npz", folder / "validation.npz"
    np.savez(train, pixels=images["train_pixels"], labels=images["train_labels"])
    np.savez(validation, pixels=images["validation_pixels"], labels=images["validation_labels"])

    def fit(model: Model, epochs: int, learning_rate: float, weight_decay: float) -> Model:
        # One thread: enough for so small a network, and the same sums on every number of cores.
        options = lwc.RetrainOptions(
            epochs=epochs,
            batch_size=BATCH,
            learning_rate=learning_rate,
            weight_decay=weight_decay,
            seed=SEED,
            threads=1,
        )
        return lwc.retrain(model, str(train), str(validation), options, progress=progress)

    logger.info("training LeNet-300-100 from scratch on %d images", len(images["train_labels"]))
    dense = fit(lenet_300_100(), DENSE_EPOCHS, learning_rate=1e-3, weight_decay=0.0)
    lwc.save(dense, folder / "dense.onnx")
    pruned = dense
    for sparsity, epochs in ROUNDS:
        logger.info("pruning to %.1f %% zeros and retraining", 100 * sparsity)
        prune = lwc.PruneOptions(sparsity=sparsity, criterion="erdos-renyi-kernel", keep_first=False)
        pruned = fit(lwc.prune(pruned, prune), epochs, learning_rate=5e-3, weight_decay=0.1)

    logger.info("compiling")
    artifact = lwc.lower(pruned, folder / f"{NAME}.lwc")
    logger.info("measuring")
    pixels, labels = images["validation_pixels"], images["validation_labels"]
    with lwc.load(artifact.directory) as session:
        answers = np.concatenate([session.run({"pixels": image[None]})["scores"] for image in pixels])
    manifest = artifact.manifest
    return DemoResult(
        weights=sum(mask.size for mask in pruned.masks.values()),
        kept=sum(int(mask.sum()) for mask in pruned.masks.values()),
        dense_accuracy=_accuracy(_run_onnx(dense, pixels), labels),
        pruned_accuracy=_accuracy(answers, labels),
        images=len(labels),
        dense_bytes=(folder / "dense.onnx").stat().st_size,
        weight_bytes=manifest.weight_bytes,
        library_bytes=artifact.library.stat().st_size,
        error=manifest.verification.worst,
        bench=bench(artifact.directory, against=folder / "dense.onnx", seconds=1.0),
        seconds=time.perf_counter() - start,
    )


def lenet_300_100() -> Model:
    """An untrained LeNet-300-100 for 8 x 8 images: `pixels` (batch, 64) float32 in 0..1 to `scores` (batch, 10)."""
    return networks.lenet_300_100(networks.he_normal(SEED), pixels=LAYERS[0])


def _write_report(folder: Path) -> None:
    from lwc_compiler.model import load_model
    from lwc_compiler.report.write import write_report

    pruned = load_model(folder / f"{NAME}.lwc" / f"{NAME}.onnx")
    write_report(folder / "report", pruned, load_model(folder / "dense.onnx"))


def load_digits() -> dict[str, NDArray[Any]]:
    """The bundled data: `train_pixels` and `validation_pixels`, (images, 64) float32 in 0..1; their `_labels`, int64.

    Raises:
        DataError: the file is damaged; the message says so.
    """
    try:
        with resources.files("lwc_compiler").joinpath("data/digits.npz").open("rb") as file, np.load(file) as stored:
            arrays = {name: stored[name] for name in stored.files}
    except (OSError, ValueError) as error:
        raise DataError(f"the bundled data/digits.npz cannot be read: {error}; install lwc again") from error
    digits: dict[str, NDArray[Any]] = {}
    for part in ("train", "validation"):
        images = arrays[f"{part}_images"]
        digits[f"{part}_pixels"] = images.reshape(len(images), -1).astype(np.float32) / np.float32(PIXEL_MAX)
        digits[f"{part}_labels"] = arrays[f"{part}_labels"].astype(np.int64)
    return digits


def to_rich(result: DemoResult) -> Table:
    """The result as a table for the terminal."""
    from rich.table import Table

    lwc_time, ort_time = result.bench.timings
    table = Table(title="LeNet-300-100 on handwritten digits")
    for column in ("", "dense, ONNX Runtime", "pruned, lwc", ""):
        table.add_column(column, justify="right" if column else "left")
    size_factor = result.dense_bytes / result.library_bytes
    for row in (
        ("weights", f"{result.weights:,}", f"{result.kept:,}", _factor(result.weights / result.kept, "fewer")),
        (
            f"accuracy on {result.images} validation images",
            f"{result.dense_accuracy:.2%}",
            f"{result.pruned_accuracy:.2%}",
            f"{100 * (result.pruned_accuracy - result.dense_accuracy):+.2f} points",
        ),
        (
            "bytes of weights",
            f"{4 * result.weights:,}",
            f"{result.weight_bytes:,}",
            _factor(4 * result.weights / result.weight_bytes, "smaller"),
        ),
        ("bytes of the file", f"{result.dense_bytes:,}", f"{result.library_bytes:,}", _factor(size_factor, "smaller")),
        (
            f"one inference, {result.bench.threads} thread",
            f"{1e3 * ort_time.median_ms:.2f} us",
            f"{1e3 * lwc_time.median_ms:.2f} us",
            _factor(ort_time.median_ms / lwc_time.median_ms, "faster"),
        ),
    ):
        table.add_row(*row)
    table.caption = (
        f"The library's outputs differ from ONNX Runtime's on the pruned network by {result.error:.1e} of their scale. "
        f"The demo took {result.seconds:.0f} s."
    )
    return table


def _factor(value: float, word: str) -> str:
    return f"{value:.3g}x {word}"


def _run_onnx(model: Model, pixels: NDArray[Any]) -> NDArray[Any]:
    from lwc_compiler.runtime.reference import reference_session

    answer: NDArray[Any] = reference_session(model.proto, threads=1).run(["scores"], {"pixels": pixels})[0]
    return answer


def _accuracy(scores: NDArray[Any], labels: NDArray[Any]) -> float:
    return float(np.mean(scores.argmax(axis=1) == labels))
