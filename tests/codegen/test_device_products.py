"""Products of two activations on a GPU: which nodes around them become one layer, with the numbers of ONNX Runtime."""

import numpy as np
import pytest
from test_device_lower import assembled

from benchmarks.models import Network
from lwc_compiler.model import Model
from lwc_compiler.passes.lower import tensor_specs
from lwc_compiler.passes.normalize import normalize
from lwc_compiler.runtime.reference import random_inputs, reference_session
from lwc_compiler.runtime.verify import relative_error
from tests.opencl_harness import Device, run_stage

TOKENS, HEADS, FEATURES = 70, 3, 8
PRODUCTS = ("gpu_attention", "gpu_batched")


def integers(net: Network, *values: int) -> str:
    return net.constant("_".join(map(str, values)), np.array(values, np.int64))


def heads(net: Network, perm: tuple[int, ...], factor: float) -> str:
    """The input's features in heads, as if a layer had made them."""
    scaled = net.node("Mul", net.x, net.constant(f"factor{factor}", np.array(factor, np.float32)))
    apart = net.node("Reshape", scaled, integers(net, 0, 0, HEADS, FEATURES))
    return net.node("Transpose", apart, perm=perm)


def operands(net: Network) -> tuple[str, str, str]:
    return heads(net, (0, 2, 1, 3), 0.7), heads(net, (0, 2, 3, 1), 1.3), heads(net, (0, 2, 1, 3), -0.4)


def together(net: Network, x: str) -> str:
    merged = net.node("Transpose", x, perm=(0, 2, 1, 3))
    return net.node("Reshape", merged, integers(net, 0, 0, HEADS * FEATURES))


def masked_by_a_constant(net: Network) -> str:
    q, k, v = operands(net)
    factor = net.constant("factor", np.array(0.3, np.float32))
    causal = net.constant("causal", np.triu(np.full((TOKENS, TOKENS), -1e4, np.float32), 1))
    scores = net.node("Add", causal, net.node("Mul", factor, net.node("MatMul", q, k)))
    return together(net, net.node("MatMul", net.node("Softmax", scores, axis=-1), v))


def masked_by_a_value(net: Network) -> str:
    q, k, v = operands(net)
    mask = net.node("Reshape", net.node("ReduceMax", net.x, axes=[-1]), integers(net, 0, 1, 1, TOKENS))
    scores = net.node("Add", net.node("MatMul", q, k), mask)
    return together(net, net.node("MatMul", net.node("Softmax", scores, axis=-1), v))


def over_columns(net: Network) -> str:
    q, k, v = operands(net)
    turned = net.node(
        "MatMul", net.node("Transpose", k, perm=(0, 1, 3, 2)), net.node("Transpose", q, perm=(0, 1, 3, 2))
    )
    weights = net.node("Softmax", turned, axis=2)
    return net.node("MatMul", net.node("Transpose", v, perm=(0, 1, 3, 2)), weights)


def over_queries(net: Network) -> str:
    q, k, v = operands(net)
    return together(net, net.node("MatMul", net.node("Softmax", net.node("MatMul", q, k), axis=2), v))


def weights_read_twice(net: Network) -> str:
    q, k, v = operands(net)
    weights = net.node("Softmax", net.node("MatMul", q, k), axis=-1)
    return net.node("Concat", net.node("MatMul", weights, v), weights, axis=-1)


def keys_read_twice(net: Network) -> str:
    q, k, v = operands(net)
    weights = net.node("Softmax", net.node("MatMul", q, k), axis=-1)
    return net.node("Add", net.node("MatMul", weights, v), net.node("ReduceMean", k, axes=[2, 3]))


# How many launches of each kind, and transpositions that are left.
NETWORKS = {
    masked_by_a_constant: (1, 0, 0),
    masked_by_a_value: (1, 0, 0),
    over_columns: (1, 0, 3),  # one transposition is taken in, and not the one before it
    over_queries: (0, 2, 0),
    weights_read_twice: (0, 2, 0),
    keys_read_twice: (1, 0, 1),
}


@pytest.mark.parametrize("build", NETWORKS, ids=lambda build: build.__name__)
def test_one_layer_computes_what_onnx_runtime_does(build) -> None:
    net = Network("products", (2, TOKENS, HEADS * FEATURES))
    proto = net.model(build(net), None)
    proto.opset_import[0].version = 17
    model = normalize(Model(proto, "products"), fold_batch_norm=True)
    stage = assembled(model)
    inputs = random_inputs(model.proto, tensor_specs(model.proto.graph.input), 0)
    (output,) = run_stage(Device(), stage, inputs).values()
    (expected,) = reference_session(model.proto, 1).run(None, inputs)
    assert relative_error(output, expected) <= 1e-5
    names = [call.info.kernel for call in stage.calls]
    turned = sum("transpose" in name for name in names)
    assert (*(names.count(product) for product in PRODUCTS), turned) == NETWORKS[build]
