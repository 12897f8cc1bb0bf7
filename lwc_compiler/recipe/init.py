"""`lwc recipe init`: a commented recipe for a model, with values to start from."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from pathlib import Path

from lwc_compiler.model import Model, load_model
from lwc_compiler.passes.normalize import normalize
from lwc_compiler.passes.prune import prune
from lwc_compiler.passes.sites import Site, find_sites
from lwc_compiler.recipe.options import PruneOptions
from lwc_compiler.targets import HOST, find_target
from lwc_compiler.training.batching import input_specs
from lwc_compiler.training.data import is_function, open_source

_SPARSITY, _SPARSITY_WITHOUT_RETRAINING = 0.9, 0.5
# Steps that retraining takes at least, where they are at most so many epochs; small data is cut into small batches.
_STEPS, _EPOCHS = 2000, (10, 60)
_SMALL_DATA = 20_000
_SMALL_FIRST_LAYER = 0.05  # of all weights: pruning it saves next to nothing


def new_recipe(
    model: Path,
    place: Path,
    *,
    train_data: str | None = None,
    val_data: str | None = None,
    targets: Sequence[str] = (HOST,),
) -> str:
    """A recipe for `lwc build`, as TOML with comments.

    Args:
        model: the ONNX file.
        place: the file that the recipe will be in; its paths are relative to that file's folder.
        train_data: see `lwc_compiler.training.data`; None: it is left open, and nothing is retrained.
        val_data: the same.
        targets: names that `lwc targets` lists.

    Raises:
        ModelError: the model cannot be read, or there is nothing to prune.
        DataError: the training data cannot be read, or does not fit the model.
        TargetError: there is no such target.
    """
    for name in targets:
        find_target(name)
    normal = normalize(load_model(model), fold_batch_norm=False)
    options = _prune_options(normal, retrained=train_data is not None)
    folder = place.absolute().parent

    def path(text: str) -> str:
        return text if is_function(text) else os.path.relpath(text, folder)

    data = [f"{key} = {_quoted(path(text))}" for key, text in _given(train_data, val_data)]
    lines = [
        f"# How {_shown(model.name)} is pruned, compiled and judged. `lwc recipe schema` has every entry.",
        f"#   lwc recipe check {_shown(place.name)}",
        f"#   lwc build {_shown(place.name)}",
        "",
        f"model = {_quoted(path(str(model)))}",
        *_data_lines(normal, data),
        "",
        "[prune]",
        "# Sparsity: zeros / all weights. 0.9 is a start with retraining, 0.5 without.",
        *(f"{key} = {_toml(value)}" for key, value in options.model_dump(exclude_unset=True).items()),
        *_density_lines(normal, options),
        "",
        *_retrain_lines(normal, train_data),
        "",
        *_lower_lines(normal),
        *(line for name in targets for line in ("", *_target_lines(name))),
        "",
        "# A gate that fails ends the run with an exit code of its own kind, when everything is written.",
        "[gates]",
        f"{'' if data else '# '}max_accuracy_drop = 0.01  # one point of accuracy against the model as it is",
        "# max_disagreement = 0.05  # share of the predictions that differ from its own; needs no labels",
        f"# max_bytes = 100_000  # of each library; the dense weights take {_dense_bytes(normal):,} bytes",
        "# min_speedup = 2.0  # against ONNX Runtime on the model as it is, where it can be timed",
        '# baseline = "main/report.json"  # of an earlier run',
        "# max_bytes_regression = 2.0  # in percent of the baseline's",
        "",
        "[outputs]",
        f"directory = {_quoted(f'{model.stem}.build')}",
        'reports = ["json", "markdown"]',
    ]
    return "\n".join(lines) + "\n"


def _given(train_data: str | None, val_data: str | None) -> list[tuple[str, str]]:
    named = (("train_data", train_data), ("val_data", val_data))
    return [(key, text) for key, text in named if text is not None]


def _prune_options(model: Model, *, retrained: bool) -> PruneOptions:
    sites = find_sites(model.proto)
    first = sum(site.size for site in sites if site.first)
    return PruneOptions(
        criterion="erdos-renyi-kernel",
        sparsity=_SPARSITY if retrained else _SPARSITY_WITHOUT_RETRAINING,
        # What is nearly all of the network has to be pruned, first or not.
        keep_first=first < _SMALL_FIRST_LAYER * sum(site.size for site in sites),
    )


def _data_lines(model: Model, given: list[str]) -> list[str]:
    wanted = ", ".join(
        f"{_shown(spec.name)} ({'x'.join(str(dim or '?') for dim in spec.shape[1:]) or 'scalar'} {spec.dtype})"
        for spec in input_specs(model.proto)
    )
    lines = [f"# Data: an .npz with one array for each input, samples first: {wanted}; and `labels`, if there are any."]
    if given:
        return [*lines, *given]
    return [
        *lines,
        '# train_data = "train.npz"  # without it nothing is retrained',
        '# val_data = "validation.npz"  # without it accuracy is not measured',
    ]


def _density_lines(model: Model, options: PruneOptions) -> list[str]:
    """What the options leave of each layer."""
    sites = find_sites(model.proto)
    pruned = prune(model, options).provenance[-1]["sites"]
    rows = [("weight", "shape", "weights", "kept"), *(_row(site, pruned.get(site.weight, {})) for site in sites)]
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    return [
        "# What this leaves of each layer. The criterion 'per-layer' takes densities of yours, in [prune.densities];",
        "# 'sensitivity' finds those that lose least on the data.",
        *(
            f"#   {'  '.join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))}".rstrip()
            for row in rows
        ),
    ]


def _row(site: Site, entry: dict[str, float | str]) -> tuple[str, str, str, str]:
    density = float(entry.get("density", 1.0))
    kept = f"{100 * density:.3g} %" + (f", {entry['kept_because']}" if "kept_because" in entry else "")
    return _shown(site.weight), "x".join(map(str, site.shape)), f"{site.size:,}", kept


def _retrain_lines(model: Model, train_data: str | None) -> list[str]:
    if train_data is None:
        return ["# [retrain]  # needs train_data", "# epochs = 10"]
    # Counting what a function yields takes as long as an epoch.
    samples = _SMALL_DATA if is_function(train_data) else open_source(train_data, input_specs(model.proto)).samples
    batch = 32 if samples < _SMALL_DATA else 128
    epochs = min(max(math.ceil(_STEPS * batch / samples), _EPOCHS[0]), _EPOCHS[1])
    return [
        "[retrain]",
        f"epochs = {epochs}",
        f"batch_size = {batch}",
        "learning_rate = 1e-3",
        "",
        "# In rounds it goes further; the density falls from all weights to that of [prune].",
        "# [iterate]",
        "# rounds = 5",
        "# max_accuracy_drop = 0.0  # the sparsest round that holds is kept",
    ]


def _lower_lines(model: Model) -> list[str]:
    """Batch and open shapes, which all targets share."""
    lines = ["[lower]", "batch = 1"]
    for spec in input_specs(model.proto):
        if None in spec.shape[1:]:
            dims = ", ".join(str(dim or "?") for dim in (spec.shape[0] or 1, *spec.shape[1:]))
            lines.append(f"# shapes = {{ {_quoted(spec.name)} = [{dims}] }}  # ?: say how large")
    return lines


def _target_lines(name: str) -> list[str]:
    key = "".join(char if char.isalnum() or char in "._-" else "-" for char in name)
    lines = [f"[targets.{_quoted(key) if '.' in key else key}]"]
    return lines if key == name else [*lines, f"target = {_quoted(name)}"]


def _dense_bytes(model: Model) -> int:
    return sum(4 * site.size for site in find_sites(model.proto))


def _quoted(text: str) -> str:
    # A string of JSON is one of TOML, too; a dollar would begin the name of an environment variable.
    return json.dumps(text.replace("$", "$$"), ensure_ascii=False)


def _shown(text: str) -> str:
    """For a comment, which a name with a line break would end."""
    return text if text.isprintable() else json.dumps(text)


def _toml(value: object) -> str:
    return _quoted(value) if isinstance(value, str) else json.dumps(value)
