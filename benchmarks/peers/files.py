"""The files that engines load, below `.cache/peers/models`: one folder a network, variant and batch.

They are made once. A change of the code that makes the networks makes all of them anew; what lwc compiled is made anew
after a change of lwc.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx

import benchmarks.models
import benchmarks.variants
import lwc_compiler
from benchmarks.models import MODELS
from benchmarks.peers.environments import CACHE, UnavailableError

WORKERS = Path(__file__).parent / "workers"


@dataclass(frozen=True)
class Network:
    """A network with its zeros, at one batch."""

    model: str
    variant: str
    batch: int

    @property
    def name(self) -> str:
        return self.model if self.variant == benchmarks.variants.DENSE else f"{self.model}-{self.variant}"

    @property
    def folder(self) -> Path:
        return CACHE / "models" / f"{self.name}-b{self.batch}"

    @property
    def onnx(self) -> Path:
        return self.folder / "model.onnx"

    @property
    def input(self) -> Path:
        return self.folder / "input.npy"

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(np.load(self.input, mmap_mode="r").shape)


def make_networks(model: str, variants: Iterable[str], batch: int) -> dict[str, Network]:
    """The networks of a model, by variant, with their ONNX files and inputs."""
    _forget_old_networks()
    networks = {variant: Network(model, variant, batch) for variant in variants}
    for network in networks.values():
        if network.input.is_file():
            continue
        shutil.rmtree(network.folder, ignore_errors=True)
        network.folder.mkdir(parents=True)
        proto = MODELS[model]()
        benchmarks.variants.make_variant(proto, model, network.variant)
        benchmarks.variants.set_batch(proto, batch)
        onnx.save(proto, network.onnx)
        shape = [dim.dim_value for dim in proto.graph.input[0].type.tensor_type.shape.dim]
        generator = np.random.default_rng(0)
        # Pictures have no negative values, embeddings do.
        picture = not model.startswith("bert")
        make = generator.random if picture else generator.standard_normal
        np.save(network.input, make(shape, np.float32))  # last: it says that the folder is complete
    return networks


def converted(script: str, python: Path, network: Network, name: str, arguments: Iterable[object] = ()) -> Path:
    """What the converter `workers/<script>` makes of a network; `name` says all that it depends on.

    Raises:
        UnavailableError: the converter failed.
    """
    destination, log = network.folder / name, network.folder / f"{name}.log"
    if destination.exists():
        return destination
    temporary = network.folder / f"new-{name}"
    _remove(temporary)
    command = [python, WORKERS / script, network.onnx, temporary, *map(str, arguments)]
    with log.open("w", encoding="utf-8") as output:
        done = subprocess.run(command, stdout=output, stderr=subprocess.STDOUT, cwd=network.folder, check=False)
    if done.returncode or not temporary.exists():
        raise UnavailableError(f"the conversion failed: {last_line(log)}")
    temporary.rename(destination)
    return destination


def compiled(network: Network, target: str, threads: int) -> Path:
    """The artifact that lwc makes of a network.

    Raises:
        UnavailableError: lwc refuses it.
    """
    name = f"lwc-{target}-{threads}"
    sources = _digest(sorted(Path(lwc_compiler.__file__).parent.rglob("*.[pch]*")))
    destination = network.folder / f"{name}-{sources}"
    if not destination.exists():
        for old in network.folder.glob(f"{name}-*"):
            _remove(old)
    return converted("convert_lwc.py", Path(sys.executable), network, destination.name, (target, threads))


def last_line(log: Path) -> str:
    """The last line of a log."""
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1] if lines else "no output"


def _forget_old_networks() -> None:
    stamp = CACHE / "models" / "made-by"
    sources = _digest([Path(benchmarks.models.__file__), Path(benchmarks.variants.__file__)])
    if not stamp.is_file() or stamp.read_text(encoding="utf-8") != sources:
        shutil.rmtree(CACHE / "models", ignore_errors=True)
        (CACHE / "models").mkdir(parents=True)
        stamp.write_text(sources, encoding="utf-8")


def _digest(paths: Iterable[Path]) -> str:
    digest = hashlib.sha256()
    for path in paths:
        if path.suffix in (".py", ".c", ".h"):
            digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
