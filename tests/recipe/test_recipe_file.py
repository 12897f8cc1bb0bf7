import json
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lwc_compiler.errors import OptionError
from lwc_compiler.recipe.build import BuildRecipe, GateOptions
from lwc_compiler.recipe.file import load_build_recipe, load_recipe


@pytest.fixture
def recipe(tmp_path):
    """Writes a recipe into a folder of its own, and gives its path."""

    def write(text):
        folder = tmp_path / "recipes"
        folder.mkdir(exist_ok=True)
        path = folder / "r.toml"
        path.write_text(text, encoding="utf-8")
        return path

    return write


def test_paths_are_relative_to_the_file(recipe):
    path = recipe(
        'model = "net.onnx"\ntrain_data = "a.npz"\nval_data = "../images"\n'
        '[gates]\nbaseline = "main/report.json"\nmax_bytes_regression = 1\n[outputs]\ndirectory = "out"\n'
    )
    found = load_build_recipe(path)
    assert found.model == str(path.parent / "net.onnx")
    assert found.train_data == str(path.parent / "a.npz")
    assert found.val_data == str(path.parent / "../images")
    assert found.gates.baseline == str(path.parent / "main/report.json")
    assert found.outputs.directory == str(path.parent / "out")


def test_a_whole_path_stays(recipe, tmp_path):
    assert load_build_recipe(recipe(f'model = "{tmp_path}/net.onnx"')).model == str(tmp_path / "net.onnx")


def test_paths_are_relative_where_the_file_is(recipe, tmp_path, monkeypatch):
    recipe('model = "net.onnx"')
    monkeypatch.chdir(tmp_path)
    assert load_build_recipe("recipes/r.toml").model == "recipes/net.onnx"


def test_environment_variables(recipe, monkeypatch):
    monkeypatch.setenv("LWC_TEST_NET", "nets/a.onnx")
    monkeypatch.setenv("LWC_TEST_SPARSITY", "0.75")
    path = recipe('model = "${LWC_TEST_NET}"\n[prune]\nsparsity = "$LWC_TEST_SPARSITY"\nkeep = ["cost$$"]\n')
    found = load_build_recipe(path)
    assert found.model == str(path.parent / "nets/a.onnx")
    assert found.prune.sparsity == 0.75
    assert found.prune.keep == ("cost$",)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('model = "${LWC_TEST_NONE}"', r"model: the environment variable LWC_TEST_NONE of .* is not set"),
        ('[outputs]\ndirectory = "a$ b"', r"outputs.directory: the dollar in 'a\$ b' begins no name"),
        ("mdel = 1", "mdel: there is no such key; the closest is 'model'"),
        ('model = "a"\n[prune]\nsparcity = 0.5', "prune.sparcity: there is no such key; the closest is 'sparsity'"),
        ('model = "a"\n[targets.host.gates]\nmax_byte = 1', "targets.host.gates.max_byte: .* is 'max_bytes'"),
        ('model = "a"\n[outputs]\nzzz = 1', "outputs.zzz: there is no such key; the keys here are directory, reports"),
        ("[prune]\nsparsity = 0.5", "model: it is missing, and needed"),
        ("model = 7", "model: .*string.* found 7"),
        ('model = "a"\ngates = 7', "gates: .* found 7"),
        ('model = "a"\n[targets."../x"]', "targets...*/x"),
    ],
)
def test_mistakes_are_named(recipe, text, message):
    with pytest.raises(OptionError, match=rf"r\.toml: {message}"):
        load_build_recipe(recipe(text))


CODE = [
    'train_data = "os:getcwd"',
    'val_data = "os:getcwd"',
    'train_data = "${LWC_TEST_CODE}"',
    '[retrain]\naugment = "os:getcwd"',
    '[lower]\ncc = "sh run.sh"',
    '[targets.host]\ncc = "sh run.sh"',
]


@pytest.mark.parametrize("text", CODE)
def test_code_is_refused_unless_it_is_allowed(recipe, text, monkeypatch):
    monkeypatch.setenv("LWC_TEST_CODE", "os:getcwd")
    path = recipe(f'model = "net.onnx"\n{text}\n')
    with pytest.raises(OptionError, match=r"would run code that is not lwc's; .* --allow-code"):
        load_build_recipe(path)
    found = load_build_recipe(path, allow_code=True)
    if "train_data" in text:
        assert found.train_data == "os:getcwd"


def test_code_for_compile_is_refused_too(recipe):
    path = recipe('train_data = "os:getcwd"')
    with pytest.raises(OptionError, match="--allow-code"):
        load_recipe(path)
    assert load_recipe(path, allow_code=True).train_data == "os:getcwd"


def test_a_folder_with_a_colon_is_data(recipe):
    path = recipe('model = "net.onnx"\ntrain_data = "a:b"')
    (path.parent / "a:b").mkdir()
    assert load_build_recipe(path).train_data == str(path.parent / "a:b")


def test_a_folder_with_a_colon_here_makes_no_code_of_a_file(recipe, tmp_path, monkeypatch):
    path = recipe('model = "net.onnx"\ntrain_data = "os:getcwd"')
    (tmp_path / "os:getcwd").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(OptionError, match="--allow-code"):
        load_build_recipe(path)


def test_a_whole_run_is_no_recipe_for_compile(recipe):
    with pytest.raises(OptionError, match=r"'gates' is for a whole run: run the file with `lwc build .*r.toml`"):
        load_recipe(recipe('model = "net.onnx"\n[gates]\nmax_bytes = 7\n'))


def test_the_documented_recipe_is_accepted(recipe):
    document = Path(__file__).resolve().parents[2] / "docs" / "recipes.md"
    text = document.read_text(encoding="utf-8").partition("## A whole recipe\n\n```toml\n")[2].partition("```")[0]
    found = load_build_recipe(recipe(text))
    assert list(found.each_target()) == ["server", "stm32f4", "pi"]
    assert found.each_target()["stm32f4"].gates.max_bytes == 1_000_000


KEYS = st.sampled_from([*BuildRecipe.model_fields, *GateOptions.model_fields, "prune", "sparsity", "host", "x"])
SCALARS = st.one_of(
    st.booleans(),
    st.integers(-3, 3),
    st.floats(allow_nan=False, allow_infinity=False),
    st.sampled_from(["net.onnx", "os:getcwd", "$", "${PATH}", "c", ""]),
)
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=2) | st.dictionaries(KEYS, inner, max_size=3))


def toml(value):
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {toml(entry)}" for key, entry in value.items()) + "}"
    return f"[{', '.join(map(toml, value))}]" if isinstance(value, list) else json.dumps(value)


@given(st.dictionaries(KEYS, VALUES, max_size=5))
def test_whatever_a_file_says_it_is_a_recipe_or_refused_in_words(values):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "r.toml"
        path.write_text("".join(f"{key} = {toml(value)}\n" for key, value in values.items()), encoding="utf-8")
        try:
            found = load_build_recipe(path)
        except OptionError as error:
            assert "r.toml" in str(error)
        else:
            assert found.model.startswith(folder)
            assert found.each_target()
