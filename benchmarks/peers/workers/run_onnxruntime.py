"""ONNX Runtime: all graph optimizations, the CPU provider."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnxruntime
from serve import serve


def load(model: str, array: np.ndarray, threads: int) -> tuple[Callable[[], Any], Callable[[], Any]]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    inputs = {session.get_inputs()[0].name: array}
    return lambda: session.run(None, inputs), lambda: session.run(None, inputs)[0]


if __name__ == "__main__":
    serve(load)
