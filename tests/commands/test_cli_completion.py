"""Shells complete commands, options, choices and targets."""

import os
import re
import shutil
import subprocess
import sys

import pytest


@pytest.fixture
def wrapper(tmp_path):
    """`lwc` as a program, which completions start."""
    path = tmp_path / "lwc"
    path.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m lwc_compiler "$@"\n')
    path.chmod(0o755)
    return path


ASKED = pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("lwc comp", ["compile", "compact", "completion"]),
        ("lwc compile --spars", ["--sparsity"]),
        ("lwc compile m.onnx --structure 4", ["4x1", "4:8"]),
        ("lwc lower m.onnx --target rpi", ["rpi3", "rpi4", "rpi5"]),
        ("lwc completion ''", ["bash", "zsh", "fish"]),
    ],
)


@ASKED
def test_bash(wrapper, words, expected):
    script = (
        f'eval "$(lwc completion bash)"; COMP_WORDS=({words}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)); '
        '_lwc_completion lwc; printf "%s\\n" "${COMPREPLY[@]}"'
    )
    environment = os.environ | {"PATH": f"{wrapper.parent}:{os.environ['PATH']}"}
    done = subprocess.run(["bash", "--norc", "-c", script], env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert sorted(set(done.stdout.split()) & set(expected)) == sorted(expected)
    assert all(word.startswith(words.split()[-1].strip("'")) for word in done.stdout.split())


def asked_of(shell, script, wrapper):
    """The lines that a shell prints for a script, without the configuration of whoever runs it."""
    if shutil.which(shell) is None:
        pytest.skip(f"needs {shell}")
    options = {"zsh": ["--no-rcs"], "fish": ["--no-config"]}[shell]
    environment = os.environ | {"PATH": f"{wrapper.parent}:{os.environ['PATH']}"}
    done = subprocess.run([shell, *options, "-c", script], env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()


@ASKED
def test_zsh(wrapper, words, expected):
    """Outside of its line editor: what the script hands to zsh's functions for completion is printed."""
    script = (
        'compdef() { completer=$1; }; eval "$(lwc completion zsh)"; '
        '_describe() { print -l -- "${completions_with_descriptions[@]}"; }; '
        'compadd() { print -l -- "${completions[@]}"; }; '
        f"words=({words}); CURRENT=${{#words}}; $completer"
    )
    found = [
        line if words.split()[-1][0].isdigit() else line.partition(":")[0] for line in asked_of("zsh", script, wrapper)
    ]
    assert set(expected) <= set(found)
    assert all(word.startswith(words.split()[-1].strip("'")) for word in found)


@ASKED
def test_fish(wrapper, words, expected):
    script = f'lwc completion fish | source; complete -C "{words}"'.replace("''", "")
    found = [line.partition("\t")[0] for line in asked_of("fish", script, wrapper)]
    assert set(expected) <= set(found)
    assert all(word.startswith(words.split()[-1].strip("'")) for word in found)


def test_fish_shows_whole_descriptions(wrapper):
    script = 'lwc completion fish | source; complete -C "lwc lower m.onnx --target rpi4"'
    assert asked_of("fish", script, wrapper) == ["rpi4\tRaspberry Pi 4, 64-bit Linux"]


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_ask_and_are_answered(lwc, wrapper, shell):
    """What their scripts call: each names the variable that makes lwc answer instead of run."""
    script = lwc("completion", shell)
    assert script.code == 0
    assert f"_LWC_COMPLETE={shell}_complete" in script.out
    word = {"zsh": "1", "fish": "pac"}[shell]
    asked = {"_LWC_COMPLETE": f"{shell}_complete", "COMP_WORDS": "lwc pac", "COMP_CWORD": word}
    done = subprocess.run([wrapper], env=os.environ | asked, capture_output=True, text=True, check=True)
    assert re.split(r"[\n,\t]", done.stdout)[:3] == ["plain", "pack", "Packs MODEL into one small file for shipping."]


def test_a_shell_that_is_none(lwc):
    assert lwc("completion", "tcsh").code == 2
