"""Products of two activations for a GPU: what of the graph around them their kernels compute.

A Transpose before or behind a product is only another order of a matrix's axes in memory. Scores, their softmax and the
product of values with it are one layer, if `kernels/gpu/attention.py` has a kernel for so many.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import onnx

from lwc_compiler.kernels.gpu.attention import Attention, attention_tile, plan_attention
from lwc_compiler.kernels.gpu.batched import Products, plan_products
from lwc_compiler.kernels.gpu.builder import strides_of
from lwc_compiler.kernels.gpu.factors import Matrix
from lwc_compiler.model import attributes_of

if TYPE_CHECKING:
    from lwc_compiler.codegen.layer_groups import Graph, Group
    from lwc_compiler.kernels.kernel import Plan
    from lwc_compiler.targets.target import Gpu

_OF_ONE_AXIS = 13  # the first opset whose Softmax is over one axis, and not over all from one on


class DeviceProducts:
    """Takes the nodes around a product into its layer.

    Args:
        graph: whose nodes they are.
        gpu: what the plans are for.
    """

    def __init__(self, graph: Graph, gpu: Gpu) -> None:
        self._graph, self._gpu = graph, gpu

    def take(self, group: Group, scale: float) -> tuple[list[str], Plan]:
        """What a layer reads, and how it is computed.

        Args:
            group: the product, of matrices (..., m, k) and (..., k, n) with the same batch, and its factor's node; what
                else is computed joins it.
            scale: the factor.
        """
        left, right = group.nodes[0].input
        *batch, m, k = self._graph.shape(left) or ()
        n = (self._graph.shape(right) or ())[-1]
        attention = self._attention(group, tuple(batch), (m, k, n), scale)
        if attention is not None:
            return attention
        (left, a), (right, b) = self._matrix(left), self._matrix(right)
        products = Products(tuple(batch), m, k, n, a, b, self._result(group), scale)
        return [left, right], plan_products(products, self._gpu)

    def _attention(
        self, group: Group, batch: tuple[int, ...], sizes: tuple[int, int, int], scale: float
    ) -> tuple[list[str], Plan] | None:
        """The same for a whole attention; None where the product does not begin one."""
        m, k, n = sizes
        mask = self._mask(group.output, (*batch, m, n))
        found = self._mixing(group.output if mask is None else mask[0].output[0], (*batch, m, n))
        if found is None:
            return None
        softmax, product, by_row = found
        keys, queries = (n, m) if by_row else (m, n)
        values = product.input[1 if by_row else 0]
        features = (self._graph.shape(values) or ())[-1 if by_row else -2]
        tile = attention_tile(math.prod(batch), keys, queries, features, self._gpu)
        if tile is None:
            return None
        (left, a), (right, b), (values, v) = (self._matrix(name) for name in (*group.nodes[0].input, values))
        masks, added = ([], None) if mask is None else ([mask[1]], mask[2])
        group.nodes += [softmax, product] if mask is None else [mask[0], softmax, product]
        y = self._result(group)
        if by_row:  # the kernel computes the transposed product
            left, a, right, b = right, b.transposed, left, a.transposed
            v, y, added = v.transposed, y.transposed, added and added.transposed
        whole = Attention(batch, keys, queries, k, features, a, b, v, y, scale, added)
        return [left, right, values, *masks], plan_attention(whole, tile)

    def _mask(self, product: str, scores: tuple[int, ...]) -> tuple[onnx.NodeProto, str, Matrix] | None:
        """The Add behind scores, what it adds, and how that lies in memory, with 0 along axes that share it."""
        graph = self._graph
        node = graph.reader(product)
        if node is None or not _is(node, "Add") or graph.shape(node.output[0]) != scores:
            return None
        name = node.input[1] if node.input[0] == product else node.input[0]
        shape = graph.shape(name)
        if shape is None:
            return None
        shape = (1,) * (len(scores) - len(shape)) + shape
        strides = tuple(0 if n == 1 else stride for n, stride in zip(shape, strides_of(shape), strict=True))
        return node, name, Matrix(strides[:-2], *strides[-2:])

    def _mixing(self, name: str, scores: tuple[int, ...]) -> tuple[onnx.NodeProto, onnx.NodeProto, bool] | None:
        """The Softmax of scores, the product of values with it, and whether it is along the scores' rows."""
        graph, rank = self._graph, len(scores)
        softmax = graph.reader(name)
        if softmax is None or not _is(softmax, "Softmax"):
            return None
        weights = softmax.output[0]
        product = graph.reader(weights)
        if product is None or not _is(product, "MatMul"):
            return None
        opset = next(i.version for i in graph.proto.opset_import if i.domain in ("", "ai.onnx"))
        axis = attributes_of(softmax).get("axis", -1 if opset >= _OF_ONE_AXIS else 1) % rank
        by_row = product.input[0] == weights
        values = product.input[1 if by_row else 0]
        shape = graph.shape(values)
        if axis != (rank - 1 if by_row else rank - 2) or (not by_row and opset < _OF_ONE_AXIS):
            return None
        if shape is None or values in graph.constants or shape[:-2] != scores[:-2]:
            return None
        return softmax, product, by_row

    def _matrix(self, name: str) -> tuple[str, Matrix]:
        """What a product reads for an operand, and how it lies there: of a Transpose for it alone, the input."""
        graph = self._graph
        strides = strides_of(graph.shape(name) or ())
        before = graph.producers.get(name, onnx.NodeProto())
        perm = self._permutation(before)
        # Copies want neighbours that are in the same matrix.
        if perm and graph.uses[name] == 1 and perm.index(len(perm) - 1) >= len(perm) - 2:
            graph.dropped.add(name)
            name = before.input[0]
            source = strides_of(graph.shape(name) or ())
            strides = tuple(source[axis] for axis in perm)
        return name, Matrix(strides[:-2], *strides[-2:])

    def _result(self, group: Group) -> Matrix:
        """How a product is stored: as a Transpose that alone reads it gives it, whose node joins the group."""
        graph = self._graph
        following = graph.reader(group.output)
        strides = strides_of(graph.shape(group.output) or ())
        perm = self._permutation(following) if following is not None else ()
        if following is not None and perm and perm[-1] >= len(perm) - 2:
            group.nodes.append(following)
            result = strides_of(graph.shape(group.output) or ())
            strides = tuple(result[perm.index(axis)] for axis in range(len(perm)))
        return Matrix(strides[:-2], *strides[-2:])

    def _permutation(self, node: onnx.NodeProto) -> tuple[int, ...]:
        """Of the axes of a float32 tensor by a Transpose; empty for any other node."""
        shape = self._graph.shape(node.input[0]) if _is(node, "Transpose") else None
        return tuple(attributes_of(node).get("perm", range(len(shape))[::-1])) if shape is not None else ()


def _is(node: onnx.NodeProto, operator: str) -> bool:
    return node.op_type == operator and node.domain in ("", "ai.onnx")
