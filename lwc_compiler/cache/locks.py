"""Locks between processes: a file each, which the system lets go of however its holder ends."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# What file systems say that know no locks: some that are mounted from a network or from a host.
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)

logger = logging.getLogger(__name__)


@contextmanager
def locked(file: Path, what: str) -> Iterator[None]:
    """Holds the lock `file`, and waits for it where another process does; Ctrl-C and SIGTERM end the wait.

    The file is removed at the end. One that a killed process has left behind is nobody's: it is taken over. Where the
    file system has no locks, the block runs without, and the log warns.

    Args:
        file: the lock; its directory exists.
        what: it stands for, as the log says it of a wait: "waiting for another lwc that {what}".

    Raises:
        OSError: the file cannot be made.
    """
    descriptor = _hold(file, what)
    try:
        yield
    finally:
        file.unlink(missing_ok=True)
        os.close(descriptor)


def _hold(file: Path, what: str) -> int:
    while True:
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            _lock(descriptor, file, what)
            if _is_at(descriptor, file):
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        # Its last holder has removed it: what is held now keeps nobody away.
        os.close(descriptor)


def _lock(descriptor: int, file: Path, what: str) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        logger.info("waiting for another lwc that %s", what)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        logger.warning("there are no locks in %s (%s): let no two lwc write there at once", file.parent, error.strerror)


def _is_at(descriptor: int, file: Path) -> bool:
    """Whether the open file is still the one at this place."""
    try:
        return os.path.samestat(os.fstat(descriptor), file.stat())
    except FileNotFoundError:
        return False
