"""What users of the package can rely on."""

import inspect
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import lwc_compiler
from lwc_compiler.errors import LwcError
from lwc_compiler.model import load_model

SIGNATURES = {
    "build": "(recipe: str | Path | BuildRecipe, output: str | Path | None = None, *, allow_code: bool = False, "
    "force: bool = False, cache: bool = False, workdir: str | Path | None = None, "
    "progress: Callable[[Progress], None] | None = None) -> Build",
    "compact": "(model: str | Path | Model | ModelProto) -> Model",
    "compile": "(model: str | Path | Model | ModelProto, output: str | Path, recipe: Recipe | None = None, *, "
    "force: bool = False, cache: bool = False, workdir: str | Path | None = None, "
    "progress: Callable[[Progress], None] | None = None) -> Artifact",
    "estimate": "(model: str | Path | Model | ModelProto, options: EstimateOptions | None = None) -> Estimate",
    "iterate": "(model: str | Path | Model | ModelProto, train_data: str, val_data: str | None = None, *, "
    "prune: PruneOptions, retrain: RetrainOptions | None = None, options: IterateOptions | None = None, "
    "workdir: str | Path | None = None, progress: Callable[[Progress], None] | None = None) -> Model",
    "load": "(directory: str | Path, threads: int | None = None, *, via: str | None = None) -> Network",
    "load_build_recipe": "(path: str | Path, *, allow_code: bool = False) -> BuildRecipe",
    "load_recipe": "(path: str | Path, *, allow_code: bool = False) -> Recipe",
    "lower": "(model: str | Path | Model | ModelProto, output: str | Path, options: LowerOptions | None = None, *, "
    "force: bool = False) -> Artifact",
    "pack": "(model: str | Path | Model | ModelProto, path: str | Path, options: PackOptions | None = None) -> None",
    "prune": "(model: str | Path | Model | ModelProto, options: PruneOptions, data: str | None = None) -> Model",
    "retrain": "(model: str | Path | Model | ModelProto, train_data: str, val_data: str | None = None, "
    "options: RetrainOptions | None = None, *, teacher: str | Path | Model | ModelProto | None = None, "
    "workdir: str | Path | None = None, progress: Callable[[Progress], None] | None = None) -> Model",
    "sensitivity": "(model: str | Path | Model | ModelProto, data: str, options: SensitivityOptions | None = None, *, "
    "workdir: str | Path | None = None, progress: Callable[[ScanProgress], None] | None = None) -> Sensitivity",
    "save": "(model: Model, path: str | Path) -> None",
    "unpack": "(path: str | Path) -> Model",
}
ERRORS = {
    *("ArtifactError", "DataError", "LwcError", "ModelError", "OptionError", "TargetError", "ToolchainError"),
    *("TrainingError", "UnsupportedError", "VerificationError"),
    *("AccuracyGateError", "AgreementGateError", "GateError", "RegressionGateError", "SizeGateError", "SpeedGateError"),
}
CLASSES = {
    "Artifact",
    "Estimate",
    "EstimateOptions",
    "Build",
    "BuildRecipe",
    "GateOptions",
    "GateResult",
    "IterateOptions",
    "LowerOptions",
    "Model",
    "Network",
    "OutputOptions",
    "PackOptions",
    "PruneOptions",
    "Recipe",
    "RetrainOptions",
    "Sensitivity",
    "SensitivityOptions",
    "Session",
    "TargetGates",
    "TargetOptions",
}


def test_names():
    assert set(lwc_compiler.__all__) == {*SIGNATURES, *ERRORS, *CLASSES, "__version__"}
    assert dir(lwc_compiler) == sorted(lwc_compiler.__all__)


@pytest.mark.parametrize("name", SIGNATURES)
def test_functions(name):
    function = getattr(lwc_compiler, name)
    assert str(inspect.signature(function)).replace("'", "") == SIGNATURES[name]
    assert inspect.getdoc(function)


@pytest.mark.parametrize("name", sorted(ERRORS | CLASSES))
def test_classes_are_documented(name):
    assert inspect.getdoc(getattr(lwc_compiler, name))
    if name in ERRORS:
        assert issubclass(getattr(lwc_compiler, name), LwcError)


def test_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="has no attribute 'decompile'"):
        lwc_compiler.decompile  # noqa: B018


def test_import_is_light():
    script = "import sys, lwc_compiler; print(*(name for name in sys.modules if '.' not in name))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    heavy = {"tvm", "onnx", "onnxruntime", "onnx_graphsurgeon", "numpy", "pydantic", "rich", "click", "torch"}
    assert not heavy & set(done.stdout.split())


def test_the_passes_take_files_and_models(mlp, mlp_data, tmp_path):
    before = mlp.read_bytes()
    pruned = lwc_compiler.prune(mlp, lwc_compiler.PruneOptions(sparsity=0.9, keep_first=False))
    again = lwc_compiler.prune(str(mlp), lwc_compiler.PruneOptions(sparsity=0.9, keep_first=False))
    assert pruned.proto == again.proto
    assert {name: int(mask.sum()) for name, mask in pruned.masks.items()} == {"w1": 19, "w2": 5}

    reports = []
    options = lwc_compiler.RetrainOptions(epochs=1)
    trained = lwc_compiler.retrain(pruned, str(mlp_data), options=options, progress=reports.append)
    assert reports[-1].epoch == 1
    small = lwc_compiler.compact(trained)
    lwc_compiler.save(small, tmp_path / "small.onnx")
    assert load_model(tmp_path / "small.onnx").provenance == small.provenance
    assert [entry["pass"] for entry in small.provenance if entry["pass"] != "normalize"] == [
        "prune",
        "retrain",
        "compact",
    ]

    artifact = lwc_compiler.lower(small, tmp_path / "small.lwc", lwc_compiler.LowerOptions(batch=2, threads=2))
    x = np.ones((2, 16), np.float32)
    with lwc_compiler.load(artifact.directory) as session:
        assert session.threads == 2
        y = session.run({"x": x})["y"]
    weights = {tensor.name: numpy_helper.to_array(tensor).astype(float) for tensor in trained.proto.graph.initializer}
    hidden = np.maximum(x @ weights["w1"] + weights["b1"], 0)
    np.testing.assert_allclose(y, hidden @ weights["w2"] + weights["b2"], rtol=1e-5, atol=1e-5)
    assert mlp.read_bytes() == before


def test_models_in_memory_are_taken_as_files_are(mlp, tmp_path):
    options = lwc_compiler.PruneOptions(sparsity=0.9, keep_first=False)
    proto = onnx.load(mlp)
    before = proto.SerializeToString()
    pruned = lwc_compiler.prune(proto, options)
    assert pruned.proto.graph == lwc_compiler.prune(mlp, options).proto.graph
    assert proto.SerializeToString() == before
    assert len(repr(pruned)) < 1000
    for other in (before, None):
        with pytest.raises(
            lwc_compiler.ModelError, match=f"the model is of type {type(other).__name__}: give the path"
        ):
            lwc_compiler.prune(other, options)


def test_compile_keeps_the_zeros_of_a_model_by_default(mlp, tmp_path):
    proto = onnx.load(mlp)
    weight = proto.graph.initializer[2]
    array = numpy_helper.to_array(weight).copy()
    array[1:] = 0
    weight.CopyFrom(numpy_helper.from_array(array, weight.name))
    onnx.save(proto, mlp)
    artifact = lwc_compiler.compile(mlp, tmp_path / "out")
    assert artifact.directory == Path(tmp_path / "out")
    assert artifact.report["total"]["kept"] == 16 * 12 + 4
    assert len(artifact.manifest.source_sha256) == 64
    kept = {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(artifact.model).graph.initializer}
    np.testing.assert_array_equal(kept["w2"], array)


def test_retraining_leaves_the_zeros_of_a_foreign_model(mlp, mlp_data, tmp_path):
    proto = onnx.load(mlp)
    weight = proto.graph.initializer[0]
    array = numpy_helper.to_array(weight).copy()
    array[::2] = 0
    weight.CopyFrom(numpy_helper.from_array(array, weight.name))
    onnx.save(proto, mlp)
    trained = lwc_compiler.retrain(mlp, str(mlp_data), options=lwc_compiler.RetrainOptions(epochs=1))
    after = numpy_helper.to_array(trained.proto.graph.initializer[0])
    assert not after[::2].any()
    assert np.abs(after - array).max() > 0
