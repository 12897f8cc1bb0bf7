"""Weights in a file of their own, beside the library."""

import ctypes
from dataclasses import replace

import numpy as np
import pytest

import lwc_compiler
from lwc_compiler.errors import ArtifactError
from lwc_compiler.model import load_model
from lwc_compiler.passes.lower import lower
from lwc_compiler.recipe.options import LowerOptions, Recipe
from lwc_compiler.runtime.load import open_lowered

NULL, MISALIGNED, OTHER = 1, 2, 4


@pytest.fixture
def options():
    return LowerOptions(target="host", weights="file")


def test_the_artifact_runs_as_with_embedded_weights(tmp_path, mlp, options, lwc):
    apart = lwc_compiler.compile(mlp, tmp_path / "apart.lwc", Recipe(lower=options))
    whole = lwc_compiler.compile(mlp, tmp_path / "whole.lwc", Recipe(lower=LowerOptions(target="host")))
    assert apart.weights == apart.directory / "mlp.weights"
    assert whole.weights is None
    np.save(tmp_path / "x.npy", np.random.default_rng(0).standard_normal((1, 16)).astype(np.float32))
    results = []
    for artifact in (apart, whole):
        out = tmp_path / artifact.directory.stem
        assert lwc("run", artifact.directory, "--input", f"x={tmp_path / 'x.npy'}", "--output-dir", out).code == 0
        results.append(np.load(out / "y.npy"))
    assert np.array_equal(*results)
    assert lwc("bench", apart.directory, "--seconds", "0").code == 0


def test_the_library_is_smaller_by_its_weights(mlp, options):
    apart, whole = (lower(load_model(mlp), choice) for choice in (options, LowerOptions(target="host")))
    assert whole.weights is None
    assert len(apart.weights) > whole.weight_bytes > 16 * 12 * 4
    bias = next(tensor.raw_data for tensor in load_model(mlp).proto.graph.initializer if tensor.name == "b1")
    assert bias in whole.archive
    assert bias not in apart.archive
    assert bias in apart.weights


def test_weights_of_another_network_are_refused(mlp, options):
    model = load_model(mlp)
    lowered = lower(model, options)
    for initializer in model.proto.graph.initializer:
        if initializer.name == "w2":
            initializer.raw_data = (2 * np.frombuffer(initializer.raw_data, np.float32)).tobytes()
    other = lower(model, options)
    assert len(other.weights) == len(lowered.weights)
    with pytest.raises(ArtifactError, match=r"mlp.weights: the weights are damaged, or those of another library"):
        open_lowered(replace(lowered, weights=other.weights), 1)


@pytest.mark.parametrize("damage", ["last byte", "shorter"])
def test_damaged_weights_are_refused(mlp, options, damage):
    lowered = lower(load_model(mlp), options)
    contents = bytearray(lowered.weights)
    if damage == "shorter":
        del contents[-64:]
    else:
        contents[-257] ^= 1
    with pytest.raises(ArtifactError, match="the weights are damaged"):
        open_lowered(replace(lowered, weights=bytes(contents)), 1)


def test_a_run_checks_whose_weights_it_gets(tmp_path, mlp, options):
    lowered = lower(load_model(mlp), options)
    (tmp_path / "net.so").write_bytes(lowered.library)
    library = ctypes.CDLL(str(tmp_path / "net.so"))
    library.mlp_workspace_bytes.restype = ctypes.c_size_t
    memory = ctypes.create_string_buffer(library.mlp_workspace_bytes(1) + len(lowered.weights) + 128)
    workspace = -(-ctypes.addressof(memory) // 64) * 64
    weights = workspace + library.mlp_workspace_bytes(1)
    x, y = np.ones(16, np.float32), np.zeros(4, np.float32)
    pointers = [(ctypes.c_void_p * 1)(array.ctypes.data) for array in (x, y)]

    def run(address):
        size = ctypes.c_size_t(library.mlp_workspace_bytes(1))
        return library.mlp_run(ctypes.c_void_p(address), *pointers, ctypes.c_void_p(workspace), size, None)

    assert run(None) == NULL
    assert run(weights + 4) == MISALIGNED
    assert run(weights) == OTHER
    ctypes.memmove(weights, lowered.weights, len(lowered.weights))
    assert run(weights) == 0
    assert y.any()
