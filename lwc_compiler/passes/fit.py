"""Whether a model fits the memory of a board: a lower bound before lowering, and the real figures after it.

Flash holds code and constants. RAM holds the workspace, the graph's inputs and outputs, which are the caller's, and the
library's variables; the stack comes on top. Under an operating system weights and code are in RAM, too.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from onnx import helper, numpy_helper

from lwc_compiler.errors import TargetError
from lwc_compiler.passes.sites import constant_tensors, find_sites

if TYPE_CHECKING:
    import onnx

    from lwc_compiler.codegen.footprint import Footprint
    from lwc_compiler.codegen.result import TensorSpec
    from lwc_compiler.model import Model
    from lwc_compiler.targets.target import Target

_VALUE_BYTES = {"float32": 4, "float16": 2, "int8": 1}  # of a kept weight, in every format


def check_estimate(model: Model, target: Target, weight_type: str = "float32") -> None:
    """Refuses a model that cannot fit the target, whatever kernels it gets.

    Args:
        model: with static shapes, as it is lowered.
        target: with the board's memory, if it has a limit.
        weight_type: of the lowering.

    Raises:
        TargetError: the kept weights alone, or the largest layer's input and output, are larger than the memory.
    """
    if not (target.flash_bytes or target.ram_bytes):
        return
    sites, constants = find_sites(model.proto), constant_tensors(model.proto.graph)
    arrays = {site.weight: numpy_helper.to_array(constants[site.weight]) for site in sites}
    total, kept = (sum(int(count(a)) for a in arrays.values()) for count in (np.size, np.count_nonzero))
    value_bytes = _VALUE_BYTES[weight_type]
    if target.flash_bytes and value_bytes * kept > target.flash_bytes:
        most = target.flash_bytes / value_bytes / total
        raise TargetError(
            f"the model does not fit {target.name}: its {kept:,} kept weights take at least "
            f"{value_bytes * kept:,} bytes of flash, and {target.name} has {target.flash_bytes:,}. Prune to a "
            f"sparsity above {math.ceil(1000 * (1 - most)) / 1000:.3f}, or take a board with more flash (`lwc targets`)"
        )
    graph, images = model.proto.graph, _images(model.proto.graph)
    sizes = _sizes(graph)
    pairs = {
        output: (sizes.get(read, 0) + sizes.get(output, 0)) // images
        for site in sites
        for read, output in zip(site.inputs, site.outputs, strict=True)
    }
    largest = max(pairs, key=pairs.__getitem__, default="")
    needed = pairs.get(largest, 0)
    whole = sum(sizes[value.name] for value in (*graph.input, *graph.output) if value.name in sizes)
    if target.ram_bytes and max(needed, whole) > target.ram_bytes:
        what = (
            f"the input and output of the layer that computes '{largest}'" if needed >= whole else "inputs and outputs"
        )
        raise TargetError(
            f"the model does not fit {target.name}: {what} take {max(needed, whole):,} bytes of RAM, and {target.name} "
            f"has {target.ram_bytes:,}. {_LESS_RAM}"
        )


_LESS_RAM = "Prune whole channels (--structure), take a smaller batch or a smaller input, or a board with more RAM"


def check_lowered(
    target: Target,
    footprint: Footprint | None,
    library_bytes: int,
    workspace_bytes: int,
    tensors: tuple[TensorSpec, ...],
) -> None:
    """Refuses a lowered model that does not fit the target.

    Args:
        target: with the board's memory, if it has a limit.
        footprint: of the static library; None under an operating system.
        library_bytes: of the library, which an operating system loads into RAM; of a GPU, of the weights in its memory.
        workspace_bytes: of a run.
        tensors: inputs and outputs of the graph, where these are not in the workspace.

    Raises:
        TargetError: flash or RAM is too small.
    """
    if footprint is not None and target.flash_bytes and footprint.flash > target.flash_bytes:
        raise TargetError(
            f"the model does not fit {target.name}: the library takes {footprint.flash:,} bytes of flash "
            f"({footprint.code:,} of code, {footprint.constants:,} of weights and tables), and {target.name} has "
            f"{target.flash_bytes:,}. Nothing was written. Prune more (--sparsity), or take a board with more flash "
            "(`lwc targets`)"
        )
    around = bytes_of(tensors)
    static = library_bytes if footprint is None else footprint.static_ram
    needed = static + workspace_bytes + around
    what = "variables" if footprint is not None else "weights" if target.gpu else "library"
    if target.ram_bytes and needed > target.ram_bytes:
        raise TargetError(
            f"the model does not fit {target.name}: a run takes {needed:,} bytes of RAM ({workspace_bytes:,} of "
            f"workspace, {around:,} of inputs and outputs, {static:,} of {what}) beside its stack, and {target.name} "
            f"has {target.ram_bytes:,}. Nothing was written. {_LESS_RAM}"
        )


def bytes_of(tensors: tuple[TensorSpec, ...]) -> int:
    """Bytes of these inputs and outputs together."""
    return sum(math.prod(spec.shape) * np.dtype(spec.dtype).itemsize for spec in tensors)


def _sizes(graph: onnx.GraphProto) -> dict[str, int]:
    """Bytes of each tensor whose shape is known."""
    sizes = {}
    for value in (*graph.input, *graph.value_info, *graph.output):
        tensor = value.type.tensor_type
        if tensor.elem_type and all(d.HasField("dim_value") for d in tensor.shape.dim):
            item = np.dtype(helper.tensor_dtype_to_np_dtype(tensor.elem_type)).itemsize
            sizes[value.name] = math.prod(d.dim_value for d in tensor.shape.dim) * item
    return sizes


def _images(graph: onnx.GraphProto) -> int:
    """The batch, which may be computed image by image: the first dimension of every input."""
    firsts = {v.type.tensor_type.shape.dim[0].dim_value for v in graph.input if v.type.tensor_type.shape.dim}
    return max(1, firsts.pop()) if len(firsts) == 1 else 1
