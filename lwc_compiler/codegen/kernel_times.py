"""How long a kernel takes on this machine, and how long reading memory does."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from lwc_compiler.codegen.tune import fastest

if TYPE_CHECKING:
    from collections.abc import Callable

_SECONDS = 0.002  # that a kernel is timed each time
_CALL_SECONDS = 2e-5  # that it takes between two looks at the clock
# Steps of bytes that are read to see how fast memory is, and the most.
_STREAMED, _STREAMED_MOST = 16 << 20, 128 << 20


def kernel_seconds(run: Callable[..., None]) -> float:
    """Seconds that a function of `Library.runner` computes, without those of calling it."""
    first = fastest([run], 0.0)[0]
    times = min(1000, max(1, int(_CALL_SECONDS / first)))

    def repeated(share: int) -> Callable[[], None]:
        def every() -> None:
            for _ in range(times):
                run(share)

        return every

    full, empty = fastest([repeated(1)], _SECONDS)[0], fastest([repeated(0)], 0.0)[0]
    return max(full - empty, 1e-9) / times


def read_seconds(size: float) -> float:
    """Seconds of a byte, where one core of this machine reads so many bytes in turn, again and again.

    It finds a few megabytes in its caches; what is more comes from memory.
    """
    return _read_seconds(min(max(1, math.ceil(size / _STREAMED)) * _STREAMED, _STREAMED_MOST))


@lru_cache
def _read_seconds(size: int) -> float:
    memory = np.ones(size // 4, np.float32)
    return fastest([memory.sum], 0.0)[0] / size
