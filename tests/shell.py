"""Runs shell commands as a reader would type them, `lwc` being this process: that saves its start for every command.

`lwc` is a program that hands its arguments and its open files over, and waits for the exit code. Two things differ from
what a user gets: a command replaces what is there (`--force`), because a page may write the same folder twice, and
trainings and measurements are short.
"""

import contextlib
import json
import os
import select
import socket
import subprocess
import sys
from pathlib import Path

import click

from lwc_compiler.cli import cli, main

CLIENT = """#!{python} -SE
import json, os, socket, sys
server = socket.socket(socket.AF_UNIX)
server.connect({address!r})
socket.send_fds(server, [json.dumps([os.getcwd(), sys.argv[1:]]).encode()], [1, 2])
sys.exit(int(server.recv(16)))
"""
LONGEST_REQUEST = 65536


class Shell:
    """Bash with `lwc`, `python` and what else is in their environment; `folder` is for its own files."""

    def __init__(self, folder: Path) -> None:
        address = folder / "socket"
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(address))
        self._listener.listen()
        programs = folder / "bin"
        programs.mkdir()
        client = programs / "lwc"
        client.write_text(CLIENT.format(python=sys.executable, address=str(address)), encoding="utf-8")
        client.chmod(0o755)
        path = os.pathsep.join([str(programs), str(Path(sys.executable).parent), os.environ["PATH"]])
        self._environment = {**os.environ, "PATH": path}

    def close(self) -> None:
        self._listener.close()

    def run(self, script: str, directory: Path) -> tuple[int, str]:
        """The exit code of the first command that fails, or 0, and what was printed."""
        log = directory / ".log"
        with log.open("w", encoding="utf-8") as output:
            bash = subprocess.Popen(
                ["bash", "-eu", "-o", "pipefail", "-c", script],
                cwd=directory,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )
            while bash.poll() is None:
                if select.select([self._listener], [], [], 0.02)[0]:
                    self._serve()
        return bash.returncode, log.read_text(encoding="utf-8")

    def _serve(self) -> None:
        connection, _ = self._listener.accept()
        with connection:
            request, files, _, _ = socket.recv_fds(connection, LONGEST_REQUEST, 2)
            directory, arguments = json.loads(request)
            before = Path.cwd()
            with (
                os.fdopen(files[0], "w", encoding="utf-8") as out,
                os.fdopen(files[1], "w", encoding="utf-8") as err,
                contextlib.redirect_stdout(out),
                contextlib.redirect_stderr(err),
            ):
                os.chdir(directory)
                try:
                    code = main(shortened(arguments))
                except SystemExit as end:
                    code = end.code or 0
                finally:
                    os.chdir(before)
            connection.sendall(str(code).encode())


def shortened(arguments: list[str]) -> list[str]:
    """The arguments with `--force`, one round, one epoch and a blink of measuring, where the command has them."""
    command: click.Command = cli
    rest = arguments
    while isinstance(command, click.Group) and rest and not rest[0].startswith("-"):
        _, command, rest = command.resolve_command(click.Context(command), rest)
    names = {name for option in command.params for name in option.opts}
    changed = list(arguments)
    for option in {"--rounds", "--epochs"}.intersection(changed):
        changed[changed.index(option) + 1] = "1"
    if "--force" in names:
        changed.append("--force")
    if "--seconds" in names:
        changed += ["--seconds", "0.05"]
    return changed
