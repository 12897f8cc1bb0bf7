"""ncnn, in float32; it knows no batch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import ncnn
import numpy as np
from serve import serve


def load(model: str, array: np.ndarray, threads: int) -> tuple[Callable[[], Any], Callable[[], Any]]:
    net = ncnn.Net()
    options = net.opt
    options.num_threads = threads
    options.use_fp16_packed = options.use_fp16_storage = options.use_fp16_arithmetic = False
    options.use_bf16_storage = options.use_vulkan_compute = False
    if net.load_param(str(Path(model, "model.param"))) or net.load_model(str(Path(model, "model.bin"))):
        raise RuntimeError("the model does not load")
    # A matrix made of an array does not keep the array's memory alive.
    matrix = ncnn.Mat(array[0]).clone()

    def run() -> Any:
        extractor = net.create_extractor()
        extractor.input("in0", matrix)
        code, output = extractor.extract("out0")
        if code:
            raise RuntimeError(f"the model does not run (code {code})")
        return output

    return run, run


if __name__ == "__main__":
    serve(load)
