"""The demo: it keeps its promises, and leaves what it says it leaves."""

import io
import subprocess
import sys
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

import lwc_compiler
from lwc_compiler.demo import LAYERS, lenet_300_100, load_digits, run_demo, to_rich
from lwc_compiler.errors import ArtifactError
from lwc_compiler.runtime.artifact import read_artifact

# One worker of pytest-xdist gets all of them: the demo runs once.
pytestmark = pytest.mark.xdist_group("demo")

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """The result, and the folder it was kept in."""
    folder = tmp_path_factory.mktemp("demo") / "kept"
    return run_demo(folder), folder


def test_prunes_to_a_twelfth_without_loss(demo):
    result, _ = demo
    assert result.weights == 64 * 300 + 300 * 100 + 100 * 10
    assert result.weights / result.kept >= 12
    assert result.dense_accuracy > 0.97
    assert result.pruned_accuracy >= result.dense_accuracy


def test_library_is_right_and_smaller(demo):
    result, _ = demo
    assert 0 < result.error < 1e-5
    assert result.weight_bytes < result.library_bytes < result.dense_bytes
    assert [timing.runs > 0 for timing in result.bench.timings] == [True, True]


def test_keeps_what_can_be_gone_on_with(demo):
    result, folder = demo
    assert {path.name for path in folder.iterdir()} == {
        "dense.onnx",
        "train.npz",
        "validation.npz",
        "lenet_300_100.lwc",
        "report",
    }
    assert (folder / "report" / "plots" / "histogram.svg").exists()
    read_artifact(folder / "lenet_300_100.lwc")
    with np.load(folder / "validation.npz") as data:
        assert data["pixels"].shape == (result.images, LAYERS[0])
        assert data["pixels"].dtype == np.float32
    assert not [path for path in folder.parent.iterdir() if path != folder]


def test_table_states_every_figure(demo):
    result, _ = demo
    console = Console(width=120, file=io.StringIO())
    console.print(to_rich(result))
    text = console.file.getvalue()
    for figure in (
        f"{result.kept:,}",
        f"{result.weights:,}",
        f"{result.dense_accuracy:.2%}",
        f"{result.pruned_accuracy:.2%}",
        f"{result.library_bytes:,}",
        f"{result.error:.1e}",
    ):
        assert figure in text


@pytest.mark.parametrize("compiler", ["cc", f"{sys.executable} -m ziglang cc"])
def test_board_example_computes_the_same(demo, tmp_path, compiler):
    _, folder = demo
    artifact = read_artifact(folder / "lenet_300_100.lwc")
    with np.load(folder / "validation.npz") as data:
        image = data["pixels"][:1]
    image.tofile(tmp_path / "pixels.bin")
    source = resources.files("lwc_compiler.runtime") / "c" / "runner.c"
    library = artifact.directory
    flags = ["-std=c11", "-D_POSIX_C_SOURCE=200809L", "-O2", "-Wall", "-Wextra", "-Werror", "-DMODEL=lenet_300_100"]
    link = ["-I", library, "-L", library, "-llenet_300_100", f"-Wl,-rpath,{library}"]
    subprocess.run([*compiler.split(), *flags, source, *link, "-o", tmp_path / "net"], check=True)
    subprocess.run([tmp_path / "net", tmp_path / "pixels.bin", tmp_path / "scores.bin"], check=True)
    with lwc_compiler.load(artifact.directory) as session:
        expected = session.run({"pixels": image})["scores"]
    np.testing.assert_array_equal(np.fromfile(tmp_path / "scores.bin", np.float32), expected[0])


def test_zig_makes_a_library_that_runs(demo, tmp_path, monkeypatch):
    """Where there is no C compiler, `make demo` links with this one."""
    monkeypatch.setenv("CC", f"{sys.executable} -m ziglang cc")
    _, folder = demo
    manifest = lwc_compiler.lower(folder / "dense.onnx", tmp_path / "net.lwc").manifest
    assert "clang" in manifest.tools["compiler"]
    assert manifest.verification.rounds > 0, manifest.verification.skipped


def test_accuracy_is_not_claimed_for_a_model_pruned_since(demo, lwc, tmp_path):
    _, folder = demo
    trained = folder / "lenet_300_100.lwc" / "lenet_300_100.onnx"
    done = lwc("compile", trained, "-o", tmp_path / "net.lwc", "--sparsity", 0.95, "--prune-first")
    assert "accuracy  not measured" in done.out


def test_pipeline_example_keeps_its_limits(demo, lwc, tmp_path):
    """With fewer epochs than it asks for, which the sizes do not depend on."""
    _, folder = demo
    recipe = (EXAMPLES / "pipeline" / "recipe.toml").read_text(encoding="utf-8")
    for name, text in (("recipe.toml", recipe), ("short.toml", recipe.replace("epochs = 30", "epochs = 1"))):
        (tmp_path / name).write_text(text, encoding="utf-8")
    for name in ("dense.onnx", "train.npz", "validation.npz"):
        (tmp_path / name).symlink_to(folder / name)
    assert lwc("recipe", "check", tmp_path / "recipe.toml").code == 0
    done = lwc("build", tmp_path / "short.toml", "-o", tmp_path / "out")
    assert "passed  max_bytes of x86-64-v3" in done.out
    assert "passed  max_flash_bytes of stm32f4" in done.out
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        *("x86-64-v3.lwc", "stm32f4.lwc", "report.json", "report.md", "junit.xml", "report.html"),
    }


def test_refuses_to_replace_a_folder(tmp_path):
    (tmp_path / "mine").write_text("precious", encoding="utf-8")
    with pytest.raises(ArtifactError, match="mine exists"):
        run_demo(tmp_path / "mine")
    assert (tmp_path / "mine").read_text(encoding="utf-8") == "precious"


def test_refuses_a_folder_that_cannot_be_made(tmp_path):
    with pytest.raises(ArtifactError, match="cannot write"):
        run_demo(tmp_path / "missing" / "out")


def test_network_is_lenet_300_100_and_always_the_same():
    first, second = lenet_300_100(), lenet_300_100()
    assert first.proto == second.proto
    shapes = [tuple(tensor.dims) for tensor in first.proto.graph.initializer]
    assert shapes == [(300, 64), (300,), (100, 300), (100,), (10, 100), (10,)]


def test_digits_are_small_and_carry_their_licence():
    data = resources.files(lwc_compiler) / "data"
    assert len((data / "digits.npz").read_bytes()) < 200_000
    licence = (data / "LICENSE-digits.txt").read_text(encoding="utf-8")
    assert "Alpaydin" in licence
    assert "CC BY 4.0" in licence


def test_digits_are_split_without_overlap():
    digits = load_digits()
    assert len(digits["train_pixels"]) == len(digits["train_labels"]) == 1438
    assert len(digits["validation_pixels"]) == len(digits["validation_labels"]) == 359
    for part in ("train", "validation"):
        assert digits[f"{part}_pixels"].min() == 0
        assert digits[f"{part}_pixels"].max() == 1
        assert set(digits[f"{part}_labels"].tolist()) == set(range(10))
    train = {image.tobytes() for image in digits["train_pixels"]}
    assert not [image for image in digits["validation_pixels"] if image.tobytes() in train]
