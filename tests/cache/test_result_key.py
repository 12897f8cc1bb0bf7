"""Keys of results: equal for equal inputs, and another for every input that changes."""

from dataclasses import replace

import numpy as np
import onnx
import pytest

from lwc_compiler.cache import keys as module
from lwc_compiler.cache.keys import artifact_key, model_key, unknown_input
from lwc_compiler.codegen.link import Compiler
from lwc_compiler.model import load_model
from lwc_compiler.recipe.options import LowerOptions, PruneOptions, Recipe, RetrainOptions
from lwc_compiler.targets import find_target

COMPILER = Compiler(("cc",), "cc 1", ("ar",))


@pytest.fixture
def recipe(mlp_data):
    return Recipe(prune=PruneOptions(sparsity=0.5), retrain=RetrainOptions(), train_data=str(mlp_data))


def flipped(path, place):
    """The file with one bit of the byte at `place` changed."""
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


def test_equal_inputs_have_one_key(mlp, recipe):
    before = model_key(load_model(mlp), recipe)
    module._versions.cache_clear()
    assert model_key(load_model(mlp), recipe) == before


def test_a_changed_byte_of_a_weight_changes_the_key(mlp, recipe):
    before = model_key(load_model(mlp), recipe)
    proto = onnx.load(mlp)
    proto.graph.initializer[0].raw_data = b"\0" + proto.graph.initializer[0].raw_data[1:]
    onnx.save(proto, mlp)
    assert model_key(load_model(mlp), recipe) != before


def test_a_changed_byte_of_external_weights_changes_the_key(mlp, recipe, tmp_path):
    path = tmp_path / "outside" / "mlp.onnx"
    path.parent.mkdir()
    onnx.save(onnx.load(mlp), path, save_as_external_data=True, location="weights", size_threshold=0)
    before = model_key(load_model(path), recipe)
    flipped(path.parent / "weights", 5)
    assert model_key(load_model(path), recipe) != before


def test_a_changed_graph_or_mask_or_name_changes_the_key(mlp, recipe):
    model = load_model(mlp)
    before = model_key(model, recipe)
    proto = onnx.load(mlp)
    proto.graph.node[1].op_type = "Sigmoid"
    others = [
        replace(model, proto=proto),
        replace(model, masks={"w1": np.ones((16, 12), bool)}),
        replace(model, name="other"),
    ]
    keys = {model_key(other, recipe) for other in others}
    assert len(keys | {before}) == 4


@pytest.mark.parametrize("place", [200, -30])
def test_a_changed_byte_of_the_data_changes_the_key(mlp, mlp_data, recipe, place):
    before = model_key(load_model(mlp), recipe)
    flipped(mlp_data, place)
    assert model_key(load_model(mlp), recipe) != before


def test_folders_of_data_count_with_names_and_contents(mlp, tmp_path):
    folder = tmp_path / "images"
    for name in ("cat/1.png", "dog/2.png"):
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_bytes(name.encode())
    recipe = Recipe(train_data=str(folder))
    keys = [model_key(load_model(mlp), recipe)]
    (folder / "cat/1.png").write_bytes(b"another")
    keys.append(model_key(load_model(mlp), recipe))
    (folder / "cat/1.png").rename(folder / "dog/1.png")
    keys.append(model_key(load_model(mlp), recipe))
    (folder / "dog").rename(tmp_path / "elsewhere")
    (folder / "dog").symlink_to(tmp_path / "elsewhere")
    assert model_key(load_model(mlp), recipe) == keys[-1]
    (tmp_path / "elsewhere/1.png").write_bytes(b"a third")
    keys.append(model_key(load_model(mlp), recipe))
    assert len(set(keys)) == 4


def test_options_count_where_they_matter(mlp, recipe):
    model = load_model(mlp)
    before = model_key(model, recipe)
    assert model_key(model, recipe.model_copy(update={"retrain": RetrainOptions(seed=1)})) != before
    assert model_key(model, recipe.model_copy(update={"prune": PruneOptions(sparsity=0.6)})) != before
    assert model_key(model, recipe.model_copy(update={"lower": LowerOptions(batch=2)})) == before


@pytest.mark.parametrize("change", ["version", "tools", "code"])
def test_another_version_makes_its_own_results(mlp, recipe, monkeypatch, change):
    before = model_key(load_model(mlp), recipe)
    if change == "version":
        monkeypatch.setattr(module, "__version__", "99.0")
    elif change == "tools":
        monkeypatch.setattr(module, "tool_versions", lambda: {"apache-tvm": "99.0"})
    else:
        monkeypatch.setattr(module, "_code", lambda: "other")
    module._versions.cache_clear()
    assert model_key(load_model(mlp), recipe) != before
    monkeypatch.undo()
    module._versions.cache_clear()
    assert model_key(load_model(mlp), recipe) == before


def test_the_code_counts_byte_by_byte(monkeypatch, tmp_path):
    (tmp_path / "codegen").mkdir()
    (tmp_path / "codegen" / "emit.py").write_text("x = 1")
    monkeypatch.setattr(module, "__file__", str(tmp_path / "cache/keys.py"))
    before = module._code()
    (tmp_path / "codegen" / "emit.pyc").write_text("compiled")
    assert module._code() == before
    (tmp_path / "codegen" / "emit.py").write_text("x = 2")
    assert module._code() != before


def test_artifacts_depend_on_recipe_target_compiler_and_processor(recipe):
    target = find_target("x86-64-v3")
    base = {"model_key": "m", "source_sha256": "s", "recipe": recipe, "target": target, "compiler": COMPILER}
    base |= {"cuda": "", "cpu": ""}
    changes = [
        {},
        {"model_key": "n"},
        {"source_sha256": "t"},
        {"recipe": recipe.model_copy(update={"lower": LowerOptions(threads=2)})},
        {"target": find_target("x86-64-v4")},
        {"target": replace(target, l2_bytes=target.l2_bytes * 2)},
        {"compiler": replace(COMPILER, version="cc 2")},
        {"cuda": "NVRTC 13.5"},
        {"cpu": "another"},
    ]
    assert len({artifact_key(**base | change) for change in changes}) == len(changes)
    assert artifact_key(**base) == artifact_key(**base)


def test_results_of_code_have_no_key(mlp_data, monkeypatch, tmp_path):
    assert unknown_input(Recipe(train_data=str(mlp_data))) == ""
    assert unknown_input(Recipe(train_data="loader:batches")) == "loader:batches"
    assert unknown_input(Recipe(train_data=str(mlp_data), val_data="loader:batches")) == "loader:batches"
    augmented = RetrainOptions(augment="augment:deform")
    assert unknown_input(Recipe(retrain=augmented, train_data=str(mlp_data))) == "augment:deform"
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a:b").mkdir()
    assert unknown_input(Recipe(train_data="a:b")) == ""
