"""The results of `make gpu` as Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

_WORST = 5


def markdown(results: dict[str, Any]) -> str:
    """All tables; of what was not done, the reasons."""
    gpu, made = results.get("gpu", {}), results["made"]
    lines = [f"# {gpu.get('name', 'No GPU')}", ""]
    lines += ["Written by `make gpu`; [docs/cuda.md](../../docs/cuda.md) says how it is measured.", ""]
    lines += [f"lwc {made['lwc']}, code for {made['target']} by {made['compiler']}."]
    if gpu:
        copied = results.get("copy_gigabytes_a_second", 0.0)
        lines += [f"{gpu['multiprocessors']} multiprocessors, {gpu['gigahertz']:.2f} GHz, driver for {gpu['driver']}."]
        lines += [f"Memory: {gpu['gigabytes_a_second']:.0f} GB/s by its clock, {copied:.0f} GB/s in a copy."]
    lines += [f"- {name} is missing: {reason}" for name, reason in results["missing"].items()]
    lines += [*_checks(results.get("checks", [])), *_sanitizer(results.get("sanitizer", {}))]
    lines += [*_networks(results), *_layers(results)]
    return "\n".join(lines) + "\n"


def _checks(rows: Sequence[dict[str, Any]]) -> list[str]:
    if not rows:
        return []
    wrong = [row for row in rows if "wrong" in row]
    worst = max((row["error"] for row in rows if row["error"] is not None), default=0.0)
    lines = ["", "## Kernels against float64", ""]
    lines += [f"{len(rows)} cases, {len(wrong)} wrong; the largest error is {worst:.1e} of the result's scale."]
    return lines + [f"- {row['name']}: {row['wrong']}" for row in wrong]


def _sanitizer(said: dict[str, str]) -> list[str]:
    if not said:
        return []
    return ["", "## compute-sanitizer, on these cases", "", *_rows(("tool", "result"), said.items())]


def _networks(results: dict[str, Any]) -> list[str]:
    rows = results.get("networks", [])
    if not rows:
        return []
    beside = {
        (row["model"], row["batch"], row["precision"], way): row[f"{way}_ms"]
        for row in results.get("torch", {}).get("networks", [])
        for way in ("eager", "graph", "compile")
        if f"{way}_ms" in row
    }
    columns = [
        column
        for column in (
            *((precision, way) for precision in ("float32", "tf32", "float16", "bfloat16") for way in ("graph",)),
            *(("float32", way) for way in ("eager", "compile")),
            ("tf32", "compile"),
        )
        if any(key[2:] == column for key in beside)
    ]
    lines = ["", "## Networks", ""]
    lines += [
        "Milliseconds a run, tensors on the GPU, runs back to back; `host`: with copies from and to the processor."
    ]
    lines += ["PyTorch computes every weight: eager, as a CUDA graph, or by torch.compile with CUDA graphs.", ""]
    head = [
        "network",
        "zeros",
        "batch",
        "precision",
        "error",
        "lwc",
        "host",
        *(f"PyTorch {p}, {way}" for p, way in columns),
    ]
    body = [
        [
            *(row[key] for key in ("model", "variant", "batch", "precision")),
            row.get("wrong") or f"{row['error']:.1e}",
            *(_ms(row.get(key)) for key in ("ms", "host_ms")),
            *(_ms(beside.get((row["model"], row["batch"], *column))) for column in columns),
        ]
        for row in rows
    ]
    return [*lines, *_rows(head, body), *_steps(rows)]


def _steps(rows: Sequence[dict[str, Any]]) -> list[str]:
    """The launches that take longest."""
    lines = ["", f"## The {_WORST} longest launches of each network", "", "By events between the launches.", ""]
    body = []
    for row in rows:
        steps = row.get("steps", [])
        total = sum(ms for _, _, ms in steps)
        for node, kernel, ms in sorted(steps, key=lambda step: -step[2])[:_WORST]:
            body.append((row["model"], row["batch"], row["precision"], node, kernel, _ms(ms), f"{ms / total:.0%}"))
    return [*lines, *_rows(("network", "batch", "precision", "layer", "kernel", "ms", "share"), body)]


def _layers(results: dict[str, Any]) -> list[str]:
    rows = results.get("layers", [])
    if not rows:
        return []
    limit = results.get("copy_gigabytes_a_second") or results["gpu"]["gigabytes_a_second"]
    lines = ["", "## Layers alone, 1 weight in 10", ""]
    lines += [
        "Buffers take turns, so that the level-2 cache has none of them; the share is of the bandwidth of a copy.",
        "",
    ]
    head = ("layer", "by", "error", "ms", "predicted", "GB/s", "share", "GFLOP/s")
    beside = {row["name"]: row for row in results.get("torch", {}).get("layers", [])}
    body: list[Sequence[Any]] = []
    names = dict.fromkeys(row["layer"] for row in rows)
    for name in names:
        for row in (row for row in rows if row["layer"] == name):
            rates: list[str] = ["", "", ""]
            if "ms" in row:
                speed = row["bytes"] / row["ms"] / 1e6
                rates = [f"{speed:.0f}", f"{speed / limit:.0%}", f"{row['flops'] / row['ms'] / 1e6:.0f}"]
            error = row.get("wrong") or f"{row['error']:.1e}"
            body.append((name, f"lwc, {row['candidate']}", error, _ms(row.get("ms")), _ms(row["predicted_ms"]), *rates))
        for way, ms in beside.get(name, {}).items():
            if way != "name":
                body.append((name, f"PyTorch, {way}", "", ms if isinstance(ms, str) else _ms(ms), "", "", "", ""))
    return [*lines, *_rows(head, body)]


def _ms(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}" if value < 10 else f"{value:.1f}"


def _rows(head: Iterable[str], body: Iterable[Iterable[Any]]) -> list[str]:
    head = list(head)
    lines = [f"| {' | '.join(head)} |", f"|{' --- |' * len(head)}"]
    return lines + [f"| {' | '.join(str(cell).replace('|', '/') for cell in row)} |" for row in body]
