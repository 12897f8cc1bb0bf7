import re
import sys

import jsonschema
import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from lwc_compiler.errors import DataError, ModelError, TargetError
from lwc_compiler.recipe.file import load_build_recipe
from lwc_compiler.recipe.init import new_recipe
from lwc_compiler.recipe.schema import recipe_schema

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


def written(text, path):
    path.write_text(text, encoding="utf-8")
    return load_build_recipe(path)


def test_paths_are_relative_to_its_place(mlp, mlp_data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipes").mkdir()
    place = tmp_path / "recipes" / "r.toml"
    text = new_recipe(mlp, place, train_data="data.npz", val_data="module:function", targets=("host", "cuda:sm_75"))
    values = tomllib.loads(text)
    jsonschema.validate(values, recipe_schema())
    assert values["model"] == "../mlp.onnx"
    assert values["train_data"] == "../data.npz"
    assert values["val_data"] == "module:function"
    place.write_text(text, encoding="utf-8")
    recipe = load_build_recipe(place, allow_code=True)
    assert {name: target.target for name, target in recipe.each_target().items()} == {
        "host": "host",
        "cuda-sm_75": "cuda:sm_75",
    }
    assert recipe.prune.sparsity == 0.9
    assert (recipe.retrain.epochs, recipe.retrain.batch_size) == (60, 32)
    assert recipe.gates.max_accuracy_drop == 0.01


def test_without_data_it_prunes_less_and_retrains_nothing(mlp, tmp_path):
    recipe = written(new_recipe(mlp, tmp_path / "r.toml"), tmp_path / "r.toml")
    assert recipe.prune.sparsity == 0.5
    assert recipe.retrain is recipe.train_data is recipe.val_data is recipe.gates.max_accuracy_drop is None
    assert list(recipe.each_target()) == ["host"]


def test_it_says_what_is_left_of_each_layer(mlp, mlp_data, tmp_path):
    text = new_recipe(mlp, tmp_path / "r.toml", train_data=str(mlp_data))
    rows = {line.split()[1]: line.split()[2:] for line in text.splitlines() if line.startswith("#   w")}
    assert rows["w1"][:2] == ["16x12", "192"]
    assert rows["w2"][:2] == ["12x4", "48"]
    kept = {name: float(row[2]) / 100 * float(row[1]) for name, row in rows.items() if name != "weight"}
    assert sum(kept.values()) == pytest.approx(0.1 * 240, abs=1)


def test_what_is_commented_out_can_be_used(mlp, mlp_data, tmp_path):
    text = new_recipe(mlp, tmp_path / "r.toml", train_data=str(mlp_data))
    text = re.sub(r"^# (?=\w+ = |\[)", "", text, flags=re.MULTILINE)
    recipe = written(text, tmp_path / "r.toml")
    assert recipe.iterate.rounds == 5
    assert recipe.gates.max_bytes_regression == 2


@pytest.mark.parametrize(("samples", "epochs", "batch_size"), [(2000, 32, 32), (19_999, 10, 32), (20_000, 13, 128)])
def test_small_data_takes_more_epochs(mlp, tmp_path, samples, epochs, batch_size):
    np.save(tmp_path / "x.npy", np.zeros((samples, 16), np.float32))
    recipe = written(new_recipe(mlp, tmp_path / "r.toml", train_data=str(tmp_path / "x.npy")), tmp_path / "r.toml")
    assert (recipe.retrain.epochs, recipe.retrain.batch_size) == (epochs, batch_size)


def test_training_data_has_to_be_there(mlp, tmp_path):
    with pytest.raises(DataError, match=r"none\.npz: there is no such file"):
        new_recipe(mlp, tmp_path / "r.toml", train_data="none.npz")


def test_a_name_cannot_write_entries(mlp, tmp_path):
    proto = onnx.load(mlp)
    name = 'w1\n[lower]\ncc = "evil"\n#'
    proto.graph.initializer[0].name = proto.graph.node[0].input[1] = name
    onnx.save(proto, mlp)
    recipe = written(new_recipe(mlp, tmp_path / "r.toml"), tmp_path / "r.toml")
    assert recipe.lower.cc is None


def test_odd_file_names(mlp, tmp_path):
    odd = mlp.rename(tmp_path / 'a "$b"\\.onnx')
    assert written(new_recipe(odd, tmp_path / "r.toml"), tmp_path / "r.toml").model == str(odd)


def test_open_shapes_are_left_to_the_reader(tmp_path):
    weight = numpy_helper.from_array(np.ones((4, 3, 3, 3), np.float32), "w")
    graph = helper.make_graph(
        [helper.make_node("Conv", ["image", "w"], ["y"])],
        "net",
        [helper.make_tensor_value_info("image", 1, ["n", 3, "h", "w"])],
        [helper.make_tensor_value_info("y", 1, ["n", 4, "h2", "w2"])],
        [weight],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / "n.onnx")
    text = new_recipe(tmp_path / "n.onnx", tmp_path / "r.toml")
    assert '# shapes = { "image" = [1, 3, ?, ?] }  # ?: say how large' in text
    assert written(text, tmp_path / "r.toml").prune.keep_first is False


def test_unknown_targets_and_models_are_refused(mlp, tmp_path):
    with pytest.raises(TargetError, match="unknown target 'hots'"):
        new_recipe(mlp, tmp_path / "r.toml", targets=("hots",))
    proto = onnx.load(mlp)
    del proto.graph.node[:], proto.graph.initializer[:]
    proto.graph.node.append(helper.make_node("Relu", ["x"], ["y"]))
    proto.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 16
    onnx.save(proto, mlp)
    with pytest.raises(ModelError, match="nothing to prune"):
        new_recipe(mlp, tmp_path / "r.toml")
