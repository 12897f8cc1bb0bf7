"""The prune pass: removes the connections that matter least (Han et al. 2015, section 3)."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from lwc_compiler.errors import ModelError, OptionError
from lwc_compiler.model import Model
from lwc_compiler.passes.sites import SITE_OPERATORS, Site, constant_tensors, find_sites
from lwc_compiler.recipe.options import PruneOptions
from lwc_compiler.sparsity.allocation import Curve, quality_factors
from lwc_compiler.sparsity.masks import Layer, choose_masks

if TYPE_CHECKING:
    from lwc_compiler.sparsity.curves import Sensitivity


def prune(
    model: Model,
    options: PruneOptions,
    *,
    sensitivity: Sensitivity | None = None,
    norms: Mapping[str, NDArray[np.float32]] | None = None,
) -> Model:
    """Masks the weights of `model` with the lowest scores and sets the masked ones to zero.

    Rewrite: `W -> W * M` for every site that is not kept, with `M` added to `Model.masks`. What was masked before, and
    what is exactly zero, stays pruned. Biases and all other tensors are left alone.

    A requested sparsity is meant over the sites that are pruned: kept ones count neither as weights nor as zeros. Kept:

    - sites that `options.keep` names;
    - the first layer (`keep_first`) and depthwise convolutions (`keep_depthwise`), unless `densities` names them;
    - with `per-layer`, sites without a density, or with density 1;
    - weights that are not float32, and weights that something else reads too (a tied embedding, a graph output).

    The provenance entry holds `density` (kept / all over the pruned sites) and `sites`: weight name -> `density` and
    either `requested` (None where the criterion sets no density a site) or, for a kept site, `kept_because`. With the
    criterion `sensitivity` a pruned site also has `quality`: the threshold on |w| that gives this density / the
    standard deviation of the weights.

    Args:
        model: left unchanged.
        options: criterion, score, structure and what to keep.
        sensitivity: what `passes.sensitivity.sensitivity` found for this model, for the criterion `sensitivity`; also
            when the model was pruned further since.
        norms: what `passes.calibration.input_norms` found for this model, for the score `activation`.

    Returns:
        A model that shares no weights with `model`.

    Raises:
        ModelError: no site can be pruned, or a weight holds NaN or Inf.
        OptionError: a name or pattern matches no site, names contradict each other, a density is out of reach, or
            `sensitivity` or `norms` is missing or of another model.
    """
    sites = find_sites(model.proto)
    if not sites:
        raise ModelError(
            f"model '{model.name}' has nothing to prune: none of its {len(model.proto.graph.node)} nodes is a "
            f"{', '.join(SITE_OPERATORS[:-1])} or {SITE_OPERATORS[-1]} with a constant floating-point weight"
        )
    constants = constant_tensors(model.proto.graph)
    weights = {site.weight: numpy_helper.to_array(constants[site.weight]) for site in sites}
    _check_finite(sites, weights)
    densities = _densities_by_weight(sites, options)
    reasons = kept_sites(sites, options, densities)
    pruned = [site for site in sites if site.weight not in reasons]
    if not pruned:
        listed = "; ".join(f"'{name}' ({reason})" for name, reason in reasons.items())
        raise ModelError(f"model '{model.name}' has nothing to prune, since every layer is kept: {listed}")
    before = {
        site.weight: model.masks.get(site.weight, np.ones(site.shape, bool)) & (weights[site.weight] != 0)
        for site in sites
    }
    layers = {
        site.weight: Layer(
            matrix=site.to_matrix(weights[site.weight]),
            kept=site.to_matrix(before[site.weight]),
            shape=site.shape,
            row_groups=site.row_groups,
            positions=site.positions,
            norms=_norms(site, options, norms),
            curve=_curve(site, options, sensitivity),
        )
        for site in pruned
    }
    asked = {name: density for name, density in densities.items() if name in layers}
    choices = choose_masks(layers, options.model_copy(update={"densities": asked}))
    masks = {site.weight: site.from_matrix(choices[site.weight].mask) for site in pruned}
    entries: dict[str, dict[str, Any]] = {}
    for site in sites:
        name = site.weight
        entries[name] = {"density": int(masks.get(name, before[name]).sum()) / site.size}
        if name in reasons:
            entries[name]["kept_because"] = reasons[name]
        else:
            entries[name]["requested"] = choices[name].requested
            if options.criterion == "sensitivity":
                left = np.where(before[name], weights[name], 0)
                entries[name]["quality"] = quality_factors({name: left}, {name: entries[name]["density"]})[name]
    return replace(model, masks={**model.masks, **masks}).after(
        "prune",
        _with_masks(model.proto, masks, weights),
        options=options.model_dump(mode="json"),
        density=sum(int(mask.sum()) for mask in masks.values()) / sum(site.size for site in pruned),
        sites=entries,
    )


def _norms(
    site: Site, options: PruneOptions, norms: Mapping[str, NDArray[np.float32]] | None
) -> NDArray[np.float32] | None:
    """The norms of what `site` reads, with the score `activation`."""
    if options.score != "activation":
        return None
    shape = (site.row_groups, site.matrix_shape[1])
    if norms is None or site.weight not in norms or norms[site.weight].shape != shape:
        raise OptionError(
            f"score 'activation' needs the norms of the inputs of '{site.weight}', {shape[0]} x {shape[1]} numbers "
            "measured on calibration data: give data (in Python: prune(..., norms=input_norms(model, data)))"
        )
    return norms[site.weight]


def _curve(site: Site, options: PruneOptions, sensitivity: Sensitivity | None) -> Curve | None:
    """What pruning `site` costs, with the criterion `sensitivity`."""
    if options.criterion != "sensitivity":
        return None
    if sensitivity is None:
        raise OptionError(
            "criterion 'sensitivity' needs a sensitivity scan of the model: give data, or the file that `lwc "
            "sensitivity` writes (in Python: prune(..., sensitivity=sensitivity(model, data)))"
        )
    return sensitivity.curve(site.weight, site.shape, options.structure, options.score)


def _names(site: Site) -> tuple[str, ...]:
    return (site.weight, *site.nodes)


def _check_finite(sites: Sequence[Site], weights: dict[str, NDArray[Any]]) -> None:
    for site in sites:
        bad = weights[site.weight].size - int(np.isfinite(weights[site.weight]).sum())
        if bad:
            raise ModelError(
                f"weight '{site.weight}' of {site.op_types[0]} '{site.nodes[0]}' holds NaN or Inf in {bad} of "
                f"{site.size} entries; magnitudes mean nothing there, so export the model again from a sound checkpoint"
            )


def _no_such_site(option: str, name: str, sites: Sequence[Site]) -> OptionError:
    names = list(dict.fromkeys(known for site in sites for known in _names(site)))
    close = difflib.get_close_matches(name, names, n=3, cutoff=0.4) or names[:10]
    return OptionError(
        f"{option}: '{name}' matches no weight or node of a prunable layer; did you mean "
        f"{' or '.join(repr(known) for known in close)}?"
    )


def _densities_by_weight(sites: Sequence[Site], options: PruneOptions) -> dict[str, float]:
    """`options.densities` with every name replaced by the name of the site's weight."""
    found: dict[str, float] = {}
    for name, density in options.densities.items():
        named = [site.weight for site in sites if name in _names(site)]
        if not named:
            raise _no_such_site("densities", name, sites)
        for weight in named:
            if found.setdefault(weight, density) != density:
                raise OptionError(
                    f"densities: weight '{weight}' gets both {found[weight]:g} and {density:g} (by '{name}'); its "
                    "nodes share one weight, so give one density"
                )
    return found


def kept_sites(sites: Sequence[Site], options: PruneOptions, densities: Mapping[str, float]) -> dict[str, str]:
    """Weight name -> why it is not pruned.

    Args:
        sites: of the model.
        options: what to keep.
        densities: weight name -> density that is asked for.

    Raises:
        OptionError: an entry of `keep` matches no site, or one with a density.
    """
    for pattern in options.keep:
        if not any(fnmatchcase(name, pattern) for site in sites for name in _names(site)):
            raise _no_such_site("keep", pattern, sites)
    reasons = {}
    for site in sites:
        names = _names(site)
        keep = next((pattern for pattern in options.keep if any(fnmatchcase(name, pattern) for name in names)), None)
        if keep is not None and site.weight in densities:
            raise OptionError(f"weight '{site.weight}' has a density, but keep entry '{keep}' keeps it; remove one")
        if reason := _why_kept(site, options, keep, densities.get(site.weight)):
            reasons[site.weight] = reason
    return reasons


def _why_kept(site: Site, options: PruneOptions, keep: str | None, density: float | None) -> str | None:
    if keep is not None:
        return f"keep entry '{keep}'"
    if site.dtype != "float32":
        return f"{site.dtype} weight; only float32 is pruned"
    if site.other_uses:
        return f"also read by {', '.join(site.other_uses)}"
    if density is not None:
        return "density 1 is requested" if density == 1 else None
    if options.criterion == "per-layer":
        return "no density given"
    if options.keep_first and site.first:
        return "first layer (keep_first)"
    if options.keep_depthwise and site.depthwise:
        return "depthwise convolution (keep_depthwise)"
    return None


def _with_masks(
    proto: onnx.ModelProto, masks: dict[str, NDArray[np.bool_]], weights: dict[str, NDArray[Any]]
) -> onnx.ModelProto:
    """A copy of `proto` in which the entries of `weights` outside `masks` are +0."""
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    tensors = constant_tensors(copy.graph)
    for name, mask in masks.items():
        tensors[name].ClearField("float_data")
        tensors[name].raw_data = np.where(mask, weights[name], np.float32(0)).astype("<f4").tobytes()
    return copy
