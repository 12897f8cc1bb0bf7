"""Weights that share values while they train (Han et al. 2016, "Deep Compression", section 3).

The kept weights of a layer are replaced by the nearest of a few values. The gradient of a value is the sum of those of
its weights; since all of them then take the same step from the same place, they stay equal to the last bit.
"""

from __future__ import annotations

import numpy as np
import onnx
from numpy.typing import NDArray

from lwc_compiler.passes.sites import find_sites
from lwc_compiler.recipe.options import RetrainOptions

Arrays = dict[str, NDArray[np.float32]]


class SharedWeights:
    """The values that weights share; without a codebook there are none, and nothing happens."""

    def __init__(self, proto: onnx.ModelProto, weights: Arrays, options: RetrainOptions) -> None:
        """Rounds the kept weights of every site to `2 ** bits` values, in place; bits as in `options.codebook`.

        Weights that are 0 count as pruned, and stay 0: masks must not change from here on.

        Args:
            proto: the user's model.
            weights: what is trained.
            options: `codebook` is read.
        """
        self._shared: dict[str, tuple[NDArray[np.intp], NDArray[np.uint8]]] = {}
        if not options.codebook:
            return
        from lwc_compiler.packing.codebook import share_weights

        for site in find_sites(proto):
            bits = options.codebook.get(site.kind)
            if bits is None or site.weight not in weights:
                continue
            weight = weights[site.weight].reshape(-1)
            kept = np.flatnonzero(weight)
            codes, values = share_weights(weight[kept], bits)
            weight[kept] = values[codes]
            self._shared[site.weight] = kept, codes

    def combine(self, gradients: Arrays) -> None:
        """Replaces the gradient of every shared weight by the sum over the weights that share its value, in place."""
        for name, (kept, codes) in self._shared.items():
            gradient = gradients[name].reshape(-1)
            sums = np.bincount(codes, weights=gradient[kept])
            gradient[:] = 0
            gradient[kept] = sums[codes].astype(np.float32)
