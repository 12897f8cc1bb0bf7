"""The commands that take a whole recipe, and `lwc gate`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

import lwc_compiler as lwc
from lwc_compiler.commands.output import print_json, show_build, show_gates
from lwc_compiler.commands.parts import (
    DATA,
    PATH,
    Command,
    Group,
    allow_code_option,
    directory_argument,
    force_option,
    json_option,
    model_argument,
    no_cache_option,
    sarif_option,
    via_option,
    workdir_option,
)
from lwc_compiler.commands.progress import training_progress
from lwc_compiler.commands.report import refusals_as_sarif
from lwc_compiler.gates import raise_failed

recipe_argument = click.argument("recipe", metavar="RECIPE.toml", type=PATH)


@click.command(cls=Command)
@recipe_argument
@click.option(
    "-o", "--output", type=PATH, metavar="DIR", help="Directory to write.  [default: outputs.directory, <model>.build]"
)
@workdir_option
@sarif_option
@allow_code_option
@no_cache_option
@force_option
@json_option
def build(
    recipe: Path,
    output: Path | None,
    workdir: Path | None,
    sarif: Path | None,
    allow_code: bool,
    no_cache: bool,
    force: bool,
    as_json: bool,
) -> None:
    """Does a whole run: everything that RECIPE.toml says.

    Its model is pruned and retrained once, compiled for every target, measured, and all gates are judged. A gate that
    fails takes nothing away: the results are written, and then the command ends with the exit code of the gate's kind.
    """
    asked = lwc.load_build_recipe(recipe, allow_code=allow_code)
    with refusals_as_sarif(sarif, Path(asked.model), force=force), training_progress() as progress:
        made = lwc.build(asked, output, force=force, cache=not no_cache, workdir=workdir, progress=progress)
    if as_json:
        print_json(made.report)
    else:
        show_build(made)
    made.check()


@click.group("recipe", cls=Group)
def recipe_group() -> None:
    """Writes a recipe for a model, checks one, or prints its schema."""


@recipe_group.command()
@recipe_argument
@click.option("-o", "--output", type=PATH, metavar="DIR", help="As for `build`.  [default: outputs.directory]")
@allow_code_option
@force_option
@json_option
def check(recipe: Path, output: Path | None, allow_code: bool, force: bool, as_json: bool) -> None:
    """Checks RECIPE.toml without working on the model.

    What `build` would refuse is refused here, in seconds: entries, the model's operators, targets, compilers, data and
    the place of the output.
    """
    from lwc_compiler.recipe.file import load_build_recipe
    from lwc_compiler.recipe.run import check_recipe

    checked = check_recipe(load_build_recipe(recipe, allow_code=allow_code), output, force=force)
    if as_json:
        print_json(
            {
                "directory": str(checked.directory),
                "targets": {name: target.target for name, target in checked.targets.items()},
                "recipe": checked.recipe.model_dump(mode="json"),
            }
        )
        return
    targets = ", ".join(f"{name} ({target.target})" for name, target in checked.targets.items())
    click.echo(f"{recipe}: {checked.recipe.model} for {targets}, into {checked.directory}")


@recipe_group.command()
@model_argument
@click.option("-o", "--output", type=PATH, default="recipe.toml", show_default=True, help="File to write.")
@click.option("--train-data", metavar="DATA", help=f"Data to retrain on: {DATA}.  [default: left open]")
@click.option("--val-data", metavar="DATA", help="Data to judge on; the same forms.  [default: left open]")
@click.option(
    "--target",
    "targets",
    multiple=True,
    default=("host",),
    show_default=True,
    help="A target that `lwc targets` lists. Can be given many times.",
)
@force_option
def init(
    model: Path, output: Path, train_data: str | None, val_data: str | None, targets: tuple[str, ...], force: bool
) -> None:
    """Writes a commented recipe for MODEL.

    It names the layers and what the suggested options leave of each; what is not known is left open, as a comment.
    """
    from lwc_compiler.files import check_file
    from lwc_compiler.recipe.init import new_recipe

    check_file(output, force=force)
    text = new_recipe(model, output, train_data=train_data, val_data=val_data, targets=targets)
    output.write_text(text, encoding="utf-8")
    click.echo(f"wrote {output}\nnext: lwc recipe check {output}, lwc build {output}")


@recipe_group.command()
def schema() -> None:
    """Prints the JSON schema of a recipe, for editors."""
    from lwc_compiler.recipe.schema import recipe_schema

    print_json(recipe_schema())


@click.command(cls=Command, parts=("gates",))
@directory_argument
@click.option(
    "--against", type=PATH, metavar="MODEL.onnx", help="The model before pruning, for all gates but those on bytes."
)
@click.option("--data", metavar="DATA", help=f"Data for the gates on accuracy: {DATA}.  [default: none]")
@via_option
@json_option
def gate(
    directory: Path, against: Path | None, data: str | None, via: str | None, as_json: bool, **options: Any
) -> None:
    """Compares the artifact DIRECTORY with limits.

    All gates are judged and shown; when one fails, the command ends with the exit code of its kind.
    """
    from lwc_compiler.commands.options import part_of
    from lwc_compiler.recipe.run import gate_artifact

    results = gate_artifact(directory, part_of(options, "gates"), against=against, data=data, via=via)
    if as_json:
        print_json([asdict(result) for result in results])
    else:
        show_gates(results)
    raise_failed(results)
