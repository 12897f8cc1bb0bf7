"""Dead channels go, outputs stay."""

from dataclasses import replace

import numpy as np
import pytest
from graphs import assert_same_outputs, initializers, model, operators

from lwc_compiler.passes.compact import compact, prune_dead
from lwc_compiler.passes.normalize import normalize


@pytest.fixture
def rng():
    return np.random.default_rng(3)


def compacted(text, weights, rng, **shapes):
    """Compacts the case, checks that outputs stay the same, and returns the weights' new shapes."""
    before = normalize(model(text, weights), batch=2, fold_batch_norm=False)
    after = compact(before)
    assert_same_outputs(before.proto, after.proto, rng)
    found = {name: array.shape for name, array in initializers(after.proto).items()}
    assert {name: found[name] for name in shapes} == shapes
    return after


CONVOLUTIONS = """
net (float[N,3,8,8] x) => (float[N,5] y) {
  c1 = Conv<pads=[PAD,PAD,PAD,PAD]>(x, w1, b1)
  r1 = Relu(c1)
  p1 = MaxPool<kernel_shape=[2,2], strides=[2,2]>(r1)
  c2 = Conv<pads=[PAD,PAD,PAD,PAD]>(p1, w2)
  r2 = Relu(c2)
  f = Flatten(r2)
  y = Gemm<transB=1>(f, w3, b3)
}"""


def convolution_weights(rng, side):
    return {
        "w1": rng.standard_normal((8, 3, 3, 3)),
        "b1": rng.standard_normal(8),
        "w2": rng.standard_normal((6, 8, 3, 3)),
        "w3": rng.standard_normal((5, 6 * side * side)),
        "b3": rng.standard_normal(5),
    }


def test_channel_without_readers_goes(rng):
    weights = convolution_weights(rng, 4)
    weights["w2"][:, 5] = 0
    after = compacted(CONVOLUTIONS.replace("PAD", "1"), weights, rng, w1=(7, 3, 3, 3), b1=(7,), w2=(6, 7, 3, 3))
    np.testing.assert_array_equal(initializers(after.proto)["w1"], np.delete(weights["w1"], 5, 0).astype(np.float32))


def test_constant_channel_moves_into_the_bias_of_its_reader(rng):
    weights = convolution_weights(rng, 1)
    weights["w1"][2] = 0
    weights["b1"][2] = 1.5
    compacted(CONVOLUTIONS.replace("PAD", "0"), weights, rng, w1=(7, 3, 3, 3), w2=(6, 7, 3, 3), w2_bias=(6,))


def test_constant_channel_stays_where_padding_makes_it_uneven(rng):
    weights = convolution_weights(rng, 4)
    weights["w1"][[2, 3]] = 0
    weights["b1"][[2, 3]] = 1.5, -1.5  # after Relu: 1.5, which a padded convolution sees uneven, and 0
    compacted(CONVOLUTIONS.replace("PAD", "1"), weights, rng, w1=(7, 3, 3, 3), w2=(6, 7, 3, 3))


def test_channels_map_to_features_through_flatten(rng):
    weights = convolution_weights(rng, 4)
    weights["w3"][:, 2 * 16 : 3 * 16] = 0
    weights["w2"][4] = 0
    compacted(CONVOLUTIONS.replace("PAD", "1"), weights, rng, w2=(4, 8, 3, 3), w3=(5, 64))


@pytest.mark.parametrize("target", [[-1, 96], [0, -1], [2, 96], [0, 96]])
def test_reshape_follows(rng, target):
    weights = convolution_weights(rng, 4) | {"s": np.array(target)}
    weights["w2"][4] = 0
    text = CONVOLUTIONS.replace("PAD", "1").replace("Flatten(r2)", "Reshape(r2, s)")
    compacted(text, weights, rng, w2=(5, 8, 3, 3), w3=(5, 80))


@pytest.mark.parametrize("bias", ["Add(c, b1)", "Add(b1, c)", "Identity(c)"])
@pytest.mark.parametrize("activation", ["Relu", "Sigmoid", "Tanh", "HardSwish", "LeakyRelu", "Elu", "Softplus"])
def test_dead_neurons_of_a_token_mlp(rng, bias, activation):
    """MatMul has no bias of its own: the constant goes into the Add behind it, or into a new one."""
    weights = {name: rng.standard_normal(shape) for name, shape in {"w1": (7, 9), "w2": (9, 6), "w3": (6, 4)}.items()}
    weights["b1"] = rng.standard_normal(9)
    weights["w1"][:, 2:4] = 0
    weights["b1"][2:4] = 1, -1
    weights["w2"][5] = 0
    weights["w2"][:, 1] = 0
    weights["w3"][2] = 0
    text = f"""
    net (float[N,5,7] x) => (float[N,5,4] y) {{
      c = MatMul(x, w1)  c2 = {bias}  r = {activation}(c2)
      d = MatMul(r, w2)  s = {activation}(d)  y = MatMul(s, w3)
    }}"""
    if "Identity" in bias:
        del weights["b1"]
    compacted(text, weights, rng, w1=(7, 6), w2=(6, 4), w3=(4, 4))


def test_gemm_with_factors_and_transposed_weights(rng):
    weights = {"w1": rng.standard_normal((9, 7)), "b1": rng.standard_normal((1, 9)), "w2": rng.standard_normal((9, 4))}
    weights["w1"][3] = 0
    weights["b1"][0, 3] = 0.7
    weights["b2"] = rng.standard_normal(())
    text = """
    net (float[N,7] x) => (float[N,4] y) {
      c = Gemm<transB=1, alpha=0.5, beta=2.0>(x, w1, b1)
      r = Relu(c)
      y = Gemm<alpha=3.0, beta=0.25>(r, w2, b2)
    }"""
    compacted(text, weights, rng, w1=(8, 7), w2=(8, 4), b2=(4,))


def test_residual_channel_goes_only_when_dead_on_all_branches(rng):
    shapes = {"w0": (8, 3, 1, 1), "w1": (8, 8, 3, 3), "w2": (8, 8, 1, 1), "w3": (5, 8, 1, 1)}
    weights = {name: rng.standard_normal(shape) for name, shape in shapes.items()}
    weights["w0"][[1, 2]] = 0
    weights["w2"][1] = 0  # channel 1 is dead in both terms of the sum, channel 2 in one only
    weights["w3"][:, 4] = 0  # channel 4 of the sum is not read, but w1 reads the same channel of a
    text = """
    net (float[N,3,6,6] x) => (float[N,5,6,6] y) {
      a = Conv(x, w0)
      b = Conv<pads=[1,1,1,1]>(a, w1)
      c = Relu(b)
      d = Conv(c, w2)
      e = Add(d, a)
      y = Conv(e, w3)
    }"""
    compacted(text, weights, rng, w0=(7, 3, 1, 1), w1=(8, 7, 3, 3), w2=(7, 8, 1, 1), w3=(5, 7, 1, 1))


def test_batch_norm_depthwise_gate_and_concat(rng):
    """Channel 1 is zero from the start and pruned everywhere; all that hands it on shrinks along."""
    shapes = {"w0": (8, 3, 1, 1), "w1": (8, 8, 3, 3), "dw": (8, 1, 3, 3), "e1": (4, 8, 1, 1), "e2": (8, 4, 1, 1)}
    shapes |= {"w3": (5, 16, 1, 1), "eb": (8,), "scale": (8,), "shift": (8,), "mean": (8,), "slope": (8, 1, 1)}
    weights = {name: rng.standard_normal(shape) for name, shape in shapes.items()}
    weights["variance"] = rng.uniform(0.5, 2, 8)
    weights["w0"][1] = weights["shift"][1] = weights["mean"][1] = 0
    weights["w1"][1] = 0
    weights["e1"][3] = 0
    text = """
    net (float[N,3,8,8] x) => (float[N,5] y) {
      a0 = Conv(x, w0)
      a = BatchNormalization(a0, scale, shift, mean, variance)
      b = Conv<pads=[1,1,1,1]>(a, w1)
      c = PRelu(b, slope)
      d = Add(c, a)
      l = Conv<pads=[1,1,1,1], group=8>(d, dw)
      h = HardSwish(l)
      g1 = GlobalAveragePool(h)
      g2 = Conv(g1, e1)
      g3 = Relu(g2)
      g4 = Conv(g3, e2, eb)
      g5 = HardSigmoid(g4)
      q = Mul(h, g5)
      z = Concat<axis=1>(q, d)
      p = AveragePool<kernel_shape=[2,2], pads=[0,0,1,1], count_include_pad=1>(z)
      o = Conv(p, w3)
      m = ReduceMean<axes=[2,3], keepdims=0>(o)
      y = Softmax(m)
    }"""
    after = compacted(
        text,
        weights,
        rng,
        w0=(7, 3, 1, 1),
        scale=(7,),
        slope=(7, 1, 1),
        w1=(7, 7, 3, 3),
        dw=(7, 1, 3, 3),
        e1=(3, 7, 1, 1),
        e2=(7, 3, 1, 1),
        w3=(5, 14, 1, 1),
    )
    depthwise = next(node for node in after.proto.graph.node if "dw" in node.input)
    assert {a.name: a.i for a in depthwise.attribute}["group"] == 7


def test_transposed_convolution(rng):
    weights = {
        "w1": rng.standard_normal((3, 6, 2, 2)),
        "b1": rng.standard_normal(6),
        "w2": rng.standard_normal((4, 6, 1, 1)),
    }
    weights["w1"][:, [1, 2]] = 0
    weights["w2"][:, 5] = 0
    text = """
    net (float[N,3,4,4] x) => (float[N,4,8,8] y) {
      c = ConvTranspose<strides=[2,2]>(x, w1, b1)
      r = Relu(c)
      y = Conv(r, w2)
    }"""
    compacted(text, weights, rng, w1=(3, 3, 2, 2), b1=(3,), w2=(4, 3, 1, 1), w2_bias=(4,))


@pytest.mark.parametrize(
    "middle",
    [
        "h = Softmax<axis=1>(c)",
        "h = Transpose<perm=[0,1,3,2]>(c)",
        "h = Conv<group=2>(c, wg)",
        "h = Add(c, c2)  c2 = Conv(x, w1)",
        "h = Concat<axis=2>(c, c)",
        "h = InstanceNormalization(c, n, n)",
    ],
    ids=["softmax", "transpose", "grouped", "shared-weight", "concat-rows", "instance-norm"],
)
def test_what_is_not_followed_keeps_its_channels(rng, middle):
    weights = {
        "w1": rng.standard_normal((8, 3, 1, 1)),
        "w2": rng.standard_normal((5, 8, 1, 1)),
        "n": rng.standard_normal(8),
    }
    weights["wg"] = rng.standard_normal((8, 4, 1, 1))
    weights["w1"][1] = 0
    weights["w2"][:, 2] = 0
    if "c2 =" in middle:
        middle = "c2 = Conv(x, w1)  h = Add(c, c2)"
    text = f"net (float[N,3,6,6] x) => (float[N,5,H,W] y) {{ c = Conv(x, w1)  {middle}  y = Conv(h, w2) }}"
    before = normalize(model(text, weights), batch=2, fold_batch_norm=False)
    after = compact(before)
    assert initializers(after.proto)["w1"].shape == (8, 3, 1, 1)
    assert after.proto == before.proto
    assert after.provenance[-1]["layers"] == []


def test_channels_of_graph_outputs_stay(rng):
    weights = convolution_weights(rng, 4)
    weights["w1"][2] = 0
    weights["w3"][1] = 0
    text = CONVOLUTIONS.replace("PAD", "1").replace("(float[N,5] y)", "(float[N,5] y, float[N,8,8,8] r1)")
    compacted(text, weights, rng, w1=(8, 3, 3, 3), w3=(5, 96))


def test_a_layer_pruned_away_keeps_one_channel(rng):
    weights = convolution_weights(rng, 4)
    weights["w1"][:] = 0
    weights["b1"][:] = 0
    compacted(CONVOLUTIONS.replace("PAD", "1"), weights, rng, w1=(1, 3, 3, 3), w2=(1, 1, 3, 3), w3=(5, 16))


def test_masks_and_provenance(rng):
    weights = convolution_weights(rng, 4)
    weights["w1"][5] = 0
    weights["b1"][5] = 0
    weights["w2"][:, 3] = 0
    before = normalize(model(CONVOLUTIONS.replace("PAD", "1"), weights), batch=1, fold_batch_norm=False)
    masks = {name: initializers(before.proto)[name] != 0 for name in ("w1", "w2", "w3")}
    after = compact(type(before)(before.proto, before.name, masks, before.provenance))
    for name, mask in after.masks.items():
        np.testing.assert_array_equal(mask, initializers(after.proto)[name] != 0)
    assert after.masks["w1"].shape == (6, 3, 3, 3)
    assert masks["w1"].shape == (8, 3, 3, 3)
    layers = {entry["weight"]: (entry["shape_before"], entry["shape"]) for entry in after.provenance[-1]["layers"]}
    assert layers["w2"] == ([6, 8, 3, 3], [6, 6, 3, 3])
    assert after.provenance[:-1] == before.provenance


@pytest.mark.parametrize("seed", range(12))
def test_random_networks(seed):
    """Whole rows and columns pruned at random in a net of all the operators that hand channels on."""
    rng = np.random.default_rng(seed)
    width = int(rng.integers(3, 9))
    pad, stride = int(rng.integers(0, 2)), int(rng.integers(1, 3))
    shapes = {
        "w1": (width, 3, 3, 3),
        "dw": (width, 1, 1, 1),
        "w2": (width, width, 1, 1),
        "w3": (2 * width, 2 * width, 3, 3),
    }
    weights = {name: rng.standard_normal(shape) for name, shape in shapes.items()}
    for name in ("w1", "w2", "w3"):
        weights[name][rng.random(len(weights[name])) < 0.4] = 0
        weights[name][:, rng.random(weights[name].shape[1]) < 0.3] = 0
    weights["dw"][rng.random(width) < 0.3] = 0
    weights |= {"b1": rng.choice([-1, 0, 2.0], width), "b3": rng.choice([-1, 0, 2.0], 2 * width)}
    weights["m"] = rng.choice([0, 1.0, -2.0], (width, 1, 1))
    weights["w4"] = rng.standard_normal((2 * width, 5)) * (rng.random((2 * width, 1)) < 0.6)
    activation = rng.choice(["Relu", "Sigmoid", "HardSwish", "Tanh", "Clip"])
    text = f"""
    net (float[N,3,9,9] x) => (float[N,5] y) {{
      a = Conv<pads=[{pad},{pad},{pad},{pad}], strides=[{stride},{stride}]>(x, w1, b1)
      b = {activation}(a)
      c = Conv<group={width}>(b, dw)
      d = Mul(c, m)
      e = Conv(d, w2)
      f = Add(e, b)
      g = Concat<axis=1>(f, d)
      h = Conv<pads=[{pad},{pad},{pad},{pad}]>(g, w3, b3)
      i = Relu(h)
      j = GlobalMaxPool(i)
      k = Flatten(j)
      y = MatMul(k, w4)
    }}"""
    compacted(text, weights, rng)
    assert "Add" in operators(compacted(text, weights, rng).proto)


# -- masks instead of cuts --------------------------------------------------------------------------------------------

PERCEPTRON = """
net (float[N,6] x) => (float[N,4] y) {
  h = Gemm<transB=1>(x, w1, b1)
  r = ACTIVATION(h)
  y = Gemm<transB=1>(r, w2, b2)
}"""


def dead_masked(text, weights, rng, masks=None):
    """Masks the dead neurons of the case, checks that outputs and shapes stay, and returns model and weights."""
    before = normalize(model(text, weights), batch=2, fold_batch_norm=False)
    before = replace(before, masks=masks or {})
    kept = {name: mask.copy() for name, mask in before.masks.items()}
    after = prune_dead(before)
    assert_same_outputs(before.proto, after.proto, rng)
    assert operators(after.proto) == operators(before.proto)
    old, new = initializers(before.proto), initializers(after.proto)
    assert {name: array.shape for name, array in new.items()} == {name: array.shape for name, array in old.items()}
    for name, mask in after.masks.items():
        assert not new[name][~mask].any()
        assert not np.signbit(new[name][~mask]).any()
    for name, mask in before.masks.items():
        np.testing.assert_array_equal(mask, kept[name])
        assert not (after.masks[name] & ~mask).any()
    again = prune_dead(after)
    assert again.proto == after.proto
    assert again.masks.keys() == after.masks.keys()
    return after, new


def perceptron_weights(rng):
    shapes = {"w1": (8, 6), "b1": (8,), "w2": (4, 8), "b2": (4,)}
    return {name: rng.standard_normal(shape) for name, shape in shapes.items()}


@pytest.mark.parametrize("activation", ["Relu", "Sigmoid", "HardSigmoid<beta=0.4>"])
def test_a_neuron_without_inputs_gives_its_constant_to_the_biases(rng, activation):
    weights = perceptron_weights(rng)
    weights["w1"][3] = 0
    weights["b1"][3] = 1.5
    after, new = dead_masked(PERCEPTRON.replace("ACTIVATION", activation), weights, rng)
    expected = {"w1": np.ones((8, 6), bool), "w2": np.ones((4, 8), bool)}
    expected["w1"][3] = expected["w2"][:, 3] = False
    assert after.masks.keys() == expected.keys()
    for name, mask in expected.items():
        np.testing.assert_array_equal(after.masks[name], mask)
        np.testing.assert_array_equal(new[name][mask], weights[name].astype(np.float32)[mask])
    constant = {"Relu": 1.5, "Sigmoid": 1 / (1 + np.exp(-1.5)), "HardSigmoid<beta=0.4>": 0.2 * 1.5 + 0.4}[activation]
    np.testing.assert_allclose(new["b2"], weights["b2"] + weights["w2"][:, 3] * constant, rtol=1e-5)


def test_a_neuron_without_readers_loses_its_inputs(rng):
    weights = perceptron_weights(rng)
    weights["w2"][:, [1, 5]] = 0
    masks = {"w2": weights["w2"] != 0}
    after, new = dead_masked(PERCEPTRON.replace("ACTIVATION", "Relu"), weights, rng, masks)
    assert {name: int(mask.sum()) for name, mask in after.masks.items()} == {"w1": 36, "w2": 24}
    np.testing.assert_array_equal(new["b2"], weights["b2"].astype(np.float32))


def test_a_model_without_dead_neurons_stays_as_it_is(rng):
    weights = perceptron_weights(rng)
    masks = {"w1": np.ones((8, 6), bool)}
    masks["w1"][:, 0] = False
    weights["w1"][:, 0] = 0  # an input that nothing reads is no neuron
    after, new = dead_masked(PERCEPTRON.replace("ACTIVATION", "Relu"), weights, rng, masks)
    assert after.masks.keys() == {"w1"}
    np.testing.assert_array_equal(after.masks["w1"], masks["w1"])
    for name, array in new.items():
        np.testing.assert_array_equal(array, weights[name].astype(np.float32))


def test_dead_channels_of_convolutions(rng):
    """Channel 2 of the first is constant 1.5; channel 4 of the second has no readers among the 4 x 4 features."""
    weights = convolution_weights(rng, 1)
    weights["w1"][2] = 0
    weights["b1"][2] = 1.5
    weights["w3"][:, 4] = 0
    weights["b2"] = rng.standard_normal(6)
    text = CONVOLUTIONS.replace("PAD", "0").replace("Conv<pads=[0,0,0,0]>(p1, w2)", "Conv(p1, w2, b2)")
    after, new = dead_masked(text, weights, rng)
    assert {name: int((~mask).sum()) for name, mask in after.masks.items()} == {
        "w1": 3 * 9,
        "w2": 9 * (6 + 8 - 1),
        "w3": 5,
    }
    moved = 1.5 * weights["w2"][:, 2].sum(axis=(1, 2))
    kept = [0, 1, 2, 3, 5]
    np.testing.assert_allclose(new["b2"][kept], (weights["b2"] + moved)[kept], rtol=1e-5)


@pytest.mark.parametrize("middle", ["Div(h, s)", "BatchNormalization(h, t, u, v, s)", "Pow(h, s)"])
def test_constants_of_a_dead_channel_that_must_not_be_zero(rng, middle):
    """Dividing by 0 would give NaN, which no weight of 0 takes away."""
    weights = perceptron_weights(rng) | {"s": np.full(8, 2.0)}
    weights |= {name: rng.standard_normal(8) for name in "tuv" if "Batch" in middle}
    weights["w1"][3] = 0
    weights["b1"] = np.abs(weights["b1"])
    text = PERCEPTRON.replace("ACTIVATION(h)", middle)
    after, new = dead_masked(text, weights, rng)
    assert not after.masks["w1"][3].any()
    np.testing.assert_array_equal(new["s"], 2)


@pytest.mark.parametrize(
    "reader", ["MatMul(r, w2)", "Gemm<beta=0.5, transB=1>(r, w2, b2)", "Gemm<transB=1>(r, w2)"], ids=str
)
def test_a_reader_that_cannot_take_a_constant_leaves_the_model_as_it_is(rng, reader):
    weights = perceptron_weights(rng)
    weights["w1"][3] = 0
    weights["b1"][3] = 1.5
    if "MatMul" in reader:
        weights["w2"] = weights["w2"].T
    if "b2" not in reader:
        del weights["b2"]
    text = PERCEPTRON.replace("ACTIVATION", "Relu").replace("Gemm<transB=1>(r, w2, b2)", reader)
    after, _ = dead_masked(text, weights, rng)
    assert after.masks == {}


@pytest.mark.parametrize("seed", range(6))
def test_dead_neurons_of_random_networks(seed):
    rng = np.random.default_rng(seed)
    shapes = {"w1": (6, 3, 3, 3), "dw": (6, 1, 1, 1), "w2": (6, 6, 1, 1), "w3": (5, 6)}
    weights = {name: rng.standard_normal(shape) for name, shape in shapes.items()}
    for name in ("w1", "w2"):
        weights[name][rng.random(len(weights[name])) < 0.4] = 0
        weights[name][:, rng.random(weights[name].shape[1]) < 0.3] = 0
    weights |= {"b1": rng.choice([-1, 0, 2.0], 6), "b2": rng.standard_normal(6), "b3": rng.standard_normal(5)}
    text = """
    net (float[N,3,9,9] x) => (float[N,5] y) {
      a = Conv(x, w1, b1)
      b = Relu(a)
      c = Conv<group=6>(b, dw)
      d = Conv(c, w2, b2)
      e = Add(d, b)
      f = GlobalMaxPool(e)
      g = Flatten(f)
      y = Gemm<transB=1>(g, w3, b3)
    }"""
    masks = {name: weights[name] != 0 for name in ("w1", "w2")}
    after, _ = dead_masked(text, weights, rng, masks)
    small = compact(after)
    for name, array in initializers(small.proto).items():
        if name in small.masks:
            assert small.masks[name].shape == array.shape
