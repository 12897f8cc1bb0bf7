"""What lwc's code for GPUs is to reach, and whether results of `make gpu` say that it does."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

WAYS = ("eager", "graph", "graph_nchw", "compile")  # in which PyTorch computes a network
_AHEAD = 1.5  # of PyTorch's best, one image at a time, at 90 % zeros
_FAR_AHEAD = 2.0  # likewise, of networks with large fully connected layers; and of larger batches
_LARGE = ("alexnet", "vgg16")
_NETWORKS = ("lenet5", *_LARGE, "resnet50", "mobilenet_v2", "bert12")
_BATCHES = (
    ("vgg16", 16),
    ("resnet50", 16),
    ("resnet50", 64),
    ("mobilenet_v2", 16),
    ("mobilenet_v2", 64),
    ("bert12", 16),
)
_SHARE = 0.7  # of the bandwidth of a copy, by fully connected layers
_AHEAD_OF_CUBLAS = 5.0  # in fully connected layers
_AHEAD_OF_CUSPARSE = 2.0  # in 1x1 convolutions
_2_4_AHEAD_OF_CUBLAS = 1.4
_2_4_OF_CUSPARSELT = 0.9


@dataclass(frozen=True)
class Goal:
    """One line of the table.

    Attributes:
        name: what is compared.
        asked: of it.
        measured: as text.
        reached: None if it was not measured.
    """

    name: str
    asked: str
    measured: str
    reached: bool | None


def goals(results: dict[str, Any]) -> list[Goal]:
    """All goals, by the results."""
    return [*_network_goals(results), *_connected(results), *_pointwise(results), *_two_of_four(results)]


def best_of_torch(results: dict[str, Any], model: str, batch: int, precision: str) -> tuple[float, str] | None:
    """PyTorch's fastest way to compute a network: milliseconds and which."""
    found = [
        (row[f"{way}_ms"], way)
        for row in results.get("torch", {}).get("networks", [])
        if (row["model"], row["batch"], row["precision"]) == (model, batch, precision)
        for way in WAYS
        if f"{way}_ms" in row
    ]
    return min(found, default=None)


def best_of_lwc(results: dict[str, Any], layer: str, precision: str) -> dict[str, Any] | None:
    """The row of a layer's fastest candidate in a precision."""
    rows = [
        row
        for row in results.get("layers", [])
        if (row["layer"], row["precision"]) == (layer, precision) and "ms" in row and "wrong" not in row
    ]
    return min(rows, key=lambda row: float(row["ms"]), default=None)


def beside(results: dict[str, Any], layer: str, way: str) -> float | None:
    """PyTorch's milliseconds of a layer: the least of the ways that begin with `way`."""
    rows = results.get("torch", {}).get("layers", [])
    times = (row[name] for row in rows if row["name"] == layer for name in row if name.startswith(way))
    return min((ms for ms in times if isinstance(ms, float)), default=None)


def share_of_copy(results: dict[str, Any], row: dict[str, Any]) -> float:
    """The part of the bandwidth of a copy that a layer's candidate has."""
    limit = results.get("copy_gigabytes_a_second") or results["gpu"]["gigabytes_a_second"]
    return float(row["bytes"] / row["ms"] / 1e6 / limit)


def _network_goals(results: dict[str, Any]) -> Iterator[Goal]:
    for model in _NETWORKS:
        yield _network(results, model, "90", 1, _FAR_AHEAD if model in _LARGE else _AHEAD)
    for model in _LARGE:
        yield _network(results, model, "han", 1, _FAR_AHEAD)
    for model, batch in _BATCHES:
        yield _network(results, model, "90", batch, _FAR_AHEAD)


def _network(results: dict[str, Any], model: str, variant: str, batch: int, asked: float) -> Goal:
    zeros = "90 % zeros" if variant == "90" else "zeros of Han et al. 2015"
    name, wanted = f"{model}, {zeros}, batch {batch}", f">= {asked:g} x PyTorch's best float32"
    rows = [
        row
        for row in results.get("networks", [])
        if (row["model"], row["variant"], row["batch"], row["precision"]) == (model, variant, batch, "float32")
    ]
    other = best_of_torch(results, model, batch, "float32")
    if rows and "wrong" in rows[0]:
        return Goal(name, wanted, rows[0]["wrong"], False)
    if not rows or other is None:
        return Goal(name, wanted, "", None)
    ms, (beside_ms, way) = rows[0]["ms"], other
    return Goal(name, wanted, f"{beside_ms / ms:.2f}: {ms:.4g} ms, {beside_ms:.4g} by {way}", beside_ms / ms >= asked)


def _layers_for(results: dict[str, Any], purpose: str) -> list[str]:
    return list(dict.fromkeys(row["layer"] for row in results.get("layers", []) if row["purpose"] == purpose))


def _connected(results: dict[str, Any]) -> Iterator[Goal]:
    for layer in _layers_for(results, "fully connected") or ["fully connected layers"]:
        row, cublas = best_of_lwc(results, layer, "float32"), beside(results, layer, "dense float32")
        wanted = f">= {_SHARE:.0%} of a copy's bandwidth"
        if row is None:
            yield Goal(layer, wanted, "", None)
        else:
            share = share_of_copy(results, row)
            yield Goal(layer, wanted, f"{share:.0%}{_unlike_chosen(results, row)}", share >= _SHARE)
        yield _ratio(results, layer, f">= {_AHEAD_OF_CUBLAS:g} x cuBLAS", row, cublas, _AHEAD_OF_CUBLAS)


def _pointwise(results: dict[str, Any]) -> Iterator[Goal]:
    """One goal a batch: it is reached if every layer reaches it."""
    layers = _layers_for(results, "single weights")
    for batch in dict.fromkeys(layer.split(" x ")[0] for layer in layers) or ["1"]:
        name, wanted = f"ResNet-50's 1x1 layers, batch {batch}", f">= {_AHEAD_OF_CUSPARSE:g} x cuSPARSE, each"
        ratios: dict[str, float] = {}
        for layer in (layer for layer in layers if layer.split(" x ")[0] == batch):
            row, other = best_of_lwc(results, layer, "float32"), beside(results, layer, "csr float32")
            ratios[layer] = other / row["ms"] if row and other else math.nan
        measured = [ratio for ratio in ratios.values() if not math.isnan(ratio)]
        if not measured:
            yield Goal(name, wanted, "", None)
            continue
        mean = math.exp(sum(map(math.log, measured)) / len(measured))
        least = min(measured)
        slowest = next(layer for layer, ratio in ratios.items() if ratio == least)
        reaching = sum(ratio >= _AHEAD_OF_CUSPARSE for ratio in measured)
        text = f"{reaching} of {len(ratios)}; least {least:.2f} ({slowest}), geometric mean {mean:.2f}"
        yield Goal(name, wanted, text, reaching == len(ratios))


def _two_of_four(results: dict[str, Any]) -> Iterator[Goal]:
    for layer in _layers_for(results, "2:4") or ["2:4"]:
        row, name = best_of_lwc(results, layer, "float16"), f"{layer}, float16"
        for other, way, asked in (
            ("cuBLAS on every weight", "dense float16", _2_4_AHEAD_OF_CUBLAS),
            ("cuSPARSELt", "2:4 float16", _2_4_OF_CUSPARSELT),
        ):
            yield _ratio(results, name, f">= {asked:g} x {other}", row, beside(results, layer, way), asked)


def _ratio(
    results: dict[str, Any], name: str, wanted: str, row: dict[str, Any] | None, other: float | None, asked: float
) -> Goal:
    if row is None or other is None:
        return Goal(name, wanted, "", None)
    ratio = other / row["ms"]
    text = f"{ratio:.2f}: {row['ms']:.4g} ms, {other:.4g}{_unlike_chosen(results, row)}"
    return Goal(name, wanted, text, ratio >= asked)


def _unlike_chosen(results: dict[str, Any], best: dict[str, Any]) -> str:
    """Where lwc takes another candidate than the best, what that one needs."""
    if best["chosen"]:
        return ""
    of_layer = (r for r in results["layers"] if (r["layer"], r["precision"]) == (best["layer"], best["precision"]))
    times = [f"; lwc takes {row['candidate']}, {row['ms']:.4g} ms" for row in of_layer if row["chosen"] and "ms" in row]
    return times[0] if times else "; lwc takes one that was not timed"
