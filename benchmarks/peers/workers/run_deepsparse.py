"""DeepSparse: its engine without pipelines around it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import numpy as np
from serve import serve

logging.disable(logging.WARNING)

from deepsparse import Engine  # noqa: E402 - it logs when it is imported


def load(model: str, array: np.ndarray, threads: int) -> tuple[Callable[[], Any], Callable[[], Any]]:
    engine = Engine(model, batch_size=array.shape[0], num_cores=threads)
    if engine.num_cores != threads:
        raise RuntimeError(f"the engine took {engine.num_cores} cores instead of {threads}")
    inputs = [array]
    return lambda: engine.run(inputs, val_inp=False), lambda: engine.run(inputs, val_inp=False)[0]


if __name__ == "__main__":
    serve(load)
