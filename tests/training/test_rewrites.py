"""Gradients of operators after rewriting, against finite differences of the graph before rewriting."""

import numpy as np
import onnx
import pytest

from lwc_compiler.training.gradient import build_gradient, gradient_name, rewrite_for_gradients
from lwc_compiler.training.graph import TrainingGraph
from lwc_compiler.training.losses import PER_SAMPLE, SAMPLE_WEIGHTS, LossBuilder
from lwc_compiler.training.session import open_session

IMAGE = (2, 4, 4, 5)
SEQUENCE = (3, 2, 4)
NORM = {"s": (4,), "b": (4,)}
LSTM = {"k": (1, 20, 4), "r": (1, 20, 5), "b": (1, 40)}
GRU = {"k": (1, 15, 4), "r": (1, 15, 5), "b": (1, 30)}
RNN = {"k": (1, 5, 4), "r": (1, 5, 5), "b": (1, 10)}
HOW = "coordinate_transformation_mode"
TRANSPOSED = {"k": (4, 3, 3, 2), "b": (3,)}
IF = """c = Cast<to=9>(zero)
    y = If(c) <then_branch = t () => (p) { p = Relu(v) }, else_branch = f () => (q) { n = Neg(v) q = Mul(n, v) }>"""
BOTH = {"k": (2, 20, 4), "r": (2, 20, 5), "b": (2, 40)}

# name -> (shape of v, weights besides, how y is computed from v = x + w); e = v * v + 0.5
CASES = {
    "AveragePool": (IMAGE, {}, "y = AveragePool<auto_pad='SAME_UPPER', kernel_shape=[3,2], strides=[2,1]>(v)"),
    "BatchNormalization": (IMAGE, NORM, "y = BatchNormalization(v, s, b, mean, variance)"),
    "CastLike": (IMAGE, {}, "y = CastLike(v, x)"),
    "Celu": (IMAGE, {}, "y = Celu<alpha=0.8>(v)"),
    "Conv SAME_LOWER": (IMAGE, {"k": (3, 4, 2, 3)}, "y = Conv<auto_pad='SAME_LOWER', strides=[1,2]>(v, k)"),
    "Conv SAME_UPPER": (IMAGE, {"k": (3, 4, 2, 3)}, "y = Conv<auto_pad='SAME_UPPER', strides=[2,2]>(v, k)"),
    "Conv VALID": (IMAGE, {"k": (3, 4, 2, 3)}, "y = Conv<auto_pad='VALID'>(v, k)"),
    "ConvTranspose": (IMAGE, TRANSPOSED, "y = ConvTranspose<strides=[2,1], pads=[1,0,0,1]>(v, k, b)"),
    "ConvTranspose SAME": (IMAGE, {"k": (4, 3, 3, 2)}, "y = ConvTranspose<auto_pad='SAME_UPPER', strides=[2,2]>(v, k)"),
    "ConvTranspose output_shape": (
        IMAGE,
        {"k": (4, 3, 3, 2)},
        "y = ConvTranspose<output_shape=[9, 11], strides=[2,2]>(v, k)",
    ),
    "ConvTranspose groups": (IMAGE, {"k": (4, 2, 2, 2)}, "y = ConvTranspose<group=2, strides=[2,1]>(v, k)"),
    "CumSum": ((3, 4), {}, "y = CumSum(v, axis)"),
    "CumSum reversed": ((3, 4), {}, "y = CumSum<exclusive=1, reverse=1>(v, axis)"),
    "DepthToSpace": (IMAGE, {}, "y = DepthToSpace<blocksize=2>(v)"),
    "DepthToSpace CRD": (IMAGE, {}, "y = DepthToSpace<blocksize=2, mode='CRD'>(v)"),
    "Dropout": (IMAGE, {}, "y = Dropout(v)"),
    "Einsum": ((2, 3, 4), {"k": (2, 5, 4)}, "y = Einsum<equation='bij,bkj->bki'>(v, k)"),
    "Einsum without batch": ((2, 3, 4), {"k": (4, 5)}, "y = Einsum<equation='bij,jk->bik'>(v, k)"),
    "Einsum of one": ((2, 3, 4), {}, "y = Einsum<equation='bij->bj'>(v)"),
    "Elu": (IMAGE, {}, "y = Elu<alpha=0.7>(v)"),
    "GRU": (SEQUENCE, GRU, "y, h = GRU<hidden_size=5, linear_before_reset=1>(v, k, r, b)"),
    "GRU both": (
        SEQUENCE,
        {"k": (2, 15, 4), "r": (2, 15, 5), "b": (2, 30), "h": (2, 2, 5)},
        "p, y = GRU<hidden_size=5, direction='bidirectional'>(v, k, r, b, , h)",
    ),
    "GlobalMaxPool": (IMAGE, {}, "y = GlobalMaxPool(v)"),
    "GroupNormalization": (IMAGE, NORM, "y = GroupNormalization<num_groups=2, epsilon=0.01>(v, s, b)"),
    "HardSigmoid": (IMAGE, {}, "y = HardSigmoid<alpha=0.4>(v)"),
    "HardSwish": (IMAGE, {}, "y = HardSwish(v)"),
    "If": (IMAGE, {}, IF),
    "InstanceNormalization": (IMAGE, NORM, "y = InstanceNormalization(v, s, b)"),
    "LRN": (IMAGE, {}, "y = LRN<size=3, alpha=0.3, beta=0.6, bias=1.5>(v)"),
    "LSTM": (SEQUENCE, LSTM, "y = LSTM<hidden_size=5>(v, k, r, b)"),
    "LSTM state": (
        SEQUENCE,
        LSTM | {"h": (1, 2, 5), "c": (1, 2, 5)},
        "n, m, y = LSTM<hidden_size=5>(v, k, r, b, , h, c)",
    ),
    "LSTM both": (SEQUENCE, BOTH, "y, h, c = LSTM<hidden_size=5, direction='bidirectional'>(v, k, r, b)"),
    "LSTM reverse": (SEQUENCE, LSTM, "n, y = LSTM<hidden_size=5, direction='reverse'>(v, k, r, b)"),
    "RNN": (SEQUENCE, RNN, "y = RNN<hidden_size=5>(v, k, r, b)"),
    "RNN both": (
        SEQUENCE,
        {"k": (2, 5, 4), "r": (2, 5, 5), "h": (2, 2, 5)},
        "p, y = RNN<hidden_size=5, direction='bidirectional'>(v, k, r, , , h)",
    ),
    "RNN reverse": (SEQUENCE, RNN, "n, y = RNN<hidden_size=5, direction='reverse'>(v, k, r, b)"),
    "LayerNormalization": ((3, 2, 4), NORM, "y = LayerNormalization(v, s, b)"),
    "LayerNormalization no bias": ((3, 2, 4), {"s": (2, 4)}, "y = LayerNormalization<axis=1>(q2, s)"),
    "LpNormalization 1": (IMAGE, {}, "y = LpNormalization<axis=1, p=1>(v)"),
    "LpNormalization 2": (IMAGE, {}, "y = LpNormalization(v)"),
    "MatMul by vector": ((3, 2, 4), {"k": (4,)}, "y = MatMul(v, k)"),
    "MatMul of vector": ((3, 2, 4), {"k": (2,)}, "y = MatMul(k, v)"),
    "MaxPool": (IMAGE, {}, "y = MaxPool<auto_pad='SAME_LOWER', kernel_shape=[2,2], strides=[1,2]>(v)"),
    "Mean": (IMAGE, {}, "y = Mean(v, e)"),
    "Mish": (IMAGE, {}, "y = Mish(v)"),
    "PRelu": (IMAGE, {"k": (4, 1, 1)}, "y = PRelu(v, k)"),
    "Pad axes": (IMAGE, {}, "y = Pad(v, pair, zero, last)"),
    "Pad edge": (IMAGE, {}, "y = Pad<mode='edge'>(v, pads)"),
    "Pad reflect": (IMAGE, {}, "y = Pad<mode='reflect'>(v, pads)"),
    "Pad wrap": (IMAGE, {}, "y = Pad<mode='wrap'>(v, pair, , last)"),
    "ReduceL1": (IMAGE, {}, "y = ReduceL1(v, last)"),
    "ReduceL2": (IMAGE, {}, "y = ReduceL2<keepdims=0>(v, last)"),
    "ReduceLogSum": (IMAGE, {}, "y = ReduceLogSum(e, last)"),
    "ReduceMax": (IMAGE, {}, "y = ReduceMax(v, last)"),
    "ReduceMax of two": (IMAGE, {}, "y = ReduceMax<keepdims=0>(v, space)"),
    "ReduceMin": (IMAGE, {}, "y = ReduceMin<keepdims=0>(v, last)"),
    "ReduceSumSquare": (IMAGE, {}, "y = ReduceSumSquare(v, space)"),
    "Resize linear": (IMAGE, {}, "y = Resize<mode='linear'>(v, , scales)"),
    "Resize cubic": (IMAGE, {}, f"y = Resize<mode='cubic', {HOW}='align_corners'>(v, , , sizes)"),
    "Resize nearest": (IMAGE, {}, f"y = Resize<{HOW}='asymmetric', nearest_mode='floor'>(v, , scales)"),
    "Selu": (IMAGE, {}, "y = Selu(v)"),
    "Shrink": (IMAGE, {}, "y = Shrink<bias=0.1, lambd=0.45>(v)"),
    "Softplus": (IMAGE, {}, "y = Softplus(v)"),
    "Softsign": (IMAGE, {}, "y = Softsign(v)"),
    "SpaceToDepth": ((2, 3, 4, 6), {}, "y = SpaceToDepth<blocksize=2>(v)"),
    "Split": (IMAGE, {}, "p, q = Split<axis=3>(v, parts) y = Mul(q, q)"),
    "Sum": (IMAGE, {}, "y = Sum(v, e, v)"),
    "Tan": (IMAGE, {}, "y = Tan(v)"),
    "ThresholdedRelu": (IMAGE, {}, "y = ThresholdedRelu<alpha=0.3>(v)"),
}  # fmt: skip
STEP = 2e-3
CONSTANTS = {
    "axis": np.array(1, np.int64),
    "half": np.array(0.5, np.float32),
    "last": np.array([-1], np.int64),
    "mean": np.array([0.1, -0.2, 0.3, 0.0], np.float32),
    "pads": np.array([0, 0, 1, 2, 0, 0, 2, 1], np.int64),
    "pair": np.array([1, 2], np.int64),
    "parts": np.array([2, 3], np.int64),
    "scales": np.array([1, 1, 2, 1.6], np.float32),
    "sizes": np.array([2, 4, 7, 3], np.int64),
    "space": np.array([2, 3], np.int64),
    "variance": np.array([0.5, 1.5, 1.0, 2.0], np.float32),
    "zero": np.array(0, np.float32),
}


def ramp(shape):
    """Values without symmetry, far enough apart that small steps change no order and meet no kink."""
    count = int(np.prod(shape))
    order = np.random.default_rng(count).permutation(count)
    return (((order + 0.37) / count - 0.5) * 2.4).astype(np.float32).reshape(shape)


def build(shape, weights, body):
    """The model, and the values of its weights `w` and `weights`."""
    dims = ",".join(map(str, shape))
    text = f"""<ir_version: 10, opset_import: ["" : 21]>
        g (float[{dims}] x) => (float y) {{ v = Add(x, w) q2 = Mul(v, v) e = Add(q2, half) {body} }}"""
    proto = onnx.parser.parse_model(text.replace("'", '"'))
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(value, name) for name, value in CONSTANTS.items())
    arrays = {"w": ramp(shape)} | {name: ramp(dims) for name, dims in weights.items()}
    for name, array in arrays.items():
        proto.graph.input.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, array.shape))
    return proto, arrays


def only(session, feeds):
    return {value.name: feeds[value.name] for value in session.get_inputs()}


@pytest.mark.parametrize("case", CASES)
def test_gradient_is_right(case):
    shape, weights, body = CASES[case]
    proto, arrays = build(shape, weights, body)
    graph = TrainingGraph(proto, {})
    loss = LossBuilder(graph, graph.shape("y")[0])
    loss.finish([loss.mse("y", "target")])
    forward = open_session(graph.to_proto([PER_SAMPLE]), threads=1)
    feeds = {name: 0.1 * ramp(dims)[::-1] for name, (_, dims) in graph.inputs.items()} | arrays
    feeds["x"] = np.zeros(shape, np.float32)
    feeds[SAMPLE_WEIGHTS] = np.full(len(feeds[SAMPLE_WEIGHTS]), 1 / len(feeds[SAMPLE_WEIGHTS]), np.float32)
    rewrite_for_gradients(graph, set())
    backward = open_session(build_gradient(graph, list(arrays)), threads=1)
    losses, *gradients = backward.run([PER_SAMPLE, *map(gradient_name, arrays)], only(backward, feeds))
    np.testing.assert_allclose(losses, forward.run(None, only(forward, feeds))[0], rtol=1e-5, atol=1e-6)

    def mean_loss(name, moved):
        return forward.run(None, only(forward, feeds | {name: moved}))[0].mean(dtype=np.float64)

    for (name, array), gradient in zip(arrays.items(), gradients, strict=True):
        expected = np.zeros(array.shape)
        for index in np.ndindex(*array.shape):
            high, low = array.copy(), array.copy()
            high[index] += np.float32(STEP)
            low[index] -= np.float32(STEP)
            expected[index] = (mean_loss(name, high) - mean_loss(name, low)) / (float(high[index]) - float(low[index]))
        assert np.abs(expected).max() > 1e-3
        rounding = np.finfo(np.float32).eps * losses.max() / (2 * STEP)
        assert np.abs(gradient - expected).max() < 5e-3 * np.abs(expected).max() + rounding, name
