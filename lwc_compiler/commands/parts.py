"""What commands are made of: their class, and the arguments and options that several have."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from lwc_compiler.commands.timeout import time_limit


class Command(click.Command):
    """A command with the options that every command has, and the recipe options of `parts`.

    The recipe options come from the recipe's classes, which take a while to import: they are made when they are needed.
    """

    def __init__(self, *args: Any, parts: Sequence[str] = (), **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._parts = tuple(parts)
        self._common: list[click.Parameter] = [
            click.Option(["-v", "--verbose"], is_flag=True, callback=_set_level, expose_value=False, help="Log more."),
            click.Option(
                ["--timeout"],
                type=click.FloatRange(min=0, min_open=True),
                metavar="SECONDS",
                callback=_set_timeout,
                expose_value=False,
                help="End with an error when it takes longer.  [default: none]",
            ),
            click.Option(
                ["--debug"], is_flag=True, callback=_set_debug, expose_value=False, help="Show an error's traceback."
            ),
        ]

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        if self._common:
            if self._parts:
                from lwc_compiler.commands.options import recipe_options

                self.params += recipe_options(self._parts)
            self.params += self._common
            self._common = []
        return super().get_params(ctx)

    def invoke(self, ctx: click.Context) -> Any:
        with time_limit(ctx.ensure_object(dict).get("timeout")):
            return super().invoke(ctx)


class Group(click.Group):
    command_class = Command

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)


class InputFile(click.ParamType[tuple[str, Path]]):
    """`NAME=FILE`."""

    name = "file"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, Path]:
        name, equals, file = value.partition("=")
        if not (name and equals and file):
            self.fail(f"'{value}' is not of the form NAME=FILE.npy", param, ctx)
        return name, Path(file)


def _set_level(_ctx: click.Context, _option: click.Parameter, verbose: bool) -> None:
    logging.getLogger("lwc_compiler").setLevel(logging.DEBUG if verbose else logging.INFO)


def _set_debug(ctx: click.Context, _option: click.Parameter, debug: bool) -> None:
    ctx.ensure_object(dict)["debug"] = debug


def _set_timeout(ctx: click.Context, _option: click.Parameter, seconds: float | None) -> None:
    ctx.ensure_object(dict)["timeout"] = seconds


PATH = click.Path(path_type=Path, readable=False)  # what opens the file says what is wrong with it
model_argument = click.argument("model", type=PATH)
directory_argument = click.argument("directory", type=PATH)
output_file = click.option(
    "-o", "--output", type=PATH, required=True, metavar="FILE", help="ONNX file to write; its directory exists."
)
force_option = click.option("--force", is_flag=True, help="Replace the output when it exists.")
no_cache_option = click.option(
    "--no-cache",
    is_flag=True,
    help="Make everything anew, and keep no result in the cache ($LWC_CACHE, ~/.cache/lwc).",
)
via_option = click.option(
    "--via",
    metavar="WHERE",
    help="Run it elsewhere: qemu, ssh://USER@HOST[:PORT] or adb.  [default: in this process]",
)
allow_code_option = click.option(
    "--allow-code", is_flag=True, help="Let the recipe name code that is then run: module:function, or a compiler."
)
sarif_option = click.option(
    "--sarif",
    type=PATH,
    metavar="FILE",
    help="Write why the model is refused as SARIF 2.1.0, with a result for each node; none when it is not refused.  "
    "[default: do not]",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
DATA = (
    ".npz with one array for each input and `labels`, .npy with the only input, a folder with one folder of images for "
    "each class, or module:function that yields batches"
)
val_data_option = click.option(
    "--val-data",
    metavar="DATA",
    help="Data the best epoch is chosen on; the same forms.  [default: the last tenth of the training data]",
)
workdir_option = click.option(
    "--workdir",
    type=PATH,
    metavar="DIR",
    help="Keep a checkpoint of every epoch here: the same command goes on from the last one.  [default: keep none]",
)
