"""Files that are written whole or not at all."""

from __future__ import annotations

import errno
import os
import secrets
import sys
from pathlib import Path

from fastrestore.errors import OutputError

_MENDS = {
    errno.ENOENT: "its folder does not exist; make the folder first",
    errno.ENOTDIR: "its folder is a file; choose another folder",
    errno.EISDIR: "is a folder; name a file in it",
    errno.EACCES: "may not be written (permission denied); choose another folder",
    errno.EPERM: "may not be written (not permitted); choose another folder",
    errno.EROFS: "lies on a read-only disk; choose another folder",
    errno.ENOSPC: "the disk is full; free some space",
    errno.EDQUOT: "the disk quota is used up; free some space",
    errno.ENAMETOOLONG: "the name is too long; choose a shorter one",
}


def label(path: str | os.PathLike[str]) -> str:
    """Return a path for a one-line message: quoted where it holds line breaks or the like."""
    text = os.fspath(path)
    return text if text.isprintable() else repr(text)


def sync(path: str | os.PathLike[str]) -> None:
    """Wait until a file, or what a folder says of its files, is on disk."""
    is_folder = os.path.isdir(path)
    if is_folder and sys.platform == "win32":
        return  # folders cannot be opened there
    fd = os.open(path, os.O_RDONLY if is_folder else os.O_RDWR)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def check_place(target: Path) -> None:
    """Refuse a path at which no file can be made; raises OutputError."""
    if not target.parent.is_dir():
        raise OutputError(f"{label(target)}: the folder does not exist; create it first")
    if target.is_dir():
        raise OutputError(f"{label(target)}: is a folder; give the name of a file")


def part_of(target: Path) -> Path:
    """Return `<stem>.part-<token>.<suffix>` beside a target, under which a video grows.

    A name of its own: two runs to one target must not write into one file.
    """
    return target.with_name(f"{target.stem}.part-{secrets.token_hex(3)}{target.suffix}")


def disk_reason(error: BaseException) -> str:
    """Say why a video cannot be written, and how to mend it."""
    if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return "no space left; free some, or write to another disk"
    reason = getattr(error, "strerror", None) or error
    return f"cannot be written ({reason}); try another folder or format"


def write_file(path: str | os.PathLike[str], data: bytes) -> None:
    """Write a file under a temporary name in the same folder, then give it its own.

    What was there stays until the new file is complete. A link of that name is replaced, not
    followed. The mode is 0666 less the umask.

    Raises:
        OutputError: No such folder, not permitted, disk full, the path is a folder.
    """
    target = Path(path)
    try:
        if target.is_dir():
            raise IsADirectoryError(errno.EISDIR, "is a folder")
        part = target.with_name(f".{secrets.token_hex(8)}.part")
        try:
            with open(part, "xb") as file:  # x: never an existing file or a link
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(part, target)
        except BaseException:
            part.unlink(missing_ok=True)
            raise
    except (OSError, ValueError) as e:  # ValueError: an empty name or a zero byte in it
        reason = e.strerror if isinstance(e, OSError) else str(e)
        other = f"cannot be written ({reason}); choose another name or folder"
        mend = _MENDS.get(getattr(e, "errno", None) or 0, other)
        raise OutputError(f"{label(path)}: {mend}") from e
