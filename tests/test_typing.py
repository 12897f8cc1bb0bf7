"""What type checkers see of the package, which has `py.typed`."""

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("mypy", reason="mypy is not installed")

ROOT = Path(__file__).resolve().parent.parent

SCRIPT = """
import array
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from typing_extensions import assert_type

import lwc_compiler as lwc

recipe = lwc.Recipe(prune=lwc.PruneOptions(sparsity=0.9))
assert_type(lwc.compile("model.onnx", Path("model.lwc"), recipe), lwc.Artifact)
assert_type(lwc.prune("model.onnx", lwc.PruneOptions()), lwc.Model)
assert_type(lwc.load("model.lwc", via="qemu"), lwc.Network)
with lwc.load("model.lwc", threads=2) as session:
    assert_type(session, lwc.Session)
    x = np.zeros((1, 3), np.float32)
    outputs = session.run({"x": x, "array": array.array("f"), "list": [[1.0]]}, {"y": x})
    assert_type(outputs["y"], NDArray[np.generic])
    session.run({"x": None})  # an error
    session.run(x)  # an error
    session.runs  # an error
lwc.load(3)  # an error
"""


def test_uses_of_the_public_names(tmp_path):
    path = tmp_path / "script.py"
    path.write_text(SCRIPT, encoding="utf-8")
    # With the cache of `make types`, where that was run before.
    command = [sys.executable, "-m", "mypy", "--config-file", str(ROOT / "pyproject.toml"), str(path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    lines = SCRIPT.splitlines()
    complaints = [line.split(":", 3) for line in done.stdout.splitlines() if ": error:" in line]
    wrong = [int(number) for _, number, *_ in complaints]
    assert wrong == [i for i, line in enumerate(lines, 1) if line.endswith("# an error")], done.stdout + done.stderr
