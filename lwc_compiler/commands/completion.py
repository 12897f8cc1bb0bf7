"""`lwc completion`: what makes a shell complete commands, options and targets."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from lwc_compiler.commands.parts import Command


@click.command(cls=Command)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Prints what makes SHELL complete the command line of lwc.

    For bash, put `eval "$(lwc completion bash)"` into ~/.bashrc; for zsh, the same into ~/.zshrc; for fish, write it to
    ~/.config/fish/completions/lwc.fish.
    """
    kind = get_completion_class(shell)
    assert kind is not None
    script = kind(ctx.find_root().command, {}, "lwc", "_LWC_COMPLETE").source()
    # click's script for fish ends a description at its first comma.
    click.echo(script.replace('(string split ","', '(string split --max 1 ","'))
