"""What passes learn from a sample of data: the sample itself, and the norms of what each layer reads."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from lwc_compiler.errors import DataError
from lwc_compiler.model import Model
from lwc_compiler.passes.recurrent import RECURRENT
from lwc_compiler.passes.sites import Site, constant_tensors, find_sites
from lwc_compiler.training.batching import fixed_batch, input_specs
from lwc_compiler.training.data import LABEL_NAMES, ArraySource, open_source

Norms = dict[str, NDArray[np.float32]]

NORM_SAMPLES = 256
_BATCH = 32
_SEED = 0


def open_sample(proto: onnx.ModelProto, data: str, samples: int) -> ArraySource:
    """At most `samples` samples of `data`, in memory: always the same ones, drawn from all of it.

    A callable gives its first ones.

    Raises:
        DataError: see `lwc_compiler.training.data.open_source`.
    """
    specs = input_specs(proto)
    source = open_source(data, specs)
    order = np.sort(np.random.default_rng(_SEED).permutation(source.samples)[:samples])
    inputs: dict[str, list[NDArray[Any]]] = {spec.name: [] for spec in specs}
    labels: list[NDArray[Any]] = []
    for batch in source.batches(_BATCH, order):
        for name, array in batch.inputs.items():
            inputs[name].append(array)
        if batch.labels is not None:
            labels.append(batch.labels)
        if sum(map(len, inputs[specs[0].name])) >= samples:
            break
    arrays = {name: np.concatenate(parts)[:samples] for name, parts in inputs.items()}
    if labels:
        arrays[next(name for name in LABEL_NAMES if name not in inputs)] = np.concatenate(labels)[:samples]
    return ArraySource(data, arrays, specs)


def input_norms(model: Model, data: str, samples: int = NORM_SAMPLES, *, threads: int = 0) -> Norms:
    """The L2 norms of what the weights of each site are multiplied with, over a sample of data.

    The factor that the score `activation` puts before a weight (Sun et al. 2024, "A Simple and Effective Pruning
    Approach for Large Language Models", section 3). For a convolution it is the norm of the input channel over all
    samples and positions, the same for all positions of the kernel. Nodes that share a weight count together; one that
    sees it otherwise than the first of them does (W and its transpose) does not count.

    Args:
        model: any opset.
        data: see `lwc_compiler.training.data`; labels play no part.
        samples: how many are read.
        threads: threads of ONNX Runtime; 0: as many as there are cores.

    Returns:
        Name of a float32 weight -> float32 (row_groups, columns) in the matrix view of `passes.sites.Site`: one row
        for each range of rows that read the same inputs.

    Raises:
        DataError: the data does not exist, does not fit the model, or is less than the batch that the model is for.
        UnsupportedError: ONNX Runtime does not take the model.
    """
    sites = [site for site in find_sites(model.proto) if site.dtype == "float32"]
    uses = [(site, *use) for site in sites for use in _same_view(model.proto, site)]
    squares: dict[str, NDArray[np.float64]] = {}
    for tensors in _observe(model, {source for _, _, source in uses}, data, samples, threads):
        for site, node, source in uses:
            squares[site.weight] = squares.get(site.weight, 0) + _squares(site, node, tensors[source])
    return {name: np.sqrt(total).astype(np.float32) for name, total in squares.items()}


def _observe(
    model: Model, names: set[str], data: str, samples: int, threads: int
) -> Iterator[Mapping[str, NDArray[Any]]]:
    """The values of the float32 tensors `names`, batch after batch."""
    from lwc_compiler.runtime.reference import reference_session

    proto = onnx.ModelProto()
    proto.CopyFrom(model.proto)
    known = {value.name for value in (*proto.graph.output, *proto.graph.input)}
    for name in sorted(names - known):
        proto.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))
    outputs = [value.name for value in proto.graph.output if value.name in names]
    size = fixed_batch(input_specs(model.proto))
    sample = open_sample(model.proto, data, max(samples, size or 1))
    if size is not None and sample.samples < size:
        raise DataError(f"the model takes batches of {size} samples only, and the data has {sample.samples}")
    session = reference_session(proto, threads)
    for batch in sample.batches(size or _BATCH):
        if size in (None, batch.samples):
            # Asked for no output, ONNX Runtime gives all.
            values = session.run(outputs, batch.inputs) if outputs else []
            yield {**batch.inputs, **dict(zip(outputs, values, strict=True))}


def _same_view(proto: onnx.ModelProto, site: Site) -> list[tuple[onnx.NodeProto, str]]:
    """The nodes of `site` that see its weight as the first one does, with the activation that each reads."""
    nodes = {name: node for node in proto.graph.node for name in node.output}
    uses = [(nodes[output], source) for output, source in zip(site.outputs, site.inputs, strict=True)]
    if len(uses) == 1:
        return uses
    weight = constant_tensors(proto.graph)[site.weight]
    aliases = [node for node in proto.graph.node if node.op_type in ("Identity", "Transpose")]
    found = []
    for node, source in uses:
        alone = onnx.ModelProto()
        alone.graph.initializer.append(TensorProto(name=site.weight, dims=weight.dims, data_type=weight.data_type))
        alone.graph.node.extend([*aliases, node])
        (view,) = find_sites(alone)
        if (view.split, view.order) == (site.split, site.order):
            found.append((node, source))
    return found


def _squares(site: Site, node: onnx.NodeProto, values: NDArray[Any]) -> NDArray[np.float64]:
    """Sums of squares of what each column is multiplied with, (row_groups, columns)."""
    squares = np.square(values, dtype=np.float64)
    if node.op_type.startswith("Conv"):
        channels = squares.sum(axis=tuple(axis for axis in range(squares.ndim) if axis != 1))
        columns = site.matrix_shape[1]
        repeated: NDArray[np.float64] = np.repeat(channels, columns * site.row_groups // channels.size)
        return repeated.reshape(site.row_groups, columns)
    if squares.ndim > 1 and _features_first(node, site):
        squares = np.moveaxis(squares, -2, -1)
    # One row of sums for each matrix of a batch of weights; the batches of both operands are broadcast as in MatMul.
    batch = tuple(site.split[axis] for axis in site.order[: site.row_axes - 1])
    totals = squares.sum(axis=-2) if squares.ndim > 1 else squares
    whole = np.broadcast_shapes(totals.shape[:-1], batch)
    totals = np.broadcast_to(totals, (*whole, totals.shape[-1])).sum(axis=tuple(range(len(whole) - len(batch))))
    single = tuple(axis for axis, size in enumerate(batch) if size == 1)
    summed: NDArray[np.float64] = totals.sum(axis=single, keepdims=True)
    return summed.reshape(site.row_groups, -1)


def _features_first(node: onnx.NodeProto, site: Site) -> bool:
    """Whether the axis of the activation that is summed over is the last but one (MatMul and Gemm)."""
    if node.op_type in RECURRENT:
        return False
    left = node.input[0] in site.inputs
    transposed = any(item.name == ("transA" if left else "transB") and item.i for item in node.attribute)
    return transposed if left else not transposed
