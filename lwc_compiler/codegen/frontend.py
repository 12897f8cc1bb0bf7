"""ONNX to Relax."""

from __future__ import annotations

from typing import TYPE_CHECKING

import tvm
import tvm.relax.frontend.onnx

if TYPE_CHECKING:
    import onnx


def import_onnx(proto: onnx.ModelProto) -> tvm.IRModule:
    """The Relax module of a normalized model with static shapes.

    `main` takes the graph inputs in order and returns the output, or the tuple of outputs; initializers are constants.
    """
    return tvm.relax.frontend.onnx.from_onnx(proto, keep_params_in_input=False)


def check_supported(proto: onnx.ModelProto) -> None:
    """Raises `UnsupportedError` for the first node that cannot be lowered."""
