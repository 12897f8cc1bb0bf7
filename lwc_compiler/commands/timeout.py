"""`--timeout`: ends a command that takes too long, the way Ctrl-C does."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager

from lwc_compiler.errors import TimeLimitError

# Should the first interruption get lost (Python drops what is raised in a destructor), there is another.
_AGAIN_SECONDS = 30.0


class _TimeIsOver(KeyboardInterrupt):
    """Not the class itself, for which `subprocess` does not wait until a child that it has killed is gone."""


@contextmanager
def time_limit(seconds: float | None) -> Iterator[None]:
    """Interrupts the block after `seconds`, so that it stops its child processes and removes what it has not finished.

    Python sees the alarm between two calls of native code: it may come late by as long as one of them takes.

    Args:
        seconds: above 0; None: no limit.

    Raises:
        TimeLimitError: the block was interrupted.
    """
    if seconds is None:
        yield
        return
    late = False

    def interrupt(*_: object) -> None:
        nonlocal late
        late = True
        signal.setitimer(signal.ITIMER_REAL, _AGAIN_SECONDS)
        raise _TimeIsOver

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    except BaseException as error:  # native code that calls Python makes other exceptions of an interruption
        if late:
            raise TimeLimitError(
                f"not done after {seconds:g} s, the limit of --timeout: no output was written; a longer limit goes on "
                "from what is cached and, with --workdir, from the last epoch"
            ) from error
        raise
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
