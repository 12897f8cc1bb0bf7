"""Every command in the documents runs, in the order of its page; `CANNOT_RUN` says why one does not.

A page gets a folder of its own that looks like a clone, with a small model `model.onnx` and its data, and the folder
that `lwc demo` makes. What is run is what is in blocks marked `sh`.
"""

import re
import shutil

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from lwc_compiler import demo
from lwc_compiler.training import child, job, loop
from tests.shell import Shell
from tests.test_docs import DOCUMENTS, ROOT, SHELL_BLOCK, name

PAGES = [path for path in DOCUMENTS if SHELL_BLOCK.search(path.read_text(encoding="utf-8"))]

# What begins so is left out, for this reason.
CANNOT_RUN = {
    "pip install ": "needs the package index",
    "make ": "makes an environment, and runs these tests or for hours; test_docs.py checks the names of the targets",
    ".venv/bin/ruff ": "an environment that `make` makes",
    "docker ": "needs Docker and the package index",
    "lwc demo ": "a minute of training, which test_demo.py shortens; its folder is there",
    "lwc reproduce ": "hours of training on data from the network; tests/reproduce has short ones",
    "python -m benchmarks.": "minutes to hours; tests/benchmarks starts each",
    "LWC_ARTIFACT=": "serves until it is stopped; tests/test_serving.py asks the service",
    "python3 lwc-gpu.pyz ": "needs a GPU",
    "lwc compile model.onnx --target h200 --tune ": "needs a GPU; tests/codegen/test_device_tune.py has a driver",
    "lwc compile model.onnx --target a100 --tune ": "needs a GPU; tests/codegen/test_device_tune.py has a driver",
    "lwc run model.lwc --input image=image.npy --output-dir results --via ssh:": "needs a board",
    "lwc bench model.lwc --via ssh:": "needs a board",
    "lwc gate small.lwc --against ": "fails where a network is not so much faster; tests/test_gates.py has all gates",
    'eval "$(lwc completion zsh)"': "for another shell; tests/commands/test_cli_completion.py has it",
    "lwc completion fish ": "for another shell; tests/commands/test_cli_completion.py has it",
    "$CC ": "needs the compiler of a board's vendor; tests/codegen/test_bundle.py builds examples for boards",
}

# Programs that commands with these words need.
TOOLS = (
    ("--via qemu", "qemu-system-arm"),
    ("--via qemu", "qemu-aarch64-static"),
    ("cc -", "cc"),
    ("jq ", "jq"),
)

INIT = "lwc recipe init model.onnx --train-data train.npz --val-data validation.npz"

# What a page takes for granted, as commands.
BEFORE = {
    "README.md": "lwc compile model.onnx -o main.lwc",
    "docs/artifact.md": "lwc compile model.onnx",
    "docs/ci.md": INIT,
    "docs/cli.md": f"mkdir build; lwc compile model.onnx; lwc compile model.onnx -o small.lwc; {INIT}",
    "docs/recipes.md": "lwc compile model.onnx -o small.lwc",
    "docs/reports.md": "lwc compile model.onnx; lwc compile model.onnx --sparsity 0.5 -o main.lwc",
    "docs/retraining.md": "lwc prune model.onnx -o pruned.onnx --sparsity 0.9",
}

# For `lwc compile --recipe`.
OPTIONS = """
train_data = "train.npz"
val_data = "validation.npz"
prune = { sparsity = 0.8 }
retrain = { epochs = 2 }
lower = { target = "x86-64-v3" }
"""
# A whole C program in a page; the page builds it as main.c or application.c.
PROGRAM = re.compile(r"```c\n(#include <stdio.h>.*?)```", re.DOTALL)
# Of the demo's images, what is enough to learn from.
IMAGES = 480


def lines_of(text):
    """What stands in the shell blocks of a page, a list of lines for each; lines that go on are one."""
    return [block.replace("\\\n", " ").splitlines() for block in SHELL_BLOCK.findall(text)]


def cannot_run(line):
    return [reason for start, reason in CANNOT_RUN.items() if line.startswith(start)]


@pytest.fixture(scope="module")
def shell(tmp_path_factory):
    made = Shell(tmp_path_factory.mktemp("shell"))
    yield made
    made.close()


@pytest.fixture(scope="module")
def training_here():
    """Trains in this process instead of a child, whose start takes longer than such a training."""

    def train_job(directory, progress):
        loop.train(job.read_job(directory), progress or (lambda _: None))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(child, "run_worker", train_job)
        yield


@pytest.fixture(scope="module")
def prepared(tmp_path_factory, training_here):
    """The files that pages speak of."""
    folder = tmp_path_factory.mktemp("prepared")
    generator = np.random.default_rng(0)

    def normal(*shape):
        return generator.standard_normal(shape).astype(np.float32)

    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["image", "conv1.weight"], ["maps"], name="conv1", pads=[1, 1, 1, 1]),
            helper.make_node("Relu", ["maps"], ["features"], name="relu1"),
            helper.make_node("Flatten", ["features"], ["flat"], name="flatten"),
            helper.make_node("Gemm", ["flat", "fc1.weight"], ["hidden"], name="fc1", transB=1),
            helper.make_node("Relu", ["hidden"], ["active"], name="relu2"),
            helper.make_node("Gemm", ["active", "fc2.weight"], ["scores"], name="fc2", transB=1),
        ],
        "model",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", 1, 8, 8])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["n", 4])],
        [
            numpy_helper.from_array(0.2 * normal(*shape), weight)
            for weight, shape in {"conv1.weight": (4, 1, 3, 3), "fc1.weight": (32, 256), "fc2.weight": (4, 32)}.items()
        ],
    )
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), folder / "model.onnx"
    )
    for part, samples in {"train": 96, "validation": 32}.items():
        np.savez(folder / f"{part}.npz", image=normal(samples, 1, 8, 8), labels=generator.integers(0, 4, samples))
    np.save(folder / "images.npy", normal(32, 1, 8, 8))
    np.save(folder / "image.npy", normal(1, 1, 8, 8))
    (folder / "options.toml").write_text(OPTIONS, encoding="utf-8")
    for directory in ("benchmarks", "examples", "lwc_compiler"):
        (folder / directory).symlink_to(ROOT / directory)
    images = demo.load_digits()
    fewer = {part: array[:IMAGES] if part.startswith("train") else array for part, array in images.items()}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo, "load_digits", lambda: fewer)
        patch.setattr(demo, "DENSE_EPOCHS", 10)
        patch.setattr(demo, "ROUNDS", ((0.6, 2),))
        demo.run_demo(folder / "demo-output")
    return folder


@pytest.mark.parametrize("path", PAGES, ids=name)
def test_commands_run(path, shell, prepared, tmp_path):
    directory = tmp_path / "clone"
    shutil.copytree(prepared, directory, symlinks=True)
    text = path.read_text(encoding="utf-8")
    source = PROGRAM.search(text) or PROGRAM.search((ROOT / "docs" / "artifact.md").read_text(encoding="utf-8"))
    for file in ("main.c", "application.c"):
        (directory / file).write_text(source[1], encoding="utf-8")
    blocks = lines_of(text)
    commands = [[line for line in block if not cannot_run(line)] for block in blocks]
    if not any(commands):
        return
    for words, program in TOOLS:
        if shutil.which(program) is None and any(words in line for lines in commands for line in lines):
            pytest.skip(f"{program} is not installed")
    # A block is a shell of its own: a page is not read with `cd` in mind.
    for lines in [[BEFORE.get(name(path), "")], *commands]:
        code, output = shell.run("\n".join(lines), directory)
        assert code == 0, "\n".join([*lines, output])


@pytest.mark.parametrize("start", CANNOT_RUN)
def test_what_cannot_run_is_in_a_page(start):
    """An entry that nothing needs any more would hide a command to come."""
    lines = [line for path in PAGES for block in lines_of(path.read_text(encoding="utf-8")) for line in block]
    assert any(line.startswith(start) for line in lines)


def test_a_failing_command_is_noticed(shell, tmp_path):
    code, output = shell.run("lwc inspect missing.onnx | cat\necho not reached", tmp_path)
    assert code != 0
    assert "missing.onnx" in output
    assert "not reached" not in output
