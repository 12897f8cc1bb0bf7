"""Every plot that a model's weights and provenance give, and that of a sensitivity scan."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, numpy_helper

from lwc_compiler.passes.sites import Site, constant_tensors, find_sites
from lwc_compiler.report.document import last_entry
from lwc_compiler.report.plots.curves import Curve, TrainedRound, sensitivity, trade_off, training_curve
from lwc_compiler.report.plots.weights import kernel_picture, layer_density, mask_picture, weight_histogram

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from lwc_compiler.model import Model
    from lwc_compiler.sparsity.curves import Sensitivity

_HISTOGRAMS = 3
_MASKS = 2
# A square number of inputs from here on is taken for the pixels of an image.
_SMALLEST_IMAGE = 8 * 8


def figures_of(before: Model | None, after: Model) -> dict[str, Figure]:
    """Name, fit for a file, -> figure.

    - `trade-off`: metric and density of the rounds of `iterate`.
    - `training`: metric over the epochs of those rounds, or of every retraining.
    - `density`: of every layer.
    - `histogram`: weights of the largest pruned layers.
    - `mask-1`, `mask-2`: sparsity pattern of the first pruned layers.

    What there is no data for is left out: a model without zeros and without training gives nothing.

    Args:
        before: the dense model, with the same names of weights; None leaves it out of the histograms.
        after: the pruned model. Its zeros count as pruned.
    """
    return {**_figures_of_training(after.provenance), **_figures_of_weights(before, after)}


def figure_of_scan(found: Sensitivity, suggested: Mapping[str, float] | None = None) -> Figure:
    """The sensitivity of every layer.

    Args:
        found: the measurements.
        suggested: weight -> density that was chosen for it.
    """
    curves = curves_of_scan(found)
    marks = {curves[weight].name: density for weight, density in (suggested or {}).items() if weight in curves}
    return sensitivity(list(curves.values()), suggested=marks, dense=found.value(found.dense), metric=found.metric)


def curves_of_scan(found: Sensitivity) -> dict[str, Curve]:
    """Weight -> the metric over the density of its layer."""
    names = _names([(site.weight, site.nodes[0]) for site in found.sites])
    return {
        site.weight: Curve(
            names[site.weight], [point.density for point in site.points], [found.value(point) for point in site.points]
        )
        for site in found.sites
    }


def curves_of_rounds(iterated: Mapping[str, Any]) -> list[Curve]:
    """The metric over the density of the rounds of `iterate`: after retraining and, where it was measured, before."""
    sparser = sorted(_last_stages(iterated).values(), key=lambda entry: -entry["density"])
    before = [entry for entry in sparser if entry["metric_pruned"] is not None]
    curves = [
        Curve(
            "retrained",
            [entry["density"] for entry in sparser],
            [entry["metric"] for entry in sparser],
            missed=[entry["held"] is False for entry in sparser],
        )
    ]
    if before:
        densities = [entry["density"] for entry in before]
        curves.append(Curve("before retraining", densities, [entry["metric_pruned"] for entry in before]))
    return curves


def _figures_of_training(passes: Sequence[Mapping[str, Any]]) -> dict[str, Figure]:
    iterated = last_entry(passes, "iterate")
    if iterated is not None:
        return _figures_of_rounds(iterated)
    retrained = last_entry(passes, "retrain")
    return {} if retrained is None else {"training": training_curve(_retrainings(passes), metric=retrained["metric"])}


def _figures_of_rounds(iterated: Mapping[str, Any]) -> dict[str, Figure]:
    stages, metric, dense = iterated["rounds"], iterated["metric"], iterated["dense_metric"]
    best = _last_stages(iterated).get(iterated["best_round"])
    chosen = None if best is None else (best["density"], best["metric"])
    trained = [
        _trained(entry, str(entry["round"]) if entry["stage"] == "all" else f"{entry['round']} {entry['stage']}", best)
        for entry in stages
    ]
    return {
        "trade-off": trade_off(curves_of_rounds(iterated), dense=dense, metric=metric, chosen=chosen),
        "training": training_curve(trained, dense=dense, metric=metric),
    }


def _last_stages(iterated: Mapping[str, Any]) -> dict[int, Mapping[str, Any]]:
    """Round -> its last stage: what counts is the model after that."""
    return {entry["round"]: entry for entry in iterated["rounds"]}


def _retrainings(passes: Iterable[Mapping[str, Any]]) -> list[TrainedRound]:
    """One round for every retraining, with the density of the pruning before it."""
    rounds: list[TrainedRound] = []
    density = None
    for entry in passes:
        if entry.get("pass") == "prune":
            density = entry["density"]
        elif entry.get("pass") == "retrain":
            rounds.append(_trained({**entry, "density": density}, str(len(rounds) + 1)))
    return rounds


def _trained(entry: Mapping[str, Any], name: str, best: Mapping[str, Any] | None = None) -> TrainedRound:
    history = entry["history"]
    return TrainedRound(
        name,
        entry["density"],
        [epoch["epoch"] for epoch in history],
        [epoch["metric"] for epoch in history],
        entry["best_epoch"],
        chosen=entry is best,
    )


def _figures_of_weights(before: Model | None, after: Model) -> dict[str, Figure]:
    sites = find_sites(after.proto)
    constants = constant_tensors(after.proto.graph)
    weights = {site.weight: numpy_helper.to_array(constants[site.weight]) for site in sites}
    kept = {name: int(np.count_nonzero(weight)) for name, weight in weights.items()}
    pruned = [site for site in sites if kept[site.weight] < site.size]
    if not pruned:
        return {}
    names = _names([(site.weight, site.nodes[0]) for site in sites])
    dense = {} if before is None else constant_tensors(before.proto.graph)
    largest = sorted(pruned, key=lambda site: -site.size)[:_HISTOGRAMS]
    histograms = {
        names[site.weight]: (
            numpy_helper.to_array(dense[site.weight]) if site.weight in dense else None,
            weights[site.weight],
        )
        for site in sites
        if site in largest
    }
    masks = {
        f"mask-{number}": _mask_figure(after.proto, site, names[site.weight], weights[site.weight] != 0)
        for number, site in enumerate(pruned[:_MASKS], 1)
    }
    return {
        "density": layer_density({names[site.weight]: (kept[site.weight], site.size) for site in sites}),
        "histogram": weight_histogram(histograms),
        **masks,
    }


def _names(sites: Sequence[tuple[str, str]]) -> dict[str, str]:
    """Weight -> what its layer is called, from (weight, label of its node): the weight where labels are not unique."""
    unique = len({label for _, label in sites}) == len(sites)
    return {weight: label if unique else weight for weight, label in sites}


def _mask_figure(proto: ModelProto, site: Site, name: str, mask: NDArray[np.bool_]) -> Figure:
    if site.op_types[0].startswith("Conv") and math.prod(site.shape[2:]) > 1:
        return kernel_picture(name, mask)
    return mask_picture(name, site.to_matrix(mask), _image(proto, site))


def _image(proto: ModelProto, site: Site) -> tuple[int, int] | None:
    """(height, width) of the images that a first layer's inputs are pixels of.

    Known when the model's only input is an image, guessed when it is a row of 64 or more numbers that fill a square.
    """
    constants = {tensor.name for tensor in proto.graph.initializer}
    inputs = [value for value in proto.graph.input if value.name not in constants]
    pixels = site.matrix_shape[1]
    if not site.first or len(inputs) != 1:
        return None
    lengths = [dim.dim_value for dim in inputs[0].type.tensor_type.shape.dim][1:]
    lengths = [length for length in lengths if length != 1]
    if math.prod(lengths) != pixels:
        return None
    if len(lengths) == 2 or (len(lengths) == 3 and lengths[1] == lengths[2]):
        return lengths[-2], lengths[-1]
    side = math.isqrt(pixels)
    return (side, side) if len(lengths) == 1 and side * side == pixels >= _SMALLEST_IMAGE else None
