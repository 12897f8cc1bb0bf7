"""OpenVINO: the CPU plugin for latency, in float32."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import openvino
from serve import serve


def load(model: str, array: np.ndarray, threads: int) -> tuple[Callable[[], Any], Callable[[], Any]]:
    settings = {
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "f32",
        "ENABLE_CPU_PINNING": False,
    }
    core = openvino.Core()
    request = core.compile_model(core.read_model(model), "CPU", settings).create_infer_request()
    request.set_input_tensor(openvino.Tensor(array))

    def run() -> None:
        request.start_async()
        request.wait()

    return run, lambda: request.get_output_tensor().data


if __name__ == "__main__":
    serve(load)
