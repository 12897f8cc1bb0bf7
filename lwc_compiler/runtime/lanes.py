"""What each of the runs that happen at the same time needs for itself."""

from __future__ import annotations

import ctypes
import os
import sys
import threading
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import NamedTuple

from lwc_compiler.errors import ArtifactError


class Lane(NamedTuple):
    """What one run at a time may use.

    Attributes:
        inputs: where the run puts the addresses of the inputs.
        outputs: and those of the outputs.
        passed: what the library's function is called with, these two among it.
    """

    inputs: ctypes.Array[ctypes.c_void_p]
    outputs: ctypes.Array[ctypes.c_void_p]
    passed: tuple[object, ...]


class Lanes:
    """The lanes of a session: one at first, others when runs overlap, `most` in all; who gets none waits.

    `give` gives a lane back. A queue in C holds those that are free: it takes a tenth of a microsecond, and waiting for
    it does not hold the GIL.
    """

    def __init__(self, make: Callable[[], Lane], most: int) -> None:
        self._make, self._most = make, most
        self._lock = threading.Lock()
        self._free: SimpleQueue[Lane | None] = SimpleQueue()
        self.give = self._free.put
        self._made = 0
        self._closed = False
        self.give(self.take())

    def take(self) -> Lane:
        """A lane for the caller alone, until it is given back.

        Raises:
            ArtifactError: the session is closed.
        """
        try:
            lane = self._free.get_nowait()
        except Empty:
            lane = self._next()
        if lane is None or self._closed:
            self._free.put(lane)
            raise ArtifactError("the session is closed: load the artifact again")
        return lane

    def close(self) -> None:
        """Waits until every lane is given back, and makes `take` fail from now on."""
        with self._lock:
            self._closed = True
            while self._made:
                self._free.get()
                self._made -= 1
            # Whoever waits gets it, and puts it back for the next.
            self._free.put(None)

    def _next(self) -> Lane | None:
        with self._lock:
            if self._made < self._most and not self._closed:
                lane = self._make()
                self._made += 1
                return lane
        return self._free.get()


def lanes_for(threads: int) -> int:
    """How many runs on `threads` threads each the processors of this process have room for; at least 1."""
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    return max(1, cores // threads)
