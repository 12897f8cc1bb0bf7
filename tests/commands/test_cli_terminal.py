"""What reaches a pipe is plain text; what reaches a terminal has colours unless NO_COLOR asks for none."""

import os
import pty
import re
import subprocess
import sys

import pytest

COLOUR = re.compile(r"\x1b\[(?:\d+;)*(?:3|4|9|10)[0-8](?:;\d+)*m")
CONTROL = re.compile(r"[^\n\x20-\x7e\x80-\U0010ffff]|[\x80-\x9f]")
TRAINING = (
    "import time\n"
    "from lwc_compiler.commands.progress import training_progress\n"
    "from lwc_compiler.training.progress import Progress\n"
    "with training_progress() as progress:\n"
    "    progress(Progress(1, 2, 3, 5, 0.5, 0.25, 8.0))\n"
    "    time.sleep(0.2)\n"
)


def environment(**changes):
    """Without what asks for colours, or for none, here."""
    asks = ("NO_COLOR", "FORCE_COLOR", "CLICOLOR_FORCE", "TTY_COMPATIBLE", "TTY_INTERACTIVE")
    return {name: value for name, value in os.environ.items() if name not in asks} | changes


def on_a_terminal(command, **changes):
    """What a program writes to a terminal of 80 columns."""
    leader, follower = pty.openpty()
    variables = environment(TERM="xterm-256color", COLUMNS="80", **changes)
    with subprocess.Popen(command, stdin=follower, stdout=follower, stderr=follower, env=variables) as process:
        os.close(follower)
        written = b""
        while True:
            try:
                chunk = os.read(leader, 4096)
            except OSError:  # Linux says so where the last writer has gone
                break
            if not chunk:
                break
            written += chunk
    os.close(leader)
    assert process.returncode == 0, written
    return written.decode()


def test_pipes_get_plain_text(mlp, tmp_path):
    """Tables, what a command says when it is done, an error, and the progress of a training."""
    prune = ("prune", mlp, "-o", tmp_path / "pruned.onnx", "--sparsity", "0.5")
    calls = [(("targets",), 0), (("inspect", mlp), 0), (prune, 0), (("inspect", tmp_path / "no"), 3)]
    commands = [([sys.executable, "-m", "lwc_compiler", *map(str, call)], code) for call, code in calls]
    logged = f"import logging\nlogging.basicConfig(level=logging.INFO)\n{TRAINING}"
    for command, code in (*commands, ([sys.executable, "-c", logged], 0)):
        done = subprocess.run(command, env=environment(TERM="xterm-256color"), capture_output=True, text=True)
        assert done.returncode == code, done.stderr
        assert done.stdout or done.stderr
        assert CONTROL.findall(done.stdout + done.stderr) == []


@pytest.mark.parametrize("no_color", ["", "1"])
def test_no_color_is_heard(no_color):
    """An empty NO_COLOR asks for nothing (https://no-color.org)."""
    shown = on_a_terminal([sys.executable, "-c", TRAINING], NO_COLOR=no_color)
    assert "epoch 1/2, step 3/5, loss 0.5" in shown
    assert bool(COLOUR.search(shown)) == (no_color == "")
