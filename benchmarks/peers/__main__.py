"""Times lwc and its peers side by side. See benchmarks/README.md for the protocol.

Run: python -m benchmarks.peers [--models NAME ...] [--variants NAME ...] [--batch 1 16] [--engines NAME ...]
         [--threads 1] [--isa native] [--target NAME] [--seconds 3] [--output DIR] [--prepare]

Every run updates the rows it measured in DIR/peers.json, so a long benchmark can be done in pieces.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from benchmarks.models import MODELS
from benchmarks.peers.engines import AVX2, ENGINES, NATIVE, Engine, Options
from benchmarks.peers.environments import UnavailableError
from benchmarks.peers.files import Network, make_networks
from benchmarks.peers.measure import Worker, pinned, probe_worker, reference, relative_error, take_turns
from benchmarks.peers.table import Row, markdown, merge, ours, timing
from benchmarks.variants import DENSE, variants_of
from lwc_compiler.report.plots import plots_available, save_plots


def usable(names: Sequence[str]) -> tuple[list[Engine], dict[str, str]]:
    """The engines that could be installed, and the reasons of the others."""
    missing = {name: reason for name in names if (reason := ENGINES[name].available())}
    for name, reason in missing.items():
        print(f"without {name}: {reason}", flush=True)
    return [ENGINES[name] for name in names if name not in missing], missing


def jobs(engines: Sequence[Engine], networks: dict[str, Network]) -> list[tuple[Engine, str]]:
    """Which engine runs which variant: those that use zeros all, the others the dense one."""
    return [(engine, variant) for engine in engines for variant in networks if engine.uses_zeros or variant == DENSE]


def measure(
    engines: Sequence[Engine], missing: dict[str, str], networks: dict[str, Network], options: Options, seconds: float
) -> list[Row]:
    """Times a model in all its variants; the rows.

    Args:
        engines: what runs.
        missing: why others do not; the reasons that are found here are added to a copy.
        networks: the model's variants, with the dense one.
        options: threads and instruction set.
        seconds: time for the timed runs of each engine on each file.
    """
    missing = dict(missing)
    expected = {variant: reference(network) for variant, network in networks.items()}
    workers: dict[tuple[str, str], Worker] = {}
    errors: dict[tuple[str, str], float] = {}
    with ExitStack() as stack:
        stack.enter_context(pinned(options.threads))
        prober = probe_worker()
        stack.callback(prober.close)
        for engine, variant in jobs(engines, networks):
            network = networks[variant]
            variables = {**engine.variables, **((engine.avx2 or {}) if options.isa == AVX2 else {})}
            try:
                model = engine.load(network, variant != DENSE, options)
                worker = Worker(engine.python(), engine.worker, model, network.input, options.threads, variables)
                stack.callback(worker.close)
                errors[engine.name, variant] = relative_error(worker.output(), expected[variant])
                workers[engine.name, variant] = worker
            except UnavailableError as error:
                missing[engine.name] = str(error)
                print(f"{network.name}, batch {network.batch}, without {engine.name}: {error}", flush=True)
        blocks, probes = take_turns(workers, prober, seconds)
    timings = {
        (name, variant): timing(
            name,
            variant != DENSE,
            blocks[name, variant],
            errors[name, variant],
            options.isa == NATIVE or ENGINES[name].avx2 is not None,
        )
        for name, variant in workers
    }
    return [
        {
            "model": network.model,
            "variant": variant,
            "batch": network.batch,
            "threads": options.threads,
            "isa": options.isa,
            "target": options.target,
            "date": time.strftime("%Y-%m-%d"),
            "machine": machine(),
            "versions": {engine.name: engine.version() for engine in engines},
            "missing": missing,
            "probe_gflops": probes,
            "timings": [entry for (_, ran), entry in timings.items() if ran in (DENSE, variant)],
        }
        for variant, network in networks.items()
    ]


def machine() -> dict[str, Any]:
    """What the numbers were taken on."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    cpu = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    caches = []
    for index in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        level, kind, size = ((index / name).read_text(encoding="utf-8").strip() for name in ("level", "type", "size"))
        caches.append(f"L{level}{'' if kind == 'Unified' else kind[0].lower()} {size}")
    about = f"family {cpu.get('cpu family')}, model {cpu.get('model')}"
    return {
        "cpu": f"{cpu.get('model name', 'unknown')} ({about}), {os.cpu_count()} cores",
        "caches": ", ".join(caches),
        "target": lwc_host(),
        "system": platform.platform(),
        "python": platform.python_version(),
    }


def lwc_host() -> str:
    """The target that lwc chooses on this machine."""
    from lwc_compiler.targets import find_target

    return find_target("host").name


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    usual = [name for name in MODELS if name != "bert12"]
    parser.add_argument("--models", nargs="+", choices=MODELS, default=usual, metavar="NAME", help=", ".join(MODELS))
    parser.add_argument("--variants", nargs="+", metavar="NAME", help="90, han, 90-4x1; dense always runs too")
    parser.add_argument("--batch", nargs="+", type=int, default=(1, 16))
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=tuple(ENGINES), help="default: all")
    parser.add_argument("--threads", type=int, default=1, help="each thread gets a core of its own")
    parser.add_argument("--isa", choices=(NATIVE, AVX2), default=NATIVE, help="avx2: engines with a switch keep to it")
    parser.add_argument("--target", help="what lwc compiles for; default: this machine, or x86-64-v3 with --isa avx2")
    parser.add_argument("--seconds", type=float, default=3.0, help="time for the timed runs of each engine and file")
    parser.add_argument("--output", type=Path, default=Path(__file__).parents[1] / "results", metavar="DIR")
    parser.add_argument("--prepare", action="store_true", help="only install, make networks and compile")
    arguments = parser.parse_args()
    target = arguments.target or ("host" if arguments.isa == NATIVE else "x86-64-v3")
    options = Options(arguments.threads, arguments.isa, target)
    engines, missing = usable(arguments.engines)
    wrong = []
    for batch in arguments.batch:
        for model in arguments.models:
            chosen = [v for v in variants_of(model) if v == DENSE or v in (arguments.variants or variants_of(model))]
            networks = make_networks(model, chosen, batch)
            prepare(engines, networks, options)
            if arguments.prepare:
                continue
            rows = measure(engines, missing, networks, options, arguments.seconds)
            write(rows, arguments.output)
            print("\n".join(line for line in markdown(rows).splitlines() if line.startswith("| ")), flush=True)
            wrong += [
                f"{row['model']}-{row['variant']}, batch {batch}: off by {entry['error']:.1e}"
                for row in rows
                if (entry := ours(row)) is not None and not entry["agrees"]
            ]
    if wrong:  # a peer's error is not ours: the table tells of it
        sys.exit("\n".join(["lwc's outputs differ from ONNX Runtime's:", *wrong]))


def prepare(engines: Sequence[Engine], networks: dict[str, Network], options: Options) -> None:
    """Makes all files that the engines load, and the outputs they are compared with."""
    for engine, variant in jobs(engines, networks):
        with suppress(UnavailableError):  # told when it is measured
            engine.load(networks[variant], variant != DENSE, options)
    for network in networks.values():
        reference(network)


def write(rows: Sequence[Row], output: Path) -> None:
    """Updates `peers.json`, `peers.md` and the plots in a folder."""
    output.mkdir(parents=True, exist_ok=True)
    path = output / "peers.json"
    old = json.loads(path.read_text(encoding="utf-8"))["rows"] if path.is_file() else []
    merged = merge(old, rows)
    path.write_text(json.dumps({"rows": merged}, indent=1) + "\n", encoding="utf-8")
    (output / "peers.md").write_text(markdown(merged), encoding="utf-8")
    if plots_available():
        from benchmarks.peers.plots import figures_of

        save_plots(figures_of(merged), output / "plots")


if __name__ == "__main__":
    main()
