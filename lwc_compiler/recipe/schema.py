"""The JSON schema of a recipe, for editors and other programs."""

from __future__ import annotations

import inspect
import re
from typing import Any

from lwc_compiler.recipe.build import BuildRecipe, GateOptions, OutputOptions, TargetGates, TargetOptions
from lwc_compiler.recipe.options import IterateOptions, LowerOptions, Options, PackOptions, PruneOptions, RetrainOptions

_ENTRY = re.compile(r"^    (\w+): (.*(?:\n     .*)*)", re.MULTILINE)


def recipe_schema() -> dict[str, Any]:
    """JSON Schema (draft 2020-12) of what `lwc build` takes; the docstrings of the classes describe the entries.

    A number that is written as a text with an environment variable is accepted by `lwc build`, not by the schema.
    """
    schema = BuildRecipe.model_json_schema()
    _describe(schema, BuildRecipe)
    parts: tuple[type[Options], ...] = (
        *(GateOptions, IterateOptions, LowerOptions, OutputOptions, PackOptions, PruneOptions, RetrainOptions),
        *(TargetGates, TargetOptions),
    )
    for part in parts:
        _describe(schema["$defs"][part.__name__], part)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": "Recipe of lwc build"}


def entry_docs(kind: type[Options]) -> dict[str, str]:
    """Field -> what the docstring of the class, or of one that it inherits from, says of it."""
    found: dict[str, str] = {}
    for each in reversed([base for base in kind.__mro__ if issubclass(base, Options)]):
        _, _, attributes = (inspect.getdoc(each) or "").partition("\nAttributes:\n")
        found |= {name: " ".join(text.split()) for name, text in _ENTRY.findall(attributes)}
    return found


def _describe(schema: dict[str, Any], kind: type[Options]) -> None:
    schema["description"] = (inspect.getdoc(kind) or "").partition("\n")[0]
    docs = entry_docs(kind)
    for name, entry in schema["properties"].items():
        entry.pop("title", None)
        if "patternProperties" in entry:  # Pydantic leaves other names open, and refuses them
            entry["additionalProperties"] = False
        if name in docs:
            entry["description"] = docs[name]
