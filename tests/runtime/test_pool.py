"""The thread pool that ships in every artifact, on its own: a C program runs many steps on it."""

import subprocess
from importlib import resources
from pathlib import Path

import pytest

from lwc_compiler.codegen.link import find_compiler

STRESS = Path(__file__).with_name("pool_stress.c")


def stress(folder, threads, *flags):
    command = [
        *find_compiler().command,
        "-std=c11",
        "-D_DEFAULT_SOURCE",
        "-O2",
        "-pthread",
        "-Wall",
        "-Wextra",
        f"-DTHREADS={threads}",
    ]
    with resources.as_file(resources.files("lwc_compiler.runtime") / "c") as sources:
        subprocess.run([*command, *flags, f"-I{sources}", STRESS, "-o", folder / "stress"], check=True)
    return subprocess.run([folder / "stress"], capture_output=True, text=True, check=False)


@pytest.mark.parametrize("threads", [1, 2, 5, 64])
def test_every_tile_is_computed_once_and_steps_follow_each_other(tmp_path, threads):
    done = stress(tmp_path, threads)
    assert done.stdout.startswith("0 wrong"), done


@pytest.mark.parametrize("threads", [2, 8])
def test_no_data_race_that_a_sanitizer_sees(tmp_path, threads):
    done = stress(tmp_path, threads, "-fsanitize=thread", "-g")
    assert done.returncode == 0, done.stderr[-3000:]
