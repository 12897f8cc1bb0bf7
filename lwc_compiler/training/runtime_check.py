"""Whether the installed ONNX Runtime can train.

`onnxruntime`, `onnxruntime-training` and `onnxruntime-training-cpu` own the same folder: whichever is installed last
overwrites the others, and pip says nothing. What is left then runs models but cannot train.
"""

from __future__ import annotations

from importlib import metadata

from lwc_compiler.errors import ToolchainError

TRAINING_BUILDS = ("onnxruntime-training-cpu", "onnxruntime-training")
ALL_BUILDS = (*TRAINING_BUILDS, "onnxruntime", "onnxruntime-gpu")
REQUIREMENT = "onnxruntime-training-cpu==1.19.2"


def require_training() -> None:
    """Checks that gradients can be built here.

    Raises:
        ToolchainError: no build of ONNX Runtime Training is installed, or another build has overwritten it.
    """
    try:
        from onnxruntime.capi import _pybind_state
    except ImportError as error:
        bindings, reason = None, f" ({error})"
    else:
        bindings, reason = _pybind_state, ""
    if hasattr(bindings, "GradientGraphBuilder"):
        return
    raise ToolchainError(explain(installed_builds()) + reason)


def installed_builds() -> list[str]:
    """The distributions installed here that own the folder `onnxruntime`."""
    found = []
    for name in ALL_BUILDS:
        try:
            metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
        found.append(name)
    return found


def explain(builds: list[str]) -> str:
    """Why ONNX Runtime cannot train although `builds` are installed, and what mends it."""
    if not set(builds) & set(TRAINING_BUILDS):
        return (
            "retraining needs ONNX Runtime Training, which has wheels for Linux on x86-64 with Python 3.10 to 3.12 "
            "only; it is not installed here. Everything else works: prune without training data, or retrain on such "
            f"a machine (pip install '{REQUIREMENT}')"
        )
    return (
        f"the installation of ONNX Runtime is mixed up: {' and '.join(builds)} share one folder and "
        "the one installed last has overwritten the training build, so gradients cannot be built. Mend it with:\n"
        f"  pip uninstall -y {' '.join(builds)}\n"
        f"  pip install '{REQUIREMENT}'"
    )
