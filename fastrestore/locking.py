"""A lock between processes, held on a file and let go by the system when its holder dies."""

from __future__ import annotations

import errno
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from fastrestore.atomic import label
from fastrestore.errors import OutputError

POLL_S = 0.05
_BUSY = (errno.EACCES, errno.EAGAIN, errno.EDEADLK)  # the last one is Windows's

# Both kinds belong to the open file, so that two threads of one process exclude each other too,
# and both end with the process. A child made by fork shares its parent's.
if sys.platform == "win32":
    import msvcrt

    def _try(fd: int) -> None:
        """Lock or raise OSError. Never run: written from the documentation of msvcrt."""
        msvcrt.locking(fd, msvcrt.LK_NBLCK, 1)

    def _is_current(fd: int, path: Path) -> bool:
        return True  # an open file cannot be removed, and ours stays: see `_release`

    def _release(fd: int, path: Path) -> None:
        os.close(fd)

else:
    import fcntl

    def _try(fd: int) -> None:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def _is_current(fd: int, path: Path) -> bool:
        """Tell whether the locked file is still the one of that name: a holder removes it."""
        try:
            return os.path.samestat(os.fstat(fd), os.lstat(path))
        except FileNotFoundError:
            return False

    def _release(fd: int, path: Path) -> None:
        with suppress(OSError):  # what cannot be removed is unlocked all the same
            path.unlink()  # while it is held: who waits for it sees that it is gone
        fcntl.flock(fd, fcntl.LOCK_UN)  # for forked children, which hold it as well
        os.close(fd)


@contextmanager
def lock(
    path: str | os.PathLike[str], on_wait: Callable[[], object] | None = None
) -> Iterator[None]:
    """Hold a lock that one process, and one thread in it, can hold at a time.

    The file is made, and removed at the end (on Windows it stays). What a killed process leaves
    is an unlocked file, and harms nobody.

    Args:
        path: The lock's own file; its folder is made if absent.
        on_wait: Called once if another holds the lock, before the wait for it begins. What it
            raises is passed on: that is how to refuse instead of waiting.

    Raises:
        OutputError: The file cannot be made, or its disk knows no locks.
    """
    target = Path(path)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise OutputError(
            f"{label(target.parent)}: cannot be made ({e.strerror}); choose another"
        ) from e
    fd = _claim(target)
    if fd is None:
        if on_wait is not None:
            on_wait()
        while (fd := _claim(target)) is None:
            time.sleep(POLL_S)
    try:
        yield
    finally:
        _release(fd, target)


def _claim(path: Path) -> int | None:
    """Take the lock if it is free; return its open file, or None."""
    try:
        # never through a link
        fd = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o666)
    except OSError as e:
        raise OutputError(
            f"{label(path)}: no lock can be made ({e.strerror}); choose another folder"
        ) from e
    held = False
    try:
        _try(fd)
        held = _is_current(fd, path)
    except OSError as e:
        if e.errno not in _BUSY:
            raise OutputError(
                f"{label(path)}: its disk knows no locks ({e.strerror}); "
                f"choose a folder on another disk"
            ) from e
    finally:
        if not held:
            os.close(fd)
    return fd if held else None
