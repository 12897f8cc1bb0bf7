"""How a batch is computed: as a whole, or image by image, and where with images or blocks side by side.

Image by image the large activations of the first layers stay in the caches. Where their convolutions are sparse, blocks
of the image that lie side by side (`passes/beside.py`) spare them the loads that cross cache lines. The last layers
have small planes, which leave lanes of a vector empty, and many weights, which are read again for every image: for
images side by side neither is so. Where one gives way to the other is decided by what the layers take, which the cost
model predicts or a measurement shows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import onnx
from onnx import helper, numpy_helper

from lwc_compiler.codegen.layers import extract_layers, layer_of
from lwc_compiler.kernels.kernel import ALIGNMENT_BYTES
from lwc_compiler.model import Model
from lwc_compiler.passes.beside import Stretch, blocks_beside, images_beside
from lwc_compiler.passes.images import one_image, static_shapes, weights_outweigh
from lwc_compiler.passes.layouts import reorder_axes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lwc_compiler.codegen.layers import Layer
    from lwc_compiler.kernels.choice import Pick
    from lwc_compiler.targets.target import Target

_MOST_BYTES = 128 << 20  # of a node's activations of all images that lie side by side
_TURNED_BYTES_A_SECOND = 2.5e10  # read and written when images or blocks are laid side by side
_SPARSE = 0.5  # density below which a layer may gain
_BLOCKS, _IMAGES = 1, 3  # forms of a stretch, in the order they may follow each other; 0 and 2 are image by image
_GRIDS = {8: (2, 4), 16: (4, 4)}  # of blocks, by the lanes of a vector


@dataclass(frozen=True)
class Part:
    """A part of the network on a part of the batch.

    Attributes:
        rest: the graph, in which layer i is the node `lwc.LwcLayer(index=i)`.
        layers: the layers.
        runs: how many such parts a batch has.
        sharing: threads that share the work of one; the others take parts of their own.
    """

    rest: onnx.ModelProto
    layers: tuple[Layer, ...]
    runs: int
    sharing: int


@dataclass(frozen=True)
class _Times:
    """Seconds of an image in a stretch, on one core; infinite where there is no such form.

    Attributes:
        alone: image by image, row by row.
        blocks: in blocks side by side.
        images: side by side with other images.
        turned: of laying its input side by side.
    """

    alone: float
    blocks: float
    images: float
    turned: float


def cut_batch(model: Model, target: Target, pick: Pick) -> list[Part]:
    """The stages of a network.

    Args:
        model: normalized, static shapes.
        target: what it is compiled for, and for how many threads.
        pick: chooses among the ways to compute a layer.
    """

    def part(network: Model, runs: int = 1) -> Part:
        shared = _shared(target, runs)
        rest, layers = extract_layers(reorder_axes(network.proto), shared, pick)
        return Part(rest, tuple(layers), runs, shared.threads)

    if target.gpu is not None:  # it needs all the work there is at once
        return [part(model)]
    single, count = one_image(model) or (model, 1)
    one_pass = count > 1 and weights_outweigh(single)  # over the weights, for the whole batch
    lanes = target.vector_bits // 32
    sparse = _sparse_weights(single.proto.graph)
    grid = _GRIDS.get(lanes) if any(len(shape) == 4 and math.prod(shape[2:]) > 1 for shape in sparse) else None
    images = lanes if sparse and count % lanes == 0 else 0
    reordered = reorder_axes(single.proto)  # another one where tokens are in the vectors
    if reordered is not single.proto or not (grid or images):
        return [part(model) if one_pass else part(Model(reordered, single.name), count)]
    whole = part(single, count)
    stretches = _stretches(single, whole)
    times = [_times(single, count, s, seconds, target, pick, grid, images) for s, seconds in stretches]
    first, last, beside = _fastest(times)
    if first == last and beside == len(stretches):
        return [part(model) if one_pass else whole]
    parts = []
    if beside < len(stretches):
        turned = images_beside(single, _joined(stretches[beside:]), images)
        assert turned is not None
        parts = [part(turned, count // images)]
        if beside == 0:
            return parts
        single = _head(single, stretches[beside][0])
    if first < last:
        assert grid is not None
        stretch = _joined(stretches[first:last])
        blocks = blocks_beside(single, stretch, grid)
        assert blocks is not None
        single = _spliced(single, stretch, blocks)
    return [part(single, count), *parts]


def _sparse_weights(graph: onnx.GraphProto) -> list[tuple[int, ...]]:
    """The shapes of the linear layers' weights of which few are kept."""
    constants = {tensor.name: tensor for tensor in graph.initializer}
    linear = [node for node in graph.node if node.op_type in ("Conv", "Gemm", "MatMul")]
    names = dict.fromkeys(name for node in linear for name in node.input[:2] if name in constants)
    weights = (numpy_helper.to_array(constants[name]) for name in names)
    return [weight.shape for weight in weights if np.count_nonzero(weight) < _SPARSE * weight.size]


def _stretches(single: Model, whole: Part) -> list[tuple[Stretch, float]]:
    """The network, cut wherever all that goes on is one tensor and no layer is cut in two; seconds of each stretch.

    Args:
        single: the network on one image.
        whole: the same as a part.
    """
    graph = single.proto.graph
    results = tuple(value.name for value in graph.output)
    last_use = {name: i for i, node in enumerate(graph.node) for name in node.input}
    last_use.update(dict.fromkeys(results, len(graph.node)))
    seconds = {
        node.output[0]: 0.0 if (index := layer_of(node)) is None else whole.layers[index].plan.seconds
        for node in whole.rest.graph.node
    }
    shapes = static_shapes(graph)
    alive = {value.name for value in graph.input}
    if len(alive) != 1:
        return []
    stretches, start, source, spent = [], 0, next(iter(alive)), 0.0
    for i, node in enumerate(graph.node):
        alive = {name for name in (*alive, *node.output) if last_use.get(name, -1) > i}
        output = node.output[0]
        shape = shapes.get(output, ())
        spent += seconds.get(output, 0.0)
        usable = output in seconds and output not in results and math.prod(shape) * 4 % ALIGNMENT_BYTES == 0
        # Flattened pixels come in another order side by side: what reads them stays with them.
        if alive == {output} and usable and (len(shape) == 4 or node.op_type not in ("Flatten", "Reshape")):
            stretches.append((Stretch(start, i + 1, source, (output,)), spent))
            start, source, spent = i + 1, output, 0.0
    return [*stretches, (Stretch(start, len(graph.node), source, results), spent)]


def _shared(target: Target, runs: int) -> Target:
    """The target with the threads that share a stage which runs so often: one, where there are runs for all."""
    return replace(target, threads=1) if runs >= target.threads else target


def _times(
    single: Model,
    count: int,
    stretch: Stretch,
    alone: float,
    target: Target,
    pick: Pick,
    grid: tuple[int, int] | None,
    images: int,
) -> _Times:
    def seconds(model: Model | None, runs: int) -> float:
        if model is None:
            return math.inf
        return sum(layer.plan.seconds for layer in extract_layers(model.proto, _shared(target, runs), pick)[1])

    blocks = seconds(blocks_beside(single, stretch, grid), count) if grid else math.inf
    beside = math.inf
    if images and _fits(single.proto, stretch, images):
        beside = seconds(images_beside(single, stretch, images), count // images) / images
    turned = 2 * 4 * math.prod(static_shapes(single.proto.graph)[stretch.source]) / _TURNED_BYTES_A_SECOND
    return _Times(alone, blocks, beside, turned)


def _fastest(times: Sequence[_Times]) -> tuple[int, int, int]:
    """The stretches in blocks, from the first to the one before the last, and the first on images side by side.

    A network runs image by image, then in blocks, image by image again, and on images side by side, each for any number
    of stretches: what is best up to a stretch in each of the four forms follows from what is best up to the one before.
    """
    best: list[tuple[float, tuple[int, ...]]] = [(0.0, ()), *[(math.inf, ())] * 3]
    for t in times:
        spent = (t.alone, t.blocks, t.alone, t.images)
        best = [
            min(
                (seconds + t.turned * _turns(before, form) + spent[form], (*path, form))
                for before, (seconds, path) in enumerate(best[: form + 1])
            )
            for form in range(4)
        ]
    _, path = min(best)
    first = path.index(_BLOCKS) if _BLOCKS in path else 0
    return first, first + path.count(_BLOCKS), len(path) - path.count(_IMAGES)


def _turns(before: int, after: int) -> int:
    """How often the tensor between two stretches in such forms is turned."""
    return 0 if before == after else (before == _BLOCKS) + (after in (_BLOCKS, _IMAGES))


def _fits(proto: onnx.ModelProto, stretch: Stretch, images: int) -> bool:
    """Whether the activations that every node reads and writes are small enough for so many images."""
    shapes = static_shapes(proto.graph)
    for node in proto.graph.node[stretch.first : stretch.stop]:
        tensors = {name for name in (*node.input, *node.output) if name in shapes}
        if 4 * images * sum(math.prod(shapes[name]) for name in tensors) > _MOST_BYTES:
            return False
    return True


def _joined(stretches: Sequence[tuple[Stretch, float]]) -> Stretch:
    """Stretches that follow each other as one."""
    (first, _), (last, _) = stretches[0], stretches[-1]
    return Stretch(first.first, last.stop, first.source, last.results)


def _head(single: Model, stretch: Stretch) -> Model:
    """What comes before a stretch."""
    graph = single.proto.graph
    infos = {value.name: value for value in graph.value_info}
    return _network([single], graph.node[: stretch.first], [infos[stretch.source]])


def _spliced(single: Model, stretch: Stretch, blocks: Model) -> Model:
    """The network with a stretch replaced by what computes the same."""
    graph = single.proto.graph
    nodes = [*graph.node[: stretch.first], *blocks.proto.graph.node, *graph.node[stretch.stop :]]
    return _network([single, blocks], nodes, graph.output)


def _network(
    sources: Sequence[Model], nodes: Sequence[onnx.NodeProto], outputs: Sequence[onnx.ValueInfoProto]
) -> Model:
    """A network of nodes from others; its inputs are those of the first."""
    graphs, last = [source.proto.graph for source in sources], sources[-1].proto
    used = {name for node in nodes for name in node.input}
    constants = {tensor.name: tensor for graph in graphs for tensor in graph.initializer if tensor.name in used}
    made = helper.make_graph(
        nodes, graphs[0].name, graphs[0].input, outputs,
        value_info=[value for graph in graphs for value in graph.value_info],
    )  # fmt: skip
    proto = helper.make_model(made, opset_imports=last.opset_import, ir_version=last.ir_version)
    proto.graph.initializer.extend(constants.values())  # last: `make_model` copies
    return Model(proto, sources[0].name)
