"""lwc: an artifact through its Python session."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from serve import serve

import lwc_compiler as lwc


def load(model: str, array: np.ndarray, threads: int) -> tuple[Callable[[], Any], Callable[[], Any]]:
    session = lwc.load(model, threads)
    inputs = {session.inputs[0].name: array}
    return lambda: session.run(inputs), lambda: next(iter(session.run(inputs).values()))


if __name__ == "__main__":
    serve(load)
