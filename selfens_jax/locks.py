"""One process at a time: a lock that the operating system drops when its holder ends, however."""

import contextlib
import datetime
import os
import pathlib
import platform
from collections.abc import Iterator
from typing import IO

from selfens_jax.errors import UserError


@contextlib.contextmanager
def held(path: pathlib.Path, what: str, shared: bool = False) -> Iterator[None]:
    """Holds the lock file `path`, which names this process and is gone afterwards.

    A file that a killed process left behind holds nobody up. Where the file system knows no locks
    (some network folders, Windows), nothing is locked.

    Args:
      path: the lock file.
      what: the work that one process at a time may do, for the message: "<what> is being done by".
      shared: together with any number of processes that share it, against those that do not. It
        names nobody; in a folder where nothing can be written, nothing is locked.

    Raises:
      UserError: if another process, which it names, holds the lock.
    """
    try:
        if not shared:
            path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a+")
    except OSError:
        if not shared:
            raise
        yield
        return
    with file:
        free = _lock(file, shared)
        if free is None:
            yield
            return
        if not free:
            file.seek(0)
            holder = file.read().strip() or "another process"
            raise UserError(
                f"{what} is being done by {holder}; wait until it has ended, or stop it"
            )
        if not _is(path, file):  # its holder removed it between our opening and our locking it
            with held(path, what, shared):
                yield
            return
        if not shared:
            now = datetime.datetime.now().astimezone().isoformat(" ", "seconds")
            file.truncate(0)
            file.write(f"process {os.getpid()} on {platform.node()} since {now}")
            file.flush()
        try:
            yield
        finally:
            if not shared or _lock(file):  # nobody else shares it
                path.unlink(missing_ok=True)


def _lock(file: IO[str], shared: bool = False) -> bool | None:
    """Locks the file if it is free, and says whether; None where the file system has no locks."""
    try:
        import fcntl

        fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except (ImportError, OSError):
        return None
    return True


def _is(path: pathlib.Path, file: IO[str]) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False
