"""What `lwc compile` and `lwc lower` say is next can be done with what they made."""

import shlex

import pytest


@pytest.mark.parametrize(
    ("target", "size", "then", "refused"),
    [
        ("x86-64-v3", "a library of", "lwc bench {} --against MODEL.onnx, lwc inspect {}", ""),
        ("rpi4", "a library of", "lwc bench {} --via ssh://USER@HOST, lwc inspect {}", "--via ssh://USER@HOST"),
        ("cortex-m4", "bytes of flash, with", "lwc inspect {}; ", "--via qemu runs it on an emulated board"),
        ("apple-m1", "a library of", "lwc inspect {}; ", "which this machine is not: run it there"),
        ("c", "C source of", "lwc inspect {}; ", "is C source"),
    ],
)
def test_what_is_next_fits_the_target(lwc, mlp, tmp_path, target, size, then, refused):
    directory = tmp_path / "of mine" / "net.lwc"
    directory.parent.mkdir()
    done = lwc("lower", mlp, "--target", target, "-o", directory)
    assert done.code == 0, done.err
    (line,) = [line for line in done.out.splitlines() if line.startswith("next: ")]
    assert line.startswith("next: " + then.format(*[shlex.quote(str(directory))] * 2))
    assert size in done.out
    if "README.md" in line:
        assert (directory / "README.md").exists()
    assert refused in lwc("bench", directory).err
