import copy
import json

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper, parser

from lwc_compiler.errors import ModelError, OptionError
from lwc_compiler.model import Model
from lwc_compiler.passes.prune import prune
from lwc_compiler.passes.sites import constant_tensors, find_sites
from lwc_compiler.recipe.options import PruneOptions

CNN = """agraph (float[N, 3, 16, 16] x) => (float[N, 10] out) {
    [stem] a = Conv <kernel_shape=[3, 3]> (x, stem_w, stem_b)
    r = Relu (a)
    [depthwise] b = Conv <group=8> (r, dw_w)
    [grouped] c = Conv <group=2> (b, grouped_w)
    [up] d = ConvTranspose <group=2> (c, up_w)
    p = GlobalAveragePool (d)
    f = Flatten (p)
    [fc1] g = Gemm <transB=1> (f, fc1_w, fc1_b)
    h = Relu (g)
    [fc2] out = MatMul (h, fc2_w)
}"""
SHAPES = {
    "stem_w": (8, 3, 3, 3),
    "stem_b": (8,),
    "dw_w": (8, 1, 3, 3),
    "grouped_w": (12, 4, 3, 3),
    "up_w": (12, 4, 2, 2),
    "fc1_w": (20, 8),
    "fc1_b": (20,),
    "fc2_w": (20, 10),
}
PRUNABLE = ["grouped_w", "up_w", "fc1_w", "fc2_w"]


def model_of(text, weights, name="net"):
    proto = parser.parse_model('<ir_version: 10, opset_import: ["" : 17]>' + text)
    proto.graph.initializer.extend(numpy_helper.from_array(array, key) for key, array in weights.items())
    return Model(proto, name)


@pytest.fixture
def cnn():
    rng = np.random.default_rng(0)
    return model_of(CNN, {name: rng.standard_normal(shape).astype(np.float32) for name, shape in SHAPES.items()})


def weight(model, name):
    return numpy_helper.to_array(constant_tensors(model.proto.graph)[name])


def last_entry(model):
    return model.provenance[-1]


@pytest.mark.parametrize(
    "structure", ["element", "2x1", "4x1", "8x1", "16x1", "32x1", "1:2", "1:4", "2:4", "2:8", "4:8"]
)
@pytest.mark.parametrize(
    "options",
    [
        {"criterion": "uniform", "sparsity": 0.8},
        {"criterion": "global", "sparsity": 0.8},
        {"criterion": "erdos-renyi-kernel", "sparsity": 0.8},
        {"criterion": "std", "quality": 1.0},
        {"criterion": "per-layer", "densities": {"grouped_w": 0.1, "up": 0.2, "fc1": 0.25, "fc2_w": 0.2}},
    ],
    ids=lambda options: options["criterion"],
)
def test_pruned_weights_are_zero_and_the_rest_is_untouched(cnn, structure, options):
    pruned = prune(cnn, PruneOptions(structure=structure, **options))
    assert sorted(pruned.masks) == sorted(PRUNABLE)
    for name in SHAPES:
        before, after = weight(cnn, name), weight(pruned, name)
        mask = pruned.masks.get(name, np.ones(before.shape, bool))
        assert mask.shape == before.shape
        assert mask.dtype == bool
        np.testing.assert_array_equal(after, np.where(mask, before, 0))
        assert not np.signbit(after[~mask]).any()
    onnx.checker.check_model(pruned.proto, full_check=True)
    if "sparsity" in options and structure == "element":
        total = sum(weight(cnn, name).size for name in PRUNABLE)
        assert abs(sum(pruned.masks[name].sum() for name in PRUNABLE) - 0.2 * total) <= len(PRUNABLE)


def test_only_the_weights_differ(cnn):
    cnn.proto.metadata_props.add(key="author", value="me")
    cnn.proto.graph.initializer[2].doc_string = "kept"
    pruned = prune(cnn, PruneOptions(sparsity=0.5))
    expected = onnx.ModelProto()
    expected.CopyFrom(cnn.proto)
    for tensor in expected.graph.initializer:
        if tensor.name in pruned.masks:
            tensor.raw_data = weight(pruned, tensor.name).tobytes()
    assert pruned.proto == expected


def test_the_given_model_is_unchanged_and_shares_no_weights(cnn):
    before, masks = cnn.proto.SerializeToString(), copy.deepcopy(cnn.masks)
    pruned = prune(cnn, PruneOptions(sparsity=0.5))
    pruned.proto.graph.initializer[0].raw_data = b""
    assert cnn.proto.SerializeToString() == before
    assert cnn.masks == masks
    assert cnn.provenance == ()


def test_provenance_says_what_was_done_and_what_was_kept_and_why(cnn):
    entry = last_entry(prune(cnn, PruneOptions(sparsity=0.75, keep=("fc*",))))
    assert entry["pass"] == "prune"
    assert entry["options"]["sparsity"] == 0.75
    assert entry["sites"] == {
        "stem_w": {"density": 1.0, "kept_because": "first layer (keep_first)"},
        "dw_w": {"density": 1.0, "kept_because": "depthwise convolution (keep_depthwise)"},
        "grouped_w": {"density": 0.25, "requested": 0.25},
        "up_w": {"density": 0.25, "requested": 0.25},
        "fc1_w": {"density": 1.0, "kept_because": "keep entry 'fc*'"},
        "fc2_w": {"density": 1.0, "kept_because": "keep entry 'fc*'"},
    }
    assert entry["density"] == 0.25
    json.dumps(entry)


def test_first_and_depthwise_layers_are_pruned_on_request(cnn):
    pruned = prune(cnn, PruneOptions(sparsity=0.5, keep_first=False, keep_depthwise=False))
    assert pruned.masks["stem_w"].mean() == 0.5
    assert pruned.masks["dw_w"].mean() == 0.5


def test_a_named_density_prunes_a_first_layer(cnn):
    pruned = prune(cnn, PruneOptions(criterion="per-layer", densities={"stem": 0.5, "fc1": 1.0}))
    assert pruned.masks.keys() == {"stem_w"}
    sites = last_entry(pruned)["sites"]
    assert sites["fc1_w"]["kept_because"] == "density 1 is requested"
    assert sites["fc2_w"]["kept_because"] == "no density given"


def test_pruning_again_keeps_what_was_pruned(cnn):
    once = prune(cnn, PruneOptions(sparsity=0.5))
    # Retraining may move a kept weight, but not a mask.
    moved = onnx.ModelProto()
    moved.CopyFrom(once.proto)
    for tensor in moved.graph.initializer:
        if tensor.name in once.masks:
            tensor.raw_data = (
                np.where(once.masks[tensor.name], np.float32(1) - weight(once, tensor.name), 9).astype("f4").tobytes()
            )
    twice = prune(Model(moved, "net", once.masks, once.provenance), PruneOptions(criterion="global", sparsity=0.9))
    for name in PRUNABLE:
        assert not (twice.masks[name] & ~once.masks[name]).any()
        assert not weight(twice, name)[~once.masks[name]].any()
    assert [entry["pass"] for entry in twice.provenance] == ["prune", "prune"]
    again = prune(twice, PruneOptions(criterion="global", sparsity=0.9))
    assert all(np.array_equal(again.masks[name], twice.masks[name]) for name in PRUNABLE)


def test_masks_of_kept_sites_survive(cnn):
    mask = np.random.default_rng(1).random(SHAPES["stem_w"]) < 0.5
    pruned = prune(Model(cnn.proto, "net", {"stem_w": mask}), PruneOptions(sparsity=0.5))
    assert np.array_equal(pruned.masks["stem_w"], mask)
    assert last_entry(pruned)["sites"]["stem_w"]["density"] == mask.mean()


def test_blocks_are_output_channels_of_every_operator(cnn):
    pruned = prune(cnn, PruneOptions(sparsity=0.5, structure="2x1"))
    for site in find_sites(cnn.proto):
        if site.weight in pruned.masks:
            matrix = site.to_matrix(pruned.masks[site.weight])
            assert np.array_equal(matrix[::2], matrix[1::2])


def test_blocks_of_a_grouped_convolution_stay_inside_a_group():
    # Three output channels a group: blocks of two are rows 0-1 and 2, then 3-4 and 5.
    text = """agraph (float[1, 4, 8, 8] x) => (float[1, M, H, W] out) {
        a = Conv (x, first)
        out = Conv <group=2> (a, w)
    }"""
    rng = np.random.default_rng(0)
    weights = {
        "first": rng.standard_normal((4, 4, 1, 1)).astype(np.float32),
        "w": rng.standard_normal((6, 2, 3, 3)).astype(np.float32),
    }
    mask = prune(model_of(text, weights), PruneOptions(sparsity=0.5, structure="2x1")).masks["w"]
    assert np.array_equal(mask[0], mask[1])
    assert np.array_equal(mask[3], mask[4])
    assert not np.array_equal(mask[2], mask[3])


def test_weight_in_a_constant_node_is_pruned():
    array = np.arange(1, 17, dtype=np.float32).reshape(4, 4)
    model = model_of("agraph (float[N, 4] x) => (float[N, 4] out) { out = MatMul (x, w) }", {})
    model.proto.graph.node.insert(0, helper.make_node("Constant", [], ["w"], value=numpy_helper.from_array(array)))
    pruned = prune(model, PruneOptions(sparsity=0.5, keep_first=False))
    np.testing.assert_array_equal(weight(pruned, "w"), np.where(array > 8, array, 0))


def test_weight_stored_as_float_data_is_pruned():
    array = np.arange(1, 17, dtype=np.float32).reshape(4, 4)
    model = model_of("agraph (float[N, 4] x) => (float[N, 4] out) { out = MatMul (x, w) }", {})
    model.proto.graph.initializer.append(helper.make_tensor("w", 1, (4, 4), array.ravel()))
    pruned = prune(model, PruneOptions(sparsity=0.5, keep_first=False))
    np.testing.assert_array_equal(weight(pruned, "w"), np.where(array > 8, array, 0))


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (
            """agraph (int64[N] x) => (float[N, 4] z) {
                e = Gather (w, x) t = Transpose (w) y = MatMul (e, t) z = MatMul (y, v)
            }""",
            "also read by Gather 'Gather:e'",
        ),
        (
            """agraph (float[N, 4] x) => (float[N, 4] z, float[6, 4] w) {
                t = Transpose (w) y = MatMul (x, t) z = MatMul (y, v)
            }""",
            "also read by graph output",
        ),
    ],
    ids=["tied-embedding", "graph-output"],
)
def test_weight_that_something_else_reads_is_kept(text, why):
    weights = {"w": np.ones((6, 4), np.float32), "v": np.ones((6, 4), np.float32)}
    pruned = prune(model_of(text, weights), PruneOptions(sparsity=0.5, keep_first=False))
    assert pruned.masks.keys() == {"v"}
    assert last_entry(pruned)["sites"]["w"] == {"density": 1.0, "kept_because": why}


def test_float16_weight_is_kept():
    text = "agraph (float16[N, 4] x) => (float16[N, 4] out) { out = MatMul (x, w) }"
    model = model_of(text, {"w": np.ones((4, 4), np.float16)})
    with pytest.raises(ModelError, match=r"every layer is kept: 'w' \(float16 weight; only float32 is pruned\)"):
        prune(model, PruneOptions(sparsity=0.5))


def test_model_without_sites_is_refused():
    model = model_of("agraph (float[N, 4] x) => (float[N, 4] out) { out = Relu (x) }", {}, name="relu")
    with pytest.raises(ModelError, match=r"'relu' has nothing to prune: none of its 1 nodes is a Conv, .* or LSTM"):
        prune(model, PruneOptions(sparsity=0.5))


def test_model_whose_only_layer_is_the_first_is_refused():
    text = "agraph (float[N, 4] x) => (float[N, 4] out) { out = MatMul (x, w) }"
    model = model_of(text, {"w": np.ones((4, 4), np.float32)})
    with pytest.raises(ModelError, match=r"'w' \(first layer \(keep_first\)\)"):
        prune(model, PruneOptions(sparsity=0.5))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_weight_that_is_not_finite_is_refused(cnn, value):
    broken = weight(cnn, "fc1_w").copy()
    broken[3, 4] = value
    next(tensor for tensor in cnn.proto.graph.initializer if tensor.name == "fc1_w").raw_data = broken.tobytes()
    with pytest.raises(ModelError, match=r"'fc1_w' of Gemm 'fc1' holds NaN or Inf in 1 of 160"):
        prune(cnn, PruneOptions(sparsity=0.5))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sparsity": 0.5, "keep": ("steem*", "fc1")}, r"keep: 'steem\*' matches no .*; did you mean 'stem'"),
        ({"sparsity": 0.5, "keep": ("FC1",)}, "keep: 'FC1' matches no"),
        ({"criterion": "per-layer", "densities": {"fc3": 0.5}}, r"densities: 'fc3' matches no .*'fc[12]'"),
        ({"criterion": "per-layer", "densities": {"zzz": 0.5}}, r"'zzz' .* did you mean 'stem_w' or 'stem'"),
        ({"criterion": "per-layer", "densities": {"fc1": 0.5, "fc1_w": 0.4}}, r"'fc1_w' gets both 0\.5 and 0\.4"),
        ({"criterion": "per-layer", "densities": {"fc1": 0.5}, "keep": ("fc*",)}, r"'fc1_w' has a density, but keep"),
    ],
)
def test_names_that_match_nothing_or_contradict_each_other(cnn, options, message):
    with pytest.raises(OptionError, match=message):
        prune(cnn, PruneOptions(**options))


def norms_of(model, value=1.0):
    return {
        site.weight: np.full((site.row_groups, site.matrix_shape[1]), value, np.float32)
        for site in find_sites(model.proto)
    }


def test_activation_norms_decide_together_with_magnitudes(cnn):
    options = PruneOptions(criterion="uniform", sparsity=0.5, score="activation")
    plain = prune(cnn, PruneOptions(criterion="uniform", sparsity=0.5))
    even = prune(cnn, options, norms=norms_of(cnn, 3.0))
    assert all(np.array_equal(even.masks[name], mask) for name, mask in plain.masks.items())
    norms = norms_of(cnn)
    # Inputs 3 and 4 of the convolution's second group and input 5 of fc1 are by far the loudest.
    norms["grouped_w"][1, 18:] = 1e6
    norms["fc1_w"][0, 5] = 1e6
    masks = prune(cnn, options, norms=norms).masks
    assert masks["grouped_w"][6:, 2:].all()
    assert not masks["grouped_w"][:6, 2:].all()
    assert masks["fc1_w"][:, 5].all()
    assert masks["fc1_w"].mean() == 0.5
    assert np.array_equal(masks["fc2_w"], plain.masks["fc2_w"])


@pytest.mark.parametrize("norms", [None, {}, {"grouped_w": np.ones((1, 36), np.float32)}])
def test_norms_that_are_missing_or_do_not_fit_are_asked_for(cnn, norms):
    with pytest.raises(OptionError, match=r"norms of the inputs of 'grouped_w', 2 x 36 numbers .*: give data"):
        prune(cnn, PruneOptions(sparsity=0.5, score="activation"), norms=norms)
