from importlib import metadata
from types import SimpleNamespace

import pytest

from lwc_compiler.errors import ToolchainError
from lwc_compiler.training import runtime_check
from lwc_compiler.training.runtime_check import explain, require_training


def install(monkeypatch, builds):
    def version(name):
        if name not in builds:
            raise metadata.PackageNotFoundError(name)
        return "1.19.2"

    monkeypatch.setattr(runtime_check.metadata, "version", version)


def test_this_installation_can_train():
    require_training()


def test_an_overwritten_installation_is_explained(monkeypatch):
    from onnxruntime import capi

    install(monkeypatch, {"onnxruntime-training-cpu", "onnxruntime"})
    monkeypatch.setattr(capi, "_pybind_state", SimpleNamespace())
    with pytest.raises(ToolchainError) as caught:
        require_training()
    assert "onnxruntime-training-cpu and onnxruntime share one folder" in str(caught.value)
    assert "pip uninstall -y onnxruntime-training-cpu onnxruntime\n" in str(caught.value)
    assert "pip install 'onnxruntime-training-cpu==1.19.2'" in str(caught.value)


def test_a_plain_installation_is_explained(monkeypatch):
    from onnxruntime import capi

    install(monkeypatch, {"onnxruntime"})
    monkeypatch.setattr(capi, "_pybind_state", SimpleNamespace())
    with pytest.raises(ToolchainError, match=r"Linux on x86-64 with Python 3.10 to 3.12.*Everything else works"):
        require_training()


def test_two_training_builds_are_a_mix_too():
    assert "share one folder" in explain(["onnxruntime-training-cpu", "onnxruntime-training"])
