import jsonschema
import pytest

from lwc_compiler.recipe.schema import recipe_schema


def tables(schema):
    return {"": schema, **schema["$defs"]}


def test_it_is_a_schema():
    jsonschema.Draft202012Validator.check_schema(recipe_schema())


def test_every_entry_is_described():
    open_entries = [
        f"{table}.{name}"
        for table, content in tables(recipe_schema()).items()
        for name, entry in content["properties"].items()
        if not entry.get("description")
    ]
    assert open_entries == []


@pytest.mark.parametrize(
    ("recipe", "good"),
    [
        ({"model": "a.onnx"}, True),
        ({"model": "a.onnx", "prune": {"sparsity": 0.9}, "targets": {"host": {"gates": {"max_bytes": 1}}}}, True),
        ({}, False),
        ({"model": "a.onnx", "prun": {}}, False),
        ({"model": "a.onnx", "prune": {"sparsity": 1.5}}, False),
        ({"model": "a.onnx", "outputs": {"reports": ["pdf"]}}, False),
        ({"model": "a.onnx", "targets": {"../host": {}}}, False),
    ],
)
def test_it_tells_good_from_bad(recipe, good):
    assert jsonschema.Draft202012Validator(recipe_schema()).is_valid(recipe) == good
