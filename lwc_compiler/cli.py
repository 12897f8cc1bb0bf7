"""The command line: parse, call the API, print. Results go to stdout; progress, logs and errors to stderr."""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

import lwc_compiler as lwc
from lwc_compiler import cli_options

if TYPE_CHECKING:
    from lwc_compiler.training.progress import Progress

INTERRUPTED = 130  # 128 + SIGINT
TERMINATED = 143  # 128 + SIGTERM
DEFECT = 70  # EX_SOFTWARE of sysexits.h

logger = logging.getLogger("lwc_compiler")


class _Command(click.Command):
    """A command with the options every command has, and the recipe options of `parts`.

    Recipe options come from the recipe's classes, which take a while to import: they are made when they are needed.
    """

    def __init__(self, *args: Any, parts: Sequence[str] = (), **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._parts = tuple(parts)
        self.params += [
            click.Option(["-v", "--verbose"], is_flag=True, expose_value=False, callback=_verbose, help="Log more."),
            click.Option(
                ["--debug"], is_flag=True, expose_value=False, callback=_debug, help="Show the traceback of an error."
            ),
        ]

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        if self._parts:
            self.params += cli_options.recipe_options(self._parts)
            self._parts = ()
        return super().get_params(ctx)


class _Group(click.Group):
    command_class = _Command


def _verbose(ctx: click.Context, _: click.Parameter, value: bool) -> None:
    logger.setLevel(logging.DEBUG if value else logging.INFO)


def _debug(ctx: click.Context, _: click.Parameter, value: bool) -> None:
    ctx.find_root().obj["debug"] |= value


def _version(ctx: click.Context, _: click.Parameter, value: bool) -> None:
    if value:
        from lwc_compiler.runtime.artifact import tool_versions

        tools = ", ".join(f"{tool} {version}" for tool, version in tool_versions().items())
        click.echo(f"lwc {lwc.__version__} ({tools})")
        ctx.exit()
