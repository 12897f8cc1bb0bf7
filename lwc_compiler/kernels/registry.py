"""Every kernel there is, one line each: what its plans call it, how its weights are stored, what it computes."""

from __future__ import annotations

from typing import NamedTuple

from lwc_compiler.kernels.lookup import FEATURES as LOOKUP_FEATURES

_GPU = frozenset({"cuda"})


class Entry(NamedTuple):
    """One kernel.

    Attributes:
        name: `Kernel.name`.
        format: `Plan.format` of the layers it computes, `rx1` or `r:2r` for several numbers r; empty for a step without
            weights.
        summary: what it computes.
        features: instruction sets without which no plan has it, by the names of `Target.features`; `cuda`: a GPU.
    """

    name: str
    format: str
    summary: str
    features: frozenset[str] = frozenset()


KERNELS = (
    Entry("conv_dense", "dense", "convolution with every weight"),
    Entry("conv_csr", "csr", "convolution, single non-zeros of one output channel at a time"),
    Entry("conv_block2", "block2", "convolution, non-zeros in blocks of 2 output channels"),
    Entry("conv_block4", "block4", "convolution, non-zeros in blocks of 4 output channels"),
    Entry("conv_block8", "block8", "convolution, non-zeros in blocks of 8 output channels"),
    Entry("conv_pairs", "csr", "pointwise convolution, single non-zeros of two output channels at a time"),
    Entry("conv_channels", "dense", "convolution with every weight, output channels in the vectors"),
    Entry("conv_pooled", "dense", "convolution with every weight, and the largest of its outputs in each window"),
    Entry("conv_depthwise", "dense", "depthwise convolution with every weight, row by row"),
    Entry("separable", "", "a depthwise convolution and the 1x1 convolutions around it"),
    Entry("winograd", "dense", "convolution by minimal filtering"),
    Entry("winograd_input", "", "transforms the input of a minimal filtering with few units of work"),
    Entry("phases", "", "sorts what a convolution with a stride reads into the parts that the stride takes turns in"),
    Entry("interleave", "", "puts the phases of a transposed convolution together"),
    Entry("subsample", "", "picks the pixels that a pointwise convolution with a stride reads"),
    Entry("gemm", "dense", "matrix product with every weight"),
    Entry("matvec_csr", "csr", "sparse matrix times vector, loading single inputs"),
    Entry("matvec_block2", "block2", "sparse matrix times vector, non-zeros in blocks of 2 outputs"),
    Entry("matvec_block4", "block4", "sparse matrix times vector, non-zeros in blocks of 4 outputs"),
    Entry("matvec_block8", "block8", "sparse matrix times vector, non-zeros in blocks of 8 outputs"),
    Entry("matvec_lookup", "csr", "sparse matrix times vector, looking inputs up in registers", LOOKUP_FEATURES),
    Entry("matvec_shared", "csr", "sparse matrix times a few vectors that lie side by side"),
    Entry("recurrent_cell", "", "the states of a step of a recurrent layer, of its gates"),
    Entry("recurrent_copy", "", "the first states of a recurrent layer, and the last ones"),
    Entry("transpose", "", "turns the input and the output of a sparse product of many rows"),
    Entry("gemm_batched", "", "products of two computed matrices"),
    Entry("gpu_recurrent_cell", "", "GPU: the states of a step of a recurrent layer, of its gates", _GPU),
    Entry("gpu_recurrent_copy", "", "GPU: the first states of a recurrent layer, and the last ones", _GPU),
    Entry("gpu_taps", "csr", "GPU: convolution or product of many rows, single non-zeros", _GPU),
    Entry("gpu_blocks", "4x1", "GPU: the same with blocks of four output channels", _GPU),
    Entry("gpu_gemm", "dense", "GPU: convolution or product of many rows with every weight", _GPU),
    Entry("gpu_mma", "dense", "GPU: the same on tensor cores", _GPU),
    Entry("gpu_mma_sparse", "r:2r", "GPU: the same with half of the input channels, on sparse tensor cores", _GPU),
    Entry("gpu_mma_blocks", "rx1", "GPU: the same with blocks of four output channels or more, on tensor cores", _GPU),
    Entry("gpu_wgmma", "dense", "GPU: product or convolution on Hopper's tensor cores", _GPU),
    Entry("gpu_wgmma_sparse", "2:4", "GPU: the same with two of four input channels", _GPU),
    Entry("gpu_wgmma_inputs", "", "GPU: rounds inputs and orders them for Hopper's tensor cores", _GPU),
    Entry("gpu_gemm_sum", "", "GPU: adds the parts of the sums of a layer up", _GPU),
    Entry("gpu_matvec_csr", "csr", "GPU: sparse matrix times a few vectors", _GPU),
    Entry("gpu_matvec_dense", "dense", "GPU: matrix with every weight times a few vectors", _GPU),
    Entry("gpu_batched", "", "GPU: products of two computed matrices", _GPU),
    Entry(
        "gpu_attention", "", "GPU: softmax of the products of keys and queries, and the product of values with it", _GPU
    ),
    Entry("gpu_depthwise", "dense", "GPU: depthwise convolution with every weight", _GPU),
)
