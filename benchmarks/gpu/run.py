"""Checks and times everything in a bundle on this machine's GPU: `make gpu`.

Needs Python, NumPy and NVIDIA's driver. PyTorch and compute-sanitizer are used where they are; what is missing, or does
not fit the time, is left out, and the results say why. They are written after every part, so that a run that is cut
short leaves what it had found.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.gpu.bundle import Bundle
from benchmarks.gpu.driver import Gpu, GpuError
from benchmarks.gpu.kernels import run_cases
from benchmarks.gpu.networks import NAMES, run_network
from benchmarks.gpu.table import markdown

_COPY_BYTES = 1 << 28
_TOOLS = ("memcheck", "racecheck", "initcheck", "synccheck")
_FOUND = re.compile(r"ERROR SUMMARY: (\d+) error|RACECHECK SUMMARY: (\d+) hazard")
_COMPILE_SECONDS = 60  # that torch.compile may take for a network: with less left, it is not begun


class Run:
    """Results, and the time that is left for more.

    Attributes:
        results: what is written.
        seconds: for all parts together.
    """

    def __init__(self, bundle: Bundle, output: Path, minutes: float) -> None:
        self.bundle, self._output, self.seconds = bundle, output, 60 * minutes
        self._end = time.monotonic() + self.seconds
        self.results: dict[str, Any] = {"made": bundle.table["made"], "missing": {}}

    @property
    def left(self) -> float:
        """Seconds."""
        return self._end - time.monotonic()

    def part(self, name: str, work: Callable[[], Any]) -> None:
        """Adds what `work` gives, or the reason why there is nothing, and writes the results."""
        start = time.monotonic()
        try:
            self.results[name] = work()
        except (GpuError, ImportError, OSError, RuntimeError, subprocess.SubprocessError) as error:
            self.results["missing"][name] = f"{type(error).__name__}: {error}"[:500]
        except Exception:  # a fault in one part must not cost the others
            self.results["missing"][name] = traceback.format_exc()[-1500:]
        print(f"{name}: {time.monotonic() - start:.0f} s", self.results["missing"].get(name, ""), flush=True)
        self.write()

    def write(self) -> None:
        """Writes `gpu-<name>.json` and `.md`."""
        name = self.results.get("gpu", {}).get("name", "none")
        stem = "gpu-" + re.sub(r"[^a-z0-9]+", "-", name.lower())
        self._output.mkdir(parents=True, exist_ok=True)
        (self._output / f"{stem}.json").write_text(json.dumps(self.results, indent=1) + "\n", encoding="utf-8")
        (self._output / f"{stem}.md").write_text(markdown(self.results), encoding="utf-8")

    @property
    def wrong(self) -> int:
        """How many results are wrong."""
        parts = (self.results.get(name, []) for name in ("checks", "networks", "layers"))
        return sum("wrong" in row for part in parts for row in part)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path(), help="folder of the results")
    parser.add_argument("--minutes", type=float, default=9.0, help="how long this may take")
    parser.add_argument("--only-checks", action="store_true", help="the kernels against float64, and nothing else")
    options = parser.parse_args()
    bundle = Bundle(Path(sys.argv[0]))
    try:
        gpu = Gpu()
    except GpuError as error:
        sys.exit(str(error))
    if options.only_checks:
        rows = run_cases(gpu, bundle, "checks", timed=False)
        wrong = sum("wrong" in row for row in rows)
        print(f"{wrong} of {len(rows)} are wrong")
        sys.exit(wrong > 0)
    run = Run(bundle, options.output, options.minutes)
    measure(run, gpu)
    print((f"{run.wrong} results are wrong" if run.wrong else "all results are right"), flush=True)
    sys.exit(run.wrong > 0)


def measure(run: Run, gpu: Gpu) -> None:
    """All parts, what matters most first."""
    run.part("gpu", gpu.describe)
    run.part("copy_gigabytes_a_second", lambda: copy_bandwidth(gpu))
    run.part("checks", lambda: run_cases(gpu, run.bundle, "checks", timed=False))
    run.part("layers", lambda: run_cases(gpu, run.bundle, "layers", timed=True))
    run.part("networks", lambda: run_networks(run, gpu))
    run.part("sanitizer", lambda: sanitize(run))
    run.part("torch", lambda: beside_torch(run, gpu.l2_bytes))


def run_networks(run: Run, gpu: Gpu) -> list[dict[str, Any]]:
    """All networks, small batches first, as far as half of the time reaches."""
    rows, entries = [], sorted(run.bundle.table["networks"], key=lambda entry: entry["batch"])
    for number, entry in enumerate(entries):
        if run.left < run.seconds / 2:
            run.results["missing"]["networks"] = f"{len(entries) - number} of {len(entries)}: half of the time was up"
            break
        try:
            rows.append(run_network(gpu, run.bundle, entry))
        except GpuError as error:
            rows.append({key: entry[key] for key in NAMES} | {"wrong": str(error)})
    return rows


def copy_bandwidth(gpu: Gpu) -> float:
    """Of a copy within the GPU's memory, counting bytes read and bytes written."""
    from_, to = gpu.memory(_COPY_BYTES), gpu.memory(_COPY_BYTES)
    seconds = gpu.seconds(lambda: gpu.copy(to, from_, _COPY_BYTES))
    gpu.free(from_)
    gpu.free(to)
    return 2 * _COPY_BYTES / seconds / 1e9


def sanitize(run: Run) -> dict[str, str]:
    """What NVIDIA's compute-sanitizer says of the kernels, tool by tool.

    Raises:
        FileNotFoundError: it is not installed.
    """
    program = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
    if not os.access(program, os.X_OK):
        raise FileNotFoundError("compute-sanitizer, of the CUDA toolkit, is not on the PATH")
    said = {}
    for tool in _TOOLS:
        seconds = min(40.0, run.left / 4)
        command = [program, "--tool", tool, sys.executable, sys.argv[0], "--only-checks"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False)
        except subprocess.TimeoutExpired:
            said[tool] = f"not done in {seconds:.0f} s"
            continue
        found = _FOUND.search(done.stdout)
        count = next(filter(None, found.groups())) if found else None
        said[tool] = f"{count} found" if count else (done.stdout + done.stderr).strip()[-300:]
    return said


def beside_torch(run: Run, l2_bytes: int) -> dict[str, Any]:
    """PyTorch's times of the same networks and layers.

    Raises:
        ImportError: PyTorch is not installed.
        RuntimeError: it has no CUDA here.
    """
    from benchmarks.gpu import torch_side

    if not torch_side.torch.cuda.is_available():
        raise RuntimeError("PyTorch has no CUDA here")
    found: dict[str, Any] = {"versions": torch_side.describe(), "layers": [], "networks": []}
    for layer in run.bundle.table["layers_alone"]:
        sets = max(1, min(16, -(-2 * l2_bytes // layer["dense_bytes"])))
        found["layers"].append({"name": layer["name"], **torch_side.layer_times(layer, sets)})
    networks = {(entry["model"], entry["batch"]): entry for entry in run.bundle.table["networks"]}.values()
    for compiled in (False, True):
        for name in torch_side.PRECISIONS[: 2 if compiled else None]:
            for entry in sorted(networks, key=lambda entry: entry["batch"]):
                row = {"model": entry["model"], "batch": entry["batch"], "precision": name}
                if run.left < (_COMPILE_SECONDS if compiled else 5):
                    row["missing"] = "the time was up"
                else:
                    try:
                        row |= torch_side.network_times(entry["graph"], entry["input"], name, compiled=compiled)
                    except Exception as error:  # whatever PyTorch's compilers raise
                        row["missing"] = f"{type(error).__name__}: {str(error).strip()[:200]}"
                found["networks"].append(row)
    return found
