"""What `pack` changes in a model before it stores it without loss: weights become float16 or take shared values."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, numpy_helper

from lwc_compiler.model import Model
from lwc_compiler.packing.codebook import share_weights
from lwc_compiler.passes.sites import Site, constant_tensors, find_sites
from lwc_compiler.recipe.options import PackOptions


def round_weights(model: Model, options: PackOptions) -> Model:
    """`model` with the weights that `options.values` allows; a model that has them already comes back as it is.

    These are the float32 weights of linear and recurrent layers that nothing else reads. Zeros stay zeros. A
    weight that does not fit into float16, or holds NaN or Inf, stays as it is.
    """
    if options.values == "float32":
        return model
    tensors = constant_tensors(model.proto.graph)
    rounded = {}
    for site in find_sites(model.proto):
        if site.dtype == "float32" and not site.other_uses:
            weight = numpy_helper.to_array(tensors[site.weight])
            new = _rounded(weight, site, options)
            if new is not None and not np.array_equal(new, weight):
                rounded[site.weight] = new
    if not rounded:
        return model
    proto = ModelProto()
    proto.CopyFrom(model.proto)
    tensors = constant_tensors(proto.graph)
    for name, weight in rounded.items():
        tensors[name].ClearField("float_data")
        tensors[name].raw_data = weight.astype("<f4").tobytes()
    return model.after("pack", proto, options=options.model_dump(), weights=sorted(rounded))


def _rounded(weight: NDArray[Any], site: Site, options: PackOptions) -> NDArray[Any] | None:
    """The weight as it will be stored; None where it cannot be stored so."""
    if not np.isfinite(weight).all():
        return None
    if options.values == "float16":
        with np.errstate(over="ignore", under="ignore"):
            halves = weight.astype(np.float16)
        return halves.astype(np.float32) if np.isfinite(halves).all() else None
    codes, codebook = share_weights(weight, options.conv_bits if "Conv" in site.op_types[0] else options.fc_bits)
    return np.where(weight == 0, weight, codebook[codes]) if codebook.size else weight
