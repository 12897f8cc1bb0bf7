"""Checks and times everything in a bundle on this machine's GPU: `make gpu`.

Needs Python, NumPy and NVIDIA's driver. PyTorch and compute-sanitizer are used where they are; what is missing, or does
not fit the time, is left out, and the results say why. They are written after every part, so that a run that is cut
short leaves what it had found.

What takes long and is not timed comes first, at the same time: checks, compute-sanitizer, and PyTorch's compiler, with
a process for each network. Then these processes measure one after the other, and end; lwc is timed when all have.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.gpu.beside import Beside, Job
from benchmarks.gpu.bundle import Bundle
from benchmarks.gpu.kernels import run_cases
from benchmarks.gpu.networks import NAMES, run_network
from benchmarks.gpu.table import goal_lines, markdown
from lwc_compiler.runtime.device_driver import Gpu, GpuError

_COPY_BYTES = 1 << 28
_TOOLS = ("memcheck", "racecheck", "initcheck", "synccheck")
_FOUND = re.compile(r"ERROR SUMMARY: (\d+) error|RACECHECK SUMMARY: (\d+) hazard")
_SANITIZER_SECONDS = 120.0
_PRECISIONS = ("float32", "tf32", "float16", "bfloat16")
_COMPILED = 1 / 2  # part of the time by which PyTorch's compiler must be done
_RESERVED = 1 / 3  # part of the time that is left to lwc
_LEAST_SECONDS = 5.0  # with less left, no network is begun


class Run:
    """Results, and the time that is left for more.

    Attributes:
        results: what is written.
        seconds: for all parts together.
    """

    def __init__(self, bundle: Bundle, output: Path, minutes: float) -> None:
        self.bundle, self._output, self.seconds = bundle, output, 60 * minutes
        self._end = time.monotonic() + self.seconds
        self.results: dict[str, Any] = {"made": bundle.table["made"], "missing": {}, "seconds": {}}

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
        self.results["seconds"][name] = round(time.monotonic() - start, 1)
        print(f"{name}: {self.results['seconds'][name]} s", self.results["missing"].get(name, ""), flush=True)
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
    parser.add_argument("--minutes", type=float, default=4.7, help="how long this may take")
    parser.add_argument(
        "--precisions", nargs="*", choices=_PRECISIONS, default=("float32", "float16"), help="that PyTorch is timed in"
    )
    parser.add_argument("--only-layers", action="store_true", help="layers alone, and nothing else")
    parser.add_argument("--only-checks", action="store_true", help="the kernels against float64, and nothing else")
    parser.add_argument("--torch-job", help="what this program starts for itself")
    options = parser.parse_args()
    bundle = Bundle(Path(sys.argv[0]))
    if options.torch_job:
        from benchmarks.gpu import torch_side

        torch_side.run_job(bundle, Job(), options.torch_job, options.precisions)
        return
    try:
        gpu = Gpu()
    except GpuError as error:
        sys.exit(str(error))
    with gpu:
        if options.only_checks:
            rows = run_cases(gpu, bundle, "checks")
            wrong = sum("wrong" in row for row in rows)
            print(f"{wrong} of {len(rows)} are wrong")
            sys.exit(wrong > 0)
        run = Run(bundle, options.output, options.minutes)
        if options.only_layers:
            run.part("gpu", gpu.describe)
            run.part("layers", lambda: run_layers(run, gpu))
            return
        with tempfile.TemporaryDirectory() as folder:
            measure(run, gpu, options.precisions, Path(folder))
    print("\n".join(goal_lines(run.results)))
    print((f"{run.wrong} results are wrong" if run.wrong else "all results are right"), flush=True)
    sys.exit(run.wrong > 0)


def measure(run: Run, gpu: Gpu, precisions: Sequence[str], folder: Path) -> None:
    """All parts.

    Args:
        run: gets the results.
        gpu: where.
        precisions: that PyTorch is timed in.
        folder: for files that nobody needs afterwards.
    """
    run.part("gpu", gpu.describe)
    with Beside(run.bundle.table["networks"], [sys.executable, sys.argv[0]], precisions, folder) as beside:
        run.part("checks", lambda: run_cases(gpu, run.bundle, "checks"))
        run.part("sanitizer", lambda: sanitize(run))
        compiled, measured = (run.left - part * run.seconds for part in (1 - _COMPILED, _RESERVED))
        run.part("torch", lambda: beside.measure(compiled, measured))
    run.part("copy_gigabytes_a_second", lambda: copy_bandwidth(gpu))
    networks = sorted(run.bundle.table["networks"], key=lambda entry: entry["batch"])
    in_float32 = [entry for entry in networks if entry["precision"] == "float32"]
    run.part("networks", lambda: run_networks(run, gpu, in_float32))
    run.part("layers", lambda: run_layers(run, gpu))
    others = [entry for entry in networks if entry["precision"] != "float32"]
    run.part("networks", lambda: run_networks(run, gpu, others))


def run_networks(run: Run, gpu: Gpu, entries: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Networks, behind those that there already are, as far as the time reaches."""
    rows: list[dict[str, Any]] = run.results.setdefault("networks", [])
    for number, entry in enumerate(entries):
        if run.left < _LEAST_SECONDS:
            run.results["missing"]["networks"] = f"{len(entries) - number} of {len(entries)}: the time was up"
            break
        try:
            rows.append(run_network(gpu, run.bundle, entry))
        except GpuError as error:
            rows.append({key: entry[key] for key in NAMES} | {"wrong": str(error)})
    return rows


def run_layers(run: Run, gpu: Gpu) -> list[dict[str, Any]]:
    """All layers alone, as far as the time reaches."""
    rows = run_cases(gpu, run.bundle, "layers", left=lambda: run.left)
    if missing := len(run.bundle.table["layers"]["cases"]) - len(rows):
        run.results["missing"]["layers"] = f"{missing} candidates: the time was up, or the GPU failed"
    return rows


def copy_bandwidth(gpu: Gpu) -> float:
    """Of a copy within the GPU's memory, counting bytes read and bytes written."""
    from_, to = gpu.memory(_COPY_BYTES), gpu.memory(_COPY_BYTES)
    seconds = gpu.seconds(lambda: gpu.copy(to, from_, _COPY_BYTES))
    gpu.free(from_)
    gpu.free(to)
    return 2 * _COPY_BYTES / seconds / 1e9


def sanitize(run: Run) -> dict[str, str]:
    """What NVIDIA's compute-sanitizer says of the kernels: all tools at the same time.

    Raises:
        FileNotFoundError: it is not installed.
    """
    program = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
    if not os.access(program, os.X_OK):
        raise FileNotFoundError("compute-sanitizer, of the CUDA toolkit, is not on the PATH")
    end = time.monotonic() + min(_SANITIZER_SECONDS, run.left / 3)
    with tempfile.TemporaryDirectory() as folder:
        started = {}
        for tool in _TOOLS:
            command = [program, "--tool", tool, sys.executable, sys.argv[0], "--only-checks"]
            with (Path(folder) / tool).open("w", encoding="utf-8") as output:
                started[tool] = subprocess.Popen(
                    command, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
                )  # fmt: skip
        said = {}
        for tool, process in started.items():
            try:
                process.wait(max(0.0, end - time.monotonic()))
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                said[tool] = "not done in time"
                continue
            text = (Path(folder) / tool).read_text(encoding="utf-8", errors="replace")
            found = _FOUND.search(text)
            count = next(filter(None, found.groups())) if found else None
            said[tool] = f"{count} found" if count else text.strip()[-300:]
    return said
