"""One small file of a pruned model, for shipping (`lwc pack`, `lwc unpack`); docs/packing.md describes the format."""

from __future__ import annotations

from lwc_compiler.packing.codebook import share_weights
from lwc_compiler.packing.container import pack, save_packed, sizes_of, unpack
from lwc_compiler.packing.sizes import PackedSizes, TensorSize
from lwc_compiler.recipe.options import PackOptions

__all__ = [
    "PackOptions",
    "PackedSizes",
    "TensorSize",
    "pack",
    "save_packed",
    "share_weights",
    "sizes_of",
    "unpack",
]
