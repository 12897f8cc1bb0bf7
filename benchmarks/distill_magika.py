"""Prunes magika, a network that others trained, with the files of this machine as data and no labels.

Run: python -m benchmarks.distill_magika [--work DIR] [--output DIR]

magika (Google) tells the type of a file from its first and last bytes. Its wheel is downloaded, not installed. The data
are files below ROOTS, some to train on, some for validation, some for the test; those of a folder stay together. The
network is pruned in rounds by `lwc.iterate` and learns to say what it said before; rounds are judged on the validation
files. Then the test files are looked at once, with ONNX Runtime. An interrupted run goes on with what is in DIR.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
import tempfile
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import numpy_helper

import lwc_compiler as lwc
from benchmarks.outcome import RESULTS, write_outcome
from benchmarks.run import machine
from lwc_compiler.packing import pack
from lwc_compiler.passes.sites import constant_tensors, find_sites
from lwc_compiler.runtime.bench import bench
from lwc_compiler.runtime.reference import reference_session
from tests import zoo
from tests.wheels import read_member

# What magika's configuration says about its input.
BLOCK, HALF, PADDING, LEAST = 4096, 1024, 256, 8

ROOTS = (Path("/usr"), Path("/var/lib/dpkg"), Path(sys.prefix))
PER_FOLDER = 6  # files of the same suffix in a folder
PER_SUFFIX = 400
FILES = 12000  # files the dense network looks at
PER_TYPE = 200  # files that it gives the same type
PARTS = {"train": 0.6, "validation": 0.75, "test": 1.0}  # where their share of the folders ends

EMBEDDING = "jax2tf_get_logits_/Const:0"
CONVOLUTION = "jax2tf_get_logits_/pjit_get_logits_/MagikaV2/Conv_0/transpose_3:0"
CLASSIFIER = "jax2tf_get_logits_/Const_24:0"
PRUNE = lwc.PruneOptions(
    criterion="per-layer", densities={CONVOLUTION: 0.65, CLASSIFIER: 0.85}, score="activation", keep=(EMBEDDING,)
)
RETRAIN = lwc.RetrainOptions(epochs=1, batch_size=8, learning_rate=1e-4, freeze=(EMBEDDING,), threads=1)
ROUNDS = lwc.IterateOptions(rounds=1, max_accuracy_drop=0.01)


def tokens(first: bytes, last: bytes) -> NDArray[np.int32] | None:
    """What magika reads of a file, shape (2 x HALF,): its first and its last bytes, without white space around them.

    Args:
        first: the beginning of the file, at most BLOCK bytes.
        last: its end, the same number of bytes.

    Returns:
        Bytes as numbers, PADDING after the first and before the last ones of a short file; None for one that magika
        does not give to its network, as fewer than LEAST bytes are left.
    """
    first, last = first.lstrip()[:HALF], last.rstrip()[-HALF:]
    if len(first) < LEAST:
        return None
    row = np.full(2 * HALF, PADDING, np.int32)
    row[: len(first)] = np.frombuffer(first, np.uint8)
    row[2 * HALF - len(last) :] = np.frombuffer(last, np.uint8)
    return row


def chance(*key: object) -> float:
    """A number in [0, 1) that depends on `key` alone."""
    digest = hashlib.sha256(repr(key).encode("utf-8", "surrogateescape")).digest()
    return int.from_bytes(digest[:6], "big") / 2**48


@dataclass(frozen=True)
class File:
    """A file, and its size in bytes."""

    path: Path
    size: int

    def tokens(self, start: int, stop: int) -> NDArray[np.int32] | None:
        """The tokens of the part from byte `start` to `stop`, as if it were a file of its own."""
        length = min(BLOCK, stop - start)
        with self.path.open("rb") as file:
            file.seek(start)
            first = file.read(length)
            file.seek(stop - length)
            return tokens(first, file.read(length))

    @property
    def part(self) -> str:
        """Which samples it belongs to; the files of a folder stay together, as they are often alike."""
        place = chance("part", str(self.path.parent))
        return next(part for part, end in PARTS.items() if place < end)


def find_files() -> list[File]:
    """Regular files below ROOTS, a few of a kind in a folder, in an order that has nothing to do with their place."""
    seen: Counter[tuple[str, str]] = Counter()
    found: list[tuple[str, File]] = []
    for root in ROOTS:
        for folder, _, names in os.walk(root):
            for name in sorted(names, key=lambda name: chance("name", folder, name)):
                path = Path(folder, name)
                kind = path.suffix.lower() or path.name[:3]
                if seen[folder, kind] < PER_FOLDER and path.is_file() and not path.is_symlink():
                    seen[folder, kind] += 1
                    found.append((kind, File(path, path.stat().st_size)))
    found.sort(key=lambda entry: chance("file", str(entry[1].path)))
    kinds: Counter[str] = Counter()
    few = []
    for kind, file in found:
        kinds[kind] += 1
        if kinds[kind] <= PER_SUFFIX:
            few.append(file)
    return few


def beginning(file: File) -> NDArray[np.int32] | None:
    """The tokens of a file that breaks off at a random place, rather late than early."""
    places = (chance("cut", 0, side, str(file.path)) for side in "ab")
    return file.tokens(0, int(file.size * max(places)))


class Magika:
    """The network, and what its configuration makes of its output.

    Attributes:
        model: the dense network.
        types: names of the types, in the order of the output.
    """

    def __init__(self) -> None:
        self.model = lwc.Model(zoo.load("magika"), "magika")
        configuration = json.loads(read_member("magika", "magika/models/standard_v3_3/config.min.json"))
        self.types: list[str] = configuration["target_labels_space"]
        usual = configuration["medium_confidence_threshold"]
        self._thresholds = np.array([configuration["thresholds"].get(name, usual) for name in self.types])

    def sure(self, scores: NDArray[np.float32]) -> NDArray[np.bool_]:
        """For every row of scores, whether magika takes the network's word; else it says that it does not know."""
        best = scores.argmax(axis=1)
        return scores[np.arange(len(best)), best] >= self._thresholds[best]


def scores_of(model: lwc.Model, rows: NDArray[np.int32]) -> NDArray[np.float32]:
    """The output for every row, by ONNX Runtime."""
    session = reference_session(model.proto, threads=1)
    batches = [rows[start : start + 16] for start in range(0, len(rows), 16)]
    return np.concatenate([session.run(None, {"bytes": batch})[0] for batch in batches])


def prepare(magika: Magika, folder: Path) -> None:
    """Writes `train.npz`, `validation.npz` and `test.npz` (`bytes`), `unsure.npz` (test files magika does not know)."""
    samples: dict[bytes, tuple[File, NDArray[np.int32]]] = {}
    for file in find_files():
        row = file.tokens(0, file.size)
        if row is not None:
            samples.setdefault(row.tobytes(), (file, row))
        if len(samples) == FILES:
            break
    files, rows = zip(*samples.values(), strict=True)
    scores = scores_of(magika.model, np.stack(rows))
    parts: dict[str, list[NDArray[np.int32]]] = {part: [] for part in (*PARTS, "unsure")}
    counts: Counter[int] = Counter()
    for file, row, kind, sure in zip(files, rows, scores.argmax(axis=1), magika.sure(scores), strict=True):
        if sure:
            counts[kind] += 1
        elif file.part == "test":
            parts["unsure"].append(row)
        if sure and counts[kind] <= PER_TYPE:
            parts[file.part].append(row)
            cut = beginning(file) if file.part == "train" else None
            if cut is not None:
                parts["train"].append(cut)
    for part, chosen in parts.items():
        np.savez(folder / f"{part}.npz", bytes=np.stack(chosen))


def compare(magika: Magika, pruned: lwc.Model, folder: Path) -> dict[str, Any]:
    """Both networks on the test files."""
    test, unsure = (np.load(folder / f"{part}.npz")["bytes"] for part in ("test", "unsure"))
    rows = np.concatenate([test, unsure])
    dense, ours = scores_of(magika.model, rows), scores_of(pruned, rows)
    known, knows = magika.sure(dense), magika.sure(ours)
    differs = dense.argmax(axis=1) != ours.argmax(axis=1)
    told_otherwise = (known != knows) | (known & differs)
    wrong = Counter(magika.types[kind] for kind in dense[: len(test)].argmax(axis=1)[differs[: len(test)]])
    return {
        "files": len(test),
        "types": len(set(dense[: len(test)].argmax(axis=1).tolist())),
        "differ": int(differs[: len(test)].sum()),
        "differ_by_type": dict(wrong.most_common()),
        "unsure_files": len(unsure),
        "unsure_differ": int(differs[len(test) :].sum()),
        "answers_differ": int(told_otherwise.sum()),
    }


def layers(model: lwc.Model) -> list[dict[str, Any]]:
    """All and kept weights of every layer."""
    constants = constant_tensors(model.proto.graph)
    found = []
    for site in find_sites(model.proto):
        weight = numpy_helper.to_array(constants[site.weight])
        found.append({"weight": site.weight, "all": weight.size, "kept": int(np.count_nonzero(weight))})
    return found


def speed(magika: Magika, pruned: lwc.Model) -> dict[str, Any]:
    """Times of the pruned network with lwc and the dense one with ONNX Runtime, batch 1, one thread."""
    with tempfile.TemporaryDirectory(prefix="lwc-") as folder:
        artifact = Path(folder) / "magika"
        lwc.lower(pruned, artifact, lwc.LowerOptions(shapes=zoo.SHAPES["magika"]))
        result = bench(artifact, against=magika.model, threads=1)
    ours, theirs = result.timings
    return {"lwc": asdict(ours), "onnxruntime": asdict(theirs), "ratio": result.speedup}


def table(results: dict[str, Any]) -> str:
    """The results as Markdown."""
    about, test, times, size = (results[key] for key in ("machine", "test", "speed", "bytes"))
    files = test["files"] + test["unsure_files"]
    share = lambda count, of: f"{count} of {of:,} ({100 * count / of:.2f} %)"  # noqa: E731
    rows = [
        ("samples to train on / validation files", f"{results['train']:,} / {results['validation']:,}"),
        ("density", f"{100 * results['density']:.1f} % ({1 / results['density']:.2f}x fewer weights)"),
        ("disagreement, validation", f"{100 * (1 - results['agreement']):.2f} %"),
        (f"disagreement, test, {test['types']} types", share(test["differ"], test["files"])),
        ("the same, files magika does not know", share(test["unsure_differ"], test["unsure_files"])),
        ("magika's answers that differ, all test files", share(test["answers_differ"], files)),
        ("ONNX file, dense", f"{size['dense']:,} bytes"),
        ("packed, dense / pruned", f"{size['packed_dense']:,} / {size['packed']:,} bytes"),
        ("packed, pruned, codebook", f"{size['packed_codebook']:,} bytes"),
        ("ONNX Runtime, dense / lwc, pruned, 1 thread",
         f"{times['onnxruntime']['median_ms']:.2f} / {times['lwc']['median_ms']:.2f} ms ({times['ratio']:.2f}x)"),
    ]  # fmt: skip
    lines = [
        f"# magika, pruned without labels, {about['date']}",
        "",
        "`python -m benchmarks.distill_magika`",
        "",
        f"{about['cpu']}; ONNX Runtime {about['onnxruntime']}, lwc {about['lwc']}, Python {about['python']}.",
        "",
        "| | |",
        "| --- | --- |",
        *(f"| {name} | {value} |" for name, value in rows),
        "",
        "| round | density | disagreement, pruned | after distillation | holds |",
        "| --- | ---: | ---: | ---: | --- |",
    ]
    for entry in results["rounds"]:
        before, after = (100 * (1 - entry[key]) for key in ("metric_pruned", "metric"))
        held = "yes" if entry["held"] else "no"
        density = 100 * entry["density"]
        lines.append(f"| {entry['round']} | {density:.1f} % | {before:.2f} % | {after:.2f} % | {held} |")
    return "\n".join([*lines, ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=RESULTS.parents[1] / ".cache" / "distill-magika", metavar="DIR")
    parser.add_argument("--output", type=Path, default=RESULTS, metavar="DIR")
    arguments = parser.parse_args()
    magika, data = Magika(), arguments.work / "data"
    if not data.exists():
        arguments.work.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=arguments.work) as temporary:
            prepare(magika, Path(temporary))
            Path(temporary).rename(data)
            Path(temporary).mkdir()  # for the context to take away
    train, validation = (str(data / f"{part}.npz") for part in ("train", "validation"))
    pruned = lwc.iterate(
        magika.model, train, validation, prune=PRUNE, retrain=RETRAIN, options=ROUNDS, workdir=arguments.work / "rounds"
    )
    lwc.save(pruned, arguments.work / "magika-pruned.onnx")
    entry = pruned.provenance[-1]
    chosen = [found["metric"] for found in entry["rounds"] if found["round"] == entry["best_round"]]
    kinds = layers(pruned)
    results = {
        "machine": machine(),
        "options": {"prune": PRUNE.model_dump(), "retrain": RETRAIN.model_dump(), "rounds": ROUNDS.model_dump()},
        "train": len(np.load(train)["bytes"]),
        "validation": len(np.load(validation)["bytes"]),
        "layers": kinds,
        "density": sum(layer["kept"] for layer in kinds) / sum(layer["all"] for layer in kinds),
        "agreement": chosen[0] if chosen else entry["dense_metric"],
        "rounds": entry["rounds"],
        "test": compare(magika, pruned, data),
        "bytes": {
            "dense": magika.model.proto.ByteSize(),
            "packed_dense": len(pack(magika.model)),
            "packed": len(pack(pruned)),
            "packed_codebook": len(pack(pruned, lwc.PackOptions(values="codebook"))),
        },
        "speed": speed(magika, pruned),
    }
    write_outcome(arguments.output, "distill-magika", results, table(results))


if __name__ == "__main__":
    main()
