"""`lwc completion`: what a shell runs to complete commands, options and targets."""

from __future__ import annotations

import click
from click.shell_completion import CompletionItem, get_completion_class

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


def complete_target(_ctx: click.Context, _option: click.Parameter, incomplete: str) -> list[CompletionItem[str]]:
    """Targets and boards whose names begin like this."""
    from lwc_compiler.targets import HOST, all_boards, all_targets

    known = {HOST: "this machine"} | {target.name: target.description for target in (*all_targets(), *all_boards())}
    return [CompletionItem(name, help=text) for name, text in known.items() if name.startswith(incomplete)]
