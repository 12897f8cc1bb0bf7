"""MNN: its module interface, in float32."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import MNN.expr as expr
import MNN.nn as nn
import numpy as np
from serve import serve


def load(model: str, array: np.ndarray, threads: int) -> tuple[Callable[[], Any], Callable[[], Any]]:
    settings = {"backend": "CPU", "numThread": threads, "precision": "high", "memory": "high", "power": "high"}
    runtime = nn.create_runtime_manager((settings,))
    net = nn.load_module_from_file(model, ["input"], ["output"], runtime_manager=runtime, shape_mutable=False)
    variable = expr.placeholder(list(array.shape), expr.NCHW)
    variable.write(array)

    def run() -> Any:
        # Nothing is computed before the output is read.
        return expr.convert(net.forward([variable])[0], expr.NCHW).read()

    return run, run


if __name__ == "__main__":
    serve(load)
