"""Load test of examples/serving: latencies of requests on the loopback interface, by number of clients.

Run: python -m benchmarks.serving [--models lenet300 mobilenet_v1] [--clients 1 8 64] [--seconds 5] [--output DIR]

It needs fastapi and uvicorn. The server is one process, and all clients are another, on the processors that this
process may use: they share them. A client keeps one connection and sends the next request when it has the answer to
the last. `/health` answers without the network: what a request takes there is the web server's and the client's own.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

import lwc_compiler as lwc
from benchmarks.models import MODELS
from benchmarks.outcome import RESULTS, write_outcome
from benchmarks.run import machine

ROOT = Path(__file__).resolve().parent.parent
CACHE = ROOT / ".cache" / "serving"
WARM_UP_SECONDS = 0.5


def artifact_of(name: str) -> Path:
    """The artifact of a network of `models.py` with 90 % zeros, for this machine; made once."""
    directory = CACHE / f"{name}.lwc"
    if not directory.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        lwc.compile(lwc.Model(MODELS[name](), name), directory, lwc.Recipe(prune=lwc.PruneOptions(sparsity=0.9)))
    return directory


@contextmanager
def server(artifact: Path) -> Iterator[int]:
    """The port of the example, serving."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    command = [sys.executable, "-m", "uvicorn", "--app-dir", str(ROOT / "examples" / "serving"), "--factory"]
    command += ["app:create_app", "--port", str(port), "--no-access-log"]
    environment = {**os.environ, "LWC_ARTIFACT": str(artifact)}
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        try:
            if not any("Uvicorn running" in line for line in process.stderr):
                raise SystemExit("the server did not start")
            yield port
        finally:
            process.send_signal(signal.SIGINT)
            process.communicate()


def request(path: str, body: bytes = b"") -> bytes:
    head = f"{'POST' if body else 'GET'} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


async def client(port: int, message: bytes, until: float, expected: bytes | None) -> list[tuple[float, float]]:
    """When each answer came, and the seconds it took.

    Args:
        port: of the server.
        message: the request.
        until: `time.perf_counter` after which no request is sent.
        expected: the right answer's body; None: any.

    Raises:
        RuntimeError: an answer is wrong.
    """
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    taken = []
    try:
        while (start := time.perf_counter()) < until:
            writer.write(message)
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            length = int(head.partition(b"content-length:")[2].partition(b"\r\n")[0])
            body = await reader.readexactly(length)
            end = time.perf_counter()
            if not head.startswith(b"http/1.1 200") or (expected is not None and body != expected):
                raise RuntimeError(f"wrong answer: {head!r} {body[:200]!r}")
            taken.append((end, end - start))
    finally:
        writer.close()
    return taken


async def load_test(
    port: int, message: bytes, clients: int, seconds: float, expected: bytes | None = None
) -> dict[str, float]:
    """Percentiles in milliseconds, and requests a second."""
    begin = time.perf_counter() + WARM_UP_SECONDS
    until = begin + seconds
    rows = await asyncio.gather(*(client(port, message, until, expected) for _ in range(clients)))
    taken = np.array([seconds for row in rows for end, seconds in row if end >= begin])
    p50, p99 = (float(np.percentile(taken, q)) * 1e3 for q in (50, 99))
    return {"p50_ms": p50, "p99_ms": p99, "per_second": len(taken) / (max(row[-1][0] for row in rows) - begin)}


def measure(name: str, clients: list[int], seconds: float) -> list[dict[str, Any]]:
    """A row for each kind of request and number of clients."""
    artifact = artifact_of(name)
    generator = np.random.default_rng(0)
    with lwc.load(artifact) as session:
        inputs = {spec.name: generator.standard_normal(spec.shape, np.float32) for spec in session.inputs}
        outputs = session.run(inputs)
        runs = []
        while len(runs) < 20 or sum(runs) < 0.5:
            start = time.perf_counter()
            session.run(inputs)
            runs.append(time.perf_counter() - start)
    right = b"".join(array.tobytes() for array in outputs.values())
    raw = request("/predict/raw", b"".join(array.tobytes() for array in inputs.values()))
    values = json.dumps({name: array.tolist() for name, array in inputs.items()}).encode()
    in_json = request("/predict", values).replace(b"\r\n\r\n", b"\r\nContent-Type: application/json\r\n\r\n", 1)
    rows = []
    with server(artifact) as port:
        for kind, message, expected in (
            ("health", request("/health"), None),
            ("raw", raw, right),
            ("json", in_json, None),
        ):
            for number in clients:
                figures = asyncio.run(load_test(port, message, number, seconds, expected))
                rows.append({"model": name, "request": kind, "clients": number, **figures})
                rows[-1]["run_ms"] = float(np.median(runs)) * 1e3
    return rows


def table(results: dict[str, Any]) -> str:
    """The results as Markdown."""
    machine, processors = results["machine"], results["processors"]
    packages = ", ".join(f"{package} {version}" for package, version in results["packages"].items())
    lines = [
        f"# Load test of the example service, {machine['date']}",
        "",
        f"{machine['cpu']}, {processors} processor{'s' * (processors > 1)} for server and clients together.",
        f"lwc {machine['lwc']}, {packages}, Python {machine['python']}.",
        f"`{results['command']}`: one process serves; {results['seconds']:g} s a row; latencies in milliseconds.",
        "`run` is the network alone, called from Python.",
        "",
        "| model, 90 % zeros | run | request | clients | p50 | p99 | requests/s |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in results["rows"]:
        figures = f"{row['p50_ms']:.2f} | {row['p99_ms']:.2f} | {row['per_second']:.0f}"
        lines.append(f"| {row['model']} | {row['run_ms']:.3f} | {row['request']} | {row['clients']} | {figures} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["lenet300", "mobilenet_v1"], metavar="MODEL")
    parser.add_argument("--clients", nargs="+", type=int, default=[1, 8, 64])
    parser.add_argument("--seconds", type=float, default=5.0, help="of each row, after a warm-up")
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    rows = [row for name in arguments.models for row in measure(name, arguments.clients, arguments.seconds)]
    results = {
        "command": " ".join(["python -m benchmarks.serving", *sys.argv[1:]]),
        "machine": machine(),
        "processors": len(os.sched_getaffinity(0)),
        "packages": {name: metadata.version(name) for name in ("fastapi", "uvicorn")},
        "seconds": arguments.seconds,
        "rows": rows,
    }
    write_outcome(arguments.output, "serving", results, table(results))


if __name__ == "__main__":
    main()
