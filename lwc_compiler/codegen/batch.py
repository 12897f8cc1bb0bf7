"""How a batch is computed: as a whole, image by image, or in two stages, the second on images that lie side by side.

The first layers of a network have large activations, which image by image stay in the caches. The last have small
planes, which leave lanes of a vector empty, and many weights, which are read again for every image: side by side
(`passes/beside.py`) neither is lost. Where one gives way to the other is decided by what the layers take, which the
cost model predicts or a measurement shows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import onnx
from onnx import helper

from lwc_compiler.codegen.layers import extract_layers, layer_of
from lwc_compiler.kernels.kernel import ALIGNMENT_BYTES
from lwc_compiler.model import Model
from lwc_compiler.passes.beside import beside
from lwc_compiler.passes.images import one_image, static_shapes, weights_outweigh

if TYPE_CHECKING:
    from lwc_compiler.codegen.layers import Layer
    from lwc_compiler.kernels.choice import Pick
    from lwc_compiler.targets.target import Target

_MOST_BYTES = 128 << 20  # of a layer's activations of all images that lie side by side
_TURNED_BYTES_A_SECOND = 4e9  # read and written when images are laid side by side


@dataclass(frozen=True)
class Part:
    """A part of the network on a part of the batch.

    Attributes:
        rest: the graph, in which layer i is the node `lwc.LwcLayer(index=i)`.
        layers: the layers.
        runs: how many such parts a batch has.
    """

    rest: onnx.ModelProto
    layers: tuple[Layer, ...]
    runs: int = 1


@dataclass(frozen=True)
class _Cut:
    """Where the second stage may begin.

    Attributes:
        node: number of its first node.
        tensor: the only one that leads to it.
        layers: layers before it.
    """

    node: int
    tensor: str
    layers: int


def cut_batch(model: Model, target: Target, pick: Pick) -> list[Part]:
    """The stages of a network.

    Args:
        model: normalized, static shapes.
        target: what it is compiled for.
        pick: chooses among the ways to compute a layer.
    """
    found = one_image(model)
    if found is None:
        return [_part(model, target, pick)]
    single, count = found
    images = target.vector_bits // 32
    if count % images == 0:
        parts = _side_by_side(single, count, images, target, pick)
        if parts is not None:
            return parts
    if weights_outweigh(single):
        return [_part(model, target, pick)]
    return [_part(single, target, pick, count)]


def _side_by_side(single: Model, count: int, images: int, target: Target, pick: Pick) -> list[Part] | None:
    """The stages with the last layers on images side by side; None where image by image is faster."""
    whole = _part(single, target, pick, count)
    cuts = [cut for cut in _cuts(single.proto, whole.rest) if _fits(single.proto, cut, images)]
    turned = next((m for cut in cuts if (m := beside(single, cut.node, cut.tensor, images))), None)
    if turned is None:
        return None
    together = extract_layers(turned.proto, target, pick)[1]
    alone = [layer.plan.seconds for layer in whole.layers]
    shared = [0.0] * (len(alone) - len(together)) + [layer.plan.seconds / images for layer in together]
    shapes = static_shapes(single.proto.graph)

    def seconds(cut: _Cut) -> float:
        """Of an image, on one core."""
        moved = 2 * 4 * math.prod(shapes[cut.tensor]) / _TURNED_BYTES_A_SECOND
        return sum(alone[: cut.layers]) + moved + sum(shared[cut.layers :])

    usable = [cut for cut in cuts if cut.layers >= len(alone) - len(together)]
    best = min(usable, key=seconds)
    if seconds(best) >= sum(alone):
        return None
    second = beside(single, best.node, best.tensor, images)
    assert second is not None
    last = _part(second, target, pick, count // images)
    if best.node == 0:
        return [last]
    return [_part(_head(single, best), target, pick, count), last]


def _part(model: Model, target: Target, pick: Pick, runs: int = 1) -> Part:
    rest, layers = extract_layers(model.proto, target, pick)
    return Part(rest, tuple(layers), runs)


def _cuts(proto: onnx.ModelProto, rest: onnx.ModelProto) -> list[_Cut]:
    """Where all that goes on is one tensor, and no layer is cut in two; in order.

    Args:
        proto: the network on one image.
        rest: the same with its layers taken out.
    """
    graph = proto.graph
    last_use: dict[str, int] = {}
    for i, node in enumerate(graph.node):
        for name in node.input:
            last_use[name] = i
    for value in graph.output:
        last_use[value.name] = len(graph.node)
    results = {value.name for value in graph.output}
    whole = {node.output[0]: layer_of(node) for node in rest.graph.node}
    shapes = static_shapes(graph)
    alive = {value.name for value in graph.input}
    cuts, layers = [], 0
    if len(alive) == 1:
        cuts.append(_Cut(0, next(iter(alive)), 0))
    for i, node in enumerate(graph.node):
        alive.update(name for name in node.output if last_use.get(name, -1) > i)
        alive = {name for name in alive if last_use.get(name, -1) > i}
        output = node.output[0]
        layers += whole.get(output) is not None
        size = 4 * math.prod(shapes.get(output, (0,)))
        if alive == {output} and output in whole and output not in results and size and size % ALIGNMENT_BYTES == 0:
            cuts.append(_Cut(i + 1, output, layers))
    return cuts


def _fits(proto: onnx.ModelProto, cut: _Cut, images: int) -> bool:
    """Whether the activations that every later node reads and writes are small enough side by side."""
    shapes = static_shapes(proto.graph)
    for node in proto.graph.node[cut.node :]:
        tensors = {name for name in (*node.input, *node.output) if name in shapes}
        if 4 * images * sum(math.prod(shapes[name]) for name in tensors) > _MOST_BYTES:
            return False
    return True


def _head(single: Model, cut: _Cut) -> Model:
    """The nodes before the cut."""
    graph = single.proto.graph
    nodes = graph.node[: cut.node]
    used = {name for node in nodes for name in node.input}
    infos = {value.name: value for value in graph.value_info}
    made = helper.make_graph(
        nodes, graph.name, graph.input, [infos[cut.tensor]], [t for t in graph.initializer if t.name in used],
        value_info=graph.value_info,
    )  # fmt: skip
    imports = single.proto.opset_import
    return Model(helper.make_model(made, opset_imports=imports, ir_version=single.proto.ir_version), single.name)
