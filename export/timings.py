"""The builder's timings of earlier builds in a file of ours.

A first line says what it is and what its bytes must be, then come the library's own bytes: these
have no mark that is documented, and what is no file of ours must never be replaced.
"""

from __future__ import annotations

import hashlib
import stat
from pathlib import Path
from typing import NamedTuple

from fastrestore.atomic import label, write_file
from fastrestore.engine_fit import cache_holds
from fastrestore.errors import EngineError, OutputError

_MARK = b"fastrestore timings 1 "
_HEAD_BYTES = len(_MARK) + 64 + 1  # SHA-256 in hex, line feed


class Timings(NamedTuple):
    """What was kept: the library's bytes, empty if there are none, and why if that is odd."""

    data: bytes
    note: str = ""


def read_timings(path: Path) -> Timings:
    """Read a file of timings; one that is damaged is begun anew.

    Raises:
        EngineError: It cannot be read.
        OutputError: It is something else, which must not be replaced.
    """
    other = OutputError(
        f"{label(path)}: is no timing cache of fastrestore and is not replaced; name another "
        "--timing-cache, or off"
    )
    is_replaceable = cache_holds(path, "timing")  # nothing else lies there
    try:
        if not stat.S_ISREG(path.lstat().st_mode):
            raise other  # a pipe is not even opened
        with open(path, "rb") as file:
            head = file.read(_HEAD_BYTES)
            if head.strip(b"\0") and not head.startswith(_MARK) and not is_replaceable:
                raise other
            data = file.read() if head.startswith(_MARK) else b""
    except FileNotFoundError:
        return Timings(b"")
    except OutputError:
        raise
    except OSError as e:
        raise EngineError(
            f"{label(path)}: cannot be read ({e.strerror}); use another --timing-cache, or off"
        ) from e
    if head == _head(data):
        return Timings(data)
    return Timings(b"", "timing cache: damaged, begun anew" if head else "")


def write_timings(path: Path, data: bytes) -> None:
    """Write a file of timings.

    Raises:
        EngineError, OutputError: See `read_timings`; or it cannot be written.
    """
    read_timings(path)  # it may be another file by now
    write_file(path, _head(data) + data)


def _head(data: bytes) -> bytes:
    return _MARK + hashlib.sha256(data).hexdigest().encode() + b"\n"
