"""Recipes as TOML files: paths, environment variables, and what a file may not do by itself.

- A path is relative to the folder of the file.
- `${NAME}` in a text is the value of an environment variable, `$$` is a dollar.
- A file may come from someone else: one that names code (`module:function`, or the command of a compiler) is refused
  unless the caller allows it.
"""

from __future__ import annotations

import os
import string
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

from lwc_compiler.errors import OptionError
from lwc_compiler.recipe.build import BuildRecipe
from lwc_compiler.recipe.options import Recipe, build

if sys.version_info >= (3, 11):
    import tomllib
else:  # pragma: no cover
    import tomli as tomllib  # type: ignore[import-not-found,unused-ignore]

_Kind = TypeVar("_Kind", bound=Recipe)
_DATA = (("train_data",), ("val_data",))
_PATHS = (("model",), ("gates", "baseline"), ("outputs", "directory"))


def load_recipe(path: str | Path, *, allow_code: bool = False) -> Recipe:
    """Reads what `lwc compile` takes from a TOML file.

    Args:
        path: the file; paths in it are relative to its folder.
        allow_code: whether it may name code that lwc then runs: `module:function`, or a compiler's command.

    Raises:
        OptionError: the file is missing, is not TOML, holds an unknown key or a bad value, names an environment
            variable that is not set, or names code and must not.
    """
    return _load(Recipe, Path(path), allow_code)


def load_build_recipe(path: str | Path, *, allow_code: bool = False) -> BuildRecipe:
    """Reads what `lwc build` takes from a TOML file; arguments and errors are those of `load_recipe`."""
    return _load(BuildRecipe, Path(path), allow_code)


def _load(kind: type[_Kind], path: Path, allow_code: bool) -> _Kind:
    where = f"recipe {path}"
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise OptionError(f"{where}: {error}") from None
    values = _expanded(values, where)
    if kind is Recipe and (more := sorted(values.keys() & (BuildRecipe.model_fields.keys() - Recipe.model_fields))):
        raise OptionError(f"{where}: '{more[0]}' is for a whole run: run the file with `lwc build {path}`")
    _resolve(values, path.parent)
    recipe: _Kind = build(kind, values, where)
    if not allow_code and (code := next(_code(recipe), None)):
        raise OptionError(
            f"{where}: {code} would run code that is not lwc's; look at it, and allow it with --allow-code "
            "(allow_code=True in Python)"
        )
    return recipe


def _expanded(value: Any, where: str) -> Any:
    """`value` with environment variables in all its texts; `where` grows into the path of the entry."""
    if isinstance(value, dict):
        inner = f"{where}." if ": " in where else f"{where}: "
        return {key: _expanded(entry, f"{inner}{key}") for key, entry in value.items()}
    if isinstance(value, list):
        return [_expanded(entry, where) for entry in value]
    if not isinstance(value, str):
        return value
    try:
        return string.Template(value).substitute(os.environ)
    except KeyError as error:
        raise OptionError(f"{where}: the environment variable {error.args[0]} of {value!r} is not set") from None
    except ValueError:
        raise OptionError(
            f"{where}: the dollar in {value!r} begins no name: an environment variable is ${{NAME}}, a dollar $$"
        ) from None


def _resolve(values: dict[str, Any], folder: Path) -> None:
    """Makes the paths among `values` relative to the working directory; what is no text is refused later."""
    from lwc_compiler.training.data import is_function

    for *tables, key in (*_DATA, *_PATHS):
        table: Any = values
        for name in tables:
            table = table.get(name) if isinstance(table, dict) else None
        if isinstance(table, dict) and isinstance(text := table.get(key), str) and text:
            path = str(folder / text)
            if not ((key,) in _DATA and is_function(text) and is_function(path)):
                table[key] = path


def _code(recipe: Recipe) -> Iterator[str]:
    """The entries that name code."""
    from lwc_compiler.training.data import is_function

    for (name,) in _DATA:
        text = getattr(recipe, name)
        if text is not None and is_function(text):
            yield f"{name} = {text!r}"
    if recipe.retrain is not None and recipe.retrain.augment is not None:
        yield f"retrain.augment = {recipe.retrain.augment!r}"
    if recipe.lower.cc is not None:
        yield f"lower.cc = {recipe.lower.cc!r}"
    if isinstance(recipe, BuildRecipe):
        for name, target in recipe.targets.items():
            if target.cc is not None:
                yield f"targets.{name}.cc = {target.cc!r}"
