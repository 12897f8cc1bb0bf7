"""The documents are true where a test can tell: options, commands, links, exit codes."""

import re
import shlex
import subprocess
from pathlib import Path

import click
import pytest

import lwc_compiler
from lwc_compiler import errors
from lwc_compiler.cli import cli

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("examples/**/*.md")])
SHELL_BLOCK = re.compile(r"```sh\n(.*?)```", re.DOTALL)
INLINE_COMMAND = re.compile(r"`(lwc [a-z]+ [^`]*)`")
LINK = re.compile(r"\[[^\]]*\]\(([^)]+)\)")
HEADING = re.compile(r"^#+ (.*)$", re.MULTILINE)
PLACEHOLDERS = ("MODEL", "DIRECTORY", "PATH", "COMMAND")


def name(path):
    return str(path.relative_to(ROOT))


def command_lines(text):
    """The lines of shell blocks, continued ones joined, and what is between backticks and begins with `lwc`."""
    for block in SHELL_BLOCK.findall(text):
        yield from block.replace("\\\n", " ").splitlines()
    names = {f"lwc {command}" for command, _ in commands()}
    for match in INLINE_COMMAND.findall(text):
        if match not in names and not match.split()[2].startswith(PLACEHOLDERS):
            yield match


def lwc_commands(text):
    """The arguments of every `lwc` call in a document."""
    for line in command_lines(text):
        words = shlex.split(line, comments=True)
        if words and words[0] == "lwc":
            ends = [i for i, word in enumerate(words) if word in ("|", "||", "&&", ">")]
            yield words[1 : ends[0] if ends else None]


def command_of(arguments):
    """The command that a line of arguments calls, by the words of its name, and what is left for it."""
    words, command = [], cli
    while isinstance(command, click.Group):
        context = click.Context(command, info_name="lwc")
        name, command, arguments = command.resolve_command(context, arguments)
        words.append(name)
    return " ".join(words), command, arguments


def commands(group=cli, words=""):
    """Every command that is no group, by the words of its name."""
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from commands(command, f"{words}{name} ")
        else:
            yield f"{words}{name}", command


def options(command):
    params = command.get_params(click.Context(command))
    return [option for option in params if isinstance(option, click.Option) and "--help" not in option.opts]


def section(text, heading):
    return text.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]


@pytest.mark.parametrize("path", DOCUMENTS, ids=name)
def test_every_lwc_call_is_accepted(path):
    for arguments in lwc_commands(path.read_text(encoding="utf-8")):
        if arguments not in (["--version"], ["--help"]):
            name, command, rest = command_of(arguments)
            command.make_context(name, rest, obj={"debug": False})


def test_documents_hold_commands_to_check():
    assert len(list(lwc_commands((ROOT / "README.md").read_text(encoding="utf-8")))) >= 5
    assert len(list(lwc_commands((ROOT / "docs" / "cli.md").read_text(encoding="utf-8")))) >= 50


@pytest.mark.parametrize("command", list(dict(commands())))
def test_every_option_is_explained_with_an_example(command):
    text = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    # Small commands of a group share a section.
    assert f"\n## lwc {command}\n" in text or f"\n## lwc {command.split()[0]}\n" in text
    examples = list(lwc_commands(text))
    assert [arguments for arguments in examples if command_of(arguments)[0] == command]
    used = {word for arguments in examples for word in arguments}
    for option in options(dict(commands())[command]):
        long = option.opts[-1]
        assert f"`{long}`" in text or re.search(rf"`{long} [A-Z]", text), f"{command} {long} is not explained"
        assert used & {*option.opts, *option.secondary_opts}, f"{command} {long} has no example"


@pytest.mark.parametrize("command", ["compile", "prune", "retrain", "compact", "lower", "run", "bench", "inspect"])
def test_own_options_are_in_the_commands_section(command):
    text = section((ROOT / "docs" / "cli.md").read_text(encoding="utf-8"), f"lwc {command}")
    for option in cli.commands[command].params:
        if isinstance(option, click.Option) and option.name in ("output", "force", "as_json", "threads", "against"):
            assert option.opts[-1] in text, f"{command} {option.opts[-1]}"


@pytest.mark.parametrize("path", DOCUMENTS, ids=name)
def test_relative_links_lead_somewhere(path):
    for link in LINK.findall(path.read_text(encoding="utf-8")):
        if link.startswith(("http:", "https:")):
            continue
        file, _, anchor = link.partition("#")
        target = (path.parent / file).resolve() if file else path
        assert target.exists(), link
        if anchor:
            headings = HEADING.findall(target.read_text(encoding="utf-8"))
            anchors = {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
            assert anchor in anchors, link


def test_make_targets_in_the_documents_exist():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    for path in DOCUMENTS:
        for line in command_lines(path.read_text(encoding="utf-8")):
            words = shlex.split(line, comments=True)
            if words[:1] == ["make"]:
                assert {word for word in words[1:] if "=" not in word} <= targets, line


def test_exit_codes_are_documented():
    text = (ROOT / "docs" / "errors.md").read_text(encoding="utf-8")
    for error in (errors.LwcError, *errors.LwcError.__subclasses__(), *errors.GateError.__subclasses__()):
        assert re.search(rf"^\| {error.exit_code} \| `{error.__name__}` \|", text, re.MULTILINE), error


def test_changelog_knows_this_version():
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert "## Unreleased" in text or f"## {lwc_compiler.__version__}" in text


def test_shell_examples_parse():
    for script in [*ROOT.glob("examples/**/*.sh"), ROOT / ".ci" / "run"]:
        subprocess.run(["bash", "-n", script], check=True)
