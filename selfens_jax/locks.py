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
def shared(path: pathlib.Path, what: str) -> Iterator[None]:
    """Keeps others from holding the lock `path`, together with any number of processes.

    In a folder where nothing can be written, nothing is locked.

    Args, raises: as `held`.
    """
    try:
        file = path.open("a+")
    except OSError:
        yield
        return
    with file:
        locked = _locked(file, what, shared=True)
        try:
            yield
        finally:
            if locked and _locked(file, "", shared=False, refuse=False):  # nobody else shares it
                path.unlink(missing_ok=True)


@contextlib.contextmanager
def held(path: pathlib.Path, what: str) -> Iterator[None]:
    """Holds the lock file `path`, which names this process and is gone afterwards.

    A file that a killed process left behind holds nobody up. Where the file system knows no locks
    (some network folders, Windows), nothing is locked.

    Args:
      path: the lock file.
      what: the work that one process at a time may do, for the message: "<what> is being done by".

    Raises:
      UserError: if another process, which it names, holds the lock.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as file:
        if not _locked(file, what):
            yield
            return
        if not _is(path, file):  # its holder removed it between our opening and our locking it
            with held(path, what):
                yield
            return
        now = datetime.datetime.now().astimezone().isoformat(" ", "seconds")
        file.truncate(0)
        file.write(f"process {os.getpid()} on {platform.node()} since {now}")
        file.flush()
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def _locked(file: IO[str], what: str, shared: bool = False, refuse: bool = True) -> bool:
    """Whether the file is locked now; False where the file system has no locks."""
    try:
        import fcntl

        kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        if not refuse:
            return False
        file.seek(0)
        holder = file.read().strip() or "another process"
        raise UserError(
            f"{what} is being done by {holder}; wait until it has ended, or stop it"
        ) from None
    except (ImportError, OSError):
        return False
    return True


def _is(path: pathlib.Path, file: IO[str]) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False
