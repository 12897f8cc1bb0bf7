"""The results of `make gpu` as Markdown: `python -m benchmarks.gpu.table RESULTS.json` prints them."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.gpu.goals import WAYS, beside, best_of_lwc, best_of_torch, goals, share_of_copy

_WORST = 5


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Prints the results of `make gpu`.")
    parser.add_argument("results", type=Path)
    print(markdown(json.loads(parser.parse_args().results.read_text(encoding="utf-8"))), end="")


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
    lines += goal_lines(results)
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


def goal_lines(results: dict[str, Any]) -> list[str]:
    """The first table: which goals are reached."""
    said = {True: "yes", False: "no", None: "not measured"}
    found = goals(results)
    reached = sum(goal.reached is True for goal in found)
    lines = ["", "## Goals", "", f"{reached} of {len(found)} are reached. Ratios are of times; more is better.", ""]
    body = [(goal.name, goal.asked, goal.measured, said[goal.reached]) for goal in found]
    return [*lines, *_rows(("what", "asked", "measured", "reached"), body)]


def _networks(results: dict[str, Any]) -> list[str]:
    rows = results.get("networks", [])
    if not rows:
        return []
    lines = ["", "## Networks", ""]
    lines += [
        "Milliseconds a run, tensors on the GPU, runs back to back; `host`: with copies from and to the processor.",
        "PyTorch computes every weight, in the same precision; its best way is taken.",
        "",
    ]
    body = []
    for row in rows:
        best = best_of_torch(results, row["model"], row["batch"], row["precision"])
        ahead = f"{best[0] / row['ms']:.2f}" if best and "ms" in row else ""
        body.append(
            (
                *(row[key] for key in ("model", "variant", "batch", "precision")),
                row.get("wrong") or f"{row['error']:.1e}",
                *(_ms(row.get(key)) for key in ("ms", "host_ms")),
                *((_ms(best[0]), best[1]) if best else ("", "")),
                ahead,
            )
        )
    head = ("network", "zeros", "batch", "precision", "error", "lwc", "host", "PyTorch", "by", "ahead")
    return [*lines, *_rows(head, body), *_torch(results), *_steps(rows)]


def _torch(results: dict[str, Any]) -> list[str]:
    rows = results.get("torch", {}).get("networks", [])
    if not rows:
        return []
    lines = ["", "## PyTorch's networks", ""]
    lines += [
        "Milliseconds a run: by torch.compile with CUDA graphs, as one CUDA graph, and eager at batch 1. Images in 16",
        "bits have their channels last, but for `graph_nchw`.",
        "",
    ]
    body = []
    for row in rows:
        reasons = [str(row[key]) for key in ("compile", "missing") if key in row]
        body.append(
            (
                *(row[key] for key in ("model", "batch", "precision")),
                *(_ms(row.get(f"{way}_ms")) for way in WAYS),
                "; ".join(reasons),
            )
        )
    return [*lines, *_rows(("network", "batch", "precision", *WAYS, "missing"), body)]


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
    lines = ["", "## Layers alone", ""]
    lines += [
        "Rows or images x inputs, for convolutions also size and kernel, x outputs, and the part of the weights that",
        "is kept. Milliseconds of lwc's best candidate, with its share of the bandwidth of a copy; PyTorch's by cuBLAS",
        "or cuDNN on every weight, by cuSPARSE and by cuSPARSELt. Buffers take turns, so that the level-2 cache has",
        "none of them.",
        "",
    ]
    body = []
    for layer, precision in dict.fromkeys((row["layer"], row["precision"]) for row in rows):
        best = best_of_lwc(results, layer, precision)
        others = (beside(results, layer, f"{way} {precision}") for way in ("dense", "csr", "2:4"))
        found = (best["candidate"], _ms(best["ms"]), f"{share_of_copy(results, best):.0%}") if best else ("", "", "")
        body.append((layer, precision, *found, *map(_ms, others)))
    head = ("layer", "precision", "lwc's best", "ms", "share", "cuBLAS, cuDNN", "cuSPARSE", "cuSPARSELt")
    lines += _rows(head, body)
    reasons = [
        f"- {row['name']}, {way}: {reason}"
        for row in results.get("torch", {}).get("layers", [])
        for way, reason in row.items()
        if way != "name" and isinstance(reason, str)
    ]
    return [*lines, *(["", "Missing:", "", *reasons] if reasons else []), *_candidates(rows)]


def _candidates(rows: Sequence[dict[str, Any]]) -> list[str]:
    lines = ["", "## Candidates", "", f"`*`: the one that lwc takes. {_tuning(rows)}".rstrip(), ""]
    body = []
    for row in rows:
        rates = ["", ""]
        if "ms" in row:
            rates = [f"{row['bytes'] / row['ms'] / 1e6:.0f}", f"{row['flops'] / row['ms'] / 1e6:.0f}"]
        name, error = row["candidate"] + " *" * row["chosen"], row.get("wrong") or f"{row['error']:.1e}"
        body.append((row["layer"], name, error, _ms(row.get("ms")), _ms(row["predicted_ms"]), *rates))
    return [*lines, *_rows(("layer", "candidate", "error", "ms", "predicted", "GB/s", "GFLOP/s"), body)]


def _tuning(rows: Sequence[dict[str, Any]]) -> str:
    """What measuring would gain: `lwc compile --tune` takes the fastest candidate, and without it the predicted one."""
    longer = []
    for taken in (row for row in rows if row["chosen"] and "ms" in row):
        layer = taken["layer"], taken["precision"]
        times = [row["ms"] for row in rows if (row["layer"], row["precision"]) == layer and "ms" in row]
        if len(times) > 1:
            longer.append(taken["ms"] / min(times) - 1)
    if not longer:
        return ""
    mean, most = sum(longer) / len(longer), max(longer)
    return (
        f"It takes {mean:.1%} longer than the fastest, on the average of {len(longer)} layers, and {most:.1%} at most."
    )


def _ms(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}" if value < 10 else f"{value:.1f}"


def _rows(head: Iterable[str], body: Iterable[Iterable[Any]]) -> list[str]:
    head = list(head)
    lines = [f"| {' | '.join(head)} |", f"|{' --- |' * len(head)}"]
    return lines + [f"| {' | '.join(str(cell).replace('|', '/') for cell in row)} |" for row in body]


if __name__ == "__main__":
    main()
